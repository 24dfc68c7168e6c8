//! Whether an attempt that failed may be followed by another, and the budget that stops retry storms.
//!
//! The rule is by proof (RFC 9110 section 9.2.2): any method when the upstream cannot have got the request;
//! an idempotent one when the connection ended before the first response byte. `retries.on` is the default
//! set `[connect, tls, unsent, closed]`.
//!
//! Must not know: sockets, breakers, which upstream comes next.

use crate::policy::class::Class;

/// What is known about an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub class: Class,
    /// The connection came from the pool.
    pub reused: bool,
    /// This request was repeated after a stale connection already, in this attempt.
    pub repeated: bool,
    /// The method may be repeated without harm.
    pub idempotent: bool,
    /// All that was read of the request is still held.
    pub replayable: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stale race: the same upstream on a fresh connection, free of charge.
    SameUpstream,
    /// Another upstream, when attempts and, unless `free`, budget are left.
    Another {
        /// It is certain that the upstream did not get the request.
        free: bool,
    },
    /// The client is told.
    GiveUp,
}

/// Whether this failure is the race between a request and the close of an idle connection: nothing is
/// learnt about the upstream.
pub fn is_stale_race(class: Class, reused: bool) -> bool {
    reused && matches!(class, Class::Closed | Class::Unsent)
}

/// What follows a failed attempt.
pub fn verdict(failed: Failed) -> Verdict {
    let unsent = matches!(failed.class, Class::Connect | Class::Tls | Class::Unsent);
    let allowed = unsent || failed.class == Class::Closed && failed.idempotent;
    match failed {
        Failed { replayable: false, .. } => Verdict::GiveUp,
        _ if !allowed => Verdict::GiveUp,
        Failed { class, reused, repeated: false, .. } if is_stale_race(class, reused) => Verdict::SameUpstream,
        _ => Verdict::Another { free: unsent },
    }
}

/// Retries that a service has saved up on one shard: each request adds a fifth of one, at most a hundred
/// are kept, and three per second are always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    fifths: u16,
    second: u32,
    spent: u8,
}

const RETRY_FIFTHS: u16 = 5;
const MOST_FIFTHS: u16 = 100 * RETRY_FIFTHS;
const ALWAYS_PER_SECOND: u8 = 3;

impl Account {
    /// A request came.
    pub fn earn(&mut self) {
        self.fifths = (self.fifths + 1).min(MOST_FIFTHS);
    }

    /// Whether a retry may be made in this second, which it then pays for.
    pub fn spend(&mut self, now_s: u32) -> bool {
        if self.second != now_s {
            self.second = now_s;
            self.spent = 0;
        }
        if self.spent < ALWAYS_PER_SECOND {
            self.spent += 1;
            return true;
        }
        let pays = self.fifths >= RETRY_FIFTHS;
        if pays {
            self.fifths -= RETRY_FIFTHS;
        }
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Failed =
        Failed { class: Class::Closed, reused: false, repeated: false, idempotent: true, replayable: true };

    #[test]
    fn unsent_is_free_for_any_method() {
        for class in [Class::Connect, Class::Unsent] {
            assert_eq!(verdict(Failed { class, idempotent: false, ..FRESH }), Verdict::Another { free: true });
        }
    }

    #[test]
    fn closed_is_for_idempotent_methods() {
        assert_eq!(verdict(FRESH), Verdict::Another { free: false });
        assert_eq!(verdict(Failed { idempotent: false, ..FRESH }), Verdict::GiveUp);
        assert_eq!(verdict(Failed { replayable: false, ..FRESH }), Verdict::GiveUp);
    }

    #[test]
    fn the_stale_race_is_repeated_once() {
        let stale = Failed { reused: true, ..FRESH };
        assert_eq!(verdict(stale), Verdict::SameUpstream);
        assert_eq!(verdict(Failed { repeated: true, ..stale }), Verdict::Another { free: false });
        assert_eq!(verdict(Failed { idempotent: false, ..stale }), Verdict::GiveUp);
        assert_eq!(verdict(Failed { class: Class::Unsent, idempotent: false, ..stale }), Verdict::SameUpstream);
    }

    #[test]
    fn what_the_upstream_may_have_done_is_not_repeated() {
        for class in [Class::Invalid, Class::Timeout, Class::Cut, Class::Status] {
            assert_eq!(verdict(Failed { class, ..FRESH }), Verdict::GiveUp);
        }
    }

    #[test]
    fn the_budget_is_a_fifth_of_the_requests() {
        let mut account = Account::default();
        assert_eq!((0..10).filter(|_| account.spend(1)).count(), 3);
        for _ in 0..1000 {
            account.earn();
        }
        assert_eq!((0..500).filter(|_| account.spend(2)).count(), 103);
        assert_eq!((0..10).filter(|_| account.spend(3)).count(), 3);
    }
}

//! Whether an attempt that failed may be followed by another, and the budget that stops retry storms.
//!
//! The rule is by proof (RFC 9110 section 9.2.2): any method when the upstream cannot have got the request;
//! only the listed methods, by default the idempotent ones, when it may have got it.
//!
//! Must not know: sockets, breakers, which upstream comes next.

use crate::policy::class::{Causes, Class};
use std::time::Duration;

/// `retries` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Extra tries of an exchange, 0 to 15.
    pub attempts: u8,
    /// What may be followed by another try.
    pub on: Causes,
    /// Methods that may be repeated although the upstream may have got the request.
    pub methods: Vec<String>,
    /// Hundredths of a percent of a retry that each request saves up.
    pub budget: u32,
    /// Retries per second that are always allowed, on each shard.
    pub budget_min: u32,
    /// Bytes of a request body above which it is not sent again.
    pub body_limit: u64,
    /// How long one try may take to its response head; `None` leaves it to the timeouts.
    pub per_try_timeout: Option<Duration>,
    /// The wait before the first retry; it doubles with each.
    pub backoff: Option<Duration>,
}

/// The methods that are idempotent by definition (RFC 9110 section 9.2.2).
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            attempts: 1,
            on: Causes::of(&[Class::Connect, Class::Tls, Class::Unsent, Class::Closed]),
            methods: IDEMPOTENT.map(str::to_owned).to_vec(),
            budget: 2000,
            budget_min: 3,
            body_limit: 64 << 10,
            per_try_timeout: None,
            backoff: None,
        }
    }
}

impl Policy {
    /// Whether a request with this method may be repeated although the upstream may have got it.
    pub fn repeats(&self, method: &str) -> bool {
        self.methods.iter().any(|listed| listed == method)
    }

    /// The wait before a retry that follows `tries` tries: half of it is certain, half is chance, so that clients
    /// that failed together do not come back together.
    pub fn pause(&self, tries: u8, random: u64) -> Option<Duration> {
        let whole = self.backoff?.saturating_mul(1 << tries.saturating_sub(1).min(5));
        let half_us = u64::try_from(whole.as_micros() / 2).unwrap_or(u64::MAX - 1);
        Some(Duration::from_micros(half_us + random % (half_us + 1)))
    }
}

/// What is known about an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub class: Class,
    /// The status, when that is what went wrong.
    pub status: Option<u16>,
    /// The connection came from the pool.
    pub reused: bool,
    /// This request was repeated after a stale connection already, in this attempt.
    pub repeated: bool,
    /// The method may be repeated without harm.
    pub repeatable: bool,
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
pub fn verdict(failed: Failed, policy: &Policy) -> Verdict {
    let unsent = matches!(failed.class, Class::Connect | Class::Tls | Class::Unsent);
    // With a byte of the response gone there is nothing to repeat, whatever is listed.
    let possible = (unsent || failed.repeatable) && failed.replayable && failed.class != Class::Cut;
    let listed = match failed.status {
        Some(status) => policy.on.counts_status(status),
        None => policy.on.counts_class(failed.class),
    };
    match failed {
        _ if !possible => Verdict::GiveUp,
        Failed { class, reused, repeated: false, .. } if is_stale_race(class, reused) => Verdict::SameUpstream,
        _ if listed => Verdict::Another { free: unsent },
        _ => Verdict::GiveUp,
    }
}

/// Retries that a service has saved up on one shard, at most a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// In ten-thousandths of a retry.
    saved: u32,
    second: u32,
    spent: u32,
}

const RETRY: u32 = 10_000;
const MOST: u32 = 100 * RETRY;

impl Account {
    /// A request came.
    pub fn earn(&mut self, policy: &Policy) {
        self.saved = (self.saved + policy.budget).min(MOST);
    }

    /// Whether a retry may be made in this second, which it then pays for.
    pub fn spend(&mut self, now_s: u32, policy: &Policy) -> bool {
        if self.second != now_s {
            self.second = now_s;
            self.spent = 0;
        }
        if self.spent < policy.budget_min {
            self.spent += 1;
            return true;
        }
        let pays = self.saved >= RETRY;
        if pays {
            self.saved -= RETRY;
        }
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Failed = Failed {
        class: Class::Closed,
        status: None,
        reused: false,
        repeated: false,
        repeatable: true,
        replayable: true,
    };

    fn by_default(failed: Failed) -> Verdict {
        verdict(failed, &Policy::default())
    }

    #[test]
    fn unsent_is_free_for_any_method() {
        for class in [Class::Connect, Class::Unsent] {
            assert_eq!(by_default(Failed { class, repeatable: false, ..FRESH }), Verdict::Another { free: true });
        }
    }

    #[test]
    fn closed_is_for_repeatable_methods() {
        assert_eq!(by_default(FRESH), Verdict::Another { free: false });
        assert_eq!(by_default(Failed { repeatable: false, ..FRESH }), Verdict::GiveUp);
        assert_eq!(by_default(Failed { replayable: false, ..FRESH }), Verdict::GiveUp);
        let policy = Policy::default();
        assert!(policy.repeats("PUT") && !policy.repeats("POST") && !policy.repeats("get"));
    }

    #[test]
    fn the_stale_race_is_repeated_once() {
        let stale = Failed { reused: true, ..FRESH };
        assert_eq!(by_default(stale), Verdict::SameUpstream);
        assert_eq!(by_default(Failed { repeated: true, ..stale }), Verdict::Another { free: false });
        assert_eq!(by_default(Failed { repeatable: false, ..stale }), Verdict::GiveUp);
        let unsent = Failed { class: Class::Unsent, repeatable: false, ..stale };
        assert_eq!(by_default(unsent), Verdict::SameUpstream);
        let nothing = Policy { on: Causes::none(), ..Policy::default() };
        assert_eq!(verdict(stale, &nothing), Verdict::SameUpstream, "the race is no retry");
        assert_eq!(verdict(FRESH, &nothing), Verdict::GiveUp);
    }

    #[test]
    fn what_the_upstream_may_have_done_is_repeated_only_when_listed() {
        let mut on = Causes::of(&[Class::Invalid, Class::Timeout, Class::Cut]);
        on.add_status(503);
        let policy = Policy { on, ..Policy::default() };
        for class in [Class::Invalid, Class::Timeout] {
            assert_eq!(by_default(Failed { class, ..FRESH }), Verdict::GiveUp);
            assert_eq!(verdict(Failed { class, ..FRESH }, &policy), Verdict::Another { free: false });
            assert_eq!(verdict(Failed { class, repeatable: false, ..FRESH }, &policy), Verdict::GiveUp);
        }
        let status = |status| Failed { class: Class::Status, status: Some(status), ..FRESH };
        assert_eq!(verdict(status(503), &policy), Verdict::Another { free: false });
        assert_eq!(verdict(status(500), &policy), Verdict::GiveUp);
        assert_eq!(verdict(Failed { class: Class::Cut, ..FRESH }, &policy), Verdict::GiveUp);
    }

    #[test]
    fn the_budget_is_a_share_of_the_requests() {
        let policy = Policy::default();
        let mut account = Account::default();
        assert_eq!((0..10).filter(|_| account.spend(1, &policy)).count(), 3);
        for _ in 0..1000 {
            account.earn(&policy);
        }
        assert_eq!((0..500).filter(|_| account.spend(2, &policy)).count(), 103);
        assert_eq!((0..10).filter(|_| account.spend(3, &policy)).count(), 3);
        let all = Policy { budget: 10_000, budget_min: 0, ..policy };
        account = Account::default();
        assert!(!account.spend(4, &all));
        account.earn(&all);
        assert!(account.spend(4, &all) && !account.spend(4, &all));
    }

    #[test]
    fn pauses_double_and_have_chance_in_them() {
        let policy = Policy { backoff: Some(Duration::from_millis(100)), ..Policy::default() };
        let ms = |tries, random| policy.pause(tries, random).map(|pause| pause.as_millis());
        assert_eq!((ms(1, 0), ms(1, 50_000), ms(2, 0), ms(3, 0)), (Some(50), Some(100), Some(100), Some(200)));
        assert_eq!(Policy::default().pause(1, 0), None);
    }
}

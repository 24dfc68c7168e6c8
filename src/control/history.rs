//! What breakers did and why: the log lines of transitions, and the last of them for the status document.
//!
//! Must not know: how a breaker decides.

use crate::policy::breaker::{State, Why};
use crate::shard::mailbox::Moved;
use crate::shared::snapshot::UpstreamIdentity;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

/// Transitions that are remembered of each upstream.
const REMEMBERED: usize = 16;

/// One transition, told.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it happened.
    pub time: SystemTime,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// In words.
    pub reason: String,
    /// Failures in a row that led to it.
    pub failures: u64,
    /// When its upstream had come into the configuration.
    upstream_created: SystemTime,
}

/// How often a breaker went to a state for a reason, by both words.
pub type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// The last transitions of every upstream.
#[derive(Debug, Default)]
pub struct History {
    entries: HashMap<(String, String), VecDeque<Entry>>,
    counts: HashMap<(String, String), Counts>,
}

impl History {
    /// Logs a transition and remembers it; what it is in words.
    pub fn moved(&mut self, moved: &Moved, time: SystemTime) -> Entry {
        let (from, to) = (moved.transition.from, moved.transition.to);
        let reason = reason(moved);
        let UpstreamIdentity { service, url, key, created, .. } = &*moved.upstream;
        log::log!(
            if to == State::Open { log::Level::Warn } else { log::Level::Info },
            "{service} {url}: {}{} → {} {reason}",
            if moved.observed { "observed only: " } else { "" },
            from.word(),
            to.word()
        );
        if from != to {
            let counts = self.counts.entry((service.clone(), key.clone())).or_default();
            *counts.entry((to.word(), word(moved.transition.why))).or_default() += 1;
        }
        let entries = self.entries.entry((service.clone(), key.clone())).or_default();
        if entries.len() == REMEMBERED {
            entries.pop_front();
        }
        let failures = match moved.transition.why {
            Why::InARow(count) => count,
            Why::ProbeFailed => 1,
            _ => 0,
        };
        let entry = Entry { time, from, to, reason, failures, upstream_created: *created };
        entries.push_back(entry.clone());
        entry
    }

    /// The last transitions of an upstream, oldest first. One that left the configuration and came back has no past.
    pub fn of(&self, upstream: &UpstreamIdentity) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.get(&(upstream.service.clone(), upstream.key.clone()));
        let created = upstream.created;
        entries.into_iter().flatten().filter(move |entry| entry.upstream_created == created)
    }

    /// What an upstream's breaker did.
    pub fn counts(&self, upstream: &UpstreamIdentity) -> Option<&Counts> {
        self.counts.get(&(upstream.service.clone(), upstream.key.clone()))
    }

    /// Forgets the upstreams that `keeps` does not know.
    pub fn retain(&mut self, keeps: impl Fn(&str, &str) -> bool) {
        self.entries.retain(|(service, key), _| keeps(service, key));
        self.counts.retain(|(service, key), _| keeps(service, key));
    }
}

/// The reason in a word, for metrics.
pub(super) fn word(why: Why) -> &'static str {
    match why {
        Why::InARow(_) => "failures_in_row",
        Why::FailureRate(_) => "failure_rate",
        Why::SlowRate(_) => "slow_rate",
        Why::ProbeFailed => "probe_failed",
        Why::ProbesSucceeded(_) => "probes_succeeded",
        Why::CooledDown => "cooled_down",
        Why::NobodyLeft => "nobody_left",
        Why::LeaseOver => "lease_over",
        Why::ChecksFailed => "checks_failed",
        Why::ChecksSucceeded => "checks_succeeded",
        Why::Tripped => "tripped",
        Why::Reset => "reset",
    }
}

fn reason(moved: &Moved) -> String {
    let cause = moved.cause.map_or_else(|| "unknown".to_owned(), |cause| cause.to_string());
    let next = format!("next probe in {}", span(moved.transition.cooldown_ms));
    let note = moved.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
    match moved.transition.why {
        Why::InARow(count) => {
            let failures = if count == 1 { "failure" } else { "failures" };
            format!("after {count} {failures} in a row, last: {cause}; {next}")
        }
        Why::FailureRate(counts) => {
            format!("because {} of the last {} failed, last: {cause}; {next}", counts.failed, counts.total)
        }
        Why::SlowRate(counts) => format!("because {} of the last {} were slow; {next}", counts.slow, counts.total),
        // An answer that is only slow is no failure with a name.
        Why::ProbeFailed if moved.cause.is_none() => format!("because the probe was slow; {next}"),
        Why::ProbeFailed => format!("because the probe failed: {cause}; {next}"),
        Why::ChecksFailed => format!("because its health checks failed, last: {cause}; {next}"),
        Why::CooledDown => "after the cooldown; one probe is out".to_owned(),
        Why::NobodyLeft => "before the cooldown is over, because no upstream is left; one probe is out".to_owned(),
        Why::LeaseOver => "because the probe did not end in time; another one is out".to_owned(),
        Why::ProbesSucceeded(1) => "because the probe succeeded".to_owned(),
        Why::ProbesSucceeded(count) => format!("because {count} probes succeeded"),
        Why::ChecksSucceeded => "because its health checks succeeded".to_owned(),
        Why::Tripped if moved.transition.cooldown_ms == 0 => format!("by an operator, until a reset{note}"),
        Why::Tripped => format!("by an operator; {next}{note}"),
        Why::Reset => format!("by an operator{note}"),
    }
}

/// Milliseconds for people: `60 s`, `1.5 s`, `300 ms`.
fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
        _ => format!("{:.1} s", ms as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::breaker::{Breaker, Transition};
    use crate::shared::snapshot::Slots;
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn identity(created: SystemTime) -> Arc<UpstreamIdentity> {
        Arc::new(UpstreamIdentity {
            service: "s".to_owned(),
            key: "http://a".to_owned(),
            url: "http://a".to_owned(),
            created,
            slot: Arc::new(Slots::default()).take(),
            breaker: Breaker::new(0),
            preferred: AtomicU8::new(0),
            admitted: AtomicU32::new(0),
            warm_from_ms: AtomicU64::new(UpstreamIdentity::WARM),
            failures: Mutex::new(VecDeque::new()),
            counters: Box::default(),
        })
    }

    #[test]
    fn a_transition_is_of_the_upstream_that_made_it() {
        let created = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500);
        let (upstream, back) = (identity(created), identity(created + Duration::from_secs(1)));
        let mut history = History::default();
        let transition = Transition { from: State::Closed, to: State::Open, why: Why::InARow(1), cooldown_ms: 60_000 };
        let moved =
            Moved { upstream: Arc::clone(&upstream), at_ms: 1, transition, cause: None, observed: false, note: None };
        // Its time has milliseconds, the other one microseconds: it can seem to be before its upstream.
        history.moved(&moved, SystemTime::UNIX_EPOCH + Duration::from_millis(1));
        assert_eq!(history.of(&upstream).map(|entry| entry.failures).collect::<Vec<_>>(), [1]);
        assert_eq!(history.of(&back).count(), 0);
    }

    #[test]
    fn spans_are_readable() {
        assert_eq!([span(60_000), span(300), span(1500)], ["60 s", "300 ms", "1.5 s"]);
    }
}

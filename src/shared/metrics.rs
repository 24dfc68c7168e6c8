//! Counters with one writer: a shard writes its own, control reads them all.
//!
//! Each shard's counters have cache lines of their own; adding is a load and a store, no locked instruction.
//! Must not know: what is done with the numbers.

use crate::http::request::Refusal;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. Only the owning thread may call it.
    pub fn bump(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Takes one away. Only the owning thread may call it.
    pub fn drop_one(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }

    /// Makes it at least `number`. Only the owning thread may call it.
    pub fn raise(&self, number: u64) {
        if number > self.0.load(Ordering::Relaxed) {
            self.0.store(number, Ordering::Relaxed);
        }
    }

    /// The number as last written.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one shard counts of one upstream.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct UpstreamCounters {
    /// Attempts begun, also those without a connection.
    pub attempts: Counter,
    /// Attempts that failed, whatever the breaker made of it.
    pub failures: Counter,
    /// Attempts whose permit was settled: in the end as many as began.
    pub settled: Counter,
    /// Attempts under way.
    pub in_flight: Counter,
}

/// What one shard counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCounters {
    /// Client connections accepted.
    pub accepted: Counter,
    /// Requests whose head was read and valid.
    pub requests: Counter,
    /// Requests that were refused, by [`Refusal::index`].
    pub refusals: [Counter; Refusal::WORDS.len()],
    /// Connections answered with 503 because of `limits.connections`.
    pub over_limit: Counter,
    /// Exchanges answered 503 because the available upstreams were at `max_requests`.
    pub saturated: Counter,
    /// Exchanges answered 503 because no breaker let them pass.
    pub rejected: Counter,
    /// Extra attempts.
    pub retries: Counter,
    /// Requests repeated after a stale pooled connection.
    pub stale: Counter,
    /// Clients that left while their exchange ran.
    pub aborted: Counter,
    /// Times that accepting paused because no descriptor was left.
    pub accept_pauses: Counter,
    /// Notices to control that found its queue full.
    pub notices_lost: Counter,
    /// The longest turn that took mail of control, in microseconds of processor time.
    pub longest_turn_us: Counter,
    /// Panics that ended one exchange.
    pub panics: Counter,
}

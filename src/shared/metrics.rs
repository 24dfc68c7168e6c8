//! Counters with one writer: a shard writes its own, control reads them all.
//!
//! Each shard's counters have cache lines of their own; adding is a load and a store, no locked instruction.
//! What most upstreams and services never need, histograms and the grid of status codes, comes with its first use.
//! Must not know: what is done with the numbers.

use crate::http::request::{Method, Refusal};
use crate::shared::failure::Unavailable;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

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

    /// Adds `number`. Only the owning thread may call it.
    pub fn add(&self, number: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
    }

    /// Makes it `number`, for what goes up and down. Only the owning thread may call it.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
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

/// How an attempt ended, as metrics and the access log name it: the class of its failure, or one of some more words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending(u8);

impl Ending {
    /// The words. Those of failures are those of `circuit_breaker.failure_on`.
    pub const WORDS: [&'static str; 12] = [
        "success",
        "connect",
        "tls",
        "unsent",
        "closed",
        "invalid",
        "timeout",
        "cut",
        "5xx",
        "slow",
        "no_socket",
        "neutral",
    ];
    /// A response that is no failure.
    pub const SUCCESS: Ending = Ending(0);
    /// An answer that was slow, which is a failure.
    pub const SLOW: Ending = Ending(9);
    /// The gateway had no socket for it.
    pub const NO_SOCKET: Ending = Ending(10);
    /// Nothing is said about the upstream: the client left, or the status is listed in `neutral_on`.
    pub const NEUTRAL: Ending = Ending(11);

    /// A failure of this class.
    pub fn of_class(class: crate::policy::class::Class) -> Ending {
        Ending(1 + class as u8)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        Ending::WORDS[self.index()]
    }

    /// The position of its word.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// How a retry with this end is counted.
    pub fn retried(self) -> usize {
        match self {
            Ending::SUCCESS => 0,
            Ending::NEUTRAL => 2,
            _ => 1,
        }
    }
}

/// What became of a retry: positions by [`Ending::retried`].
pub const RETRIED: [&str; 3] = ["success", "failure", "neutral"];

/// Bounds of histograms at most.
pub const MOST_BOUNDS: usize = 32;
/// Durations that percentiles come from: four steps for each doubling, from 4 µs on.
const STEPS: usize = 4 * 26;

/// How long something took, as a histogram with the bounds of the configuration and one that is fine enough for
/// percentiles.
#[derive(Debug)]
pub struct Latency {
    /// By the first bound that is not exceeded; behind the last bound, one more.
    buckets: [Counter; MOST_BOUNDS + 1],
    sum_us: Counter,
    steps: [AtomicU32; STEPS],
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            buckets: [const { Counter(AtomicU64::new(0)) }; MOST_BOUNDS + 1],
            sum_us: Counter::default(),
            steps: [const { AtomicU32::new(0) }; STEPS],
        }
    }
}

/// The step of a duration.
fn step(us: u64) -> usize {
    let us = us.max(4);
    let octave = us.ilog2() as usize;
    let quarter = (us >> (octave - 2)) as usize & 3;
    ((octave - 2) * 4 + quarter).min(STEPS - 1)
}

/// What the durations of a step are below, in microseconds.
fn step_end_us(step: usize) -> u64 {
    let (octave, quarter) = (step / 4, step as u64 % 4);
    (4 + quarter + 1) << octave
}

impl Latency {
    /// Adds a duration. Only the owning thread may call it.
    pub fn note(&self, took: Duration, bounds_us: &[u64]) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = bounds_us.iter().position(|bound| us <= *bound).unwrap_or(bounds_us.len());
        self.buckets[bucket.min(MOST_BOUNDS)].bump();
        self.sum_us.add(us);
        let step = &self.steps[step(us)];
        step.store(step.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// The latencies of all shards together.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// How many were in each bucket, not summed up: as many as bounds, and one more.
    pub buckets: Vec<u64>,
    /// Of all.
    pub sum: Duration,
    steps: [u64; STEPS],
}

impl Latencies {
    /// Sums up what shards have noted with these bounds.
    pub fn of<'l>(shards: impl Iterator<Item = &'l OnceLock<Box<Latency>>>, bounds: usize) -> Latencies {
        let mut all = Latencies { buckets: vec![0; bounds + 1], sum: Duration::ZERO, steps: [0; STEPS] };
        for latency in shards.filter_map(OnceLock::get) {
            all.buckets.iter_mut().zip(&latency.buckets).for_each(|(sum, bucket)| *sum += bucket.read());
            all.steps.iter_mut().zip(&latency.steps).for_each(|(sum, n)| *sum += u64::from(n.load(Ordering::Relaxed)));
            all.sum += Duration::from_micros(latency.sum_us.read());
        }
        all
    }

    /// Those that came after `earlier`, as far as percentiles go.
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let mut later = self.clone();
        later.steps.iter_mut().zip(&earlier.steps).for_each(|(step, before)| *step = step.saturating_sub(*before));
        later
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What `share` of them did not exceed, within a fifth; `None` when there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.steps.iter().sum();
        let wanted = (share * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.steps.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.filter(|_| total > 0).map(|step| Duration::from_micros(step_end_us(step)))
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
    /// Settled attempts by [`Ending::index`].
    pub endings: [Counter; Ending::WORDS.len()],
    /// From the beginning of attempts to their final response heads.
    pub latency: OnceLock<Box<Latency>>,
}

/// Status codes of one hundred.
type Codes = [Counter; 100];

/// What one shard counts of one service, or of what belongs to none.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ServiceCounters {
    /// Requests answered, by method and hundreds of the status, then by the rest of the status.
    codes: [[OnceLock<Box<Codes>>; 5]; Method::ALL.len()],
    /// From complete heads to the ends of their responses.
    pub latency: OnceLock<Box<Latency>>,
    /// Answered 503 because no upstream could be picked, by [`Unavailable`].
    pub unavailable: [Counter; Unavailable::WORDS.len()],
    /// Extra attempts, by how the one before ended and by what became of them ([`RETRIED`]).
    pub retries: [[Counter; RETRIED.len()]; Ending::WORDS.len()],
}

impl ServiceCounters {
    /// Counts a response. Only the owning thread may call it.
    pub fn answered(&self, method: Method, status: u16) {
        let (hundreds, rest) = (usize::from(status / 100), usize::from(status % 100));
        let Some(codes) = self.codes[method as usize].get(hundreds.wrapping_sub(1)) else { return };
        codes.get_or_init(|| Box::new([const { Counter(AtomicU64::new(0)) }; 100]))[rest].bump();
    }

    /// Every method and status that was counted, with how often.
    pub fn responses(&self) -> impl Iterator<Item = (Method, u16, u64)> {
        Method::ALL.into_iter().zip(&self.codes).flat_map(|(method, grid)| {
            let used = grid.iter().enumerate().filter_map(|(at, codes)| Some((at, codes.get()?)));
            used.flat_map(move |(hundreds, codes)| {
                let counted = codes.iter().enumerate().map(move |(rest, count)| (rest, count.read()));
                counted
                    .filter(|(_, count)| *count > 0)
                    .map(move |(rest, count)| (method, (100 * (hundreds + 1) + rest) as u16, count))
            })
        })
    }
}

/// What one shard counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCounters {
    /// Client connections accepted.
    pub accepted: Counter,
    /// Requests whose head was read, valid or not, or did not come in time.
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
    /// Subscribers of events that were dropped because they did not read.
    pub lagged: Counter,
    /// Panics that ended one exchange.
    pub panics: Counter,
    /// Upstream connections, now.
    pub upstream_connections: Counter,
    /// Those of them that are idle.
    pub idle_connections: Counter,
    /// Requests that named no service of the configuration.
    pub unknown: ServiceCounters,
    /// Requests to the gateway itself, and those that could not be read.
    pub own: ServiceCounters,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_enclose_their_durations() {
        for us in (0..200_000u64).chain([1 << 22, (1 << 22) - 1, 3_600_000_000]) {
            let step = step(us);
            assert!(us < step_end_us(step) || step == STEPS - 1, "{us}");
            assert!(step == 0 || us.max(4) >= step_end_us(step - 1), "{us}");
        }
    }

    #[test]
    fn quantiles_and_buckets() {
        let latency = OnceLock::new();
        let bounds = [100, 1_000];
        for us in [50, 100, 101, 999, 1_000, 5_000, 5_000, 5_000, 5_000, 100_000] {
            latency.get_or_init(Box::<Latency>::default).note(Duration::from_micros(us), &bounds);
        }
        let all = Latencies::of([&latency, &OnceLock::new()].into_iter(), bounds.len());
        assert_eq!((all.buckets.as_slice(), all.count()), (&[2, 3, 5][..], 10));
        let near = |share: f64, us: u64| {
            let found = all.quantile(share).unwrap().as_micros() as u64;
            assert!(found > us && found <= us + us / 4 + 1, "{share}: {found}");
        };
        near(0.5, 1_000);
        near(0.9, 5_000);
        near(0.99, 100_000);
        assert_eq!(Latencies::of(std::iter::empty(), 2).quantile(0.5), None);
    }

    #[test]
    fn responses_are_counted_by_method_and_status() {
        let counters = ServiceCounters::default();
        counters.answered(Method::Get, 200);
        counters.answered(Method::Get, 200);
        counters.answered(Method::Other, 503);
        counters.answered(Method::Get, 0);
        counters.answered(Method::Get, 600);
        let all: Vec<_> = counters.responses().collect();
        assert_eq!(all, [(Method::Get, 200, 2), (Method::Other, 503, 1)]);
    }
}

//! The circuit breaker of one upstream: one atomic word that all shards share.
//!
//! | state | word | who moves it |
//! |---|---|---|
//! | closed | failures in a row | a failure adds one; the one that reaches the threshold opens; a success writes zero, if it is not zero |
//! | open | end of the cooldown | the first `acquire` at or after it claims the probe: half-open |
//! | half-open | end of the probe's lease | the probe's success closes, its failure opens, neutral ends the lease; the first `acquire` after the lease claims another probe |
//!
//! Every change of state begins a generation; the probes of one half-open round share it. A [`Permit`]
//! carries the generation in which it was given, and its outcome counts in that one only: what began before
//! a trip cannot decide what happens after it. The closed path is one load of a word that nobody writes.
//!
//! Must not know: the clock (it is passed in), sockets, why something failed.

use std::sync::atomic::{AtomicU64, Ordering};

const VALUE_BITS: u32 = 40;
const GENERATION_BITS: u32 = 22;
const VALUE_MASK: u64 = (1 << VALUE_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// The three states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Traffic flows.
    Closed,
    /// The upstream is skipped.
    Open,
    /// One probe is out, or may be claimed.
    HalfOpen,
}

impl State {
    /// The word of log, metrics and status.
    pub fn word(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

/// State, generation and value in 2 + 22 + 40 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    state: State,
    generation: u64,
    /// Closed: failures in a row. Open, half-open: a moment in milliseconds.
    value: u64,
}

impl Word {
    fn unpack(word: u64) -> Word {
        let state = match word >> 62 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        };
        Word { state, generation: word >> VALUE_BITS & GENERATION_MASK, value: word & VALUE_MASK }
    }

    fn pack(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1u64,
            State::HalfOpen => 2,
        };
        state << 62 | (self.generation & GENERATION_MASK) << VALUE_BITS | self.value.min(VALUE_MASK)
    }

    fn next(self, state: State, value: u64) -> Word {
        Word { state, generation: (self.generation + 1) & GENERATION_MASK, value }
    }
}

/// How a breaker decides; read from the configuration at every settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open, at least 1.
    pub failure_threshold: u64,
    /// Milliseconds until a probe.
    pub cooldown_ms: u64,
    /// Milliseconds that a probe may take before another is sent.
    pub lease_ms: u64,
}

/// How an attempt ended, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream did its part.
    Success,
    /// It did not.
    Failure,
    /// Nothing was learnt about it.
    Neutral,
}

/// Leave for one attempt. It is settled exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit ends in exactly one outcome"]
pub struct Permit {
    generation: u32,
    /// End of its lease when it is a probe; 0 otherwise.
    lease_end: u64,
}

impl Permit {
    /// Whether this attempt decides a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.lease_end > 0
    }
}

// An attempt that forgets its permit is a bug; release builds are saved by the lease.
#[cfg(debug_assertions)]
impl Drop for Permit {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a permit was dropped unsettled");
    }
}

/// A change of state, to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After; equal to `from` when an expired lease was taken over.
    pub to: State,
    /// Failures in a row that led to it.
    pub failures: u64,
}

/// A permit, and the change of state that giving it was.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// To be settled.
    pub permit: Permit,
    /// Set when the permit is a probe.
    pub transition: Option<Transition>,
}

/// What a breaker says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of now.
    pub state: State,
    /// Of its present count; zero unless closed.
    pub failures: u64,
    /// The moment in milliseconds from which a request may become the probe, unless closed.
    pub probe_at_ms: Option<u64>,
}

/// The breaker of one upstream, alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Breaker {
    word: AtomicU64,
}

impl Breaker {
    /// A closed breaker.
    pub fn new() -> Breaker {
        Breaker::default()
    }

    /// Whether [`Breaker::acquire`] would give a permit. Changes nothing.
    pub fn available(&self, now_ms: u64) -> bool {
        let word = Word::unpack(self.word.load(Ordering::Relaxed));
        word.state == State::Closed || word.value <= now_ms
    }

    /// Asks for a permit; `None` means that the upstream is to be skipped. A probe may take `lease_ms` before
    /// another is sent.
    pub fn acquire(&self, now_ms: u64, lease_ms: u64) -> Option<Grant> {
        let mut packed = self.word.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            if word.state == State::Closed {
                let permit = Permit { generation: word.generation as u32, lease_end: 0 };
                return Some(Grant { permit, transition: None });
            }
            if word.value > now_ms {
                return None;
            }
            // Another than the lease before, or one could not be told from the other.
            let lease_end = (now_ms + lease_ms.max(1)).max(word.value + 1);
            let probing = match word.state {
                // Whoever is late still belongs to the round: its success closes, or a service whose requests
                // take longer than a lease would never come back.
                State::HalfOpen => Word { value: lease_end, ..word },
                _ => word.next(State::HalfOpen, lease_end),
            };
            match self.exchange(packed, probing) {
                Ok(()) => {
                    let transition = Transition { from: word.state, to: State::HalfOpen, failures: 0 };
                    let permit = Permit { generation: probing.generation as u32, lease_end };
                    return Some(Grant { permit, transition: Some(transition) });
                }
                Err(current) => packed = current,
            }
        }
    }

    /// Ends a permit.
    pub fn settle(&self, permit: Permit, outcome: Outcome, now_ms: u64, settings: &Settings) -> Option<Transition> {
        let (generation, lease_end) = (u64::from(permit.generation), permit.lease_end);
        std::mem::forget(permit);
        let mut packed = self.word.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            if word.generation != generation {
                return None;
            }
            let open_until = now_ms + settings.cooldown_ms;
            let (next, transition) = match (word.state, outcome) {
                (State::Closed, Outcome::Neutral) | (State::Open, _) => return None,
                (State::Closed, Outcome::Success) if word.value == 0 => return None,
                (State::Closed, Outcome::Success) => (Word { value: 0, ..word }, None),
                (State::Closed, Outcome::Failure) if word.value + 1 < settings.failure_threshold => {
                    (Word { value: word.value + 1, ..word }, None)
                }
                (State::Closed, Outcome::Failure) => {
                    let transition = Transition { from: State::Closed, to: State::Open, failures: word.value + 1 };
                    (word.next(State::Open, open_until), Some(transition))
                }
                (State::HalfOpen, Outcome::Success) => {
                    let transition = Transition { from: State::HalfOpen, to: State::Closed, failures: 0 };
                    (word.next(State::Closed, 0), Some(transition))
                }
                (State::HalfOpen, Outcome::Failure) => {
                    let transition = Transition { from: State::HalfOpen, to: State::Open, failures: 1 };
                    (word.next(State::Open, open_until), Some(transition))
                }
                // Its lease ends, and with it nothing else: the next request is the probe.
                (State::HalfOpen, Outcome::Neutral) if word.value == lease_end => (Word { value: 0, ..word }, None),
                (State::HalfOpen, Outcome::Neutral) => return None,
            };
            match self.exchange(packed, next) {
                Ok(()) => return transition,
                Err(current) => packed = current,
            }
        }
    }

    /// What the breaker is now.
    pub fn view(&self) -> View {
        let word = Word::unpack(self.word.load(Ordering::Relaxed));
        match word.state {
            State::Closed => View { state: State::Closed, failures: word.value, probe_at_ms: None },
            state => View { state, failures: 0, probe_at_ms: Some(word.value) },
        }
    }

    // Nothing but the word itself is handed over by these writes, so relaxed order is enough.
    fn exchange(&self, current: u64, next: Word) -> Result<(), u64> {
        self.word.compare_exchange_weak(current, next.pack(), Ordering::Relaxed, Ordering::Relaxed).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings { failure_threshold: 5, cooldown_ms: 60_000, lease_ms: 32_000 };

    fn fail(breaker: &Breaker, now_ms: u64) -> Option<Transition> {
        let grant = breaker.acquire(now_ms, SETTINGS.lease_ms).expect("available");
        breaker.settle(grant.permit, Outcome::Failure, now_ms, &SETTINGS)
    }

    fn opened() -> Breaker {
        let breaker = Breaker::new();
        for _ in 0..4 {
            assert_eq!(fail(&breaker, 0), None);
        }
        let transition = fail(&breaker, 0).expect("the fifth opens");
        assert_eq!(transition, Transition { from: State::Closed, to: State::Open, failures: 5 });
        breaker
    }

    #[test]
    fn the_fifth_failure_in_a_row_opens() {
        let breaker = opened();
        assert!(!breaker.available(59_999) && breaker.acquire(59_999, SETTINGS.lease_ms).is_none());
        assert_eq!(breaker.view().probe_at_ms, Some(60_000));
    }

    #[test]
    fn a_success_begins_the_count_anew() {
        let breaker = Breaker::new();
        for _ in 0..4 {
            assert_eq!(fail(&breaker, 0), None);
        }
        let grant = breaker.acquire(0, SETTINGS.lease_ms).unwrap();
        assert_eq!(breaker.settle(grant.permit, Outcome::Success, 0, &SETTINGS), None);
        for _ in 0..4 {
            assert_eq!(fail(&breaker, 0), None);
        }
        assert_eq!(breaker.view().state, State::Closed);
    }

    #[test]
    fn one_probe_decides() {
        let breaker = opened();
        let probe = breaker.acquire(60_000, SETTINGS.lease_ms).unwrap();
        assert!(probe.permit.is_probe());
        assert!(breaker.acquire(60_001, SETTINGS.lease_ms).is_none() && !breaker.available(60_001));
        let closed = breaker.settle(probe.permit, Outcome::Success, 60_002, &SETTINGS).unwrap();
        assert_eq!((closed.from, closed.to), (State::HalfOpen, State::Closed));
        let grant = breaker.acquire(60_003, SETTINGS.lease_ms).unwrap();
        assert!(!grant.permit.is_probe());
        breaker.settle(grant.permit, Outcome::Neutral, 60_003, &SETTINGS);
    }

    #[test]
    fn a_failed_probe_opens_for_a_fresh_cooldown() {
        let breaker = opened();
        let probe = breaker.acquire(60_500, SETTINGS.lease_ms).unwrap();
        breaker.settle(probe.permit, Outcome::Failure, 61_000, &SETTINGS).unwrap();
        assert!(!breaker.available(120_999) && breaker.available(121_000));
    }

    #[test]
    fn a_neutral_probe_frees_the_lease() {
        let breaker = opened();
        let probe = breaker.acquire(60_000, SETTINGS.lease_ms).unwrap();
        assert_eq!(breaker.settle(probe.permit, Outcome::Neutral, 60_001, &SETTINGS), None);
        let next = breaker.acquire(60_001, SETTINGS.lease_ms).unwrap();
        assert!(next.permit.is_probe());
        breaker.settle(next.permit, Outcome::Success, 60_002, &SETTINGS);
    }

    #[test]
    fn an_expired_lease_is_taken_over_and_still_counts() {
        let breaker = opened();
        let lost = breaker.acquire(60_000, SETTINGS.lease_ms).unwrap();
        let late = breaker.acquire(92_000, SETTINGS.lease_ms).unwrap();
        assert_eq!(late.transition.unwrap().from, State::HalfOpen);
        assert_eq!(breaker.settle(lost.permit, Outcome::Neutral, 92_001, &SETTINGS), None);
        assert!(!breaker.available(92_002), "a late neutral does not free the lease of another");
        breaker.settle(late.permit, Outcome::Success, 92_002, &SETTINGS).expect("closes");

        let breaker = opened();
        let slow = breaker.acquire(60_000, 1000).unwrap();
        let second = breaker.acquire(61_000, 1000).unwrap();
        let third = breaker.acquire(62_000, 1000).unwrap();
        breaker.settle(slow.permit, Outcome::Success, 62_500, &SETTINGS).expect("it is of this round");
        assert_eq!(breaker.settle(second.permit, Outcome::Failure, 62_600, &SETTINGS), None, "the round is over");
        assert_eq!(breaker.settle(third.permit, Outcome::Neutral, 62_700, &SETTINGS), None);
        assert_eq!(breaker.view().state, State::Closed);

        let breaker = opened();
        let slow = breaker.acquire(60_000, SETTINGS.lease_ms).unwrap();
        breaker.settle(slow.permit, Outcome::Success, 99_000, &SETTINGS).expect("nobody took over");
    }

    #[test]
    fn what_began_before_the_trip_decides_nothing() {
        let breaker = Breaker::new();
        let early = breaker.acquire(0, SETTINGS.lease_ms).unwrap();
        for _ in 0..5 {
            fail(&breaker, 0);
        }
        let probe = breaker.acquire(60_000, SETTINGS.lease_ms).unwrap();
        assert_eq!(breaker.settle(early.permit, Outcome::Success, 60_001, &SETTINGS), None);
        assert_eq!(breaker.view().state, State::HalfOpen);
        breaker.settle(probe.permit, Outcome::Failure, 60_002, &SETTINGS);
    }

    #[test]
    fn five_means_five_on_many_threads() {
        for _ in 0..200 {
            let breaker = Breaker::new();
            let opened: usize = std::thread::scope(|scope| {
                let shards: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            (0..3)
                                .filter_map(|_| breaker.acquire(0, SETTINGS.lease_ms))
                                .filter_map(|grant| breaker.settle(grant.permit, Outcome::Failure, 0, &SETTINGS))
                                .count()
                        })
                    })
                    .collect();
                shards.into_iter().map(|shard| shard.join().unwrap()).sum()
            });
            assert_eq!(opened, 1);
            assert_eq!(breaker.view().state, State::Open);
            let probes = std::thread::scope(|scope| {
                let shards: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| breaker.acquire(60_000, SETTINGS.lease_ms).map(|grant| grant.permit)))
                    .collect();
                let permits: Vec<_> = shards.into_iter().filter_map(|shard| shard.join().unwrap()).collect();
                let count = permits.len();
                for permit in permits {
                    breaker.settle(permit, Outcome::Success, 60_001, &SETTINGS);
                }
                count
            });
            assert_eq!(probes, 1);
        }
    }

    #[derive(Clone, Debug)]
    enum Move {
        Acquire,
        Settle(usize, Outcome),
        Wait(u64),
    }

    /// The reference: the rules in plain words, with all permits of all generations remembered.
    #[derive(Debug)]
    struct Model {
        state: State,
        failures: u64,
        until: u64,
        epoch: u64,
    }

    impl Model {
        fn at(state: State, until: u64, epoch: u64) -> Model {
            Model { state, failures: 0, until, epoch }
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_rules(
            threshold in 1u64..6,
            moves in prop::collection::vec(prop_oneof![
                3 => Just(Move::Acquire),
                3 => (any::<usize>(), prop::sample::select(&[Outcome::Success, Outcome::Failure, Outcome::Neutral][..]))
                    .prop_map(|(which, outcome)| Move::Settle(which, outcome)),
                1 => (0u64..200).prop_map(Move::Wait),
            ], 1..300),
        ) {
            let settings = Settings { failure_threshold: threshold, cooldown_ms: 100, lease_ms: 50 };
            let breaker = Breaker::new();
            let mut model = Model::at(State::Closed, 0, 0);
            let mut permits: Vec<(u64, u64, Permit)> = Vec::new();
            let mut now = 0;
            for one in moves {
                match one {
                    Move::Wait(span) => now += span,
                    Move::Acquire => {
                        let expected = model.state == State::Closed || model.until <= now;
                        prop_assert_eq!(breaker.available(now), expected);
                        let grant = breaker.acquire(now, settings.lease_ms);
                        prop_assert_eq!(grant.is_some(), expected);
                        if let Some(grant) = grant {
                            prop_assert_eq!(grant.permit.is_probe(), model.state != State::Closed);
                            let lease_end = (now + 50).max(model.until + 1);
                            match model.state {
                                State::Closed => {}
                                State::Open => model = Model::at(State::HalfOpen, lease_end, model.epoch + 1),
                                State::HalfOpen => model.until = lease_end,
                            }
                            permits.push((model.epoch, model.until, grant.permit));
                        }
                    }
                    Move::Settle(which, outcome) if !permits.is_empty() => {
                        let (epoch, lease_end, permit) = permits.swap_remove(which % permits.len());
                        let before = model.state;
                        breaker.settle(permit, outcome, now, &settings);
                        if epoch == model.epoch {
                            match (before, outcome) {
                                (State::Closed, Outcome::Success) => model.failures = 0,
                                (State::Closed, Outcome::Failure) => {
                                    model.failures += 1;
                                    if model.failures == threshold {
                                        model = Model::at(State::Open, now + 100, epoch + 1);
                                    }
                                }
                                (State::HalfOpen, Outcome::Success) => {
                                    model = Model::at(State::Closed, 0, epoch + 1);
                                }
                                (State::HalfOpen, Outcome::Failure) => {
                                    model = Model::at(State::Open, now + 100, epoch + 1);
                                }
                                (State::HalfOpen, Outcome::Neutral) if model.until == lease_end => model.until = 0,
                                _ => {}
                            }
                        }
                    }
                    Move::Settle(..) => {}
                }
                let view = breaker.view();
                prop_assert_eq!((view.state, view.failures), (model.state, model.failures));
            }
            for (_, _, permit) in permits {
                breaker.settle(permit, Outcome::Neutral, now, &settings);
            }
        }
    }
}

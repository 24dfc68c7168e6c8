//! The circuit breaker of one upstream: one atomic word that all shards share.
//!
//! | state | word | who moves it |
//! |---|---|---|
//! | closed | failures in a row | a failure adds one; the one that reaches the threshold opens; a success writes zero, if it is not zero; a rate that is reached opens |
//! | open | end of the cooldown; held or not | the first `acquire` at or after it claims a probe: half-open |
//! | half-open | when the next probe may be claimed | `success_threshold` successes close, a failure opens, neutral gives the lease back; a lease that is over may be taken over |
//!
//! Every change of state begins a generation; the probes of one half-open round share it. A [`Permit`]
//! carries the generation in which it was given, and its outcome counts in that one only: what began before
//! a trip cannot decide what happens after it. An operator may hold it open: then nothing else ends that before its
//! time, in no mode. The closed path, and skipping an open breaker, are one load of
//! the word. All that is rarer is done under a lock: leaving closed, claiming and settling probes.
//!
//! Must not know: the clock (it is passed in), sockets, why something failed.

use crate::ground::random::Random;
use crate::ground::sync::{AtomicU64, Mutex, Ordering};
use crate::policy::window::{Counted, Counts, Window};
use std::sync::PoisonError;

const VALUE_BITS: u32 = 39;
const HELD_BIT: u32 = VALUE_BITS;
const GENERATION_SHIFT: u32 = HELD_BIT + 1;
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
    /// Probes are out, or may be claimed.
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

/// State, generation, held and value in 2 + 22 + 1 + 39 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    state: State,
    generation: u64,
    /// An operator keeps it open until the moment of `value`.
    held: bool,
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
        let generation = word >> GENERATION_SHIFT & GENERATION_MASK;
        Word { state, generation, held: word >> HELD_BIT & 1 == 1, value: word & VALUE_MASK }
    }

    fn pack(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1u64,
            State::HalfOpen => 2,
        };
        let generation = (self.generation & GENERATION_MASK) << GENERATION_SHIFT;
        state << 62 | generation | u64::from(self.held) << HELD_BIT | self.value.min(VALUE_MASK)
    }

    fn next(self, state: State, value: u64) -> Word {
        Word { state, generation: (self.generation + 1) & GENERATION_MASK, held: false, value }
    }

    /// Whether an operator keeps it open now.
    fn is_held(self, now_ms: u64) -> bool {
        self.held && self.value > now_ms
    }
}

/// What a breaker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: every request passes, nothing is counted.
    Off,
    /// It counts and changes its state, and every request passes.
    Observe,
    /// It skips its upstream.
    Enforce,
}

/// The triggers that look at a share of the last outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Milliseconds that are looked at, at least 10.
    pub window_ms: u64,
    /// Outcomes below which no share is judged.
    pub min_requests: u64,
    /// Share of failures that opens, in hundredths of a percent.
    pub failure: Option<u32>,
    /// Share of slow successes that opens, in hundredths of a percent.
    pub slow: Option<u32>,
}

/// How a breaker decides; read from the configuration at every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it may do.
    pub mode: Mode,
    /// Failures in a row that open, at least 1.
    pub failure_threshold: u64,
    /// Milliseconds until a probe.
    pub cooldown_ms: u64,
    /// Hundredths by which each re-opening in a row multiplies the cooldown, at least 100.
    pub backoff: u32,
    /// What the cooldown grows to at most, in milliseconds.
    pub max_cooldown_ms: u64,
    /// Share of the cooldown that chance may add to it, in hundredths of a percent.
    pub jitter: u32,
    /// Probes at once, at least 1.
    pub half_open_probes: usize,
    /// Successes that close, at least 1.
    pub success_threshold: u32,
    /// Milliseconds that a probe may take before another is sent.
    pub lease_ms: u64,
    /// Second triggers; `None` is off and costs nothing.
    pub rates: Option<Rates>,
}

impl Settings {
    /// Those of a configuration that says nothing.
    pub const DEFAULT: Settings = Settings {
        mode: Mode::Enforce,
        failure_threshold: 5,
        cooldown_ms: 60_000,
        backoff: 100,
        max_cooldown_ms: 60_000,
        jitter: 0,
        half_open_probes: 1,
        success_threshold: 1,
        lease_ms: 32_000,
        rates: None,
    };
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::DEFAULT
    }
}

/// How an attempt ended, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream did its part.
    Success,
    /// The same, but it took longer than it should: counts for [`Rates::slow`], and as a success else.
    Slow,
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
    /// Number of its lease when it is a probe; 0 otherwise.
    lease: u64,
}

/// The generation of permits that decide nothing: no word has it.
const NO_GENERATION: u32 = u32::MAX;

impl Permit {
    /// A permit that no breaker gave and that decides nothing.
    pub fn unattached() -> Permit {
        Permit { generation: NO_GENERATION, lease: 0 }
    }

    /// Whether this attempt decides a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.lease > 0
    }
}

// An attempt that forgets its permit is a bug; release builds are saved by the lease.
#[cfg(debug_assertions)]
impl Drop for Permit {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a permit was dropped unsettled");
    }
}

/// What made a breaker change its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// So many failures in a row.
    InARow(u64),
    /// The share of failures.
    FailureRate(Counts),
    /// The share of slow successes.
    SlowRate(Counts),
    /// A probe failed.
    ProbeFailed,
    /// So many probes succeeded.
    ProbesSucceeded(u32),
    /// The cooldown is over, a probe is out.
    CooledDown,
    /// A probe is out before the cooldown is over, because no upstream was left.
    NobodyLeft,
    /// A probe's lease was over, another one is out.
    LeaseOver,
    /// Health checks failed.
    ChecksFailed,
    /// Health checks succeeded.
    ChecksSucceeded,
    /// An operator opened it.
    Tripped,
    /// An operator closed it.
    Reset,
}

/// A change of state, to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After; equal to `from` when an expired lease was taken over.
    pub to: State,
    /// Its cause.
    pub why: Why,
    /// Milliseconds of the cooldown that begins; 0 unless it opens.
    pub cooldown_ms: u64,
}

/// A permit, and the change of state that giving it was.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// To be settled.
    pub permit: Permit,
    /// Set when the permit is the first probe, or takes an expired lease over.
    pub transition: Option<Transition>,
}

impl Grant {
    /// Leave that decides nothing.
    pub fn unattached() -> Grant {
        Grant { permit: Permit::unattached(), transition: None }
    }
}

/// What a breaker says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of now.
    pub state: State,
    /// Of its present count; zero unless closed.
    pub failures: u64,
    /// The moment in milliseconds from which a request may become a probe, unless closed.
    pub probe_at_ms: Option<u64>,
    /// An operator has opened it.
    pub held: bool,
}

/// Alone on its cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Alone<T>(T);

/// The breaker of one upstream.
#[derive(Debug)]
pub struct Breaker {
    word: Alone<AtomicU64>,
    window: Window,
    round: Mutex<Round>,
    seed: u64,
}

/// What the word has no room for; changed under the lock, as is every word that is not closed.
#[derive(Debug, Default)]
struct Round {
    /// Re-openings since it was closed.
    reopenings: u32,
    /// The present probe was sent before the cooldown was over.
    early: bool,
    /// Of probes that are out.
    leases: Vec<Lease>,
    /// Leases given so far: each has a number of its own.
    given: u64,
    /// Probes that succeeded.
    successes: u32,
}

#[derive(Debug)]
struct Lease {
    number: u64,
    end: u64,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker::new(0)
    }
}

impl Breaker {
    /// Until when a breaker is held that an operator holds for ever, in milliseconds.
    pub const FOR_EVER: u64 = VALUE_MASK;

    /// A closed breaker. Breakers with other seeds have other jitter.
    pub fn new(seed: u64) -> Breaker {
        Breaker { word: Alone(AtomicU64::new(0)), window: Window::default(), round: Mutex::new(Round::default()), seed }
    }

    /// Whether [`Breaker::acquire`] would give a permit. Changes nothing.
    pub fn available(&self, now_ms: u64, settings: &Settings) -> bool {
        let word = self.load();
        let passes = settings.mode != Mode::Enforce && !word.is_held(now_ms);
        word.state == State::Closed || word.value <= now_ms || passes
    }

    /// Asks for a permit; `None` means that the upstream is to be skipped. A probe may take `lease_ms` before
    /// another is sent.
    pub fn acquire(&self, now_ms: u64, lease_ms: u64, settings: &Settings) -> Option<Grant> {
        let word = self.load();
        if word.is_held(now_ms) {
            return None;
        }
        if settings.mode == Mode::Off {
            return Some(Grant::unattached());
        }
        if word.state == State::Closed {
            return Some(Grant { permit: of_closed(word), transition: None });
        }
        let grant = if word.value > now_ms { None } else { self.claim(now_ms, lease_ms, false, settings) };
        match settings.mode {
            Mode::Enforce => grant,
            Mode::Observe | Mode::Off => Some(grant.unwrap_or_else(Grant::unattached)),
        }
    }

    /// The same, before the cooldown is over: for a service that has nobody left. `None` while a probe is out.
    pub fn acquire_early(&self, now_ms: u64, lease_ms: u64, settings: &Settings) -> Option<Grant> {
        self.claim(now_ms, lease_ms, true, settings)
    }

    fn claim(&self, now_ms: u64, lease_ms: u64, early: bool, settings: &Settings) -> Option<Grant> {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.load();
        let (probing, why) = match word.state {
            // Somebody closed it meanwhile.
            State::Closed => return Some(Grant { permit: of_closed(word), transition: None }),
            State::Open if word.value > now_ms && (!early || word.held) => return None,
            State::Open => {
                let early = word.value > now_ms;
                round.begin(early);
                (word.next(State::HalfOpen, 0), Some(if early { Why::NobodyLeft } else { Why::CooledDown }))
            }
            State::HalfOpen if word.value > now_ms => return None,
            State::HalfOpen => {
                // Whoever is late still belongs to the round: its success counts, or a service whose requests
                // take longer than a lease would never come back.
                let held = round.leases.len();
                round.leases.retain(|lease| lease.end > now_ms);
                (word, (round.leases.len() < held).then_some(Why::LeaseOver))
            }
        };
        let lease = round.lease(now_ms + lease_ms.max(1));
        self.store(Word { value: round.next_claim(settings), ..probing });
        let transition = why.map(|why| Transition { from: word.state, to: State::HalfOpen, why, cooldown_ms: 0 });
        Some(Grant { permit: Permit { generation: probing.generation as u32, lease }, transition })
    }

    /// Ends a permit.
    pub fn settle(&self, permit: Permit, outcome: Outcome, now_ms: u64, settings: &Settings) -> Option<Transition> {
        let (generation, lease) = (permit.generation, permit.lease);
        std::mem::forget(permit);
        let word = self.load();
        if word.generation != u64::from(generation) || settings.mode == Mode::Off && lease == 0 {
            return None;
        }
        match word.state {
            State::Closed => self.settle_closed(word.generation, outcome, now_ms, settings),
            State::Open => None,
            State::HalfOpen => self.settle_probe(word.generation, lease, outcome, now_ms, settings),
        }
    }

    fn settle_closed(&self, generation: u64, outcome: Outcome, now_ms: u64, settings: &Settings) -> Option<Transition> {
        if outcome == Outcome::Neutral {
            return None;
        }
        let reached = settings.rates.as_ref().and_then(|rates| self.rate(rates, outcome, now_ms));
        let mut packed = self.word.0.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            if word.generation != generation {
                return None;
            }
            let failures = if outcome == Outcome::Failure { word.value + 1 } else { 0 };
            if failures >= settings.failure_threshold && outcome == Outcome::Failure {
                // A success that comes in between takes the count back, not the share.
                return self.open(generation, now_ms, settings, |count| match count + 1 {
                    count if count >= settings.failure_threshold => Some(Why::InARow(count)),
                    _ => reached,
                });
            }
            if failures == word.value {
                break;
            }
            match self.exchange(packed, Word { value: failures, ..word }) {
                Ok(()) => break,
                Err(current) => packed = current,
            }
        }
        self.open(generation, now_ms, settings, |_| reached)
    }

    /// Counts an outcome for the rates; the trigger that it reaches.
    fn rate(&self, rates: &Rates, outcome: Outcome, now_ms: u64) -> Option<Why> {
        let counted = match outcome {
            Outcome::Failure => Counted::Failed,
            Outcome::Slow => Counted::Slow,
            _ => Counted::Good,
        };
        let counts = self.window.record(now_ms, rates.window_ms, counted);
        if counts.total < rates.min_requests {
            return None;
        }
        let reaches = |part: u64, rate: Option<u32>| rate.is_some_and(|rate| Counts::reach(part, rate, counts.total));
        match counted {
            Counted::Failed if reaches(counts.failed, rates.failure) => Some(Why::FailureRate(counts)),
            Counted::Slow if reaches(counts.slow, rates.slow) => Some(Why::SlowRate(counts)),
            _ => None,
        }
    }

    /// From closed to open, unless `why` sees no cause in the failures in a row. When another success came in
    /// between, the failure is counted instead.
    fn open(
        &self,
        generation: u64,
        now_ms: u64,
        settings: &Settings,
        why: impl Fn(u64) -> Option<Why>,
    ) -> Option<Transition> {
        // Asked before the lock is taken: mostly there is none.
        why(settings.failure_threshold)?;
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packed = self.word.0.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            if word.generation != generation {
                return None;
            }
            let cause = why(word.value);
            let cooldown_ms = self.cooldown(0, now_ms, word.generation, settings);
            let next = match cause {
                Some(_) => word.next(State::Open, now_ms + cooldown_ms),
                None => Word { value: word.value + 1, ..word },
            };
            match self.exchange(packed, next) {
                Ok(()) => {
                    let why = cause?;
                    round.reopenings = 0;
                    return Some(Transition { from: State::Closed, to: State::Open, why, cooldown_ms });
                }
                Err(current) => packed = current,
            }
        }
    }

    fn settle_probe(
        &self,
        generation: u64,
        lease: u64,
        outcome: Outcome,
        now_ms: u64,
        settings: &Settings,
    ) -> Option<Transition> {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.load();
        if word.generation != generation {
            return None;
        }
        // A trip by slowness is not mended by a slow probe.
        let too_slow = outcome == Outcome::Slow && settings.rates.is_some_and(|rates| rates.slow.is_some());
        let failed = outcome == Outcome::Failure || too_slow;
        round.leases.retain(|out| out.number != lease);
        if failed {
            round.reopenings = round.reopenings.saturating_add(u32::from(!round.early));
            let cooldown_ms = self.cooldown(round.reopenings, now_ms, word.generation, settings);
            self.store(word.next(State::Open, now_ms + cooldown_ms));
            return Some(Transition { from: State::HalfOpen, to: State::Open, why: Why::ProbeFailed, cooldown_ms });
        }
        let succeeded = outcome != Outcome::Neutral;
        round.successes += u32::from(succeeded);
        if succeeded && round.successes >= settings.success_threshold {
            let why = Why::ProbesSucceeded(round.successes);
            return Some(self.close(&mut round, word, why));
        }
        self.store(Word { value: round.next_claim(settings), ..word });
        None
    }

    fn close(&self, round: &mut Round, word: Word, why: Why) -> Transition {
        round.reopenings = 0;
        self.window.clear();
        self.store(word.next(State::Closed, 0));
        Transition { from: word.state, to: State::Closed, why, cooldown_ms: 0 }
    }

    /// Whether an operator keeps it open now.
    pub fn is_held(&self, now_ms: u64) -> bool {
        self.load().is_held(now_ms)
    }

    /// An operator opens it, for so long or until a reset.
    pub fn trip(&self, now_ms: u64, for_ms: Option<u64>) -> Transition {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packed = self.word.0.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            let until = for_ms.map_or(Self::FOR_EVER, |span| now_ms.saturating_add(span));
            let held = Word { held: true, ..word.next(State::Open, until) };
            match self.exchange(packed, held) {
                Ok(()) => {
                    round.reopenings = 0;
                    let cooldown_ms = for_ms.unwrap_or(0);
                    return Transition { from: word.state, to: State::Open, why: Why::Tripped, cooldown_ms };
                }
                Err(current) => packed = current,
            }
        }
    }

    /// An operator closes it, whatever it knows.
    pub fn reset(&self) -> Option<Transition> {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packed = self.word.0.load(Ordering::Relaxed);
        loop {
            let word = Word::unpack(packed);
            let closed =
                if word.state == State::Closed { Word { value: 0, ..word } } else { word.next(State::Closed, 0) };
            match self.exchange(packed, closed) {
                Ok(()) => {
                    round.reopenings = 0;
                    self.window.clear();
                    let transition =
                        Transition { from: word.state, to: State::Closed, why: Why::Reset, cooldown_ms: 0 };
                    return (word.state != State::Closed).then_some(transition);
                }
                Err(current) => packed = current,
            }
        }
    }

    /// Health checks found the upstream well: it closes, unless an operator holds it.
    pub fn check_passed(&self) -> Option<Transition> {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.load();
        (word.state != State::Closed && !word.held).then(|| self.close(&mut round, word, Why::ChecksSucceeded))
    }

    /// Health checks found the upstream ill: it opens, and while it is open its cooldown begins anew, so that no
    /// request is risked.
    pub fn check_failed(&self, now_ms: u64, settings: &Settings) -> Option<Transition> {
        let word = self.load();
        if word.state == State::Closed {
            return self.open(word.generation, now_ms, settings, |_| Some(Why::ChecksFailed));
        }
        let round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.load();
        if word.state == State::Open {
            let cooldown_ms = self.cooldown(round.reopenings, now_ms, word.generation, settings);
            self.store(Word { value: word.value.max(now_ms + cooldown_ms), ..word });
        }
        None
    }

    /// What the breaker is now.
    pub fn view(&self) -> View {
        let word = self.load();
        match word.state {
            State::Closed => View { state: State::Closed, failures: word.value, probe_at_ms: None, held: false },
            state => View { state, failures: 0, probe_at_ms: Some(word.value), held: word.held },
        }
    }

    /// Milliseconds of the cooldown after so many re-openings.
    fn cooldown(&self, reopenings: u32, now_ms: u64, generation: u64, settings: &Settings) -> u64 {
        let most = settings.max_cooldown_ms.max(settings.cooldown_ms);
        let mut cooldown = settings.cooldown_ms;
        for _ in 0..reopenings {
            if cooldown >= most || settings.backoff <= 100 {
                break;
            }
            cooldown = cooldown.saturating_mul(u64::from(settings.backoff)) / 100;
        }
        cooldown = cooldown.min(most);
        let spread = cooldown.saturating_mul(u64::from(settings.jitter)) / 10_000;
        if spread == 0 {
            return cooldown;
        }
        cooldown + Random::new(self.seed ^ now_ms ^ generation << GENERATION_SHIFT).next_u64() % (spread + 1)
    }

    fn load(&self) -> Word {
        Word::unpack(self.word.0.load(Ordering::Relaxed))
    }

    /// Under the lock, and of a word that is not closed: nobody else writes it.
    fn store(&self, word: Word) {
        self.word.0.store(word.pack(), Ordering::Relaxed);
    }

    // Nothing but the word itself is handed over by these writes, so relaxed order is enough.
    fn exchange(&self, current: u64, next: Word) -> Result<(), u64> {
        self.word.0.compare_exchange_weak(current, next.pack(), Ordering::Relaxed, Ordering::Relaxed).map(|_| ())
    }
}

fn of_closed(word: Word) -> Permit {
    Permit { generation: word.generation as u32, lease: 0 }
}

impl Round {
    fn begin(&mut self, early: bool) {
        self.early = early;
        self.leases.clear();
        self.successes = 0;
    }

    /// Gives a lease that ends at `end`; its number.
    fn lease(&mut self, end: u64) -> u64 {
        self.given += 1;
        self.leases.push(Lease { number: self.given, end });
        self.given
    }

    /// When the next probe may be claimed: when fewer than allowed are out. A reload may have allowed fewer than are.
    fn next_claim(&mut self, settings: &Settings) -> u64 {
        let Some(too_many) = self.leases.len().checked_sub(settings.half_open_probes.max(1)) else { return 0 };
        self.leases.sort_unstable_by_key(|lease| lease.end);
        self.leases.get(too_many).map_or(0, |lease| lease.end)
    }
}

//! The breaker against a second one that is written in plain words: lists of probes and of outcomes, no atomics, no
//! packing, no lock. A case is a configuration and a sequence of calls, clock and reloads included; after every call
//! both must say the same.
//!
//! `PROPTEST_CASES=100000 cargo test --test breaker_model -- --nocapture` runs more of them and prints what they met.
//! Must not know: how `src/policy/breaker.rs` is built.

use fusegate::policy::breaker::{Breaker, Grant, Mode, Outcome, Permit, Rates, Settings, State, Transition, View, Why};
use fusegate::policy::window::Counts;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestError, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Cases without `PROPTEST_CASES`.
const CASES: u32 = 3000;

/// Later than whatever a case has set up.
const FAR: u64 = 1 << 38;

/// What happens next. Moments are relative, so that cases can be shortened.
#[derive(Clone, Debug)]
enum Step {
    /// A request asks; with `Some` its probe has a lease of its own, as one whose body has not come has.
    Acquire(Option<u64>),
    /// The same of a service that has nobody left.
    AcquireEarly,
    /// One of the permits that are out ends, counted from the last given.
    Settle(usize, Outcome),
    CheckPassed,
    CheckFailed,
    /// Milliseconds pass.
    Wait(u64),
    /// Time passes until this many milliseconds before or behind the moment of the next probe.
    WaitForProbe(i64),
    /// The next call comes from a shard that has read its clock so much earlier.
    Lag(u64),
    Reload(Settings),
}

/// A permit that is out.
#[derive(Debug)]
struct Out {
    permit: Permit,
    given: Given,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// It decides nothing.
    Unattached,
    /// Of a closed breaker.
    Plain { era: u64 },
    /// The probe of this name.
    Probe { era: u64, name: u64 },
}

/// A probe that holds a place.
#[derive(Clone, Copy, Debug)]
struct Probe {
    name: u64,
    until: u64,
}

#[derive(Debug)]
enum Stage {
    Closed { in_a_row: u64 },
    Open { until: u64 },
    HalfOpen { probes: Vec<Probe>, places: usize, successes: u32, is_early: bool },
}

/// An outcome that the rates look at.
#[derive(Clone, Copy, Debug)]
struct Noted {
    window: u64,
    tenth: u64,
    outcome: Outcome,
}

/// What section 4 of the contract says, word by word.
#[derive(Debug)]
struct Reference {
    stage: Stage,
    /// Changes of state so far: an outcome counts in the era of its permit only.
    era: u64,
    /// Probes that failed since it was closed, but for early ones.
    reopened: u32,
    noted: Vec<Noted>,
    names: u64,
}

/// What a call should say; the cooldown that begins is between these two.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    from: State,
    to: State,
    why: Why,
    cooldown: Option<(u64, u64)>,
}

impl Reference {
    fn new() -> Reference {
        Reference { stage: Stage::Closed { in_a_row: 0 }, era: 0, reopened: 0, noted: Vec::new(), names: 0 }
    }

    fn state(&self) -> State {
        match self.stage {
            Stage::Closed { .. } => State::Closed,
            Stage::Open { .. } => State::Open,
            Stage::HalfOpen { .. } => State::HalfOpen,
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.era += 1;
    }

    /// The cooldown without chance, and with all of it.
    fn cooldown(&self, settings: &Settings) -> (u64, u64) {
        let most = settings.max_cooldown_ms.max(settings.cooldown_ms);
        let grow = |cooldown: u64, _| (cooldown * u64::from(settings.backoff) / 100).min(most);
        let cooldown = (0..self.reopened).fold(settings.cooldown_ms, grow);
        (cooldown, cooldown + cooldown * u64::from(settings.jitter) / 10_000)
    }

    /// Whether a request would become a probe, or pass.
    fn has_room(&self, now: u64) -> bool {
        match &self.stage {
            Stage::Closed { .. } => true,
            Stage::Open { until } => *until <= now,
            Stage::HalfOpen { probes, places, .. } => probes.iter().filter(|probe| probe.until > now).count() < *places,
        }
    }

    fn available(&self, now: u64, settings: &Settings) -> bool {
        settings.mode != Mode::Enforce || self.has_room(now)
    }

    fn acquire(&mut self, now: u64, lease: u64, is_early: bool, settings: &Settings) -> (Option<Given>, Option<Told>) {
        if settings.mode == Mode::Off {
            return (Some(Given::Unattached), None);
        }
        let from = self.state();
        let may_be_early = is_early && from == State::Open;
        if from == State::Closed {
            return (Some(Given::Plain { era: self.era }), None);
        }
        if !self.has_room(now) && !may_be_early {
            return ((settings.mode == Mode::Observe).then_some(Given::Unattached), None);
        }
        let mut why = None;
        if let Stage::Open { until } = self.stage {
            let is_early = until > now;
            why = Some(if is_early { Why::NobodyLeft } else { Why::CooledDown });
            self.enter(Stage::HalfOpen { probes: Vec::new(), places: 0, successes: 0, is_early });
        }
        let Stage::HalfOpen { probes, places, .. } = &mut self.stage else { unreachable!() };
        if probes.iter().any(|probe| probe.until <= now) {
            probes.retain(|probe| probe.until > now);
            why = Some(Why::LeaseOver);
        }
        self.names += 1;
        let name = self.names;
        probes.push(Probe { name, until: now + lease });
        // How many there may be is looked at when a probe begins or ends.
        *places = settings.half_open_probes;
        let told = why.map(|why| Told { from, to: State::HalfOpen, why, cooldown: None });
        (Some(Given::Probe { era: self.era, name }), told)
    }

    fn settle(&mut self, given: Given, outcome: Outcome, now: u64, settings: &Settings) -> Option<Told> {
        match given {
            Given::Plain { era } if era == self.era && settings.mode != Mode::Off => {
                self.settle_plain(outcome, now, settings)
            }
            Given::Probe { era, name } if era == self.era => self.settle_probe(name, outcome, settings),
            _ => None,
        }
    }

    fn settle_plain(&mut self, outcome: Outcome, now: u64, settings: &Settings) -> Option<Told> {
        if outcome == Outcome::Neutral {
            return None;
        }
        let by_rate = settings.rates.and_then(|rates| self.rate(&rates, outcome, now));
        let Stage::Closed { in_a_row } = &mut self.stage else { panic!("an era has one state") };
        *in_a_row = if outcome == Outcome::Failure { *in_a_row + 1 } else { 0 };
        let count = *in_a_row;
        let by_count = outcome == Outcome::Failure && count >= settings.failure_threshold;
        let why = if by_count { Some(Why::InARow(count)) } else { by_rate };
        why.map(|why| self.open(why, settings))
    }

    fn rate(&mut self, rates: &Rates, outcome: Outcome, now: u64) -> Option<Why> {
        let window = rates.window_ms;
        let tenth = now / (window / 10);
        self.noted.push(Noted { window, tenth, outcome });
        // The running tenth and the nine before it; what was noted in another window is forgotten.
        let last = self
            .noted
            .iter()
            .filter(|noted| noted.window == window && noted.tenth <= tenth && noted.tenth + 10 > tenth);
        let (mut total, mut failed, mut slow) = (0, 0, 0);
        for noted in last {
            total += 1;
            failed += u64::from(noted.outcome == Outcome::Failure);
            slow += u64::from(noted.outcome == Outcome::Slow);
        }
        let counts = Counts { total, failed, slow };
        let reaches = |part: u64, rate: Option<u32>| {
            total >= rates.min_requests && rate.is_some_and(|rate| part as f64 / total as f64 >= f64::from(rate) / 1e4)
        };
        match outcome {
            Outcome::Failure if reaches(failed, rates.failure) => Some(Why::FailureRate(counts)),
            Outcome::Slow if reaches(slow, rates.slow) => Some(Why::SlowRate(counts)),
            _ => None,
        }
    }

    /// Until when is known when the breaker has said how long its cooldown is.
    fn open(&mut self, why: Why, settings: &Settings) -> Told {
        let from = self.state();
        if from == State::Closed {
            self.reopened = 0;
        }
        let cooldown = Some(self.cooldown(settings));
        self.enter(Stage::Open { until: u64::MAX });
        Told { from, to: State::Open, why, cooldown }
    }

    fn settle_probe(&mut self, name: u64, outcome: Outcome, settings: &Settings) -> Option<Told> {
        let Stage::HalfOpen { probes, places, successes, is_early } = &mut self.stage else {
            panic!("an era has one state")
        };
        // One whose place was taken over still belongs to the round.
        probes.retain(|probe| probe.name != name);
        *places = settings.half_open_probes;
        let slowness_trips = settings.rates.is_some_and(|rates| rates.slow.is_some());
        match outcome {
            Outcome::Neutral => None,
            Outcome::Slow | Outcome::Failure if outcome == Outcome::Failure || slowness_trips => {
                self.reopened += u32::from(!*is_early);
                Some(self.open(Why::ProbeFailed, settings))
            }
            _ => {
                *successes += 1;
                let count = *successes;
                (count >= settings.success_threshold).then(|| self.close(Why::ProbesSucceeded(count)))
            }
        }
    }

    fn close(&mut self, why: Why) -> Told {
        let from = self.state();
        self.noted.clear();
        self.reopened = 0;
        self.enter(Stage::Closed { in_a_row: 0 });
        Told { from, to: State::Closed, why, cooldown: None }
    }

    fn check_passed(&mut self) -> Option<Told> {
        (self.state() != State::Closed).then(|| self.close(Why::ChecksSucceeded))
    }

    fn check_failed(&mut self, settings: &Settings) -> Option<Told> {
        (self.state() == State::Closed).then(|| self.open(Why::ChecksFailed, settings))
    }

    fn view(&self) -> View {
        let state = self.state();
        match &self.stage {
            Stage::Closed { in_a_row } => View { state, failures: *in_a_row, probe_at_ms: None, held: false },
            Stage::Open { until } => View { state, failures: 0, probe_at_ms: Some(*until), held: false },
            Stage::HalfOpen { probes, places, .. } => {
                let mut ends: Vec<u64> = probes.iter().map(|probe| probe.until).collect();
                ends.sort_unstable();
                // So many of them must end before one may begin; 0 is at once.
                let at = (ends.len() + 1).saturating_sub(*places).checked_sub(1).map_or(0, |nth| ends[nth]);
                View { state, failures: 0, probe_at_ms: Some(at), held: false }
            }
        }
    }
}

/// Both breakers, and what is out.
struct Pair {
    breaker: Breaker,
    reference: Reference,
    settings: Settings,
    /// Lengths of windows that were configured, the present one last.
    windows: Vec<u64>,
    clock: u64,
    lag: u64,
    out: Vec<Out>,
    met: BTreeMap<String, u64>,
}

impl Pair {
    fn new(settings: Settings, seed: u64, start: u64) -> Pair {
        Pair {
            breaker: Breaker::new(seed),
            reference: Reference::new(),
            settings,
            windows: settings.rates.iter().map(|rates| rates.window_ms).collect(),
            clock: start,
            lag: 0,
            out: Vec::new(),
            met: BTreeMap::new(),
        }
    }

    fn meet(&mut self, what: impl Into<String>) {
        *self.met.entry(what.into()).or_default() += 1;
    }

    /// The breaker said `said`, the reference expects `told`. What chance decides is taken over, within its bounds.
    fn compare(&mut self, said: Option<Transition>, told: Option<Told>, now: u64) {
        let Some(told) = told else {
            assert_eq!(said, None);
            return;
        };
        let Transition { from, to, why, cooldown_ms } = said.unwrap_or_else(|| panic!("nothing for {told:?}"));
        assert_eq!((from, to, why), (told.from, told.to, told.why));
        let (least, most) = told.cooldown.unwrap_or((0, 0));
        assert!((least..=most).contains(&cooldown_ms), "a cooldown of {cooldown_ms} for {least} to {most}");
        if let Stage::Open { until } = &mut self.reference.stage {
            *until = now + cooldown_ms;
        }
        let word = format!("{why:?}");
        self.meet(format!("why {}", word.split('(').next().unwrap_or_default()));
    }

    fn acquire(&mut self, now: u64, lease: u64, is_early: bool) {
        let settings = self.settings;
        let expects = self.reference.available(now, &settings);
        assert_eq!(self.breaker.available(now, &settings), expects, "available");
        let (given, told) = self.reference.acquire(now, lease, is_early, &settings);
        let grant = match is_early {
            false => self.breaker.acquire(now, lease, &settings),
            true => self.breaker.acquire_early(now, lease, &settings),
        };
        if !is_early {
            assert_eq!(grant.is_some(), expects, "available asks what acquire answers");
        }
        let (given, Grant { permit, transition }) = match (given, grant) {
            (Some(given), Some(grant)) => (given, grant),
            (None, None) => return self.meet("skipped"),
            (given, grant) => panic!("{given:?} is expected, there is {grant:?}"),
        };
        assert_eq!(permit.is_probe(), matches!(given, Given::Probe { .. }), "{given:?}");
        self.compare(transition, told, now);
        self.out.push(Out { permit, given });
    }

    fn settle(&mut self, nth: usize, outcome: Outcome, now: u64) {
        if self.out.is_empty() {
            return;
        }
        let at = self.out.len() - 1 - nth % self.out.len();
        let Out { permit, given } = self.out.remove(at);
        let era = match given {
            Given::Unattached => None,
            Given::Plain { era } | Given::Probe { era, .. } => Some(era),
        };
        match era {
            Some(era) if era != self.reference.era => self.meet("settled behind its era"),
            Some(_) => self.meet(format!("settled {outcome:?} when {:?}", self.reference.state())),
            None => self.meet("settled unattached"),
        }
        let told = self.reference.settle(given, outcome, now, &self.settings);
        let said = self.breaker.settle(permit, outcome, now, &self.settings);
        self.compare(said, told, now);
    }

    fn step(&mut self, step: Step) {
        let now = self.clock.saturating_sub(self.lag);
        if !matches!(step, Step::Wait(_) | Step::WaitForProbe(_) | Step::Lag(_) | Step::Reload(_)) {
            self.lag = 0;
        }
        match step {
            Step::Acquire(lease) => self.acquire(now, lease.unwrap_or(self.settings.lease_ms), false),
            // Only a breaker that skips can leave a service without anybody.
            Step::AcquireEarly if self.settings.mode == Mode::Enforce => {
                self.acquire(now, self.settings.lease_ms, true);
            }
            Step::AcquireEarly => {}
            Step::Settle(nth, outcome) => self.settle(nth, outcome, now),
            Step::CheckPassed => {
                let told = self.reference.check_passed();
                let said = self.breaker.check_passed();
                self.compare(said, told, now);
            }
            Step::CheckFailed => {
                let told = self.reference.check_failed(&self.settings);
                let was_open = self.reference.state() == State::Open && told.is_none();
                let said = self.breaker.check_failed(now, &self.settings);
                self.compare(said, told, now);
                let (least, most) = self.reference.cooldown(&self.settings);
                if let (true, Stage::Open { until }) = (was_open, &mut self.reference.stage) {
                    // Its cooldown begins anew, and it is not silent about the moment.
                    let at = self.breaker.view().probe_at_ms.unwrap_or(0);
                    assert!(((*until).max(now + least)..=(*until).max(now + most)).contains(&at), "{at}");
                    *until = at;
                }
            }
            Step::Wait(ms) => self.clock += ms,
            Step::WaitForProbe(off) => {
                let at = self.reference.view().probe_at_ms.unwrap_or(0).saturating_add_signed(off);
                self.clock = self.clock.max(at);
            }
            Step::Lag(ms) => self.lag = ms,
            Step::Reload(settings) => self.reload(settings),
        }
        assert_eq!(self.breaker.view(), self.reference.view());
    }

    /// The state stays, the settings are others. A length of window never comes back: what of the first time is
    /// still there then depends on what was written over it, and is nobody's business.
    fn reload(&mut self, mut settings: Settings) {
        if let Some(rates) = &mut settings.rates {
            if self.windows.contains(&rates.window_ms) {
                rates.window_ms = *self.windows.last().unwrap_or(&rates.window_ms);
            } else {
                self.windows.push(rates.window_ms);
            }
        }
        self.settings = settings;
        self.meet("reloaded");
    }

    /// Whatever has happened, with every permit lost: an upstream is asked again. Then they end after all.
    fn finish(mut self) -> BTreeMap<String, u64> {
        self.clock = FAR;
        self.lag = 0;
        let lost = std::mem::take(&mut self.out);
        self.step(Step::Acquire(None));
        assert_eq!(self.out.len(), 1, "stuck");
        self.out.extend(lost);
        while !self.out.is_empty() {
            self.step(Step::Settle(0, Outcome::Success));
        }
        self.met
    }
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Failure),
        3 => Just(Outcome::Success),
        2 => Just(Outcome::Slow),
        1 => Just(Outcome::Neutral),
    ]
}

fn rates() -> impl Strategy<Value = Rates> {
    let share = || prop::option::weighted(0.7, select(vec![1, 2500, 5000, 6667, 10_000]));
    (select(vec![100, 130, 400, 1000, 5000, 60_000]), 1..=6u64, share(), share())
        .prop_map(|(window_ms, min_requests, failure, slow)| Rates { window_ms, min_requests, failure, slow })
}

fn settings() -> impl Strategy<Value = Settings> {
    let mode = prop_oneof![10 => Just(Mode::Enforce), 3 => Just(Mode::Observe), 1 => Just(Mode::Off)];
    let cooldown = (20..=400u64, select(vec![100, 150, 200, 1000]), 0..=3000u64, select(vec![0, 1000, 10_000]));
    let probing = (1..=3usize, 1..=3u32, 1..=300u64);
    let threshold = prop_oneof![3 => 1..=4u64, 1 => Just(1000)];
    (mode, threshold, cooldown, probing, prop::option::of(rates())).prop_map(
        |(mode, failure_threshold, cooldown, probing, rates)| Settings {
            mode,
            failure_threshold,
            cooldown_ms: cooldown.0,
            backoff: cooldown.1,
            max_cooldown_ms: cooldown.2,
            jitter: cooldown.3,
            half_open_probes: probing.0,
            success_threshold: probing.1,
            lease_ms: probing.2,
            rates,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => Just(Step::Acquire(None)),
        4 => (1..=20u64).prop_map(|lease| Step::Acquire(Some(lease))),
        3 => Just(Step::AcquireEarly),
        18 => (0..3usize, outcomes()).prop_map(|(nth, outcome)| Step::Settle(nth, outcome)),
        8 => (any::<u16>(), outcomes()).prop_map(|(nth, outcome)| Step::Settle(nth.into(), outcome)),
        1 => Just(Step::CheckPassed),
        1 => Just(Step::CheckFailed),
        8 => (0..=30u64).prop_map(Step::Wait),
        2 => (0..=3000u64).prop_map(Step::Wait),
        6 => (-1..=1i64).prop_map(Step::WaitForProbe),
        3 => (1..=20u64).prop_map(Step::Lag),
        1 => settings().prop_map(Step::Reload),
    ]
}

#[test]
fn the_breaker_does_what_the_plain_one_does() {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let cases = config.cases;
    let cases_run = RefCell::new(0u32);
    let met = RefCell::new(BTreeMap::<String, u64>::new());
    let case = (settings(), any::<u64>(), 0..=100_000u64, prop::collection::vec(steps(), 1..200));
    let result = TestRunner::new(config).run(&case, |(settings, seed, start, steps)| {
        let mut pair = Pair::new(settings, seed, start);
        steps.into_iter().for_each(|step| pair.step(step));
        for (what, times) in pair.finish() {
            *met.borrow_mut().entry(what).or_default() += times;
        }
        *cases_run.borrow_mut() += 1;
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\n{case:#?}"),
        Err(abort) => panic!("{abort}"),
    }
    let met = met.into_inner();
    println!("{} cases: {met:#?}", cases_run.into_inner());
    let why = met.keys().filter(|what| what.starts_with("why ")).count();
    assert!(why == 10 || cases < 1000, "some causes were not met: {met:?}");
}

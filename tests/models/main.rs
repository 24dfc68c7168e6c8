//! Breaker, window and cursor under a model checker: every interleaving of two or three threads, and every value
//! that a relaxed load may see.
//!
//! The very files of `src/policy` are compiled into this crate, above a `ground::sync` that has loom's atomics and
//! lock. Each model says what must hold however its threads are interleaved, and prints how many ways were tried
//! (`cargo test --test models -- --nocapture`). `LOOM_MAX_PREEMPTIONS` looks further than the bounds given here.
//! Must not know: how the breaker does it; only its public calls are used.

// The files that are included have more than the models use, and are public for another crate.
#![allow(dead_code, unreachable_pub, missing_docs)]
// A failed unwrap is how a test fails.
#![allow(clippy::unwrap_used)]

mod balancing;
mod breaking;
mod rates;

#[path = "../../src/ground"]
mod ground {
    pub mod random;
    pub mod sync {
        pub use loom::sync::Mutex;
        pub use loom::sync::atomic::{AtomicU64, Ordering};
    }
}

#[path = "../../src/policy"]
mod policy {
    pub mod balance;
    pub mod breaker;
    pub mod window;
}

use policy::breaker::{Breaker, Grant, Mode, Outcome, Permit, Settings, State, Transition};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// All interleavings, however often a thread is interrupted.
const EVERY: Option<usize> = None;

/// Checks a model in every interleaving in which threads are interrupted at most `preemptions` times in all.
fn explore(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let tried = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    let bound = builder.preemption_bound.map_or("all".to_owned(), |bound| format!("at most {bound} preemptions"));
    let begun = std::time::Instant::now();
    let count = Arc::clone(&tried);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let tried = tried.load(Ordering::Relaxed);
    println!("{name}: {tried} interleavings ({bound}) in {:.1} s", begun.elapsed().as_secs_f64());
}

const LEASE: u64 = 50;
const COOLDOWN: u64 = 100;
/// Later than every cooldown and lease.
const FAR: u64 = 1_000_000;

const SETTINGS: Settings = Settings {
    mode: Mode::Enforce,
    failure_threshold: 1,
    cooldown_ms: COOLDOWN,
    backoff: 100,
    max_cooldown_ms: COOLDOWN,
    jitter: 0,
    half_open_probes: 1,
    success_threshold: 1,
    lease_ms: LEASE,
    rates: None,
};

/// A breaker that all threads of a model use, and every transition that it told to any of them. The lock of the
/// list is the standard one: to the model it is not there.
struct Watched {
    breaker: Breaker,
    settings: Settings,
    told: Mutex<Vec<Transition>>,
}

impl Watched {
    fn new(settings: Settings) -> Arc<Watched> {
        Arc::new(Watched { breaker: Breaker::new(0), settings, told: Mutex::default() })
    }

    /// One that was opened at 0.
    fn opened(settings: Settings) -> Arc<Watched> {
        let watched = Watched::new(settings);
        let once = Settings { failure_threshold: 1, rates: None, ..settings };
        let permit = watched.acquire(0).expect("closed");
        let opened = watched.breaker.settle(permit, Outcome::Failure, 0, &once);
        assert_eq!(opened.map(|transition| transition.to), Some(State::Open));
        watched.tell(opened);
        watched
    }

    fn tell(&self, transition: Option<Transition>) {
        self.told.lock().unwrap().extend(transition);
    }

    fn given(&self, grant: Option<Grant>) -> Option<Permit> {
        let Grant { permit, transition } = grant?;
        self.tell(transition);
        Some(permit)
    }

    fn acquire(&self, now: u64) -> Option<Permit> {
        self.given(self.breaker.acquire(now, self.settings.lease_ms, &self.settings))
    }

    fn acquire_early(&self, now: u64) -> Option<Permit> {
        self.given(self.breaker.acquire_early(now, self.settings.lease_ms, &self.settings))
    }

    fn settle(&self, permit: Permit, outcome: Outcome, now: u64) -> Option<Transition> {
        let transition = self.breaker.settle(permit, outcome, now, &self.settings);
        self.tell(transition);
        transition
    }

    fn check_passed(&self) {
        self.tell(self.breaker.check_passed());
    }

    fn check_failed(&self, now: u64) {
        self.tell(self.breaker.check_failed(now, &self.settings));
    }

    /// How often it was told that a state began.
    fn entered(&self, state: State) -> usize {
        self.told.lock().unwrap().iter().filter(|told| told.to == state && told.from != state).count()
    }

    /// The transitions that were told are a walk from closed to the present state: none is missing, none was told
    /// twice.
    fn check_told(&self) {
        let told = self.told.lock().unwrap();
        for state in [State::Closed, State::Open, State::HalfOpen] {
            let entered = told.iter().filter(|told| told.to == state).count() + usize::from(state == State::Closed);
            let left = told.iter().filter(|told| told.from == state).count();
            let is_now = usize::from(self.breaker.view().state == state);
            assert_eq!(entered, left + is_now, "{state:?} of {told:?}");
        }
    }

    /// Nothing that is lost, not even every permit, keeps an upstream out for ever.
    fn check_not_stuck(&self) {
        self.check_told();
        assert!(self.breaker.available(FAR, &self.settings));
        let permit = self.acquire(FAR).expect("stuck");
        self.settle(permit, Outcome::Success, FAR);
        self.check_told();
    }
}

/// What a thread does.
type Run<T> = Box<dyn FnOnce(&Watched) -> T + Send>;

fn thread<T>(run: impl FnOnce(&Watched) -> T + Send + 'static) -> Run<T> {
    Box::new(run)
}

/// Runs each in a thread of its own, the last in the model's.
fn together<T: Send + 'static>(watched: &Arc<Watched>, mut each: Vec<Run<T>>) -> Vec<T> {
    let last = each.pop().expect("threads");
    let spawn = |run: Run<T>| {
        let watched = Arc::clone(watched);
        loom::thread::spawn(move || run(&watched))
    };
    let others: Vec<_> = each.into_iter().map(spawn).collect();
    let ended = last(watched);
    others.into_iter().map(|other| other.join().unwrap()).chain([ended]).collect()
}

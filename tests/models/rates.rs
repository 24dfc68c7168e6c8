//! Models of the triggers by rate: one transition, nothing counted twice or lost in a bucket.
//!
//! Must not know: how the window is cut.

use super::*;
use policy::breaker::{Rates, Why};
use policy::window::{Counted, Counts, Window};

const RATED: Settings = Settings {
    failure_threshold: 1000,
    rates: Some(Rates { window_ms: 1000, min_requests: 3, failure: Some(10_000), slow: None }),
    ..SETTINGS
};

#[test]
fn outcomes_of_one_bucket_are_all_counted() {
    explore("outcomes of one bucket are all counted", EVERY, || {
        let window = Arc::new(Window::default());
        let threads: Vec<_> = [Counted::Failed, Counted::Slow]
            .map(|counted| {
                let window = Arc::clone(&window);
                loom::thread::spawn(move || window.record(0, 1000, counted))
            })
            .into();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(window.record(0, 1000, Counted::Good), Counts { total: 3, failed: 1, slow: 1 });
    });
}

/// The first outcome of a tenth throws the bucket of a window ago away, once.
#[test]
fn a_bucket_begins_anew_once() {
    explore("a bucket begins anew once", EVERY, || {
        let window = Arc::new(Window::default());
        window.record(0, 1000, Counted::Failed);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let window = Arc::clone(&window);
                loom::thread::spawn(move || window.record(1000, 1000, Counted::Good))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(window.record(1000, 1000, Counted::Good), Counts { total: 3, failed: 0, slow: 0 });
    });
}

#[test]
fn a_rate_opens_once() {
    explore("a rate opens once", Some(2), || {
        let watched = Watched::new(RATED);
        let fail = || {
            thread(|watched| {
                let permit = watched.acquire(0).expect("two of three are not enough");
                watched.settle(permit, Outcome::Failure, 0)
            })
        };
        let told: Vec<Transition> = together(&watched, vec![fail(), fail(), fail()]).into_iter().flatten().collect();
        let why: Vec<Why> = told.iter().map(|told| told.why).collect();
        assert_eq!(why, [Why::FailureRate(Counts { total: 3, failed: 3, slow: 0 })]);
        watched.check_not_stuck();
    });
}

#[test]
fn a_rate_and_a_count_open_once() {
    explore("a rate and a count in a row open once", Some(3), || {
        let watched = Watched::new(Settings { failure_threshold: 2, ..RATED });
        let permits: Vec<Permit> = (0..3).map(|_| watched.acquire(0).expect("closed")).collect();
        let threads = permits
            .into_iter()
            .map(|permit| thread(move |watched: &Watched| watched.settle(permit, Outcome::Failure, 0)))
            .collect();
        assert_eq!(together(&watched, threads).into_iter().flatten().count(), 1);
        watched.check_not_stuck();
    });
}

/// Outcomes of different tenths may miss one another, as two shards that look at the same moment may; they never
/// open twice, and the next failure sees both.
#[test]
fn a_rate_over_two_buckets() {
    explore("a rate over two buckets", EVERY, || {
        let rates = Rates { window_ms: 1000, min_requests: 2, failure: Some(10_000), slow: None };
        let watched = Watched::new(Settings { rates: Some(rates), ..RATED });
        let permits: Vec<Permit> = (0..3).map(|_| watched.acquire(0).expect("closed")).collect();
        let [one, other, next] = <[Permit; 3]>::try_from(permits).expect("three");
        let fail = |permit, at| thread(move |watched: &Watched| watched.settle(permit, Outcome::Failure, at));
        let opened = together(&watched, vec![fail(one, 99), fail(other, 100)]).into_iter().flatten().count();
        assert!(opened <= 1);
        let next = watched.settle(next, Outcome::Failure, 100);
        assert_eq!(opened + usize::from(next.is_some()), 1);
        watched.check_not_stuck();
    });
}

/// A success that takes the count in a row back must not take the share of failures with it.
#[test]
fn a_rate_is_not_lost_to_a_success() {
    explore("a rate is not lost to a success", EVERY, || {
        let rates = Rates { window_ms: 1000, min_requests: 2, failure: Some(5000), slow: None };
        let watched = Watched::new(Settings { failure_threshold: 2, rates: Some(rates), ..RATED });
        let permit = watched.acquire(0).expect("closed");
        watched.settle(permit, Outcome::Failure, 0);
        let end = |outcome| {
            let permit = watched.acquire(0).expect("closed");
            thread(move |watched: &Watched| watched.settle(permit, outcome, 0))
        };
        let told = together(&watched, vec![end(Outcome::Failure), end(Outcome::Success)]);
        // Two of two or two of three: it is at least a half whatever came first.
        assert_eq!(told.into_iter().flatten().count(), 1);
        watched.check_not_stuck();
    });
}

/// The count in a row is exact about generations. The window has one blemish: a thread that stood between two
/// instructions of an outcome while another tripped, waited for the cooldown, probed and closed may add that one
/// outcome to the new window; never more than that one.
#[test]
fn at_most_the_outcome_under_way_is_carried_over() {
    explore("at most the outcome under way is carried over", Some(1), || {
        let rates = Rates { window_ms: 1000, min_requests: 3, failure: Some(10_000), slow: None };
        let watched = Watched::new(Settings { failure_threshold: 2, rates: Some(rates), ..RATED });
        let old = watched.acquire(0).expect("closed");
        let one = watched.acquire(0).expect("closed");
        let two = watched.acquire(0).expect("closed");
        let settle = thread(move |watched: &Watched| {
            watched.settle(old, Outcome::Failure, 0);
        });
        let trip = thread(move |watched: &Watched| {
            // Not counted for the rates: what a thread may see of ten buckets is a lot already.
            let unrated = Settings { rates: None, ..watched.settings };
            for permit in [one, two] {
                watched.tell(watched.breaker.settle(permit, Outcome::Failure, 0, &unrated));
            }
            let probe = watched.acquire(COOLDOWN).expect("cooled down");
            watched.settle(probe, Outcome::Success, COOLDOWN);
        });
        together(&watched, vec![settle, trip]);
        let view = watched.breaker.view();
        assert_eq!((view.state, view.failures), (State::Closed, 0));
        let permit = watched.acquire(COOLDOWN).expect("closed");
        assert_eq!(watched.settle(permit, Outcome::Failure, COOLDOWN), None, "two, with the old one, of three");
        watched.check_not_stuck();
    });
}

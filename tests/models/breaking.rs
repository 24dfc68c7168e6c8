//! Models of the breaker: one probe, none lost, none stuck, exact thresholds, nothing decided by an old permit.
//!
//! Must not know: anything but the breaker's public calls.

use super::*;
use policy::breaker::Why;

/// Three ask at the end of the cooldown: as many get a probe as there are places.
fn probes_at_the_end_of_a_cooldown(places: usize, name: &str) {
    explore(name, EVERY, move || {
        let watched = Watched::opened(Settings { half_open_probes: places, ..SETTINGS });
        let ask = || thread(|watched| watched.acquire(COOLDOWN));
        let given: Vec<Permit> = together(&watched, vec![ask(), ask(), ask()]).into_iter().flatten().collect();
        assert_eq!(given.len(), places);
        assert!(given.iter().all(Permit::is_probe));
        assert_eq!(watched.entered(State::HalfOpen), 1, "told once");
        assert!(watched.acquire(COOLDOWN).is_none() && !watched.breaker.available(COOLDOWN, &SETTINGS));
        for permit in given {
            watched.settle(permit, Outcome::Success, COOLDOWN);
        }
        assert_eq!(watched.entered(State::Closed), 1);
        watched.check_not_stuck();
    });
}

#[test]
fn exactly_one_probe() {
    probes_at_the_end_of_a_cooldown(1, "exactly one probe");
}

#[test]
fn at_most_two_probes() {
    probes_at_the_end_of_a_cooldown(2, "at most two probes");
}

#[test]
fn never_two_probes_at_a_time() {
    explore("never two probes at a time", EVERY, || {
        let watched = Watched::opened(Settings { success_threshold: 2, ..SETTINGS });
        let out = Arc::new(AtomicUsize::new(0));
        let probe = |outcome| {
            let out = Arc::clone(&out);
            thread(move |watched| {
                let Some(permit) = watched.acquire(COOLDOWN) else { return };
                assert!(permit.is_probe());
                assert_eq!(out.fetch_add(1, Ordering::Relaxed), 0, "another probe is out");
                out.fetch_sub(1, Ordering::Relaxed);
                watched.settle(permit, outcome, COOLDOWN);
            })
        };
        together(&watched, vec![probe(Outcome::Neutral), probe(Outcome::Success), probe(Outcome::Neutral)]);
        watched.check_not_stuck();
    });
}

#[test]
fn early_and_due_probes_are_one() {
    explore("an early and a due probe are one", EVERY, || {
        let watched = Watched::opened(SETTINGS);
        // The clocks of two shards are read at different moments.
        let early = thread(|watched| watched.acquire_early(COOLDOWN - 1));
        let due = || thread(|watched| watched.acquire(COOLDOWN));
        let given: Vec<Permit> = together(&watched, vec![early, due(), due()]).into_iter().flatten().collect();
        assert_eq!(given.len(), 1);
        for permit in given {
            watched.settle(permit, Outcome::Success, COOLDOWN);
        }
        watched.check_not_stuck();
    });
}

#[test]
fn a_neutral_probe_is_not_lost() {
    explore("a neutral probe is not lost", EVERY, || {
        let watched = Watched::opened(SETTINGS);
        let probe = watched.acquire(COOLDOWN).expect("the probe");
        let free = thread(move |watched| {
            assert_eq!(watched.settle(probe, Outcome::Neutral, COOLDOWN), None);
            None
        });
        let ask = || thread(|watched| watched.acquire(COOLDOWN));
        let given: Vec<Permit> = together(&watched, vec![free, ask(), ask()]).into_iter().flatten().collect();
        assert!(given.len() <= 1);
        let next = given.into_iter().next().or_else(|| watched.acquire(COOLDOWN)).expect("the place is free");
        assert!(watched.acquire(COOLDOWN).is_none(), "and taken again");
        assert_eq!(watched.settle(next, Outcome::Success, COOLDOWN).map(|told| told.to), Some(State::Closed));
        watched.check_not_stuck();
    });
}

/// The lease of a probe is over: one of two that ask takes it over, whatever becomes of the late probe meanwhile.
fn a_lease_that_is_over(outcome: Outcome, name: &str) {
    explore(name, EVERY, move || {
        let watched = Watched::opened(SETTINGS);
        let late = watched.acquire(COOLDOWN).expect("the probe");
        let end = COOLDOWN + LEASE;
        let settle = thread(move |watched| {
            watched.settle(late, outcome, end);
            None
        });
        let ask = || thread(move |watched| watched.acquire(end));
        let given: Vec<Permit> = together(&watched, vec![settle, ask(), ask()]).into_iter().flatten().collect();
        let probes = given.iter().filter(|permit| permit.is_probe()).count();
        match outcome {
            // Settled or taken over, the place is one place.
            Outcome::Neutral => assert_eq!(probes, 1),
            // Whoever asked behind the end of the round got an ordinary permit, or none.
            _ => assert!(probes <= 1),
        }
        for permit in given {
            watched.settle(permit, Outcome::Neutral, end);
        }
        let state = watched.breaker.view().state;
        match outcome {
            Outcome::Success | Outcome::Slow => assert_eq!(state, State::Closed),
            Outcome::Failure => assert_eq!(state, State::Open),
            Outcome::Neutral => assert_eq!(state, State::HalfOpen),
        }
        watched.check_not_stuck();
    });
}

#[test]
fn a_lease_that_is_over_and_a_late_neutral() {
    a_lease_that_is_over(Outcome::Neutral, "a lease that is over, and a late neutral");
}

#[test]
fn a_lease_that_is_over_and_a_late_success() {
    a_lease_that_is_over(Outcome::Success, "a lease that is over, and a late success");
}

#[test]
fn a_lease_that_is_over_and_a_late_failure() {
    a_lease_that_is_over(Outcome::Failure, "a lease that is over, and a late failure");
}

/// Trips with the last of the failures that it holds, probes after the cooldown and closes.
fn trip_probe_and_close(watched: &Watched, permits: Vec<Permit>) {
    for permit in permits {
        watched.settle(permit, Outcome::Failure, 0);
    }
    let probe = watched.acquire(COOLDOWN).expect("cooled down");
    assert!(probe.is_probe());
    assert_eq!(watched.settle(probe, Outcome::Success, COOLDOWN).map(|told| told.to), Some(State::Closed));
}

/// A permit of before the trip is settled at any moment of trip, probe and close: it may have been one of the
/// failures that tripped, and nothing of it is left afterwards.
fn an_old_permit(outcome: Outcome, name: &str) {
    explore(name, EVERY, move || {
        let watched = Watched::new(Settings { failure_threshold: 2, ..SETTINGS });
        let old = watched.acquire(0).expect("closed");
        // Three failures trip also when a success comes in between, but for one behind the first two.
        let others = (0..3).map(|_| watched.acquire(0).expect("closed")).collect();
        let settle = thread(move |watched| {
            watched.settle(old, outcome, 0);
        });
        let trip = thread(move |watched| trip_probe_and_close(watched, others));
        together(&watched, vec![settle, trip]);
        assert_eq!(watched.breaker.view().state, State::Closed);
        assert_eq!(watched.breaker.view().failures, 0, "the new count has begun with an old outcome");
        assert_eq!(watched.entered(State::Open), 1);
        watched.check_not_stuck();
    });
}

#[test]
fn an_old_failure_is_not_counted() {
    an_old_permit(Outcome::Failure, "an old failure is not counted");
}

#[test]
fn an_old_success_is_not_counted() {
    an_old_permit(Outcome::Success, "an old success is not counted");
}

#[test]
fn an_old_success_does_not_clear_the_new_count() {
    explore("an old success does not clear the new count", EVERY, || {
        let watched = Watched::new(Settings { failure_threshold: 2, ..SETTINGS });
        let old = watched.acquire(0).expect("closed");
        let others = (0..3).map(|_| watched.acquire(0).expect("closed")).collect();
        let settle = thread(move |watched| {
            watched.settle(old, Outcome::Success, COOLDOWN);
        });
        let trip = thread(move |watched| {
            trip_probe_and_close(watched, others);
            let permit = watched.acquire(COOLDOWN).expect("closed");
            assert_eq!(watched.settle(permit, Outcome::Failure, COOLDOWN), None);
        });
        together(&watched, vec![settle, trip]);
        assert_eq!(watched.breaker.view().failures, 1);
        watched.check_not_stuck();
    });
}

/// Two probes of a round; one fails and the next round begins while the other is settled.
fn a_probe_of_the_last_round(outcome: Outcome, name: &str) {
    explore(name, EVERY, move || {
        let watched = Watched::opened(Settings { half_open_probes: 2, success_threshold: 2, ..SETTINGS });
        let old = watched.acquire(COOLDOWN).expect("a probe");
        let fails = watched.acquire(COOLDOWN).expect("another");
        let settle = thread(move |watched| {
            watched.settle(old, outcome, COOLDOWN);
            None
        });
        let next_round = thread(move |watched| {
            watched.settle(fails, Outcome::Failure, COOLDOWN);
            watched.acquire(2 * COOLDOWN)
        });
        let given = together(&watched, vec![settle, next_round]).into_iter().flatten().next();
        let probe = given.expect("the next round");
        assert_eq!(watched.breaker.view().state, State::HalfOpen, "decided by a probe of the last round");
        assert_eq!(watched.settle(probe, Outcome::Success, 2 * COOLDOWN), None, "one of two successes");
        watched.check_not_stuck();
    });
}

#[test]
fn an_old_probes_success_decides_nothing() {
    a_probe_of_the_last_round(Outcome::Success, "an old probe's success decides nothing");
}

#[test]
fn an_old_probes_failure_decides_nothing() {
    a_probe_of_the_last_round(Outcome::Failure, "an old probe's failure decides nothing");
}

#[test]
fn the_threshold_is_exact() {
    explore("the threshold is exact", Some(4), || {
        let watched = Watched::new(Settings { failure_threshold: 3, ..SETTINGS });
        let fail = || {
            thread(|watched| {
                let permit = watched.acquire(0).expect("two failures do not open");
                watched.settle(permit, Outcome::Failure, 0)
            })
        };
        let told: Vec<Transition> = together(&watched, vec![fail(), fail(), fail()]).into_iter().flatten().collect();
        assert_eq!(told.iter().map(|told| told.why).collect::<Vec<_>>(), [Why::InARow(3)]);
        assert_eq!(watched.breaker.view().state, State::Open);
        watched.check_not_stuck();
    });
}

#[test]
fn a_success_among_failures() {
    explore("a success among failures", EVERY, || {
        let watched = Watched::new(Settings { failure_threshold: 2, ..SETTINGS });
        let end = |outcome| {
            let permit = watched.acquire(0).expect("closed");
            thread(move |watched| watched.settle(permit, outcome, 0))
        };
        let threads = vec![end(Outcome::Failure), end(Outcome::Success), end(Outcome::Failure)];
        let told: Vec<Transition> = together(&watched, threads).into_iter().flatten().collect();
        // In some order of the three: F F S opens with exactly two, S F F too, F S F leaves a count of one.
        let view = watched.breaker.view();
        match told.as_slice() {
            [] => assert_eq!((view.state, view.failures), (State::Closed, 1)),
            [one] => assert_eq!((one.why, view.state), (Why::InARow(2), State::Open)),
            more => panic!("{more:?}"),
        }
        watched.check_not_stuck();
    });
}

#[test]
fn a_success_between_the_last_look_and_the_trip() {
    explore("a success against the failure that trips", EVERY, || {
        let watched = Watched::new(Settings { failure_threshold: 2, ..SETTINGS });
        let permit = watched.acquire(0).expect("closed");
        watched.settle(permit, Outcome::Failure, 0);
        let permit = watched.acquire(0).expect("closed");
        let fail = thread(move |watched| (watched.settle(permit, Outcome::Failure, 0), None));
        let permit = watched.acquire(0).expect("closed");
        let succeed =
            thread(move |watched| (watched.settle(permit, Outcome::Success, 0), Some(watched.breaker.view())));
        let ended = together(&watched, vec![fail, succeed]);
        let told: Vec<Transition> = ended.iter().filter_map(|(told, _)| *told).collect();
        let seen = ended[1].1.expect("looked at behind the success");
        let view = watched.breaker.view();
        match told.as_slice() {
            // The success came first: the failure is the first of a new count.
            [] => assert_eq!((view.state, view.failures), (State::Closed, 1)),
            // The failure came first: whoever succeeds afterwards sees that.
            [one] => assert_eq!((one.why, view.state, seen.state), (Why::InARow(2), State::Open, State::Open)),
            more => panic!("{more:?}"),
        }
        watched.check_not_stuck();
    });
}

/// Where a model begins.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// Closed, one failure before the threshold.
    Closed,
    /// The cooldown is over.
    Open,
    /// A probe is out whose lease is over; it is settled later or never.
    HalfOpen,
}

fn start(at: Start) -> (Arc<Watched>, Option<Permit>) {
    match at {
        Start::Closed => {
            let watched = Watched::new(Settings { failure_threshold: 2, ..SETTINGS });
            let permit = watched.acquire(0).expect("closed");
            watched.settle(permit, Outcome::Failure, 0);
            (watched, None)
        }
        Start::Open => (Watched::opened(SETTINGS), None),
        Start::HalfOpen => {
            let watched = Watched::opened(SETTINGS);
            let probe = watched.acquire(COOLDOWN - LEASE + 50);
            (watched, probe)
        }
    }
}

const OUTCOMES: [Outcome; 3] = [Outcome::Success, Outcome::Failure, Outcome::Neutral];

#[test]
fn never_stuck() {
    const NOW: u64 = COOLDOWN + LEASE;
    for at in [Start::Closed, Start::Open, Start::HalfOpen] {
        for one in OUTCOMES {
            for other in OUTCOMES {
                explore(&format!("never stuck: {at:?}, {one:?}, {other:?}"), EVERY, move || {
                    let (watched, held) = start(at);
                    let end = |outcome| {
                        thread(move |watched: &Watched| {
                            if let Some(permit) = watched.acquire(NOW) {
                                watched.settle(permit, outcome, NOW);
                            }
                        })
                    };
                    together(&watched, vec![end(one), end(other)]);
                    // The late probe's permit is lost for good, as in a build without the assertion.
                    std::mem::forget(held);
                    watched.check_not_stuck();
                });
            }
        }
    }
}

#[test]
fn three_never_stuck() {
    const NOW: u64 = COOLDOWN + LEASE;
    for at in [Start::Closed, Start::Open, Start::HalfOpen] {
        explore(&format!("never stuck: {at:?}, three outcomes"), EVERY, move || {
            let (watched, held) = start(at);
            let end = |outcome, held: Option<Permit>| {
                thread(move |watched: &Watched| {
                    if let Some(permit) = held {
                        watched.settle(permit, outcome, NOW);
                    }
                    if let Some(permit) = watched.acquire(NOW) {
                        watched.settle(permit, outcome, NOW);
                    }
                })
            };
            let threads = vec![end(Outcome::Failure, None), end(Outcome::Neutral, held), end(Outcome::Success, None)];
            together(&watched, threads);
            watched.check_not_stuck();
        });
    }
}

/// Health checks against a request, from every state.
fn checks(at: Start, outcome: Outcome) {
    const NOW: u64 = COOLDOWN + LEASE;
    explore(&format!("checks: {at:?}, {outcome:?}"), EVERY, move || {
        let (watched, held) = start(at);
        let request = thread(move |watched: &Watched| {
            if let Some(permit) = held.or_else(|| watched.acquire(NOW)) {
                watched.settle(permit, outcome, NOW);
            }
        });
        let passed = thread(|watched: &Watched| watched.check_passed());
        let failed = thread(|watched: &Watched| watched.check_failed(NOW));
        together(&watched, vec![request, passed, failed]);
        let view = watched.breaker.view();
        assert!(view.state != State::Closed || view.failures <= 2);
        watched.check_told();
        // Whatever was last: a check decides over everything that began before it.
        watched.check_failed(NOW);
        if watched.breaker.view().state == State::Open {
            assert!(!watched.breaker.available(NOW + COOLDOWN - 1, &SETTINGS), "the cooldown begins anew");
        }
        watched.check_passed();
        assert_eq!(watched.breaker.view(), Breaker::new(0).view());
        watched.check_not_stuck();
    });
}

#[test]
fn checks_against_requests() {
    for at in [Start::Closed, Start::Open, Start::HalfOpen] {
        for outcome in OUTCOMES {
            checks(at, outcome);
        }
    }
}

#[test]
fn a_passed_check_ends_the_round() {
    explore("a passed check ends the round", EVERY, || {
        let watched = Watched::opened(SETTINGS);
        let probe = watched.acquire(COOLDOWN).expect("the probe");
        let settle = thread(move |watched: &Watched| watched.settle(probe, Outcome::Failure, COOLDOWN));
        let passed = thread(|watched: &Watched| {
            watched.check_passed();
            None
        });
        together(&watched, vec![settle, passed]);
        // Before the check the probe re-opens and the check closes; behind it, it is of a round that is over.
        assert_eq!(watched.breaker.view(), Breaker::new(0).view());
        watched.check_not_stuck();
    });
}

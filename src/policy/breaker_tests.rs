//! Tests of the breaker, one rule each. They stand apart from it so that a model checker can include its file.

use super::breaker::*;

const SETTINGS: Settings = Settings::DEFAULT;

fn fail(breaker: &Breaker, now_ms: u64) -> Option<Transition> {
    let grant = breaker.acquire(now_ms, SETTINGS.lease_ms, &SETTINGS).expect("available");
    breaker.settle(grant.permit, Outcome::Failure, now_ms, &SETTINGS)
}

fn opened() -> Breaker {
    let breaker = Breaker::new(0);
    for _ in 0..4 {
        assert_eq!(fail(&breaker, 0), None);
    }
    let transition = fail(&breaker, 0).expect("the fifth opens");
    assert_eq!(
        transition,
        Transition { from: State::Closed, to: State::Open, why: Why::InARow(5), cooldown_ms: 60_000 }
    );
    breaker
}

#[test]
fn the_fifth_failure_in_a_row_opens() {
    let breaker = opened();
    assert!(!breaker.available(59_999, &SETTINGS) && breaker.acquire(59_999, SETTINGS.lease_ms, &SETTINGS).is_none());
    assert_eq!(breaker.view().probe_at_ms, Some(60_000));
}

#[test]
fn a_success_begins_the_count_anew() {
    let breaker = Breaker::new(0);
    for _ in 0..4 {
        assert_eq!(fail(&breaker, 0), None);
    }
    let grant = breaker.acquire(0, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert_eq!(breaker.settle(grant.permit, Outcome::Success, 0, &SETTINGS), None);
    for _ in 0..4 {
        assert_eq!(fail(&breaker, 0), None);
    }
    assert_eq!(breaker.view().state, State::Closed);
}

#[test]
fn one_probe_decides() {
    let breaker = opened();
    let probe = breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert!(probe.permit.is_probe());
    assert!(breaker.acquire(60_001, SETTINGS.lease_ms, &SETTINGS).is_none() && !breaker.available(60_001, &SETTINGS));
    let closed = breaker.settle(probe.permit, Outcome::Success, 60_002, &SETTINGS).unwrap();
    assert_eq!((closed.from, closed.to), (State::HalfOpen, State::Closed));
    let grant = breaker.acquire(60_003, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert!(!grant.permit.is_probe());
    breaker.settle(grant.permit, Outcome::Neutral, 60_003, &SETTINGS);
}

#[test]
fn a_failed_probe_opens_for_a_fresh_cooldown() {
    let breaker = opened();
    let probe = breaker.acquire(60_500, SETTINGS.lease_ms, &SETTINGS).unwrap();
    breaker.settle(probe.permit, Outcome::Failure, 61_000, &SETTINGS).unwrap();
    assert!(!breaker.available(120_999, &SETTINGS) && breaker.available(121_000, &SETTINGS));
}

#[test]
fn a_neutral_probe_frees_the_lease() {
    let breaker = opened();
    let probe = breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert_eq!(breaker.settle(probe.permit, Outcome::Neutral, 60_001, &SETTINGS), None);
    let next = breaker.acquire(60_001, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert!(next.permit.is_probe());
    breaker.settle(next.permit, Outcome::Success, 60_002, &SETTINGS);
}

#[test]
fn an_expired_lease_is_taken_over_and_still_counts() {
    let breaker = opened();
    let lost = breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    let late = breaker.acquire(92_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert_eq!(late.transition.unwrap().from, State::HalfOpen);
    assert_eq!(breaker.settle(lost.permit, Outcome::Neutral, 92_001, &SETTINGS), None);
    assert!(!breaker.available(92_002, &SETTINGS), "a late neutral does not free the lease of another");
    breaker.settle(late.permit, Outcome::Success, 92_002, &SETTINGS).expect("closes");

    let breaker = opened();
    let slow = breaker.acquire(60_000, 1000, &SETTINGS).unwrap();
    let second = breaker.acquire(61_000, 1000, &SETTINGS).unwrap();
    let third = breaker.acquire(62_000, 1000, &SETTINGS).unwrap();
    breaker.settle(slow.permit, Outcome::Success, 62_500, &SETTINGS).expect("it is of this round");
    assert_eq!(breaker.settle(second.permit, Outcome::Failure, 62_600, &SETTINGS), None, "the round is over");
    assert_eq!(breaker.settle(third.permit, Outcome::Neutral, 62_700, &SETTINGS), None);
    assert_eq!(breaker.view().state, State::Closed);

    let breaker = opened();
    let slow = breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    breaker.settle(slow.permit, Outcome::Success, 99_000, &SETTINGS).expect("nobody took over");
}

#[test]
fn a_short_lease_is_short_also_behind_a_long_one() {
    let breaker = opened();
    let long = breaker.acquire(60_000, 32_000, &SETTINGS).unwrap();
    assert_eq!(breaker.settle(long.permit, Outcome::Neutral, 60_001, &SETTINGS), None);
    let short = breaker.acquire(60_002, 1000, &SETTINGS).unwrap();
    assert_eq!(breaker.view().probe_at_ms, Some(61_002));
    let next = breaker.acquire(61_002, 1000, &SETTINGS).expect("its lease is over");
    assert_eq!(breaker.settle(short.permit, Outcome::Neutral, 61_003, &SETTINGS), None);
    assert!(!breaker.available(61_003, &SETTINGS), "the place is the next one's");
    breaker.settle(next.permit, Outcome::Success, 61_004, &SETTINGS).expect("closes");
}

#[test]
fn what_began_before_the_trip_decides_nothing() {
    let breaker = Breaker::new(0);
    let early = breaker.acquire(0, SETTINGS.lease_ms, &SETTINGS).unwrap();
    for _ in 0..5 {
        fail(&breaker, 0);
    }
    let probe = breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).unwrap();
    assert_eq!(breaker.settle(early.permit, Outcome::Success, 60_001, &SETTINGS), None);
    assert_eq!(breaker.view().state, State::HalfOpen);
    breaker.settle(probe.permit, Outcome::Failure, 60_002, &SETTINGS);
}

#[test]
fn five_means_five_on_many_threads() {
    for _ in 0..200 {
        let breaker = Breaker::new(0);
        let opened: usize = std::thread::scope(|scope| {
            let shards: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..3)
                            .filter_map(|_| breaker.acquire(0, SETTINGS.lease_ms, &SETTINGS))
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
                .map(|_| {
                    scope.spawn(|| breaker.acquire(60_000, SETTINGS.lease_ms, &SETTINGS).map(|grant| grant.permit))
                })
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

fn take(breaker: &Breaker, now_ms: u64, settings: &Settings) -> Grant {
    breaker.acquire(now_ms, settings.lease_ms, settings).expect("available")
}

fn end(breaker: &Breaker, outcome: Outcome, now_ms: u64, settings: &Settings) -> Option<Transition> {
    let grant = take(breaker, now_ms, settings);
    breaker.settle(grant.permit, outcome, now_ms, settings)
}

#[test]
fn several_probes_at_once_and_as_many_successes_as_it_takes() {
    let settings =
        Settings { failure_threshold: 1, cooldown_ms: 100, half_open_probes: 2, success_threshold: 3, ..SETTINGS };
    let breaker = Breaker::new(0);
    end(&breaker, Outcome::Failure, 0, &settings).expect("opens");
    let first = take(&breaker, 100, &settings);
    let second = take(&breaker, 100, &settings);
    assert!(first.transition.is_some() && second.transition.is_none(), "one change of state for two probes");
    assert!(breaker.acquire(100, 1000, &settings).is_none(), "two are out");
    assert_eq!(breaker.settle(first.permit, Outcome::Success, 101, &settings), None);
    assert_eq!(end(&breaker, Outcome::Neutral, 101, &settings), None, "its place is free again");
    assert_eq!(end(&breaker, Outcome::Success, 101, &settings), None);
    let closed = breaker.settle(second.permit, Outcome::Success, 102, &settings).expect("the third closes");
    assert_eq!((closed.to, closed.why), (State::Closed, Why::ProbesSucceeded(3)));
}

#[test]
fn the_cooldown_grows_with_each_reopening_and_is_short_again_after_a_close() {
    let settings = Settings { failure_threshold: 1, cooldown_ms: 100, backoff: 200, max_cooldown_ms: 350, ..SETTINGS };
    let breaker = Breaker::new(0);
    let mut now = 0;
    for expected in [100, 200, 350, 350] {
        let opened = end(&breaker, Outcome::Failure, now, &settings).expect("opens");
        assert_eq!(opened.cooldown_ms, expected);
        assert!(!breaker.available(now + expected - 1, &settings));
        now += expected;
    }
    end(&breaker, Outcome::Success, now, &settings).expect("closes");
    assert_eq!(end(&breaker, Outcome::Failure, now, &settings).expect("opens").cooldown_ms, 100);
}

#[test]
fn jitter_adds_at_most_its_share_and_differs() {
    let settings = Settings { failure_threshold: 1, cooldown_ms: 1000, jitter: 2000, ..SETTINGS };
    let cooldowns: Vec<u64> = (0..50)
        .map(|seed| end(&Breaker::new(seed), Outcome::Failure, 7, &settings).expect("opens").cooldown_ms)
        .collect();
    assert!(cooldowns.iter().all(|cooldown| (1000..=1200).contains(cooldown)), "{cooldowns:?}");
    assert!(cooldowns.iter().any(|cooldown| *cooldown != cooldowns[0]));
}

#[test]
fn observing_counts_and_lets_everything_pass() {
    let settings = Settings { mode: Mode::Observe, failure_threshold: 2, ..SETTINGS };
    let breaker = Breaker::new(0);
    assert_eq!(end(&breaker, Outcome::Failure, 0, &settings), None);
    assert_eq!(end(&breaker, Outcome::Failure, 0, &settings).expect("would open").to, State::Open);
    assert!(breaker.available(1, &settings));
    assert_eq!(end(&breaker, Outcome::Success, 1, &settings), None, "what passes an open breaker decides nothing");
    assert_eq!(end(&breaker, Outcome::Success, 60_000, &settings).expect("the probe closes").to, State::Closed);
}

#[test]
fn a_breaker_that_is_off_does_nothing() {
    let settings = Settings { mode: Mode::Off, failure_threshold: 1, ..SETTINGS };
    let breaker = Breaker::new(0);
    for _ in 0..3 {
        assert_eq!(end(&breaker, Outcome::Failure, 0, &settings), None);
    }
    assert_eq!(breaker.view().state, State::Closed);
}

#[test]
fn an_early_probe_does_not_lengthen_the_next_cooldown() {
    let settings = Settings { failure_threshold: 1, cooldown_ms: 100, backoff: 200, max_cooldown_ms: 1000, ..SETTINGS };
    let breaker = Breaker::new(0);
    end(&breaker, Outcome::Failure, 0, &settings).expect("opens");
    let early = breaker.acquire_early(10, 1000, &settings).expect("a probe");
    assert_eq!(early.transition.expect("half-open").why, Why::NobodyLeft);
    assert!(breaker.acquire_early(11, 1000, &settings).is_none(), "one at a time");
    let again = breaker.settle(early.permit, Outcome::Failure, 20, &settings).expect("opens again");
    assert_eq!(again.cooldown_ms, 100);
    assert!(!breaker.available(119, &settings) && breaker.available(120, &settings));
}

#[test]
fn the_share_of_failures_opens_when_enough_was_seen() {
    let rates = Rates { window_ms: 1000, min_requests: 10, failure: Some(5000), slow: None };
    let settings = Settings { failure_threshold: 100, rates: Some(rates), ..SETTINGS };
    let breaker = Breaker::new(0);
    for _ in 0..4 {
        assert_eq!(end(&breaker, Outcome::Failure, 0, &settings), None);
        assert_eq!(end(&breaker, Outcome::Success, 0, &settings), None);
    }
    assert_eq!(end(&breaker, Outcome::Success, 0, &settings), None);
    let opened = end(&breaker, Outcome::Failure, 0, &settings).expect("five of ten");
    assert!(matches!(opened.why, Why::FailureRate(counts) if (counts.failed, counts.total) == (5, 10)));

    // What is older than the window is forgotten.
    let breaker = Breaker::new(0);
    for at in 0..99 {
        assert_eq!(end(&breaker, Outcome::Failure, at * 200, &settings), None, "{at}");
    }
}

#[test]
fn a_window_of_another_length_begins_empty() {
    let of = |window_ms| {
        let rates = Rates { window_ms, min_requests: 2, failure: Some(1), slow: None };
        Settings { failure_threshold: 100, rates: Some(rates), ..SETTINGS }
    };
    let breaker = Breaker::new(0);
    assert_eq!(end(&breaker, Outcome::Failure, 5000, &of(1000)), None);
    // Ten times the length at ten times the moment: the same tenth, counted from the start.
    assert_eq!(end(&breaker, Outcome::Failure, 50_000, &of(10_000)), None);
    assert!(end(&breaker, Outcome::Failure, 50_000, &of(10_000)).is_some());
}

#[test]
fn a_neutral_probe_never_closes() {
    let settings = Settings { failure_threshold: 1, success_threshold: 2, ..SETTINGS };
    let breaker = Breaker::new(0);
    end(&breaker, Outcome::Failure, 0, &settings).expect("opens");
    assert_eq!(end(&breaker, Outcome::Success, 60_000, &settings), None, "one of two");
    // A reload has lowered the threshold: the next success closes, nothing less.
    assert_eq!(end(&breaker, Outcome::Neutral, 60_001, &SETTINGS), None);
    assert_eq!(end(&breaker, Outcome::Success, 60_002, &SETTINGS).expect("closes").why, Why::ProbesSucceeded(2));
}

#[test]
fn fewer_probes_after_a_reload() {
    let three = Settings { failure_threshold: 1, half_open_probes: 3, ..SETTINGS };
    let breaker = Breaker::new(0);
    end(&breaker, Outcome::Failure, 0, &three).expect("opens");
    let out: Vec<Grant> = [300, 200, 100].map(|lease| breaker.acquire(60_000, lease, &three).expect("a probe")).into();
    let [long, middle, short] = <[Grant; 3]>::try_from(out).expect("three");
    assert_eq!(breaker.settle(middle.permit, Outcome::Neutral, 60_050, &SETTINGS), None);
    assert!(!breaker.available(60_299, &SETTINGS) && breaker.available(60_300, &SETTINGS), "both must be over");
    breaker.settle(long.permit, Outcome::Neutral, 60_300, &SETTINGS);
    breaker.settle(short.permit, Outcome::Success, 60_301, &SETTINGS).expect("closes");
}

#[test]
fn slow_answers_open_and_a_slow_probe_does_not_close() {
    let rates = Rates { window_ms: 1000, min_requests: 4, failure: None, slow: Some(7500) };
    let settings = Settings { cooldown_ms: 100, rates: Some(rates), ..SETTINGS };
    let breaker = Breaker::new(0);
    for outcome in [Outcome::Slow, Outcome::Success, Outcome::Slow] {
        assert_eq!(end(&breaker, outcome, 0, &settings), None);
    }
    assert!(matches!(end(&breaker, Outcome::Slow, 0, &settings).expect("three of four").why, Why::SlowRate(_)));
    assert_eq!(end(&breaker, Outcome::Slow, 100, &settings).expect("opens again").to, State::Open);
    assert_eq!(end(&breaker, Outcome::Success, 200, &settings).expect("closes").to, State::Closed);
    assert_eq!(end(&breaker, Outcome::Slow, 201, &settings), None, "the window began anew");
}

#[test]
fn an_operator_holds_it_open_against_everything() {
    let breaker = Breaker::new(0);
    let before = take(&breaker, 0, &SETTINGS);
    let tripped = breaker.trip(0, None);
    assert_eq!((tripped.from, tripped.to, tripped.why), (State::Closed, State::Open, Why::Tripped));
    for mode in [Mode::Off, Mode::Observe, Mode::Enforce] {
        let settings = Settings { mode, ..SETTINGS };
        assert!(!breaker.available(1_000_000_000, &settings), "{mode:?}");
        assert!(breaker.acquire(1_000_000_000, 1000, &settings).is_none(), "{mode:?}");
    }
    assert!(breaker.acquire_early(5, 1000, &SETTINGS).is_none() && breaker.check_passed().is_none());
    assert_eq!(breaker.check_failed(5, &SETTINGS), None);
    assert_eq!(breaker.settle(before.permit, Outcome::Success, 6, &SETTINGS), None);
    assert!(breaker.view().held && breaker.view().probe_at_ms == Some(Breaker::FOR_EVER));
    assert_eq!(breaker.reset().expect("closes").why, Why::Reset);
    assert!(!breaker.view().held && breaker.available(7, &SETTINGS));
    assert_eq!(breaker.reset(), None, "it is closed");
}

#[test]
fn what_an_operator_opened_for_a_while_is_probed_afterwards() {
    let breaker = opened();
    assert_eq!(breaker.trip(10, Some(500)).from, State::Open);
    assert!(!breaker.available(509, &SETTINGS));
    let probe = take(&breaker, 510, &SETTINGS);
    assert!(probe.permit.is_probe());
    breaker.settle(probe.permit, Outcome::Success, 511, &SETTINGS).expect("closes");
    end(&breaker, Outcome::Failure, 512, &SETTINGS);
    assert_eq!(breaker.reset(), None);
    assert_eq!(breaker.view().failures, 0, "a reset of a closed one forgets its failures");
}

#[test]
fn health_checks_open_hold_and_close() {
    let breaker = Breaker::new(0);
    assert_eq!(breaker.check_passed(), None);
    assert_eq!(breaker.check_failed(0, &SETTINGS).expect("opens").why, Why::ChecksFailed);
    assert_eq!(breaker.check_failed(50_000, &SETTINGS), None);
    assert!(!breaker.available(109_999, &SETTINGS) && breaker.available(110_000, &SETTINGS));
    let probe = take(&breaker, 110_000, &SETTINGS);
    assert_eq!(breaker.check_passed().expect("closes").why, Why::ChecksSucceeded);
    assert_eq!(breaker.settle(probe.permit, Outcome::Failure, 110_001, &SETTINGS), None, "its round is over");
    assert_eq!(breaker.view().state, State::Closed);
}

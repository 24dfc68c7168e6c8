//! Tests of the policies, apart so that a model checker can include their file.

use super::balance::*;
use crate::ground::random::Random;
use std::collections::HashMap;

struct Service {
    policy: Policy,
    turns: Turns,
    cursor: Cursor,
    backup_cursor: Cursor,
    weights: Vec<u32>,
}

impl Service {
    fn new(policy: Policy, listed: &[(u16, u32, bool)]) -> Service {
        let weights = listed.iter().map(|each| each.1).collect();
        let (cursor, backup_cursor) = Default::default();
        Service { policy, turns: Turns::of(listed), cursor, backup_cursor, weights }
    }

    fn equal(policy: Policy, upstreams: u16) -> Service {
        Service::new(policy, &(0..upstreams).map(|at| (at, 1, false)).collect::<Vec<_>>())
    }

    fn pick(&self, random: &mut Random, tried: &Tried, key: u64, can: impl Fn(u16) -> bool) -> Option<u16> {
        self.pick_loaded(random, tried, key, |_| 0, can)
    }

    fn pick_loaded(
        &self,
        random: &mut Random,
        tried: &Tried,
        key: u64,
        load: impl Fn(u16) -> u64,
        can: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let draw = Draw {
            policy: self.policy,
            turns: &self.turns,
            cursor: &self.cursor,
            backup_cursor: &self.backup_cursor,
            tried,
            key: Some(key),
        };
        let seat = |at: u16| (key_of(&at.to_be_bytes()), self.weights[usize::from(at)]);
        pick(&draw, random, load, seat, |at, _| can(at).then_some(())).map(|(at, ())| at)
    }

    fn picks(&self, count: usize, can: impl Fn(u16) -> bool) -> Vec<u16> {
        let mut random = Random::new(7);
        (0..count).map(|nth| self.pick(&mut random, &Tried::default(), nth as u64, &can).expect("somebody")).collect()
    }

    fn shares(&self, count: usize, can: impl Fn(u16) -> bool) -> HashMap<u16, usize> {
        let mut shares = HashMap::new();
        self.picks(count, can).into_iter().for_each(|at| *shares.entry(at).or_insert(0) += 1);
        shares
    }
}

#[test]
fn turns_are_strict() {
    assert_eq!(Service::equal(Policy::RoundRobin, 3).picks(6, |_| true), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_skipped_upstream_does_not_double_its_neighbour() {
    assert_eq!(Service::equal(Policy::RoundRobin, 3).picks(6, |at| at != 2), [0, 1, 0, 1, 0, 1]);
}

#[test]
fn weights_are_exact_and_spread() {
    let service = Service::new(Policy::RoundRobin, &[(0, 4, false), (1, 2, false), (2, 0, false), (3, 1, false)]);
    assert_eq!(service.turns.main.len(), 7);
    assert_eq!(service.shares(700, |_| true), HashMap::from([(0, 400), (1, 200), (3, 100)]));
    let order = service.picks(7, |_| true);
    assert!(order.windows(3).all(|three| three != [0, 0, 0]), "{order:?}");
    let halves = Service::new(Policy::RoundRobin, &[(0, 100, false), (1, 100, false)]);
    assert_eq!(&*halves.turns.main, [0, 1], "what all weights share is divided away");
}

#[test]
fn weight_zero_is_never_taken() {
    for policy in Policy::ALL {
        let service = Service::new(policy, &[(0, 0, false), (1, 1, false)]);
        assert_eq!(service.shares(50, |_| true).len(), 1);
        let mut random = Random::new(1);
        assert_eq!(service.pick(&mut random, &Tried::default(), 1, |at| at == 0), None);
    }
}

#[test]
fn backups_serve_when_no_other_can_and_share() {
    for policy in Policy::ALL {
        let service = Service::new(policy, &[(0, 1, false), (1, 1, true), (2, 1, true)]);
        assert_eq!(service.shares(10, |_| true), HashMap::from([(0, 10)]));
        assert_eq!(service.shares(10, |at| at != 0), HashMap::from([(1, 5), (2, 5)]), "{policy:?}");
    }
}

#[test]
fn a_tried_upstream_is_the_last_resort_behind_a_backup() {
    for policy in Policy::ALL {
        let service = Service::new(policy, &[(0, 1, false), (1, 1, false), (2, 1, true)]);
        let mut random = Random::new(1);
        let mut tried = Tried::default();
        tried.add(0);
        assert_eq!(service.pick(&mut random, &tried, 5, |_| true), Some(1));
        tried.add(1);
        assert_eq!(service.pick(&mut random, &tried, 5, |_| true), Some(2));
        assert_eq!(service.pick(&mut random, &tried, 5, |at| at == 0), Some(0));
        assert_eq!(service.pick(&mut random, &tried, 5, |_| false), None);
    }
    let nobody = Service::equal(Policy::RoundRobin, 0);
    assert_eq!(nobody.pick(&mut Random::new(1), &Tried::default(), 1, |_| true), None);
}

#[test]
fn the_least_loaded_is_taken_and_equals_take_turns() {
    let service = Service::equal(Policy::LeastRequests, 3);
    let mut random = Random::new(1);
    let loads = [5, 2, 9];
    let mut pick = |can: &dyn Fn(u16) -> bool| {
        service.pick_loaded(&mut random, &Tried::default(), 0, |at| loads[usize::from(at)], can)
    };
    assert_eq!(pick(&|_| true), Some(1));
    assert_eq!(pick(&|at| at != 1), Some(0));
    assert_eq!(pick(&|at| at == 2), Some(2));
    assert_eq!(service.shares(300, |_| true), HashMap::from([(0, 100), (1, 100), (2, 100)]));
}

#[test]
fn two_choices_avoid_the_loaded_one() {
    let service = Service::equal(Policy::TwoChoices, 3);
    let mut random = Random::new(1);
    let picked: Vec<u16> = (0..100)
        .filter_map(|_| service.pick_loaded(&mut random, &Tried::default(), 0, |at| u64::from(at == 0), |_| true))
        .collect();
    assert!(picked.len() == 100 && !picked.contains(&0));
}

#[test]
fn chance_follows_the_weights() {
    for policy in [Policy::Random, Policy::Hash] {
        let service = Service::new(policy, &[(0, 1, false), (1, 3, false)]);
        let shares = service.shares(40_000, |_| true);
        assert!((9_500..10_500).contains(&shares[&0]), "{policy:?} {shares:?}");
    }
}

#[test]
fn a_key_stays_and_only_keys_of_the_missing_move() {
    let service = Service::equal(Policy::Hash, 10);
    let before = service.picks(2000, |_| true);
    assert_eq!(before, service.picks(2000, |_| true));
    let without = service.picks(2000, |at| at != 3);
    for (old, new) in before.iter().zip(&without) {
        assert!(old == new || *old == 3, "a key of {old} moved to {new}");
    }
    let moved: HashMap<u16, usize> =
        before.iter().zip(&without).filter(|(old, _)| **old == 3).fold(HashMap::new(), |mut all, (_, new)| {
            *all.entry(*new).or_insert(0) += 1;
            all
        });
    assert_eq!(moved.len(), 9, "the keys of a missing one are spread over all others: {moved:?}");
}

#[test]
fn threads_share_the_turns() {
    let service = Service::equal(Policy::RoundRobin, 3);
    let counts: Vec<[u32; 3]> = std::thread::scope(|scope| {
        let shards: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut counts = [0; 3];
                    for at in service.picks(3000, |_| true) {
                        counts[usize::from(at)] += 1;
                    }
                    counts
                })
            })
            .collect();
        shards.into_iter().map(|shard| shard.join().unwrap()).collect()
    });
    let totals = counts.iter().fold([0; 3], |sum, each| [0, 1, 2].map(|at| sum[at] + each[at]));
    assert_eq!(totals, [4000; 3]);
}

#[test]
fn a_reload_goes_on_with_the_next_survivor() {
    // a b c, next is b; b is removed: next is c, which stands at turn 1 of a c.
    let survivor = |old| [Some(0), None, Some(1)][usize::from(old)];
    assert_eq!(carry_over(7, &[0, 1, 2], 2, survivor), 1);
    assert_eq!(carry_over(7, &[0, 1, 2], 2, |_: u16| None), 0);
}

#[test]
fn turns_that_weights_need() {
    assert_eq!(turns_needed([100, 200, 0].into_iter()), 3);
    assert_eq!(turns_needed([1000, 999].into_iter()), 1999);
    assert_eq!(turns_needed([0, 0].into_iter()), 0);
}

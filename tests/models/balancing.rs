//! Models of the cursor: turns are consecutive, none is lost, none is taken twice.
//!
//! Must not know: what a ticket is.

use super::*;
use ground::random::Random;
use policy::balance::{Cursor, Draw, Policy, Tried, Turns, pick};

struct Service {
    turns: Turns,
    cursor: Cursor,
    backup_cursor: Cursor,
}

impl Service {
    fn new(listed: &[(u16, u32, bool)]) -> Arc<Service> {
        let (cursor, backup_cursor) = (Cursor::starting_at(0), Cursor::starting_at(0));
        Arc::new(Service { turns: Turns::of(listed), cursor, backup_cursor })
    }

    fn pick(&self, can: impl Fn(u16) -> bool) -> Option<u16> {
        let draw = Draw {
            policy: Policy::RoundRobin,
            turns: &self.turns,
            cursor: &self.cursor,
            backup_cursor: &self.backup_cursor,
            tried: &Tried::default(),
            key: None,
        };
        pick(&draw, &mut Random::new(0), |_| 0, |_| (0, 1), |at, _| can(at).then_some(())).map(|(at, ())| at)
    }
}

/// What each of three threads picked in two picks.
fn picked_by_three(service: &Arc<Service>, can: impl Fn(u16) -> bool + Copy + Send + 'static) -> Vec<Vec<u16>> {
    let twice = move |service: &Service| (0..2).filter_map(|_| service.pick(can)).collect::<Vec<_>>();
    let others: Vec<_> = (0..2)
        .map(|_| {
            let service = Arc::clone(service);
            loom::thread::spawn(move || twice(&service))
        })
        .collect();
    let own = twice(service);
    others.into_iter().map(|other| other.join().unwrap()).chain([own]).collect()
}

fn times(picked: &[Vec<u16>], at: u16) -> usize {
    picked.iter().flatten().filter(|picked| **picked == at).count()
}

#[test]
fn turns_are_consecutive() {
    explore("turns are consecutive", EVERY, || {
        // With as many upstreams as picks, no turn may come twice; then the first is next.
        let service = Service::new(&[0, 1, 2, 3, 4, 5].map(|at| (at, 1, false)));
        let picked = picked_by_three(&service, |_| true);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| times(&picked, at)), [1; 6], "{picked:?}");
        assert!(picked.iter().all(|own| own[0] < own[1]), "a thread's own turns come in order: {picked:?}");
        assert_eq!(service.cursor.upcoming(), 6);
        assert_eq!(service.pick(|_| true), Some(0));
    });
}

#[test]
fn weights_are_exact() {
    explore("weights are exact", EVERY, || {
        let service = Service::new(&[(0, 2, false), (1, 1, false)]);
        let picked = picked_by_three(&service, |_| true);
        assert_eq!([0, 1].map(|at| times(&picked, at)), [4, 2], "{picked:?}");
    });
}

#[test]
fn whom_nobody_can_take_costs_its_turns_only() {
    explore("who cannot be taken costs its turns only", Some(3), || {
        let service = Service::new(&[(0, 1, false), (1, 1, false), (2, 1, true)]);
        let picked = picked_by_three(&service, |at| at != 0);
        assert_eq!([0, 1, 2].map(|at| times(&picked, at)), [0, 6, 0], "nobody finds nobody: {picked:?}");
    });
}

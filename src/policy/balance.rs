//! Strict round robin: one cursor per service for the whole process, alone on its cache line.
//!
//! Requests 1, 2, 3 … take turns 1, 2, 3 …, whatever connection or shard they come from. A pick draws a
//! ticket; the ticket modulo the number of turns names an upstream. One that cannot be taken costs its
//! turn only: the pick draws again, so that its neighbour's share does not double.
//!
//! Must not know: why an upstream cannot be taken.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where a service's round robin stands.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cursor {
    ticket: AtomicU64,
}

impl Cursor {
    /// A cursor whose first ticket is `ticket`.
    pub fn starting_at(ticket: u64) -> Cursor {
        Cursor { ticket: AtomicU64::new(ticket) }
    }

    /// The ticket that the next draw gives.
    pub fn upcoming(&self) -> u64 {
        self.ticket.load(Ordering::Relaxed)
    }

    fn draw(&self) -> u64 {
        self.ticket.fetch_add(1, Ordering::Relaxed)
    }
}

/// Upstreams that an exchange has tried, as positions in its service. Fixed room: attempts are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    positions: [u16; MAX_TRIES],
    len: u8,
}

/// More tries than this no exchange has.
pub const MAX_TRIES: usize = 16;

impl Tried {
    /// Notes a try.
    pub fn add(&mut self, position: u16) {
        debug_assert!(usize::from(self.len) < MAX_TRIES);
        if let Some(slot) = self.positions.get_mut(usize::from(self.len)) {
            *slot = position;
            self.len += 1;
        }
    }

    /// Whether an upstream was tried.
    pub fn contains(&self, position: u16) -> bool {
        self.positions[..usize::from(self.len)].contains(&position)
    }

    /// Tries so far.
    pub fn count(&self) -> u8 {
        self.len
    }
}

/// Picks an upstream of a service with `upstreams` of them in `turns`: the first that `take` gives.
pub fn pick<T>(
    cursor: &Cursor,
    turns: &[u16],
    upstreams: usize,
    tried: &Tried,
    mut take: impl FnMut(u16) -> Option<T>,
) -> Option<(u16, T)> {
    if turns.is_empty() {
        return None;
    }
    for _ in 0..2 * upstreams {
        let turn = turns[(cursor.draw() % turns.len() as u64) as usize];
        if !tried.contains(turn)
            && let Some(taken) = take(turn)
        {
            return Some((turn, taken));
        }
    }
    let in_order = |again: bool| (0..upstreams as u16).filter(move |position| tried.contains(*position) == again);
    in_order(false).chain(in_order(true)).find_map(|position| take(position).map(|taken| (position, taken)))
}

/// The first ticket after a reload that changed the turns: it names the next upstream that survived.
/// `survivor` says at which turn of the new table an old upstream stands.
pub fn carry_over(upcoming: u64, old_turns: &[u16], new_len: usize, survivor: impl Fn(u16) -> Option<usize>) -> u64 {
    if old_turns.is_empty() || new_len == 0 {
        return 0;
    }
    let from = (upcoming % old_turns.len() as u64) as usize;
    let next = old_turns.iter().cycle().skip(from).take(old_turns.len()).find_map(|old| survivor(*old));
    next.unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Tried = Tried { positions: [0; MAX_TRIES], len: 0 };

    #[test]
    fn turns_are_strict() {
        let cursor = Cursor::default();
        let order: Vec<u16> = (0..6).map(|_| pick(&cursor, &[0, 1, 2], 3, &NONE, |_| Some(())).unwrap().0).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_skipped_upstream_does_not_double_its_neighbour() {
        let cursor = Cursor::default();
        let order: Vec<u16> =
            (0..6).map(|_| pick(&cursor, &[0, 1, 2], 3, &NONE, |at| (at != 2).then_some(())).unwrap().0).collect();
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_tried_upstream_is_the_last_resort() {
        let cursor = Cursor::default();
        let mut tried = Tried::default();
        tried.add(0);
        assert_eq!(pick(&cursor, &[0, 1], 2, &tried, |_| Some(())).unwrap().0, 1);
        assert_eq!(pick(&cursor, &[0, 1], 2, &tried, |at| (at == 0).then_some(())).unwrap().0, 0);
        assert_eq!(pick(&cursor, &[0, 1], 2, &tried, |_| None::<()>), None);
        assert_eq!(pick(&cursor, &[], 0, &tried, |_| Some(())), None);
    }

    #[test]
    fn threads_share_the_turns() {
        let cursor = Cursor::default();
        let counts: Vec<[u32; 3]> = std::thread::scope(|scope| {
            let shards: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut counts = [0; 3];
                        for _ in 0..3000 {
                            counts[usize::from(pick(&cursor, &[0, 1, 2], 3, &NONE, |_| Some(())).unwrap().0)] += 1;
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
}

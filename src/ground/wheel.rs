//! Alarms of a shard: a hierarchical timing wheel with intrusive lists, O(1) to arm, move and cancel.
//!
//! An alarm is a wake-up, not a verdict: it rings at its moment or up to one granule later, or early when
//! it was armed farther away than the wheel reaches. Whoever is woken looks at its own deadline and arms
//! again when that has not come. So a deadline that moves away costs nothing (Varghese and Lauck 1987).
//!
//! Must not know: what an alarm is for.

use crate::ground::tick::Tick;
use std::time::Duration;

/// Microseconds of one granule. Four milliseconds are finer than any timeout that a user sets, and let
/// alarms of one turn ring together.
const GRANULE_US: u64 = 4096;
const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Granules of one whole turn: 64^4, about 19 hours.
const TURN: u64 = 1 << (SLOT_BITS * LEVELS as u32);
/// How far the wheel reaches: one slot of the highest level less than a turn, or what comes a turn later
/// would share the slot of what comes now.
const REACH: u64 = TURN - TURN / SLOTS as u64;
const NONE: u32 = u32::MAX;

/// Names an armed alarm. It is spent when the alarm rings or is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm(u32);

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: u32,
    next: u32,
    slot: u32,
    at: u64,
    key: u64,
}

/// The alarms of one shard.
#[derive(Debug)]
pub struct Wheel {
    nodes: Vec<Node>,
    free: u32,
    heads: [u32; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    elapsed: u64,
    armed: usize,
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel {
            nodes: Vec::new(),
            free: NONE,
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            elapsed: 0,
            armed: 0,
        }
    }
}

impl Wheel {
    /// How much later than its moment an alarm may ring.
    pub const GRANULE: Duration = Duration::from_micros(GRANULE_US);

    /// Alarms that are armed.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Arms an alarm that gives `key` back when it rings.
    pub fn arm(&mut self, key: u64, at: Tick) -> Alarm {
        let node = Node { previous: NONE, next: NONE, slot: 0, at: self.granule(at), key };
        let index = if self.free == NONE {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        self.armed += 1;
        self.link(index);
        Alarm(index)
    }

    /// When the alarm rings, rounded up to a granule.
    pub fn at(&self, alarm: Alarm) -> Tick {
        Tick::from_us(self.nodes[alarm.0 as usize].at.saturating_mul(GRANULE_US))
    }

    /// Lets the alarm ring at another moment.
    pub fn move_to(&mut self, alarm: Alarm, at: Tick) {
        let at = self.granule(at);
        self.unlink(alarm.0);
        self.nodes[alarm.0 as usize].at = at;
        self.link(alarm.0);
    }

    /// Takes the alarm back.
    pub fn cancel(&mut self, alarm: Alarm) {
        self.unlink(alarm.0);
        self.release(alarm.0);
    }

    /// The moment at which [`Wheel::advance`] is wanted next.
    pub fn next(&self) -> Option<Tick> {
        self.next_slot().map(|(_, _, start)| Tick::from_us(start.saturating_mul(GRANULE_US)))
    }

    /// Rings everything that is due: its keys are pushed to `rang`.
    pub fn advance(&mut self, now: Tick, rang: &mut Vec<u64>) {
        let now = now.us() / GRANULE_US;
        while let Some((level, slot, start)) = self.next_slot() {
            if start > now {
                break;
            }
            self.elapsed = start;
            let mut index = std::mem::replace(&mut self.heads[level * SLOTS + slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let Node { next, at, key, .. } = self.nodes[index as usize];
                if at <= now {
                    self.release(index);
                    rang.push(key);
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    fn granule(&self, at: Tick) -> u64 {
        let at = at.us().div_ceil(GRANULE_US);
        // An alarm for the current granule rings with the next one: its slot here has been emptied.
        at.clamp(self.elapsed + 1, self.elapsed + REACH)
    }

    /// The first occupied slot, as (level, slot, granule at which it begins). Every alarm of a lower level
    /// rings before those of a higher one, so the first hit is the earliest.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        (0..LEVELS).find(|level| self.occupied[*level] != 0).map(|level| {
            let shift = SLOT_BITS * level as u32;
            let current = (self.elapsed >> shift) as u32 & (SLOTS as u32 - 1);
            let distance = self.occupied[level].rotate_right(current).trailing_zeros();
            let slot = (current + distance) as usize % SLOTS;
            let turn = self.elapsed >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
            let start = turn + ((slot as u64) << shift);
            // Only the highest level can wrap around.
            let start = if start < self.elapsed { start + (1 << (shift + SLOT_BITS)) } else { start };
            (level, slot, start)
        })
    }

    fn link(&mut self, index: u32) {
        let at = self.nodes[index as usize].at;
        let differing = ((self.elapsed ^ at) | (SLOTS as u64 - 1)).min(TURN - 1);
        let level = (differing.ilog2() / SLOT_BITS) as usize;
        let slot = (at >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let place = level * SLOTS + slot;
        let head = self.heads[place];
        let node = &mut self.nodes[index as usize];
        node.previous = NONE;
        node.next = head;
        node.slot = place as u32;
        if head != NONE {
            self.nodes[head as usize].previous = index;
        }
        self.heads[place] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Node { previous, next, slot, .. } = self.nodes[index as usize];
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
            return;
        }
        let place = slot as usize;
        self.heads[place] = next;
        if next == NONE {
            self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        }
    }

    fn release(&mut self, index: u32) {
        self.nodes[index as usize].next = self.free;
        self.free = index;
        self.armed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Tick {
        Tick::from_us(ms * 1000)
    }

    #[test]
    fn it_rings_once_and_not_before_its_moment() {
        let mut wheel = Wheel::default();
        wheel.arm(7, ms(500));
        let mut rang = Vec::new();
        wheel.advance(ms(499), &mut rang);
        assert!(rang.is_empty());
        wheel.advance(ms(505), &mut rang);
        assert_eq!(rang, [7]);
        wheel.advance(ms(90_000), &mut rang);
        assert_eq!(rang, [7]);
        assert_eq!((wheel.armed(), wheel.next()), (0, None));
    }

    #[test]
    fn what_lies_beyond_its_reach_rings_early() {
        let mut wheel = Wheel::default();
        wheel.arm(1, Tick::NEVER);
        let mut rang = Vec::new();
        wheel.advance(ms(1000 * 3600 * 24), &mut rang);
        assert_eq!(rang, [1]);
    }

    #[derive(Clone, Debug)]
    enum Move {
        Arm(u64),
        Shift(usize, u64),
        Cancel(usize),
        Advance(u64),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let span = prop_oneof![0u64..300, 0u64..20_000, 0u64..2_000_000, 0u64..100_000_000];
        let one = prop_oneof![
            span.clone().prop_map(Move::Arm),
            (any::<usize>(), span.clone()).prop_map(|(which, span)| Move::Shift(which, span)),
            any::<usize>().prop_map(Move::Cancel),
            span.prop_map(Move::Advance),
        ];
        prop::collection::vec(one, 1..200)
    }

    /// What is farther away than the wheel reaches rings there.
    fn reached(now: Tick, at: Tick) -> Tick {
        at.min(Tick::from_us((now.us() / GRANULE_US + REACH) * GRANULE_US))
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(moves in moves()) {
            let mut wheel = Wheel::default();
            let mut model: Vec<(u64, Alarm, Tick)> = Vec::new();
            let mut now = Tick::START;
            let mut key = 0;
            for one in moves {
                match one {
                    Move::Arm(span) => {
                        key += 1;
                        let at = Tick::from_us(now.us() + span * 1000);
                        model.push((key, wheel.arm(key, at), reached(now, at)));
                    }
                    Move::Shift(which, span) if !model.is_empty() => {
                        let which = which % model.len();
                        let at = Tick::from_us(now.us() + span * 1000);
                        wheel.move_to(model[which].1, at);
                        model[which].2 = reached(now, at);
                    }
                    Move::Cancel(which) if !model.is_empty() => {
                        wheel.cancel(model.swap_remove(which % model.len()).1);
                    }
                    Move::Advance(span) => {
                        now = Tick::from_us(now.us() + span * 1000);
                        let mut rang = Vec::new();
                        wheel.advance(now, &mut rang);
                        for key in &rang {
                            let at = model.iter().position(|entry| entry.0 == *key);
                            let entry = model.swap_remove(at.expect("only armed alarms ring"));
                            prop_assert!(entry.2 <= now, "rang before its moment");
                        }
                        for entry in &model {
                            prop_assert!(entry.2.us() + 2 * GRANULE_US > now.us(), "did not ring in time");
                        }
                        if let (Some(next), Some(first)) = (wheel.next(), model.iter().map(|entry| entry.2).min()) {
                            prop_assert!(next.us() <= first.us() + 2 * GRANULE_US, "would wake too late");
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(wheel.armed(), model.len());
            }
        }
    }
}

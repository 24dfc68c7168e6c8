//! Which upstream comes next.
//!
//! Round robin: requests 1, 2, 3 … take turns 1, 2, 3 …, whatever connection or shard they come from. A pick
//! draws a ticket; the ticket modulo the number of turns names an upstream. One that cannot be taken costs its
//! turn only: the pick draws again, so that its neighbour's share does not double. Weights are a longer table
//! of turns; backups are a second table, for when the first has nobody. The other policies choose by load, by
//! chance or by a key, and fall back in the same way.
//!
//! Must not know: why an upstream cannot be taken.

use crate::ground::random::Random;
use crate::ground::sync::{AtomicU64, Ordering};

/// Where a round robin stands.
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

/// How an upstream is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In turns.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way for its weight; in turns among equals.
    LeastRequests,
    /// The less loaded of two that chance names.
    TwoChoices,
    /// By chance.
    Random,
    /// By a key: the same key goes to the same upstream, and when one leaves, only its keys move.
    Hash,
}

impl Policy {
    /// Every policy, the default first.
    pub const ALL: [Policy; 5] =
        [Policy::RoundRobin, Policy::LeastRequests, Policy::TwoChoices, Policy::Random, Policy::Hash];

    /// The word of the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round_robin",
            Policy::LeastRequests => "least_requests",
            Policy::TwoChoices => "p2c",
            Policy::Random => "random",
            Policy::Hash => "hash",
        }
    }

    /// Whether it asks how many requests are under way.
    pub fn needs_load(self) -> bool {
        matches!(self, Policy::LeastRequests | Policy::TwoChoices)
    }
}

/// The tables of a service: positions of its upstreams, as often as their weights say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Turns of the upstreams that serve.
    pub main: Box<[u16]>,
    /// Turns of those that serve when no other can.
    pub backup: Box<[u16]>,
    /// Every upstream of `main` once, in configuration order.
    main_once: Box<[u16]>,
    /// Every upstream of `backup` once.
    backup_once: Box<[u16]>,
}

/// Turns that a service may have.
pub const MOST_TURNS: u64 = 100_000;

/// Turns that the weights need, after division by what all of them share.
pub fn turns_needed(weights: impl Iterator<Item = u32> + Clone) -> u64 {
    let divisor = weights.clone().fold(0, gcd).max(1);
    weights.map(|weight| u64::from(weight / divisor)).sum()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Turns {
    /// The tables of listed upstreams: position, weight, and whether it is a backup, in configuration order.
    /// With equal weights the turns are in that order; else each upstream's turns are spread evenly.
    pub fn of(listed: &[(u16, u32, bool)]) -> Turns {
        let of = |backup: bool| listed.iter().filter(move |each| each.2 == backup && each.1 > 0);
        let once = |backup| {
            let mut once: Vec<u16> = Vec::new();
            of(backup).for_each(|each| {
                if !once.contains(&each.0) {
                    once.push(each.0);
                }
            });
            once.into()
        };
        let spread = |backup| spread(&of(backup).map(|each| (each.0, each.1)).collect::<Vec<_>>());
        Turns { main: spread(false), backup: spread(true), main_once: once(false), backup_once: once(true) }
    }
}

/// Deals turns so that an upstream of weight w has its k-th turn near (k + ½) / w of the way.
fn spread(listed: &[(u16, u32)]) -> Box<[u16]> {
    let divisor = listed.iter().map(|each| each.1).fold(0, gcd).max(1);
    let mut turns: Vec<(u64, usize, u16)> = Vec::new();
    for (order, (position, weight)) in listed.iter().enumerate() {
        let weight = u64::from(weight / divisor);
        let place = |k: u64| ((2 * k + 1) << 32) / (2 * weight);
        turns.extend((0..weight).map(|k| (place(k), order, *position)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, _, position)| position).collect()
}

/// What a pick looks at.
#[derive(Debug)]
pub struct Draw<'a> {
    /// Of the service.
    pub policy: Policy,
    /// Of the service.
    pub turns: &'a Turns,
    /// Of its main table.
    pub cursor: &'a Cursor,
    /// Of its backups.
    pub backup_cursor: &'a Cursor,
    /// Already tried in this exchange: last resort.
    pub tried: &'a Tried,
    /// For the policy `hash`; without one it takes turns.
    pub key: Option<u64>,
}

/// Why a candidate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The policy names it.
    ByPolicy,
    /// The policy has found nobody: whoever can be taken is welcome.
    AsRest,
}

/// Picks an upstream: the first that `take` gives. `load` tells how loaded one is for its weight, `seat` is a
/// number of its own that survives reloads, with its weight.
pub fn pick<T>(
    draw: &Draw<'_>,
    random: &mut Random,
    load: impl Fn(u16) -> u64,
    seat: impl Fn(u16) -> (u64, u32),
    mut take: impl FnMut(u16, Chosen) -> Option<T>,
) -> Option<(u16, T)> {
    let Draw { turns, tried, .. } = draw;
    let mut fresh = |position: u16, chosen| match tried.contains(position) {
        true => None,
        false => take(position, chosen).map(|taken| (position, taken)),
    };
    let main = match (draw.policy, draw.key) {
        (Policy::RoundRobin, _) | (Policy::Hash, None) => {
            in_turns(&turns.main, turns.main_once.len(), draw.cursor, &mut fresh)
        }
        (Policy::LeastRequests, _) => least(draw, &load, &mut fresh),
        (Policy::TwoChoices, _) => two_choices(&turns.main, turns.main_once.len(), random, &load, &mut fresh),
        (Policy::Random, _) => by_chance(&turns.main, turns.main_once.len(), random, &mut fresh),
        (Policy::Hash, Some(key)) => by_key(&turns.main_once, key, &seat, &mut fresh),
    };
    let rest = |once: &[u16], take: &mut dyn FnMut(u16, Chosen) -> Option<(u16, T)>| {
        once.iter().find_map(|position| take(*position, Chosen::AsRest))
    };
    if let Some(picked) = main.or_else(|| rest(&turns.main_once, &mut fresh)) {
        return Some(picked);
    }
    let backup = in_turns(&turns.backup, turns.backup_once.len(), draw.backup_cursor, &mut fresh);
    if let Some(picked) = backup.or_else(|| rest(&turns.backup_once, &mut fresh)) {
        return Some(picked);
    }
    let mut again = |position: u16| {
        tried.contains(position).then(|| take(position, Chosen::AsRest)).flatten().map(|taken| (position, taken))
    };
    turns.main_once.iter().chain(&turns.backup_once).find_map(|position| again(*position))
}

fn in_turns<P>(
    turns: &[u16],
    upstreams: usize,
    cursor: &Cursor,
    take: &mut impl FnMut(u16, Chosen) -> Option<P>,
) -> Option<P> {
    if turns.is_empty() {
        return None;
    }
    (0..2 * upstreams).find_map(|_| take(turns[(cursor.draw() % turns.len() as u64) as usize], Chosen::ByPolicy))
}

fn by_chance<P>(
    turns: &[u16],
    upstreams: usize,
    random: &mut Random,
    take: &mut impl FnMut(u16, Chosen) -> Option<P>,
) -> Option<P> {
    if turns.is_empty() {
        return None;
    }
    (0..2 * upstreams).find_map(|_| take(turns[(random.next_u64() % turns.len() as u64) as usize], Chosen::ByPolicy))
}

fn two_choices<P>(
    turns: &[u16],
    upstreams: usize,
    random: &mut Random,
    load: &impl Fn(u16) -> u64,
    take: &mut impl FnMut(u16, Chosen) -> Option<P>,
) -> Option<P> {
    if turns.is_empty() {
        return None;
    }
    let mut any = || (random.next_u64() % turns.len() as u64) as usize;
    for _ in 0..upstreams {
        let one = turns[any()];
        let from = any();
        // Another one than the first, from a place of chance on.
        let other = turns[from..].iter().chain(&turns[..from]).find(|other| **other != one).copied().unwrap_or(one);
        let (better, worse) = if load(other) < load(one) { (other, one) } else { (one, other) };
        if let Some(taken) = take(better, Chosen::ByPolicy) {
            return Some(taken);
        }
        if worse != better
            && let Some(taken) = take(worse, Chosen::ByPolicy)
        {
            return Some(taken);
        }
    }
    None
}

/// The least loaded one; when that cannot be taken, the next, and so on. Among equals it is whose turn it is.
fn least<P>(draw: &Draw<'_>, load: &impl Fn(u16) -> u64, take: &mut impl FnMut(u16, Chosen) -> Option<P>) -> Option<P> {
    let once = &draw.turns.main_once;
    if once.is_empty() {
        return None;
    }
    let first = (draw.cursor.draw() % once.len() as u64) as usize;
    let in_order = || once[first..].iter().chain(&once[..first]).copied().enumerate();
    // Loads move while they are looked at, so the floor is a pair that only grows.
    let mut floor = None;
    for _ in 0..once.len() {
        let above = in_order().map(|(nth, position)| ((load(position), nth), position));
        let (place, position) = above.filter(|(place, _)| Some(*place) > floor).min()?;
        if let Some(taken) = take(position, Chosen::ByPolicy) {
            return Some(taken);
        }
        floor = Some(place);
    }
    None
}

/// The upstream with the best score for a key (rendezvous hashing); when that cannot be taken, the next best.
fn by_key<P>(
    once: &[u16],
    key: u64,
    seat: &impl Fn(u16) -> (u64, u32),
    take: &mut impl FnMut(u16, Chosen) -> Option<P>,
) -> Option<P> {
    let score = |position: u16| {
        let (seat, weight) = seat(position);
        // Uniform in (0, 1]; its logarithm divided by the weight makes shares follow weights.
        let chance = ((Random::new(key ^ seat).next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        f64::from(weight) / -libm::log(chance)
    };
    let mut ceiling = f64::INFINITY;
    for _ in 0..once.len() {
        let below = once.iter().map(|position| (score(*position), *position)).filter(|(score, _)| *score < ceiling);
        let (best, position) = below.max_by(|a, b| a.0.total_cmp(&b.0))?;
        if let Some(taken) = take(position, Chosen::ByPolicy) {
            return Some(taken);
        }
        ceiling = best;
    }
    None
}

/// A number for a key of the policy `hash` (FNV-1a).
pub fn key_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
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

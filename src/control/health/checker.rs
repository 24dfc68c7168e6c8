//! The thread of the health checks: what is due when, a bounded number of checks at once, and what a verdict does
//! to the breaker of its upstream.
//!
//! Each upstream has at most one check under way, and one alarm: for its next check, or for the end of a wait.
//! Must not know: how a check is carried out, who asks for the reports.

use super::check::{Check, Ground, Verdict};
use super::{Last, Plan, Record, Report, State};
use crate::ground::queue::Sender;
use crate::ground::random::Random;
use crate::ground::table::{Id, Table};
use crate::ground::tick::Tick;
use crate::http::head::Limits;
use crate::policy::breaker::{self, Mode, Settings, Transition};
use crate::shard::mailbox::{Checked, Moved, Notice};
use crate::shared::failure::Failure;
use crate::shared::snapshot::UpstreamIdentity;
use log::Level;
use mio::{Registry, Token};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// Checks at once. The others wait for their turn: each costs a descriptor, and a share of a head's bytes.
pub(super) const RUNNING: usize = 256;
/// No identifier packs into this number.
pub(super) const WAKER: Token = Token(usize::MAX);
/// What a hold of the breaker may be longer than the time until the end of the next check.
const SLACK_MS: u64 = 250;
/// What is read at once.
const SCRATCH: usize = 16 << 10;

/// All checks of the process.
pub(super) struct Checker {
    means: Means,
    notices: Sender<Notice>,
    random: Random,
    /// By slot.
    watches: HashMap<usize, Watch>,
    alarms: BTreeSet<(Tick, usize)>,
    /// Slots that wait for a place, in turn.
    queue: VecDeque<usize>,
    running: Table<Running>,
}

/// What all checks share.
struct Means {
    registry: Registry,
    limits: Limits,
    scratch: Vec<u8>,
}

impl Means {
    fn ground(&mut self, id: Id<Running>, now: Tick) -> Ground<'_> {
        let token = Token(id.pack() as usize);
        Ground { registry: &self.registry, token, scratch: &mut self.scratch, limits: &self.limits, now }
    }
}

/// One upstream that is checked.
#[derive(Debug)]
struct Watch {
    plan: Plan,
    stage: Stage,
    /// When it is in `alarms`.
    alarm: Option<Tick>,
    /// Good checks in a row that began while the breaker was not closed: those before it opened do not close it.
    recovering: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its next check is not due.
    Resting,
    /// It is due, and all places are taken.
    Queued,
    /// The check is under way; when the next one is due.
    Running { id: Id<Running>, next: Tick },
}

#[derive(Debug)]
struct Running {
    slot: usize,
    check: Check,
    begun: Begun,
}

/// What a verdict is seen against.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Tick,
    /// The breaker was open, or half-open.
    open: bool,
}

impl Checker {
    /// No checks yet.
    pub(super) fn new(registry: Registry, notices: Sender<Notice>, seed: u64) -> Checker {
        // The limits come with the first upstreams.
        let limits = Limits { request_line: 0, header_bytes: 0, headers: 0 };
        Checker {
            means: Means { registry, limits, scratch: vec![0; SCRATCH] },
            notices,
            random: Random::new(seed),
            watches: HashMap::new(),
            alarms: BTreeSet::new(),
            queue: VecDeque::new(),
            running: Table::default(),
        }
    }

    /// When [`Checker::turn`] is wanted without an event.
    pub(super) fn wake_at(&self) -> Option<Tick> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Checks these upstreams from now on. One whose record is known goes on where it is; first checks are spread
    /// over their interval.
    pub(super) fn switch(&mut self, plans: Vec<Plan>, limits: Limits, now: Tick) {
        self.means.limits = limits;
        let mut old = std::mem::take(&mut self.watches);
        for plan in plans {
            let slot = plan.record.identity.slot.number();
            match old.remove(&slot) {
                Some(watch) if Arc::ptr_eq(&watch.plan.record, &plan.record) => {
                    self.watches.insert(slot, Watch { plan, ..watch });
                }
                before => {
                    before.into_iter().for_each(|before| self.forget(slot, before));
                    let first = now.after(within(&mut self.random, plan.record.check.interval));
                    self.watches.insert(slot, Watch { plan, stage: Stage::Resting, alarm: None, recovering: 0 });
                    self.set(slot, Stage::Resting, first);
                }
            }
        }
        old.into_iter().for_each(|(slot, gone)| self.forget(slot, gone));
        self.queue.retain(|slot| self.watches.get(slot).is_some_and(|watch| watch.stage == Stage::Queued));
    }

    fn forget(&mut self, slot: usize, watch: Watch) {
        if let Some(at) = watch.alarm {
            self.alarms.remove(&(at, slot));
        }
        if let Stage::Running { id, .. } = watch.stage {
            self.running.remove(id);
        }
    }

    /// Takes the sockets that may go on, and the time.
    pub(super) fn turn(&mut self, ready: impl Iterator<Item = Token>, now: Tick) {
        for token in ready {
            self.go_on(Id::unpack(token.0 as u64), now, Check::advance);
        }
        while let Some((at, slot)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, slot));
            let Some(watch) = self.watches.get_mut(&slot) else { continue };
            watch.alarm = None;
            match watch.stage {
                Stage::Resting => self.due(slot, now),
                Stage::Queued => {}
                Stage::Running { id, .. } => self.go_on(id, now, Check::expire),
            }
        }
        while self.running.len() < RUNNING {
            let Some(slot) = self.queue.pop_front() else { break };
            if self.watches.get(&slot).is_some_and(|watch| watch.stage == Stage::Queued) {
                self.due(slot, now);
            }
        }
    }

    /// The next check of an upstream may begin, if it needs one and there is room.
    fn due(&mut self, slot: usize, now: Tick) {
        let Some(watch) = self.watches.get_mut(&slot) else { return };
        let (target, record) = (Arc::clone(&watch.plan.target), Arc::clone(&watch.plan.record));
        let open = is_open(&record.identity, &watch.plan.breaker);
        let next = now.after(around(&mut self.random, record.check.interval));
        if record.check.only_open && !open || target.addresses.is_empty() {
            watch.recovering = 0;
            record.report(Report::rest);
            return self.set(slot, Stage::Resting, next);
        }
        if self.running.len() >= RUNNING {
            watch.stage = Stage::Queued;
            return self.queue.push_back(slot);
        }
        let id = self.running.next_id();
        let begun = Begun { at: now, open };
        let preferred = usize::from(record.identity.preferred.load(Ordering::Relaxed));
        match Check::begin(&target, preferred, &self.means.ground(id, now)) {
            Ok(check) => {
                let deadline = check.deadline();
                let id = self.running.insert(Running { slot, check, begun });
                self.set(slot, Stage::Running { id, next }, deadline);
            }
            Err(failure) => {
                self.set(slot, Stage::Resting, next);
                self.judge(slot, begun, Err(failure), now);
            }
        }
    }

    /// Lets a check take a step; stale identifiers end here.
    fn go_on(&mut self, id: Id<Running>, now: Tick, step: impl FnOnce(&mut Check, &mut Ground<'_>) -> Option<Verdict>) {
        let Some(Running { slot, check, begun }) = self.running.get_mut(id) else { return };
        let (slot, begun) = (*slot, *begun);
        let verdict = step(check, &mut self.means.ground(id, now));
        let deadline = check.deadline();
        let Some(watch) = self.watches.get(&slot) else { return };
        match (verdict, watch.stage) {
            (Some(verdict), Stage::Running { next, .. }) => {
                self.running.remove(id);
                self.set(slot, Stage::Resting, next.max(now));
                self.judge(slot, begun, verdict, now);
            }
            (_, stage) => self.set(slot, stage, deadline),
        }
    }

    /// Where an upstream stands, and when it is looked at again.
    fn set(&mut self, slot: usize, stage: Stage, wake_at: Tick) {
        let Some(watch) = self.watches.get_mut(&slot) else { return };
        watch.stage = stage;
        if let Some(before) = watch.alarm.replace(wake_at) {
            self.alarms.remove(&(before, slot));
        }
        self.alarms.insert((wake_at, slot));
    }

    /// What the end of a check means.
    fn judge(&mut self, slot: usize, begun: Begun, verdict: Verdict, now: Tick) {
        let Some(watch) = self.watches.get_mut(&slot) else { return };
        let Record { identity, check, .. } = &*watch.plan.record;
        let result = match verdict {
            Ok(status) if !check.expect.counts_status(status) => Err(Failure::Status(status)),
            verdict => verdict,
        };
        let UpstreamIdentity { service, url, .. } = &**identity;
        match result {
            // Nothing was learnt about the upstream.
            Err(Failure::NoSocket) => return log::debug!("{service} {url}: no socket is left for a health check"),
            Err(failure) => log::debug!("{service} {url}: a health check failed: {failure}"),
            Ok(_) => {}
        }
        let last = Last { time: SystemTime::now(), result, duration: now.since(begun.at) };
        let filed = |report: &mut Report| (report.file(last, check), report.state, report.in_row);
        let (before, state, in_row) = watch.plan.record.report(filed);
        if let Some(before) = before {
            // That all is well after a start is no news.
            let level = if (before, state) == (State::Unknown, State::Healthy) { Level::Debug } else { Level::Info };
            let checks = if in_row == 1 { "health check" } else { "health checks" };
            let word = state.word();
            let checked = Checked {
                upstream: Arc::clone(identity),
                at_ms: now.ms(),
                verdicts: (before.word(), word),
                in_row,
                cause: result.err(),
            };
            // Without control the process is ending.
            let _ = self.notices.press(Notice::Checked(Box::new(checked)));
            match result {
                Ok(_) => log::log!(level, "{service} {url}: {word} after {in_row} good {checks}"),
                Err(why) => log::log!(level, "{service} {url}: {word} after {in_row} failed {checks}, last: {why}"),
            }
        }
        watch.recovering = if result.is_ok() && begun.open { watch.recovering + 1 } else { 0 };
        if watch.plan.breaker.mode == Mode::Off {
            return;
        }
        let transition = match result {
            Ok(_) if watch.recovering >= check.healthy => {
                watch.recovering = 0;
                identity.breaker.check_passed()
            }
            Err(_) if in_row >= u64::from(check.unhealthy) => {
                identity.breaker.check_failed(now.ms(), &held(&watch.plan))
            }
            _ => None,
        };
        if let Some(transition) = transition {
            self.tell(slot, transition, result.err(), now);
        }
    }

    /// A breaker has moved.
    fn tell(&self, slot: usize, transition: Transition, cause: Option<Failure>, now: Tick) {
        let Some(Watch { plan, .. }) = self.watches.get(&slot) else { return };
        let upstream = Arc::clone(&plan.record.identity);
        if transition.to == breaker::State::Closed {
            upstream.warm_from_ms.store(now.ms().max(1), Ordering::Relaxed);
        }
        let observed = plan.breaker.mode == Mode::Observe;
        let moved = Moved { upstream, at_ms: now.ms(), transition, cause, observed, note: None };
        // Without control the process is ending.
        let _ = self.notices.press(Notice::Moved(Box::new(moved)));
    }
}

/// Somewhere in the span, so that first checks do not come all at once.
fn within(random: &mut Random, span: Duration) -> Duration {
    Duration::from_micros(random.next_u64() % us(span).max(1))
}

/// The span, a tenth more or less, so that checks do not fall into step.
fn around(random: &mut Random, span: Duration) -> Duration {
    let tenth = us(span) / 10;
    Duration::from_micros(us(span) - tenth + random.next_u64() % (2 * tenth + 1))
}

fn us(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 2)
}

/// Whether good checks have a breaker to close. Nobody asks one that is switched off.
fn is_open(identity: &UpstreamIdentity, settings: &Settings) -> bool {
    settings.mode != Mode::Off && identity.breaker.view().state != breaker::State::Closed
}

/// The settings with a cooldown that lasts until the next check has ended: while checks fail, no request becomes
/// the probe in between.
fn held(plan: &Plan) -> Settings {
    let check = &plan.record.check;
    let next = check.interval + check.interval / 10 + check.timeout;
    let next_ms = u64::try_from(next.as_millis()).unwrap_or(u64::MAX).saturating_add(SLACK_MS);
    Settings { cooldown_ms: plan.breaker.cooldown_ms.max(next_ms), ..plan.breaker }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_within_their_bounds() {
        let mut random = Random::new(1);
        let span = Duration::from_millis(1000);
        let first: Vec<_> = (0..1000).map(|_| within(&mut random, span).as_millis() / 100).collect();
        assert!((0..10).all(|tenth| first.iter().filter(|at| **at == tenth).count() > 50), "{first:?}");
        let next: Vec<_> = (0..1000).map(|_| around(&mut random, span).as_millis() / 50).collect();
        assert!((18..22).all(|part| next.iter().filter(|at| **at == part).count() > 100), "{next:?}");
        assert!(next.iter().all(|part| (18..=22).contains(part)), "{next:?}");
        let shortest = Duration::from_micros(1);
        assert_eq!((within(&mut random, shortest), around(&mut random, shortest)), (Duration::ZERO, shortest));
    }
}

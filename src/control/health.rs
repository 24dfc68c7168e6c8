//! Active health checks: control's end of them. It says which upstreams are checked, keeps what is known of each,
//! and has the one thread on which all checks are made, as long as there is something to check.
//!
//! Must not know: how a check is carried out, shards.

mod check;
mod checker;

use crate::config::model::HealthCheck;
use crate::control::health::check::{Target, Verdict};
use crate::control::health::checker::{Checker, WAKER};
use crate::ground::queue::Sender;
use crate::ground::tick::Tick;
use crate::http::head;
use crate::http::render;
use crate::policy::breaker::Settings;
use crate::shard::mailbox::Notice;
use crate::shared::snapshot::{Snapshot, Upstream, UpstreamIdentity};
use mio::{Poll, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// How often a thread that is not there although it should be is started.
const START_AGAIN: Duration = Duration::from_secs(5);

/// The clock of the process.
pub type Now = Arc<dyn Fn() -> Tick + Send + Sync>;

/// What checks say of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing yet, or nothing any more: one without an address, or closed with `when: open`, is not checked.
    #[default]
    Unknown,
    /// `healthy` good ones in a row.
    Healthy,
    /// `unhealthy` failed ones in a row.
    Unhealthy,
}

impl State {
    /// The word of log and status.
    pub fn word(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Healthy => "healthy",
            State::Unhealthy => "unhealthy",
        }
    }
}

/// What is known of an upstream's checks.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The verdict of the last rows.
    pub state: State,
    /// Checks that were made.
    pub checks: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// The last ones that ended alike, good or failed.
    pub in_row: u64,
    /// The last one.
    pub last: Option<Last>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// When.
    pub time: SystemTime,
    /// A status that is expected, or why it failed.
    pub result: Verdict,
    /// From its beginning.
    pub duration: Duration,
}

impl Report {
    /// Files a check; the state before, when this one has changed it.
    fn file(&mut self, last: Last, check: &HealthCheck) -> Option<State> {
        let good = last.result.is_ok();
        let alike = self.last.is_none_or(|before| before.result.is_ok() == good);
        self.in_row = if alike { self.in_row + 1 } else { 1 };
        self.checks += 1;
        self.failed += u64::from(!good);
        self.last = Some(last);
        let (enough, state) = if good { (check.healthy, State::Healthy) } else { (check.unhealthy, State::Unhealthy) };
        let changed = self.in_row >= u64::from(enough) && self.state != state;
        changed.then(|| std::mem::replace(&mut self.state, state))
    }

    /// It is not checked for now: the next check begins a row.
    fn rest(&mut self) {
        self.state = State::Unknown;
        self.in_row = 0;
    }
}

/// An upstream with its check. A reload that changes neither keeps it, and with it rows and schedule.
#[derive(Debug)]
struct Record {
    identity: Arc<UpstreamIdentity>,
    check: HealthCheck,
    report: Mutex<Report>,
}

impl Record {
    fn report<R>(&self, with: impl FnOnce(&mut Report) -> R) -> R {
        with(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A record with what a reload may change around it.
#[derive(Debug)]
struct Plan {
    record: Arc<Record>,
    target: Arc<Target>,
    breaker: Settings,
}

impl Plan {
    fn of(upstream: &Upstream, record: Arc<Record>) -> Plan {
        let check = &record.check;
        let mut request = Vec::new();
        render::check(
            &mut request,
            &render::Check {
                method: &check.method,
                base_path: &upstream.base_path,
                path: check.path.as_bytes(),
                // There is no client whose `Host` could be passed on.
                host: upstream.host.as_deref().unwrap_or(&upstream.authority),
            },
        );
        let to_head = check.method == "HEAD";
        let target = Target { addresses: upstream.addresses.to_vec(), request, to_head, timeout: check.timeout };
        Plan { record, target: Arc::new(target), breaker: upstream.breaker }
    }
}

/// What the thread is told. A later order stands in for one that was not read yet.
#[derive(Debug)]
enum Order {
    Switch { plans: Vec<Plan>, limits: head::Limits },
    Stop,
}

/// The thread, and the way to it.
struct Worker {
    order: Arc<Mutex<Option<Order>>>,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Worker {
    fn tell(&self, order: Order) -> io::Result<()> {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.waker.wake()
    }
}

/// Control's end of the health checks.
pub struct Health {
    /// By the slot of the upstream, which a record holds by its identity.
    records: HashMap<usize, Arc<Record>>,
    worker: Option<Worker>,
    /// When a thread that could not start is tried again.
    start_at: Option<Tick>,
    stopped: bool,
    notices: Sender<Notice>,
    now: Now,
    seed: u64,
}

impl Health {
    /// No checks yet. Transitions are told by `notices`; `seed` is of the moments at which checks begin.
    pub fn new(notices: Sender<Notice>, now: Now, seed: u64) -> Health {
        Health { records: HashMap::new(), worker: None, start_at: None, stopped: false, notices, now, seed }
    }

    /// Checks what `snapshot` says from now on.
    pub fn switch(&mut self, snapshot: &Snapshot) {
        if self.stopped {
            return;
        }
        let mut records = HashMap::new();
        let mut plans = Vec::new();
        for upstream in snapshot.services.iter().flat_map(|service| &service.upstreams) {
            let Some(check) = &upstream.health else { continue };
            let slot = upstream.identity.slot.number();
            let known = self.records.remove(&slot);
            let known = known.filter(|known| Arc::ptr_eq(&known.identity, &upstream.identity) && known.check == *check);
            let record = known.unwrap_or_else(|| {
                let (identity, check) = (Arc::clone(&upstream.identity), check.clone());
                Arc::new(Record { identity, check, report: Mutex::default() })
            });
            plans.push(Plan::of(upstream, Arc::clone(&record)));
            records.insert(slot, record);
        }
        self.records = records;
        if plans.is_empty() {
            return self.end();
        }
        let order = Order::Switch { plans, limits: snapshot.head };
        self.start_at = None;
        if let Err(error) = self.worker().and_then(|worker| worker.tell(order)) {
            log::error!("health checks cannot start: {error}");
            self.worker = None;
            self.start_at = Some((self.now)().after(START_AGAIN));
        }
    }

    /// No checks any more.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.records.clear();
        self.end();
    }

    fn end(&mut self) {
        self.start_at = None;
        if let Some(worker) = self.worker.take() {
            // A thread that cannot be woken has ended.
            let _ = worker.tell(Order::Stop);
        }
    }

    /// When [`Health::is_due`] may say yes without another cause.
    pub fn wake_at(&self) -> Option<Tick> {
        self.start_at
    }

    /// Whether the thread is missing and [`Health::switch`] should be called to start it.
    pub fn is_due(&self, now: Tick) -> bool {
        match &self.worker {
            Some(worker) => worker.thread.is_finished(),
            None => self.start_at.is_some_and(|at| now >= at),
        }
    }

    /// What is known of an upstream that is checked.
    pub fn report(&self, upstream: &UpstreamIdentity) -> Option<Report> {
        self.records.get(&upstream.slot.number()).map(|record| record.report(|report| report.clone()))
    }

    /// The thread, started if it does not run.
    fn worker(&mut self) -> io::Result<&Worker> {
        let running = self.worker.take().filter(|worker| !worker.thread.is_finished());
        let worker = match running {
            Some(worker) => worker,
            None => self.start()?,
        };
        Ok(self.worker.insert(worker))
    }

    fn start(&self) -> io::Result<Worker> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let checker = Checker::new(poll.registry().try_clone()?, self.notices.clone(), self.seed);
        let order = Arc::new(Mutex::new(None));
        let (mailbox, now) = (Arc::clone(&order), Arc::clone(&self.now));
        let thread = std::thread::Builder::new().name("health".to_owned()).stack_size(512 << 10).spawn(move || {
            match catch_unwind(AssertUnwindSafe(|| run(checker, poll, &mailbox, &now))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("health checks have ended: {error}"),
                Err(_) => log::error!("health checks have ended: an invariant does not hold"),
            }
        })?;
        Ok(Worker { order, waker, thread })
    }
}

/// The thread's loop.
fn run(mut checker: Checker, mut poll: Poll, mailbox: &Mutex<Option<Order>>, now: &Now) -> io::Result<()> {
    let mut events = mio::Events::with_capacity(checker::RUNNING + 1);
    loop {
        let patience = checker.wake_at().map(|at| at.since(now()));
        match poll.poll(&mut events, patience) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let order = mailbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        match order {
            Some(Order::Stop) => return Ok(()),
            Some(Order::Switch { plans, limits }) => checker.switch(plans, limits, now()),
            None => {}
        }
        let tokens = events.iter().map(mio::event::Event::token).filter(|token: &Token| *token != WAKER);
        checker.turn(tokens, now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(result: Verdict) -> Last {
        Last { time: SystemTime::UNIX_EPOCH, result, duration: Duration::ZERO }
    }

    #[test]
    fn rows_make_the_state() {
        let check = HealthCheck { unhealthy: 2, healthy: 2, ..HealthCheck::default() };
        let (good, bad) = (last(Ok(200)), last(Err(crate::shared::failure::Failure::Refused)));
        let mut report = Report::default();
        let mut file = |one: Last| report.file(one, &check);
        let before = [good, bad, good, good, good, bad, good, bad, bad, bad].map(&mut file);
        let (none, unknown, healthy) = (None, Some(State::Unknown), Some(State::Healthy));
        assert_eq!(before, [none, none, none, unknown, none, none, none, none, healthy, none]);
        assert_eq!(report.state, State::Unhealthy);
        assert_eq!((report.checks, report.failed, report.in_row), (10, 5, 3));
        report.rest();
        assert_eq!(report.file(bad, &check), None);
        assert_eq!((report.state, report.in_row), (State::Unknown, 1));
    }
}

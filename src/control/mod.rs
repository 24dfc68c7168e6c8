//! The control thread: everything slow. It reads and validates the configuration, has names resolved,
//! builds snapshots, hands them to the shards, answers administration, and writes what breakers do into
//! the log.
//!
//! `step` takes one notice and never waits. Must not know: connections; of a shard it knows the mailbox.

pub mod access;
pub mod build;
pub mod circuits;
pub mod events;
pub mod fresh;
pub mod health;
pub mod history;
pub mod live;
pub mod metrics;
pub mod page;
pub mod reload;
pub mod resolve;
pub mod status;
pub mod watch;

use crate::config::{self, model};
use crate::control::access::AccessLog;
use crate::control::build::Facts;
use crate::control::events::Events;
use crate::control::fresh::{Fate, Fresh};
use crate::control::health::Health;
use crate::control::history::History;
use crate::control::live::Live;
use crate::control::metrics::{Kind, Reloads};
use crate::control::reload::{Change, Phase, Reload};
use crate::control::resolve::{Name, Names, Resolver};
use crate::control::watch::{Known, Watcher};
use crate::ground::queue::Sender;
use crate::ground::tick::Tick;
use crate::http::render::{self, Answer};
use crate::http::target::Own;
use crate::shard::mailbox::{Command, Notice, PIECE, Resolved, Ticket, Told};
use crate::shared::process::Process;
use crate::shared::snapshot::Snapshot;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// How long names may take to resolve, all of them together.
pub const RESOLVE_TIME: Duration = Duration::from_secs(5);
/// How long the shards may take to switch before the answer says that one has not.
const SWITCH_TIME: Duration = Duration::from_secs(5);
/// How long it may be until snapshots that nobody has any more are dropped.
const RETIRE_LATEST: Duration = Duration::from_secs(60);
/// How often what a full mailbox did not take is offered again.
const DELIVER_AGAIN: Duration = Duration::from_millis(100);
/// How long names may take that are asked for again while everything runs.
const REFRESH_TIME: Duration = Duration::from_secs(20);

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, read anew at every reload.
    File(PathBuf),
    /// A text of the program's own; a reload finds it unchanged.
    Text(&'static str, String),
}

impl Source {
    /// Reads and validates it.
    pub fn load(&self) -> Result<config::Loaded, config::Problems> {
        self.understand(&self.read()?)
    }

    /// Reads it.
    pub fn read(&self) -> Result<Vec<u8>, config::Problems> {
        match self {
            Source::File(path) => config::read(path),
            Source::Text(_, text) => Ok(text.clone().into_bytes()),
        }
    }

    /// Validates what was read.
    pub fn understand(&self, bytes: &[u8]) -> Result<config::Loaded, config::Problems> {
        match self {
            Source::File(path) => config::understand(path, bytes),
            Source::Text(name, text) => config::parse(name, text, &|_| None),
        }
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Text(name, _) => (*name).to_owned(),
        }
    }
}

/// The way to a shard.
pub trait Courier {
    /// Puts a command into the shard's mailbox and wakes it; false when the mailbox is full or gone.
    fn send(&self, command: Command) -> bool;
}

/// What the process does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Run,
    /// End, all is done.
    Exit,
    /// End, something failed that cannot be mended.
    Fail,
}

/// The state of the control thread.
pub struct Control<C> {
    source: Source,
    config: model::Config,
    snapshot: Arc<Snapshot>,
    facts: Facts,
    process: Arc<Process>,
    shards: Vec<C>,
    resolver: Resolver,
    notices: Sender<Notice>,
    health: Health,
    reload: Option<Reload>,
    again: bool,
    changed: Option<u64>,
    known: Arc<Known>,
    watcher: Option<Watcher>,
    history: History,
    events: Events,
    live: Live,
    last_reload: Option<status::LastReload>,
    reloads: Reloads,
    access: AccessLog,
    fresh: Fresh,
    refresh: Option<Names>,
    serial: u64,
    round: u64,
    drain: Option<Drain>,
    due: Vec<Due>,
    /// Snapshots that shards may still have: the last one to drop a large one pays for it.
    retired: Vec<Arc<Snapshot>>,
    /// When they are looked at, and how long it is until the next look: tunnels may keep one for hours.
    retire_at: Tick,
    retire_after: Duration,
    deliver_at: Tick,
    signals: Signals,
    started: SystemTime,
}

/// Which signals mean what; numbers of the platform.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    /// Reload.
    pub hangup: i32,
    /// Open log files again.
    pub reopen: i32,
}

/// What a shard has to be told and could not.
#[derive(Clone, Debug, Default)]
struct Due {
    switch: bool,
    /// Slots that it must leave behind with the switch, since the last one that it got.
    left: Vec<usize>,
    drain: bool,
}

#[derive(Debug)]
struct Drain {
    left: Vec<usize>,
    deadline: Tick,
}

impl<C: Courier> Control<C> {
    /// Control over shards that run on `snapshot`, which was built from `config`, which was read from a content
    /// with this fingerprint.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        source: Source,
        config: model::Config,
        fingerprint: u64,
        snapshot: Arc<Snapshot>,
        facts: Facts,
        process: Arc<Process>,
        shards: Vec<C>,
        notices: Sender<Notice>,
        signals: Signals,
        seed: u64,
        mut health: Health,
        access: AccessLog,
    ) -> Control<C> {
        health.switch(&snapshot);
        Control {
            source,
            config,
            serial: snapshot.serial,
            snapshot,
            facts,
            process,
            resolver: Resolver::new(notices.clone()),
            notices,
            health,
            reload: None,
            again: false,
            changed: None,
            known: Arc::new(Known::new(fingerprint)),
            watcher: None,
            history: History::default(),
            events: Events::new(SystemTime::now()),
            live: Live::default(),
            last_reload: None,
            reloads: Reloads::new(SystemTime::now()),
            access,
            fresh: Fresh::new(seed),
            refresh: None,
            round: 1,
            drain: None,
            retired: Vec::new(),
            retire_at: Tick::NEVER,
            retire_after: DELIVER_AGAIN,
            due: shards.iter().map(|_| Due::default()).collect(),
            shards,
            deliver_at: Tick::START,
            signals,
            started: SystemTime::now(),
        }
    }

    /// When `step` wants to be called without a notice.
    pub fn wake_at(&self) -> Tick {
        let reload = self.reload.as_ref().map(|reload| reload.phase.deadline());
        let drain = self.drain.as_ref().map(|drain| drain.deadline);
        let refresh = self.refresh.as_ref().map(|names| names.deadline);
        let due = self.due.iter().any(|due| due.switch || due.drain).then_some(self.deliver_at);
        let retired = (!self.retired.is_empty()).then_some(self.retire_at);
        let fresh = self.fresh.next().filter(|_| self.refresh.is_none());
        let health = self.health.wake_at();
        let events = self.events.wake_at(self.deliver_at);
        [reload, drain, refresh, due, retired, fresh, health, events].into_iter().flatten().min().unwrap_or(Tick::NEVER)
    }

    /// Takes a notice, or the time alone.
    pub fn step(&mut self, notice: Option<Notice>, now: Tick) -> Next {
        match notice {
            None => {}
            Some(Notice::Ticket(ticket)) => self.take_ticket(*ticket, now),
            Some(Notice::Switched { shard, serial }) => self.shard_switched(shard, serial, now),
            Some(Notice::Left { shard, client, lagged }) => self.subscriber_left(shard, client, lagged),
            Some(Notice::Moved(moved)) => self.moved(&moved, wall(moved.at_ms, now)),
            Some(Notice::Checked(checked)) => self.checked(&checked, wall(checked.at_ms, now)),
            Some(Notice::Resolved(resolved)) => self.resolved(*resolved, now),
            Some(Notice::Trouble { shard, what }) => log::warn!("shard {shard}: {what}"),
            Some(Notice::Drained { shard }) => {
                if let Some(drain) = &mut self.drain {
                    drain.left.retain(|left| *left != shard);
                }
            }
            Some(Notice::Died { shard, why }) => {
                log::error!("shard {shard} ended: {why}");
                return Next::Fail;
            }
            Some(Notice::Signal(signal)) if signal == self.signals.hangup => self.begin_reload(None, now),
            Some(Notice::Signal(signal)) if signal == self.signals.reopen => self.access.reopen(),
            Some(Notice::Signal(_)) => self.begin_drain(now),
            Some(Notice::FileChanged { fingerprint }) => self.file_changed(fingerprint, now),
        }
        self.look_at_clock(now);
        self.tell_subscribers(now);
        match &self.drain {
            Some(drain) if drain.left.is_empty() => {
                log::info!("drained, all exchanges have ended");
                Next::Exit
            }
            Some(drain) if now >= drain.deadline => {
                log::warn!("drain.timeout is over, {} connections are cut off", self.process.connections());
                Next::Exit
            }
            _ => Next::Run,
        }
    }

    fn look_at_clock(&mut self, now: Tick) {
        if now >= self.deliver_at {
            self.deliver();
            self.deliver_at = now.after(DELIVER_AGAIN);
        }
        if !self.retired.is_empty() && now >= self.retire_at {
            self.retire_after = (self.retire_after * 2).min(RETIRE_LATEST);
            self.drop_retired(now);
        }
        if self.reload.as_ref().is_some_and(|reload| now >= reload.phase.deadline()) {
            self.reload_deadline(now);
        }
        if self.refresh.is_none() && self.fresh.next().is_some_and(|at| now >= at) {
            self.begin_refresh(now);
        }
        if self.refresh.as_ref().is_some_and(|names| now >= names.deadline) {
            self.end_refresh(now);
        }
        if self.health.is_due(now) {
            self.health.switch(&self.snapshot);
        }
    }

    /// Waits a moment until the last lines of the access log are written.
    pub fn finish(&self) {
        self.access.finish();
    }

    /// Starts, replaces or ends the watcher of the file, as the configuration wants it.
    pub fn watch_file(&mut self) {
        let Source::File(path) = &self.source else { return };
        let wanted = Some(self.config.gateway.reload).filter(|reload| reload.watch || reload.poll.is_some());
        if self.watcher.as_ref().map(Watcher::settings) == wanted {
            return;
        }
        if self.watcher.take().is_some() && wanted.is_none() {
            log::info!("{} is no longer watched", path.display());
        }
        let Some(settings) = wanted else { return };
        match Watcher::start(path, settings, Arc::clone(&self.known), self.notices.clone()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => log::error!("{} is not watched until the next reload: {error}", path.display()),
        }
    }

    /// Names are asked for again from time to time, those without an answer sooner.
    /// `found` have an answer of just now.
    pub fn watch_names(&mut self, found: &[Name], now: Tick) {
        self.fresh.follow(&self.config, &self.snapshot, now);
        found.iter().for_each(|name| {
            self.fresh.answered(name, now);
        });
    }

    fn begin_refresh(&mut self, now: Tick) {
        // A reload resolves everything anyway, and asking would take its turn at the resolver.
        if self.reload.is_some() {
            return self.fresh.put_off(now);
        }
        self.round += 1;
        let mut names = Names::new(self.round, self.fresh.due(now), now.after(REFRESH_TIME));
        self.resolver.ask(&mut names);
        let done = names.is_done();
        self.refresh = Some(names);
        if done {
            self.end_refresh(now);
        }
    }

    fn end_refresh(&mut self, now: Tick) {
        let Some(names) = self.refresh.take() else { return };
        if self.reload.is_some() {
            return self.fresh.put_off(now);
        }
        let known = build::known_addresses(&self.config, &self.snapshot);
        let mut news = build::Addresses::new();
        for (name, addresses) in names.found() {
            let is_back = self.fresh.answered(&name, now);
            if fresh::differ(known.get(&name), &addresses) {
                log::info!("{} resolves to {}", name.0, list(&addresses));
                news.insert(name, addresses);
            } else if is_back {
                log::info!("{} resolves again, to the same addresses", name.0);
            }
        }
        for (name, why) in names.missing() {
            match self.fresh.failed(&name, &why, now) {
                Some(Fate::Stand(None)) => log::warn!("{why}; its last addresses stand until it does"),
                Some(Fate::Stand(Some(stale))) => {
                    log::warn!("{why}; its last addresses stand until it does, at most {} s", stale.as_secs());
                }
                Some(Fate::Dropped) => {
                    log::error!("{why}, and its last addresses are stale (dns.stale): its upstreams are out");
                    news.insert(name, Vec::new());
                }
                None => {}
            }
        }
        if !news.is_empty() {
            self.switch_addresses(news, now);
        }
    }

    /// The same configuration with other addresses.
    fn switch_addresses(&mut self, found: build::Addresses, now: Tick) {
        let mut known = build::known_addresses(&self.config, &self.snapshot);
        known.extend(found);
        self.serial += 1;
        let generation = self.snapshot.generation;
        let (snapshot, _) =
            build::snapshot(&self.config, Some(&self.snapshot), &known, &self.facts, self.serial, generation);
        self.switch(Arc::new(snapshot), now);
    }

    fn resolved(&mut self, resolved: Resolved, now: Tick) {
        let Resolved { round, name, result } = resolved;
        if let Some(Reload { phase: Phase::Resolving { names, .. }, .. }) = &mut self.reload
            && names.round == round
        {
            names.take(name, result);
            if names.is_done() {
                self.names_resolved(now);
            }
        } else if let Some(names) = &mut self.refresh
            && names.round == round
        {
            names.take(name, result);
            if names.is_done() {
                self.end_refresh(now);
            }
        } else if let Ok(addresses) = result
            && self.reload.is_none()
            && !addresses.is_empty()
            && build::lacks(&self.config, &self.snapshot, &name)
        {
            // Too late for its round, but still the answer.
            log::info!("{} resolves to {}", name.0, list(&addresses));
            self.fresh.answered(&name, now);
            self.switch_addresses(build::Addresses::from([(name, addresses)]), now);
        }
    }

    fn switch(&mut self, snapshot: Arc<Snapshot>, now: Tick) {
        self.health.switch(&snapshot);
        let left = self.snapshot.retire(&snapshot);
        self.retired.push(std::mem::replace(&mut self.snapshot, snapshot));
        self.retire_after = DELIVER_AGAIN;
        self.drop_retired(now);
        for due in &mut self.due {
            due.switch = true;
            due.left.extend(&left);
        }
        self.deliver();
    }

    /// Drops the snapshots that no shard has any more.
    fn drop_retired(&mut self, now: Tick) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retire_at = now.after(self.retire_after);
    }

    /// Hands every shard what it is due. One whose mailbox is full gets it later: neither the newest snapshot
    /// nor the drain may be lost.
    fn deliver(&mut self) {
        for (shard, due) in self.due.iter_mut().enumerate() {
            if due.switch {
                let (snapshot, left) = (Arc::clone(&self.snapshot), due.left.clone());
                if self.shards[shard].send(Command::Switch { snapshot, left }) {
                    *due = Due { drain: due.drain, ..Due::default() };
                }
            }
            if due.drain {
                due.drain = !self.shards[shard].send(Command::Drain);
            }
        }
    }

    fn begin_drain(&mut self, now: Tick) {
        if self.drain.is_some() {
            return;
        }
        log::info!(
            "draining {} connections, at most {} s",
            self.process.connections(),
            self.config.gateway.drain_timeout.as_secs()
        );
        self.process.ready.store(false, Ordering::Relaxed);
        self.health.stop();
        self.end_subscriptions();
        self.due.iter_mut().for_each(|due| due.drain = true);
        self.deliver();
        let left = (0..self.shards.len()).collect();
        self.drain = Some(Drain { left, deadline: now.after(self.config.gateway.drain_timeout) });
    }

    fn take_ticket(&mut self, ticket: Ticket, now: Tick) {
        match ticket.own {
            Own::Reload => self.begin_reload(Some(ticket), now),
            Own::Page => self.show_page(&ticket),
            Own::Events => self.subscribe(&ticket, now),
            Own::Config => {
                let shown = Shown {
                    generation: self.snapshot.generation,
                    file: self.source.name(),
                    config: config::show(&self.config),
                };
                self.answer(&ticket, 200, "application/json", &reload::to_json(&shown));
            }
            Own::Trip | Own::Reset => self.move_circuit(&ticket, now),
            Own::Metrics => {
                let kind = Kind::accepted(&ticket.accept);
                let body = metrics::exposition(self, kind);
                self.answer(&ticket, 200, kind.content_type(), &body);
            }
            _ => {
                let body = status::document(self, now);
                self.answer(&ticket, 200, "application/json", &body);
            }
        }
    }

    fn answer_problem(&self, ticket: &Ticket, status: u16, reason: &'static str, detail: &str) {
        let instance = String::from_utf8_lossy(&ticket.request_id);
        let problem = Problem {
            r#type: "about:blank",
            title: crate::http::status::reason(status),
            status,
            detail,
            reason,
            instance: &instance,
        };
        // Whoever meets a bound may come again soon (RFC 9110 section 15.6.4).
        let later = if status == 503 { "Retry-After: 1\r\n" } else { "" };
        let fields = format!("Cache-Control: no-store\r\n{later}");
        self.answer_with(ticket, status, reason, "application/problem+json", &fields, &reload::to_json(&problem));
    }

    fn answer(&self, ticket: &Ticket, status: u16, content_type: &str, body: &[u8]) {
        self.answer_with(ticket, status, "own", content_type, "Cache-Control: no-store\r\n", body);
    }

    /// `reason` is for the access log; `fields` are whole lines.
    fn answer_with(
        &self,
        ticket: &Ticket,
        status: u16,
        reason: &'static str,
        content_type: &str,
        fields: &str,
        body: &[u8],
    ) {
        let mut bytes = Vec::with_capacity(256 + body.len());
        let date = httpdate::fmt_http_date(SystemTime::now());
        let answer = Answer {
            status,
            content_type,
            extra: fields.as_bytes(),
            date: date.as_bytes(),
            persistence: ticket.persistence,
            to_head: ticket.to_head,
        };
        render::answer(&mut bytes, &answer, body);
        // A shard that takes nothing any more lets its ticket time out.
        let pieces = bytes.chunks(PIECE).map(<[u8]>::to_vec).collect();
        self.shards[ticket.shard].send(Command::Answer {
            client: ticket.client,
            told: Told::of(ticket, reason),
            pieces,
        });
    }

    /// What changed, in one line.
    fn log_reloaded(&self, change: &Change) {
        log::info!("configuration generation {} is in force: {change}", self.snapshot.generation);
    }
}

/// The configuration in force.
#[derive(Serialize)]
struct Shown {
    generation: u64,
    file: String,
    config: serde_json::Value,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    /// In a word.
    reason: &'static str,
    instance: &'a str,
}

/// When something happened, by the wall clock.
fn wall(at_ms: u64, now: Tick) -> SystemTime {
    SystemTime::now() - Duration::from_millis(now.ms().saturating_sub(at_ms))
}

fn list(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

//! A reload as a transaction: read, validate, resolve, build, hand to every shard, then answer.
//!
//! Nothing is applied unless everything is valid, and the answer comes after the last shard has switched.
//! Must not know: how a snapshot is built, how shards switch.

use crate::config::Problems;
use crate::config::model::{Config, LogFormat};
use crate::control::resolve::{Name, Names};
use crate::control::status::LastReload;
use crate::control::{Control, Courier, RESOLVE_TIME, SWITCH_TIME, build, watch};
use crate::ground::tick::Tick;
use crate::logging;
use crate::shard::mailbox::Ticket;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// A reload under way.
#[derive(Debug)]
pub struct Reload {
    /// Who waits for the answer; nobody after a signal.
    pub ticket: Option<Ticket>,
    /// What is awaited.
    pub phase: Phase,
}

/// What a reload waits for.
#[derive(Debug)]
pub enum Phase {
    /// The names of the new configuration.
    Resolving {
        /// The new configuration.
        config: Box<Config>,
        /// The round.
        names: Names,
        /// So far.
        warnings: Vec<String>,
    },
    /// The shards.
    Switching {
        /// Those that have not switched.
        left: Vec<usize>,
        /// When the answer is given all the same.
        deadline: Tick,
        /// What it changed.
        change: Change,
        /// Of the file and of names.
        warnings: Vec<String>,
    },
}

impl Phase {
    /// When waiting ends.
    pub fn deadline(&self) -> Tick {
        match self {
            Phase::Resolving { names, .. } => names.deadline,
            Phase::Switching { deadline, .. } => *deadline,
        }
    }
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// By name.
    pub services: Services,
    /// By number.
    pub upstreams: Upstreams,
}

/// Services by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Services {
    /// New ones.
    pub added: Vec<String>,
    /// Gone ones.
    pub removed: Vec<String>,
    /// Those with other upstreams or settings.
    pub changed: Vec<String>,
}

/// Upstreams by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Upstreams {
    /// With their breakers.
    pub kept: usize,
    /// New ones.
    pub added: usize,
    /// Gone ones.
    pub removed: usize,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let names = |names: &[String]| match names {
            [] => "none".to_owned(),
            _ if names.len() <= SHOWN => names.join(", "),
            _ => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
        };
        let Services { added, removed, changed } = &self.services;
        let Upstreams { kept, added: more, removed: fewer } = self.upstreams;
        write!(f, "services added: {}, removed: {}, changed: {}; ", names(added), names(removed), names(changed))?;
        write!(f, "upstreams kept: {kept}, added: {more}, removed: {fewer}")
    }
}

fn compare(old: &Config, new: &Config) -> Services {
    let find = |config: &Config, name: &str| config.services.iter().position(|service| service.name == name);
    let mut services = Services::default();
    for service in &new.services {
        match find(old, &service.name) {
            None => services.added.push(service.name.clone()),
            Some(at) if old.services[at] != *service => services.changed.push(service.name.clone()),
            Some(_) => {}
        }
    }
    let gone = old.services.iter().filter(|service| find(new, &service.name).is_none());
    services.removed = gone.map(|service| service.name.clone()).collect();
    services
}

#[derive(Serialize)]
struct Reloaded<'a> {
    status: &'static str,
    generation: u64,
    services: &'a Services,
    upstreams: Upstreams,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Refused<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    /// In a word.
    reason: &'static str,
    instance: &'a str,
    errors: &'a [String],
    generation: u64,
}

impl<C: Courier> Control<C> {
    /// Reads and validates; goes on when the names are there.
    pub(super) fn begin_reload(&mut self, ticket: Option<Ticket>, now: Tick) {
        if self.reload.is_some() {
            match ticket {
                Some(ticket) => self.refuse(Some(&ticket), 409, "busy", "a reload is already under way", &[]),
                None => self.again = true,
            }
            return;
        }
        let bytes = self.source.read();
        self.load(ticket, bytes, now);
    }

    /// The watcher has seen a content that stays. It is read anew here: when it is yet another one by now, or was
    /// loaded meanwhile, nothing is done, and the watcher will tell again if there is something to tell.
    pub(super) fn file_changed(&mut self, fingerprint: u64, now: Tick) {
        if self.reload.is_some() {
            self.changed = Some(fingerprint);
            return;
        }
        if self.watcher.is_some()
            && !self.known.is(fingerprint)
            && let Ok(bytes) = self.source.read()
            && watch::fingerprint(&bytes) == fingerprint
        {
            log::info!("{} has changed", self.source.name());
            self.load(None, Ok(bytes), now);
        }
        self.known.answered();
    }

    fn load(&mut self, ticket: Option<Ticket>, bytes: Result<Vec<u8>, Problems>, now: Tick) {
        if let Ok(bytes) = &bytes {
            // Even when it is invalid: it will not become better by being loaded again.
            self.known.set(watch::fingerprint(bytes));
        }
        let loaded = match bytes.and_then(|bytes| self.source.understand(&bytes)) {
            Ok(loaded) => loaded,
            Err(problems) => {
                let errors: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
                return self.refuse(
                    ticket.as_ref(),
                    422,
                    "configuration",
                    "the configuration is invalid, nothing was changed",
                    &errors,
                );
            }
        };
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let errors = self.needs_restart(&loaded.config);
        if !errors.is_empty() {
            let detail = "the change needs a restart, nothing was changed";
            return self.refuse(ticket.as_ref(), 422, "needs_restart", detail, &errors);
        }
        self.round += 1;
        self.refresh = None;
        let names = build::names(&loaded.config, |_| true);
        let mut names = Names::new(self.round, names, now.after(RESOLVE_TIME));
        self.resolver.ask(&mut names);
        let done = names.is_done();
        self.reload =
            Some(Reload { ticket, phase: Phase::Resolving { config: Box::new(loaded.config), names, warnings } });
        if done {
            self.names_resolved(now);
        }
    }

    fn needs_restart(&self, new: &Config) -> Vec<String> {
        let (old, new) = (&self.config.gateway, &new.gateway);
        let name = self.source.name();
        let mut errors = Vec::new();
        if old.listen != new.listen {
            errors.push(format!("{name}: error: gateway.listen cannot change while the gateway runs"));
        }
        if old.buckets != new.buckets {
            errors.push(format!("{name}: error: gateway.metrics.buckets cannot change while the gateway runs"));
        }
        if let Err(error) = self.access.check(&new.access) {
            errors.push(format!("{name}: error: {error}"));
        }
        if old.workers != new.workers {
            errors.push(format!("{name}: error: gateway.workers cannot change while the gateway runs"));
        }
        if old.affinity != new.affinity {
            errors.push(format!("{name}: error: gateway.affinity cannot change while the gateway runs"));
        }
        if old.admin.listen != new.admin.listen {
            errors.push(format!("{name}: error: gateway.admin.listen cannot change while the gateway runs"));
        }
        errors
    }

    /// Builds the snapshot and hands it to every shard.
    pub(super) fn names_resolved(&mut self, now: Tick) {
        let Some(Reload { ticket, phase: Phase::Resolving { config, names, mut warnings } }) = self.reload.take()
        else {
            return;
        };
        // A name server that is away takes nobody out: what was known of a name stands until there is news.
        let known = build::known_addresses(&config, &self.snapshot);
        let mut addresses: build::Addresses = known.into_iter().filter(|(_, known)| !known.is_empty()).collect();
        for (name, missing) in names.missing() {
            let fate = if addresses.contains_key(&name) { "its last addresses stay" } else { "its upstreams are out" };
            log::warn!("{missing}; {fate} until it does");
            warnings.push(missing);
        }
        let found: Vec<Name> = names.found().into_keys().collect();
        addresses.extend(names.found());
        if *config == self.config {
            if build::known_addresses(&self.config, &self.snapshot) != addresses {
                self.switch_addresses(addresses, now);
            }
            self.unchanged(ticket, &warnings);
            self.watch_names(&found, now);
            return self.reload_again(now);
        }
        self.serial += 1;
        let generation = self.snapshot.generation + 1;
        let (snapshot, mut change) =
            build::snapshot(&config, Some(&self.snapshot), &addresses, &self.facts, self.serial, generation);
        change.services = compare(&self.config, &config);
        logging::set(config.gateway.log_level, config.gateway.log_format == LogFormat::Json);
        if let Err(error) = self.access.set(&config.gateway.access) {
            log::error!("{error}; the access log stays as it was");
        }
        self.config = *config;
        self.watch_file();
        self.switch(Arc::new(snapshot), now);
        let known: std::collections::HashSet<(&str, &str)> = self
            .snapshot
            .services
            .iter()
            .flat_map(|service| &service.upstreams)
            .map(|upstream| (upstream.identity.service.as_str(), upstream.identity.key.as_str()))
            .collect();
        self.history.retain(|service, key| known.contains(&(service, key)));
        let left = (0..self.shards.len()).collect();
        let phase = Phase::Switching { left, deadline: now.after(SWITCH_TIME), change, warnings };
        self.reload = Some(Reload { ticket, phase });
        self.watch_names(&found, now);
    }

    pub(super) fn shard_switched(&mut self, shard: usize, serial: u64, now: Tick) {
        if serial != self.serial {
            return;
        }
        let Some(Reload { phase: Phase::Switching { left, .. }, .. }) = &mut self.reload else { return };
        left.retain(|other| *other != shard);
        if left.is_empty() {
            self.end_reload(now);
        }
    }

    pub(super) fn reload_deadline(&mut self, now: Tick) {
        match self.reload.as_ref().map(|reload| &reload.phase) {
            Some(Phase::Resolving { .. }) => self.names_resolved(now),
            Some(Phase::Switching { .. }) => self.end_reload(now),
            None => {}
        }
    }

    fn end_reload(&mut self, now: Tick) {
        let Some(Reload { ticket, phase: Phase::Switching { left, change, warnings, .. } }) = self.reload.take() else {
            return;
        };
        if left.is_empty() {
            self.log_reloaded(&change);
            self.reloaded(ticket.as_ref(), "reloaded", &change, &warnings);
        } else {
            let errors: Vec<String> = left.iter().map(|shard| format!("shard {shard} has not switched")).collect();
            self.refuse(
                ticket.as_ref(),
                500,
                "not_switched",
                "the configuration is in force, but not on every shard yet",
                &errors,
            );
        }
        self.reload_again(now);
    }

    /// A signal or the watcher came while a reload was under way: the file may have changed after it was read.
    fn reload_again(&mut self, now: Tick) {
        if std::mem::take(&mut self.again) {
            self.begin_reload(None, now);
        }
        if let Some(fingerprint) = self.changed.take() {
            self.file_changed(fingerprint, now);
        }
    }

    fn unchanged(&mut self, ticket: Option<Ticket>, warnings: &[String]) {
        let upstreams = self.snapshot.services.iter().map(|service| service.upstreams.len()).sum();
        let change =
            Change { upstreams: Upstreams { kept: upstreams, added: 0, removed: 0 }, services: Services::default() };
        log::info!("the configuration is unchanged");
        self.reloaded(ticket.as_ref(), "unchanged", &change, warnings);
    }

    fn reloaded(&mut self, ticket: Option<&Ticket>, status: &'static str, change: &Change, warnings: &[String]) {
        self.reloads.count(status, SystemTime::now());
        self.last_reload = Some(LastReload::new(status, SystemTime::now(), &[]));
        self.tell_reload(status, warnings, Some(change));
        let Some(ticket) = ticket else { return };
        let generation = self.snapshot.generation;
        let body = Reloaded { status, generation, services: &change.services, upstreams: change.upstreams, warnings };
        self.answer(ticket, 200, "application/json", &to_json(&body));
    }

    fn refuse(&mut self, ticket: Option<&Ticket>, status: u16, reason: &'static str, detail: &str, errors: &[String]) {
        log::error!("reload: {detail}");
        for error in errors {
            log::error!("{error}");
        }
        if status != 409 {
            self.reloads.count("failed", SystemTime::now());
            self.last_reload = Some(LastReload::new("failed", SystemTime::now(), errors));
            self.tell_reload("failed", errors, None);
        }
        let Some(ticket) = ticket else { return };
        let instance = String::from_utf8_lossy(&ticket.request_id);
        let body = Refused {
            r#type: "about:blank",
            title: crate::http::status::reason(status),
            status,
            detail,
            reason,
            instance: &instance,
            errors,
            generation: self.snapshot.generation,
        };
        self.answer_with(
            ticket,
            status,
            reason,
            "application/problem+json",
            "Cache-Control: no-store\r\n",
            &to_json(&body),
        );
    }
}

/// A document as a line of JSON.
pub fn to_json(document: &impl Serialize) -> Vec<u8> {
    // Only maps with keys that are not strings can fail, and these documents have none.
    let mut bytes = serde_json::to_vec(document).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

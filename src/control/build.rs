//! From a validated configuration to a snapshot. What did not change is taken over from the previous one:
//! identities with their breakers and counters, cursors, slots.
//!
//! Must not know: files, threads, who asked.

use crate::config::model::{self, CircuitBreaker, Config, HostHeader, UpstreamUrl};
use crate::control::reload::Change;
use crate::control::resolve::Name;
use crate::http::head;
use crate::policy::balance::{self, Cursor, Turns};
use crate::policy::breaker::{Breaker, Rates, Settings};
use crate::shared::metrics::{ServiceCounters, UpstreamCounters};
use crate::shared::snapshot::{Endpoints, Service, ServiceIdentity, Slots, Slow, Snapshot, Upstream, UpstreamIdentity};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Facts of the process that a snapshot depends on.
#[derive(Debug)]
pub struct Facts {
    /// Shards.
    pub shards: usize,
    /// Descriptors that the process may have.
    pub descriptors: usize,
    /// Lines of the log that were dropped.
    pub log_dropped: fn() -> u64,
    /// Numbers of services.
    pub service_slots: Arc<Slots>,
    /// Numbers of upstreams.
    pub upstream_slots: Arc<Slots>,
}

/// Addresses by name.
pub type Addresses = HashMap<Name, Vec<SocketAddr>>;

/// Builds the snapshot and says what it changes.
pub fn snapshot(
    config: &Config,
    previous: Option<&Snapshot>,
    addresses: &Addresses,
    facts: &Facts,
    serial: u64,
    generation: u64,
) -> (Snapshot, Change) {
    let mut change = Change::default();
    let services: Vec<Service> =
        config.services.iter().map(|service| build_service(service, previous, addresses, facts, &mut change)).collect();
    if let Some(previous) = previous {
        let total: usize = previous.services.iter().map(|service| service.upstreams.len()).sum();
        change.upstreams.removed = total - change.upstreams.kept;
    }
    let limits = &config.gateway.limits;
    let auto = facts.descriptors / 4 * 3;
    let snapshot = Snapshot {
        serial,
        generation,
        by_name: services
            .iter()
            .enumerate()
            .map(|(at, service)| (service.identity.name.as_bytes().into(), at as u32))
            .collect(),
        service_slots: services.iter().map(|service| service.identity.slot.number() + 1).max().unwrap_or(0),
        services,
        prefix: format!("{}/", config.gateway.prefix).into_bytes().into(),
        admin: config.gateway.admin.clone(),
        request_ids: config.gateway.request_ids.clone(),
        reload_endpoint: config.gateway.reload_endpoint,
        client: config.gateway.client,
        head: head::Limits {
            request_line: limits.request_line,
            header_bytes: limits.header_bytes,
            headers: limits.headers,
        },
        buffer: limits.buffer,
        busy_poll: config.gateway.busy_poll,
        metrics_path: config.gateway.metrics_path.as_bytes().into(),
        connections: limits.connections.map_or(auto, std::num::NonZeroUsize::get),
    };
    (snapshot, change)
}

fn build_service(
    service: &model::Service,
    previous: Option<&Snapshot>,
    addresses: &Addresses,
    facts: &Facts,
    change: &mut Change,
) -> Service {
    let old = previous.and_then(|snapshot| {
        let at = snapshot.service(service.name.as_bytes())?;
        Some(&snapshot.services[at as usize])
    });
    let old_positions: HashMap<&str, usize> = old.map(positions_by_key).unwrap_or_default();
    let mut upstreams: Vec<Upstream> = Vec::with_capacity(service.upstreams.len());
    let mut positions: HashMap<String, u16> = HashMap::with_capacity(service.upstreams.len());
    let mut listed_turns = Vec::with_capacity(service.upstreams.len());
    for listed in &service.upstreams {
        let key = listed.url.normalised();
        let position = positions.get(&key).copied().unwrap_or_else(|| {
            let known = old.zip(old_positions.get(key.as_str())).map(|(old, at)| &old.upstreams[*at]);
            match known {
                Some(_) => change.upstreams.kept += 1,
                None => change.upstreams.added += 1,
            }
            let position = upstreams.len() as u16;
            let identity = known.map_or_else(
                || new_identity(service, listed, &key, previous.is_some(), facts),
                |known| Arc::clone(&known.identity),
            );
            let found = addresses.get(&name(&listed.url)).cloned().unwrap_or_default();
            let endpoints = match known {
                Some(known) if **known.addresses == found => Arc::clone(&known.addresses),
                _ => Endpoints::new(found),
            };
            upstreams.push(build_upstream(service, listed, identity, endpoints));
            positions.insert(key, position);
            position
        });
        listed_turns.push((position, listed.weight, listed.backup));
    }
    let turns = Turns::of(&listed_turns);
    let cursor = |of: fn(&Service) -> (&Arc<Cursor>, &[u16]), turns: &[u16]| match old.map(of) {
        None => Arc::default(),
        Some((cursor, old_turns)) => {
            let key_of = |position: &u16| old.map(|old| old.upstreams[usize::from(*position)].identity.key.as_str());
            let same = old_turns.len() == turns.len()
                && old_turns
                    .iter()
                    .zip(turns)
                    .all(|(a, b)| key_of(a) == Some(&upstreams[usize::from(*b)].identity.key));
            if same {
                return Arc::clone(cursor);
            }
            let upcoming = balance::carry_over(cursor.upcoming(), old_turns, turns.len(), |position| {
                let position = positions.get(key_of(&position)?)?;
                turns.iter().position(|turn| turn == position)
            });
            Arc::new(Cursor::starting_at(upcoming))
        }
    };
    let main_cursor = cursor(|old| (&old.cursor, &old.turns.main), &turns.main);
    let backup_cursor = cursor(|old| (&old.backup_cursor, &old.turns.backup), &turns.backup);
    let identity = old.map(|old| Arc::clone(&old.identity)).unwrap_or_else(|| {
        let counters = (0..facts.shards).map(|_| ServiceCounters::default()).collect();
        Arc::new(ServiceIdentity { name: service.name.clone(), slot: facts.service_slots.take(), counters })
    });
    Service {
        identity,
        upstreams,
        turns,
        cursor: main_cursor,
        backup_cursor,
        balancing: service.balancing.clone(),
        retries: service.retries.clone(),
        when_all_open: service.when_all_open,
        total_timeout: service.total_timeout,
        body_limit: service.body_limit,
        upgrades: service.upgrades.iter().map(|protocol| protocol.as_bytes().into()).collect(),
    }
}

fn positions_by_key(service: &Service) -> HashMap<&str, usize> {
    service.upstreams.iter().enumerate().map(|(at, upstream)| (upstream.identity.key.as_str(), at)).collect()
}

/// `joins` says that it comes into a gateway that runs already.
fn new_identity(
    service: &model::Service,
    listed: &model::Upstream,
    key: &str,
    joins: bool,
    facts: &Facts,
) -> Arc<UpstreamIdentity> {
    Arc::new(UpstreamIdentity {
        service: service.name.clone(),
        key: key.to_owned(),
        url: listed.url.text.clone(),
        created: SystemTime::now(),
        slot: facts.upstream_slots.take(),
        breaker: Breaker::new(balance::key_of(key.as_bytes())),
        preferred: AtomicU8::new(0),
        admitted: AtomicU32::new(0),
        warm_from_ms: AtomicU64::new(if joins { UpstreamIdentity::JOINED } else { UpstreamIdentity::WARM }),
        failures: Mutex::new(VecDeque::new()),
        counters: (0..facts.shards).map(|_| UpstreamCounters::default()).collect(),
    })
}

fn build_upstream(
    service: &model::Service,
    listed: &model::Upstream,
    identity: Arc<UpstreamIdentity>,
    addresses: Arc<Endpoints>,
) -> Upstream {
    let url = &listed.url;
    Upstream {
        identity,
        addresses,
        base_path: url.base_path().as_bytes().into(),
        path: url.path.as_bytes().into(),
        authority: url.authority.as_bytes().into(),
        host: match &listed.host {
            HostHeader::Upstream => Some(url.authority.as_bytes().into()),
            HostHeader::Literal(text) => Some(text.as_bytes().into()),
            HostHeader::Client => None,
        },
        breaker: settings(&listed.breaker, &listed.timeouts),
        failure_on: listed.breaker.failure_on.clone(),
        neutral_on: listed.breaker.neutral_on.clone(),
        slow: listed.breaker.slow_after.map(|after| Slow { after, fails: listed.breaker.slow_rate == 0 }),
        name: name(url),
        weight: listed.weight,
        backup: listed.backup,
        slow_start: service.balancing.slow_start,
        counted: listed.max_requests.is_some() || service.balancing.policy.needs_load(),
        timeouts: listed.timeouts,
        pool: listed.pool,
        max_requests: listed.max_requests,
        health: listed.health.clone(),
    }
}

fn settings(breaker: &CircuitBreaker, timeouts: &model::Timeouts) -> Settings {
    let rate = |rate: u32| (rate > 0).then_some(rate);
    let (failure, slow) = (rate(breaker.failure_rate), rate(breaker.slow_rate));
    let rates = Rates { window_ms: ms(breaker.window), min_requests: breaker.min_requests.into(), failure, slow };
    Settings {
        mode: breaker.mode,
        failure_threshold: breaker.failure_threshold.into(),
        cooldown_ms: ms(breaker.cooldown),
        backoff: breaker.backoff,
        max_cooldown_ms: ms(breaker.max_cooldown.unwrap_or(breaker.cooldown)),
        jitter: breaker.jitter,
        half_open_probes: breaker.half_open_probes as usize,
        success_threshold: breaker.success_threshold,
        lease_ms: ms(breaker.probe_timeout.unwrap_or(timeouts.connect + timeouts.response)),
        rates: (failure.is_some() || slow.is_some()).then_some(rates),
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the resolver is asked for.
pub fn name(url: &UpstreamUrl) -> Name {
    (url.host.clone(), url.port)
}

/// The names of a configuration's upstreams that `wanted` picks, each once.
pub fn names(config: &Config, wanted: impl Fn(&UpstreamUrl) -> bool) -> Vec<Name> {
    let urls = config.services.iter().flat_map(|service| &service.upstreams).map(|upstream| &upstream.url);
    let mut names: Vec<Name> = urls.filter(|url| wanted(url)).map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// The addresses that a snapshot has already.
pub fn known_addresses(config: &Config, snapshot: &Snapshot) -> Addresses {
    let by_key: HashMap<&str, &Vec<SocketAddr>> = snapshot
        .services
        .iter()
        .flat_map(|service| &service.upstreams)
        .map(|upstream| (upstream.identity.key.as_str(), &**upstream.addresses))
        .collect();
    let urls = config.services.iter().flat_map(|service| &service.upstreams).map(|upstream| &upstream.url);
    urls.filter_map(|url| Some((name(url), (*by_key.get(url.normalised().as_str())?).clone()))).collect()
}

/// Whether a name of the configuration has no address in the snapshot.
pub fn lacks(config: &Config, snapshot: &Snapshot, wanted: &Name) -> bool {
    names(config, |url| name(url) == *wanted).contains(wanted)
        && known_addresses(config, snapshot).get(wanted).is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            shards: 2,
            descriptors: 1024,
            log_dropped: || 0,
            service_slots: Arc::default(),
            upstream_slots: Arc::default(),
        }
    }

    fn config(text: &str) -> Config {
        crate::config::parse("config.yaml", text, &|_| None).expect("valid").config
    }

    fn keys(snapshot: &Snapshot) -> Vec<&str> {
        snapshot.services[0].upstreams.iter().map(|upstream| upstream.identity.key.as_str()).collect()
    }

    #[test]
    fn what_did_not_change_is_taken_over() {
        let facts = facts();
        let none = Addresses::new();
        let first = config("s:\n  - http://a:1\n  - http://b:1\n  - http://c:1\nt:\n  - http://a:1\n");
        let (old, _) = snapshot(&first, None, &none, &facts, 1, 1);
        let second = config("s:\n  - http://a:1\n  - http://c:1\n  - http://d:1\nu:\n  - http://a:1\n");
        let (new, change) = snapshot(&second, Some(&old), &none, &facts, 2, 2);
        assert_eq!(keys(&new), ["http://a:1", "http://c:1", "http://d:1"]);
        assert!(Arc::ptr_eq(&old.services[0].upstreams[0].identity, &new.services[0].upstreams[0].identity));
        assert!(Arc::ptr_eq(&old.services[0].upstreams[2].identity, &new.services[0].upstreams[1].identity));
        assert!(!Arc::ptr_eq(&old.services[0].cursor, &new.services[0].cursor));
        assert_eq!((change.upstreams.kept, change.upstreams.added, change.upstreams.removed), (2, 2, 2));
    }

    #[test]
    fn the_cursor_survives_when_the_turns_do() {
        let facts = facts();
        let none = Addresses::new();
        let (old, _) = snapshot(&config("s: [http://a:1, http://b:1]"), None, &none, &facts, 1, 1);
        let settings = config("s: {upstreams: [http://a:1, http://b:1], retries: {attempts: 0}}");
        let (new, _) = snapshot(&settings, Some(&old), &none, &facts, 2, 2);
        assert!(Arc::ptr_eq(&old.services[0].cursor, &new.services[0].cursor));
    }

    #[test]
    fn a_url_listed_twice_has_two_turns_and_one_breaker() {
        let (snapshot, _) =
            snapshot(&config("s: [http://a:1, http://b:1, http://A:1/]"), None, &Addresses::new(), &facts(), 1, 1);
        assert_eq!(snapshot.services[0].upstreams.len(), 2);
        assert_eq!(*snapshot.services[0].turns.main, [0, 1, 0]);
    }

    #[test]
    fn slots_come_back_with_the_last_snapshot() {
        let facts = facts();
        let (old, _) = snapshot(&config("s: [http://a:1]"), None, &Addresses::new(), &facts, 1, 1);
        let slot = old.services[0].upstreams[0].identity.slot.number();
        drop(old);
        assert_eq!(facts.upstream_slots.take().number(), slot);
    }
}

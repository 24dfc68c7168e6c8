//! From a validated configuration to a snapshot. What did not change is taken over from the previous one:
//! identities with their breakers and counters, cursors, slots.
//!
//! Must not know: files, threads, who asked.

use crate::config::model::{self, Config, HostHeader, UpstreamUrl};
use crate::control::reload::Change;
use crate::control::resolve::Name;
use crate::http::head;
use crate::policy::balance::{self, Cursor};
use crate::policy::breaker::{Breaker, Settings};
use crate::shared::metrics::UpstreamCounters;
use crate::shared::snapshot::{Service, ServiceIdentity, Slots, Snapshot, Upstream, UpstreamIdentity};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::{Duration, SystemTime};

/// Facts of the process that a snapshot depends on.
#[derive(Debug)]
pub struct Facts {
    /// Shards.
    pub shards: usize,
    /// Descriptors that the process may have.
    pub descriptors: usize,
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
        services,
        client: config.gateway.client,
        head: head::Limits {
            request_line: limits.request_line,
            header_bytes: limits.header_bytes,
            headers: limits.headers,
        },
        buffer: limits.buffer,
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
    let mut upstreams: Vec<Upstream> = Vec::new();
    let mut turns = Vec::with_capacity(service.upstreams.len());
    for listed in &service.upstreams {
        let key = listed.url.normalised();
        let at = upstreams.iter().position(|upstream| upstream.identity.key == key).unwrap_or_else(|| {
            let known = old.and_then(|old| old.upstreams.iter().find(|upstream| upstream.identity.key == key));
            match known {
                Some(_) => change.upstreams.kept += 1,
                None => change.upstreams.added += 1,
            }
            let identity = known.map(|upstream| Arc::clone(&upstream.identity));
            upstreams.push(build_upstream(service, listed, key, identity, addresses, facts));
            upstreams.len() - 1
        });
        turns.push(at as u16);
    }
    let cursor = match old {
        Some(old) if same_turns(old, &upstreams, &turns) => Arc::clone(&old.cursor),
        Some(old) => Arc::new(Cursor::starting_at(carry_over(old, &upstreams, &turns))),
        None => Arc::new(Cursor::default()),
    };
    let identity = old
        .map(|old| Arc::clone(&old.identity))
        .unwrap_or_else(|| Arc::new(ServiceIdentity { name: service.name.clone(), slot: facts.service_slots.take() }));
    Service {
        identity,
        upstreams,
        turns,
        cursor,
        retry_attempts: service.retry_attempts,
        total_timeout: service.total_timeout,
        body_limit: service.body_limit,
        upgrades: service.upgrades.iter().map(|protocol| protocol.as_bytes().into()).collect(),
    }
}

fn build_upstream(
    service: &model::Service,
    listed: &model::Upstream,
    key: String,
    known: Option<Arc<UpstreamIdentity>>,
    addresses: &Addresses,
    facts: &Facts,
) -> Upstream {
    let identity = known.unwrap_or_else(|| {
        Arc::new(UpstreamIdentity {
            service: service.name.clone(),
            key,
            url: listed.url.text.clone(),
            created: SystemTime::now(),
            slot: facts.upstream_slots.take(),
            breaker: Breaker::new(),
            preferred: AtomicU8::new(0),
            admitted: AtomicU32::new(0),
            counters: (0..facts.shards).map(|_| UpstreamCounters::default()).collect(),
        })
    });
    let url = &listed.url;
    Upstream {
        identity,
        addresses: addresses.get(&name(url)).cloned().unwrap_or_default(),
        base_path: url.base_path().as_bytes().into(),
        path: url.path.as_bytes().into(),
        authority: url.authority.as_bytes().into(),
        host: match &listed.host {
            HostHeader::Upstream => Some(url.authority.as_bytes().into()),
            HostHeader::Literal(text) => Some(text.as_bytes().into()),
            HostHeader::Client => None,
        },
        breaker: Settings {
            failure_threshold: u64::from(listed.breaker.failure_threshold),
            cooldown_ms: ms(listed.breaker.cooldown),
            lease_ms: ms(listed.timeouts.connect + listed.timeouts.response),
        },
        failure_on: listed.breaker.failure_on.clone(),
        timeouts: listed.timeouts,
        pool: listed.pool,
        max_requests: listed.max_requests,
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
        .map(|upstream| (upstream.identity.key.as_str(), &upstream.addresses))
        .collect();
    let urls = config.services.iter().flat_map(|service| &service.upstreams).map(|upstream| &upstream.url);
    urls.filter_map(|url| Some((name(url), (*by_key.get(url.normalised().as_str())?).clone()))).collect()
}

/// Whether a name of the configuration has no address in the snapshot.
pub fn lacks(config: &Config, snapshot: &Snapshot, wanted: &Name) -> bool {
    names(config, |url| name(url) == *wanted).contains(wanted)
        && known_addresses(config, snapshot).get(wanted).is_none_or(Vec::is_empty)
}

fn same_turns(old: &Service, upstreams: &[Upstream], turns: &[u16]) -> bool {
    let key_of = |upstreams: &[Upstream], turn: &u16| upstreams[usize::from(*turn)].identity.key.clone();
    old.turns.len() == turns.len()
        && old.turns.iter().zip(turns).all(|(a, b)| key_of(&old.upstreams, a) == key_of(upstreams, b))
}

fn carry_over(old: &Service, upstreams: &[Upstream], turns: &[u16]) -> u64 {
    balance::carry_over(old.cursor.upcoming(), &old.turns, turns.len(), |position| {
        let key = &old.upstreams[usize::from(position)].identity.key;
        turns.iter().position(|turn| upstreams[usize::from(*turn)].identity.key == *key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { shards: 2, descriptors: 1024, service_slots: Arc::default(), upstream_slots: Arc::default() }
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
        assert_eq!(snapshot.services[0].turns, [0, 1, 0]);
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

//! The snapshot: an immutable, validated configuration with resolved services. A reload makes a new one;
//! what did not change is carried over by `Arc`: breakers, cursors, counters, and the slots under which
//! shards keep pools and accounts.
//!
//! Must not know: files, sockets, how it was built.

use crate::config::model;
use crate::http::head;
use crate::policy::balance::{Cursor, Turns};
use crate::policy::breaker::{Breaker, Settings};
use crate::policy::class::Causes;
use crate::policy::retry;
use crate::shared::failure::Failure;
use crate::shared::metrics::{ServiceCounters, UpstreamCounters};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A configuration in force.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts snapshots, also those that only have other addresses; acknowledged by shards.
    pub serial: u64,
    /// Counts the configurations that were in force, from 1.
    pub generation: u64,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Position of a service by its name.
    pub by_name: HashMap<Box<[u8]>, u32, BuildHasherDefault<NameHasher>>,
    /// `gateway.prefix`, with a `/` at its end.
    pub prefix: Box<[u8]>,
    /// `gateway.admin`.
    pub admin: model::Admin,
    /// `gateway.request_id`.
    pub request_ids: model::RequestIds,
    /// `gateway.reload_endpoint`.
    pub reload_endpoint: model::ReloadEndpoint,
    /// `gateway.client`.
    pub client: model::Client,
    /// Bounds of heads.
    pub head: head::Limits,
    /// `gateway.busy_poll`.
    pub busy_poll: Duration,
    /// `limits.buffer`.
    pub buffer: usize,
    /// `limits.connections`, resolved.
    pub connections: usize,
    /// `metrics.path`.
    pub metrics_path: Box<[u8]>,
    /// Above the number of every service's slot.
    pub service_slots: usize,
}

impl Snapshot {
    /// The service of this name.
    pub fn service(&self, name: &[u8]) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// What shards leave behind when they go on to `newer`: the slots whose idle connections must not be used
    /// any more, because the upstream is gone or has other addresses. Marks those addresses, for the connections
    /// that are in use. It looks at every upstream, so that no shard has to.
    pub fn retire(&self, newer: &Snapshot) -> Vec<usize> {
        let kept: HashMap<usize, &Arc<Endpoints>> = newer
            .services
            .iter()
            .flat_map(|service| &service.upstreams)
            .map(|upstream| (upstream.identity.slot.number(), &upstream.addresses))
            .collect();
        let mut left = Vec::new();
        for upstream in self.services.iter().flat_map(|service| &service.upstreams) {
            let slot = upstream.identity.slot.number();
            if kept.get(&slot).is_none_or(|now| !Arc::ptr_eq(now, &upstream.addresses)) {
                upstream.addresses.in_force.store(false, Ordering::Relaxed);
                left.push(slot);
            }
        }
        left
    }

    /// Bytes of a large buffer: the bound per direction, or what the longest head can become when it is
    /// written anew (its fields, the host twice, what is added).
    pub fn large_buffer(&self) -> usize {
        self.buffer.max(2 * self.head.header_bytes + self.head.request_line + (4 << 10))
    }
}

/// Hashes names of services (FNV-1a). What is looked up comes from anywhere, but what is stored comes from the
/// configuration alone, so nobody can fill a bucket.
#[derive(Debug)]
pub struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> NameHasher {
        NameHasher(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    // The length of a slice: the bytes alone tell names apart well enough.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        // The table takes its buckets from the low bits and its tags from the high ones.
        self.0 ^ self.0 >> 32
    }
}

/// A service in force.
#[derive(Debug)]
pub struct Service {
    /// Shared by every snapshot that has a service of this name.
    pub identity: Arc<ServiceIdentity>,
    /// Each URL once, in configuration order.
    pub upstreams: Vec<Upstream>,
    /// Tables of positions in `upstreams`.
    pub turns: Turns,
    /// Shared by every snapshot with the same turns.
    pub cursor: Arc<Cursor>,
    /// The same for the backups' turns.
    pub backup_cursor: Arc<Cursor>,
    /// `load_balancing`.
    pub balancing: model::Balancing,
    /// `retries`.
    pub retries: retry::Policy,
    /// `circuit_breaker.when_all_open`.
    pub when_all_open: model::WhenAllOpen,
    /// Of an exchange.
    pub total_timeout: Option<Duration>,
    /// Bytes of a request body.
    pub body_limit: Option<u64>,
    /// Protocols that a client may upgrade to, in lower case.
    pub upgrades: Vec<Box<[u8]>>,
}

/// What a service is, whatever its settings.
#[derive(Debug)]
pub struct ServiceIdentity {
    /// Of the configuration.
    pub name: String,
    /// Where shards keep its retry account.
    pub slot: Slot,
    /// One entry for each shard.
    pub counters: Box<[ServiceCounters]>,
}

/// An upstream in force.
#[derive(Debug)]
pub struct Upstream {
    /// Shared by every snapshot that has this URL in this service.
    pub identity: Arc<UpstreamIdentity>,
    /// Of its name; empty while that does not resolve.
    pub addresses: Arc<Endpoints>,
    /// The path without a trailing `/`.
    pub base_path: Box<[u8]>,
    /// The whole path.
    pub path: Box<[u8]>,
    /// Of its URL, as a `Host`.
    pub authority: Box<[u8]>,
    /// The `Host` to send; `None` sends the client's.
    pub host: Option<Box<[u8]>>,
    /// Of the breaker.
    pub breaker: Settings,
    /// What the breaker counts.
    pub failure_on: Causes,
    /// What it takes for nothing.
    pub neutral_on: Causes,
    /// From where on an answer is slow, and whether that is a failure by itself.
    pub slow: Option<Slow>,
    /// Host and port of its URL.
    pub name: (String, u16),
    /// Its share of the turns.
    pub weight: u32,
    /// It serves when no other can.
    pub backup: bool,
    /// How long it is spared after it came or closed; zero is off.
    pub slow_start: Duration,
    /// Requests under way are counted for the whole process: for a limit, or for a policy that asks.
    pub counted: bool,
    /// `timeouts`.
    pub timeouts: model::Timeouts,
    /// `pool`.
    pub pool: model::Pool,
    /// Concurrent requests of the process; `None` is off and costs nothing.
    pub max_requests: Option<u32>,
    /// `health_check`; `None` is off.
    pub health: Option<model::HealthCheck>,
}

/// The addresses of an upstream, shared by every snapshot that has it with just these.
#[derive(Debug)]
pub struct Endpoints {
    list: Vec<SocketAddr>,
    /// The newest snapshot has them: a connection to one of them may be kept.
    pub in_force: AtomicBool,
}

impl Endpoints {
    /// In force until a snapshot is retired by one that has others.
    pub fn new(list: Vec<SocketAddr>) -> Arc<Endpoints> {
        Arc::new(Endpoints { list, in_force: AtomicBool::new(true) })
    }
}

impl Deref for Endpoints {
    type Target = Vec<SocketAddr>;

    fn deref(&self) -> &Vec<SocketAddr> {
        &self.list
    }
}

/// `circuit_breaker.slow_after` and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// From the beginning of the attempt to its response head.
    pub after: Duration,
    /// Each slow answer is a failure; else their share counts.
    pub fails: bool,
}

impl Upstream {
    /// Takes one of the concurrent requests; false when all are taken.
    pub fn enter(&self) -> bool {
        if !self.counted {
            return true;
        }
        let before = self.identity.admitted.fetch_add(1, Ordering::Relaxed);
        let entered = self.max_requests.is_none_or(|most| before < most);
        if !entered {
            self.identity.admitted.fetch_sub(1, Ordering::Relaxed);
        }
        entered
    }

    /// Gives back what [`Upstream::enter`] of the same snapshot took.
    pub fn exit(&self) {
        if self.counted {
            self.identity.admitted.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It has an address and a share of the turns.
    pub fn serves(&self) -> bool {
        self.weight > 0 && !self.addresses.is_empty()
    }

    /// Requests under way for its weight, with the one that may come.
    pub fn load(&self) -> u64 {
        let admitted = u64::from(self.identity.admitted.load(Ordering::Relaxed));
        ((admitted + 1) << 20) / u64::from(self.weight.max(1))
    }

    /// The share of its turns that it takes while it starts slowly, in 1/1024; all of them when that is over.
    pub fn warmth(&self, now_ms: u64) -> u64 {
        let whole = self.slow_start.as_millis() as u64;
        if whole == 0 {
            return 1024;
        }
        let mut since = self.identity.warm_from_ms.load(Ordering::Relaxed);
        if since == UpstreamIdentity::JOINED {
            since = now_ms;
            self.identity.warm_from_ms.store(now_ms, Ordering::Relaxed);
        }
        if since == UpstreamIdentity::WARM {
            return 1024;
        }
        // A tenth at once, or a service with little traffic would never begin.
        (now_ms.saturating_sub(since).min(whole) * 1024 / whole).max(102)
    }
}

/// What an upstream is, whatever its settings: the unit of the breaker.
#[derive(Debug)]
pub struct UpstreamIdentity {
    /// Of its service.
    pub service: String,
    /// The spelling of the URL that equal ones share.
    pub key: String,
    /// As configured.
    pub url: String,
    /// When it came into the configuration.
    pub created: SystemTime,
    /// Where shards keep its idle connections.
    pub slot: Slot,
    /// Shared by all shards.
    pub breaker: Breaker,
    /// Position of the address that worked last.
    pub preferred: AtomicU8,
    /// Requests under way on snapshots that count them.
    pub admitted: AtomicU32,
    /// Where a slow start begins, in milliseconds: when its breaker closed, or the first look at one that came
    /// by a reload.
    pub warm_from_ms: AtomicU64,
    /// The last failures, oldest first.
    pub failures: Mutex<VecDeque<FailureRecord>>,
    /// One entry for each shard.
    pub counters: Box<[UpstreamCounters]>,
}

/// Failures that are remembered of each upstream.
pub const REMEMBERED_FAILURES: usize = 8;

/// One failed attempt.
#[derive(Clone, Debug)]
pub struct FailureRecord {
    /// When, in milliseconds since the start.
    pub at_ms: u64,
    /// What.
    pub failure: Failure,
    /// How long the attempt took.
    pub duration: Duration,
    /// Of its request.
    pub request_id: Box<str>,
}

impl UpstreamIdentity {
    /// Of `warm_from_ms`: here since the start, and never closed again.
    pub const WARM: u64 = 0;
    /// Of `warm_from_ms`: new, and not looked at yet.
    pub const JOINED: u64 = u64::MAX;

    /// Remembers a failure. One is let go when somebody reads them just now: a shard does not wait.
    pub fn remember(&self, record: impl FnOnce() -> FailureRecord) {
        let Ok(mut failures) = self.failures.try_lock() else { return };
        if failures.len() == REMEMBERED_FAILURES {
            failures.pop_front();
        }
        failures.push_back(record());
    }
}

/// Numbers that are given out and come back, so that shards can keep things in plain vectors.
#[derive(Debug, Default)]
pub struct Slots {
    state: Mutex<(usize, Vec<usize>)>,
}

impl Slots {
    /// A number that nobody holds.
    pub fn take(self: &Arc<Slots>) -> Slot {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.1.pop().unwrap_or_else(|| {
            state.0 += 1;
            state.0 - 1
        });
        Slot { number, slots: Arc::clone(self) }
    }
}

/// A number that is held until this is dropped.
///
/// Control drops a snapshot when no shard has it any more, and idle connections of an upstream are closed at the
/// switch that removes it: so no shard holds anything under a free number.
#[derive(Debug)]
pub struct Slot {
    number: usize,
    slots: Arc<Slots>,
}

impl Slot {
    /// The number.
    pub fn number(&self) -> usize {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.state.lock().unwrap_or_else(PoisonError::into_inner).1.push(self.number);
    }
}

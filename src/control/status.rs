//! The status document: what the breakers are and why, from the same words that routing uses.
//!
//! Must not know: who asks, how a document is sent.

use crate::control::health::Report;
use crate::control::metrics::Machine;
use crate::control::reload::to_json;
use crate::control::{Control, Courier};
use crate::ground::calendar;
use crate::ground::tick::Tick;
use crate::http::request::Refusal;
use crate::policy::breaker::{Breaker, Mode, State};
use crate::shared::failure::{Failure, Unavailable};
use crate::shared::metrics::{Counter, Ending, Latencies, ShardCounters, UpstreamCounters};
use crate::shared::snapshot::{ServiceIdentity, Upstream, UpstreamIdentity};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

/// How the last reload ended.
#[derive(Clone, Debug, Serialize)]
pub struct LastReload {
    result: &'static str,
    time: String,
    errors: Vec<String>,
}

impl LastReload {
    /// A reload that ended at `time`.
    pub fn new(result: &'static str, time: SystemTime, errors: &[String]) -> LastReload {
        LastReload { result, time: rfc3339(time), errors: errors.to_vec() }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    uptime_seconds: u64,
    generation: u64,
    config: String,
    last_reload: &'a Option<LastReload>,
    shards: usize,
    connections: usize,
    pool: Pool,
    process: ProcessStatus,
    counters: Counters,
    services: Vec<ServiceStatus<'a>>,
}

/// Upstream connections.
#[derive(Serialize)]
struct Pool {
    active: u64,
    idle: u64,
}

#[derive(Serialize)]
struct ProcessStatus {
    pid: u32,
    cpu_seconds: f64,
    resident_bytes: u64,
    open_fds: usize,
    max_fds: usize,
}

#[derive(Serialize)]
struct Counters {
    accepted: u64,
    requests: u64,
    refused: BTreeMap<&'static str, u64>,
    over_limit: u64,
    rejected: u64,
    saturated: u64,
    retries: u64,
    stale: u64,
    aborted: u64,
    accept_pauses: u64,
    notices_lost: u64,
    panics: u64,
    longest_turn_us: u64,
}

#[derive(Serialize)]
struct ServiceStatus<'a> {
    name: &'a str,
    /// Requests for which no upstream could be picked, by why; only what has happened.
    unavailable: BTreeMap<&'static str, u64>,
    upstreams: Vec<UpstreamStatus<'a>>,
}

/// An upstream as the document shows it.
#[derive(Serialize)]
pub(super) struct UpstreamStatus<'a> {
    url: &'a str,
    state: &'static str,
    since: String,
    reason: &'a str,
    failures_in_row: u64,
    next_probe_seconds: Option<f64>,
    held: bool,
    mode: &'static str,
    weight: u32,
    backup: bool,
    addresses: &'a [std::net::SocketAddr],
    name_error: Option<&'a str>,
    attempts: u64,
    failures: u64,
    settled: u64,
    in_flight: u64,
    outcomes: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<LatencyStatus>,
    last_failures: Vec<FailureStatus>,
    transitions: Vec<TransitionStatus<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthStatus>,
}

/// Seconds from the beginning of attempts to their response heads, since the start.
#[derive(Serialize)]
struct LatencyStatus {
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
}

#[derive(Serialize)]
struct FailureStatus {
    time: String,
    class: &'static str,
    cause: String,
    status: Option<u16>,
    duration_ms: f64,
    request_id: String,
}

#[derive(Serialize)]
struct TransitionStatus<'a> {
    time: String,
    from: &'static str,
    to: &'static str,
    reason: &'a str,
}

#[derive(Serialize)]
struct HealthStatus {
    state: &'static str,
    checks: u64,
    failed: u64,
    in_row: u64,
    last: Option<LastCheck>,
}

#[derive(Serialize)]
struct LastCheck {
    time: String,
    result: String,
    duration_ms: f64,
}

/// Renders the document.
pub fn document<C: Courier>(control: &Control<C>, now: Tick) -> Vec<u8> {
    let shards = &control.process.shards;
    let sum = |pick: fn(&ShardCounters) -> &Counter| shards.iter().map(|shard| pick(shard).read()).sum();
    let (connections, idle): (u64, u64) =
        (sum(|shard| &shard.upstream_connections), sum(|shard| &shard.idle_connections));
    let machine = Machine::look();
    to_json(&Document {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: control.started.elapsed().unwrap_or_default().as_secs(),
        generation: control.snapshot.generation,
        config: control.source.name(),
        last_reload: &control.last_reload,
        shards: shards.len(),
        connections: control.process.connections(),
        pool: Pool { active: connections.saturating_sub(idle), idle },
        process: ProcessStatus {
            pid: std::process::id(),
            cpu_seconds: machine.cpu_s,
            resident_bytes: machine.resident,
            open_fds: machine.open_fds,
            max_fds: control.facts.descriptors,
        },
        counters: Counters {
            accepted: sum(|shard| &shard.accepted),
            requests: sum(|shard| &shard.requests),
            refused: (Refusal::WORDS.iter().enumerate())
                .map(|(at, word)| (*word, shards.iter().map(|shard| shard.refusals[at].read()).sum()))
                .collect(),
            over_limit: sum(|shard| &shard.over_limit),
            rejected: sum(|shard| &shard.rejected),
            saturated: sum(|shard| &shard.saturated),
            retries: sum(|shard| &shard.retries),
            stale: sum(|shard| &shard.stale),
            aborted: sum(|shard| &shard.aborted),
            accept_pauses: sum(|shard| &shard.accept_pauses),
            notices_lost: sum(|shard| &shard.notices_lost),
            panics: sum(|shard| &shard.panics),
            longest_turn_us: shards.iter().map(|shard| shard.longest_turn_us.read()).max().unwrap_or(0),
        },
        services: control
            .snapshot
            .services
            .iter()
            .map(|service| ServiceStatus {
                name: &service.identity.name,
                unavailable: unavailable(&service.identity),
                upstreams: service.upstreams.iter().map(|upstream| upstream_status(control, upstream, now)).collect(),
            })
            .collect(),
    })
}

/// What is known of an upstream.
pub(super) fn upstream_status<'a, C: Courier>(
    control: &'a Control<C>,
    upstream: &'a Upstream,
    now: Tick,
) -> UpstreamStatus<'a> {
    let identity = &upstream.identity;
    let view = identity.breaker.view();
    let entries: Vec<_> = control.history.of(identity).collect();
    let last = entries.last().copied();
    let sum = |pick: fn(&UpstreamCounters) -> &Counter| {
        identity.counters.iter().fold(0u64, |sum, shard| sum.wrapping_add(pick(shard).read()))
    };
    // A breaker whose cooldown is over still says open: nobody has probed yet.
    let probe = view.probe_at_ms.filter(|at| view.state == State::Open && *at != Breaker::FOR_EVER);
    UpstreamStatus {
        url: &identity.url,
        state: view.state.word(),
        since: rfc3339(last.map_or(identity.created, |entry| entry.time)),
        reason: match last {
            _ if upstream.addresses.is_empty() => "its name does not resolve",
            Some(entry) => &entry.reason,
            None => "since it was configured",
        },
        failures_in_row: match (view.state, last) {
            (State::Closed, _) => view.failures,
            (_, Some(entry)) => entry.failures,
            (_, None) => 0,
        },
        next_probe_seconds: probe.map(|at| at.saturating_sub(now.ms()) as f64 / 1000.0),
        held: view.held,
        mode: match upstream.breaker.mode {
            Mode::Off => "off",
            Mode::Observe => "observe",
            Mode::Enforce => "enforce",
        },
        weight: upstream.weight,
        backup: upstream.backup,
        addresses: &upstream.addresses,
        name_error: control.fresh.failing(&upstream.name),
        attempts: sum(|shard| &shard.attempts),
        failures: sum(|shard| &shard.failures),
        settled: sum(|shard| &shard.settled),
        in_flight: sum(|shard| &shard.in_flight),
        outcomes: outcomes(identity),
        latency: latency(identity),
        last_failures: last_failures(identity, now),
        transitions: entries
            .iter()
            .map(|entry| TransitionStatus {
                time: rfc3339(entry.time),
                from: entry.from.word(),
                to: entry.to.word(),
                reason: &entry.reason,
            })
            .collect(),
        health: control.health.report(identity).map(health_status),
    }
}

/// How attempts ended, and how often; what never happened is left out.
fn outcomes(identity: &UpstreamIdentity) -> BTreeMap<&'static str, u64> {
    let words = Ending::WORDS.into_iter().enumerate();
    let sums = words.map(|(at, word)| (word, identity.counters.iter().map(|shard| shard.endings[at].read()).sum()));
    sums.filter(|(_, sum)| *sum > 0).collect()
}

fn latency(identity: &UpstreamIdentity) -> Option<LatencyStatus> {
    let mut used = identity.counters.iter().map(|shard| &shard.latency).filter(|latency| latency.get().is_some());
    let first = used.next()?;
    let all = Latencies::of(std::iter::once(first).chain(used), 0);
    let seconds = |share| Some(all.quantile(share)?.as_secs_f64());
    Some(LatencyStatus { p50: seconds(0.5)?, p90: seconds(0.9)?, p99: seconds(0.99)?, p99_9: seconds(0.999)? })
}

fn unavailable(identity: &ServiceIdentity) -> BTreeMap<&'static str, u64> {
    let sum = |at: usize| identity.counters.iter().map(|shard| shard.unavailable[at].read()).sum();
    Unavailable::WORDS.into_iter().enumerate().map(|(at, word)| (word, sum(at))).filter(|(_, sum)| *sum > 0).collect()
}

/// The last failures of an upstream, oldest first.
fn last_failures(identity: &UpstreamIdentity, now: Tick) -> Vec<FailureStatus> {
    let failures = identity.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let wall = |at_ms: u64| SystemTime::now() - Duration::from_millis(now.ms().saturating_sub(at_ms));
    failures
        .iter()
        .map(|record| FailureStatus {
            time: rfc3339(wall(record.at_ms)),
            class: record.failure.ending().word(),
            cause: record.failure.to_string(),
            status: if let Failure::Status(status) = record.failure { Some(status) } else { None },
            duration_ms: record.duration.as_secs_f64() * 1000.0,
            request_id: record.request_id.to_string(),
        })
        .collect()
}

fn health_status(report: Report) -> HealthStatus {
    let Report { state, checks, failed, in_row, last } = report;
    let last = last.map(|last| LastCheck {
        time: rfc3339(last.time),
        result: last.result.map_or_else(|failure| failure.to_string(), |status| format!("status {status}")),
        duration_ms: last.duration.as_micros() as f64 / 1000.0,
    });
    HealthStatus { state: state.word(), checks, failed, in_row, last }
}

/// A moment as RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    calendar::rfc3339(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

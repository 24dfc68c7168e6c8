//! The picture that subscribers of events get every second: states, counters, and the latencies of the last seconds.
//!
//! Compact where the status document is complete: what changes slowly is left to that. Must not know: who looks at it.

use crate::control::status::rfc3339;
use crate::control::{Control, Courier};
use crate::ground::tick::Tick;
use crate::policy::breaker::{Breaker, State};
use crate::shared::failure::Unavailable;
use crate::shared::metrics::{Counter, Latencies, Latency, ServiceCounters, ShardCounters, UpstreamCounters};
use crate::shared::snapshot::{Service, Upstream};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// After so long the older of two marks is moved: percentiles are about one to two times that.
const TURN: Duration = Duration::from_secs(5);

/// What percentiles of the last seconds are measured against.
#[derive(Debug, Default)]
pub struct Live {
    services: HashMap<usize, Marks>,
    upstreams: HashMap<usize, Marks>,
    turn_at: Tick,
    /// Upstreams and services that are gone leave their marks with it.
    round: u64,
}

#[derive(Debug)]
struct Marks {
    older: Latencies,
    newer: Latencies,
    round: u64,
}

impl Live {
    /// Somebody begins to look: what was before is not of the last seconds.
    pub fn begin(&mut self) {
        *self = Live::default();
    }
}

#[derive(Serialize)]
pub(super) struct Sample<'a> {
    time: String,
    generation: u64,
    uptime_seconds: u64,
    draining: bool,
    connections: usize,
    /// Since the start.
    requests: u64,
    refused: u64,
    services: Vec<ServiceSample<'a>>,
}

#[derive(Serialize)]
struct ServiceSample<'a> {
    name: &'a str,
    /// Answered since the start.
    requests: u64,
    /// Those of them with a 5xx.
    errors: u64,
    /// Answered 503 because no breaker let them pass.
    rejected: u64,
    retries: u64,
    latency: Option<Percentiles>,
    upstreams: Vec<UpstreamSample<'a>>,
}

#[derive(Serialize)]
struct UpstreamSample<'a> {
    url: &'a str,
    state: &'static str,
    held: bool,
    next_probe_seconds: Option<f64>,
    failures_in_row: u64,
    in_flight: u64,
    attempts: u64,
    failures: u64,
    latency: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'static str>,
    /// It has an address and a weight.
    serves: bool,
}

/// Seconds, of the last seconds.
#[derive(Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

/// Takes the picture.
pub(super) fn sample<'a, C: Courier>(control: &'a Control<C>, live: &mut Live, now: Tick) -> Sample<'a> {
    let turns = now >= live.turn_at;
    if turns {
        live.turn_at = now.after(TURN);
    }
    live.round += 1;
    let shards = &control.process.shards;
    let sum = |pick: fn(&ShardCounters) -> &Counter| -> u64 { shards.iter().map(|shard| pick(shard).read()).sum() };
    let services: Vec<_> =
        control.snapshot.services.iter().map(|service| of_service(control, service, live, turns, now)).collect();
    let round = live.round;
    live.services.retain(|_, marks| marks.round == round);
    live.upstreams.retain(|_, marks| marks.round == round);
    Sample {
        time: rfc3339(SystemTime::now()),
        generation: control.snapshot.generation,
        uptime_seconds: control.started.elapsed().unwrap_or_default().as_secs(),
        draining: !control.process.ready.load(Ordering::Relaxed),
        connections: control.process.connections(),
        requests: sum(|shard| &shard.requests),
        refused: shards.iter().flat_map(|shard| &shard.refusals).map(Counter::read).sum(),
        services,
    }
}

fn of_service<'a, C: Courier>(
    control: &'a Control<C>,
    service: &'a Service,
    live: &mut Live,
    turns: bool,
    now: Tick,
) -> ServiceSample<'a> {
    let counters = &service.identity.counters;
    let (mut requests, mut errors) = (0, 0);
    for (_, status, count) in counters.iter().flat_map(ServiceCounters::responses) {
        requests += count;
        errors += if status >= 500 { count } else { 0 };
    }
    let sum = |of: &dyn Fn(&ServiceCounters) -> u64| counters.iter().map(of).sum();
    let slot = service.identity.slot.number();
    let latencies = &mut counters.iter().map(|counters| &counters.latency);
    ServiceSample {
        name: &service.identity.name,
        requests,
        errors,
        rejected: sum(&|counters| counters.unavailable[Unavailable::CircuitOpen as usize].read()),
        retries: sum(&|counters| counters.retries.iter().flatten().map(Counter::read).sum()),
        latency: percentiles(&mut live.services, slot, live.round, turns, latencies),
        upstreams: service.upstreams.iter().map(|upstream| of_upstream(control, upstream, live, turns, now)).collect(),
    }
}

fn of_upstream<'a, C: Courier>(
    control: &'a Control<C>,
    upstream: &'a Upstream,
    live: &mut Live,
    turns: bool,
    now: Tick,
) -> UpstreamSample<'a> {
    let identity = &upstream.identity;
    let view = identity.breaker.view();
    let sum = |pick: fn(&UpstreamCounters) -> &Counter| {
        identity.counters.iter().fold(0u64, |sum, shard| sum.wrapping_add(pick(shard).read()))
    };
    let probe = view.probe_at_ms.filter(|at| view.state == State::Open && *at != Breaker::FOR_EVER);
    let latencies = &mut identity.counters.iter().map(|counters| &counters.latency);
    UpstreamSample {
        url: &identity.url,
        state: view.state.word(),
        held: view.held,
        next_probe_seconds: probe.map(|at| at.saturating_sub(now.ms()) as f64 / 1000.0),
        failures_in_row: if view.state == State::Closed { view.failures } else { 0 },
        in_flight: sum(|shard| &shard.in_flight),
        attempts: sum(|shard| &shard.attempts),
        failures: sum(|shard| &shard.failures),
        latency: percentiles(&mut live.upstreams, identity.slot.number(), live.round, turns, latencies),
        health: control.health.report(identity).map(|report| report.state.word()),
        serves: upstream.serves(),
    }
}

fn percentiles(
    marks: &mut HashMap<usize, Marks>,
    slot: usize,
    round: u64,
    turns: bool,
    parts: &mut dyn Iterator<Item = &OnceLock<Box<Latency>>>,
) -> Option<Percentiles> {
    let mut used = parts.filter(|latency| latency.get().is_some()).peekable();
    used.peek()?;
    let all = Latencies::of(used, 0);
    let marks = marks.entry(slot).or_insert_with(|| Marks { older: all.clone(), newer: all.clone(), round });
    marks.round = round;
    let recent = all.since(&marks.older);
    if turns {
        marks.older = std::mem::replace(&mut marks.newer, all);
    }
    let seconds = |share| Some(recent.quantile(share)?.as_secs_f64());
    Some(Percentiles { p50: seconds(0.5)?, p90: seconds(0.9)?, p99: seconds(0.99)? })
}

//! What is written down when a request ends: the counters of its service, and its line for the access log.
//!
//! Must not know: how a request ended, beyond what it is told; formats, files.

use crate::http::request::{Method, Request, Version};
use crate::http::target::Target;
use crate::shard::exchange::Exchange;
use crate::shard::mailbox::Told;
use crate::shard::{Ctx, Reply};
use crate::shared::access::{Kept, Line, Said};
use crate::shared::failure::Failure;
use crate::shared::metrics::{Latency, ServiceCounters};
use crate::shared::snapshot::Snapshot;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// How an exchange ended, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The response went out whole.
    Whole,
    /// The response had begun, and ended short.
    Cut(Failure),
    /// The gateway answered in the upstream's place, with a status and a cause.
    Answered(u16, &'static str),
    /// The client has left.
    Left,
}

/// The status of the access log for a client that left before there was one.
const LEFT: u16 = 499;

/// Remembers what the client said, when the access log wants it.
pub fn keep<N>(request: &Request<'_, '_>, ctx: &mut Ctx<N>) {
    if !ctx.process.access.is_on() {
        return;
    }
    let field = |name| request.field(name).unwrap_or_default();
    let (target, query): (&[u8], &[u8]) = match request.target {
        Target::Resource { path, query, .. } => (path, query),
        Target::Asterisk => (b"*", b""),
        Target::Authority => (b"-", b""),
    };
    let said = Said {
        method: request.method.as_bytes(),
        target,
        host: request.host.unwrap_or_default(),
        referer: field("referer"),
        user_agent: field("user-agent"),
        trace: field("traceparent"),
    };
    ctx.scribe.keep(&said, query);
}

/// The same of a head that could not be read: its first line is what there is.
pub fn keep_raw<N>(input: &[u8], ctx: &mut Ctx<N>) {
    if !ctx.process.access.is_on() {
        return;
    }
    let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    ctx.scribe.keep(&Said { method, target, ..Said::default() }, b"");
}

/// Counts an exchange that has ended, or whose tunnel begins.
pub fn count<N>(exchange: &Exchange, end: End, ctx: &Ctx<N>) {
    let service = &exchange.service().identity.counters[ctx.shard()];
    service.answered(exchange.request.method, status(exchange, end));
    note(service, ctx.now.since(exchange.started), ctx);
}

fn status(exchange: &Exchange, end: End) -> u16 {
    match (end, exchange.status) {
        (End::Answered(status, _), _) => status,
        (_, 0) => LEFT,
        (_, status) => status,
    }
}

fn note<N>(service: &ServiceCounters, took: Duration, ctx: &Ctx<N>) {
    service.latency.get_or_init(Box::<Latency>::default).note(took, &ctx.process.bounds_us);
}

/// Writes the line of an exchange that has ended.
pub fn line<N>(exchange: &Exchange, end: End, kept: Option<Box<Kept>>, peer: IpAddr, ctx: &mut Ctx<N>) {
    let Some(kept) = kept else { return };
    let upstream = exchange.upstream();
    let line = Line {
        time_us: ctx.date.wall_us(ctx.now),
        duration_us: ctx.now.since(exchange.started).as_micros() as u64,
        upstream_us: (exchange.upstream_us != u32::MAX).then_some(exchange.upstream_us.into()),
        received: exchange.service().body_limit.unwrap_or(u64::MAX).saturating_sub(exchange.body_left),
        sent: exchange.sent,
        status: status(exchange, end),
        upstream_status: (exchange.upstream_status != 0).then_some(exchange.upstream_status),
        attempts: exchange.tried.count(),
        version: Some(exchange.request.version),
        peer,
        outcome: match end {
            End::Whole => exchange.ending.word(),
            End::Cut(_) => "cut",
            End::Answered(_, cause) => cause,
            End::Left => "client_abort",
        }
        .as_bytes(),
        request_id: exchange.request.id.as_bytes(),
        service: exchange.service().identity.name.as_bytes(),
        upstream: upstream.identity.url.as_bytes(),
    };
    ctx.scribe.write(&line, kept);
}

/// Counts an answer of the gateway's own that no exchange has led to, and writes its line.
pub fn own<N>(
    reply: &Reply<'_>,
    request_id: &[u8],
    sent: usize,
    kept: Option<Box<Kept>>,
    peer: IpAddr,
    snapshot: &Snapshot,
    ctx: &mut Ctx<N>,
) {
    let known = reply.service.as_ref().map(|name| snapshot.service(name.as_bytes()));
    let shard = ctx.counters();
    let counters = match known {
        Some(Some(at)) => &snapshot.services[at as usize].identity.counters[ctx.shard()],
        Some(None) => &shard.unknown,
        None if reply.outcome == UNKNOWN => &shard.unknown,
        None => &shard.own,
    };
    counters.answered(reply.meta.method, reply.status);
    note(counters, Duration::ZERO, ctx);
    let service = reply.service.as_ref().filter(|_| matches!(known, Some(Some(_))));
    let version = (reply.meta.head_len > 0).then_some(reply.meta.version);
    let facts = Facts { status: reply.status, outcome: reply.outcome, version, request_id, sent };
    own_line(&facts, service.map_or("", |name| name), kept, peer, ctx);
}

/// The cause of the answer to a request that names no service.
pub const UNKNOWN: &str = "unknown_service";

/// Counts an answer of control, and writes its line.
pub fn ticket<N>(
    method: Method,
    told: &Told,
    pieces: &VecDeque<Vec<u8>>,
    kept: Option<Box<Kept>>,
    peer: IpAddr,
    ctx: &mut Ctx<N>,
) {
    let first = pieces.front().map_or(&[][..], |first| first);
    let digits = first.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    let status = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let own = &ctx.counters().own;
    own.answered(method, status);
    note(own, Duration::ZERO, ctx);
    let head = memchr::memmem::find(first, b"\r\n\r\n").map_or(first.len(), |end| end + 4);
    let sent = pieces.iter().map(Vec::len).sum::<usize>() - head;
    let (outcome, request_id) = (told.outcome, &told.request_id);
    let facts = Facts { status, outcome, version: Some(Version::Http11), request_id, sent };
    own_line(&facts, "", kept, peer, ctx);
}

/// Counts a client that left before control had answered, and writes its line.
pub fn left<N>(method: Method, kept: Option<Box<Kept>>, peer: IpAddr, ctx: &mut Ctx<N>) {
    ctx.counters().own.answered(method, LEFT);
    let version = Some(Version::Http11);
    own_line(&Facts { status: LEFT, outcome: "client_abort", version, request_id: b"", sent: 0 }, "", kept, peer, ctx);
}

/// What is known of an answer of the gateway's own.
struct Facts<'f> {
    status: u16,
    outcome: &'static str,
    version: Option<Version>,
    request_id: &'f [u8],
    sent: usize,
}

fn own_line<N>(facts: &Facts<'_>, service: &str, kept: Option<Box<Kept>>, peer: IpAddr, ctx: &mut Ctx<N>) {
    let Some(kept) = kept else { return };
    let line = Line {
        time_us: ctx.date.wall_us(ctx.now),
        duration_us: 0,
        upstream_us: None,
        received: 0,
        sent: facts.sent as u64,
        status: facts.status,
        upstream_status: None,
        attempts: 0,
        version: facts.version,
        peer,
        outcome: facts.outcome.as_bytes(),
        request_id: facts.request_id,
        service: service.as_bytes(),
        upstream: b"",
    };
    ctx.scribe.write(&line, kept);
}

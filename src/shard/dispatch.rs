//! From a complete head to an upstream: parse, route, pick, check out, render, in one scope, because what
//! was parsed borrows from the bytes that were read.
//!
//! Must not know: how bytes move afterwards (`exchange.rs`), what the control thread answers.

use crate::config::model::{HashOn, RequestIdMode, RequestIds, WhenAllOpen, is_service_name};
use crate::ground::random::Random;
use crate::http::body::{Body, Chunked, Coding, Transfer};
use crate::http::fields;
use crate::http::request::{self, Framing, Method, Refusal, Request, Storage};
use crate::http::target::{self, Own, Route, Target};
use crate::policy::balance::{self, Chosen, Draw, Tried};
use crate::policy::breaker::Grant;
use crate::policy::retry::Account;
use crate::shard::admin::{self, Denial};
use crate::shard::client::{ClientState, Then};
use crate::shard::exchange::{self, Attempt, Exchange, Pace, Receive, RequestId, RequestMeta, Send};
use crate::shard::mailbox::{Notice, Ticket};
use crate::shard::net::{ClientId, Door, Net};
use crate::shard::record;
use crate::shard::upstreams::{Order, Upstreams};
use crate::shard::{Ctx, Reply, Shard, Step};
use crate::shared::failure::{Failure, Unavailable};
use crate::shared::metrics::Ending;
use crate::shared::snapshot::{Service, Upstream};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bytes of the body of a request to the gateway itself.
const OWN_BODY: usize = 4 << 10;
/// How long control may take to answer.
const TICKET_TIME: Duration = Duration::from_secs(30);

/// What a request turned out to be, once nothing borrows from its bytes any more.
enum Verdict<'s> {
    /// More bytes are needed. So many at the front hold no end of the head; 1 when the head is complete and
    /// a small body is not.
    More { scanned: u32 },
    /// An exchange goes its way, or fails at once; so many bytes of the input are dealt with.
    Proxied { step: Step, consumed: usize },
    /// The gateway answers; so many bytes of the input are dealt with.
    Replied { reply: Reply<'s>, consumed: usize },
    /// Control answers.
    Ticket { consumed: usize, facts: Facts, asked: Box<Asked> },
}

/// What control must know of the request.
struct Asked {
    own: Own,
    needs_token: bool,
    path: Vec<u8>,
    query: Vec<u8>,
    last_event_id: Option<Vec<u8>>,
    accept: Vec<u8>,
    body: Vec<u8>,
}

/// What an answer must know of the request.
#[derive(Clone, Copy)]
struct Facts {
    meta: RequestMeta,
    then: Then,
}

/// Takes the client's input, which holds at least one byte, as the beginning of a request.
pub fn dispatch<N: Net>(shard: &mut Shard<N>, id: ClientId) -> Step {
    let snapshot = shard.snapshot.clone();
    let verdict = judge(shard, id, &snapshot);
    if !matches!(verdict, Verdict::More { .. }) {
        shard.ctx.counters().requests.bump();
    }
    let Some(client) = shard.clients.get_mut(id) else { return Step::Wait };
    if let Some(kept) = shard.ctx.scribe.take() {
        client.kept = Some(kept);
    }
    match verdict {
        Verdict::More { scanned } => {
            client.keep_input(&mut shard.scratch, &mut shard.ctx.pool, 0);
            if !matches!(client.state, ClientState::Head { .. }) {
                client.conn.deadline = shard.ctx.now.after(snapshot.client.header_timeout);
            }
            client.state = ClientState::Head { scanned };
            Step::Again
        }
        Verdict::Proxied { step, consumed } => {
            client.keep_input(&mut shard.scratch, &mut shard.ctx.pool, consumed);
            step
        }
        Verdict::Replied { reply, consumed } => {
            match reply.then {
                Then::Keep => client.keep_input(&mut shard.scratch, &mut shard.ctx.pool, consumed),
                _ => client.drop_input(&mut shard.scratch, &mut shard.ctx.pool),
            }
            shard.reply(id, &reply)
        }
        Verdict::Ticket { consumed, facts, asked } => {
            client.keep_input(&mut shard.scratch, &mut shard.ctx.pool, consumed);
            client.state = ClientState::Ticket { then: facts.then, method: facts.meta.method };
            client.conn.deadline = shard.ctx.now.after(TICKET_TIME);
            let Asked { own, needs_token, path, query, last_event_id, accept, body } = *asked;
            let ticket = Ticket {
                shard: shard.ctx.shard(),
                client: id.pack(),
                own,
                needs_token,
                to_head: facts.meta.is_head,
                persistence: exchange::persistence(facts.meta.version, facts.then),
                version: facts.meta.version,
                request_id: facts.meta.id.as_bytes().to_vec(),
                path,
                query,
                last_event_id,
                accept,
                body,
            };
            match shard.ctx.mailbox.tell(Notice::Ticket(Box::new(ticket))) {
                Ok(()) => Step::Wait,
                Err(_) => {
                    shard.ctx.counters().notices_lost.bump();
                    shard.reply(id, &facts.reply(503, "the gateway's control thread is overloaded", None))
                }
            }
        }
    }
}

impl Facts {
    fn reply<'s>(self, status: u16, detail: &'s str, token: Option<&'static str>) -> Reply<'s> {
        Reply { meta: self.meta, then: self.then, ..Reply::new(status, detail, token) }
    }
}

fn judge<'s, N: Net>(shard: &mut Shard<N>, id: ClientId, snapshot: &'s crate::shard::LocalSnapshot) -> Verdict<'s> {
    let Shard { clients, exchanges, upstreams, accounts, ctx, scratch, .. } = shard;
    let Some(client) = clients.get_mut(id) else { return Verdict::Proxied { step: Step::Wait, consumed: 0 } };
    let input = client.input(scratch);
    if let ClientState::Head { scanned: scanned @ 1.. } = client.state
        && !head_ended(input, scanned as usize)
        && input.len() <= snapshot.head.head()
    {
        return Verdict::More { scanned: input.len() as u32 };
    }
    let mut storage = Storage::new();
    let request = match Request::parse(input, &snapshot.head, &mut storage) {
        Ok(Some(request)) => request,
        Ok(None) => return Verdict::More { scanned: input.len() as u32 },
        Err(refusal) => {
            ctx.note_refusal(refusal);
            let reply = Reply::of_refusal(refusal, input);
            record::keep_raw(input, ctx);
            return Verdict::Replied { reply, consumed: 0 };
        }
    };
    record::keep(&request, ctx);
    let meta = RequestMeta {
        version: request.version,
        method: Method::of(request.method),
        is_head: request.method == "HEAD",
        is_repeatable: false,
        keeps_alive: request.keeps_alive(),
        expects_continue: request.expects_continue,
        framing: request.framing,
        upgrade: None,
        head_len: request.len as u32,
        id: match given_id(&request, &snapshot.request_ids) {
            Some(given) => RequestId::kept(given),
            None => RequestId::made(ctx.random.next_u64(), ctx.random.next_u64()),
        },
    };
    let Target::Resource { path, .. } = request.target else { return options(meta, input, ctx) };
    let route = match Route::of(path, &snapshot.prefix) {
        Route::Unknown if *path == *snapshot.metrics_path => Route::Own(Own::Metrics),
        route => route,
    };
    let (service, rest) = match route {
        Route::Proxy { service, rest } if client.door == Door::Data => (service, rest),
        Route::Own(own) => {
            let from = admin::From {
                peer: client.peer,
                door: client.door,
                local: if client.door == Door::Socket { None } else { ctx.net.local_addr(&client.conn.socket).ok() },
            };
            return own_resource(own, &request, meta, input, from, snapshot, ctx);
        }
        Route::Proxy { .. } | Route::Unknown => {
            return replied(meta, input, ctx, 404, "there is no such resource", None);
        }
    };
    if target::escapes_base(rest) {
        return refused(meta, input, ctx, Refusal::Malformed("the path leaves the upstream's base path"), None);
    }
    let Some(at) = snapshot.service(&service) else {
        let (consumed, facts) = facts(meta, input, ctx);
        let reply = facts.reply(404, "there is no such service", Some("destination_not_found"));
        let reply = Reply { outcome: record::UNKNOWN, ..reply };
        // Told back when it could be the name of a service; anything else is not worth repeating.
        let name = std::str::from_utf8(&service).ok().filter(|name| is_service_name(name) && name.len() <= 128);
        return Verdict::Replied {
            reply: Reply { service: name.map(|n| Cow::Owned(n.to_owned())), ..reply },
            consumed,
        };
    };
    if request.came_via(ctx.process.pseudonym.as_bytes()) {
        return refused(meta, input, ctx, Refusal::Loop, Some(&snapshot.services[at as usize].identity.name));
    }
    let service = &snapshot.services[at as usize];
    if request.max_forwards == Some(0) {
        return last_hop(&request, meta, input, ctx);
    }
    if matches!((request.framing, service.body_limit), (Framing::Length(length), Some(limit)) if length > limit) {
        return refused(meta, input, ctx, Refusal::BodyTooLarge, Some(&service.identity.name));
    }
    let asked = request.upgrade(&service.upgrades);
    let upgrade = asked.and_then(|asked| service.upgrades.iter().position(|known| **known == *asked));
    let is_repeatable = service.retries.repeats(request.method);
    let meta = RequestMeta { upgrade: upgrade.map(|at| at as u8), is_repeatable, ..meta };
    if let Some(account) = accounts.get_mut(service.identity.slot.number()) {
        Account::earn(account, &service.retries);
    }
    let key = hash_key(service, &request, rest, client.peer);
    let mut tried = Tried::default();
    let is_whole = match request.framing {
        Framing::Empty => true,
        Framing::Length(length) => (input.len() - request.len) as u64 >= length,
        Framing::Chunked => false,
    };
    let Some((position, grant)) = pick(service, &tried, key, is_whole, true, ctx) else {
        let (cause, retry_after_s) = unavailable(service, ctx);
        let facts = facts(meta, input, ctx);
        let reply = Reply {
            service: Some(Cow::Borrowed(&service.identity.name)),
            retry_after_s: Some(retry_after_s),
            outcome: cause.word(),
            ..facts.1.reply(503, cause.detail(), Some(cause.token()))
        };
        return Verdict::Replied { reply, consumed: facts.0 };
    };
    tried.add(position);
    let mut exchange = Exchange {
        request: meta,
        snapshot: snapshot.clone(),
        service: at,
        position,
        tried,
        has_opened: false,
        started: ctx.now,
        pace: Pace::default(),
        body_left: u64::MAX,
        kept: 0,
        status: 0,
        upstream_status: 0,
        upstream_us: u32::MAX,
        ending: Ending::NEUTRAL,
        sent: 0,
        key,
        pause: None,
        attempt: attempt(grant, is_whole, ctx),
    };
    let mut consumed = 0;
    let step = match connect(&mut exchange, id, upstreams, ctx) {
        Err(failure) => Step::Fail(failure),
        Ok(()) => match exchange.attempt.upstream.and_then(|id| upstreams.table.get_mut(id)) {
            Some(upstream) if exchange.attempt.reused => {
                match exchange::begin(&request, rest, input, client.peer, &mut exchange, upstream, ctx) {
                    Ok(done) => {
                        consumed = done;
                        Step::Again
                    }
                    Err(refusal) => Step::Refuse(refusal),
                }
            }
            _ => Step::Wait,
        },
    };
    client.state = ClientState::Exchange(exchanges.insert(exchange));
    Verdict::Proxied { step, consumed }
}

/// Renders and sends a request whose connection has just come, from the bytes that were kept.
pub fn begin_kept<N: Net>(shard: &mut Shard<N>, id: ClientId) -> Step {
    let Shard { clients, exchanges, upstreams, ctx, .. } = shard;
    let Some(client) = clients.get_mut(id) else { return Step::Wait };
    let ClientState::Exchange(exchange_id) = client.state else { return Step::Wait };
    let Some(exchange) = exchanges.get_mut(exchange_id) else { return Step::Close };
    let Some(upstream) = exchange.attempt.upstream.and_then(|id| upstreams.table.get_mut(id)) else {
        return Step::Fail(Failure::Unsent);
    };
    let input = client.conn.inbound.bytes();
    let mut storage = Storage::new();
    // It was parsed before, under the same limits.
    let Ok(Some(request)) = Request::parse(input, &exchange.snapshot.head, &mut storage) else {
        return Step::Refuse(Refusal::Malformed("the request was lost"));
    };
    let Target::Resource { path, .. } = request.target else {
        return Step::Refuse(Refusal::Malformed("the request was lost"));
    };
    let rest = match Route::of(path, &exchange.snapshot.prefix) {
        Route::Proxy { rest, .. } => rest,
        _ => b"",
    };
    match exchange::begin(&request, rest, input, client.peer, exchange, upstream, ctx) {
        Ok(done) => {
            client.conn.inbound.consume(&mut ctx.pool, done);
            Step::Again
        }
        Err(refusal) => Step::Refuse(refusal),
    }
}

/// The id that a request brings, if the configuration keeps it.
fn given_id<'b>(request: &Request<'_, 'b>, ids: &RequestIds) -> Option<&'b [u8]> {
    if ids.mode == RequestIdMode::Replace {
        return None;
    }
    let Some(name) = &ids.header else { return request.request_id };
    let mut all = request.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let (Some(field), None) = (all.next(), all.next()) else { return None };
    request::is_request_id(field.value).then_some(field.value)
}

fn head_ended(input: &[u8], scanned: usize) -> bool {
    crate::http::head::end(input, scanned.min(input.len())) != crate::http::head::End::Missing
}

/// How long a probe may be out whose request has not come whole, in milliseconds. A client that sends its body
/// slowly must not keep everybody else from probing; until another one does, its outcome counts all the same.
const UNSENT_LEASE_MS: u64 = 1000;

/// The key by which the policy `hash` chooses; `None` when the request does not have it.
fn hash_key(service: &Service, request: &Request<'_, '_>, rest: &[u8], peer: IpAddr) -> Option<u64> {
    let key = match service.balancing.hash_on.as_ref()? {
        HashOn::ClientIp => match peer {
            IpAddr::V4(v4) => return Some(balance::key_of(&v4.octets())),
            IpAddr::V6(v6) => return Some(balance::key_of(&v6.octets())),
        },
        HashOn::Path => rest.split(|byte| *byte == b'?').next().unwrap_or(rest),
        HashOn::Header(name) => request.field(name)?,
        HashOn::Cookie(name) => cookie(request.field("cookie")?, name.as_bytes())?,
    };
    Some(balance::key_of(key))
}

/// The value of a cookie (RFC 6265 section 4.2.1).
fn cookie<'v>(field: &'v [u8], name: &[u8]) -> Option<&'v [u8]> {
    let pairs = field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    pairs.filter_map(|pair| pair.strip_prefix(name)).find_map(|rest| rest.strip_prefix(b"="))
}

/// Finds an upstream with an address and a permit, in the order of the service's policy. `is_whole` says that all
/// of the request is here, `again` that one that was tried may be the last resort.
pub fn pick<N: Net>(
    service: &Service,
    tried: &Tried,
    key: Option<u64>,
    is_whole: bool,
    again: bool,
    ctx: &mut Ctx<N>,
) -> Option<(u16, Grant)> {
    let now_ms = ctx.now.ms();
    let draw = Draw {
        policy: service.balancing.policy,
        turns: &service.turns,
        cursor: &service.cursor,
        backup_cursor: &service.backup_cursor,
        tried,
        key,
    };
    let at = |position: u16| &service.upstreams[usize::from(position)];
    let load = |position: u16| at(position).load();
    let seat = |position: u16| (balance::key_of(at(position).identity.key.as_bytes()), at(position).weight);
    let chance = if service.balancing.slow_start.is_zero() { 0 } else { ctx.random.next_u64() };
    let is_asked = |position: u16| !at(position).addresses.is_empty() && (again || !tried.contains(position));
    let lease = |upstream: &Upstream| match is_whole {
        true => upstream.breaker.lease_ms,
        false => upstream.breaker.lease_ms.min(UNSENT_LEASE_MS),
    };
    let picked = balance::pick(&draw, &mut ctx.random, load, seat, |position, chosen| {
        let upstream = at(position);
        let is_cold = || Random::new(chance ^ u64::from(position)).next_u64() % 1024 >= upstream.warmth(now_ms);
        if !is_asked(position) || chosen == Chosen::ByPolicy && chance != 0 && is_cold() || !upstream.enter() {
            return None;
        }
        let grant = upstream.identity.breaker.acquire(now_ms, lease(upstream), &upstream.breaker);
        if grant.is_none() {
            upstream.exit();
        }
        grant
    });
    let nobody_left = || {
        let mut asked = service.upstreams.iter().filter(|upstream| upstream.serves());
        asked.all(|upstream| !upstream.identity.breaker.available(now_ms, &upstream.breaker))
    };
    let picked = match service.when_all_open {
        _ if picked.is_some() => picked,
        WhenAllOpen::Probe if nobody_left() => {
            let asked = (0..service.upstreams.len() as u16).filter(|position| at(*position).serves());
            let mut asked: Vec<u16> = asked.filter(|position| is_asked(*position)).collect();
            asked.sort_by_key(|position| at(*position).identity.breaker.view().probe_at_ms);
            asked.into_iter().find_map(|position| {
                let upstream = at(position);
                let probe = || upstream.identity.breaker.acquire_early(now_ms, lease(upstream), &upstream.breaker);
                let grant = upstream.enter().then(probe)?;
                if grant.is_none() {
                    upstream.exit();
                }
                Some((position, grant?))
            })
        }
        WhenAllOpen::Ignore if nobody_left() => balance::pick(&draw, &mut ctx.random, load, seat, |position, _| {
            let passes = is_asked(position) && !at(position).identity.breaker.is_held(now_ms);
            (passes && at(position).enter()).then(Grant::unattached)
        }),
        _ => None,
    };
    let (position, grant) = picked?;
    let upstream = at(position);
    let counters = &upstream.identity.counters[ctx.shard()];
    counters.attempts.bump();
    counters.in_flight.bump();
    if let Some(transition) = grant.transition {
        ctx.tell_moved(upstream, transition, None);
    }
    Some((position, grant))
}

/// Whether a retry would find an upstream now.
pub fn has_another<N: Net>(service: &Service, tried: &Tried, again: bool, ctx: &Ctx<N>) -> bool {
    let now_ms = ctx.now.ms();
    service.upstreams.iter().enumerate().any(|(position, upstream)| {
        upstream.serves()
            && (again || !tried.contains(position as u16))
            && upstream.identity.breaker.available(now_ms, &upstream.breaker)
    })
}

/// What `Retry-After` says at most: an operator may hold a breaker open for ever.
const LONGEST_RETRY_S: u64 = 3600;

/// Why nothing can be picked, and whole seconds until it is worth another try.
fn unavailable<N: Net>(service: &Service, ctx: &Ctx<N>) -> (Unavailable, u64) {
    let now_ms = ctx.now.ms();
    let serving = || service.upstreams.iter().filter(|upstream| upstream.serves());
    let available = |upstream: &Upstream| upstream.identity.breaker.available(now_ms, &upstream.breaker);
    let earliest = || serving().filter_map(|upstream| upstream.identity.breaker.view().probe_at_ms).min();
    let (cause, retry_after_s) = if serving().any(|upstream| upstream.max_requests.is_some() && available(upstream)) {
        ctx.counters().saturated.bump();
        (Unavailable::MaxRequests, 1)
    } else if let Some(at) = earliest() {
        ctx.counters().rejected.bump();
        (Unavailable::CircuitOpen, at.saturating_sub(now_ms).div_ceil(1000).clamp(1, LONGEST_RETRY_S))
    } else if service.upstreams.is_empty() {
        (Unavailable::NoUpstreams, 1)
    } else if service.upstreams.iter().all(|upstream| upstream.weight == 0) {
        (Unavailable::Drained, 1)
    } else {
        (Unavailable::Dns, 5)
    };
    service.identity.counters[ctx.shard()].unavailable[cause as usize].bump();
    log::debug!("{}: {}: {}", service.identity.name, cause.word(), cause.detail());
    (cause, retry_after_s)
}

/// A new attempt, before it has a connection.
pub fn attempt<N>(grant: Grant, is_whole: bool, ctx: &Ctx<N>) -> Attempt {
    Attempt {
        upstream: None,
        permit: Some(grant.permit),
        admitted: true,
        send: Send::Waiting,
        body: Transfer::EMPTY,
        receive: Receive::Head,
        pipe_up: None,
        pipe_down: None,
        reused: false,
        repeated: false,
        answered: false,
        held: false,
        retry_of: None,
        slow: false,
        is_whole,
        started: ctx.now,
        since: ctx.now,
    }
}

/// Gives the attempt a pooled connection, or begins a new one.
pub fn connect<N: Net>(
    exchange: &mut Exchange,
    client: ClientId,
    upstreams: &mut Upstreams<N::Stream>,
    ctx: &mut Ctx<N>,
) -> Result<(), Failure> {
    let snapshot = exchange.snapshot.clone();
    let to = &snapshot.services[exchange.service as usize].upstreams[usize::from(exchange.position)];
    if !exchange.attempt.repeated
        && let Some(id) = upstreams.check_out(to.identity.slot.number(), client)
    {
        exchange.attempt.upstream = Some(id);
        exchange.attempt.reused = true;
        return Ok(());
    }
    exchange.attempt.reused = false;
    exchange.attempt.upstream = Some(upstreams.connect(&mut ctx.net, to, client, Order::begin(to))?);
    Ok(())
}

/// How many bytes of the input the whole request takes, if it is all there; and what follows the answer.
fn facts<N: Net>(meta: RequestMeta, input: &[u8], ctx: &Ctx<N>) -> (usize, Facts) {
    let head = meta.head_len as usize;
    let end = match meta.framing {
        Framing::Empty => Some(head),
        Framing::Length(length) => usize::try_from(length).ok().and_then(|length| head.checked_add(length)),
        Framing::Chunked => None,
    };
    let (consumed, then) = match end.filter(|end| *end <= input.len()) {
        None => (0, Then::Linger),
        Some(end) if meta.keeps_alive && !ctx.draining => (end, Then::Keep),
        Some(end) => (end, Then::Close),
    };
    (consumed, Facts { meta, then })
}

fn replied<'s, N: Net>(
    meta: RequestMeta,
    input: &[u8],
    ctx: &Ctx<N>,
    status: u16,
    detail: &'s str,
    token: Option<&'static str>,
) -> Verdict<'s> {
    let (consumed, facts) = facts(meta, input, ctx);
    Verdict::Replied { reply: facts.reply(status, detail, token), consumed }
}

fn refused<'s, N: Net>(
    meta: RequestMeta,
    input: &[u8],
    ctx: &Ctx<N>,
    refusal: Refusal,
    service: Option<&'s str>,
) -> Verdict<'s> {
    ctx.note_refusal(refusal);
    let (consumed, mut facts) = facts(meta, input, ctx);
    if facts.then == Then::Keep {
        // Whoever is refused once is not listened to any longer.
        facts.then = Then::Close;
    }
    let reply = facts.reply(refusal.status(), refusal.detail(), Some(refusal.token()));
    let reply = Reply { service: service.map(Cow::Borrowed), outcome: refusal.word(), ..reply };
    Verdict::Replied { reply, consumed }
}

/// `Max-Forwards: 0`: the gateway is where the request ends (RFC 9110 sections 7.6.2 and 9.3.8). `TRACE` shows
/// the head as it came, but for what could be a secret.
fn last_hop<'s, N: Net>(request: &Request<'_, '_>, meta: RequestMeta, input: &[u8], ctx: &Ctx<N>) -> Verdict<'s> {
    if request.method == "OPTIONS" {
        return options(meta, input, ctx);
    }
    let line = memchr::memchr(b'\n', input).map_or(0, |end| end + 1);
    let mut body = input[..line].to_vec();
    for field in request.fields.iter().filter(|field| !fields::is_secret(field.name)) {
        for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
            body.extend_from_slice(part);
        }
    }
    body.extend_from_slice(b"\r\n");
    let (consumed, facts) = facts(meta, input, ctx);
    let reply = Reply { body: Some(("message/http", body)), ..facts.reply(200, "", None) };
    Verdict::Replied { reply, consumed }
}

/// `OPTIONS *`: what the gateway itself can (RFC 9110 section 9.3.7).
fn options<'s, N: Net>(meta: RequestMeta, input: &[u8], ctx: &Ctx<N>) -> Verdict<'s> {
    let (consumed, facts) = facts(meta, input, ctx);
    let reply =
        Reply { allow: Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"), ..facts.reply(204, "", None) };
    Verdict::Replied { reply, consumed }
}

fn own_resource<'s, N: Net>(
    own: Own,
    request: &Request<'_, '_>,
    meta: RequestMeta,
    input: &[u8],
    from: admin::From,
    snapshot: &crate::shard::LocalSnapshot,
    ctx: &Ctx<N>,
) -> Verdict<'s> {
    if admin::is_hidden(own, from.door, snapshot.reload_endpoint) {
        return replied(meta, input, ctx, 404, "there is no such resource", None);
    }
    if !own.takes(request.method) {
        let (consumed, facts) = facts(meta, input, ctx);
        let reply =
            Reply { allow: Some(own.allow()), ..facts.reply(405, "the resource does not take this method", None) };
        return Verdict::Replied { reply, consumed };
    }
    match own {
        Own::Live => replied(meta, input, ctx, 200, "ok\n", None),
        Own::Ready if ctx.process.ready.load(Ordering::Relaxed) => replied(meta, input, ctx, 200, "ready\n", None),
        Own::Ready => replied(meta, input, ctx, 503, "the gateway is draining or starting", None),
        Own::Page | Own::Status | Own::Events | Own::Config | Own::Metrics | Own::Reload | Own::Trip | Own::Reset => {
            const DENIED: Option<&str> = Some("http_request_denied");
            let mut needs_token = false;
            match admin::judge(own, request, from, &snapshot.admin, snapshot.reload_endpoint) {
                Ok(()) => {}
                // The page holds no data, and it is where the token can be given.
                Err(Denial::NoToken(_)) if own == Own::Page && admin::wants_page(request) => needs_token = true,
                Err(Denial::Forbidden(why)) => return replied(meta, input, ctx, 403, why, DENIED),
                Err(Denial::NoToken(why)) => {
                    let (consumed, facts) = facts(meta, input, ctx);
                    let challenge = Some("Bearer realm=\"fusegate\"");
                    return Verdict::Replied { reply: Reply { challenge, ..facts.reply(401, why, DENIED) }, consumed };
                }
            }
            match whole_body(request.framing, &input[request.len..]) {
                Err(refusal) => {
                    ctx.note_refusal(refusal);
                    let (_, mut facts) = facts(meta, input, ctx);
                    facts.then = Then::Linger;
                    let reply = facts.reply(refusal.status(), refusal.detail(), Some(refusal.token()));
                    Verdict::Replied { reply, consumed: 0 }
                }
                Ok(None) => Verdict::More { scanned: 1 },
                Ok(Some((length, body))) => {
                    let then = if meta.keeps_alive && !ctx.draining { Then::Keep } else { Then::Close };
                    let (path, query) = match request.target {
                        Target::Resource { path, query, .. } => (path.to_vec(), query.to_vec()),
                        Target::Asterisk | Target::Authority => (Vec::new(), Vec::new()),
                    };
                    let last_event_id = request.field("last-event-id").map(<[u8]>::to_vec);
                    let accept = request.field("accept").unwrap_or_default().to_vec();
                    let asked = Box::new(Asked { own, needs_token, path, query, last_event_id, accept, body });
                    Verdict::Ticket { consumed: request.len + length, facts: Facts { meta, then }, asked }
                }
            }
        }
    }
}

/// A small body when all of it is there, behind its length on the wire.
fn whole_body(framing: Framing, input: &[u8]) -> Result<Option<(usize, Vec<u8>)>, Refusal> {
    match framing {
        Framing::Empty => Ok(Some((0, Vec::new()))),
        Framing::Length(length) if length > OWN_BODY as u64 => Err(Refusal::BodyTooLarge),
        Framing::Length(length) => Ok(input.get(..length as usize).map(|body| (body.len(), body.to_vec()))),
        Framing::Chunked => {
            let mut transfer = Transfer::new(Body::Chunked(Chunked::default()), Coding::Plain);
            let mut decoded = Vec::new();
            let passed = transfer.pass(input, OWN_BODY, &mut decoded).map_err(Refusal::Malformed)?;
            decoded.extend_from_slice(&input[..passed.direct]);
            match transfer.is_done() {
                _ if decoded.len() > OWN_BODY => Err(Refusal::BodyTooLarge),
                true => Ok(Some((passed.consumed, decoded))),
                // Framing may cost as much again, but not more.
                false if input.len() > 4 * OWN_BODY => Err(Refusal::BodyTooLarge),
                false => Ok(None),
            }
        }
    }
}

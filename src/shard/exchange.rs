//! An exchange: one request and its response on their way through a client connection and an upstream
//! connection. Two flows that know nothing of each other, and one joint rule over the pair of their states
//! (RFC 9112 sections 6, 7 and 9).
//!
//! | send | receive | what happened | step |
//! |---|---|---|---|
//! | any | any | the client reset, or writing to it failed | Cancel |
//! | body due | any | the client's end, a malformed chunk | 400 before the response began, else Cancel |
//! | Complete | Head | a 101 that was asked for | Tunnel |
//! | any | Head | the upstream's end, reset, invalid head | Fail: retry or answer |
//! | any | Body, until close | the upstream's end | receive is done |
//! | any | Body, framed | the upstream's end, reset, bad chunk | Fail: cut short |
//! | any | Done | | Finish; early when send is not done: then the upstream closes and the client lingers |
//! | Done | any | the client's end | Cancel, unless `client.half_close` |
//! | else | | | Wait |
//!
//! A failed write to the upstream is not an event: sending is over, and what can still be read decides.
//! Must not know: how an upstream is picked, whether a failure is retried.

use crate::config::model::{RequestIdMode, RequestIds};
use crate::ground::buffer::Buffer;
use crate::ground::table::Id;
use crate::ground::tick::Tick;
use crate::http::body::{Body, Chunked, Coding, Passed, Transfer};
use crate::http::render::{self, Id as IdField, Onward, Persistence};
use crate::http::request::{self, Method, Refusal, Request, Storage, Version};
use crate::http::response::{self, Response};
use crate::policy::balance::Tried;
use crate::policy::breaker::{Outcome, Permit, State};
use crate::shard::client::{Client, Then};
use crate::shard::conn::{Broken, Filled, Ready, SpliceEnd};
use crate::shard::net::{Net, Pipe, UpstreamId};
use crate::shard::upstreams::{UpstreamConn, UpstreamState};
use crate::shard::{Ctx, LocalSnapshot, Step, upstreams};
use crate::shared::failure::Failure;
use crate::shared::metrics::{Ending, Latency};
use crate::shared::snapshot::{FailureRecord, Service, Upstream};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What must be left of a body for a pipe to be worth its two calls.
const SPLICED_BODY: u64 = 64 << 10;
/// Bytes of one splice; the pipe may take less.
const SPLICED_AT_ONCE: usize = 1 << 20;
/// By how much the head of a response may grow and still go out in one piece with a long body.
const HEAD_MARGIN: usize = 512;

/// Names an exchange.
pub type ExchangeId = Id<Exchange>;

/// An exchange, from dispatch to its end.
#[derive(Debug)]
pub struct Exchange {
    /// What must be known of the request when its bytes are gone.
    pub request: RequestMeta,
    /// The configuration on which it began and ends.
    pub snapshot: LocalSnapshot,
    /// Position of the service in it.
    pub service: u32,
    /// Position of the upstream in the service.
    pub position: u16,
    /// Upstreams tried, this one included.
    pub tried: Tried,
    /// A failure of this exchange has opened a breaker: further ones are neutral.
    pub has_opened: bool,
    /// When its head was complete.
    pub started: Tick,
    /// How fast the client is.
    pub pace: Pace,
    /// Bytes of content that the request's body may still have.
    pub body_left: u64,
    /// Bytes at the front of the client's `inbound` that an upstream has got already: kept for a replay,
    /// which is possible while this is not zero (or nothing has been sent at all).
    pub kept: u32,
    /// Of the final response whose head went to the client; 0 before that, 101 for a tunnel.
    pub status: u16,
    /// Of the last final response head of an upstream; 0 without one.
    pub upstream_status: u16,
    /// Microseconds from the beginning of its attempt to that head.
    pub upstream_us: u32,
    /// How the last attempt that was settled ended.
    pub ending: Ending,
    /// Bytes of content that went to the client.
    pub sent: u64,
    /// The key by which its upstream is chosen.
    pub key: Option<u64>,
    /// A retry that waits for its time; there is no upstream connection then. Apart, for it is rare.
    pub pause: Option<Box<Pause>>,
    /// The present try.
    pub attempt: Attempt,
}

/// A retry that waits (`retries.backoff`).
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// When it is made.
    pub until: Tick,
    /// What the client is told when there is nobody for it.
    pub failure: Failure,
    /// The request is held to its end.
    pub is_whole: bool,
}

/// How fast a client is while it is waited for: what `client.min_rate` judges.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Bytes that it has sent of a body, or taken late of a response.
    bytes: u64,
    /// How long it was waited for, up to the present wait.
    waited: Duration,
    /// When the present wait began.
    since: Option<Tick>,
}

impl Pace {
    /// What a client may be slow before its rate is judged.
    const GRACE: Duration = Duration::from_secs(5);

    /// Takes in whether the client is waited for now; until when it may be, at `min_rate` bytes per second.
    pub fn wait(&mut self, awaited: bool, min_rate: u64, now: Tick) -> Tick {
        if min_rate == 0 {
            return Tick::NEVER;
        }
        match (self.since, awaited) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.waited += now.since(since);
                self.since = None;
            }
            _ => {}
        }
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000) / min_rate);
        self.since.map_or(Tick::NEVER, |since| since.after((Pace::GRACE + earned).saturating_sub(self.waited)))
    }
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestMeta {
    /// The client's.
    pub version: Version,
    /// For counters.
    pub method: Method,
    /// It is `HEAD`.
    pub is_head: bool,
    /// It may be repeated although an upstream may have got it (`retries.methods`).
    pub is_repeatable: bool,
    /// The client would send another one on this connection.
    pub keeps_alive: bool,
    /// The client may wait for a 100 before it sends the body.
    pub expects_continue: bool,
    /// Of its body.
    pub framing: request::Framing,
    /// Position among the service's `upgrades` of the protocol that is asked for.
    pub upgrade: Option<u8>,
    /// Bytes of its head.
    pub head_len: u32,
    /// Kept or made.
    pub id: RequestId,
}

/// A request id, in place.
#[derive(Clone, Copy, Debug)]
pub struct RequestId {
    len: u8,
    bytes: [u8; 128],
}

impl RequestId {
    /// The id that the client gave, valid as it is.
    pub fn kept(id: &[u8]) -> RequestId {
        let len = id.len().min(128);
        let mut bytes = [0; 128];
        bytes[..len].copy_from_slice(&id[..len]);
        RequestId { len: len as u8, bytes }
    }

    /// A new id of 128 random bits.
    pub fn made(high: u64, low: u64) -> RequestId {
        let mut bytes = [0; 128];
        for (at, half) in [high, low].into_iter().enumerate() {
            bytes[16 * at..16 * at + 8].copy_from_slice(&hex((half >> 32) as u32));
            bytes[16 * at + 8..16 * at + 16].copy_from_slice(&hex(half as u32));
        }
        RequestId { len: 32, bytes }
    }

    /// Its characters.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Eight hexadecimal digits, all at once: each half of a byte is spread to a byte, and made a digit there.
fn hex(number: u32) -> [u8; 8] {
    let mut spread = u64::from(number);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // Adding 6 carries into the upper half from ten on, where a letter is due: 39 behind `9` is `a`.
    let letters = (spread + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + letters * 39).to_be_bytes()
}

/// One try on one upstream.
#[derive(Debug)]
pub struct Attempt {
    /// Its connection; none between two.
    pub upstream: Option<UpstreamId>,
    /// Until it is settled.
    pub permit: Option<Permit>,
    /// It counts as a request under way at its upstream: from the pick until [`Exchange::depart`].
    pub admitted: bool,
    /// Request to upstream.
    pub send: Send,
    /// The request's body on its way.
    pub body: Transfer,
    /// Through which a long body goes unseen to the upstream.
    pub pipe_up: Option<Pipe>,
    /// Response to client.
    pub receive: Receive,
    /// Through which a long body goes unseen to the client.
    pub pipe_down: Option<Pipe>,
    /// The connection came from the pool.
    pub reused: bool,
    /// It repeats the request after a stale connection.
    pub repeated: bool,
    /// An interim response has come: the upstream has the request.
    pub answered: bool,
    /// A final head lies in the upstream's `inbound` that is passed on, whatever it says: no retry came about.
    pub held: bool,
    /// It is a retry, because the attempt before ended so.
    pub retry_of: Option<Ending>,
    /// The answer was slow, which counts when the exchange ends.
    pub slow: bool,
    /// All of the request was there when the attempt began.
    pub is_whole: bool,
    /// When it began.
    pub started: Tick,
    /// The last progress of either flow.
    pub since: Tick,
}

impl Attempt {
    /// Whether `timeouts.response` runs: the request has gone, its final response has not begun.
    fn awaits_head(&self) -> bool {
        self.send == Send::Complete && self.receive == Receive::Head
    }
}

/// How far the request has gone to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// The connection is not there yet; nothing was rendered.
    Waiting,
    /// So many bytes of the head are still in `outbound`.
    Head {
        /// At least one.
        left: u32,
    },
    /// The head has gone; the body is on its way.
    Body,
    /// All has gone.
    Complete,
    /// The connection takes no more.
    Broken {
        /// The upstream can have the whole head.
        head_written: bool,
    },
}

/// How far the response has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Its final head is awaited.
    Head,
    /// Its head went to the client.
    Body {
        /// The body on its way.
        transfer: Transfer,
        /// What becomes of the client's connection, as the head said.
        then: Then,
        /// How long the upstream's connection may be idle afterwards; `None` closes it.
        reuse: Option<Duration>,
        /// Silence is normal.
        is_stream: bool,
    },
    /// A 101 went to the client: what follows is no HTTP.
    Tunnel,
    /// All of it went to the client, or waits in its `outbound`.
    Done {
        /// What becomes of the client's connection.
        then: Then,
        /// How long the upstream's connection may be idle; `None` closes it.
        reuse: Option<Duration>,
    },
}

/// What a flow met that it cannot judge alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client reset its connection, or does not take bytes any more.
    ClientBroken,
    /// The client's last byte was read inside its request body.
    ClientEnded,
    /// The client's body is malformed, or too large.
    ClientRefused(Refusal),
    /// The upstream's last byte was read, or its connection was reset (`true`).
    UpstreamEnded {
        /// By a reset.
        reset: bool,
        /// A part of the response head had come.
        inside: bool,
    },
    /// The upstream sent something that is not taken.
    Invalid(Failure),
    /// A final response with a status that is worth another try; nothing of it has gone out.
    Unwanted(u16),
}

impl Exchange {
    /// Its service.
    pub fn service(&self) -> &Service {
        &self.snapshot.services[self.service as usize]
    }

    /// The upstream of the present attempt.
    pub fn upstream(&self) -> &Upstream {
        &self.service().upstreams[usize::from(self.position)]
    }

    /// Whether all of the request was taken from the client's input, but for a head that waits for its connection.
    pub fn request_is_complete(&self) -> bool {
        match self.attempt.send {
            Send::Waiting => self.request.framing == request::Framing::Empty,
            _ => self.attempt.body.is_done(),
        }
    }

    /// Whether all of the request is here, also when none of it has been sent yet.
    pub fn is_whole(&self) -> bool {
        match self.attempt.send {
            Send::Waiting => self.attempt.is_whole,
            _ => self.attempt.body.is_done(),
        }
    }

    /// Whether a 100 is awaited before the client sends its body.
    fn awaits_continue(&self) -> bool {
        let nothing_came = self.body_left == self.service().body_limit.unwrap_or(u64::MAX);
        self.request.expects_continue && !self.attempt.answered && nothing_came && !self.attempt.body.is_done()
    }

    /// Whether all that was read of the request is still held.
    pub fn is_replayable(&self) -> bool {
        let begun = self.attempt.receive != Receive::Head || self.attempt.answered;
        let body = u64::from(self.kept.saturating_sub(self.request.head_len));
        !begun && (self.kept > 0 || self.attempt.send == Send::Waiting) && body <= self.service().retries.body_limit
    }

    /// Whether a response with this status is worth another try, as far as that is known here.
    fn is_unwanted(&self, status: u16) -> bool {
        let retries = &self.service().retries;
        retries.on.counts_status(status)
            && self.tried.count() <= retries.attempts
            && self.request.is_repeatable
            && self.is_replayable()
    }

    /// When the present try is over, if the upstream is what is waited for.
    pub fn try_deadline(&self) -> Tick {
        match self.service().retries.per_try_timeout {
            Some(patience) if self.attempt.receive == Receive::Head => {
                // A client that is slow to send takes nothing from the upstream's time.
                let from = if self.attempt.is_whole { self.attempt.started } else { self.attempt.since };
                from.after(patience)
            }
            _ => Tick::NEVER,
        }
    }

    /// The permit ends.
    pub fn settle<N>(&mut self, outcome: Outcome, cause: Option<Failure>, ctx: &mut Ctx<N>) {
        let Some(permit) = self.attempt.permit.take() else { return };
        // One poisonous request opens one breaker, not all of them.
        let outcome = if outcome == Outcome::Failure && self.has_opened { Outcome::Neutral } else { outcome };
        let upstream = self.upstream();
        let transition = upstream.identity.breaker.settle(permit, outcome, ctx.now.ms(), &upstream.breaker);
        let counters = &upstream.identity.counters[ctx.shard()];
        counters.settled.bump();
        let ending = match (cause, outcome) {
            (Some(failure), _) => failure.ending(),
            (None, Outcome::Neutral) => Ending::NEUTRAL,
            (None, _) => Ending::SUCCESS,
        };
        counters.endings[ending.index()].bump();
        if let Some(failure) = cause {
            let service = &self.service().identity.name;
            log::debug!("{service} {}: {}: {failure}", upstream.identity.url, ending.word());
            counters.failures.bump();
            upstream.identity.remember(|| FailureRecord {
                at_ms: ctx.now.ms(),
                failure,
                duration: ctx.now.since(self.attempt.started),
                request_id: String::from_utf8_lossy(self.request.id.as_bytes()).into(),
            });
        }
        if let Some(before) = self.attempt.retry_of {
            let service = &self.service().identity.counters[ctx.shard()];
            service.retries[before.index()][ending.retried()].bump();
        }
        self.ending = ending;
        if let Some(transition) = transition {
            let upstream = self.upstream();
            ctx.tell_moved(upstream, transition, cause);
            if transition.to == State::Closed {
                upstream.identity.warm_from_ms.store(ctx.now.ms().max(1), Ordering::Relaxed);
            }
            self.has_opened |= transition.to == State::Open;
        }
    }

    /// The permit ends well.
    pub fn settle_success<N>(&mut self, ctx: &mut Ctx<N>) {
        self.settle(if self.attempt.slow { Outcome::Slow } else { Outcome::Success }, None, ctx);
    }

    /// The attempt has left its upstream: it is no request under way there any more.
    pub fn depart<N>(&mut self, ctx: &Ctx<N>) {
        if std::mem::take(&mut self.attempt.admitted) {
            let upstream = self.upstream();
            upstream.exit();
            upstream.identity.counters[ctx.shard()].in_flight.drop_one();
        }
    }

    /// Settles what is known to be a failure, a status among them.
    pub fn settle_failure<N>(&mut self, failure: Failure, ctx: &mut Ctx<N>) {
        let upstream = self.upstream();
        let outcome = failure.outcome(&upstream.failure_on, &upstream.neutral_on);
        self.settle(outcome, Some(failure), ctx);
    }
}

/// Whose turn it is, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The client must read or send.
    Client(Duration),
    /// The upstream must; the failure when it does not.
    Upstream(Duration, Failure),
    /// A stream, whose silence is nobody's fault.
    Stream(Duration),
}

/// The side that is waited for.
pub fn awaited<S>(exchange: &Exchange, client: &Client<S>, upstream: &UpstreamConn<S>) -> Awaited {
    let timeouts = &exchange.upstream().timeouts;
    let patience = exchange.snapshot.client.body_idle;
    match (exchange.attempt.send, exchange.attempt.receive) {
        (Send::Waiting, _) => Awaited::Upstream(timeouts.connect, Failure::ConnectTimeout),
        _ if !client.conn.outbound.is_empty() => Awaited::Client(patience),
        _ if holds(&exchange.attempt.pipe_down) => Awaited::Client(patience),
        // The client waits for a 100 that the upstream owes.
        (Send::Head { .. } | Send::Body, Receive::Head) if exchange.awaits_continue() => {
            Awaited::Upstream(timeouts.response, Failure::ResponseTimeout)
        }
        (Send::Head { .. } | Send::Body, Receive::Head | Receive::Body { .. })
            if upstream.conn.outbound.is_empty()
                && !holds(&exchange.attempt.pipe_up)
                && !exchange.attempt.body.is_done() =>
        {
            Awaited::Client(patience)
        }
        (Send::Head { .. } | Send::Body, Receive::Head) => Awaited::Upstream(timeouts.idle, Failure::ResponseTimeout),
        (_, Receive::Head) => Awaited::Upstream(timeouts.response, Failure::ResponseTimeout),
        (_, Receive::Body { is_stream: true, .. }) => Awaited::Stream(timeouts.stream),
        _ => Awaited::Upstream(timeouts.idle, Failure::BodyIdle),
    }
}

fn holds(pipe: &Option<Pipe>) -> bool {
    pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
}

/// Renders the head and sends it with what is there of the body. `input` is the client's input, with the
/// head at its front; afterwards `exchange.kept` bytes of it have been dealt with, and are kept, behind as many as are
/// given back, which nobody needs any more.
pub fn begin<N: Net>(
    request: &Request<'_, '_>,
    rest: &[u8],
    input: &[u8],
    client: std::net::IpAddr,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    ctx: &mut Ctx<N>,
) -> Result<usize, Refusal> {
    let service = &exchange.snapshot.services[exchange.service as usize];
    let to = &service.upstreams[usize::from(exchange.position)];
    let onward = Onward {
        base_path: &to.base_path,
        path: &to.path,
        rest,
        host: to.host.as_deref(),
        authority: &to.authority,
        client,
        pseudonym: ctx.process.pseudonym.as_bytes(),
        request_id: id_field(&exchange.snapshot.request_ids, exchange.request.id.as_bytes()),
        upgrade: exchange.request.upgrade.map(|at| &*service.upgrades[usize::from(at)]),
    };
    ctx.output.clear();
    render::request(&mut ctx.output, request, &onward);
    let head = ctx.output.len();
    let body = &input[request.len..];
    let attempt = &mut exchange.attempt;
    attempt.body = match request.framing {
        request::Framing::Empty => Transfer::EMPTY,
        request::Framing::Length(length) => Transfer::new(Body::Length(length), Coding::Plain),
        request::Framing::Chunked => Transfer::new(Body::Chunked(Chunked::default()), Coding::Chunked)
            .drop_trailers(request.connection.names_fields()),
    };
    let trailer_limit = exchange.snapshot.head.header_bytes;
    let passed = attempt.body.pass(body, trailer_limit, &mut ctx.output).map_err(Refusal::Malformed)?;
    let limit = service.body_limit.unwrap_or(u64::MAX);
    exchange.body_left = limit.checked_sub(passed.content as u64).ok_or(Refusal::BodyTooLarge)?;
    let sent = upstream.conn.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, &body[..passed.direct]);
    let consumed = request.len + passed.consumed;
    // With its head out, a request that must not be repeated is not sent again, whatever happens.
    let is_over = !exchange.request.is_repeatable && matches!(sent, Ok(n) if n >= head);
    exchange.kept = if is_over { 0 } else { consumed as u32 };
    attempt.receive = Receive::Head;
    attempt.since = ctx.now;
    attempt.send = match sent {
        Err(Broken) => Send::Broken { head_written: false },
        Ok(n) if n < head => Send::Head { left: (head - n) as u32 },
        Ok(_) if upstream.conn.outbound.is_empty() && attempt.body.is_done() => Send::Complete,
        Ok(_) => Send::Body,
    };
    Ok(if is_over { consumed } else { 0 })
}

/// Moves what can be moved, then judges.
pub fn advance<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Step {
    if client.conn.ready.has(Ready::BROKEN) {
        return Step::Cancel;
    }
    if let UpstreamState::Connecting { client: owner, order } = upstream.state {
        return match connecting(client, exchange, upstream, ctx) {
            Step::Begin => {
                upstream.state = UpstreamState::Serving { client: owner };
                order.prefer(exchange.upstream());
                Step::Begin
            }
            other => other,
        };
    }
    loop {
        let awaits_head = exchange.attempt.awaits_head();
        let moved = match flows(client, exchange, upstream, scratch, ctx) {
            Ok(moved) => moved,
            Err(event) => {
                let begun = exchange.attempt.receive != Receive::Head;
                return judge(exchange.attempt.send, begun, event);
            }
        };
        // A head that comes in drops, or behind one interim response after the other, is not in time for that.
        if moved && !(awaits_head && exchange.attempt.awaits_head()) {
            exchange.attempt.since = ctx.now;
        }
        match exchange.attempt.receive {
            Receive::Done { .. } => return Step::Finish,
            Receive::Tunnel => return Step::Tunnel,
            Receive::Head | Receive::Body { .. } => {}
        }
        if !moved {
            break;
        }
        if ctx.budget == 0 {
            return Step::Yield;
        }
    }
    if has_left(client, exchange) { Step::Cancel } else { Step::Wait }
}

/// Whether the client's end behind its whole request says that it is gone.
fn has_left<S>(client: &Client<S>, exchange: &Exchange) -> bool {
    client.conn.ready.has(Ready::READ_CLOSED) && !exchange.snapshot.client.half_close && exchange.is_whole()
}

/// What a client can bring about while a retry waits.
pub fn pausing<S>(client: &Client<S>, exchange: &Exchange) -> Step {
    let is_over = client.conn.ready.has(Ready::BROKEN) || has_left(client, exchange);
    if is_over { Step::Cancel } else { Step::Wait }
}

fn connecting<N: Net>(
    client: &Client<N::Stream>,
    exchange: &Exchange,
    upstream: &UpstreamConn<N::Stream>,
    ctx: &mut Ctx<N>,
) -> Step {
    if has_left(client, exchange) {
        return Step::Cancel;
    }
    if !upstream.conn.ready.has_any(Ready::WRITABLE.with(Ready::BROKEN).with(Ready::READ_CLOSED)) {
        return Step::Wait;
    }
    match ctx.net.connected(&upstream.conn.socket) {
        Ok(()) if upstream.conn.ready.has(Ready::BROKEN) => Step::NextAddress(Failure::Unreachable),
        Ok(()) => Step::Begin,
        Err(error) => Step::NextAddress(Failure::of_connect(&error)),
    }
}

/// Both flows once; whether one of them made progress.
fn flows<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let sent = match exchange.attempt.send {
        Send::Complete | Send::Broken { .. } => Ok(false),
        _ => send_request(client, exchange, upstream, scratch, ctx),
    };
    match sent {
        Ok(sent) => Ok(receive_response(client, exchange, upstream, scratch, ctx)? || sent),
        Err(Event::ClientBroken) => Err(Event::ClientBroken),
        // What the upstream has said already is worth more than how the client's body ends.
        Err(event) => match receive_response(client, exchange, upstream, scratch, ctx) {
            Ok(true) if matches!(exchange.attempt.receive, Receive::Done { .. }) => Ok(true),
            _ => Err(event),
        },
    }
}

/// What an event means, given how far both flows are: the joint rule's part that is about ends. `begun` says
/// that bytes of the final response have gone to the client.
fn judge(send: Send, begun: bool, event: Event) -> Step {
    match event {
        Event::ClientBroken => Step::Cancel,
        Event::ClientEnded | Event::ClientRefused(_) if begun => Step::Cancel,
        Event::ClientEnded => Step::Refuse(Refusal::Malformed("the connection ended inside the request body")),
        Event::ClientRefused(refusal) => Step::Refuse(refusal),
        Event::Invalid(failure) => Step::Fail(failure),
        Event::Unwanted(status) => Step::Fail(Failure::Status(status)),
        Event::UpstreamEnded { .. } if begun => Step::Fail(Failure::BodyShort),
        Event::UpstreamEnded { inside: true, .. } => Step::Fail(Failure::Incomplete),
        Event::UpstreamEnded { .. } => match send {
            Send::Waiting | Send::Head { .. } | Send::Broken { head_written: false } => Step::Fail(Failure::Unsent),
            Send::Body | Send::Complete | Send::Broken { head_written: true } => Step::Fail(Failure::Closed),
        },
    }
}

/// What becomes of the field with the id of a request.
fn id_field<'a>(ids: &'a RequestIds, id: &'a [u8]) -> IdField<'a> {
    match (ids.mode, &ids.header) {
        (RequestIdMode::Off, _) => IdField::Off,
        (_, None) => IdField::Standard(id),
        (_, Some(name)) => IdField::Named(name, id),
    }
}

fn send_request<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let mut moved = false;
    if !upstream.conn.outbound.is_empty() {
        match upstream.conn.flush(&mut ctx.net, &mut ctx.pool) {
            Err(Broken) => return Ok(break_send(exchange)),
            Ok(0) => return Ok(false),
            Ok(n) => {
                moved = true;
                if let Send::Head { left } = exchange.attempt.send {
                    exchange.attempt.send = match left.saturating_sub(n as u32) {
                        0 => Send::Body,
                        left => Send::Head { left },
                    };
                }
            }
        }
        if !upstream.conn.outbound.is_empty() {
            return Ok(true);
        }
    }
    let is_long = exchange.attempt.body.unseen() >= SPLICED_BODY && client.conn.inbound.is_empty();
    if exchange.attempt.pipe_up.is_some() || is_long {
        exchange.attempt.pipe_up = exchange.attempt.pipe_up.take().or_else(|| ctx.take_pipe());
        if exchange.attempt.pipe_up.is_some() {
            return Ok(splice_body(client, exchange, upstream, ctx)? || moved);
        }
    }
    if exchange.attempt.body.is_done() {
        exchange.attempt.send = Send::Complete;
        return Ok(true);
    }
    Ok(send_body(client, exchange, upstream, scratch, ctx)? || moved)
}

/// Passes a long body on without looking at it. Nothing of it is kept, so it cannot be sent again.
fn splice_body<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let Some(pipe) = &mut exchange.attempt.pipe_up else { return Ok(false) };
    let most = usize::try_from(exchange.attempt.body.unseen()).unwrap_or(usize::MAX).min(SPLICED_AT_ONCE);
    let spliced = match client.conn.splice_to(&mut upstream.conn, pipe, most, &mut ctx.net) {
        Ok(spliced) => spliced,
        Err(SpliceEnd::Ended) => return Err(Event::ClientEnded),
        Err(SpliceEnd::Reset) => return Err(Event::ClientBroken),
        Err(SpliceEnd::ReceiverBroken) => {
            exchange.attempt.pipe_up = None;
            return Ok(break_send(exchange));
        }
    };
    exchange.attempt.body.pass_unseen(spliced.taken);
    exchange.body_left = exchange.body_left.saturating_sub(spliced.taken as u64);
    exchange.pace.bytes += spliced.taken as u64;
    ctx.budget = ctx.budget.saturating_sub(spliced.taken);
    if exchange.attempt.body.is_done() && pipe.held() == 0 {
        ctx.give_back(exchange.attempt.pipe_up.take());
        exchange.attempt.send = Send::Complete;
        return Ok(true);
    }
    Ok(spliced.taken + spliced.given > 0)
}

/// Passes on what the client has sent of its body: from `inbound` behind the kept bytes, or straight from
/// a read.
fn send_body<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let kept = exchange.kept as usize;
    let trailer_limit = exchange.snapshot.head.header_bytes;
    let from_inbound = client.conn.inbound.len() > kept;
    scratch.reset();
    let filled = if from_inbound {
        // A trailer section that has come in part: it goes on behind that part.
        client.conn.fill_inbound(&mut ctx.net, &mut ctx.pool, trailer_limit)
    } else {
        client.conn.fill(&mut ctx.net, scratch)
    };
    match filled {
        Filled::Bytes(n) => {
            ctx.budget = ctx.budget.saturating_sub(n);
            exchange.pace.bytes += n as u64;
        }
        Filled::Nothing => return Ok(false),
        Filled::End => return Err(Event::ClientEnded),
        Filled::Broken => return Err(Event::ClientBroken),
    }
    let input = if from_inbound { &client.conn.inbound.bytes()[kept..] } else { scratch.bytes() };
    ctx.output.clear();
    let malformed = |what| Event::ClientRefused(Refusal::Malformed(what));
    let passed = exchange.attempt.body.pass(input, trailer_limit, &mut ctx.output).map_err(malformed)?;
    let left = exchange.body_left.checked_sub(passed.content as u64);
    exchange.body_left = left.ok_or(Event::ClientRefused(Refusal::BodyTooLarge))?;
    let sent = upstream.conn.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, &input[..passed.direct]);
    settle_input(client, exchange, scratch, passed.consumed, ctx);
    if sent == Err(Broken) {
        return Ok(break_send(exchange));
    }
    if upstream.conn.outbound.is_empty() && exchange.attempt.body.is_done() {
        exchange.attempt.send = Send::Complete;
    }
    Ok(true)
}

/// Files the bytes that were just passed on: kept for a replay while there is room, else given up with
/// everything kept before.
fn settle_input<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    scratch: &mut Buffer,
    consumed: usize,
    ctx: &mut Ctx<N>,
) {
    let kept = exchange.kept as usize;
    let body = (kept + consumed).saturating_sub(exchange.request.head_len as usize) as u64;
    let keeps = kept > 0
        && exchange.attempt.receive == Receive::Head
        && body <= exchange.service().retries.body_limit
        && kept + consumed + scratch.len() <= exchange.snapshot.buffer;
    let inbound = &mut client.conn.inbound;
    let pool = &mut ctx.pool;
    if keeps {
        inbound.append(pool, scratch.bytes());
        exchange.kept = (kept + consumed) as u32;
    } else if scratch.is_empty() {
        inbound.consume(pool, kept + consumed);
        exchange.kept = 0;
    } else {
        inbound.consume(pool, kept);
        inbound.append(pool, &scratch.bytes()[consumed..]);
        exchange.kept = 0;
    }
    scratch.reset();
}

/// The upstream takes no more; always progress, because reading decides now.
fn break_send(exchange: &mut Exchange) -> bool {
    let head_written = !matches!(exchange.attempt.send, Send::Waiting | Send::Head { .. });
    exchange.attempt.send = Send::Broken { head_written };
    true
}

fn receive_response<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let mut moved = false;
    if !client.conn.outbound.is_empty() {
        // Back-pressure: the upstream is not read while the client has not taken what there is.
        let flushed = client.conn.flush(&mut ctx.net, &mut ctx.pool).map_err(|Broken| Event::ClientBroken)?;
        exchange.pace.bytes += flushed as u64;
        moved = flushed > 0;
        if !client.conn.outbound.is_empty() {
            return Ok(moved);
        }
    }
    let received = match exchange.attempt.receive {
        Receive::Head => receive_head(client, exchange, upstream, scratch, ctx)?,
        Receive::Body { .. } => receive_body(client, exchange, upstream, scratch, ctx)?,
        Receive::Done { .. } | Receive::Tunnel => false,
    };
    Ok(received || moved)
}

fn receive_head<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    scratch.reset_behind(HEAD_MARGIN);
    let inside = !upstream.conn.inbound.is_empty();
    let filled = if exchange.attempt.held {
        Filled::Bytes(0)
    } else if inside {
        let room = exchange.snapshot.head.head() + 1 - upstream.conn.inbound.len().min(exchange.snapshot.head.head());
        upstream.conn.fill_inbound(&mut ctx.net, &mut ctx.pool, room)
    } else {
        upstream.conn.fill(&mut ctx.net, scratch)
    };
    match filled {
        Filled::Bytes(n) => ctx.budget = ctx.budget.saturating_sub(n),
        Filled::Nothing => return Ok(false),
        Filled::End | Filled::Broken => {
            let inside = inside || exchange.attempt.answered;
            return Err(Event::UpstreamEnded { reset: filled == Filled::Broken, inside });
        }
    }
    let mut at = 0;
    while exchange.attempt.receive == Receive::Head {
        let bytes = if inside { &upstream.conn.inbound.bytes()[at..] } else { &scratch.bytes()[at..] };
        if bytes.is_empty() {
            break;
        }
        let mut storage = Storage::new();
        let parsed = Response::parse(bytes, exchange.request.is_head, &exchange.snapshot.head, &mut storage);
        let Some(response) = parsed.map_err(|invalid| Event::Invalid(invalid.into()))? else { break };
        at += match response.status {
            101 => switch(&response, client, exchange, ctx)?,
            100..=199 => interim(&response, client, exchange, ctx)?,
            status if !exchange.attempt.held && exchange.is_unwanted(status) => {
                note_head(status, exchange, ctx);
                exchange.settle_failure(Failure::Status(status), ctx);
                exchange.attempt.held = true;
                keep_rest(exchange, upstream, scratch, at, ctx);
                return Err(Event::Unwanted(status));
            }
            _ => {
                let rendered = final_head(&response, bytes, client, exchange, ctx)?;
                let held = if inside { &mut upstream.conn.inbound } else { &mut *scratch };
                begin_response(&rendered, at, held, client, exchange, ctx)?;
                rendered.head + rendered.body.consumed
            }
        };
    }
    keep_rest(exchange, upstream, scratch, at, ctx);
    Ok(true)
}

/// Files what was read of the upstream behind the first `at` bytes. Behind a whole response nothing may
/// follow: the response stands, the connection is not used again.
fn keep_rest<N: Net>(
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    at: usize,
    ctx: &mut Ctx<N>,
) {
    let inbound = &mut upstream.conn.inbound;
    let held = if inbound.is_empty() { scratch.len() } else { inbound.len() };
    if let Receive::Done { reuse, .. } = &mut exchange.attempt.receive {
        if held > at {
            *reuse = None;
        }
        inbound.clear(&mut ctx.pool);
    } else if inbound.is_empty() {
        inbound.append(&mut ctx.pool, &scratch.bytes()[at..]);
    } else {
        inbound.consume(&mut ctx.pool, at);
    }
    scratch.reset();
}

/// Passes a 101 on that was asked for; what follows on both connections is no HTTP any more.
fn switch<N: Net>(
    response: &Response<'_, '_>,
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    ctx: &mut Ctx<N>,
) -> Result<usize, Event> {
    let asked = exchange.request.upgrade.map(|at| &*exchange.service().upgrades[usize::from(at)]);
    let granted = asked.is_some_and(|protocol| {
        let mut named = request::upgrades(response.fields, response.kinds).peekable();
        named.peek().is_some() && named.all(|named| named.eq_ignore_ascii_case(protocol))
    });
    if !granted || exchange.attempt.send != Send::Complete {
        return Err(Event::Invalid(Failure::UnaskedUpgrade));
    }
    let len = interim(response, client, exchange, ctx)?;
    client.conn.inbound.consume(&mut ctx.pool, exchange.kept as usize);
    exchange.kept = 0;
    note_head(101, exchange, ctx);
    exchange.status = 101;
    exchange.attempt.receive = Receive::Tunnel;
    Ok(len)
}

/// Passes a 1xx on to a client that knows them (RFC 9110 section 15.2); the length of its head.
fn interim<N: Net>(
    response: &Response<'_, '_>,
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    ctx: &mut Ctx<N>,
) -> Result<usize, Event> {
    exchange.attempt.answered = true;
    if exchange.request.version == Version::Http11 {
        ctx.output.clear();
        render::response(&mut ctx.output, response, Coding::Plain, Persistence::Implied, b"");
        client.conn.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, b"").map_err(|Broken| Event::ClientBroken)?;
    }
    Ok(response.len)
}

/// What a final status and the time that it took mean to the breaker.
fn settle_status<N>(status: u16, exchange: &mut Exchange, ctx: &mut Ctx<N>) {
    let upstream = exchange.upstream();
    match Failure::Status(status).outcome(&upstream.failure_on, &upstream.neutral_on) {
        Outcome::Failure => return exchange.settle_failure(Failure::Status(status), ctx),
        Outcome::Neutral => return exchange.settle(Outcome::Neutral, None, ctx),
        Outcome::Success | Outcome::Slow => {}
    }
    if let Some(slow) = upstream.slow {
        let took = ctx.now.since(exchange.attempt.started);
        if took > slow.after && slow.fails {
            return exchange.settle_failure(Failure::Slow(took.as_millis() as u32), ctx);
        }
        exchange.attempt.slow = took > slow.after;
    }
    if exchange.attempt.permit.as_ref().is_some_and(Permit::is_probe) {
        exchange.settle_success(ctx);
    }
}

/// Notes an upstream's answer and the time it took.
fn note_head<N>(status: u16, exchange: &mut Exchange, ctx: &Ctx<N>) {
    let took = ctx.now.since(exchange.attempt.started);
    exchange.upstream_status = status;
    exchange.upstream_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX - 1);
    let counters = &exchange.upstream().identity.counters[ctx.shard()];
    counters.latency.get_or_init(Box::<Latency>::default).note(took, &ctx.process.bounds_us);
}

/// A final response whose head lies rendered in `output`.
struct Rendered {
    status: u16,
    /// Bytes of the head that it was rendered from.
    head: usize,
    /// What of the bytes behind that head goes with it.
    body: Passed,
    /// Where the response stands when that has gone out.
    receive: Receive,
}

/// Renders the final head, and what came of the body in `bytes`.
fn final_head<N: Net>(
    response: &Response<'_, '_>,
    bytes: &[u8],
    client: &Client<N::Stream>,
    exchange: &mut Exchange,
    ctx: &mut Ctx<N>,
) -> Result<Rendered, Event> {
    // One that was held has been noted.
    if !exchange.attempt.held {
        note_head(response.status, exchange, ctx);
    }
    settle_status(response.status, exchange, ctx);
    let request = &exchange.request;
    let coding = render::response_coding(response.framing, request.version);
    let body = match response.framing {
        response::Framing::Empty => Body::Done,
        response::Framing::Length(length) => Body::Length(length),
        response::Framing::Chunked => Body::Chunked(Chunked::default()),
        response::Framing::UntilClose => Body::UntilClose,
    };
    let mut transfer = Transfer::new(body, coding).drop_trailers(response.connection.names_fields());
    let sent = exchange.attempt.send == Send::Complete;
    let has_ended = client.conn.ready.has(Ready::READ_CLOSED) && !exchange.snapshot.client.half_close;
    let is_last = !request.keeps_alive || has_ended;
    let then = if sent && is_last {
        Then::Close
    } else if !sent || ctx.draining || transfer.ends_by_close() {
        // The client may have sent more: closing on that would be a reset that can overtake the response.
        Then::Linger
    } else {
        Then::Keep
    };
    let pool = exchange.upstream().pool;
    let reuse = (sent && response.keeps_alive()).then(|| upstreams::idle_time(pool.idle, response.keep_alive_s));
    let date = ctx.date.at(ctx.now);
    ctx.output.clear();
    render::response(&mut ctx.output, response, coding, persistence(request.version, then), date);
    let passed = transfer
        .pass(&bytes[response.len..], exchange.snapshot.head.header_bytes, &mut ctx.output)
        .map_err(|how| Event::Invalid(Failure::BodyMalformed(how)))?;
    let receive = if transfer.is_done() {
        Receive::Done { then, reuse }
    } else {
        Receive::Body { transfer, then, reuse, is_stream: response.is_event_stream }
    };
    Ok(Rendered { status: response.status, head: response.len, body: passed, receive })
}

/// Sends what was rendered of the head that lies `at` bytes into `held`, which may be written over up to its body.
fn begin_response<N: Net>(
    rendered: &Rendered,
    at: usize,
    held: &mut Buffer,
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    ctx: &mut Ctx<N>,
) -> Result<(), Event> {
    let body = (at + rendered.head, rendered.body.direct);
    client
        .conn
        .send_held(&mut ctx.net, &mut ctx.pool, &mut ctx.output, held, body)
        .map_err(|Broken| Event::ClientBroken)?;
    // With the first response byte gone there is no replay any more.
    client.conn.inbound.consume(&mut ctx.pool, exchange.kept as usize);
    exchange.kept = 0;
    exchange.status = rendered.status;
    exchange.sent = rendered.body.content as u64;
    exchange.attempt.receive = rendered.receive;
    Ok(())
}

fn of_splice(end: SpliceEnd) -> Event {
    match end {
        SpliceEnd::Ended => Event::UpstreamEnded { reset: false, inside: true },
        SpliceEnd::Reset => Event::UpstreamEnded { reset: true, inside: true },
        SpliceEnd::ReceiverBroken => Event::ClientBroken,
    }
}

/// What a response says about the client's connection.
pub fn persistence(version: Version, then: Then) -> Persistence {
    match (then, version) {
        (Then::Close | Then::Linger, _) => Persistence::Close,
        (Then::Keep, Version::Http10) => Persistence::KeepAlive,
        (Then::Keep, Version::Http11) => Persistence::Implied,
    }
}

fn receive_body<N: Net>(
    client: &mut Client<N::Stream>,
    exchange: &mut Exchange,
    upstream: &mut UpstreamConn<N::Stream>,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Event> {
    let Receive::Body { mut transfer, then, reuse, is_stream } = exchange.attempt.receive else { return Ok(false) };
    if upstream.conn.inbound.is_empty() && (exchange.attempt.pipe_down.is_some() || transfer.unseen() >= SPLICED_BODY) {
        exchange.attempt.pipe_down = exchange.attempt.pipe_down.take().or_else(|| ctx.take_pipe());
        if let Some(pipe) = &mut exchange.attempt.pipe_down {
            let most = usize::try_from(transfer.unseen()).unwrap_or(usize::MAX).min(SPLICED_AT_ONCE);
            let spliced = upstream.conn.splice_to(&mut client.conn, pipe, most, &mut ctx.net).map_err(of_splice)?;
            transfer.pass_unseen(spliced.taken);
            exchange.sent += spliced.given as u64;
            exchange.pace.bytes += spliced.given as u64;
            ctx.budget = ctx.budget.saturating_sub(spliced.taken);
            exchange.attempt.receive = if transfer.is_done() && pipe.held() == 0 {
                ctx.give_back(exchange.attempt.pipe_down.take());
                Receive::Done { then, reuse }
            } else {
                Receive::Body { transfer, then, reuse, is_stream }
            };
            return Ok(spliced.taken + spliced.given > 0);
        }
    }
    let trailer_limit = exchange.snapshot.head.header_bytes;
    scratch.reset();
    let inside = !upstream.conn.inbound.is_empty();
    let filled = if inside {
        // A trailer section that has come in part: it goes on behind that part.
        upstream.conn.fill_inbound(&mut ctx.net, &mut ctx.pool, trailer_limit)
    } else {
        upstream.conn.fill(&mut ctx.net, scratch)
    };
    ctx.output.clear();
    let is_reset = matches!(exchange.attempt.send, Send::Broken { .. }) || upstream.conn.ready.has(Ready::BROKEN);
    let input = if inside { upstream.conn.inbound.bytes() } else { scratch.bytes() };
    let passed = match filled {
        Filled::Nothing => return Ok(false),
        Filled::Broken => return Err(Event::UpstreamEnded { reset: true, inside }),
        // A reset that the other flow has met first looks like an orderly end here.
        Filled::End if is_reset && transfer.is_until_close() => {
            return Err(Event::UpstreamEnded { reset: true, inside });
        }
        Filled::End if transfer.close(&mut ctx.output) => Passed { consumed: 0, direct: 0, content: 0 },
        Filled::End => return Err(Event::UpstreamEnded { reset: false, inside }),
        Filled::Bytes(n) => {
            ctx.budget = ctx.budget.saturating_sub(n);
            transfer
                .pass(input, trailer_limit, &mut ctx.output)
                .map_err(|how| Event::Invalid(Failure::BodyMalformed(how)))?
        }
    };
    client
        .conn
        .send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, &input[..passed.direct])
        .map_err(|Broken| Event::ClientBroken)?;
    exchange.sent += passed.content as u64;
    exchange.attempt.receive = if transfer.is_done() {
        Receive::Done { then, reuse }
    } else {
        Receive::Body { transfer, then, reuse, is_stream }
    };
    keep_rest(exchange, upstream, scratch, passed.consumed, ctx);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDS: [Send; 6] = [
        Send::Waiting,
        Send::Head { left: 1 },
        Send::Body,
        Send::Complete,
        Send::Broken { head_written: false },
        Send::Broken { head_written: true },
    ];

    #[test]
    fn the_joint_rule_over_every_pair() {
        let ended = |reset, inside| Event::UpstreamEnded { reset, inside };
        for send in SENDS {
            let unsent = matches!(send, Send::Waiting | Send::Head { .. } | Send::Broken { head_written: false });
            let closed = Step::Fail(if unsent { Failure::Unsent } else { Failure::Closed });
            let refusal = Refusal::BodyTooLarge;
            for reset in [false, true] {
                assert_eq!(judge(send, false, ended(reset, false)), closed, "{send:?}");
                assert_eq!(judge(send, false, ended(reset, true)), Step::Fail(Failure::Incomplete));
                assert_eq!(judge(send, true, ended(reset, true)), Step::Fail(Failure::BodyShort));
                assert_eq!(judge(send, true, ended(reset, false)), Step::Fail(Failure::BodyShort));
            }
            for begun in [false, true] {
                assert_eq!(judge(send, begun, Event::ClientBroken), Step::Cancel);
                let invalid = Failure::Malformed("x");
                assert_eq!(judge(send, begun, Event::Invalid(invalid)), Step::Fail(invalid));
            }
            // With a byte of the response gone there can be no answer of the gateway's own any more.
            assert_eq!(judge(send, true, Event::ClientEnded), Step::Cancel);
            assert_eq!(judge(send, true, Event::ClientRefused(refusal)), Step::Cancel);
            assert_eq!(judge(send, false, Event::ClientRefused(refusal)), Step::Refuse(refusal));
            assert!(matches!(judge(send, false, Event::ClientEnded), Step::Refuse(Refusal::Malformed(_))));
        }
    }

    #[test]
    fn request_ids_are_kept_or_made() {
        assert_eq!(RequestId::kept(b"abc").as_bytes(), b"abc");
        assert_eq!(RequestId::made(1, 0xff).as_bytes(), b"000000000000000100000000000000ff");
        let id = RequestId::made(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
        assert_eq!(id.as_bytes(), b"0123456789abcdeffedcba9876543210");
    }

    #[test]
    fn a_pace_has_its_grace_and_what_was_earned() {
        let second = |s: u64| Tick::from_us(s * 1_000_000);
        let mut pace = Pace::default();
        assert_eq!(pace.wait(true, 0, second(0)), Tick::NEVER, "off");
        assert_eq!(pace.wait(true, 100, second(10)), second(15));
        pace.bytes = 300;
        assert_eq!(pace.wait(true, 100, second(12)), second(18));
        assert_eq!(pace.wait(false, 100, second(14)), Tick::NEVER, "the upstream's time is not the client's");
        assert_eq!(pace.wait(true, 100, second(50)), second(54), "four seconds were used");
    }
}

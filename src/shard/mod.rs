//! A shard: one thread with its own listener, connections, pools and timers. This file is the loop, the
//! driver, and the only place that takes connections and exchanges out of their tables.
//!
//! A turn first folds all readiness into the connections, then drives each touched client once. `drive`
//! is one match over [`Step`]; everything else is a function of one client, one exchange, one upstream
//! connection and a [`Ctx`]. Must not know: files, names, JSON, what control does.

pub mod admin;
pub mod client;
pub mod conn;
pub mod date;
pub mod dispatch;
pub mod exchange;
pub mod listener;
pub mod mailbox;
pub mod net;
pub mod record;
pub mod tunnel;
pub mod upstreams;

use crate::ground::buffer::{Buffer, Pool};
use crate::ground::random::Random;
use crate::ground::table::{Id, Table};
use crate::ground::tick::Tick;
use crate::ground::wheel::Wheel;
use crate::http::problem::{self, Problem};
use crate::http::render::{self, Answer};
use crate::http::request::{Framing, Method, Refusal, Version};
use crate::policy::breaker::{Mode, Outcome, Transition};
use crate::policy::class::Class;
use crate::policy::retry::{self, Account, Failed, Verdict};
use crate::shard::client::{Client, ClientState, Taken, Then};
use crate::shard::conn::{Filled, Ready};
use crate::shard::date::Date;
use crate::shard::exchange::{Attempt, Awaited, Exchange, Pause, Receive, RequestId, RequestMeta, Send};
use crate::shard::listener::Listening;
use crate::shard::mailbox::{Command, Mailbox, Moved, Notice, Part, Told};
use crate::shard::net::{ClientId, ClientKind, Event, Net, Pipe, Subject, UpstreamId};
use crate::shard::record::End;
use crate::shard::tunnel::{Flow, Half, Tunnel};
use crate::shard::upstreams::{UpstreamConn, UpstreamState, Upstreams};
use crate::shared::access::Scribe;
use crate::shared::failure::Failure;
use crate::shared::metrics::ShardCounters;
use crate::shared::process::Process;
use crate::shared::snapshot::{self, Snapshot};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The snapshot as a shard's exchanges hold it: counted without atomics. The process-wide count is touched
/// at a switch only.
pub type LocalSnapshot = Rc<Arc<Snapshot>>;

/// Bytes that one client may move in one drive before the others get their turn.
const DRIVE_BYTES: usize = 256 << 10;
/// Empty pipes that a shard keeps: two descriptors each.
const KEPT_PIPES: usize = 16;
/// How long dropping what a client still sends may take.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// What comes next for a client. Small and `Copy`; only `Shard::drive` matches on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The state changed: look again.
    Again,
    /// Nothing can be done before an event.
    Wait,
    /// The byte budget is used up: the others' turn.
    Yield,
    /// The input has a head to be judged.
    Dispatch,
    /// The upstream is connected: render the request.
    Begin,
    /// The connect failed: on to the next address.
    NextAddress(Failure),
    /// The attempt failed.
    Fail(Failure),
    /// The wait before another attempt is over.
    Retry,
    /// The client's request turned out to be malformed.
    Refuse(Refusal),
    /// The response is complete.
    Finish,
    /// A 101 has gone out: bytes both ways.
    Tunnel,
    /// The client is gone, or left in the middle.
    Cancel,
    /// The answer is out, the request was not read to its end.
    Linger,
    /// The connection ends.
    Close,
}

/// What a shard's functions need besides connections.
#[derive(Debug)]
pub struct Ctx<N> {
    /// The network.
    pub net: N,
    /// Memory of buffers.
    pub pool: Pool,
    /// Where heads and chunks are rendered; holds nothing between two uses.
    pub output: Vec<u8>,
    /// The time of this turn.
    pub now: Tick,
    /// Empty pipes for long bodies.
    pipes: Vec<Pipe>,
    /// Bytes that the present drive may still read.
    pub budget: usize,
    /// No request is taken on any connection after the present one.
    pub draining: bool,
    /// Words of the process.
    pub process: Arc<Process>,
    /// To and from control.
    pub mailbox: Mailbox,
    /// The `Date` of now.
    pub date: Date,
    /// For request ids.
    pub random: Random,
    /// Lines for the access log.
    pub scribe: Scribe,
}

impl<N: Net> Ctx<N> {
    /// An empty pipe, if there can be one.
    pub fn take_pipe(&mut self) -> Option<Pipe> {
        self.pipes.pop().or_else(|| self.net.pipe())
    }

    /// Keeps a pipe for the next long body; one that holds bytes of this one is closed.
    pub fn give_back(&mut self, pipe: Option<Pipe>) {
        if let Some(pipe) = pipe.filter(|pipe| pipe.held() == 0)
            && self.pipes.len() < KEPT_PIPES
        {
            self.pipes.push(pipe);
        }
    }
}

impl<N> Ctx<N> {
    /// Which shard this is.
    pub fn shard(&self) -> usize {
        self.mailbox.shard
    }

    /// What this shard counts of itself.
    pub fn counters(&self) -> &ShardCounters {
        &self.process.shards[self.mailbox.shard]
    }

    /// Counts a refusal by its reason.
    pub fn note_refusal(&self, refusal: Refusal) {
        self.counters().refusals[refusal.index()].bump();
        let (status, word, detail) = (refusal.status(), refusal.word(), refusal.detail());
        log::debug!("shard {}: refused with {status}, {word}: {detail}", self.shard());
    }

    /// Tells control that a breaker changed its state.
    pub fn tell_moved(&self, upstream: &snapshot::Upstream, transition: Transition, cause: Option<Failure>) {
        self.tell(Notice::Moved(Box::new(Moved {
            upstream: Arc::clone(&upstream.identity),
            at_ms: self.now.ms(),
            transition,
            cause,
            observed: upstream.breaker.mode == Mode::Observe,
            note: None,
        })));
    }

    /// Tells control of something for the log.
    pub fn trouble(&self, what: &'static str) {
        self.tell(Notice::Trouble { shard: self.shard(), what });
    }

    fn tell(&self, notice: Notice) {
        if self.mailbox.tell(notice).is_err() {
            self.counters().notices_lost.bump();
        }
    }
}

/// One reactor's worth of gateway.
#[derive(Debug)]
pub struct Shard<N: Net> {
    listeners: Vec<Listening<N::Listener>>,
    accept_again: Tick,
    /// Connections over the limit that are being told so.
    turned_away: usize,
    clients: Table<Client<N::Stream>, ClientKind>,
    exchanges: Table<Exchange>,
    upstreams: Upstreams<N::Stream>,
    runnable: VecDeque<ClientId>,
    wheel: Wheel,
    rang: Vec<u64>,
    scratch: Buffer,
    snapshot: LocalSnapshot,
    accounts: Vec<Account>,
    drained: bool,
    /// Serial of a switch that control has not been told of.
    unsaid: Option<u64>,
    ctx: Ctx<N>,
}

/// The cause of an answer of the gateway's own that no more is known of.
fn own_word(status: u16) -> &'static str {
    match status {
        401 => "no_token",
        403 => "denied",
        404 => "no_resource",
        405 => "method",
        503 => "overloaded",
        _ => "own",
    }
}

/// An answer of the gateway's own.
#[derive(Clone, Debug)]
pub struct Reply<'s> {
    meta: RequestMeta,
    then: Then,
    status: u16,
    detail: &'s str,
    token: Option<&'static str>,
    /// The cause in a word.
    outcome: &'static str,
    service: Option<Cow<'s, str>>,
    retry_after_s: Option<u64>,
    allow: Option<&'static str>,
    challenge: Option<&'static str>,
    /// Content type and body of an answer that is no problem; else `detail` is its text.
    body: Option<(&'static str, Vec<u8>)>,
}

impl<'s> Reply<'s> {
    /// An answer to a request of which nothing is known, on a connection that ends.
    pub fn new(status: u16, detail: &'s str, token: Option<&'static str>) -> Reply<'s> {
        let meta = RequestMeta {
            version: Version::Http11,
            method: Method::Other,
            is_head: false,
            is_repeatable: false,
            keeps_alive: false,
            expects_continue: false,
            framing: Framing::Empty,
            upgrade: None,
            head_len: 0,
            id: RequestId::kept(b""),
        };
        let (service, retry_after_s, allow, challenge, body) = (None, None, None, None, None);
        let (then, outcome) = (Then::Linger, own_word(status));
        Reply { meta, then, status, detail, token, outcome, service, retry_after_s, allow, challenge, body }
    }

    /// The same, with an error of `Proxy-Status`.
    pub fn unread(status: u16, detail: &'s str, token: &'static str) -> Reply<'s> {
        Reply::new(status, detail, Some(token))
    }

    /// The answer to a request that is not taken and begins with `input`. Also of a head that could not be
    /// read, this much can: an answer to `HEAD` has no content (RFC 9110 section 9.3.2).
    pub fn of_refusal(refusal: Refusal, input: &[u8]) -> Reply<'static> {
        let reply = Reply::new(refusal.status(), refusal.detail(), Some(refusal.token()));
        let meta = RequestMeta { is_head: input.starts_with(b"HEAD "), ..reply.meta };
        Reply { meta, outcome: refusal.word(), ..reply }
    }
}

impl<N: Net> Shard<N> {
    /// A shard that begins with `snapshot`. `wall_us` is the wall clock at [`Tick::START`], in microseconds
    /// since 1970.
    pub fn new(
        net: N,
        listeners: Vec<N::Listener>,
        snapshot: Arc<Snapshot>,
        process: Arc<Process>,
        mailbox: Mailbox,
        seed: u64,
        wall_us: u64,
    ) -> Shard<N> {
        let mut pool = Pool::new(snapshot.large_buffer());
        let scratch = Buffer::large(&mut pool);
        let mut shard = Shard {
            listeners: listeners.into_iter().map(|socket| Listening { socket, ready: true }).collect(),
            accept_again: Tick::START,
            turned_away: 0,
            clients: Table::default(),
            exchanges: Table::default(),
            upstreams: Upstreams::default(),
            runnable: VecDeque::new(),
            wheel: Wheel::default(),
            rang: Vec::with_capacity(1024),
            scratch,
            snapshot: Rc::new(snapshot),
            accounts: Vec::new(),
            drained: false,
            unsaid: None,
            ctx: Ctx {
                net,
                output: Vec::with_capacity(pool.large_size()),
                pipes: Vec::with_capacity(KEPT_PIPES),
                pool,
                now: Tick::START,
                budget: 0,
                draining: false,
                process,
                mailbox,
                date: Date::new(wall_us),
                random: Random::new(seed),
                scribe: Scribe::default(),
            },
        };
        shard.resize_accounts();
        shard
    }

    /// One turn of the loop.
    pub fn turn(&mut self, now: Tick, events: impl Iterator<Item = Event>) {
        self.ctx.now = now;
        let mut mail = false;
        for event in events {
            mail |= self.fold(&event);
        }
        self.ring();
        if mail {
            self.read_mail();
        }
        self.say_switched();
        // Those that yield go to the back and wait for the next turn.
        for _ in 0..self.runnable.len() {
            if let Some(id) = self.runnable.pop_front() {
                if let Some(client) = self.clients.get_mut(id) {
                    client.queued = false;
                }
                self.drive(id);
            }
        }
        listener::accept(self);
        if self.ctx.draining {
            self.drain_on();
        }
        self.end_turn();
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    /// Hands on what was written down in this turn.
    fn end_turn(&mut self) {
        let shard = self.ctx.shard();
        if !self.ctx.scribe.is_empty() {
            self.ctx.scribe.hand_over(&self.ctx.process.access, shard);
        }
        let counters = self.ctx.counters();
        counters.upstream_connections.set(self.upstreams.table.len() as u64);
        counters.idle_connections.set(self.upstreams.idle_len() as u64);
    }

    /// How long the next poll may wait.
    pub fn patience(&self) -> Option<Duration> {
        if !self.runnable.is_empty() {
            return Some(Duration::ZERO);
        }
        let mut wake = self.wheel.next();
        if self.unsaid.is_some() {
            let again = self.ctx.now.after(Duration::from_millis(10));
            wake = Some(wake.map_or(again, |wake| wake.min(again)));
        }
        if !self.ctx.scribe.is_empty() {
            // The writer looked at the queue just when it was to get more.
            let again = self.ctx.now.after(Duration::from_millis(1));
            wake = Some(wake.map_or(again, |wake| wake.min(again)));
        }
        if self.listeners.iter().any(|listening| listening.ready) {
            let again = self.accept_again.max(self.ctx.now);
            wake = Some(wake.map_or(again, |wake| wake.min(again)));
        }
        wake.map(|wake| wake.since(self.ctx.now))
    }

    /// How long to go on polling after the last event before the loop sleeps; zero is not at all.
    pub fn busy_poll(&self) -> Duration {
        self.snapshot.busy_poll
    }

    /// Whether draining is over.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The wall clock was read again.
    pub fn set_wall(&mut self, wall_us: u64) {
        self.ctx.date.set(wall_us);
    }

    /// Client connections, exchanges and upstream connections.
    pub fn census(&self) -> (usize, usize, usize) {
        (self.clients.len(), self.exchanges.len(), self.upstreams.table.len())
    }

    /// Takes one event in; whether it announces mail.
    fn fold(&mut self, event: &Event) -> bool {
        match Subject::of_token(event.token) {
            Subject::Mailbox => return true,
            Subject::Listener(position) => {
                if let Some(listening) = self.listeners.get_mut(position) {
                    listening.ready = true;
                }
            }
            Subject::Client(id) => {
                if let Some(client) = self.clients.get_mut(id) {
                    let write_open = client.writes();
                    client.conn.fold(event, write_open);
                    self.queue(id);
                }
            }
            Subject::Upstream(id) => {
                let Some(upstream) = self.upstreams.table.get_mut(id) else { return false };
                upstream.conn.fold(event, !matches!(upstream.state, UpstreamState::Tunnel { shut: true, .. }));
                match upstream.state {
                    UpstreamState::Connecting { client, .. }
                    | UpstreamState::Serving { client }
                    | UpstreamState::Tunnel { client, .. } => self.queue(client),
                    // Nothing was asked of it, so whatever comes is its end, or unsound.
                    UpstreamState::Idle if upstream.conn.ready.has_any(UNSOUND) => self.close_upstream(id),
                    UpstreamState::Idle => {}
                }
            }
        }
        false
    }

    fn queue(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id)
            && !client.queued
        {
            client.queued = true;
            self.runnable.push_back(id);
        }
    }

    /// Wakes those whose deadline has come.
    fn ring(&mut self) {
        let mut rang = std::mem::take(&mut self.rang);
        self.wheel.advance(self.ctx.now, &mut rang);
        // All of them are spent before the first is looked at: what one deadline causes may close the
        // connection of another, which must not take back an alarm that is somebody else's by then.
        for token in &rang {
            match Subject::of_token(*token as usize) {
                Subject::Client(id) => self.clients.get_mut(id).into_iter().for_each(|c| c.conn.spend_alarm()),
                Subject::Upstream(id) => {
                    self.upstreams.table.get_mut(id).into_iter().for_each(|u| u.conn.spend_alarm());
                }
                Subject::Listener(_) | Subject::Mailbox => {}
            }
        }
        for token in rang.drain(..) {
            match Subject::of_token(token as usize) {
                Subject::Client(id) => {
                    let waits = self.is_served_first(id);
                    match self.clients.get_mut(id) {
                        Some(client) if client.conn.deadline <= self.ctx.now && !waits => self.expire(id),
                        Some(client) => client.conn.arm(&mut self.wheel, token as usize),
                        None => {}
                    }
                }
                Subject::Upstream(id) => match self.upstreams.table.get_mut(id) {
                    Some(upstream) if upstream.conn.deadline <= self.ctx.now => self.close_upstream(id),
                    Some(upstream) => upstream.conn.arm(&mut self.wheel, token as usize),
                    None => {}
                },
                Subject::Listener(_) | Subject::Mailbox => {}
            }
        }
        self.rang = rang;
    }

    /// Whether what has arrived in this turn comes before a deadline that is over: a shard that was held up must
    /// not blame others for it. A head and a whole exchange have no such claim: bytes in drops would prolong them.
    fn is_served_first(&self, id: ClientId) -> bool {
        let Some(client) = self.clients.get(id).filter(|client| client.queued) else { return false };
        match client.state {
            ClientState::Head { .. } => false,
            ClientState::Exchange(exchange) => self.exchanges.get(exchange).is_some_and(|exchange| {
                let total = exchange.service().total_timeout;
                total.is_none_or(|total| exchange.started.after(total) > self.ctx.now)
            }),
            _ => true,
        }
    }

    fn read_mail(&mut self) {
        while let Ok(command) = self.ctx.mailbox.commands.try_recv() {
            match command {
                Command::Switch { snapshot, left } => self.switch(snapshot, &left),
                Command::Answer { client, told, pieces } => self.answer_ticket(Id::unpack(client), &told, pieces),
                Command::Begin { client, told, pieces } => self.begin_stream(Id::unpack(client), &told, pieces),
                Command::Stream { client, part, pieces } => self.stream(Id::unpack(client), part, pieces),
                Command::Drain => self.begin_drain(),
            }
        }
    }

    fn switch(&mut self, snapshot: Arc<Snapshot>, left: &[usize]) {
        let serial = snapshot.serial;
        if snapshot.large_buffer() != self.ctx.pool.large_size() {
            self.scratch.clear(&mut self.ctx.pool);
            self.ctx.pool.resize(snapshot.large_buffer());
            self.scratch = Buffer::large(&mut self.ctx.pool);
        }
        for slot in left {
            while let Some(id) = self.upstreams.idle_of(*slot) {
                self.close_upstream(id);
            }
        }
        self.snapshot = Rc::new(snapshot);
        self.resize_accounts();
        self.unsaid = Some(serial);
        self.say_switched();
    }

    /// Tells control that the last switch is done; again when its queue was full.
    fn say_switched(&mut self) {
        if let Some(serial) = self.unsaid
            && self.ctx.mailbox.tell(Notice::Switched { shard: self.ctx.shard(), serial }).is_ok()
        {
            self.unsaid = None;
        }
    }

    fn resize_accounts(&mut self) {
        if self.accounts.len() < self.snapshot.service_slots {
            self.accounts.resize(self.snapshot.service_slots, Account::default());
        }
    }

    fn answer_ticket(&mut self, id: ClientId, told: &Told, mut pieces: VecDeque<Vec<u8>>) {
        // The client may have left; its answer ends here.
        let Some(client) = self.clients.get_mut(id) else { return };
        let ClientState::Ticket { then, method } = client.state else { return };
        client.state = ClientState::Answering { then };
        record::ticket(method, told, &pieces, client.kept.take(), client.peer, &mut self.ctx);
        let mut first = pieces.pop_front().unwrap_or_default();
        client.rest = (!pieces.is_empty()).then(|| Box::new(pieces));
        client.conn.deadline = self.ctx.now.after(self.snapshot.client.body_idle);
        match client.conn.send(&mut self.ctx.net, &mut self.ctx.pool, &mut first, b"") {
            Ok(_) => self.queue(id),
            Err(_) => self.close_client(id),
        }
    }

    fn begin_stream(&mut self, id: ClientId, told: &Told, pieces: VecDeque<Vec<u8>>) {
        let Some(client) = self.clients.get_mut(id) else { return self.tell_left(id) };
        let ClientState::Ticket { method, .. } = client.state else { return self.tell_left(id) };
        record::ticket(method, told, &pieces, client.kept.take(), client.peer, &mut self.ctx);
        client.state = ClientState::Stream;
        client::take_part(client, Part::Event, pieces, self.ctx.now);
        self.queue(id);
    }

    fn stream(&mut self, id: ClientId, part: Part, pieces: VecDeque<Vec<u8>>) {
        match self.clients.get_mut(id) {
            Some(client) if client.state == ClientState::Stream => {
                match client::take_part(client, part, pieces, self.ctx.now) {
                    Taken::Yes => {
                        if part == Part::Last {
                            client.state = ClientState::Answering { then: Then::Close };
                            client.conn.deadline = self.ctx.now.after(self.snapshot.client.body_idle);
                        }
                        self.queue(id);
                    }
                    Taken::Skipped => {}
                    Taken::TooMuch => self.drop_lagging(id),
                }
            }
            _ if part != Part::Last => self.tell_left(id),
            _ => {}
        }
    }

    /// A stream's client has left. That may have been told when control's queue was full, so it is told again.
    fn tell_left(&mut self, id: ClientId) {
        self.ctx.tell(Notice::Left { shard: self.ctx.shard(), client: id.pack(), lagged: false });
    }

    /// A client that does not take what is streamed to it is cut off: what it misses, it can ask for again.
    fn drop_lagging(&mut self, id: ClientId) {
        self.ctx.counters().lagged.bump();
        self.ctx.tell(Notice::Left { shard: self.ctx.shard(), client: id.pack(), lagged: true });
        if let Some(client) = self.clients.get_mut(id) {
            client.state = ClientState::Answering { then: Then::Close };
        }
        self.close_client(id);
    }

    fn begin_drain(&mut self) {
        self.ctx.draining = true;
        self.listeners.iter_mut().for_each(|listening| listening.ready = true);
        let idle =
            |client: &Client<N::Stream>| client.state == ClientState::Idle && !client.conn.ready.has(Ready::READABLE);
        let ids: Vec<_> = self.clients.iter().filter(|(_, client)| idle(client)).map(|(id, _)| id).collect();
        for id in ids {
            self.close_client(id);
        }
        // Those that control could not end.
        let streams = self.clients.iter().filter(|(_, client)| client.state == ClientState::Stream);
        for id in streams.map(|(id, _)| id).collect::<Vec<_>>() {
            self.close_client(id);
        }
    }

    /// Takes what is queued at the listeners, closes them, and says when the last client has gone.
    fn drain_on(&mut self) {
        if self.listeners.iter().all(|listening| !listening.ready) {
            self.listeners.clear();
        }
        if self.clients.is_empty() && self.listeners.is_empty() && !self.drained {
            // Whoever runs the shard says so, when its loop has ended.
            self.drained = true;
        }
    }

    /// Moves one client on as far as it goes now.
    pub(crate) fn drive(&mut self, id: ClientId) {
        self.drive_from(id, Step::Again);
    }

    /// The same, from a step that an alarm has decided.
    fn drive_from(&mut self, id: ClientId, step: Step) {
        self.ctx.budget = DRIVE_BYTES;
        // A bug that one request provokes ends that exchange, not the shard.
        if catch_unwind(AssertUnwindSafe(|| self.drive_on(id, step))).is_err() {
            self.abandon(id);
        }
    }

    fn drive_on(&mut self, id: ClientId, mut step: Step) {
        loop {
            step = match step {
                Step::Again if self.ctx.budget == 0 => Step::Yield,
                Step::Again => self.advance(id),
                Step::Dispatch => dispatch::dispatch(self, id),
                Step::Begin => dispatch::begin_kept(self, id),
                Step::NextAddress(failure) => self.next_address(id, failure),
                Step::Fail(failure) => self.fail(id, failure),
                Step::Retry => self.end_pause(id),
                Step::Refuse(refusal) => self.refuse(id, refusal),
                Step::Finish => self.finish(id),
                Step::Tunnel => self.begin_tunnel(id),
                Step::Cancel => {
                    self.ctx.counters().aborted.bump();
                    Step::Close
                }
                Step::Linger => self.linger(id),
                Step::Close => return self.close_client(id),
                Step::Yield => {
                    self.queue(id);
                    return self.set_deadline(id);
                }
                Step::Wait => return self.set_deadline(id),
            };
        }
    }

    /// One look at a client: what its state lets it do.
    fn advance(&mut self, id: ClientId) -> Step {
        let Shard { clients, exchanges, upstreams, scratch, ctx, snapshot, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        match client.state {
            ClientState::Idle if ctx.draining && !client.conn.ready.has(Ready::READABLE) => Step::Close,
            ClientState::Idle | ClientState::Head { .. } => client::read_head(client, &snapshot.client, scratch, ctx),
            ClientState::Exchange(exchange) => {
                let Some(exchange) = exchanges.get_mut(exchange) else { return Step::Close };
                match exchange.attempt.upstream.and_then(|upstream| upstreams.table.get_mut(upstream)) {
                    Some(upstream) => exchange::advance(client, exchange, upstream, scratch, ctx),
                    None if exchange.pause.is_some() => exchange::pausing(client, exchange),
                    None => Step::Fail(Failure::Closed),
                }
            }
            ClientState::Answering { then } => client::answer(client, then, &snapshot.client, ctx),
            ClientState::Ticket { .. } if client.conn.ready.has(Ready::BROKEN) => Step::Close,
            ClientState::Ticket { .. } => Step::Wait,
            ClientState::Stream => client::stream(client, &snapshot.client, ctx),
            ClientState::Tunnel(_) => self.pour(id),
            ClientState::Lingering { left } => client::linger(client, left, scratch, ctx),
        }
    }

    /// The deadline of what a client waits for now.
    fn set_deadline(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if let ClientState::Exchange(exchange) = client.state
            && let Some(exchange) = self.exchanges.get_mut(exchange)
        {
            let total = exchange.service().total_timeout.map_or(Tick::NEVER, |total| exchange.started.after(total));
            let upstream = exchange.attempt.upstream.and_then(|id| self.upstreams.table.get(id));
            client.conn.deadline = match (upstream, &exchange.pause) {
                (None, Some(pause)) => pause.until.min(total),
                (None, None) => client.conn.deadline,
                (Some(upstream), _) => {
                    let awaited = exchange::awaited(exchange, client, upstream);
                    let (Awaited::Client(patience) | Awaited::Upstream(patience, _) | Awaited::Stream(patience)) =
                        awaited;
                    let min_rate = exchange.snapshot.client.min_rate;
                    let pace = exchange.pace.wait(matches!(awaited, Awaited::Client(_)), min_rate, self.ctx.now);
                    let one_try = match awaited {
                        Awaited::Upstream(..) => exchange.try_deadline(),
                        _ => Tick::NEVER,
                    };
                    exchange.attempt.since.after(patience).min(total).min(pace).min(one_try)
                }
            };
        }
        client.conn.arm(&mut self.wheel, Subject::Client(id).token());
    }

    /// A client's deadline has come.
    fn expire(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        match client.state {
            ClientState::Head { .. } => self.drive_from(id, Step::Refuse(Refusal::Slow)),
            ClientState::Exchange(exchange_id) => {
                let Some(exchange) = self.exchanges.get(exchange_id) else { return self.close_client(id) };
                let total = exchange.service().total_timeout.map_or(Tick::NEVER, |total| exchange.started.after(total));
                let upstream = exchange.attempt.upstream.and_then(|id| self.upstreams.table.get(id));
                let one_try = exchange.try_deadline();
                let step = match upstream.map(|upstream| exchange::awaited(exchange, client, upstream)) {
                    None if exchange.pause.is_some() && self.ctx.now >= total => Step::Fail(Failure::Total),
                    None if exchange.pause.is_some() => Step::Retry,
                    None => Step::Fail(Failure::Closed),
                    Some(Awaited::Client(_)) if exchange.attempt.receive == Receive::Head => {
                        Step::Refuse(Refusal::Slow)
                    }
                    Some(Awaited::Client(_)) => Step::Cancel,
                    Some(Awaited::Stream(_)) if self.ctx.now < total => Step::Cancel,
                    Some(Awaited::Stream(_) | Awaited::Upstream(..)) if self.ctx.now >= total => {
                        Step::Fail(Failure::Total)
                    }
                    Some(Awaited::Upstream(_, failure)) if self.ctx.now >= one_try => Step::Fail(match failure {
                        Failure::ConnectTimeout => failure,
                        _ => Failure::TryTimeout,
                    }),
                    Some(Awaited::Upstream(_, Failure::ConnectTimeout)) => Step::NextAddress(Failure::ConnectTimeout),
                    Some(Awaited::Upstream(_, failure)) => Step::Fail(failure),
                    Some(Awaited::Stream(_)) => Step::Cancel,
                };
                self.drive_from(id, step);
            }
            ClientState::Ticket { method, .. } => {
                let reply = Reply::new(503, "the gateway's control thread did not answer in time", None);
                let meta = RequestMeta { method, is_head: method == Method::Head, ..reply.meta };
                self.reply(id, &Reply { meta, ..reply });
                self.drive(id);
            }
            ClientState::Stream if client.waiting() > 0 => self.drop_lagging(id),
            ClientState::Idle
            | ClientState::Stream
            | ClientState::Answering { .. }
            | ClientState::Tunnel(_)
            | ClientState::Lingering { .. } => self.close_client(id),
        }
    }

    /// The connect to one address failed: the next one, or the attempt has.
    fn next_address(&mut self, id: ClientId, failure: Failure) -> Step {
        let Some(exchange) = self.exchange_of(id) else { return Step::Close };
        let Some(upstream_id) = exchange.attempt.upstream.take() else { return Step::Fail(failure) };
        let snapshot = exchange.snapshot.clone();
        let (service, position) = (exchange.service as usize, usize::from(exchange.position));
        let to = &snapshot.services[service].upstreams[position];
        let next = match self.upstreams.table.get(upstream_id).map(|upstream| &upstream.state) {
            Some(UpstreamState::Connecting { order, .. }) => order.next(to),
            _ => None,
        };
        self.close_upstream(upstream_id);
        let Some(order) = next else { return Step::Fail(failure) };
        match self.upstreams.connect(&mut self.ctx.net, to, id, order) {
            Err(failure) => Step::Fail(failure),
            Ok(next) => {
                let now = self.ctx.now;
                if let Some(exchange) = self.exchange_of(id) {
                    exchange.attempt.upstream = Some(next);
                    exchange.attempt.since = now;
                }
                Step::Wait
            }
        }
    }

    /// An attempt failed: settle it, then another try, an answer, or a visible end.
    fn fail(&mut self, id: ClientId, failure: Failure) -> Step {
        let Shard { clients, exchanges, upstreams, ctx, accounts, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        let ClientState::Exchange(exchange_id) = client.state else { return Step::Close };
        let Some(exchange) = exchanges.get_mut(exchange_id) else { return Step::Close };
        if exchange.attempt.receive != Receive::Head {
            return self.cut(id, failure);
        }
        let class = failure.class();
        let reused = exchange.attempt.reused;
        let snapshot = exchange.snapshot.clone();
        let service = &snapshot.services[exchange.service as usize];
        let verdict = match class {
            // All attempts together have taken too long.
            _ if failure == Failure::Total => Verdict::GiveUp,
            Some(class) => {
                let status = if let Failure::Status(status) = failure { Some(status) } else { None };
                let (repeated, repeatable) = (exchange.attempt.repeated, exchange.request.is_repeatable);
                let replayable = exchange.is_replayable();
                retry::verdict(Failed { class, status, reused, repeated, repeatable, replayable }, &service.retries)
            }
            // The gateway's own want: another upstream may have a pooled connection.
            None => Verdict::Another { free: true },
        };
        let is_whole = exchange.is_whole();
        let is_race = class.is_some_and(|class| retry::is_stale_race(class, reused));
        if verdict == Verdict::SameUpstream {
            // The permit goes on to the fresh connection, whose outcome counts.
            let used = exchange.attempt.upstream.take();
            ctx.counters().stale.bump();
            exchange.attempt.repeated = true;
            rewind(exchange, ctx.now);
            let connected = dispatch::connect(exchange, id, upstreams, ctx);
            if let Some(used) = used {
                self.close_upstream(used);
            }
            return connected.map_or_else(Step::Fail, |()| Step::Wait);
        }
        if is_race {
            exchange.settle(Outcome::Neutral, Some(failure), ctx);
        } else {
            exchange.settle_failure(failure, ctx);
        }
        let again = is_asked_again(failure);
        let another = match verdict {
            Verdict::Another { free } if exchange.tried.count() <= service.retries.attempts => {
                let account = accounts.get_mut(service.identity.slot.number());
                let now_s = (ctx.now.ms() / 1000) as u32;
                dispatch::has_another(service, &exchange.tried, again, ctx)
                    && (free || account.is_some_and(|account| account.spend(now_s, &service.retries)))
            }
            _ => false,
        };
        let pause = service.retries.pause(exchange.tried.count(), ctx.random.next_u64()).filter(|_| another);
        if let Some(pause) = pause {
            exchange.depart(ctx);
            let used = exchange.attempt.upstream.take();
            rewind(exchange, ctx.now);
            exchange.attempt.is_whole = is_whole;
            exchange.pause = Some(Box::new(Pause { until: ctx.now.after(pause), failure, is_whole }));
            if let Some(used) = used {
                self.close_upstream(used);
            }
            return Step::Wait;
        }
        // Not when passing it on is what failed: that would fail again.
        let held = exchange.attempt.held && class == Some(Class::Status);
        match another.then(|| self.try_another(id, is_whole, failure)).flatten() {
            Some(step) => step,
            // The response that was not wanted is the one there is.
            None if held => Step::Again,
            None => self.answer_failure(id, failure),
        }
    }

    /// The next attempt, if there is an upstream for it; else nothing changes.
    fn try_another(&mut self, id: ClientId, is_whole: bool, failure: Failure) -> Option<Step> {
        let Shard { clients, exchanges, upstreams, ctx, .. } = self;
        let ClientState::Exchange(exchange_id) = clients.get(id)?.state else { return None };
        let exchange = exchanges.get_mut(exchange_id)?;
        let snapshot = exchange.snapshot.clone();
        let service = &snapshot.services[exchange.service as usize];
        let again = is_asked_again(failure);
        let (position, grant) = dispatch::pick(service, &exchange.tried, exchange.key, is_whole, again, ctx)?;
        ctx.counters().retries.bump();
        exchange.depart(ctx);
        let used = exchange.attempt.upstream.take();
        exchange.tried.add(position);
        exchange.position = position;
        exchange.attempt = Attempt { retry_of: Some(failure.ending()), ..dispatch::attempt(grant, is_whole, ctx) };
        rewind(exchange, ctx.now);
        let step = match dispatch::connect(exchange, id, upstreams, ctx) {
            Err(failure) => Step::Fail(failure),
            Ok(()) if exchange.attempt.reused => Step::Begin,
            Ok(()) => Step::Wait,
        };
        if let Some(used) = used {
            self.close_upstream(used);
        }
        Some(step)
    }

    /// The wait before a retry is over.
    fn end_pause(&mut self, id: ClientId) -> Step {
        let Some(exchange) = self.exchange_of(id) else { return Step::Close };
        let Some(pause) = exchange.pause.take() else { return Step::Wait };
        let Pause { failure, is_whole, .. } = *pause;
        self.try_another(id, is_whole, failure).unwrap_or_else(|| self.answer_failure(id, failure))
    }

    /// The response had begun: it must not look complete.
    fn cut(&mut self, id: ClientId, failure: Failure) -> Step {
        let Shard { clients, exchanges, ctx, .. } = self;
        let Some(client) = clients.get(id) else { return Step::Wait };
        let ClientState::Exchange(exchange_id) = client.state else { return Step::Close };
        let Some(exchange) = exchanges.get_mut(exchange_id) else { return Step::Close };
        exchange.settle_failure(failure, ctx);
        let then = match exchange.attempt.receive {
            // Its exchange ends with its connection, by a reset.
            Receive::Body { transfer, .. } if transfer.ends_by_close() => return Step::Close,
            Receive::Body { then: Then::Linger, .. } => Then::Linger,
            _ => Then::Close,
        };
        // What there is of it still goes out; its length or the missing last chunk says that it is a part.
        let patience = exchange.snapshot.client.body_idle;
        self.leave(id, End::Cut(failure));
        let Some(client) = self.clients.get_mut(id) else { return Step::Wait };
        client.state = ClientState::Answering { then };
        client.conn.deadline = self.ctx.now.after(patience);
        Step::Again
    }

    /// The client is told what failed.
    fn answer_failure(&mut self, id: ClientId, failure: Failure) -> Step {
        let Some(exchange) = self.exchange_of(id) else { return Step::Close };
        let snapshot = exchange.snapshot.clone();
        let service = &snapshot.services[exchange.service as usize];
        let (meta, complete) = (exchange.request, exchange.request_is_complete());
        let consumed = if exchange.attempt.send == Send::Waiting { meta.head_len } else { exchange.kept };
        let left = self.part(id, End::Answered(failure.status(), failure.ending().word()));
        let then = match (complete, meta.keeps_alive && !self.ctx.draining) {
            (false, _) => Then::Linger,
            (true, false) => Then::Close,
            (true, true) => Then::Keep,
        };
        if let Some(client) = self.clients.get_mut(id) {
            match then {
                Then::Keep => client.conn.inbound.consume(&mut self.ctx.pool, consumed as usize),
                _ => client.conn.inbound.clear(&mut self.ctx.pool),
            }
        }
        let retry_after_s = (failure.status() == 503).then_some(1);
        let problem = Reply::new(failure.status(), failure.detail(), Some(failure.token()));
        self.answer(
            id,
            &Reply {
                meta,
                then,
                outcome: failure.ending().word(),
                service: Some(Cow::Borrowed(&service.identity.name)),
                retry_after_s,
                ..problem
            },
            left,
        )
    }

    /// The client's own fault in the middle of its request.
    fn refuse(&mut self, id: ClientId, refusal: Refusal) -> Step {
        self.ctx.note_refusal(refusal);
        let exchange = self
            .exchange_of(id)
            .map(|exchange| (exchange.request, exchange.snapshot.clone(), exchange.service as usize));
        let left = self.part(id, End::Answered(refusal.status(), refusal.word()));
        let Some(client) = self.clients.get_mut(id) else { return Step::Wait };
        let reply = Reply::of_refusal(refusal, client.conn.inbound.bytes());
        if exchange.is_none() {
            self.ctx.counters().requests.bump();
            record::keep_raw(client.conn.inbound.bytes(), &mut self.ctx);
            client.kept = self.ctx.scribe.take();
        }
        client.conn.inbound.clear(&mut self.ctx.pool);
        if let Some((meta, snapshot, service)) = &exchange {
            let service = Some(Cow::Borrowed(&*snapshot.services[*service].identity.name));
            return self.answer(id, &Reply { meta: *meta, service, ..reply }, left);
        }
        self.reply(id, &reply)
    }

    /// The response is complete, or waits whole in the client's `outbound`.
    fn finish(&mut self, id: ClientId) -> Step {
        let Shard { clients, exchanges, ctx, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        let ClientState::Exchange(exchange_id) = client.state else { return Step::Close };
        let Some(exchange) = exchanges.get_mut(exchange_id) else { return Step::Close };
        let Receive::Done { then, reuse } = exchange.attempt.receive else { return Step::Cancel };
        exchange.settle_success(ctx);
        exchange.depart(ctx);
        record::count(exchange, End::Whole, ctx);
        record::line(exchange, End::Whole, client.kept.take(), client.peer, ctx);
        let sent = exchange.attempt.send == Send::Complete;
        let used = exchange.attempt.upstream.take();
        let upstream = exchange.upstream();
        let most = upstream.pool.max_idle;
        let in_force = upstream.addresses.in_force.load(Ordering::Relaxed);
        client.state = ClientState::Answering { then };
        client.conn.deadline = ctx.now.after(exchange.snapshot.client.body_idle);
        exchanges.remove(exchange_id);
        if let Some(used) = used {
            match reuse.filter(|idle| in_force && sent && !idle.is_zero()) {
                Some(idle) => self.check_in(used, idle, most),
                None => self.close_upstream(used),
            }
        }
        Step::Again
    }

    /// The exchange is over with its 101; the two connections stay together.
    fn begin_tunnel(&mut self, id: ClientId) -> Step {
        let Shard { clients, exchanges, upstreams, ctx, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        let ClientState::Exchange(exchange_id) = client.state else { return Step::Close };
        let Some(exchange) = exchanges.get_mut(exchange_id) else { return Step::Close };
        exchange.settle_success(ctx);
        record::count(exchange, End::Whole, ctx);
        let silence = exchange.upstream().timeouts.stream;
        let Some(upstream) = exchange.attempt.upstream else { return Step::Close };
        let silence_ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
        let (up, down) = (Half::Open, Half::Open);
        client.state = ClientState::Tunnel(Tunnel { upstream, exchange: exchange_id, up, down, silence_ms });
        client.conn.deadline = ctx.now.after(silence);
        if let Some(upstream) = upstreams.table.get_mut(upstream) {
            upstream.state = UpstreamState::Tunnel { client: id, shut: false };
        }
        Step::Again
    }

    /// Moves a tunnel's bytes.
    fn pour(&mut self, id: ClientId) -> Step {
        let Shard { clients, upstreams, scratch, ctx, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        let ClientState::Tunnel(mut tunnel) = client.state else { return Step::Close };
        let Some(upstream) = upstreams.table.get_mut(tunnel.upstream) else { return Step::Close };
        if client.conn.ready.has(Ready::BROKEN) {
            return Step::Close;
        }
        let flow = tunnel::advance(client, upstream, &mut tunnel, scratch, ctx);
        client.state = ClientState::Tunnel(tunnel);
        match flow {
            Flow::Over => Step::Close,
            Flow::Still => Step::Wait,
            Flow::Moved => {
                client.conn.deadline = ctx.now.after(Duration::from_millis(u64::from(tunnel.silence_ms)));
                Step::Again
            }
        }
    }

    /// Puts an upstream connection into the pool when it is sound.
    fn check_in(&mut self, id: UpstreamId, idle: Duration, most: usize) {
        let Shard { upstreams, ctx, scratch, wheel, .. } = self;
        let Some(upstream) = upstreams.table.get_mut(id) else { return };
        let conn = &mut upstream.conn;
        let mut sound = conn.inbound.is_empty()
            && conn.outbound.is_empty()
            && !conn.ready.has_any(Ready::READ_CLOSED.with(Ready::BROKEN));
        if sound && conn.ready.has(Ready::READABLE) {
            // The last read filled its buffer to the brim: whether more waits, only another one tells.
            scratch.reset();
            sound = conn.fill(&mut ctx.net, scratch) == Filled::Nothing;
            scratch.reset();
        }
        if sound && upstreams.check_in(id, ctx.now.after(idle), most) {
            if let Some(upstream) = upstreams.table.get_mut(id) {
                upstream.conn.arm(wheel, Subject::Upstream(id).token());
            }
        } else {
            self.close_upstream(id);
        }
    }

    /// Takes the exchange from its client, whatever state it is in: an open permit ends neutral, the upstream
    /// connection closes.
    fn leave(&mut self, id: ClientId, end: End) {
        let Some(exchange) = self.part(id, end) else { return };
        let Some(client) = self.clients.get_mut(id) else { return };
        record::line(&exchange, end, client.kept.take(), client.peer, &mut self.ctx);
    }

    /// The same; the line for the access log is left to the caller.
    fn part(&mut self, id: ClientId, end: End) -> Option<Exchange> {
        let client = self.clients.get_mut(id)?;
        let ClientState::Exchange(exchange_id) = client.state else { return None };
        client.state = ClientState::Answering { then: Then::Close };
        let mut exchange = self.exchanges.remove(exchange_id)?;
        exchange.settle(Outcome::Neutral, None, &mut self.ctx);
        exchange.depart(&self.ctx);
        record::count(&exchange, end, &self.ctx);
        self.ctx.give_back(exchange.attempt.pipe_up.take());
        self.ctx.give_back(exchange.attempt.pipe_down.take());
        if let Some(upstream) = exchange.attempt.upstream {
            self.close_upstream(upstream);
        }
        Some(exchange)
    }

    fn exchange_of(&mut self, id: ClientId) -> Option<&mut Exchange> {
        match self.clients.get(id)?.state {
            ClientState::Exchange(exchange) => self.exchanges.get_mut(exchange),
            _ => None,
        }
    }

    fn linger(&mut self, id: ClientId) -> Step {
        let Some(client) = self.clients.get_mut(id) else { return Step::Wait };
        client.conn.deadline = self.ctx.now.after(LINGER_TIME);
        client::begin_linger(client, &mut self.ctx)
    }

    /// Renders an answer of the gateway's own and sends it.
    pub(crate) fn reply(&mut self, id: ClientId, reply: &Reply<'_>) -> Step {
        self.answer(id, reply, None)
    }

    /// The same, in the place of what `left`, an exchange that has ended so, would have given.
    fn answer(&mut self, id: ClientId, reply: &Reply<'_>, left: Option<Exchange>) -> Step {
        let Shard { clients, ctx, snapshot, .. } = self;
        let Some(client) = clients.get_mut(id) else { return Step::Wait };
        let made = RequestId::made(ctx.random.next_u64(), ctx.random.next_u64());
        let instance = if reply.meta.id.as_bytes().is_empty() { made } else { reply.meta.id };
        let persistence = exchange::persistence(reply.meta.version, reply.then);
        let date = ctx.date.at(ctx.now);
        ctx.output.clear();
        if reply.status < 300 {
            let extra = reply.allow.map_or(Vec::new(), |allow| format!("Allow: {allow}\r\n").into_bytes());
            let text = ("text/plain; charset=utf-8", reply.detail.as_bytes());
            let (content_type, body) = reply.body.as_ref().map_or(text, |(kind, body)| (*kind, body));
            let answer = Answer {
                status: reply.status,
                content_type,
                extra: &extra,
                date,
                persistence,
                to_head: reply.meta.is_head,
            };
            render::answer(&mut ctx.output, &answer, body);
        } else {
            let problem = Problem {
                status: reply.status,
                detail: reply.detail,
                reason: reply.outcome,
                token: reply.token,
                service: reply.service.as_deref(),
                instance: instance.as_bytes(),
                retry_after_s: reply.retry_after_s.or((reply.status == 503).then_some(1)),
                allow: reply.allow,
                challenge: reply.challenge,
            };
            problem::render(&mut ctx.output, &problem, persistence, reply.meta.is_head, date);
        }
        let head = memchr::memmem::find(&ctx.output, b"\r\n\r\n").map_or(ctx.output.len(), |end| end + 4);
        let sent = ctx.output.len() - head;
        match left {
            Some(mut exchange) => {
                exchange.sent = sent as u64;
                let end = End::Answered(reply.status, reply.outcome);
                record::line(&exchange, end, client.kept.take(), client.peer, ctx);
            }
            None if client.counted => {
                record::own(reply, instance.as_bytes(), sent, client.kept.take(), client.peer, snapshot, ctx);
            }
            None => {}
        }
        client.state = ClientState::Answering { then: reply.then };
        client.conn.deadline = ctx.now.after(snapshot.client.body_idle);
        match client.conn.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, b"") {
            Ok(_) => Step::Again,
            Err(_) => Step::Close,
        }
    }

    fn close_client(&mut self, id: ClientId) {
        // A part of a response must not look like the whole where only the end of the connection delimits it.
        let is_part = match self.exchange_of(id).map(|exchange| exchange.attempt.receive) {
            Some(Receive::Body { transfer, .. }) => transfer.ends_by_close(),
            _ => self.clients.get(id).is_some_and(|client| !client.conn.outbound.is_empty() || client.rest.is_some()),
        };
        self.leave(id, End::Left);
        let Some(mut client) = self.remove_client(id) else { return };
        if let ClientState::Ticket { method, .. } = client.state {
            record::left(method, client.kept.take(), client.peer, &mut self.ctx);
        }
        if client.state == ClientState::Stream {
            self.ctx.tell(Notice::Left { shard: self.ctx.shard(), client: id.pack(), lagged: false });
        }
        if let ClientState::Tunnel(tunnel) = client.state {
            self.close_upstream(tunnel.upstream);
            if let Some(mut exchange) = self.exchanges.remove(tunnel.exchange) {
                exchange.depart(&self.ctx);
                record::line(&exchange, End::Whole, client.kept.take(), client.peer, &mut self.ctx);
            }
        }
        if is_part {
            self.ctx.net.reset(client.conn.socket);
        }
    }

    fn remove_client(&mut self, id: ClientId) -> Option<Client<N::Stream>> {
        let mut client = self.clients.remove(id)?;
        client.conn.release(&mut self.ctx.pool, &mut self.wheel);
        match client.counted {
            true => self.ctx.process.disconnect(),
            false => self.turned_away -= 1,
        }
        self.descriptor_freed();
        Some(client)
    }

    fn close_upstream(&mut self, id: UpstreamId) {
        if let Some(mut upstream) = self.upstreams.remove(id) {
            upstream.conn.release(&mut self.ctx.pool, &mut self.wheel);
            self.descriptor_freed();
        }
    }

    fn descriptor_freed(&mut self) {
        self.accept_again = self.accept_again.min(self.ctx.now);
    }

    /// Frees everything of a client whose drive panicked.
    fn abandon(&mut self, id: ClientId) {
        self.ctx.counters().panics.bump();
        self.ctx.trouble("a panic ended one exchange; this is a bug of the gateway");
        self.scratch.reset();
        self.close_client(id);
        let owned = |upstream: &UpstreamConn<N::Stream>| match upstream.state {
            UpstreamState::Connecting { client, .. }
            | UpstreamState::Serving { client }
            | UpstreamState::Tunnel { client, .. } => client == id,
            UpstreamState::Idle => false,
        };
        let left: Vec<_> = self.upstreams.table.iter().filter(|(_, up)| owned(up)).map(|(id, _)| id).collect();
        for upstream in left {
            self.close_upstream(upstream);
        }
    }

    /// What must hold after every turn; debug builds only.
    fn check(&self) {
        let mut held = usize::from(self.scratch.holds_memory());
        let mut permits = 0;
        for (id, client) in self.clients.iter() {
            held += usize::from(client.conn.inbound.holds_memory()) + usize::from(client.conn.outbound.holds_memory());
            assert!(client.conn.is_armed() || client.queued, "a client without a deadline: {:?}", client.state);
            let ClientState::Exchange(exchange) = client.state else { continue };
            let exchange = self.exchanges.get(exchange).expect("a client names a live exchange");
            if exchange.pause.is_some() {
                assert!(
                    exchange.attempt.upstream.is_none() && exchange.attempt.permit.is_none(),
                    "a pause holds nothing"
                );
                continue;
            }
            permits += usize::from(exchange.attempt.permit.is_some());
            let upstream = exchange.attempt.upstream.and_then(|upstream| self.upstreams.table.get(upstream));
            match upstream.map(|upstream| &upstream.state) {
                Some(UpstreamState::Connecting { client, .. } | UpstreamState::Serving { client }) => {
                    assert_eq!(*client, id, "the upstream connection points back");
                }
                other => panic!("an exchange whose upstream connection is {}", other.map_or("gone", |_| "idle")),
            }
        }
        for (_, upstream) in self.upstreams.table.iter() {
            held +=
                usize::from(upstream.conn.inbound.holds_memory()) + usize::from(upstream.conn.outbound.holds_memory());
        }
        assert_eq!(held, self.ctx.pool.lent(), "buffers out equal buffers held");
        assert!(permits <= self.exchanges.len(), "an attempt has one permit");
        let exchanging =
            |client: &Client<N::Stream>| matches!(client.state, ClientState::Exchange(_) | ClientState::Tunnel(_));
        let exchanges = self.clients.iter().filter(|(_, client)| exchanging(client)).count();
        assert_eq!(exchanges, self.exchanges.len(), "every exchange has its client");
    }
}

/// An idle upstream connection with one of these is closed.
const UNSOUND: Ready = Ready::READABLE.with(Ready::READ_CLOSED).with(Ready::BROKEN);

/// What could not be connected to a moment ago cannot now: asking again would only count twice.
fn is_asked_again(failure: Failure) -> bool {
    failure.class() != Some(Class::Connect)
}

/// Back to where the exchange was before it sent anything.
fn rewind(exchange: &mut Exchange, now: Tick) {
    exchange.kept = 0;
    let attempt = &mut exchange.attempt;
    attempt.send = Send::Waiting;
    attempt.receive = Receive::Head;
    attempt.body = crate::http::body::Transfer::EMPTY;
    attempt.held = false;
    attempt.since = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::net::TcpStream;

    #[test]
    fn hot_types_stay_small() {
        // Ten thousand idle connections are ten thousand of these; an exchange lives in a slot that is used again.
        let client = size_of::<Client<TcpStream>>();
        let upstream = size_of::<UpstreamConn<TcpStream>>();
        assert!(client <= 152, "a client connection takes {client} bytes");
        assert!(upstream <= 112, "an upstream connection takes {upstream} bytes");
        assert!(size_of::<Exchange>() <= 520, "an exchange takes {} bytes", size_of::<Exchange>());
        assert!(size_of::<Step>() <= 32, "a step takes {} bytes", size_of::<Step>());
    }
}

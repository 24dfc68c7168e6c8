//! A client connection: reading heads, the gateway's own answers on their way out, lingering close.
//!
//! A client owns its exchange. Must not know: what is asked and where it goes (`dispatch.rs`).

use crate::config::model;
use crate::ground::buffer::{Buffer, Pool, SMALL};
use crate::ground::tick::Tick;
use crate::http::request::{self, Method};
use crate::shard::conn::{Conn, Filled, Ready};
use crate::shard::exchange::ExchangeId;
use crate::shard::mailbox::Part;
use crate::shard::net::{Door, Net};
use crate::shard::tunnel::{Half, Tunnel};
use crate::shard::{Ctx, Step};
use crate::shared::access::Kept;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// Bytes that are read and dropped after an answer that did not wait for its whole request.
const LINGER_BYTES: u32 = 16 << 20;

/// Bytes of a stream of control that wait for a client at most, beside what the kernel holds for it.
const STREAM_BYTES: usize = 256 << 10;
/// How long a stream may be silent: control says something more often.
const STREAM_SILENCE: Duration = Duration::from_secs(60);

/// One client connection.
#[derive(Debug)]
pub struct Client<S> {
    /// The socket and its buffers.
    pub conn: Conn<S>,
    /// Where it stands.
    pub state: ClientState,
    /// The peer's address.
    pub peer: IpAddr,
    /// Where it came in.
    pub door: Door,
    /// It stands in the queue of this turn.
    pub queued: bool,
    /// It counts against `limits.connections`; one that is only told that they are reached does not.
    pub counted: bool,
    /// What it said in the request that runs, for the access log.
    pub kept: Option<Box<Kept>>,
    /// What follows of an answer of control when `outbound` is out.
    pub rest: Option<Box<VecDeque<Vec<u8>>>>,
}

/// States, named by what is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// The first byte of a request.
    Idle,
    /// The end of a head (or of the small body of a request to the gateway itself).
    Head {
        /// Bytes at the front that hold no end.
        scanned: u32,
    },
    /// Both flows of an exchange.
    Exchange(ExchangeId),
    /// The client to take what is in `outbound`.
    Answering {
        /// What follows.
        then: Then,
    },
    /// The control thread's bytes.
    Ticket {
        /// What follows the answer.
        then: Then,
        /// Of the request.
        method: Method,
    },
    /// What control has to tell, until one of the two ends it.
    Stream,
    /// Bytes of either side, after a 101.
    Tunnel(Tunnel),
    /// The peer's end, after our own.
    Lingering {
        /// Bytes that are still read.
        left: u32,
    },
}

/// What becomes of a client connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request.
    Keep,
    /// An orderly end: all was read, and the response said so.
    Close,
    /// The request was not read to its end: shut our side, read on within a bound, then close.
    Linger,
}

impl<S> Client<S> {
    /// A connection that was just accepted.
    pub fn new(socket: S, peer: IpAddr, door: Door) -> Client<S> {
        // Nothing is known of its receive queue, but data often comes with the connection: one read tells.
        Client {
            conn: Conn::new(socket, Ready::READABLE.with(Ready::WRITABLE)),
            state: ClientState::Idle,
            peer,
            door,
            queued: false,
            counted: false,
            kept: None,
            rest: None,
        }
    }

    /// Whether our write side is open: then a hang-up means that the peer has broken the connection off.
    pub fn writes(&self) -> bool {
        match self.state {
            ClientState::Lingering { .. } => false,
            ClientState::Tunnel(tunnel) => tunnel.down != Half::Shut,
            _ => true,
        }
    }

    /// The bytes of the request that is being read: in `inbound`, or just read into the shard's scratch.
    pub fn input<'a>(&'a self, scratch: &'a Buffer) -> &'a [u8] {
        if self.conn.inbound.is_empty() { scratch.bytes() } else { self.conn.inbound.bytes() }
    }

    /// Lets the input outlive the turn, without its first `consumed` bytes.
    pub fn keep_input(&mut self, scratch: &mut Buffer, pool: &mut Pool, consumed: usize) {
        if self.conn.inbound.is_empty() {
            if scratch.len() - consumed > SMALL {
                // A long body's first part: the scratch itself changes hands instead of its bytes.
                std::mem::swap(&mut self.conn.inbound, scratch);
                *scratch = Buffer::large(pool);
                self.conn.inbound.consume(pool, consumed);
            } else {
                self.conn.inbound.append(pool, &scratch.bytes()[consumed..]);
            }
        } else {
            self.conn.inbound.consume(pool, consumed);
        }
        scratch.reset();
    }

    /// Bytes that wait to be taken.
    pub fn waiting(&self) -> usize {
        self.conn.outbound.len() + self.rest.iter().flat_map(|rest| rest.iter()).map(Vec::len).sum::<usize>()
    }

    /// Forgets the input.
    pub fn drop_input(&mut self, scratch: &mut Buffer, pool: &mut Pool) {
        self.conn.inbound.clear(pool);
        scratch.reset();
    }
}

/// Reads until there is a head to dispatch. Its bytes are the client's `input`.
pub fn read_head<N: Net>(
    client: &mut Client<N::Stream>,
    patience: &model::Client,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Step {
    let scanned = match client.state {
        ClientState::Head { scanned } => scanned,
        _ => 0,
    };
    scratch.reset();
    // Pipelined bytes come first; they were not scanned.
    if client.conn.inbound.is_empty() || scanned > 0 {
        let filled = if client.conn.inbound.is_empty() {
            client.conn.fill(&mut ctx.net, scratch)
        } else {
            let room = ctx.pool.large_size().saturating_sub(client.conn.inbound.len());
            if room == 0 {
                // Limits that a reload has lowered: the head is judged as it is.
                return Step::Dispatch;
            }
            client.conn.fill_inbound(&mut ctx.net, &mut ctx.pool, room)
        };
        match filled {
            Filled::Bytes(n) => ctx.budget = ctx.budget.saturating_sub(n),
            Filled::Nothing if ctx.draining && client.state == ClientState::Idle => return Step::Close,
            Filled::Nothing => return Step::Wait,
            Filled::End | Filled::Broken => return Step::Close,
        }
    }
    let empty_lines = request::leading_empty_lines(client.input(scratch));
    if empty_lines == client.input(scratch).len() {
        client.drop_input(scratch, &mut ctx.pool);
        if client.state != ClientState::Idle {
            client.state = ClientState::Idle;
            client.conn.deadline = ctx.now.after(patience.keep_alive);
        }
        return Step::Again;
    }
    if empty_lines > 0 {
        client.keep_input(scratch, &mut ctx.pool, empty_lines);
    }
    Step::Dispatch
}

/// Writes what is in `outbound`, then goes on as the response promised.
pub fn answer<N: Net>(client: &mut Client<N::Stream>, then: Then, patience: &model::Client, ctx: &mut Ctx<N>) -> Step {
    match client.conn.flush(&mut ctx.net, &mut ctx.pool) {
        Err(_) => return Step::Close,
        Ok(n) if !client.conn.outbound.is_empty() => {
            if n > 0 {
                client.conn.deadline = ctx.now.after(patience.body_idle);
            }
            return Step::Wait;
        }
        Ok(_) => {}
    }
    if let Some(rest) = &mut client.rest {
        let Some(mut piece) = rest.pop_front() else {
            client.rest = None;
            return Step::Again;
        };
        // One piece in a turn: an answer of megabytes must not hold up the others.
        return match client.conn.send(&mut ctx.net, &mut ctx.pool, &mut piece, b"") {
            Ok(_) => {
                client.conn.deadline = ctx.now.after(patience.body_idle);
                Step::Yield
            }
            Err(_) => Step::Close,
        };
    }
    match then {
        // Closing on unread bytes would be a reset that may overtake the response.
        Then::Close if client.conn.ready.has(Ready::READABLE) || !client.conn.inbound.is_empty() => Step::Linger,
        Then::Close => Step::Close,
        Then::Linger => Step::Linger,
        Then::Keep if client.conn.inbound.is_empty() => {
            client.state = ClientState::Idle;
            client.conn.deadline = ctx.now.after(patience.keep_alive);
            Step::Again
        }
        Then::Keep => {
            client.state = ClientState::Head { scanned: 0 };
            client.conn.deadline = ctx.now.after(patience.header_timeout);
            Step::Again
        }
    }
}

/// What becomes of a part of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It goes out.
    Yes,
    /// The client is behind, and does without it.
    Skipped,
    /// The client is too far behind.
    TooMuch,
}

/// Puts a part of a stream behind what waits.
pub fn take_part<S>(client: &mut Client<S>, part: Part, pieces: VecDeque<Vec<u8>>, now: Tick) -> Taken {
    let waiting = client.waiting();
    let more: usize = pieces.iter().map(Vec::len).sum();
    match part {
        Part::Sample if waiting > 0 => return Taken::Skipped,
        Part::Last if waiting > 0 => return Taken::TooMuch,
        Part::Event if waiting > 0 && waiting + more > STREAM_BYTES => return Taken::TooMuch,
        _ => {}
    }
    if waiting == 0 {
        client.conn.deadline = now.after(STREAM_SILENCE);
    }
    client.rest.get_or_insert_default().extend(pieces);
    Taken::Yes
}

/// Writes what control streams. A client that has shut its side has left, unless the configuration lets it wait.
pub fn stream<N: Net>(client: &mut Client<N::Stream>, patience: &model::Client, ctx: &mut Ctx<N>) -> Step {
    let ready = client.conn.ready;
    if ready.has(Ready::BROKEN) || ready.has(Ready::READ_CLOSED) && !patience.half_close {
        return Step::Close;
    }
    let was_behind = !client.conn.outbound.is_empty();
    let Ok(mut written) = client.conn.flush(&mut ctx.net, &mut ctx.pool) else { return Step::Close };
    if client.conn.outbound.is_empty()
        && let Some(mut piece) = client.rest.as_mut().and_then(|rest| rest.pop_front())
    {
        match client.conn.send(&mut ctx.net, &mut ctx.pool, &mut piece, b"") {
            Ok(n) => written += n,
            Err(_) => return Step::Close,
        }
    }
    client.rest.take_if(|rest| rest.is_empty());
    let is_behind = !client.conn.outbound.is_empty();
    if written > 0 || is_behind && !was_behind {
        client.conn.deadline = ctx.now.after(if is_behind { patience.body_idle } else { STREAM_SILENCE });
    }
    // One piece, then the others' turn.
    if is_behind || client.rest.is_none() { Step::Wait } else { Step::Yield }
}

/// Shuts our side, so that the client sees the end of the answer, and begins to drop what still comes.
pub fn begin_linger<N: Net>(client: &mut Client<N::Stream>, ctx: &mut Ctx<N>) -> Step {
    client.conn.inbound.clear(&mut ctx.pool);
    if ctx.net.shutdown_write(&mut client.conn.socket).is_err() {
        return Step::Close;
    }
    client.state = ClientState::Lingering { left: LINGER_BYTES };
    Step::Again
}

/// Reads and drops, so that unread bytes do not turn our close into a reset that destroys the answer.
pub fn linger<N: Net>(client: &mut Client<N::Stream>, left: u32, scratch: &mut Buffer, ctx: &mut Ctx<N>) -> Step {
    scratch.reset();
    let filled = client.conn.fill(&mut ctx.net, scratch);
    scratch.reset();
    match filled {
        Filled::Nothing => Step::Wait,
        Filled::End | Filled::Broken => Step::Close,
        Filled::Bytes(n) => {
            ctx.budget = ctx.budget.saturating_sub(n);
            match left.checked_sub(n as u32) {
                None => Step::Close,
                Some(left) => {
                    client.state = ClientState::Lingering { left };
                    Step::Again
                }
            }
        }
    }
}

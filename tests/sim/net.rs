//! The simulated network: sockets with two bounded pipes, a queue of what is due, and the `Net` seam of
//! the gateway on top of it.
//!
//! It behaves as epoll(7), tcp(7) and the Linux sources say, at their worst: reads and writes are cut,
//! events come late, twice, split, for sockets that are gone. What it never does is lie: data, room, an end
//! or a reset that the gateway was not told of makes an event, and `drained` means that whatever comes later
//! makes one. Must not know: HTTP.

use crate::rng::{Random, mix};
use fusegate::shard::net::{Event, Net, Pipe as Splice, Read, Subject};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// Position of a connection in [`World::links`]; never used again in a run.
pub(crate) type LinkId = usize;

/// The world as all shards share it.
pub(crate) type Shared = Rc<RefCell<World>>;

const EMFILE: i32 = 24;
const EADDRNOTAVAIL: i32 = 99;
const ENETUNREACH: i32 = 101;
const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// Bytes that one of the gateway's pipes takes.
pub(crate) const SPLICE: usize = 64 << 10;

/// How bad things are: chances in a thousand, times in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) read_cut: u32,
    pub(crate) read_block: u32,
    pub(crate) write_cut: u32,
    pub(crate) event_delay: u32,
    pub(crate) event_split: u32,
    pub(crate) spurious: u32,
    pub(crate) stale: u32,
    pub(crate) accept_fails: u32,
    pub(crate) connect_fails: u32,
    /// There is no pipe to be had for a splice.
    pub(crate) no_pipe: u32,
    /// A reset takes what the receiver has not read yet.
    pub(crate) reset_destroys: u32,
    pub(crate) late: u32,
    pub(crate) late_us: u64,
    pub(crate) lazy: u32,
    pub(crate) smallest_pipe: u64,
    pub(crate) largest_pipe: u64,
}

/// What happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// The gateway's socket has something to tell.
    Edge(LinkId),
    /// A reset reaches the gateway.
    Reset(LinkId),
    /// The connect of the gateway ends.
    Connected(LinkId),
    /// Whoever plays the other end looks again.
    Actor(LinkId),
    /// A scripted client arrives.
    Arrival(usize),
    /// The operator does something.
    Operator(usize),
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(crate) bytes: VecDeque<u8>,
    pub(crate) capacity: usize,
    /// No byte will follow those that are here.
    pub(crate) fin: bool,
    /// Bytes ever written.
    pub(crate) written: u64,
    /// Bytes ever read.
    pub(crate) read: u64,
}

impl Pipe {
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }
}

/// How a connect of the gateway will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connecting {
    Established,
    Hangs,
    WillAccept,
    WillFail(i32),
}

/// A connection between the gateway and an actor.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) shard: usize,
    /// The server that was connected to; `None` for a client's connection.
    pub(crate) server: Option<usize>,
    pub(crate) peer: SocketAddr,
    pub(crate) connecting: Connecting,
    /// From the actor to the gateway.
    pub(crate) up: Pipe,
    /// From the gateway to the actor.
    pub(crate) down: Pipe,
    pub(crate) gate_open: bool,
    pub(crate) actor_open: bool,
    /// A reset has reached the gateway's end, the actor's end.
    gate_was_reset: bool,
    actor_was_reset: bool,
    gate_error: Option<i32>,
    gate_shut: bool,
    no_space: bool,
    token: Option<usize>,
    pending: bool,
    actor_at: Option<u64>,
    /// When the client at the other end left, or shut its side.
    pub(crate) left_at: Option<u64>,
    /// Nothing is cut short, delayed or held back: what the actor does is visible at once.
    pub(crate) honest: bool,
}

impl Link {
    /// What epoll would say now, in mio's words.
    fn event(&self) -> Option<Event> {
        let token = self.token?;
        if !matches!(self.connecting, Connecting::Established) && !self.gate_was_reset {
            return None;
        }
        let reset = self.gate_was_reset;
        let input = !self.up.bytes.is_empty() || self.up.fin || reset;
        let output = self.down.room() >= (self.down.capacity / 3).max(1) || reset || self.gate_shut;
        let read_hup = self.up.fin || reset;
        let hup = reset || self.up.fin && self.gate_shut;
        let error = self.gate_error.is_some();
        (input || output || error).then_some(Event {
            token,
            readable: input,
            writable: output,
            read_closed: hup || input && read_hup,
            hung_up: hup || output && error,
            error,
        })
    }
}

/// What an actor gets from a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Bytes,
    Nothing,
    End,
    Reset,
}

/// A listening socket of a shard.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: VecDeque<LinkId>,
    pub(crate) open: bool,
    edge: bool,
}

/// Where the gateway can connect to.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) refuses: u32,
    pub(crate) hangs: u32,
    /// Of a connect, at most.
    pub(crate) delay_us: u64,
}

/// Everything outside the gateway but the actors themselves.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Random,
    pub(crate) weather: Weather,
    pub(crate) links: Vec<Link>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) places: Vec<Place>,
    /// Links with an event for the gateway, for each shard.
    ready: Vec<Vec<LinkId>>,
    stale: Vec<Vec<usize>>,
    /// What the gateway's pipes hold.
    pipes: Vec<Vec<u8>>,
    agenda: BinaryHeap<Reverse<(u64, u64, Due)>>,
    sequence: u64,
    /// Grows whenever anything moves through a socket of the gateway.
    pub(crate) moves: u64,
    /// Sockets that the gateway holds.
    pub(crate) sockets: usize,
    pub(crate) faults: Vec<String>,
    pub(crate) tracing: bool,
    /// Of everything that was traced, also when nothing is printed.
    pub(crate) digest: u64,
}

impl World {
    pub(crate) fn new(seed: u64, shards: usize, weather: Weather, tracing: bool) -> World {
        World {
            now: 1,
            rng: Random::new(seed),
            weather,
            links: Vec::new(),
            queues: (0..shards).map(|_| Queue { open: true, ..Queue::default() }).collect(),
            places: Vec::new(),
            ready: vec![Vec::new(); shards],
            stale: vec![Vec::new(); shards],
            pipes: Vec::new(),
            agenda: BinaryHeap::new(),
            sequence: 0,
            moves: 0,
            sockets: 0,
            faults: Vec::new(),
            tracing,
            digest: 0,
        }
    }

    /// Notes something for whoever replays the seed; `number` makes the digest.
    pub(crate) fn trace(&mut self, number: u64, line: impl FnOnce() -> String) {
        self.digest = mix(self.digest ^ number, self.now);
        if self.tracing {
            println!("{:>12.6}  {}", self.now as f64 / 1e6, line());
        }
    }

    /// Something that must not be.
    pub(crate) fn fault(&mut self, what: String) {
        if self.tracing {
            println!("{:>12.6}  FAULT {what}", self.now as f64 / 1e6);
        }
        self.faults.push(what);
    }

    pub(crate) fn at(&mut self, at: u64, due: Due) {
        self.sequence += 1;
        self.agenda.push(Reverse((at.max(self.now), self.sequence, due)));
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.agenda.peek().map(|Reverse((at, ..))| *at)
    }

    /// What is due by now; what concerns the network alone happens here.
    pub(crate) fn take_due(&mut self) -> Option<Due> {
        while self.next_due().is_some_and(|at| at <= self.now) {
            let Reverse((at, _, due)) = self.agenda.pop()?;
            match due {
                Due::Edge(link) => self.edge(link),
                Due::Reset(link) => self.reset_gate(link),
                Due::Connected(link) if !self.links[link].gate_open => {}
                Due::Connected(link) => match self.links[link].connecting {
                    Connecting::WillFail(error) => self.fail_connect(link, error),
                    _ => {
                        self.links[link].connecting = Connecting::Established;
                        self.links[link].actor_open = true;
                        self.edge(link);
                        return Some(due);
                    }
                },
                Due::Actor(link) if self.links[link].actor_at == Some(at) => {
                    self.links[link].actor_at = None;
                    return Some(due);
                }
                Due::Actor(_) => {}
                Due::Arrival(_) | Due::Operator(_) => return Some(due),
            }
        }
        None
    }

    /// The other end of a link is to look at it after `delay`.
    pub(crate) fn wake_actor(&mut self, link: LinkId, delay: u64) {
        let at = self.now + delay;
        let link_ref = &mut self.links[link];
        if link_ref.actor_open && link_ref.actor_at.is_none_or(|planned| planned > at) {
            link_ref.actor_at = Some(at);
            self.at(at, Due::Actor(link));
        }
    }

    fn soon(&mut self) -> u64 {
        let most = self.rng.pick(&[20, 200, 3000]);
        self.rng.below(most)
    }

    fn edge(&mut self, link: LinkId) {
        let it = &mut self.links[link];
        if it.gate_open && it.token.is_some() && !it.pending {
            it.pending = true;
            let shard = it.shard;
            self.ready[shard].push(link);
        }
    }

    fn fail_connect(&mut self, link: LinkId, error: i32) {
        let it = &mut self.links[link];
        it.gate_was_reset = true;
        it.gate_error = Some(error);
        self.trace(3, || format!("link {link}: connect fails with {error}"));
        self.edge(link);
    }

    fn new_link(&mut self, shard: usize, server: Option<usize>, peer: SocketAddr, connecting: Connecting) -> LinkId {
        let (low, high) = (self.weather.smallest_pipe, self.weather.largest_pipe);
        let mut pipe = || Pipe { capacity: self.rng.within(low, high) as usize, ..Pipe::default() };
        let (up, down) = (pipe(), pipe());
        self.links.push(Link {
            shard,
            server,
            peer,
            connecting,
            up,
            down,
            gate_open: false,
            actor_open: server.is_none(),
            gate_was_reset: false,
            actor_was_reset: false,
            gate_error: None,
            gate_shut: false,
            no_space: false,
            token: None,
            pending: false,
            actor_at: None,
            left_at: None,
            honest: false,
        });
        self.links.len() - 1
    }

    // What actors do.

    /// A client connects to a shard; `None` when nobody listens.
    pub(crate) fn client_connects(&mut self, shard: usize, peer: SocketAddr) -> Option<LinkId> {
        if !self.queues[shard].open {
            return None;
        }
        let link = self.new_link(shard, None, peer, Connecting::Established);
        self.queues[shard].waiting.push_back(link);
        self.queues[shard].edge = true;
        self.trace(1, || format!("link {link}: client {peer} connects to shard {shard}"));
        Some(link)
    }

    /// Writes as much as fits; `Err` when the connection is of no use.
    pub(crate) fn actor_writes(&mut self, link: LinkId, bytes: &[u8]) -> Result<usize, ()> {
        let it = &self.links[link];
        if it.actor_was_reset || it.up.fin {
            return Err(());
        }
        if !it.gate_open && (it.token.is_some() || it.server.is_some()) {
            // Nobody is there any more: the answer is a reset.
            self.reset_actor(link);
            return Err(());
        }
        let it = &mut self.links[link];
        let n = bytes.len().min(it.up.room());
        it.up.bytes.extend(&bytes[..n]);
        it.up.written += n as u64;
        if n > 0 {
            self.trace(4 + n as u64, || format!("link {link}: peer sends {n}: {}", shown(&bytes[..n])));
            self.edge(link);
        }
        Ok(n)
    }

    /// Reads at most `most` bytes.
    pub(crate) fn actor_reads(&mut self, link: LinkId, most: usize, into: &mut Vec<u8>) -> Got {
        let it = &mut self.links[link];
        let n = it.down.bytes.len().min(most);
        if n == 0 {
            return match (it.down.bytes.is_empty(), it.actor_was_reset, it.down.fin) {
                (true, true, _) => Got::Reset,
                (true, false, true) => Got::End,
                _ => Got::Nothing,
            };
        }
        into.extend(it.down.bytes.drain(..n));
        it.down.read += n as u64;
        if it.no_space && it.down.room() >= (it.down.capacity / 3).max(1) {
            it.no_space = false;
            self.edge(link);
        }
        Got::Bytes
    }

    /// Shuts the write side.
    pub(crate) fn actor_shuts(&mut self, link: LinkId) {
        let it = &mut self.links[link];
        if !it.up.fin && !it.actor_was_reset {
            it.up.fin = true;
            self.trace(5, || format!("link {link}: peer sends FIN"));
            self.edge(link);
        }
    }

    /// Closes as close(2) does: with a reset when something was not read.
    pub(crate) fn actor_closes(&mut self, link: LinkId) {
        if !self.links[link].actor_open {
            return;
        }
        if self.links[link].down.bytes.is_empty() {
            self.actor_shuts(link);
            self.links[link].actor_open = false;
        } else {
            self.actor_resets(link);
        }
    }

    pub(crate) fn actor_resets(&mut self, link: LinkId) {
        if !self.links[link].actor_open {
            return;
        }
        self.links[link].actor_open = false;
        self.links[link].down.bytes.clear();
        if !self.links[link].actor_was_reset {
            self.trace(6, || format!("link {link}: peer sends RST"));
            self.reset_gate(link);
        }
    }

    fn reset_gate(&mut self, link: LinkId) {
        let destroys = self.rng.chance(self.weather.reset_destroys);
        let it = &mut self.links[link];
        if it.gate_was_reset {
            return;
        }
        it.gate_was_reset = true;
        if !it.up.fin {
            it.gate_error = Some(ECONNRESET);
            if destroys {
                it.up.bytes.clear();
            }
        } else {
            it.gate_error = Some(EPIPE);
        }
        it.down.bytes.clear();
        self.edge(link);
    }

    fn reset_actor(&mut self, link: LinkId) {
        let destroys = self.rng.chance(self.weather.reset_destroys);
        let keeps = self.rng.below(self.links[link].down.bytes.len() as u64 + 1) as usize;
        let it = &mut self.links[link];
        it.actor_was_reset = true;
        it.up.bytes.clear();
        if destroys {
            it.down.bytes.truncate(keeps);
        }
        let delay = self.soon();
        self.wake_actor(link, delay);
    }

    // What the gateway does.

    fn gate_closes(&mut self, link: LinkId, abort: bool) {
        let it = &mut self.links[link];
        if !it.gate_open {
            return;
        }
        it.gate_open = false;
        self.sockets -= 1;
        self.moves += 1;
        if let Some(token) = it.token {
            let shard = it.shard;
            self.stale[shard].push(token);
        }
        let it = &self.links[link];
        let resets = abort || !it.up.bytes.is_empty();
        self.trace(7, || format!("link {link}: gateway {}", if resets { "closes with RST" } else { "closes" }));
        let it = &mut self.links[link];
        if it.gate_was_reset || !matches!(it.connecting, Connecting::Established) {
            return;
        }
        it.down.fin = true;
        if resets {
            self.reset_actor(link);
        } else {
            let delay = self.soon();
            self.wake_actor(link, delay);
        }
    }

    fn gate_reads(&mut self, link: LinkId, into: &mut [u8]) -> io::Result<Read> {
        let blocks = self.rng.chance(self.weather.read_block);
        let cuts = self.rng.chance(self.weather.read_cut);
        let vague = self.rng.chance(self.weather.read_cut);
        let it = &mut self.links[link];
        if !matches!(it.connecting, Connecting::Established) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let waiting = it.up.bytes.len();
        if waiting == 0 {
            if it.up.fin {
                self.moves += 1;
                return Ok(Read { n: 0, drained: true });
            }
            if let Some(error) = it.gate_error.take() {
                return Err(io::Error::from_raw_os_error(error));
            }
            return Err(if it.gate_was_reset { ErrorKind::BrokenPipe } else { ErrorKind::WouldBlock }.into());
        }
        if blocks && !it.honest && !it.gate_was_reset {
            self.edge_soon(link);
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut n = waiting.min(into.len());
        if cuts && !it.honest {
            n = 1 + self.rng.size(n - 1);
        }
        let it = &mut self.links[link];
        for (to, from) in into[..n].iter_mut().zip(it.up.bytes.drain(..n)) {
            *to = from;
        }
        it.up.read += n as u64;
        let left = waiting - n;
        let honest = it.honest;
        self.moves += 1;
        self.trace(8 + n as u64, || format!("link {link}: gateway reads {n}, {left} wait"));
        let delay = self.soon();
        self.wake_actor(link, delay);
        let drained = match left {
            0 => n < into.len() && !vague,
            // As if the rest arrived later: then there is an event for it.
            _ if n < into.len() && vague && !honest => {
                self.edge_soon(link);
                true
            }
            _ => false,
        };
        Ok(Read { n, drained })
    }

    fn edge_soon(&mut self, link: LinkId) {
        let at = self.now + self.soon();
        self.at(at, Due::Edge(link));
    }

    fn gate_writes(&mut self, link: LinkId, head: &[u8], body: &[u8]) -> io::Result<usize> {
        let cuts = self.rng.chance(self.weather.write_cut);
        let it = &mut self.links[link];
        if it.gate_was_reset {
            let error = it.gate_error.take().unwrap_or(EPIPE);
            return Err(io::Error::from_raw_os_error(error));
        }
        if it.gate_shut {
            return Err(io::Error::from_raw_os_error(EPIPE));
        }
        if !matches!(it.connecting, Connecting::Established) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let total = head.len() + body.len();
        let mut n = total.min(it.down.room());
        if cuts && n > 0 && !it.honest {
            n = self.rng.size(n - 1);
            self.edge_soon(link);
        }
        let it = &mut self.links[link];
        if n < total {
            it.no_space = true;
        }
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.moves += 1;
        if !it.actor_open {
            // The kernel takes it, the peer answers with a reset.
            let at = self.now + self.soon();
            self.at(at, Due::Reset(link));
            self.trace(9, || format!("link {link}: gateway writes {n} to nobody"));
            return Ok(n);
        }
        let from_head = n.min(head.len());
        it.down.bytes.extend(&head[..from_head]);
        it.down.bytes.extend(&body[..n - from_head]);
        it.down.written += n as u64;
        let wrote = |skip: usize| shown(&[&head[..from_head], &body[..n - from_head]].concat()[skip..]);
        self.trace(10 + n as u64, || format!("link {link}: gateway writes {n} of {total}: {}", wrote(0)));
        let delay = self.soon();
        self.wake_actor(link, delay);
        Ok(n)
    }

    fn gate_connects(&mut self, shard: usize, address: SocketAddr) -> io::Result<LinkId> {
        self.moves += 1;
        if self.rng.chance(self.weather.connect_fails) {
            return Err(io::Error::from_raw_os_error(self.rng.pick(&[EMFILE, ENETUNREACH, EADDRNOTAVAIL])));
        }
        let server = self.places.iter().position(|place| place.address == address);
        let (connecting, delay) = match server.map(|server| self.places[server].clone()) {
            None => (Connecting::WillFail(ECONNREFUSED), 100),
            Some(place) => {
                let delay = self.rng.below(place.delay_us + 1);
                if self.rng.chance(place.refuses) {
                    (Connecting::WillFail(self.rng.pick(&[ECONNREFUSED, ECONNREFUSED, ETIMEDOUT, ENETUNREACH])), delay)
                } else if self.rng.chance(place.hangs) {
                    (Connecting::Hangs, 0)
                } else {
                    (Connecting::WillAccept, delay)
                }
            }
        };
        let link = self.new_link(shard, Some(server.unwrap_or(usize::MAX)), address, connecting);
        self.links[link].gate_open = true;
        self.sockets += 1;
        self.trace(11, || format!("link {link}: gateway (shard {shard}) connects to {address}: {connecting:?}"));
        if connecting != Connecting::Hangs {
            self.at(self.now + delay, Due::Connected(link));
        }
        Ok(link)
    }

    fn gate_accepts(&mut self, shard: usize) -> io::Result<LinkId> {
        let fails = self.rng.chance(self.weather.accept_fails);
        match self.queues[shard].waiting.front().copied() {
            None => Err(ErrorKind::WouldBlock.into()),
            Some(_) if fails => {
                self.trace(12, || format!("shard {shard}: accept has no descriptor"));
                Err(io::Error::from_raw_os_error(EMFILE))
            }
            Some(link) => {
                self.queues[shard].waiting.pop_front();
                self.moves += 1;
                if self.links[link].gate_was_reset && self.rng.chance(500) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                self.links[link].gate_open = true;
                self.sockets += 1;
                Ok(link)
            }
        }
    }

    fn listener_closes(&mut self, shard: usize) {
        self.queues[shard].open = false;
        for link in std::mem::take(&mut self.queues[shard].waiting) {
            self.links[link].token = Some(0);
            self.reset_actor(link);
        }
    }

    // Events for the gateway.

    /// Whether nobody waits to be accepted by a shard.
    pub(crate) fn queue_is_empty(&self, shard: usize) -> bool {
        self.queues[shard].waiting.is_empty()
    }

    /// Whether a shard has something to be told.
    pub(crate) fn has_events(&self, shard: usize) -> bool {
        !self.ready[shard].is_empty() || self.queues[shard].edge
    }

    /// The events of one poll.
    pub(crate) fn poll(&mut self, shard: usize, into: &mut Vec<Event>) {
        for link in std::mem::take(&mut self.ready[shard]) {
            if !self.links[link].honest && self.rng.chance(self.weather.event_delay) {
                self.links[link].pending = false;
                self.edge_soon(link);
                continue;
            }
            self.links[link].pending = false;
            let Some(event) = self.links[link].event().filter(|_| self.links[link].gate_open) else { continue };
            if event.readable && event.writable && self.rng.chance(self.weather.event_split) {
                into.push(Event { writable: false, ..event });
                into.push(Event { readable: false, read_closed: false, ..event });
            } else {
                into.push(event);
            }
        }
        if std::mem::take(&mut self.queues[shard].edge) {
            let token = Subject::Listener(0).token();
            let none =
                Event { token, readable: true, writable: false, read_closed: false, hung_up: false, error: false };
            into.push(none);
        }
        if self.rng.chance(self.weather.stale) && !self.stale[shard].is_empty() {
            let token = self.stale[shard][self.rng.below(self.stale[shard].len() as u64) as usize];
            let end = self.rng.chance(500);
            into.push(Event { token, readable: true, writable: true, read_closed: end, hung_up: end, error: end });
        }
        if self.rng.chance(self.weather.spurious) && !self.links.is_empty() {
            let link = &self.links[self.rng.below(self.links.len() as u64) as usize];
            if let (Some(token), true, true, Connecting::Established) =
                (link.token, link.gate_open, link.shard == shard, link.connecting)
            {
                let readable = self.rng.chance(700);
                let writable = self.rng.chance(700);
                into.push(Event { token, readable, writable, read_closed: false, hung_up: false, error: false });
            }
        }
        // Reordered, for events of one poll have no order.
        for at in (1..into.len()).rev() {
            into.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
    }
}

/// The beginning of some bytes, readable.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(400)].escape_ascii().to_string();
    if bytes.len() > 400 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

/// The network as one shard sees it.
#[derive(Debug)]
pub(crate) struct SimNet {
    pub(crate) world: Shared,
    pub(crate) shard: usize,
}

/// The gateway's end of a connection.
#[derive(Debug)]
pub(crate) struct SimStream {
    world: Shared,
    link: LinkId,
    aborts: bool,
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.gate_closes(self.link, self.aborts);
        }
    }
}

/// A shard's listening socket.
#[derive(Debug)]
pub(crate) struct SimListener {
    pub(crate) world: Shared,
    pub(crate) shard: usize,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.listener_closes(self.shard);
        }
    }
}

/// Where the gateway listens.
pub(crate) const GATE: ([u8; 4], u16) = ([127, 0, 0, 1], 8000);

impl Net for SimNet {
    type Listener = SimListener;
    type Stream = SimStream;

    fn accept(&mut self, listener: &SimListener) -> io::Result<(SimStream, SocketAddr)> {
        let mut world = self.world.borrow_mut();
        let link = world.gate_accepts(listener.shard)?;
        let peer = world.links[link].peer;
        drop(world);
        Ok((SimStream { world: self.world.clone(), link, aborts: false }, peer))
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<SimStream> {
        let link = self.world.borrow_mut().gate_connects(self.shard, address)?;
        Ok(SimStream { world: self.world.clone(), link, aborts: false })
    }

    fn register(&mut self, stream: &mut SimStream, token: usize) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        world.links[stream.link].token = Some(token);
        world.edge(stream.link);
        Ok(())
    }

    fn connected(&mut self, stream: &SimStream) -> io::Result<()> {
        match self.world.borrow_mut().links[stream.link].gate_error.take() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Ok(()),
        }
    }

    fn read(&mut self, stream: &mut SimStream, into: &mut [u8]) -> io::Result<Read> {
        self.world.borrow_mut().gate_reads(stream.link, into)
    }

    fn write(&mut self, stream: &mut SimStream, head: &[u8], body: &[u8]) -> io::Result<usize> {
        self.world.borrow_mut().gate_writes(stream.link, head, body)
    }

    fn shutdown_write(&mut self, stream: &mut SimStream) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        let link = stream.link;
        let it = &mut world.links[link];
        if it.gate_was_reset {
            return Err(ErrorKind::NotConnected.into());
        }
        it.gate_shut = true;
        it.down.fin = true;
        world.moves += 1;
        world.trace(13, || format!("link {link}: gateway sends FIN"));
        let delay = world.soon();
        world.wake_actor(link, delay);
        // Both sides shut is a hang-up, and that makes an event.
        world.edge(link);
        Ok(())
    }

    fn reset(&mut self, mut stream: SimStream) {
        stream.aborts = true;
    }

    fn pipe(&mut self) -> Option<Splice> {
        let mut world = self.world.borrow_mut();
        let missing = world.weather.no_pipe;
        if world.rng.chance(missing) {
            return None;
        }
        world.pipes.push(Vec::new());
        Some(Splice::elsewhere(world.pipes.len() as u64 - 1))
    }

    fn splice_in(&mut self, from: &mut SimStream, pipe: &mut Splice, most: usize) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        let number = pipe.number().ok_or(ErrorKind::Unsupported)? as usize;
        // An empty pipe is asked for, for what it takes beside other bytes is not defined.
        if !world.pipes[number].is_empty() || pipe.held() > 0 {
            world.fault(format!("a splice into pipe {number}, which is not empty"));
        }
        let capacity = 1 + world.rng.size(most.min(SPLICE) - 1);
        let mut bytes = vec![0; capacity];
        let read = world.gate_reads(from.link, &mut bytes)?;
        bytes.truncate(read.n);
        pipe.fill(read.n);
        world.pipes[number] = bytes;
        Ok(read.n)
    }

    fn splice_out(&mut self, pipe: &mut Splice, to: &mut SimStream) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        let number = pipe.number().ok_or(ErrorKind::Unsupported)? as usize;
        let mut bytes = std::mem::take(&mut world.pipes[number]);
        if bytes.len() != pipe.held() {
            world.fault(format!("pipe {number} holds {} bytes and not {}", bytes.len(), pipe.held()));
        }
        let written = world.gate_writes(to.link, &bytes, b"");
        bytes.drain(..*written.as_ref().unwrap_or(&0));
        world.pipes[number] = bytes;
        let n = written?;
        pipe.drain(n);
        Ok(n)
    }

    fn local_addr(&self, _: &SimStream) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(GATE))
    }
}

/// The address of the `n`-th client.
pub(crate) fn client_address(n: usize, is_local: bool) -> SocketAddr {
    let ip = if is_local { [127, 0, 0, 1] } else { [10, 1 + (n >> 16) as u8, (n >> 8) as u8, n as u8] };
    SocketAddr::new(IpAddr::from(ip), 20_000 + (n % 40_000) as u16)
}

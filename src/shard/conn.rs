//! One socket with what belongs to it: readiness, buffers, a deadline. `fill` and `flush` are the only
//! places that read and write sockets.
//!
//! Must not know: whether the peer is a client or an upstream, what the bytes mean.

use crate::ground::buffer::{Buffer, Pool};
use crate::ground::tick::Tick;
use crate::ground::wheel::{Alarm, Wheel};
use crate::shard::net::{Event, Net, Pipe};
use std::io;

/// Bodies up to this length go out in one piece with their head.
const COPIED_BODY: usize = 2 << 10;

/// What is known about a socket, in four bits. Events set them; `fill`, `flush` and `send` clear them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready(u8);

impl Ready {
    /// Nothing is known.
    pub const NONE: Ready = Ready(0);
    /// A read may give something.
    pub const READABLE: Ready = Ready(1);
    /// A write may take something.
    pub const WRITABLE: Ready = Ready(2);
    /// The peer has sent its last byte; some may still wait to be read.
    pub const READ_CLOSED: Ready = Ready(4);
    /// The socket is of no use any more.
    pub const BROKEN: Ready = Ready(8);

    /// Whether all bits of `which` are set.
    pub fn has(self, which: Ready) -> bool {
        self.0 & which.0 == which.0
    }

    /// Whether a bit of `which` is set.
    pub fn has_any(self, which: Ready) -> bool {
        self.0 & which.0 != 0
    }

    /// These bits and those of `more`.
    pub const fn with(self, more: Ready) -> Ready {
        Ready(self.0 | more.0)
    }

    fn set(&mut self, which: Ready) {
        self.0 |= which.0;
    }

    fn clear(&mut self, which: Ready) {
        self.0 &= !which.0;
    }
}

/// What a fill gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes.
    Bytes(usize),
    /// Nothing waits.
    Nothing,
    /// The peer's last byte was read before.
    End,
    /// The connection was reset.
    Broken,
}

/// What a splice moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced {
    /// Bytes out of the sender's socket.
    pub taken: usize,
    /// Bytes into the receiver's.
    pub given: usize,
}

/// Why a splice cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceEnd {
    /// The sender's last byte was read before.
    Ended,
    /// The sender's connection was reset.
    Reset,
    /// The receiver takes nothing any more.
    ReceiverBroken,
}

/// The connection is of no use for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A socket and what belongs to it.
#[derive(Debug)]
pub struct Conn<S> {
    /// The socket.
    pub socket: S,
    /// What events have said.
    pub ready: Ready,
    /// Read and not yet dealt with, or kept for a replay.
    pub inbound: Buffer,
    /// To be written.
    pub outbound: Buffer,
    /// When waiting ends; [`Tick::NEVER`] while another connection's deadline rules.
    pub deadline: Tick,
    alarm: Option<Alarm>,
}

impl<S> Conn<S> {
    /// A connection of which `ready` is known.
    pub fn new(socket: S, ready: Ready) -> Conn<S> {
        Conn {
            socket,
            ready,
            inbound: Buffer::default(),
            outbound: Buffer::default(),
            deadline: Tick::NEVER,
            alarm: None,
        }
    }

    /// Takes an event in. `write_open` says that we have not shut our own side, so that a hang-up means
    /// that the peer has broken the connection off.
    pub fn fold(&mut self, event: &Event, write_open: bool) {
        if event.readable || event.read_closed {
            self.ready.set(Ready::READABLE);
        }
        if event.writable {
            self.ready.set(Ready::WRITABLE);
        }
        if event.read_closed {
            self.ready.set(Ready::READ_CLOSED);
        }
        if event.error || event.hung_up && write_open {
            self.ready.set(Ready::BROKEN);
        }
    }

    /// Reads once into `scratch`, behind what it holds.
    pub fn fill<N: Net<Stream = S>>(&mut self, net: &mut N, scratch: &mut Buffer) -> Filled {
        let filled = Self::read(net, &mut self.socket, &mut self.ready, scratch.space());
        if let Filled::Bytes(n) = filled {
            scratch.filled(n);
        }
        filled
    }

    /// Reads once into `inbound`, at most `room` bytes.
    pub fn fill_inbound<N: Net<Stream = S>>(&mut self, net: &mut N, pool: &mut Pool, room: usize) -> Filled {
        if !self.ready.has(Ready::READABLE) || room == 0 {
            return Filled::Nothing;
        }
        self.inbound.reserve(pool, room.min(16 << 10));
        let space = self.inbound.space();
        let room = space.len().min(room);
        let filled = Self::read(net, &mut self.socket, &mut self.ready, &mut space[..room]);
        match filled {
            Filled::Bytes(n) => self.inbound.filled(n),
            _ if self.inbound.is_empty() => self.inbound.clear(pool),
            _ => {}
        }
        filled
    }

    fn read<N: Net<Stream = S>>(net: &mut N, socket: &mut S, ready: &mut Ready, into: &mut [u8]) -> Filled {
        if !ready.has(Ready::READABLE) {
            return Filled::Nothing;
        }
        debug_assert!(!into.is_empty(), "a read without room would look like the end");
        match net.read(socket, into) {
            Ok(read) if read.n == 0 => {
                ready.set(Ready::READ_CLOSED);
                Filled::End
            }
            Ok(read) => {
                // After a FIN there will be no further event, so only the end itself ends reading. A full
                // buffer says nothing about what waits behind it.
                if read.drained && !ready.has(Ready::READ_CLOSED) {
                    ready.clear(Ready::READABLE);
                }
                Filled::Bytes(read.n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear(Ready::READABLE);
                Filled::Nothing
            }
            Err(_) => {
                ready.set(Ready::BROKEN);
                Filled::Broken
            }
        }
    }

    /// Writes `outbound` as far as the socket takes it; how many bytes went.
    pub fn flush<N: Net<Stream = S>>(&mut self, net: &mut N, pool: &mut Pool) -> Result<usize, Broken> {
        if self.outbound.is_empty() || !self.ready.has(Ready::WRITABLE) {
            return Ok(0);
        }
        let n = Self::write(net, &mut self.socket, &mut self.ready, self.outbound.bytes(), b"")?;
        self.outbound.consume(pool, n);
        Ok(n)
    }

    /// Writes `head` and `body` at once; what the socket does not take waits in `outbound`. How many bytes
    /// went. To be called only while `outbound` is empty, or for what must follow it.
    pub fn send<N: Net<Stream = S>>(
        &mut self,
        net: &mut N,
        pool: &mut Pool,
        head: &mut Vec<u8>,
        body: &[u8],
    ) -> Result<usize, Broken> {
        // A short body is copied behind its head: cheaper than what the kernel does for a second piece.
        let body = if !head.is_empty() && body.len() <= COPIED_BODY {
            head.extend_from_slice(body);
            b""
        } else {
            body
        };
        let mut n = 0;
        if self.outbound.is_empty() && self.ready.has(Ready::WRITABLE) && !(head.is_empty() && body.is_empty()) {
            n = Self::write(net, &mut self.socket, &mut self.ready, head, body)?;
            if n == head.len() + body.len() {
                return Ok(n);
            }
        }
        self.outbound.append(pool, head.get(n..).unwrap_or(b""));
        self.outbound.append(pool, &body[n.saturating_sub(head.len())..]);
        Ok(n)
    }

    /// The same with the `n` bytes from `at` on of `held` for a body; what lies before them is not needed any
    /// more, and may be written over.
    pub fn send_held<N: Net<Stream = S>>(
        &mut self,
        net: &mut N,
        pool: &mut Pool,
        head: &mut Vec<u8>,
        held: &mut Buffer,
        (at, n): (usize, usize),
    ) -> Result<usize, Broken> {
        if n > COPIED_BODY
            && let Some(whole) = held.headed(head, at, n)
        {
            return self.send(net, pool, &mut Vec::new(), whole);
        }
        self.send(net, pool, head, &held.bytes()[at..at + n])
    }

    fn write<N: Net<Stream = S>>(
        net: &mut N,
        socket: &mut S,
        ready: &mut Ready,
        head: &[u8],
        body: &[u8],
    ) -> Result<usize, Broken> {
        match net.write(socket, head, body) {
            Ok(n) => {
                if n < head.len() + body.len() {
                    ready.clear(Ready::WRITABLE);
                }
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear(Ready::WRITABLE);
                Ok(0)
            }
            Err(_) => Err(Broken),
        }
    }

    /// Moves at most `most` bytes from this socket to another through `pipe`, once in and once out, without
    /// copying them. To be called only while this `inbound` and the other's `outbound` are empty.
    pub fn splice_to<N: Net<Stream = S>>(
        &mut self,
        to: &mut Conn<S>,
        pipe: &mut Pipe,
        most: usize,
        net: &mut N,
    ) -> Result<Spliced, SpliceEnd> {
        let mut spliced = Spliced { taken: 0, given: 0 };
        if pipe.held() == 0 && most > 0 && self.ready.has(Ready::READABLE) {
            match net.splice_in(&mut self.socket, pipe, most) {
                Ok(0) => {
                    self.ready.set(Ready::READ_CLOSED);
                    return Err(SpliceEnd::Ended);
                }
                // A short count says nothing: the pipe may be what was full.
                Ok(n) => spliced.taken = n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready.clear(Ready::READABLE),
                Err(_) => {
                    self.ready.set(Ready::BROKEN);
                    return Err(SpliceEnd::Reset);
                }
            }
        }
        if pipe.held() > 0 && to.ready.has(Ready::WRITABLE) {
            match net.splice_out(pipe, &mut to.socket) {
                Ok(n) => spliced.given = n,
                // Nor does a short count here: only a socket that would block tells when it has room again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.ready.clear(Ready::WRITABLE),
                Err(_) => return Err(SpliceEnd::ReceiverBroken),
            }
        }
        Ok(spliced)
    }

    /// Sees to it that the wheel wakes `token` not later than the deadline.
    pub fn arm(&mut self, wheel: &mut Wheel, token: usize) {
        if self.deadline == Tick::NEVER {
            return;
        }
        match self.alarm {
            None => self.alarm = Some(wheel.arm(token as u64, self.deadline)),
            // One granule of grace, or rounding would move the alarm at every turn.
            Some(alarm) if wheel.at(alarm) > self.deadline.after(Wheel::GRANULE) => wheel.move_to(alarm, self.deadline),
            Some(_) => {}
        }
    }

    /// The alarm rang, and with that it is spent.
    pub fn spend_alarm(&mut self) {
        self.alarm = None;
    }

    /// Gives everything back but the socket.
    pub fn release(&mut self, pool: &mut Pool, wheel: &mut Wheel) {
        self.inbound.clear(pool);
        self.outbound.clear(pool);
        if let Some(alarm) = self.alarm.take() {
            wheel.cancel(alarm);
        }
    }

    /// Whether an alarm is armed.
    pub fn is_armed(&self) -> bool {
        self.alarm.is_some()
    }
}

//! One health check on its way: a connection over the addresses of an upstream in turn, a request, and the
//! final head of its answer. The body is not read, and the connection serves one check only.
//!
//! Must not know: when checks are made, what a verdict does.

use crate::ground::tick::Tick;
use crate::http::head::Limits;
use crate::http::request::Storage;
use crate::http::response::Response;
use crate::shared::failure::Failure;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A final status, or why there is none.
pub(super) type Verdict = Result<u16, Failure>;

/// What is asked of whom.
#[derive(Debug)]
pub(super) struct Target {
    /// Of the upstream, at least one.
    pub(super) addresses: Vec<SocketAddr>,
    /// The whole request.
    pub(super) request: Vec<u8>,
    /// It is a `HEAD`.
    pub(super) to_head: bool,
    /// For the whole check.
    pub(super) timeout: Duration,
}

/// What a check needs of the thread that it runs on.
pub(super) struct Ground<'a> {
    /// Where its socket is registered.
    pub(super) registry: &'a Registry,
    /// Under which token.
    pub(super) token: Token,
    /// Where bytes are read into.
    pub(super) scratch: &'a mut [u8],
    /// Of response heads.
    pub(super) limits: &'a Limits,
    /// Of this turn.
    pub(super) now: Tick,
}

/// Where a check stands, named by what is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The connect to end.
    Connecting,
    /// The socket to take the rest of the request.
    Sending { sent: usize },
    /// The final head; what stands before `seen` are 1xx heads.
    Receiving { seen: usize },
}

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    target: Arc<Target>,
    stream: TcpStream,
    phase: Phase,
    /// Addresses that were not tried yet, the next one last.
    left: Vec<SocketAddr>,
    received: Vec<u8>,
    /// When the present wait is over.
    deadline: Tick,
    /// When the check is over.
    end: Tick,
}

impl Check {
    /// Begins a check with the `preferred` of the addresses.
    pub(super) fn begin(target: &Arc<Target>, preferred: usize, ground: &Ground<'_>) -> Result<Check, Failure> {
        let mut left = target.addresses.clone();
        if preferred < left.len() {
            left[..=preferred].rotate_right(1);
        }
        left.reverse();
        let end = ground.now.after(target.timeout);
        let (stream, deadline) = connect(&mut left, end, None, ground)?;
        let (target, received) = (Arc::clone(target), Vec::new());
        Ok(Check { target, stream, phase: Phase::Connecting, left, received, deadline, end })
    }

    /// When [`Check::expire`] is wanted.
    pub(super) fn deadline(&self) -> Tick {
        self.deadline
    }

    /// Goes on as far as the socket lets it; the verdict when there is one. Needs no cause: an event that means
    /// nothing does nothing.
    pub(super) fn advance(&mut self, ground: &mut Ground<'_>) -> Option<Verdict> {
        loop {
            let went_on = match self.phase {
                Phase::Connecting => self.connected(ground),
                Phase::Sending { sent } => self.send(sent),
                Phase::Receiving { seen } => self.receive(seen, ground),
            };
            match went_on {
                Ok(Some(status)) => return Some(Ok(status)),
                Ok(None) => {}
                Err(Stop::Wait) => return None,
                Err(Stop::Failed(failure)) => return Some(Err(failure)),
            }
        }
    }

    /// The deadline has come: another address, or the end.
    pub(super) fn expire(&mut self, ground: &mut Ground<'_>) -> Option<Verdict> {
        match self.phase {
            Phase::Connecting => match self.try_next(Failure::ConnectTimeout, ground) {
                Ok(()) => None,
                Err(failure) => Some(Err(failure)),
            },
            Phase::Sending { .. } | Phase::Receiving { .. } => Some(Err(Failure::ResponseTimeout)),
        }
    }

    fn try_next(&mut self, failure: Failure, ground: &Ground<'_>) -> Result<(), Failure> {
        (self.stream, self.deadline) = connect(&mut self.left, self.end, Some(failure), ground)?;
        Ok(())
    }

    fn connected(&mut self, ground: &Ground<'_>) -> Result<Option<u16>, Stop> {
        let ended = match self.stream.take_error() {
            Ok(None) => self.stream.peer_addr().map(|_| ()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        match ended {
            Ok(()) => {
                self.phase = Phase::Sending { sent: 0 };
                self.deadline = self.end;
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Err(Stop::Wait),
            // It was accepted, and ended before anybody looked: that is no question of the address.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Failure::Unsent.into()),
            Err(error) => self.try_next(Failure::of_connect(&error), ground)?,
        }
        Ok(None)
    }

    fn send(&mut self, sent: usize) -> Result<Option<u16>, Stop> {
        let rest = &self.target.request[sent..];
        if rest.is_empty() {
            self.phase = Phase::Receiving { seen: 0 };
            return Ok(None);
        }
        match self.stream.write(rest) {
            Ok(n) if n > 0 => self.phase = Phase::Sending { sent: sent + n },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Stop::Wait),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(Failure::Unsent.into()),
        }
        Ok(None)
    }

    fn receive(&mut self, seen: usize, ground: &mut Ground<'_>) -> Result<Option<u16>, Stop> {
        match self.stream.read(ground.scratch) {
            Ok(n) if n > 0 => {
                self.received.extend_from_slice(&ground.scratch[..n]);
                Ok(self.judge(seen, ground.limits)?)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Stop::Wait),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            _ if self.received.len() > seen => Err(Failure::Incomplete.into()),
            _ => Err(Failure::Closed.into()),
        }
    }

    /// Looks for the final head in what has come.
    fn judge(&mut self, mut seen: usize, limits: &Limits) -> Result<Option<u16>, Failure> {
        while seen < self.received.len() {
            let mut storage = Storage::new();
            let parsed = Response::parse(&self.received[seen..], self.target.to_head, limits, &mut storage)?;
            match parsed.map(|response| (response.status, response.len)) {
                None => break,
                Some((101, _)) => return Err(Failure::UnaskedUpgrade),
                Some((100..=199, len)) => seen += len,
                Some((status, _)) => return Ok(Some(status)),
            }
        }
        // All heads of a check together, so that 1xx without an end take neither memory nor the thread.
        if self.received.len() > limits.head() {
            return Err(Failure::HeadTooLarge);
        }
        self.phase = Phase::Receiving { seen };
        Ok(None)
    }
}

/// Why a check does not go on just now.
enum Stop {
    /// The socket has nothing more.
    Wait,
    /// It is over.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// Begins a connection to the next of the addresses that takes one. Each gets its share of the time that is left,
/// so that a silent one does not stand in for the others. `failure` is what became of the address before.
fn connect(
    left: &mut Vec<SocketAddr>,
    end: Tick,
    mut failure: Option<Failure>,
    ground: &Ground<'_>,
) -> Result<(TcpStream, Tick), Failure> {
    while let Some(address) = left.pop() {
        let opened = TcpStream::connect(address).and_then(|mut stream| {
            ground.registry.register(&mut stream, ground.token, Interest::READABLE | Interest::WRITABLE)?;
            Ok(stream)
        });
        let error = match opened {
            Ok(stream) => {
                let share = end.since(ground.now) / u32::try_from(left.len() + 1).unwrap_or(u32::MAX);
                return Ok((stream, ground.now.after(share)));
            }
            Err(error) => error,
        };
        failure = match Failure::of_connect(&error) {
            // A family of addresses that this machine does not have says nothing about the others.
            Failure::NoSocket if error.kind() == io::ErrorKind::AddrNotAvailable => failure.or(Some(Failure::NoSocket)),
            Failure::NoSocket => return Err(Failure::NoSocket),
            other => Some(other),
        };
    }
    Err(failure.unwrap_or(Failure::Unreachable))
}

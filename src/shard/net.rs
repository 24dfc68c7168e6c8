//! The seam to the network: every socket call that a shard makes. The real one is here, over mio; a
//! simulator can be another.
//!
//! Polling and the clock stay outside: whoever runs a shard polls and passes the events in.
//! Must not know: HTTP, connections' states.

use crate::ground::table::Id;
use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Interest, Registry};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{self, PipeFlags, SpliceFlags};
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The kind of identifiers of client connections.
#[derive(Debug)]
pub enum ClientKind {}
/// The kind of identifiers of upstream connections.
#[derive(Debug)]
pub enum UpstreamKind {}
/// Names a client connection.
pub type ClientId = Id<ClientKind>;
/// Names an upstream connection.
pub type UpstreamId = Id<UpstreamKind>;

/// What an event is about. A mio token is kind, generation and index in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A listener, by its position.
    Listener(usize),
    /// A client connection.
    Client(ClientId),
    /// An upstream connection.
    Upstream(UpstreamId),
    /// The mailbox.
    Mailbox,
}

const KIND_SHIFT: u32 = 62;

/// What a pipe is asked to hold; an unprivileged process may have up to 1 MiB (pipe(7)).
const PIPE_BYTES: usize = 256 << 10;

impl Subject {
    /// As the number of a mio token.
    pub fn token(self) -> usize {
        let (kind, rest) = match self {
            Subject::Listener(position) => (0, position as u64),
            Subject::Client(id) => (1, id.pack()),
            Subject::Upstream(id) => (2, id.pack()),
            Subject::Mailbox => (3, 0),
        };
        (kind << KIND_SHIFT | rest) as usize
    }

    /// The reverse of [`Subject::token`].
    pub fn of_token(token: usize) -> Self {
        let rest = token as u64 & ((1 << KIND_SHIFT) - 1);
        match token as u64 >> KIND_SHIFT {
            0 => Subject::Listener(rest as usize),
            1 => Subject::Client(Id::unpack(rest)),
            2 => Subject::Upstream(Id::unpack(rest)),
            _ => Subject::Mailbox,
        }
    }
}

/// One event of a poll, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was registered with the socket.
    pub token: usize,
    /// Bytes, an end or an error wait to be read.
    pub readable: bool,
    /// Bytes can be written, or a connect has ended.
    pub writable: bool,
    /// The peer has shut its write side.
    pub read_closed: bool,
    /// Both sides are shut.
    pub hung_up: bool,
    /// The socket has an error.
    pub error: bool,
}

impl Event {
    /// The event that mio reports.
    pub fn of_mio(event: &mio::event::Event) -> Event {
        Event {
            token: event.token().0,
            readable: event.is_readable(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            hung_up: event.is_write_closed(),
            error: event.is_error(),
        }
    }
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Bytes; zero is the end.
    pub n: usize,
    /// Nothing more waits: a later arrival makes an event.
    pub drained: bool,
}

/// What a listener lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// Everything; administration too, unless it has a door of its own.
    #[default]
    Data,
    /// Administration only.
    Admin,
    /// The same over a unix socket: whoever comes is on this machine, and no address tells the two ends apart.
    Socket,
}

/// The network as a shard sees it. Sockets do not block; would-block is an error of that kind.
pub trait Net {
    /// A listening socket.
    type Listener;
    /// A connected or connecting socket.
    type Stream;

    /// Takes a connection from the queue.
    fn accept(&mut self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)>;
    /// What a listener lets in.
    fn door(&self, listener: &Self::Listener) -> Door {
        let _ = listener;
        Door::Data
    }
    /// Begins a connection.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Stream>;
    /// Asks for the events of a socket, edge-triggered, both directions, once for its life.
    fn register(&mut self, stream: &mut Self::Stream, token: usize) -> io::Result<()>;
    /// How a connect that has become writable ended (`SO_ERROR`).
    fn connected(&mut self, stream: &Self::Stream) -> io::Result<()>;
    /// Reads once.
    fn read(&mut self, stream: &mut Self::Stream, into: &mut [u8]) -> io::Result<Read>;
    /// Writes once, `head` and then `body`; how many bytes were taken.
    fn write(&mut self, stream: &mut Self::Stream, head: &[u8], body: &[u8]) -> io::Result<usize>;
    /// Sends a FIN.
    fn shutdown_write(&mut self, stream: &mut Self::Stream) -> io::Result<()>;
    /// Closes with a reset, so that the peer cannot take the end for a proper one.
    fn reset(&mut self, stream: Self::Stream);
    /// Our end of a connection.
    fn local_addr(&self, stream: &Self::Stream) -> io::Result<SocketAddr>;
    /// A pipe through which bytes move between sockets without coming here; `None` where that cannot be.
    fn pipe(&mut self) -> Option<Pipe> {
        None
    }
    /// Moves at most `most` bytes from a socket into an empty pipe; zero is the end.
    fn splice_in(&mut self, from: &mut Self::Stream, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        let _ = (from, pipe, most);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Moves what a pipe holds into a socket.
    fn splice_out(&mut self, pipe: &mut Pipe, to: &mut Self::Stream) -> io::Result<usize> {
        let _ = (pipe, to);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A pipe, and how many bytes it holds (splice(2)).
#[derive(Debug)]
pub struct Pipe {
    ends: Ends,
    held: usize,
}

#[derive(Debug)]
enum Ends {
    Kernel { read: OwnedFd, write: OwnedFd },
    Elsewhere(u64),
}

impl Pipe {
    /// A pipe that another network keeps under this number.
    pub fn elsewhere(number: u64) -> Pipe {
        Pipe { ends: Ends::Elsewhere(number), held: 0 }
    }

    /// The number of [`Pipe::elsewhere`].
    pub fn number(&self) -> Option<u64> {
        match self.ends {
            Ends::Elsewhere(number) => Some(number),
            Ends::Kernel { .. } => None,
        }
    }

    /// Bytes that went in and have not come out.
    pub fn held(&self) -> usize {
        self.held
    }

    /// So many bytes went in.
    pub fn fill(&mut self, n: usize) {
        self.held += n;
    }

    /// So many bytes came out.
    pub fn drain(&mut self, n: usize) {
        self.held -= n;
    }
}

/// A listening socket of the real network.
#[derive(Debug)]
pub enum Listener {
    /// Of TCP, and what it lets in.
    Tcp(TcpListener, Door),
    /// For administration over a unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Asks for the events of new connections.
    pub fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => registry.register(listener, mio::Token(token), Interest::READABLE),
            Listener::Unix(listener) => registry.register(listener, mio::Token(token), Interest::READABLE),
        }
    }
}

/// The real network.
#[derive(Debug)]
pub struct MioNet {
    registry: Registry,
}

impl MioNet {
    /// The network whose sockets are registered with `registry`.
    pub fn new(registry: Registry) -> MioNet {
        MioNet { registry }
    }
}

impl Net for MioNet {
    type Listener = Listener;
    type Stream = TcpStream;

    fn accept(&mut self, listener: &Listener) -> io::Result<(TcpStream, SocketAddr)> {
        match listener {
            // TCP_NODELAY is inherited from the listener (tcp(7)).
            Listener::Tcp(listener, _) => retry(|| listener.accept()),
            Listener::Unix(listener) => {
                let (stream, _) = retry(|| listener.accept())?;
                // Every call that a shard makes of a connected socket is the same for both kinds.
                let stream = std::net::TcpStream::from(OwnedFd::from(stream));
                Ok((TcpStream::from_std(stream), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
            }
        }
    }

    fn door(&self, listener: &Listener) -> Door {
        match listener {
            Listener::Tcp(_, door) => *door,
            Listener::Unix(_) => Door::Socket,
        }
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn register(&mut self, stream: &mut TcpStream, token: usize) -> io::Result<()> {
        self.registry.register(stream, mio::Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    fn connected(&mut self, stream: &TcpStream) -> io::Result<()> {
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn read(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<Read> {
        let (n, _) = retry_on_intr(|| rustix::net::recv(&*stream, &mut *into, RecvFlags::empty()))?;
        // epoll(7): a read of a stream socket that is short has drained it. True for TCP, not for TLS.
        Ok(Read { n, drained: n < into.len() })
    }

    fn write(&mut self, stream: &mut TcpStream, head: &[u8], body: &[u8]) -> io::Result<usize> {
        match (head.is_empty(), body.is_empty()) {
            (_, true) => Ok(retry_on_intr(|| rustix::net::send(&*stream, head, SendFlags::NOSIGNAL))?),
            (true, false) => Ok(retry_on_intr(|| rustix::net::send(&*stream, body, SendFlags::NOSIGNAL))?),
            (false, false) => {
                let parts = [IoSlice::new(head), IoSlice::new(body)];
                Ok(retry_on_intr(|| rustix::io::writev(&*stream, &parts))?)
            }
        }
    }

    fn shutdown_write(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        stream.shutdown(Shutdown::Write)
    }

    fn reset(&mut self, stream: TcpStream) {
        // When this fails the socket is closed all the same, by a FIN; there is nobody to tell.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }

    fn local_addr(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        stream.local_addr()
    }

    fn pipe(&mut self) -> Option<Pipe> {
        let (read, write) = pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A refusal leaves a smaller pipe, which only needs more calls.
        let _ = pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
        Some(Pipe { ends: Ends::Kernel { read, write }, held: 0 })
    }

    fn splice_in(&mut self, from: &mut TcpStream, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        let Ends::Kernel { write, .. } = &pipe.ends else { return Err(io::ErrorKind::Unsupported.into()) };
        let n = retry(|| Ok(pipe::splice(&*from, None, write, None, most, SpliceFlags::NONBLOCK)?))?;
        pipe.fill(n);
        Ok(n)
    }

    fn splice_out(&mut self, pipe: &mut Pipe, to: &mut TcpStream) -> io::Result<usize> {
        let Ends::Kernel { read, .. } = &pipe.ends else { return Err(io::ErrorKind::Unsupported.into()) };
        let n = retry(|| Ok(pipe::splice(read, None, &*to, None, pipe.held, SpliceFlags::NONBLOCK)?))?;
        pipe.drain(n);
        Ok(n)
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_their_subject() {
        type Any = Subject;
        let mut table = crate::ground::table::Table::<u8, ClientKind>::default();
        for _ in 0..3 {
            table.insert(0);
        }
        let id = table.next_id();
        for subject in [Any::Listener(3), Any::Client(id), Any::Upstream(Id::unpack(id.pack())), Any::Mailbox] {
            assert_eq!(Any::of_token(subject.token()), subject);
        }
    }
}

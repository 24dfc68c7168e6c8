//! A raw client: sends whatever bytes a test wants, and reads responses strictly. A response that
//! ends too early is told apart from a whole one, and an orderly close from a reset. Every read has
//! a limit, so that a hang fails with a message.

use super::wire::{CutBody, End, Field, Framing, Head, Wire, framing, text};
use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpStream};

/// A connection to the gateway.
pub(crate) struct Caller {
    wire: Wire,
}

/// A whole response.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<Field>,
    pub(crate) framing: Framing,
    /// The 1xx heads that came before.
    pub(crate) interim: Vec<Head>,
}

impl Response {
    /// The value of a field that may occur once.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        self.head.field(name)
    }

    /// Whether a comma list of the head holds a token.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.head.lists(name, token)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

/// A response that did not come to its end.
pub(crate) struct Broken {
    /// What ended it: an orderly close or a reset.
    pub(crate) end: End,
    /// Its final head, when that came whole.
    pub(crate) head: Option<Head>,
    /// What came of its body.
    pub(crate) body: Vec<u8>,
}

// raw and bounded: a body may have hundreds of megabytes
impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} bytes: {}", text(&self.head.raw), self.body.len(), text(&self.body))
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.as_ref().map_or_else(|| "no head".to_owned(), |head| text(&head.raw));
        write!(f, "{:?} after {head} and {} bytes: {}", self.end, self.body.len(), text(&self.body))
    }
}

impl Caller {
    pub(crate) fn connect(address: SocketAddr) -> Caller {
        let stream = TcpStream::connect_timeout(&address, super::LIMIT)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Caller { wire: Wire::new(stream) }
    }

    /// A connection that has a small receive buffer, for clients that do not read.
    pub(crate) fn connect_narrow(address: SocketAddr) -> Caller {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        socket.connect(&address.into()).unwrap();
        Caller { wire: Wire::new(socket.into()) }
    }

    /// Sends bytes; panics when the gateway does not take them.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(end) = self.wire.write(bytes.as_ref()) {
            panic!("the gateway did not take what was sent: {end:?}");
        }
    }

    /// Sends bytes to a gateway that may already have answered and closed.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), End> {
        self.wire.write(bytes.as_ref())
    }

    /// Sends bytes and waits until the gateway has read them.
    #[track_caller]
    pub(crate) fn send_apart(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(bytes);
        self.wire.wait_consumed();
    }

    /// Sends a GET without a body and reads its answer; the connection stays.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.answer()
    }

    /// Sends a POST with a body and reads its answer; the connection stays.
    #[track_caller]
    pub(crate) fn post(&mut self, path: &str, body: &str) -> Response {
        let length = body.len();
        self.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"));
        self.answer()
    }

    /// The whole response to a request that was not HEAD.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Response {
        self.answer_to("GET")
    }

    /// The whole response to a request with this method.
    #[track_caller]
    pub(crate) fn answer_to(&mut self, method: &str) -> Response {
        match self.try_answer(method) {
            Ok(response) => response,
            Err(broken) => panic!("no whole response: {broken:?}"),
        }
    }

    /// A response that must end too early.
    #[track_caller]
    pub(crate) fn broken_answer(&mut self) -> Broken {
        match self.try_answer("GET") {
            Ok(response) => panic!("a whole response where it should have been cut short: {response:?}"),
            Err(broken) => broken,
        }
    }

    /// A response, or how far it came.
    #[track_caller]
    pub(crate) fn try_answer(&mut self, method: &str) -> Result<Response, Broken> {
        let mut interim = Vec::new();
        let head = loop {
            let head = match self.wire.head() {
                Ok(head) => head,
                Err(end) => return Err(self.broken(end, None, self.wire.unused().to_vec())),
            };
            match status_of(&head) {
                100..=199 => interim.push(head),
                _ => break head,
            }
        };
        let status = status_of(&head);
        let announced = framing(&head);
        let kind = if method == "HEAD" || status == 204 || status == 304 {
            Framing::Nothing
        } else {
            announced.unwrap_or(Framing::UntilClose)
        };
        if status == 204 {
            assert!(announced.is_none(), "a 204 with a length:\n{}", text(&head.raw));
        }
        let (body, trailers) = match kind {
            Framing::Nothing => (Vec::new(), Vec::new()),
            Framing::Length(length) => match self.body_of(length) {
                Ok(body) => (body, Vec::new()),
                Err((body, end)) => return Err(self.broken(end, Some(head), body)),
            },
            Framing::Chunked => match self.wire.chunked() {
                Ok(whole) => whole,
                Err((body, end)) => return Err(self.broken(end, Some(head), body)),
            },
            Framing::UntilClose => match self.wire.rest() {
                (body, End::Eof) => (body, Vec::new()),
                (body, end) => return Err(self.broken(end, Some(head), body)),
            },
        };
        Ok(Response { status, head, body, trailers, framing: kind, interim })
    }

    fn body_of(&mut self, length: usize) -> Result<Vec<u8>, CutBody> {
        while self.wire.unused().len() < length {
            if let Err(end) = self.wire.fill() {
                return Err((self.wire.unused().to_vec(), end));
            }
        }
        self.wire.exact(length).map_err(|end| (Vec::new(), end))
    }

    #[track_caller]
    fn broken(&self, end: End, head: Option<Head>, body: Vec<u8>) -> Broken {
        let broken = Broken { end, head, body };
        assert!(end != End::Late, "the gateway fell silent: {broken:?}");
        broken
    }

    /// One head alone, whatever its status: the body stays to be read with [`Caller::exact`].
    #[track_caller]
    pub(crate) fn head(&mut self) -> (u16, Head) {
        match self.wire.head() {
            Ok(head) => (status_of(&head), head),
            Err(end) => panic!("{end:?} instead of a head, after {}", text(self.wire.unused())),
        }
    }

    /// Exactly `count` bytes of whatever comes.
    #[track_caller]
    pub(crate) fn exact(&mut self, count: usize) -> Vec<u8> {
        match self.wire.exact(count) {
            Ok(bytes) => bytes,
            Err(end) => panic!("{end:?} before {count} bytes"),
        }
    }

    /// The rest until the gateway closes, and how it closed.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        self.wire.rest()
    }

    /// The gateway must close in order, without another byte.
    #[track_caller]
    pub(crate) fn expect_eof(&mut self) {
        let (bytes, end) = self.wire.rest();
        assert!(bytes.is_empty() && end == End::Eof, "{end:?} after {} instead of the end", text(&bytes));
    }

    /// Whether something can be read at once: bytes or the end.
    pub(crate) fn has_input(&mut self) -> bool {
        if !self.wire.unused().is_empty() {
            return true;
        }
        self.wire.stream.set_nonblocking(true).unwrap();
        let peeked = self.wire.stream.peek(&mut [0]);
        self.wire.stream.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Closes the sending side alone.
    pub(crate) fn half_close(&mut self) {
        self.wire.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        self.wire.reset();
    }

    /// The local address, which tells connections apart.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.wire.stream.local_addr().unwrap()
    }
}

/// One GET on a connection of its own.
#[track_caller]
pub(crate) fn fetch(address: SocketAddr, path: &str) -> Response {
    Caller::connect(address).get(path)
}

/// The code of a status line; panics when the line is malformed.
fn status_of(head: &Head) -> u16 {
    let line = head.line.as_bytes();
    let valid = line.len() >= 13
        && (line.starts_with(b"HTTP/1.1 ") || line.starts_with(b"HTTP/1.0 "))
        && line[9..12].iter().all(u8::is_ascii_digit)
        && line[12] == b' ';
    assert!(valid, "bad status line in\n{}", text(&head.raw));
    head.line[9..12].parse().unwrap()
}

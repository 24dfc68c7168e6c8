//! A scripted upstream: every connection is handed to a closure that reads and sends what the test
//! wants, however wrong. It records every request, counts connections, and can be stopped and
//! started again on the same port.

use super::LIMIT;
use super::wire::{End, Field, Framing, Head, Wire, framing, text};
use socket2::{Domain, SockRef, Socket, Type};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// A whole request as an upstream saw it.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<Field>,
    pub(crate) framing: Framing,
    /// The number of its connection, from 1.
    pub(crate) connection: usize,
}

impl Request {
    /// The method.
    pub(crate) fn method(&self) -> &str {
        self.head.line.split(' ').next().unwrap_or_default()
    }

    /// The request target.
    pub(crate) fn target(&self) -> &str {
        self.head.line.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a field that may occur once.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        self.head.field(name)
    }

    /// Every value of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.head.all(name)
    }
}

/// A 200 with a body and its length.
pub(crate) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    reply(200, "", body)
}

/// A response with further field lines, each ended by CR LF, a body and its length.
pub(crate) fn reply(status: u16, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status} Scripted\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

type Script = dyn Fn(&mut Conn) + Send + Sync;

#[derive(Default)]
struct Shared {
    heads: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    open: Mutex<Vec<Weak<TcpStream>>>,
    failures: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// A scripted upstream.
pub(crate) struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    script: Arc<Script>,
    listener: Option<Arc<TcpListener>>,
    /// Bound but not listening: keeps the port ours while the origin is stopped.
    _place: Socket,
}

impl Origin {
    /// Runs `script` once for every connection; when it returns, the connection is closed in order.
    pub(crate) fn start(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Origin {
        let (place, address) = hold_port();
        let mut origin =
            Origin { address, shared: Arc::default(), script: Arc::new(script), listener: None, _place: place };
        origin.restart();
        origin
    }

    /// Reads whole requests and answers each with what the closure returns, on kept connections. An
    /// answer that says `Connection: close` is the last on its connection.
    pub(crate) fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Origin {
        Origin::start(move |conn| {
            while let Some(request) = conn.request() {
                let bytes = answer(&request);
                let head = &bytes[..bytes.len().min(1000)];
                let last = head.windows(17).any(|part| part.eq_ignore_ascii_case(b"connection: close"));
                if conn.send(&bytes).is_err() || last {
                    return;
                }
            }
        })
    }

    /// Answers every request with 200 and this body.
    pub(crate) fn hello(body: &'static str) -> Origin {
        Origin::answering(move |_| ok(body))
    }

    /// Answers every request with its own body.
    pub(crate) fn echo() -> Origin {
        Origin::answering(|request| ok(&request.body))
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many request heads came.
    pub(crate) fn heads(&self) -> usize {
        self.shared.heads.load(Ordering::SeqCst)
    }

    /// The whole requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The last whole request.
    #[track_caller]
    pub(crate) fn last(&self) -> Request {
        self.shared.requests.lock().unwrap().last().cloned().expect("the origin saw no request")
    }

    /// Waits until this many request heads came.
    #[track_caller]
    pub(crate) fn wait_heads(&self, count: usize) {
        super::wait_until("the origin saw the request", || self.heads() >= count);
    }

    /// Stops listening and closes every connection, like a process that ends: from now on the port refuses.
    pub(crate) fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.take() {
            // wakes the accepting thread as well
            SockRef::from(&*listener).shutdown(Shutdown::Both).unwrap();
        }
        for stream in self.shared.open.lock().unwrap().drain(..) {
            if let Some(stream) = stream.upgrade() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        // a listener that is only shut down may still complete a handshake that had begun
        super::wait_until("the port refuses", || TcpStream::connect(self.address).is_err());
    }

    /// Listens again on the same port.
    pub(crate) fn restart(&mut self) {
        self.shared.stopped.store(false, Ordering::SeqCst);
        let socket = reusable_socket();
        socket.bind(&self.address.into()).unwrap();
        socket.listen(1024).unwrap();
        let listener = Arc::new(TcpListener::from(socket));
        self.listener = Some(Arc::clone(&listener));
        let (shared, script) = (Arc::clone(&self.shared), Arc::clone(&self.script));
        std::thread::spawn(move || accept_all(&listener, &shared, &script));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = SockRef::from(&*listener).shutdown(Shutdown::Both);
        }
        for stream in self.shared.open.lock().unwrap().drain(..) {
            if let Some(stream) = stream.upgrade() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let failures = self.shared.failures.lock().unwrap();
        if !std::thread::panicking() {
            assert!(failures.is_empty(), "the origin's script failed: {failures:?}");
        }
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, script: &Arc<Script>) {
    while let Ok((stream, _)) = listener.accept() {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let wire = Wire::new(stream);
        shared.open.lock().unwrap().push(Arc::downgrade(&wire.stream));
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let (shared, script) = (Arc::clone(shared), Arc::clone(script));
        std::thread::spawn(move || {
            let mut conn = Conn { wire: Some(wire), number, shared: Arc::clone(&shared) };
            let result = catch_unwind(AssertUnwindSafe(|| script(&mut conn)));
            if let Err(panic) = result {
                let message = panic.downcast_ref::<String>().cloned();
                let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                shared.failures.lock().unwrap().push(message.unwrap_or_else(|| "panic".to_owned()));
            }
            conn.close();
        });
    }
}

/// One connection of an origin, in the hands of its script.
pub(crate) struct Conn {
    /// `None` once the connection is over.
    wire: Option<Wire>,
    /// From 1, in the order of arrival.
    pub(crate) number: usize,
    shared: Arc<Shared>,
}

impl Conn {
    #[track_caller]
    fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("the script goes on after the end of its connection")
    }

    /// A request head; `None` when the connection ended before it.
    pub(crate) fn head(&mut self) -> Option<Head> {
        let head = self.wire().head().ok()?;
        self.shared.heads.fetch_add(1, Ordering::SeqCst);
        assert!(head.line.ends_with(" HTTP/1.1"), "not an HTTP/1.1 request: {}", text(&head.raw));
        assert_eq!(head.line.split(' ').count(), 3, "bad request line: {}", text(&head.raw));
        assert_eq!(head.all("Host").len(), 1, "not one Host: {}", text(&head.raw));
        Some(head)
    }

    /// A whole request, recorded; `None` when the connection ended before its end.
    pub(crate) fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        self.body(head)
    }

    /// The rest of the request that begins with `head`, recorded; `None` when it was cut short.
    pub(crate) fn body(&mut self, head: Head) -> Option<Request> {
        let connection = self.number;
        let framing = framing(&head).unwrap_or(Framing::Nothing);
        let (body, trailers) = match framing {
            Framing::Length(length) => (self.wire().exact(length).ok()?, Vec::new()),
            Framing::Chunked => self.wire().chunked().ok()?,
            _ => (Vec::new(), Vec::new()),
        };
        let request = Request { head, body, trailers, framing, connection };
        self.shared.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// Sends bytes; an error means that the gateway is gone.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), End> {
        self.wire().write(bytes.as_ref())
    }

    /// Sends bytes and waits until the gateway has read them.
    pub(crate) fn send_apart(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), End> {
        self.send(bytes)?;
        self.wire().wait_consumed();
        Ok(())
    }

    /// Exactly `count` bytes; `None` when the connection ended before.
    pub(crate) fn exact(&mut self, count: usize) -> Option<Vec<u8>> {
        self.wire().exact(count).ok()
    }

    /// Reads until the gateway ends the connection; whether it did.
    pub(crate) fn wait_gone(&mut self) -> bool {
        self.wire().drain() != End::Late
    }

    /// Closes the sending side and reads what still comes, so that the close is an orderly one. Whether
    /// the gateway then closed its side too.
    pub(crate) fn close(&mut self) -> bool {
        let Some(mut wire) = self.wire.take() else { return false };
        let _ = wire.stream.shutdown(Shutdown::Write);
        let _ = wire.stream.set_read_timeout(Some(LIMIT / 2));
        wire.drain() != End::Late
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.reset();
        }
    }
}

/// A port that refuses connections, and that nobody else can take as long as this lives.
pub(crate) struct RefusedPort {
    address: SocketAddr,
    _place: Socket,
}

impl RefusedPort {
    pub(crate) fn new() -> RefusedPort {
        let (place, address) = hold_port();
        RefusedPort { address, _place: place }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// An address that lets no connection come to an end: its queue is full, so that it drops every further attempt.
pub(crate) struct SilentPort {
    address: SocketAddr,
    _listener: Socket,
    _queue: Vec<Socket>,
}

impl SilentPort {
    pub(crate) fn new() -> SilentPort {
        let (listener, address) = hold_port();
        listener.listen(0).unwrap();
        let mut queue = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let queued = socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_ok();
            queue.push(socket);
            if !queued {
                return SilentPort { address, _listener: listener, _queue: queue };
            }
            assert!(queue.len() < 100, "the queue of the silent port does not fill up");
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn reusable_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

/// A port that is bound and does not listen: connections to it are refused.
fn hold_port() -> (Socket, SocketAddr) {
    let socket = reusable_socket();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

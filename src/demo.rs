//! The embedded demo upstreams: small HTTP/1.1 servers that answer, echo, stream and fail on request, so that a first
//! look at the gateway, its scripts and its tests need no other program.
//!
//! RFC 9112 from a server's side, without TLS and upgrades. One thread serves one connection: plain blocking code is
//! the easiest to trust in a program that exists to test another one. It is strict about framing for the same
//! reason: a malformed request from the gateway must not pass unnoticed.
//!
//! It must not know the gateway: no configuration, no event loop, no metrics, no shared parsing code. A fault of the
//! gateway's own parser would otherwise be hidden by the same fault on the other side.
//!
//! | route | answer |
//! |---|---|
//! | `/`, any unknown path | the name, the request line and the fields as they were received |
//! | `/echo` | the body of the request, framed as it came; above 64 KiB and when chunked, while it still comes |
//! | `/bytes/N` | N bytes of `x`, up to 2^40 |
//! | `/delay/MS` | as `/`, after MS milliseconds, up to an hour |
//! | `/status/CODE` | that status; for 1xx that interim response, then 200; for 101 nothing more and the end |
//! | `/events` | server-sent events, one each second or `?every=MS`, endless or `?count=N` |
//! | `POST /fail` | every request but `/fail` and `/recover` gets 500 |
//! | `POST /fail?mode=refuse` | the port refuses; a kept-alive connection ends with its next answer |
//! | `POST /fail?mode=hang` | requests are read and never answered |
//! | `POST /fail?mode=reset` | requests are answered by a connection reset |
//! | `POST /recover` | all is well again |
//!
//! `&for=SECONDS` ends any of the failures by itself; `refuse`, which cuts off `/recover` too, ends after 30 seconds
//! when nothing else is said.

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The unit of streaming, and the largest head.
const PIECE: usize = 64 * 1024;
/// What a connection begins with: enough for every usual head, so that idle connections stay cheap.
const FIRST_READ: usize = 4 * 1024;
/// More fields than the gateway lets through.
const FIELDS: usize = 256;
/// A body that nobody wants is read up to here to save the connection; beyond it a new connection is cheaper.
const DRAIN: u64 = 1024 * 1024;
const BYTES_MAX: u64 = 1 << 40;
const WAIT_MAX_MS: u64 = 60 * 60 * 1000;
const FAULT_MAX_S: u64 = 24 * 60 * 60;
/// Longer than a usual pool keeps idle connections, so that it is the gateway that ends them.
const IDLE: Duration = Duration::from_secs(75);
/// A peer that reads nothing for so long is gone.
const STUCK: Duration = Duration::from_secs(600);
/// How long the end of the peer is waited for before a socket is closed.
const LINGER: Duration = Duration::from_secs(2);
/// How soon a hanging connection sees the recovery.
const HANG_LOOK: Duration = Duration::from_millis(100);
/// How long the listener gets to follow a change of the fault.
const SETTLE: Duration = Duration::from_secs(5);
const REFUSE_DEFAULT: Duration = Duration::from_secs(30);
/// Buffers live on the heap; the deepest frame is the table of fields.
const STACK: usize = 128 * 1024;
/// Bursts of new connections are what a gateway's tests are made of.
const BACKLOG: i32 = 1024;

const TEXT: &str = "Content-Type: text/plain\r\n";
const BINARY: &str = "Content-Type: application/octet-stream\r\n";
const EVENTS: &str = "Content-Type: text/event-stream\r\nCache-Control: no-store\r\n";

static FILLER: [u8; PIECE] = [b'x'; PIECE];

/// How a demo upstream fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every request is answered with 500.
    Error,
    /// The listener is closed, so that connecting is refused; open connections end with their next answer.
    Refuse,
    /// Requests are read and never answered. When it ends, the connections that hang are closed.
    Hang,
    /// The connection is reset when a request's head is complete.
    Reset,
}

/// A running demo upstream. Dropping this leaves it running: it ends with the process.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens; the real port also when port 0 was asked for.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Upstream {
    /// Fails in this way from now on, for `lasting` or until [`Upstream::recover`]. With [`Fault::Refuse`] it returns
    /// when the port refuses.
    pub fn fail(&self, fault: Fault, lasting: Option<Duration>) {
        self.shared.set(Some(fault), lasting);
    }

    /// Ends every failure. It returns when the port accepts again.
    pub fn recover(&self) {
        self.shared.set(None, None);
    }
}

/// Starts a demo upstream on `address` (port 0 takes a free one). `name` is what it calls itself in the `X-Upstream`
/// field.
///
/// # Errors
///
/// What binding the address gives, and `InvalidInput` for a name that a field cannot carry.
pub fn start(address: SocketAddr, name: &str) -> io::Result<Upstream> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the name of an upstream is visible ASCII"));
    }
    let listener = listen(address)?;
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared {
        address,
        name: name.to_owned(),
        faulty: AtomicBool::new(false),
        state: Mutex::new(State { fault: None, until: None, listening: true }),
        changed: Condvar::new(),
    });
    let accepting = Arc::clone(&shared);
    thread::Builder::new()
        .name("demo-accept".to_owned())
        .stack_size(STACK)
        .spawn(move || accept(listener, &accepting))?;
    log::info!("demo upstream {name} listens on {address}");
    Ok(Upstream { address, shared })
}

/// std alone cannot set the backlog.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(mut listener: TcpListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        let refusing = shared.fault() == Some(Fault::Refuse);
        match accepted {
            Ok((stream, _)) if !refusing => spawn(stream, shared),
            Ok(_) => {}
            Err(error) => {
                // Most likely out of descriptors: the connections that are served must end first.
                log::warn!("demo upstream {}: accept: {error}", shared.name);
                thread::sleep(Duration::from_millis(50));
            }
        }
        if refusing {
            drop(listener);
            shared.refuse();
            listener = reopen(shared);
            shared.listening(true);
        }
    }
}

fn reopen(shared: &Shared) -> TcpListener {
    loop {
        match listen(shared.address) {
            Ok(listener) => return listener,
            Err(error) => {
                log::warn!("demo upstream {}: {} is not to be had: {error}", shared.name, shared.address);
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn spawn(stream: TcpStream, shared: &Arc<Shared>) {
    let serving = Arc::clone(shared);
    let spawned = thread::Builder::new().name("demo".to_owned()).stack_size(STACK).spawn(move || {
        if let Err(error) = Connection::new(stream, &serving).and_then(Connection::serve) {
            log::debug!("demo upstream {}: connection ended: {error}", serving.name);
        }
    });
    if let Err(error) = spawned {
        log::warn!("demo upstream {}: no thread for a connection: {error}", shared.name);
    }
}

/// What the threads of one upstream share.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    name: String,
    /// Spares healthy requests the lock.
    faulty: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    fault: Option<Fault>,
    until: Option<Instant>,
    listening: bool,
}

impl Shared {
    /// A panic elsewhere leaves the state whole: it is only ever assigned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self) -> Option<Fault> {
        if self.faulty.load(Ordering::Acquire) { self.settle(&mut self.lock()) } else { None }
    }

    fn settle(&self, state: &mut State) -> Option<Fault> {
        if state.until.is_some_and(|until| Instant::now() >= until) {
            self.assign(state, None, None);
            log::info!("demo upstream {} recovered by itself", self.name);
        }
        state.fault
    }

    fn assign(&self, state: &mut State, fault: Option<Fault>, until: Option<Instant>) {
        state.fault = fault;
        state.until = until;
        self.faulty.store(fault.is_some(), Ordering::Release);
        self.changed.notify_all();
    }

    fn set(&self, fault: Option<Fault>, lasting: Option<Duration>) {
        let mut state = self.lock();
        self.assign(&mut state, fault, lasting.map(|lasting| Instant::now() + lasting));
        let listening = state.listening;
        drop(state);
        log::info!("demo upstream {}: fault is now {fault:?}", self.name);
        let refuse = fault == Some(Fault::Refuse);
        if refuse && listening {
            self.wake();
        }
        // The caller's next connection must meet the new state. Bounded, because another program may hold the port.
        let waits = |state: &mut State| state.listening == refuse && state.fault == fault;
        drop(self.changed.wait_timeout_while(self.lock(), SETTLE, waits));
    }

    /// A listener blocked in accept is moved by a connection alone.
    fn wake(&self) {
        if let Err(error) = TcpStream::connect_timeout(&reachable(self.address), Duration::from_secs(1)) {
            log::debug!("demo upstream {}: the listener was not woken: {error}", self.name);
        }
    }

    fn listening(&self, listening: bool) {
        self.lock().listening = listening;
        self.changed.notify_all();
    }

    /// Called without a listener; returns when there has to be one again.
    fn refuse(&self) {
        self.listening(false);
        let mut state = self.lock();
        while self.settle(&mut state) == Some(Fault::Refuse) {
            let left = state.until.map_or(IDLE, |until| until.saturating_duration_since(Instant::now()));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where a listener on `address` can be connected to from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Show,
    Echo,
    Bytes(u64),
    Delay(Duration),
    Status(u16),
    Events {
        every: Duration,
        count: u64,
    },
    Fail(Fault, Option<Duration>),
    Recover,
    /// A known route with an argument that makes no sense, and what it takes.
    Wrong(&'static str),
}

fn route(target: &str) -> Route {
    // The absolute form names the host once more.
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |text: &str, most: u64| text.parse::<u64>().ok().filter(|number| *number <= most);
    if let Some(rest) = path.strip_prefix("/bytes/") {
        return number(rest, BYTES_MAX).map_or(Route::Wrong("/bytes/N takes up to 2^40 bytes\n"), Route::Bytes);
    }
    if let Some(rest) = path.strip_prefix("/delay/") {
        let wait = number(rest, WAIT_MAX_MS).map(Duration::from_millis);
        return wait.map_or(Route::Wrong("/delay/MS takes up to 3600000 milliseconds\n"), Route::Delay);
    }
    if let Some(rest) = path.strip_prefix("/status/") {
        let code = rest.parse::<u16>().ok().filter(|code| (100..=599).contains(code));
        return code.map_or(Route::Wrong("/status/CODE takes 100 to 599\n"), Route::Status);
    }
    match path {
        "/echo" => Route::Echo,
        "/events" => {
            let every = argument(query, "every").map_or(Some(1000), |every| number(every, WAIT_MAX_MS));
            let count = argument(query, "count").map_or(Some(u64::MAX), |count| number(count, u64::MAX));
            match (every, count) {
                (Some(every), Some(count)) => Route::Events { every: Duration::from_millis(every), count },
                _ => Route::Wrong("/events takes every=MS, up to 3600000, and count=N\n"),
            }
        }
        "/fail" => {
            let fault = match argument(query, "mode") {
                None | Some("error") => Some(Fault::Error),
                Some("refuse") => Some(Fault::Refuse),
                Some("hang") => Some(Fault::Hang),
                Some("reset") => Some(Fault::Reset),
                Some(_) => None,
            };
            let seconds = argument(query, "for").map(|seconds| number(seconds, FAULT_MAX_S));
            match (fault, seconds) {
                (Some(Fault::Refuse), None) => Route::Fail(Fault::Refuse, Some(REFUSE_DEFAULT)),
                (Some(fault), None) => Route::Fail(fault, None),
                (Some(fault), Some(Some(seconds))) => Route::Fail(fault, Some(Duration::from_secs(seconds))),
                _ => Route::Wrong("/fail takes mode=error, refuse, hang or reset, and for=SECONDS\n"),
            }
        }
        "/recover" => Route::Recover,
        _ => Route::Show,
    }
}

fn argument<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// What remains of a request's body. `Done` also stands for "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    /// Bytes of trailers seen so far.
    Trailers(usize),
    Done,
}

/// A request whose head was parsed. The ranges point into the connection's buffer and hold until it is filled again.
#[derive(Debug)]
struct Request {
    route: Route,
    method: Range<usize>,
    target: Range<usize>,
    fields: Range<usize>,
    head: bool,
    post: bool,
    minor: u8,
    close: bool,
    expects: bool,
    body: Body,
}

impl Request {
    /// Settles before the answer is rendered whether the connection outlives a body that nobody reads.
    fn ignore_body(&mut self) {
        let long = matches!(self.body, Body::Length(length) if length > DRAIN);
        // Who waits for 100 and gets a final answer may send the body or not, so its end cannot be known.
        self.close |= long || self.expects;
    }
}

enum Parsed {
    Partial,
    /// The request, and the length of its head.
    Whole(Request, usize),
    Bad(u16, &'static str),
}

/// `bytes` lies at `base` of the buffer and does not begin with a line end.
fn parse(bytes: &[u8], base: usize) -> Parsed {
    // httparse would skip it, and every range below would be off by it.
    if bytes.starts_with(b"\n") {
        return Parsed::Bad(400, "a request begins with a bare line feed\n");
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let size = match head.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(431, "too many fields\n"),
        Err(_) => return Parsed::Bad(400, "the head is malformed\n"),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Parsed::Partial;
    };
    let framing = match framing(head.headers, minor) {
        Ok(framing) => framing,
        Err((code, why)) => return Parsed::Bad(code, why),
    };
    let line = bytes.iter().position(|byte| *byte == b'\n').map_or(size, |at| at + 1);
    let blank = if bytes[..size].ends_with(b"\r\n") { 2 } else { 1 };
    let at = base + method.len() + 1;
    let request = Request {
        route: route(target),
        method: base..base + method.len(),
        target: at..at + target.len(),
        fields: base + line..base + line.max(size - blank),
        head: method == "HEAD",
        post: method == "POST",
        minor,
        close: framing.close,
        expects: framing.expects && framing.body != Body::Done,
        body: framing.body,
    };
    Parsed::Whole(request, size)
}

struct Framing {
    body: Body,
    close: bool,
    expects: bool,
}

/// RFC 9112 section 6.3, with every leniency it allows left out.
fn framing(fields: &[httparse::Header<'_>], minor: u8) -> Result<Framing, (u16, &'static str)> {
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let (mut close, mut keep) = (false, false);
    let mut expects = false;
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let number = std::str::from_utf8(field.value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let number = number.and_then(|text| text.parse::<u64>().ok());
            if number.is_none() || length.is_some() {
                return Err((400, "Content-Length is malformed or sent twice\n"));
            }
            length = number;
        } else if is("transfer-encoding") {
            if chunked || minor == 0 {
                return Err((400, "Transfer-Encoding is sent twice or in HTTP/1.0\n"));
            }
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err((501, "the only transfer coding here is chunked\n"));
            }
            chunked = true;
        } else if is("host") {
            hosts += 1;
        } else if is("connection") {
            for token in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                close |= token.eq_ignore_ascii_case(b"close");
                keep |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("expect") {
            expects = minor == 1 && field.value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    if hosts > 1 || (hosts == 0 && minor == 1) {
        return Err((400, "exactly one Host is needed\n"));
    }
    let body = match (length, chunked) {
        (Some(_), true) => return Err((400, "both Content-Length and Transfer-Encoding\n")),
        (None, true) => Body::ChunkSize,
        (None | Some(0), false) => Body::Done,
        (Some(length), false) => Body::Length(length),
    };
    Ok(Framing { body, close: close || (minor == 0 && !keep), expects })
}

/// How the end of an answer is told.
#[derive(Clone, Copy)]
enum Length {
    Exact(u64),
    Chunked,
    /// By the status, or by the end of the connection.
    Untold,
}

/// What follows an answer.
enum Next {
    /// The next request, or the orderly end when the request said `close`.
    Request,
    Reset,
    /// Nothing more can be said on this connection.
    Leave,
}

/// One client connection. Answers gather in `outbound` and leave when the connection would wait for anything, so that
/// a head and its body, and the answers to pipelined requests, share a write.
struct Connection<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    inbound: Vec<u8>,
    /// The bytes of `inbound` that are received and not used.
    ready: Range<usize>,
    outbound: Vec<u8>,
    /// Counts writes: whether any byte of an answer has left can be told by it.
    flushes: u64,
    /// A text that is rendered before its length can be told.
    text: Vec<u8>,
    /// The `Date` value and the second that it stands for.
    date: (u64, String),
}

impl<'a> Connection<'a> {
    fn new(stream: TcpStream, shared: &'a Shared) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(STUCK))?;
        Ok(Self {
            stream,
            shared,
            inbound: vec![0; FIRST_READ],
            ready: 0..0,
            outbound: Vec::with_capacity(FIRST_READ),
            flushes: 0,
            text: Vec::new(),
            date: (0, String::new()),
        })
    }

    fn serve(mut self) -> io::Result<()> {
        match self.requests() {
            // What is malformed was answered where that was possible; the answer must arrive.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                log::debug!("demo upstream {}: {error}", self.shared.name);
                self.linger()
            }
            other => other,
        }
    }

    fn requests(&mut self) -> io::Result<()> {
        while let Some(mut request) = self.read_head()? {
            match self.answer(&mut request)? {
                Next::Request if request.close || !self.drain(&mut request.body)? => return self.linger(),
                Next::Request => {}
                Next::Reset => return socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)),
                Next::Leave => return Ok(()),
            }
            if self.outbound.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The next request, or `None` at the end of the connection.
    fn read_head(&mut self) -> io::Result<Option<Request>> {
        loop {
            // A line end before a request is to be ignored (RFC 9112 section 2.2).
            while self.inbound[self.ready.clone()].starts_with(b"\r\n") {
                self.ready.start += 2;
            }
            if !self.ready.is_empty() {
                match parse(&self.inbound[self.ready.clone()], self.ready.start) {
                    Parsed::Whole(request, size) => {
                        self.ready.start += size;
                        return Ok(Some(request));
                    }
                    Parsed::Bad(code, why) => return self.refuse(code, why).map(|()| None),
                    Parsed::Partial if self.ready.len() >= PIECE => {
                        return self.refuse(431, "the head is above 64 KiB\n").map(|()| None);
                    }
                    Parsed::Partial => {}
                }
            }
            match self.fill() {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, request: &mut Request) -> io::Result<Next> {
        if !matches!(request.route, Route::Fail(..) | Route::Recover) {
            match self.shared.fault() {
                None => {}
                Some(Fault::Refuse) => request.close = true,
                Some(Fault::Error) => {
                    request.ignore_body();
                    return self.say(request, 500, TEXT, "failing as told\n");
                }
                Some(Fault::Hang) => return self.hang().map(|()| Next::Leave),
                Some(Fault::Reset) => return self.flush().map(|()| Next::Reset),
            }
        }
        if request.route == Route::Echo && !request.head {
            return self.echo(request);
        }
        request.ignore_body();
        match request.route {
            Route::Echo => {
                let length = echo_length(request.body);
                self.head(request, 200, BINARY, length)?;
                Ok(Next::Request)
            }
            Route::Show => self.show(request),
            Route::Bytes(count) => self.bytes(request, count),
            Route::Delay(wait) => {
                self.flush()?;
                thread::sleep(wait);
                self.show(request)
            }
            Route::Status(code) => self.status(request, code),
            Route::Events { every, count } => self.events(request, every, count),
            Route::Fail(..) | Route::Recover if !request.post => {
                self.say(request, 405, "Allow: POST\r\nContent-Type: text/plain\r\n", "this route takes POST\n")
            }
            Route::Fail(fault, lasting) => {
                self.flush()?;
                self.shared.set(Some(fault), lasting);
                request.close |= fault == Fault::Refuse;
                self.say(request, 200, TEXT, "failing from now on\n")
            }
            Route::Recover => {
                self.flush()?;
                self.shared.set(None, None);
                self.say(request, 200, TEXT, "recovered\n")
            }
            Route::Wrong(why) => self.say(request, 400, TEXT, why),
        }
    }

    fn head(&mut self, request: &Request, code: u16, fields: &str, length: Length) -> io::Result<()> {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (dated, date) = &mut self.date;
        if *dated != second || date.is_empty() {
            *dated = second;
            *date = httpdate::fmt_http_date(now);
        }
        let out = &mut self.outbound;
        write!(out, "HTTP/1.1 {code} {}\r\nX-Upstream: {}\r\nDate: {date}\r\n", reason(code), self.shared.name)?;
        out.extend_from_slice(fields.as_bytes());
        match length {
            Length::Exact(length) => write!(out, "Content-Length: {length}\r\n")?,
            Length::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Length::Untold => {}
        }
        if request.close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if request.minor == 0 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn say(&mut self, request: &Request, code: u16, fields: &str, text: &str) -> io::Result<Next> {
        self.text.clear();
        self.text.extend_from_slice(text.as_bytes());
        self.send_text(request, code, fields)
    }

    fn send_text(&mut self, request: &Request, code: u16, fields: &str) -> io::Result<Next> {
        let length = Length::Exact(self.text.len() as u64);
        self.head(request, code, fields, length)?;
        if !request.head {
            self.outbound.extend_from_slice(&self.text);
        }
        Ok(Next::Request)
    }

    /// Answers what cannot be understood as a request, and ends.
    fn refuse(&mut self, code: u16, why: &str) -> io::Result<()> {
        let request = Request {
            route: Route::Show,
            method: 0..0,
            target: 0..0,
            fields: 0..0,
            head: false,
            post: false,
            minor: 1,
            close: true,
            expects: false,
            body: Body::Done,
        };
        self.say(&request, code, TEXT, why)?;
        self.linger()
    }

    fn show(&mut self, request: &Request) -> io::Result<Next> {
        self.text.clear();
        write!(self.text, "upstream: {}\nmethod: ", self.shared.name)?;
        self.text.extend_from_slice(&self.inbound[request.method.clone()]);
        self.text.extend_from_slice(b"\npath: ");
        self.text.extend_from_slice(&self.inbound[request.target.clone()]);
        self.text.extend_from_slice(b"\n\n");
        self.text.extend_from_slice(&self.inbound[request.fields.clone()]);
        self.send_text(request, 200, TEXT)
    }

    fn bytes(&mut self, request: &Request, count: u64) -> io::Result<Next> {
        self.head(request, 200, BINARY, Length::Exact(count))?;
        if request.head {
            return Ok(Next::Request);
        }
        let first = count.min(PIECE as u64);
        self.outbound.extend_from_slice(&FILLER[..first as usize]);
        let mut left = count - first;
        if left > 0 {
            self.flush()?;
        }
        while left > 0 {
            let size = left.min(PIECE as u64);
            self.stream.write_all(&FILLER[..size as usize])?;
            left -= size;
        }
        Ok(Next::Request)
    }

    fn status(&mut self, request: &mut Request, code: u16) -> io::Result<Next> {
        match code {
            // HTTP/1.0 knows no interim responses.
            100..=199 if request.minor == 0 => self.say(request, 200, TEXT, "no interim response in HTTP/1.0\n"),
            // Nothing was switched to, so nothing can follow.
            101 => {
                request.close = true;
                self.outbound.extend_from_slice(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: nothing\r\n\r\n",
                );
                Ok(Next::Request)
            }
            100..=199 => {
                write!(self.outbound, "HTTP/1.1 {code} {}\r\n\r\n", reason(code))?;
                self.say(request, 200, TEXT, "after an interim response\n")
            }
            204 | 304 => self.head(request, code, "", Length::Untold).map(|()| Next::Request),
            205 => self.head(request, code, "", Length::Exact(0)).map(|()| Next::Request),
            _ => {
                self.text.clear();
                writeln!(self.text, "{code} {}", reason(code))?;
                self.send_text(request, code, TEXT)
            }
        }
    }

    fn events(&mut self, request: &mut Request, every: Duration, count: u64) -> io::Result<Next> {
        let chunked = request.minor == 1;
        request.close |= !chunked;
        let length = if chunked { Length::Chunked } else { Length::Untold };
        self.head(request, 200, EVENTS, length)?;
        if request.head {
            return Ok(Next::Request);
        }
        for number in 0..count {
            self.text.clear();
            write!(self.text, "data: {number} {}\n\n", self.shared.name)?;
            push(&mut self.outbound, &self.text, chunked)?;
            self.flush()?;
            if number + 1 < count {
                thread::sleep(every);
            }
        }
        if chunked {
            self.outbound.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(Next::Request)
    }

    fn echo(&mut self, request: &mut Request) -> io::Result<Next> {
        if request.expects && self.ready.is_empty() {
            // A final head at once would tell a waiting client that its body is not wanted.
            self.outbound.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.more()?;
        }
        if let Body::Length(length) = request.body
            && length <= PIECE as u64
        {
            // A small body is worth waiting for: one write, and no answer overtakes its request.
            while (self.ready.len() as u64) < length {
                self.grow();
                self.more()?;
            }
        }
        let (begun, flushes) = (self.outbound.len(), self.flushes);
        match self.echo_body(request) {
            Err(error) if error.kind() == ErrorKind::InvalidData && self.flushes == flushes => {
                self.outbound.truncate(begun);
                self.refuse(400, "a chunk is malformed\n").map(|()| Next::Leave)
            }
            other => other.map(|()| Next::Request),
        }
    }

    fn echo_body(&mut self, request: &mut Request) -> io::Result<()> {
        let length = echo_length(request.body);
        self.head(request, 200, BINARY, length)?;
        let chunked = matches!(length, Length::Chunked);
        while let Some(piece) = self.piece(&mut request.body)? {
            push(&mut self.outbound, &self.inbound[piece], chunked)?;
            if self.outbound.len() >= PIECE {
                self.flush()?;
            }
        }
        if chunked {
            self.outbound.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(())
    }

    /// The next bytes of a body as a range of `inbound`, or `None` at its end. The range holds until the next call.
    fn piece(&mut self, body: &mut Body) -> io::Result<Option<Range<usize>>> {
        loop {
            match *body {
                Body::Done => return Ok(None),
                Body::Length(left) | Body::Chunk(left) => {
                    if self.ready.is_empty() {
                        self.grow();
                        self.more()?;
                    }
                    let size = left.min(self.ready.len() as u64);
                    let piece = self.ready.start..self.ready.start + size as usize;
                    self.ready.start = piece.end;
                    *body = match *body {
                        Body::Length(_) if left == size => Body::Done,
                        Body::Length(_) => Body::Length(left - size),
                        _ if left == size => Body::ChunkEnd,
                        _ => Body::Chunk(left - size),
                    };
                    return Ok(Some(piece));
                }
                Body::ChunkSize => {
                    let bytes = &self.inbound[self.ready.clone()];
                    // httparse takes a line without digits for a size of zero.
                    if bytes.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
                        return Err(malformed("a chunk without a size"));
                    }
                    match httparse::parse_chunk_size(bytes) {
                        Ok(httparse::Status::Complete((line, size))) => {
                            self.ready.start += line;
                            *body = if size == 0 { Body::Trailers(0) } else { Body::Chunk(size) };
                        }
                        Ok(httparse::Status::Partial) => self.more()?,
                        Err(_) => return Err(malformed("the size of a chunk is malformed")),
                    }
                }
                Body::ChunkEnd => match self.inbound[self.ready.clone()] {
                    [b'\r', b'\n', ..] => {
                        self.ready.start += 2;
                        *body = Body::ChunkSize;
                    }
                    [] | [b'\r'] => self.more()?,
                    _ => return Err(malformed("a chunk is longer than its size")),
                },
                Body::Trailers(seen) => {
                    let bytes = &self.inbound[self.ready.clone()];
                    match bytes.iter().position(|byte| *byte == b'\n') {
                        Some(at) if seen + at > PIECE => return Err(malformed("the trailers are above 64 KiB")),
                        Some(at) => {
                            let blank = matches!(&bytes[..at], b"" | b"\r");
                            self.ready.start += at + 1;
                            *body = if blank { Body::Done } else { Body::Trailers(seen + at + 1) };
                        }
                        None => self.more()?,
                    }
                }
            }
        }
    }

    /// Reads what is left of a body. False when that is too much and the connection has to end instead.
    fn drain(&mut self, body: &mut Body) -> io::Result<bool> {
        let mut dropped = 0;
        while let Some(piece) = self.piece(body)? {
            dropped += piece.len() as u64;
            if dropped > DRAIN {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn more(&mut self) -> io::Result<()> {
        if self.fill()? == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn grow(&mut self) {
        if self.inbound.len() < PIECE {
            self.inbound.resize(PIECE, 0);
        }
    }

    /// Reads once, behind what is ready. It is the only place that waits for the peer's bytes, and so the place where
    /// answers leave: holding one back here could wait for ever.
    fn fill(&mut self) -> io::Result<usize> {
        self.flush()?;
        if self.ready.start > 0 {
            self.inbound.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
        }
        if self.ready.end == self.inbound.len() {
            if self.inbound.len() >= PIECE {
                return Err(malformed("a line is above 64 KiB"));
            }
            self.grow();
        }
        loop {
            match self.stream.read(&mut self.inbound[self.ready.end..]) {
                // With a timeout on the socket, a signal ends a read whatever its handler says (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(size) => {
                    self.ready.end += size;
                    return Ok(size);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.outbound.is_empty() {
            self.flushes += 1;
            self.stream.write_all(&self.outbound)?;
            self.outbound.clear();
        }
        Ok(())
    }

    /// Reads and never answers, so that it notices when the client gives up.
    fn hang(&mut self) -> io::Result<()> {
        self.flush()?;
        self.stream.set_read_timeout(Some(HANG_LOOK))?;
        while self.shared.fault() == Some(Fault::Hang) {
            match self.stream.read(&mut self.inbound) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Closing a socket with unread bytes resets it, and the peer may lose the answer by that (RFC 9112 section 9.6).
    fn linger(&mut self) -> io::Result<()> {
        self.flush()?;
        self.stream.shutdown(Shutdown::Write)?;
        let end = Instant::now() + LINGER;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.inbound) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }
}

fn push(out: &mut Vec<u8>, bytes: &[u8], chunked: bool) -> io::Result<()> {
    if chunked {
        write!(out, "{:x}\r\n", bytes.len())?;
    }
    out.extend_from_slice(bytes);
    if chunked {
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

fn echo_length(body: Body) -> Length {
    match body {
        Body::Done => Length::Exact(0),
        Body::Length(length) => Length::Exact(length),
        _ => Length::Chunked,
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

fn reason(code: u16) -> &'static str {
    match code {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        418 => "I'm a teapot",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        // The reason phrase may be empty, and the status says it all.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any step of a test takes, so that a fault shows as a failure and not as a test that never ends.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn upstream() -> Upstream {
        start((Ipv4Addr::LOCALHOST, 0).into(), "demo").unwrap()
    }

    struct Client {
        stream: TcpStream,
        bytes: Vec<u8>,
    }

    #[derive(Debug)]
    struct Answer {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Answer {
        fn field(&self, name: &str) -> Option<&str> {
            let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
            fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
        }

        fn text(&self) -> &str {
            std::str::from_utf8(&self.body).unwrap()
        }
    }

    impl Client {
        fn new(upstream: &Upstream) -> Self {
            let stream = TcpStream::connect(upstream.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            Self { stream, bytes: Vec::new() }
        }

        fn send(&mut self, bytes: impl AsRef<[u8]>) {
            self.stream.write_all(bytes.as_ref()).unwrap();
        }

        fn read(&mut self) -> io::Result<usize> {
            let mut piece = [0; 32 * 1024];
            let size = self.stream.read(&mut piece)?;
            self.bytes.extend_from_slice(&piece[..size]);
            Ok(size)
        }

        fn take(&mut self, size: usize) -> Vec<u8> {
            while self.bytes.len() < size {
                assert_ne!(self.read().unwrap(), 0, "ended after {:?}", String::from_utf8_lossy(&self.bytes));
            }
            self.bytes.drain(..size).collect()
        }

        fn through(&mut self, end: &[u8]) -> Vec<u8> {
            loop {
                if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                    return self.take(at + end.len());
                }
                assert_ne!(self.read().unwrap(), 0, "ended after {:?}", String::from_utf8_lossy(&self.bytes));
            }
        }

        fn head(&mut self) -> Answer {
            let head = String::from_utf8(self.through(b"\r\n\r\n")).unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            Answer { status, head, body: Vec::new() }
        }

        fn chunk(&mut self) -> Vec<u8> {
            let line = String::from_utf8(self.through(b"\r\n")).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let chunk = self.take(size);
            assert_eq!(self.take(2), b"\r\n");
            chunk
        }

        fn answer(&mut self) -> Answer {
            let mut answer = self.head();
            if let Some(length) = answer.field("Content-Length") {
                answer.body = self.take(length.parse().unwrap());
            } else if answer.field("Transfer-Encoding") == Some("chunked") {
                loop {
                    let chunk = self.chunk();
                    if chunk.is_empty() {
                        break;
                    }
                    answer.body.extend(chunk);
                }
            }
            answer
        }

        fn ask(&mut self, request_line: &str) -> Answer {
            self.send(format!("{request_line} HTTP/1.1\r\nHost: demo\r\n\r\n"));
            self.answer()
        }

        fn rest(&mut self) -> Vec<u8> {
            while self.read().unwrap() > 0 {}
            std::mem::take(&mut self.bytes)
        }

        #[track_caller]
        fn ended(&mut self) {
            assert_eq!(String::from_utf8_lossy(&self.rest()), "");
        }
    }

    #[test]
    fn shows_the_request_as_it_came() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("GET /some%20where?a=b HTTP/1.1\r\nHost: demo\r\nX-Odd-Case:  Value \r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.field("X-Upstream"), Some("demo"));
        assert!(httpdate::parse_http_date(answer.field("Date").unwrap()).is_ok());
        assert_eq!(
            answer.text(),
            "upstream: demo\nmethod: GET\npath: /some%20where?a=b\n\nHost: demo\r\nX-Odd-Case:  Value \r\n"
        );
        assert_eq!(client.ask("DELETE /").text(), "upstream: demo\nmethod: DELETE\npath: /\n\nHost: demo\r\n");
    }

    #[test]
    fn takes_the_absolute_form_and_a_line_end_before_the_request() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("\r\n\r\n");
        assert_eq!(client.ask("GET http://demo/bytes/3").body, b"xxx");
        assert_eq!(client.ask("OPTIONS *").status, 200);
    }

    #[test]
    fn answers_pipelined_requests_in_order() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        let mut requests = String::new();
        for number in 0..100 {
            requests += &format!("GET /bytes/{number} HTTP/1.1\r\nHost: demo\r\n\r\n");
        }
        client.send(requests + "POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 3\r\n\r\nendGET / HTTP/1.1\r\n");
        for number in 0..100 {
            assert_eq!(client.answer().body.len(), number);
        }
        assert_eq!(client.answer().body, b"end");
        client.send("Host: demo\r\n\r\n");
        assert_eq!(client.answer().status, 200);
    }

    #[test]
    fn serves_a_request_that_comes_byte_by_byte() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.stream.set_nodelay(true).unwrap();
        let request = "\r\nPOST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3;x=y\r\nabc\r\n02\r\nde\r\n0\r\nTrailer: gone\r\n\r\n";
        for byte in request.bytes() {
            client.send([byte]);
        }
        assert_eq!(client.answer().body, b"abcde");
        assert_eq!(client.ask("GET /").status, 200);
    }

    #[test]
    fn sends_bytes() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5_000_000] {
            let body = client.ask(&format!("GET /bytes/{size}")).body;
            assert!(body.len() == size && body.iter().all(|byte| *byte == b'x'));
        }
        let answer = client.ask("GET /bytes/1099511627777");
        assert_eq!((answer.status, answer.text()), (400, "/bytes/N takes up to 2^40 bytes\n"));
        client.send("HEAD /bytes/1099511627776 HTTP/1.1\r\nHost: demo\r\n\r\n");
        assert_eq!(client.head().field("Content-Length"), Some("1099511627776"));
        assert_eq!(client.ask("GET /bytes/x").status, 400);
    }

    #[test]
    fn delays() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        let asked = Instant::now();
        assert_eq!(client.ask("GET /delay/80").status, 200);
        assert!(asked.elapsed() >= Duration::from_millis(80));
        assert_eq!(client.ask("GET /delay/3600001").status, 400);
    }

    #[test]
    fn gives_any_status() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        for code in [200, 302, 404, 429, 503, 599] {
            let answer = client.ask(&format!("GET /status/{code}"));
            assert_eq!(answer.status, code);
            assert!(answer.text().starts_with(&code.to_string()));
        }
        for code in [204, 304] {
            let answer = client.ask(&format!("GET /status/{code}"));
            assert_eq!((answer.status, answer.field("Content-Length")), (code, None));
        }
        assert_eq!(client.ask("GET /status/205").field("Content-Length"), Some("0"));
        for code in ["99", "600", "abc", ""] {
            assert_eq!(client.ask(&format!("GET /status/{code}")).status, 400, "{code}");
        }
        assert_eq!(client.ask("GET /status/103").status, 103);
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.ask("GET /status/101").status, 101);
        client.ended();
    }

    #[test]
    fn answers_head_without_a_body() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        let routes = [
            ("/", 200),
            ("/echo", 200),
            ("/bytes/9", 200),
            ("/delay/0", 200),
            ("/status/404", 404),
            ("/status/204", 204),
            ("/events", 200),
            ("/fail", 405),
            ("/recover", 405),
            ("/bytes/x", 400),
        ];
        for (path, status) in routes {
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: demo\r\n\r\n"));
            assert_eq!(client.head().status, status, "{path}");
        }
        client.send("HEAD /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!(client.head().field("Content-Length"), Some("2"));
        assert_eq!(client.ask("GET /bytes/1").body, b"x");
    }

    #[test]
    fn streams_events() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("GET /events?every=1&count=3 HTTP/1.1\r\nHost: demo\r\n\r\n");
        assert_eq!(client.head().field("Content-Type"), Some("text/event-stream"));
        for number in 0..3 {
            assert_eq!(String::from_utf8(client.chunk()).unwrap(), format!("data: {number} demo\n\n"));
        }
        assert_eq!(client.chunk(), b"");
        assert_eq!(client.ask("GET /events?count=0").body, b"");
        assert_eq!(client.ask("GET /events?every=no").status, 400);
        // The first one of an endless stream comes at once.
        client.send("GET /events?every=3600000 HTTP/1.1\r\nHost: demo\r\n\r\n");
        client.head();
        assert_eq!(client.chunk(), b"data: 0 demo\n\n");
    }

    #[test]
    fn serves_http_1_0() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("GET /bytes/2 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.field("Connection"), answer.body.as_slice()), (Some("keep-alive"), b"xx".as_slice()));
        client.send("GET /events?every=0&count=2 HTTP/1.0\r\n\r\n");
        let answer = client.head();
        assert_eq!((answer.field("Connection"), answer.field("Transfer-Encoding")), (Some("close"), None));
        assert_eq!(client.rest(), b"data: 0 demo\n\ndata: 1 demo\n\n");
        let mut client = Client::new(&upstream);
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.answer().field("Connection"), Some("close"));
        client.ended();
    }

    #[test]
    fn closes_when_asked_to() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("GET /bytes/1 HTTP/1.1\r\nHost: demo\r\nConnection: x, Close\r\n\r\nGET / HTTP/1.1\r\n");
        assert_eq!(client.answer().field("Connection"), Some("close"));
        client.ended();
    }

    #[test]
    fn refuses_what_is_malformed() {
        let upstream = upstream();
        let cases = [
            ("BAD\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n", 400),
            ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        ];
        for (request, status) in cases {
            let mut client = Client::new(&upstream);
            client.send(request);
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")), "{request:?}");
            client.ended();
        }
    }

    #[test]
    fn takes_heads_up_to_64_kib() {
        let upstream = upstream();
        let request = |size: usize| {
            let begin = "GET / HTTP/1.1\r\nHost: demo\r\nX-Long: ";
            format!("{begin}{}\r\n\r\n", "l".repeat(size - begin.len() - 4))
        };
        let mut client = Client::new(&upstream);
        client.send(request(PIECE));
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert!(answer.body.len() > PIECE - 100);
        client.send(request(PIECE + 1000));
        assert_eq!(client.answer().status, 431);
        client.ended();
        let mut client = Client::new(&upstream);
        client.send(format!("GET / HTTP/1.1\r\nHost: demo\r\n{}\r\n", "A: b\r\n".repeat(FIELDS)));
        assert_eq!(client.answer().status, 431);
    }

    #[test]
    fn echoes_as_framed() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 4\r\n\r\nabcd");
        let answer = client.answer();
        assert_eq!((answer.field("Content-Length"), answer.text()), (Some("4"), "abcd"));
        assert_eq!(client.ask("GET /echo").field("Content-Length"), Some("0"));
        client.send("PUT /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.field("Transfer-Encoding"), answer.text()), (Some("chunked"), ""));
    }

    #[test]
    fn echoes_while_the_body_still_comes() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(client.head().status, 200);
        for piece in ["one", "two", "three"] {
            client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
            assert_eq!(client.chunk(), piece.as_bytes());
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.chunk(), b"");
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 100000\r\n\r\n");
        assert_eq!(client.head().field("Content-Length"), Some("100000"));
        client.send("begin");
        assert_eq!(client.take(5), b"begin");
        client.send(vec![b'e'; 99_995]);
        assert_eq!(client.take(99_995).len(), 99_995);
        assert_eq!(client.ask("GET /").status, 200);
    }

    #[test]
    fn a_chunk_that_breaks_later_ends_the_echo_short() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        client.head();
        assert_eq!(client.chunk(), b"abc");
        client.send("zz\r\n");
        client.ended();
    }

    #[test]
    fn says_continue_when_expected() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        for size in [3, 100_000] {
            client.send(format!(
                "POST /echo HTTP/1.1\r\nHost: demo\r\nExpect: 100-Continue\r\nContent-Length: {size}\r\n\r\n"
            ));
            assert_eq!(client.head().status, 100);
            assert!(client.bytes.is_empty());
            client.send(vec![b'e'; size]);
            assert_eq!(client.answer().body.len(), size);
        }
        // Without a body there is nothing to wait for, and where nobody reads it the connection ends.
        client.send("GET /echo HTTP/1.1\r\nHost: demo\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        client.send("POST / HTTP/1.1\r\nHost: demo\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("Connection")), (200, Some("close")));
        client.ended();
    }

    /// Where both ends stand after `size` bytes of a pattern, by a sum that order and content enter.
    fn sum(sum: u64, bytes: &[u8]) -> u64 {
        bytes.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
    }

    fn echo_big(chunked: bool) {
        const SIZE: usize = 50_000_000;
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        let mut stream = client.stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let framing =
                if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {SIZE}") };
            write!(stream, "POST /echo HTTP/1.1\r\nHost: demo\r\n{framing}\r\n\r\n").unwrap();
            let (mut sent, mut total) = (0, 0);
            while sent < SIZE {
                // Sizes that meet the buffers of the other side in every way.
                let size = (SIZE - sent).min(1 + sent % 99_991);
                let piece: Vec<u8> = (sent..sent + size).map(|at| (at / 7) as u8).collect();
                if chunked {
                    write!(stream, "{size:x}\r\n").unwrap();
                }
                stream.write_all(&piece).unwrap();
                if chunked {
                    stream.write_all(b"\r\n").unwrap();
                }
                total = sum(total, &piece);
                sent += size;
            }
            if chunked {
                stream.write_all(b"0\r\n\r\n").unwrap();
            }
            total
        });
        assert_eq!(client.head().status, 200);
        let (mut received, mut total) = (0, 0);
        while received < SIZE {
            let piece = if chunked {
                client.chunk()
            } else {
                let size = client.bytes.len().clamp(1, SIZE - received);
                client.take(size)
            };
            assert!(!piece.is_empty());
            received += piece.len();
            total = sum(total, &piece);
        }
        if chunked {
            assert_eq!(client.chunk(), b"");
        }
        assert_eq!(total, writer.join().unwrap());
        assert_eq!(client.ask("GET /bytes/1").body, b"x");
    }

    #[test]
    fn echoes_50_mb_with_a_length() {
        echo_big(false);
    }

    #[test]
    fn echoes_50_mb_in_chunks() {
        echo_big(true);
    }

    #[test]
    fn drains_bodies_that_nobody_reads() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        for size in [1, 5000, DRAIN as usize] {
            client.send(format!("POST /bytes/1 HTTP/1.1\r\nHost: demo\r\nContent-Length: {size}\r\n\r\n"));
            client.send(vec![b'b'; size]);
            assert_eq!(client.answer().body, b"x");
        }
        client.send("POST / HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: b\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        client.send(format!("POST / HTTP/1.1\r\nHost: demo\r\nContent-Length: {}\r\n\r\n", DRAIN + 1));
        client.send(vec![b'b'; DRAIN as usize + 1]);
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("Connection")), (200, Some("close")));
        client.ended();
    }

    #[test]
    fn ends_a_connection_whose_unread_body_is_endless() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        client.send("POST / HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n".as_slice(), &FILLER, b"\r\n"].concat();
        for _ in 0..=DRAIN / PIECE as u64 {
            client.send(&chunk);
        }
        assert_eq!(client.answer().status, 200);
        client.ended();
    }

    #[test]
    fn fails_with_500_until_it_recovers() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        for path in ["/fail", "/recover"] {
            let answer = client.ask(&format!("GET {path}"));
            assert_eq!((answer.status, answer.field("Allow")), (405, Some("POST")));
        }
        assert_eq!(client.ask("POST /fail?mode=odd").status, 400);
        assert_eq!(client.ask("POST /fail?for=x").status, 400);
        assert_eq!(client.ask("GET /").status, 200);
        assert_eq!(client.ask("POST /fail").status, 200);
        assert_eq!(client.ask("GET /").status, 500);
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(client.answer().status, 500);
        assert_eq!(client.ask("GET /fail").status, 405);
        assert_eq!(Client::new(&upstream).ask("GET /bytes/1").status, 500);
        assert_eq!(client.ask("POST /recover").status, 200);
        assert_eq!(client.ask("GET /").status, 200);
    }

    #[test]
    fn a_failure_with_a_time_ends_by_itself() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        upstream.fail(Fault::Error, Some(Duration::ZERO));
        assert_eq!(client.ask("GET /").status, 200);
        upstream.fail(Fault::Refuse, Some(Duration::ZERO));
        assert_eq!(client.ask("GET /").status, 200);
        assert_eq!(client.ask("POST /fail?mode=refuse&for=1").status, 200);
        let asked = Instant::now();
        while let Err(error) = TcpStream::connect(upstream.address) {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            assert!(asked.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Client::new(&upstream).ask("GET /").status, 200);
    }

    #[track_caller]
    fn refused(upstream: &Upstream) {
        assert_eq!(TcpStream::connect(upstream.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn refuses_connections_and_ends_kept_ones() {
        let upstream = upstream();
        let mut kept = Client::new(&upstream);
        assert_eq!(kept.ask("GET /").status, 200);
        let mut client = Client::new(&upstream);
        let answer = client.ask("POST /fail?mode=refuse");
        assert_eq!((answer.status, answer.field("Connection")), (200, Some("close")));
        client.ended();
        refused(&upstream);
        let answer = kept.ask("GET /");
        assert_eq!((answer.status, answer.field("Connection")), (200, Some("close")));
        kept.ended();
        refused(&upstream);
        upstream.recover();
        let mut kept = Client::new(&upstream);
        assert_eq!(kept.ask("GET /").status, 200);
        upstream.fail(Fault::Refuse, None);
        refused(&upstream);
        // A connection that was kept is the only way in.
        assert_eq!(kept.ask("POST /recover").status, 200);
        assert_eq!(Client::new(&upstream).ask("GET /").status, 200);
    }

    #[test]
    fn another_failure_takes_the_place_of_refusing() {
        let upstream = upstream();
        upstream.fail(Fault::Refuse, None);
        refused(&upstream);
        upstream.fail(Fault::Error, None);
        assert_eq!(Client::new(&upstream).ask("GET /").status, 500);
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listening, connecting) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("127.0.0.2:3", "127.0.0.2:3")]
        {
            assert_eq!(reachable(listening.parse().unwrap()), connecting.parse().unwrap());
        }
    }

    #[test]
    fn hangs() {
        let upstream = upstream();
        let mut hung = Client::new(&upstream);
        let mut client = Client::new(&upstream);
        assert_eq!(client.ask("POST /fail?mode=hang").status, 200);
        hung.send("GET / HTTP/1.1\r\nHost: demo\r\n\r\n");
        hung.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert_eq!(hung.read().unwrap_err().kind(), ErrorKind::WouldBlock);
        hung.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.ask("POST /recover").status, 200);
        hung.ended();
        assert_eq!(client.ask("GET /").status, 200);
    }

    #[test]
    fn resets() {
        let upstream = upstream();
        let mut client = Client::new(&upstream);
        assert_eq!(client.ask("POST /fail?mode=reset").status, 200);
        let mut reset = Client::new(&upstream);
        reset.send("GET / HTTP/1.1\r\nHost: demo\r\n\r\n");
        assert_eq!(reset.read().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(client.ask("POST /recover").status, 200);
        assert_eq!(client.ask("GET /").status, 200);
    }

    #[test]
    fn start_says_what_is_wrong() {
        let upstream = upstream();
        assert_eq!(start(upstream.address, "b").unwrap_err().kind(), ErrorKind::AddrInUse);
        for name in ["", "a b", "a\r\nb", "\u{e4}"] {
            let error = start((Ipv4Addr::LOCALHOST, 0).into(), name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
        }
    }
}

//! In steady state a shard's thread asks the allocator for nothing.
//!
//! One shard runs in the process as it does in the gateway, between scripted upstreams and plain clients. A
//! global allocator counts for the shard's thread alone. First everything is made warm: connections, pools,
//! alarms; then the count must stand still over thousands of requests. The clock of the shard is moved on
//! between requests, so that alarms ring and dates change in both parts.

// A failed unwrap is how a test fails.
#![allow(clippy::unwrap_used)]
// SAFETY: `GlobalAlloc` is an unsafe trait. The one implementation hands every call on to `System` as it
// came, so it keeps the contract that `System` keeps; what it does besides touches no memory of the caller's.
#![allow(unsafe_code)]

use fusegate::control::build;
use fusegate::ground::queue::{Receiver, Sender, queue};
use fusegate::ground::tick::Tick;
use fusegate::shard::Shard;
use fusegate::shard::mailbox::{COMMANDS, Command, Mailbox, NOTICES, Notice};
use fusegate::shard::net::{Door, Event, Listener, MioNet, Subject};
use fusegate::shared::process::Process;
use mio::{Events, Interest, Poll, Token, Waker};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;
const WARM_UP: usize = 1_000;
const COUNTED: usize = 10_000;
/// How often the clock is moved on in each part.
const LEAPS: usize = 20;
/// Long enough for alarms to ring, shorter than an idle upstream connection is kept.
const LEAP: Duration = Duration::from_secs(3);
/// Every alarm rings and idle upstream connections end, but no client's patience does.
const LONG_LEAP: Duration = Duration::from_secs(60);
/// How long a peer may be silent before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one thread asked of the allocator.
#[derive(Default)]
struct Tally {
    counts: AtomicBool,
    allocations: AtomicUsize,
    reallocations: AtomicUsize,
    first: Mutex<Option<Backtrace>>,
}

thread_local! {
    /// Where this thread counts; most do not. Without a destructor, so that the allocator can always look.
    static TALLY: Cell<Option<&'static Tally>> = const { Cell::new(None) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn note(which: fn(&Tally) -> &AtomicUsize) {
        // While this looks for the caller it allocates, which must neither count nor come back here.
        let Some(tally) = TALLY.take() else { return };
        if tally.counts.load(Ordering::Relaxed) {
            which(tally).fetch_add(1, Ordering::Relaxed);
            // A panic is walking the stack already, under a lock.
            if !std::thread::panicking() {
                let mut first = tally.first.lock().unwrap();
                if first.is_none() {
                    *first = Some(Backtrace::force_capture());
                }
            }
        }
        TALLY.set(Some(tally));
    }
}

// SAFETY: see the head of this file.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::note(|tally| &tally.allocations);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counting::note(|tally| &tally.allocations);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Counting::note(|tally| &tally.reallocations);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[test]
fn the_count_sees_what_a_thread_allocates() {
    let tally: &'static Tally = Box::leak(Box::default());
    TALLY.set(Some(tally));
    tally.counts.store(true, Ordering::Relaxed);
    let mut bytes = std::hint::black_box(Vec::<u8>::with_capacity(10));
    bytes.reserve_exact(1000);
    TALLY.set(None);
    let counts = (tally.allocations.load(Ordering::Relaxed), tally.reallocations.load(Ordering::Relaxed));
    assert!(counts.0 >= 1 && counts.0 + counts.1 >= 2, "{counts:?}");
    assert!(tally.first.lock().unwrap().is_some());
}

#[test]
fn a_get_allocates_nothing() {
    let gateway = Gateway::start();
    gateway.hold("plain GETs", WARM_UP, COUNTED, |client| client.exchange(&get("/plain"), 1, b"hello, world"));
}

#[test]
fn pipelined_gets_allocate_nothing() {
    let gateway = Gateway::start();
    let batch = get("/plain").repeat(PIPELINED);
    gateway.hold("pipelined GETs", WARM_UP / PIPELINED, COUNTED / PIPELINED, |client| {
        client.exchange(&batch, PIPELINED, b"hello, world");
    });
}

#[test]
fn a_chunked_response_allocates_nothing() {
    let gateway = Gateway::start();
    let body = chunked_body();
    gateway.hold("chunked responses", WARM_UP, COUNTED, |client| client.exchange(&get("/chunked"), 1, &body));
}

#[test]
fn a_post_allocates_nothing() {
    let gateway = Gateway::start();
    let mut post = head("POST", "/echo", "Content-Length: 1024\r\nContent-Type: text/plain\r\n");
    post.extend_from_slice(&BODY);
    gateway.hold("POSTs", WARM_UP, COUNTED, |client| client.exchange(&post, 1, &BODY));
}

#[test]
fn a_chunked_post_allocates_nothing() {
    let gateway = Gateway::start();
    let mut post = head("POST", "/echo", "Transfer-Encoding: chunked\r\n");
    for half in BODY.chunks(512) {
        post.extend_from_slice(b"200\r\n");
        post.extend_from_slice(half);
        post.extend_from_slice(b"\r\n");
    }
    post.extend_from_slice(b"0\r\n\r\n");
    gateway.hold("chunked POSTs", WARM_UP, COUNTED, |client| client.exchange(&post, 1, &BODY));
}

const PIPELINED: usize = 20;
const LIVE: &[u8] = b"GET /livez HTTP/1.1\r\nHost: gateway.example\r\n\r\n";
const BODY: [u8; 1024] = [b'x'; 1024];

fn chunked_body() -> Vec<u8> {
    (0..4000u32).map(|n| b'a' + (n % 26) as u8).collect()
}

fn head(method: &str, path: &str, fields: &str) -> Vec<u8> {
    let common = "Host: gateway.example\r\nUser-Agent: steady/1\r\nAccept: */*\r\n";
    format!("{method} /v1/proxy/s{path}?q=1 HTTP/1.1\r\n{common}{fields}\r\n").into_bytes()
}

fn get(path: &str) -> Vec<u8> {
    head("GET", path, "")
}

/// The shard's time: the real one, and what was leapt over.
struct Clock {
    start: Instant,
    ahead_us: AtomicU64,
}

impl Clock {
    fn now(&self) -> Tick {
        let ahead = Duration::from_micros(self.ahead_us.load(Ordering::Relaxed));
        Tick::from_elapsed(self.start.elapsed() + ahead)
    }

    fn leap(&self, span: Duration) {
        self.ahead_us.fetch_add(span.as_micros() as u64, Ordering::Relaxed);
    }
}

/// One shard on a thread of its own, with two upstreams.
struct Gateway {
    address: SocketAddr,
    clock: Arc<Clock>,
    tally: &'static Tally,
    commands: Sender<Command>,
    /// Held, so that the shard has somebody to tell.
    _notices: Receiver<Notice>,
    waker: Waker,
    thread: JoinHandle<io::Result<()>>,
}

impl Gateway {
    fn start() -> Gateway {
        let text = format!("s:\n  - http://{}\n  - http://{}/base\n", upstream(), upstream());
        let config = fusegate::config::parse("config.yaml", &text, &|_| None).unwrap().config;
        let names = build::names(&config, |_| true);
        let addresses = names.into_iter().map(|name| {
            let address = SocketAddr::new(name.0.parse().unwrap(), name.1);
            (name, vec![address])
        });
        let facts = build::Facts {
            shards: 1,
            descriptors: 1024,
            log_dropped: || 0,
            service_slots: Arc::default(),
            upstream_slots: Arc::default(),
        };
        let (snapshot, _) = build::snapshot(&config, None, &addresses.collect(), &facts, 1, 1);

        let mut poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(Subject::Mailbox.token())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        socket2::SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut listener = mio::net::TcpListener::from_std(listener);
        let token = Token(Subject::Listener(0).token());
        poll.registry().register(&mut listener, token, Interest::READABLE).unwrap();
        let net = MioNet::new(poll.registry().try_clone().unwrap());

        let (commands, inbox) = queue(COMMANDS);
        let (outbox, notices) = queue(NOTICES);
        let mailbox = Mailbox { shard: 0, commands: inbox, notices: outbox };
        let process = Arc::new(Process::new(1, 1, &config.gateway.buckets));
        let clock = Arc::new(Clock { start: Instant::now(), ahead_us: AtomicU64::new(0) });
        let tally: &'static Tally = Box::leak(Box::default());
        let of_shard = Arc::clone(&clock);
        let run = move || {
            TALLY.set(Some(tally));
            let mut shard =
                Shard::new(net, vec![Listener::Tcp(listener, Door::Data)], Arc::new(snapshot), process, mailbox, 7, 0);
            let mut events = Events::with_capacity(1024);
            while !shard.is_drained() {
                match poll.poll(&mut events, shard.patience()) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
                shard.turn(of_shard.now(), events.iter().map(Event::of_mio));
            }
            TALLY.set(None);
            Ok(())
        };
        let thread = std::thread::Builder::new().name("shard".to_owned()).spawn(run).unwrap();
        Gateway { address, clock, tally, commands, _notices: notices, waker, thread }
    }

    /// Asserts that after `warm_up` rounds, `counted` more of them allocate nothing. The clients take turns.
    fn hold(self, what: &str, warm_up: usize, counted: usize, mut round: impl FnMut(&mut Client)) {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(self.address)).collect();
        let mut fence = Client::connect(self.address);
        let mut rounds = |count: usize, leap: Duration| {
            for n in 0..count {
                round(&mut clients[n % CLIENTS]);
                if n % (count / LEAPS).max(CLIENTS) == CLIENTS - 1 {
                    fence.exchange(LIVE, 1, b"ok\n");
                    self.clock.leap(leap);
                }
            }
            // The last response was on its way before the shard was done with its exchange. The gateway's own
            // answer comes from the same thread, after that.
            fence.exchange(LIVE, 1, b"ok\n");
        };
        // All alarms at once, which is as many as there can be; then as it goes on.
        rounds(CLIENTS, LONG_LEAP);
        rounds(warm_up, LEAP);
        self.tally.counts.store(true, Ordering::SeqCst);
        rounds(counted, LEAP);
        self.tally.counts.store(false, Ordering::SeqCst);

        drop((clients, fence));
        self.commands.tell(Command::Drain).unwrap();
        self.waker.wake().unwrap();
        // The loop ends when the shard is drained, with nothing left to say.
        self.thread.join().unwrap().unwrap();
        let allocations = self.tally.allocations.load(Ordering::SeqCst);
        let reallocations = self.tally.reallocations.load(Ordering::SeqCst);
        let mut message = format!("{what}: {allocations} allocations and {reallocations} reallocations");
        if let Some(first) = self.tally.first.lock().unwrap().take() {
            let _ = write!(message, " in {counted} rounds, the first here:\n{first}");
        }
        assert_eq!((allocations, reallocations), (0, 0), "{message}");
    }
}

/// A connection and what was read of it.
struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).unwrap();
        Wire { stream, bytes: Vec::new() }
    }

    /// Reads more; whether anything came.
    fn read(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        let n = self.stream.read(&mut piece).unwrap();
        self.bytes.extend_from_slice(&piece[..n]);
        n > 0
    }

    /// Takes the next `len` bytes.
    fn take(&mut self, len: usize) -> Vec<u8> {
        while self.bytes.len() < len {
            assert!(self.read(), "the connection ended early");
        }
        self.bytes.drain(..len).collect()
    }

    /// Takes everything up to the end of `mark`; nothing when the connection has ended before it.
    fn through(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(mark.len()).position(|bytes| bytes == mark) {
                return Some(self.take(at + mark.len()));
            }
            if !self.read() {
                assert!(self.bytes.is_empty(), "the connection ended early");
                return None;
            }
        }
    }

    /// Takes a head and the body that it announces; the first line and the body.
    fn message(&mut self) -> Option<(String, Vec<u8>)> {
        let head = String::from_utf8(self.through(b"\r\n\r\n")?).unwrap().to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let body = match field("content-length: ") {
            Some(length) => self.take(length.parse().unwrap()),
            None if field("transfer-encoding: chunked").is_some() => self.chunks(),
            None => Vec::new(),
        };
        Some((head.lines().next().unwrap().to_owned(), body))
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = String::from_utf8(self.through(b"\r\n").unwrap()).unwrap();
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }
}

struct Client(Wire);

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(Wire::new(stream))
    }

    /// Sends `request` in one piece and takes `responses` responses with this body.
    #[track_caller]
    fn exchange(&mut self, request: &[u8], responses: usize, body: &[u8]) {
        self.0.stream.write_all(request).unwrap();
        for _ in 0..responses {
            let (line, got) = self.0.message().expect("the connection stays open");
            assert_eq!(line, "http/1.1 200 ok");
            assert_eq!(got, body);
        }
    }
}

/// An upstream with a thread for each connection; its address. It ends with the process.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(Wire::new(stream.unwrap())));
        }
    });
    address
}

fn serve(mut wire: Wire) {
    let chunked = chunked_body();
    while let Some((line, body)) = wire.message() {
        if line.contains("/chunked?") {
            // Two writes: the gateway is likely to see the body in parts.
            let (first, rest) = chunked.split_at(1000);
            let mut out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n".to_vec();
            out.extend_from_slice(first);
            wire.stream.write_all(&out).unwrap();
            out = format!("\r\n{:x};extension=1\r\n", rest.len()).into_bytes();
            out.extend_from_slice(rest);
            out.extend_from_slice(b"\r\n0\r\n\r\n");
            wire.stream.write_all(&out).unwrap();
            continue;
        }
        let body = if line.contains("/plain?") { b"hello, world".to_vec() } else { body };
        let mut out = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
        out.extend_from_slice(&body);
        wire.stream.write_all(&out).unwrap();
    }
}

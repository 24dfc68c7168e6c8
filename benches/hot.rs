//! What every request passes: heads parsed and written anew, chunks, the breaker and the round robin, the
//! timing wheel, the look-up of a service.
//!
//! `cargo bench --bench hot`, or with a part of a name behind it. Heads are measured as the shard uses them:
//! storage on the stack, one output buffer that is kept.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use fusegate::control::build;
use fusegate::ground::random::Random;
use fusegate::ground::tick::Tick;
use fusegate::ground::wheel::{Alarm, Wheel};
use fusegate::http::body::{Body, Chunked, Coding, Transfer};
use fusegate::http::head::Limits;
use fusegate::http::render::{self, Id, Onward, Persistence};
use fusegate::http::request::{Request, Storage, Version};
use fusegate::http::response::Response;
use fusegate::http::target::{Route, Target};

use fusegate::policy::balance::{self, Cursor, Draw, Policy, Tried, Turns};
use fusegate::policy::breaker::{Breaker, Outcome, Settings};
use fusegate::shared::snapshot::Snapshot;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// The defaults of the configuration.
const LIMITS: Limits = Limits { request_line: 8 << 10, header_bytes: 32 << 10, headers: 100 };
const SETTINGS: Settings = Settings::DEFAULT;
/// Bytes that one read of the shard may give.
const READ: usize = 64 << 10;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    request_heads(&mut criterion);
    response_heads(&mut criterion);
    chunked_bodies(&mut criterion);
    breakers(&mut criterion);
    alarms(&mut criterion);
    services(&mut criterion);
    criterion.final_summary();
}

/// As curl sends it: three fields.
const CURL: &str = "GET /v1/proxy/user-service/users/42 HTTP/1.1\r\n\
    Host: 127.0.0.1:8000\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n";

/// As a browser sends it: twelve fields.
const BROWSER: &str = "GET /v1/proxy/user-service/users/42/orders?from=2024-01-01&limit=50 HTTP/1.1\r\n\
    Host: gateway.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://gateway.example.com/start/page?tab=orders\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=6f1c0a4e7d2b4c1d9e8f7a6b5c4d3e2f; theme=dark; consent=all; visited=1718000000\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Priority: u=0, i\r\n\r\n";

/// As it comes through a mesh of proxies: forty fields.
fn long_head() -> String {
    let mut head = CURL.trim_end().to_owned();
    for n in 4..=40 {
        let _ = write!(head, "\r\nX-Application-Context-{n}: value-{n}; with=several, parts=\"of it\"");
    }
    head + "\r\n\r\n"
}

fn request_heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request head");
    let onward = Onward {
        base_path: b"/base",
        path: b"/base/",
        rest: b"/users/42",
        host: Some(b"localhost:9001"),
        authority: b"localhost:9001",
        client: IpAddr::V4(Ipv4Addr::new(192, 168, 100, 17)),
        pseudonym: b"fusegate-01234567",
        request_id: Id::Standard(b"0123456789abcdef0123456789abcdef"),
        upgrade: None,
    };
    for (name, head, fields) in
        [("3 fields", CURL.to_owned(), 3), ("12 fields", BROWSER.to_owned(), 12), ("40 fields", long_head(), 40)]
    {
        group.throughput(Throughput::Bytes(head.len() as u64));
        let mut out = Vec::with_capacity(READ);
        group.bench_function(BenchmarkId::new("parse and rewrite", name), |bencher| {
            bencher.iter(|| {
                let mut storage = Storage::new();
                let request = Request::parse(black_box(head.as_bytes()), &LIMITS, &mut storage);
                let Ok(Some(request)) = request else { panic!("a valid head") };
                assert_eq!(request.fields.len(), fields);
                out.clear();
                render::request(&mut out, &request, black_box(&onward));
                out.len()
            });
        });
    }
    group.finish();
}

fn response_heads(criterion: &mut Criterion) {
    let head = "HTTP/1.1 200 OK\r\nServer: nginx/1.28.0\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
        Content-Type: application/json; charset=utf-8\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\
        Keep-Alive: timeout=60\r\nETag: W/\"5f3c-18f0a1b2c3d\"\r\nCache-Control: no-cache, private\r\n\
        Vary: Accept-Encoding\r\nX-Content-Type-Options: nosniff\r\n\r\n";
    let mut group = criterion.benchmark_group("response head");
    group.throughput(Throughput::Bytes(head.len() as u64));
    let mut out = Vec::with_capacity(READ);
    group.bench_function("parse and rewrite/10 fields", |bencher| {
        bencher.iter(|| {
            let mut storage = Storage::new();
            let response = Response::parse(black_box(head.as_bytes()), false, &LIMITS, &mut storage);
            let Ok(Some(response)) = response else { panic!("a valid head") };
            let coding = render::response_coding(response.framing, Version::Http11);
            out.clear();
            render::response(&mut out, &response, coding, Persistence::Implied, b"Sun, 06 Nov 1994 08:49:37 GMT");
            out.len()
        });
    });
    group.finish();
}

fn chunked_bodies(criterion: &mut Criterion) {
    const BODY: usize = 64 << 10;
    let mut group = criterion.benchmark_group("chunked body");
    group.throughput(Throughput::Bytes(BODY as u64));
    for size in [1024, 16] {
        let mut wire = Vec::new();
        for _ in 0..BODY / size {
            wire.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            wire.resize(wire.len() + size, b'x');
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let mut out = Vec::with_capacity(2 * READ);
        group.bench_function(BenchmarkId::new("64 KiB in chunks of", size), |bencher| {
            bencher.iter(|| {
                let mut transfer = Transfer::new(Body::Chunked(Chunked::default()), Coding::Chunked);
                let mut at = 0;
                while !transfer.is_done() {
                    let read = black_box(&wire[at..wire.len().min(at + READ)]);
                    out.clear();
                    let Ok(passed) = transfer.pass(read, LIMITS.header_bytes, &mut out) else { panic!("valid chunks") };
                    at += passed.consumed;
                }
                assert_eq!(at, wire.len());
                out.len()
            });
        });
    }
    group.finish();
}

/// Two upstreams behind one cursor.
struct Pair {
    turns: Turns,
    cursor: Cursor,
    backup_cursor: Cursor,
    breakers: [Breaker; 2],
}

impl Default for Pair {
    fn default() -> Pair {
        let (cursor, backup_cursor, breakers) = Default::default();
        Pair { turns: Turns::of(&[(0, 1, false), (1, 1, false)]), cursor, backup_cursor, breakers }
    }
}

impl Pair {
    /// One request's part: a turn, a permit, its end.
    fn exchange(&self, now_ms: u64) {
        let tried = Tried::default();
        let draw = Draw {
            policy: black_box(Policy::RoundRobin),
            turns: &self.turns,
            cursor: &self.cursor,
            backup_cursor: &self.backup_cursor,
            tried: black_box(&tried),
            key: None,
        };
        let take =
            |position: u16, _| self.breakers[usize::from(position)].acquire(now_ms, SETTINGS.lease_ms, &SETTINGS);
        let picked = balance::pick(&draw, &mut Random::new(1), |_| 0, |_| (0, 1), take);
        let Some((position, grant)) = picked else { panic!("both breakers are closed") };
        let breaker = &self.breakers[usize::from(position)];
        black_box(breaker.settle(grant.permit, Outcome::Success, now_ms, &SETTINGS));
    }
}

fn breakers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("closed breaker");
    group.throughput(Throughput::Elements(1));
    let breaker = Breaker::default();
    group.bench_function("acquire and settle/1 thread", |bencher| {
        bencher.iter(|| {
            let Some(grant) = breaker.acquire(black_box(1), SETTINGS.lease_ms, &SETTINGS) else {
                panic!("it is closed")
            };
            breaker.settle(grant.permit, Outcome::Success, black_box(2), &SETTINGS)
        });
    });
    for (name, threads) in [("1 thread", 1), ("2 threads", 2)] {
        group.bench_function(BenchmarkId::new("pick, acquire and settle", name), |bencher| {
            // What one thread needs for one of its own requests while the others do the same.
            bencher.iter_custom(|rounds| together(threads, rounds));
        });
    }
    group.finish();
}

/// The longest time that one of `threads` threads needs for `rounds` requests, all on the same upstreams.
fn together(threads: usize, rounds: u64) -> Duration {
    let pair = Pair::default();
    let start = Barrier::new(threads);
    let work = || {
        start.wait();
        let begun = Instant::now();
        for _ in 0..rounds {
            pair.exchange(black_box(1));
        }
        begun.elapsed()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().filter_map(|other| other.join().ok()).fold(own, Duration::max)
    })
}

const ALARMS: u64 = 10_000;

/// Spread over more than a minute, as deadlines of many connections are; the same at every run.
fn moment(n: u64) -> Tick {
    Tick::from_us(10_000 + n.wrapping_mul(7_919_993) % 75_000_000)
}

fn armed() -> (Wheel, Vec<Alarm>) {
    let mut wheel = Wheel::default();
    let alarms = (0..ALARMS).map(|n| wheel.arm(n, moment(n))).collect();
    (wheel, alarms)
}

fn alarms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 alarms");
    group.throughput(Throughput::Elements(1));
    let (mut wheel, alarms) = armed();
    let mut n = 0;
    group.bench_function("arm and cancel one more", |bencher| {
        bencher.iter(|| {
            n += 1;
            let alarm = wheel.arm(n, moment(n));
            wheel.cancel(black_box(alarm));
        });
    });
    group.bench_function("move one", |bencher| {
        bencher.iter(|| {
            n += 1;
            wheel.move_to(alarms[(n % ALARMS) as usize], moment(black_box(n)));
        });
    });
    group.throughput(Throughput::Elements(ALARMS));
    group.bench_function("arm all", |bencher| {
        bencher.iter_batched(
            Wheel::default,
            |mut wheel| {
                for n in 0..ALARMS {
                    black_box(wheel.arm(n, moment(n)));
                }
                wheel
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("ring all, by turns of 1 ms", |bencher| {
        let mut rang = Vec::with_capacity(ALARMS as usize);
        bencher.iter_batched(
            || armed().0,
            |mut wheel| {
                rang.clear();
                let mut now = Tick::START;
                while wheel.armed() > 0 {
                    now = now.after(Duration::from_millis(1));
                    wheel.advance(now, &mut rang);
                }
                assert_eq!(rang.len(), ALARMS as usize);
                wheel
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn snapshot(services: usize) -> Snapshot {
    let mut text = String::new();
    for n in 0..services {
        let _ = writeln!(text, "service-{n}:\n  - http://127.0.0.1:9001\n  - http://127.0.0.1:9002");
    }
    let Ok(loaded) = fusegate::config::parse("config.yaml", &text, &|_| None) else { panic!("a valid configuration") };
    let facts = build::Facts {
        shards: 2,
        descriptors: 1024,
        log_dropped: || 0,
        service_slots: Arc::default(),
        upstream_slots: Arc::default(),
    };
    build::snapshot(&loaded.config, None, &build::Addresses::new(), &facts, 1, 1).0
}

fn services(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("service look-up");
    group.throughput(Throughput::Elements(1));
    for count in [10, 1000] {
        let snapshot = snapshot(count);
        let paths: Vec<String> = (0..count).map(|n| format!("/v1/proxy/service-{n}/users/42?q=1")).collect();
        let mut n = 0;
        group.bench_function(BenchmarkId::new("target, route and service among", count), |bencher| {
            bencher.iter(|| {
                // Not in order, so that a table that does not fit the cache shows.
                n = (n + 617) % count;
                let target = Target::parse("GET", black_box(paths[n].as_bytes()));
                let Ok(Target::Resource { path, .. }) = target else { panic!("a valid target") };
                let Route::Proxy { service, .. } = Route::of(path, b"/v1/proxy/") else {
                    panic!("a path of a service")
                };
                let at = snapshot.service(&service);
                assert_eq!(at, Some(n as u32));
                at
            });
        });
    }
    group.finish();
}

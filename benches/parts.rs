//! The parts of a request one by one, where `hot` has them together or not at all: reading a head, writing it anew, the
//! line of the access log on the shard's side, and what is counted when a request ends. Chunks, breaker and pick, wheel
//! and routes are in `hot`.
//!
//! `cargo bench --bench parts`, or with a part of a name behind it. Must not know: sockets, the shard's own state.

use criterion::{Criterion, Throughput};
use fusegate::http::head::Limits;
use fusegate::http::render::{self, Id, Onward, Persistence};
use fusegate::http::request::{Method, Request, Storage, Version};
use fusegate::http::response::Response;
use fusegate::shared::access::{Access, Encoded, Line, Said, Scribe};
use fusegate::shared::metrics::{Ending, Latency, ServiceCounters, UpstreamCounters};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The defaults of the configuration.
const LIMITS: Limits = Limits { request_line: 8 << 10, header_bytes: 32 << 10, headers: 100 };
const BOUNDS_US: [u64; 14] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000, 5_000_000,
    7_500_000, 10_000_000,
];
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 100, 17));
const ID: &[u8] = b"0123456789abcdef0123456789abcdef";

/// As curl sends it.
const REQUEST: &[u8] = b"GET /v1/proxy/user-service/users/42 HTTP/1.1\r\n\
    Host: 127.0.0.1:8000\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n";

/// As a small service answers.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: application/json\r\nContent-Length: 100\r\n\r\n";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    request(&mut criterion);
    response(&mut criterion);
    access(&mut criterion);
    counting(&mut criterion);
    criterion.final_summary();
}

fn request(criterion: &mut Criterion) {
    let onward = Onward {
        base_path: b"/base",
        path: b"/base/",
        rest: b"/users/42",
        host: Some(b"localhost:9001"),
        authority: b"localhost:9001",
        client: CLIENT,
        pseudonym: b"fusegate-01234567",
        request_id: Id::Standard(ID),
        upgrade: None,
    };
    let mut group = criterion.benchmark_group("request of 3 fields");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| {
            let mut storage = Storage::new();
            let Ok(Some(request)) = Request::parse(black_box(REQUEST), &LIMITS, &mut storage) else {
                panic!("a valid head")
            };
            black_box(&request).fields.len()
        });
    });
    let mut storage = Storage::new();
    let Ok(Some(request)) = Request::parse(REQUEST, &LIMITS, &mut storage) else { panic!("a valid head") };
    let mut out = Vec::with_capacity(4 << 10);
    group.bench_function("rewrite", |bencher| {
        bencher.iter(|| {
            out.clear();
            render::request(&mut out, black_box(&request), black_box(&onward));
            out.len()
        });
    });
    group.finish();
}

fn response(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("response of 3 fields");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| {
            let mut storage = Storage::new();
            let Ok(Some(response)) = Response::parse(black_box(RESPONSE), false, &LIMITS, &mut storage) else {
                panic!("a valid head")
            };
            black_box(&response).fields.len()
        });
    });
    let mut storage = Storage::new();
    let Ok(Some(response)) = Response::parse(RESPONSE, false, &LIMITS, &mut storage) else { panic!("a valid head") };
    let coding = render::response_coding(response.framing, Version::Http11);
    let mut out = Vec::with_capacity(4 << 10);
    group.bench_function("rewrite", |bencher| {
        bencher.iter(|| {
            out.clear();
            let date = black_box(b"Sun, 06 Nov 1994 08:49:37 GMT");
            render::response(&mut out, black_box(&response), coding, Persistence::Implied, date);
            out.len()
        });
    });
    group.finish();
}

fn access(criterion: &mut Criterion) {
    let said = Said {
        method: b"GET",
        target: b"/v1/proxy/user-service/users/42",
        host: b"127.0.0.1:8000",
        user_agent: b"curl/8.14.1",
        ..Said::default()
    };
    let access = Access::new(1);
    let mut scribe = Scribe::default();
    let mut taken = Vec::new();
    let mut group = criterion.benchmark_group("access line");
    group.throughput(Throughput::Elements(1));
    group.bench_function("keep, write and hand over", |bencher| {
        bencher.iter(|| {
            scribe.keep(black_box(&said), b"");
            let Some(kept) = scribe.take() else { panic!("it was kept") };
            let line = Line {
                time_us: 784_111_777_000_000,
                duration_us: 1_250,
                upstream_us: Some(1_100),
                received: 0,
                sent: 100,
                status: 200,
                upstream_status: Some(200),
                attempts: 1,
                version: Some(Version::Http11),
                peer: CLIENT,
                outcome: b"success",
                request_id: ID,
                service: b"user-service",
                upstream: b"http://10.0.0.1:8080",
            };
            scribe.write(&line, kept);
            scribe.hand_over(&access, 0);
            // As the writer does, or the queue would be full soon.
            access.take(0, &mut taken);
            taken.len()
        });
    });
    let line = taken.clone();
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            Encoded::first(&mut black_box(&line[..])).and_then(|line| line.decode()).map(|(line, _)| line.status)
        });
    });
    assert_eq!(access.dropped(), 0);
    group.finish();
}

fn counting(criterion: &mut Criterion) {
    let service = ServiceCounters::default();
    let upstream = UpstreamCounters::default();
    let mut group = criterion.benchmark_group("metrics");
    group.throughput(Throughput::Elements(1));
    group.bench_function("count one request", |bencher| {
        let mut n = 0;
        bencher.iter(|| {
            // Durations of 0 to 16 ms: the first buckets, as most are.
            n = (n + 617) % 16_000;
            let took = Duration::from_micros(black_box(n));
            upstream.attempts.bump();
            upstream.in_flight.bump();
            upstream.latency.get_or_init(Box::<Latency>::default).note(took, &BOUNDS_US);
            upstream.endings[Ending::SUCCESS.index()].bump();
            upstream.settled.bump();
            upstream.in_flight.drop_one();
            service.answered(black_box(Method::Get), black_box(200));
            service.latency.get_or_init(Box::<Latency>::default).note(took, &BOUNDS_US);
        });
    });
    group.finish();
}

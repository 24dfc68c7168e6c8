//! Bounds: connections, memory, and that nobody who is slow holds up anybody else.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Caller, Gate, Gateway, Origin, noise, ok, service, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn connections_over_the_limit_are_told_so() {
    let origin = Origin::hello("hello");
    for workers in [1, 4] {
        let settings = format!("workers: {workers}\nlimits: {{connections: 3}}");
        let gateway = Gateway::with(&settings, &service("s", &[&origin.url()], ""));
        let mut kept: Vec<Caller> = (0..3).map(|_| gateway.connect()).collect();
        for caller in &mut kept {
            assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
        }
        for _ in 0..3 {
            let mut refused = gateway.connect();
            // the answer may come before the request
            let _ = refused.try_send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
            let detail = assert_proxy_problem(&refused.answer(), 503, "connection_limit_reached");
            assert!(detail.contains("connections"), "the detail names the limit: {detail}");
            refused.expect_eof();
        }
        for caller in &mut kept {
            assert_eq!(caller.get("/v1/proxy/s/").text(), "hello", "those inside are not disturbed");
        }
        kept.pop();
        wait_until("the freed place is taken", || {
            let mut next = gateway.connect();
            let _ = next.try_send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
            next.answer().status == 200
        });
    }
}

/// A body that fits in no chain of socket buffers.
const ENDLESS: usize = 200_000_000;

/// An origin that answers `/big` with [`ENDLESS`] bytes and everything else with a word, and counts
/// the bytes that it could send.
fn pouring(sent: &Arc<AtomicUsize>) -> Origin {
    let sent = Arc::clone(sent);
    let piece = noise(64 * 1024);
    Origin::start(move |conn| {
        while let Some(request) = conn.request() {
            if request.target() != "/big" {
                let _ = conn.send(ok("small"));
                continue;
            }
            let _ = conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n"));
            let mut left = ENDLESS;
            while left > 0 {
                let step = left.min(piece.len());
                if conn.send(&piece[..step]).is_err() {
                    return;
                }
                left -= step;
                sent.fetch_add(step, Ordering::SeqCst);
            }
        }
    })
}

/// Waits until a counter has stood still for a while: the sender is blocked.
#[track_caller]
fn wait_still(counter: &AtomicUsize) {
    let (mut last, mut since) = (counter.load(Ordering::SeqCst), Instant::now());
    wait_until("the sender is held back", || {
        let now = counter.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_millis(300)
    });
}

#[test]
fn a_client_that_does_not_read_holds_back_its_upstream_alone() {
    let sent = Arc::new(AtomicUsize::new(0));
    let origin = pouring(&sent);
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    let mut slow = Caller::connect_narrow(gateway.addr());
    slow.send("GET /v1/proxy/s/big HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_still(&sent);
    assert!(sent.load(Ordering::SeqCst) < ENDLESS / 2, "back-pressure reaches the upstream");
    // one shard serves both
    let mut quick = gateway.connect();
    for _ in 0..50 {
        assert_eq!(quick.get("/v1/proxy/s/").text(), "small");
    }
    assert_eq!(quick.get("/v1/status").status, 200);
    // and it can be taken up again
    let (status, _) = slow.head();
    assert_eq!(status, 200);
    let before = sent.load(Ordering::SeqCst);
    slow.exact(20_000_000);
    wait_until("the upstream goes on", || sent.load(Ordering::SeqCst) > before);
}

#[test]
fn memory_stays_bounded_while_a_large_response_goes_to_a_slow_client() {
    let sent = Arc::new(AtomicUsize::new(0));
    let origin = pouring(&sent);
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    // warm: what every exchange needs once is there
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "small");
    let before = gateway.resident_kib();
    let mut most = before;
    caller.send("GET /v1/proxy/s/big HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_still(&sent);
    most = most.max(gateway.resident_kib());
    let (status, _) = caller.head();
    assert_eq!(status, 200);
    let mut left = ENDLESS;
    while left > 0 {
        let step = left.min(1_000_000);
        caller.exact(step);
        left -= step;
        most = most.max(gateway.resident_kib());
    }
    assert!(most < before + 4096, "grew from {before} KiB to {most} KiB");
    assert_eq!(caller.get("/v1/proxy/s/").text(), "small");
}

#[test]
fn memory_stays_bounded_while_a_large_request_goes_to_a_slow_upstream() {
    let gate = crate::support::Gate::default();
    let door = gate.clone();
    let origin = Origin::start(move |conn| {
        let Some(head) = conn.head() else { return };
        door.wait();
        // takes the body piece by piece and keeps none of it
        let length: usize = head.field("Content-Length").unwrap().parse().unwrap();
        for _ in 0..length / 1_000_000 {
            if conn.exact(1_000_000).is_none() {
                return;
            }
        }
        let _ = conn.send(ok("taken"));
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    assert_eq!(gateway.fetch("/livez").status, 200);
    let before = gateway.resident_kib();
    let mut caller = gateway.connect();
    let address = caller.local_addr();
    caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: {ENDLESS}\r\n\r\n"));
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (counter, caller) = (&sent, &mut caller);
        let sender = scope.spawn(move || {
            let piece = noise(1_000_000);
            for _ in 0..ENDLESS / piece.len() {
                caller.send(&piece);
                counter.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
        wait_still(&sent);
        let held = sent.load(Ordering::SeqCst);
        let blocked = gateway.resident_kib();
        gate.open();
        let mut most = blocked;
        // every write of the sender has a limit of its own
        while !sender.is_finished() {
            most = most.max(gateway.resident_kib());
            std::thread::sleep(Duration::from_millis(3));
        }
        assert!(held < ENDLESS / 2, "back-pressure reaches the client at {address}");
        assert!(most < before + 4096, "grew from {before} KiB to {most} KiB");
    });
    assert_eq!(caller.answer().text(), "taken");
}

#[test]
fn a_client_that_never_reads_is_neutral_and_ends() {
    let sent = Arc::new(AtomicUsize::new(0));
    let origin = pouring(&sent);
    let settings = "circuit_breaker: {failure_threshold: 1}";
    let gateway = Gateway::with("client: {body_idle: 300ms}", &service("s", &[&origin.url()], settings));
    let mut slow = Caller::connect_narrow(gateway.addr());
    slow.send("GET /v1/proxy/s/big HTTP/1.1\r\nHost: a\r\n\r\n");
    // Whoever reads before the gateway has given up on it is a client that reads.
    wait_until("the gateway has given up", || gateway.status()["services"][0]["upstreams"][0]["settled"] == 1);
    let broken = slow.broken_answer();
    assert!(broken.body.len() < ENDLESS / 2);
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0));
}

#[test]
fn many_idle_connections_are_held() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::with("workers: 4", &service("s", &[&origin.url()], ""));
    let mut callers: Vec<Caller> = (0..500).map(|_| gateway.connect()).collect();
    for caller in &mut callers {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    }
    for caller in callers.iter_mut().rev() {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    }
}

#[test]
fn a_body_over_its_limit_is_413_and_the_upstream_gets_nothing_of_it() {
    let origin = Origin::echo();
    let gateway = Gateway::start(&service("s", &[&origin.url()], "body_limit: 1KiB"));
    let mut caller = gateway.connect();
    let just = "x".repeat(1024);
    assert_eq!(caller.post("/v1/proxy/s/", &just).text(), just);

    caller.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n");
    assert_proxy_problem(&caller.answer(), 413, "http_request_error");
    caller.expect_eof();
    assert_eq!(origin.heads(), 1, "a length over the limit is refused before an upstream is asked");

    let head = "POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut caller = gateway.connect();
    caller.send(format!("{head}400\r\n{just}\r\n0\r\n\r\n"));
    assert_eq!(caller.answer().text(), just, "framing does not count");
    let mut caller = gateway.connect();
    caller.send_apart(format!("{head}400\r\n{just}\r\n"));
    caller.send("1\r\ny\r\n");
    // how much of the answer has begun decides whether there can be a problem document
    match caller.try_answer("POST") {
        Ok(response) => drop(assert_proxy_problem(&response, 413, "http_request_error")),
        Err(broken) => assert!(!broken.body.ends_with(b"y")),
    }
    let status = gateway.status();
    assert!(status["counters"]["refused"]["body_too_large"].as_u64() >= Some(1), "{status}");
}

#[test]
fn an_upstream_at_its_most_requests_is_passed_over() {
    let gate = Arc::new(Gate::default());
    let opened = Arc::clone(&gate);
    let slow = Origin::answering(move |request| {
        if request.target() == "/wait" {
            opened.wait();
        }
        ok("slow")
    });
    let other = Origin::hello("other");
    let limited = format!("  - {{url: \"{}\", max_requests: 2}}\n", slow.url());
    let gateway = Gateway::with("workers: 2", &format!("both:\n{limited}  - {}\nalone:\n{limited}", other.url()));
    let mut waiting: Vec<Caller> = (0..2)
        .map(|_| {
            let mut caller = gateway.connect();
            caller.send("GET /v1/proxy/alone/wait HTTP/1.1\r\nHost: a\r\n\r\n");
            caller
        })
        .collect();
    slow.wait_heads(2);
    let refused = gateway.fetch("/v1/proxy/alone/");
    let detail = assert_proxy_problem(&refused, 503, "connection_limit_reached");
    assert!(detail.contains("max_requests"), "the detail names the limit: {detail}");
    assert!(refused.field("Retry-After").is_some());
    assert_eq!(gateway.status()["counters"]["saturated"], 1);
    // one limit for each service and URL: the same URL elsewhere has its own
    let seen: Vec<String> = (0..4).map(|_| gateway.fetch("/v1/proxy/both/").text()).collect();
    assert_eq!(seen, ["slow", "other", "slow", "other"]);
    gate.open();
    for caller in &mut waiting {
        assert_eq!(caller.answer().text(), "slow");
    }
    assert_eq!(gateway.fetch("/v1/proxy/alone/").text(), "slow", "a place that is free again is taken");
    assert_eq!(gateway.breaker("alone", &slow.url()), ("closed".to_owned(), 0), "a limit of ours is no failure");
}

#[test]
fn a_client_below_the_least_rate_is_shed() {
    let origin = Origin::echo();
    let gateway = Gateway::with("client: {min_rate: 1GiB}", &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    // it never pauses for as long as `body_idle`, and would take hours
    while !caller.has_input() && caller.try_send("x").is_ok() {
        std::thread::yield_now();
    }
    assert_proxy_problem(&caller.answer(), 408, "http_request_error");
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0));
}

#[test]
fn without_descriptors_accepting_pauses_and_comes_back() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::within(48, "limits: {connections: 10000}", &service("s", &[&origin.url()], ""));
    let pauses = |caller: &mut Caller| caller.get("/v1/status").json()["counters"]["accept_pauses"].as_u64().unwrap();
    // served before there are too many, and kept
    let mut kept = gateway.connect();
    assert_eq!(kept.get("/v1/proxy/s/").text(), "hello");
    let mut crowd: Vec<Caller> = (0..60).map(|_| gateway.connect()).collect();
    wait_until("accepting pauses", || pauses(&mut kept) > 0);
    let before = pauses(&mut kept);
    for _ in 0..20 {
        assert_eq!(kept.get("/v1/proxy/s/").text(), "hello", "those inside are served");
    }
    wait_until("it is tried again", || pauses(&mut kept) >= before + 3);
    // a pause lasts 100 ms or until a descriptor is freed: a loop that spins would try thousands of times
    assert!(pauses(&mut kept) < before + 1000);
    // each one that leaves makes room for another; whoever then has no socket for the upstream is told so
    while let Some(mut next) = crowd.pop() {
        if next.try_send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").is_ok()
            && crowd.len() < 20
        {
            let answer = next.answer();
            if answer.status != 200 {
                assert_proxy_problem(&answer, 503, "connection_limit_reached");
            }
        }
    }
    wait_until("everybody is served again", || gateway.fetch("/v1/proxy/s/").status == 200);
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0), "a limit of ours is no failure");
}

#[test]
fn a_tunnel_takes_one_of_the_most_requests() {
    let origin = Origin::start(|conn| {
        while let Some(request) = conn.request() {
            if request.field("Upgrade").is_none() {
                let _ = conn.send(ok("plain"));
                continue;
            }
            let _ = conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
            conn.wait_gone();
            return;
        }
    });
    let gateway = Gateway::start(&format!("s:\n  - {{url: \"{}\", max_requests: 1}}\n", origin.url()));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(caller.head().0, 101);
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 503, "connection_limit_reached");
    assert_eq!(gateway.status()["services"][0]["upstreams"][0]["in_flight"], 1);
    drop(caller);
    wait_until("the tunnel's place is free", || gateway.fetch("/v1/proxy/s/").status == 200);
}

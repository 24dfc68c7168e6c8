//! The circuit breaker of each upstream: what counts, when exactly it opens, what the one probe
//! decides, and that all shards share it.

use crate::support::problem::{assert_problem, assert_proxy_problem};
use crate::support::{Caller, Gate, Gateway, Origin, RefusedPort, ok, reply, service, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

const ONCE: &str = "retries: {attempts: 0}";

fn closed(failures: u64) -> (String, u64) {
    ("closed".to_owned(), failures)
}

/// An origin that answers with the status in the path: `/500` gives 500.
fn by_path() -> Origin {
    Origin::answering(|request| {
        let status: u16 = request.target().trim_start_matches('/').parse().unwrap();
        match status {
            204 | 304 => format!("HTTP/1.1 {status} Scripted\r\n\r\n").into_bytes(),
            _ => reply(status, "", "body"),
        }
    })
}

#[test]
fn five_failures_open_it_and_the_sixth_request_is_503() {
    let refused = RefusedPort::new();
    let mut gateway = Gateway::start(&service("user-service", &[&refused.url()], ONCE));
    let mut caller = gateway.connect();
    for _ in 0..5 {
        assert_proxy_problem(&caller.get("/v1/proxy/user-service/"), 502, "connection_refused");
    }
    for _ in 0..3 {
        let response = caller.get("/v1/proxy/user-service/");
        assert_proxy_problem(&response, 503, "destination_unavailable");
        let seconds: u64 = response.field("Retry-After").expect("Retry-After").parse().unwrap();
        assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
        assert_eq!(response.json()["service"], "user-service");
    }
    let url = refused.url();
    assert_eq!(gateway.breaker("user-service", &url), ("open".to_owned(), 5), "the count that opened it stays");
    let expected = format!(
        "user-service {url}: closed → open after 5 failures in a row, last: connection refused; next probe in 60 s"
    );
    gateway.wait_for_log(&expected, |line| line.contains(&expected));
    assert_eq!(gateway.log_lines(|line| line.contains("closed → open")).len(), 1);
}

#[test]
fn four_failures_do_not_open_it() {
    let origin = by_path();
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let mut caller = gateway.connect();
    for success in ["200", "404", "204", "304", "501", "505", "429"] {
        for number in 1..=4 {
            assert_eq!(caller.get("/v1/proxy/s/500").status, 500);
            assert_eq!(gateway.breaker("s", &origin.url()), closed(number));
        }
        caller.get(&format!("/v1/proxy/s/{success}"));
        assert_eq!(gateway.breaker("s", &origin.url()), closed(0), "{success} is a success");
    }
    for _ in 0..5 {
        assert_eq!(caller.get("/v1/proxy/s/503").status, 503);
    }
    let before = origin.heads();
    assert_proxy_problem(&caller.get("/v1/proxy/s/200"), 503, "destination_unavailable");
    assert_eq!(origin.heads(), before);
}

#[test]
fn statuses_that_are_no_failures_never_open_it() {
    let origin = by_path();
    let gateway = Gateway::start(&service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 1}"));
    let mut caller = gateway.connect();
    for status in [200, 201, 204, 301, 304, 400, 401, 403, 404, 408, 410, 429, 499, 501, 505] {
        for _ in 0..3 {
            assert_eq!(caller.get(&format!("/v1/proxy/s/{status}")).status, status);
        }
    }
    assert_eq!(gateway.breaker("s", &origin.url()), closed(0));
}

#[test]
fn every_other_5xx_is_a_failure_that_is_passed_on() {
    for status in [500, 502, 503, 504, 507, 599] {
        let origin = by_path();
        let gateway = Gateway::start(&service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 2}"));
        let mut caller = gateway.connect();
        for _ in 0..2 {
            let response = caller.get(&format!("/v1/proxy/s/{status}"));
            assert_eq!((response.status, response.text().as_str()), (status, "body"));
        }
        assert_eq!(gateway.breaker("s", &origin.url()), ("open".to_owned(), 2), "{status}");
    }
}

#[test]
fn failure_on_says_what_counts() {
    let origin = by_path();
    let refused = RefusedPort::new();
    let services = [
        service("connect", &[&origin.url()], "circuit_breaker: {failure_threshold: 2, failure_on: [connect]}"),
        service("listed", &[&origin.url()], "circuit_breaker: {failure_threshold: 2, failure_on: [501, 404]}"),
        service(
            "refused",
            &[&refused.url()],
            "circuit_breaker: {failure_threshold: 2, failure_on: [5xx]}\nretries: {attempts: 0}",
        ),
    ];
    let gateway = Gateway::start(&services.concat());
    let mut caller = gateway.connect();
    for _ in 0..4 {
        assert_eq!(caller.get("/v1/proxy/connect/500").status, 500);
        assert_eq!(caller.get("/v1/proxy/listed/500").status, 500);
        assert_eq!(caller.get("/v1/proxy/refused/").status, 502);
    }
    assert_eq!(gateway.breaker("connect", &origin.url()), closed(0));
    assert_eq!(gateway.breaker("refused", &refused.url()), closed(0));
    assert_eq!(gateway.breaker("listed", &origin.url()), closed(0));
    assert_eq!(caller.get("/v1/proxy/listed/501").status, 501);
    assert_eq!(caller.get("/v1/proxy/listed/404").status, 404);
    assert_eq!(gateway.breaker("listed", &origin.url()), ("open".to_owned(), 2));
}

#[test]
fn threshold_and_cooldown_are_per_service_and_so_is_the_breaker() {
    let refused = RefusedPort::new();
    let services = [
        service(
            "strict",
            &[&refused.url()],
            "circuit_breaker: {failure_threshold: 1, cooldown: 2m}\nretries: {attempts: 0}",
        ),
        service("patient", &[&refused.url()], "circuit_breaker: {failure_threshold: 7}\nretries: {attempts: 0}"),
    ];
    let gateway = Gateway::start(&services.concat());
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/strict/").status, 502);
    let response = caller.get("/v1/proxy/strict/");
    assert_problem(&response, 503);
    let seconds: u64 = response.field("Retry-After").unwrap().parse().unwrap();
    assert!((61..=120).contains(&seconds), "Retry-After: {seconds}");
    assert_eq!(gateway.breaker("patient", &refused.url()), closed(0), "the same URL in another service");
    for _ in 0..7 {
        assert_eq!(caller.get("/v1/proxy/patient/").status, 502);
    }
    assert_eq!(caller.get("/v1/proxy/patient/").status, 503);
}

#[test]
fn a_dead_upstream_is_skipped_after_five_failures() {
    let refused = RefusedPort::new();
    let origin = Origin::hello("alive");
    let gateway = Gateway::start(&service("s", &[&refused.url(), &origin.url()], ONCE));
    let mut caller = gateway.connect();
    let answers: Vec<u16> = (0..30).map(|_| caller.get("/v1/proxy/s/").status).collect();
    let failed: Vec<usize> = (0..30).filter(|at| answers[*at] != 200).collect();
    assert_eq!(failed, [0, 2, 4, 6, 8], "exactly five 502, then none: {answers:?}");
    assert!(failed.iter().all(|at| answers[*at] == 502));
    assert_eq!(gateway.breaker("s", &refused.url()), ("open".to_owned(), 5));
    assert_eq!(gateway.breaker("s", &origin.url()), closed(0));
}

/// A gateway whose upstream `user-service` fails with 500 until `status` says otherwise. When the gate is
/// given, an answer that is not a failure waits for it.
struct Switch {
    origin: Origin,
    gateway: Gateway,
    status: Arc<AtomicU16>,
    gate: Gate,
}

impl Switch {
    fn new(workers: usize, breaker: &str) -> Switch {
        let status = Arc::new(AtomicU16::new(500));
        let gate = Gate::default();
        let (now, door) = (Arc::clone(&status), gate.clone());
        let origin = Origin::answering(move |_| match now.load(Ordering::SeqCst) {
            500 => reply(500, "", "failed"),
            status => {
                door.wait();
                reply(status, "", "recovered")
            }
        });
        let settings = format!("circuit_breaker: {{{breaker}}}");
        let text = service("user-service", &[&origin.url()], &settings);
        let gateway = Gateway::with(&format!("workers: {workers}"), &text);
        Switch { origin, gateway, status, gate }
    }

    fn state(&self) -> String {
        self.gateway.breaker("user-service", &self.origin.url()).0
    }

    /// A client whose request became the probe: it has reached the upstream, which does not answer yet.
    #[track_caller]
    fn probe(&self) -> Caller {
        let before = self.origin.heads();
        let mut probe = None;
        wait_until("a request becomes the probe", || {
            let mut caller = self.gateway.connect();
            caller.send("GET /v1/proxy/user-service/probe HTTP/1.1\r\nHost: a\r\n\r\n");
            wait_until("it is answered or reaches the upstream", || caller.has_input() || self.origin.heads() > before);
            if self.origin.heads() == before {
                assert_proxy_problem(&caller.answer(), 503, "destination_unavailable");
                return false;
            }
            probe = Some(caller);
            true
        });
        probe.unwrap()
    }
}

const GET: &str = "/v1/proxy/user-service/";

#[test]
fn after_the_cooldown_one_request_is_the_probe_and_the_others_skip() {
    for workers in [1, 4] {
        let mut switch = Switch::new(workers, "failure_threshold: 2, cooldown: 300ms");
        for _ in 0..2 {
            assert_eq!(switch.gateway.fetch(GET).status, 500);
        }
        switch.status.store(200, Ordering::SeqCst);
        let mut probe = switch.probe();
        assert_eq!(switch.state(), "half-open");
        let probes = switch.origin.heads();
        // fresh connections, so that every shard is asked
        for _ in 0..30 {
            let response = switch.gateway.fetch(GET);
            assert_proxy_problem(&response, 503, "destination_unavailable");
            let seconds: u64 = response.field("Retry-After").expect("Retry-After").parse().unwrap();
            assert!(seconds >= 1);
        }
        assert_eq!(switch.origin.heads(), probes, "one probe, however many requests come");
        switch.gate.open();
        assert_eq!(probe.answer().text(), "recovered");
        assert_eq!(switch.state(), "closed");
        for _ in 0..10 {
            assert_eq!(switch.gateway.fetch(GET).status, 200);
        }
        let name = format!("user-service {}: ", switch.origin.url());
        for change in ["closed → open", "open → half-open", "half-open → closed"] {
            let line = format!("{name}{change}");
            switch.gateway.wait_for_log(&line, |text| text.contains(&line));
            assert_eq!(switch.gateway.log_lines(|text| text.contains(&line)).len(), 1, "{line}");
        }
    }
}

#[test]
fn a_failed_probe_opens_it_again() {
    let mut switch = Switch::new(1, "failure_threshold: 3, cooldown: 300ms");
    let mut caller = switch.gateway.connect();
    for _ in 0..3 {
        assert_eq!(caller.get(GET).status, 500);
    }
    let name = format!("user-service {}: half-open → open", switch.origin.url());
    for round in 1..=3 {
        // one failure is enough: the threshold is for the closed state
        wait_until("the probe is answered", || caller.get(GET).status == 500);
        assert_eq!(switch.origin.heads(), 3 + round, "one probe each time");
        wait_until("the change is logged", || switch.gateway.log_lines(|line| line.contains(&name)).len() == round);
    }
    switch.status.store(200, Ordering::SeqCst);
    switch.gate.open();
    wait_until("it recovers", || caller.get(GET).status == 200);
    switch.gateway.wait_for_log("recovery", |line| line.contains("half-open → closed"));
    assert_eq!(switch.state(), "closed");
}

#[test]
fn any_answer_but_a_failure_closes_it() {
    for status in [404, 501, 302] {
        let switch = Switch::new(1, "failure_threshold: 1, cooldown: 200ms");
        let mut caller = switch.gateway.connect();
        assert_eq!(caller.get(GET).status, 500);
        switch.gate.open();
        switch.status.store(status, Ordering::SeqCst);
        wait_until("the probe is answered", || caller.get(GET).status == status);
        assert_eq!(switch.state(), "closed", "{status}");
    }
}

#[test]
fn a_probe_whose_client_goes_away_frees_its_place() {
    let switch = Switch::new(1, "failure_threshold: 1, cooldown: 300ms");
    assert_eq!(switch.gateway.fetch(GET).status, 500);
    switch.status.store(200, Ordering::SeqCst);
    for _ in 0..3 {
        let probe = switch.probe();
        assert_eq!(switch.state(), "half-open");
        probe.reset();
    }
    let mut probe = switch.probe();
    switch.gate.open();
    assert_eq!(probe.answer().text(), "recovered");
    assert_eq!(switch.state(), "closed");
}

#[test]
fn a_probe_is_decided_at_its_response_head() {
    let failing = Arc::new(AtomicUsize::new(1));
    let left = Arc::clone(&failing);
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::start(move |conn| {
        while conn.request().is_some() {
            if left.swap(0, Ordering::SeqCst) == 1 {
                let _ = conn.send(reply(500, "", ""));
                continue;
            }
            let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
            door.wait();
            let _ = conn.send("hello");
        }
    });
    let gateway = Gateway::start(&service(
        "user-service",
        &[&origin.url()],
        "circuit_breaker: {failure_threshold: 1, cooldown: 200ms}",
    ));
    let mut caller = gateway.connect();
    assert_eq!(caller.get(GET).status, 500);
    let mut probe = None;
    wait_until("the probe has its head", || {
        caller.send(format!("GET {GET} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let (status, head) = caller.head();
        if status == 503 {
            let length = head.field("Content-Length").unwrap().parse().unwrap();
            caller.exact(length);
            return false;
        }
        probe = Some(status);
        true
    });
    assert_eq!(probe, Some(200));
    assert_eq!(gateway.breaker("user-service", &origin.url()), closed(0), "before the body came");
    gate.open();
    assert_eq!(caller.exact(5), b"hello");
}

#[test]
fn an_outcome_of_an_older_generation_changes_nothing() {
    // a request that began while it was closed fails after it has opened and closed again
    let slow = Gate::default();
    let door = slow.clone();
    let failures = Arc::new(AtomicUsize::new(2));
    let left = Arc::clone(&failures);
    let origin = Origin::answering(move |request| {
        if request.target() == "/slow" {
            door.wait();
            return reply(500, "", "");
        }
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => reply(500, "", ""),
            Err(_) => ok("fine"),
        }
    });
    let gateway = Gateway::start(&service(
        "user-service",
        &[&origin.url()],
        "circuit_breaker: {failure_threshold: 2, cooldown: 200ms}",
    ));
    let mut old = gateway.connect();
    old.send("GET /v1/proxy/user-service/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    let mut caller = gateway.connect();
    for _ in 0..2 {
        assert_eq!(caller.get(GET).status, 500);
    }
    wait_until("it has recovered", || caller.get(GET).status == 200);
    slow.open();
    assert_eq!(old.answer().status, 500);
    assert_eq!(gateway.breaker("user-service", &origin.url()), closed(0));
}

#[test]
fn clients_that_hang_up_are_neutral() {
    let gone = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&gone);
    let origin = Origin::start(move |conn| {
        while let Some(request) = conn.request() {
            if request.target() == "/hang" {
                if conn.wait_gone() {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                return;
            }
            let _ = conn.send(reply(500, "", ""));
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 3}"));
    let mut caller = gateway.connect();
    for _ in 0..2 {
        assert_eq!(caller.get("/v1/proxy/s/500").status, 500);
    }
    for number in 1..=5 {
        let mut hasty = gateway.connect();
        hasty.send("GET /v1/proxy/s/hang HTTP/1.1\r\nHost: a\r\n\r\n");
        origin.wait_heads(2 + number);
        if number % 2 == 0 {
            hasty.reset();
        } else {
            drop(hasty);
        }
        wait_until("the attempt is cancelled", || gone.load(Ordering::SeqCst) == number);
    }
    assert_eq!(gateway.breaker("s", &origin.url()), closed(2), "neither counted nor forgiven");
    assert_eq!(caller.get("/v1/proxy/s/500").status, 500);
    assert_eq!(gateway.breaker("s", &origin.url()), ("open".to_owned(), 3));
}

#[test]
fn malformed_bodies_of_clients_are_neutral() {
    let origin = Origin::echo();
    let gateway = Gateway::start(&service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 1}"));
    for bad in ["zz\r\n", "5\r\nhelloX\r\n", "5\r\nhello\r\n-1\r\n"] {
        let mut caller = gateway.connect();
        let head = "POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n";
        // the attempt has begun when the bad chunk comes
        caller.send_apart(head);
        caller.send(bad);
        assert_proxy_problem(&caller.answer(), 400, "http_request_error");
        // and a client that goes away in the middle of its body
        let mut caller = gateway.connect();
        caller.send_apart(head);
        drop(caller);
    }
    assert_eq!(gateway.breaker("s", &origin.url()), closed(0));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200);
}

#[test]
fn a_poisonous_request_opens_one_breaker_only() {
    let (a, b) = (RefusedPort::new(), RefusedPort::new());
    let settings = "circuit_breaker: {failure_threshold: 1}\nretries: {attempts: 3}";
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], settings));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 502);
    assert_eq!(gateway.breaker("s", &a.url()), ("open".to_owned(), 1));
    assert_eq!(gateway.breaker("s", &b.url()), closed(0), "a later failure of the same exchange is neutral");
}

#[test]
fn a_body_cut_short_is_a_failure() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 3}"));
    for _ in 0..3 {
        let mut caller = gateway.connect();
        caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
        caller.broken_answer();
    }
    assert_eq!(gateway.breaker("s", &origin.url()), ("open".to_owned(), 3));
}

#[test]
fn five_means_five_over_all_shards() {
    let refused = RefusedPort::new();
    let gateway = Gateway::with("workers: 4", &service("s", &[&refused.url()], ONCE));
    // fresh connections are spread over the shards by the kernel
    let answers: Vec<u16> = (0..40).map(|_| gateway.fetch("/v1/proxy/s/").status).collect();
    let expected: Vec<u16> = (0..40).map(|at| if at < 5 { 502 } else { 503 }).collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_storm_of_failures_opens_it_once() {
    let refused = RefusedPort::new();
    let mut gateway = Gateway::with("workers: 4", &service("s", &[&refused.url()], ONCE));
    let address = gateway.addr();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut caller = Caller::connect(address);
                for _ in 0..20 {
                    assert!([502, 503].contains(&caller.get("/v1/proxy/s/").status));
                }
            });
        }
    });
    assert_eq!(gateway.breaker("s", &refused.url()), ("open".to_owned(), 5));
    gateway.wait_for_log("the change", |line| line.contains("closed → open"));
    assert_eq!(gateway.log_lines(|line| line.contains("closed → open")).len(), 1);
}

#[test]
fn both_of_two_open_is_503_with_the_earliest_probe() {
    let (a, b) = (RefusedPort::new(), RefusedPort::new());
    let settings = "circuit_breaker: {failure_threshold: 2, cooldown: 90s}\nretries: {attempts: 0}";
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], settings));
    let mut caller = gateway.connect();
    for _ in 0..4 {
        assert_eq!(caller.get("/v1/proxy/s/").status, 502);
    }
    let response = caller.get("/v1/proxy/s/");
    assert_proxy_problem(&response, 503, "destination_unavailable");
    let seconds: u64 = response.field("Retry-After").unwrap().parse().unwrap();
    assert!((61..=90).contains(&seconds), "{seconds}");
}

#[test]
fn with_the_defaults_a_client_sees_exactly_five_failures_of_a_dead_upstream() {
    let dead = RefusedPort::new();
    let gateway = Gateway::start(&service("s", &[&dead.url()], ""));
    let seen: Vec<u16> = (0..8).map(|_| gateway.fetch("/v1/proxy/s/").status).collect();
    assert_eq!(seen, [502, 502, 502, 502, 502, 503, 503, 503]);
}

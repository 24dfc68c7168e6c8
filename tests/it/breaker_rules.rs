//! `circuit_breaker` in full: several probes, growing cooldowns, rates, slow answers, observing, and what
//! happens when nobody is left.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Gate, Gateway, Origin, RefusedPort, reply, service, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// An origin whose status can be changed.
fn settable() -> (Origin, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let shown = Arc::clone(&status);
    (Origin::answering(move |_| reply(shown.load(Ordering::SeqCst), "", "body")), status)
}

fn rules(circuit_breaker: &str) -> String {
    format!("retries: {{attempts: 0}}\ncircuit_breaker: {{{circuit_breaker}}}")
}

fn upstream(gateway: &Gateway, position: usize) -> serde_json::Value {
    gateway.status()["services"][0]["upstreams"][position].clone()
}

/// Asks until the upstream is reached again; how often it was skipped.
fn until_probe(gateway: &Gateway, origin: &Origin) -> u16 {
    let heads = origin.heads();
    let mut status = 0;
    wait_until("a probe", || {
        status = gateway.fetch("/v1/proxy/s/").status;
        origin.heads() > heads
    });
    status
}

#[test]
fn as_many_successes_close_it_as_it_takes() {
    let (origin, status) = settable();
    let settings = rules("failure_threshold: 1, cooldown: 100ms, success_threshold: 3");
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], &settings));
    status.store(500, Ordering::SeqCst);
    gateway.fetch("/v1/proxy/s/");
    status.store(404, Ordering::SeqCst);
    assert_eq!(until_probe(&gateway, &origin), 404);
    for _ in 0..2 {
        assert_eq!(gateway.breaker("s", &origin.url()).0, "half-open");
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, 404, "every answer that is not a failure counts");
    }
    assert_eq!(gateway.breaker("s", &origin.url()).0, "closed");
    gateway.wait_for_log("why it closed", |line| line.ends_with("half-open → closed because 3 probes succeeded"));
}

#[test]
fn several_probes_at_once() {
    let gate = Arc::new(Gate::default());
    let (opened, fails) = (Arc::clone(&gate), Arc::new(AtomicU16::new(1)));
    let failing = Arc::clone(&fails);
    let origin = Origin::answering(move |_| {
        if failing.load(Ordering::SeqCst) == 1 {
            return reply(500, "", "");
        }
        opened.wait();
        reply(200, "", "")
    });
    let settings = rules("failure_threshold: 1, cooldown: 100ms, half_open_probes: 2, success_threshold: 2");
    let gateway = Gateway::start(&service("s", &[&origin.url()], &settings));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    fails.store(0, Ordering::SeqCst);
    wait_until("the cooldown is over", || upstream(&gateway, 0)["next_probe_seconds"].as_f64() == Some(0.0));
    let mut probes = [gateway.connect(), gateway.connect()];
    for probe in &mut probes {
        probe.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    origin.wait_heads(3);
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 503, "destination_unavailable");
    gate.open();
    assert!(probes.iter_mut().all(|probe| probe.answer().status == 200));
    assert_eq!(gateway.breaker("s", &origin.url()).0, "closed");
}

#[test]
fn the_cooldown_grows_and_the_log_says_how_long_it_is() {
    let refused = RefusedPort::new();
    let settings = rules("failure_threshold: 1, cooldown: 100ms, backoff: 2, max_cooldown: 300ms");
    let mut gateway = Gateway::start(&service("s", &[&refused.url()], &settings));
    for expected in ["100 ms", "200 ms", "300 ms", "300 ms"] {
        let line = format!("connection refused; next probe in {expected}");
        let seen = gateway.log_lines(|log| log.ends_with(&line)).len();
        wait_until("a failure", || gateway.fetch("/v1/proxy/s/").status == 502);
        gateway.wait_for_log(&line, |log| log.ends_with(&line));
        wait_until("one more of it", || gateway.log_lines(|log| log.ends_with(&line)).len() == seen + 1);
    }
}

#[test]
fn observing_tells_and_skips_nobody() {
    let (origin, status) = settable();
    let mut gateway =
        Gateway::start(&service("s", &[&origin.url()], &rules("mode: observe, failure_threshold: 2, cooldown: 1h")));
    status.store(500, Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    }
    assert_eq!(origin.heads(), 5);
    assert_eq!(gateway.breaker("s", &origin.url()).0, "open");
    assert_eq!(upstream(&gateway, 0)["mode"], "observe");
    gateway.wait_for_log("that it would open", |line| line.contains("observed only: closed → open after 2 failures"));
}

#[test]
fn a_breaker_can_be_switched_off_and_on_by_a_reload() {
    let (origin, status) = settable();
    let on = rules("failure_threshold: 1, cooldown: 1h");
    let gateway = Gateway::start(&service("s", &[&origin.url()], &on));
    status.store(500, Ordering::SeqCst);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 503);
    gateway.rewrite_services(&service("s", &[&origin.url()], &rules("enabled: false")));
    assert_eq!(gateway.reload().status, 200);
    assert!((0..3).all(|_| gateway.fetch("/v1/proxy/s/").status == 500));
    gateway.rewrite_services(&service("s", &[&origin.url()], &on));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 503, "it is as it was");
}

#[test]
fn what_is_neutral_neither_counts_nor_resets() {
    let (origin, status) = settable();
    let settings = rules("failure_threshold: 3, neutral_on: [503, 404, client_abort, rejected]");
    let gateway = Gateway::start(&service("s", &[&origin.url()], &settings));
    for code in [500, 503, 404, 500, 503] {
        status.store(code, Ordering::SeqCst);
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, code);
    }
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 2));
}

#[test]
fn a_share_of_failures_opens_it() {
    let (origin, status) = settable();
    let settings = rules("failure_threshold: 100, failure_rate: 50%, min_requests: 10, window: 1h");
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], &settings));
    for number in 0..9 {
        status.store(if number % 2 == 0 { 500 } else { 200 }, Ordering::SeqCst);
        gateway.fetch("/v1/proxy/s/");
    }
    assert_eq!(gateway.breaker("s", &origin.url()).0, "closed");
    status.store(500, Ordering::SeqCst);
    gateway.fetch("/v1/proxy/s/");
    assert_eq!(gateway.breaker("s", &origin.url()).0, "open");
    gateway.wait_for_log("the share", |line| line.contains("because 6 of the last 10 failed, last: status 500"));
}

#[test]
fn slow_answers_count_by_themselves_or_by_their_share() {
    let slow = || {
        Origin::answering(|_| {
            // What is tested is that it takes time.
            std::thread::sleep(std::time::Duration::from_millis(60));
            reply(200, "", "")
        })
    };
    let (a, b) = (slow(), slow());
    let mut gateway = Gateway::start(
        &[
            service("s", &[&a.url()], &rules("failure_threshold: 2, slow_after: 20ms")),
            service("t", &[&b.url()], &rules("slow_after: 20ms, slow_rate: 80%, min_requests: 3, window: 1h")),
        ]
        .concat(),
    );
    for _ in 0..2 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200, "a slow answer is an answer");
    }
    assert_eq!(gateway.breaker("s", &a.url()).0, "open");
    gateway.wait_for_log("the slow answer", |line| line.contains("after 2 failures in a row, last: slow answer: "));
    for number in 0..3 {
        assert_eq!(gateway.breaker("t", &b.url()).0, "closed", "{number}");
        assert_eq!(gateway.fetch("/v1/proxy/t/").status, 200);
    }
    assert_eq!(gateway.breaker("t", &b.url()).0, "open");
    gateway.wait_for_log("their share", |line| line.contains("because 3 of the last 3 were slow"));
}

#[test]
fn with_nobody_left_an_early_probe_may_pass() {
    let (origin, status) = settable();
    let refused = RefusedPort::new();
    let settings = rules("failure_threshold: 1, cooldown: 1h, when_all_open: probe");
    let mut gateway = Gateway::start(&service("s", &[&origin.url(), &refused.url()], &settings));
    status.store(500, Ordering::SeqCst);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 502);
    status.store(200, Ordering::SeqCst);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200, "the one that opened first is tried first");
    assert_eq!(gateway.breaker("s", &origin.url()).0, "closed");
    gateway.wait_for_log("why", |line| line.contains("open → half-open before the cooldown is over"));
}

#[test]
fn with_nobody_left_breakers_may_be_ignored() {
    let (origin, status) = settable();
    let settings = rules("failure_threshold: 1, cooldown: 1h, when_all_open: ignore");
    let gateway = Gateway::start(&service("s", &[&origin.url()], &settings));
    status.store(500, Ordering::SeqCst);
    for _ in 0..4 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    }
    status.store(200, Ordering::SeqCst);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200);
    assert_eq!(gateway.breaker("s", &origin.url()).0, "open", "it closes by a probe alone");
}

#[test]
fn the_status_remembers_the_last_failures_and_transitions() {
    let (origin, status) = settable();
    let gateway = Gateway::start(&service("s", &[&origin.url()], &rules("failure_threshold: 3, cooldown: 1h")));
    status.store(502, Ordering::SeqCst);
    for number in 0..3 {
        let mut caller = gateway.connect();
        caller.send(format!("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\nX-Request-Id: call-{number}\r\n\r\n"));
        assert_eq!(caller.answer().status, 502);
    }
    wait_until("the transition", || upstream(&gateway, 0)["transitions"].as_array().is_some_and(|t| t.len() == 1));
    let shown = upstream(&gateway, 0);
    let failures = shown["last_failures"].as_array().expect("a list");
    let ids: Vec<&str> = failures.iter().filter_map(|failure| failure["request_id"].as_str()).collect();
    assert_eq!(ids, ["call-0", "call-1", "call-2"]);
    for failure in failures {
        assert_eq!((failure["class"].as_str(), failure["status"].as_u64()), (Some("5xx"), Some(502)));
        assert!(failure["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0) && failure["time"].is_string());
    }
    let transition = &shown["transitions"][0];
    assert_eq!((transition["from"].as_str(), transition["to"].as_str()), (Some("closed"), Some("open")));
    assert!(transition["reason"].as_str().is_some_and(|reason| reason.contains("last: status 502")));
    assert_eq!(shown["attempts"], shown["settled"]);
}

#[test]
fn one_request_and_its_retries_open_one_breaker_at_most() {
    let bads: Vec<Origin> = (0..3).map(|_| Origin::answering(|_| reply(500, "", "poisoned"))).collect();
    let urls: Vec<String> = bads.iter().map(Origin::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let settings = "retries: {attempts: 2, on: [5xx]}\ncircuit_breaker: {failure_threshold: 1, cooldown: 1h}";
    let gateway = Gateway::start(&service("s", &urls, settings));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    assert!(bads.iter().all(|bad| bad.heads() == 1), "each was tried");
    let open = urls.iter().filter(|url| gateway.breaker("s", url).0 == "open").count();
    assert_eq!(open, 1);
}

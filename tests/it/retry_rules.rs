//! `retries` in full: what is tried again because the configuration says so, within its bounds, and that the
//! client sees exactly one answer whatever was tried.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Gate, Gateway, Origin, RefusedPort, assert_same_bytes, noise, ok, reply, service, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn failing(status: u16) -> Origin {
    Origin::answering(move |_| reply(status, "", "no"))
}

/// Reads each request and answers nothing; its connections stay open.
fn silent() -> Origin {
    Origin::start(|conn| while conn.request().is_some() {})
}

fn counter(gateway: &Gateway, name: &str) -> u64 {
    gateway.status()["counters"][name].as_u64().expect("a counter")
}

#[test]
fn a_listed_status_is_tried_elsewhere_and_seen_only_once() {
    let (bad, good) = (failing(503), Origin::hello("good"));
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], "retries: {on: [503]}"));
    let mut caller = gateway.connect();
    for _ in 0..3 {
        let response = caller.get("/v1/proxy/s/");
        assert_eq!((response.status, response.text().as_str()), (200, "good"));
    }
    assert_eq!((bad.heads(), good.heads()), (3, 3), "a retry draws a turn too");
    assert_eq!(gateway.breaker("s", &bad.url()), ("closed".to_owned(), 3), "what was not wanted counts as well");
    assert_eq!(counter(&gateway, "retries"), 3);
}

#[test]
fn a_status_that_is_not_listed_is_passed_on() {
    let (bad, good) = (failing(500), Origin::hello("good"));
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], "retries: {on: [503, 429]}"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 500);
    assert_eq!(good.heads(), 0);
}

#[test]
fn the_last_answer_is_passed_on_whole_when_nobody_else_is_left() {
    let body = noise(300_000);
    let expected = body.clone();
    let bad = Origin::answering(move |_| reply(503, "X-Why: overloaded\r\n", &body));
    let gateway = Gateway::start(&service("s", &[&bad.url()], "retries: {on: [5xx], attempts: 2}"));
    let mut caller = gateway.connect();
    let response = caller.get("/v1/proxy/s/");
    assert_eq!((response.status, response.field("X-Why").as_deref()), (503, Some("overloaded")));
    assert_same_bytes(&response.body, &expected);
    assert_eq!(bad.heads(), 3, "the same upstream again, for there is no other");
    assert_eq!(caller.get("/v1/proxy/s/").status, 503, "the client's connection goes on");
}

#[test]
fn an_unwanted_answer_that_ends_with_its_connection_is_passed_on_whole() {
    let body = noise(200_000);
    let expected = body.clone();
    let bad = Origin::start(move |conn| {
        conn.request();
        let mut answer = b"HTTP/1.1 500 No\r\n\r\n".to_vec();
        answer.extend_from_slice(&body);
        let _ = conn.send(answer);
        conn.close();
    });
    // The other one is full, so nobody is left for the second try; that is found out when the answer is held.
    let gate = Arc::new(Gate::default());
    let opened = Arc::clone(&gate);
    let full = Origin::answering(move |_| {
        opened.wait();
        ok("late")
    });
    let upstreams =
        format!("s:\n  upstreams:\n    - {{url: '{}', max_requests: 1}}\n    - {}\n", full.url(), bad.url());
    let gateway = Gateway::start(&(upstreams + "  retries: {on: [5xx], attempts: 1}\n"));
    let mut waiting = gateway.connect();
    waiting.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
    full.wait_heads(1);
    let response = gateway.fetch("/v1/proxy/s/");
    gate.open();
    assert_eq!(waiting.answer().text(), "late");
    assert_eq!(response.status, 500);
    assert_same_bytes(&response.body, &expected);
}

#[test]
fn an_upstream_that_hangs_costs_one_try() {
    let (hangs, good) = (silent(), Origin::hello("good"));
    let mut gateway = Gateway::start(&service(
        "s",
        &[&hangs.url(), &good.url()],
        "retries: {on: [timeout], per_try_timeout: 200ms}\ncircuit_breaker: {failure_threshold: 2}",
    ));
    let mut caller = gateway.connect();
    for _ in 0..6 {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "good");
    }
    assert_eq!(hangs.heads(), 2, "then its circuit is open");
    gateway.wait_for_log("why", |line| line.contains("last: response timeout of one try"));
}

#[test]
fn the_last_try_that_takes_too_long_is_a_504_that_names_the_field() {
    let hangs = silent();
    let gateway = Gateway::start(&service("s", &[&hangs.url()], "retries: {attempts: 0, per_try_timeout: 100ms}"));
    let response = gateway.fetch("/v1/proxy/s/");
    assert_proxy_problem(&response, 504, "http_response_timeout");
    assert!(response.text().contains("retries.per_try_timeout"), "{}", response.text());
}

#[test]
fn a_client_that_is_slow_to_send_does_not_use_up_the_try() {
    let echo = Origin::echo();
    let gateway = Gateway::start(&service("s", &[&echo.url()], "retries: {attempts: 0, per_try_timeout: 300ms}"));
    let mut caller = gateway.connect();
    caller.send("PUT /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n1234");
    echo.wait_heads(1);
    // Longer than a try may take, by the gateway's own clock.
    let begun = gateway.status()["uptime_seconds"].as_u64().unwrap();
    wait_until("two seconds have gone by", || gateway.status()["uptime_seconds"].as_u64().unwrap() >= begun + 2);
    caller.send("5678");
    assert_eq!(caller.answer().text(), "12345678");
}

#[test]
fn methods_say_what_may_be_repeated_after_it_was_sent() {
    let (bad, good) = (failing(503), Origin::hello("good"));
    let urls = [&*bad.url(), &*good.url()];
    let gateway = Gateway::start(
        &[
            service("default", &urls, "retries: {on: [503]}"),
            service("post", &urls, "retries: {on: [503], methods: [POST]}"),
        ]
        .concat(),
    );
    assert_eq!(gateway.connect().post("/v1/proxy/default/", "x").status, 503);
    assert_eq!(gateway.connect().post("/v1/proxy/post/", "x").text(), "good");
    let mut caller = gateway.connect();
    let mut statuses = [caller.get("/v1/proxy/post/").status, caller.get("/v1/proxy/post/").status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "GET is not listed there");
}

#[test]
fn a_body_above_the_limit_is_not_sent_again() {
    let (bad, good) = (failing(503), Origin::echo());
    let settings = "retries: {on: [503], body_limit: 1KiB}\ncircuit_breaker: {enabled: false}";
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], settings));
    let put = |length: usize| {
        let mut caller = gateway.connect();
        caller.send(format!("PUT /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        caller.send("a".repeat(length));
        caller.answer()
    };
    assert_eq!(put(1024).body.len(), 1024, "it is sent again");
    assert_eq!(put(1024).body.len(), 1024, "the other's turn, or again");
    let mut statuses = [put(1025).status, put(1025).status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "one of the two has the failing one's turn");
}

#[test]
fn the_budget_bounds_retries() {
    let (bad, good) = (failing(503), Origin::hello("good"));
    let settings = "retries: {on: [503], budget: 0%, budget_min: 0}\ncircuit_breaker: {enabled: false}";
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], settings));
    let mut caller = gateway.connect();
    let statuses: Vec<u16> = (0..6).map(|_| caller.get("/v1/proxy/s/").status).collect();
    assert_eq!(statuses, [503, 200, 503, 200, 503, 200]);
    gateway.rewrite_services(&service("s", &[&bad.url(), &good.url()], &settings.replace("0%", "100%")));
    assert_eq!(gateway.reload().status, 200);
    assert!((0..20).all(|_| caller.get("/v1/proxy/s/").status == 200), "each request saves up one retry");
}

#[test]
fn a_retry_waits_for_its_backoff_and_a_client_that_leaves_ends_it() {
    let (bad, good) = (failing(503), Origin::hello("good"));
    let settings = "retries: {on: [503], backoff: 400ms}\ncircuit_breaker: {enabled: false}";
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], settings));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "good");
    assert_eq!((bad.heads(), good.heads()), (1, 1));

    // Two failing ones: it is in its pause when the client leaves.
    gateway.rewrite_services(&service("s", &[&bad.url()], &settings.replace("400ms", "1h")));
    assert_eq!(gateway.reload().status, 200);
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
    bad.wait_heads(2);
    wait_until("the failed try is over", || {
        gateway.status()["services"][0]["upstreams"][0]["in_flight"].as_u64() == Some(0)
    });
    drop(caller);
    wait_until("the client's exchange ended", || counter(&gateway, "aborted") == 1);
}

#[test]
fn timeouts_total_ends_a_pause() {
    let bad = failing(503);
    let settings = "retries: {on: [503], backoff: 1h}\ntimeouts: {total: 300ms}\ncircuit_breaker: {enabled: false}";
    let gateway = Gateway::start(&service("s", &[&bad.url()], settings));
    let response = gateway.fetch("/v1/proxy/s/");
    assert_proxy_problem(&response, 504, "http_response_timeout");
    assert!(response.text().contains("timeouts.total"), "{}", response.text());
}

#[test]
fn timeouts_total_is_never_retried() {
    let hangs = silent();
    let settings = "retries: {on: [timeout], attempts: 5}\ntimeouts: {total: 300ms}";
    let gateway = Gateway::start(&service("s", &[&hangs.url()], settings));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 504, "http_response_timeout");
    assert_eq!(hangs.heads(), 1);
}

#[test]
fn an_invalid_answer_is_tried_elsewhere_when_listed() {
    let bad = Origin::start(|conn| {
        conn.request();
        let _ = conn.send("HTTP/1.1 2x0 What\r\n\r\n");
        conn.close();
    });
    let good = Origin::hello("good");
    let gateway = Gateway::start(&service("s", &[&bad.url(), &good.url()], "retries: {on: [invalid]}"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "good");
}

#[test]
fn what_is_not_listed_is_not_tried_again_even_when_nothing_was_sent() {
    let (refused, good) = (RefusedPort::new(), Origin::hello("good"));
    let gateway = Gateway::start(&service("s", &[&refused.url(), &good.url()], "retries: {on: [timeout]}"));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 502, "connection_refused");
}

#[test]
fn never_the_same_upstream_while_another_is_free() {
    let bads = [failing(503), failing(503), failing(503)];
    let good = Origin::hello("good");
    let urls: Vec<String> = bads.iter().map(Origin::url).chain([good.url()]).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let settings =
        "retries: {on: [503], attempts: 3, budget: 100%, budget_min: 100}\ncircuit_breaker: {enabled: false}";
    let gateway = Gateway::with("workers: 4", &service("s", &urls, settings));
    for _ in 0..20 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "good");
    }
}

#[test]
fn a_response_that_has_begun_is_never_taken_back() {
    let sent = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&sent);
    let cut = Origin::start(move |conn| {
        conn.request();
        let _ = conn.send_apart("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345");
        flag.store(true, Ordering::SeqCst);
        conn.reset();
    });
    let good = Origin::hello("good");
    let on = "retries: {on: [connect, tls, unsent, closed, invalid, timeout, 5xx, 200-299], methods: [GET]}";
    let gateway = Gateway::start(&service("s", &[&cut.url()], on));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
    caller.broken_answer();
    assert!(sent.load(Ordering::SeqCst));
    assert_eq!(good.heads(), 0);
}

#[test]
fn an_interim_response_ends_the_right_to_repeat() {
    let gate = Arc::new(Gate::default());
    let opened = Arc::clone(&gate);
    let hinting = Origin::start(move |conn| {
        conn.request();
        let _ = conn.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
        opened.wait();
        let _ = conn.send(reply(503, "", "no"));
        conn.close();
    });
    let good = Origin::answering(|_| ok("good"));
    let gateway = Gateway::start(&service("s", &[&hinting.url(), &good.url()], "retries: {on: [503]}"));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(caller.head().0, 103);
    gate.open();
    assert_eq!(caller.answer().status, 503);
    assert_eq!(good.heads(), 0);
}

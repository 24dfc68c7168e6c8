//! What is tried again on another replica, and what never is: a stopped replica costs no GET, and
//! no request that an upstream may have received is sent twice unless its method allows it.

use crate::support::problem::assert_proxy_problem;
use crate::support::{
    Caller, Gateway, Origin, RefusedPort, assert_same_bytes, chunked, noise, ok, reply, service, wait_until,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// An origin that reads each request whole and then closes without an answer.
fn swallowing() -> Origin {
    Origin::start(|conn| {
        conn.request();
    })
}

#[test]
fn a_stopped_replica_costs_no_get() {
    let origin = Origin::hello("alive");
    let refused = RefusedPort::new();
    let gateway = Gateway::start(&service("s", &[&refused.url(), &origin.url()], ""));
    let mut caller = gateway.connect();
    for _ in 0..50 {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "alive");
    }
    assert_eq!(gateway.breaker("s", &refused.url()), ("open".to_owned(), 5), "retried attempts count as well");
    assert_eq!(origin.heads(), 50);
}

#[test]
fn stopping_one_of_two_replicas_under_load_costs_no_get() {
    let a = Origin::hello("alive");
    let mut b = Origin::hello("alive");
    let gateway = Gateway::with("workers: 4", &service("s", &[&a.url(), &b.url()], ""));
    let address = gateway.addr();
    let stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut caller = Caller::connect(address);
                while !stop.load(Ordering::SeqCst) {
                    let response = caller.get("/v1/proxy/s/");
                    if response.status != 200 {
                        stop.store(true, Ordering::SeqCst);
                        panic!("a GET failed: {} {}", response.status, response.text());
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let progress = |more: usize| {
            let target = answered.load(Ordering::SeqCst) + more;
            wait_until("the load goes on", || stop.load(Ordering::SeqCst) || answered.load(Ordering::SeqCst) >= target);
        };
        progress(200);
        b.stop();
        progress(500);
        b.restart();
        progress(200);
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(gateway.breaker("s", &b.url()).0, "open");
}

#[test]
fn any_method_is_retried_when_there_was_no_connection() {
    let origin = Origin::echo();
    let refused = RefusedPort::new();
    let settings = "circuit_breaker: {failure_threshold: 1000}";
    let gateway = Gateway::start(&service("s", &[&refused.url(), &origin.url()], settings));
    let mut caller = gateway.connect();
    let body = noise(30_000);
    for method in ["POST", "PATCH", "PUT", "DELETE", "PROPFIND"] {
        for _ in 0..2 {
            caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
            caller.send(&body);
            let response = caller.answer();
            assert_eq!(response.status, 200, "{method}");
            assert_same_bytes(&response.body, &body);
        }
    }
    caller.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    caller.send(chunked(&body, 1000));
    assert_same_bytes(&caller.answer().body, &body);
    assert_eq!(origin.requests().len(), 11);
}

#[test]
fn a_body_that_comes_after_the_retry_arrives_whole() {
    let origin = Origin::echo();
    let refused = RefusedPort::new();
    let gateway = Gateway::start(&service("s", &[&refused.url(), &origin.url()], ""));
    let mut caller = gateway.connect();
    let body = noise(3_000_000);
    caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    // the head has reached the second upstream before the first byte of the body is sent
    origin.wait_heads(1);
    caller.send(&body);
    assert_same_bytes(&caller.answer().body, &body);
}

#[test]
fn a_post_that_may_have_arrived_is_sent_once() {
    for method in ["POST", "PATCH", "PROPFIND"] {
        let (a, b) = (swallowing(), swallowing());
        let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], "retries: {attempts: 3}"));
        let mut caller = gateway.connect();
        caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nonce"));
        assert_proxy_problem(&caller.answer(), 502, "connection_terminated");
        assert_eq!(a.heads() + b.heads(), 1, "{method}");
        assert_eq!(gateway.breaker("s", &a.url()), ("closed".to_owned(), 1), "{method}");
    }
}

#[test]
fn idempotent_methods_are_tried_on_the_other_replica() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        let (a, b) = (
            swallowing(),
            Origin::answering(|request| match request.method() {
                "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".to_vec(),
                _ => ok(&request.body),
            }),
        );
        let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], ""));
        let mut caller = gateway.connect();
        caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"));
        assert_eq!(caller.answer_to(method).status, 200, "{method}");
        assert_eq!((a.heads(), b.heads()), (1, 1), "{method}");
        assert_eq!(b.last().body, b"body");
        assert_eq!(gateway.breaker("s", &a.url()), ("closed".to_owned(), 1), "{method}");
    }
}

#[test]
fn attempts_bound_the_tries() {
    for attempts in 0..4 {
        let origins = [swallowing(), swallowing(), swallowing(), swallowing()];
        let urls = origins.each_ref().map(Origin::url);
        let urls = urls.each_ref().map(String::as_str);
        let gateway = Gateway::start(&service("s", &urls, &format!("retries: {{attempts: {attempts}}}")));
        assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 502, "connection_terminated");
        let heads = origins.each_ref().map(Origin::heads);
        assert_eq!(heads.iter().sum::<usize>(), attempts + 1, "{heads:?}");
        assert!(heads.iter().all(|heads| *heads <= 1), "never on one already tried: {heads:?}");
    }
}

#[test]
fn an_answer_is_never_repeated() {
    // a 5xx, an invalid head and a timeout have reached the upstream; they are not in the list of what is retried
    let faults: [fn() -> Origin; 3] = [
        || Origin::answering(|_| reply(503, "", "no")),
        || {
            Origin::start(|conn| {
                if conn.request().is_some() {
                    let _ = conn.send("garbage\r\n\r\n");
                }
            })
        },
        || {
            Origin::start(|conn| {
                if conn.request().is_some() {
                    conn.wait_gone();
                }
            })
        },
    ];
    for (fault, status) in faults.iter().zip([503, 502, 504]) {
        let (a, b) = (fault(), fault());
        let gateway =
            Gateway::start(&service("s", &[&a.url(), &b.url()], "retries: {attempts: 3}\ntimeouts: {response: 300ms}"));
        assert_eq!(gateway.fetch("/v1/proxy/s/").status, status);
        assert_eq!((a.heads(), b.heads()), (1, 0), "{status}");
    }
}

#[test]
fn a_retry_draws_a_turn() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let refused = RefusedPort::new();
    let settings = "circuit_breaker: {failure_threshold: 1000}";
    let gateway = Gateway::start(&service("s", &[&refused.url(), &a.url(), &b.url()], settings));
    let mut caller = gateway.connect();
    let order: String = (0..6).map(|_| caller.get("/v1/proxy/s/").text()).collect();
    // dead a | b | dead a | b …: the retry takes the turn of a, so that the next request is for b
    assert_eq!(order, "ababab");
}

#[test]
fn a_single_upstream_is_tried_again_when_no_other_is_there() {
    // closes its first connection after the request, answers on the second
    let origin = Origin::start(|conn| {
        while conn.request().is_some() && conn.number > 1 {
            let _ = conn.send(ok("second"));
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "second");
    assert_eq!(origin.connections(), 2);
}

#[test]
fn an_unwanted_response_that_cannot_be_passed_on_is_502() {
    // the status asks for another try, nothing is left to pay for it, and the body that came with it is malformed
    let origin = Origin::start(|conn| {
        while conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
        }
    });
    let settings = "retries: {on: [503], budget: 0%, budget_min: 0}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 502, "http_protocol_error");
    assert_eq!((gateway.fetch("/livez").status, origin.heads()), (200, 1));
}

#[test]
fn the_time_of_all_tries_ends_the_wait_for_one() {
    let origin = Origin::answering(|_| reply(503, "", "no"));
    let settings = "retries: {on: [503], backoff: 60s}\ntimeouts: {total: 300ms}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 504, "http_response_timeout");
}

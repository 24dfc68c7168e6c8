//! Upstreams that fail, each in its own way: the client gets the status and the error token that
//! the failure has, the breaker counts it, and the connection is never used again.

use crate::support::origin::Conn;
use crate::support::problem::assert_proxy_problem;
use crate::support::{Gate, Gateway, Origin, RefusedPort, noise, ok, service, wait_until};
use std::sync::Arc;

/// No retries, so that each request shows one outcome.
const ONCE: &str = "retries: {attempts: 0}";

/// The same, and a response head must come soon.
const SOON: &str = "retries: {attempts: 0}\ntimeouts: {response: 300ms}";

/// An origin that does `fault` after each whole request until its connection ends.
fn faulty(fault: impl Fn(&mut Conn) + Send + Sync + 'static) -> Origin {
    Origin::start(move |conn| {
        if conn.request().is_some() {
            fault(conn);
        }
    })
}

/// Sends GETs to an origin with this fault: each must be answered with `status` and `token`, on the same
/// client connection and over a new upstream connection, and count as a failure.
#[track_caller]
fn each_request_fails(name: &str, origin: &Origin, status: u16, token: &str) {
    // only those that hang may run into the timer: a busy machine must not
    let settings = if status == 504 { SOON } else { ONCE };
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    let mut caller = gateway.connect();
    for number in 1..=3 {
        let response = caller.get("/v1/proxy/s/");
        assert_eq!(response.status, status, "{name}: {}", response.text());
        assert_proxy_problem(&response, status, token);
        assert_eq!(response.json()["service"], "s", "{name}");
        assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), number), "{name}");
    }
    assert_eq!(origin.connections(), 3, "{name}: a failed connection is not used again");
    assert_eq!(origin.heads(), 3, "{name}: nothing was repeated");
}

#[test]
fn a_refused_connection_is_502() {
    let refused = RefusedPort::new();
    let gateway = Gateway::start(&service("s", &[&refused.url()], ONCE));
    let mut caller = gateway.connect();
    for number in 1..=3 {
        assert_proxy_problem(&caller.get("/v1/proxy/s/"), 502, "connection_refused");
        assert_eq!(gateway.breaker("s", &refused.url()), ("closed".to_owned(), number));
    }
}

#[test]
fn a_connection_that_ends_before_the_answer_is_502() {
    let origin = faulty(|_| {});
    each_request_fails("closed", &origin, 502, "connection_terminated");
    let origin = faulty(Conn::reset);
    each_request_fails("reset", &origin, 502, "connection_terminated");
}

#[test]
fn a_head_that_is_cut_is_502() {
    for part in ["H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"] {
        let origin = faulty(move |conn| {
            let _ = conn.send(part);
        });
        each_request_fails(part, &origin, 502, "http_response_incomplete");
    }
}

#[test]
fn a_head_that_never_ends_is_504() {
    let origin = faulty(|conn| {
        let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n");
        conn.wait_gone();
    });
    each_request_fails("half a head", &origin, 504, "http_response_timeout");
    let origin = faulty(|conn| {
        conn.wait_gone();
    });
    each_request_fails("nothing", &origin, 504, "http_response_timeout");
}

#[test]
fn an_invalid_head_is_502() {
    let length = "Content-Length: 5\r\n";
    let cases: Vec<(&str, String)> = vec![
        ("garbage", "this is not HTTP at all\r\n\r\n".to_owned()),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()),
        ("another version", format!("HTTP/2.0 200 OK\r\n{length}\r\nhello")),
        ("status of two digits", format!("HTTP/1.1 20 OK\r\n{length}\r\nhello")),
        ("status of four digits", format!("HTTP/1.1 2000 OK\r\n{length}\r\nhello")),
        ("status below 100", format!("HTTP/1.1 099 OK\r\n{length}\r\nhello")),
        ("status not a number", format!("HTTP/1.1 abc OK\r\n{length}\r\nhello")),
        ("NUL in the reason", format!("HTTP/1.1 200 O\0K\r\n{length}\r\nhello")),
        ("length and coding", format!("HTTP/1.1 200 OK\r\n{length}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("coding and length", format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{length}\r\n0\r\n\r\n")),
        ("two lengths", format!("HTTP/1.1 200 OK\r\n{length}Content-Length: 6\r\n\r\nhello!")),
        ("signed length", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello".to_owned()),
        ("length over 64 bits", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551621\r\n\r\nhello".to_owned()),
        ("empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello".to_owned()),
        ("unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: magic\r\n\r\nhello".to_owned()),
        ("coding not final", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nhello".to_owned()),
        ("coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("folded field", format!("HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\n{length}\r\nhello")),
        ("space before the colon", format!("HTTP/1.1 200 OK\r\nX-A : b\r\n{length}\r\nhello")),
        ("field without a colon", format!("HTTP/1.1 200 OK\r\nX-A\r\n{length}\r\nhello")),
        ("invalid name", format!("HTTP/1.1 200 OK\r\nX(A): b\r\n{length}\r\nhello")),
        ("bare CR", format!("HTTP/1.1 200 OK\r\nX-A: b\rc\r\n{length}\r\nhello")),
        ("NUL", format!("HTTP/1.1 200 OK\r\nX-A: b\0c\r\n{length}\r\nhello")),
        ("control", format!("HTTP/1.1 200 OK\r\nX-A: b\u{1}c\r\n{length}\r\nhello")),
    ];
    for (name, answer) in cases {
        let origin = faulty(move |conn| {
            let _ = conn.send(&answer);
            conn.wait_gone();
        });
        each_request_fails(name, &origin, 502, "http_protocol_error");
    }
}

#[test]
fn a_head_without_bounds_is_502() {
    let endless = format!("HTTP/1.1 200 OK\r\nX-A: {}", "x".repeat(200_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(5000));
    for answer in [endless, many] {
        let origin = faulty(move |conn| {
            let _ = conn.send(&answer);
            conn.wait_gone();
        });
        let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
        let mut caller = gateway.connect();
        for _ in 0..2 {
            assert_eq!(caller.get("/v1/proxy/s/").status, 502);
        }
        assert_eq!(origin.connections(), 2);
    }
}

#[test]
fn a_101_that_nobody_asked_for_is_502() {
    let origin = faulty(|conn| {
        let _ = conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        conn.wait_gone();
    });
    each_request_fails("101", &origin, 502, "http_upgrade_failed");
}

#[test]
fn bytes_that_came_before_the_request_answer_nobody() {
    // a response that waits in a pooled connection must never become the next client's
    let (gate, gone) = (Gate::default(), Gate::default());
    let (door, seen) = (gate.clone(), gone.clone());
    let origin = Origin::start(move |conn| {
        if conn.number > 1 {
            while conn.request().is_some() {
                let _ = conn.send(ok("good"));
            }
        } else if conn.request().is_some() {
            let _ = conn.send(ok("first"));
            door.wait();
            let _ = conn.send(ok("evil"));
            // the gateway closes a connection that speaks out of turn
            assert!(conn.wait_gone());
            seen.open();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "first");
    gate.open();
    // the close comes without another request
    gone.wait();
    for _ in 0..3 {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "good");
    }
}

/// An origin whose connections answer one request each and end, as `end` does it, when the next one comes.
fn stale(end: impl Fn(&mut Conn) + Send + Sync + 'static) -> Origin {
    let end = Arc::new(end);
    Origin::start(move |conn| {
        if conn.request().is_some() {
            let _ = conn.send(ok("hello"));
            if conn.head().is_some() {
                end(conn);
            }
        }
    })
}

#[test]
fn a_get_that_loses_the_race_with_an_idle_close_is_repeated() {
    let reset = stale(Conn::reset);
    let closed = stale(|conn| {
        conn.close();
    });
    for origin in [&reset, &closed] {
        let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
        let mut caller = gateway.connect();
        for _ in 0..5 {
            let response = caller.get("/v1/proxy/s/");
            assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{}", response.text());
        }
        assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0), "the race is neutral");
        assert_eq!(origin.connections(), 5);
    }
}

#[test]
fn a_post_that_may_have_arrived_is_not_repeated() {
    let origin = stale(Conn::reset);
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let mut caller = gateway.connect();
    assert_eq!(caller.post("/v1/proxy/s/", "a").text(), "hello");
    assert_proxy_problem(&caller.post("/v1/proxy/s/", "b"), 502, "connection_terminated");
    assert_eq!(origin.heads(), 2);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_pooled_connection_that_was_seen_to_close_is_not_taken() {
    let gone = Gate::default();
    let seen = gone.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            let _ = conn.send(ok("hello"));
            if conn.number == 1 {
                // returns when the gateway has closed its side in answer
                assert!(conn.close());
                seen.open();
            }
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let mut caller = gateway.connect();
    assert_eq!(caller.post("/v1/proxy/s/", "a").text(), "hello");
    gone.wait();
    // a POST would not be repeated, so this shows that the dead connection was not tried
    assert_eq!(caller.post("/v1/proxy/s/", "b").text(), "hello");
}

#[test]
fn an_upstream_that_closes_while_the_request_is_sent_is_502_or_its_answer() {
    // closes after the head and leaves most of a large body unread
    let origin = Origin::start(|conn| {
        if conn.head().is_some() {
            conn.reset();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let body = noise(3_000_000);
    let mut caller = gateway.connect();
    caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    let _ = caller.try_send(&body);
    let response = caller.answer();
    // whether the connection persists depends on how much of the body was read by then
    assert_proxy_problem(&response, 502, "connection_terminated");

    // an answer that came before the reset stands
    let origin = Origin::start(|conn| {
        if conn.head().is_some() {
            let _ = conn.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig");
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ONCE));
    let mut caller = gateway.connect();
    caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    let _ = caller.try_send(&body);
    let response = caller.answer();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
}

#[test]
fn an_empty_list_of_upstreams_is_503() {
    let gateway = Gateway::start("empty: []\n");
    assert_proxy_problem(&gateway.fetch("/v1/proxy/empty/x"), 503, "destination_unavailable");
}

#[test]
fn a_slow_upload_does_not_keep_others_from_probing() {
    let mut origin = Origin::echo();
    let settings = "circuit_breaker: {failure_threshold: 1, cooldown: 300ms}\nretries: {attempts: 0}";
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200);
    origin.stop();
    wait_until("it is open", || gateway.fetch("/v1/proxy/s/").status == 503);
    origin.restart();
    // its body never comes: as the probe it would hold everybody up until the client is shed
    let mut slow = gateway.connect();
    wait_until("the slow one is the probe", || {
        slow = gateway.connect();
        slow.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
        !gateway.log_lines(|line| line.contains("→ half-open")).is_empty()
    });
    wait_until("another one has probed", || gateway.fetch("/v1/proxy/s/").status == 200);
    gateway.wait_for_log("it is closed", |line| line.contains("→ closed"));
    slow.send("hello");
    assert_eq!(slow.answer().text(), "hello");
}

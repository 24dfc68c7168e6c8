//! Every wait has an end: slow clients, slow upstreams, idle connections; and the blame lies with
//! the side that was waited for.

use crate::support::origin::SilentPort;
use crate::support::problem::assert_proxy_problem;
use crate::support::{Gate, Gateway, Origin, ok, service, wait_until};

#[test]
fn a_slow_head_is_408() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::with("client: {header_timeout: 300ms}", &service("s", &[&origin.url()], ""));
    for begin in ["G", "GET /v1/proxy/s/ HTTP/1.1\r\n", "GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nX-A: b"] {
        let mut caller = gateway.connect();
        caller.send(begin);
        assert_proxy_problem(&caller.answer(), 408, "http_request_error");
        caller.expect_eof();
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn bytes_that_trickle_do_not_prolong_the_head() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::with("client: {header_timeout: 300ms}", &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nX-A: ");
    // a byte each time round, until the gateway has had enough
    wait_until("the gateway answers", || {
        let _ = caller.try_send("a");
        caller.has_input()
    });
    assert_proxy_problem(&caller.answer(), 408, "http_request_error");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::with("client: {keep_alive: 500ms}", &service("s", &[&origin.url()], ""));
    let mut silent = gateway.connect();
    silent.expect_eof();
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    caller.expect_eof();
}

#[test]
fn a_slow_request_body_is_408_and_neutral() {
    let origin = Origin::echo();
    let gateway = Gateway::with(
        "client: {body_idle: 300ms}",
        &service("s", &[&origin.url()], "circuit_breaker: {failure_threshold: 1}"),
    );
    for field in ["Content-Length: 100\r\n\r\nbegin", "Transfer-Encoding: chunked\r\n\r\n64\r\nbegin"] {
        let mut caller = gateway.connect();
        caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n{field}"));
        assert_proxy_problem(&caller.answer(), 408, "http_request_error");
        caller.expect_eof();
    }
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0));
}

#[test]
fn an_upstream_without_an_answer_is_504() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.wait_gone();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "timeouts: {response: 300ms}"));
    let mut caller = gateway.connect();
    assert_proxy_problem(&caller.get("/v1/proxy/s/"), 504, "http_response_timeout");
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 1));
    // the client's connection is as good as before
    assert_proxy_problem(&caller.get("/v1/proxy/s/"), 504, "http_response_timeout");
    assert_eq!(origin.connections(), 2);
}

#[test]
fn an_interim_response_alone_is_no_answer() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 103 Early Hints\r\n\r\n");
            conn.wait_gone();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "timeouts: {response: 300ms}"));
    let response = gateway.fetch("/v1/proxy/s/");
    assert_proxy_problem(&response, 504, "http_response_timeout");
}

#[test]
fn the_response_timer_starts_after_the_request_body() {
    let origin = Origin::start(|conn| {
        while let Some(request) = conn.request() {
            let _ = conn.send(ok(&request.body));
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "timeouts: {response: 1s}"));
    let mut caller = gateway.connect();
    caller.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell");
    // another exchange runs into the same timer in the meantime, so that it has certainly passed
    let slow = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.wait_gone();
        }
    });
    gateway.rewrite_services(&format!(
        "{}{}",
        service("s", &[&origin.url()], "timeouts: {response: 1s}"),
        service("slow", &[&slow.url()], "timeouts: {response: 1500ms}")
    ));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/slow/").status, 504);
    caller.send("o");
    assert_eq!(caller.answer().text(), "hello");
}

#[test]
fn an_upstream_that_stalls_in_the_body_cuts_it_short() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart of it");
            conn.wait_gone();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "timeouts: {idle: 300ms}"));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.broken_answer().body, b"part of it");
    wait_until("the failure is counted", || gateway.breaker("s", &origin.url()).1 == 1);
}

#[test]
fn the_total_time_of_an_exchange_is_bounded() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.wait_gone();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "timeouts: {total: 300ms}"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 504);

    // pieces that keep coming do not prolong it
    let dripping = Origin::start(|conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            while conn.send_apart("x").is_ok() {}
        }
    });
    let gateway = Gateway::start(&service("s", &[&dripping.url()], "timeouts: {total: 300ms}"));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(caller.broken_answer().body.len() < 1_000_000);
}

#[test]
fn a_connection_that_is_never_made_is_504() {
    let silent = SilentPort::new();
    let gateway = Gateway::start(&service("s", &[&silent.url()], "timeouts: {connect: 300ms}\nretries: {attempts: 0}"));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 504, "connection_timeout");
    assert_eq!(gateway.breaker("s", &silent.url()), ("closed".to_owned(), 1));
}

#[test]
fn an_idle_upstream_connection_is_closed() {
    let closed = Gate::default();
    let seen = closed.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            let _ = conn.send(ok("hello"));
            // the next thing on this connection must be its end
            assert!(conn.exact(1).is_none());
            seen.open();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "pool: {idle: 300ms}"));
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    closed.wait();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    assert_eq!(origin.connections(), 2);
}

#[test]
fn an_announced_keep_alive_timeout_shortens_the_pool() {
    let closed = Gate::default();
    let seen = closed.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 5\r\n\r\nhello");
            assert!(conn.exact(1).is_none());
            seen.open();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], "pool: {idle: 1h}"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    closed.wait();
}

#[test]
fn a_pool_of_none_keeps_no_connection() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::start(&service("s", &[&origin.url()], "pool: {max_idle: 0}"));
    let mut caller = gateway.connect();
    for _ in 0..3 {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    }
    assert_eq!(origin.connections(), 3);
}

#[test]
fn a_client_that_closes_cancels_its_exchange_at_the_upstream() {
    let cancelled = Gate::default();
    let seen = cancelled.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() && conn.wait_gone() {
            seen.open();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    // half a close is a close, unless configured
    caller.half_close();
    cancelled.wait();
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0));
}

#[test]
fn half_close_waits_for_the_answer_when_configured() {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            door.wait();
            let _ = conn.send(ok("late"));
        }
    });
    let gateway = Gateway::with("client: {half_close: true}", &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    caller.half_close();
    // another client's round trip: the gateway has seen the FIN by then
    assert_eq!(gateway.fetch("/livez").status, 200);
    gate.open();
    assert_eq!(caller.answer().text(), "late");
    caller.expect_eof();
}

#[test]
fn interim_responses_do_not_prolong_the_wait_for_the_final_one() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            while conn.send_apart("HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {}
        }
    });
    let settings = "timeouts: {response: 300ms}\nretries: {attempts: 0}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 504, "http_response_timeout");
}

#[test]
fn a_response_head_in_drops_is_not_in_time() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            let _ = conn.send_apart("HTTP/1.1 200 OK\r\nX-Slow: ");
            while conn.send_apart("x").is_ok() {}
        }
    });
    let settings = "timeouts: {response: 300ms}\nretries: {attempts: 0}";
    let limits = "limits: {header_bytes: 1MiB, buffer: 2MiB}";
    let gateway = Gateway::with(limits, &service("s", &[&origin.url()], settings));
    assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 504, "http_response_timeout");
}

#[test]
fn an_upstream_that_owes_a_100_is_the_one_that_is_late() {
    let origin = Origin::start(|conn| {
        if conn.head().is_some() {
            conn.wait_gone();
        }
    });
    let settings = "timeouts: {response: 300ms}\nretries: {attempts: 0}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    let mut caller = gateway.connect();
    caller.send("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_proxy_problem(&caller.answer(), 504, "http_response_timeout");
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 1));
}

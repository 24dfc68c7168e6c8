//! Upgrades to another protocol, which make a tunnel of an exchange and nothing less than the upstream's 101
//! does; and `Max-Forwards`, which makes the gateway the last to see a `TRACE` or `OPTIONS`.

use crate::support::problem::assert_proxy_problem;
use crate::support::wire::{End, Head, Wire};
use crate::support::{Caller, Gateway, Origin, assert_same_bytes, noise, ok, service, wait_until};
use std::net::TcpListener;

/// No retries, and no circuit that opens over the failures that a test wants to see.
const PATIENT: &str = "retries: {attempts: 0}\ncircuit_breaker: {failure_threshold: 10000}";

/// A listener of the test's own, whose connections the test plays itself; and a gateway before it.
struct Stage {
    listener: TcpListener,
    gateway: Gateway,
}

impl Stage {
    fn new(settings: &str) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gateway = Gateway::start(&service("s", &[&url], &format!("{PATIENT}\n{settings}")));
        Stage { listener, gateway }
    }

    /// The upstream's end of the next connection.
    #[track_caller]
    fn accept(&self) -> Wire {
        let mut accepted = None;
        wait_until("the gateway connects", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (stream, _) = accepted.unwrap();
        stream.set_nonblocking(false).unwrap();
        Wire::new(stream)
    }

    /// A client that has sent `request`, and the upstream that has read its head.
    #[track_caller]
    fn asked(&self, request: &str) -> (Caller, Wire, Head) {
        let mut caller = self.gateway.connect();
        caller.send(request);
        let mut upstream = self.accept();
        let head = upstream.head().unwrap_or_else(|end| panic!("{end:?} instead of a request"));
        (caller, upstream, head)
    }

    /// Both ends of a tunnel.
    #[track_caller]
    fn tunnel(&self) -> (Caller, Wire) {
        let (mut caller, mut upstream, _) = self.asked(ASK);
        upstream.write(SWITCH.as_bytes()).unwrap();
        assert_eq!(caller.head().0, 101);
        (caller, upstream)
    }
}

const ASK: &str = "GET /v1/proxy/s/chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

const GET: &str = "GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n";

/// Whether the peer has sent something that was not read yet.
fn has_input(wire: &Wire) -> bool {
    wire.stream.set_nonblocking(true).unwrap();
    let peeked = wire.stream.peek(&mut [0]);
    wire.stream.set_nonblocking(false).unwrap();
    !wire.unused().is_empty() || peeked.is_ok()
}

#[test]
fn a_websocket_is_asked_for_and_becomes_a_tunnel() {
    let stage = Stage::new("");
    let (mut caller, mut upstream, asked) = stage.asked(ASK);
    assert_eq!(asked.line, "GET /chat HTTP/1.1");
    assert_eq!(asked.all("Upgrade"), ["websocket"]);
    assert!(asked.lists("Connection", "upgrade"));
    assert!(!asked.lists("Connection", "keep-alive"), "the client's own options end here");
    assert_eq!(asked.all("Sec-WebSocket-Key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    assert_eq!(asked.all("Sec-WebSocket-Version"), ["13"]);

    upstream.write(SWITCH.as_bytes()).unwrap();
    let (status, switched) = caller.head();
    assert_eq!(status, 101);
    assert_eq!(switched.all("Upgrade"), ["websocket"]);
    assert!(switched.lists("Connection", "upgrade") && !switched.lists("Connection", "close"));
    assert_eq!(switched.all("Sec-WebSocket-Accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    for name in ["Content-Length", "Transfer-Encoding"] {
        assert!(switched.all(name).is_empty(), "{name} in a 101");
    }

    // what looks like a message is none any more, and whoever speaks first is heard
    for piece in [GET.as_bytes(), b"\0\xff\r\n\r\n", SWITCH.as_bytes()] {
        upstream.write(piece).unwrap();
        assert_eq!(caller.exact(piece.len()), piece);
        caller.send(piece);
        assert_eq!(upstream.exact(piece.len()).unwrap(), piece);
    }
}

#[test]
fn bytes_behind_both_heads_arrive_and_not_before_the_101() {
    let stage = Stage::new("");
    let (mut caller, mut upstream, _) = stage.asked(&format!("{ASK}eager"));
    caller.send("more");
    assert!(!has_input(&upstream), "nothing passes before the upstream has agreed");
    upstream.write(format!("{SWITCH}server first").as_bytes()).unwrap();
    assert_eq!(caller.head().0, 101);
    assert_eq!(caller.exact(12), b"server first");
    assert_eq!(upstream.exact(9).unwrap(), b"eagermore");
}

#[test]
fn an_interim_response_may_come_before_the_101() {
    let stage = Stage::new("");
    let (mut caller, mut upstream, _) = stage.asked(ASK);
    upstream.write(format!("HTTP/1.1 103 Early Hints\r\n\r\n{SWITCH}hello").as_bytes()).unwrap();
    assert_eq!(caller.head().0, 103);
    assert_eq!(caller.head().0, 101);
    assert_eq!(caller.exact(5), b"hello");
    caller.send("world");
    assert_eq!(upstream.exact(5).unwrap(), b"world");
}

#[test]
fn a_tunnel_may_be_closed_on_one_side_first() {
    let stage = Stage::new("");
    let (mut caller, mut upstream) = stage.tunnel();
    caller.send("last words");
    caller.half_close();
    let (heard, end) = upstream.rest();
    assert_eq!((heard.as_slice(), end), (b"last words".as_slice(), End::Eof));
    upstream.write(b"answer").unwrap();
    assert_eq!(caller.exact(6), b"answer");
    drop(upstream);
    caller.expect_eof();

    let (mut caller, mut upstream) = stage.tunnel();
    upstream.write(b"last words").unwrap();
    upstream.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (heard, end) = caller.rest();
    assert_eq!((heard.as_slice(), end), (b"last words".as_slice(), End::Eof));
    caller.send("answer");
    assert_eq!(upstream.exact(6).unwrap(), b"answer");
    drop(caller);
    assert_eq!(upstream.drain(), End::Eof);
}

#[test]
fn a_reset_ends_the_tunnel_on_the_other_side() {
    let stage = Stage::new("");
    let (caller, mut upstream) = stage.tunnel();
    caller.reset();
    assert_ne!(upstream.drain(), End::Late);
    let (mut caller, upstream) = stage.tunnel();
    upstream.reset();
    assert_ne!(caller.rest().1, End::Late);
}

#[test]
fn megabytes_pass_a_tunnel_both_ways_at_once() {
    let stage = Stage::new("");
    let (mut caller, mut upstream) = stage.tunnel();
    let body = noise(5_000_000);
    let (up, down) = (std::sync::Arc::clone(&upstream.stream), body.clone());
    // the upstream writes while it reads, and the client reads only when it has written all
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut &*up, &down));
    let reader = std::thread::spawn(move || upstream.exact(5_000_000));
    caller.send(&body);
    assert_same_bytes(&caller.exact(5_000_000), &body);
    writer.join().unwrap().unwrap();
    assert_same_bytes(&reader.join().unwrap().unwrap(), &body);
}

#[test]
fn an_upstream_connection_that_was_a_tunnel_is_not_used_again() {
    let stage = Stage::new("");
    let (caller, mut upstream) = stage.tunnel();
    drop(caller);
    assert_eq!(upstream.drain(), End::Eof);
    let (mut caller, mut upstream, _) = stage.asked(GET);
    upstream.write(&ok("hello")).unwrap();
    assert_eq!(caller.answer().text(), "hello");
}

#[test]
fn only_configured_protocols_are_asked_for() {
    let stage = Stage::new("");
    let ask = |upgrade: &str| {
        let fields = format!("Connection: upgrade, HTTP2-Settings\r\n{upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__");
        let (_caller, _upstream, head) =
            stage.asked(&format!("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        assert!(head.all("HTTP2-Settings").is_empty(), "HTTP2-Settings passed");
        assert!(!head.lists("Connection", "HTTP2-Settings"));
        head
    };
    for mixed in ["Upgrade: h2c, websocket", "Upgrade: websocket, h2c", "Upgrade: h2c\r\nUpgrade: WebSocket"] {
        let head = ask(mixed);
        let tokens = head.all("Upgrade").join(", ");
        assert!(tokens.eq_ignore_ascii_case("websocket"), "{mixed}: {tokens}");
        assert!(head.lists("Connection", "upgrade"), "{mixed}");
    }
    for other in ["Upgrade: h2c", "Upgrade: HTTP/2.0", "Upgrade: TLS/1.0", "Upgrade: websocketx", "Upgrade: "] {
        let head = ask(other);
        assert!(head.all("Upgrade").is_empty(), "{other} passed");
        assert!(!head.lists("Connection", "upgrade"), "{other}");
    }
    let stage = Stage::new("upgrades: []");
    assert!(stage.asked(ASK).2.all("Upgrade").is_empty(), "websocket is not configured");
}

#[test]
fn an_upgrade_is_not_asked_for_where_none_can_be() {
    let stage = Stage::new("");
    let upgrade = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let requests = [
        ("HTTP/1.0", format!("GET /v1/proxy/s/ HTTP/1.0\r\n{upgrade}\r\n")),
        ("no option", "GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".to_owned()),
        ("POST", format!("POST /v1/proxy/s/ HTTP/1.1\r\n{upgrade}\r\n")),
        ("HEAD", format!("HEAD /v1/proxy/s/ HTTP/1.1\r\n{upgrade}\r\n")),
        ("OPTIONS", format!("OPTIONS /v1/proxy/s/ HTTP/1.1\r\n{upgrade}\r\n")),
        ("a length", format!("GET /v1/proxy/s/ HTTP/1.1\r\n{upgrade}Content-Length: 2\r\n\r\nhi")),
        ("chunks", format!("GET /v1/proxy/s/ HTTP/1.1\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    ];
    for (name, request) in requests {
        let (mut caller, mut upstream, head) = stage.asked(&request);
        assert!(head.all("Upgrade").is_empty(), "{name}: Upgrade passed");
        assert!(!head.lists("Connection", "upgrade"), "{name}");
        // an upstream that switches all the same does so unasked
        upstream.write(SWITCH.as_bytes()).unwrap();
        if name == "HEAD" {
            assert_eq!(caller.answer_to("HEAD").status, 502);
        } else {
            assert_proxy_problem(&caller.answer(), 502, "http_upgrade_failed");
        }
        assert_ne!(upstream.drain(), End::Late, "{name}: the connection is over");
    }
}

#[test]
fn a_101_to_another_protocol_than_asked_is_502() {
    let stage = Stage::new("");
    for fields in [
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\n",
        "",
    ] {
        let (mut caller, mut upstream, _) = stage.asked(ASK);
        upstream.write(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nbytes").as_bytes()).unwrap();
        assert_proxy_problem(&caller.answer(), 502, "http_upgrade_failed");
        assert_ne!(upstream.drain(), End::Late);
    }
}

#[test]
fn an_answer_instead_of_the_101_is_an_ordinary_response() {
    let stage = Stage::new("");
    let (mut caller, mut upstream, _) = stage.asked(ASK);
    let refusal = "HTTP/1.1 403 Forbidden\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno";
    upstream.write(refusal.as_bytes()).unwrap();
    let response = caller.answer();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    assert!(response.head.all("Upgrade").is_empty() && !response.lists("Connection", "upgrade"));
    // both connections go on as if nothing had been asked
    caller.send(GET);
    assert_eq!(upstream.head().unwrap().line, "GET / HTTP/1.1");
    upstream.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").unwrap();
    assert_eq!(caller.answer().text(), "hello");
    // also when the next request was there already
    caller.send(format!("{ASK}{GET}"));
    assert_eq!(upstream.head().unwrap().line, "GET /chat HTTP/1.1");
    upstream.write(&ok("not now")).unwrap();
    assert_eq!(caller.answer().text(), "not now");
    assert_eq!(upstream.head().unwrap().line, "GET / HTTP/1.1");
    upstream.write(&ok("hello")).unwrap();
    assert_eq!(caller.answer().text(), "hello");
}

/// A gateway before an origin that answers with what it saw of `Max-Forwards`.
fn counting() -> (Origin, Gateway) {
    let origin = Origin::answering(|request| ok(request.all("Max-Forwards").join("+")));
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    (origin, gateway)
}

#[test]
fn options_with_no_forwards_left_is_answered_by_the_gateway() {
    let (origin, gateway) = counting();
    let mut caller = gateway.connect();
    for target in ["/v1/proxy/s/x", "/v1/proxy/s", "*"] {
        caller.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"));
        let response = caller.answer();
        assert_eq!(response.status, 204, "{target}");
        assert!(response.lists("Allow", "GET") && response.lists("Allow", "OPTIONS"), "{target}");
    }
    assert_eq!(origin.heads(), 0);
}

#[test]
fn trace_with_no_forwards_left_shows_the_request_without_its_secrets() {
    let (origin, gateway) = counting();
    let mut caller = gateway.connect();
    for _ in 0..2 {
        caller.send(
            "TRACE /v1/proxy/s/x?y HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nauthorization: Bearer secret\r\nCookie: a=secret\r\n\
             Proxy-Authorization: Basic secret\r\nX-Two: 2\r\nCookie: b=secret\r\nMax-Forwards: 0\r\n\r\n",
        );
        let response = caller.answer();
        assert_eq!(response.status, 200);
        assert_eq!(response.field("Content-Type").as_deref(), Some("message/http"));
        assert_eq!(
            response.text(),
            "TRACE /v1/proxy/s/x?y HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nX-Two: 2\r\nMax-Forwards: 0\r\n\r\n"
        );
    }
    assert_eq!(origin.heads(), 0);
}

#[test]
fn max_forwards_is_counted_down_for_trace_and_options() {
    let (_origin, gateway) = counting();
    let mut caller = gateway.connect();
    for method in ["OPTIONS", "TRACE"] {
        for (sent, passed) in [("1", "0"), ("2", "1"), ("10", "9"), ("007", "6"), ("255", "254")] {
            caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: {sent}\r\n\r\n"));
            assert_eq!(caller.answer().text(), passed, "{method} {sent}");
        }
    }
}

#[test]
fn max_forwards_means_nothing_to_other_methods() {
    let (_origin, gateway) = counting();
    let mut caller = gateway.connect();
    for method in ["GET", "POST", "DELETE", "trace", "options"] {
        caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"));
        assert_eq!(caller.answer().text(), "0", "{method}");
    }
}

#[test]
fn a_malformed_max_forwards_is_ignored() {
    let (origin, gateway) = counting();
    let mut caller = gateway.connect();
    let values = ["x", "-1", "+0", "0x0", "0.0", "0, 5", "", "0 0"];
    for value in values {
        for method in ["OPTIONS", "TRACE"] {
            caller.send(format!("{method} /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n"));
            assert_eq!(caller.answer().status, 200, "{method} {value:?}");
        }
    }
    assert_eq!(origin.heads(), 2 * values.len(), "all went on");
}

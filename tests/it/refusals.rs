//! Malformed and unwelcome requests: each is answered as the rules of HTTP say, on a connection that
//! then closes where the rest of the input cannot be trusted; nothing of it reaches an upstream as a
//! request; and the next client is served as if nothing had been.

use crate::support::problem::{assert_problem, assert_proxy_problem};
use crate::support::wire::End;
use crate::support::{Gateway, Origin, service};

/// A gateway before one origin with a base path, under the name `s`.
fn setting() -> (Origin, Gateway) {
    let origin = Origin::hello("good");
    let gateway = Gateway::start(&service("s", &[&format!("{}/base", origin.url())], ""));
    (origin, gateway)
}

/// Sends each request on a connection of its own and expects `status` as a problem document, then
/// the end of the connection. After each, a good request must still work, and the upstream must
/// have seen good requests only.
#[track_caller]
fn refuse_each(cases: &[(&str, Vec<u8>)], status: u16) {
    let (origin, gateway) = setting();
    for (name, bytes) in cases {
        let mut caller = gateway.connect();
        // the gateway may refuse, and close, before it has read the rest
        let _ = caller.try_send(bytes);
        let response = match caller.try_answer("GET") {
            Ok(response) => response,
            Err(broken) => panic!("{name}: no answer: {broken:?}"),
        };
        assert_eq!(response.status, status, "{name}: {}", response.text());
        if status == 400 {
            assert_proxy_problem(&response, 400, "http_request_error");
        } else {
            assert_problem(&response, status);
        }
        assert!(response.lists("Connection", "close"), "{name}: the answer announces the close");
        let (more, end) = caller.rest();
        assert!(more.is_empty() && end == End::Eof, "{name}: {end:?} after {} more bytes", more.len());
        assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "good", "after {name}");
    }
    for request in origin.requests() {
        assert_eq!(request.target(), "/base/good", "something else reached the upstream");
    }
    assert_eq!(origin.requests().len(), cases.len());
}

fn cases(list: &[(&'static str, &str)]) -> Vec<(&'static str, Vec<u8>)> {
    list.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect()
}

/// A POST with these field lines (each ended by CR LF) and this body.
fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}").into_bytes()
}

#[test]
fn ambiguous_and_malformed_lengths() {
    let list = [
        ("length and coding", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("coding and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("length 0 and coding", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ("two lengths in a list", "Content-Length: 5, 6\r\n", "hello"),
        ("plus sign", "Content-Length: +5\r\n", "hello"),
        ("minus sign", "Content-Length: -5\r\n", "hello"),
        ("hexadecimal", "Content-Length: 0x5\r\n", "hello"),
        ("hexadecimal digit", "Content-Length: 5a\r\n", "hello"),
        ("fraction", "Content-Length: 5.0\r\n", "hello"),
        ("inner space", "Content-Length: 5 5\r\n", "hello"),
        ("empty", "Content-Length:\r\n", "hello"),
        ("comma alone", "Content-Length: ,\r\n", "hello"),
        ("empty list member", "Content-Length: 5,\r\n", "hello"),
        ("over 64 bits", "Content-Length: 18446744073709551616\r\n", "hello"),
        ("far over 64 bits", "Content-Length: 99999999999999999999999999999999\r\n", "hello"),
        ("wraps to 5", "Content-Length: 18446744073709551621\r\n", "hello"),
        ("two different lengths, one malformed", "Content-Length: 5\r\nContent-Length: five\r\n", "hello"),
    ];
    let all: Vec<_> = list.iter().map(|(name, fields, body)| (*name, post(fields, body))).collect();
    refuse_each(&all, 400);
}

#[test]
fn transfer_codings_that_do_not_end_with_one_chunked() {
    let list = [
        ("unknown", "Transfer-Encoding: magic\r\n"),
        ("gzip alone", "Transfer-Encoding: gzip\r\n"),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n"),
        ("unknown before chunked", "Transfer-Encoding: magic, chunked\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("chunked in two fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("two fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("empty", "Transfer-Encoding:\r\n"),
        ("in quotes", "Transfer-Encoding: \"chunked\"\r\n"),
        ("prefixed", "Transfer-Encoding: xchunked\r\n"),
        ("with a control before", "Transfer-Encoding: \u{b}chunked\r\n"),
        ("two words", "Transfer-Encoding: chunked chunked\r\n"),
    ];
    let mut all: Vec<_> = list.iter().map(|(name, fields)| (*name, post(fields, "0\r\n\r\n"))).collect();
    let old = "POST /v1/proxy/s/bad HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    all.push(("chunked in HTTP/1.0", old.as_bytes().to_vec()));
    refuse_each(&all, 400);
}

#[test]
fn malformed_chunks() {
    let list = [
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("extension alone", ";a=b\r\nhello\r\n0\r\n\r\n"),
        ("not a digit", "g\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("minus", "-5\r\nhello\r\n0\r\n\r\n"),
        ("space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        ("over 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("far over 64 bits", "fffffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("line end of LF alone after the size", "5\nhello\r\n0\r\n\r\n"),
        ("line end of CR alone after the size", "5\rhello\r\n0\r\n\r\n"),
        ("data longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
        ("data ended by LF alone", "5\r\nhello\n0\r\n\r\n"),
        ("data ended by CR alone", "5\r\nhello\r0\r\n\r\n"),
        ("no end of data", "5\r\nhello0\r\n\r\n"),
        ("bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        ("last chunk ended by LF alone", "5\r\nhello\r\n0\n\r\n"),
        ("trailer without colon", "0\r\nnonsense\r\n\r\n"),
        ("trailer with space before the colon", "0\r\nX-T : v\r\n\r\n"),
        ("trailer folded", "0\r\nX-T: v\r\n folded\r\n\r\n"),
        ("trailer with NUL", "0\r\nX-T: a\0b\r\n\r\n"),
        ("trailer ended by LF alone", "0\r\nX-T: v\n\r\n"),
    ];
    let all: Vec<_> = list.iter().map(|(name, body)| (*name, post("Transfer-Encoding: chunked\r\n", body))).collect();
    refuse_each(&all, 400);
}

#[test]
fn an_endless_chunk_extension_or_trailer_is_bounded() {
    let (origin, gateway) = setting();
    let long = "x".repeat(200_000);
    for body in [format!("5;{long}"), format!("0\r\nX-T: {long}"), format!("0\r\n{}", "X-T: v\r\n".repeat(20_000))] {
        let mut caller = gateway.connect();
        let _ = caller.try_send(post("Transfer-Encoding: chunked\r\n", &body));
        let response = caller.answer();
        assert!([400, 413, 431].contains(&response.status), "{}", response.status);
        assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "good");
    }
    assert!(origin.requests().iter().all(|request| request.target() == "/base/good"));
}

#[test]
fn malformed_fields() {
    let list = [
        ("folded", "X-A: b\r\n c\r\n"),
        ("folded with a tab", "X-A: b\r\n\tc\r\n"),
        ("first line folded", " X-A: b\r\n"),
        ("space before the colon", "X-A : b\r\n"),
        ("tab before the colon", "X-A\t: b\r\n"),
        ("space before the colon of a length", "Content-Length : 5\r\n"),
        ("space before the colon of a coding", "Transfer-Encoding : chunked\r\n"),
        ("bare CR in a value", "X-A: b\rc\r\n"),
        ("bare CR hides a field", "X-A: b\rTransfer-Encoding: chunked\r\n"),
        ("two CR", "X-A: b\r\r\n"),
        ("NUL in a value", "X-A: b\0c\r\n"),
        ("NUL in a name", "X-\0A: b\r\n"),
        ("control in a value", "X-A: b\u{1}c\r\n"),
        ("escape in a value", "X-A: b\u{1b}c\r\n"),
        ("DEL in a value", "X-A: b\u{7f}c\r\n"),
        ("vertical tab in a value", "X-A: b\u{b}c\r\n"),
        ("no colon", "X-A\r\n"),
        ("empty name", ": b\r\n"),
        ("space in a name", "X A: b\r\n"),
        ("parenthesis in a name", "X(A): b\r\n"),
        ("slash in a name", "X/A: b\r\n"),
        ("at in a name", "X@A: b\r\n"),
        ("quote in a name", "X\"A: b\r\n"),
        ("brackets in a name", "X[A]: b\r\n"),
        ("braces in a name", "X{A}: b\r\n"),
        ("backslash in a name", "X\\A: b\r\n"),
        ("high byte in a name", "X-\u{e9}: b\r\n"),
    ];
    let all: Vec<_> = list.iter().map(|(name, fields)| (*name, post(fields, ""))).collect();
    refuse_each(&all, 400);
}

#[test]
fn line_ends_of_lf_alone() {
    let all = cases(&[
        ("everywhere", "GET /v1/proxy/s/bad HTTP/1.1\nHost: a\n\n"),
        ("after the request line", "GET /v1/proxy/s/bad HTTP/1.1\nHost: a\r\n\r\n"),
        ("after a field", "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n"),
        ("hides a field", "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\nX-A: b\nX-B: c\r\n\r\n"),
        ("at the end", "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\n"),
    ]);
    refuse_each(&all, 400);
}

#[test]
fn host_missing_doubled_or_invalid() {
    let line = "GET /v1/proxy/s/bad HTTP/1.1\r\n";
    let list = [
        ("none", format!("{line}\r\n")),
        ("none but others", format!("{line}X-A: b\r\n\r\n")),
        ("two", format!("{line}Host: a\r\nHost: b\r\n\r\n")),
        ("two equal", format!("{line}Host: a\r\nHost: a\r\n\r\n")),
        ("two in HTTP/1.0", "GET /v1/proxy/s/bad HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        ("with a path", format!("{line}Host: a/b\r\n\r\n")),
        ("with a space", format!("{line}Host: a b\r\n\r\n")),
        ("with user-info", format!("{line}Host: user@a\r\n\r\n")),
        ("with a query", format!("{line}Host: a?b\r\n\r\n")),
        ("a list", format!("{line}Host: a, b\r\n\r\n")),
        ("port not a number", format!("{line}Host: a:b\r\n\r\n")),
        ("bracket open", format!("{line}Host: [::1\r\n\r\n")),
        ("invalid in HTTP/1.0", "GET /v1/proxy/s/bad HTTP/1.0\r\nHost: a/b\r\n\r\n".to_owned()),
    ];
    let all: Vec<_> = list.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    refuse_each(&all, 400);
}

#[test]
fn bad_request_lines() {
    let all = cases(&[
        ("fragment", "GET /v1/proxy/s/bad#x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("space in the target", "GET /v1/proxy/s/b ad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("tab in the target", "GET /v1/proxy/s/b\tad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("control in the target", "GET /v1/proxy/s/b\u{1}ad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("NUL in the target", "GET /v1/proxy/s/b\0ad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("DEL in the target", "GET /v1/proxy/s/b\u{7f}ad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bare CR in the target", "GET /v1/proxy/s/b\rad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bad percent-encoding", "GET /v1/proxy/s/%zz HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("cut percent-encoding", "GET /v1/proxy/s/%4 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bad percent-encoding in the service", "GET /v1/proxy/%zz/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no slash", "GET v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("empty target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two spaces", "GET  /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("space at the end", "GET /v1/proxy/s/bad HTTP/1.1 \r\nHost: a\r\n\r\n"),
        ("space at the begin", " GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no version", "GET /v1/proxy/s/bad\r\nHost: a\r\n\r\n"),
        ("version in lower case", "GET /v1/proxy/s/bad http/1.1\r\nHost: a\r\n\r\n"),
        ("version not a number", "GET /v1/proxy/s/bad HTTP/x.1\r\nHost: a\r\n\r\n"),
        ("another protocol", "GET /v1/proxy/s/bad ICE/1.0\r\nHost: a\r\n\r\n"),
        ("invalid method", "G@T /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("NUL in the method", "G\0T /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("binary", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n"),
    ]);
    refuse_each(&all, 400);
}

#[test]
fn paths_that_would_leave_the_base_path() {
    let rests = [
        "..",
        "../",
        "../secret",
        "%2e%2e/secret",
        "%2E%2e/secret",
        ".%2e/secret",
        "..%2fsecret",
        "..%5csecret",
        "..\\secret",
        "..;x/secret",
        "..;/secret",
        "%2e%2e;x=y/secret",
        "a/../../secret",
        "a/b/../../../secret",
        "a%2f..%2f..%2fsecret",
        "a/..;/..;/secret",
        "../base/x",
        "a\\..\\..\\secret",
    ];
    let all: Vec<_> = rests
        .iter()
        .map(|rest| (*rest, format!("GET /v1/proxy/s/{rest} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()))
        .collect();
    refuse_each_staying_open(&all);
}

/// Like [`refuse_each`] for well-formed requests: the connection may stay.
#[track_caller]
fn refuse_each_staying_open(cases: &[(&str, Vec<u8>)]) {
    let (origin, gateway) = setting();
    for (name, bytes) in cases {
        let mut caller = gateway.connect();
        caller.send(bytes);
        let response = caller.answer();
        assert_eq!(response.status, 400, "{name}: {}", response.text());
        assert_problem(&response, 400);
        assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "good", "after {name}");
    }
    assert!(origin.requests().iter().all(|request| request.target() == "/base/good"));
    assert_eq!(origin.requests().len(), cases.len());
}

#[test]
fn dot_and_empty_segments_do_not_cover_an_escape() {
    // a server that removes dots takes `./..` for `..`, one that merges slashes takes `//..` for `/..`
    let rests = ["./../secret", "././../secret", "%2e/../secret", "/../secret", "a/.././../secret"];
    let all: Vec<_> = rests
        .iter()
        .map(|rest| (*rest, format!("GET /v1/proxy/s/{rest} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()))
        .collect();
    refuse_each_staying_open(&all);
}

#[test]
fn dots_that_stay_inside_the_base_path_pass_unchanged() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for rest in
        ["a/../b", "a/b/../../c", "...", "..a", "a..", ".", "a/..", "x?../../y", "%252e%252e/x", "a/%2e%2e/b", ".;x"]
    {
        assert_eq!(caller.get(&format!("/v1/proxy/s/{rest}")).status, 200, "{rest}");
        assert_eq!(origin.last().target(), format!("/base/{rest}"));
    }
}

#[test]
fn a_request_line_over_its_limit_is_414() {
    let all = [9_000, 30_000].map(|length| {
        let path = "a".repeat(length);
        ("long", format!("GET /v1/proxy/s/{path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes())
    });
    refuse_each(&all, 414);
}

#[test]
fn a_head_over_its_limits_is_431() {
    let line = "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n";
    let one = format!("{line}X-Big: {}\r\n\r\n", "v".repeat(40_000));
    let sum = format!("{line}{}\r\n", format!("X-Part: {}\r\n", "v".repeat(1000)).repeat(40));
    let count = format!("{line}{}\r\n", "X: y\r\n".repeat(101));
    let endless = format!("{line}X-Big: {}", "v".repeat(100_000));
    let all = [("one field", one), ("sum", sum), ("count", count), ("without an end", endless)];
    refuse_each(&all.map(|(name, text)| (name, text.into_bytes())), 431);
}

#[test]
fn limits_of_the_head_are_configurable_and_exact_in_count() {
    let origin = Origin::hello("good");
    let settings = "limits: {headers: 10, request_line: 100B, header_bytes: 1KiB}";
    let gateway = Gateway::with(settings, &service("s", &[&origin.url()], ""));
    let request = |path: &str, fields: &str| format!("GET /v1/proxy/s/{path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let status = |text: String| {
        let mut caller = gateway.connect();
        caller.send(text);
        caller.answer().status
    };
    assert_eq!(status(request("", &"X: y\r\n".repeat(9))), 200);
    assert_eq!(status(request("", &"X: y\r\n".repeat(10))), 431);
    assert_eq!(status(request(&"a".repeat(60), "")), 200);
    assert_eq!(status(request(&"a".repeat(100), "")), 414);
    assert_eq!(status(request("", &format!("X: {}\r\n", "y".repeat(800)))), 200);
    assert_eq!(status(request("", &format!("X: {}\r\n", "y".repeat(1100)))), 431);
}

#[test]
fn a_body_for_an_own_route_is_bounded() {
    let (_origin, gateway) = setting();
    let line = "POST /v1/reload-config HTTP/1.1\r\nHost: localhost\r\n";
    let body = "x".repeat(5000);
    let chunk = format!("1388\r\n{body}\r\n0\r\n\r\n");
    let requests = [
        format!("{line}Content-Length: 5000\r\n\r\n{body}"),
        format!("{line}Content-Length: 5000000000\r\n\r\n"),
        format!("{line}Transfer-Encoding: chunked\r\n\r\n{chunk}"),
    ];
    for request in requests {
        let mut caller = gateway.connect();
        let _ = caller.try_send(request);
        assert_problem(&caller.answer(), 413);
        caller.expect_eof();
        assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "good");
    }
    let mut caller = gateway.connect();
    assert_eq!(caller.post("/v1/reload-config", &"x".repeat(4000)).status, 200, "a small body is read and ignored");
    assert_eq!(caller.get("/v1/proxy/s/good").text(), "good", "and leaves nothing behind");
}

#[test]
fn connect_is_not_implemented() {
    let all = cases(&[
        ("authority", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"),
        ("path", "CONNECT /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n"),
    ]);
    let (origin, gateway) = setting();
    for (name, bytes) in &all {
        let mut caller = gateway.connect();
        caller.send(bytes);
        let response = caller.answer();
        // CONNECT with a path is malformed as well
        assert!(response.status == 501 || (*name == "path" && response.status == 400), "{name}: {}", response.status);
        assert_problem(&response, response.status);
        caller.expect_eof();
    }
    assert_eq!(origin.heads(), 0);
}

#[test]
fn other_versions_are_505() {
    let all = cases(&[
        ("2.0", "GET /v1/proxy/s/bad HTTP/2.0\r\nHost: a\r\n\r\n"),
        ("3.7", "GET /v1/proxy/s/bad HTTP/3.7\r\nHost: a\r\n\r\n"),
    ]);
    refuse_each(&all, 505);
}

#[test]
fn an_unknown_service_is_404_and_keeps_the_connection() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    let response = caller.get("/v1/proxy/nobody/x");
    assert_problem(&response, 404);
    assert!(response.text().contains("nobody"), "it names the service: {}", response.text());
    assert_problem(&caller.get("/v1/proxy/nobody"), 404);
    // its body is read and dropped, or the connection closes: it is never taken for a request
    let body = "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let length = body.len();
    caller.send(format!("POST /v1/proxy/nobody/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
    let response = caller.answer();
    assert_problem(&response, 404);
    if response.lists("Connection", "close") {
        caller.expect_eof();
    } else {
        assert_eq!(caller.get("/v1/proxy/s/good").text(), "good");
    }
    assert!(origin.requests().iter().all(|request| request.target() == "/base/good"));
}

#[test]
fn a_known_path_with_a_wrong_method_is_405_with_allow() {
    let (_origin, gateway) = setting();
    let mut caller = gateway.connect();
    let list = [
        ("GET", "/v1/reload-config", vec!["POST"]),
        ("DELETE", "/v1/reload-config", vec!["POST"]),
        ("POST", "/v1/status", vec!["GET"]),
        ("PUT", "/livez", vec!["GET", "HEAD"]),
        ("DELETE", "/readyz", vec!["GET", "HEAD"]),
    ];
    for (method, path, allowed) in list {
        caller.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let response = caller.answer();
        assert_problem(&response, 405);
        for name in allowed {
            assert!(response.lists("Allow", name), "{method} {path}: Allow {:?}", response.field("Allow"));
        }
        assert!(!response.lists("Allow", method));
    }
}

#[test]
fn an_error_answer_to_head_has_no_body() {
    let (_origin, gateway) = setting();
    let mut caller = gateway.connect();
    caller.send("HEAD /v1/proxy/nobody/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer_to("HEAD").status, 404);
    assert_eq!(caller.get("/v1/proxy/s/good").text(), "good");
}

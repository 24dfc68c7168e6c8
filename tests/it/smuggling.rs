//! Requests that two readers could take apart differently: lengths, codings, versions, hosts and targets in
//! every disguise known to smuggle one request inside another. Each is refused before an upstream hears of
//! it, or has exactly one reading there; bytes of a body are never taken for a request.

use crate::support::problem::{assert_problem, assert_proxy_problem};
use crate::support::wire::{End, Framing};
use crate::support::{Caller, Gateway, Origin, ok, reply, service, wait_until};

/// A gateway before one origin under the name `s`, which is asked for `/good` alone when all is well.
fn setting() -> (Origin, Gateway) {
    let origin = Origin::echo();
    let gateway = before(&origin);
    (origin, gateway)
}

fn before(origin: &Origin) -> Gateway {
    Gateway::start(&service("s", &[&origin.url()], "retries: {attempts: 0}"))
}

/// A request that must never be taken for one: it stands where a body, or nothing at all, is expected.
const EVIL: &str = "GET /v1/proxy/s/evil HTTP/1.1\r\nHost: evil\r\n\r\n";

/// Sends each text, with [`EVIL`] behind it, on a connection of its own: one answer with `status`, which
/// announces the close, then the end. The upstream hears of none.
#[track_caller]
fn refused<'a>(cases: impl IntoIterator<Item = impl AsRef<[u8]> + 'a>, status: u16) {
    let (origin, gateway) = setting();
    for case in cases {
        let case = case.as_ref();
        let name = case.escape_ascii();
        let mut caller = gateway.connect();
        let _ = caller.try_send([case, EVIL.as_bytes()].concat());
        let response = match caller.try_answer("GET") {
            Ok(response) => response,
            Err(broken) => panic!("{name}: no answer: {broken:?}"),
        };
        assert_eq!(response.status, status, "{name}: {}", response.text());
        assert_proxy_problem(&response, status, "http_request_error");
        assert!(response.lists("Connection", "close"), "{name}: the close is announced");
        let (more, end) = caller.rest();
        assert!(more.is_empty() && end == End::Eof, "{name}: {end:?} after {}", more.escape_ascii());
    }
    assert_eq!(gateway.fetch("/v1/proxy/s/good").status, 200);
    assert_only_good(&origin);
}

#[track_caller]
fn assert_only_good(origin: &Origin) {
    for request in origin.requests() {
        assert_eq!(request.target(), "/good", "the upstream saw {}", request.head.raw.escape_ascii());
    }
    assert_eq!(origin.heads(), origin.requests().len(), "the upstream saw a request without an end");
}

/// A POST with these field lines (without their last CR LF) and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

#[test]
fn repeated_lengths_are_refused_even_when_they_agree() {
    let list = [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 5",
        "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: 5,5",
        "Content-Length: ,5",
        "Content-Length: 5\r\nContent-Length:",
    ];
    refused(list.map(|fields| post(fields, "hello")), 400);
}

#[test]
fn lengths_that_some_readers_would_take_for_a_number_are_refused() {
    let values = [
        "5_0",
        "5e0",
        "0b101",
        "0o5",
        "05h",
        "\"5\"",
        "'5'",
        "5;x",
        "5\t5",
        "++5",
        "- 5",
        "5 ,",
        "5.",
        ".5",
        "٥",
        "５",
        "0x",
        "+0",
        "-0",
        "5\u{a0}",
        "NaN",
        "9223372036854775808",
        "4294967296x",
        "5\u{b}",
        "\u{c}5",
    ];
    refused(values.map(|value| post(&format!("Content-Length: {value}"), "hello")), 400);
}

#[test]
fn leading_noughts_do_not_change_a_length() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for digits in ["05", "0000005", "010"] {
        let length: usize = digits.parse().unwrap();
        let body = "x".repeat(length);
        caller.send(format!("POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nContent-Length: {digits}\r\n\r\n{body}"));
        assert_eq!(caller.answer().text(), body);
        assert_eq!(origin.last().framing, Framing::Length(length));
        // a reader that takes a leading nought for octal must not see one
        assert_eq!(origin.last().field("Content-Length"), Some(length.to_string()));
    }
    assert_only_good(&origin);
}

#[test]
fn a_length_with_white_space_around_it_is_that_length() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for value in ["5", " 5", "\t5", "5 ", "5\t ", " \t 5 \t"] {
        caller.send(format!("POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nContent-Length:{value}\r\n\r\nhello"));
        assert_eq!(caller.answer().text(), "hello", "{value:?}");
        assert_eq!(origin.last().field("Content-Length").as_deref(), Some("5"));
    }
    assert_only_good(&origin);
}

#[test]
fn a_coding_in_any_case_and_spacing_is_passed_on_as_plain_chunked() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for line in [
        "Transfer-Encoding: CHUNKED",
        "transfer-encoding:chunked",
        "TRANSFER-ENCODING:\tChunked",
        "Transfer-Encoding: chunked \t",
    ] {
        caller.send(format!("POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
        assert_eq!(caller.answer().text(), "hello", "{line:?}");
        assert_eq!(origin.last().all("Transfer-Encoding"), ["chunked"], "{line:?}");
        assert!(origin.last().all("Content-Length").is_empty());
    }
    assert_only_good(&origin);
}

#[test]
fn disguised_codings_are_refused() {
    let lines = [
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked;",
        "Transfer-Encoding: ;chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chunke",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chu nked",
        "Transfer-Encoding: chunked\u{c}",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding: chun\u{212a}ed",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n\tx",
        "Transfer-Encoding\u{b}: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
    ];
    refused(lines.map(|line| post(line, "0\r\n\r\n")), 400);
}

#[test]
fn a_field_that_only_resembles_a_coding_frames_nothing() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for line in [
        "Transfer_Encoding: chunked",
        "X-Transfer-Encoding: chunked",
        "Transfer-Encodings: chunked",
        "TransferEncoding: chunked",
        "X: Transfer-Encoding: chunked",
        "Content_Length: 3",
        "X-Content-Length: 3",
    ] {
        caller.send(format!(
            "POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\n{line}\r\nContent-Length: 12\r\n\r\n0\r\n\r\nGET / H"
        ));
        assert_eq!(caller.answer().text(), "0\r\n\r\nGET / H", "{line:?}");
        assert_eq!(origin.last().framing, Framing::Length(12), "{line:?}");
    }
    assert_only_good(&origin);
}

#[test]
fn length_and_coding_together_are_refused_whatever_the_method_and_order() {
    let mut all = Vec::new();
    for method in ["POST", "GET", "HEAD", "DELETE", "OPTIONS"] {
        for (length, coding) in [("5", "chunked"), ("0", "chunked"), ("48", "identity"), ("5", "Chunked ")] {
            for version in ["1.1", "1.0"] {
                let (first, second) = (format!("Content-Length: {length}"), format!("Transfer-Encoding: {coding}"));
                let line = format!("{method} /v1/proxy/s/bad HTTP/{version}\r\nHost: a\r\n");
                all.push(format!("{line}{first}\r\n{second}\r\n\r\n0\r\n\r\n"));
                all.push(format!("{line}{second}\r\nX: y\r\n{first}\r\n\r\n0\r\n\r\n"));
            }
        }
    }
    // HEAD is answered without a body, which the common check does not expect
    all.retain(|text| !text.starts_with("HEAD"));
    refused(all, 400);
}

#[test]
fn a_coding_in_http_1_0_is_refused() {
    let list = ["chunked", "identity", "gzip"].map(|coding| {
        format!(
            "POST /v1/proxy/s/bad HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"
        )
    });
    refused(list, 400);
}

#[test]
fn chunk_sizes_in_disguise_are_refused() {
    let bodies = [
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5\t5\r\nhello\r\n0\r\n\r\n",
        "5\u{b}\r\nhello\r\n0\r\n\r\n",
        "5\u{c};a\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\n\r\nhello\r\n0\r\n\r\n",
        "\n5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "5.0\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "0x0\r\n\r\n",
        "00x\r\n\r\n",
        "-0\r\n\r\n",
        "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\"\r\nhello\r\n0\r\n\r\n",
        "5;\u{7f}\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello 0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX\r\n\r\n",
        "5\r\nhello\r\n0\r\n: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\rZ: w\r\n\r\n",
    ];
    refused(bodies.map(|body| post("Transfer-Encoding: chunked", body)), 400);
}

#[test]
fn chunk_extensions_end_at_the_gateway() {
    let body = "5;a=b;c=\"d;e\" ;f\r\nhello\r\n000;last=\"x\"\r\n\r\n";
    let clean = b"5\r\nhello\r\n0\r\n\r\n";
    let origin = Origin::start(move |conn| {
        while conn.head().is_some() {
            assert_eq!(conn.exact(clean.len()).unwrap_or_default(), clean, "as the upstream sees it");
            if conn.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).is_err() {
                return;
            }
        }
    });
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    for _ in 0..2 {
        caller.send(post("Transfer-Encoding: chunked", body));
        let (status, _) = caller.head();
        assert_eq!(status, 200);
        assert_eq!(caller.exact(clean.len()), clean, "as the client sees it");
    }
}

#[test]
fn what_follows_the_last_chunk_is_the_next_request() {
    let origin = Origin::answering(|request| ok(format!("{} {}", request.target(), request.body.len())));
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    let next = "GET /v1/proxy/s/next HTTP/1.1\r\nHost: a\r\n\r\n";
    caller.send(format!("{}{next}", post("Transfer-Encoding: chunked", "0\r\n\r\n")));
    assert_eq!(caller.answer().text(), "/bad 0");
    assert_eq!(caller.answer().text(), "/next 0");
    // the same bytes inside a body are a part of it
    let length = next.len();
    caller.send(format!("{}{next}", post(&format!("Content-Length: {}", length * 2), next)));
    assert_eq!(caller.answer().text(), format!("/bad {}", length * 2));
    caller.send(post("Transfer-Encoding: chunked", &format!("{length:x}\r\n{next}\r\n0\r\n\r\n")));
    assert_eq!(caller.answer().text(), format!("/bad {length}"));
    assert_eq!(origin.heads(), 4);
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let (origin, gateway) = setting();
    let length = EVIL.len();
    let framings = [
        format!("Content-Length: {length}\r\n\r\n{EVIL}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{EVIL}\r\n0\r\n\r\n"),
    ];
    let lines = [
        "POST /livez",
        "GET /livez",
        "GET /v1/status",
        "POST /v1/status",
        "POST /v1/reload-config",
        "GET /nowhere",
        "POST /v1/proxy/nobody/",
        "GET /v1/proxy/nobody/",
        "OPTIONS *",
        "POST /v1/proxy/s/../../x",
    ];
    for line in lines {
        for framing in &framings {
            let mut caller = gateway.connect();
            caller.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{framing}"));
            let response = caller.answer();
            if response.lists("Connection", "close") {
                caller.expect_eof();
            } else {
                let own = caller.get("/v1/proxy/s/good");
                assert_eq!((own.status, own.text().as_str()), (200, ""), "behind {line} {framing:?}");
            }
        }
    }
    assert_only_good(&origin);
}

#[test]
fn a_body_arrives_as_a_body_whatever_the_method() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    let length = EVIL.len();
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "get", "X"] {
        for framing in [
            format!("Content-Length: {length}\r\n\r\n{EVIL}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{EVIL}\r\n0\r\n\r\n"),
        ] {
            caller.send(format!("{method} /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\n{framing}"));
            // the origin answers HEAD with a body too, which must not reach the client
            assert_eq!(caller.answer_to(method).status, 200, "{method}");
            assert_eq!(origin.last().method(), method);
            assert_eq!(origin.last().body, EVIL.as_bytes(), "{method}");
            assert_eq!(caller.get("/v1/proxy/s/good").text(), "", "behind {method}");
        }
    }
    assert_only_good(&origin);
}

#[test]
fn trace_with_a_body_is_refused() {
    refused(
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
            .map(|framing| format!("TRACE /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n{framing}")),
        400,
    );
}

#[test]
fn nothing_behind_a_malformed_request_is_read() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    let good = "GET /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\n\r\n";
    caller.send(format!("{good}GET /v1/proxy/s/bad HTTP/1.1\r\nHost : a\r\n\r\n{EVIL}"));
    assert_eq!(caller.answer().status, 200, "what came before is answered");
    assert_proxy_problem(&caller.answer(), 400, "http_request_error");
    caller.expect_eof();
    assert_only_good(&origin);
    assert_eq!(origin.heads(), 1);
}

#[test]
fn bytes_behind_a_body_that_are_no_request_are_refused() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    caller.send(format!("POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc{{}}{EVIL}"));
    assert_eq!(caller.answer().text(), "abc");
    assert_proxy_problem(&caller.answer(), 400, "http_request_error");
    caller.expect_eof();
    assert_only_good(&origin);
}

#[test]
fn requests_behind_the_last_one_are_not_processed() {
    for head in [
        "GET /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, CLOSE\r\n\r\n",
        "GET /v1/proxy/s/good HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /v1/proxy/nobody HTTP/1.0\r\n\r\n",
    ] {
        let (origin, gateway) = setting();
        let mut caller = gateway.connect();
        caller.send(format!("{head}{EVIL}"));
        assert!(caller.answer().lists("Connection", "close"), "{head}");
        caller.expect_eof();
        assert_only_good(&origin);
    }
}

#[test]
fn http_0_9_is_refused_at_once() {
    for line in ["GET /v1/proxy/s/bad\r\n", "GET /\r\n", "GET /v1/proxy/s/bad \r\n"] {
        let (origin, gateway) = setting();
        let mut caller = gateway.connect();
        // nothing more comes: the answer must not wait for it
        caller.send(line);
        assert_proxy_problem(&caller.answer(), 400, "http_request_error");
        caller.expect_eof();
        assert_eq!(origin.connections(), 0);
    }
}

#[test]
fn other_well_formed_versions_are_505() {
    let list = ["HTTP/2.0", "HTTP/1.2", "HTTP/1.9", "HTTP/0.9", "HTTP/0.0", "HTTP/3.0", "HTTP/9.1"]
        .map(|version| format!("GET /v1/proxy/s/bad {version}\r\nHost: a\r\n\r\n"));
    refused(list, 505);
    // the preface of HTTP/2 with its first frame behind
    refused([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice()], 505);
}

#[test]
fn malformed_versions_are_400() {
    let list = [
        "HTTP/1.10",
        "HTTP/11.1",
        "HTTP/01.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP1.1",
        "HTTP/1,1",
        "Http/1.1",
        "HTTP/1.1.1",
        "HTTP/ 1.1",
        "HTTP/+1.1",
        "HTTP/1.1\t",
        "HTTP/1.1\0",
        "HTTPS/1.1",
        "HTTP/1.1;",
        "HTTP\\1.1",
        "HTTP/1.1 HTTP/1.1",
        "\u{b}HTTP/1.1",
        "XHTTP/1.1",
        "HTTP/1.\u{661}",
    ]
    .map(|version| format!("GET /v1/proxy/s/bad {version}\r\nHost: a\r\n\r\n"));
    refused(list, 400);
}

#[test]
fn other_protocols_are_refused() {
    refused(
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ],
        400,
    );
}

#[test]
fn line_ends_of_cr_alone_are_refused() {
    refused(
        [
            "GET /v1/proxy/s/bad HTTP/1.1\rHost: a\r\r",
            "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\r\n",
            "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
            "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r",
            "GET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\n\r\n",
            "GET /v1/proxy/s/bad HTTP/1.1\r\r\nHost: a\r\n\r\n",
            "\n\r\nGET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n",
            "\rGET /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        400,
    );
}

#[test]
fn hosts_outside_their_grammar_are_refused() {
    let hosts = [
        "",
        " \t",
        ":80",
        "a:65536",
        "a:-1",
        "a:+80",
        "a:80:80",
        "a:8 0",
        "[::1",
        "::1",
        "[::1]]",
        "[::g]",
        "[::1]a",
        "[]",
        "[1.2.3.4]",
        "a]b",
        "a#b",
        "a\\b",
        "a%zz",
        "a%4",
        "a<b",
        "a\"b",
        "a\tb",
        "a^b",
        "a`b",
        "a{b}",
        "a|b",
        "http://a",
        "@a",
        "u:p@a",
        "a/",
        "a?",
        "caf\u{e9}",
        "a, b",
        "a;b c",
    ];
    refused(hosts.map(|host| format!("GET /v1/proxy/s/bad HTTP/1.1\r\nHost: {host}\r\n\r\n")), 400);
}

#[test]
fn hosts_of_every_kind_are_taken() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for host in [
        "a",
        "a:",
        "a:80",
        "A.Example",
        "[::1]",
        "[::1]:80",
        "[2001:db8::1.2.3.4]",
        "1.2.3.4:1",
        "xn--a",
        "a_b",
        "a%41",
        "a~b!$&'()*+;=",
    ] {
        caller.send(format!("GET /v1/proxy/s/good HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(caller.answer().status, 200, "{host}");
        assert_eq!(origin.last().field("X-Forwarded-Host").as_deref(), Some(host));
    }
}

#[test]
fn the_authority_of_an_absolute_target_replaces_host() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::start(&service("s", &[&origin.url()], "headers: {host: client}"));
    let mut caller = gateway.connect();
    for host in ["Host: evil.example\r\n", "Host: good.example:81\r\n"] {
        caller.send(format!("GET http://good.example:81/v1/proxy/s/x?y HTTP/1.1\r\n{host}\r\n"));
        assert_eq!(caller.answer().status, 200);
        let request = origin.last();
        assert_eq!(request.target(), "/x?y");
        assert_eq!(request.all("Host"), ["good.example:81"]);
        assert_eq!(request.all("X-Forwarded-Host"), ["good.example:81"]);
    }
    // HTTP/1.0 needs no Host, and the authority stands for it
    caller.send("GET http://good.example/v1/proxy/s/ HTTP/1.0\r\n\r\n");
    assert_eq!(caller.answer().status, 200);
    assert_eq!(origin.last().all("Host"), ["good.example"]);
}

#[test]
fn an_absolute_target_excuses_no_bad_host() {
    let line = "GET http://a/v1/proxy/s/bad HTTP/1.1\r\n";
    let list = ["", "Host: a\r\nHost: a\r\n", "Host: a/b\r\n", "Host: u@a\r\n", "Host:\r\n"];
    refused(list.map(|fields| format!("{line}{fields}\r\n")), 400);
}

#[test]
fn targets_that_are_no_target_are_refused() {
    let targets = [
        "http:///v1/proxy/s/bad",
        "http://u@a/v1/proxy/s/bad",
        "http://u:p@a/v1/proxy/s/bad",
        "http://a:b/v1/proxy/s/bad",
        "http://a:99999/v1/proxy/s/bad",
        "http://[::1/v1/proxy/s/bad",
        "http://a\\b/v1/proxy/s/bad",
        "http://a%zz/v1/proxy/s/bad",
        "http:/v1/proxy/s/bad",
        "http:v1/proxy/s/bad",
        "http//a/v1/proxy/s/bad",
        "ftp://a/v1/proxy/s/bad",
        "file:///v1/proxy/s/bad",
        "ws://a/v1/proxy/s/bad",
        "a:80",
        "a:80/v1/proxy/s/bad",
        "*",
        "*/v1/proxy/s/bad",
        "?x",
        "\\v1\\proxy\\s\\bad",
        "http://a/v1/proxy/s/bad#x",
        "/v1/proxy/s/bad?q#x",
        "/v1/proxy/s/%",
        "/v1/proxy/s/%1",
        "/v1/proxy/s/%1g",
        "/v1/proxy/s/\u{e9}",
    ];
    refused(targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")), 400);
}

#[test]
fn an_https_target_on_a_plain_connection_is_misdirected() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    caller.send("GET https://a/v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_problem(&caller.answer(), 421);
    assert_only_good(&origin);
}

#[test]
fn the_service_segment_cannot_climb() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    for path in [
        "/v1/proxy/..",
        "/v1/proxy/../v1/proxy/s/x",
        "/v1/proxy/%2e%2e/x",
        "/v1/proxy/.",
        "/v1/proxy/./s/x",
        "/x/../v1/proxy/s/x",
        "//v1/proxy/s/x",
        "/v1//proxy/s/x",
        "/v1/proxy//s/x",
        "/v1/proxy/s%2fx",
        "/v1/proxy/s%2f..%2fx",
        "/v1/proxy/s%00/x",
        "/v1%2fproxy/s/x",
        "/V1/proxy/s/x",
        "/v1/proxy;x/s/x",
    ] {
        let response = caller.get(path);
        assert_eq!(response.status, 404, "{path}: {}", response.text());
    }
    assert_eq!(origin.heads(), 0);
}

#[test]
fn expectations_other_than_100_continue_are_417() {
    let values =
        ["x", "100-continue, x", "x, 100-continue", "100-continue;q=1", "100-continue=1", "y 100-continue", "200-ok"];
    refused(values.map(|value| post(&format!("Expect: {value}\r\nContent-Length: 5"), "hello")), 417);
}

#[test]
fn an_expectation_in_http_1_0_is_ignored() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    caller.send("POST /v1/proxy/s/good HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    let response = caller.answer();
    assert_eq!(response.text(), "hello");
    assert!(response.interim.is_empty());
    assert!(origin.last().all("Expect").is_empty());
}

#[test]
fn an_answer_instead_of_100_leaves_no_connection_waiting_for_the_body() {
    let origin = Origin::start(|conn| {
        while let Some(head) = conn.head() {
            // answers at once and would go on reading, as if there had been no body
            let expects = head.lists("Expect", "100-continue");
            let _ = conn.send(reply(if expects { 401 } else { 200 }, "", format!("{}", conn.number)));
        }
    });
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    let length = EVIL.len();
    caller.send(post(&format!("Expect: 100-continue\r\nContent-Length: {length}"), ""));
    let response = caller.answer();
    assert_eq!((response.status, response.text().as_str()), (401, "1"));
    assert!(response.lists("Connection", "close"), "what comes next would be ambiguous");
    // a body, or a request? nobody may take it for one
    let _ = caller.try_send(EVIL);
    caller.expect_eof();
    assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "2", "the upstream connection is not used again");
    assert_eq!(origin.heads(), 2);
}

#[test]
fn an_answer_before_the_end_of_the_body_leaves_no_connection_in_the_middle_of_it() {
    let origin = Origin::start(|conn| {
        while conn.head().is_some() {
            let _ = conn.send(ok(format!("{}", conn.number)));
        }
    });
    let gateway = before(&origin);
    for (number, framing) in
        [("1", "Content-Length: 1000\r\n\r\nbegin"), ("2", "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")]
    {
        let mut caller = gateway.connect();
        caller.send(format!("POST /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n{framing}"));
        let response = caller.answer();
        assert_eq!(response.text(), number);
        assert!(response.lists("Connection", "close"));
        let _ = caller.try_send(EVIL);
        caller.expect_eof();
    }
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "3");
}

#[test]
fn a_request_cut_short_never_looks_whole_to_the_upstream() {
    let starts = [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r",
    ];
    let end_it: [fn(Caller); 2] = [
        |mut caller| {
            caller.half_close();
            assert_proxy_problem(&caller.answer(), 400, "http_request_error");
            caller.expect_eof();
        },
        Caller::reset,
    ];
    for start in starts {
        for end in end_it {
            let (origin, gateway) = setting();
            let mut caller = gateway.connect();
            caller.send(format!("POST /v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\n{start}"));
            origin.wait_heads(1);
            end(caller);
            // the next request shows that the gateway has dealt with the end
            assert_eq!(gateway.fetch("/v1/proxy/s/good").status, 200);
            assert!(origin.requests().iter().all(|request| request.target() == "/good"), "{start:?}");
            assert_eq!(origin.connections(), 2, "{start:?}: the connection is not used again");
        }
    }
}

#[test]
fn a_malformed_chunk_behind_good_ones_never_looks_whole_to_the_upstream() {
    for bad in ["x\r\n", "5\nhello\r\n0\r\n\r\n", "0\r\nbad\r\n\r\n", "0\r\n y: z\r\n\r\n", "5\r\nhello0\r\n\r\n"] {
        let (origin, gateway) = setting();
        let mut caller = gateway.connect();
        caller.send_apart(post("Transfer-Encoding: chunked", "5\r\nhello\r\n"));
        origin.wait_heads(1);
        caller.send(format!("{bad}{EVIL}"));
        assert_proxy_problem(&caller.answer(), 400, "http_request_error");
        caller.expect_eof();
        assert_eq!(gateway.fetch("/v1/proxy/s/good").status, 200);
        assert!(origin.requests().iter().all(|request| request.target() == "/good"), "{bad:?}");
    }
}

#[test]
fn a_refusal_of_head_has_no_body() {
    let (origin, gateway) = setting();
    for rest in [
        "/v1/proxy/s/bad HTTP/1.1\r\n\r\n",
        "/v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "/v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
        "/v1/proxy/s/bad HTTP/2.0\r\nHost: a\r\n\r\n",
        "/v1/proxy/s/bad HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut caller = gateway.connect();
        caller.send(format!("HEAD {rest}"));
        let response = caller.answer_to("HEAD");
        assert!(response.status >= 400, "{rest:?}");
        caller.expect_eof();
    }
    let long = "a".repeat(10_000);
    let mut caller = gateway.connect();
    let _ = caller.try_send(format!("HEAD /{long} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(caller.answer_to("HEAD").status, 414);
    caller.expect_eof();
    assert_eq!(origin.heads(), 0);
}

#[test]
fn an_error_answer_outlives_the_body_that_follows_it() {
    let (_origin, gateway) = setting();
    // several megabytes are under way when the answer goes out; a close with unread bytes would be a reset
    let body = vec![b'x'; 200_000];
    for line in ["POST /v1/proxy/nobody/", "POST /v1/proxy/s/../..", "POST /livez"] {
        let mut caller = gateway.connect();
        caller.send(format!("{line} HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"));
        let _ = caller.try_send(&body);
        let response = caller.answer();
        assert!((400..500).contains(&response.status), "{line}");
        assert!(response.lists("Connection", "close"), "{line}");
        caller.expect_eof();
    }
}

#[test]
fn many_empty_lines_are_no_request() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    caller.send_apart("\r");
    caller.send_apart("\n");
    caller.send_apart("\r\n".repeat(10_000));
    assert!(!caller.has_input(), "nothing was asked");
    assert_eq!(caller.get("/v1/proxy/s/good").status, 200);
    // an empty line behind a body, as old clients send it
    caller.send("POST /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\n");
    assert_eq!(caller.answer().text(), "hi");
    assert_eq!(caller.get("/v1/proxy/s/good").status, 200);
    wait_until("all requests are recorded", || origin.requests().len() == 3);
    assert_only_good(&origin);
}

#[test]
fn a_request_line_of_8000_octets_is_taken() {
    let (origin, gateway) = setting();
    let mut caller = gateway.connect();
    let target = format!("/v1/proxy/s/good?{}", "q".repeat(8000 - "GET /v1/proxy/s/good? HTTP/1.1".len()));
    caller.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(caller.answer().status, 200);
    assert!(origin.last().target().starts_with("/good?qqq"));
}

#[test]
fn an_empty_line_in_two_pieces_begins_no_request() {
    let origin = Origin::echo();
    let settings = "client: {header_timeout: 300ms, keep_alive: 500ms}";
    let gateway = Gateway::with(settings, &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send_apart("\r");
    caller.send_apart("\n");
    // idle again, so that it ends without a word and is not told of a request that was too slow
    caller.expect_eof();
}

//! Responses of hostile and careless upstreams: what is malformed is 502 and ends its connection, what may
//! be relayed is relayed in one reading, and no byte of one response ever becomes a part of another.

use crate::support::problem::assert_proxy_problem;
use crate::support::wire::Framing;
use crate::support::{Caller, Gate, Gateway, Origin, RefusedPort, ok, reply, service};

/// No retries, and no circuit that opens over the failures that a test wants to see.
const PATIENT: &str = "retries: {attempts: 0}\ncircuit_breaker: {failure_threshold: 10000}";

fn before(origin: &Origin) -> Gateway {
    Gateway::start(&service("s", &[&origin.url()], PATIENT))
}

/// An origin that answers `/0`, `/1` … with the bytes of that number, and everything else with `good`; and
/// a gateway before it.
fn answering(answers: &[impl AsRef<[u8]>]) -> (Origin, Gateway) {
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.as_ref().to_vec()).collect();
    let origin = Origin::start(move |conn| {
        while let Some(request) = conn.request() {
            let number: Option<usize> = request.target()[1..].parse().ok();
            if conn.send(number.map_or(ok("good"), |number| answers[number].clone())).is_err() {
                return;
            }
        }
    });
    let gateway = before(&origin);
    (origin, gateway)
}

/// Asks for each of these answers with `method`: each must be 502 with `token`, on a client connection that
/// stays, and end its upstream connection.
#[track_caller]
fn each_is_502(method: &str, answers: &[impl AsRef<[u8]>], token: &str) {
    let (origin, gateway) = answering(answers);
    let mut caller = gateway.connect();
    for (number, answer) in answers.iter().enumerate() {
        let name = answer.as_ref().escape_ascii();
        caller.send(format!("{method} /v1/proxy/s/{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = match caller.try_answer(method) {
            Ok(response) => response,
            Err(broken) => panic!("{name}: {broken:?}"),
        };
        assert_eq!(response.status, 502, "{name}: {response:?}");
        if method != "HEAD" {
            assert_proxy_problem(&response, 502, token);
        }
        assert_eq!(caller.get("/v1/proxy/s/good").text(), "good", "after {name}");
        assert_eq!(origin.connections(), number + 2, "{name}: the connection is not used again");
    }
}

/// A 200 with these field lines (without their last CR LF) and this body.
fn with(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}")
}

#[test]
fn malformed_status_lines_are_502() {
    let lines = [
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "\nHTTP/1.1 200 OK",
        "http/1.1 200 OK",
        "Http/1.1 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/2 200 OK",
        "HTTP/1.10 200 OK",
        "HTTP/11 200 OK",
        "HTTP/1 200 OK",
        "HTTP/1.1200 OK",
        "HTTP/1.1 99 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 999 OK",
        "HTTP/1.1 1000 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 2 OK",
        "HTTP/1.1 -20 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1 0x1 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 200;OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 ",
        "HTTP/1.1",
        "HTTP/1.1 OK",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 \0",
        "HTTP/1.1 200\0OK",
        "HTTP/1.1\x00200 OK",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 OK\r",
        "HTTP/1.1 200 OK\nX: y",
        "HTTP/1.1 200 O\u{1}K",
        "HTTP/1.1 200 O\u{7f}K",
        "HTTP/1.1 200 O\u{1b}[0mK",
        "\u{feff}HTTP/1.1 200 OK",
        "ICY 200 OK",
        "GET / HTTP/1.1",
        "Content-Length: 5",
    ];
    let all: Vec<String> = lines.iter().map(|line| format!("{line}\r\nContent-Length: 5\r\n\r\nhello")).collect();
    each_is_502("GET", &all, "http_protocol_error");
}

#[test]
fn a_status_line_without_its_second_space_is_502() {
    each_is_502("GET", &["HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello"], "http_protocol_error");
}

#[test]
fn a_reason_may_be_missing_long_or_odd() {
    let long = "x".repeat(2000);
    let reasons = ["", "OK", "Not \t a reason", "200 HTTP/1.1", &long, "d\u{e9}j\u{e0} vu", " "];
    let answers: Vec<String> =
        reasons.iter().map(|reason| format!("HTTP/1.1 200 {reason}\r\nContent-Length: 5\r\n\r\nhello")).collect();
    let (origin, gateway) = answering(&answers);
    let mut caller = gateway.connect();
    for (number, reason) in reasons.iter().enumerate() {
        // the caller insists on a well-formed status line
        assert_eq!(caller.get(&format!("/v1/proxy/s/{number}")).text(), "hello", "{reason:?}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn answers_of_other_protocols_are_502() {
    let answers: [&[u8]; 7] = [
        // HTTP/0.9 had no head
        b"<html>hello</html>\r\n",
        b"hello",
        // the first frame of an HTTP/2 server
        b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        // an alert of TLS
        b"\x15\x03\x03\0\x02\x02\x28",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR unknown command 'GET'\r\n",
        b"220 mail.example ESMTP\r\n",
    ];
    each_is_502("GET", &answers, "http_protocol_error");
}

#[test]
fn malformed_fields_are_502() {
    let lines = [
        "X: y\r\n z",
        "X: y\r\n\tz",
        " X: y",
        "\tX: y",
        "X : y",
        "X\t: y",
        "Content-Length : 5",
        "X",
        ": y",
        "X Y: z",
        "X(Y): z",
        "X\"Y: z",
        "X@Y: z",
        "X\u{e9}: z",
        "X\0: z",
        "X\u{7f}: z",
        "X: y\0z",
        "X: y\rz",
        "X: y\nZ: w",
        "X: y\n",
        "X: y\r",
        "X: y\u{1}z",
        "X: y\u{8}z",
        "X: y\u{1f}z",
        "X: y\u{7f}z",
        "X: y\n\rZ: w",
    ];
    let all: Vec<String> = lines.iter().map(|line| with(&format!("Content-Length: 5\r\n{line}"), "hello")).collect();
    each_is_502("GET", &all, "http_protocol_error");
    // the same in a head that has no body and in one that comes before the final one
    let all: Vec<String> = ["X : y", "X: y\0z", "X: y\r\n z", "X"]
        .iter()
        .flat_map(|line| [204, 304, 103].map(|status| format!("HTTP/1.1 {status} X\r\n{line}\r\n\r\n")))
        .collect();
    each_is_502("GET", &all, "http_protocol_error");
}

#[test]
fn lengths_with_two_readings_are_502() {
    let lines = [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 6",
        "Content-Length: 5, 5",
        "Content-Length: 5, 6",
        "Content-Length: 5,",
        "Content-Length: ,5",
        "Content-Length:",
        "Content-Length: -1",
        "Content-Length: -5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: 5a",
        "Content-Length: 5.0",
        "Content-Length: 5e0",
        "Content-Length: 5 5",
        "Content-Length: \"5\"",
        "Content-Length: five",
        "Content-Length: 9223372036854775808",
        "Content-Length: 18446744073709551621",
        "Content-Length: 99999999999999999999999999",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Content-Length: 5\r\nTransfer-Encoding: identity",
    ];
    let all: Vec<String> = lines.iter().map(|line| with(line, "hello")).collect();
    each_is_502("GET", &all, "http_protocol_error");
}

#[test]
fn codings_other_than_chunked_alone_are_502() {
    let lines = [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\u{b}",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding : chunked",
    ];
    let all: Vec<String> = lines.iter().map(|line| with(line, "0\r\n\r\n")).collect();
    each_is_502("GET", &all, "http_protocol_error");
    each_is_502("GET", &["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], "http_protocol_error");
}

#[test]
fn a_coding_in_any_case_is_understood() {
    let lines = ["Transfer-Encoding: CHUNKED", "transfer-encoding:chunked", "TRANSFER-ENCODING: \tChunked \t"];
    let answers: Vec<String> = lines.iter().map(|line| with(line, "5\r\nhello\r\n0\r\n\r\n")).collect();
    let (origin, gateway) = answering(&answers);
    let mut caller = gateway.connect();
    for number in 0..answers.len() {
        let response = caller.get(&format!("/v1/proxy/s/{number}"));
        assert_eq!((response.text().as_str(), response.framing), ("hello", Framing::Chunked));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn leading_noughts_do_not_change_a_length() {
    let (origin, gateway) =
        answering(&[with("Content-Length: 05", "hello"), with("Content-Length: 0010", "helloworld")]);
    let mut caller = gateway.connect();
    for (number, length) in [(0, "5"), (1, "10")] {
        let response = caller.get(&format!("/v1/proxy/s/{number}"));
        // a reader that takes a leading nought for octal must not see one
        assert_eq!(response.field("Content-Length").as_deref(), Some(length));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn lengths_that_disagree_are_502_where_there_is_no_body_too() {
    let fields = [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: -5",
        "Content-Length: x",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
    ];
    let to_head: Vec<String> = fields.iter().map(|fields| with(fields, "")).collect();
    each_is_502("HEAD", &to_head, "http_protocol_error");
    // a client that caches a 304 would take one of the two lengths
    let unmodified: Vec<String> =
        fields[..4].iter().map(|fields| format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n\r\n")).collect();
    each_is_502("GET", &unmodified, "http_protocol_error");
}

#[test]
fn a_204_and_an_interim_response_have_no_length_whatever_the_method() {
    let answers = [
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nLink: </a>\r\n\r\n{}",
            "HTTP/1.1 204 No Content\r\n\r\n"
        ),
        format!("HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n{}", "HTTP/1.1 204 No Content\r\n\r\n"),
    ];
    for method in ["GET", "HEAD", "POST"] {
        let (origin, gateway) = answering(&answers);
        let mut caller = gateway.connect();
        for (number, answer) in answers.iter().enumerate() {
            caller.send(format!("{method} /v1/proxy/s/{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let response = caller.answer_to(method);
            assert_eq!(response.status, 204, "{answer:?}");
            for head in response.interim.iter().chain([&response.head]) {
                for name in ["Content-Length", "Transfer-Encoding"] {
                    assert!(head.all(name).is_empty(), "{method}: {name} in {}", head.raw.escape_ascii());
                }
            }
        }
        // behind a 204 that announced a body, bytes may still come: those two connections are not used again
        assert_eq!(origin.connections(), 3);
    }
}

#[test]
fn a_304_keeps_the_length_of_what_it_stands_for() {
    let (origin, gateway) = answering(&["HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\n"]);
    let mut caller = gateway.connect();
    for method in ["GET", "HEAD"] {
        caller.send(format!("{method} /v1/proxy/s/0 HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = caller.answer_to(method);
        assert_eq!((response.status, response.field("Content-Length").as_deref()), (304, Some("1000")));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn what_stands_behind_an_interim_head_is_the_next_head() {
    // a length or a coding gives a 1xx no body, so these bodies are malformed heads
    let answers = [
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 099 Odd\r\n\r\n",
    ];
    each_is_502("GET", &answers, "http_protocol_error");
}

#[test]
fn a_101_among_interim_responses_is_502() {
    let answers = [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    each_is_502("GET", &answers, "http_upgrade_failed");
}

#[test]
fn a_hundred_interim_responses_pass_in_order() {
    let mut answer: String =
        (0..100).map(|number| format!("HTTP/1.1 103 Early Hints\r\nX-N: {number}\r\n\r\n")).collect();
    answer.push_str(&with("Content-Length: 4", "done"));
    let (_origin, gateway) = answering(&[answer]);
    let mut caller = gateway.connect();
    for _ in 0..2 {
        let response = caller.get("/v1/proxy/s/0");
        assert_eq!(response.text(), "done");
        let numbers: Vec<String> = response.interim.iter().flat_map(|head| head.all("X-N")).collect();
        assert_eq!(numbers, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

/// An origin that sends a 103 and ends; its first connection answers one request before.
fn hinting() -> Origin {
    Origin::start(|conn| {
        if conn.number == 1 && conn.request().is_some() {
            let _ = conn.send(ok("good"));
        }
        if conn.request().is_some() {
            let _ = conn.send_apart("HTTP/1.1 103 Early Hints\r\n\r\n");
        }
    })
}

#[test]
fn an_upstream_that_ends_behind_an_interim_response_has_begun_to_answer() {
    // on a fresh connection and on a used one: the request has arrived for certain, so nothing is repeated
    let (first, second) = (hinting(), hinting());
    let settings = "retries: {attempts: 1}";
    let gateway = Gateway::start(&service("s", &[&first.url(), &second.url()], settings));
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "good");
    assert_eq!(caller.get("/v1/proxy/s/").text(), "good");
    assert_eq!((first.heads(), second.heads()), (1, 1));
    for number in 1..=4 {
        assert_proxy_problem(&caller.get("/v1/proxy/s/"), 502, "http_response_incomplete");
        assert_eq!(first.heads() + second.heads(), 2 + number, "sent once");
    }
    // the same for a client that saw nothing of the interim response
    let mut old = gateway.connect();
    old.send("GET /v1/proxy/s/ HTTP/1.0\r\n\r\n");
    assert_proxy_problem(&old.answer(), 502, "http_response_incomplete");
    assert_eq!(first.heads() + second.heads(), 7, "sent once");
}

#[test]
fn bytes_behind_an_answer_without_a_body_answer_nobody() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let answers = [
        ("HEAD", with("Content-Length: 44", evil)),
        ("HEAD", with("Transfer-Encoding: chunked", &format!("2c\r\n{evil}\r\n0\r\n\r\n"))),
        ("HEAD", with("Connection: keep-alive", evil)),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}")),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n{evil}")),
        ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{evil}")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".to_owned()),
    ];
    let bytes: Vec<&String> = answers.iter().map(|(_, answer)| answer).collect();
    let (origin, gateway) = answering(&bytes);
    // pipelined, so that the next request waits already when the answer comes
    for (number, (method, answer)) in answers.iter().enumerate() {
        let mut caller = gateway.connect();
        let good = "GET /v1/proxy/s/good HTTP/1.1\r\nHost: a\r\n\r\n";
        caller.send(format!("{method} /v1/proxy/s/{number} HTTP/1.1\r\nHost: a\r\n\r\n{good}{good}"));
        let response = caller.answer_to(method);
        assert!([200, 204, 304].contains(&response.status), "{answer:?}");
        assert_eq!(caller.answer().text(), "good", "behind {answer:?}");
        assert_eq!(caller.answer().text(), "good", "behind {answer:?}");
        assert_eq!(origin.connections(), number + 2, "{answer:?}: the connection is not used again");
    }
}

#[test]
fn the_late_body_of_an_answer_to_head_answers_nobody() {
    let (gate, gone) = (Gate::default(), Gate::default());
    let (door, seen) = (gate.clone(), gone.clone());
    let origin = Origin::start(move |conn| {
        if conn.number > 1 {
            while conn.request().is_some() {
                let _ = conn.send(ok("good"));
            }
        } else if conn.request().is_some() {
            let _ = conn.send(with("Content-Length: 44", ""));
            door.wait();
            let _ = conn.send(ok("evil"));
            assert!(conn.wait_gone());
            seen.open();
        }
    });
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send("HEAD /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer_to("HEAD").status, 200);
    gate.open();
    gone.wait();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "good");
}

#[test]
fn a_second_response_in_one_piece_answers_no_waiting_request() {
    let evil = with("Content-Length: 4", "evil");
    let answers = [
        format!("{}{evil}", with("Content-Length: 4", "good")),
        format!("{}{evil}", with("Transfer-Encoding: chunked", "4\r\ngood\r\n0\r\n\r\n")),
        format!("{}{evil}{evil}{evil}", with("Content-Length: 4", "good")),
    ];
    let (origin, gateway) = answering(&answers);
    for number in 0..answers.len() {
        let mut caller = gateway.connect();
        let other = "GET /v1/proxy/s/other HTTP/1.1\r\nHost: a\r\n\r\n";
        caller.send(format!("GET /v1/proxy/s/{number} HTTP/1.1\r\nHost: a\r\n\r\n{other}"));
        assert_eq!(caller.answer().text(), "good");
        assert_eq!(caller.answer().text(), "good", "from the upstream, not from what lay there");
        assert_eq!(origin.connections(), number + 2);
    }
    assert_eq!(origin.requests().len(), 2 * answers.len(), "each request was really asked");
}

#[test]
fn what_an_upstream_says_unasked_answers_nobody() {
    // speaks before it was asked, more than one answer, on each of its first connections
    let origin = Origin::start(|conn| {
        if conn.number <= 3 {
            let _ = conn.send([ok("evil"), ok("evil")].concat());
            conn.wait_gone();
            return;
        }
        while conn.request().is_some() {
            let _ = conn.send(ok("good"));
        }
    });
    let gateway = before(&origin);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let mut caller = gateway.connect();
        let response = caller.get("/v1/proxy/s/");
        seen.push((response.status, response.text()));
    }
    // the first three cannot be told from early answers; but none is left for a later request
    assert_eq!(origin.connections(), 4, "{seen:?}");
    assert_eq!(seen[3..], [(200, "good".to_owned()), (200, "good".to_owned())]);
}

const BAD_CHUNKS: [&str; 18] = [
    "x\r\n",
    "\r\n",
    " 5\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "0x5\r\nhello\r\n",
    "-5\r\nhello\r\n",
    "+5\r\nhello\r\n",
    "5\nhello\r\n",
    "5\rhello\r\n",
    "5;\0\r\nhello\r\n",
    "5;a\nb\r\nhello\r\n",
    "10000000000000000\r\n",
    "fffffffffffffffffffff\r\n",
    "0\n\r\n",
    "0\r\nX\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\nX: y\r\n z\r\n\r\n",
    "0\r\nX: y\0\r\n\r\n",
];

#[test]
fn a_bad_chunk_that_comes_with_the_head_is_502() {
    let mut all: Vec<String> = BAD_CHUNKS.iter().map(|bad| with("Transfer-Encoding: chunked", bad)).collect();
    for bad in
        ["5\r\nhelloXX", "5\r\nhello\n0\r\n\r\n", "5\r\nhello\rX", "4\r\nhello\r\n0\r\n\r\n", "6\r\nhello\r\n0\r\n\r\n"]
    {
        all.push(with("Transfer-Encoding: chunked", bad));
    }
    each_is_502("GET", &all, "http_protocol_error");
}

#[test]
fn a_bad_chunk_behind_a_good_one_cuts_the_answer_visibly() {
    let (gate, number) = (Gate::default(), std::sync::atomic::AtomicUsize::new(0));
    let door = gate.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            let bad = BAD_CHUNKS[number.fetch_add(1, std::sync::atomic::Ordering::SeqCst)];
            let _ = conn.send_apart(with("Transfer-Encoding: chunked", "4\r\npart\r\n"));
            door.wait();
            let _ = conn.send(bad);
            assert!(conn.wait_gone(), "the connection is not used again");
        }
    });
    let gateway = before(&origin);
    gate.open();
    for (number, bad) in BAD_CHUNKS.iter().enumerate() {
        // to HTTP/1.0 the body goes without its coding: only a reset tells
        let version = number % 2;
        let mut caller = gateway.connect();
        caller.send(format!("GET /v1/proxy/s/ HTTP/1.{version}\r\nHost: a\r\n\r\n"));
        let broken = caller.broken_answer();
        assert!(broken.head.is_some() || version == 0, "{bad:?}: the head had come");
        assert!(b"part".starts_with(&broken.body), "{bad:?}: {broken:?}");
    }
    assert_eq!(origin.connections(), BAD_CHUNKS.len());
}

#[test]
fn endless_chunk_extensions_and_trailers_of_an_upstream_are_bounded() {
    let long = "x".repeat(100_000);
    let all = [
        with("Transfer-Encoding: chunked", &format!("5;{long}")),
        with("Transfer-Encoding: chunked", &format!("0\r\nX: {long}")),
        with("Transfer-Encoding: chunked", &format!("0\r\n{}", "X: y\r\n".repeat(10_000))),
    ];
    let (origin, gateway) = answering(&all);
    for number in 0..all.len() {
        let mut caller = gateway.connect();
        caller.send(format!("GET /v1/proxy/s/{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        match caller.try_answer("GET") {
            Ok(response) => assert_eq!(response.status, 502, "answer {number}"),
            Err(broken) => assert!(broken.body.is_empty(), "answer {number}: {broken:?}"),
        }
        assert_eq!(gateway.fetch("/v1/proxy/s/good").text(), "good");
        assert_eq!(origin.connections(), number + 2);
    }
}

#[test]
fn a_head_over_the_limit_is_named_as_such() {
    let answers = [with(&format!("X: {}", "y".repeat(200_000)), ""), with(&"X: y\r\n".repeat(5000), "")];
    each_is_502("GET", &answers, "http_response_header_section_size");
}

#[test]
fn an_interim_head_over_the_limit_is_named_as_such() {
    let head = format!("HTTP/1.1 103 Early Hints\r\nX: {}\r\n\r\n", "y".repeat(200_000));
    each_is_502("GET", &[head], "http_response_header_section_size");
}

#[test]
fn statuses_that_nobody_knows_pass_with_their_body() {
    let statuses = [203, 205, 226, 299, 300, 305, 399, 402, 426, 428, 431, 499, 506, 511, 599];
    let answers: Vec<Vec<u8>> = statuses.iter().map(|status| reply(*status, "", "hello")).collect();
    let (origin, gateway) = answering(&answers);
    let mut caller = gateway.connect();
    for (number, status) in statuses.iter().enumerate() {
        let response = caller.get(&format!("/v1/proxy/s/{number}"));
        assert_eq!((response.status, response.text().as_str()), (*status, "hello"));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_response_may_come_byte_by_byte() {
    let whole = "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n";
    let origin = Origin::start(move |conn| {
        while conn.request().is_some() {
            for at in 0..whole.len() {
                if conn.send_apart(&whole[at..=at]).is_err() {
                    return;
                }
            }
        }
    });
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    let response = caller.get("/v1/proxy/s/");
    assert_eq!((response.text().as_str(), response.interim.len(), response.trailers.len()), ("hello", 1, 1));
}

#[test]
fn a_malformed_head_is_seen_as_soon_as_it_is_malformed() {
    // nothing more comes, and the answer does not wait for a timer
    for start in ["HTTP/1.1 2x", "http", "HTTP/1.1 200 OK\nX", "HTTP/1.1 200 OK\r\nX : ", "HTTP/1.1 200 OK\r\n X", "\0"]
    {
        let origin = Origin::start(move |conn| {
            if conn.request().is_some() {
                let _ = conn.send(start);
                conn.wait_gone();
            }
        });
        let gateway = before(&origin);
        assert_proxy_problem(&gateway.fetch("/v1/proxy/s/"), 502, "http_protocol_error");
    }
}

#[test]
fn the_upstreams_end_while_a_length_is_due_is_visible_at_every_byte() {
    let whole = with("Content-Length: 5", "hello");
    let head = whole.len() - 5;
    for cut in [0, 1, 8, 17, head - 2, head - 1] {
        let start = whole[..cut].to_owned();
        let origin = Origin::start(move |conn| {
            if conn.request().is_some() {
                let _ = conn.send(&start);
            }
        });
        let token = if cut == 0 { "connection_terminated" } else { "http_response_incomplete" };
        assert_proxy_problem(&before(&origin).fetch("/v1/proxy/s/"), 502, token);
    }
    for cut in head..whole.len() {
        let start = whole[..cut].to_owned();
        let origin = Origin::start(move |conn| {
            if conn.request().is_some() {
                let _ = conn.send(&start);
            }
        });
        let gateway = before(&origin);
        let mut caller: Caller = gateway.connect();
        caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(caller.broken_answer().body, whole.as_bytes()[head..cut]);
    }
}

#[test]
fn a_gateway_error_answer_to_head_has_no_body() {
    let refused = RefusedPort::new();
    let (origin, _) = answering(&["HTTP/1.1 999 Odd\r\n\r\n"]);
    let services =
        [service("s", &[&origin.url()], PATIENT), service("refused", &[&refused.url()], PATIENT), "empty: []\n".into()];
    let gateway = Gateway::start(&services.concat());
    let mut caller = gateway.connect();
    for (path, status) in [("s/0", 502), ("refused/", 502), ("empty/", 503)] {
        caller.send(format!("HEAD /v1/proxy/{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(caller.answer_to("HEAD").status, status);
    }
    assert_eq!(caller.get("/v1/proxy/s/good").text(), "good");
}

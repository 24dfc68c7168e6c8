//! One cause, one word: whatever goes wrong is named alike by the answer, the access log, the log, the metrics, the
//! status, and the events that the page draws. Each row of the table is induced by real sockets, and all that tells of
//! it is compared.
//!
//! Two rows of the contract cannot be induced here at will and are left to the simulator and to unit tests: `unsent`
//! (a head fits into the kernel's buffer, so it is always sent) and `no_socket` (see `limits`).

use crate::events::Subscription;
use crate::support::origin::SilentPort;
use crate::support::problem::assert_problem;
use crate::support::{Gate, Gateway, Origin, RefusedPort, Response, ok, reply, service, wait_until};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Who counts a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The upstream whose attempt failed.
    Attempt,
    /// The service for which no upstream could be picked.
    Service,
    /// The shard that refused the request.
    Refusal,
    /// Those that count answers of the gateway's own.
    Own,
}

/// What the client got: the status of its answer with the whole of it, if there is one.
type Got = Option<Response>;

struct Row {
    cause: &'static str,
    by: By,
    /// As the access log has it.
    status: u16,
    /// The error of `Proxy-Status`.
    token: Option<&'static str>,
    /// Of the path, and in labels.
    service: &'static str,
    induce: Box<dyn Fn(&Gateway) -> Got>,
}

fn row(
    by: By,
    service: &'static str,
    (cause, status, token): (&'static str, u16, &'static str),
    induce: impl Fn(&Gateway) -> Got + 'static,
) -> Row {
    let token = Some(token).filter(|token| !token.is_empty());
    Row { cause, by, status, token, service, induce: Box::new(induce) }
}

/// A row whose request is these bytes.
fn sent(by: By, service: &'static str, told: (&'static str, u16, &'static str), bytes: String) -> Row {
    row(by, service, told, move |gateway| {
        let mut caller = gateway.connect();
        caller.send(&bytes);
        Some(caller.answer())
    })
}

/// A row whose request is a GET of the service.
fn got(by: By, service: &'static str, told: (&'static str, u16, &'static str)) -> Row {
    sent(by, service, told, format!("GET /v1/proxy/{service}/ HTTP/1.1\r\nHost: a\r\n\r\n"))
}

/// An upstream that answers every request with these bytes and ends the connection.
fn ending(bytes: &'static str) -> Origin {
    Origin::start(move |conn| {
        if conn.request().is_some() {
            // Whether the gateway still reads is what the row is about.
            let _ = conn.send(bytes);
        }
    })
}

fn sample(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let is_it = |line: &&str| {
        line.starts_with(&format!("{name}{{"))
            && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    };
    let found = text.lines().filter(is_it).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    found.sum()
}

/// The whole lines of the access log.
fn written(access: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(access).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn each_cause_has_one_word_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let access = directory.path().join("access.log");
    let gate = Gate::default();
    let held = gate.clone();
    let holding = Arc::new(Origin::answering(move |_| {
        held.wait();
        ok("held")
    }));
    let (refused, silent) = (RefusedPort::new(), SilentPort::new());
    let closed = ending("");
    let incomplete = ending("HTTP/1.1 200 OK\r\nConte");
    let malformed = ending("HTTP/1.1 200 OK\r\nA b: c\r\n\r\n");
    let unasked = ending("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let short = ending("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    let mute = Origin::start(|conn| {
        conn.request();
        conn.wait_gone();
    });
    let broken = Origin::answering(|_| reply(500, "", "no"));
    let late = Origin::answering(|_| {
        // Not a wait for anything: being late is what this upstream is for.
        std::thread::sleep(Duration::from_millis(80));
        ok("late")
    });
    let fine = Arc::new(Origin::hello("hello"));

    let fast = "circuit_breaker: {failure_threshold: 1, cooldown: 1h}\nretries: {attempts: 0}";
    let config: String = [
        service("refused", &[&refused.url()], fast),
        service("silent", &[&silent.url()], &format!("{fast}\ntimeouts: {{connect: 300ms}}")),
        service("closed", &[&closed.url()], fast),
        service("incomplete", &[&incomplete.url()], fast),
        service("malformed", &[&malformed.url()], fast),
        service("unasked", &[&unasked.url()], fast),
        service("mute", &[&mute.url()], &format!("{fast}\ntimeouts: {{response: 300ms}}")),
        service("short", &[&short.url()], fast),
        service("broken", &[&broken.url()], fast),
        service(
            "late",
            &[&late.url()],
            "circuit_breaker: {failure_threshold: 1, slow_after: 10ms}\nretries: {attempts: 0}",
        ),
        service("left", &[&holding.url()], fast),
        format!("full: [{{url: '{}', max_requests: 1}}]\n", holding.url()),
        "empty: []\n".to_owned(),
        format!("drained: [{{url: '{}', weight: 0}}]\n", fine.url()),
        "nowhere: ['http://no-such-host.invalid:81']\n".to_owned(),
        service("small", &[&fine.url()], "body_limit: 4B"),
    ]
    .concat();
    let settings = format!(
        "client: {{header_timeout: 300ms}}\nlimits: {{headers: 10, header_bytes: 2KiB, request_line: 1KiB}}\n\
         log: {{level: debug, access: {{format: json, to: {}}}}}",
        access.display()
    );
    let mut gateway = Gateway::with(&settings, &config);

    let many: String = (0..20).map(|number| format!("A{number}: b\r\n")).collect();
    let rejected = || ("malformed", 400, "http_request_error");
    let (in_time, at_end, for_full, for_loop) =
        (Arc::clone(&holding), gate.clone(), Arc::clone(&holding), Arc::clone(&fine));
    let table = vec![
        got(By::Attempt, "refused", ("connect", 502, "connection_refused")),
        got(By::Service, "refused", ("circuit_open", 503, "destination_unavailable")),
        got(By::Attempt, "silent", ("connect", 504, "connection_timeout")),
        got(By::Attempt, "closed", ("closed", 502, "connection_terminated")),
        got(By::Attempt, "incomplete", ("invalid", 502, "http_response_incomplete")),
        got(By::Attempt, "malformed", ("invalid", 502, "http_protocol_error")),
        got(By::Attempt, "unasked", ("invalid", 502, "http_upgrade_failed")),
        got(By::Attempt, "mute", ("timeout", 504, "http_response_timeout")),
        row(By::Attempt, "short", ("cut", 200, ""), |gateway| {
            let mut caller = gateway.connect();
            caller.send("GET /v1/proxy/short/ HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(caller.broken_answer().body, b"abc");
            None
        }),
        got(By::Attempt, "broken", ("5xx", 500, "")),
        got(By::Attempt, "late", ("slow", 200, "")),
        row(By::Own, "left", ("client_abort", 499, ""), move |gateway| {
            let before = in_time.heads();
            let mut caller = gateway.connect();
            caller.send("GET /v1/proxy/left/ HTTP/1.1\r\nHost: a\r\n\r\n");
            in_time.wait_heads(before + 1);
            caller.reset();
            None
        }),
        row(By::Service, "full", ("max_requests", 503, "connection_limit_reached"), move |gateway| {
            let before = for_full.heads();
            let mut first = gateway.connect();
            first.send("GET /v1/proxy/full/ HTTP/1.1\r\nHost: a\r\n\r\n");
            for_full.wait_heads(before + 1);
            Some(gateway.fetch("/v1/proxy/full/")).inspect(|_| {
                at_end.open();
                assert_eq!(first.answer().status, 200);
            })
        }),
        got(By::Service, "empty", ("no_upstreams", 503, "destination_unavailable")),
        got(By::Service, "drained", ("drained", 503, "destination_unavailable")),
        got(By::Service, "nowhere", ("dns", 503, "dns_error")),
        sent(By::Refusal, "", rejected(), "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".into()),
        sent(By::Refusal, "", ("client_slow", 408, "http_request_error"), "GET / HTTP/1.1\r\nHo".into()),
        sent(
            By::Refusal,
            "small",
            ("body_too_large", 413, "http_request_error"),
            "POST /v1/proxy/small/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde".into(),
        ),
        sent(
            By::Refusal,
            "",
            ("line_too_long", 414, "http_request_error"),
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1024)),
        ),
        sent(
            By::Refusal,
            "",
            ("expectation", 417, "http_request_error"),
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n".into(),
        ),
        sent(
            By::Refusal,
            "",
            ("misdirected", 421, "http_request_error"),
            "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        sent(
            By::Refusal,
            "",
            ("fields_too_large", 431, "http_request_error"),
            format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(2048)),
        ),
        sent(
            By::Refusal,
            "",
            ("too_many_fields", 431, "http_request_error"),
            format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
        ),
        sent(
            By::Refusal,
            "",
            ("connect_method", 501, "http_request_error"),
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".into(),
        ),
        sent(By::Refusal, "", ("version", 505, "http_request_error"), "GET / HTTP/2.0\r\nHost: a\r\n\r\n".into()),
        row(By::Refusal, "small", ("loop", 508, "proxy_loop_detected"), move |gateway| {
            assert_eq!(gateway.fetch("/v1/proxy/small/").status, 200);
            let via = for_loop.last().field("Via").unwrap();
            let mut caller = gateway.connect();
            caller.send(format!("GET /v1/proxy/small/ HTTP/1.1\r\nHost: a\r\nVia: {via}\r\n\r\n"));
            Some(caller.answer())
        }),
        got(By::Own, "nobody", ("unknown_service", 404, "destination_not_found")),
        sent(By::Own, "", ("no_resource", 404, ""), "GET /v1/nothing HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        sent(By::Own, "", ("method", 405, ""), "POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".into()),
        sent(
            By::Own,
            "",
            ("denied", 403, "http_request_denied"),
            "GET /v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(),
        ),
        sent(
            By::Own,
            "",
            ("no_circuit", 404, ""),
            "POST /v1/circuits/refused/9/trip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        row(By::Own, "", ("configuration", 422, ""), |gateway| {
            gateway.rewrite_services("s: 5\n");
            Some(gateway.reload())
        }),
    ];
    let mut events = Subscription::open(&gateway, "", "");
    println!("| cause | status | Proxy-Status | in metrics |\n|---|---|---|---|");
    for row in &table {
        let metric = compare(&mut gateway, &access, &mut events, row);
        println!("| {} | {} | {} | `{metric}` |", row.cause, row.status, row.token.unwrap_or("–"));
    }
}

/// Induces a row, compares all that tells of it, and returns the metric.
fn compare(gateway: &mut Gateway, access: &Path, events: &mut Subscription, row: &Row) -> String {
    let Row { cause, by, status, token, service, .. } = *row;
    let got = (row.induce)(gateway);
    if let Some(response) = &got {
        assert_eq!(response.status, status, "{cause}: {}", response.text());
        if token.is_some() || by != By::Attempt {
            assert_problem(response, status);
            assert_eq!(response.json()["reason"], cause);
        }
        let said = response.field("Proxy-Status");
        let error = said.as_deref().and_then(|said| said.split("error=").nth(1)).map(|rest| rest.split(';').next());
        assert_eq!(error.flatten().map(str::trim), token, "{cause}: Proxy-Status is {said:?}");
    }

    let named = if matches!(service, "nobody" | "") { Value::Null } else { service.into() };
    let is_it = |line: &Value| line["outcome"] == cause && line["status"] == status && line["service"] == named;
    wait_until(&format!("the access log has the line of {cause}"), || {
        written(access).iter().filter(|line| is_it(line)).count() == 1
    });

    match by {
        By::Attempt => gateway.wait_for_log(cause, |line| {
            line.contains(&format!("{service} http")) && line.contains(&format!(": {cause}: "))
        }),
        By::Service => gateway.wait_for_log(cause, |line| line.contains(&format!("{service}: {cause}: "))),
        By::Refusal => gateway.wait_for_log(cause, |line| line.contains(&format!("refused with {status}, {cause}: "))),
        By::Own => String::new(),
    };

    let state = gateway.status();
    let shown = state["services"].as_array().unwrap().iter().find(|known| known["name"] == service);
    match (by, shown) {
        (By::Attempt, Some(known)) => {
            let upstream = &known["upstreams"][0];
            assert_eq!(upstream["outcomes"][cause], 1, "{upstream}");
            let failure = upstream["last_failures"].as_array().unwrap().last().unwrap();
            assert_eq!(failure["class"], cause, "{failure}");
            // Why the circuit opened names that failure.
            let (why, last) = (upstream["reason"].as_str().unwrap(), failure["cause"].as_str().unwrap());
            let told = events.of("circuit").data;
            assert_eq!(
                (&told["service"], &told["to"], &told["reason"]),
                (&service.into(), &"open".into(), &why.into())
            );
            assert!(upstream["state"] == "open" && why.contains(&format!("last: {last};")), "{upstream}");
        }
        (By::Service, Some(known)) => assert_eq!(known["unavailable"][cause], 1, "{known}"),
        (By::Refusal, _) => assert_eq!(state["counters"]["refused"][cause], 1, "{state}"),
        _ => {}
    }

    let text = gateway.fetch("/metrics").text();
    let (name, labels) = match by {
        By::Attempt => ("fusegate_upstream_requests_total", vec![("service", service), ("outcome", cause)]),
        By::Service => ("fusegate_unavailable_total", vec![("service", service), ("reason", cause)]),
        By::Refusal => ("fusegate_refused_total", vec![("reason", cause)]),
        By::Own => ("fusegate_requests_total", vec![("service", owner(cause)), ("code", code(status))]),
    };
    let counted = sample(&text, name, &labels);
    assert!(counted >= 1.0 && (by == By::Own || counted == 1.0), "{name} {labels:?} is {counted}");
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

/// Under which service the answers of a cause are counted.
fn owner(cause: &str) -> &'static str {
    match cause {
        "client_abort" => "left",
        "unknown_service" => "_unknown",
        _ => "_own",
    }
}

fn code(status: u16) -> &'static str {
    match status {
        403 => "403",
        404 => "404",
        405 => "405",
        422 => "422",
        499 => "499",
        other => panic!("no row has {other}"),
    }
}

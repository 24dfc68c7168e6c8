//! What Prometheus reads, and the access log: the same causes in the same words, of real requests.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Gateway, Origin, RefusedPort, ok, reply, service, wait_until};
use serde_json::Value;

/// One sample of an exposition; panics when there is none.
pub(crate) fn sample(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    find(text, name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in\n{text}"))
}

fn find(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let line = text.lines().find(|line| {
        let (series, _) = line.rsplit_once(' ').unwrap_or((line, ""));
        let (found, inside) = series.split_once('{').unwrap_or((series, ""));
        found == name && labels.iter().all(|(label, value)| inside.contains(&format!("{label}=\"{value}\"")))
    })?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn scrape(gateway: &Gateway) -> String {
    let answer = gateway.fetch("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("Content-Type").as_deref(), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.text()
}

#[test]
fn requests_attempts_and_breakers_are_counted() {
    let origin = Origin::answering(|request| match request.target() {
        "/missing" => reply(404, "", "no"),
        "/broken" => reply(500, "", "no"),
        _ => ok("hello"),
    });
    let refused = RefusedPort::new();
    let one = service("one", &[&origin.url()], "circuit_breaker: {failure_threshold: 2, cooldown: 1h}");
    let two = service("two", &[&refused.url(), &origin.url()], "");
    let gateway = Gateway::start(&format!("{one}{two}"));
    for path in ["/v1/proxy/one/", "/v1/proxy/one/missing", "/v1/proxy/two/", "/v1/proxy/two/", "/v1/proxy/nobody/"] {
        gateway.fetch(path);
    }
    let mut caller = gateway.connect();
    caller.send("POST /v1/proxy/one/ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(caller.answer().status, 200);
    caller.send("BREW /v1/proxy/one/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer().status, 200);
    gateway.connect().get("/v1/proxy/one/broken");
    gateway.connect().get("/v1/proxy/one/broken");
    assert_eq!(gateway.fetch("/v1/proxy/one/").status, 503);
    let mut malformed = gateway.connect();
    malformed.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n");
    assert_eq!(malformed.answer().status, 400);
    // What a breaker did reaches control a moment later.
    let transition = [("service", "one"), ("to", "open"), ("reason", "failures_in_row")];
    wait_until("the transition is counted", || {
        find(&scrape(&gateway), "fusegate_circuit_transitions_total", &transition) == Some(1.0)
    });
    let text = scrape(&gateway);
    let requests = |service, code, method| {
        sample(&text, "fusegate_requests_total", &[("service", service), ("code", code), ("method", method)])
    };
    assert_eq!(requests("one", "200", "GET"), 1.0);
    assert_eq!(requests("one", "404", "GET"), 1.0);
    assert_eq!(requests("one", "500", "GET"), 2.0);
    assert_eq!(requests("one", "503", "GET"), 1.0);
    assert_eq!(requests("one", "200", "POST"), 1.0);
    assert_eq!(requests("one", "200", "_OTHER"), 1.0);
    assert_eq!(requests("two", "200", "GET"), 2.0);
    assert_eq!(requests("_unknown", "404", "GET"), 1.0);
    assert_eq!(requests("_own", "400", "_OTHER"), 1.0);
    let (url, dead) = (origin.url(), refused.url());
    let attempts = |service, upstream, outcome| {
        let labels = [("service", service), ("upstream", upstream), ("outcome", outcome)];
        sample(&text, "fusegate_upstream_requests_total", &labels)
    };
    assert_eq!(attempts("one", &url, "success"), 4.0);
    assert_eq!(attempts("one", &url, "5xx"), 2.0);
    assert_eq!(attempts("two", &url, "success"), 2.0);
    assert!(attempts("two", &dead, "connect") >= 1.0);
    let retried = [("service", "two"), ("reason", "connect"), ("result", "success")];
    assert_eq!(sample(&text, "fusegate_retries_total", &retried), attempts("two", &dead, "connect"));
    assert_eq!(sample(&text, "fusegate_circuit_rejected_total", &[("service", "one")]), 1.0);
    for (state, is) in [("closed", 0.0), ("open", 1.0), ("half-open", 0.0)] {
        assert_eq!(sample(&text, "fusegate_circuit_state", &[("service", "one"), ("state", state)]), is, "{state}");
    }
    assert_eq!(sample(&text, "fusegate_refused_total", &[("reason", "malformed")]), 1.0);
    let buckets = |le| sample(&text, "fusegate_request_duration_seconds_bucket", &[("service", "one"), ("le", le)]);
    assert_eq!(buckets("+Inf"), 7.0);
    assert_eq!(sample(&text, "fusegate_request_duration_seconds_count", &[("service", "one")]), 7.0);
    assert!(buckets("0.005") <= buckets("10"));
    assert_eq!(sample(&text, "fusegate_upstream_duration_seconds_count", &[("service", "one")]), 6.0);
    assert!(sample(&text, "process_resident_memory_bytes", &[]) > 1e6);
    let status = gateway.status();
    assert_eq!(status["services"][0]["upstreams"][0]["outcomes"]["5xx"], 2, "{status}");
    assert!(status["services"][0]["upstreams"][0]["latency"]["p99_9"].as_f64().is_some_and(|s| s > 0.0 && s < 60.0));
}

#[test]
fn the_format_follows_what_is_accepted() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::with("metrics: {path: /numbers, buckets: [1s, 2s]}", &service("s", &[&origin.url()], ""));
    assert_eq!(gateway.fetch("/metrics").status, 404);
    gateway.fetch("/v1/proxy/s/");
    let mut caller = gateway.connect();
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    caller.send(format!("GET /numbers HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n"));
    let answer = caller.answer();
    let kind = answer.field("Content-Type");
    assert_eq!(kind.as_deref(), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = answer.text();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE fusegate_requests counter\n"), "{text}");
    assert_eq!(sample(&text, "fusegate_request_duration_seconds_bucket", &[("service", "s"), ("le", "1.0")]), 1.0);
    caller.send("POST /numbers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let answer = caller.answer();
    assert_eq!((answer.status, answer.field("Allow").as_deref()), (405, Some("GET, HEAD")));
    caller.send("GET /numbers HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
    assert_eq!(caller.answer().status, 403);
}

/// The lines of a file as soon as there are so many.
fn lines(path: &std::path::Path, count: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    wait_until("the access log has its lines", || read().matches('\n').count() >= count);
    read().lines().map(str::to_owned).collect()
}

#[test]
fn every_request_is_a_line() {
    let origin = Origin::answering(|request| match request.target() {
        "/broken" => reply(500, "", "no"),
        _ => ok("hello"),
    });
    let refused = RefusedPort::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let good = service("good", &[&origin.url()], "");
    let bad = service("bad", &[&refused.url()], "retries: {attempts: 0}");
    let settings = format!("log: {{access: {{format: json, to: {}}}}}", path.display());
    let gateway = Gateway::with(&settings, &format!("{good}{bad}"));
    let mut caller = gateway.connect();
    let fields = "Host: h.test\r\nUser-Agent: me \"x\"\r\nReferer: http://r/\r\nX-Request-Id: id-1\r\n\
                  traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    caller.send(format!("POST /v1/proxy/good/a?b=c HTTP/1.1\r\n{fields}Content-Length: 3\r\n\r\nabc"));
    assert_eq!(caller.answer().status, 200);
    assert_eq!(caller.get("/v1/proxy/good/broken").status, 500);
    let failed = caller.get("/v1/proxy/bad/");
    assert_proxy_problem(&failed, 502, "connection_refused");
    assert_eq!(failed.json()["reason"], "connect");
    let unknown = caller.get("/v1/proxy/nobody/");
    assert_eq!(unknown.status, 404);
    assert_eq!(gateway.fetch("/livez").status, 200);
    let mut malformed = gateway.connect();
    malformed.send("GET /x\x01y HTTP/1.1\r\n\r\n");
    assert_eq!(malformed.answer().status, 400);
    let seen: Vec<Value> = lines(&path, 6).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = &seen[0];
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("path", "/v1/proxy/good/a?b=c"),
        ("protocol", "HTTP/1.1"),
        ("host", "h.test"),
        ("outcome", "success"),
        ("service", "good"),
        ("request_id", "id-1"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
        ("referer", "http://r/"),
        ("user_agent", "me \"x\""),
        ("upstream", &origin.url()),
    ] {
        assert_eq!(first[key], value, "{key} in {first}");
    }
    assert_eq!((&first["status"], &first["upstream_status"]), (&200.into(), &200.into()));
    assert_eq!((&first["bytes_received"], &first["bytes"], &first["attempts"]), (&3.into(), &5.into(), &1.into()));
    let outcomes: Vec<_> = seen.iter().map(|line| (line["status"].as_u64(), line["outcome"].as_str())).collect();
    let expected =
        [(200, "success"), (500, "5xx"), (502, "connect"), (404, "unknown_service"), (200, "own"), (400, "malformed")];
    assert_eq!(outcomes, expected.map(|(status, outcome)| (Some(status), Some(outcome))));
    assert_eq!(seen[2]["upstream_status"], Value::Null);
    for (line, answer) in [(&seen[2], &failed), (&seen[3], &unknown)] {
        assert_eq!(line["bytes"], answer.body.len(), "{line}");
    }
}

#[test]
fn answers_of_control_have_lines_too() {
    let origin = Origin::hello("hello");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let settings = format!("log: {{access: {{format: json, to: {}}}}}", path.display());
    let gateway = Gateway::with(&settings, &service("s", &[&origin.url()], ""));
    // Chunks that go on, and an answer that is whole.
    for (at, path) in ["/v1/events", "/v1/status"].iter().enumerate() {
        let mut caller = gateway.connect();
        caller
            .send(format!("GET {path}?q=\"%7f HTTP/1.1\r\nHost: {}\r\nX-Request-Id: id-{at}\r\n\r\n", gateway.addr()));
        assert_eq!(caller.head().0, 200);
    }
    for (at, line) in lines(&path, 2).iter().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"own".into()), "{line}");
        assert_eq!(line["request_id"], format!("id-{at}"), "{line}");
        assert_eq!(line["path"], format!("{}?q=\"%7f", ["/v1/events", "/v1/status"][at]), "{line}");
    }
}

#[test]
fn a_client_that_leaves_is_a_499() {
    let gate = crate::support::Gate::default();
    let held = gate.clone();
    let origin = Origin::answering(move |_| {
        held.wait();
        ok("late")
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let settings = format!("log: {{access: {{format: common, to: {}}}}}", path.display());
    let gateway = Gateway::with(&settings, &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    drop(caller);
    let line = &lines(&path, 1)[0];
    assert!(
        line.starts_with("127.0.0.1 - - [") && line.ends_with("] \"GET /v1/proxy/s/slow HTTP/1.1\" 499 -"),
        "{line}"
    );
    gate.open();
}

#[test]
fn the_access_log_is_opened_again_and_changed_by_a_reload() {
    let origin = Origin::hello("hello");
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let services = service("s", &[&origin.url()], "");
    let settings = format!("log: {{access: {{format: combined, to: {}}}}}", path("a.log").display());
    let mut gateway = Gateway::with(&settings, &services);
    gateway.fetch("/v1/proxy/s/1");
    lines(&path("a.log"), 1);
    std::fs::rename(path("a.log"), path("a.old")).unwrap();
    gateway.signal("USR1");
    gateway.wait_for_log("that it is opened again", |line| line.contains("the access log is opened again"));
    gateway.fetch("/v1/proxy/s/2");
    assert!(lines(&path("a.log"), 1)[0].contains("\"GET /v1/proxy/s/2 HTTP/1.1\" 200 5 \"-\" \"-\""));
    assert_eq!(lines(&path("a.old"), 1).len(), 1);
    // A file that cannot be opened changes nothing.
    let section = gateway.section().to_owned();
    let text = |name: &str| format!("{}{services}", section.replace("/a.log", name));
    gateway.rewrite_config(&text("/nowhere/b.log"));
    let refused = gateway.reload();
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("cannot open the access log"), "{}", refused.text());
    gateway.rewrite_config(&text("/b.log"));
    assert_eq!(gateway.reload().status, 200);
    gateway.fetch("/v1/proxy/s/3");
    lines(&path("b.log"), 1);
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let origin = Origin::hello("hello");
    let settings = "log: {access: {format: json, to: /dev/full}}";
    let mut gateway = Gateway::with(settings, &service("s", &[&origin.url()], ""));
    for _ in 0..10 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    }
    gateway.wait_for_log("that it cannot be written", |line| line.contains("the access log cannot be written"));
    wait_until("the lines are counted", || sample(&scrape(&gateway), "fusegate_access_log_dropped_total", &[]) >= 10.0);
}

//! What happens, as it happens: subscriptions to `/v1/events`, what they are told, how they are resumed, and what
//! becomes of those who do not read or go away.

use crate::metrics::sample;
use crate::support::problem::assert_problem;
use crate::support::wire::End;
use crate::support::{Caller, Gateway, Origin, RefusedPort, service, wait_until};
use serde_json::Value;

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

/// A subscription that reads chunk by chunk.
pub(crate) struct Subscription {
    caller: Caller,
    text: String,
}

fn request(gateway: &Gateway, fields: &str, query: &str) -> String {
    format!("GET /v1/events{query} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", gateway.addr())
}

impl Subscription {
    #[track_caller]
    pub(crate) fn open(gateway: &Gateway, fields: &str, query: &str) -> Subscription {
        let mut caller = gateway.connect();
        caller.send(request(gateway, fields, query));
        let (status, head) = caller.head();
        assert_eq!(status, 200, "{}", head.line);
        assert_eq!(head.field("Content-Type").as_deref(), Some("text/event-stream"));
        assert_eq!(head.field("Cache-Control").as_deref(), Some("no-store"));
        assert!(head.lists("Transfer-Encoding", "chunked") && head.lists("Connection", "close"));
        Subscription { caller, text: String::new() }
    }

    /// The next chunk; the last one is empty.
    fn chunk(&mut self) -> Vec<u8> {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(char::from(self.caller.exact(1)[0]));
        }
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut bytes = self.caller.exact(length + 2);
        assert_eq!(bytes.split_off(length), b"\r\n");
        bytes
    }

    /// The next event, of whatever kind.
    #[track_caller]
    pub(crate) fn any(&mut self) -> Event {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(event) = parse(&block) {
                    return event;
                }
                continue;
            }
            let chunk = self.chunk();
            assert!(!chunk.is_empty(), "the stream has ended");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event that is no `status`.
    #[track_caller]
    fn next(&mut self) -> Event {
        loop {
            let event = self.any();
            if event.kind != "status" {
                return event;
            }
        }
    }

    /// The next event of a kind.
    #[track_caller]
    pub(crate) fn of(&mut self, kind: &str) -> Event {
        loop {
            let event = self.any();
            if event.kind == kind {
                return event;
            }
        }
    }
}

fn parse(block: &str) -> Option<Event> {
    let value = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(Event {
        id: value("id")?.parse().unwrap(),
        kind: value("event")?.to_owned(),
        data: serde_json::from_str(value("data")?).unwrap(),
    })
}

fn move_circuit(gateway: &Gateway, action: &str, body: &str) {
    let answer = gateway.connect().post(&format!("/v1/circuits/s/0/{action}"), body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn subscribers(gateway: &Gateway) -> f64 {
    sample(&gateway.fetch("/metrics").text(), "fusegate_event_subscribers", &[])
}

#[test]
fn transitions_are_told_with_their_reasons() {
    let refused = RefusedPort::new();
    let gateway = Gateway::start(&service("s", &[&refused.url()], "circuit_breaker: {failure_threshold: 2}"));
    let mut events = Subscription::open(&gateway, "", "");
    let first = events.any();
    assert_eq!(first.kind, "status", "a picture comes first");
    assert_eq!(first.data["services"][0]["upstreams"][0]["state"], "closed");
    gateway.fetch("/v1/proxy/s/");
    gateway.fetch("/v1/proxy/s/");
    let opened = events.next();
    assert_eq!((opened.kind.as_str(), opened.id > first.id), ("circuit", true));
    assert_eq!(opened.data["service"], "s");
    assert_eq!(opened.data["upstream"], refused.url());
    assert_eq!((&opened.data["from"], &opened.data["to"]), (&"closed".into(), &"open".into()));
    assert_eq!(opened.data["why"], "failures_in_row");
    assert!(opened.data["reason"].as_str().is_some_and(|why| why.starts_with("after 2 failures in a row")));
    assert!(opened.data["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    let later = events.of("status");
    assert_eq!(later.id, opened.id, "who comes back says the last event that it has");
    let upstream = &later.data["services"][0]["upstreams"][0];
    assert_eq!(upstream["state"], "open");
    assert!(upstream["next_probe_seconds"].as_f64().is_some_and(|left| left > 0.0));
    assert_eq!((&later.data["services"][0]["requests"], &upstream["failures"]), (&2.into(), &2.into()));

    move_circuit(&gateway, "reset", r#"{"reason": "mended"}"#);
    let reset = events.next();
    assert_eq!((reset.kind.as_str(), &reset.data["reason"]), ("reset", &"mended".into()));
    assert_eq!((&reset.data["service"], &reset.data["index"]), (&"s".into(), &0.into()));
    let closed = events.next();
    assert_eq!((closed.kind.as_str(), &closed.data["to"]), ("circuit", &"closed".into()));
    assert_eq!((reset.id, closed.id), (opened.id + 1, opened.id + 2));
}

#[test]
fn reloads_are_told_with_their_messages() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    let mut events = Subscription::open(&gateway, "", "");
    gateway.rewrite_services("t: [http://127.0.0.1:9]\n");
    assert_eq!(gateway.reload().status, 200);
    let told = events.next();
    assert_eq!((told.kind.as_str(), &told.data["result"]), ("reload", &"reloaded".into()));
    assert_eq!(told.data["generation"], 2);
    assert_eq!(told.data["services"]["added"][0], "t");
    gateway.rewrite_services("t: [nonsense]\n");
    assert_eq!(gateway.reload().status, 422);
    let told = events.next();
    assert_eq!((told.kind.as_str(), &told.data["result"]), ("reload", &"failed".into()));
    assert!(told.data["messages"][0].as_str().is_some_and(|line| line.contains("config.yaml:")), "{told:?}");
}

#[test]
fn verdicts_of_health_checks_are_told() {
    let refused = RefusedPort::new();
    let check = "health_check: {path: /, interval: 50ms, timeout: 50ms, unhealthy: 2}";
    let gateway = Gateway::start(&service("s", &[&refused.url()], check));
    // It may be over before somebody listens: from the beginning on.
    let mut events = Subscription::open(&gateway, "Last-Event-ID: 0\r\n", "");
    assert_eq!(events.next().kind, "gone");
    let told = events.of("health");
    assert_eq!((&told.data["from"], &told.data["to"]), (&"unknown".into(), &"unhealthy".into()));
    assert!(told.data["reason"].as_str().is_some_and(|why| why.starts_with("after 2 failed health checks")));
}

#[test]
fn a_subscription_goes_on_where_it_was() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    let mut events = Subscription::open(&gateway, "", "");
    move_circuit(&gateway, "trip", "");
    let seen = events.next();
    drop(events);
    move_circuit(&gateway, "reset", "");
    for (fields, query) in [
        (format!("Last-Event-ID: {}\r\n", seen.id), String::new()),
        (String::new(), format!("?last-event-id={}", seen.id)),
        // The field is the browser's own; the query may be of an older day.
        (format!("Last-Event-ID: {}\r\n", seen.id), "?last-event-id=1".to_owned()),
    ] {
        let mut events = Subscription::open(&gateway, &fields, &query);
        let next: Vec<(u64, String)> = (0..3).map(|_| events.any()).map(|event| (event.id, event.kind)).collect();
        let expected = [(1, "circuit"), (2, "reset"), (3, "circuit")].map(|(by, kind)| (seen.id + by, kind.to_owned()));
        assert_eq!(next, expected);
        assert_eq!(events.any().kind, "status");
    }
}

#[test]
fn what_is_not_kept_any_more_is_said_to_be_gone() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    let mut events = Subscription::open(&gateway, "", "");
    let first = events.any().id;
    drop(events);
    let mut caller = gateway.connect();
    for _ in 0..600 {
        assert_eq!(caller.post("/v1/circuits/s/0/trip", "").status, 200);
    }
    for asked in [first.to_string(), (first + 100_000).to_string(), "nonsense".to_owned()] {
        let mut events = Subscription::open(&gateway, &format!("Last-Event-ID: {asked}\r\n"), "");
        let gone = events.any();
        assert_eq!(gone.kind, "gone", "{asked}");
        let next = events.any();
        assert_eq!(gone.data["next"], next.id, "{asked}");
        assert_eq!(next.id, gone.id + 1);
        let last = (1..1024).map(|_| events.any()).last().unwrap();
        assert_eq!(last.id, first + 1200, "{asked}: all that is kept, in order");
    }
}

#[test]
fn one_that_never_reads_is_dropped_and_traffic_goes_on() {
    let (tripped, origin) = (Origin::hello("tripped"), Origin::hello("hello"));
    let mut gateway = Gateway::start(&service("s", &[&tripped.url(), &origin.url()], ""));
    let mut deaf = Caller::connect_narrow(gateway.addr());
    deaf.send(request(&gateway, "", ""));
    wait_until("it is subscribed", || subscribers(&gateway) == 1.0);
    let reason = format!("{{\"reason\": \"{}\"}}", "…".repeat(256));
    let mut caller = gateway.connect();
    let dropped = |caller: &mut Caller| {
        sample(&caller.get("/metrics").text(), "fusegate_event_subscribers_dropped_total", &[]) == 1.0
    };
    let mut hears = Subscription::open(&gateway, "", "");
    let mut last = 0;
    wait_until("it is dropped", || {
        for _ in 0..100 {
            assert_eq!(caller.post("/v1/circuits/s/0/trip", &reason).status, 200);
            last = hears.of("circuit").id;
        }
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
        dropped(&mut caller)
    });
    gateway.wait_for_log("it", |line| line.contains("INFO") && line.contains("did not read and was dropped"));
    assert_eq!(deaf.rest().1, End::Reset);
    wait_until("it is forgotten", || subscribers(&gateway) == 1.0);
    assert_eq!(caller.post("/v1/circuits/s/0/reset", "").status, 200);
    assert_eq!(hears.next().id, last + 1, "the other one goes on");
}

#[test]
fn one_that_leaves_is_forgotten() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    let open = |count: usize| (0..count).map(|_| Subscription::open(&gateway, "", "")).collect::<Vec<_>>();
    let all = open(64);
    assert_eq!(subscribers(&gateway), 64.0);
    let mut caller = gateway.connect();
    caller.send(request(&gateway, "", ""));
    let refused = caller.answer();
    assert_problem(&refused, 503);
    assert_eq!(refused.field("Retry-After").as_deref(), Some("1"));
    for (at, one) in all.into_iter().enumerate() {
        match at % 3 {
            0 => drop(one),
            1 => one.caller.reset(),
            _ => {
                let mut one = one;
                one.caller.half_close();
                assert_eq!(one.caller.rest().1, End::Eof);
            }
        }
    }
    wait_until("all are forgotten", || subscribers(&gateway) == 0.0);
    // One connection is that of the question.
    wait_until("no connection is left", || gateway.status()["connections"] == 2);
    drop(caller);
    open(64);
    wait_until("all are forgotten again", || subscribers(&gateway) == 0.0);
}

#[test]
fn a_drain_ends_subscriptions_at_once() {
    let mut gateway = Gateway::with("drain: {timeout: 1h}", "s: [http://127.0.0.1:9]\n");
    let mut events = Subscription::open(&gateway, "", "");
    let mut old = gateway.connect();
    old.send(format!("GET /v1/events HTTP/1.0\r\nHost: {}\r\n\r\n", gateway.addr()));
    let (status, head) = old.head();
    assert_eq!(status, 200);
    assert!(head.all("Transfer-Encoding").is_empty());
    gateway.signal("TERM");
    while !events.chunk().is_empty() {}
    events.caller.expect_eof();
    let (bytes, end) = old.rest();
    assert_eq!(end, End::Eof);
    assert!(bytes.starts_with(b"retry: 1000\n\nid: "));
    assert!(gateway.wait_exit().success());
}

#[test]
fn only_administration_may_listen() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    for fields in ["X-Forwarded-For: 1.2.3.4\r\n", "Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"]
    {
        let mut caller = gateway.connect();
        caller.send(request(&gateway, fields, ""));
        assert_problem(&caller.answer(), 403);
    }
    let mut caller = gateway.connect();
    caller.send(format!("HEAD /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.addr()));
    let answer = caller.answer_to("HEAD");
    assert_eq!((answer.status, answer.field("Content-Type").as_deref()), (200, Some("text/event-stream")));
    let refused = gateway.connect().post("/v1/events", "");
    assert_eq!((refused.status, refused.field("Allow").as_deref()), (405, Some("GET, HEAD")));
    assert_eq!(subscribers(&gateway), 0.0);
}

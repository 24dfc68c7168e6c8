//! Breakers by hand: what a trip and a reset do, how long it lasts, and who may.

use crate::support::problem::{assert_problem, assert_proxy_problem};
use crate::support::{Gate, Gateway, Origin, Response, ok, service, wait_until};

fn setting(settings: &str) -> (Origin, Origin, Gateway) {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], settings));
    (a, b, gateway)
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> Response {
    let mut caller = gateway.connect();
    let length = body.len();
    let host = gateway.addr();
    caller.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"));
    caller.answer_to(method)
}

#[test]
fn a_trip_takes_an_upstream_out_until_a_reset() {
    let (a, _b, mut gateway) = setting("circuit_breaker: {cooldown: 1ms}");
    let answer = ask(&gateway, "POST", "/v1/circuits/s/0/trip", r#"{"reason": "new disks"}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shown = answer.json();
    assert_eq!(
        (shown["service"].as_str(), shown["index"].as_u64(), shown["url"].as_str()),
        (Some("s"), Some(0), Some(&*a.url()))
    );
    assert_eq!((shown["state"].as_str(), shown["held"].as_bool()), (Some("open"), Some(true)));
    assert!(
        shown["reason"].as_str().is_some_and(|why| why.contains("new disks")) && shown["next_probe_seconds"].is_null()
    );
    assert!((0..10).all(|_| gateway.fetch("/v1/proxy/s/").text() == "b"), "its cooldown ends nothing");
    gateway.wait_for_log("the reason", |line| line.contains("closed → open by an operator, until a reset: new disks"));

    // It outlives a reload that keeps it.
    let with = service("s", &[&a.url(), &gateway_url(&gateway, 1)], "retries: {attempts: 0}");
    gateway.rewrite_services(&with);
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    assert!((0..10).all(|_| gateway.fetch("/v1/proxy/s/").text() == "b"));

    assert_eq!(ask(&gateway, "POST", "/v1/circuits/s/0/reset", "").status, 200);
    let answers: Vec<String> = (0..4).map(|_| gateway.fetch("/v1/proxy/s/").text()).collect();
    assert!(answers.contains(&"a".to_owned()), "{answers:?}");
}

#[test]
fn a_trip_drains_an_upstream() {
    let gate = Gate::default();
    let held = gate.clone();
    let old = Origin::answering(move |request| {
        if request.target() == "/long" {
            held.wait();
        }
        ok("old")
    });
    let new = Origin::hello("new");
    let gateway = Gateway::start(&service("s", &[&old.url(), &new.url()], ""));
    let in_flight = || gateway.status()["services"][0]["upstreams"][0]["in_flight"].as_u64();
    let mut long = gateway.connect();
    long.send("GET /v1/proxy/s/long HTTP/1.1\r\nHost: a\r\n\r\n");
    old.wait_heads(1);
    assert_eq!(ask(&gateway, "POST", "/v1/circuits/s/0/trip", r#"{"reason": "a new version"}"#).status, 200);
    assert!((0..10).all(|_| gateway.fetch("/v1/proxy/s/").text() == "new"));
    assert_eq!(in_flight(), Some(1), "what was under way goes on");
    gate.open();
    assert_eq!(long.answer().text(), "old");
    wait_until("it is empty", || in_flight() == Some(0));
    assert_eq!(old.heads(), 1);
    assert_eq!(ask(&gateway, "POST", "/v1/circuits/s/0/reset", "").status, 200);
    let answers: Vec<String> = (0..4).map(|_| gateway.fetch("/v1/proxy/s/").text()).collect();
    assert!(answers.contains(&"old".to_owned()), "{answers:?}");
}

fn gateway_url(gateway: &Gateway, position: usize) -> String {
    gateway.status()["services"][0]["upstreams"][position]["url"].as_str().unwrap().to_owned()
}

#[test]
fn with_all_of_them_tripped_the_answer_says_when_to_come_back() {
    let (_a, _b, gateway) = setting("circuit_breaker: {when_all_open: ignore}");
    for index in [0, 1] {
        assert_eq!(ask(&gateway, "POST", &format!("/v1/circuits/s/{index}/trip"), "").status, 200);
    }
    let response = gateway.fetch("/v1/proxy/s/");
    assert_proxy_problem(&response, 503, "destination_unavailable");
    assert_eq!(response.field("Retry-After").as_deref(), Some("3600"));
}

#[test]
fn a_trip_ends_by_itself_with_a_probe() {
    let (_a, _b, gateway) = setting("");
    assert_eq!(ask(&gateway, "POST", "/v1/circuits/s/0/trip", r#"{"for": "200ms"}"#).status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "b");
    wait_until("it is probed and closes", || gateway.fetch("/v1/proxy/s/").text() == "a");
    wait_until("it is closed", || gateway.status()["services"][0]["upstreams"][0]["state"] == "closed");
}

#[test]
fn a_breaker_that_is_switched_off_or_observes_can_be_tripped() {
    for settings in ["circuit_breaker: {enabled: false}", "circuit_breaker: {mode: observe}"] {
        let (_a, _b, gateway) = setting(settings);
        assert_eq!(ask(&gateway, "POST", "/v1/circuits/s/1/trip", "").status, 200);
        assert!((0..6).all(|_| gateway.fetch("/v1/proxy/s/").text() == "a"), "{settings}");
    }
}

#[test]
fn wrong_wishes_are_told_so_and_change_nothing() {
    let (a, _b, gateway) = setting("");
    for (path, body, status) in [
        ("/v1/circuits/s/2/trip", "", 404),
        ("/v1/circuits/t/0/trip", "", 404),
        ("/v1/circuits/s/-1/trip", "", 404),
        ("/v1/circuits/s/0/open", "", 404),
        ("/v1/circuits/s/0/trip/", "", 404),
        ("/v1/circuits/s/0/trip", "reason", 400),
        ("/v1/circuits/s/0/trip", r#"{"reson": "x"}"#, 400),
        ("/v1/circuits/s/0/trip", r#"{"for": "10"}"#, 400),
        ("/v1/circuits/s/0/trip", r#"{"for": "0"}"#, 400),
        ("/v1/circuits/s/0/reset", r#"{"for": "1m"}"#, 400),
        ("/v1/circuits/s/0/trip", &" ".repeat(5000), 413),
    ] {
        assert_problem(&ask(&gateway, "POST", path, body), status);
    }
    let refused = ask(&gateway, "GET", "/v1/circuits/s/0/trip", "");
    assert_eq!((refused.status, refused.field("Allow").as_deref()), (405, Some("POST")));
    assert_eq!(gateway.breaker("s", &a.url()), ("closed".to_owned(), 0));
}

#[test]
fn only_administration_may() {
    let (a, _b, gateway) = setting("");
    let mut caller = gateway.connect();
    let host = gateway.addr();
    caller.send(format!(
        "POST /v1/circuits/s/0/trip HTTP/1.1\r\nHost: {host}\r\nOrigin: https://evil.example\r\nContent-Length: 0\r\n\r\n"
    ));
    assert_problem(&caller.answer(), 403);
    assert_eq!(gateway.breaker("s", &a.url()), ("closed".to_owned(), 0));
}

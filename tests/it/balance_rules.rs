//! `load_balancing`, `weight` and `backup`: who gets which share of the requests.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Caller, Gate, Gateway, Origin, RefusedPort, ok, reply, wait_until};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A service whose upstreams are entries with settings, in braces.
fn listed(entries: &[String], settings: &str) -> String {
    let entries: String = entries.iter().map(|entry| format!("    - {{{entry}}}\n")).collect();
    let settings: String = settings.lines().map(|line| format!("  {line}\n")).collect();
    format!("s:\n  upstreams:\n{entries}{settings}")
}

fn entry(origin: &Origin, settings: &str) -> String {
    format!("url: '{}'{}{settings}", origin.url(), if settings.is_empty() { "" } else { ", " })
}

fn shares(caller: &mut Caller, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    (0..count).for_each(|_| *shares.entry(caller.get("/v1/proxy/s/").text()).or_insert(0) += 1);
    shares
}

fn of(shares: &[(&str, usize)]) -> BTreeMap<String, usize> {
    shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
}

#[test]
fn weights_are_exact_on_all_shards() {
    let (a, b, c) = (Origin::hello("a"), Origin::hello("b"), Origin::hello("c"));
    let entries = [entry(&a, "weight: 3"), entry(&b, "weight: 1"), entry(&c, "weight: 0")];
    let gateway = Gateway::with("workers: 4", &listed(&entries, ""));
    let mut shares = BTreeMap::new();
    for _ in 0..10 {
        for _ in 0..8 {
            *shares.entry(gateway.fetch("/v1/proxy/s/").text()).or_insert(0) += 1;
        }
    }
    assert_eq!(shares, of(&[("a", 60), ("b", 20)]));
}

#[test]
fn draining_the_only_one_is_a_503_that_says_so() {
    let a = Origin::hello("a");
    let gateway = Gateway::start(&listed(&[entry(&a, "weight: 0")], ""));
    let response = gateway.fetch("/v1/proxy/s/");
    assert_proxy_problem(&response, 503, "destination_unavailable");
    assert!(response.text().contains("weight 0"), "{}", response.text());
}

#[test]
fn a_backup_serves_when_no_other_can() {
    let mut a = Origin::hello("a");
    let (b, c) = (Origin::hello("b"), Origin::hello("c"));
    let entries = [entry(&a, ""), entry(&b, "backup: true"), entry(&c, "backup: true")];
    let settings = "circuit_breaker: {failure_threshold: 2, cooldown: 200ms}";
    let gateway = Gateway::start(&listed(&entries, settings));
    let mut caller = gateway.connect();
    assert_eq!(shares(&mut caller, 10), of(&[("a", 10)]));
    a.stop();
    let mut caller = gateway.connect();
    let during = shares(&mut caller, 10);
    assert_eq!(during.values().sum::<usize>(), 10);
    assert!(during["b"] == 5 && during["c"] == 5, "{during:?}");
    a.restart();
    wait_until("the first serves again", || gateway.fetch("/v1/proxy/s/").text() == "a");
    wait_until("and alone", || shares(&mut gateway.connect(), 10) == of(&[("a", 10)]));
}

#[test]
fn the_least_loaded_is_taken_across_shards() {
    the_held_one_is_avoided("least_requests");
}

#[test]
fn two_choices_avoid_the_loaded_one_across_shards() {
    the_held_one_is_avoided("p2c");
}

fn the_held_one_is_avoided(policy: &str) {
    let gate = Arc::new(Gate::default());
    let opened = Arc::clone(&gate);
    let held = Origin::answering(move |_| {
        opened.wait();
        ok("held")
    });
    let free = Origin::hello("free");
    let entries = [entry(&held, ""), entry(&free, "")];
    let gateway = Gateway::with("workers: 4", &listed(&entries, &format!("load_balancing: {{policy: {policy}}}")));
    // Chance may name the free one first; soon enough one request is held.
    let mut waiting = Vec::new();
    while held.heads() == 0 {
        let mut caller = gateway.connect();
        caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n\r\n");
        wait_until("an answer or a held request", || caller.has_input() || held.heads() > 0);
        waiting.push(caller);
    }
    for _ in 0..40 {
        // A client has its answer a moment before its request is over.
        let in_flight = |at: usize| gateway.status()["services"][0]["upstreams"][at]["in_flight"].as_u64();
        wait_until("only the held one is under way", || (in_flight(0), in_flight(1)) == (Some(1), Some(0)));
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "free");
    }
    assert_eq!(held.heads(), 1);
    gate.open();
    waiting.iter_mut().for_each(|caller| assert_eq!(caller.answer().status, 200));
    wait_until("it is taken again", || gateway.fetch("/v1/proxy/s/").text() == "held");
}

#[test]
fn chance_reaches_everybody() {
    let (a, b, c) = (Origin::hello("a"), Origin::hello("b"), Origin::hello("c"));
    let entries = [entry(&a, "weight: 2"), entry(&b, ""), entry(&c, "")];
    let gateway = Gateway::start(&listed(&entries, "load_balancing: {policy: random}"));
    let shares = shares(&mut gateway.connect(), 2000);
    // Far outside of what chance does to 2,000 draws.
    assert!((850..1150).contains(&shares["a"]) && shares["b"] > 380 && shares["c"] > 380, "{shares:?}");
}

#[test]
fn a_key_stays_with_its_upstream_and_moves_only_when_that_is_out() {
    let origins = ["a", "b", "c", "d"].map(Origin::hello);
    let entries = origins.each_ref().map(|origin| entry(origin, ""));
    for (hash_on, field) in [("header:X-User", "X-User: "), ("cookie:session", "Cookie: other=1; session=")] {
        let settings = format!("load_balancing: {{policy: hash, hash_on: '{hash_on}'}}");
        let gateway = Gateway::with("workers: 2", &listed(&entries, &settings));
        let ask = |user: usize| {
            let mut caller = gateway.connect();
            caller.send(format!("GET /v1/proxy/s/ HTTP/1.1\r\nHost: x\r\n{field}u{user}\r\n\r\n"));
            caller.answer().text()
        };
        let before: Vec<String> = (0..60).map(ask).collect();
        assert_eq!(before, (0..60).map(ask).collect::<Vec<_>>());
        let used = before.iter().fold(HashMap::new(), |mut all: HashMap<&str, usize>, name| {
            *all.entry(name).or_default() += 1;
            all
        });
        assert_eq!(used.len(), 4, "{used:?}");
        // The second leaves by a reload: only its keys move.
        let rest = [entries[0].clone(), entries[2].clone(), entries[3].clone()];
        gateway.rewrite_services(&listed(&rest, &settings));
        assert_eq!(gateway.reload().status, 200);
        for (user, old) in before.iter().enumerate() {
            let new = ask(user);
            assert!(new == *old || old == "b", "{user} moved from {old} to {new}");
        }
    }
}

#[test]
fn hash_on_path_and_client_ip() {
    let origins = ["a", "b", "c", "d"].map(Origin::hello);
    let entries = origins.each_ref().map(|origin| entry(origin, ""));
    let gateway = Gateway::start(&listed(&entries, "load_balancing: {policy: hash, hash_on: path}"));
    let by_path: Vec<String> = (0..20).map(|n| gateway.fetch(&format!("/v1/proxy/s/item/{n}?x=1")).text()).collect();
    let again: Vec<String> = (0..20).map(|n| gateway.fetch(&format!("/v1/proxy/s/item/{n}?y=2")).text()).collect();
    assert_eq!(by_path, again, "the query is no part of the key");
    assert!(by_path.iter().any(|name| *name != by_path[0]));
    gateway.rewrite_services(&listed(&entries, "load_balancing: {policy: hash, hash_on: client_ip}"));
    assert_eq!(gateway.reload().status, 200);
    let first = gateway.fetch("/v1/proxy/s/").text();
    assert!((0..10).all(|n| gateway.fetch(&format!("/v1/proxy/s/{n}")).text() == first));
}

#[test]
fn a_request_without_the_key_takes_turns() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let settings = "load_balancing: {policy: hash, hash_on: 'header:X-User'}";
    let gateway = Gateway::start(&listed(&[entry(&a, ""), entry(&b, "")], settings));
    assert_eq!(shares(&mut gateway.connect(), 10), of(&[("a", 5), ("b", 5)]));
}

#[test]
fn who_came_back_starts_slowly() {
    let failing = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    let a = Origin::answering(move |_| if fails.load(Ordering::SeqCst) { reply(500, "", "") } else { ok("a") });
    let b = Origin::hello("b");
    let settings = "load_balancing: {slow_start: 1h}\ncircuit_breaker: {failure_threshold: 1, cooldown: 100ms}";
    let gateway = Gateway::start(&listed(&[entry(&a, ""), entry(&b, "")], settings));
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").status, 500, "at the start nobody is spared");
    failing.store(false, Ordering::SeqCst);
    wait_until("a probe closes it", || gateway.fetch("/v1/proxy/s/").text() == "a");
    let shares = shares(&mut caller, 1000);
    assert!((20..200).contains(&shares["a"]), "about a tenth of its turns: {shares:?}");
}

#[test]
fn who_came_by_a_reload_starts_slowly() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let settings = "load_balancing: {slow_start: 1h}";
    let gateway = Gateway::start(&listed(&[entry(&b, "")], settings));
    gateway.rewrite_services(&listed(&[entry(&a, ""), entry(&b, "")], settings));
    assert_eq!(gateway.reload().status, 200);
    let shares = shares(&mut gateway.connect(), 1000);
    assert!((20..200).contains(&shares["a"]), "{shares:?}");
}

#[test]
fn backups_are_tried_before_an_upstream_that_was_tried() {
    let refused = RefusedPort::new();
    let b = Origin::hello("b");
    let entries = [format!("url: '{}'", refused.url()), entry(&b, "backup: true")];
    let gateway = Gateway::start(&listed(&entries, "circuit_breaker: {enabled: false}"));
    assert_eq!(shares(&mut gateway.connect(), 5), of(&[("b", 5)]));
}

#[test]
fn changing_a_weight_by_reload_keeps_breakers() {
    let refused = RefusedPort::new();
    let b = Origin::hello("b");
    let of_weight = |weight: u32| [format!("url: '{}', weight: {weight}", refused.url()), entry(&b, "")];
    let settings = "circuit_breaker: {failure_threshold: 1, cooldown: 1h}";
    let gateway = Gateway::start(&listed(&of_weight(1), settings));
    assert_eq!(shares(&mut gateway.connect(), 4), of(&[("b", 4)]));
    assert_eq!(gateway.breaker("s", &refused.url()).0, "open");
    gateway.rewrite_services(&listed(&of_weight(5), settings));
    let answer = gateway.reload().json();
    assert_eq!((answer["services"]["changed"][0].as_str(), answer["upstreams"]["kept"].as_u64()), (Some("s"), Some(2)));
    assert_eq!(gateway.breaker("s", &refused.url()).0, "open");
}

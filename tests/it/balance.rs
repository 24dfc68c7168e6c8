//! Strict round robin: requests take the upstreams in the order of the configuration, whatever
//! connection and shard they come by, and a skipped upstream costs its turn only.

use crate::support::{Caller, Gateway, Origin, RefusedPort, service, wait_until};

/// Which upstream answered each of `count` requests, as one string.
fn order(caller: &mut Caller, count: usize) -> String {
    (0..count).map(|_| caller.get("/v1/proxy/s/").text()).collect()
}

#[test]
fn requests_of_one_connection_take_turns() {
    let (a, b, c) = (Origin::hello("a"), Origin::hello("b"), Origin::hello("c"));
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url(), &c.url()], ""));
    let mut caller = gateway.connect();
    assert_eq!(order(&mut caller, 9), "abcabcabc", "the first takes the first");
}

#[test]
fn requests_of_many_connections_and_shards_take_turns() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let gateway = Gateway::with("workers: 4", &service("s", &[&a.url(), &b.url()], ""));
    // fresh connections: the kernel gives them to different shards
    let fresh: String = (0..40).map(|_| gateway.fetch("/v1/proxy/s/").text()).collect();
    assert_eq!(fresh, "ab".repeat(20));
    // kept connections of all shards, asked in turn
    let mut callers: Vec<Caller> = (0..10).map(|_| gateway.connect()).collect();
    let kept: String = (0..40).map(|at| callers[at % 10].get("/v1/proxy/s/").text()).collect();
    assert_eq!(kept, "ab".repeat(20));
}

#[test]
fn concurrent_requests_are_spread_to_the_last_one() {
    let origins = [Origin::hello("a"), Origin::hello("b"), Origin::hello("c"), Origin::hello("d")];
    let urls = origins.each_ref().map(Origin::url);
    let urls = urls.each_ref().map(String::as_str);
    let gateway = Gateway::with("workers: 4", &service("s", &urls, ""));
    let address = gateway.addr();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut caller = Caller::connect(address);
                for _ in 0..50 {
                    assert_eq!(caller.get("/v1/proxy/s/").status, 200);
                }
            });
        }
    });
    assert_eq!(origins.each_ref().map(Origin::heads), [100; 4]);
}

#[test]
fn each_service_has_a_cursor_of_its_own() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let urls = [&*a.url(), &*b.url()];
    let gateway = Gateway::start(&[service("s", &urls, ""), service("t", &urls, "")].concat());
    let mut caller = gateway.connect();
    let answers: String =
        (0..8).map(|at| caller.get(if at % 2 == 0 { "/v1/proxy/s/" } else { "/v1/proxy/t/" }).text()).collect();
    assert_eq!(answers, "aabbaabb");
}

#[test]
fn a_url_listed_twice_has_two_turns() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let gateway = Gateway::start(&service("s", &[&a.url(), &a.url(), &b.url()], ""));
    assert_eq!(order(&mut gateway.connect(), 9), "aabaabaab");
}

#[test]
fn the_gateways_own_answers_take_no_turn() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], ""));
    let mut caller = gateway.connect();
    assert_eq!(order(&mut caller, 1), "a");
    assert_eq!(caller.get("/livez").status, 200);
    assert_eq!(caller.get("/v1/proxy/nobody/").status, 404);
    assert_eq!(caller.get("/v1/status").status, 200);
    // a refusal ends its connection
    assert_eq!(caller.get("/v1/proxy/s/../x").status, 400);
    caller.expect_eof();
    assert_eq!(order(&mut gateway.connect(), 3), "bab");
}

#[test]
fn with_one_of_three_open_the_others_alternate() {
    for dead in 0..3 {
        let (a, b) = (Origin::hello("a"), Origin::hello("b"));
        let refused = RefusedPort::new();
        let mut urls = vec![a.url(), b.url()];
        urls.insert(dead, refused.url());
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let gateway = Gateway::start(&service("s", &urls, "circuit_breaker: {failure_threshold: 1}"));
        let mut caller = gateway.connect();
        wait_until("the dead one is out", || {
            assert_eq!(caller.get("/v1/proxy/s/").status, 200);
            gateway.breaker("s", &refused.url()).0 == "open"
        });
        let turns = order(&mut caller, 20);
        let expected = if turns.starts_with('a') { "ab" } else { "ba" };
        assert_eq!(turns, expected.repeat(10), "the load of the neighbour is not doubled");
    }
}

#[test]
fn an_upstream_that_recovers_takes_its_turn_again() {
    let a = Origin::hello("a");
    let mut b = Origin::hello("b");
    b.stop();
    let settings = "circuit_breaker: {failure_threshold: 1, cooldown: 200ms}";
    let gateway = Gateway::start(&service("s", &[&a.url(), &b.url()], settings));
    let mut caller = gateway.connect();
    assert_eq!(order(&mut caller, 4), "aaaa");
    b.restart();
    wait_until("b is back", || order(&mut caller, 1) == "b");
    assert_eq!(order(&mut caller, 6), "ababab");
}

//! Hot reload: a transaction that changes what the file says and nothing else, over HTTP and by
//! SIGHUP, while requests go on.

use crate::support::problem::assert_problem;
use crate::support::{Caller, Gate, Gateway, Origin, RefusedPort, ok, service, wait_until};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn a_reload_says_what_it_changed() {
    let (a, b, c) = (Origin::hello("a"), Origin::hello("b"), Origin::hello("c"));
    let first = [
        service("stays", &[&a.url()], ""),
        service("changes", &[&a.url(), &b.url()], ""),
        service("goes", &[&b.url()], ""),
    ];
    let gateway = Gateway::with("workers: 4", &first.concat());
    let generation = gateway.generation();

    let unchanged = gateway.reload();
    assert_eq!(unchanged.status, 200, "{}", unchanged.text());
    let document = unchanged.json();
    assert_eq!(document["status"], "unchanged");
    assert_eq!(document["generation"], generation);
    assert_eq!(document["services"], json!({"added": [], "removed": [], "changed": []}));

    let second = [
        service("stays", &[&a.url()], ""),
        service("changes", &[&a.url(), &c.url()], ""),
        service("comes", &[&c.url()], ""),
    ];
    gateway.rewrite_services(&second.concat());
    let reloaded = gateway.reload();
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let document = reloaded.json();
    assert_eq!(document["status"], "reloaded");
    assert!(document["generation"].as_u64().unwrap() > generation);
    assert_eq!(document["services"], json!({"added": ["comes"], "removed": ["goes"], "changed": ["changes"]}));
    assert_eq!(document["upstreams"], json!({"kept": 2, "added": 2, "removed": 2}));
    assert_eq!(gateway.generation(), document["generation"].as_u64().unwrap());

    // the answer comes after the last shard has switched: fresh connections reach every shard
    for _ in 0..20 {
        assert_eq!(gateway.fetch("/v1/proxy/comes/").text(), "c");
        assert_problem(&gateway.fetch("/v1/proxy/goes/"), 404);
        assert_eq!(gateway.fetch("/v1/proxy/stays/").text(), "a");
    }
}

#[test]
fn comments_and_layout_are_no_change() {
    let a = Origin::hello("a");
    let gateway = Gateway::start(&service("s", &[&a.url()], ""));
    let generation = gateway.generation();
    gateway.rewrite_services(&format!("# a comment\n\ns: {{upstreams: [{{url: \"{}\"}}]}}\n", a.url()));
    let response = gateway.reload();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "a");
    assert_eq!(response.json()["services"], json!({"added": [], "removed": [], "changed": []}));
    assert!(gateway.generation() >= generation);
}

#[test]
fn sighup_reloads() {
    let a = Origin::hello("a");
    let gateway = Gateway::with("workers: 4", &service("old", &[&a.url()], ""));
    let generation = gateway.generation();
    gateway.rewrite_services(&service("new", &[&a.url()], ""));
    assert_eq!(gateway.fetch("/v1/proxy/new/").status, 404, "nothing is reloaded of itself");
    gateway.signal("HUP");
    wait_until("the new configuration runs", || gateway.generation() > generation);
    wait_until("every shard has it", || (0..10).all(|_| gateway.fetch("/v1/proxy/new/").status == 200));
    assert_eq!(gateway.fetch("/v1/proxy/old/").status, 404);
}

/// The lines of a file with two mistakes, after a `gateway` section of three lines.
const BROKEN: &str = "good:\n  - http://127.0.0.1:9\npayments:\n  upstreams:\n    - http://127.0.0.1:9\n\
                      \x20 circuit_breaker: {colldown: 20s}\n  timeouts: {connect: 500}\n";

#[test]
fn an_invalid_file_is_422_with_every_message_and_changes_nothing() {
    let a = Origin::hello("a");
    let mut gateway = Gateway::start(&service("s", &[&a.url()], ""));
    assert_eq!(gateway.section().lines().count(), 3);
    let generation = gateway.generation();
    gateway.rewrite_services(BROKEN);
    let response = gateway.reload();
    assert_problem(&response, 422);
    let text = response.text();
    assert!(text.contains("config.yaml:9:21: error: "), "{text}");
    assert!(text.contains("config.yaml:10:"), "{text}");
    for part in ["colldown", "did you mean", "cooldown", "500ms"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(gateway.generation(), generation);
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "a");
    assert_eq!(gateway.fetch("/v1/proxy/good/").status, 404);

    // by signal the messages go to the log
    gateway.signal("HUP");
    gateway.wait_for_log("the first message", |line| line.contains("config.yaml:9:21"));
    gateway.wait_for_log("the second message", |line| line.contains("config.yaml:10:"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "a");

    // a file that is no YAML, one that is no file, and one that is good again
    gateway.rewrite_services("s: [\n");
    let response = gateway.reload();
    assert_problem(&response, 422);
    assert!(response.text().contains("config.yaml:"), "{}", response.text());
    std::fs::remove_file(gateway.directory().join("config.yaml")).unwrap();
    let missing = gateway.reload().status;
    assert!((400..600).contains(&missing), "{missing}");
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "a");
    gateway.rewrite_services(&service("t", &[&a.url()], ""));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/t/").text(), "a");
}

#[test]
fn what_needs_a_restart_is_422_and_names_the_field() {
    let a = Origin::hello("a");
    let services = service("s", &[&a.url()], "");
    let gateway = Gateway::start(&services);
    let generation = gateway.generation();
    let added = service("t", &[&a.url()], "");
    for (from, to, field) in [("127.0.0.1:0", "127.0.0.1:1", "listen"), ("workers: 1", "workers: 2", "workers")] {
        gateway.rewrite_config(&format!("{}{services}{added}", gateway.section().replace(from, to)));
        let response = gateway.reload();
        assert_problem(&response, 422);
        assert!(response.text().contains(field), "{}", response.text());
        assert_eq!(gateway.generation(), generation);
        assert_eq!(gateway.fetch("/v1/proxy/t/").status, 404, "nothing of it is applied");
    }
}

#[test]
fn breakers_survive_a_reload() {
    let (dead, half) = (RefusedPort::new(), RefusedPort::new());
    let once = "retries: {attempts: 0}";
    let text = [service("dead", &[&dead.url()], once), service("half", &[&half.url()], once)].concat();
    let gateway = Gateway::start(&text);
    let mut caller = gateway.connect();
    for _ in 0..5 {
        assert_eq!(caller.get("/v1/proxy/dead/").status, 502);
    }
    for _ in 0..3 {
        assert_eq!(caller.get("/v1/proxy/half/").status, 502);
    }
    // another service comes, and the settings of these change
    let origin = Origin::hello("new");
    let settings = "retries: {attempts: 0}\ntimeouts: {response: 7s}\ncircuit_breaker: {cooldown: 50s}";
    let text = [
        service("new", &[&origin.url()], ""),
        service("half", &[&half.url()], settings),
        service("dead", &[&dead.url()], settings),
    ];
    gateway.rewrite_services(&text.concat());
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.breaker("dead", &dead.url()), ("open".to_owned(), 5));
    assert_eq!(gateway.breaker("half", &half.url()), ("closed".to_owned(), 3));
    assert_eq!(caller.get("/v1/proxy/dead/").status, 503);
    assert_eq!(caller.get("/v1/proxy/half/").status, 502);
    assert_eq!(caller.get("/v1/proxy/half/").status, 502);
    assert_eq!(caller.get("/v1/proxy/half/").status, 503, "three before and two after are five");
}

#[test]
fn the_cursor_survives_a_reload() {
    let (a, b, c) = (Origin::hello("a"), Origin::hello("b"), Origin::hello("c"));
    let all = [&*a.url(), &*b.url(), &*c.url()];
    let gateway = Gateway::start(&service("s", &all, ""));
    let mut caller = gateway.connect();
    let mut next = || caller.get("/v1/proxy/s/").text();
    assert_eq!(next(), "a");
    // the turns stay as they were: the cursor goes on
    gateway.rewrite_services(&format!("{}{}", service("s", &all, "timeouts: {response: 7s}"), service("t", &all, "")));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(next(), "b");
    // one that is not next goes: the next is the one that would have been
    gateway.rewrite_services(&service("s", &[&b.url(), &c.url()], ""));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(next(), "c");
    assert_eq!(next(), "b");
    assert_eq!(next(), "c");
}

#[test]
fn a_request_in_flight_finishes_on_the_configuration_it_began_with() {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::answering(move |_| {
        door.wait();
        ok("late")
    });
    let gateway = Gateway::with("workers: 4", &service("goes", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/goes/ HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    gateway.rewrite_services(&service("other", &[&origin.url()], ""));
    assert_eq!(gateway.reload().status, 200, "a reload does not wait for requests");
    assert_eq!(gateway.fetch("/v1/proxy/goes/").status, 404);
    gate.open();
    assert_eq!(caller.answer().text(), "late");
    // its connection stays, and belongs to the new configuration
    assert_problem(&caller.get("/v1/proxy/goes/"), 404);
}

#[test]
fn connections_and_pools_survive_a_reload() {
    let origin = Origin::hello("hello");
    let kept = service("s", &[&origin.url()], "pool: {idle: 1m}");
    let gateway = Gateway::start(&kept);
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    gateway.rewrite_services(&format!("{kept}{}", service("t", &["http://127.0.0.1:9"], "")));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    assert_eq!(origin.connections(), 1);
}

#[test]
fn idle_connections_to_a_removed_upstream_are_closed() {
    let closed = Gate::default();
    let seen = closed.clone();
    let origin = Origin::start(move |conn| {
        while conn.request().is_some() {
            let _ = conn.send(ok("hello"));
        }
        seen.open();
    });
    let other = Origin::hello("other");
    let gateway = Gateway::start(&service("s", &[&origin.url()], "pool: {idle: 1h}"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    gateway.rewrite_services(&service("s", &[&other.url()], "pool: {idle: 1h}"));
    assert_eq!(gateway.reload().status, 200);
    closed.wait();
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "other");
}

#[test]
fn new_settings_apply_to_the_next_request() {
    let origin = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.wait_gone();
        }
    });
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    gateway.rewrite_services(&service("s", &[&origin.url()], "timeouts: {response: 200ms}"));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 504);
}

#[test]
fn gateway_defaults_are_merged_under_the_service() {
    let refused = RefusedPort::new();
    let services = [
        service("plain", &[&refused.url()], ""),
        service("own", &[&refused.url()], "circuit_breaker: {failure_threshold: 3}"),
    ];
    let defaults = "defaults: {retries: {attempts: 0}, circuit_breaker: {failure_threshold: 2, cooldown: 1h}}";
    let gateway = Gateway::with(defaults, &services.concat());
    let mut caller = gateway.connect();
    for (name, threshold) in [("plain", 2), ("own", 3)] {
        for _ in 0..threshold {
            assert_eq!(caller.get(&format!("/v1/proxy/{name}/")).status, 502);
        }
        let response = caller.get(&format!("/v1/proxy/{name}/"));
        assert_eq!(response.status, 503);
        let seconds: u64 = response.field("Retry-After").unwrap().parse().unwrap();
        assert!(seconds > 60, "mappings merge: the cooldown is the default's");
    }
}

#[test]
fn reloads_under_load_cost_no_request() {
    let (a, b) = (Origin::hello("alive"), Origin::hello("alive"));
    let both = service("s", &[&a.url(), &b.url()], "");
    let one = format!("{}{}", service("s", &[&a.url()], ""), service("t", &[&b.url()], ""));
    let gateway = Gateway::with("workers: 4", &both);
    let address = gateway.addr();
    let stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut caller = Caller::connect(address);
                while !stop.load(Ordering::SeqCst) {
                    let response = caller.get("/v1/proxy/s/");
                    if response.status != 200 {
                        stop.store(true, Ordering::SeqCst);
                        panic!("a request failed: {} {}", response.status, response.text());
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..20 {
            gateway.rewrite_services(if round % 2 == 0 { &one } else { &both });
            let response = gateway.reload();
            let after = answered.load(Ordering::SeqCst) + 20;
            wait_until("the load goes on", || stop.load(Ordering::SeqCst) || answered.load(Ordering::SeqCst) >= after);
            if response.status != 200 || stop.load(Ordering::SeqCst) {
                stop.store(true, Ordering::SeqCst);
                panic!("reload {round}: {} {}", response.status, response.text());
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}

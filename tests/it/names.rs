//! Names of upstreams: several addresses, and names that do not resolve.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Gate, Gateway, Origin, ok, service, wait_until};
use std::os::unix::fs::FileExt;
use tempfile::NamedTempFile;

/// Reserved never to exist (RFC 6761 section 6.4).
const NOWHERE: &str = "http://no-such-host.invalid:81";

/// A file of hosts of the gateway's own.
struct Hosts {
    hosts: NamedTempFile,
    sources: NamedTempFile,
}

impl Hosts {
    fn of(line: &str) -> Hosts {
        let hosts = Hosts { hosts: NamedTempFile::new().unwrap(), sources: NamedTempFile::new().unwrap() };
        std::fs::write(hosts.sources.path(), "hosts: files\n").unwrap();
        hosts.say(line);
        hosts
    }

    /// One write of one length: whoever reads meanwhile finds no empty file.
    fn say(&self, line: &str) {
        self.hosts.as_file().write_all_at(format!("{line:\n<100}").as_bytes(), 0).unwrap();
    }

    /// `None` where this system does not let a test mount such a file.
    fn gateway(&self, services: &str) -> Option<Gateway> {
        let gateway = Gateway::with_hosts(self.hosts.path(), self.sources.path(), services);
        if gateway.is_none() {
            eprintln!("not tested: this system does not let a test mount a file of hosts");
        }
        gateway
    }
}

#[test]
fn a_name_that_does_not_resolve_is_out_and_stops_nothing() {
    let origin = Origin::hello("hello");
    let both = service("both", &[NOWHERE, &origin.url()], "");
    let mut gateway = Gateway::start(&format!("{both}{}", service("alone", &[NOWHERE], "")));
    for _ in 0..4 {
        assert_eq!(gateway.fetch("/v1/proxy/both/").text(), "hello");
    }
    let answer = gateway.fetch("/v1/proxy/alone/");
    assert_proxy_problem(&answer, 503, "dns_error");
    assert!(answer.field("Retry-After").is_some());
    gateway.wait_for_log("a warning", |line| line.contains("no-such-host.invalid does not resolve"));
    assert_eq!(gateway.breaker("alone", NOWHERE), ("closed".to_owned(), 0), "nothing was tried, nothing failed");
    let status = gateway.status();
    assert!(status.to_string().contains("does not resolve"), "{status}");
}

#[test]
fn a_reload_with_a_name_that_does_not_resolve_warns() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    gateway.rewrite_services(&service("s", &[&origin.url(), NOWHERE], ""));
    let answer = gateway.reload();
    assert_eq!(answer.status, 200);
    assert!(answer.json()["warnings"].to_string().contains("no-such-host.invalid"), "{}", answer.text());
    for _ in 0..4 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    }
}

#[test]
fn the_addresses_of_a_name_are_tried_in_turn_within_one_attempt() {
    // `localhost` may be ::1 first; the origin listens on 127.0.0.1 alone
    let origin = Origin::hello("hello");
    let url = format!("http://localhost:{}", origin.addr().port());
    let gateway = Gateway::start(&service("s", &[&url], "retries: {attempts: 0}\npool: {idle: 0}"));
    for _ in 0..6 {
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    }
    assert_eq!(gateway.breaker("s", &url), ("closed".to_owned(), 0));
}

#[test]
fn a_name_is_asked_for_again_while_the_gateway_runs() {
    let origin = Origin::hello("hello");
    let hosts = Hosts::of("");
    let url = format!("http://moving.test:{}", origin.addr().port());
    let settings = "dns: {refresh: 200ms, stale: 1s}\ncircuit_breaker: {enabled: false}\nretries: {attempts: 0}";
    let Some(mut gateway) = hosts.gateway(&service("s", &[&url], settings)) else { return };
    let status = || gateway.fetch("/v1/proxy/s/").status;
    assert_eq!(status(), 503);
    hosts.say("127.0.0.1 moving.test");
    wait_until("it resolves", || status() == 200);
    hosts.say("127.0.0.9 moving.test");
    wait_until("it moved to where nobody listens", || status() == 502);
    hosts.say("127.0.0.9 moving.test\n127.0.0.1 moving.test");
    wait_until("it has two addresses, one of which works", || status() == 200);
    assert_eq!(gateway.generation(), 1, "another address is no other configuration");
    hosts.say("");
    wait_until("its addresses are stale", || status() == 503);
    let upstream = gateway.status()["services"][0]["upstreams"][0].clone();
    assert!(upstream["name_error"].as_str().is_some_and(|why| why.contains("does not resolve")), "{upstream}");
    gateway.wait_for_log("that they stood for a while", |line| line.contains("its last addresses stand until it does"));
    gateway.wait_for_log("that they do no longer", |line| line.contains("stale (dns.stale): its upstreams are out"));
    hosts.say("127.0.0.1 moving.test");
    wait_until("it is back", || gateway.fetch("/v1/proxy/s/").status == 200);
}

#[test]
fn a_connection_in_use_while_its_name_moves_is_not_used_again() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::answering(move |request| {
        if request.target().ends_with("/slow") {
            held.wait();
        }
        ok("hello")
    });
    let hosts = Hosts::of("127.0.0.1 moving.test");
    let url = format!("http://moving.test:{}", origin.addr().port());
    let settings = "dns: {refresh: 200ms}\ncircuit_breaker: {enabled: false}\nretries: {attempts: 0}";
    let Some(gateway) = hosts.gateway(&service("s", &[&url], settings)) else { return };
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/slow HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    hosts.say("127.0.0.9 moving.test");
    let moved = format!("127.0.0.9:{}", origin.addr().port());
    wait_until("it moved to where nobody listens", || {
        gateway.status()["services"][0]["upstreams"][0]["addresses"][0] == *moved
    });
    gate.open();
    assert_eq!(caller.answer().status, 200, "what was under way ends as it began");
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 502);
}

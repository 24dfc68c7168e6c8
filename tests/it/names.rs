//! Names of upstreams: several addresses, and names that do not resolve.

use crate::support::problem::assert_proxy_problem;
use crate::support::{Gateway, Origin, service, wait_until};
use std::os::unix::fs::FileExt;

/// Reserved never to exist (RFC 6761 section 6.4).
const NOWHERE: &str = "http://no-such-host.invalid:81";

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
    let (hosts, sources) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(sources.path(), "hosts: files\n").unwrap();
    // One write of one length: whoever reads meanwhile finds no empty file.
    let resolve = |line: &str| hosts.as_file().write_all_at(format!("{line:\n<100}").as_bytes(), 0).unwrap();
    resolve("");
    let url = format!("http://moving.test:{}", origin.addr().port());
    let settings = "dns: {refresh: 200ms, stale: 1s}\ncircuit_breaker: {enabled: false}\nretries: {attempts: 0}";
    let Some(mut gateway) = Gateway::with_hosts(hosts.path(), sources.path(), &service("s", &[&url], settings)) else {
        eprintln!("not tested: this system does not let a test mount a file of hosts");
        return;
    };
    let status = || gateway.fetch("/v1/proxy/s/").status;
    assert_eq!(status(), 503);
    resolve("127.0.0.1 moving.test");
    wait_until("it resolves", || status() == 200);
    resolve("127.0.0.9 moving.test");
    wait_until("it moved to where nobody listens", || status() == 502);
    resolve("127.0.0.9 moving.test\n127.0.0.1 moving.test");
    wait_until("it has two addresses, one of which works", || status() == 200);
    assert_eq!(gateway.generation(), 1, "another address is no other configuration");
    resolve("");
    wait_until("its addresses are stale", || status() == 503);
    let upstream = gateway.status()["services"][0]["upstreams"][0].clone();
    assert!(upstream["name_error"].as_str().is_some_and(|why| why.contains("does not resolve")), "{upstream}");
    gateway.wait_for_log("that they stood for a while", |line| line.contains("its last addresses stand until it does"));
    gateway.wait_for_log("that they do no longer", |line| line.contains("stale (dns.stale): its upstreams are out"));
    resolve("127.0.0.1 moving.test");
    wait_until("it is back", || gateway.fetch("/v1/proxy/s/").status == 200);
}

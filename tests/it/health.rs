//! Active health checks: what is good and what is not, what rows of checks do to the breaker, when checks are
//! made, and that they are made by one thread however many upstreams there are.

use crate::support::origin::SilentPort;
use crate::support::{Gate, Gateway, LIMIT, Origin, RefusedPort, ok, reply, service, wait_until};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const UP: &str = "/up";
const GET: &str = "/v1/proxy/s/";

/// The entry of one upstream in the status document.
#[track_caller]
fn entry(gateway: &Gateway, name: &str, url: &str) -> Value {
    let status = gateway.status();
    let services = status["services"].as_array().unwrap();
    let service = services.iter().find(|service| service["name"] == name).unwrap();
    let upstreams = service["upstreams"].as_array().unwrap();
    upstreams.iter().find(|upstream| upstream["url"] == url).cloned().unwrap_or_else(|| panic!("no {url} in {status}"))
}

#[track_caller]
fn health(gateway: &Gateway, name: &str, url: &str) -> Value {
    entry(gateway, name, url)["health"].clone()
}

#[track_caller]
fn state(gateway: &Gateway, url: &str) -> String {
    gateway.breaker("s", url).0
}

/// How many checks were made, failed, and ended alike at the end.
#[track_caller]
fn counts(gateway: &Gateway, url: &str) -> (u64, u64, u64) {
    let health = health(gateway, "s", url);
    let number = |key: &str| health[key].as_u64().unwrap_or_else(|| panic!("no {key} in {health}"));
    (number("checks"), number("failed"), number("in_row"))
}

/// The names of the threads of a gateway.
fn threads(gateway: &Gateway) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    // a thread may end between the two
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

fn has_thread(gateway: &Gateway) -> bool {
    threads(gateway).iter().any(|name| name == "health")
}

/// An origin whose every check waits until the test says how it is answered. What is not a check is answered
/// at once.
struct Stepped {
    origin: Origin,
    answers: Sender<Vec<u8>>,
    checks: Arc<AtomicUsize>,
    given: usize,
}

impl Stepped {
    fn new(other: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Stepped {
        let (answers, given) = channel::<Vec<u8>>();
        let given = Mutex::new(given);
        let checks = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&checks);
        let origin = Origin::start(move |conn| {
            while let Some(request) = conn.request() {
                let bytes = if request.target() == UP {
                    seen.fetch_add(1, Ordering::SeqCst);
                    let Ok(bytes) = given.lock().unwrap().recv_timeout(LIMIT * 2) else { return };
                    bytes
                } else {
                    other()
                };
                if conn.send(bytes).is_err() {
                    return;
                }
            }
        });
        Stepped { origin, answers, checks, given: 0 }
    }

    fn url(&self) -> String {
        self.origin.url()
    }

    /// Answers so many checks with this status. When it returns the next one has come, so that the last of
    /// them has been counted.
    #[track_caller]
    fn answer(&mut self, status: u16, times: usize) {
        for _ in 0..times {
            self.given += 1;
            wait_until("the check comes", || self.checks.load(Ordering::SeqCst) >= self.given);
            self.answers.send(reply(status, "", "")).unwrap();
            wait_until("the next check comes", || self.checks.load(Ordering::SeqCst) > self.given);
        }
    }
}

/// A check that waits as long as a test may take.
const PATIENT: &str = "path: /up, interval: 20ms, timeout: 1m";
const LONG: &str = "failure_threshold: 2, cooldown: 1h";

#[test]
fn failed_checks_in_a_row_open_it_without_any_traffic() {
    let mut stepped = Stepped::new(|| ok("fine"));
    let url = stepped.url();
    let settings = format!("health_check: {{{PATIENT}, unhealthy: 3}}\ncircuit_breaker: {{{LONG}}}");
    let mut gateway = Gateway::with("log: {level: debug}", &service("s", &[&url], &settings));
    stepped.answer(500, 2);
    // a good one in between begins a new row
    stepped.answer(200, 1);
    stepped.answer(503, 2);
    assert_eq!((state(&gateway, &url).as_str(), counts(&gateway, &url)), ("closed", (5, 4, 2)));
    assert_eq!(health(&gateway, "s", &url)["state"], "unknown");
    stepped.answer(500, 1);
    assert_eq!((state(&gateway, &url).as_str(), counts(&gateway, &url)), ("open", (6, 5, 3)));
    let told = entry(&gateway, "s", &url);
    assert_eq!(told["health"]["state"], "unhealthy");
    assert_eq!(told["health"]["last"]["result"], "status 500");
    assert!(told["health"]["last"]["duration_ms"].as_f64().unwrap() > 0.0, "{told}");
    assert!(told["health"]["last"]["time"].as_str().unwrap().ends_with('Z'), "{told}");
    assert!(told["reason"].as_str().unwrap().contains("its health checks failed, last: status 500"), "{told}");
    for expected in [
        format!("s {url}: unhealthy after 3 failed health checks, last: status 500"),
        format!("s {url}: closed → open because its health checks failed, last: status 500; next probe in 3600 s"),
        format!("s {url}: a health check failed: status 503"),
    ] {
        gateway.wait_for_log(&expected, |line| line.ends_with(&expected));
    }
    assert_eq!(gateway.fetch(GET).status, 503);
    stepped.answer(500, 2);
    assert_eq!(gateway.log_lines(|line| line.contains("closed → open")).len(), 1, "it opens once");
    assert_eq!(gateway.log_lines(|line| line.contains("unhealthy after")).len(), 1);
}

#[test]
fn good_checks_in_a_row_close_it_before_its_cooldown_ends() {
    let mut stepped = Stepped::new(|| ok("fine"));
    let url = stepped.url();
    let settings = format!("health_check: {{{PATIENT}, unhealthy: 1, healthy: 2}}\ncircuit_breaker: {{{LONG}}}");
    let mut gateway = Gateway::start(&service("s", &[&url], &settings));
    stepped.answer(500, 1);
    stepped.answer(200, 1);
    stepped.answer(500, 1);
    stepped.answer(204, 1);
    assert_eq!((state(&gateway, &url).as_str(), counts(&gateway, &url)), ("open", (4, 2, 1)));
    stepped.answer(200, 1);
    assert_eq!((state(&gateway, &url).as_str(), counts(&gateway, &url)), ("closed", (5, 2, 2)));
    assert_eq!(gateway.fetch(GET).text(), "fine");
    for expected in ["healthy after 2 good health checks", "open → closed because its health checks succeeded"] {
        gateway.wait_for_log(expected, |line| line.contains(&format!("s {url}: {expected}")));
    }
    let told = entry(&gateway, "s", &url);
    assert_eq!((&told["health"]["state"], &told["state"]), (&Value::from("healthy"), &Value::from("closed")));
}

#[test]
fn while_checks_fail_no_request_is_risked() {
    let origin = Origin::answering(|request| if request.target() == UP { reply(500, "", "") } else { ok("fine") });
    let settings = "health_check: {path: /up, interval: 100ms, timeout: 2s, unhealthy: 1}\n\
                    circuit_breaker: {cooldown: 50ms}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    wait_until("it opens", || state(&gateway, &origin.url()) == "open");
    let before = origin.heads();
    // every check is longer after the last one than the cooldown
    wait_until("more checks fail", || {
        assert_eq!(gateway.fetch(GET).status, 503);
        origin.heads() > before + 8
    });
    assert!(origin.requests().iter().all(|request| request.target() == UP));
}

#[test]
fn good_checks_from_before_it_opened_do_not_close_it() {
    let mut stepped = Stepped::new(|| reply(500, "", ""));
    let url = stepped.url();
    let settings = format!("health_check: {{{PATIENT}, healthy: 2}}\ncircuit_breaker: {{{LONG}}}");
    let gateway = Gateway::start(&service("s", &[&url], &settings));
    stepped.answer(200, 4);
    assert_eq!(health(&gateway, "s", &url)["state"], "healthy");
    for _ in 0..2 {
        assert_eq!(gateway.fetch(GET).status, 500);
    }
    assert_eq!(state(&gateway, &url), "open");
    // this one has begun before
    stepped.answer(200, 1);
    stepped.answer(200, 1);
    assert_eq!(state(&gateway, &url), "open");
    stepped.answer(200, 1);
    assert_eq!(state(&gateway, &url), "closed");
}

#[test]
fn good_checks_of_a_closed_one_forgive_nothing() {
    let mut stepped = Stepped::new(|| reply(500, "", ""));
    let url = stepped.url();
    let settings = format!("health_check: {{{PATIENT}, healthy: 1}}\ncircuit_breaker: {{failure_threshold: 3}}");
    let gateway = Gateway::start(&service("s", &[&url], &settings));
    for _ in 0..2 {
        assert_eq!(gateway.fetch(GET).status, 500);
    }
    stepped.answer(200, 4);
    assert_eq!(gateway.breaker("s", &url), ("closed".to_owned(), 2));
    assert_eq!(gateway.fetch(GET).status, 500);
    assert_eq!(state(&gateway, &url), "open");
}

#[test]
fn when_open_only_open_ones_are_checked() {
    let origin = Origin::answering(|request| if request.target() == UP { ok("") } else { reply(500, "", "") });
    let clock = Origin::hello("");
    let when = "health_check: {path: /up, interval: 50ms, timeout: 1m, healthy: 2, when: open}";
    let services = [
        service("s", &[&origin.url()], &format!("{when}\ncircuit_breaker: {{{LONG}}}")),
        service("clock", &[&clock.url()], "health_check: {path: /up, interval: 50ms, timeout: 1m}"),
    ];
    let mut gateway = Gateway::start(&services.concat());
    clock.wait_heads(8);
    assert_eq!(origin.connections(), 0, "a closed one is not checked");
    assert_eq!(health(&gateway, "s", &origin.url())["state"], "unknown");
    for _ in 0..2 {
        assert_eq!(gateway.fetch(GET).status, 500);
    }
    wait_until("good checks close it", || state(&gateway, &origin.url()) == "closed");
    clock.wait_heads(clock.heads() + 8);
    let checks = origin.requests().iter().filter(|request| request.target() == UP).count();
    assert_eq!((checks, counts(&gateway, &origin.url()).0), (2, 2), "and then they end");
    gateway.wait_for_log("its closing", |line| line.contains("open → closed because its health checks succeeded"));
}

#[test]
fn when_open_failed_checks_keep_it_open() {
    let origin = Origin::answering(|_| reply(500, "", ""));
    let settings = "health_check: {path: /up, interval: 50ms, timeout: 2s, unhealthy: 1, when: open}\n\
                    circuit_breaker: {failure_threshold: 1, cooldown: 1s}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    assert_eq!(gateway.fetch(GET).status, 500);
    // twice the cooldown, by the checks
    wait_until("checks fail", || {
        assert_eq!(gateway.fetch(GET).status, 503);
        origin.heads() > 35
    });
    assert_eq!(health(&gateway, "s", &origin.url())["state"], "unhealthy");
}

#[test]
fn expect_says_what_is_good() {
    let rows = [
        ("", 200, "healthy"),
        ("", 302, "healthy"),
        ("", 404, "unhealthy"),
        (", expect: [200]", 204, "unhealthy"),
        (", expect: [404, 500-599]", 404, "healthy"),
        (", expect: [404, 500-599]", 503, "healthy"),
        (", expect: [404, 500-599]", 200, "unhealthy"),
    ];
    let origins: Vec<Origin> = rows.map(|(_, status, _)| Origin::answering(move |_| reply(status, "", ""))).into();
    let services: Vec<String> = (rows.iter().zip(&origins).enumerate())
        .map(|(at, ((expect, ..), origin))| {
            let settings =
                format!("health_check: {{path: /up, interval: 50ms, timeout: 1m, unhealthy: 2, healthy: 2{expect}}}");
            service(&format!("s{at}"), &[&origin.url()], &settings)
        })
        .collect();
    let gateway = Gateway::start(&services.concat());
    for (at, ((expect, status, state), origin)) in rows.iter().zip(&origins).enumerate() {
        let name = format!("s{at}");
        wait_until("two checks are made", || {
            health(&gateway, &name, &origin.url())["checks"].as_u64().is_some_and(|checks| checks >= 2)
        });
        let health = health(&gateway, &name, &origin.url());
        assert_eq!(health["state"], *state, "{status} with {expect:?}: {health}");
        assert_eq!(health["last"]["result"], format!("status {status}"));
    }
}

#[test]
fn every_bad_answer_has_its_word() {
    let refused = RefusedPort::new();
    let silent = SilentPort::new();
    let says = |bytes: &'static str| {
        Origin::start(move |conn| {
            if conn.request().is_some() {
                let _ = conn.send(bytes);
            }
        })
    };
    let mute = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.wait_gone();
        }
    });
    let resets = Origin::start(|conn| {
        if conn.request().is_some() {
            conn.reset();
        }
    });
    let endless = Origin::start(|conn| {
        if conn.request().is_some() {
            while conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100)).is_ok() {}
        }
    });
    let origins = [
        (says(""), "connection ended before the response"),
        (says("HTTP/1.1 200 OK\r\nContent-Le"), "connection ended inside the response head"),
        (says("HTTP/1.1 103 Early Hints\r\n\r\n"), "connection ended before the response"),
        (says("what?\r\n\r\n"), "invalid response head: the status line is malformed"),
        (
            says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "invalid response head: both Content-Length and Transfer-Encoding",
        ),
        (says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n"), "101 that nobody asked for"),
        (endless, "response head too large"),
        (mute, "response timeout"),
        (resets, "connection ended before the response"),
    ];
    let mut urls: Vec<(String, &str)> = origins.iter().map(|(origin, word)| (origin.url(), *word)).collect();
    urls.push((refused.url(), "connection refused"));
    urls.push((silent.url(), "connect timeout"));
    let services: Vec<String> = (urls.iter().enumerate())
        .map(|(at, (url, word))| {
            let timeout = if word.ends_with("timeout") { "300ms" } else { "1m" };
            let check = format!("health_check: {{path: /up, interval: 100ms, timeout: {timeout}, unhealthy: 2}}");
            service(&format!("s{at}"), &[url], &check)
        })
        .collect();
    let gateway = Gateway::start(&services.concat());
    for (at, (url, word)) in urls.iter().enumerate() {
        let name = format!("s{at}");
        wait_until(word, || health(&gateway, &name, url)["state"] == "unhealthy");
        let health = health(&gateway, &name, url);
        assert_eq!(health["last"]["result"], *word, "{health}");
        assert_eq!(health["checks"], health["failed"], "{health}");
        assert_eq!(gateway.breaker(&name, url).0, "open");
    }
}

#[test]
fn interim_responses_are_skipped_and_the_body_is_not_read() {
    let origin = Origin::start(|conn| {
        if conn.request().is_none() {
            return;
        }
        for piece in ["HTTP/1.1 100 Continue\r\n", "\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 2"] {
            if conn.send_apart(piece).is_err() {
                return;
            }
        }
        let _ = conn.send("00 OK\r\nContent-Length: 1000000000\r\n\r\nthe beginning");
        assert!(conn.wait_gone(), "the gateway closes");
    });
    let settings = "health_check: {path: /up, interval: 50ms, timeout: 1m, healthy: 2}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], settings));
    wait_until("it is healthy", || health(&gateway, "s", &origin.url())["state"] == "healthy");
    assert_eq!(health(&gateway, "s", &origin.url())["last"]["result"], "status 200");
    assert_eq!(counts(&gateway, &origin.url()).1, 0);
}

#[test]
fn the_upstream_sees_what_was_configured() {
    let origin = Origin::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec());
    let entry = |base: &str, settings: &str| {
        let check = format!("path: \"/up?x={base}\", interval: 50ms, timeout: 1m, healthy: 2");
        format!("  - {{url: \"{}/{base}/\", health_check: {{{check}, {settings}}}", origin.url())
    };
    let upstreams = [
        format!("{}}}", entry("a", "method: HEAD")),
        format!("{}, headers: {{host: literal.example}}}}", entry("b", "method: POST")),
        format!("{}, headers: {{host: client}}}}", entry("c", "method: OPTIONS")),
    ];
    let gateway = Gateway::start(&format!("s:\n{}\n", upstreams.join("\n")));
    let authority = origin.addr().to_string();
    for (base, method, host) in
        [("a", "HEAD", authority.as_str()), ("b", "POST", "literal.example"), ("c", "OPTIONS", authority.as_str())]
    {
        let url = format!("{}/{base}/", origin.url());
        wait_until("it is healthy", || health(&gateway, "s", &url)["state"] == "healthy");
        let target = format!("/{base}/up?x={base}");
        let seen: Vec<_> = origin.requests().into_iter().filter(|request| request.target() == target).collect();
        assert!(seen.len() >= 2);
        assert_ne!(seen[0].connection, seen[1].connection, "a connection for each check");
        for request in seen {
            assert_eq!(request.method(), method);
            assert_eq!(request.field("Host").unwrap(), host);
            assert_eq!(request.field("Connection").unwrap(), "close");
            assert_eq!(request.field("Content-Length"), (method == "POST").then(|| "0".to_owned()));
            let agent = request.field("User-Agent").unwrap();
            assert!(agent.starts_with("fusegate/") && agent.ends_with(" health-check"), "{agent}");
            for absent in ["X-Forwarded-For", "X-Request-Id", "Via"] {
                assert_eq!(request.field(absent), None);
            }
        }
    }
}

#[test]
fn the_interval_is_kept_and_checks_are_not_made_all_at_once() {
    let seen: Arc<Mutex<HashMap<String, Vec<Instant>>>> = Arc::default();
    let times = Arc::clone(&seen);
    let origin = Origin::answering(move |request| {
        times.lock().unwrap().entry(request.target().to_owned()).or_default().push(Instant::now());
        ok("")
    });
    let urls: Vec<String> = (0..20).map(|n| format!("{}/{n}", origin.url())).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let _gateway = Gateway::start(&service("s", &urls, "health_check: {path: /up, interval: 400ms, timeout: 1m}"));
    wait_until("each was checked seven times", || {
        let seen = seen.lock().unwrap();
        seen.len() == urls.len() && seen.values().all(|times| times.len() >= 7)
    });
    let seen = seen.lock().unwrap();
    let first: Vec<Instant> = seen.values().map(|times| times[0]).collect();
    let spread = *first.iter().max().unwrap() - *first.iter().min().unwrap();
    assert!(spread > Duration::from_millis(100), "the first checks came within {spread:?}");
    for (target, times) in seen.iter() {
        // nine tenths at least; what the machine takes for the way is not the gateway's
        let all = times[times.len() - 1] - times[0];
        let least = Duration::from_millis(360) * (times.len() as u32 - 1);
        assert!(all + Duration::from_millis(360) > least, "{} checks of {target} within {all:?}", times.len());
    }
}

#[test]
fn a_reload_keeps_rows_and_schedule_of_what_did_not_change() {
    let mut stepped = Stepped::new(|| ok("fine"));
    let other = Origin::hello("other");
    let url = stepped.url();
    let check = |unhealthy: u32| format!("health_check: {{{PATIENT}, unhealthy: {unhealthy}}}");
    let mut gateway = Gateway::start(&service("s", &[&url], &check(3)));
    stepped.answer(500, 2);
    // a check is under way; its upstream gets another neighbour and other timeouts
    let idle = format!("{}\ntimeouts: {{idle: 7s}}", check(3));
    gateway.rewrite_services(&service("s", &[&url, &other.url()], &idle));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    assert_eq!(counts(&gateway, &url), (2, 2, 2));
    stepped.answer(500, 1);
    assert_eq!(counts(&gateway, &url), (3, 3, 3));
    assert_eq!((state(&gateway, &url).as_str(), stepped.origin.connections()), ("open", 4), "no check was broken off");
    wait_until("the neighbour is checked", || counts(&gateway, &other.url()).0 > 0);

    // other settings of the check begin anew
    gateway.rewrite_services(&service("s", &[&url, &other.url()], &check(2)));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    assert_eq!((counts(&gateway, &url), state(&gateway, &url).as_str()), ((0, 0, 0), "open"));
    assert_eq!(health(&gateway, "s", &url)["state"], "unknown");
    assert_eq!(health(&gateway, "s", &url)["last"], Value::Null);

    // and without checks there is nothing left
    gateway.rewrite_services(&service("s", &[&url, &other.url()], ""));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    wait_until("the thread ends", || !has_thread(&gateway));
    assert_eq!(entry(&gateway, "s", &url).get("health"), None);
    let before = (stepped.origin.connections(), other.connections());
    assert_eq!(gateway.fetch(GET).text(), "other", "the breaker is still open");
    assert_eq!((stepped.origin.connections(), other.connections()), (before.0, before.1 + 1));
    assert!(gateway.is_running());
}

#[test]
fn an_upstream_that_leaves_is_checked_no_more() {
    let (stays, goes) = (Origin::hello(""), Origin::hello(""));
    let check = "health_check: {path: /up, interval: 50ms, timeout: 1m}";
    let gateway = Gateway::start(&service("s", &[&stays.url(), &goes.url()], check));
    goes.wait_heads(2);
    gateway.rewrite_services(&service("s", &[&stays.url()], check));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    // what was under way may still come; then nothing
    stays.wait_heads(stays.heads() + 2);
    let before = goes.connections();
    stays.wait_heads(stays.heads() + 6);
    assert_eq!(goes.connections(), before);
    // one that comes back has no past
    gateway.rewrite_services(&service("s", &[&stays.url(), &goes.url()], check.replace("50ms", "1h").as_str()));
    gateway.reload();
    assert_eq!(counts(&gateway, &goes.url()), (0, 0, 0));
}

#[test]
fn without_checks_there_is_no_thread_and_with_them_there_is_one() {
    let origin = Origin::hello("");
    let plain = Gateway::start(&service("s", &[&origin.url()], ""));
    let without = threads(&plain);
    assert!(!has_thread(&plain), "{without:?}");

    let urls: Vec<String> = (0..50).map(|n| format!("{}/{n}", origin.url())).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let check = "health_check: {path: /up, interval: 200ms, timeout: 1m, healthy: 1}";
    plain.rewrite_services(&service("s", &urls, check));
    assert_eq!(plain.reload().status, 200);
    let all_are_well = || {
        let status = plain.status();
        let upstreams = status["services"][0]["upstreams"].as_array().unwrap().clone();
        upstreams.len() == 50 && upstreams.iter().all(|upstream| upstream["health"]["state"] == "healthy")
    };
    wait_until("every upstream is well", all_are_well);
    let with = threads(&plain);
    assert_eq!(with.len(), without.len() + 1, "{with:?}");
    assert_eq!(with.iter().filter(|name| *name == "health").count(), 1);

    plain.rewrite_services(&service("s", &[&origin.url()], ""));
    assert_eq!(plain.reload().status, 200);
    wait_until("the thread ends", || threads(&plain).len() == without.len());
}

#[test]
fn five_hundred_upstreams_are_checked_every_second() {
    let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let twice = Arc::new(AtomicUsize::new(0));
    let (counted, done) = (Arc::clone(&seen), Arc::clone(&twice));
    let origin = Origin::answering(move |request| {
        let mut seen = counted.lock().unwrap();
        let count = seen.entry(request.target().to_owned()).or_default();
        *count += 1;
        done.fetch_add(usize::from(*count == 2), Ordering::SeqCst);
        ok("")
    });
    let urls: Vec<String> = (0..500).map(|n| format!("{}/{n}", origin.url())).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let gateway = Gateway::start(&service("s", &urls, "health_check: {path: /up, interval: 1s, timeout: 1m}"));
    wait_until("each was checked twice", || twice.load(Ordering::SeqCst) == 500);
    let status = gateway.status();
    for upstream in status["services"][0]["upstreams"].as_array().unwrap() {
        assert_eq!(upstream["health"]["failed"], 0, "{upstream}");
    }
    assert_eq!(gateway.fetch("/v1/proxy/s/").status, 200);
}

#[test]
fn more_checks_than_places_wait_for_their_turn() {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::answering(move |_| {
        door.wait();
        ok("")
    });
    let urls: Vec<String> = (0..300).map(|n| format!("{}/{n}", origin.url())).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let gateway = Gateway::start(&service("s", &urls, "health_check: {path: /up, interval: 1s, timeout: 1m}"));
    origin.wait_heads(256);
    // whatever else the thread does, no further check begins
    gateway.rewrite_services(&service("s", &urls, "health_check: {path: /up, interval: 1s, timeout: 1m}\npool: {}"));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(origin.connections(), 256);
    gate.open();
    wait_until("each was checked", || {
        let status = gateway.status();
        let upstreams = status["services"][0]["upstreams"].as_array().unwrap();
        upstreams.iter().all(|upstream| upstream["health"]["checks"].as_u64().unwrap() > 0)
    });
}

#[test]
fn with_the_breaker_off_checks_are_only_reported() {
    let origin = Origin::answering(|request| if request.target() == UP { reply(500, "", "") } else { ok("fine") });
    let check = "health_check: {path: /up, interval: 50ms, timeout: 1m, unhealthy: 1}";
    let services = [
        service("s", &[&origin.url()], &format!("{check}\ncircuit_breaker: {{enabled: false}}")),
        service("observed", &[&origin.url()], &format!("{check}\ncircuit_breaker: {{mode: observe}}")),
    ];
    let mut gateway = Gateway::start(&services.concat());
    wait_until("checks fail", || counts(&gateway, &origin.url()).2 > 4);
    assert_eq!(health(&gateway, "s", &origin.url())["state"], "unhealthy");
    assert_eq!(gateway.breaker("s", &origin.url()), ("closed".to_owned(), 0));
    assert_eq!(gateway.fetch(GET).text(), "fine");
    assert_eq!(gateway.fetch("/v1/proxy/observed/").text(), "fine");
    gateway.wait_for_log("what it would do", |line| {
        line.contains("observed only: closed → open because its health checks failed")
    });
    assert_eq!(gateway.log_lines(|line| line.contains("] s ") && line.contains("→")), Vec::<String>::new());
}

#[test]
fn false_in_one_upstream_switches_it_off() {
    let (checked, not) = (Origin::hello(""), Origin::hello(""));
    let upstreams = format!("[{}, {{url: \"{}\", health_check: false}}]", checked.url(), not.url());
    let defaults = "defaults: {health_check: {path: /up, interval: 50ms, timeout: 1m}}";
    let gateway = Gateway::with(defaults, &format!("s: {{upstreams: {upstreams}}}\n"));
    checked.wait_heads(5);
    assert_eq!(not.connections(), 0);
    assert_eq!(entry(&gateway, "s", &not.url()).get("health"), None);
}

#[test]
fn names_are_checked_over_their_addresses_and_not_without_one() {
    let origin = Origin::hello("");
    let nowhere = "http://no-such-host.invalid:81";
    // `localhost` may be ::1 first; the origin listens on 127.0.0.1 alone
    let somewhere = format!("http://localhost:{}", origin.addr().port());
    let check = "health_check: {path: /up, interval: 50ms, timeout: 1m, healthy: 2}";
    let gateway = Gateway::start(&service("s", &[nowhere, &somewhere], check));
    origin.wait_heads(5);
    assert_eq!(health(&gateway, "s", &somewhere)["state"], "healthy");
    assert_eq!(counts(&gateway, nowhere), (0, 0, 0));
    assert_eq!(state(&gateway, nowhere), "closed");
}

#[test]
fn a_drain_ends_the_checks() {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::answering(move |request| {
        if request.target() != UP {
            door.wait();
        }
        ok("fine")
    });
    let check = "health_check: {path: /up, interval: 50ms, timeout: 1m}";
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], check));
    wait_until("checks are made", || counts(&gateway, &origin.url()).0 > 1);
    let mut caller = gateway.connect();
    caller.send(format!("GET {GET} HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_until("the request is there", || origin.requests().iter().any(|request| request.target() == "/"));
    gateway.signal("TERM");
    wait_until("the thread ends", || !has_thread(&gateway));
    gate.open();
    assert_eq!(caller.answer().text(), "fine");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn without_a_descriptor_a_check_is_not_made_and_counts_as_nothing() {
    let origin = Origin::hello("");
    let check = "health_check: {path: /up, interval: 50ms, timeout: 1m, unhealthy: 1, healthy: 1}";
    let settings = "limits: {connections: 1000}\nlog: {level: debug}";
    let mut gateway = Gateway::within(48, settings, &service("s", &[&origin.url()], check));
    wait_until("checks are made", || counts(&gateway, &origin.url()).0 > 0);
    let callers: Vec<_> = (0..60).map(|_| gateway.connect()).collect();
    gateway.wait_for_log("the want", |line| line.contains("no socket is left for a health check"));
    drop(callers);
    let made = counts(&gateway, &origin.url()).0;
    wait_until("checks are made again", || counts(&gateway, &origin.url()).0 > made);
    assert_eq!((counts(&gateway, &origin.url()).1, state(&gateway, &origin.url()).as_str()), (0, "closed"));
}

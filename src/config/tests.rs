//! The room as a whole: what a file says lands in the model, and every mistake is shown where it is.

use super::model::*;
use super::*;
use crate::policy::breaker::Mode;
use crate::policy::class::{Causes, Class};
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::Duration;

pub(super) fn env(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("a.example".to_owned()),
        "FIVE" => Some("5".to_owned()),
        "AUTO" => Some("auto".to_owned()),
        "LONG" => Some("x".repeat(3000)),
        _ => None,
    }
}

pub(super) fn read(text: &str) -> Result<Loaded, Problems> {
    parse("c.yaml", text, &env)
}

/// What a valid file says. The schema must accept the file, and the configuration as it is printed be the same.
#[track_caller]
pub(super) fn good(text: &str) -> Config {
    let config = match read(text) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}"),
    };
    let printed = print(&config);
    match read(&printed) {
        Ok(again) => assert!(again.config == config, "{printed}"),
        Err(problems) => panic!("{problems}\n{printed}"),
    }
    for text in [text, &printed] {
        assert_eq!(schema_says(text), Ok(()), "{text}");
    }
    config
}

/// What the schema has against a file.
pub(super) fn schema_says(text: &str) -> Result<(), String> {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(&json_schema()).unwrap();
        jsonschema::draft202012::new(&schema).unwrap()
    });
    let mut file: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    file.apply_merge().map_err(|error| error.to_string())?;
    let file = serde_json::to_value(&file).map_err(|error| error.to_string())?;
    SCHEMA.validate(&file).map_err(|error| format!("{}: {error}", error.instance_path()))
}

/// Every error as `line:column message`.
#[track_caller]
pub(super) fn bad(text: &str) -> Vec<String> {
    let problems = read(text).expect_err("was accepted").0;
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(|error| format!("{}:{} {}", error.line, error.column, error.message)).collect()
}

fn service(settings: &str) -> String {
    format!("s:\n  upstreams: [http://a]\n  {settings}\n")
}

fn first_upstream(settings: &str) -> Upstream {
    good(&service(settings)).services.remove(0).upstreams.remove(0)
}

/// A gateway's settings, each on a line of its own from line 2, column 3.
fn gateway(settings: &str) -> Gateway {
    good(&format!("gateway:\n  {settings}\n")).gateway
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_short_form_is_complete() {
    let loaded = read("user-service:\n  - http://localhost:9001\n  - http://localhost:9002\n").unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.gateway, Gateway::default());
    let [service] = loaded.config.services.as_slice() else { panic!() };
    assert_eq!((service.name.as_str(), service.retries.attempts, service.total_timeout), ("user-service", 1, None));
    let ports: Vec<u16> = service.upstreams.iter().map(|upstream| upstream.url.port).collect();
    assert_eq!(ports, [9001, 9002]);
    let upstream = &service.upstreams[0];
    assert_eq!((&upstream.breaker, upstream.timeouts), (&CircuitBreaker::default(), Timeouts::default()));
    assert_eq!((upstream.pool, &upstream.host), (Pool::default(), &HostHeader::Upstream));
}

#[test]
fn services_keep_the_order_of_the_file() {
    let names = |text| good(text).services.into_iter().map(|s| s.name).collect::<Vec<_>>();
    assert_eq!(names("b: []\ngateway: {}\na: []\nx-z: {y: 1}\n1: []\n"), ["b", "a", "1"]);
    assert_eq!(names("{}"), [] as [&str; 0]);
}

#[test]
fn a_list_is_a_service_whatever_its_name() {
    let config = good("gateway: [http://a]\nx-y: [http://b]\nlisten: [http://c]\nservices: [http://d]\n");
    assert_eq!(config.services.len(), 4);
    assert_eq!(config.gateway, Gateway::default());
}

#[test]
fn keys_that_begin_with_x_are_ignored() {
    let config =
        good("x-a: &a {cooldown: 1s}\nx-b: ${NOT_SET}\nx-c:\ns: {upstreams: [http://a], circuit_breaker: *a}\n");
    assert_eq!(config.services[0].upstreams[0].breaker.cooldown, SECOND);
    assert_eq!(bad("x-codes: &codes [500]"), ["1:18 upstream \"500\" has no scheme"]);
}

#[test]
fn an_upstream_is_text_or_a_mapping() {
    let config = good("s: [http://a, {url: http://b}]\nt: {upstreams: [http://c]}\n");
    assert_eq!(config.services[0].upstreams[1].url.host, "b");
    assert_eq!(config.services[1].upstreams[0].url.host, "c");
    assert_eq!(
        bad("s: [5, [http://a], {pool: {}}, ~]"),
        [
            "1:5 upstream \"5\" has no scheme",
            "1:8 an upstream must be a single value, not a list",
            "1:20 an upstream needs a url",
            "1:32 an upstream has no value",
        ]
    );
}

#[test]
fn circuit_breakers() {
    let on = |set: &str| first_upstream(&format!("circuit_breaker: {{failure_on: {set}}}")).breaker.failure_on;
    assert_eq!(first_upstream("circuit_breaker: {failure_threshold: 3}").breaker.failure_threshold, 3);
    assert_eq!(first_upstream("circuit_breaker: {cooldown: 20s}").breaker.cooldown, 20 * SECOND);
    assert_eq!(first_upstream("circuit_breaker:").breaker, CircuitBreaker::default());
    let mut set = Causes::none();
    [Class::Connect, Class::Status].into_iter().for_each(|class| set.add_class(class));
    assert_eq!(on("[connect, 5xx]"), set);
    assert_eq!(on("[]"), Causes::none());
    let codes = on("[503, 400-402, '429']");
    assert!([503, 400, 401, 402, 429].into_iter().all(|code| codes.counts_status(code)));
    assert!(!codes.counts_status(403) && !codes.counts_status(500) && !codes.counts_class(Class::Status));
    assert!(on("[500-599]").counts_status(501));

    for (text, problem) in [
        ("{failure_threshold: 0}", "3:40 failure_threshold must be from 1 to 1000000, not \"0\""),
        ("{failure_threshold: -1}", "3:40 failure_threshold must be from 1 to 1000000, not \"-1\""),
        ("{failure_threshold: '5'}", "3:40 failure_threshold must be a whole number, not \"5\""),
        ("{failure_threshold: 1.5}", "3:40 failure_threshold must be a whole number, not \"1.5\""),
        (
            "{failure_threshold: 99999999999999999999999}",
            "3:40 failure_threshold must be from 1 to 1000000, not \"99999999999999999999999\"",
        ),
        ("{failure_threshold: five}", "3:40 failure_threshold must be a whole number, not \"five\""),
        ("{failure_threshold: [5]}", "3:40 failure_threshold must be a single value, not a list"),
        ("{failure_threshold: }", "3:38 failure_threshold has no value"),
        ("{cooldown: 20}", "3:31 cooldown needs a unit: write \"20ms\" or \"20s\""),
        ("{cooldown: 0}", "3:31 cooldown must be from 1ms to 720h, not \"0\""),
        ("{cooldown: 0.5ms}", "3:31 cooldown must be from 1ms to 720h, not \"0.5ms\""),
        ("{cooldown: 721h}", "3:31 cooldown must be from 1ms to 720h, not \"721h\""),
        ("{failure_on: connect}", "3:33 failure_on must be a list"),
        ("{failure_on: [conect]}", "3:34 failure_on has an unknown entry \"conect\""),
        ("{failure_on: [600]}", "3:34 failure_on has an unknown entry \"600\""),
        ("{failure_on: [502-500]}", "3:34 failure_on has a range from 502 down to 500"),
        ("{failure_on: [[503]]}", "3:34 failure_on must be a single value, not a list"),
        ("[cooldown]", "3:20 circuit_breaker must be a mapping"),
        ("{mode: watch}", "3:27 mode \"watch\" is none of enforce, observe"),
        ("{backoff: 0.5}", "3:30 backoff must be from 1 to 100, not \"0.5\""),
        ("{backoff: twice}", "3:30 backoff must be a number, not \"twice\""),
        ("{max_cooldown: 5s}", "3:35 max_cooldown is shorter than cooldown"),
        ("{jitter: 20}", "3:29 jitter needs a percent sign: write \"20%\""),
        ("{half_open_probes: 0}", "3:39 half_open_probes must be from 1 to 100, not \"0\""),
        ("{window: 10ms}", "3:29 window must be from 100ms to 24h, not \"10ms\""),
        ("{slow_rate: 50%}", "3:32 slow_rate has no effect without slow_after"),
        ("{neutral_on: [gone]}", "3:34 neutral_on has an unknown entry \"gone\""),
        ("{failure_on: [429], neutral_on: [429]}", "3:52 status 429 is both in failure_on and in neutral_on"),
        ("{when_all_open: panic}", "3:36 when_all_open \"panic\" is none of reject, probe, ignore"),
        ("{probe_timeout: 0}", "3:36 probe_timeout must be from 1ms to 24h, not \"0\""),
    ] {
        assert_eq!(bad(&service(&format!("circuit_breaker: {text}"))), [problem]);
    }
}

#[test]
fn retries() {
    let attempts = |n: &str| good(&service(&format!("retries: {{attempts: {n}}}"))).services[0].retries.attempts;
    assert_eq!((attempts("0"), attempts("15"), attempts("0xF")), (0, 15, 15));
    assert_eq!(bad(&service("retries: {attempts: 16}")), ["3:23 attempts must be from 0 to 15, not \"16\""]);
    let all = "retries: {on: [timeout, 5xx, 429], methods: [GET, POST], budget: 100%, budget_min: 0, body_limit: 1KiB, \
               per_try_timeout: 500ms, backoff: 10ms}";
    let retries = good(&service(all)).services.remove(0).retries;
    assert!(retries.on.counts_class(Class::Timeout) && retries.on.counts_status(429) && retries.on.counts_status(503));
    assert!(!retries.on.counts_class(Class::Connect), "a list replaces the default");
    assert!(retries.repeats("POST") && !retries.repeats("PUT"));
    assert_eq!((retries.budget, retries.budget_min, retries.body_limit), (10_000, 0, 1024));
    assert_eq!((retries.per_try_timeout, retries.backoff), (Some(SECOND / 2), Some(SECOND / 100)));
    for (text, problem) in [
        ("{on: [cut]}", "3:17 on must not have cut: a response that has begun cannot be taken back"),
        ("{on: [conect]}", "3:18 on has an unknown entry \"conect\""),
        ("{methods: GET}", "3:22 methods must be a list"),
        ("{methods: [get]}", "3:23 methods: \"get\" is misspelt"),
        ("{methods: ['G T']}", "3:23 methods: \"G T\" is not a method"),
        ("{budget: 20}", "3:21 budget needs a percent sign: write \"20%\""),
        ("{budget: 120%}", "3:21 budget must be from 0% to 100%, not \"120%\""),
        ("{body_limit: 5}", "3:25 body_limit needs a unit: write \"5B\" or \"5KiB\""),
        ("{per_try_timeout: 1}", "3:30 per_try_timeout needs a unit: write \"1ms\" or \"1s\""),
        ("{backoff: fast}", "3:22 backoff is not a duration: \"fast\""),
    ] {
        assert_eq!(bad(&service(&format!("retries: {text}"))), [problem]);
    }
    assert_eq!(
        bad("s: [{url: http://a, retries: {attempts: 1}}]"),
        ["1:21 retries has no place in an upstream of service \"s\""]
    );
}

#[test]
fn timeouts() {
    let upstream = first_upstream("timeouts: {connect: 500ms, response: 10s, idle: 1m30s, stream: 720h, total: 1h}");
    let expected =
        Timeouts { connect: SECOND / 2, response: 10 * SECOND, idle: 90 * SECOND, stream: 2_592_000 * SECOND };
    assert_eq!(upstream.timeouts, expected);
    let total = |value: &str| good(&service(&format!("timeouts: {{total: {value}}}"))).services[0].total_timeout;
    assert_eq!((total("5s"), total("0"), total("0s")), (Some(5 * SECOND), None, None));
    for (text, problem) in [
        ("connect: 0", "3:23 connect must be from 1ms to 24h, not \"0\""),
        ("response: 500", "3:24 response needs a unit: write \"500ms\" or \"500s\""),
        ("idle: 25h", "3:20 idle must be from 1ms to 24h, not \"25h\""),
        ("stream: 721h", "3:22 stream must be from 1ms to 720h, not \"721h\""),
        ("total: 0.1ms", "3:21 total must be from 0 or from 1ms to 24h, not \"0.1ms\""),
        ("total: soon", "3:21 total is not a duration: \"soon\""),
        ("total: ", "3:19 total has no value"),
        ("totl: 1s", "3:14 unknown key \"totl\" in timeouts of service \"s\""),
    ] {
        assert_eq!(bad(&service(&format!("timeouts: {{{text}}}"))), [problem]);
    }
    assert_eq!(
        bad("s: [{url: http://a, timeouts: {total: 1s}}]"),
        ["1:32 total has no place in timeouts of an upstream of service \"s\""]
    );
}

#[test]
fn pools() {
    assert_eq!(first_upstream("pool: {idle: 0, max_idle: 0}").pool, Pool { idle: Duration::ZERO, max_idle: 0 });
    assert_eq!(first_upstream("pool: {idle: 9s, max_idle: 7}").pool, Pool { idle: 9 * SECOND, max_idle: 7 });
    assert_eq!(bad(&service("pool: {idle: 4}")), ["3:16 idle needs a unit: write \"4ms\" or \"4s\""]);
    assert_eq!(bad(&service("pool: {max_idle: many}")), ["3:20 max_idle must be a whole number, not \"many\""]);
}

#[test]
fn host_headers() {
    let host = |value: &str| first_upstream(&format!("headers: {{host: {value}}}")).host;
    assert_eq!((host("upstream"), host("client")), (HostHeader::Upstream, HostHeader::Client));
    assert_eq!(host("no"), HostHeader::Literal("no".to_owned()), "not a boolean in YAML 1.2");
    for literal in ["a.example", "A:8080", "[::1]:80", "10.0.0.1"] {
        assert_eq!(host(&format!("'{literal}'")), HostHeader::Literal(literal.to_owned()));
    }
    for (value, problem) in [
        ("'a b'", "3:19 \"a b\" is not a host name"),
        ("Client", "3:19 host: \"Client\" is misspelt"),
        ("a:0", "3:19 host: port 0 cannot be connected to"),
        ("'a/b'", "3:19 \"a/b\" is not a host name"),
        ("\"a\\r\\nb\"", "3:19 \"a\u{fffd}\u{fffd}b\" is not a host name"),
        ("true", "3:19 host must be text, not \"true\""),
    ] {
        assert_eq!(bad(&service(&format!("headers: {{host: {value}}}"))), [problem]);
    }
    assert_eq!(bad(&service("headers: {request: {}}")), ["3:13 unknown key \"request\" in headers of service \"s\""]);
}

#[test]
fn gateway_listen() {
    let addresses =
        |text: &str| gateway(&format!("listen: {text}")).listen.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses("0.0.0.0:80"), ["0.0.0.0:80"]);
    assert_eq!(addresses(":8000"), ["0.0.0.0:8000"]);
    assert_eq!(addresses("[localhost:1, '[::1]:1']"), ["127.0.0.1:1", "[::1]:1"]);
    for (text, problem) in [
        ("8000", "2:11 listen: \"8000\" is a port without an address"),
        ("[]", "2:11 listen must have from 1 to 64 addresses"),
        ("", "2:9 listen has no value"),
        ("{a: b}", "2:11 listen must be a single value, not a mapping"),
        ("[localhost:1, 127.0.0.1:1]", "2:25 listen has 127.0.0.1:1 twice"),
        ("[a:1]", "2:12 \"a:1\" is not an address to listen on"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  listen: {text}\n")), [problem]);
    }
}

#[test]
fn gateway_workers_and_clients() {
    assert_eq!(gateway("workers: auto").workers, None);
    assert_eq!(gateway("workers: 512").workers, NonZeroUsize::new(512));
    assert_eq!(gateway("workers: ${AUTO}").workers, None);
    let client =
        gateway("client: {header_timeout: 1s, body_idle: 2s, keep_alive: 3s, half_close: true, min_rate: 1KiB}").client;
    let expected = Client {
        header_timeout: SECOND,
        body_idle: 2 * SECOND,
        keep_alive: 3 * SECOND,
        half_close: true,
        min_rate: 1024,
    };
    assert_eq!(client, expected);
    for (text, problem) in [
        ("workers: 0", "2:12 workers must be from 1 to 512, not \"0\""),
        ("workers: 513", "2:12 workers must be from 1 to 512, not \"513\""),
        ("workers: many", "2:12 workers must be auto or a whole number, not \"many\""),
        ("client: {half_close: yes}", "2:24 half_close must be true or false, not \"yes\""),
        ("client: {half_close: 'true'}", "2:24 half_close must be true or false, not \"true\""),
        ("client: {header_timeout: 10}", "2:28 header_timeout needs a unit: write \"10ms\" or \"10s\""),
        ("client: {body_idle: 0s}", "2:23 body_idle must be from 1ms to 24h, not \"0s\""),
        ("client: {keep_alive: x}", "2:24 keep_alive is not a duration: \"x\""),
        ("client: {min_rate: 1}", "2:22 min_rate needs a unit: write \"1B\" or \"1KiB\""),
        ("client: {max_rate: 1B}", "2:12 unknown key \"max_rate\" in gateway.client"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
}

#[test]
fn gateway_busy_poll() {
    assert_eq!(gateway("busy_poll: 0").busy_poll, Duration::ZERO);
    assert_eq!(gateway("busy_poll: 0.05ms").busy_poll, Duration::from_micros(50));
    assert_eq!(gateway("busy_poll: 1s").busy_poll, SECOND);
    for (text, problem) in [
        ("busy_poll: 50", "2:14 busy_poll needs a unit: write \"50ms\" or \"50s\""),
        ("busy_poll: 2s", "2:14 busy_poll must be from 0 or from 0.001ms to 1s, not \"2s\""),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
}

#[test]
fn gateway_affinity() {
    assert_eq!(gateway("affinity: off").affinity, Affinity::Off);
    assert_eq!(gateway("affinity: auto").affinity, Affinity::Auto);
    assert_eq!(gateway("affinity: 3").affinity, Affinity::Processors(vec![3]));
    assert_eq!(gateway("affinity: [0, '2', 1023]").affinity, Affinity::Processors(vec![0, 2, 1023]));
    assert_eq!(gateway("{affinity: [1, 2, 3], workers: 2}").affinity, Affinity::Processors(vec![1, 2, 3]));
    for (text, problem) in [
        ("affinity: []", "2:13 affinity must have from 1 to 512 processors"),
        ("affinity: on", "2:13 affinity has \"on\", which is no processor"),
        ("affinity: [auto]", "2:14 affinity has \"auto\", which is no processor"),
        ("affinity: [1, 2-3]", "2:17 affinity has \"2-3\", which is no processor"),
        ("affinity: 1024", "2:13 affinity has \"1024\", which is no processor"),
        ("affinity: [0, 1, 0]", "2:20 affinity has processor 0 twice"),
        ("{affinity: [0, 1], workers: 3}", "2:14 affinity has fewer processors (2) than workers (3)"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
}

#[test]
fn limits_and_upgrades_of_a_service() {
    let service_of = |settings: &str| good(&service(settings)).services.remove(0);
    let plain = service_of("retries: {attempts: 1}");
    assert_eq!((plain.body_limit, plain.upgrades), (None, vec!["websocket".to_owned()]));
    assert_eq!(service_of("body_limit: 1MiB").body_limit, Some(1 << 20));
    assert_eq!(service_of("body_limit: 0").body_limit, None);
    assert_eq!(service_of("upgrades: [WebSocket, x-tunnel, websocket]").upgrades, ["websocket", "x-tunnel"]);
    assert_eq!(service_of("upgrades: []").upgrades, [] as [&str; 0]);
    let defaults = "gateway:\n  defaults: {body_limit: 1KiB, upgrades: []}\ns: [http://a]\n";
    let merged = good(defaults).services.remove(0);
    assert_eq!((merged.body_limit, merged.upgrades), (Some(1024), vec![]));
    let most = |text: &str| good(&format!("s:\n  - {{url: http://a, max_requests: {text}}}\n"));
    assert_eq!(most("7").services[0].upstreams[0].max_requests, Some(7));
    assert_eq!(most("0").services[0].upstreams[0].max_requests, None);
    for (settings, problem) in [
        ("body_limit: 5", "3:15 body_limit needs a unit: write \"5B\" or \"5KiB\""),
        ("upgrades: websocket", "3:13 upgrades must be a list"),
        ("upgrades: [h2c]", "3:14 upgrades: requests inside of HTTP/2 cannot be checked: h2c is not let through"),
        ("upgrades: ['a b']", "3:14 upgrades: \"a b\" is not the name of a protocol"),
        ("max_requests: 1", "3:3 max_requests has no place in service \"s\""),
    ] {
        assert_eq!(bad(&service(settings)), [problem]);
    }
}

#[test]
fn gateway_limits() {
    let limits =
        gateway("limits: {connections: 9, header_bytes: 1KiB, headers: 256, request_line: 64B, buffer: 16MiB}").limits;
    let expected = Limits {
        connections: NonZeroUsize::new(9),
        header_bytes: 1024,
        headers: 256,
        request_line: 64,
        buffer: 16 << 20,
    };
    assert_eq!(limits, expected);
    assert_eq!(gateway("limits: {connections: auto}").limits, Limits::default());
    for (text, problem) in [
        ("connections: 0", "2:25 connections must be from 1 to 10000000, not \"0\""),
        ("header_bytes: 1023B", "2:26 header_bytes must be from 1KiB to 1MiB, not \"1023B\""),
        ("header_bytes: 8k", "2:26 header_bytes has an unknown unit \"k\""),
        ("headers: 257", "2:21 headers must be from 1 to 256, not \"257\""),
        ("request_line: 8192", "2:26 request_line needs a unit: write \"8KiB\""),
        ("buffer: 8KiB", "2:20 buffer must be from 16KiB to 16MiB, not \"8KiB\""),
        ("buffer: 32KiB", "2:20 buffer (32KiB) is smaller than header_bytes (32KiB) and request_line (8KiB) together"),
        (
            "header_bytes: 1MiB",
            "2:26 buffer (64KiB) is smaller than header_bytes (1MiB) and request_line (8KiB) together",
        ),
        ("body: 1MiB", "2:12 unknown key \"body\" in gateway.limits"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  limits: {{{text}}}\n")), [problem]);
    }
}

#[test]
fn gateway_admin_and_prefix() {
    let admin = gateway("admin: {listen: ':9901', token_file: a b/c, hosts: [A.example, a.example]}").admin;
    assert_eq!(admin.listen.map(|address| address.to_string()).as_deref(), Some("0.0.0.0:9901"));
    assert_eq!((admin.token_file.as_deref(), admin.token), (Some("a b/c"), None));
    assert_eq!(admin.hosts, ["a.example"]);
    let admin = gateway("admin: {listen: 'unix:/run/a b.sock'}").admin;
    assert_eq!(admin.listen, Some(AdminAddress::Unix("/run/a b.sock".into())));
    assert_eq!(gateway("prefix: /api/v2").prefix, "/api/v2");
    assert_eq!(gateway("reload_endpoint: off").reload_endpoint, ReloadEndpoint::Off);
    let long = format!("admin: {{listen: 'unix:/{}'}}", "x".repeat(107));
    for (text, problem) in [
        (
            "admin: {listen: ':9901'}",
            "2:19 listen 0.0.0.0:9901 can be reached from elsewhere, and there is no token_file",
        ),
        ("admin: {listen: 9901}", "2:19 listen must be text, not \"9901\""),
        ("admin: {listen: 'unix:run'}", "2:19 listen \"unix:run\" is not the path of a socket"),
        ("admin: {listen: 'unix:/run/'}", "2:19 listen \"unix:/run/\" is not the path of a socket"),
        (&long, "2:19 listen has a path of 108 bytes, 107 are possible"),
        ("admin: {hosts: a}", "2:18 hosts must be a list"),
        ("admin: {hosts: ['a:80']}", "2:19 hosts: \"a:80\" is not a host name"),
        ("admin: {token: x}", "2:11 unknown key \"token\" in gateway.admin"),
        ("prefix: /", "2:11 prefix \"/\" is not the beginning of paths"),
        ("prefix: api", "2:11 prefix \"api\" is not the beginning of paths"),
        ("prefix: /api/", "2:11 prefix \"/api/\" is not the beginning of paths"),
        ("prefix: /a//b", "2:11 prefix \"/a//b\" is not the beginning of paths"),
        ("prefix: /a/..", "2:11 prefix \"/a/..\" is not the beginning of paths"),
        ("prefix: /a?b", "2:11 prefix \"/a?b\" is not the beginning of paths"),
        ("prefix: /a%2f", "2:11 prefix \"/a%2f\" is not the beginning of paths"),
        ("prefix: /v1", "2:11 prefix \"/v1\" would hide the gateway's own /v1/status"),
        ("prefix: /v1/circuits/x", "2:11 prefix \"/v1/circuits/x\" would hide the gateway's own /v1/circuits"),
        ("reload_endpoint: all", "2:20 reload_endpoint \"all\" is none of loopback, any, off"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
}

#[test]
fn gateway_drain_log_and_metrics() {
    assert_eq!(gateway("drain: {timeout: 5s}").drain_timeout, 5 * SECOND);
    for (word, level) in
        [("off", log::LevelFilter::Off), ("warn", log::LevelFilter::Warn), ("trace", log::LevelFilter::Trace)]
    {
        assert_eq!(gateway(&format!("log: {{level: {word}}}")).log_level, level);
    }
    let access = |text: &str| gateway(&format!("log: {{access: {text}}}")).access;
    let (to_file, stdout) = (AccessTo::File("/a b".to_owned()), AccessTo::Stdout);
    assert_eq!(access("json"), Access { format: AccessFormat::Json, to: stdout.clone() });
    assert_eq!(access("{format: common, to: /a b}"), Access { format: AccessFormat::Common, to: to_file });
    assert_eq!(access("off"), Access { format: AccessFormat::Off, to: stdout });
    let metrics = gateway("metrics: {path: /m, buckets: [1ms, 2s]}");
    assert_eq!((metrics.metrics_path.as_str(), metrics.buckets), ("/m", vec![SECOND / 1000, 2 * SECOND]));
    let ids = |text: &str| gateway(&format!("request_id: {text}")).request_ids;
    assert_eq!(ids("{header: x-request-id}"), RequestIds::default());
    assert_eq!(ids("off"), RequestIds { mode: RequestIdMode::Off, header: None });
    assert_eq!(ids("{header: X-Id}"), RequestIds { header: Some("X-Id".to_owned()), ..RequestIds::default() });
    for (text, problem) in [
        ("drain: {timeout: 5}", "2:20 timeout needs a unit: write \"5ms\" or \"5s\""),
        ("drain: {lame_duck: 5s}", "2:11 unknown key \"lame_duck\" in gateway.drain"),
        ("log: {level: warning}", "2:16 level \"warning\" is none of off, error, warn, info, debug, trace"),
        ("log: {acess: off}", "2:9 unknown key \"acess\" in gateway.log"),
        ("log: {access: apache}", "2:17 access \"apache\" is none of off, common, combined, json"),
        ("log: {access: {format: json, file: x}}", "2:32 unknown key \"file\" in gateway.log.access"),
        ("metrics: {path: metrics}", "2:19 path \"metrics\" is not the path of a resource"),
        ("metrics: {path: /v1/status}", "2:19 path \"/v1/status\" is that of something else"),
        ("{metrics: {path: /v2/m}, prefix: /v2}", "2:20 path \"/v2/m\" is below the prefix of what is proxied, /v2"),
        ("metrics: {buckets: []}", "2:22 buckets must have from 1 to 32 bounds"),
        ("metrics: {buckets: [5ms, 5ms]}", "2:28 the bounds of buckets must rise"),
        ("metrics: {buckets: [5]}", "2:23 a bound of buckets needs a unit: write \"5ms\" or \"5s\""),
        ("request_id: keep", "2:15 request_id \"keep\" is none of generate, replace, off"),
        ("request_id: {header: 'a b'}", "2:24 header \"a b\" is not the name of a field"),
        ("request_id: {header: Host}", "2:24 header \"Host\" has a meaning of its own"),
        ("request_id: {header: x_forwarded_for}", "2:24 header \"x_forwarded_for\" has a meaning of its own"),
        ("log: {format: yaml}", "2:17 format \"yaml\" is none of text, json"),
        ("upstreams: []", "2:3 upstreams has no place in gateway"),
        ("defaults: {upstreams: []}", "2:14 upstreams has no place in gateway.defaults"),
        ("defaults: {timeouts: {conect: 1s}}", "2:25 unknown key \"conect\" in gateway.defaults.timeouts"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
    assert_eq!(bad("gateway: 5"), ["1:10 gateway must be a mapping"]);
    assert_eq!(good("gateway:\n").gateway, Gateway::default());
}

#[test]
fn gateway_reload() {
    let default = Reload { watch: false, debounce: Duration::from_millis(200), poll: None };
    assert_eq!(gateway("reload: {}").reload, default);
    assert_eq!(
        gateway("reload: {watch: true, debounce: 1m, poll: 24h}").reload,
        Reload { watch: true, debounce: 60 * SECOND, poll: Some(24 * 3600 * SECOND) }
    );
    assert_eq!(gateway("reload: {debounce: 1ms, poll: 0}").reload, Reload { debounce: SECOND / 1000, ..default });
    for (text, problem) in [
        ("reload: true", "2:11 reload must be a mapping"),
        ("reload: {watch: 1}", "2:19 watch must be true or false, not \"1\""),
        ("reload: {debounce: 0}", "2:22 debounce must be from 1ms to 1m, not \"0\""),
        ("reload: {debounce: 61s}", "2:22 debounce must be from 1ms to 1m, not \"61s\""),
        ("reload: {debounce: 200}", "2:22 debounce needs a unit: write \"200ms\" or \"200s\""),
        ("reload: {poll: 25h}", "2:18 poll must be from 0 or from 1ms to 24h, not \"25h\""),
        ("reload: {poll: true}", "2:18 poll is not a duration: \"true\""),
        ("reload: {interval: 1s}", "2:12 unknown key \"interval\" in gateway.reload"),
    ] {
        assert_eq!(bad(&format!("gateway:\n  {text}\n")), [problem]);
    }
}

#[test]
fn settings_merge_from_the_outside_in() {
    let config = good(
        "s:
  upstreams:
    - http://a
    - {url: http://b, timeouts: {response: 4s}, circuit_breaker: {failure_on: [tls]}}
  timeouts: {response: 3s, total: 9s}
  retries: {attempts: 3}
t: [http://a]
gateway:
  defaults:
    timeouts: {connect: 1s, response: 2s, total: 8s}
    circuit_breaker: {failure_threshold: 7, failure_on: [connect, closed]}
    retries: {attempts: 2}
    pool: {max_idle: 1}
    headers: {host: client}
",
    );
    let [s, t] = config.services.as_slice() else { panic!() };
    assert_eq!((s.retries.attempts, s.total_timeout), (3, Some(9 * SECOND)));
    assert_eq!((t.retries.attempts, t.total_timeout), (2, Some(8 * SECOND)));
    let all = || s.upstreams.iter().chain(&t.upstreams);
    assert_eq!(all().map(|u| u.timeouts.response.as_secs()).collect::<Vec<_>>(), [3, 4, 2]);
    assert!(all().all(|u| u.timeouts.connect == SECOND && u.timeouts.idle == 60 * SECOND));
    assert!(all().all(|u| u.pool == Pool { max_idle: 1, ..Pool::default() } && u.host == HostHeader::Client));
    assert!(all().all(|u| u.breaker.failure_threshold == 7));
    let sets: Vec<bool> = all().map(|u| u.breaker.failure_on.counts_class(Class::Closed)).collect();
    assert_eq!(sets, [true, false, true], "lists replace");
}

#[test]
fn zero_switches_an_inherited_total_off() {
    let config =
        good("gateway: {defaults: {timeouts: {total: 5s}}}\ns: {upstreams: [http://a], timeouts: {total: 0}}\n");
    assert_eq!(config.services[0].total_timeout, None);
}

#[test]
fn one_url_cannot_have_two_settings() {
    assert_eq!(good("s: [http://a, http://A:80/, {url: http://a, pool: {}}]").services[0].upstreams.len(), 3);
    assert_eq!(
        bad("s:\n  - http://a\n  - http://b\n  - {url: http://a, pool: {idle: 1s}}\n"),
        ["4:5 \"http://a\" is listed twice with different settings"]
    );
    good("s: [http://a]\nt: [{url: http://a, pool: {idle: 1s}}]\n");
}

#[test]
fn names_of_services() {
    for name in ["a", "A-b_c.9", "...", "-", "on", "no", "22"] {
        good(&format!("{name}: []"));
    }
    for name in ["a/b", "'a b'", "ä", "''", "'.'", "'..'", "a%20b", "$A"] {
        let problems = bad(&format!("{name}: []"));
        assert!(problems[0].starts_with("1:1 ") && problems[0].ends_with("is not a service name"), "{problems:?}");
    }
}

#[test]
fn references_in_values() {
    let config = good(
        "s: ['http://${HOST}:${PORT:-9001}/$$x', {url: \"http://b\", circuit_breaker: {failure_threshold: \"${FIVE}\"}}]",
    );
    assert_eq!(config.services[0].upstreams[0].url.text, "http://a.example:9001/$x");
    assert_eq!(bad("s:\n  - http://x:${PORT}\n"), ["2:14 environment variable \"PORT\" is not set"]);
    assert_eq!(bad("s: [\"http://${x\"]"), ["1:13 \"${\" without its \"}\""]);
    assert_eq!(bad("s: [\"\\x41${x\"]"), ["1:5 \"${\" without its \"}\""], "with escapes only the value has a place");
    assert_eq!(bad("s: [\"${LONG}${LONG}\"]"), ["1:5 an upstream expands to more than 4096 bytes"]);
    assert_eq!(bad("${HOST}: []"), ["1:1 \"${HOST}\" is not a service name"]);
    assert_eq!(
        bad("s: {upstreams: [http://a], pool: {max_idle: \"${HOST}\"}}"),
        ["1:45 max_idle must be a whole number, not \"a.example\""]
    );
}

#[test]
fn what_warns_is_still_a_configuration() {
    for (text, warning) in [
        ("", "c.yaml: warning: no services: every request will be answered 404"),
        ("\u{feff}# nothing\n", "c.yaml: warning: no services: every request will be answered 404"),
        ("gateway: {}\n", "c.yaml: warning: no services: every request will be answered 404"),
        ("s: []\n", "c.yaml:1:4: warning: service \"s\" has no upstreams: it answers 503\n    1 | s: []\n      |    ^"),
        (
            "s: {upstreams: []}\n",
            "c.yaml:1:16: warning: service \"s\" has no upstreams: it answers 503\n    1 | s: {upstreams: []}\n      |                ^",
        ),
    ] {
        let warnings = read(text).unwrap().warnings;
        assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [warning]);
    }
}

#[test]
fn breakers_in_full() {
    let all = "circuit_breaker: {mode: observe, backoff: 1.5, cooldown: 1s, max_cooldown: 5m, jitter: 20%, \
               half_open_probes: 2, success_threshold: 3, probe_timeout: 4s, \
               neutral_on: [client_abort, rejected, cut, 404], failure_rate: 0.5, window: 1m, min_requests: 7, slow_after: 2s, slow_rate: 90%, when_all_open: probe}";
    let service_of = |text: &str| good(&service(text)).services.remove(0);
    let breaker = service_of(all).upstreams.remove(0).breaker;
    assert_eq!((breaker.mode, breaker.backoff, breaker.max_cooldown), (Mode::Observe, 150, Some(300 * SECOND)));
    assert_eq!((breaker.jitter, breaker.half_open_probes, breaker.success_threshold), (2000, 2, 3));
    assert_eq!((breaker.probe_timeout, breaker.window, breaker.min_requests), (Some(4 * SECOND), 60 * SECOND, 7));
    assert_eq!((breaker.failure_rate, breaker.slow_after, breaker.slow_rate), (5000, Some(2 * SECOND), 9000));
    assert!(breaker.neutral_on.counts_class(Class::Cut) && breaker.neutral_on.counts_status(404));
    assert_eq!(service_of(all).when_all_open, WhenAllOpen::Probe);
    let mode = |text: &str| service_of(&format!("circuit_breaker: {text}")).upstreams[0].breaker.mode;
    assert_eq!((mode("{enabled: false}"), mode("{enabled: true}")), (Mode::Off, Mode::Enforce));
    assert_eq!(
        (mode("{enabled: false, mode: observe}"), mode("{mode: observe, enabled: false}")),
        (Mode::Off, Mode::Off)
    );
    assert_eq!(
        bad("s: [{url: http://a, circuit_breaker: {when_all_open: probe}}]"),
        ["1:39 when_all_open has no place in circuit_breaker of an upstream of service \"s\""]
    );
}

#[test]
fn balancing() {
    let balancing = |text: &str| good(&service(&format!("load_balancing: {text}"))).services.remove(0).balancing;
    assert_eq!(balancing("{}"), Balancing::default());
    assert_eq!(balancing("{policy: p2c, slow_start: 30s}").slow_start, 30 * SECOND);
    let hash_on = |text: &str| balancing(&format!("{{policy: hash, hash_on: {text}}}")).hash_on;
    assert_eq!((hash_on("client_ip"), hash_on("path")), (Some(HashOn::ClientIp), Some(HashOn::Path)));
    assert_eq!(hash_on("'header:X-User'"), Some(HashOn::Header("x-user".to_owned())));
    assert_eq!(hash_on("'cookie:Session'"), Some(HashOn::Cookie("Session".to_owned())));
    for (text, problem) in [
        (
            "{policy: roundrobin}",
            "3:28 policy \"roundrobin\" is none of round_robin, least_requests, p2c, random, hash",
        ),
        ("{policy: hash}", "3:28 policy hash needs hash_on"),
        ("{hash_on: path}", "3:29 hash_on has no effect without policy: hash"),
        ("{policy: hash, hash_on: 'header:'}", "3:43 hash_on has an unknown key \"header:\""),
    ] {
        assert_eq!(bad(&service(&format!("load_balancing: {text}"))), [problem]);
    }
    let weighted = good("s: [{url: http://a, weight: 3}, {url: http://b, weight: 0}, {url: http://c, backup: true}]");
    let [a, b, c] = &*weighted.services[0].upstreams else { panic!() };
    assert_eq!((a.weight, b.weight, c.weight), (3, 0, 1));
    assert_eq!((a.backup, c.backup), (false, true));
    assert_eq!(bad("s: [{url: http://a, weight: 1001}]"), ["1:29 weight must be from 0 to 1000, not \"1001\""]);
    assert_eq!(bad(&service("weight: 3")), ["3:3 weight has no place in service \"s\""]);
    let many: String =
        (0..200).map(|n| format!("  - {{url: 'http://a:{}', weight: {}}}\n", n + 1, 801 + n % 2)).collect();
    assert_eq!(bad(&format!("s:\n{many}")), ["2:3 the weights of service \"s\" need more than 100000 turns"]);
}

#[test]
fn health_checks_and_names() {
    let upstream_of = |text: &str| good(&service(text)).services.remove(0).upstreams.remove(0);
    assert_eq!(upstream_of("retries: {}").health, None);
    let check = upstream_of(
        "health_check: {path: /healthz?x=1, method: HEAD, interval: 1s, timeout: 100ms, unhealthy: 1, \
        healthy: 5, expect: [200, 300-302], when: open}",
    )
    .health
    .expect("a check");
    assert_eq!((check.path.as_str(), check.method.as_str(), check.only_open), ("/healthz?x=1", "HEAD", true));
    assert_eq!((check.unhealthy, check.healthy, check.interval, check.timeout), (1, 5, SECOND, SECOND / 10));
    assert!(check.expect.counts_status(301) && !check.expect.counts_status(204));
    let off = good(
        "gateway:\n  defaults: {health_check: {path: /up}}\ns: {upstreams: [http://a, {url: http://b, health_check: false}]}\n",
    );
    let [a, b] = &*off.services[0].upstreams else { panic!() };
    assert!(a.health.is_some() && b.health.is_none());
    let dns = upstream_of("dns: {refresh: 5s, stale: 0}").dns;
    assert_eq!((dns.refresh, dns.stale), (5 * SECOND, Duration::ZERO));
    for (text, problem) in [
        ("{interval: 1s}", "3:17 a health_check needs a path"),
        ("{path: healthz}", "3:24 path \"healthz\" is not a path"),
        ("{path: /, method: get}", "3:35 method: \"get\" is misspelt"),
        ("{path: /, expect: [99]}", "3:36 expect has an unknown entry \"99\""),
        ("{path: /, expect: []}", "3:35 expect has no status"),
        ("{path: /, when: never}", "3:33 when \"never\" is none of always, open"),
        ("{path: /, unhealthy: 0}", "3:38 unhealthy must be from 1 to 1000, not \"0\""),
        ("true", "3:17 health_check must be a mapping"),
    ] {
        assert_eq!(bad(&service(&format!("health_check: {text}")))[0], problem);
    }
    assert_eq!(bad(&service("dns: {refresh: 5}")), ["3:18 refresh needs a unit: write \"5ms\" or \"5s\""]);
}

#[test]
fn services_under_a_key_of_their_own() {
    let config =
        good("services:\n  a: [http://a]\n  x-y: {anchor: 1}\n  b: {upstreams: [http://b]}\ngateway: {workers: 2}\n");
    assert_eq!(config.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        bad("services:\n  a: [http://a]\nb: [http://b]\n"),
        ["3:1 services stand both at the top level and under \"services\""]
    );
    assert_eq!(good("services: {upstreams: [http://a]}").services[0].name, "services");
}

#[test]
fn every_problem_is_reported_in_one_run() {
    let problems = bad("s:
  - http://a:0
  - https://b
t:
  upstreams: [c]
  timeouts: {connect: 5, idle: '${NONE}'}
  timeout: 1s
u: []
t: []
gateway:
  listen: nowhere
  limits: {headers: 0}
  defaults: {retries: {attempts: 99}}
");
    assert_eq!(
        problems,
        [
            "2:5 port 0 cannot be connected to",
            "3:5 https is not supported yet",
            "5:15 upstream \"c\" has no scheme",
            "6:23 connect needs a unit: write \"5ms\" or \"5s\"",
            "6:33 environment variable \"NONE\" is not set",
            "7:3 unknown key \"timeout\" in service \"t\"",
            "9:1 duplicate key \"t\": it stands on line 4 already",
            "11:11 \"nowhere\" is not an address to listen on",
            "12:21 headers must be from 1 to 256, not \"0\"",
            "13:34 attempts must be from 0 to 15, not \"99\"",
        ]
    );
}

#[test]
fn exact_text() {
    for (text, expected) in EXACT {
        assert_eq!(read(text).expect_err("was accepted").to_string(), *expected);
    }
}

/// Files and the whole of what is said about them.
#[rustfmt::skip]
const EXACT: &[(&str, &str)] = &[
    ("payments:\n  upstreams: [http://a]\n  circuit_breaker: {colldown: 20s}\n", r#"c.yaml:3:21: error: unknown key "colldown" in circuit_breaker of service "payments"
    3 |   circuit_breaker: {colldown: 20s}
      |                     ^^^^^^^^ did you mean "cooldown"?"#),
    ("s:\n  - localhost:9001\n", r#"c.yaml:2:5: error: upstream "localhost:9001" has no scheme
    2 |   - localhost:9001
      |     ^^^^^^^^^^^^^^ write "http://localhost:9001""#),
    ("s: [{url: http://a, retries: {attempts: 1}}]\n", r#"c.yaml:1:21: error: retries has no place in an upstream of service "s"
    1 | s: [{url: http://a, retries: {attempts: 1}}]
      |                     ^^^^^^^ it belongs to the service, beside upstreams"#),
    ("services:\n  a: [http://a]\nb: [http://b]\n", r#"c.yaml:3:1: error: services stand both at the top level and under "services"
    3 | b: [http://b]
      | ^ write all of them in one of the two places"#),
    ("listen: 0.0.0.0:80\n", r#"c.yaml:1:9: error: service "listen" must be a list of URLs or a mapping with upstreams
    1 | listen: 0.0.0.0:80
      |         ^^^^^^^^^^ listen belongs in gateway"#),
    ("limits:\n  buffer: 1MiB\n", r#"c.yaml:1:1: error: service "limits" has no upstreams
    1 | limits:
      | ^^^^^^ limits belongs in gateway"#),
    ("user-service: http://localhost:9001\n", r#"c.yaml:1:15: error: service "user-service" must be a list of URLs or a mapping with upstreams
    1 | user-service: http://localhost:9001
      |               ^^^^^^^^^^^^^^^^^^^^^ write it as ["http://localhost:9001"]"#),
    ("s:\n", r#"c.yaml:1:2: error: service "s" must be a list of URLs or a mapping with upstreams
    1 | s:
      |  ^ without upstreams it is written []"#),
    ("gatewy: {listen: 0.0.0.0:80}\n", r#"c.yaml:1:1: error: service "gatewy" has no upstreams
    1 | gatewy: {listen: 0.0.0.0:80}
      | ^^^^^^ did you mean "gateway"?"#),
    ("s: []\ngateway:\n  limits: {buffer: 16KiB}\n", r#"c.yaml:1:4: warning: service "s" has no upstreams: it answers 503
    1 | s: []
      |    ^
c.yaml:3:20: error: buffer (16KiB) is smaller than header_bytes (32KiB) and request_line (8KiB) together
    3 |   limits: {buffer: 16KiB}
      |                    ^^^^^ raise buffer to at least 40KiB"#),
    ("s: []\ngateway: {log: {level: wran}}\n", r#"c.yaml:1:4: warning: service "s" has no upstreams: it answers 503
    1 | s: []
      |    ^
c.yaml:2:24: error: level "wran" is none of off, error, warn, info, debug, trace
    2 | gateway: {log: {level: wran}}
      |                        ^^^^ did you mean "warn"?"#),
    ("a: [http://a]\nb: [http://b]\na: [http://c]\n", r#"c.yaml:3:1: error: duplicate key "a": it stands on line 1 already
    3 | a: [http://c]
      | ^"#),
    ("s: [http://a]\n\tt: 1\n", r#"c.yaml:2:2: error: invalid YAML: while parsing a block mapping, did not find expected key
    2 |  t: 1
      |  ^"#),
    ("s: {upstreams: [http://a], timeouts: {connect: ${T}}}\n", r#"c.yaml:1:49: error: invalid YAML: while parsing a flow mapping, did not find expected ',' or '}'
    1 | s: {upstreams: [http://a], timeouts: {connect: ${T}}}
      |                                                 ^ inside of {} or [], put "${…}" in quotes"#),
    ("s:\n  - http://${HOST}:${PORT}/\n  - http://b:0\n", r#"c.yaml:2:20: error: environment variable "PORT" is not set
    2 |   - http://${HOST}:${PORT}/
      |                    ^^^^^^^ set it, or write "${PORT:-default}"
c.yaml:3:5: error: port 0 cannot be connected to
    3 |   - http://b:0
      |     ^^^^^^^^^^"#),
    ("s: {upstreams: [http://a], pool: {size: 3}}\n", r#"c.yaml:1:35: error: unknown key "size" in pool of service "s"
    1 | s: {upstreams: [http://a], pool: {size: 3}}
      |                                   ^^^^ the keys are idle, max_idle"#),
    ("- http://a\n", r#"c.yaml:1:1: error: the file must be a mapping of services
    1 | - http://a
      | ^ write "name:", and below it a list of URLs"#),
    ("s:\n  - http://a\n  - {url: http://A/, headers: {host: client}}\n", r#"c.yaml:3:5: error: "http://A/" is listed twice with different settings
    3 |   - {url: http://A/, headers: {host: client}}
      |     ^ one URL has one circuit breaker and one pool; it stands on line 2 already"#),
    ("s: {upstreams: [http://a], circuit_breaker: {jitter: 20, failure_rate: 120%, slow_rate: half}}\n", r#"c.yaml:1:54: error: jitter needs a percent sign: write "20%"
    1 | s: {upstreams: [http://a], circuit_breaker: {jitter: 20, failure_rate: 120%, slow_rate: half}}
      |                                                      ^^
c.yaml:1:72: error: failure_rate must be from 0% to 100%, not "120%"
    1 | s: {upstreams: [http://a], circuit_breaker: {jitter: 20, failure_rate: 120%, slow_rate: half}}
      |                                                                        ^^^^
c.yaml:1:89: error: slow_rate is not a share: "half"
    1 | s: {upstreams: [http://a], circuit_breaker: {jitter: 20, failure_rate: 120%, slow_rate: half}}
      |                                                                                         ^^^^ write "20%" or "0.2""#),
    ("s: {upstreams: [http://a], circuit_breaker: {backoff: 0.5}}\nt: {upstreams: [http://a], circuit_breaker: {backoff: twice}}\n", r#"c.yaml:1:55: error: backoff must be from 1 to 100, not "0.5"
    1 | s: {upstreams: [http://a], circuit_breaker: {backoff: 0.5}}
      |                                                       ^^^
c.yaml:2:55: error: backoff must be a number, not "twice"
    2 | t: {upstreams: [http://a], circuit_breaker: {backoff: twice}}
      |                                                       ^^^^^ such as 2 or 1.5"#),
    ("s: {upstreams: [http://a], circuit_breaker: {mode: enforced, when_all_open: panic}}\n", r#"c.yaml:1:52: error: mode "enforced" is none of enforce, observe
    1 | s: {upstreams: [http://a], circuit_breaker: {mode: enforced, when_all_open: panic}}
      |                                                    ^^^^^^^^ did you mean "enforce"?
c.yaml:1:77: error: when_all_open "panic" is none of reject, probe, ignore
    1 | s: {upstreams: [http://a], circuit_breaker: {mode: enforced, when_all_open: panic}}
      |                                                                             ^^^^^"#),
    ("s: {upstreams: [http://a], circuit_breaker: {cooldown: 1m, max_cooldown: 5s, slow_rate: 10%}}\n", r#"c.yaml:1:74: error: max_cooldown is shorter than cooldown
    1 | s: {upstreams: [http://a], circuit_breaker: {cooldown: 1m, max_cooldown: 5s, slow_rate: 10%}}
      |                                                                          ^^
c.yaml:1:89: error: slow_rate has no effect without slow_after
    1 | s: {upstreams: [http://a], circuit_breaker: {cooldown: 1m, max_cooldown: 5s, slow_rate: 10%}}
      |                                                                                         ^^^"#),
    ("s: {upstreams: [http://a], circuit_breaker: {failure_on: [5xx, tl], neutral_on: [conect, 503-500]}}\n", r#"c.yaml:1:64: error: failure_on has an unknown entry "tl"
    1 | s: {upstreams: [http://a], circuit_breaker: {failure_on: [5xx, tl], neutral_on: [conect, 503-500]}}
      |                                                                ^^ did you mean "tls"?
c.yaml:1:82: error: neutral_on has an unknown entry "conect"
    1 | s: {upstreams: [http://a], circuit_breaker: {failure_on: [5xx, tl], neutral_on: [conect, 503-500]}}
      |                                                                                  ^^^^^^ did you mean "connect"?
c.yaml:1:90: error: neutral_on has a range from 503 down to 500
    1 | s: {upstreams: [http://a], circuit_breaker: {failure_on: [5xx, tl], neutral_on: [conect, 503-500]}}
      |                                                                                          ^^^^^^^"#),
    ("s:\n  upstreams: [http://a]\n  circuit_breaker:\n    failure_on: [42]\n", r#"c.yaml:4:18: error: failure_on has an unknown entry "42"
    4 |     failure_on: [42]
      |                  ^^ the classes are connect, tls, unsent, closed, invalid, timeout, cut, 5xx; or a status from 100 to 599, or 500-599"#),
    ("s: [{url: http://a, circuit_breaker: {when_all_open: probe}}]\n", r#"c.yaml:1:39: error: when_all_open has no place in circuit_breaker of an upstream of service "s"
    1 | s: [{url: http://a, circuit_breaker: {when_all_open: probe}}]
      |                                       ^^^^^^^^^^^^^ it is about all upstreams of a service: it belongs beside upstreams"#),
    ("s: {upstreams: [http://a], circuit_breaker: {window: 10ms, enabled: yes}}\n", r#"c.yaml:1:54: error: window must be from 100ms to 24h, not "10ms"
    1 | s: {upstreams: [http://a], circuit_breaker: {window: 10ms, enabled: yes}}
      |                                                      ^^^^
c.yaml:1:69: error: enabled must be true or false, not "yes"
    1 | s: {upstreams: [http://a], circuit_breaker: {window: 10ms, enabled: yes}}
      |                                                                     ^^^ write true"#),
    ("s: {upstreams: [http://a], load_balancing: {policy: hash}}\n", r#"c.yaml:1:53: error: policy hash needs hash_on
    1 | s: {upstreams: [http://a], load_balancing: {policy: hash}}
      |                                                     ^^^^ hash_on is client_ip, path, header:NAME or cookie:NAME"#),
    ("s: {upstreams: [http://a], load_balancing: {policy: hash, hash_on: 'headers:x'}}\n", r#"c.yaml:1:68: error: hash_on has an unknown key "headers:x"
    1 | s: {upstreams: [http://a], load_balancing: {policy: hash, hash_on: 'headers:x'}}
      |                                                                    ^^^^^^^^^^^ hash_on is client_ip, path, header:NAME or cookie:NAME"#),
    ("s: {upstreams: [http://a], load_balancing: {hash_on: path}}\n", r#"c.yaml:1:54: error: hash_on has no effect without policy: hash
    1 | s: {upstreams: [http://a], load_balancing: {hash_on: path}}
      |                                                      ^^^^"#),
    ("s: {upstreams: [http://a], load_balancing: {policy: roundrobin, slow_start: 30}}\n", r#"c.yaml:1:53: error: policy "roundrobin" is none of round_robin, least_requests, p2c, random, hash
    1 | s: {upstreams: [http://a], load_balancing: {policy: roundrobin, slow_start: 30}}
      |                                                     ^^^^^^^^^^ did you mean "round_robin"?
c.yaml:1:77: error: slow_start needs a unit: write "30ms" or "30s"
    1 | s: {upstreams: [http://a], load_balancing: {policy: roundrobin, slow_start: 30}}
      |                                                                             ^^"#),
    ("s: {upstreams: [http://a], health_check: {interval: 1s}}\n", r#"c.yaml:1:42: error: a health_check needs a path
    1 | s: {upstreams: [http://a], health_check: {interval: 1s}}
      |                                          ^ such as {path: /healthz}"#),
    ("s: {upstreams: [http://a], health_check: {path: up, method: get, when: opened}}\n", r#"c.yaml:1:49: error: path "up" is not a path
    1 | s: {upstreams: [http://a], health_check: {path: up, method: get, when: opened}}
      |                                                 ^^ it begins with a slash and has neither spaces nor a fragment
c.yaml:1:61: error: method: "get" is misspelt
    1 | s: {upstreams: [http://a], health_check: {path: up, method: get, when: opened}}
      |                                                             ^^^ write GET
c.yaml:1:72: error: when "opened" is none of always, open
    1 | s: {upstreams: [http://a], health_check: {path: up, method: get, when: opened}}
      |                                                                        ^^^^^^"#),
    ("s:\n  upstreams: [http://a]\n  health_check:\n    path: /\n    expect: [ok]\n", r#"c.yaml:5:14: error: expect has an unknown entry "ok"
    5 |     expect: [ok]
      |              ^^ write a status from 100 to 599, or a range such as 200-399"#),
    ("s: {upstreams: [http://a], retries: {on: [cut], methods: [get], budget: 1e1}}\n", r#"c.yaml:1:42: error: on must not have cut: a response that has begun cannot be taken back
    1 | s: {upstreams: [http://a], retries: {on: [cut], methods: [get], budget: 1e1}}
      |                                          ^
c.yaml:1:59: error: methods: "get" is misspelt
    1 | s: {upstreams: [http://a], retries: {on: [cut], methods: [get], budget: 1e1}}
      |                                                           ^^^ write GET
c.yaml:1:73: error: budget is not a share: "1e1"
    1 | s: {upstreams: [http://a], retries: {on: [cut], methods: [get], budget: 1e1}}
      |                                                                         ^^^ write "20%" or "0.2""#),
    ("s: {upstreams: [http://a], upgrades: [h2c, a b]}\ngateway: {listen: 8000}\n", r#"c.yaml:1:39: error: upgrades: requests inside of HTTP/2 cannot be checked: h2c is not let through
    1 | s: {upstreams: [http://a], upgrades: [h2c, a b]}
      |                                       ^^^
c.yaml:1:44: error: upgrades: "a b" is not the name of a protocol
    1 | s: {upstreams: [http://a], upgrades: [h2c, a b]}
      |                                            ^^^
c.yaml:2:19: error: listen: "8000" is a port without an address
    2 | gateway: {listen: 8000}
      |                   ^^^^ write "127.0.0.1:8000", or ":8000" for every address"#),
    ("s: [{url: http://a, weight: 1001}, {url: http://b, backup: 1, dns: {refresh: 30}}]\n", r#"c.yaml:1:29: error: weight must be from 0 to 1000, not "1001"
    1 | s: [{url: http://a, weight: 1001}, {url: http://b, backup: 1, dns: {refresh: 30}}]
      |                             ^^^^
c.yaml:1:60: error: backup must be true or false, not "1"
    1 | s: [{url: http://a, weight: 1001}, {url: http://b, backup: 1, dns: {refresh: 30}}]
      |                                                            ^ write true
c.yaml:1:78: error: refresh needs a unit: write "30ms" or "30s"
    1 | s: [{url: http://a, weight: 1001}, {url: http://b, backup: 1, dns: {refresh: 30}}]
      |                                                                              ^^"#),
    ("s: [{url: http://a, weight: 0}]\nt: 5\n", r#"c.yaml:1:4: warning: every upstream of service "s" has weight 0: it answers 503
    1 | s: [{url: http://a, weight: 0}]
      |    ^
c.yaml:2:4: error: service "t" must be a list of URLs or a mapping with upstreams
    2 | t: 5
      |    ^"#),
];

#[test]
fn sixty_five_thousand_upstreams() {
    let list = |n: usize| {
        (0..n).fold(String::from("s:\n"), |text, i| text + "  - http://a:" + &(i % 65_535 + 1).to_string() + "\n")
    };
    let config = read(&list(65_000)).unwrap().config;
    assert_eq!(config.services[0].upstreams.len(), 65_000);
    assert!(read(&print(&config)).is_ok_and(|printed| printed.config == config));
    assert_eq!(bad(&list(65_001)), ["2:3 service \"s\" has more than 65000 upstreams"]);
    let mappings =
        (0..65_000).fold(String::from("s:\n"), |text, i| text + "  - url: http://a:" + &(i + 1).to_string() + "\n");
    assert_eq!(read(&mappings).unwrap().config.services[0].upstreams.len(), 65_000);
}

#[test]
fn hostile_files_are_refused_quickly() {
    let unknown =
        format!("s: {{upstreams: [http://a], {}}}", (0..90_000).map(|n| format!("k{n}: 1, ")).collect::<String>());
    let bad_urls = format!("s: [{}]", "x, ".repeat(60_000));
    let aliases = format!(
        "x-a: {{b: &b {{cooldown: {}}}}}\ns: [{}]",
        "9".repeat(4000),
        "{url: http://a, circuit_breaker: *b}, ".repeat(25_000)
    );
    let empty = (0..50_000).map(|n| format!("s{n}: []\n")).collect::<String>() + "t: [x]\n";
    for text in [unknown, bad_urls, aliases, empty] {
        let start = processor_time();
        let problems = read(&text).unwrap_err();
        assert!(problems.0.len() <= 2002 && problems.to_string().len() < 2_000_000);
        assert!(problems.0.iter().any(|problem| problem.severity == Severity::Error));
        let took = processor_time() - start;
        assert!(took < 20 * SECOND, "took {took:?} of this thread's processor time");
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    let message = |path: &Path| load(path).unwrap_err().to_string().replace(&path.display().to_string(), "c.yaml");

    assert_eq!(message(&path), "c.yaml: error: the file cannot be read: No such file or directory (os error 2)");
    assert_eq!(message(dir.path()), "c.yaml: error: this is a directory, not a file");
    assert_eq!(message(Path::new("/dev/zero")), "c.yaml: error: this is not a regular file");
    assert_eq!(
        message(&path.join("x")),
        "c.yaml: error: the file cannot be read: No such file or directory (os error 2)"
    );

    std::fs::write(&path, "\u{feff}s: [http://a]\n").unwrap();
    assert_eq!(load(&path).unwrap().config.services[0].name, "s");
    assert_eq!(message(&path.join("x")), "c.yaml: error: the file cannot be read: Not a directory (os error 20)");
    std::fs::write(&path, b"s:\r\n  - http://\xc3\xa4\xff\n").unwrap();
    assert_eq!(
        message(&path),
        "c.yaml:2:13: error: byte 0xff is not UTF-8\n    2 |   - http://ä\u{fffd}\n      |             ^"
    );
    std::fs::write(&path, b"s: []\n\xff").unwrap();
    assert!(message(&path).starts_with("c.yaml:2:1: error: byte 0xff is not UTF-8"));
    std::fs::write(&path, "#".repeat(10 << 20)).unwrap();
    assert_eq!(message(&path), "c.yaml: error: the file is larger than 4MiB");
    std::fs::write(&path, "#".repeat(4 << 20)).unwrap();
    assert_eq!(load(&path).unwrap().warnings.len(), 1);
}

#[test]
fn a_fifo_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    if std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
        assert!(load(&path).unwrap_err().to_string().ends_with("error: this is not a regular file"));
    }
}

/// Root reads every file, so this says something only for other users.
#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(file.path()).is_ok() {
        eprintln!("SKIPPED: this user may read every file");
        return;
    }
    assert!(load(file.path()).unwrap_err().to_string().ends_with("cannot be read: Permission denied (os error 13)"));
}

const VALID: &str = "# a file with everything
x-fast: &fast {connect: 100ms, response: 1.5s}
user-service:
  - http://localhost:9001
  - \"http://[::1]:9002/base\"
payments:
  upstreams:
    - http://${HOST}:8080
    - {url: http://10.0.0.2:8080, timeouts: {<<: *fast, idle: 1m30s}, pool: {idle: 0, max_idle: 3}}
  circuit_breaker: {failure_threshold: 3, cooldown: 20s, failure_on: [connect, 5xx, 429, 500-502]}
  retries: {attempts: 2}
  timeouts:
    <<: [*fast]
    total: 0
  headers: {host: client}
gateway:
  listen: [0.0.0.0:8000, '[::1]:8000']
  workers: auto
  client: {header_timeout: 10s, half_close: false}
  limits: {connections: 100, header_bytes: 8KiB, headers: 64, request_line: 4KiB, buffer: 32KiB}
  drain: {timeout: 30s}
  log: {level: debug}
  reload: {watch: true, debounce: 50ms, poll: 1m}
  defaults: {timeouts: {stream: 2h}}
";

#[test]
fn a_file_with_everything() {
    assert_eq!(good(VALID).services.len(), 2);
    assert_eq!(read(&VALID.replace('\n', "\r\n")).unwrap().config, good(VALID));
}

/// What an attempt to break the reader is made of.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ", ",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    "\t",
    "\r",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "| ",
    "> ",
    "\"",
    "'",
    "#",
    " #",
    "!x ",
    "!!str ",
    "%",
    "@",
    "`",
    "---\n",
    "...\n",
    "${HOST}",
    "${",
    "}",
    "$$",
    "${X:-",
    "\0",
    "\u{feff}",
    "\u{85}",
    "\u{2028}",
    "ä",
    "\u{1f600}",
    "\\",
    "\\x",
    "~",
    "null",
    "true",
    "0",
    "-1",
    "1e9",
    "99999999999999999999",
    "5s",
    "64KiB",
    "http://a",
    "https://",
    "gateway:",
    "upstreams:",
    "url:",
    "timeouts:",
    "failure_on:",
    "x-a:",
    "services:",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|(?s).*") {
        sound(&text);
    }

    #[test]
    fn pieces_of_yaml_never_panic(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        sound(&pieces.concat());
    }

    #[test]
    fn mutated_files_never_panic(
        cuts in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(PIECES)),
            1..6,
        ),
    ) {
        let mut text: Vec<char> = VALID.chars().collect();
        for (at, removed, piece) in cuts {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, piece.chars());
        }
        sound(&text.into_iter().collect::<String>());
    }
}

/// Whatever the text, the answer is well formed: an error or none, in order, each of at most three lines.
fn sound(text: &str) {
    let (found, failed) = match read(text) {
        Ok(loaded) => (loaded.warnings, false),
        Err(problems) => (problems.0, true),
    };
    assert_eq!(found.iter().any(|problem| problem.severity == Severity::Error), failed);
    assert!(found.is_sorted_by_key(|problem| (problem.line, problem.column)));
    for problem in found {
        assert!(problem.line == 0 || problem.column > 0);
        let shown = problem.to_string();
        assert!(shown.lines().count() <= 3 && !shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }
}

//! Every key that a configuration file may have: its place, its kind, its bounds. What a message lists or
//! proposes comes from these tables too, so a key that is not here does not exist.
//!
//! A number that reaches its setter is within its bounds, which is why the casts here lose nothing.
//!
//! Must not know: how a tree is walked, in which order settings are laid over each other.

use super::diagnostics::{Fault, quote};
use super::model::{
    self, Balancing, CircuitBreaker, Client, Dns, Gateway, HashOn, HealthCheck, HostHeader, Limits, Pool, Reload,
    Timeouts, WhenAllOpen,
};
use super::reader::{Field, Reader, Rule};
use super::suggest::did_you_mean;
use super::tree::{Node, Value};
use super::{units, url};
use crate::policy::balance;
use crate::policy::breaker::Mode;
use crate::policy::class::{Causes, Class};
use crate::policy::retry;
use log::LevelFilter;
use std::net::SocketAddr;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Addresses to listen on: each is a socket in every shard.
const MOST_ADDRESSES: usize = 64;

/// The settings that merge: built-in, then `gateway.defaults`, then service, then upstream.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) breaker: CircuitBreaker,
    pub(super) balancing: Balancing,
    pub(super) retries: retry::Policy,
    pub(super) timeouts: Timeouts,
    pub(super) total_timeout: Option<Duration>,
    pub(super) pool: Pool,
    pub(super) host: HostHeader,
    pub(super) max_requests: Option<u32>,
    pub(super) body_limit: Option<u64>,
    pub(super) upgrades: Vec<String>,
    pub(super) weight: u32,
    pub(super) backup: bool,
    pub(super) health: Option<HealthCheck>,
    pub(super) dns: Dns,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            breaker: CircuitBreaker::default(),
            balancing: Balancing::default(),
            retries: retry::Policy::default(),
            timeouts: Timeouts::default(),
            total_timeout: None,
            pool: Pool::default(),
            host: HostHeader::default(),
            max_requests: None,
            body_limit: None,
            upgrades: vec!["websocket".to_owned()],
            weight: 1,
            backup: false,
            health: None,
            dns: Dns::default(),
        }
    }
}

/// `gateway` with the settings below which every service begins.
#[derive(Default)]
pub(super) struct Process {
    pub(super) gateway: Gateway,
    pub(super) defaults: Settings,
}

const fn field<T>(key: &'static str, rule: Rule<T>) -> Field<T> {
    Field { key, rule }
}

/// A service as a mapping.
pub(super) const SERVICE: &[Field<Settings>] = &[
    field("upstreams", Rule::Apart),
    field("load_balancing", LOAD_BALANCING),
    field("circuit_breaker", CIRCUIT_BREAKER),
    field("retries", RETRIES),
    field("timeouts", EXCHANGE_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    HEALTH_CHECK,
    DNS,
    BODY_LIMIT,
    UPGRADES,
    field("url", Rule::Elsewhere("it belongs in an entry of upstreams")),
    field("max_requests", Rule::Elsewhere("it belongs in an entry of upstreams")),
    field("weight", Rule::Elsewhere("it belongs in an entry of upstreams")),
    field("backup", Rule::Elsewhere("it belongs in an entry of upstreams")),
];

/// `gateway.defaults`.
pub(super) const DEFAULTS: &[Field<Settings>] = &[
    field("load_balancing", LOAD_BALANCING),
    field("circuit_breaker", CIRCUIT_BREAKER),
    field("retries", RETRIES),
    field("timeouts", EXCHANGE_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    HEALTH_CHECK,
    DNS,
    BODY_LIMIT,
    UPGRADES,
    field("upstreams", Rule::Elsewhere("only a service has upstreams")),
];

/// An upstream as a mapping.
pub(super) const UPSTREAM: &[Field<Settings>] = &[
    field("url", Rule::Apart),
    field("weight", Rule::Count(0..=1000, |settings, count| settings.weight = count as u32)),
    field("backup", Rule::Flag(|settings, value| settings.backup = value)),
    field("circuit_breaker", UPSTREAM_BREAKER),
    field("timeouts", ATTEMPT_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    field(
        "max_requests",
        Rule::Count(0..=1_000_000, |settings, count| settings.max_requests = (count > 0).then_some(count as u32)),
    ),
    HEALTH_CHECK,
    DNS,
    field("load_balancing", Rule::Elsewhere("it belongs to the service, beside upstreams")),
    field("retries", Rule::Elsewhere("it belongs to the service, beside upstreams")),
    field("body_limit", Rule::Elsewhere("it belongs to the service, beside upstreams")),
    field("upgrades", Rule::Elsewhere("it belongs to the service, beside upstreams")),
];

const BODY_LIMIT: Field<Settings> = field(
    "body_limit",
    Rule::Size(0..=1 << 50, |settings, bytes| settings.body_limit = (bytes > 0).then_some(bytes as u64)),
);
const UPGRADES: Field<Settings> =
    field("upgrades", Rule::Node(|settings, node, reader| upgrades(&mut settings.upgrades, node, reader)));

/// Probes at once, and successes that close: each probe is a request that may fail.
const MOST_PROBES: u64 = 100;

const CIRCUIT_BREAKER: Rule<Settings> = Rule::Node(|settings, node, reader| {
    reader.mapping(node, BREAKER_FIELDS, &mut settings.breaker);
    if settings.breaker.max_cooldown.is_some_and(|most| most < settings.breaker.cooldown) {
        let fault = Fault::new("max_cooldown is shorter than cooldown");
        reader.error(place(node, &["max_cooldown", "cooldown"]), fault);
    }
    if settings.breaker.slow_rate > 0 && settings.breaker.slow_after.is_none() {
        let fault = Fault::new("slow_rate has no effect without slow_after");
        reader.error(place(node, &["slow_rate"]), fault);
    }
    if let Some(code) = settings.breaker.failure_on.shared_status(&settings.breaker.neutral_on) {
        let fault = Fault::new(format!("status {code} is both in failure_on and in neutral_on"));
        reader.error(place(node, &["neutral_on", "failure_on"]), fault);
    }
});

const UPSTREAM_BREAKER: Rule<Settings> = Rule::Node(|settings, node, reader| {
    let service = settings.breaker.when_all_open;
    let Rule::Node(read) = CIRCUIT_BREAKER else { return };
    read(settings, node, reader);
    settings.breaker.when_all_open = service;
    if let Some(at) = node.find("when_all_open") {
        let fault = Fault::new("when_all_open has no place in an upstream");
        reader.error(at, fault.help("it is about all upstreams of a service: it belongs beside upstreams"));
    }
});

/// The first of these keys that a mapping has, or the mapping.
fn place<'a>(node: &'a Node, keys: &[&str]) -> &'a Node {
    keys.iter().find_map(|key| node.find(key)).unwrap_or(node)
}

const BREAKER_FIELDS: &[Field<CircuitBreaker>] = &[
    field(
        "enabled",
        Rule::Flag(|breaker, on| {
            // `mode` may have been read before.
            breaker.mode = match (on, breaker.mode) {
                (false, _) => Mode::Off,
                (true, Mode::Off) => Mode::Enforce,
                (true, mode) => mode,
            }
        }),
    ),
    field("mode", Rule::Text(breaker_mode)),
    field("failure_threshold", Rule::Count(1..=1_000_000, |breaker, count| breaker.failure_threshold = count as u32)),
    field("cooldown", Rule::Duration(MONTH, |breaker, value| breaker.cooldown = value)),
    field("backoff", Rule::Factor(100..=10_000, |breaker, value| breaker.backoff = value)),
    field("max_cooldown", Rule::Duration(MONTH, |breaker, value| breaker.max_cooldown = Some(value))),
    field("jitter", Rule::Percent(|breaker, value| breaker.jitter = value)),
    field("half_open_probes", Rule::Count(1..=MOST_PROBES, |breaker, count| breaker.half_open_probes = count as u32)),
    field("success_threshold", Rule::Count(1..=MOST_PROBES, |breaker, count| breaker.success_threshold = count as u32)),
    field("probe_timeout", Rule::Duration(DAY, |breaker, value| breaker.probe_timeout = Some(value))),
    field("failure_on", Rule::Node(|breaker, node, reader| causes(&mut breaker.failure_on, node, reader, &[]))),
    field(
        "neutral_on",
        Rule::Node(|breaker, node, reader| causes(&mut breaker.neutral_on, node, reader, ALWAYS_NEUTRAL)),
    ),
    field("failure_rate", Rule::Percent(|breaker, value| breaker.failure_rate = value)),
    field("window", Rule::Node(|breaker, node, reader| window(&mut breaker.window, node, reader))),
    field("min_requests", Rule::Count(1..=30_000, |breaker, count| breaker.min_requests = count as u32)),
    field(
        "slow_after",
        Rule::DurationOrZero(DAY, |breaker, value| breaker.slow_after = (!value.is_zero()).then_some(value)),
    ),
    field("slow_rate", Rule::Percent(|breaker, value| breaker.slow_rate = value)),
    field("when_all_open", Rule::Text(when_all_open)),
];

/// Words that `neutral_on` may have because they are neutral anyway.
const ALWAYS_NEUTRAL: &[&str] = &["client_abort", "rejected"];

fn breaker_mode(breaker: &mut CircuitBreaker, text: &str) -> Result<(), Fault> {
    let mode = *one_of("mode", text, &[("enforce", Mode::Enforce), ("observe", Mode::Observe)])?;
    if breaker.mode != Mode::Off {
        breaker.mode = mode;
    }
    Ok(())
}

fn when_all_open(breaker: &mut CircuitBreaker, text: &str) -> Result<(), Fault> {
    let words = [("reject", WhenAllOpen::Reject), ("probe", WhenAllOpen::Probe), ("ignore", WhenAllOpen::Ignore)];
    breaker.when_all_open = *one_of("when_all_open", text, &words)?;
    Ok(())
}

/// A tenth of it is the smallest step of the window.
fn window(window: &mut Duration, node: &Node, reader: &mut Reader<'_>) {
    let Some(value) = reader.duration(node, DAY, false) else { return };
    if value < Duration::from_millis(100) {
        return reader.error(node, Fault::new("window must be at least 100ms"));
    }
    *window = value;
}

/// What `text` names among `words`.
fn one_of<'w, T>(key: &str, text: &str, words: &'w [(&'static str, T)]) -> Result<&'w T, Fault> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(value);
    }
    let names = || words.iter().map(|(word, _)| *word);
    let fault = Fault::new(format!("{key} {} is none of {}", quote(text), names().collect::<Vec<_>>().join(", ")));
    Err(did_you_mean(text, names()).into_iter().fold(fault, Fault::help))
}

const LOAD_BALANCING: Rule<Settings> = Rule::Node(|settings, node, reader| {
    reader.mapping(node, BALANCING_FIELDS, &mut settings.balancing);
    let hashes = settings.balancing.policy == balance::Policy::Hash;
    if hashes && settings.balancing.hash_on.is_none() && node.find("hash_on").is_none() {
        let fault = Fault::new("policy hash needs hash_on");
        reader.error(place(node, &["policy"]), fault.help(HASH_WORDS));
    } else if !hashes && let Some(at) = node.find("hash_on") {
        reader.error(at, Fault::new("hash_on has no effect without policy: hash"));
    }
});

const BALANCING_FIELDS: &[Field<Balancing>] = &[
    field("policy", Rule::Text(policy)),
    field("hash_on", Rule::Text(hash_on)),
    field("slow_start", Rule::DurationOrZero(DAY, |balancing, value| balancing.slow_start = value)),
];

fn policy(balancing: &mut Balancing, text: &str) -> Result<(), Fault> {
    balancing.policy = *one_of("policy", text, &balance::Policy::ALL.map(|policy| (policy.word(), policy)))?;
    Ok(())
}

const HASH_WORDS: &str = "hash_on is client_ip, path, header:NAME or cookie:NAME";

fn hash_on(balancing: &mut Balancing, text: &str) -> Result<(), Fault> {
    let is_token = |name: &str| name.len() <= 256 && crate::http::fields::is_token(name.as_bytes());
    balancing.hash_on = Some(match text.split_once(':') {
        None if text == "client_ip" => HashOn::ClientIp,
        None if text == "path" => HashOn::Path,
        Some(("header", name)) if is_token(name) => HashOn::Header(name.to_ascii_lowercase()),
        Some(("cookie", name)) if is_token(name) => HashOn::Cookie(name.to_owned()),
        _ => return Err(Fault::new(format!("hash_on has an unknown key {}", quote(text))).help(HASH_WORDS)),
    });
    Ok(())
}

const RETRIES: Rule<Settings> =
    Rule::Node(|settings, node, reader| reader.mapping(node, RETRY_FIELDS, &mut settings.retries));

const RETRY_FIELDS: &[Field<retry::Policy>] = &[
    field("attempts", Rule::Count(0..=15, |retries, count| retries.attempts = count as u8)),
    field("on", Rule::Node(retry_on)),
    field("methods", Rule::Node(|retries, node, reader| methods(&mut retries.methods, node, reader))),
    field("budget", Rule::Percent(|retries, value| retries.budget = value)),
    field("budget_min", Rule::Count(0..=1_000_000, |retries, count| retries.budget_min = count as u32)),
    field("body_limit", Rule::Size(0..=16 << 20, |retries, bytes| retries.body_limit = bytes as u64)),
    field(
        "per_try_timeout",
        Rule::DurationOrZero(DAY, |retries, value| retries.per_try_timeout = (!value.is_zero()).then_some(value)),
    ),
    field("backoff", Rule::DurationOrZero(DAY, |retries, value| retries.backoff = (!value.is_zero()).then_some(value))),
];

fn retry_on(retries: &mut retry::Policy, node: &Node, reader: &mut Reader<'_>) {
    causes(&mut retries.on, node, reader, &[]);
    if retries.on.counts_class(Class::Cut) {
        let fault = Fault::new("on must not have cut: a response that has begun cannot be taken back");
        reader.error(node, fault);
    }
}

fn methods(methods: &mut Vec<String>, node: &Node, reader: &mut Reader<'_>) {
    let Value::List(items) = &node.value else {
        let fault = Fault::new("methods must be a list");
        return reader.error(node, fault.help("write it as [GET, HEAD, PUT]"));
    };
    methods.clear();
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        if let Err(fault) = check_method(&text.value) {
            reader.error(item, fault);
        } else if !methods.contains(&text.value) {
            methods.push(text.value);
        }
    }
}

/// Methods are told apart by case (RFC 9110 section 9.1).
fn check_method(text: &str) -> Result<(), Fault> {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
    if text.len() > 32 || !crate::http::fields::is_token(text.as_bytes()) {
        return Err(Fault::new(format!("{} is not a method", quote(text))));
    }
    match known.into_iter().find(|known| *known != text && known.eq_ignore_ascii_case(text)) {
        Some(meant) => Err(Fault::new(format!("method {} is misspelt", quote(text))).help(format!("write {meant}"))),
        None => Ok(()),
    }
}

const HEALTH_CHECK: Field<Settings> = field("health_check", Rule::Node(health_check));

fn health_check(settings: &mut Settings, node: &Node, reader: &mut Reader<'_>) {
    if reader.is_false(node) {
        settings.health = None;
        return;
    }
    let mut check = settings.health.take().unwrap_or_default();
    reader.mapping(node, HEALTH_FIELDS, &mut check);
    if check.path.is_empty() && node.find("path").is_none() {
        reader.error(node, Fault::new("a health_check needs a path").help("such as {path: /healthz}"));
    }
    settings.health = Some(check);
}

const HEALTH_FIELDS: &[Field<HealthCheck>] = &[
    field("path", Rule::Text(check_path)),
    field(
        "method",
        Rule::Text(|check, text| {
            check_method(text)?;
            text.clone_into(&mut check.method);
            Ok(())
        }),
    ),
    field("interval", Rule::Duration(DAY, |check, value| check.interval = value)),
    field("timeout", Rule::Duration(DAY, |check, value| check.timeout = value)),
    field("unhealthy", Rule::Count(1..=1000, |check, count| check.unhealthy = count as u32)),
    field("healthy", Rule::Count(1..=1000, |check, count| check.healthy = count as u32)),
    field("expect", Rule::Node(|check, node, reader| statuses(&mut check.expect, node, reader))),
    field("when", Rule::Text(check_when)),
];

fn check_path(check: &mut HealthCheck, text: &str) -> Result<(), Fault> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !text.starts_with('/') || !printable || text.len() > 4096 {
        let fault = Fault::new(format!("path {} is not a path", quote(text)));
        return Err(fault.help("it begins with a slash and has neither spaces nor a fragment"));
    }
    text.clone_into(&mut check.path);
    Ok(())
}

fn check_when(check: &mut HealthCheck, text: &str) -> Result<(), Fault> {
    check.only_open = *one_of("when", text, &[("always", false), ("open", true)])?;
    Ok(())
}

const DNS: Field<Settings> =
    field("dns", Rule::Node(|settings, node, reader| reader.mapping(node, DNS_FIELDS, &mut settings.dns)));

const DNS_FIELDS: &[Field<Dns>] = &[
    field("refresh", Rule::DurationOrZero(DAY, |dns, value| dns.refresh = value)),
    field("stale", Rule::DurationOrZero(MONTH, |dns, value| dns.stale = value)),
];

const EXCHANGE_TIMEOUTS: Rule<Settings> =
    Rule::Node(|settings, node, reader| reader.mapping(node, EXCHANGE_TIMEOUT_FIELDS, settings));

const ATTEMPT_TIMEOUTS: Rule<Settings> =
    Rule::Node(|settings, node, reader| reader.mapping(node, ATTEMPT_TIMEOUT_FIELDS, settings));

const EXCHANGE_TIMEOUT_FIELDS: &[Field<Settings>] = &[
    CONNECT,
    RESPONSE,
    IDLE,
    field(
        "total",
        Rule::DurationOrZero(DAY, |settings, value| settings.total_timeout = (!value.is_zero()).then_some(value)),
    ),
    STREAM,
];

const ATTEMPT_TIMEOUT_FIELDS: &[Field<Settings>] = &[
    CONNECT,
    RESPONSE,
    IDLE,
    STREAM,
    field("total", Rule::Elsewhere("it spans all attempts: it belongs in timeouts of the service")),
];

const CONNECT: Field<Settings> =
    field("connect", Rule::Duration(DAY, |settings, value| settings.timeouts.connect = value));
const RESPONSE: Field<Settings> =
    field("response", Rule::Duration(DAY, |settings, value| settings.timeouts.response = value));
const IDLE: Field<Settings> = field("idle", Rule::Duration(DAY, |settings, value| settings.timeouts.idle = value));
const STREAM: Field<Settings> =
    field("stream", Rule::Duration(MONTH, |settings, value| settings.timeouts.stream = value));

const POOL: Rule<Settings> = Rule::Node(|settings, node, reader| reader.mapping(node, POOL_FIELDS, &mut settings.pool));

const POOL_FIELDS: &[Field<Pool>] = &[
    field("idle", Rule::DurationOrZero(DAY, |pool, value| pool.idle = value)),
    field("max_idle", Rule::Count(0..=1_000_000, |pool, count| pool.max_idle = count as usize)),
];

const HEADERS: Rule<Settings> =
    Rule::Node(|settings, node, reader| reader.mapping(node, HEADER_FIELDS, &mut settings.host));

const HEADER_FIELDS: &[Field<HostHeader>] = &[field("host", Rule::Text(host))];

/// `gateway`.
pub(super) const GATEWAY: &[Field<Process>] = &[
    field("listen", Rule::Node(|process, node, reader| listen(&mut process.gateway.listen, node, reader))),
    field("workers", Rule::CountOrAuto(1..=512, |process, count| process.gateway.workers = count)),
    field("client", Rule::Node(|process, node, reader| reader.mapping(node, CLIENT, &mut process.gateway.client))),
    field("limits", Rule::Node(|process, node, reader| limits(&mut process.gateway.limits, node, reader))),
    field("drain", Rule::Node(|process, node, reader| reader.mapping(node, DRAIN, &mut process.gateway))),
    field("log", Rule::Node(|process, node, reader| reader.mapping(node, LOG, &mut process.gateway))),
    field("reload", Rule::Node(|process, node, reader| reader.mapping(node, RELOAD, &mut process.gateway.reload))),
    field("defaults", Rule::Node(|process, node, reader| reader.mapping(node, DEFAULTS, &mut process.defaults))),
    field("upstreams", Rule::Elsewhere("a service of the name gateway is written as a list of URLs")),
];

const CLIENT: &[Field<Client>] = &[
    field("header_timeout", Rule::Duration(DAY, |client, value| client.header_timeout = value)),
    field("body_idle", Rule::Duration(DAY, |client, value| client.body_idle = value)),
    field("keep_alive", Rule::Duration(DAY, |client, value| client.keep_alive = value)),
    field("min_rate", Rule::Size(0..=1 << 30, |client, bytes| client.min_rate = bytes as u64)),
    field("half_close", Rule::Flag(|client, value| client.half_close = value)),
];

const LIMITS: &[Field<Limits>] = &[
    field("connections", Rule::CountOrAuto(1..=10_000_000, |limits, count| limits.connections = count)),
    field("header_bytes", Rule::Size(1 << 10..=1 << 20, |limits, bytes| limits.header_bytes = bytes)),
    field("headers", Rule::Count(1..=256, |limits, count| limits.headers = count as usize)),
    field("request_line", Rule::Size(64..=256 << 10, |limits, bytes| limits.request_line = bytes)),
    field("buffer", Rule::Size(16 << 10..=16 << 20, |limits, bytes| limits.buffer = bytes)),
];

const DRAIN: &[Field<Gateway>] =
    &[field("timeout", Rule::Duration(DAY, |gateway, value| gateway.drain_timeout = value))];

const LOG: &[Field<Gateway>] = &[field("level", Rule::Text(log_level))];

const RELOAD: &[Field<Reload>] = &[
    field("watch", Rule::Flag(|reload, value| reload.watch = value)),
    field("debounce", Rule::Duration(MINUTE, |reload, value| reload.debounce = value)),
    field("poll", Rule::DurationOrZero(DAY, |reload, value| reload.poll = (!value.is_zero()).then_some(value))),
];

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn log_level(gateway: &mut Gateway, text: &str) -> Result<(), Fault> {
    gateway.log_level = *one_of("level", text, &LEVELS)?;
    Ok(())
}

/// A literal that differs from a keyword in case only is a slip: hosts are not told apart by case.
fn host(host: &mut HostHeader, text: &str) -> Result<(), Fault> {
    *host = match text {
        "upstream" => HostHeader::Upstream,
        "client" => HostHeader::Client,
        _ => {
            let words = ["upstream", "client"];
            if let Some(word) = words.into_iter().find(|word| word.eq_ignore_ascii_case(text)) {
                return Err(Fault::new(format!("host {} is misspelt", quote(text))).help(format!("write {word}")));
            }
            url::host_port(text).map_err(|fault| fault.help("host is upstream, client, or a host name"))?;
            HostHeader::Literal(text.to_owned())
        }
    };
    Ok(())
}

fn listen(addresses: &mut Vec<SocketAddr>, node: &Node, reader: &mut Reader<'_>) {
    let listed: Vec<&Node> = match &node.value {
        Value::List(items) => items.iter().map(|item| &**item).collect(),
        _ => vec![node],
    };
    if !(1..=MOST_ADDRESSES).contains(&listed.len()) {
        return reader.error(node, Fault::new(format!("listen must have from 1 to {MOST_ADDRESSES} addresses")));
    }
    let mut found = Vec::new();
    for node in listed {
        let Some(text) = reader.text(node) else { continue };
        match url::listen(&text.value) {
            Ok(address) if found.contains(&address) => {
                reader.error(node, Fault::new(format!("listen has {address} twice")));
            }
            Ok(address) => found.push(address),
            Err(fault) => reader.error(node, fault),
        }
    }
    *addresses = found;
}

/// A whole head must fit into one buffer, or it could never be parsed.
fn limits(limits: &mut Limits, node: &Node, reader: &mut Reader<'_>) {
    let errors = reader.findings.errors();
    reader.mapping(node, LIMITS, limits);
    let head = limits.header_bytes + limits.request_line;
    if limits.buffer >= head || reader.findings.errors() > errors {
        return;
    }
    let show = |bytes: usize| units::show_size(bytes as u64);
    let fault = Fault::new(format!(
        "buffer ({}) is smaller than header_bytes ({}) and request_line ({}) together",
        show(limits.buffer),
        show(limits.header_bytes),
        show(limits.request_line)
    ));
    let place = ["buffer", "header_bytes", "request_line"].into_iter().find_map(|key| node.find(key));
    reader.error(place.unwrap_or(node), fault.help(format!("raise buffer to at least {}", show(head))));
}

/// Protocols that turn a connection into a tunnel. `h2c` is not among them: behind it requests would pass
/// that the gateway has never seen.
fn upgrades(protocols: &mut Vec<String>, node: &Node, reader: &mut Reader<'_>) {
    let Value::List(items) = &node.value else {
        let fault = Fault::new("upgrades must be a list");
        return reader.error(node, fault.help("write it as [websocket], or [] for none"));
    };
    protocols.clear();
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        let protocol = text.value.to_ascii_lowercase();
        if protocol == "h2c" || protocol == "h2" {
            reader.error(item, Fault::new("requests inside of HTTP/2 cannot be checked: h2c is not let through"));
        } else if protocol.len() > 64 || !crate::http::fields::is_token(protocol.as_bytes()) {
            reader.error(item, Fault::new(format!("{} is not the name of a protocol", quote(&text.value))));
        } else if !protocols.contains(&protocol) {
            protocols.push(protocol);
        }
    }
}

/// A list of classes, statuses and ranges of them; `more` are words that change nothing.
fn causes(set: &mut Causes, node: &Node, reader: &mut Reader<'_>, more: &[&str]) {
    let key = reader.key();
    let Value::List(items) = &node.value else {
        let fault = Fault::new(format!("{key} must be a list"));
        return reader.error(node, fault.help("write it as [connect, timeout, 5xx, 429]"));
    };
    *set = Causes::none();
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        if more.contains(&&*text.value) {
            continue;
        }
        if let Err(fault) = cause(key, set, &text.value) {
            reader.error(item, fault);
        }
    }
}

/// A class, a status code or a range of codes.
fn cause(key: &str, set: &mut Causes, text: &str) -> Result<(), Fault> {
    if let Some(class) = Class::from_word(text) {
        set.add_class(class);
        return Ok(());
    }
    if let Some((first, last)) = status_range(text) {
        return add_statuses(key, set, first, last);
    }
    let words = Class::ALL.map(Class::word);
    let fault = Fault::new(format!("{key} has an unknown entry {}", quote(text)));
    let known = || format!("the classes are {}; or a status from 100 to 599, or 500-599", words.join(", "));
    Err(fault.help(did_you_mean(text, words).unwrap_or_else(known)))
}

/// Statuses and ranges of them, one or a list.
fn statuses(set: &mut Causes, node: &Node, reader: &mut Reader<'_>) {
    let key = reader.key();
    let listed: Vec<&Node> = match &node.value {
        Value::List(items) => items.iter().map(|item| &**item).collect(),
        _ => vec![node],
    };
    if listed.is_empty() {
        reader.error(node, Fault::new(format!("{key} has no status")));
    }
    *set = Causes::none();
    for node in listed {
        let Some(text) = reader.text(node) else { continue };
        let added = match status_range(&text.value) {
            Some((first, last)) => add_statuses(key, set, first, last),
            None => Err(Fault::new(format!("{key} has an unknown entry {}", quote(&text.value)))
                .help("write a status from 100 to 599, or a range such as 200-399")),
        };
        added.unwrap_or_else(|fault| reader.error(node, fault));
    }
}

fn add_statuses(key: &str, set: &mut Causes, first: u16, last: u16) -> Result<(), Fault> {
    if first > last {
        return Err(Fault::new(format!("{key} has a range from {first} down to {last}")));
    }
    (first..=last).for_each(|code| set.add_status(code));
    Ok(())
}

/// `503`, or `500-599`.
fn status_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((status(first)?, status(last)?))
}

fn status(text: &str) -> Option<u16> {
    let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|code| (100..600).contains(code))
}

/// A help for a key of the top level that looks like one of `gateway`.
pub(super) fn home(key: &str) -> Option<String> {
    let place = if knows(DEFAULTS, key) {
        "gateway.defaults or a service"
    } else if knows(GATEWAY, key) {
        "gateway"
    } else {
        return None;
    };
    Some(format!("{key} belongs in {place}"))
}

fn knows<T>(table: &[Field<T>], key: &str) -> bool {
    table.iter().any(|field| field.key == key && !matches!(field.rule, Rule::Elsewhere(_)))
}

impl Settings {
    /// An upstream with these settings.
    pub(super) fn upstream(self, url: model::UpstreamUrl) -> model::Upstream {
        let Settings { breaker, timeouts, pool, host, max_requests, weight, backup, health, dns, .. } = self;
        model::Upstream { url, breaker, timeouts, pool, host, max_requests, weight, backup, health, dns }
    }
}

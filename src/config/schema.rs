//! Every key that a configuration file may have: its place, its kind, its bounds. What a message lists or
//! proposes comes from these tables too, so a key that is not here does not exist.
//!
//! A number that reaches its setter is within its bounds, which is why the casts here lose nothing.
//!
//! Must not know: how a tree is walked, in which order settings are laid over each other.

use super::diagnostics::{Fault, quote};
use super::model::{self, CircuitBreaker, Client, Gateway, HostHeader, Limits, Pool, Timeouts};
use super::reader::{Field, Reader, Rule};
use super::suggest::did_you_mean;
use super::tree::{Node, Value};
use super::{units, url};
use crate::policy::class::{Class, FailureOn};
use log::LevelFilter;
use std::net::SocketAddr;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Addresses to listen on: each is a socket in every shard.
const MOST_ADDRESSES: usize = 64;

/// The settings that merge: built-in, then `gateway.defaults`, then service, then upstream.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) breaker: CircuitBreaker,
    pub(super) retry_attempts: u8,
    pub(super) timeouts: Timeouts,
    pub(super) total_timeout: Option<Duration>,
    pub(super) pool: Pool,
    pub(super) host: HostHeader,
    pub(super) max_requests: Option<u32>,
    pub(super) body_limit: Option<u64>,
    pub(super) upgrades: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            breaker: CircuitBreaker::default(),
            retry_attempts: 1,
            timeouts: Timeouts::default(),
            total_timeout: None,
            pool: Pool::default(),
            host: HostHeader::default(),
            max_requests: None,
            body_limit: None,
            upgrades: vec!["websocket".to_owned()],
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
    field("circuit_breaker", CIRCUIT_BREAKER),
    field("retries", RETRIES),
    field("timeouts", EXCHANGE_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    BODY_LIMIT,
    UPGRADES,
    field("url", Rule::Elsewhere("it belongs in an entry of upstreams")),
    field("max_requests", Rule::Elsewhere("it belongs in an entry of upstreams")),
];

/// `gateway.defaults`.
pub(super) const DEFAULTS: &[Field<Settings>] = &[
    field("circuit_breaker", CIRCUIT_BREAKER),
    field("retries", RETRIES),
    field("timeouts", EXCHANGE_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    BODY_LIMIT,
    UPGRADES,
    field("upstreams", Rule::Elsewhere("only a service has upstreams")),
];

/// An upstream as a mapping.
pub(super) const UPSTREAM: &[Field<Settings>] = &[
    field("url", Rule::Apart),
    field("circuit_breaker", CIRCUIT_BREAKER),
    field("timeouts", ATTEMPT_TIMEOUTS),
    field("pool", POOL),
    field("headers", HEADERS),
    field(
        "max_requests",
        Rule::Count(0..=1_000_000, |settings, count| settings.max_requests = (count > 0).then_some(count as u32)),
    ),
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

const CIRCUIT_BREAKER: Rule<Settings> =
    Rule::Node(|settings, node, reader| reader.mapping(node, BREAKER_FIELDS, &mut settings.breaker));

const BREAKER_FIELDS: &[Field<CircuitBreaker>] = &[
    field("failure_threshold", Rule::Count(1..=1_000_000, |breaker, count| breaker.failure_threshold = count as u32)),
    field("cooldown", Rule::Duration(MONTH, |breaker, value| breaker.cooldown = value)),
    field("failure_on", Rule::Node(|breaker, node, reader| failure_on(&mut breaker.failure_on, node, reader))),
];

const RETRIES: Rule<Settings> = Rule::Node(|settings, node, reader| reader.mapping(node, RETRY_FIELDS, settings));

const RETRY_FIELDS: &[Field<Settings>] =
    &[field("attempts", Rule::Count(0..=15, |settings, count| settings.retry_attempts = count as u8))];

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

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn log_level(gateway: &mut Gateway, text: &str) -> Result<(), Fault> {
    let words = LEVELS.iter().map(|(word, _)| *word);
    let Some((_, level)) = LEVELS.iter().find(|(word, _)| *word == text) else {
        let all = words.clone().collect::<Vec<_>>().join(", ");
        let fault = Fault::new(format!("level {} is none of {all}", quote(text)));
        return Err(did_you_mean(text, words).into_iter().fold(fault, Fault::help));
    };
    gateway.log_level = *level;
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

fn failure_on(set: &mut FailureOn, node: &Node, reader: &mut Reader<'_>) {
    let Value::List(items) = &node.value else {
        let fault = Fault::new("failure_on must be a list");
        return reader.error(node, fault.help("write it as [connect, timeout, 5xx, 429]"));
    };
    *set = FailureOn::none();
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        if let Err(fault) = failure(set, &text.value) {
            reader.error(item, fault);
        }
    }
}

/// A class, a status code or a range of codes.
fn failure(set: &mut FailureOn, text: &str) -> Result<(), Fault> {
    if let Some(class) = Class::from_word(text) {
        set.add_class(class);
        return Ok(());
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (status(first), status(last)) else {
        let words = Class::ALL.map(Class::word);
        let fault = Fault::new(format!("failure_on has an unknown entry {}", quote(text)));
        let known = || format!("the classes are {}; or a status from 100 to 599, or 500-599", words.join(", "));
        return Err(fault.help(did_you_mean(text, words).unwrap_or_else(known)));
    };
    if first > last {
        return Err(Fault::new(format!("failure_on has a range from {first} down to {last}")));
    }
    (first..=last).for_each(|code| set.add_status(code));
    Ok(())
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
        let Settings { breaker, timeouts, pool, host, max_requests, .. } = self;
        model::Upstream { url, breaker, timeouts, pool, host, max_requests }
    }
}

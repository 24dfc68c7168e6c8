//! The configuration after validation: plain values, all defaults filled in, all settings merged
//! (built-in < `gateway.defaults` < service < upstream). Whoever holds a [`Config`] need not check
//! anything again.
//!
//! Must not know: YAML, positions, sockets.

use crate::policy::class::FailureOn;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

/// A whole, valid configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Settings of the process.
    pub gateway: Gateway,
}

/// A named set of upstreams.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// One path segment of letters, digits, `-`, `_`, `.`; not `.` or `..`.
    pub name: String,
    /// In configuration order, as listed: a URL listed twice stands here twice. May be empty.
    pub upstreams: Vec<Upstream>,
    /// `retries.attempts`: extra tries of an exchange, 0 to 15.
    pub retry_attempts: u8,
    /// `timeouts.total` of an exchange; `None` is off.
    pub total_timeout: Option<Duration>,
    /// `body_limit`: bytes of a request body; `None` is off.
    pub body_limit: Option<u64>,
    /// `upgrades`: protocols that a client may upgrade to, in lower case.
    pub upgrades: Vec<String>,
}

/// Whether a service can have this name: one path segment that every client spells alike.
pub fn is_service_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !matches!(name, "" | "." | "..") && name.bytes().all(allowed)
}

/// One listed upstream with its merged settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Where it is.
    pub url: UpstreamUrl,
    /// `circuit_breaker`.
    pub breaker: CircuitBreaker,
    /// `timeouts`, without `total`.
    pub timeouts: Timeouts,
    /// `pool`.
    pub pool: Pool,
    /// `headers.host`.
    pub host: HostHeader,
    /// `max_requests`: concurrent requests of the process; `None` is off.
    pub max_requests: Option<u32>,
}

/// A parsed upstream URL: scheme `http`, no user-info, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// As written in the file: the label in log, status and metrics.
    pub text: String,
    /// Host in lower case, without the brackets of an IPv6 literal.
    pub host: String,
    /// Port; 80 when the URL names none.
    pub port: u16,
    /// Value of the `Host` field: host (IPv6 in brackets), and the port when it is not 80.
    pub authority: String,
    /// Path as written, `/` when the URL has none: the target of `/v1/proxy/{service}`.
    pub path: String,
}

impl UpstreamUrl {
    /// The path without its trailing `/`: what `/{rest}` is appended to.
    pub fn base_path(&self) -> &str {
        self.path.strip_suffix('/').unwrap_or(&self.path)
    }

    /// The spelling that equal upstreams share; with the service name, the key of the breaker.
    pub fn normalised(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("http://{host}:{}{}", self.port, self.base_path())
    }
}

/// `circuit_breaker` of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Failures in a row that open it, at least 1; exactly this one opens.
    pub failure_threshold: u32,
    /// How long it stays open, at least 1 ms.
    pub cooldown: Duration,
    /// What counts as a failure.
    pub failure_on: FailureOn,
}

impl Default for CircuitBreaker {
    fn default() -> CircuitBreaker {
        CircuitBreaker { failure_threshold: 5, cooldown: Duration::from_secs(60), failure_on: FailureOn::default() }
    }
}

/// `timeouts` of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one address of the upstream, until it is connected.
    pub connect: Duration,
    /// From the last request byte written to the end of the response head.
    pub response: Duration,
    /// Between bytes, both ways.
    pub idle: Duration,
    /// Instead of `idle` for tunnels and `text/event-stream` responses.
    pub stream: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            stream: Duration::from_secs(3600),
        }
    }
}

/// `pool` of idle connections to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// How long an idle connection is kept; zero keeps none.
    pub idle: Duration,
    /// How many are kept per upstream and shard; zero keeps none.
    pub max_idle: usize,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool { idle: Duration::from_secs(4), max_idle: 1024 }
    }
}

/// `headers.host`: the `Host` field that an upstream sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The authority of the upstream's URL.
    #[default]
    Upstream,
    /// What the client sent.
    Client,
    /// This text.
    Literal(String),
}

/// `gateway`: settings of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Addresses to listen on, at least one.
    pub listen: Vec<SocketAddr>,
    /// Number of shards; `None` is `auto`: one per core.
    pub workers: Option<NonZeroUsize>,
    /// `client`.
    pub client: Client,
    /// `limits`.
    pub limits: Limits,
    /// `drain.timeout`.
    pub drain_timeout: Duration,
    /// `log.level`.
    pub log_level: log::LevelFilter,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8000))],
            workers: None,
            client: Client::default(),
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            log_level: log::LevelFilter::Info,
        }
    }
}

/// `gateway.client`: how long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// For a whole request head, from its first byte.
    pub header_timeout: Duration,
    /// Between bytes of a request body, or of a response that the client is slow to take.
    pub body_idle: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// A FIN after a complete request is no hang-up.
    pub half_close: bool,
    /// Bytes per second that a client must send of a body, or take of a response, while it is waited for and
    /// after a grace of five seconds; 0 is off.
    pub min_rate: u64,
}

impl Default for Client {
    fn default() -> Client {
        Client {
            header_timeout: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            half_close: false,
            min_rate: 0,
        }
    }
}

/// `gateway.limits`: every bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of the process; `None` is `auto`: three quarters of the descriptor limit.
    pub connections: Option<NonZeroUsize>,
    /// Bytes of the field section of a head, at least 1 KiB.
    pub header_bytes: usize,
    /// Fields of a head, 1 to 256.
    pub headers: usize,
    /// Bytes of the request line, at least 64.
    pub request_line: usize,
    /// Bytes held per direction of an exchange; at least `header_bytes` + `request_line`.
    pub buffer: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: None, header_bytes: 32 << 10, headers: 100, request_line: 8 << 10, buffer: 64 << 10 }
    }
}

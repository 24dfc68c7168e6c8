//! The configuration after validation: plain values, all defaults filled in, all settings merged
//! (built-in < `gateway.defaults` < service < upstream). Whoever holds a [`Config`] need not check
//! anything again.
//!
//! Must not know: YAML, positions, sockets.

use crate::config::token::Token;
use crate::policy::balance;
use crate::policy::breaker::Mode;
use crate::policy::class::Causes;
use crate::policy::retry;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
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
    /// `load_balancing`.
    pub balancing: Balancing,
    /// `retries`.
    pub retries: retry::Policy,
    /// `circuit_breaker.when_all_open`.
    pub when_all_open: WhenAllOpen,
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
    /// `weight`: its share of the turns, 0 to 1000; 0 gives it none.
    pub weight: u32,
    /// `backup`: it serves when no other can.
    pub backup: bool,
    /// `health_check`; `None` is off.
    pub health: Option<HealthCheck>,
    /// `dns`.
    pub dns: Dns,
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

/// `load_balancing` of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    /// `policy`.
    pub policy: balance::Policy,
    /// `hash_on`: set when the policy is `hash`.
    pub hash_on: Option<HashOn>,
    /// How long an upstream that is new or well again is spared; zero is off.
    pub slow_start: Duration,
}

/// What the policy `hash` makes its key of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The address of the peer.
    ClientIp,
    /// The value of a field, its name in lower case.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
    /// The path below the service, without the query.
    Path,
}

/// What happens to a request when every upstream is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenAllOpen {
    /// 503 with `Retry-After`.
    #[default]
    Reject,
    /// It becomes an early probe, one at a time for each upstream.
    Probe,
    /// It is sent as if no breaker were there.
    Ignore,
}

/// `circuit_breaker` of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// `enabled` and `mode`.
    pub mode: Mode,
    /// Failures in a row that open it, at least 1; exactly this one opens.
    pub failure_threshold: u32,
    /// How long it stays open, at least 1 ms.
    pub cooldown: Duration,
    /// Hundredths by which each re-opening in a row multiplies the cooldown; 100 keeps it.
    pub backoff: u32,
    /// What the cooldown grows to at most; `None` is the cooldown itself.
    pub max_cooldown: Option<Duration>,
    /// Share of the cooldown that chance may add, in hundredths of a percent.
    pub jitter: u32,
    /// Probes at once, at least 1.
    pub half_open_probes: u32,
    /// Successes that close it, at least 1.
    pub success_threshold: u32,
    /// How long a probe may take before another is sent; `None` is what `timeouts` allow for an answer.
    pub probe_timeout: Option<Duration>,
    /// What counts as a failure.
    pub failure_on: Causes,
    /// What counts as nothing.
    pub neutral_on: Causes,
    /// Share of failures in the window that opens, in hundredths of a percent; 0 is off.
    pub failure_rate: u32,
    /// Of both rates, at least 100 ms.
    pub window: Duration,
    /// Outcomes in the window below which no rate is judged, at least 1.
    pub min_requests: u32,
    /// From where on an answer is slow; `None` is off.
    pub slow_after: Option<Duration>,
    /// Share of slow answers in the window that opens, in hundredths of a percent; 0 makes each slow answer a
    /// failure.
    pub slow_rate: u32,
    /// When no upstream of the service is left.
    pub when_all_open: WhenAllOpen,
}

impl Default for CircuitBreaker {
    fn default() -> CircuitBreaker {
        CircuitBreaker {
            mode: Mode::Enforce,
            failure_threshold: 5,
            cooldown: Duration::from_secs(60),
            backoff: 100,
            max_cooldown: None,
            jitter: 0,
            half_open_probes: 1,
            success_threshold: 1,
            probe_timeout: None,
            failure_on: Causes::default(),
            neutral_on: Causes::none(),
            failure_rate: 0,
            window: Duration::from_secs(10),
            min_requests: 20,
            slow_after: None,
            slow_rate: 0,
            when_all_open: WhenAllOpen::Reject,
        }
    }
}

/// `health_check` of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path and query that are asked for, below the upstream's base path.
    pub path: String,
    /// `GET` or `HEAD`, or another method.
    pub method: String,
    /// Between two checks.
    pub interval: Duration,
    /// For a whole check.
    pub timeout: Duration,
    /// Failed checks in a row that open the breaker, at least 1.
    pub unhealthy: u32,
    /// Good ones in a row that close it, at least 1.
    pub healthy: u32,
    /// Statuses that are good.
    pub expect: Causes,
    /// Only upstreams whose breaker is open are checked.
    pub only_open: bool,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        let mut expect = Causes::none();
        (200..400).for_each(|status| expect.add_status(status));
        HealthCheck {
            path: String::new(),
            method: "GET".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            unhealthy: 3,
            healthy: 2,
            expect,
            only_open: false,
        }
    }
}

/// `dns` of an upstream whose host is a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns {
    /// How often the name is asked for again; zero only at start and reload.
    pub refresh: Duration,
    /// How long its last addresses are used while it does not resolve; zero is for ever.
    pub stale: Duration,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns { refresh: Duration::from_secs(30), stale: Duration::from_secs(600) }
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
    /// `affinity`: on which processors shards run.
    pub affinity: Affinity,
    /// `busy_poll`: how long a shard goes on polling after its last event before it sleeps; zero is off.
    pub busy_poll: Duration,
    /// `prefix`: of the paths that are proxied; without a `/` at its end.
    pub prefix: String,
    /// `admin`.
    pub admin: Admin,
    /// `reload_endpoint`.
    pub reload_endpoint: ReloadEndpoint,
    /// `gateway.request_id`.
    pub request_ids: RequestIds,
    /// `client`.
    pub client: Client,
    /// `limits`.
    pub limits: Limits,
    /// `drain.timeout`.
    pub drain_timeout: Duration,
    /// `log.level`.
    pub log_level: log::LevelFilter,
    /// `log.access`.
    pub access: Access,
    /// `metrics.path`.
    pub metrics_path: String,
    /// `metrics.buckets`: bounds of histograms, rising, at least one.
    pub buckets: Vec<Duration>,
    /// `log.format`.
    pub log_format: LogFormat,
    /// `reload`.
    pub reload: Reload,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8000))],
            workers: None,
            affinity: Affinity::default(),
            busy_poll: Duration::ZERO,
            prefix: "/v1/proxy".to_owned(),
            admin: Admin::default(),
            reload_endpoint: ReloadEndpoint::default(),
            request_ids: RequestIds::default(),
            client: Client::default(),
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            log_level: log::LevelFilter::Info,
            access: Access::default(),
            metrics_path: "/metrics".to_owned(),
            // Those that OpenTelemetry advises for durations of requests.
            buckets: [5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000]
                .map(Duration::from_millis)
                .to_vec(),
            log_format: LogFormat::default(),
            reload: Reload::default(),
        }
    }
}

/// `gateway.affinity`: on which processors shards run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Where the system puts them.
    #[default]
    Off,
    /// Each on one of those that the process may use, in order.
    Auto,
    /// Each on the one at its place, by the numbers of the system; at least as many as `workers`, if that is a number.
    Processors(Vec<usize>),
}

/// `gateway.log.access`: a line for every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// How a line looks.
    pub format: AccessFormat,
    /// Where it goes.
    pub to: AccessTo,
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessFormat {
    /// There is none.
    #[default]
    Off,
    /// The Common Log Format.
    Common,
    /// The same with `Referer` and `User-Agent`.
    Combined,
    /// A JSON object.
    Json,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessTo {
    /// To the standard output.
    #[default]
    Stdout,
    /// To where the log goes.
    Stderr,
    /// To the end of a file, which is opened again at SIGUSR1.
    File(String),
}

/// `gateway.admin`: where and to whom administration answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// A listener that serves nothing else; `None` when the data port serves administration too.
    pub listen: Option<AdminAddress>,
    /// Where the token is, as the file says it.
    pub token_file: Option<String>,
    /// What was read there. Without one, administration is for this machine alone.
    pub token: Option<Token>,
    /// Names of the gateway besides `localhost` and its addresses, in lower case, without a port.
    pub hosts: Vec<String>,
}

/// `gateway.admin.listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// Address and port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// Whether only programs on this machine reach it.
    pub fn is_local(&self) -> bool {
        match self {
            AdminAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            AdminAddress::Unix(_) => true,
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(address) => write!(f, "{address}"),
            AdminAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `gateway.log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: a JSON document on each line.
    Json,
}

/// `gateway.request_id`: the field that carries the id of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestIds {
    /// Where ids come from.
    pub mode: RequestIdMode,
    /// The name of the field; `None` is `X-Request-Id`.
    pub header: Option<String>,
}

/// Where the ids of requests come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestIdMode {
    /// A valid one of the client is kept, else one is made.
    #[default]
    Generate,
    /// One is made, whatever the client says.
    Replace,
    /// The field is one like any other; none is added.
    Off,
}

/// `gateway.reload_endpoint`: who may ask for a reload on the data port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReloadEndpoint {
    /// Those who may administer.
    #[default]
    Loopback,
    /// Everybody but the pages of other sites.
    Any,
    /// Nobody: there is no such resource.
    Off,
}

/// `gateway.reload`: whether the file is reloaded by itself when its content changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// The system is asked to tell of changes.
    pub watch: bool,
    /// How long a content must stay the same before it is taken over, at least 1 ms.
    pub debounce: Duration,
    /// How often the file is read to see whether it has changed; `None` is never.
    pub poll: Option<Duration>,
}

impl Default for Reload {
    fn default() -> Reload {
        Reload { watch: false, debounce: Duration::from_millis(200), poll: None }
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

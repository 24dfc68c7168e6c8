//! Every key that a configuration file may have: its place, its kind, its bounds, what it is. What a message lists
//! or proposes, the schema for editors and the printed configuration come from these tables too, so a key that is not
//! here does not exist.
//!
//! Must not know: how a tree is walked, in which order settings are laid over each other.

use super::diagnostics::{At, Fault, quote};
use super::model::{
    self, Access, AccessFormat, AccessTo, Admin, AdminAddress, Affinity, Balancing, CircuitBreaker, Client, Dns,
    Gateway, HashOn, HealthCheck, HostHeader, Limits, LogFormat, Pool, Reload, ReloadEndpoint, RequestIdMode,
    RequestIds, Timeouts, WhenAllOpen,
};
use super::reader::{Reader, keys};
use super::rules::{Apart, Field, Form, Lens, OneOf, Rule, Table, at, part};
use super::suggest::did_you_mean;
use super::token::{self, Token};
use super::tree::{Node, Value};
use super::{units, url};
use crate::http::fields;
use crate::http::target;
use crate::policy::balance;
use crate::policy::breaker::Mode;
use crate::policy::class::{Causes, Class};
use crate::policy::retry;
use log::LevelFilter;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Addresses to listen on: each is a socket in every shard.
const MOST_ADDRESSES: usize = 64;

const MOST_WORKERS: u64 = 512;
/// The last processor that `sched_setaffinity(2)` of the C library has a place for.
const LAST_PROCESSOR: u64 = 1023;

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

const fn field<T>(key: &'static str, doc: &'static str, rule: Rule<T>) -> Field<T> {
    Field { key, doc, rule }
}

const fn elsewhere<T>(key: &'static str, place: &'static str) -> Field<T> {
    Field { key, doc: "", rule: Rule::Elsewhere(place) }
}

/// A clock of microseconds has nothing shorter.
const TO_SECOND: RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_secs(1);
const TO_MINUTE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
const TO_DAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
const TO_MONTH: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(30 * 24 * 3600);
/// A tenth of it is the smallest step of the window.
const WINDOW: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);

/// A service as a mapping.
pub(super) const SERVICE: Table<Settings> = &[
    &[field("upstreams", "Replicas: URLs, or mappings with settings of their own.", Rule::Apart(Apart::Upstreams))],
    OF_SERVICES,
    OF_BOTH,
    &[
        elsewhere("url", "it belongs in an entry of upstreams"),
        elsewhere("max_requests", "it belongs in an entry of upstreams"),
        elsewhere("weight", "it belongs in an entry of upstreams"),
        elsewhere("backup", "it belongs in an entry of upstreams"),
    ],
];

/// `gateway.defaults`.
pub(super) const DEFAULTS: Table<Settings> =
    &[OF_SERVICES, OF_BOTH, &[elsewhere("upstreams", "only a service has upstreams")]];

/// An upstream as a mapping.
pub(super) const UPSTREAM: Table<Settings> = &[
    OF_UPSTREAMS,
    OF_BOTH,
    &[
        elsewhere("load_balancing", "it belongs to the service, beside upstreams"),
        elsewhere("retries", "it belongs to the service, beside upstreams"),
        elsewhere("body_limit", "it belongs to the service, beside upstreams"),
        elsewhere("upgrades", "it belongs to the service, beside upstreams"),
    ],
];

const OF_SERVICES: &[Field<Settings>] = &[
    field(
        "load_balancing",
        "How an upstream is chosen.",
        Rule::Mapping(&part!(Part, Settings.balancing, BALANCING, Some(check_balancing))),
    ),
    field(
        "circuit_breaker",
        "When an upstream is skipped, and when it is tried again.",
        Rule::Mapping(&part!(Part, Settings.breaker, &[BREAKER, BREAKER_OF_SERVICE], Some(check_breaker))),
    ),
    field(
        "retries",
        "Whether a failed try is followed by another.",
        Rule::Mapping(&part!(Part, Settings.retries, RETRIES, None)),
    ),
    field(
        "timeouts",
        "How long an upstream may take.",
        Rule::Mapping(&part!(Part, Settings, &[TIMEOUTS, TIMEOUTS_OF_SERVICE], None)),
    ),
    field("body_limit", "Bytes of a request body, else 413; 0 is off.", Rule::Size(0..=1 << 50, at!(body_limit))),
    field(
        "upgrades",
        "Protocols that a client may upgrade to.",
        Rule::List(PROTOCOL, |to, node, reader| upgrades(&mut to.upgrades, node, reader), |of| of.upgrades.clone()),
    ),
];

const OF_UPSTREAMS: &[Field<Settings>] = &[
    field("url", "http://host[:port][/path].", Rule::Apart(Apart::Url)),
    field("weight", "Its share of the turns; 0 gives it none.", Rule::Count(0..=1000, at!(weight))),
    field("backup", "It serves only when no other can.", Rule::Flag(at!(backup))),
    field(
        "circuit_breaker",
        "When this upstream is skipped, and when it is tried again.",
        Rule::Mapping(&part!(Part, Settings.breaker, &[BREAKER, BREAKER_OF_UPSTREAM], Some(check_breaker))),
    ),
    field(
        "timeouts",
        "How long this upstream may take.",
        Rule::Mapping(&part!(Part, Settings, &[TIMEOUTS, TIMEOUTS_OF_UPSTREAM], None)),
    ),
    field(
        "max_requests",
        "Concurrent requests of the process to it; 0 is off.",
        Rule::Count(0..=1_000_000, at!(max_requests)),
    ),
];

const OF_BOTH: &[Field<Settings>] = &[
    field("pool", "Idle connections that are kept.", Rule::Mapping(&part!(Part, Settings.pool, POOL, None))),
    field("headers", "What becomes of header fields.", Rule::Mapping(&part!(Part, Settings.host, HEADERS, None))),
    field(
        "health_check",
        "Requests of the gateway's own that find out whether an upstream is well; false is off.",
        Rule::Mapping(&part!(Optional, Settings.health, HEALTH_CHECK, Some(check_health))),
    ),
    field("dns", "Names of upstreams.", Rule::Mapping(&part!(Part, Settings.dns, DNS, None))),
];

/// Probes at once, and successes that close: each probe is a request that may fail.
const MOST_PROBES: u64 = 100;

const BREAKER: &[Field<CircuitBreaker>] = &[
    field(
        "enabled",
        "Whether there is one.",
        Rule::Flag(Lens {
            // `mode` may have been read before.
            set: |breaker, on| {
                breaker.mode = match (on, breaker.mode) {
                    (false, _) => Mode::Off,
                    (true, Mode::Off) => Mode::Enforce,
                    (true, mode) => mode,
                }
            },
            get: |breaker| Some(breaker.mode != Mode::Off),
        }),
    ),
    field(
        "mode",
        "Whether it skips its upstream, or only says that it would.",
        Rule::Word(&OneOf {
            words: &[("enforce", Mode::Enforce), ("observe", Mode::Observe)],
            set: |breaker: &mut CircuitBreaker, mode| {
                if breaker.mode != Mode::Off {
                    breaker.mode = mode;
                }
            },
            get: |breaker| if breaker.mode == Mode::Off { Mode::Enforce } else { breaker.mode },
        }),
    ),
    field(
        "failure_threshold",
        "Failures in a row; exactly this one opens.",
        Rule::Count(1..=1_000_000, at!(failure_threshold)),
    ),
    field("cooldown", "From the opening failure to the probe.", Rule::Duration(TO_MONTH, at!(cooldown))),
    field(
        "backoff",
        "Factor by which each re-opening in a row lengthens the cooldown.",
        Rule::Factor(100..=10_000, at!(backoff)),
    ),
    field(
        "max_cooldown",
        "What the cooldown grows to at most; without it, it does not grow.",
        Rule::Duration(TO_MONTH, at!(max_cooldown)),
    ),
    field("jitter", "Share of the cooldown that chance may add.", Rule::Percent(at!(jitter))),
    field("half_open_probes", "Probes at once.", Rule::Count(1..=MOST_PROBES, at!(half_open_probes))),
    field("success_threshold", "Good probes that close it.", Rule::Count(1..=MOST_PROBES, at!(success_threshold))),
    field(
        "probe_timeout",
        "How long a probe may take before another is sent; without it, what timeouts allow for an answer.",
        Rule::Duration(TO_DAY, at!(probe_timeout)),
    ),
    field(
        "failure_on",
        "What counts as a failure: classes, status codes, ranges of them. 5xx leaves out 501 and 505.",
        Rule::List(
            Form { words: || Class::ALL.map(Class::word).to_vec(), ..STATUS },
            |breaker, node, reader| causes(&mut breaker.failure_on, node, reader, &[]),
            |breaker| show_causes(&breaker.failure_on),
        ),
    ),
    field(
        "neutral_on",
        "What counts as nothing. That clients leave or are refused never counts, listed or not.",
        Rule::List(
            Form { words: || [ALWAYS_NEUTRAL, &Class::ALL.map(Class::word)].concat(), ..STATUS },
            |breaker, node, reader| causes(&mut breaker.neutral_on, node, reader, ALWAYS_NEUTRAL),
            |breaker| {
                let always = ALWAYS_NEUTRAL.iter().map(|word| (*word).to_owned());
                always.chain(show_causes(&breaker.neutral_on)).collect()
            },
        ),
    ),
    field("failure_rate", "Share of failures in the window that opens; 0% is off.", Rule::Percent(at!(failure_rate))),
    field("window", "What both rates look at.", Rule::Duration(WINDOW, at!(window))),
    field(
        "min_requests",
        "Outcomes in the window below which no rate is judged.",
        Rule::Count(1..=30_000, at!(min_requests)),
    ),
    field("slow_after", "From where on an answer is slow; 0 is off.", Rule::DurationOrZero(TO_DAY, at!(slow_after))),
    field(
        "slow_rate",
        "Share of slow answers in the window that opens; 0% makes each of them a failure.",
        Rule::Percent(at!(slow_rate)),
    ),
];

const BREAKER_OF_SERVICE: &[Field<CircuitBreaker>] = &[field(
    "when_all_open",
    "What becomes of a request then: 503, an early probe, or sent as if no breaker were there.",
    Rule::Word(&OneOf {
        words: &[("reject", WhenAllOpen::Reject), ("probe", WhenAllOpen::Probe), ("ignore", WhenAllOpen::Ignore)],
        set: |breaker: &mut CircuitBreaker, what| breaker.when_all_open = what,
        get: |breaker| breaker.when_all_open,
    }),
)];

const BREAKER_OF_UPSTREAM: &[Field<CircuitBreaker>] =
    &[elsewhere("when_all_open", "it is about all upstreams of a service: it belongs beside upstreams")];

/// Words that `neutral_on` may have because they are neutral anyway.
const ALWAYS_NEUTRAL: &[&str] = &["client_abort", "rejected"];

fn check_breaker(breaker: &CircuitBreaker, node: &Node, fine: bool, reader: &mut Reader<'_>) {
    if !fine {
        return;
    }
    if breaker.max_cooldown.is_some_and(|most| most < breaker.cooldown) {
        let fault = Fault::new("max_cooldown is shorter than cooldown");
        reader.findings.error(place(node, &["max_cooldown", "cooldown"]), fault);
    }
    if breaker.slow_rate > 0 && breaker.slow_after.is_none() {
        let fault = Fault::new("slow_rate has no effect without slow_after");
        reader.findings.error(place(node, &["slow_rate", "slow_after"]), fault);
    }
    if let Some(code) = breaker.failure_on.shared_status(&breaker.neutral_on) {
        let fault = Fault::new(format!("status {code} is both in failure_on and in neutral_on"));
        reader.findings.error(place(node, &["neutral_on", "failure_on"]), fault);
    }
}

/// Where the value of the first of these keys stands that a mapping has, or the mapping.
fn place(node: &Node, keys: &[&str]) -> At {
    keys.iter().find_map(|key| node.find(key)).unwrap_or(node).at
}

const BALANCING: Table<Balancing> = &[&[
    field(
        "policy",
        "In turns; by fewest requests under way; the better of two that chance names; by chance; by a key.",
        Rule::Word(&OneOf {
            words: &POLICIES,
            set: |balancing: &mut Balancing, policy| balancing.policy = policy,
            get: |balancing| balancing.policy,
        }),
    ),
    field(
        "hash_on",
        "What the policy hash makes its key of.",
        Rule::Text(
            Form {
                words: || vec!["client_ip", "path"],
                ..Form::pattern("^(header|cookie):[!#-'*+.0-9A-Z^-z|~-]{1,256}$")
            },
            hash_on,
            |balancing| balancing.hash_on.as_ref().map(show_hash_on),
        ),
    ),
    field(
        "slow_start",
        "How long an upstream that is new or well again is spared; 0 is off.",
        Rule::DurationOrZero(TO_DAY, at!(slow_start)),
    ),
]];

const POLICIES: [(&str, balance::Policy); balance::Policy::ALL.len()] = {
    let mut words = [("", balance::Policy::RoundRobin); balance::Policy::ALL.len()];
    let mut at = 0;
    while at < words.len() {
        words[at] = (balance::Policy::ALL[at].word(), balance::Policy::ALL[at]);
        at += 1;
    }
    words
};

fn check_balancing(balancing: &Balancing, node: &Node, fine: bool, reader: &mut Reader<'_>) {
    let hashes = balancing.policy == balance::Policy::Hash;
    if !fine {
        return;
    }
    if hashes && balancing.hash_on.is_none() {
        let fault = Fault::new("policy hash needs hash_on");
        reader.findings.error(place(node, &["policy"]), fault.help(HASH_WORDS));
    } else if !hashes && let Some(at) = node.find("hash_on") {
        reader.findings.error(at.at, Fault::new("hash_on has no effect without policy: hash"));
    }
}

const HASH_WORDS: &str = "hash_on is client_ip, path, header:NAME or cookie:NAME";

fn hash_on(balancing: &mut Balancing, text: &str) -> Result<(), Fault> {
    let is_token = |name: &str| name.len() <= 256 && fields::is_token(name.as_bytes());
    balancing.hash_on = Some(match text.split_once(':') {
        None if text == "client_ip" => HashOn::ClientIp,
        None if text == "path" => HashOn::Path,
        Some(("header", name)) if is_token(name) => HashOn::Header(name.to_ascii_lowercase()),
        Some(("cookie", name)) if is_token(name) => HashOn::Cookie(name.to_owned()),
        _ => return Err(Fault::new(format!("hash_on has an unknown key {}", quote(text))).help(HASH_WORDS)),
    });
    Ok(())
}

fn show_hash_on(hash_on: &HashOn) -> String {
    match hash_on {
        HashOn::ClientIp => "client_ip".to_owned(),
        HashOn::Path => "path".to_owned(),
        HashOn::Header(name) => format!("header:{name}"),
        HashOn::Cookie(name) => format!("cookie:{name}"),
    }
}

const RETRIES: Table<retry::Policy> = &[&[
    field("attempts", "Extra tries; 0 is off.", Rule::Count(0..=15, at!(attempts))),
    field(
        "on",
        "What may be followed by another try: classes but cut, status codes, ranges of them.",
        Rule::List(
            Form { words: || Class::ALL.into_iter().filter(|c| *c != Class::Cut).map(Class::word).collect(), ..STATUS },
            retry_on,
            |retries| show_causes(&retries.on),
        ),
    ),
    field(
        "methods",
        "Methods that may be repeated although the upstream may have got the request.",
        Rule::List(
            METHOD,
            |retries, node, reader| methods(&mut retries.methods, node, reader),
            |retries| retries.methods.clone(),
        ),
    ),
    field("budget", "Share of a retry that each request saves up.", Rule::Percent(at!(budget))),
    field(
        "budget_min",
        "Retries per second that are always allowed, on each core.",
        Rule::Count(0..=1_000_000, at!(budget_min)),
    ),
    field("body_limit", "A request with a larger body is not sent again.", Rule::Size(0..=16 << 20, at!(body_limit))),
    field(
        "per_try_timeout",
        "How long one try may take to its response head; 0 leaves it to timeouts.",
        Rule::DurationOrZero(TO_DAY, at!(per_try_timeout)),
    ),
    field(
        "backoff",
        "The wait before the first retry, which doubles with each; 0 is none.",
        Rule::DurationOrZero(TO_DAY, at!(backoff)),
    ),
]];

fn retry_on(retries: &mut retry::Policy, node: &Node, reader: &mut Reader<'_>) {
    causes(&mut retries.on, node, reader, &[]);
    if retries.on.counts_class(Class::Cut) {
        let fault = Fault::new("on must not have cut: a response that has begun cannot be taken back");
        reader.error(node, fault);
    }
}

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
const METHOD: Form = Form { words: || METHODS.to_vec(), ..Form::pattern("^[!#-'*+.0-9A-Z^-z|~-]{1,32}$") };

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
    if text.len() > 32 || !fields::is_token(text.as_bytes()) {
        return Err(Fault::new(format!("{} is not a method", quote(text))));
    }
    match METHODS.into_iter().find(|known| *known != text && known.eq_ignore_ascii_case(text)) {
        Some(meant) => Err(Fault::new(format!("{} is misspelt", quote(text))).help(format!("write {meant}"))),
        None => Ok(()),
    }
}

const HEALTH_CHECK: Table<HealthCheck> = &[&[
    field(
        "path",
        "Path and query that are asked for, below the upstream's own path. It has no default.",
        Rule::Text(Form::pattern("^/[!\"$-~]*$"), check_path, |check| {
            (!check.path.is_empty()).then(|| check.path.clone())
        }),
    ),
    field("method", "Its method.", Rule::Text(METHOD, check_with, |check| Some(check.method.clone()))),
    field("interval", "Between two checks.", Rule::Duration(TO_DAY, at!(interval))),
    field("timeout", "For a whole check.", Rule::Duration(TO_DAY, at!(timeout))),
    field("unhealthy", "Failed checks in a row that open the breaker.", Rule::Count(1..=1000, at!(unhealthy))),
    field("healthy", "Good ones in a row that close it.", Rule::Count(1..=1000, at!(healthy))),
    field(
        "expect",
        "Status codes, and ranges of them, that are good.",
        Rule::OneOrMore(
            STATUS,
            |check, node, reader| statuses(&mut check.expect, node, reader),
            |check| show_causes(&check.expect),
        ),
    ),
    field(
        "when",
        "Whether only upstreams whose breaker is open are checked.",
        Rule::Word(&OneOf {
            words: &[("always", false), ("open", true)],
            set: |check: &mut HealthCheck, only| check.only_open = only,
            get: |check| check.only_open,
        }),
    ),
]];

fn check_health(check: &HealthCheck, node: &Node, _: bool, reader: &mut Reader<'_>) {
    if check.path.is_empty() && node.find("path").is_none() {
        reader.error(node, Fault::new("a health_check needs a path").help("such as {path: /healthz}"));
    }
}

fn check_path(check: &mut HealthCheck, text: &str) -> Result<(), Fault> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !text.starts_with('/') || !printable || text.len() > 4096 {
        let fault = Fault::new(format!("path {} is not a path", quote(text)));
        return Err(fault.help("it begins with a slash and has neither spaces nor a fragment"));
    }
    text.clone_into(&mut check.path);
    Ok(())
}

fn check_with(check: &mut HealthCheck, text: &str) -> Result<(), Fault> {
    check_method(text)?;
    text.clone_into(&mut check.method);
    Ok(())
}

const DNS: Table<Dns> = &[&[
    field(
        "refresh",
        "How often a name is asked for again; 0 only at start and reload.",
        Rule::DurationOrZero(TO_DAY, at!(refresh)),
    ),
    field(
        "stale",
        "How long its last addresses are used while it does not resolve; 0 is for ever.",
        Rule::DurationOrZero(TO_MONTH, at!(stale)),
    ),
]];

const TIMEOUTS: &[Field<Settings>] = &[
    field("connect", "For each address, until it is connected.", Rule::Duration(TO_DAY, at!(timeouts.connect))),
    field(
        "response",
        "From the last request byte to the end of the response head.",
        Rule::Duration(TO_DAY, at!(timeouts.response)),
    ),
    field("idle", "Between bytes, both ways.", Rule::Duration(TO_DAY, at!(timeouts.idle))),
    field(
        "stream",
        "Instead of idle for tunnels and text/event-stream.",
        Rule::Duration(TO_MONTH, at!(timeouts.stream)),
    ),
];

const TIMEOUTS_OF_SERVICE: &[Field<Settings>] =
    &[field("total", "A whole exchange; 0 is off.", Rule::DurationOrZero(TO_DAY, at!(total_timeout)))];

const TIMEOUTS_OF_UPSTREAM: &[Field<Settings>] =
    &[elsewhere("total", "it spans all attempts: it belongs in timeouts of the service")];

const POOL: Table<Pool> = &[&[
    field("idle", "How long an idle connection is kept; 0 keeps none.", Rule::DurationOrZero(TO_DAY, at!(idle))),
    field(
        "max_idle",
        "How many are kept per upstream and core; 0 keeps none.",
        Rule::Count(0..=1_000_000, at!(max_idle)),
    ),
]];

const HEADERS: Table<HostHeader> = &[&[field(
    "host",
    "The Host that an upstream sees: that of its URL, the client's, or this one.",
    Rule::Text(
        Form {
            words: || vec!["upstream", "client"],
            ..Form::pattern("^(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$")
        },
        host,
        |host| {
            Some(match host {
                HostHeader::Upstream => "upstream".to_owned(),
                HostHeader::Client => "client".to_owned(),
                HostHeader::Literal(text) => text.clone(),
            })
        },
    ),
)]];

/// `gateway`.
pub(super) const GATEWAY: Table<Process> = &[&[
    field(
        "listen",
        "Addresses to listen on: 127.0.0.1:8000, [::1]:8000, :8000 for every IPv4 address.",
        Rule::OneOrMore(
            Form::pattern("^(\\[[0-9A-Fa-f:.]+\\]|[0-9.]+|localhost)?:[0-9]{1,5}$"),
            |process, node, reader| listen(&mut process.gateway.listen, node, reader),
            |process| process.gateway.listen.iter().map(ToString::to_string).collect(),
        ),
    ),
    field("workers", "Event loops; auto is one per core.", Rule::CountOrAuto(1..=MOST_WORKERS, at!(gateway.workers))),
    field(
        "affinity",
        "On which processors event loops run: off, auto (each on one of those allowed), or their numbers.",
        Rule::OneOrMore(
            PROCESSOR,
            |process, node, reader| affinity(&mut process.gateway.affinity, node, reader),
            |process| match &process.gateway.affinity {
                Affinity::Off => vec!["off".to_owned()],
                Affinity::Auto => vec!["auto".to_owned()],
                Affinity::Processors(numbers) => numbers.iter().map(ToString::to_string).collect(),
            },
        ),
    ),
    field(
        "busy_poll",
        "How long an event loop goes on polling after the last event before it sleeps; 0 is off.",
        Rule::DurationOrZero(TO_SECOND, at!(gateway.busy_poll)),
    ),
    field(
        "prefix",
        "Of the paths that are proxied: /v1/proxy is followed by a service and the rest.",
        Rule::Text(
            PREFIX,
            |process, text| prefix(&mut process.gateway.prefix, text),
            |process| Some(process.gateway.prefix.clone()),
        ),
    ),
    field(
        "admin",
        "Where and to whom administration answers.",
        Rule::Mapping(&part!(Part, Process.gateway.admin, ADMIN, Some(check_admin))),
    ),
    field(
        "reload_endpoint",
        "Who may POST to /v1/reload-config on the data port: as administration, everybody, nobody.",
        Rule::Word(&OneOf {
            words: &[
                ("loopback", ReloadEndpoint::Loopback),
                ("any", ReloadEndpoint::Any),
                ("off", ReloadEndpoint::Off),
            ],
            set: |process: &mut Process, who| process.gateway.reload_endpoint = who,
            get: |process| process.gateway.reload_endpoint,
        }),
    ),
    field("client", "How long a client may take.", Rule::Mapping(&part!(Part, Process.gateway.client, CLIENT, None))),
    field(
        "request_id",
        "The field that carries the id of a request: where ids come from, or a mapping that also names the field.",
        Rule::Mapping(&part!(Short, Process.gateway.request_ids, REQUEST_ID, None)),
    ),
    field("limits", "Bounds.", Rule::Mapping(&part!(Part, Process.gateway.limits, LIMITS, Some(check_limits)))),
    field("drain", "How the gateway ends.", Rule::Mapping(&part!(Part, Process.gateway, DRAIN, None))),
    field("log", "What is logged.", Rule::Mapping(&part!(Part, Process.gateway, LOG, None))),
    field("metrics", "What is counted, for Prometheus.", Rule::Mapping(&part!(Part, Process.gateway, METRICS, None))),
    field(
        "reload",
        "Whether the file is reloaded by itself when its content changes.",
        Rule::Mapping(&part!(Part, Process.gateway.reload, RELOAD, None)),
    ),
    field(
        "defaults",
        "Settings that every service begins with.",
        Rule::Mapping(&part!(Part, Process.defaults, DEFAULTS, None)),
    ),
    elsewhere("upstreams", "a service of the name gateway is written as a list of URLs"),
]];

const PROCESSOR: Form = Form {
    words: || vec!["off", "auto"],
    numbers: Some((0, LAST_PROCESSOR)),
    ..Form::pattern("^(0|[1-9][0-9]{0,2}|10[01][0-9]|102[0-3])$")
};

const ADMIN: Table<Admin> = &[&[
    field(
        "listen",
        "A listener for administration alone, of one address or a unix socket: 127.0.0.1:9901, unix:/run/fusegate.sock.",
        Rule::Text(
            ADMIN_ADDRESS,
            |admin, text| admin_address(&mut admin.listen, text),
            |admin| admin.listen.as_ref().map(ToString::to_string),
        ),
    ),
    field(
        "token_file",
        "A file with a token that every request of administration must carry; relative to this one.",
        Rule::Text(PATH, |admin, text| token_file(&mut admin.token_file, text), |admin| admin.token_file.clone()),
    ),
    field(
        "hosts",
        "Further names of the gateway, without a port.",
        Rule::List(
            HOST_NAME,
            |admin, node, reader| host_names(&mut admin.hosts, node, reader),
            |admin| admin.hosts.clone(),
        ),
    ),
]];

/// Segments of what needs no escape, none of them `.` or `..`.
const PREFIX: Form = Form::pattern("^(/(?!\\.{1,2}(/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+$");
/// A path of a file, which does not begin or end with a space.
pub(super) const PATH: Form = Form::pattern("^[^\\s]([^\\u0000]*[^\\s])?$");
const HOST_NAME: Form = Form::pattern("^[A-Za-z0-9._-]{1,253}$");
const ADMIN_ADDRESS: Form = Form::pattern("^(unix:/.*[^/\\s]|(\\[[0-9A-Fa-f:.]+\\]|[0-9.]+|localhost)?:[0-9]{1,5})$");
/// Bytes of the path of a unix socket (unix(7)), without the one that ends it.
const SOCKET_PATH: usize = 107;

const CLIENT: Table<Client> = &[&[
    field("header_timeout", "For a whole head, from its first byte.", Rule::Duration(TO_DAY, at!(header_timeout))),
    field("body_idle", "Between bytes of a body, both ways.", Rule::Duration(TO_DAY, at!(body_idle))),
    field("keep_alive", "Between requests.", Rule::Duration(TO_DAY, at!(keep_alive))),
    field(
        "min_rate",
        "Bytes per second that a client must send or take while it is waited for, after 5 s; 0 is off.",
        Rule::Size(0..=1 << 30, at!(min_rate)),
    ),
    field("half_close", "A FIN after a complete request is no hang-up.", Rule::Flag(at!(half_close))),
]];

const LIMITS: Table<Limits> = &[&[
    field(
        "connections",
        "Client connections; auto is three quarters of the descriptor limit.",
        Rule::CountOrAuto(1..=10_000_000, at!(connections)),
    ),
    field("header_bytes", "Bytes of all fields of a head, else 431.", Rule::Size(1 << 10..=1 << 20, at!(header_bytes))),
    field("headers", "Fields of a head, else 431.", Rule::Count(1..=256, at!(headers))),
    field("request_line", "Bytes of the request line, else 414.", Rule::Size(64..=256 << 10, at!(request_line))),
    field("buffer", "Bytes of a body held per direction.", Rule::Size(16 << 10..=16 << 20, at!(buffer))),
]];

const DRAIN: Table<Gateway> = &[&[field(
    "timeout",
    "How long requests in flight may take to finish.",
    Rule::Duration(TO_DAY, at!(drain_timeout)),
)]];

const LOG: Table<Gateway> = &[&[
    field(
        "level",
        "How much.",
        Rule::Word(&OneOf {
            words: &[
                ("off", LevelFilter::Off),
                ("error", LevelFilter::Error),
                ("warn", LevelFilter::Warn),
                ("info", LevelFilter::Info),
                ("debug", LevelFilter::Debug),
                ("trace", LevelFilter::Trace),
            ],
            set: |gateway: &mut Gateway, level| gateway.log_level = level,
            get: |gateway| gateway.log_level,
        }),
    ),
    field(
        "format",
        "Lines for people, or a JSON document on each.",
        Rule::Word(&OneOf {
            words: &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            set: |gateway: &mut Gateway, format| gateway.log_format = format,
            get: |gateway| gateway.log_format,
        }),
    ),
    field(
        "access",
        "A line for every request: a format, or a mapping that also says where it goes.",
        Rule::Mapping(&part!(Short, Gateway.access, ACCESS, None)),
    ),
]];

const REQUEST_ID: Table<RequestIds> = &[&[
    field(
        "mode",
        "generate: one of the client is kept, or one is made; replace: one is always made; off: none is added.",
        Rule::Word(&OneOf {
            words: &[
                ("generate", RequestIdMode::Generate),
                ("replace", RequestIdMode::Replace),
                ("off", RequestIdMode::Off),
            ],
            set: |ids: &mut RequestIds, mode| ids.mode = mode,
            get: |ids| ids.mode,
        }),
    ),
    field(
        "header",
        "The name of the field.",
        Rule::Text(
            Form::pattern("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"),
            |ids, text| {
                ids.header = id_header(text)?;
                Ok(())
            },
            |ids| Some(ids.header.clone().unwrap_or_else(|| "X-Request-Id".to_owned())),
        ),
    ),
]];

/// A field that means nothing else to the gateway; `None` for the usual one.
fn id_header(text: &str) -> Result<Option<String>, Fault> {
    if text.len() > 64 || !fields::is_token(text.as_bytes()) {
        return Err(
            Fault::new(format!("header {} is not the name of a field", quote(text))).help("such as X-Request-Id")
        );
    }
    match fields::Field::of(text) {
        fields::Field::RequestId => Ok(None),
        fields::Field::Other => Ok(Some(text.to_owned())),
        _ => {
            let fault = Fault::new(format!("header {} has a meaning of its own", quote(text)));
            Err(fault.help("such as X-Request-Id or X-Correlation-Id"))
        }
    }
}

const ACCESS: Table<Access> = &[&[
    field(
        "format",
        "How a line looks.",
        Rule::Word(&OneOf {
            words: &[
                ("off", AccessFormat::Off),
                ("common", AccessFormat::Common),
                ("combined", AccessFormat::Combined),
                ("json", AccessFormat::Json),
            ],
            set: |access: &mut Access, format| access.format = format,
            get: |access| access.format,
        }),
    ),
    field(
        "to",
        "stdout, stderr, or a file, which is opened again at SIGUSR1.",
        Rule::Text(
            Form { words: || vec!["stdout", "stderr"], ..Form::pattern("^[^\\x00]*/[^\\x00]*$") },
            |access, text| {
                access.to = match text {
                    "stdout" => AccessTo::Stdout,
                    "stderr" => AccessTo::Stderr,
                    // Whoever misspells a stream shall not find a file of that name.
                    _ if !text.contains('/') || text.contains('\0') => {
                        let fault = Fault::new(format!("to {} is neither a stream nor a path", quote(text)));
                        return Err(fault.help("write stdout, stderr, or the path of a file with a /"));
                    }
                    path => AccessTo::File(path.to_owned()),
                };
                Ok(())
            },
            |access| {
                Some(match &access.to {
                    AccessTo::Stdout => "stdout".to_owned(),
                    AccessTo::Stderr => "stderr".to_owned(),
                    AccessTo::File(path) => path.clone(),
                })
            },
        ),
    ),
]];

const METRICS: Table<Gateway> = &[&[
    field(
        "path",
        "Where they are.",
        Rule::Text(
            Form::pattern("^/[!$&'()*+,./0-9:;=@A-Z_a-z~-]*$"),
            |gateway, text| {
                metrics_path(text)?;
                text.clone_into(&mut gateway.metrics_path);
                Ok(())
            },
            |gateway| Some(gateway.metrics_path.clone()),
        ),
    ),
    field(
        "buckets",
        "Bounds of histograms of durations, rising.",
        Rule::List(
            Form::pattern("^([0-9]{1,18}(\\.[0-9]+)?(h|m|s|ms))+$"),
            |gateway, node, reader| buckets(&mut gateway.buckets, node, reader),
            |gateway| gateway.buckets.iter().copied().map(units::show_duration).collect(),
        ),
    ),
]];

/// A path that is nobody else's.
fn metrics_path(text: &str) -> Result<(), Fault> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!$&'()*+,-./:;=@_~".contains(&byte);
    if !text.starts_with('/') || !text.bytes().all(is_plain) {
        return Err(Fault::new(format!("path {} is not the path of a resource", quote(text))).help("such as /metrics"));
    }
    if target::is_own(text) {
        return Err(Fault::new(format!("path {} is that of something else", quote(text))).help("such as /metrics"));
    }
    Ok(())
}

fn buckets(bounds: &mut Vec<Duration>, node: &Node, reader: &mut Reader<'_>) {
    let Value::List(items) = &node.value else {
        return reader.error(node, Fault::new("buckets must be a list").help("write it as [5ms, 50ms, 500ms, 5s]"));
    };
    if !(1..=MOST_BOUNDS).contains(&items.len()) {
        return reader.error(node, Fault::new(format!("buckets must have from 1 to {MOST_BOUNDS} bounds")));
    }
    let mut found: Vec<Duration> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        match units::duration("a bound of buckets", &text.value) {
            Err(fault) => reader.error(item, fault),
            Ok(bound) if !(Duration::from_micros(1)..=Duration::from_secs(24 * 3600)).contains(&bound) => {
                reader.error(item, Fault::new("a bound of buckets must be from 0.001ms to 24h").help("such as 5ms"));
            }
            Ok(bound) if found.last().is_some_and(|last| bound <= *last) => {
                reader.error(item, Fault::new("the bounds of buckets must rise"));
            }
            Ok(bound) => found.push(bound),
        }
    }
    if !found.is_empty() {
        *bounds = found;
    }
}

/// Bounds of a histogram: shards keep room for so many.
const MOST_BOUNDS: usize = 32;

const RELOAD: Table<Reload> = &[&[
    field("watch", "The system is asked to tell of changes.", Rule::Flag(at!(watch))),
    field(
        "debounce",
        "How long a changed content must stay the same before it is taken over.",
        Rule::Duration(TO_MINUTE, at!(debounce)),
    ),
    field(
        "poll",
        "How often the file is read for that, besides or without watch; 0 is never.",
        Rule::DurationOrZero(TO_DAY, at!(poll)),
    ),
]];

/// A literal that differs from a keyword in case only is a slip: hosts are not told apart by case.
fn host(host: &mut HostHeader, text: &str) -> Result<(), Fault> {
    *host = match text {
        "upstream" => HostHeader::Upstream,
        "client" => HostHeader::Client,
        _ => {
            let words = ["upstream", "client"];
            if let Some(word) = words.into_iter().find(|word| word.eq_ignore_ascii_case(text)) {
                return Err(Fault::new(format!("{} is misspelt", quote(text))).help(format!("write {word}")));
            }
            url::host_port(text).map_err(|fault| fault.help("host is upstream, client, or a host name"))?;
            HostHeader::Literal(text.to_owned())
        }
    };
    Ok(())
}

/// The prefix of what is proxied may hide none of the gateway's own resources.
fn prefix(prefix: &mut String, text: &str) -> Result<(), Fault> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~!$&'()*+,;=:@-".contains(&byte);
    let is_segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    if !text.strip_prefix('/').is_some_and(|parts| parts.split('/').all(is_segment)) {
        let fault = Fault::new(format!("prefix {} is not the beginning of paths", quote(text)));
        return Err(fault.help("write it as /v1/proxy: with a \"/\" in front and none at the end"));
    }
    if let Some(own) = target::hidden_by(text) {
        let fault = Fault::new(format!("prefix {} would hide the gateway's own {own}", quote(text)));
        return Err(fault.help("write another one, such as /v1/proxy or /api"));
    }
    text.clone_into(prefix);
    Ok(())
}

fn admin_address(address: &mut Option<AdminAddress>, text: &str) -> Result<(), Fault> {
    let Some(path) = text.strip_prefix("unix:") else {
        *address = Some(AdminAddress::Tcp(url::listen(text).map_err(|fault| {
            fault.help("write an IP address and a port, or unix: and a path: 127.0.0.1:9901, unix:/run/fusegate.sock")
        })?));
        return Ok(());
    };
    let is_whole = path.starts_with('/') && !path.ends_with(|end: char| end == '/' || end.is_whitespace());
    if !is_whole || path.contains(char::is_control) {
        let fault = Fault::new(format!("listen {} is not the path of a socket", quote(text)));
        return Err(fault.help("write it as unix:/run/fusegate.sock"));
    }
    if path.len() > SOCKET_PATH {
        return Err(Fault::new(format!("listen has a path of {} bytes, {SOCKET_PATH} are possible", path.len())));
    }
    *address = Some(AdminAddress::Unix(PathBuf::from(path)));
    Ok(())
}

fn token_file(file: &mut Option<String>, text: &str) -> Result<(), Fault> {
    let is_path = !text.is_empty() && text.trim() == text && !text.contains('\0');
    if !is_path {
        return Err(Fault::new(format!("token_file {} is not a path", quote(text))));
    }
    *file = Some(text.to_owned());
    Ok(())
}

fn host_names(names: &mut Vec<String>, node: &Node, reader: &mut Reader<'_>) {
    let Value::List(items) = &node.value else {
        let fault = Fault::new("hosts must be a list");
        return reader.error(node, fault.help("write it as [gateway.example]"));
    };
    names.clear();
    for item in items {
        let Some(text) = reader.text(item) else { continue };
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=253).contains(&text.value.len()) || !text.value.bytes().all(is_of_name) {
            let fault = Fault::new(format!("{} is not a host name", quote(&text.value)));
            reader.error(item, fault.help("write it without scheme and port"));
            continue;
        }
        let name = text.value.to_ascii_lowercase();
        if !names.contains(&name) {
            names.push(name);
        }
    }
}

/// Whoever reaches the address from elsewhere must prove something.
fn check_admin(admin: &Admin, node: &Node, fine: bool, reader: &mut Reader<'_>) {
    let Some(address) = admin.listen.as_ref().filter(|address| fine && !address.is_local()) else { return };
    if admin.token_file.is_none() {
        let fault = Fault::new(format!("listen {address} can be reached from elsewhere, and there is no token_file"));
        let help = "set token_file, or listen on 127.0.0.1 or a unix socket";
        reader.findings.error(place(node, &["listen"]), fault.help(help));
    }
}

/// What is under the prefix is proxied. `node` is that of `gateway`.
pub(super) fn check_metrics_path(gateway: &Gateway, node: &Node, reader: &mut Reader<'_>) {
    let behind = gateway.metrics_path.strip_prefix(&gateway.prefix);
    if behind.is_some_and(|behind| behind.starts_with('/')) {
        let at = node.find("metrics").map_or(node.at, |node| place(node, &["path"]));
        let path = quote(&gateway.metrics_path);
        let fault = Fault::new(format!("path {path} is below the prefix of what is proxied, {}", gateway.prefix));
        reader.findings.error(at, fault.help("such as /metrics"));
    }
}

/// Reads the token, below the node of `gateway`.
pub(super) fn read_token(admin: &mut Admin, node: &Node, reader: &mut Reader<'_>) {
    let (Some(directory), Some(file)) = (reader.directory, &admin.token_file) else { return };
    let at = node.find("admin").map_or(node.at, |node| place(node, &["token_file"]));
    let path = directory.join(file);
    let read =
        super::bytes(&path, token::LONGEST as u64 + 2).and_then(|bytes| Token::parse(&bytes).map_err(Fault::new));
    match read {
        Ok(token) => admin.token = Some(token),
        Err(mut fault) => {
            fault.message.insert_str(0, &format!("token_file {}: ", quote(file)));
            reader.findings.error(at, fault);
        }
    }
    if is_open(&path) {
        let fault = Fault::new(format!("token_file {} can be read by every user", quote(file)));
        reader.findings.warning(at, fault.help("chmod o-r"));
    }
}

fn is_open(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
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

fn affinity(affinity: &mut Affinity, node: &Node, reader: &mut Reader<'_>) {
    let listed: Vec<&Node> = match &node.value {
        Value::List(items) => items.iter().map(|item| &**item).collect(),
        _ => {
            let Some(text) = reader.text(node) else { return };
            match &*text.value {
                "off" => return *affinity = Affinity::Off,
                "auto" => return *affinity = Affinity::Auto,
                _ => vec![node],
            }
        }
    };
    if !(1..=MOST_WORKERS).contains(&(listed.len() as u64)) {
        return reader.error(node, Fault::new(format!("affinity must have from 1 to {MOST_WORKERS} processors")));
    }
    let mut found = Vec::with_capacity(listed.len());
    for node in listed {
        let Some(text) = reader.text(node) else { continue };
        match processor(&text.value) {
            Some(number) if found.contains(&number) => {
                reader.error(node, Fault::new(format!("affinity has processor {number} twice")));
            }
            Some(number) => found.push(number),
            None => {
                let fault = Fault::new(format!("affinity has {}, which is no processor", quote(&text.value)));
                reader
                    .error(node, fault.help(format!("write off, auto, or numbers from 0 to {LAST_PROCESSOR}: [0, 1]")));
            }
        }
    }
    *affinity = Affinity::Processors(found);
}

/// The number of a processor, as the system writes it.
fn processor(text: &str) -> Option<usize> {
    let number = text.parse::<u64>().ok().filter(|number| *number <= LAST_PROCESSOR && number.to_string() == text)?;
    usize::try_from(number).ok()
}

/// Two workers on one processor would wait for each other. `node` is that of `gateway`.
pub(super) fn check_affinity(gateway: &Gateway, node: &Node, reader: &mut Reader<'_>) {
    let (Affinity::Processors(numbers), Some(workers)) = (&gateway.affinity, gateway.workers) else { return };
    if numbers.len() < workers.get() {
        let fault = Fault::new(format!("affinity has fewer processors ({}) than workers ({workers})", numbers.len()));
        reader.findings.error(place(node, &["affinity"]), fault.help("list one for each worker"));
    }
}

/// A whole head must fit into one buffer, or it could never be parsed.
fn check_limits(limits: &Limits, node: &Node, fine: bool, reader: &mut Reader<'_>) {
    let head = limits.header_bytes + limits.request_line;
    if limits.buffer >= head || !fine {
        return;
    }
    let show = |bytes: usize| units::show_size(bytes as u64);
    let fault = Fault::new(format!(
        "buffer ({}) is smaller than header_bytes ({}) and request_line ({}) together",
        show(limits.buffer),
        show(limits.header_bytes),
        show(limits.request_line)
    ));
    let at = place(node, &["buffer", "header_bytes", "request_line"]);
    reader.findings.error(at, fault.help(format!("raise buffer to at least {}", show(head))));
}

const PROTOCOL: Form =
    Form { words: || vec!["websocket"], ..Form::pattern("^(?![hH]2[cC]?$)[!#-'*+.0-9A-Z^-z|~-]{1,64}$") };

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
        } else if protocol.len() > 64 || !fields::is_token(protocol.as_bytes()) {
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

/// A status, or a range of them.
const STATUS: Form = Form { numbers: Some((100, 599)), ..Form::pattern("^[1-5][0-9]{2}(-[1-5][0-9]{2})?$") };

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

/// The shortest list that is read as this set: classes, then codes and ranges.
fn show_causes(set: &Causes) -> Vec<String> {
    let classes = Class::ALL.into_iter().filter(|class| set.counts_class(*class));
    let mut shown: Vec<String> = classes.map(|class| class.word().to_owned()).collect();
    let mut first = None;
    for code in 100..=600 {
        match (first, set.lists_status(code)) {
            (None, true) => first = Some(code),
            (Some(begin), false) => {
                shown.push(if begin == code - 1 { begin.to_string() } else { format!("{begin}-{}", code - 1) });
                first = None;
            }
            _ => {}
        }
    }
    shown
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

fn knows<T>(table: Table<T>, key: &str) -> bool {
    keys(table).any(|known| known == key)
}

impl Settings {
    /// An upstream with these settings.
    pub(super) fn upstream(self, url: model::UpstreamUrl) -> model::Upstream {
        let Settings { breaker, timeouts, pool, host, max_requests, weight, backup, health, dns, .. } = self;
        model::Upstream { url, breaker, timeouts, pool, host, max_requests, weight, backup, health, dns }
    }
}

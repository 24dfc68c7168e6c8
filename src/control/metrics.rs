//! What the process has counted, as Prometheus reads it: the text format 0.0.4, or OpenMetrics 1.0 when the scraper
//! accepts that. Labels have values from the configuration and from fixed lists only.
//!
//! The two formats differ in a few marks, and no library writes both. Must not know: who asks, how a document is sent.

use crate::control::{Control, Courier};
use crate::http::request::Refusal;
use crate::policy::breaker::State;
use crate::shared::failure::Unavailable;
use crate::shared::metrics::{Counter, Ending, Latencies, Latency, RETRIED, ServiceCounters, ShardCounters};
use crate::shared::snapshot::{Service, Upstream};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Names, kinds and meanings, in the order in which they come. What counts up ends in `_total`.
pub const FAMILIES: [(&str, &str, &str); 33] = [
    ("fusegate_build_info", "gauge", "The version of the gateway; always 1."),
    (
        "fusegate_requests_total",
        "counter",
        "Responses to clients; code 499 is a client that left before there was one.",
    ),
    (
        "fusegate_request_duration_seconds",
        "histogram",
        "From the complete head of a request to the end of its response.",
    ),
    (
        "fusegate_upstream_requests_total",
        "counter",
        "Attempts that have ended, by how; those without a connection too.",
    ),
    (
        "fusegate_upstream_duration_seconds",
        "histogram",
        "From the beginning of an attempt to the final response head of the upstream.",
    ),
    ("fusegate_upstream_in_flight", "gauge", "Attempts under way."),
    ("fusegate_circuit_state", "gauge", "1 for the state that the breaker is in, else 0."),
    ("fusegate_circuit_transitions_total", "counter", "Changes of a breaker's state, by what it became and why."),
    ("fusegate_circuit_rejected_total", "counter", "Requests answered 503 because no breaker let them pass."),
    ("fusegate_unavailable_total", "counter", "Requests answered 503 because no upstream could be picked."),
    ("fusegate_retries_total", "counter", "Extra attempts that have ended, by how the one before ended and by result."),
    ("fusegate_stale_total", "counter", "Requests repeated after a stale pooled connection; no extra attempts."),
    ("fusegate_saturated_total", "counter", "Requests answered 503 because upstreams were at max_requests."),
    ("fusegate_refused_total", "counter", "Requests that were refused, by reason."),
    ("fusegate_client_aborts_total", "counter", "Clients that left while their request ran."),
    ("fusegate_pool_connections", "gauge", "Upstream connections."),
    ("fusegate_client_connections", "gauge", "Open client connections."),
    ("fusegate_connections_total", "counter", "Client connections accepted."),
    ("fusegate_connections_over_limit_total", "counter", "Connections answered 503 because of limits.connections."),
    ("fusegate_accept_pauses_total", "counter", "Times that accepting paused for want of descriptors."),
    ("fusegate_event_subscribers", "gauge", "Open subscriptions to /v1/events."),
    (
        "fusegate_event_subscribers_dropped_total",
        "counter",
        "Subscribers of /v1/events dropped because they did not read.",
    ),
    ("fusegate_config_reloads_total", "counter", "Reloads by result."),
    ("fusegate_config_last_reload_successful", "gauge", "Whether the last reload was taken over; 1 before the first."),
    ("fusegate_config_last_reload_success_timestamp_seconds", "gauge", "When a configuration was last taken over."),
    ("fusegate_config_generation", "gauge", "The generation of the configuration in force."),
    ("fusegate_access_log_dropped_total", "counter", "Lines of the access log that were dropped."),
    ("fusegate_log_dropped_total", "counter", "Lines of the log that were dropped."),
    ("process_cpu_seconds_total", "counter", "Processor time, user and system."),
    ("process_resident_memory_bytes", "gauge", "Resident memory."),
    ("process_open_fds", "gauge", "Open file descriptors."),
    ("process_max_fds", "gauge", "File descriptors that the process may have."),
    ("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970."),
];

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Kind {
    /// The one that an `Accept` field prefers; plain text when it says nothing (RFC 9110 section 12.5.1).
    pub fn accepted(accept: &[u8]) -> Kind {
        let (mut text, mut open) = (0.0f32, 0.0f32);
        for range in String::from_utf8_lossy(accept).split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut weight = 1.0;
            let mut is_known = true;
            for part in parts {
                match part.split_once('=').map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim())) {
                    Some((name, value)) if name == "q" => weight = value.parse().unwrap_or(0.0),
                    Some((name, value)) if name == "version" && media.ends_with("openmetrics-text") => {
                        is_known = value == "1.0.0";
                    }
                    _ => {}
                }
            }
            match media.as_str() {
                "application/openmetrics-text" if is_known => open = open.max(weight),
                "text/plain" | "text/*" | "*/*" => text = text.max(weight),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Kind::OpenMetrics } else { Kind::Text }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Kind::Text => "text/plain; version=0.0.4; charset=utf-8",
            Kind::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What is counted of reloads.
#[derive(Debug)]
pub struct Reloads {
    counts: BTreeMap<&'static str, u64>,
    last_successful: bool,
    last_success: SystemTime,
}

impl Reloads {
    /// None so far; the first configuration was taken over at `started`.
    pub fn new(started: SystemTime) -> Reloads {
        let counts = ["reloaded", "unchanged", "failed"].map(|result| (result, 0)).into();
        Reloads { counts, last_successful: true, last_success: started }
    }

    /// One has ended.
    pub fn count(&mut self, result: &'static str, time: SystemTime) {
        *self.counts.entry(result).or_default() += 1;
        self.last_successful = result != "failed";
        if self.last_successful {
            self.last_success = time;
        }
    }
}

/// A document that grows family by family.
struct Page {
    kind: Kind,
    text: String,
    next: usize,
    name: &'static str,
}

impl Page {
    /// Begins the next family, which must be this one.
    fn family(&mut self, name: &'static str) {
        let (known, kind, help) = FAMILIES[self.next.min(FAMILIES.len() - 1)];
        debug_assert_eq!(known, name, "families come in their order");
        self.next += 1;
        self.name = name;
        // OpenMetrics calls a counter by its name without the suffix.
        let family = match self.kind {
            Kind::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            Kind::Text => name,
        };
        let _ = writeln!(self.text, "# HELP {family} {help}\n# TYPE {family} {kind}");
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (at, (name, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(&mut self.text, value);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    fn value(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.sample("", labels, value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[String], latencies: &Latencies) {
        let mut sum = 0;
        let infinite = "+Inf".to_owned();
        for (count, bound) in latencies.buckets.iter().zip(bounds.iter().chain([&infinite])) {
            sum += count;
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample("_bucket", &labels, sum);
        }
        self.sample("_sum", labels, latencies.sum.as_secs_f64());
        self.sample("_count", labels, sum);
    }
}

/// As both formats want the value of a label.
fn escape(into: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            letter => into.push(letter),
        }
    }
}

/// A bound in seconds; OpenMetrics wants every number of this kind with a point.
fn bound(us: u64, kind: Kind) -> String {
    let text = (us as f64 / 1e6).to_string();
    if kind == Kind::OpenMetrics && !text.contains('.') { text + ".0" } else { text }
}

/// Everything that is counted.
pub fn exposition<C: Courier>(control: &Control<C>, kind: Kind) -> Vec<u8> {
    let mut page = Page { kind, text: String::with_capacity(64 << 10), next: 0, name: "" };
    let snapshot = &control.snapshot;
    let shards = &control.process.shards;
    let total = |pick: fn(&ShardCounters) -> &Counter| -> u64 { shards.iter().map(|shard| pick(shard).read()).sum() };
    let bounds: Vec<String> = control.process.bounds_us.iter().map(|us| bound(*us, kind)).collect();
    let histogram =
        |page: &mut Page, labels: &[(&str, &str)], parts: &mut dyn Iterator<Item = &OnceLock<Box<Latency>>>| {
            let used: Vec<_> = parts.filter(|latency| latency.get().is_some()).collect();
            if !used.is_empty() {
                page.histogram(labels, &bounds, &Latencies::of(used.into_iter(), bounds.len()));
            }
        };
    let services = || snapshot.services.iter().map(|service| (&*service.identity.name, &service.identity.counters));
    let upstreams = || {
        snapshot.services.iter().flat_map(|service| service.upstreams.iter().map(move |upstream| (service, upstream)))
    };
    fn names<'n>(service: &'n Service, upstream: &'n Upstream) -> [(&'static str, &'n str); 2] {
        [("service", &service.identity.name), ("upstream", &upstream.identity.url)]
    }

    page.family("fusegate_build_info");
    page.value(&[("version", env!("CARGO_PKG_VERSION"))], 1);

    page.family("fusegate_requests_total");
    let unknown: Vec<&ServiceCounters> = shards.iter().map(|shard| &shard.unknown).collect();
    let own: Vec<&ServiceCounters> = shards.iter().map(|shard| &shard.own).collect();
    let all = || services().map(|(name, counters)| (name, counters.iter().collect()));
    let groups = || all().chain([(UNKNOWN, unknown.clone()), (OWN, own.clone())]);
    for (service, counters) in groups() {
        let mut sums: BTreeMap<(&str, u16), u64> = BTreeMap::new();
        for (method, code, count) in counters.iter().flat_map(|counters: &&ServiceCounters| counters.responses()) {
            *sums.entry((method.word(), code)).or_default() += count;
        }
        for ((method, code), count) in sums {
            page.value(&[("service", service), ("code", &code.to_string()), ("method", method)], count);
        }
    }
    page.family("fusegate_request_duration_seconds");
    for (service, counters) in groups() {
        histogram(&mut page, &[("service", service)], &mut counters.iter().map(|counters| &counters.latency));
    }

    page.family("fusegate_upstream_requests_total");
    for (service, upstream) in upstreams() {
        let [service, url] = names(service, upstream);
        for (at, word) in Ending::WORDS.into_iter().enumerate() {
            let sum: u64 = upstream.identity.counters.iter().map(|shard| shard.endings[at].read()).sum();
            // The commonest is always there, so that a rate has a beginning.
            if sum > 0 || at == 0 {
                page.value(&[service, url, ("outcome", word)], sum);
            }
        }
    }
    page.family("fusegate_upstream_duration_seconds");
    for (service, upstream) in upstreams() {
        let parts = &mut upstream.identity.counters.iter().map(|counters| &counters.latency);
        histogram(&mut page, &names(service, upstream), parts);
    }
    page.family("fusegate_upstream_in_flight");
    for (service, upstream) in upstreams() {
        let counters = &upstream.identity.counters;
        let in_flight = counters.iter().fold(0u64, |sum, shard| sum.wrapping_add(shard.in_flight.read()));
        page.value(&names(service, upstream), in_flight);
    }

    page.family("fusegate_circuit_state");
    for (service, upstream) in upstreams() {
        let [service, url] = names(service, upstream);
        let now = upstream.identity.breaker.view().state;
        for state in [State::Closed, State::Open, State::HalfOpen] {
            page.value(&[service, url, ("state", state.word())], u8::from(state == now));
        }
    }
    page.family("fusegate_circuit_transitions_total");
    for (service, upstream) in upstreams() {
        let [service, url] = names(service, upstream);
        for ((to, reason), count) in control.history.counts(&upstream.identity).into_iter().flatten() {
            page.value(&[service, url, ("to", to), ("reason", reason)], count);
        }
    }
    page.family("fusegate_circuit_rejected_total");
    for (service, counters) in services() {
        let sum: u64 = counters.iter().map(|shard| shard.unavailable[Unavailable::CircuitOpen as usize].read()).sum();
        page.value(&[("service", service)], sum);
    }
    page.family("fusegate_unavailable_total");
    for (service, counters) in services() {
        for (at, word) in Unavailable::WORDS.into_iter().enumerate() {
            let sum: u64 = counters.iter().map(|shard| shard.unavailable[at].read()).sum();
            if sum > 0 {
                page.value(&[("service", service), ("reason", word)], sum);
            }
        }
    }
    page.family("fusegate_retries_total");
    for (service, counters) in services() {
        for (reason, word) in Ending::WORDS.into_iter().enumerate() {
            for (result, result_word) in RETRIED.into_iter().enumerate() {
                let sum: u64 = counters.iter().map(|shard| shard.retries[reason][result].read()).sum();
                if sum > 0 {
                    page.value(&[("service", service), ("reason", word), ("result", result_word)], sum);
                }
            }
        }
    }

    page.family("fusegate_stale_total");
    page.value(&[], total(|shard| &shard.stale));
    page.family("fusegate_saturated_total");
    page.value(&[], total(|shard| &shard.saturated));
    page.family("fusegate_refused_total");
    for (at, word) in Refusal::WORDS.into_iter().enumerate() {
        page.value(&[("reason", word)], shards.iter().map(|shard| shard.refusals[at].read()).sum::<u64>());
    }
    page.family("fusegate_client_aborts_total");
    page.value(&[], total(|shard| &shard.aborted));
    page.family("fusegate_pool_connections");
    let (connections, idle) = (total(|shard| &shard.upstream_connections), total(|shard| &shard.idle_connections));
    page.value(&[("state", "active")], connections.saturating_sub(idle));
    page.value(&[("state", "idle")], idle);
    page.family("fusegate_client_connections");
    page.value(&[], control.process.connections());
    page.family("fusegate_connections_total");
    page.value(&[], total(|shard| &shard.accepted));
    page.family("fusegate_connections_over_limit_total");
    page.value(&[], total(|shard| &shard.over_limit));
    page.family("fusegate_accept_pauses_total");
    page.value(&[], total(|shard| &shard.accept_pauses));

    page.family("fusegate_event_subscribers");
    page.value(&[], control.events.subscribers());
    page.family("fusegate_event_subscribers_dropped_total");
    page.value(&[], total(|shard| &shard.lagged));

    page.family("fusegate_config_reloads_total");
    for (result, count) in &control.reloads.counts {
        page.value(&[("result", result)], count);
    }
    page.family("fusegate_config_last_reload_successful");
    page.value(&[], u8::from(control.reloads.last_successful));
    page.family("fusegate_config_last_reload_success_timestamp_seconds");
    page.value(&[], seconds(control.reloads.last_success));
    page.family("fusegate_config_generation");
    page.value(&[], snapshot.generation);
    page.family("fusegate_access_log_dropped_total");
    page.value(&[], control.access.dropped());
    page.family("fusegate_log_dropped_total");
    page.value(&[], (control.facts.log_dropped)());

    let machine = Machine::look();
    page.family("process_cpu_seconds_total");
    page.value(&[], machine.cpu_s);
    page.family("process_resident_memory_bytes");
    page.value(&[], machine.resident);
    page.family("process_open_fds");
    page.value(&[], machine.open_fds);
    page.family("process_max_fds");
    page.value(&[], control.facts.descriptors);
    page.family("process_start_time_seconds");
    page.value(&[], seconds(control.started));
    if kind == Kind::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text.into_bytes()
}

/// The label of what names no service of the configuration.
pub const UNKNOWN: &str = "_unknown";
/// The label of the gateway's own resources and of what could not be read.
pub const OWN: &str = "_own";

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as f64 / 1000.0
}

/// What the system knows of the process (proc(5)); zero where it does not tell.
pub(super) struct Machine {
    pub(super) cpu_s: f64,
    pub(super) resident: u64,
    pub(super) open_fds: usize,
}

impl Machine {
    pub(super) fn look() -> Machine {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Machine {
            cpu_s: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident: resident_kib.unwrap_or(0) << 10,
            // The directory that is being read is one of them.
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_accepted() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, kind) in [
            ("", Kind::Text),
            ("*/*", Kind::Text),
            ("text/plain", Kind::Text),
            ("application/openmetrics-text", Kind::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0", Kind::OpenMetrics),
            ("application/openmetrics-text; version=7.0.0, text/plain", Kind::Text),
            ("application/openmetrics-text;q=0", Kind::Text),
            ("application/openmetrics-text;q=0.3, text/plain;q=0.9", Kind::Text),
            (prometheus, Kind::OpenMetrics),
        ] {
            assert_eq!(Kind::accepted(accept.as_bytes()), kind, "{accept}");
        }
    }

    #[test]
    fn labels_are_escaped_and_bounds_are_numbers() {
        let mut text = String::new();
        escape(&mut text, "a\"b\\c\nd");
        assert_eq!(text, "a\\\"b\\\\c\\nd");
        assert_eq!([bound(5_000, Kind::Text), bound(1_000_000, Kind::Text)], ["0.005", "1"]);
        assert_eq!(bound(1_000_000, Kind::OpenMetrics), "1.0");
    }
}

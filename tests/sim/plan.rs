//! What a seed stands for: how bad the network is, how the gateway is configured, how clients and upstreams
//! behave. A third of the seeds is calm: nothing goes wrong, so every request must get its whole answer.

use crate::net::Weather;
use crate::rng::Random;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// Upstreams that exist in a run, whether configured or not.
pub(crate) const SERVERS: usize = 5;
const MS: u64 = 1000;
const S: u64 = 1_000_000;

/// How an upstream behaves: chances in a thousand of each response or connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mood {
    pub(crate) is_calm: bool,
    pub(crate) refuses: u32,
    pub(crate) hangs: u32,
    pub(crate) connect_us: u64,
    /// A response goes wrong in one of the ways that there are.
    pub(crate) fails: u32,
    pub(crate) status_5xx: u32,
    /// The response begins before the body of the request has come.
    pub(crate) early: u32,
    pub(crate) http10: u32,
    pub(crate) until_close: u32,
    pub(crate) interim: u32,
    /// Closes a connection that is idle, after at most so many microseconds.
    pub(crate) idle_close: u32,
    pub(crate) idle_us: u64,
    /// Says something behind its response or while nobody asked.
    pub(crate) poison: u32,
    pub(crate) pause_us: u64,
    pub(crate) piece: usize,
    pub(crate) largest_body: usize,
}

/// How a client behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    pub(crate) depth: usize,
    pub(crate) pause_us: u64,
    pub(crate) write_piece: usize,
    pub(crate) read_piece: usize,
    pub(crate) hangs_up: Option<(HangUp, u64)>,
    /// Behind the byte that `hangs_up` names.
    pub(crate) hangs_up_after_us: u64,
    pub(crate) requests: usize,
    pub(crate) malformed: u32,
    pub(crate) largest_body: usize,
    pub(crate) is_local: bool,
    /// Leaves the closing of an idle connection to the gateway.
    pub(crate) lingers: bool,
}

/// A client that leaves while it waits for the answer to a request that it has sent to its end.
pub(crate) const WAITING: u64 = u64::MAX;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// Shuts its write side and reads on.
    Half,
    Close,
    Reset,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) is_calm: bool,
    pub(crate) shards: usize,
    pub(crate) clients: usize,
    pub(crate) weather: Weather,
    pub(crate) moods: Vec<Mood>,
    pub(crate) switches: usize,
    pub(crate) drains: bool,
    pub(crate) limits_connections: bool,
    /// Nothing may go wrong for an upstream's fault either, but a pooled connection may have been closed.
    pub(crate) has_idle_close: bool,
    /// Longer than anybody may be left without progress.
    pub(crate) patience_us: u64,
}

impl Plan {
    pub(crate) fn new(rng: &mut Random) -> Plan {
        let is_calm = rng.chance(350);
        let rough = |rng: &mut Random, most: u64| if rng.chance(400) { 0 } else { rng.below(most + 1) as u32 };
        let smallest_pipe = rng.pick(&[1, 16, 300, 4000, 40_000]);
        let weather = Weather {
            read_cut: rough(rng, 700),
            read_block: rough(rng, 300),
            write_cut: rough(rng, 700),
            event_delay: rough(rng, 400),
            event_split: rough(rng, 500),
            spurious: rough(rng, 500),
            stale: rough(rng, 300),
            accept_fails: rough(rng, 300),
            connect_fails: if is_calm { 0 } else { rough(rng, 60) },
            no_pipe: rng.pick(&[0, 0, 500, 1000]),
            reset_destroys: rough(rng, 1000),
            late: rough(rng, 100),
            late_us: if is_calm { 20 * MS } else { rng.pick(&[5 * MS, 300 * MS, 4 * S]) },
            lazy: rough(rng, 300),
            smallest_pipe,
            largest_pipe: smallest_pipe * rng.within(1, 6),
        };
        let has_idle_close = rng.chance(500);
        // A byte at a time is slow: then the bodies are small.
        let largest_body = match smallest_pipe {
            1 => 200,
            16 => 3000,
            _ => rng.pick(&[100, 3000, 20_000, 20_000, 300_000]),
        };
        let moods = (0..SERVERS).map(|_| mood(rng, is_calm, has_idle_close, largest_body)).collect();
        // A byte at a time on a shard that is late again and again: a head takes a minute, and is sent anew.
        let patience_us = match is_calm {
            true => 8 * S,
            false if weather.late > 0 && smallest_pipe < 300 => 400 * S,
            false => 100 * S,
        };
        Plan {
            is_calm,
            shards: rng.within(1, 3) as usize,
            clients: rng.within(3, 24) as usize,
            weather,
            moods,
            switches: if rng.chance(400) { rng.within(1, 4) as usize } else { 0 },
            drains: rng.chance(200),
            limits_connections: !is_calm && rng.chance(100),
            has_idle_close,
            patience_us,
        }
    }

    pub(crate) fn manner(&self, rng: &mut Random) -> Manner {
        let largest_body = self.moods[0].largest_body;
        let small = self.weather.smallest_pipe < 100;
        let piece = |rng: &mut Random| if small { 4000 } else { rng.pick(&[50, 1000, 20_000]) };
        let bad = !self.is_calm && rng.chance(400);
        Manner {
            depth: rng.pick(&[1, 1, 1, 2, 5]),
            pause_us: rng.pick(&[10, 500, 5 * MS]) * if bad && rng.chance(150) { 200 } else { 1 },
            write_piece: piece(rng),
            read_piece: piece(rng),
            hangs_up: (bad && rng.chance(500)).then(|| {
                let how = rng.pick(&[HangUp::Half, HangUp::Close, HangUp::Reset]);
                (how, if rng.chance(400) { WAITING } else { rng.size(largest_body + 2000) as u64 })
            }),
            hangs_up_after_us: if rng.chance(500) { 0 } else { rng.below(S) },
            requests: rng.within(1, if small { 6 } else { 14 }) as usize,
            malformed: if rng.chance(300) { rng.pick(&[50, 300]) } else { 0 },
            largest_body,
            is_local: rng.chance(200),
            lingers: rng.chance(100),
        }
    }

    /// A configuration; another one at every call.
    pub(crate) fn config(&self, rng: &mut Random) -> String {
        let mut text = String::new();
        let span = |rng: &mut Random, calm_ms: u64, rough_ms: &[u64]| {
            if self.is_calm { calm_ms } else { rng.pick(rough_ms) }
        };
        let header_timeout = span(rng, 30_000, &[300, 2000, 5000]);
        let body_idle = span(rng, 30_000, &[300, 2000, 5000]);
        let keep_alive = span(rng, 30_000, &[300, 2000, 5000]);
        let half_close = rng.chance(300);
        let min_rate = if !self.is_calm && rng.chance(200) { rng.pick(&[1, 500, 20_000]) } else { 0 };
        let header_bytes = rng.pick(&[2048, 4096, 8192]);
        let request_line = rng.pick(&[256, 1024]);
        let buffer = rng.pick(&[16_384, 20_000, 65_536]).max(header_bytes + request_line);
        let connections = if self.limits_connections { rng.within(2, 12).to_string() } else { "auto".to_owned() };
        let _ = write!(
            text,
            "gateway:\n  client: {{header_timeout: {header_timeout}ms, body_idle: {body_idle}ms, \
             keep_alive: {keep_alive}ms, half_close: {half_close}, min_rate: {min_rate}B}}\n  \
             limits: {{connections: {connections}, \
             header_bytes: {header_bytes}B, request_line: {request_line}B, buffer: {buffer}B}}\n"
        );
        for service in 0..2 {
            let _ = writeln!(text, "s{service}:");
            let _ = writeln!(text, "  circuit_breaker: {{{}}}", self.breaker(rng));
            let _ = writeln!(text, "  retries: {{{}}}", self.retries(rng));
            let _ = writeln!(text, "  load_balancing: {{{}}}", balancing(rng));
            let connect = span(rng, 15_000, &[100, 1000]);
            let response = span(rng, 15_000, &[200, 1000, 3000]);
            let idle = span(rng, 15_000, &[200, 1000, 3000]);
            let stream = span(rng, 60_000, &[300, 4000]);
            let total = if !self.is_calm && rng.chance(200) { rng.pick(&[300, 4000]) } else { 0 };
            let pool_idle = rng.pick(&[0, 100, 3000]);
            let max_idle = rng.pick(&[0, 1, 3, 100]);
            let host = rng.pick(&["upstream", "client", "literal.example:81"]);
            let _ = write!(
                text,
                "  timeouts: {{connect: {connect}ms, response: {response}ms, \
                 idle: {idle}ms, stream: {stream}ms, total: {total}ms}}\n  \
                 pool: {{idle: {pool_idle}ms, max_idle: {max_idle}}}\n  \
                 headers: {{host: '{host}'}}\n"
            );
            if !self.is_calm && rng.chance(150) {
                let _ = writeln!(text, "  body_limit: {}B", rng.pick(&[10, 1000, 15_000]));
            }
            text.push_str("  upstreams:\n");
            let most = if !self.is_calm && rng.chance(200) { rng.within(1, 3) } else { 0 };
            let listed = rng.within(1, 4);
            let first = rng.below(SERVERS as u64);
            for n in 0..listed {
                let server = ((first + n) % SERVERS as u64) as usize;
                let (authority, base) = (authority(server), base(server));
                let mut entry = format!("url: 'http://{authority}{base}', max_requests: {most}");
                // Somebody must serve, or all that is seen of the service are its refusals.
                let may_rest = n > 0 || !self.is_calm && rng.chance(30);
                let weight = if may_rest { rng.pick(&[1, 1, 1, 1, 2, 5, 0]) } else { rng.pick(&[1, 1, 3]) };
                if weight != 1 {
                    let _ = write!(entry, ", weight: {weight}");
                }
                if rng.chance(200) {
                    entry.push_str(", backup: true");
                }
                if rng.chance(100) {
                    let own = if self.is_calm {
                        "mode: observe"
                    } else {
                        rng.pick(&["enabled: false", "cooldown: 70ms, max_cooldown: 90ms", "mode: observe"])
                    };
                    let _ = write!(entry, ", circuit_breaker: {{{own}}}");
                }
                let _ = writeln!(text, "    - {{{entry}}}");
            }
        }
        text
    }

    /// The fields of a `circuit_breaker`. In a calm run it has nothing to skip an upstream for.
    fn breaker(&self, rng: &mut Random) -> String {
        let mut fields = Vec::new();
        let mode = match rng.below(if self.is_calm { 4 } else { 10 }) {
            0 => Some("enabled: false"),
            1 => Some("mode: observe"),
            _ => None,
        };
        fields.extend(mode.map(str::to_owned));
        let passes = mode.is_some();
        // What one configuration only observes is skipped by the next.
        let is_inert = self.is_calm && (!passes || self.switches > 0);
        let threshold = if is_inert { 1000 } else { rng.within(1, 4) };
        let cooldown = rng.pick(&[50, 1000, 8000]);
        fields.push(format!("failure_threshold: {threshold}, cooldown: {cooldown}ms"));
        let mut may = |per_mille: u32, field: &dyn Fn(&mut Random) -> String| {
            if rng.chance(per_mille) {
                let field = field(rng);
                fields.push(field);
            }
        };
        may(300, &|rng| {
            let most = cooldown * rng.pick(&[1, 2, 10]);
            format!("backoff: {}, max_cooldown: {most}ms", rng.pick(&["1", "1.5", "3", "100"]))
        });
        may(300, &|rng| format!("jitter: {}%", rng.pick(&[1, 20, 100])));
        may(300, &|rng| format!("half_open_probes: {}", rng.within(1, 4)));
        may(300, &|rng| format!("success_threshold: {}", rng.within(1, 3)));
        may(300, &|rng| format!("probe_timeout: {}ms", rng.pick(&[20, 300, 5000])));
        may(300, &|rng| format!("when_all_open: {}", rng.pick(&["reject", "probe", "probe", "ignore"])));
        match rng.below(6) {
            0 => fields.push("failure_on: [connect, closed, 5xx], neutral_on: [timeout, 404]".to_owned()),
            1 => fields.push("failure_on: [connect, tls, unsent, closed, invalid, timeout, cut]".to_owned()),
            2 => fields.push("neutral_on: [client_abort, rejected, connect, 503]".to_owned()),
            _ => {}
        }
        if !is_inert {
            if rng.chance(300) {
                let (rate, window) = (rng.pick(&[1, 30, 100]), rng.pick(&[100, 1000, 10_000]));
                fields.push(format!("failure_rate: {rate}%, window: {window}ms, min_requests: {}", rng.within(1, 8)));
            }
            if rng.chance(200) {
                let rate = rng.pick(&["", ", slow_rate: 20%", ", slow_rate: 100%"]);
                fields.push(format!("slow_after: {}ms{rate}", rng.pick(&[1, 20, 500])));
            }
        }
        fields.join(", ")
    }

    /// The fields of `retries`.
    fn retries(&self, rng: &mut Random) -> String {
        // The most that there can be only where each is over soon.
        let is_swift = self.weather.smallest_pipe >= 300 && (self.is_calm || self.weather.late == 0);
        let attempts = rng.pick(&[0, 1, 1, 2, if is_swift { 3 } else { 2 }, if is_swift { 15 } else { 1 }]);
        let mut fields = vec![format!("attempts: {attempts}")];
        let on = rng.pick(&[
            "",
            "",
            "[connect, unsent]",
            "[connect, tls, unsent, closed, 5xx]",
            "[connect, unsent, closed, invalid, timeout, 5xx, 404]",
            "[5xx, timeout]",
            "[500-599, invalid]",
            "[connect, 200, 201, 204, 304, 503]",
            "[]",
        ]);
        if !on.is_empty() {
            fields.push(format!("on: {on}"));
        }
        let methods = rng.pick(&["", "", "[GET]", "[POST, PATCH, PUT]", "[GET, HEAD, POST, PUT, DELETE, PATCH]", "[]"]);
        if !methods.is_empty() {
            fields.push(format!("methods: {methods}"));
        }
        // Without a budget what is held is passed on in the end.
        match rng.below(4) {
            0 => fields.push(format!("budget: 0%, budget_min: {}", rng.pick(&[0, 0, 1]))),
            1 => {
                let budget = rng.pick(&[1, 50, 100]);
                fields.push(format!("budget: {budget}%, budget_min: {}", rng.pick(&[0, 1, 100])));
            }
            _ => fields.push("budget_min: 1000".to_owned()),
        }
        if rng.chance(300) {
            fields.push(format!("body_limit: {}B", rng.pick(&[0, 100, 20_000])));
        }
        if rng.chance(400) {
            let patience = if self.is_calm { 15_000 } else { rng.pick(&[100, 200, 1000]) };
            fields.push(format!("per_try_timeout: {patience}ms"));
        }
        if rng.chance(400) {
            // It doubles with each, and nobody's patience is endless.
            let longest = if attempts > 3 { 2 } else { 4 - 2 * usize::from(self.is_calm) };
            let wait = rng.pick(&[1, 5, 1000, 2000][..longest]);
            fields.push(format!("backoff: {wait}ms"));
        }
        fields.join(", ")
    }
}

/// The fields of `load_balancing`.
fn balancing(rng: &mut Random) -> String {
    let policy = rng.pick(&["round_robin", "round_robin", "least_requests", "p2c", "random", "hash", "hash"]);
    let on = rng.pick(&["client_ip", "path", "header:X-Key", "cookie:k"]);
    let mut fields = format!("policy: {policy}");
    if policy == "hash" {
        let _ = write!(fields, ", hash_on: '{on}'");
    }
    if rng.chance(200) {
        let _ = write!(fields, ", slow_start: {}ms", rng.pick(&[10, 500, 5000]));
    }
    fields
}

fn mood(rng: &mut Random, is_calm: bool, has_idle_close: bool, largest_body: usize) -> Mood {
    let kind = if is_calm { 0 } else { rng.below(4) };
    let bad = |rng: &mut Random, most: u64| if kind == 0 || rng.chance(400) { 0 } else { rng.below(most + 1) as u32 };
    Mood {
        is_calm,
        refuses: if kind == 3 && rng.chance(300) { 1000 } else { bad(rng, 200) },
        hangs: bad(rng, 80),
        connect_us: rng.pick(&[0, 300, 50 * MS]),
        fails: bad(rng, 500),
        // A status is no fault of anybody's where no breaker is in the way.
        status_5xx: if is_calm && rng.chance(500) { rng.below(500) as u32 } else { bad(rng, 300) },
        early: if is_calm { 0 } else { bad(rng, 400) },
        http10: if rng.chance(300) { rng.below(500) as u32 } else { 0 },
        until_close: if rng.chance(400) { rng.below(500) as u32 } else { 0 },
        interim: if rng.chance(400) { rng.below(500) as u32 } else { 0 },
        idle_close: if has_idle_close { rng.below(1000) as u32 } else { 0 },
        idle_us: rng.pick(&[100, 20 * MS, S]),
        poison: if kind != 0 && rng.chance(300) { 200 } else { 0 },
        pause_us: rng.pick(&[5, 300, 5 * MS]) * if kind > 1 && rng.chance(150) { 100 } else { 1 },
        piece: rng.pick(&[100, 3000, 50_000]),
        largest_body,
    }
}

/// Host and port of a server, as the configuration names it.
pub(crate) fn authority(server: usize) -> String {
    format!("up{server}:{}", 8001 + server)
}

/// The path of a server's URL.
pub(crate) fn base(server: usize) -> &'static str {
    ["", "/", "/base", "/a/b/", "/x"][server % 5]
}

/// The addresses behind a server's name. Some names have one where nobody listens first.
pub(crate) fn addresses(server: usize) -> Vec<SocketAddr> {
    let at = |net: u8| SocketAddr::from(([10, 200 + net, 0, server as u8], 8001 + server as u16));
    if server.is_multiple_of(2) { vec![at(0)] } else { vec![at(1), at(0)] }
}

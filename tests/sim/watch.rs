//! What the configurations of a run say about a request, and what every upstream was from turn to turn: the judge
//! of who is asked, how often and after whom.
//!
//! A configuration counts for a request when the request may have met it; what is strict is judged only where that
//! is a single one. "Free" is said of an upstream only when no turn since can have seen it otherwise, so what is
//! judged here is judged late rather than wrongly. Must not know: bytes.

use crate::ledger::{Asked, Ledger, Try};
use crate::net::{LinkId, World};
use crate::plan::SERVERS;
use fusegate::config::model::{Config, HashOn, Service, Upstream, WhenAllOpen};
use fusegate::policy::balance::Policy;
use fusegate::policy::breaker::{Mode, State};
use fusegate::policy::class::Class;
use fusegate::shard::mailbox::Moved;
use fusegate::shared::snapshot::{Snapshot, UpstreamIdentity};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How long a probe may be out whose request has not come whole: a lease is not shorter than this, or than it says.
const SHORTEST_LEASE_MS: u64 = 1000;
/// What a client that left may go unnoticed, with the way of a request to its upstream.
const NOTICED_US: u64 = 500_000;

/// An upstream of a service from turn to turn.
#[derive(Debug)]
struct Seat {
    identity: Weak<UpstreamIdentity>,
    service: usize,
    server: usize,
    /// Attempts begun so far, and when the last one did; for each shard.
    begun: Vec<u64>,
    begun_at: Vec<u64>,
    settled: u64,
    in_flight: u64,
    is_closed: bool,
    /// It was open, with its cooldown not over, when the present turn began.
    is_skipped: bool,
    /// Changes of state in the present turn, and the last of them.
    moves: u32,
    moved_to: Option<State>,
    not_closed_at: u64,
    /// When it may have been at its `max_requests`.
    full_at: u64,
    /// Attempts begun and permits settled in the turns of one half-open round, newest last.
    round: Option<VecDeque<(u64, u64, u64)>>,
}

/// Everything that is known besides bytes.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    configs: Vec<Config>,
    /// The configuration that a shard has said to be on, by its position in `configs`.
    in_force: Vec<usize>,
    seats: Vec<Seat>,
    /// By configuration, service and server: the position of a seat.
    places: Vec<Vec<[Option<usize>; SERVERS]>>,
    /// Where the policy `hash` has sent a key: by configuration and service.
    hashed: BTreeMap<(usize, usize, String), usize>,
    /// No turn comes late and no pipe is so small that a head takes long: moments can be judged.
    pub(crate) is_prompt: bool,
}

fn server_of(upstream: &Upstream) -> usize {
    usize::from(upstream.url.port) - 8001
}

fn listed(service: &Service, server: usize) -> Option<&Upstream> {
    service.upstreams.iter().find(|upstream| server_of(upstream) == server)
}

impl Watch {
    /// A configuration comes into force.
    pub(crate) fn add(&mut self, config: Config, snapshot: &Snapshot, shards: usize) {
        self.in_force.resize(shards, 0);
        let mut places = Vec::new();
        for (at, service) in snapshot.services.iter().enumerate() {
            let mut row = [None; SERVERS];
            for upstream in &service.upstreams {
                let identity = Arc::downgrade(&upstream.identity);
                let listed = config.services[at].upstreams.iter().find(|l| l.url.normalised() == upstream.identity.key);
                let Some(server) = listed.map(server_of) else { continue };
                let known = self.seats.iter().position(|seat| Weak::ptr_eq(&seat.identity, &identity));
                row[server] = Some(known.unwrap_or_else(|| {
                    self.seats.push(Seat {
                        identity,
                        service: at,
                        server,
                        begun: vec![0; shards],
                        begun_at: vec![0; shards],
                        settled: 0,
                        in_flight: 0,
                        is_closed: true,
                        is_skipped: false,
                        moves: 0,
                        moved_to: None,
                        not_closed_at: 0,
                        full_at: 0,
                        round: None,
                    });
                    self.seats.len() - 1
                }));
            }
            places.push(row);
        }
        self.places.push(places);
        self.configs.push(config);
    }

    /// A shard has said that it is on a configuration.
    pub(crate) fn switched(&mut self, shard: usize, config: usize) {
        self.in_force[shard] = config;
    }

    /// The oldest configuration that a request on this shard can meet now.
    pub(crate) fn oldest(&self, shard: usize) -> usize {
        self.in_force[shard]
    }

    /// What a request's service may have been told, oldest first.
    pub(crate) fn rules<'a>(&'a self, asked: &Asked) -> impl Iterator<Item = &'a Service> + Clone + use<'a> {
        let (oldest, service) = (asked.oldest, asked.service);
        self.configs[oldest.min(self.configs.len())..].iter().map(move |config| &config.services[service])
    }

    /// The one configuration that a request can have met.
    pub(crate) fn only(&self, asked: &Asked) -> Option<usize> {
        (asked.oldest + 1 == self.configs.len()).then_some(asked.oldest)
    }

    /// What the service of a request is told by that one.
    pub(crate) fn only_rules(&self, asked: &Asked) -> Option<&Service> {
        self.only(asked).map(|config| &self.configs[config].services[asked.service])
    }

    /// Whether a FIN behind a whole request may be no hang-up.
    fn half_closes(&self, asked: &Asked) -> bool {
        self.configs[asked.oldest..].iter().any(|config| config.gateway.client.half_close)
    }

    /// Whether an upstream could be taken at every moment since.
    fn is_free(&self, config: usize, service: usize, server: usize, since: u64) -> bool {
        let Some(upstream) = listed(&self.configs[config].services[service], server) else { return false };
        let Some(seat) = self.places[config][service][server].map(|at| &self.seats[at]) else { return false };
        let skips = upstream.breaker.mode == Mode::Enforce && seat.not_closed_at >= since;
        upstream.weight > 0 && !skips && (upstream.max_requests.is_none() || seat.full_at < since)
    }

    /// The upstreams that could be taken since, and that no request of this shard has been sent to meanwhile: so
    /// this one has not tried them either.
    fn left_out<'a>(&'a self, config: usize, asked: &'a Asked, shard: usize, since: u64) -> Vec<&'a Upstream> {
        let service = &self.configs[config].services[asked.service];
        let is_untried = |server: usize| {
            let seat = self.places[config][asked.service][server].map(|at| &self.seats[at]);
            seat.is_some_and(|seat| seat.begun_at[shard] < asked.begun_at)
        };
        let is_left = |upstream: &&Upstream| {
            let server = server_of(upstream);
            self.is_free(config, asked.service, server, since) && is_untried(server)
        };
        service.upstreams.iter().filter(is_left).collect()
    }

    // What turns do.

    /// A turn begins.
    pub(crate) fn before_turn(&mut self, now: u64) {
        for seat in &mut self.seats {
            let Some(identity) = seat.identity.upgrade() else { continue };
            if !seat.is_closed {
                seat.not_closed_at = now;
            }
            let view = identity.breaker.view();
            seat.is_skipped = view.state == State::Open && view.probe_at_ms.is_some_and(|at| at > now / 1000);
            seat.moves = 0;
            seat.moved_to = None;
        }
    }

    /// A breaker has changed its state.
    pub(crate) fn moved(&mut self, moved: &Moved) {
        let same = |seat: &&mut Seat| seat.identity.as_ptr() == Arc::as_ptr(&moved.upstream);
        if let Some(seat) = self.seats.iter_mut().find(same)
            && moved.transition.from != moved.transition.to
        {
            seat.moves += 1;
            seat.moved_to = Some(moved.transition.to);
        }
    }

    /// A turn has ended: what began in it may have begun.
    pub(crate) fn after_turn(&mut self, now: u64, shard: usize) -> Result<(), String> {
        let mut began = Vec::new();
        for (at, seat) in self.seats.iter_mut().enumerate() {
            let Some(identity) = seat.identity.upgrade() else { continue };
            let attempts = identity.counters[shard].attempts.read();
            let begun = attempts - seat.begun[shard];
            seat.begun[shard] = attempts;
            if begun > 0 {
                seat.begun_at[shard] = now;
                began.push((at, begun));
            }
            let limit = self.configs.iter().filter_map(|config| listed(&config.services[seat.service], seat.server));
            let limit = limit.filter_map(|upstream| upstream.max_requests).min();
            if limit.is_some_and(|limit| seat.in_flight + begun >= u64::from(limit)) {
                seat.full_at = now;
            }
            let in_flight: u64 = identity.counters.iter().fold(0, |sum, c| sum.wrapping_add(c.in_flight.read()));
            seat.in_flight = in_flight;
            let settled: u64 = identity.counters.iter().map(|c| c.settled.read()).sum();
            let ended = settled - seat.settled;
            seat.settled = settled;
            seat.is_closed = identity.breaker.view().state == State::Closed;
            if !seat.is_closed || seat.moves > 0 {
                seat.not_closed_at = now;
            }
            let begins_round = seat.moves == 1 && seat.moved_to == Some(State::HalfOpen);
            if seat.moves > 0 {
                seat.round = (seat.moved_to == Some(State::HalfOpen)).then(VecDeque::new);
            }
            if let Some(round) = seat.round.as_mut().filter(|_| begins_round || seat.moves == 0) {
                round.push_back((now, begun, ended));
            }
        }
        for (at, begun) in began {
            self.judge_begun(at, begun)?;
            self.judge_probes(at, now)?;
        }
        Ok(())
    }

    /// An upstream has been asked in this turn: whether it may have been, whoever asked.
    fn judge_begun(&self, at: usize, begun: u64) -> Result<(), String> {
        let seat = &self.seats[at];
        let told = || self.configs.iter().map(|config| &config.services[seat.service]);
        let own = || told().filter_map(|service| listed(service, seat.server));
        let bad =
            |what: &str| Err(format!("upstream {} of s{} is asked {begun} times {what}", seat.server, seat.service));
        if own().all(|upstream| upstream.weight == 0) {
            return bad("although its weight is 0");
        }
        // Others that every configuration serves and that nothing can have been in the way of.
        let mut others = (0..SERVERS).filter(|server| *server != seat.server).filter(|server| {
            let serves = |service| listed(service, *server).filter(|upstream| upstream.weight > 0);
            let mut seats = self.seats.iter().filter(|it| it.service == seat.service && it.server == *server);
            told().all(|service| serves(service).is_some()) && seats.all(|it| it.is_closed && it.moves == 0)
        });
        if seat.is_skipped && seat.moves == 0 && own().all(|upstream| upstream.breaker.mode == Mode::Enforce) {
            if told().all(|service| service.when_all_open == WhenAllOpen::Reject) {
                return bad("although its breaker is open");
            }
            if let Some(other) = others.next() {
                return bad(&format!("although its breaker is open and that of upstream {other} is closed"));
            }
            if told().all(|service| service.when_all_open == WhenAllOpen::Probe) {
                return bad("before its cooldown is over, and not as a probe");
            }
        } else if told().all(|service| service.retries.attempts == 0) && own().all(|upstream| upstream.backup) {
            let primary = others.find(|server| {
                let is_primary = |upstream: &Upstream| !upstream.backup && upstream.max_requests.is_none();
                told().all(|service| listed(service, *server).is_some_and(is_primary))
            });
            if let Some(primary) = primary {
                return bad(&format!("although it is a backup and upstream {primary} was free"));
            }
        }
        Ok(())
    }

    /// In a half-open round there are not more probes out than may be.
    fn judge_probes(&mut self, at: usize, now: u64) -> Result<(), String> {
        let (service, server) = (self.seats[at].service, self.seats[at].server);
        let told = || self.configs.iter().map(|config| &config.services[service]);
        let own = || told().filter_map(|service| listed(service, server));
        let passes = told().any(|service| service.when_all_open == WhenAllOpen::Ignore)
            || own().any(|upstream| upstream.breaker.mode != Mode::Enforce);
        let most = own().map(|upstream| upstream.breaker.half_open_probes).max().unwrap_or(1);
        let lease_ms = own().map(|upstream| {
            let timeouts = &upstream.timeouts;
            upstream.breaker.probe_timeout.unwrap_or(timeouts.connect + timeouts.response).as_millis() as u64
        });
        let lease_us = lease_ms.min().unwrap_or(0).min(SHORTEST_LEASE_MS) * 1000;
        let Some(round) = self.seats[at].round.as_mut().filter(|_| !passes) else { return Ok(()) };
        while round.front().is_some_and(|(at, ..)| at + lease_us <= now + 2000) {
            round.pop_front();
        }
        let (mut begun, mut settled) = (0, 0);
        for (_, b, s) in round.iter().rev() {
            begun += b;
            settled += s;
            if begun > settled + u64::from(most) {
                return Err(format!(
                    "{begun} probes of upstream {server} of s{service} are out, of {most} that may be"
                ));
            }
        }
        Ok(())
    }

    /// What a request is told apart by, where the policy is `hash`.
    fn key(on: &HashOn, asked: &Asked) -> Option<String> {
        match on {
            HashOn::ClientIp => Some(asked.address.clone()),
            HashOn::Path => Some(asked.rest.split('?').next().unwrap_or_default().to_owned()),
            HashOn::Header(_) | HashOn::Cookie(_) => asked.key.map(|key| key.to_string()),
        }
    }

    /// Whether a 503 for want of an upstream may be given to a request; `after_s` is its `Retry-After`.
    pub(crate) fn judge_refusal(&self, asked: &Asked, detail: &str, after_s: Option<u64>) -> Result<(), String> {
        let bad = |what: String| Err(format!("{detail:?} {what}: {asked:?}"));
        let Some(after_s) = after_s.filter(|after| *after > 0) else { return bad("without a Retry-After".to_owned()) };
        let is_open = detail.contains("circuit is open");
        if !is_open && !detail.contains("max_requests") {
            return Ok(());
        }
        if let Some(config) = self.only(asked) {
            let free = (0..SERVERS).find(|at| self.is_free(config, asked.service, *at, asked.begun_at));
            if let Some(free) = free {
                return bad(format!("although upstream {free} is free"));
            }
        }
        let unlimited = |service: &Service| service.upstreams.iter().all(|upstream| upstream.max_requests.is_none());
        let passes = |service: &Service| {
            let mut serving = service.upstreams.iter().filter(|upstream| upstream.weight > 0);
            service.when_all_open == WhenAllOpen::Ignore || serving.any(|it| it.breaker.mode != Mode::Enforce)
        };
        if is_open && self.rules(asked).all(|service| passes(service) && unlimited(service)) {
            return bad("although no breaker may be in the way".to_owned());
        }
        let longest = |upstream: &Upstream| {
            let breaker = &upstream.breaker;
            let cooldown = breaker.max_cooldown.unwrap_or(breaker.cooldown).as_millis() as u64;
            let timeouts = &upstream.timeouts;
            let lease = breaker.probe_timeout.unwrap_or(timeouts.connect + timeouts.response).as_millis() as u64;
            (cooldown + cooldown * u64::from(breaker.jitter) / 10_000).max(lease)
        };
        let all = self.configs.iter().flat_map(|config| &config.services[asked.service].upstreams);
        let most_s = all.map(longest).max().unwrap_or(0).div_ceil(1000).max(1);
        if is_open && after_s > most_s {
            return bad(format!("with a Retry-After of {after_s} s, where {most_s} s would be long"));
        }
        Ok(())
    }
}

/// An upstream has the head of a request on a connection: whether that request may be there, now. Notes the try.
pub(crate) fn judge_try(
    ledger: &mut Ledger,
    world: &World,
    number: usize,
    link: LinkId,
    is_fresh: bool,
) -> Result<(), String> {
    let Some(server) = world.links[link].server else { return Ok(()) };
    let (asked, watch) = (&ledger.asked[number], &ledger.watch);
    let shard = world.links[link].shard;
    // What the gateway has given up meanwhile says nothing about what it does now.
    let is_live = world.links[link].gate_open;
    let bad = |what: String| Err(format!("{} request {number} {what}: {:?}", asked.method, asked.tries));
    let served = |service: &Service| listed(service, server).is_some_and(|upstream| upstream.weight > 0);
    if !watch.rules(asked).any(served) {
        return bad(format!("reaches upstream {server}, which does not serve"));
    }
    if asked.tries.iter().any(|other| other.link == link) {
        return bad("comes again on the same connection".to_owned());
    }
    let last = asked.tries.last();
    let is_race = last.is_some_and(|last| last.server == server && !last.is_fresh && is_fresh);
    let races = usize::from(is_race) + asked.races;
    if last.is_some() {
        if !watch.rules(asked).any(|service| service.retries.repeats(asked.method)) {
            return bad("is executed for the second time".to_owned());
        }
        let on_answer = [Class::Closed, Class::Invalid, Class::Timeout];
        let repeats = |service: &Service| {
            let on = &service.retries.on;
            on_answer.iter().any(|class| on.counts_class(*class)) || (100..600).any(|status| on.counts_status(status))
        };
        // Behind a stale connection the fresh one may have failed where nobody saw it.
        if last.is_some_and(|last| last.is_fresh) && !watch.rules(asked).any(repeats) {
            return bad("is repeated although an upstream had it".to_owned());
        }
    }
    let attempts = watch.rules(asked).map(|service| usize::from(service.retries.attempts)).max().unwrap_or(0);
    if asked.tries.len() + 1 - races > attempts + 1 {
        return bad(format!("is tried more often than {} times", attempts + 1));
    }
    // Also one that the gateway takes back at once.
    let is_gone = world.links[asked.client].left_at.is_some_and(|at| world.now > at + NOTICED_US);
    let had_all = asked.body_len == 0 || asked.was_whole;
    if watch.is_prompt && last.is_some() && is_gone && had_all && !watch.half_closes(asked) {
        return bad("is repeated although its client has gone".to_owned());
    }
    if is_live {
        if let Some(other) = asked.tries.iter().find(|other| other.link != link && world.links[other.link].gate_open) {
            return bad(format!("is on link {link} while it still is on link {}", other.link));
        }
        if asked.is_answered {
            return bad("is repeated although its client has an answer".to_owned());
        }
        if let Some(config) = watch.only(asked) {
            let service = &watch.configs[config].services[asked.service];
            let tried = |server: usize| asked.tries.iter().any(|other| other.server == server);
            let left_out = |since| watch.left_out(config, asked, shard, since).into_iter().map(server_of);
            // Given up before an upstream saw it: then nobody knows when the next try was decided on.
            if let Some(last) = last.filter(|last| tried(server) && !is_race && last.is_live)
                && let Some(other) = left_out(last.at).find(|other| !tried(*other))
            {
                return bad(format!("is repeated at upstream {server} although upstream {other} was left"));
            }
            if listed(service, server).is_some_and(|upstream| upstream.backup) {
                let is_primary = |other: &usize| listed(service, *other).is_some_and(|upstream| !upstream.backup);
                if let Some(other) = left_out(asked.begun_at).filter(is_primary).find(|other| !tried(*other)) {
                    return bad(format!("reaches the backup {server} although upstream {other} was left"));
                }
            }
        }
    }
    judge_hash(ledger, number, server, shard, is_live)?;
    let asked = &mut ledger.asked[number];
    asked.races = races;
    asked.tries.push(Try { link, server, at: world.now, is_fresh, is_live });
    ledger.tally.repeated += u64::from(asked.tries.len() > 1);
    ledger.tally.retried += u64::from(asked.tries.len() > 1 && !is_race);
    Ok(())
}

/// Equal keys go to equal upstreams while all of them can be had.
fn judge_hash(ledger: &mut Ledger, number: usize, server: usize, shard: usize, is_live: bool) -> Result<(), String> {
    let (asked, watch) = (&ledger.asked[number], &mut ledger.watch);
    let Some(config) = watch.only(asked).filter(|_| is_live && asked.tries.is_empty()) else { return Ok(()) };
    let service = &watch.configs[config].services[asked.service];
    // A slow start hands a part of what belongs to an upstream to the others.
    let hashes = service.balancing.policy == Policy::Hash && service.balancing.slow_start.is_zero();
    let Some(on) = service.balancing.hash_on.as_ref().filter(|_| hashes) else { return Ok(()) };
    let Some(key) = Watch::key(on, asked) else { return Ok(()) };
    let place = (config, asked.service, key);
    let left = watch.left_out(config, asked, shard, asked.begun_at);
    if let Some(usual) = watch.hashed.get(&place) {
        if *usual != server && left.iter().any(|upstream| server_of(upstream) == *usual) {
            return Err(format!("request {number} reaches upstream {server}, its key {place:?} belongs to {usual}"));
        }
        return Ok(());
    }
    // Nobody can have been asked before this one, or been in the way.
    let others = service.upstreams.iter().filter(|upstream| upstream.weight > 0 && !upstream.backup);
    let is_first = others.clone().map(server_of).all(|other| {
        other == server
            || watch.is_free(config, asked.service, other, asked.begun_at)
                && (service.retries.attempts == 0 || left.iter().any(|upstream| server_of(upstream) == other))
    });
    if is_first && others.map(server_of).any(|other| other == server) {
        watch.hashed.insert(place, server);
    }
    Ok(())
}

/// Whether requests are still counted somewhere as under way.
pub(crate) fn admitted(identity: &UpstreamIdentity) -> u32 {
    identity.admitted.load(Ordering::Relaxed)
}

//! One run: shards over one set of breakers and cursors, stepped in one thread in any order, clients and
//! upstreams around them, and at the end the account of what must be left: nothing.

use crate::client::Client;
use crate::ledger::{Ledger, Tally};
use crate::net::{Due, GATE, LinkId, SPLICE, Shared, SimListener, SimNet, World, client_address, shown};
use crate::origin::Origin;
use crate::plan::{Plan, SERVERS, addresses, authority};
use crate::rng::{Random, mix};
use crate::watch;
use fusegate::config;
use fusegate::config::model::Config;
use fusegate::control::build::{self, Addresses, Facts};
use fusegate::ground::queue::{Receiver, Sender, queue};
use fusegate::ground::tick::Tick;
use fusegate::http::render::{self, Answer, Persistence};
use fusegate::policy::breaker;
use fusegate::shard::Shard;
use fusegate::shard::mailbox::{COMMANDS, Command, Mailbox, NOTICES, Notice, Part, Ticket, Told};
use fusegate::shard::net::{Event, Subject};
use fusegate::shared::access::Encoded;
use fusegate::shared::metrics::Counter;
use fusegate::shared::process::Process;
use fusegate::shared::snapshot::{Snapshot, UpstreamIdentity};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Weak};

/// Turns without a wait in which nothing moved, after which a shard spins.
const SPIN: u32 = 10_000;
/// Rounds of the simulator after which a run does not end any more.
const ROUNDS: u64 = 3_000_000;
/// How late an event may reach a shard that is not held up, and in how many turns a deadline is seen.
const SLOW_US: u64 = 100_000;
const SLOW_TURNS: u32 = 20;
/// Longer than every timeout of every configuration.
const FAR_US: u64 = 200_000_000;

struct Station {
    shard: Option<Shard<SimNet>>,
    commands: Sender<Command>,
    has_mail: bool,
    wake_at: Option<u64>,
    idle_turns: u32,
}

/// Bytes that went through when an attempt began: the base of what is buffered.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: LinkId,
    answer: usize,
    client_in: u64,
    client_out: u64,
    upstream_in: u64,
    upstream_out: u64,
}

enum Actor {
    Nobody,
    Client(usize),
    Origin(Box<Origin>, Option<Flow>),
}

struct Run {
    seed: u64,
    plan: Plan,
    world: Shared,
    stations: Vec<Station>,
    process: Arc<Process>,
    notices: Receiver<Notice>,
    facts: Facts,
    snapshot: Arc<Snapshot>,
    identities: Vec<Weak<UpstreamIdentity>>,
    largest_buffer: usize,
    ledger: Ledger,
    actors: Vec<Actor>,
    clients: Vec<Client>,
    arrivals: usize,
    tickets: Vec<(u64, Ticket)>,
    streams: Vec<Streamed>,
    events: Vec<Event>,
    serial: u64,
    is_draining: bool,
}

/// An answer that control gives part by part.
struct Streamed {
    at: u64,
    shard: usize,
    client: u64,
    told: Told,
    /// The first one is no part, but the beginning.
    parts: VecDeque<(Option<Part>, Vec<u8>)>,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) digest: u64,
    pub(crate) turns: u64,
    pub(crate) virtual_us: u64,
}

/// Runs a seed; the error says what was wrong.
pub(crate) fn run(seed: u64, tracing: bool) -> Result<Outcome, String> {
    let mut rng = Random::new(seed);
    let plan = Plan::new(&mut rng);
    let mut run = Run::new(seed, plan, &mut rng, tracing)?;
    if tracing {
        println!("plan: {:#?}", run.plan);
    }
    let turns = match run.go(&mut rng).and_then(|turns| run.settle(&mut rng).map(|()| turns)) {
        Ok(turns) => turns,
        Err(why) => {
            // Shards that end in the middle drop open permits, and those panic.
            std::mem::forget(run);
            return Err(why);
        }
    };
    let world = run.world.borrow();
    Ok(Outcome { tally: run.ledger.tally, digest: world.digest, turns, virtual_us: world.now })
}

impl Run {
    fn new(seed: u64, plan: Plan, rng: &mut Random, tracing: bool) -> Result<Run, String> {
        let mut world = World::new(mix(seed, 1), plan.shards, plan.weather.clone(), tracing);
        for (server, mood) in plan.moods.iter().enumerate() {
            // Only the last address of a name listens; the others are refused.
            let address = addresses(server).pop().ok_or("a server has an address")?;
            let (refuses, hangs, delay_us) = (mood.refuses, mood.hangs, mood.connect_us);
            world.places.push(crate::net::Place { address, refuses, hangs, delay_us });
        }
        let most = if plan.is_calm { 100_000 } else { 3_000_000 };
        for client in 0..plan.clients {
            let at = rng.below(most);
            world.at(at, Due::Arrival(client));
        }
        for nth in 0..plan.switches {
            let at = rng.below(most);
            world.at(at, Due::Operator(nth));
        }
        if plan.drains {
            let at = most / 2 + rng.below(most);
            world.at(at, Due::Operator(usize::MAX));
        }
        let world = Rc::new(RefCell::new(world));
        let facts = Facts {
            shards: plan.shards,
            descriptors: 1024,
            log_dropped: || 0,
            service_slots: Arc::default(),
            upstream_slots: Arc::default(),
        };
        let (snapshot, config) = build_snapshot(&plan.config(rng), None, &facts, 1)?;
        let snapshot = Arc::new(snapshot);
        let mut ledger = Ledger::default();
        ledger.watch.is_prompt = plan.weather.late == 0 && plan.weather.smallest_pipe >= 300;
        ledger.watch.add(config, &snapshot, plan.shards);
        let process = Arc::new(Process::new(seed, plan.shards, &[std::time::Duration::from_millis(1)]));
        process.ready.store(true, std::sync::atomic::Ordering::Relaxed);
        process.access.set_on(true);
        let (sender, notices) = queue(NOTICES);
        let stations = (0..plan.shards)
            .map(|shard| {
                let (commands, receiver) = queue(COMMANDS);
                let mailbox = Mailbox { shard, commands: receiver, notices: sender.clone() };
                let net = SimNet { world: world.clone(), shard };
                let listener = SimListener { world: world.clone(), shard };
                let (snapshot, process) = (snapshot.clone(), process.clone());
                let seed = mix(seed, 2 + shard as u64);
                let wall_us = 1_700_000_000_000_000;
                let shard = Shard::new(net, vec![listener], snapshot, process, mailbox, seed, wall_us);
                Station { shard: Some(shard), commands, has_mail: false, wake_at: Some(0), idle_turns: 0 }
            })
            .collect();
        let mut run = Run {
            seed,
            plan,
            world,
            stations,
            process,
            notices,
            facts,
            largest_buffer: snapshot.large_buffer(),
            snapshot,
            identities: Vec::new(),
            ledger,
            actors: Vec::new(),
            clients: Vec::new(),
            arrivals: 0,
            tickets: Vec::new(),
            streams: Vec::new(),
            events: Vec::new(),
            serial: 1,
            is_draining: false,
        };
        run.note_identities();
        Ok(run)
    }

    fn note_identities(&mut self) {
        for upstream in self.snapshot.services.iter().flat_map(|service| &service.upstreams) {
            self.identities.push(Arc::downgrade(&upstream.identity));
        }
    }

    /// Until the last client has gone.
    fn go(&mut self, rng: &mut Random) -> Result<u64, String> {
        let mut rounds = 0;
        while self.arrivals < self.plan.clients || self.clients.iter().any(|client| !client.is_done) {
            rounds += 1;
            if rounds > ROUNDS {
                return Err("the run does not end".to_owned());
            }
            self.round(rng)?;
            if rounds % 64 == 0 {
                let world = self.world.borrow();
                if let Some(stuck) = self.clients.iter_mut().find_map(|client| client.is_stuck(&world)) {
                    return Err(stuck);
                }
            }
        }
        Ok(rounds)
    }

    /// Everything that is due, then the shards that want a turn, then time.
    fn round(&mut self, rng: &mut Random) -> Result<(), String> {
        loop {
            let due = self.world.borrow_mut().take_due();
            let Some(due) = due else { break };
            self.happen(due, rng)?;
        }
        let now = self.world.borrow().now;
        for at in (0..self.tickets.len()).rev() {
            if self.tickets[at].0 <= now {
                let (_, ticket) = self.tickets.swap_remove(at);
                match rng.chance(500) {
                    true => self.stream_ticket(&ticket, rng),
                    false => self.answer_ticket(&ticket),
                }
            }
        }
        self.stream_on(rng);
        let mut ran = false;
        let first = rng.below(self.stations.len() as u64) as usize;
        for nth in 0..self.stations.len() {
            let shard = (first + nth) % self.stations.len();
            let station = &self.stations[shard];
            let wants = station.has_mail
                || station.wake_at.is_some_and(|at| at <= now)
                || self.world.borrow().has_events(shard);
            if station.shard.is_none() || !wants && !rng.chance(5) {
                continue;
            }
            ran = true;
            if !rng.chance(self.plan.weather.lazy) {
                self.turn(shard, rng)?;
            }
        }
        let mut world = self.world.borrow_mut();
        if let Some(fault) = world.faults.first() {
            return Err(fault.clone());
        }
        if ran {
            world.now += rng.below(200);
            return Ok(());
        }
        let wakes = self.stations.iter().filter(|station| station.shard.is_some()).filter_map(|s| s.wake_at);
        let tickets = self.tickets.iter().map(|(at, _)| *at);
        let streams = self.streams.iter().map(|streamed| streamed.at);
        let next = wakes.chain(tickets).chain(streams).chain(world.next_due()).min();
        let next = next.unwrap_or(now + 1_000_000).min(now + 5_000_000);
        world.now = next.max(now + 1);
        if rng.chance(self.plan.weather.late) {
            world.now += rng.below(self.plan.weather.late_us);
        }
        Ok(())
    }

    fn turn(&mut self, shard: usize, rng: &mut Random) -> Result<(), String> {
        let station = &mut self.stations[shard];
        let Some(running) = &mut station.shard else { return Ok(()) };
        self.events.clear();
        let (now, moves) = {
            let mut world = self.world.borrow_mut();
            world.poll(shard, &mut self.events);
            if std::mem::take(&mut station.has_mail) {
                let token = Subject::Mailbox.token();
                let mail =
                    Event { token, readable: true, writable: false, read_closed: false, hung_up: false, error: false };
                let at = rng.below(self.events.len() as u64 + 1) as usize;
                self.events.insert(at, mail);
            }
            let events = &self.events;
            world.trace(events.len() as u64, || {
                let named = |event: &Event| format!("{:?} {event:?}", Subject::of_token(event.token));
                format!("shard {shard} turns: {:?}", events.iter().map(named).collect::<Vec<_>>())
            });
            (world.now, world.moves)
        };
        self.ledger.watch.before_turn(now);
        running.turn(Tick::from_us(now), self.events.drain(..));
        let patience = running.patience();
        station.wake_at = patience.map(|patience| now.saturating_add(patience.as_micros() as u64));
        let moved = self.world.borrow().moves != moves;
        let waits = patience.is_none_or(|patience| !patience.is_zero());
        station.idle_turns = if waits || moved { 0 } else { station.idle_turns + 1 };
        if station.idle_turns > SPIN {
            return Err(format!("shard {shard} spins: {SPIN} turns in which nothing moved and none waits"));
        }
        self.world.borrow_mut().trace(14, || format!("shard {shard} has {:?}, waits {patience:?}", running.census()));
        let has_nothing = running.census() == (0, 0, 0) && self.world.borrow().queue_is_empty(shard);
        if let Some(patience) = patience.filter(|patience| has_nothing && !patience.is_zero()) {
            return Err(format!("shard {shard} has nothing left and still waits for {patience:?}"));
        }
        if running.is_drained() {
            // Its thread ends here.
            station.shard = None;
        }
        if self.process.shards[shard].panics.read() > 0 {
            return Err(format!("shard {shard} caught a panic"));
        }
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Ticket(ticket) => {
                    let late = if self.plan.is_calm { 1000 } else { rng.pick(&[10, 100_000, 40_000_000]) };
                    self.tickets.push((now + rng.below(late), *ticket));
                }
                Notice::Died { why, .. } => return Err(why),
                Notice::Switched { shard, serial } => self.ledger.watch.switched(shard, serial as usize - 1),
                Notice::Moved(moved) => self.ledger.watch.moved(&moved),
                _ => {}
            }
        }
        self.ledger.watch.after_turn(now, shard)?;
        self.judge_patience(shard)?;
        self.judge_buffers()
    }

    /// No try is waited for longer than it may take.
    fn judge_patience(&mut self, shard: usize) -> Result<(), String> {
        let world = self.world.borrow();
        for (link, actor) in self.actors.iter_mut().enumerate() {
            let Actor::Origin(origin, _) = actor else { continue };
            if world.links[link].shard != shard || !world.links[link].gate_open || !self.ledger.watch.is_prompt {
                continue;
            }
            let Some((asked, since)) = origin.owes_head(&self.ledger) else { continue };
            let rules = self.ledger.watch.only_rules(&self.ledger.asked[asked]);
            let Some(patience) = rules.and_then(|service| service.retries.per_try_timeout) else { continue };
            if world.now > since + patience.as_micros() as u64 + SLOW_US {
                origin.overdue += 1;
            }
            if origin.overdue > SLOW_TURNS {
                return Err(format!(
                    "link {link} owes the head of request {asked} since {since}, {patience:?} are allowed"
                ));
            }
        }
        Ok(())
    }

    /// What was read of one side and is not written to the other yet is bounded.
    fn judge_buffers(&self) -> Result<(), String> {
        let world = self.world.borrow();
        for (link, actor) in self.actors.iter().enumerate() {
            let Actor::Origin(origin, Some(flow)) = actor else { continue };
            let answer = &self.ledger.answers[flow.answer];
            if !world.links[link].gate_open || !world.links[flow.client].gate_open {
                continue;
            }
            let most = (3 * self.largest_buffer + SPLICE) as u64;
            if origin.awaits_body() && self.ledger.asked[answer.to].has_length {
                let taken = world.links[flow.client].up.read - flow.client_in;
                let given = world.links[link].down.written - flow.upstream_out;
                if taken > given + most {
                    return Err(format!("{} bytes of link {} are held for link {link}", taken - given, flow.client));
                }
            }
            // Only where as many bytes go out as come in.
            if answer.announced.is_none() && !answer.is_tunnel {
                continue;
            }
            let taken = world.links[link].up.read - flow.upstream_in;
            let given = world.links[flow.client].down.written - flow.client_out;
            if taken > given + most {
                return Err(format!("{} bytes of link {link} are held for link {}", taken - given, flow.client));
            }
        }
        Ok(())
    }

    fn happen(&mut self, due: Due, rng: &mut Random) -> Result<(), String> {
        match due {
            Due::Connected(link) => self.welcome(link),
            Due::Actor(link) => self.step(link),
            Due::Arrival(nth) => self.arrive(nth, rng),
            Due::Operator(usize::MAX) => self.drain(),
            Due::Operator(_) => self.switch(rng)?,
            Due::Edge(_) | Due::Reset(_) => {}
        }
        Ok(())
    }

    fn seat(&mut self, link: LinkId, actor: Actor) {
        while self.actors.len() <= link {
            self.actors.push(Actor::Nobody);
        }
        self.actors[link] = actor;
    }

    /// The gateway has connected to an upstream.
    fn welcome(&mut self, link: LinkId) {
        let mut world = self.world.borrow_mut();
        let Some(server) = world.links[link].server.filter(|server| *server < SERVERS) else { return };
        let origin = Origin::new(&mut world, link, server, &self.plan.moods[server]);
        world.wake_actor(link, 0);
        drop(world);
        self.seat(link, Actor::Origin(Box::new(origin), None));
    }

    fn arrive(&mut self, nth: usize, rng: &mut Random) {
        self.arrivals += 1;
        let mut world = self.world.borrow_mut();
        let manner = self.plan.manner(rng);
        let shard = rng.below(self.stations.len() as u64) as usize;
        let address = client_address(nth, manner.is_local);
        // Nobody listens any more: the gateway drains.
        let Some(link) = world.client_connects(shard, address) else { return };
        let client = Client::new(&mut world, &mut self.ledger, self.seed, link, &self.plan, manner);
        world.wake_actor(link, 0);
        drop(world);
        self.clients.push(client);
        let at = self.clients.len() - 1;
        self.clients[at].is_draining = self.is_draining;
        self.seat(link, Actor::Client(at));
    }

    fn step(&mut self, link: LinkId) {
        let mut world = self.world.borrow_mut();
        match self.actors.get_mut(link) {
            Some(Actor::Client(at)) => self.clients[*at].step(&mut world, &mut self.ledger, self.seed),
            Some(Actor::Origin(origin, flow)) => {
                let before = self.ledger.answers.len();
                origin.step(&mut world, &mut self.ledger, self.seed);
                if let Some(answer) = (self.ledger.answers.len() > before).then_some(before) {
                    let client = self.ledger.asked[self.ledger.answers[answer].to].client;
                    *flow = Some(Flow {
                        client,
                        answer,
                        client_in: world.links[client].up.read,
                        client_out: world.links[client].down.written,
                        upstream_in: world.links[link].up.read,
                        upstream_out: world.links[link].down.written,
                    });
                }
            }
            Some(Actor::Nobody) | None => {}
        }
    }

    /// A new configuration for all shards; each takes it when it looks.
    fn switch(&mut self, rng: &mut Random) -> Result<(), String> {
        self.serial += 1;
        let text = self.plan.config(rng);
        let (snapshot, config) = build_snapshot(&text, Some(&self.snapshot), &self.facts, self.serial)?;
        let snapshot = Arc::new(snapshot);
        self.ledger.watch.add(config, &snapshot, self.stations.len());
        self.world.borrow_mut().trace(40, || format!("the operator switches to\n{text}"));
        self.largest_buffer = self.largest_buffer.max(snapshot.large_buffer());
        let left = self.snapshot.retire(&snapshot);
        self.snapshot = snapshot;
        self.note_identities();
        for station in &mut self.stations {
            let (snapshot, left) = (self.snapshot.clone(), left.clone());
            if station.shard.is_some() && station.commands.tell(Command::Switch { snapshot, left }).is_ok() {
                station.has_mail = true;
            }
        }
        Ok(())
    }

    fn drain(&mut self) {
        self.is_draining = true;
        self.world.borrow_mut().trace(41, || "the operator drains the gateway".to_owned());
        self.clients.iter_mut().for_each(|client| client.is_draining = true);
        for station in &mut self.stations {
            if station.commands.tell(Command::Drain).is_ok() {
                station.has_mail = true;
            }
        }
    }

    /// Control has more and more to say, until it has said all.
    fn stream_ticket(&mut self, ticket: &Ticket, rng: &mut Random) {
        let bytes = rendered(ticket, Persistence::Close);
        let parts = bytes.chunks(100).enumerate().map(|(at, part)| {
            let kind = (at > 0).then_some(Part::Event);
            (kind, part.to_vec())
        });
        let mut parts: VecDeque<_> = parts.collect();
        parts.push_back((Some(Part::Sample), Vec::new()));
        parts.push_back((Some(Part::Last), Vec::new()));
        let (shard, client, at) = (ticket.shard, ticket.client, self.world.borrow().now);
        let told = Told::of(ticket, "own");
        self.streams.push(Streamed { at, shard, client, told, parts });
        self.stream_on(rng);
    }

    fn stream_on(&mut self, rng: &mut Random) {
        let now = self.world.borrow().now;
        for streamed in self.streams.iter_mut().filter(|streamed| streamed.at <= now) {
            let Some((part, piece)) = streamed.parts.pop_front() else { continue };
            let most = rng.pick(&[10, 100_000, 1_000_000]);
            streamed.at = now + rng.below(most);
            // Whoever is behind at the end is cut off: where nothing goes wrong, there is time to read.
            if self.plan.is_calm && streamed.parts.len() == 1 {
                streamed.at = now + 5_000_000;
            }
            let station = &mut self.stations[streamed.shard];
            let (client, pieces) = (streamed.client, VecDeque::from([piece]));
            let command = match part {
                Some(part) => Command::Stream { client, part, pieces },
                None => Command::Begin { client, told: streamed.told.clone(), pieces },
            };
            if station.shard.is_some() && station.commands.tell(command).is_ok() {
                station.has_mail = true;
            }
        }
        self.streams.retain(|streamed| !streamed.parts.is_empty());
    }

    fn answer_ticket(&mut self, ticket: &Ticket) {
        let bytes = rendered(ticket, ticket.persistence);
        let pieces = bytes.chunks(100).map(<[u8]>::to_vec).collect();
        let station = &mut self.stations[ticket.shard];
        if station.shard.is_some()
            && station
                .commands
                .tell(Command::Answer { client: ticket.client, told: Told::of(ticket, "own"), pieces })
                .is_ok()
        {
            station.has_mail = true;
        }
    }

    /// The clients have gone: what is left must go too, and then nothing may be left.
    fn settle(&mut self, rng: &mut Random) -> Result<(), String> {
        let until = self.world.borrow().now + FAR_US;
        let mut rounds = 0;
        while self.world.borrow().now < until {
            self.round(rng)?;
            rounds += 1;
            let sleeps = self.stations.iter().all(|s| s.wake_at.is_none() && !s.has_mail)
                && self.tickets.is_empty()
                && self.streams.is_empty();
            if sleeps && self.world.borrow().next_due().is_none() && rounds > 5 {
                break;
            }
            if rounds > ROUNDS {
                return Err("the gateway does not come to rest".to_owned());
            }
        }
        for shard in 0..self.stations.len() {
            if self.is_draining && self.stations[shard].shard.is_some() {
                return Err(format!("shard {shard} has no client left and is not drained"));
            }
            let Some(running) = &self.stations[shard].shard else { continue };
            let census = running.census();
            if census != (0, 0, 0) {
                return Err(format!("shard {shard} still has (clients, exchanges, upstream connections) {census:?}"));
            }
        }
        let world = self.world.borrow();
        if world.sockets > 0 {
            let open: Vec<LinkId> = (0..world.links.len()).filter(|link| world.links[*link].gate_open).collect();
            return Err(format!("the gateway leaks {} sockets: {open:?}", world.sockets));
        }
        if self.process.connections() > 0 {
            return Err(format!("{} connections are still counted", self.process.connections()));
        }
        for identity in self.identities.iter().filter_map(Weak::upgrade) {
            let begun: u64 = identity.counters.iter().map(|c| c.attempts.read()).sum();
            let settled: u64 = identity.counters.iter().map(|c| c.settled.read()).sum();
            let ended: u64 = identity.counters.iter().flat_map(|c| &c.endings).map(Counter::read).sum();
            if ended != settled {
                return Err(format!("{settled} permits of {} were settled, {ended} ends counted", identity.key));
            }
            if begun != settled {
                return Err(format!("{begun} attempts of {} began, {settled} permits were settled", identity.key));
            }
            let admitted = watch::admitted(&identity);
            if admitted != 0 {
                return Err(format!("{admitted} requests are still counted at {}", identity.key));
            }
            let in_flight: u64 = identity.counters.iter().fold(0, |sum, c| sum.wrapping_add(c.in_flight.read()));
            if in_flight != 0 {
                return Err(format!("{} attempts of {} never ended", in_flight as i64, identity.key));
            }
        }
        let requests: u64 = self.process.shards.iter().map(|shard| shard.requests.read()).sum();
        let mut lines = 0;
        for shard in 0..self.process.access.shards() {
            let mut bytes = Vec::new();
            self.process.access.take(shard, &mut bytes);
            let mut left = &bytes[..];
            lines += std::iter::from_fn(|| Encoded::first(&mut left)?.decode()).count() as u64;
        }
        if lines + self.process.access.dropped() != requests {
            return Err(format!("{requests} requests came, {lines} lines of the access log were written"));
        }
        // After every cooldown and lease each upstream must be had again.
        let far_ms = (world.now + FAR_US) / 1000;
        for upstream in self.snapshot.services.iter().flat_map(|service| &service.upstreams) {
            let shared = &upstream.identity.breaker;
            match shared.acquire(far_ms, upstream.breaker.lease_ms, &upstream.breaker) {
                None => return Err(format!("{} is wedged: {:?}", upstream.identity.key, shared.view())),
                Some(grant) => shared.settle(grant.permit, breaker::Outcome::Neutral, far_ms, &upstream.breaker),
            };
        }
        Ok(())
    }
}

fn build_snapshot(
    text: &str,
    previous: Option<&Snapshot>,
    facts: &Facts,
    serial: u64,
) -> Result<(Snapshot, Config), String> {
    let loaded =
        config::parse("sim.yaml", text, &|_| None).map_err(|error| format!("{error}\n{}", shown(text.as_bytes())))?;
    let mut found = Addresses::new();
    for server in 0..SERVERS {
        let name = authority(server);
        let (host, _) = name.split_once(':').ok_or("an authority has a port")?;
        found.insert((host.to_owned(), 8001 + server as u16), addresses(server));
    }
    debug_assert_eq!(GATE.1, 8000);
    let snapshot = build::snapshot(&loaded.config, previous, &found, facts, serial, serial).0;
    Ok((snapshot, loaded.config))
}

/// What control answers.
fn rendered(ticket: &Ticket, persistence: Persistence) -> Vec<u8> {
    let mut bytes = Vec::new();
    let answer = Answer {
        status: 200,
        content_type: "application/json",
        extra: b"",
        date: b"Tue, 14 Nov 2023 22:13:20 GMT",
        persistence,
        to_head: ticket.to_head,
    };
    render::answer(&mut bytes, &answer, b"{}\n");
    bytes
}

//! A scripted client: one connection, its requests, and the judge of every byte that it gets back.

use crate::ledger::{Asked, Kind, Ledger, answer_key, request_key};
use crate::net::{Got, LinkId, World};
use crate::origin::{push_broken_chunks, push_chunks};
use crate::plan::{HangUp, Manner, Plan, WAITING};
use crate::rng::{Random, body_bytes, body_differs, mix};
use crate::watch::Watch;
use crate::wire::{Framing, Head, Part, Reader};
use fusegate::config::model::Service;

/// A body that is kept for a replay in any case, as far as its size goes.
const SMALL_BODY: u64 = 4000;

/// One request on its way.
#[derive(Debug)]
struct Script {
    asked: usize,
    bytes: Vec<u8>,
    head_len: usize,
}

/// A final response that has begun.
#[derive(Debug)]
struct Receiving {
    /// Of an upstream; else the gateway's own.
    answer: Option<usize>,
    status: u16,
    own: Vec<u8>,
    body: usize,
    closes: bool,
    is_problem: bool,
    /// `Retry-After` in seconds.
    retry_after_s: Option<u64>,
    /// When its head was here.
    at: u64,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) link: LinkId,
    manner: Manner,
    scripts: Vec<Script>,
    sending: usize,
    sent: usize,
    answered: usize,
    reader: Reader,
    receiving: Option<Receiving>,
    /// A response said that it was the last one.
    is_last: bool,
    goes_ahead: bool,
    waits_until: Option<u64>,
    /// It does not send any more.
    is_mute: bool,
    is_tunnel: bool,
    /// The other side of the tunnel has said all.
    hears_nothing: bool,
    leaves_at: Option<u64>,
    hangs_up_at: Option<u64>,
    received: u64,
    pub(crate) is_done: bool,
    progress: (u64, u64),
    progress_at: u64,
    calm: bool,
    may_race: bool,
    limited: bool,
    patience_us: u64,
    pub(crate) is_draining: bool,
}

/// Requests that must be refused, with what may answer them. `@` is replaced by a path that works.
const MALFORMED: &[(&str, &[u16])] = &[
    ("GET @ HTTP/1.1\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a b\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n folded\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim : no\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\nHost: a\nX-Sim: no\n\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: n\0o\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: n\ro\r\n\r\n", &[400]),
    ("GET  @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n\r\n", &[400]),
    ("GET @ HTTP/1.1 \r\nHost: a\r\nX-Sim: no\r\n\r\n", &[400]),
    ("GET @#f HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n\r\n", &[400]),
    ("GET @%zz HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n\r\n", &[400]),
    ("GET @ HTTP/2.0\r\nHost: a\r\nX-Sim: no\r\n\r\n", &[505]),
    ("GET @ HTTP/1.2\r\nHost: a\r\nX-Sim: no\r\n\r\n", &[505]),
    ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", &[501]),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", &[400]),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nContent-Length: +5\r\n\r\nhello", &[400]),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nContent-Length: 5, 5\r\n\r\nhello", &[400]),
    (
        "POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST @ HTTP/1.0\r\nHost: a\r\nX-Sim: no\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nExpect: tea\r\n\r\n", &[417]),
    ("TRACE @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nContent-Length: 1\r\n\r\nx", &[400]),
    ("GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nConnection: a b\r\n\r\n", &[400]),
];

/// What a smuggler would hide behind a request. It must not be answered nor passed on.
const SMUGGLED: &str = "GET @ HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n\r\n";

impl Client {
    /// A client with everything that it will ask.
    pub(crate) fn new(
        world: &mut World,
        ledger: &mut Ledger,
        seed: u64,
        link: LinkId,
        plan: &Plan,
        manner: Manner,
    ) -> Client {
        let address = world.links[link].peer.ip().to_string();
        let rng = &mut world.rng;
        let mut scripts = Vec::new();
        for nth in 0..manner.requests {
            let is_last = nth + 1 == manner.requests;
            let script = script(rng, ledger, seed, link, &address, &manner, is_last, plan);
            let ends = ledger.asked[script.asked].upgrades
                || ledger.asked[script.asked].kind != Kind::Proxied && !matches_keep(&ledger.asked[script.asked])
                || !ledger.asked[script.asked].keeps_alive
                || ledger.asked[script.asked].broken_at.is_some();
            scripts.push(script);
            if ends {
                break;
            }
        }
        Client {
            link,
            manner,
            scripts,
            sending: 0,
            sent: 0,
            answered: 0,
            reader: Reader::new(),
            receiving: None,
            is_last: false,
            goes_ahead: false,
            waits_until: None,
            is_mute: false,
            is_tunnel: false,
            hears_nothing: false,
            leaves_at: None,
            hangs_up_at: None,
            received: 0,
            is_done: false,
            progress: (0, 0),
            progress_at: world.now,
            calm: plan.is_calm,
            may_race: plan.has_idle_close || plan.switches > 0,
            limited: plan.limits_connections,
            patience_us: plan.patience_us,
            is_draining: false,
        }
    }

    /// Looks at its connection.
    pub(crate) fn step(&mut self, world: &mut World, ledger: &mut Ledger, seed: u64) {
        if self.is_done {
            return;
        }
        let outcome = self.read(world, ledger, seed);
        if let Err(what) = outcome {
            world.fault(format!("towards the client on link {}: {what}", self.link));
            self.leave(world, HangUp::Close);
            return;
        }
        if self.is_done {
            return;
        }
        self.write(world, ledger);
        if self.hears_nothing && self.is_mute && !self.is_done {
            self.leave(world, HangUp::Close);
        }
        if self.is_done {
            return;
        }
        if let Some((how, at)) = self.manner.hangs_up
            && (self.received + world.links[self.link].up.written >= at
                || at == WAITING && self.sending > self.answered)
        {
            // Not at once: the gateway may be waiting for something by then, or for a retry's time.
            let left_in = *self.hangs_up_at.get_or_insert(world.now + self.manner.hangs_up_after_us);
            if left_in > world.now {
                world.wake_actor(self.link, left_in - world.now);
            } else {
                self.manner.hangs_up = None;
                self.leave(world, how);
                return;
            }
        }
        let all = self.answered == self.scripts.len() && self.receiving.is_none();
        if all && !self.is_last && !self.manner.lingers && self.leaves_at.is_none() {
            let pause = world.rng.below(200_000);
            self.leaves_at = Some(world.now + pause);
            world.wake_actor(self.link, pause);
        }
        if self.leaves_at.is_some_and(|at| at <= world.now) {
            self.leave(world, HangUp::Close);
        }
    }

    fn leave(&mut self, world: &mut World, how: HangUp) {
        world.links[self.link].left_at.get_or_insert(world.now);
        match how {
            HangUp::Half => {
                world.actor_shuts(self.link);
                self.is_mute = true;
                return;
            }
            HangUp::Close => world.actor_closes(self.link),
            HangUp::Reset => world.actor_resets(self.link),
        }
        self.is_done = true;
    }

    /// Whether it has waited too long; to be asked now and then.
    pub(crate) fn is_stuck(&mut self, world: &World) -> Option<String> {
        let link = &world.links[self.link];
        let progress = (link.up.written + link.up.read, link.down.written + link.down.read);
        if self.is_done || progress != self.progress {
            self.progress = progress;
            self.progress_at = world.now;
            return None;
        }
        // One that has nothing to wait for waits for the gateway's keep-alive time at most.
        let patience = if self.answered == self.scripts.len() { 100_000_000 } else { self.patience_us };
        (world.now > self.progress_at + patience + 5_000_000).then(|| {
            format!(
                "the client on link {} waits since {:.3}: {} of {} requests sent, {} answered, {:?}",
                self.link,
                self.progress_at as f64 / 1e6,
                self.sending,
                self.scripts.len(),
                self.answered,
                self.receiving
            )
        })
    }

    fn write(&mut self, world: &mut World, ledger: &mut Ledger) {
        while !self.is_mute && self.sending < self.scripts.len() && self.sending < self.answered + self.manner.depth {
            let script = &self.scripts[self.sending];
            let (number, is_first) = (script.asked, self.sent == 0);
            let asked = &mut ledger.asked[number];
            let mut end = script.bytes.len();
            if asked.expects && !self.goes_ahead && self.sent <= script.head_len {
                end = script.head_len;
                if self.sent == end {
                    let until = *self.waits_until.get_or_insert(world.now + 300_000);
                    if until > world.now {
                        world.wake_actor(self.link, until - world.now);
                        return;
                    }
                    self.goes_ahead = true;
                    continue;
                }
            }
            let piece = 1 + world.rng.below(self.manner.write_piece as u64) as usize;
            let to = end.min(self.sent + piece);
            let n = match world.actor_writes(self.link, &script.bytes[self.sent..to]) {
                Ok(n) => n,
                Err(()) => {
                    self.is_mute = true;
                    if self.hears_nothing {
                        self.leave(world, HangUp::Close);
                    }
                    return;
                }
            };
            if n > 0 {
                if is_first {
                    asked.begun_at = world.now;
                    asked.oldest = ledger.watch.oldest(world.links[self.link].shard);
                }
                asked.sent_at = world.now;
            }
            self.sent += n;
            if self.sent == script.bytes.len() {
                self.sending += 1;
                self.sent = 0;
                self.goes_ahead = false;
                self.waits_until = None;
                if self.is_tunnel {
                    world.actor_shuts(self.link);
                    self.is_mute = true;
                    if self.hears_nothing {
                        return self.leave(world, HangUp::Close);
                    }
                }
                if asked.broken_at.is_some() && !asked.is_chunked && self.manner.malformed > 0 {
                    // The body ends early, and with it what this client says.
                    world.actor_shuts(self.link);
                    self.is_mute = true;
                }
            } else if n == 0 {
                // Room makes the gateway's read wake us.
                return;
            } else {
                let pause = world.rng.below(self.manner.pause_us + 1);
                world.wake_actor(self.link, pause);
                return;
            }
        }
    }

    fn read(&mut self, world: &mut World, ledger: &mut Ledger, seed: u64) -> Result<(), String> {
        if self.hears_nothing {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let most = 1 + world.rng.below(self.manner.read_piece as u64) as usize;
        let got = world.actor_reads(self.link, most, &mut bytes);
        self.received += bytes.len() as u64;
        if !world.links[self.link].down.bytes.is_empty() || got == Got::Bytes && world.links[self.link].down.fin {
            let pause = world.rng.below(self.manner.pause_us + 1);
            world.wake_actor(self.link, pause);
        }
        match got {
            Got::Nothing => return Ok(()),
            Got::Bytes => self.reader.push(&bytes),
            Got::End => {
                if let Some(part) = self.reader.close() {
                    self.take(part, world, ledger, seed)?;
                }
                if self.is_tunnel && !self.is_mute {
                    // The other direction goes on.
                    self.hears_nothing = true;
                    return Ok(());
                }
                return self.end(world, ledger, true);
            }
            Got::Reset => return self.end(world, ledger, false),
        }
        while let Some(part) = self.reader.next()? {
            self.take(part, world, ledger, seed)?;
        }
        Ok(())
    }

    /// The connection has ended.
    fn end(&mut self, world: &mut World, ledger: &mut Ledger, in_order: bool) -> Result<(), String> {
        let left = (self.scripts.len() - self.answered) as u64;
        // The gateway lingers behind its last response, but not for ever: one who reads slowly and still sends
        // gets a reset, which may take away what was not read.
        let pipelined = self.sending > self.answered + 1 || self.sending == self.answered + 1 && self.sent > 0;
        let excused = self.is_draining || !in_order && (pipelined || self.is_mute);
        if let Some(receiving) = self.receiving.take() {
            ledger.tally.cut += 1;
            if self.calm && !excused {
                return Err(format!("a response is cut although nothing went wrong: {receiving:?}"));
            }
        } else if !self.reader.is_between() {
            ledger.tally.cut += 1;
            if self.calm && !excused {
                return Err("a response head is cut although nothing went wrong".to_owned());
            }
        } else {
            ledger.tally.unanswered += left;
            let excused = excused || self.is_last || self.is_mute;
            if self.calm && left > 0 && !excused {
                return Err(format!("{left} requests are not answered although nothing went wrong, {in_order}"));
            }
        }
        self.leave(world, HangUp::Close);
        Ok(())
    }

    fn take(&mut self, part: Part, world: &mut World, ledger: &mut Ledger, seed: u64) -> Result<(), String> {
        match part {
            Part::Head(head) => self.take_head(&head, world, ledger, seed),
            Part::Body(bytes) => {
                let it = self.receiving.as_mut().ok_or("a body without a head")?;
                match it.answer {
                    None => it.own.extend_from_slice(&bytes),
                    Some(answer) => {
                        if let Some(at) = body_differs(answer_key(seed, answer), it.body, &bytes) {
                            return Err(format!("the body of answer {answer} is wrong at byte {at}"));
                        }
                    }
                }
                it.body += bytes.len();
                if it.answer.is_some_and(|answer| it.body > ledger.answers[answer].body_len) {
                    return Err(format!("the body is longer than what was answered: {it:?}"));
                }
                Ok(())
            }
            Part::End { trailers } => self.take_end(&trailers, world, ledger),
        }
    }

    fn take_head(&mut self, head: &Head, world: &mut World, ledger: &mut Ledger, seed: u64) -> Result<(), String> {
        let bad = |what: &str| Err(format!("{what}: {head:?}"));
        if self.is_last {
            return bad("a response behind one that said it was the last");
        }
        let (version, status, reason) = head.words()?;
        let status: u16 = status.parse().map_err(|_| format!("status {status:?}"))?;
        if version != "HTTP/1.1" || !(100..600).contains(&status) {
            return bad("the status line");
        }
        let begun = self.sending > self.answered || self.sending == self.answered && self.sent > 0;
        let token = head.one("proxy-status")?;
        let over_limit = self.limited && token.is_some_and(|token| token.ends_with("connection_limit_reached"));
        if !begun && !over_limit {
            return bad("a response that nobody asked for");
        }
        let Some(script) = self.scripts.get(self.answered) else { return bad("a response too many") };
        let number = script.asked;
        ledger.asked[number].is_answered = true;
        let asked = &ledger.asked[number];
        for gone in ["x-hop", "keep-alive", "upgrade", "te", "proxy-connection"] {
            if head.has(gone) && !(gone == "upgrade" && status == 101) {
                return bad(&format!("{gone} was passed on"));
            }
        }
        if status == 101 {
            return self.take_switch(head, asked.upgrades, world, ledger, seed);
        }
        if status < 200 {
            if !asked.is_http11 || asked.kind != Kind::Proxied || status == 101 {
                return bad("an interim response that must not be");
            }
            if head.announced()?.is_some() || head.has("connection") {
                return bad("framing in an interim response");
            }
            let own = match status {
                100 => asked.expects,
                _ => head.one("x-sim")? == Some(&script.asked.to_string()),
            };
            if !own {
                return bad("an interim response of another request");
            }
            self.goes_ahead |= status == 100 && self.sending == self.answered;
            self.reader.expect_head();
            return Ok(());
        }
        let closes = match head.one("connection")? {
            None => !asked.is_http11,
            Some("close") => true,
            Some("keep-alive") if !asked.is_http11 => false,
            _ => return bad("Connection"),
        };
        if asked.kind != Kind::Garbage && !over_limit && !closes && !asked.keeps_alive && !asked.upgrades {
            return bad("the connection persists although the client said close");
        }
        if head.one("date")?.is_none() {
            return bad("no Date");
        }
        let without_body = asked.method == "HEAD" || status == 204 || status == 304;
        let announced = head.announced()?;
        if status == 204 && announced.is_some() {
            return bad("a 204 with a length");
        }
        let framing = match announced {
            _ if without_body => Framing::Empty,
            Some(Framing::Chunked) if !asked.is_http11 => return bad("chunks for HTTP/1.0"),
            Some(framing) => framing,
            None if asked.is_http11 => return bad("no framing"),
            None if !closes => return bad("until close on a connection that persists"),
            None => Framing::UntilClose,
        };
        let answer = match head.one("x-answer")? {
            None => {
                self.judge_own(head, status, asked, over_limit, &ledger.watch)?;
                None
            }
            Some(serial) => {
                let serial: usize = serial.parse().map_err(|_| format!("answer {serial:?}"))?;
                let Some(answer) = ledger.answers.get(serial) else { return bad("an answer that nobody gave") };
                let twice: Vec<&str> = head.all("x-twice").collect();
                let same = answer.to == script.asked
                    && head.one("x-sim")? == Some(&script.asked.to_string())
                    && answer.status == status
                    && reason == answer.reason
                    && head.one("x-mark")? == Some(&answer.mark)
                    && twice == ["a", "b"];
                if !same {
                    return bad(&format!("request {} got another answer: {answer:?}", script.asked));
                }
                if asked.tries[answer.nth + 1..].iter().any(|later| later.is_live) {
                    return bad(&format!("the answer was given up for another try: {:?}", asked.tries));
                }
                if answer.is_malformed {
                    return bad("a malformed response was passed on");
                }
                let length = match (announced, answer.announced) {
                    (Some(Framing::Length(told)), Some(given)) => told == given as u64,
                    (Some(Framing::Length(_)), None) => false,
                    (_, Some(_)) => false,
                    _ => true,
                };
                if !length {
                    return bad(&format!("the length is not the upstream's: {answer:?}"));
                }
                Some(serial)
            }
        };
        if self.sending == self.answered {
            // It may stop sending: it has its answer. What it has begun it ends as often as not.
            self.goes_ahead = true;
            if closes && world.rng.chance(500) {
                self.is_mute = true;
            }
        }
        let is_problem = answer.is_none() && head.one("content-type")? == Some("application/problem+json");
        world.trace(30, || format!("link {}: client has the head of {status}, answer {answer:?}", self.link));
        let retry_after_s = head.one("retry-after")?.and_then(|seconds| seconds.parse().ok());
        let (own, at) = (Vec::new(), world.now);
        self.receiving = Some(Receiving { answer, status, own, body: 0, closes, is_problem, retry_after_s, at });
        self.reader.expect_body(framing);
        Ok(())
    }

    /// The connection becomes a tunnel: what is to be said in it goes behind the request.
    fn take_switch(
        &mut self,
        head: &Head,
        asked_for: bool,
        world: &mut World,
        ledger: &Ledger,
        seed: u64,
    ) -> Result<(), String> {
        let script = &mut self.scripts[self.answered];
        let serial = head.one("x-answer")?.and_then(|serial| serial.parse::<usize>().ok());
        let answer = serial.and_then(|serial| ledger.answers.get(serial));
        let granted = asked_for
            && answer.is_some_and(|answer| answer.is_tunnel && answer.to == script.asked)
            && head.one("upgrade")? == Some("websocket")
            && head.one("connection")?.is_some_and(|option| option.eq_ignore_ascii_case("upgrade"))
            && head.announced()?.is_none();
        if !granted {
            return Err(format!("a 101 that must not be: {head:?}"));
        }
        let len = ledger.asked[script.asked].body_len;
        body_bytes(request_key(seed, script.asked), 0, len, &mut script.bytes);
        // It was sent whole; now there is more of it.
        self.sending = self.answered;
        self.sent = script.head_len;
        self.is_tunnel = true;
        let answer = serial;
        self.receiving = Some(Receiving {
            answer,
            status: 101,
            own: Vec::new(),
            body: 0,
            closes: true,
            is_problem: false,
            retry_after_s: None,
            at: world.now,
        });
        self.reader.expect_tunnel();
        world.wake_actor(self.link, 0);
        Ok(())
    }

    /// An answer of the gateway's own: whether it may be given to this request.
    fn judge_own(
        &self,
        head: &Head,
        status: u16,
        asked: &Asked,
        over_limit: bool,
        watch: &Watch,
    ) -> Result<(), String> {
        let broken = asked.broken_at.is_some() || self.is_mute;
        let fine = match asked.kind {
            _ if over_limit => status == 503,
            Kind::Proxied if self.calm => {
                let race =
                    self.may_race && status == 502 && head.all("proxy-status").any(|s| s.ends_with("terminated"));
                // The limit is one of what was read, with the framing of chunks.
                let is_lost = |service: &Service| {
                    asked.is_chunked
                        || !service.retries.repeats(asked.method)
                        || asked.body_len as u64 > service.retries.body_limit.min(SMALL_BODY)
                };
                broken && status == 400 || race && watch.rules(asked).any(is_lost)
            }
            Kind::Proxied => match status {
                400 => broken,
                408 | 502 | 503 | 504 => true,
                413 => asked.body_len > 0,
                // What a response said that was given up for a retry that had to wait, and that found nobody then.
                _ => {
                    status >= 400
                        && watch
                            .rules(asked)
                            .any(|it| it.retries.backoff.is_some() && it.retries.on.counts_status(status))
                }
            },
            Kind::NoService => status == 404,
            Kind::Live => status == 200,
            Kind::Asterisk => status == 204,
            Kind::Status => status == 200 || status == 503 && !self.calm,
            Kind::Malformed(statuses) => statuses.contains(&status),
            Kind::Garbage => (400..600).contains(&status),
        } || status == 408 && !self.calm;
        let has_form = status < 300 || head.one("content-type")? == Some("application/problem+json");
        if fine && has_form { Ok(()) } else { Err(format!("this answer to {asked:?} must not be: {head:?}")) }
    }

    /// Whether what an answer of the gateway's own says can be true.
    fn judge_detail(
        &self,
        it: &Receiving,
        asked: &Asked,
        detail: &str,
        world: &World,
        ledger: &Ledger,
    ) -> Result<(), String> {
        if it.status == 503 {
            return ledger.watch.judge_refusal(asked, detail, it.retry_after_s);
        }
        let patience = ledger.watch.only_rules(asked).and_then(|service| service.retries.per_try_timeout);
        let (Some(patience), true) = (patience, detail.contains("retries.per_try_timeout")) else { return Ok(()) };
        // All of it goes at once where nothing is in the way: then a client that sends slowly is what is waited for.
        let script = &self.scripts[self.answered];
        let flows = 2 * script.bytes.len() + 600 < world.weather.smallest_pipe as usize;
        if !flows || !ledger.watch.is_prompt || asked.expects {
            return Ok(());
        }
        let early = it.at < asked.sent_at + patience.as_micros() as u64;
        if early || self.sending == self.answered {
            return Err(format!("the upstream is blamed for a slow client at {}: {asked:?}", it.at));
        }
        Ok(())
    }

    fn take_end(
        &mut self,
        trailers: &[(String, String)],
        world: &mut World,
        ledger: &mut Ledger,
    ) -> Result<(), String> {
        let it = self.receiving.take().ok_or("an end without a head")?;
        let script = &self.scripts[self.answered];
        let asked = &ledger.asked[script.asked];
        match it.answer {
            Some(serial) => {
                let answer = &ledger.answers[serial];
                let without_body = asked.method == "HEAD" || it.status == 204 || it.status == 304;
                if answer.is_tunnel && !self.calm && it.body < answer.body_len {
                    // The timeout of a tunnel ends it like this; the protocol inside must tell.
                    ledger.tally.cut += 1;
                    self.answered += 1;
                    self.is_last = true;
                    return Ok(());
                }
                if !without_body && !answer.complete {
                    return Err(format!("answer {serial} was cut short and looks complete: {answer:?}"));
                }
                if it.body != answer.body_len {
                    return Err(format!("answer {serial} has {} bytes: {answer:?}", it.body));
                }
                let wanted = format!("t{}", script.asked);
                if trailers.iter().any(|(name, value)| name != "x-trail" || *value != wanted) {
                    return Err(format!("answer {serial} has the trailers {trailers:?}"));
                }
                ledger.tally.whole += 1;
                ledger.tally.tunnels += u64::from(answer.is_tunnel);
            }
            None => {
                if it.is_problem && asked.method != "HEAD" {
                    let json: serde_json::Value = serde_json::from_slice(&it.own)
                        .map_err(|error| format!("a problem that is no JSON: {error}"))?;
                    if json["status"].as_u64() != Some(u64::from(it.status)) {
                        return Err(format!("a problem that tells another status: {json}"));
                    }
                    if asked.kind == Kind::Proxied {
                        self.judge_detail(&it, asked, json["detail"].as_str().unwrap_or_default(), world, ledger)?;
                    }
                }
                ledger.tally.own += 1;
            }
        }
        self.answered += 1;
        self.is_last = it.closes;
        if self.is_last && self.answered > self.sending && !self.is_tunnel {
            self.is_mute = true;
        }
        // A request that got its answer before it was sent to its end: nothing may follow.
        if self.answered > self.sending && self.sent > 0 && !self.is_last {
            return Err("a request was answered before it had come whole, and the connection persists".to_owned());
        }
        if self.is_last {
            let pause = world.rng.below(self.manner.pause_us + 1);
            world.wake_actor(self.link, pause);
        }
        world.wake_actor(self.link, 0);
        Ok(())
    }
}

fn matches_keep(asked: &Asked) -> bool {
    matches!(asked.kind, Kind::NoService | Kind::Live | Kind::Asterisk | Kind::Status)
}

/// Makes a request.
#[allow(clippy::too_many_arguments)]
fn script(
    rng: &mut Random,
    ledger: &mut Ledger,
    seed: u64,
    client: LinkId,
    address: &str,
    manner: &Manner,
    is_last: bool,
    plan: &Plan,
) -> Script {
    let number = ledger.asked.len();
    let service = rng.below(2) as usize;
    let key = (!rng.chance(150)).then(|| rng.below(6));
    let kind = match rng.below(100) {
        _ if rng.chance(manner.malformed) => {
            if rng.chance(200) {
                Kind::Garbage
            } else {
                Kind::Malformed(&[])
            }
        }
        0..=1 => Kind::NoService,
        2..=3 => Kind::Live,
        4 => Kind::Asterisk,
        5..=7 if manner.is_local => Kind::Status,
        _ => Kind::Proxied,
    };
    let method = match kind {
        Kind::Proxied => rng.pick(&["GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "PATCH"]),
        Kind::NoService => rng.pick(&["GET", "POST", "HEAD"]),
        Kind::Live => rng.pick(&["GET", "HEAD"]),
        Kind::Asterisk => "OPTIONS",
        Kind::Status => rng.pick(&["GET", "HEAD"]),
        Kind::Malformed(_) | Kind::Garbage => "GET",
    };
    let is_http11 = !rng.chance(120);
    let keeps_alive = if is_http11 { !(is_last && rng.chance(300) || rng.chance(15)) } else { rng.chance(700) };
    let may_have_body = matches!(kind, Kind::Proxied);
    let has_body = may_have_body && (matches!(method, "POST" | "PUT" | "PATCH") || rng.chance(60));
    let is_chunked = has_body && is_http11 && rng.chance(500);
    let body_len = if has_body { rng.size(manner.largest_body) } else { 0 };
    let has_length = has_body && !is_chunked;
    let trailer = is_chunked && rng.chance(300);
    let upgrades = matches!(kind, Kind::Proxied) && method == "GET" && is_http11 && !has_body && rng.chance(60);
    let (body_len, keeps_alive) =
        if upgrades { (rng.size(manner.largest_body), false) } else { (body_len, keeps_alive) };
    let expects = is_http11 && has_body && body_len > 0 && rng.chance(150);
    let broken = has_body && body_len > 0 && manner.malformed > 0 && rng.chance(manner.malformed);
    let rest = match rng.below(6) {
        0 => String::new(),
        1 => format!("?q={number}"),
        2 => format!("/r/{number}?a=b&c=%20%"),
        3 => format!("//r//{number}/%2f;x=1/"),
        _ => format!("/r/{number}"),
    };
    let host = rng.pick(&["gate.example", "gate.example:8000", "127.0.0.1:8000", "[::1]:80"]).to_owned();
    let request_id = match rng.below(3) {
        0 => Some(format!("id-{number}_{:x}", mix(seed, number as u64))),
        _ => None,
    };
    let prefix = match kind {
        Kind::NoService => format!("/v1/proxy/nowhere{number}"),
        _ => format!("/v1/proxy/s{service}"),
    };
    let mut target = format!("{prefix}{rest}");
    let mut fields = vec![format!("X-Sim: {number}")];
    let mut asked = Asked {
        client,
        kind,
        service,
        key,
        method,
        is_http11,
        keeps_alive,
        rest,
        host: host.clone(),
        address: address.to_owned(),
        request_id: request_id.clone(),
        is_chunked,
        has_length,
        body_len,
        trailer,
        expects,
        upgrades,
        names_fields: false,
        broken_at: None,
        begun_at: u64::MAX,
        sent_at: 0,
        oldest: usize::MAX,
        tries: Vec::new(),
        races: 0,
        was_whole: false,
        is_answered: false,
    };
    match kind {
        Kind::Malformed(_) => {
            let (text, statuses) = rng.pick(MALFORMED);
            asked.kind = Kind::Malformed(statuses);
            asked.keeps_alive = false;
            let hidden = if rng.chance(400) { SMUGGLED } else { "" };
            let bytes = format!("{text}{hidden}").replace('@', &prefix).into_bytes();
            // A body in a large head is a different matter; this one is too large as a whole.
            let (bytes, kind) = match rng.below(20) {
                0 => {
                    let long = "a".repeat(9000);
                    let bytes = format!("GET {prefix}/{long} HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\n\r\n").into_bytes();
                    (bytes, Kind::Malformed(&[414]))
                }
                1 => {
                    let long = "a".repeat(9000);
                    let bytes = format!("GET {prefix} HTTP/1.1\r\nHost: a\r\nX-Sim: no\r\nX-Long: {long}\r\n\r\n");
                    (bytes.into_bytes(), Kind::Malformed(&[431]))
                }
                _ => (bytes, asked.kind),
            };
            asked.kind = kind;
            let head_len = bytes.len();
            ledger.asked.push(asked);
            ledger.tally.requests += 1;
            return Script { asked: number, bytes, head_len };
        }
        Kind::Garbage => {
            let mut bytes = Vec::new();
            let len = 1 + rng.size(3000);
            body_bytes(rng.next(), 0, len, &mut bytes);
            if rng.chance(500) {
                bytes.iter_mut().for_each(|byte| *byte = b" \r\n:GETHP/1.0aZ\x00\t,;"[usize::from(*byte % 19)]);
            }
            bytes.extend_from_slice(b"\x01\r\n\r\n");
            asked.keeps_alive = false;
            let head_len = bytes.len();
            ledger.asked.push(asked);
            ledger.tally.requests += 1;
            return Script { asked: number, bytes, head_len };
        }
        Kind::Live => target = "/livez".to_owned(),
        Kind::Status => target = "/v1/status".to_owned(),
        Kind::Asterisk => target = "*".to_owned(),
        Kind::Proxied | Kind::NoService => {}
    }
    let has_other_fields = kind != Kind::Status;
    let version = if is_http11 { "1.1" } else { "1.0" };
    let absolute = kind == Kind::Proxied && rng.chance(80);
    let host_field = if absolute { "other.example".to_owned() } else { host.clone() };
    if absolute {
        let slash = if target.starts_with('/') { "" } else { "/" };
        target = format!("http://{host}{slash}{target}");
    }
    fields.push(format!("Host: {}", if kind == Kind::Status { "127.0.0.1:8000" } else { &host_field }));
    if let Some(key) = key {
        fields.push(format!("X-Key: {key}"));
        fields.push(format!("Cookie: a=1; k={key}"));
    }
    let mut options = Vec::new();
    match (is_http11, keeps_alive) {
        (true, false) if !upgrades => options.push("close"),
        (false, true) => options.push("keep-alive"),
        _ => {}
    }
    if has_other_fields {
        if rng.chance(150) {
            options.push("X-Hop");
            fields.push("X-Hop: 1".to_owned());
        }
        if rng.chance(100) {
            options.push("TE");
            fields.push(rng.pick(&["TE: trailers", "TE: gzip;q=0.5, trailers", "TE: gzip"]).to_owned());
        }
        if rng.chance(100) {
            fields.push(
                rng.pick(&["X-Forwarded-For: 6.6.6.6", "x_forwarded_for: 6.6.6.6", "Forwarded: for=6"]).to_owned(),
            );
        }
        if rng.chance(100) {
            fields
                .push(rng.pick(&["Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "X-Real-IP: 6"]).to_owned());
        }
        if upgrades {
            options.push("Upgrade");
            fields.push(rng.pick(&["Upgrade: websocket", "Upgrade: h2c, websocket"]).to_owned());
        } else if rng.chance(50) {
            options.push("upgrade");
            fields.push("Upgrade: h2c".to_owned());
        }
        // A name of the gateway's own cannot be taken away.
        if rng.chance(50) {
            options.push("Host");
        }
    }
    asked.names_fields =
        options.iter().any(|option| !matches!(*option, "close" | "keep-alive" | "upgrade" | "Upgrade" | "TE"));
    if !options.is_empty() {
        fields.push(format!("Connection: {}", options.join(", ")));
    }
    if let Some(id) = &request_id {
        fields.push(format!("X-Request-Id: {id}"));
    } else if rng.chance(200) {
        fields.push("X-Request-Id: not valid!".to_owned());
    }
    if is_chunked {
        fields.push(rng.pick(&["Transfer-Encoding: chunked", "transfer-encoding:Chunked"]).to_owned());
    } else if has_length {
        fields.push(format!("Content-Length: {body_len}"));
    }
    if expects {
        fields.push("Expect: 100-continue".to_owned());
    }
    for at in (1..fields.len()).rev() {
        fields.swap(at, rng.below(at as u64 + 1) as usize);
    }
    let mut bytes = Vec::new();
    if rng.chance(30) {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("{method} {target} HTTP/{version}\r\n").as_bytes());
    for field in &fields {
        bytes.extend_from_slice(field.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("X-Pass: p\u{0}{number}\r\n\r\n").replace('\u{0}', "~").as_bytes());
    // One byte above 0x7f, which text cannot hold.
    if let Some(at) = bytes.iter().rposition(|byte| *byte == b'~') {
        bytes[at] = 0xe9;
    }
    let head_len = bytes.len();
    let key = request_key(seed, number);
    if upgrades {
        // The bytes for the tunnel follow when it is there.
    } else if is_chunked {
        push_chunks(rng, key, body_len, trailer.then_some(number), 't', &mut bytes);
    } else {
        body_bytes(key, 0, body_len, &mut bytes);
    }
    if broken && !plan.is_calm {
        asked.broken_at = Some(body_len);
        bytes.truncate(head_len);
        let cut = rng.below(body_len as u64) as usize;
        if is_chunked {
            push_broken_chunks(rng, key, cut, &mut bytes);
        } else {
            body_bytes(key, 0, cut, &mut bytes);
        }
    }
    ledger.asked.push(asked);
    ledger.tally.requests += 1;
    Script { asked: number, bytes, head_len }
}

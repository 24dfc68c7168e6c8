//! A scripted upstream: one actor for each connection that the gateway makes. It judges every byte of the
//! requests that it gets, and answers well, badly or not at all.

use crate::ledger::{Answer, Kind, Ledger, answer_key, request_key};
use crate::net::{Got, LinkId, World};
use crate::plan::{Mood, authority, base};
use crate::rng::{Random, body_bytes, body_differs};
use crate::watch;
use crate::wire::{Framing, Head, Part, Reader};

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Keep,
    Fin,
    Reset,
    /// Neither an end nor another byte.
    Silence,
    /// No further byte, but it reads on.
    Shut,
}

#[derive(Debug)]
struct Responding {
    answer: usize,
    out: Vec<u8>,
    at: usize,
    /// The response is proper up to its end.
    is_whole: bool,
    ending: Ending,
    is_early: bool,
    /// Where the final head ends.
    head_end: usize,
    /// Where, in `out`, something stands that nobody asked for.
    poison_at: Option<usize>,
}

/// One connection of an upstream.
#[derive(Debug)]
pub(crate) struct Origin {
    link: LinkId,
    server: usize,
    mood: Mood,
    reader: Reader,
    asked: Option<usize>,
    /// Requests so far.
    heads: usize,
    body: usize,
    body_ended: bool,
    /// When the present request was here to its end.
    whole_at: u64,
    /// Turns in which its head was overdue.
    pub(crate) overdue: u32,
    responding: Option<Responding>,
    is_poisoned: bool,
    /// Breaks off behind so many bytes of requests, whatever they are.
    dies_at: Option<u64>,
    idle_until: Option<u64>,
    /// It is a tunnel through which so many bytes came.
    tunnel: Option<usize>,
    /// Its side is shut; what still comes is dropped.
    drops: bool,
    pub(crate) is_done: bool,
}

impl Origin {
    pub(crate) fn new(world: &mut World, link: LinkId, server: usize, mood: &Mood) -> Origin {
        let dies = mood.fails > 0 && world.rng.chance(mood.fails / 6);
        let dies_at = dies.then(|| world.rng.below(900));
        world.links[link].honest = mood.poison > 0;
        let (asked, responding, idle_until) = (None, None, None);
        Origin {
            link,
            server,
            mood: mood.clone(),
            reader: Reader::new(),
            asked,
            heads: 0,
            body: 0,
            body_ended: false,
            whole_at: 0,
            overdue: 0,
            responding,
            is_poisoned: false,
            dies_at,
            idle_until,
            tunnel: None,
            drops: false,
            is_done: false,
        }
    }

    /// Whether a request body is still to come.
    pub(crate) fn awaits_body(&self) -> bool {
        self.asked.is_some() && !self.body_ended && self.tunnel.is_none()
    }

    /// The request that was here to its end at that moment, and to which no byte of a response has gone that would
    /// stop the clock.
    pub(crate) fn owes_head(&self, ledger: &Ledger) -> Option<(usize, u64)> {
        let asked = self.asked.filter(|_| self.body_ended && self.tunnel.is_none() && !self.is_done)?;
        let is_silent = match &self.responding {
            Some(it) => it.at < it.head_end && ledger.answers[it.answer].interims == 0,
            None => false,
        };
        is_silent.then_some((asked, self.whole_at))
    }

    /// Looks at its connection.
    pub(crate) fn step(&mut self, world: &mut World, ledger: &mut Ledger, seed: u64) {
        if self.is_done {
            return;
        }
        if let Err(what) = self.read(world, ledger, seed) {
            let what = format!("towards upstream {} on link {}: {what}", self.server, self.link);
            world.fault(what);
            self.is_done = true;
        }
        if !self.is_done {
            self.write(world, ledger);
        }
        if self.is_done || self.idle_until.is_none_or(|until| until > world.now) {
            return;
        }
        if self.drops {
            self.close(world, false);
        } else if self.reader.is_between() {
            self.leave_idle(world);
        }
    }

    fn close(&mut self, world: &mut World, reset: bool) {
        self.is_done = true;
        if reset { world.actor_resets(self.link) } else { world.actor_closes(self.link) }
    }

    fn leave_idle(&mut self, world: &mut World) {
        self.idle_until = None;
        if self.mood.poison > 0 && world.links[self.link].down.bytes.is_empty() && world.rng.chance(500) {
            let parting = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            self.is_poisoned = matches!(world.actor_writes(self.link, parting), Ok(1..));
        }
        // A reset would take from the response what the gateway has not read yet.
        let reset = world.links[self.link].up.bytes.is_empty() && world.rng.chance(200);
        self.close(world, reset);
    }

    fn read(&mut self, world: &mut World, ledger: &mut Ledger, seed: u64) -> Result<(), String> {
        let mut bytes = Vec::new();
        let most = 1 + world.rng.size(20_000);
        let got = world.actor_reads(self.link, most, &mut bytes);
        match got {
            Got::End if self.tunnel.is_some() && self.responding.is_some() => {
                // The client has said all; this side may have more to say.
                return self.judge_tunnel(ledger, true);
            }
            Got::End | Got::Reset => {
                self.close(world, false);
                return self.judge_tunnel(ledger, got == Got::End);
            }
            Got::Nothing => return Ok(()),
            Got::Bytes => {}
        }
        if !world.links[self.link].down.bytes.is_empty() {
            let pause = world.rng.below(self.mood.pause_us.min(2000));
            world.wake_actor(self.link, pause);
        }
        if self.drops {
            return Ok(());
        }
        self.idle_until = None;
        if self.dies_at.is_some_and(|at| world.links[self.link].down.read > at) {
            // It breaks off in the middle of what it reads; what it has not read to the end it does not act on.
            // A response that ends with the connection would look whole, and nobody could tell.
            let ends_so = self.responding.as_ref().is_some_and(|it| matches!(it.ending, Ending::Fin));
            let reset = world.rng.chance(500) || ends_so;
            self.close(world, reset);
            return Ok(());
        }
        self.reader.push(&bytes);
        while let Some(part) = self.reader.next()? {
            match part {
                Part::Head(head) => self.take_head(&head, world, ledger, seed)?,
                Part::Body(bytes) => {
                    let asked = self.asked.ok_or("a body without a head")?;
                    if let Some(at) = body_differs(request_key(seed, asked), self.body, &bytes) {
                        return Err(format!("the body of request {asked} is wrong at byte {at}"));
                    }
                    self.body += bytes.len();
                    if self.tunnel.is_some() {
                        self.tunnel = Some(self.body);
                        self.judge_tunnel(ledger, false)?;
                        continue;
                    }
                    let it = &ledger.asked[asked];
                    if self.body > it.broken_at.unwrap_or(it.body_len) {
                        return Err(format!("the body of request {asked} is longer than what was sent"));
                    }
                }
                Part::End { trailers } => {
                    let asked = self.asked.ok_or("an end without a head")?;
                    let it = &ledger.asked[asked];
                    if it.broken_at.is_some() {
                        return Err(format!("request {asked} was broken off and looks complete"));
                    }
                    if self.body != it.body_len && !it.upgrades {
                        return Err(format!("request {asked} has {} of {} bytes", self.body, it.body_len));
                    }
                    let wanted: &[(String, String)] =
                        if it.trailer { &[("x-trail".to_owned(), format!("t{asked}"))] } else { &[] };
                    if trailers != wanted && !(it.names_fields && trailers.is_empty()) {
                        return Err(format!("request {asked} has the trailers {trailers:?}"));
                    }
                    self.body_ended = true;
                    self.whole_at = world.now;
                    self.overdue = 0;
                    ledger.asked[asked].was_whole = true;
                }
            }
        }
        Ok(())
    }

    fn take_head(&mut self, head: &Head, world: &mut World, ledger: &mut Ledger, seed: u64) -> Result<(), String> {
        if self.is_poisoned {
            return Err("a connection on which something unasked came is used again".to_owned());
        }
        if self.body_ended && self.responding.as_ref().is_some_and(|it| it.at == it.out.len()) {
            // It was answered before its body was read; by now the gateway has both.
            self.responding = None;
        }
        if self.responding.is_some() || self.asked.is_some() && !self.body_ended {
            return Err(format!("a request before the response to the last one has ended: {head:?}"));
        }
        let client_of = |n: usize| ledger.asked[n].address.clone();
        let asked = judge_request(head, self.server, ledger, &client_of)?;
        watch::judge_try(ledger, world, asked, self.link, self.heads == 0)?;
        self.heads += 1;
        let framing = head.announced()?.unwrap_or(Framing::Empty);
        self.reader.expect_body(framing);
        self.asked = Some(asked);
        self.body = 0;
        self.body_ended = false;
        world.trace(20, || format!("link {}: upstream {} has the head of request {asked}", self.link, self.server));
        self.respond(asked, world, ledger, seed);
        Ok(())
    }

    /// Decides what will be answered.
    fn respond(&mut self, asked: usize, world: &mut World, ledger: &mut Ledger, seed: u64) {
        let rng = &mut world.rng;
        let serial = ledger.answers.len();
        let it = &ledger.asked[asked];
        let to_head = it.method == "HEAD";
        let mood = &self.mood;
        if it.upgrades && rng.chance(700) {
            return self.switch(asked, world, ledger, seed);
        }
        let is_early = rng.chance(mood.early);
        let status = if rng.chance(mood.status_5xx) {
            rng.pick(&[500, 502, 503, 501, 504])
        } else {
            rng.pick(&[200, 200, 200, 200, 201, 404, 204, 304])
        };
        let without_body = to_head || status == 204 || status == 304;
        let is_http10 = rng.chance(mood.http10);
        let framing = match rng.below(3) {
            _ if rng.chance(mood.until_close) => Framing::UntilClose,
            0 if !is_http10 => Framing::Chunked,
            _ => Framing::Length(0),
        };
        let body_len = rng.size(mood.largest_body);
        let mut out = Vec::new();
        let mut interims = 0;
        if it.expects && !is_http10 && rng.chance(700) {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            interims += 1;
        }
        while !is_http10 && rng.chance(mood.interim) && interims < 4 {
            let interim = format!("HTTP/1.1 103 Early Hints\r\nX-Sim: {asked}\r\nLink: </{interims}>\r\n\r\n");
            out.extend_from_slice(interim.as_bytes());
            interims += 1;
        }
        let reason = rng.pick(&["OK", "", "Some Words", "\u{7e}"]).to_owned();
        let mark = format!("m{:x}", rng.next());
        let version = if is_http10 { "1.0" } else { "1.1" };
        let mut head = format!("HTTP/{version} {status} {reason}\r\n");
        let mut fields = vec![
            format!("X-Answer: {serial}"),
            format!("X-Sim: {asked}"),
            format!("x-mark: {mark}"),
            "X-Twice: a".to_owned(),
            "X-Twice:b".to_owned(),
        ];
        let closes = rng.chance(150);
        let mut named = String::new();
        if rng.chance(200) {
            fields.push("X-Hop: 1".to_owned());
            named.push_str(", X-Hop");
        }
        match (closes, is_http10) {
            (true, _) => fields.push(format!("Connection: close{named}")),
            (false, true) => fields.push(format!("Connection: keep-alive{named}")),
            (false, false) if !named.is_empty() => fields.push(format!("Connection: {}", &named[2..])),
            _ => {}
        }
        if rng.chance(200) {
            fields.push(format!("Keep-Alive: timeout={}", rng.below(5)));
        }
        let trailer = framing == Framing::Chunked && rng.chance(300);
        let mut announced = None;
        match framing {
            Framing::Chunked if !without_body || status == 304 && !to_head => {
                fields.push("Transfer-Encoding: chunked".to_owned());
            }
            Framing::Length(_) if status != 204 => {
                announced = Some(body_len);
                fields.push(format!("Content-Length: {body_len}"));
            }
            Framing::UntilClose | Framing::Chunked | Framing::Length(_) | Framing::Empty => {}
        }
        let fails = rng.chance(mood.fails);
        let failure = match fails {
            // An unwanted status and a body that cannot be passed on, at once.
            true if status >= 500 && framing == Framing::Chunked && rng.chance(500) => 7,
            true => rng.below(9),
            false => u64::MAX,
        };
        let mut is_malformed = false;
        if failure == 0 {
            is_malformed = true;
            let bad: &[&str] = &[
                "X-Bad: a\r\n folded",
                "X-Bad : a",
                "X-Bad: a\u{0}b",
                "X-Bad: a\rb",
                "X-Bad\n: a",
                "no colon",
                "Connection: a b",
            ];
            let two = "Content-Length: 3\r\nTransfer-Encoding: chunked";
            fields.push(if !without_body && rng.chance(300) { two } else { rng.pick(bad) }.to_owned());
        }
        for at in (1..fields.len().saturating_sub(2)).rev() {
            // The two X-Twice stay in their order: they stand at 3 and 4 and only what is between moves.
            let other = rng.below(at as u64 + 1) as usize;
            if !(3..=4).contains(&at) && !(3..=4).contains(&other) {
                fields.swap(at, other);
            }
        }
        for field in &fields {
            head.push_str(field);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        let head_end = out.len();
        let mut body_len = if without_body { 0 } else { body_len };
        let key = answer_key(seed, serial);
        match framing {
            _ if without_body => {}
            Framing::Chunked => push_chunks(rng, key, body_len, trailer.then_some(asked), 't', &mut out),
            _ => body_bytes(key, 0, body_len, &mut out),
        }
        let mut is_whole = true;
        let mut ending =
            if closes || framing == Framing::UntilClose && !without_body { Ending::Fin } else { Ending::Keep };
        match failure {
            // Broken off: in the head, or anywhere.
            1..=3 => {
                let most = if failure == 1 { head_end } else { out.len() };
                let cut = rng.below(most as u64 + 1) as usize;
                is_whole = cut == out.len();
                out.truncate(cut);
                ending = rng.pick(&[Ending::Fin, Ending::Reset]);
                if framing == Framing::UntilClose && !without_body && ending == Ending::Fin && cut >= head_end {
                    // Nobody can tell: this is what was answered.
                    body_len = cut - head_end;
                    is_whole = true;
                } else if framing == Framing::UntilClose && !without_body {
                    is_whole = false;
                }
            }
            4 => {
                out.truncate(rng.below(out.len() as u64) as usize);
                is_whole = false;
                ending = Ending::Silence;
            }
            5 => {
                out.clear();
                is_whole = false;
                ending = rng.pick(&[Ending::Fin, Ending::Reset]);
            }
            6 => {
                let garbage: &[&[u8]] = &[
                    b"\x16\x03\x01\x00\xa5\x01\x00\x00",
                    b"HTTP/2.0 200 OK\r\n\r\n",
                    b"HTTP/1.1 20 OK\r\n\r\n",
                    b"hello\r\n\r\n",
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
                    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
                ];
                out = rng.pick(garbage).to_vec();
                is_malformed = true;
                is_whole = false;
                ending = rng.pick(&[Ending::Fin, Ending::Silence, Ending::Reset]);
            }
            7 if framing == Framing::Chunked && !without_body => {
                // A chunk that is none, somewhere in the body.
                out.truncate(head_end);
                // Behind a few bytes it comes with the head.
                let most = if rng.chance(500) { body_len.min(20) } else { body_len };
                let cut = rng.below(most as u64 + 1) as usize;
                push_broken_chunks(rng, key, cut, &mut out);
                is_whole = false;
                ending = rng.pick(&[Ending::Fin, Ending::Silence]);
            }
            8 if announced.is_some() && !without_body && body_len > 0 => {
                // Shorter than announced.
                let less = 1 + rng.below(body_len as u64) as usize;
                out.truncate(out.len() - less);
                is_whole = false;
                ending = Ending::Fin;
            }
            _ => {}
        }
        let delimited = framing != Framing::UntilClose || without_body;
        let poison_at = (!fails && ending == Ending::Keep && delimited && rng.chance(mood.poison)).then(|| {
            let at = out.len();
            out.extend_from_slice(rng.pick(&[
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".as_slice(),
                b"x",
                b"\r\n",
                b"0\r\n\r\n",
            ]));
            at
        });
        ledger.answers.push(Answer {
            to: asked,
            nth: ledger.asked[asked].tries.len() - 1,
            status,
            reason,
            mark,
            body_len,
            announced,
            complete: false,
            is_malformed,
            is_tunnel: false,
            interims,
        });
        world.trace(21, || {
            format!(
                "link {}: answer {serial} to request {asked}: {status} {framing:?} {body_len} bytes, whole {is_whole}, \
                 then {ending:?}, early {is_early}",
                self.link
            )
        });
        self.responding =
            Some(Responding { answer: serial, out, at: 0, is_whole, ending, is_early, head_end, poison_at });
        let pause = world.rng.below(self.mood.pause_us + 1);
        world.wake_actor(self.link, pause);
    }

    /// Grants a tunnel: from here on both sides say what they have to, and shut.
    fn switch(&mut self, asked: usize, world: &mut World, ledger: &mut Ledger, seed: u64) {
        let serial = ledger.answers.len();
        let body_len = world.rng.size(self.mood.largest_body);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nX-Answer: {serial}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\n\r\n"
        );
        let mut out = head.into_bytes();
        body_bytes(answer_key(seed, serial), 0, body_len, &mut out);
        let fails = world.rng.chance(self.mood.fails);
        if fails {
            out.truncate(world.rng.below(out.len() as u64) as usize);
        }
        let ending = if fails { world.rng.pick(&[Ending::Reset, Ending::Silence]) } else { Ending::Shut };
        ledger.answers.push(Answer {
            to: asked,
            nth: ledger.asked[asked].tries.len() - 1,
            status: 101,
            reason: String::new(),
            mark: String::new(),
            body_len,
            announced: None,
            complete: false,
            is_malformed: false,
            is_tunnel: true,
            interims: 0,
        });
        world.trace(22, || format!("link {}: tunnel {serial} for request {asked}: {body_len} bytes", self.link));
        self.tunnel = Some(0);
        self.reader.expect_tunnel();
        self.responding = Some(Responding {
            answer: serial,
            out,
            at: 0,
            is_whole: !fails,
            ending,
            is_early: true,
            head_end: 0,
            poison_at: None,
        });
        let pause = world.rng.below(self.mood.pause_us + 1);
        world.wake_actor(self.link, pause);
    }

    /// What came through the tunnel, and whether that was all.
    fn judge_tunnel(&self, ledger: &Ledger, ended: bool) -> Result<(), String> {
        let (Some(got), Some(asked)) = (self.tunnel, self.asked) else { return Ok(()) };
        let len = ledger.asked[asked].body_len;
        if got > len || ended && self.mood.is_calm && got < len {
            return Err(format!("through the tunnel of request {asked} came {got} of {len} bytes"));
        }
        Ok(())
    }

    fn write(&mut self, world: &mut World, ledger: &mut Ledger) {
        let Some(it) = &mut self.responding else { return };
        let expects = self.asked.is_some_and(|asked| ledger.asked[asked].expects);
        if !(self.body_ended || it.is_early || expects && ledger.answers[it.answer].interims > 0) {
            return;
        }
        if !self.body_ended && !it.is_early {
            // The go-ahead alone; the rest waits for the body.
            let go_ahead = b"HTTP/1.1 100 Continue\r\n\r\n".len().min(it.out.len());
            if it.at >= go_ahead {
                return;
            }
            match world.actor_writes(self.link, &it.out[it.at..go_ahead]) {
                Ok(n) => it.at += n,
                Err(()) => self.close(world, false),
            }
            return;
        }
        // What nobody asked for goes out in one piece with the end of the response.
        let sound_end = it.poison_at.unwrap_or(it.out.len());
        let left = sound_end.saturating_sub(it.at);
        let piece = 1 + world.rng.below(self.mood.piece as u64) as usize;
        let to = if piece >= left { it.out.len() } else { it.at + piece };
        let room = world.links[self.link].up.capacity - world.links[self.link].up.bytes.len();
        let to = if to > sound_end && it.at + room < it.out.len() { sound_end.min(it.at + room) } else { to };
        let (from, honest_end) = (it.at, it.poison_at.is_some() && to >= sound_end && to < it.out.len());
        // No room for all of it: then the response ends soundly.
        let (to, drops_poison) = if honest_end { (sound_end, true) } else { (to, false) };
        match world.actor_writes(self.link, &it.out[from..to]) {
            Err(()) => return self.close(world, false),
            // The gateway's next read makes room, and tells.
            Ok(0) if from < it.out.len() => return,
            Ok(n) => it.at += n,
        }
        let it_at = it.at;
        if drops_poison && it_at == sound_end {
            it.out.truncate(sound_end);
            it.poison_at = None;
        }
        if it.poison_at.is_some_and(|at| it_at > at) {
            self.is_poisoned = true;
        }
        if it_at < it.out.len() {
            let pause = world.rng.below(self.mood.pause_us + 1);
            world.wake_actor(self.link, pause);
            return;
        }
        let ending = it.ending;
        // The end of the connection, where that is a part of it, follows at once.
        if it.is_whole {
            ledger.answers[it.answer].complete = true;
        }
        match ending {
            Ending::Silence => {}
            Ending::Shut => {
                world.actor_shuts(self.link);
                self.responding = None;
                world.wake_actor(self.link, 0);
            }
            Ending::Reset => self.close(world, true),
            Ending::Fin => {
                let unread = !world.links[self.link].down.bytes.is_empty();
                if unread && it.is_whole && world.rng.chance(500) {
                    // Shut first, as careful servers do; the rest is read and the close comes later.
                    world.actor_shuts(self.link);
                    self.responding = None;
                    self.drops = true;
                    let pause = world.rng.below(100_000);
                    world.wake_actor(self.link, pause);
                    self.idle_until = Some(world.now + pause);
                    return;
                }
                self.close(world, false);
            }
            Ending::Keep if self.body_ended => {
                self.responding = None;
                self.asked = None;
                if world.rng.chance(self.mood.idle_close) {
                    let pause = world.rng.below(self.mood.idle_us + 1);
                    self.idle_until = Some(world.now + pause);
                    world.wake_actor(self.link, pause);
                }
            }
            Ending::Keep => {}
        }
    }
}

/// A body in chunks of any size, with extensions and a trailer.
pub(crate) fn push_chunks(
    rng: &mut Random,
    key: u64,
    len: usize,
    trailer: Option<usize>,
    letter: char,
    out: &mut Vec<u8>,
) {
    let mut at = 0;
    let largest = rng.pick(&[3, 200, 5000, 100_000]).max(len / 300);
    let mut extensions = 0;
    while at < len {
        let size = (1 + rng.below(largest as u64) as usize).min(len - at);
        let extension = if extensions < 20 && rng.chance(100) {
            extensions += 1;
            rng.pick(&[";a", ";a=b", " ;c=\"d e\"", ";"])
        } else {
            ""
        };
        let zeros = if rng.chance(50) { "00" } else { "" };
        let line = if rng.chance(500) {
            format!("{zeros}{size:x}{extension}\r\n")
        } else {
            format!("{zeros}{size:X}{extension}\r\n")
        };
        out.extend_from_slice(line.as_bytes());
        body_bytes(key, at, size, out);
        out.extend_from_slice(b"\r\n");
        at += size;
    }
    out.extend_from_slice(b"0\r\n");
    if let Some(number) = trailer {
        out.extend_from_slice(format!("X-Trail: {letter}{number}\r\nContent-Length: 7\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The first `len` bytes of a body in chunks, and then something that is no chunk.
pub(crate) fn push_broken_chunks(rng: &mut Random, key: u64, len: usize, out: &mut Vec<u8>) {
    push_chunks(rng, key, len, None, 't', out);
    out.truncate(out.len() - b"0\r\n\r\n".len());
    let bad: &[&[u8]] = &[
        b"zz\r\n",
        b"\n0\n\n",
        b"-1\r\n",
        b"\x00\x00",
        b"\r\n",
        b"5;\x01\r\nhello\r\n",
        b"ffffffffffffffffffff\r\n",
        b"0\r\nX-Trail : t\r\n\r\n",
        b"0\r\nX-Trail: \x00\r\n\r\n",
        b"0\n\n",
    ];
    out.extend_from_slice(rng.pick(bad));
}

/// Judges a request head; which request it is.
fn judge_request(
    head: &Head,
    server: usize,
    ledger: &Ledger,
    address_of: &dyn Fn(usize) -> String,
) -> Result<usize, String> {
    let bad = |what: &str| Err(format!("{what}: {head:?}"));
    let (method, target, version) = head.words()?;
    let Some(asked) = head.one("x-sim")?.and_then(|n| n.parse::<usize>().ok()).filter(|n| *n < ledger.asked.len())
    else {
        return bad("a request that nobody made");
    };
    let it = &ledger.asked[asked];
    if it.kind != Kind::Proxied {
        return bad("a request that had to be refused");
    }
    if version != "HTTP/1.1" || method != it.method {
        return bad("method or version");
    }
    let path = base(server);
    let wanted = match it.rest.strip_prefix('?') {
        // No path behind the service: the upstream's own.
        _ if it.rest.is_empty() => if path.is_empty() { "/" } else { path }.to_owned(),
        Some(query) => format!("{}?{query}", if path.is_empty() { "/" } else { path }),
        None => format!("{}{}", path.strip_suffix('/').unwrap_or(path), it.rest),
    };
    if target != wanted {
        return bad(&format!("the target is not {wanted}"));
    }
    if head.one("upgrade")? != it.upgrades.then_some("websocket") {
        return bad("Upgrade");
    }
    let host = head.one("host")?;
    if !host.is_some_and(|host| host == authority(server) || host == it.host || host == "literal.example:81") {
        return bad("Host");
    }
    let framing = match (it.is_chunked, it.has_length) {
        (true, _) => Some(Framing::Chunked),
        (_, true) => Some(Framing::Length(it.body_len as u64)),
        _ => None,
    };
    if head.announced()? != framing {
        return bad(&format!("the framing is not {framing:?}"));
    }
    for gone in ["x-hop", "keep-alive", "proxy-connection", "http2-settings", "x-real-ip", "forwarded"] {
        if head.has(gone) {
            return bad(&format!("{gone} was passed on"));
        }
    }
    match (head.one("connection")?, head.one("te")?) {
        (None, None) | (Some("TE"), Some("trailers")) if !it.upgrades => {}
        (Some("upgrade"), None) | (Some("upgrade, TE"), Some("trailers")) if it.upgrades => {}
        _ => return bad("Connection and TE"),
    }
    if head.one("x-forwarded-for")? != Some(&address_of(asked)) || head.one("x-forwarded-proto")? != Some("http") {
        return bad("X-Forwarded-For or -Proto");
    }
    if head.one("x-forwarded-host")? != Some(&it.host) {
        return bad("X-Forwarded-Host");
    }
    let via = head.one("via")?.unwrap_or("");
    let name = via.strip_prefix(if it.is_http11 { "1.1 fusegate-" } else { "1.0 fusegate-" });
    if name.is_none_or(|hex| hex.len() != 8) {
        return bad("Via");
    }
    let id = head.one("x-request-id")?.unwrap_or("");
    let kept = match &it.request_id {
        Some(given) => id == given,
        None => id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
    };
    if !kept {
        return bad("X-Request-Id");
    }
    if head.one("x-pass")? != Some(&format!("p\u{e9}{asked}")) {
        return bad("X-Pass");
    }
    if head.one("expect")?.is_some() != (it.expects && it.is_http11) {
        return bad("Expect");
    }
    Ok(asked)
}

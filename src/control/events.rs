//! What happens, as it happens: `GET /v1/events` as server-sent events (HTML standard, section 9.2), and the last of
//! them kept for those who come back.
//!
//! A subscriber is a place in the row of events: what a full mailbox did not take is sent later, and what the row has
//! lost by then is told as lost. Must not know: sockets, what a client does with an event.

use crate::control::reload::{Change, to_json};
use crate::control::status::rfc3339;
use crate::control::{Control, Courier, live};
use crate::ground::tick::Tick;
use crate::http::request::Version;
use crate::shard::mailbox::{Command, PIECE, Part, Ticket, Told};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// Events that are kept.
const KEPT: usize = 1024;
/// Subscribers at once.
const SUBSCRIBERS: usize = 64;
/// How often a subscriber hears that the stream is alive.
const BEAT: Duration = Duration::from_secs(15);
/// How often there is a new picture of everything.
const SAMPLE: Duration = Duration::from_secs(1);
/// Lines and names in the event of a reload.
const LISTED: usize = 50;

/// The events and those who listen.
#[derive(Debug)]
pub struct Events {
    kept: VecDeque<(u64, Vec<u8>)>,
    /// The number of the last event.
    last: u64,
    subscribers: Vec<Subscriber>,
    beat_at: Tick,
    sample_at: Tick,
}

#[derive(Debug)]
struct Subscriber {
    shard: usize,
    client: u64,
    chunked: bool,
    /// The last event that it has.
    has: u64,
    /// It asked for events that are not kept.
    has_missed: bool,
}

/// A breaker has moved.
#[derive(Serialize)]
pub(super) struct Moved<'a> {
    pub(super) time: String,
    pub(super) service: &'a str,
    pub(super) upstream: &'a str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) reason: &'a str,
    /// The reason in a word.
    pub(super) why: &'static str,
    pub(super) observed: bool,
}

/// Health checks have another verdict.
#[derive(Serialize)]
pub(super) struct Verdict<'a> {
    pub(super) time: String,
    pub(super) service: &'a str,
    pub(super) upstream: &'a str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) reason: String,
}

/// An operator has moved a breaker.
#[derive(Serialize)]
pub(super) struct ByHand<'a> {
    pub(super) time: String,
    pub(super) service: &'a str,
    pub(super) index: usize,
    pub(super) upstream: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) r#for: Option<&'a str>,
}

/// A reload has ended.
#[derive(Serialize)]
struct Reloaded<'a> {
    time: String,
    result: &'static str,
    generation: u64,
    messages: &'a [String],
    /// Of the messages.
    left_out: usize,
    services: Option<Names<'a>>,
    upstreams: Option<crate::control::reload::Upstreams>,
}

#[derive(Serialize)]
struct Names<'a> {
    added: &'a [String],
    removed: &'a [String],
    changed: &'a [String],
}

#[derive(Serialize)]
struct Gone {
    /// The first event that follows.
    next: u64,
}

impl Events {
    /// None so far. Numbers go on rising when the process starts anew, so none is taken for one of an earlier life.
    pub fn new(started: SystemTime) -> Events {
        let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Events {
            kept: VecDeque::new(),
            // A script can hold such a number exactly (below 2^53).
            last: since.as_secs() * 1_000_000,
            subscribers: Vec::new(),
            beat_at: Tick::NEVER,
            sample_at: Tick::NEVER,
        }
    }

    /// How many listen.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// When something is due that no notice announces.
    pub fn wake_at(&self, deliver_at: Tick) -> Option<Tick> {
        if self.subscribers.is_empty() {
            return None;
        }
        let timed = self.beat_at.min(self.sample_at);
        Some(if self.subscribers.iter().any(|one| one.has < self.last) { timed.min(deliver_at) } else { timed })
    }

    /// Something has happened.
    pub(super) fn publish(&mut self, kind: &str, data: &impl Serialize) {
        self.last += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((self.last, rendered(self.last, kind, data)));
    }

    /// A client does not listen any more.
    pub(super) fn left(&mut self, shard: usize, client: u64) -> bool {
        let before = self.subscribers.len();
        self.subscribers.retain(|one| (one.shard, one.client) != (shard, client));
        self.subscribers.len() < before
    }

    /// The event before the oldest that is kept.
    fn forgotten(&self) -> u64 {
        self.kept.front().map_or(self.last, |(oldest, _)| oldest - 1)
    }

    /// Where one stands who says what it has, and whether it has missed something.
    fn place(&self, seen: Option<&[u8]>) -> (u64, bool) {
        let Some(seen) = seen else { return (self.last, false) };
        let seen = std::str::from_utf8(seen).ok().and_then(|seen| seen.parse().ok());
        match seen {
            Some(seen) if (self.forgotten()..=self.last).contains(&seen) => (seen, false),
            _ => (self.forgotten(), true),
        }
    }

    /// What one does not have yet.
    fn behind(&self, has: u64, has_missed: bool) -> Vec<u8> {
        let forgotten = self.forgotten();
        let mut bytes = Vec::new();
        if has_missed || has < forgotten {
            bytes.extend(rendered(forgotten, "gone", &Gone { next: forgotten + 1 }));
        }
        let later = self.kept.iter().filter(|(id, _)| *id > has);
        later.for_each(|(_, event)| bytes.extend_from_slice(event));
        bytes
    }
}

/// An event on the wire. JSON has no line ends of its own.
fn rendered(id: u64, kind: &str, data: &impl Serialize) -> Vec<u8> {
    let mut bytes = format!("id: {id}\nevent: {kind}\ndata: ").into_bytes();
    bytes.extend(to_json(data));
    bytes.push(b'\n');
    bytes
}

/// As a chunk, or as it is; in pieces.
fn pieces(head: &[u8], body: &[u8], chunked: bool) -> VecDeque<Vec<u8>> {
    let mut bytes = head.to_vec();
    if chunked {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(body);
    if chunked {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.chunks(PIECE).map(<[u8]>::to_vec).collect()
}

/// What a query says that was seen last: the value of `last-event-id`.
fn from_query(query: &[u8]) -> Option<&[u8]> {
    let pairs = query.strip_prefix(b"?")?.split(|byte| *byte == b'&');
    pairs.filter_map(|pair| pair.strip_prefix(b"last-event-id")).find_map(|rest| rest.strip_prefix(b"="))
}

fn head(chunked: bool) -> Vec<u8> {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let coding = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nDate: {date}\r\nCache-Control: no-store\r\n\
         X-Accel-Buffering: no\r\n{coding}Connection: close\r\n\r\n"
    )
    .into_bytes()
}

impl<C: Courier> Control<C> {
    /// Begins a subscription.
    pub(super) fn subscribe(&mut self, ticket: &Ticket, now: Tick) {
        let chunked = ticket.version == Version::Http11;
        if ticket.to_head {
            let pieces = VecDeque::from([head(chunked)]);
            self.shards[ticket.shard].send(Command::Answer {
                client: ticket.client,
                told: Told::of(ticket, "own"),
                pieces,
            });
            return;
        }
        if self.drain.is_some() {
            return self.answer_problem(ticket, 503, "draining", "the gateway is draining");
        }
        if self.events.subscribers.len() >= SUBSCRIBERS {
            return self.answer_problem(ticket, 503, "subscribers", "there are 64 subscribers already");
        }
        let seen = ticket.last_event_id.as_deref().or_else(|| from_query(&ticket.query));
        let (has, has_missed) = self.events.place(seen);
        if self.events.subscribers.is_empty() {
            self.live.begin();
            self.events.beat_at = now.after(BEAT);
            self.events.sample_at = now.after(SAMPLE);
        }
        let mut body = b"retry: 1000\n\n".to_vec();
        body.extend(self.events.behind(has, has_missed));
        body.extend(self.sample(now));
        let (shard, client, has) = (ticket.shard, ticket.client, self.events.last);
        let pieces = pieces(&head(chunked), &body, chunked);
        // A shard that takes nothing any more lets its ticket time out.
        if self.shards[shard].send(Command::Begin { client, told: Told::of(ticket, "own"), pieces }) {
            self.events.subscribers.push(Subscriber { shard, client, chunked, has, has_missed: false });
        }
    }

    /// Hands on what has happened, and what is due.
    pub(super) fn tell_subscribers(&mut self, now: Tick) {
        if self.events.subscribers.is_empty() {
            return;
        }
        let last = self.events.last;
        let mut subscribers = std::mem::take(&mut self.events.subscribers);
        for one in subscribers.iter_mut().filter(|one| one.has < last) {
            let pieces = pieces(b"", &self.events.behind(one.has, one.has_missed), one.chunked);
            if self.shards[one.shard].send(Command::Stream { client: one.client, part: Part::Event, pieces }) {
                (one.has, one.has_missed) = (last, false);
            }
        }
        let mut timed = Vec::new();
        if now >= self.events.beat_at {
            self.events.beat_at = now.after(BEAT);
            timed.extend_from_slice(b": \n\n");
        }
        if now >= self.events.sample_at {
            self.events.sample_at = now.after(SAMPLE);
            timed.extend(self.sample(now));
        }
        // Not to one that still waits for an event: it would think that it has it.
        for one in subscribers.iter().filter(|one| !timed.is_empty() && one.has == last) {
            let pieces = pieces(b"", &timed, one.chunked);
            self.shards[one.shard].send(Command::Stream { client: one.client, part: Part::Sample, pieces });
        }
        self.events.subscribers = subscribers;
    }

    /// The picture of now. Its number is that of the last event, so that a client that comes back says it.
    fn sample(&mut self, now: Tick) -> Vec<u8> {
        let mut live = std::mem::take(&mut self.live);
        let bytes = rendered(self.events.last, "status", &live::sample(self, &mut live, now));
        self.live = live;
        bytes
    }

    /// Ends every subscription.
    pub(super) fn end_subscriptions(&mut self) {
        for one in self.events.subscribers.drain(..) {
            let last = if one.chunked { b"0\r\n\r\n".to_vec() } else { Vec::new() };
            let (client, part) = (one.client, Part::Last);
            self.shards[one.shard].send(Command::Stream { client, part, pieces: VecDeque::from([last]) });
        }
    }

    /// A client to which events were streamed is gone.
    pub(super) fn subscriber_left(&mut self, shard: usize, client: u64, lagged: bool) {
        if self.events.left(shard, client) && lagged {
            log::info!("a subscriber of events did not read and was dropped");
        }
    }

    /// Logs a breaker's transition, remembers it and tells it.
    pub(super) fn moved(&mut self, moved: &crate::shard::mailbox::Moved, time: SystemTime) {
        let entry = self.history.moved(moved, time);
        let event = Moved {
            time: rfc3339(entry.time),
            service: &moved.upstream.service,
            upstream: &moved.upstream.url,
            from: entry.from.word(),
            to: entry.to.word(),
            reason: &entry.reason,
            why: crate::control::history::word(moved.transition.why),
            observed: moved.observed,
        };
        self.events.publish("circuit", &event);
    }

    /// Tells a new verdict of health checks.
    pub(super) fn checked(&mut self, checked: &crate::shard::mailbox::Checked, time: SystemTime) {
        let (from, to) = checked.verdicts;
        let checks = if checked.in_row == 1 { "health check" } else { "health checks" };
        let reason = match checked.cause {
            None => format!("after {} good {checks}", checked.in_row),
            Some(cause) => format!("after {} failed {checks}, last: {cause}", checked.in_row),
        };
        let (service, upstream) = (&checked.upstream.service, &checked.upstream.url);
        self.events.publish("health", &Verdict { time: rfc3339(time), service, upstream, from, to, reason });
    }

    /// Tells how a reload has ended.
    pub(super) fn tell_reload(&mut self, result: &'static str, messages: &[String], change: Option<&Change>) {
        fn some(names: &[String]) -> &[String] {
            &names[..names.len().min(LISTED)]
        }
        let event = Reloaded {
            time: rfc3339(SystemTime::now()),
            result,
            generation: self.snapshot.generation,
            messages: some(messages),
            left_out: messages.len().saturating_sub(LISTED),
            services: change.map(|change| Names {
                added: some(&change.services.added),
                removed: some(&change.services.removed),
                changed: some(&change.services.changed),
            }),
            upstreams: change.map(|change| change.upstreams),
        };
        self.events.publish("reload", &event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(count: u64) -> Events {
        let mut events = Events::new(SystemTime::UNIX_EPOCH);
        (0..count).for_each(|at| events.publish("x", &at));
        events
    }

    #[test]
    fn a_place_is_found_again_as_long_as_it_is_kept() {
        let events = some(3);
        assert_eq!(events.place(None), (3, false));
        assert_eq!(events.place(Some(b"1")), (1, false));
        assert_eq!(events.place(Some(b"0")), (0, false));
        for unknown in [&b"4"[..], b"-1", b"", b"x", b"\xff"] {
            assert_eq!(events.place(Some(unknown)), (0, true));
        }
        assert_eq!(events.behind(2, false), b"id: 3\nevent: x\ndata: 2\n\n");
        assert!(events.behind(3, false).is_empty());
        let many = some(KEPT as u64 + 10);
        assert_eq!(many.place(Some(b"10")), (10, false));
        assert_eq!(many.place(Some(b"9")), (10, true));
        assert!(many.behind(9, false).starts_with(b"id: 10\nevent: gone\ndata: {\"next\":11}\n\nid: 11\n"));
    }

    #[test]
    fn the_query_can_say_what_was_seen() {
        assert_eq!(from_query(b"?a=1&last-event-id=12&b"), Some(&b"12"[..]));
        for none in [&b""[..], b"?", b"?last-event-id", b"?last-event-ids=1", b"?xlast-event-id=1"] {
            assert_eq!(from_query(none), None);
        }
    }
}

//! The access log's way from the shards to its writer: one bounded queue of encoded lines for each shard.
//!
//! A shard collects the lines of a turn, and hands them over at its end by swapping buffers under a lock that nobody
//! holds for longer; when the queue is full, or the lock is just taken and too much waits, lines are dropped and
//! counted. A shard never waits and formats nothing. Must not know: formats, files.

use crate::http::request::Version;
use crate::shared::metrics::Counter;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// Bytes of one shard that may wait for the writer.
const QUEUE: usize = 4 << 20;
/// Bytes of a text that are kept; longer ones are cut.
const LONGEST: usize = 2048;

/// What a client said that the log repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said<'t> {
    /// As it came.
    pub method: &'t [u8],
    /// As it came.
    pub target: &'t [u8],
    /// Of the request.
    pub host: &'t [u8],
    /// Of the request.
    pub referer: &'t [u8],
    /// Of the request.
    pub user_agent: &'t [u8],
    /// `traceparent` of the request.
    pub trace: &'t [u8],
}

impl<'t> Said<'t> {
    fn texts(&self) -> [&'t [u8]; 6] {
        [self.method, self.target, self.host, self.referer, self.user_agent, self.trace]
    }
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'t> {
    /// When the response ended, in microseconds since 1970.
    pub time_us: u64,
    /// From the complete head to the end of the response, in microseconds.
    pub duration_us: u64,
    /// From the beginning of the last attempt to its response head, in microseconds.
    pub upstream_us: Option<u64>,
    /// Bytes of the request's content.
    pub received: u64,
    /// Bytes of the response's content.
    pub sent: u64,
    /// Of the response; 499 when the client left before there was one.
    pub status: u16,
    /// Of the upstream's response.
    pub upstream_status: Option<u16>,
    /// Upstreams tried.
    pub attempts: u8,
    /// The client's; `None` when it could not be read.
    pub version: Option<Version>,
    /// The client's.
    pub peer: IpAddr,
    /// How it ended, in a word.
    pub outcome: &'t [u8],
    /// Kept or made.
    pub request_id: &'t [u8],
    /// By its name in the configuration; empty without one.
    pub service: &'t [u8],
    /// The configured URL of the last one tried; empty without one.
    pub upstream: &'t [u8],
    /// What the client said.
    pub said: Said<'t>,
}

fn put_text(into: &mut Vec<u8>, text: &[u8]) {
    let text = &text[..text.len().min(LONGEST)];
    into.extend_from_slice(&(text.len() as u16).to_le_bytes());
    into.extend_from_slice(text);
}

/// Reads what `Line::encode` wrote; `None` at the end.
struct Decoder<'t>(&'t [u8]);

impl<'t> Decoder<'t> {
    fn take(&mut self, n: usize) -> Option<&'t [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.number()?))
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.number()?))
    }

    fn text(&mut self) -> Option<&'t [u8]> {
        let n = self.short()?;
        self.take(usize::from(n))
    }
}

impl<'t> Line<'t> {
    /// Appends the line.
    pub fn encode(&self, into: &mut Vec<u8>) {
        for number in [self.time_us, self.duration_us, self.upstream_us.unwrap_or(u64::MAX), self.received, self.sent] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.status, self.upstream_status.unwrap_or(0)] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        let version = match self.version {
            None => 0,
            Some(Version::Http10) => 1,
            Some(Version::Http11) => 2,
        };
        into.extend_from_slice(&[self.attempts, version]);
        match self.peer {
            IpAddr::V4(v4) => put_text(into, &v4.octets()),
            IpAddr::V6(v6) => put_text(into, &v6.octets()),
        }
        for text in [self.outcome, self.request_id, self.service, self.upstream].into_iter().chain(self.said.texts()) {
            put_text(into, text);
        }
    }

    /// Takes the first line off; `None` when there is none.
    pub fn decode(from: &mut &'t [u8]) -> Option<Line<'t>> {
        let mut decoder = Decoder(from);
        let line = Line {
            time_us: decoder.long()?,
            duration_us: decoder.long()?,
            upstream_us: Some(decoder.long()?).filter(|us| *us != u64::MAX),
            received: decoder.long()?,
            sent: decoder.long()?,
            status: decoder.short()?,
            upstream_status: Some(decoder.short()?).filter(|status| *status != 0),
            attempts: decoder.number::<1>()?[0],
            version: match decoder.number::<1>()?[0] {
                1 => Some(Version::Http10),
                2 => Some(Version::Http11),
                _ => None,
            },
            peer: match decoder.text()? {
                v6 if v6.len() == 16 => IpAddr::from(<[u8; 16]>::try_from(v6).ok()?),
                v4 => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
            },
            outcome: decoder.text()?,
            request_id: decoder.text()?,
            service: decoder.text()?,
            upstream: decoder.text()?,
            said: Said {
                method: decoder.text()?,
                target: decoder.text()?,
                host: decoder.text()?,
                referer: decoder.text()?,
                user_agent: decoder.text()?,
                trace: decoder.text()?,
            },
        };
        *from = decoder.0;
        Some(line)
    }
}

/// What a client said, kept while its request runs. Used again and again, so that it asks for no memory.
#[derive(Debug, Default)]
pub struct Kept {
    texts: Vec<u8>,
    ends: [u32; 6],
}

impl Kept {
    /// Replaces what was kept.
    pub fn keep(&mut self, said: &Said<'_>) {
        self.texts.clear();
        for (text, end) in said.texts().into_iter().zip(&mut self.ends) {
            self.texts.extend_from_slice(&text[..text.len().min(LONGEST)]);
            *end = self.texts.len() as u32;
        }
    }

    /// What was kept.
    pub fn said(&self) -> Said<'_> {
        let text = |at: usize| {
            let from = if at == 0 { 0 } else { self.ends[at - 1] as usize };
            self.texts.get(from..self.ends[at] as usize).unwrap_or_default()
        };
        Said { method: text(0), target: text(1), host: text(2), referer: text(3), user_agent: text(4), trace: text(5) }
    }
}

/// The queue of one shard.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Queue {
    lines: Mutex<Vec<u8>>,
    dropped: Counter,
}

/// The queues of all shards.
#[derive(Debug)]
pub struct Access {
    on: AtomicBool,
    queues: Box<[Queue]>,
    writer: OnceLock<Thread>,
}

impl Access {
    /// Empty queues, switched off.
    pub fn new(shards: usize) -> Access {
        let queues = (0..shards).map(|_| Queue::default()).collect();
        Access { on: AtomicBool::new(false), queues, writer: OnceLock::new() }
    }

    /// Whether lines are wanted.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Switches it. Lines that are under way still come.
    pub fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Names the thread that is woken when lines come; the first one that does stays it.
    pub fn set_writer(&self, thread: Thread) {
        // There is one writer for the life of the process.
        let _ = self.writer.set(thread);
    }

    /// Lines that found no room, of all shards.
    pub fn dropped(&self) -> u64 {
        self.queues.iter().map(|queue| queue.dropped.read()).sum()
    }

    /// Takes what a shard has handed over, and leaves an empty buffer for more.
    pub fn take(&self, shard: usize, into: &mut Vec<u8>) {
        into.clear();
        if let Some(queue) = self.queues.get(shard) {
            std::mem::swap(&mut *queue.lines.lock().unwrap_or_else(PoisonError::into_inner), into);
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.queues.len()
    }
}

/// A shard's end: the lines of this turn.
#[derive(Debug, Default)]
pub struct Scribe {
    lines: Vec<u8>,
    count: u64,
    /// Of the request that is being looked at.
    kept: Option<Box<Kept>>,
    /// A client holds one by its box, which goes to and fro as it is.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Kept>>,
}

/// Texts that a shard keeps for use.
const SPARE: usize = 1024;

impl Scribe {
    /// Keeps what a client said, until it is taken.
    pub fn keep(&mut self, said: &Said<'_>) {
        let kept = self.kept.take().or_else(|| self.spare.pop());
        let mut kept = kept.unwrap_or_default();
        kept.keep(said);
        self.kept = Some(kept);
    }

    /// Takes what was kept last.
    pub fn take(&mut self) -> Option<Box<Kept>> {
        self.kept.take()
    }

    /// Adds a line.
    pub fn write(&mut self, line: &Line<'_>) {
        line.encode(&mut self.lines);
        self.count += 1;
    }

    /// Lets somebody else use it.
    pub fn give_back(&mut self, kept: Box<Kept>) {
        if self.spare.len() < SPARE {
            self.spare.push(kept);
        }
    }

    /// Whether lines wait to be handed over.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Hands the lines over; without effect for now when the writer looks at the queue just then.
    pub fn hand_over(&mut self, access: &Access, shard: usize) {
        let Some(queue) = access.queues.get(shard).filter(|_| !self.lines.is_empty()) else { return };
        let room = match queue.lines.try_lock() {
            Ok(mut waiting) if waiting.is_empty() => {
                std::mem::swap(&mut *waiting, &mut self.lines);
                true
            }
            Ok(mut waiting) if waiting.len() + self.lines.len() <= QUEUE => {
                waiting.extend_from_slice(&self.lines);
                true
            }
            Ok(_) => false,
            Err(_) if self.lines.len() < QUEUE => return,
            Err(_) => false,
        };
        if !room {
            queue.dropped.add(self.count);
        } else if let Some(writer) = access.writer.get() {
            writer.unpark();
        }
        self.lines.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'t>(target: &'t [u8], peer: &str) -> Line<'t> {
        Line {
            time_us: 1,
            duration_us: 2,
            upstream_us: Some(3),
            received: 4,
            sent: 5,
            status: 200,
            upstream_status: None,
            attempts: 2,
            version: Some(Version::Http11),
            peer: peer.parse().unwrap(),
            outcome: b"success",
            request_id: b"id",
            service: b"s",
            upstream: b"http://u",
            said: Said { method: b"GET", target, host: b"h", referer: b"", user_agent: b"ua", trace: b"" },
        }
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let access = Access::new(2);
        let mut scribe = Scribe::default();
        let long = [b'x'; 5000];
        scribe.write(&line(b"/a", "127.0.0.1"));
        scribe.write(&line(&long, "::1"));
        scribe.hand_over(&access, 1);
        scribe.write(&Line { version: None, upstream_us: None, ..line(b"/c", "10.0.0.1") });
        scribe.hand_over(&access, 1);
        assert!(scribe.is_empty());
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        assert!(bytes.is_empty());
        access.take(1, &mut bytes);
        let mut left = &bytes[..];
        assert_eq!(Line::decode(&mut left), Some(line(b"/a", "127.0.0.1")));
        assert_eq!(Line::decode(&mut left), Some(line(&long[..LONGEST], "::1")));
        let third = Line::decode(&mut left).unwrap();
        assert_eq!((third.version, third.upstream_us, third.said.target), (None, None, &b"/c"[..]));
        assert_eq!(Line::decode(&mut left), None);
        assert_eq!(access.dropped(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let access = Access::new(1);
        let mut scribe = Scribe::default();
        let long = [b'x'; 2000];
        let mut written = 0;
        while access.dropped() == 0 {
            for _ in 0..10 {
                scribe.write(&line(&long, "::1"));
            }
            scribe.hand_over(&access, 0);
            written += 10;
        }
        assert_eq!(access.dropped(), 10);
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        let mut left = &bytes[..];
        let kept = std::iter::from_fn(|| Line::decode(&mut left)).count();
        assert_eq!(kept + 10, written);
        let held = access.queues[0].lines.lock().unwrap();
        scribe.write(&line(b"/", "::1"));
        scribe.hand_over(&access, 0);
        assert!(!scribe.is_empty(), "it is offered again");
        drop(held);
        scribe.hand_over(&access, 0);
        assert!(scribe.is_empty());
    }

    #[test]
    fn what_was_said_is_kept() {
        let mut kept = Kept::default();
        let said = line(b"/t", "::1").said;
        kept.keep(&line(b"/longer than the next", "::1").said);
        kept.keep(&said);
        assert_eq!(kept.said(), said);
    }
}

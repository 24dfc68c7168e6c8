//! The access log's way from the shards to its writer: one bounded queue of encoded lines for each shard.
//!
//! A shard collects the lines of a turn, and hands them over at its end by swapping buffers under a lock that nobody
//! holds for longer; when the queue is full, or the lock is just taken and too much waits, lines are dropped and
//! counted. A shard never waits and formats nothing. Must not know: formats, files.

use crate::http::request::Version;
use crate::shared::metrics::Counter;
use std::net::{IpAddr, Ipv6Addr};
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

/// The target's place among the texts of `Said`.
const TARGET: usize = 1;

/// One line of the access log, but for what the client said.
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
}

/// Numbers and lengths of an encoded line, which stand before its texts.
const HEAD: usize = 5 * 8 + 2 * 2 + 2 + 16 + 2 * TEXTS;
/// Texts of a line.
const TEXTS: usize = 10;

/// As much of a text as is kept.
fn cut(text: &[u8]) -> &[u8] {
    &text[..text.len().min(LONGEST)]
}

/// Fills an array from its front.
struct Filler<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Filler<N> {
    fn put<const M: usize>(&mut self, bytes: [u8; M]) {
        self.bytes[self.at..self.at + M].copy_from_slice(&bytes);
        self.at += M;
    }
}

/// Takes what a `Filler` put.
struct Reader<'t>(&'t [u8]);

impl<'t> Reader<'t> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn short(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
}

/// An encoded line, its texts not yet told apart.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'t> {
    head: &'t [u8; HEAD],
    /// All texts, one right behind the other: what holds for every byte of these holds for every text of the line.
    pub texts: &'t [u8],
}

impl<'t> Encoded<'t> {
    /// Takes the first one off; `None` when there is none.
    pub fn first(from: &mut &'t [u8]) -> Option<Encoded<'t>> {
        let (head, rest) = from.split_first_chunk::<HEAD>()?;
        let lengths = head[HEAD - 2 * TEXTS..].chunks_exact(2);
        let length = lengths.map(|two| usize::from(u16::from_le_bytes([two[0], two[1]]))).sum();
        let (texts, rest) = rest.split_at_checked(length)?;
        *from = rest;
        Some(Encoded { head, texts })
    }

    /// The line, and what the client said; `None` when it was not encoded by `Line::encode`.
    pub fn decode(&self) -> Option<(Line<'t>, Said<'t>)> {
        let mut head = Reader(self.head);
        let time_us = head.long()?;
        let duration_us = head.long()?;
        let upstream_us = Some(head.long()?).filter(|us| *us != u64::MAX);
        let received = head.long()?;
        let sent = head.long()?;
        let status = head.short()?;
        let upstream_status = Some(head.short()?).filter(|status| *status != 0);
        let [attempts, version] = head.take()?;
        let peer = IpAddr::V6(Ipv6Addr::from(head.take::<16>()?)).to_canonical();
        let mut left = self.texts;
        let mut text = || {
            let (text, rest) = left.split_at_checked(head.short()?.into())?;
            left = rest;
            Some(text)
        };
        let line = Line {
            time_us,
            duration_us,
            upstream_us,
            received,
            sent,
            status,
            upstream_status,
            attempts,
            version: match version {
                1 => Some(Version::Http10),
                2 => Some(Version::Http11),
                _ => None,
            },
            peer,
            outcome: text()?,
            request_id: text()?,
            service: text()?,
            upstream: text()?,
        };
        let said = Said {
            method: text()?,
            target: text()?,
            host: text()?,
            referer: text()?,
            user_agent: text()?,
            trace: text()?,
        };
        Some((line, said))
    }
}

impl Line<'_> {
    /// Appends the line with what the client said.
    fn encode(&self, kept: &Kept, into: &mut Vec<u8>) {
        let mut head = Filler { bytes: [0; HEAD], at: 0 };
        head.put(self.time_us.to_le_bytes());
        head.put(self.duration_us.to_le_bytes());
        head.put(self.upstream_us.unwrap_or(u64::MAX).to_le_bytes());
        head.put(self.received.to_le_bytes());
        head.put(self.sent.to_le_bytes());
        head.put(self.status.to_le_bytes());
        head.put(self.upstream_status.unwrap_or(0).to_le_bytes());
        let version = match self.version {
            None => 0,
            Some(Version::Http10) => 1,
            Some(Version::Http11) => 2,
        };
        head.put([self.attempts, version]);
        head.put(match self.peer {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        let texts = [self.outcome, self.request_id, self.service, self.upstream].map(cut);
        for text in texts {
            head.put((text.len() as u16).to_le_bytes());
        }
        for length in kept.lengths {
            head.put(length.to_le_bytes());
        }
        into.extend_from_slice(&head.bytes);
        for text in texts {
            into.extend_from_slice(text);
        }
        into.extend_from_slice(&kept.texts);
    }
}

/// What a client said, kept while its request runs, as a line carries it. Used again and again, so that it asks for
/// no memory.
#[derive(Debug, Default)]
pub struct Kept {
    texts: Vec<u8>,
    lengths: [u16; 6],
}

impl Kept {
    /// Replaces what was kept. The query goes behind the target.
    fn keep(&mut self, said: &Said<'_>, query: &[u8]) {
        self.texts.clear();
        let query = &query[..query.len().min(LONGEST.saturating_sub(said.target.len()))];
        for (at, text) in said.texts().into_iter().map(cut).enumerate() {
            self.texts.extend_from_slice(text);
            self.lengths[at] = text.len() as u16;
            if at == TARGET {
                self.texts.extend_from_slice(query);
                self.lengths[at] += query.len() as u16;
            }
        }
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
    /// Keeps what a client said, until it is taken. The query, with its `?`, goes behind the target.
    pub fn keep(&mut self, said: &Said<'_>, query: &[u8]) {
        let kept = self.kept.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        kept.keep(said, query);
    }

    /// Takes what was kept last.
    pub fn take(&mut self) -> Option<Box<Kept>> {
        self.kept.take()
    }

    /// Adds a line with what the client said, whose memory others can use now.
    pub fn write(&mut self, line: &Line<'_>, kept: Box<Kept>) {
        line.encode(&kept, &mut self.lines);
        self.count += 1;
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

    fn line(peer: &str) -> Line<'static> {
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
        }
    }

    fn said(target: &[u8]) -> Said<'_> {
        Said { method: b"GET", target, host: b"h", referer: b"", user_agent: b"ua", trace: b"" }
    }

    fn write(scribe: &mut Scribe, line: &Line<'_>, said: &Said<'_>, query: &[u8]) {
        scribe.keep(said, query);
        let kept = scribe.take().unwrap();
        scribe.write(line, kept);
    }

    fn next<'t>(left: &mut &'t [u8]) -> Option<(Line<'t>, Said<'t>)> {
        Encoded::first(left).map(|encoded| encoded.decode().unwrap())
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let access = Access::new(2);
        let mut scribe = Scribe::default();
        let long = [b'x'; 5000];
        write(&mut scribe, &line("127.0.0.1"), &said(b"/a"), b"");
        write(&mut scribe, &Line { upstream: &long, ..line("::1") }, &said(&long), b"?q");
        scribe.hand_over(&access, 1);
        let unread = Line { version: None, upstream_us: None, upstream_status: Some(1), ..line("::ffff:10.0.0.1") };
        write(&mut scribe, &unread, &said(b"/c"), b"?d=e");
        write(&mut scribe, &line("::1"), &said(&long[..LONGEST - 2]), b"?abc");
        scribe.hand_over(&access, 1);
        assert!(scribe.is_empty());
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        assert!(bytes.is_empty());
        access.take(1, &mut bytes);
        let mut left = &bytes[..];
        assert_eq!(next(&mut left), Some((line("127.0.0.1"), said(b"/a"))));
        let cut = &long[..LONGEST];
        assert_eq!(next(&mut left), Some((Line { upstream: cut, ..line("::1") }, said(cut))));
        assert_eq!(next(&mut left), Some((Line { peer: "10.0.0.1".parse().unwrap(), ..unread }, said(b"/c?d=e"))));
        assert_eq!(next(&mut left).unwrap().1.target, [&long[..LONGEST - 2], b"?a"].concat());
        assert_eq!(next(&mut left), None);
        assert_eq!(access.dropped(), 0);
    }

    #[test]
    fn what_was_kept_before_is_gone() {
        let access = Access::new(1);
        let mut scribe = Scribe::default();
        scribe.keep(&said(b"/longer than the next"), b"?query");
        write(&mut scribe, &line("::1"), &said(b"/t"), b"");
        write(&mut scribe, &line("::1"), &Said::default(), b"");
        scribe.hand_over(&access, 0);
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        let mut left = &bytes[..];
        assert_eq!(next(&mut left), Some((line("::1"), said(b"/t"))));
        assert_eq!(next(&mut left), Some((line("::1"), Said::default())));
    }

    #[test]
    fn a_part_of_a_line_is_none() {
        let access = Access::new(1);
        let mut scribe = Scribe::default();
        write(&mut scribe, &line("::1"), &said(b"/t"), b"");
        scribe.hand_over(&access, 0);
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        for end in 0..bytes.len() {
            assert!(Encoded::first(&mut &bytes[..end]).is_none());
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let access = Access::new(1);
        let mut scribe = Scribe::default();
        let long = [b'x'; 2000];
        let mut written = 0;
        while access.dropped() == 0 {
            for _ in 0..10 {
                write(&mut scribe, &line("::1"), &said(&long), b"");
            }
            scribe.hand_over(&access, 0);
            written += 10;
        }
        assert_eq!(access.dropped(), 10);
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        let mut left = &bytes[..];
        let kept = std::iter::from_fn(|| Encoded::first(&mut left)).count();
        assert_eq!(kept + 10, written);
        let held = access.queues[0].lines.lock().unwrap();
        write(&mut scribe, &line("::1"), &said(b"/"), b"");
        scribe.hand_over(&access, 0);
        assert!(!scribe.is_empty(), "it is offered again");
        drop(held);
        scribe.hand_over(&access, 0);
        assert!(scribe.is_empty());
    }
}

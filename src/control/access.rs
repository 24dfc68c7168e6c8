//! The access log's writer: a thread that takes the lines of all shards, formats them, and appends them to a file or
//! a standard stream. What cannot be written is counted and said once; nobody waits for it.
//!
//! Must not know: shards, what a request is beyond its line.

use crate::config::model::{Access as Settings, AccessFormat, AccessTo};
use crate::control::status::rfc3339;
use crate::http::render;
use crate::http::request::Version;
use crate::shared::access::{Access, Encoded, Line, Said};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Thread;
use std::time::{Duration, SystemTime};

/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(2);
/// How long the end of the process waits for the last lines.
const FLUSH_TIME: Duration = Duration::from_millis(500);
/// Bytes that are formatted before they are written.
const BATCH: usize = 256 << 10;

/// What the writer is told.
enum Order {
    /// Write so, and there.
    Set(AccessFormat, Output),
    /// Say when all that was handed over is written.
    Flush(Sender<()>),
}

/// Where lines go.
enum Output {
    Nowhere,
    Stdout,
    Stderr,
    File(File),
}

/// The writer as control knows it. Its thread starts with the first use.
pub struct AccessLog {
    access: Arc<Access>,
    settings: Settings,
    writer: Option<(Sender<Order>, Thread)>,
    unwritten: Arc<AtomicU64>,
}

impl AccessLog {
    /// One that is off.
    pub fn new(access: Arc<Access>) -> AccessLog {
        AccessLog { access, settings: Settings::default(), writer: None, unwritten: Arc::default() }
    }

    /// Takes settings over; the text of an error leaves everything as it is.
    pub fn set(&mut self, settings: &Settings) -> Result<(), String> {
        if *settings == self.settings {
            return Ok(());
        }
        self.install(settings)?;
        self.settings = settings.clone();
        Ok(())
    }

    /// Whether these settings could be taken over: a file is opened as it would be.
    pub fn check(&self, settings: &Settings) -> Result<(), String> {
        if *settings == self.settings { Ok(()) } else { open(settings).map(|_| ()) }
    }

    /// Opens its file anew, by its name.
    pub fn reopen(&mut self) {
        if !matches!(self.settings.to, AccessTo::File(_)) || self.settings.format == AccessFormat::Off {
            return;
        }
        match self.install(&self.settings.clone()) {
            Ok(()) => log::info!("the access log is opened again"),
            Err(error) => log::error!("{error}; its last file stays in use"),
        }
    }

    fn install(&mut self, settings: &Settings) -> Result<(), String> {
        let output = open(settings)?;
        let is_on = settings.format != AccessFormat::Off;
        if self.writer.is_none() && is_on {
            self.writer = Some(self.start()?);
        }
        if let Some((orders, thread)) = &self.writer {
            // The thread lives as long as the process.
            let _ = orders.send(Order::Set(settings.format, output));
            thread.unpark();
        }
        self.access.set_on(is_on);
        Ok(())
    }

    fn start(&self) -> Result<(Sender<Order>, Thread), String> {
        let (orders, inbox) = channel();
        let (access, unwritten) = (Arc::clone(&self.access), Arc::clone(&self.unwritten));
        let thread = std::thread::Builder::new().name("access".to_owned()).stack_size(256 << 10);
        let handle = thread.spawn(move || Writer::new(access, unwritten).run(&inbox));
        let thread = handle.map_err(|error| format!("cannot start the access log: {error}"))?.thread().clone();
        self.access.set_writer(thread.clone());
        Ok((orders, thread))
    }

    /// Lines that were dropped, by shards or because they could not be written.
    pub fn dropped(&self) -> u64 {
        self.access.dropped() + self.unwritten.load(Ordering::Relaxed)
    }

    /// Waits a moment until the lines so far are written.
    pub fn finish(&self) {
        let Some((orders, thread)) = &self.writer else { return };
        let (done, written) = channel();
        if orders.send(Order::Flush(done)).is_ok() {
            thread.unpark();
            let _ = written.recv_timeout(FLUSH_TIME);
        }
    }
}

fn open(settings: &Settings) -> Result<Output, String> {
    match (&settings.to, settings.format) {
        (_, AccessFormat::Off) => Ok(Output::Nowhere),
        (AccessTo::Stdout, _) => Ok(Output::Stdout),
        (AccessTo::Stderr, _) => Ok(Output::Stderr),
        (AccessTo::File(path), _) => {
            // A FIFO that nobody reads must not hold up whoever opens it.
            let refused = |error: io::Error| format!("cannot open the access log {path}: {error}");
            let is_odd = std::fs::metadata(path).is_ok_and(|known| !known.is_file() && !is_device(&known));
            if is_odd {
                return Err(refused(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
            }
            OpenOptions::new().append(true).create(true).open(path).map(Output::File).map_err(refused)
        }
    }
}

fn is_device(known: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&known.file_type())
}

struct Writer {
    access: Arc<Access>,
    unwritten: Arc<AtomicU64>,
    format: AccessFormat,
    output: Output,
    taken: Vec<u8>,
    text: Vec<u8>,
    lines: u64,
    is_failing: bool,
    memo: Memo,
}

impl Writer {
    fn new(access: Arc<Access>, unwritten: Arc<AtomicU64>) -> Writer {
        Writer {
            access,
            unwritten,
            format: AccessFormat::Off,
            output: Output::Nowhere,
            taken: Vec::new(),
            text: Vec::new(),
            lines: 0,
            is_failing: false,
            memo: Memo::default(),
        }
    }

    fn run(&mut self, inbox: &Receiver<Order>) {
        loop {
            let mut flushed = Vec::new();
            for order in inbox.try_iter() {
                match order {
                    // Whoever was told of the change finds every later line at the new place.
                    Order::Set(format, output) => {
                        (self.format, self.output, self.is_failing) = (format, output, false);
                        self.memo = Memo::default();
                    }
                    Order::Flush(done) => flushed.push(done),
                }
            }
            let wrote = self.drain();
            for done in flushed {
                // Whoever waits may have given up.
                let _ = done.send(());
            }
            if wrote {
                std::thread::sleep(GATHER);
            } else {
                std::thread::park();
            }
        }
    }

    /// Writes what there is; whether there was any.
    fn drain(&mut self) -> bool {
        let mut any = false;
        for shard in 0..self.access.shards() {
            let mut taken = std::mem::take(&mut self.taken);
            self.access.take(shard, &mut taken);
            let mut left = &taken[..];
            while let Some(encoded) = Encoded::first(&mut left) {
                any = true;
                if let Some((line, said)) = encoded.decode() {
                    self.put(&line, &said, is_plain(encoded.texts));
                }
                if self.text.len() >= BATCH {
                    self.write();
                }
            }
            self.taken = taken;
        }
        self.write();
        any
    }

    /// Formats a line. Plain texts are quoted as they are.
    fn put(&mut self, line: &Line<'_>, said: &Said<'_>, is_plain: bool) {
        let Writer { text, memo, .. } = self;
        self.lines += 1;
        match self.format {
            AccessFormat::Off => self.lines -= 1,
            AccessFormat::Common => common(text, line, said, is_plain, memo),
            AccessFormat::Combined => {
                common(text, line, said, is_plain, memo);
                // In place of the end of the line.
                text.pop();
                for value in [said.referer, said.user_agent] {
                    text.extend_from_slice(b" \"");
                    escaped(text, if value.is_empty() { b"-" } else { value }, is_plain);
                    text.push(b'"');
                }
                text.push(b'\n');
            }
            AccessFormat::Json => json(text, line, said, is_plain, memo),
        }
    }

    fn write(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let result = match &mut self.output {
            Output::Nowhere => Ok(()),
            Output::Stdout => io::stdout().lock().write_all(&self.text).and_then(|()| io::stdout().lock().flush()),
            Output::Stderr => io::stderr().lock().write_all(&self.text),
            Output::File(file) => file.write_all(&self.text),
        };
        match result {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                log::info!("the access log is written again");
            }
            Ok(()) => {}
            Err(error) => {
                self.unwritten.fetch_add(self.lines, Ordering::Relaxed);
                if !std::mem::replace(&mut self.is_failing, true) {
                    log::error!("the access log cannot be written, its lines are dropped: {error}");
                }
            }
        }
        self.text.clear();
        self.lines = 0;
    }
}

/// What many lines in a row have in common, as text. A writer has one format at a time.
#[derive(Default)]
struct Memo {
    second: u64,
    date: String,
    peer: Option<IpAddr>,
    client: Vec<u8>,
}

impl Memo {
    /// The time of a line, in UTC, made once a second.
    fn date(&mut self, time_us: u64, format: impl FnOnce(SystemTime) -> String) -> &[u8] {
        let second = time_us / 1_000_000;
        if second != self.second || self.date.is_empty() {
            self.second = second;
            self.date = format(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        }
        self.date.as_bytes()
    }

    fn client(&mut self, peer: IpAddr) -> &[u8] {
        if self.peer != Some(peer) {
            self.peer = Some(peer);
            self.client.clear();
            render::push_ip(&mut self.client, peer);
        }
        &self.client
    }
}

/// A time as the Common format has it.
fn clf(time: SystemTime) -> String {
    // "Sun, 06 Nov 1994 08:49:37 GMT"
    let date = httpdate::fmt_http_date(time);
    let part = |range: std::ops::Range<usize>| date.get(range).unwrap_or_default();
    format!("{}/{}/{}:{} +0000", part(5..7), part(8..11), part(12..16), part(17..25))
}

/// RFC 3339 up to the seconds.
fn date_and_time(time: SystemTime) -> String {
    let mut text = rfc3339(time);
    text.truncate("2026-01-01T00:00:00".len());
    text
}

/// `host - - [time] "request" status bytes`
fn common(text: &mut Vec<u8>, line: &Line<'_>, said: &Said<'_>, is_plain: bool, memo: &mut Memo) {
    let version: &[u8] = match line.version {
        Some(Version::Http10) => b" HTTP/1.0",
        Some(Version::Http11) => b" HTTP/1.1",
        None => b"",
    };
    text.extend_from_slice(memo.client(line.peer));
    text.extend_from_slice(b" - - [");
    text.extend_from_slice(memo.date(line.time_us, clf));
    text.extend_from_slice(b"] \"");
    if said.method.is_empty() {
        text.push(b'-');
    } else {
        escaped(text, said.method, is_plain);
        text.push(b' ');
        escaped(text, said.target, is_plain);
        text.extend_from_slice(version);
    }
    text.extend_from_slice(b"\" ");
    integer(text, line.status.into());
    text.push(b' ');
    if line.sent == 0 {
        text.push(b'-')
    } else {
        integer(text, line.sent)
    }
    text.push(b'\n');
}

/// What could end a quoted text, or a line, or be taken for something else by a terminal, as `\xHH`.
fn escaped(text: &mut Vec<u8>, value: &[u8], is_plain: bool) {
    if is_plain {
        return text.extend_from_slice(value);
    }
    for byte in value {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                // A vector takes everything.
                let _ = write!(text, "\\x{byte:02X}");
            }
            byte => text.push(*byte),
        }
    }
}

/// Whether quotes may stand around this as it is: no control character, no quote, no backslash, and ASCII.
fn is_plain(texts: &[u8]) -> bool {
    // Without a branch, so that it is done for many bytes at once.
    let odd = |byte: u8| u8::from(byte.wrapping_sub(b' ') > b'~' - b' ') | u8::from(matches!(byte, b'"' | b'\\'));
    texts.iter().fold(0, |any, byte| any | odd(*byte)) == 0
}

/// A line of JSON, written field by field: a serializer with an owned copy of every text cost as much as the request.
fn json(text: &mut Vec<u8>, line: &Line<'_>, said: &Said<'_>, is_plain: bool, memo: &mut Memo) {
    text.extend_from_slice(b"{\"time\":\"");
    text.extend_from_slice(memo.date(line.time_us, date_and_time));
    let ms = (line.time_us / 1000 % 1000) as u16;
    text.extend_from_slice(&[b'.', digit(ms / 100), digit(ms / 10), digit(ms), b'Z']);
    text.extend_from_slice(b"\",\"client\":\"");
    text.extend_from_slice(memo.client(line.peer));
    text.extend_from_slice(b"\",\"method\":");
    quoted(text, said.method, is_plain);
    text.extend_from_slice(b",\"path\":");
    quoted(text, said.target, is_plain);
    text.extend_from_slice(match line.version {
        Some(Version::Http10) => b",\"protocol\":\"HTTP/1.0\"",
        Some(Version::Http11) => b",\"protocol\":\"HTTP/1.1\"",
        None => b",\"protocol\":null",
    });
    text.extend_from_slice(b",\"host\":");
    quoted(text, said.host, is_plain);
    text.extend_from_slice(b",\"status\":");
    integer(text, line.status.into());
    text.extend_from_slice(b",\"outcome\":");
    quoted(text, line.outcome, is_plain);
    text.extend_from_slice(b",\"service\":");
    quoted(text, line.service, is_plain);
    text.extend_from_slice(b",\"upstream\":");
    quoted(text, line.upstream, is_plain);
    text.extend_from_slice(b",\"upstream_status\":");
    or_null(text, line.upstream_status.map(u64::from), integer);
    text.extend_from_slice(b",\"attempts\":");
    integer(text, line.attempts.into());
    text.extend_from_slice(b",\"duration\":");
    seconds(text, line.duration_us);
    text.extend_from_slice(b",\"upstream_duration\":");
    or_null(text, line.upstream_us, seconds);
    text.extend_from_slice(b",\"bytes_received\":");
    integer(text, line.received);
    text.extend_from_slice(b",\"bytes\":");
    integer(text, line.sent);
    text.extend_from_slice(b",\"request_id\":");
    quoted(text, line.request_id, is_plain);
    text.extend_from_slice(b",\"trace_id\":");
    quoted(text, trace_id(said.trace).unwrap_or(b""), is_plain);
    text.extend_from_slice(b",\"referer\":");
    quoted(text, said.referer, is_plain);
    text.extend_from_slice(b",\"user_agent\":");
    quoted(text, said.user_agent, is_plain);
    text.extend_from_slice(b"}\n");
}

fn digit(number: u16) -> u8 {
    b'0' + (number % 10) as u8
}

/// A text, or null when it is empty. What is no UTF-8 is shown by its replacement character.
fn quoted(text: &mut Vec<u8>, value: &[u8], is_plain: bool) {
    if value.is_empty() {
        text.extend_from_slice(b"null");
    } else if is_plain {
        text.push(b'"');
        text.extend_from_slice(value);
        text.push(b'"');
    } else {
        // A vector takes everything, and a text can always be written.
        let _ = serde_json::to_writer(text, &String::from_utf8_lossy(value));
    }
}

fn or_null(text: &mut Vec<u8>, value: Option<u64>, put: impl FnOnce(&mut Vec<u8>, u64)) {
    match value {
        Some(value) => put(text, value),
        None => text.extend_from_slice(b"null"),
    }
}

fn integer(text: &mut Vec<u8>, value: u64) {
    text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Microseconds as seconds.
fn seconds(text: &mut Vec<u8>, us: u64) {
    integer(text, us / 1_000_000);
    text.push(b'.');
    // Six digits behind a one.
    text.extend_from_slice(&itoa::Buffer::new().format(1_000_000 + us % 1_000_000).as_bytes()[1..]);
}

/// The trace id of a `traceparent` (W3C Trace Context section 3.2.2).
fn trace_id(traceparent: &[u8]) -> Option<&[u8]> {
    let id = traceparent.get(3..35).filter(|id| id.iter().all(u8::is_ascii_hexdigit))?;
    (traceparent.get(2) == Some(&b'-')).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::access::Scribe;

    fn line() -> Line<'static> {
        Line {
            time_us: 784_111_777_250_000,
            duration_us: 1_500,
            upstream_us: Some(1_000),
            received: 0,
            sent: 5,
            status: 200,
            upstream_status: Some(200),
            attempts: 1,
            version: Some(Version::Http11),
            peer: "::ffff:10.0.0.1".parse().unwrap(),
            outcome: b"success",
            request_id: b"id",
            service: b"s",
            upstream: b"http://u",
        }
    }

    const SAID: Said<'_> = Said {
        method: b"GET",
        target: b"/a\"b",
        host: b"h",
        referer: b"",
        user_agent: b"x\n\xff",
        trace: b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    };

    /// What a writer makes of lines that a shard hands over.
    fn written(format: AccessFormat, line: &Line<'_>, said: &Said<'_>) -> String {
        let access = Arc::new(Access::new(1));
        let mut scribe = Scribe::default();
        scribe.keep(said, b"");
        let kept = scribe.take().unwrap();
        scribe.write(line, kept);
        scribe.hand_over(&access, 0);
        let mut bytes = Vec::new();
        access.take(0, &mut bytes);
        let encoded = Encoded::first(&mut &bytes[..]).unwrap();
        let (line, said) = encoded.decode().unwrap();
        let mut writer = Writer::new(access, Arc::default());
        writer.format = format;
        writer.put(&line, &said, is_plain(encoded.texts));
        String::from_utf8(writer.text).unwrap()
    }

    #[test]
    fn every_odd_byte_is_seen() {
        for at in [0, 1, 7, 15, 16, 30, 31, 32, 63] {
            for byte in 0..=255 {
                let mut text = [b'x'; 64];
                text[at] = byte;
                let expected = (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(is_plain(&text), expected, "{byte} at {at}");
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn common_and_combined_lines() {
        let common = "10.0.0.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a\\x22b HTTP/1.1\" 200 5\n";
        assert_eq!(written(AccessFormat::Common, &line(), &SAID), common);
        let combined = common.replace('\n', " \"-\" \"x\\x0A\\xFF\"\n");
        assert_eq!(written(AccessFormat::Combined, &line(), &SAID), combined);
        let unread = Line { version: None, sent: 0, status: 400, ..line() };
        assert!(written(AccessFormat::Common, &unread, &Said::default()).ends_with("] \"-\" 400 -\n"));
        assert_eq!(written(AccessFormat::Off, &line(), &SAID), "");
    }

    #[test]
    fn json_lines() {
        let text = written(AccessFormat::Json, &line(), &SAID);
        assert!(text.ends_with("}\n"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], "1994-11-06T08:49:37.250Z");
        assert_eq!(value["client"], "10.0.0.1");
        assert_eq!(value["path"], "/a\"b");
        assert_eq!(value["duration"], 0.0015);
        assert_eq!(value["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(value["user_agent"], "x\n\u{fffd}");
        for null in ["referer", "protocol", "upstream_status", "upstream_duration", "method"] {
            let said = Said { method: b"", ..SAID };
            let bare = Line { version: None, upstream_status: None, upstream_us: None, ..line() };
            let value: serde_json::Value = serde_json::from_str(&written(AccessFormat::Json, &bare, &said)).unwrap();
            assert_eq!(value.get(null), Some(&serde_json::Value::Null), "{null}");
        }
        for (us, shown) in [(0, "0.000000"), (1, "0.000001"), (999_999, "0.999999"), (61_000_001, "61.000001")] {
            let text = written(AccessFormat::Json, &Line { duration_us: us, ..line() }, &SAID);
            assert!(text.contains(&format!(",\"duration\":{shown},")), "{text}");
        }
    }
}

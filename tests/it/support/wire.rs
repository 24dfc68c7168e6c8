//! Strict reading of HTTP/1.1 messages from a socket, for both roles of the tests: a client that
//! reads responses and an upstream that reads requests. It accepts less than a tolerant peer would,
//! so that whatever the gateway writes is judged by the letter (RFC 9112): anything malformed
//! panics with the raw bytes.

use super::LIMIT;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// Why no more bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed its side in order.
    Eof,
    /// The connection was reset.
    Reset,
    /// Nothing came within the time limit.
    Late,
}

/// A field name as sent, and its value without the white space around it.
pub(crate) type Field = (String, Vec<u8>);

/// A message head: its first line and its fields in order.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// Request line or status line, without the line end.
    pub(crate) line: String,
    pub(crate) fields: Vec<Field>,
    /// As received, with the empty line.
    pub(crate) raw: Vec<u8>,
}

impl Head {
    /// Every value of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        all(&self.fields, name)
    }

    /// The value of a field that may occur once; panics when it occurs more often.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        assert!(values.len() < 2, "{name} occurs {} times in\n{}", values.len(), text(&self.raw));
        values.pop()
    }

    /// Whether a comma list holds a token, in any case.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).iter().flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }
}

/// A body that came to its end, and its trailers.
pub(crate) type WholeBody = (Vec<u8>, Vec<Field>);

/// What came of a body, and what ended it.
pub(crate) type CutBody = (Vec<u8>, End);

/// Every value of a field among `fields`, in order; bytes that are not UTF-8 are replaced.
pub(crate) fn all(fields: &[Field], name: &str) -> Vec<String> {
    fields
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// Raw bytes, readable in a message.
pub(crate) fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(4000)];
    let rest = bytes.len() - shown.len();
    let more = if rest > 0 { format!("… and {rest} bytes more") } else { String::new() };
    format!("{}{more}", shown.escape_ascii())
}

/// One socket and what was read from it but not yet used.
pub(crate) struct Wire {
    /// Shared, so that whoever owns the other end of a test can shut it down.
    pub(crate) stream: Arc<TcpStream>,
    buffer: Vec<u8>,
    /// How much of `buffer` is used up; cut off when the buffer is filled again.
    used: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        // pieces that a test sends one by one must travel one by one
        stream.set_nodelay(true).unwrap();
        Wire { stream: Arc::new(stream), buffer: Vec::new(), used: 0 }
    }

    /// Writes everything, or says why not.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        (&*self.stream).write_all(bytes).map_err(|error| end_of(&error))
    }

    /// Bytes that were read and not yet used.
    pub(crate) fn unused(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Waits for more bytes.
    pub(crate) fn fill(&mut self) -> Result<(), End> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + 65536, 0);
        let read = loop {
            match (&*self.stream).read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(End::Eof),
            Ok(_) => Ok(()),
            Err(error) => Err(end_of(&error)),
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let taken = self.buffer[self.used..self.used + count].to_vec();
        self.used += count;
        taken
    }

    /// Exactly `count` bytes.
    pub(crate) fn exact(&mut self, count: usize) -> Result<Vec<u8>, End> {
        let mut bytes = Vec::with_capacity(count);
        loop {
            let step = self.unused().len().min(count - bytes.len());
            bytes.extend_from_slice(&self.take(step));
            if bytes.len() == count {
                return Ok(bytes);
            }
            self.fill()?;
        }
    }

    /// Everything until the peer closes; the bytes so far come back whatever the end was.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        loop {
            let step = self.unused().len();
            bytes.extend_from_slice(&self.take(step));
            if let Err(end) = self.fill() {
                return (bytes, end);
            }
        }
    }

    /// Reads and drops everything until the peer closes.
    pub(crate) fn drain(&mut self) -> End {
        loop {
            self.used = self.buffer.len();
            if let Err(end) = self.fill() {
                return end;
            }
        }
    }

    /// A whole head, up to and with the empty line.
    pub(crate) fn head(&mut self) -> Result<Head, End> {
        let mut from = 0;
        loop {
            let unused = self.unused();
            if let Some(at) = unused[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                let raw = self.take(from + at + 4);
                return Ok(parse(raw));
            }
            from = unused.len().saturating_sub(3);
            assert!(unused.len() < 1 << 20, "a head without an end:\n{}", text(unused));
            self.fill()?;
        }
    }

    /// A line that ends with CR LF, without it.
    fn line(&mut self) -> Result<String, End> {
        loop {
            let unused = self.unused();
            if let Some(at) = unused.windows(2).position(|two| two == b"\r\n") {
                let mut line = self.take(at + 2);
                line.truncate(at);
                assert!(!line.iter().any(|byte| byte.is_ascii_control()), "control in a line: {}", text(&line));
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            assert!(unused.len() < 1 << 16, "a line without an end:\n{}", text(unused));
            self.fill()?;
        }
    }

    /// A chunked body and its trailers; `Err` tells what came of the body before the end.
    pub(crate) fn chunked(&mut self) -> Result<WholeBody, CutBody> {
        let mut body = Vec::new();
        match self.chunks(&mut body) {
            Ok(trailers) => Ok((body, trailers)),
            Err(end) => Err((body, end)),
        }
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Result<Vec<Field>, End> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let valid = !size.is_empty() && size.len() < 9 && size.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(valid, "bad chunk size {line:?}");
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            let mut missing = size;
            while missing > 0 {
                let step = self.unused().len().min(missing);
                body.extend_from_slice(&self.take(step));
                missing -= step;
                if missing > 0 {
                    self.fill()?;
                }
            }
            let after = self.exact(2)?;
            assert!(after == b"\r\n", "a chunk of {size} bytes is followed by {}", text(&after));
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(parse_field(line.as_bytes(), line.as_bytes()));
        }
    }

    /// Waits until the other side has read every byte that was sent to it. A test that sends a
    /// message in pieces uses it between two of them: they are then certainly read one by one.
    pub(crate) fn wait_consumed(&self) {
        let local = hex_address(self.stream.local_addr().unwrap());
        // A connection that has been reset meanwhile has no peer any more, which will read nothing.
        let Ok(peer) = self.stream.peer_addr() else { return };
        let peer = hex_address(peer);
        super::wait_until("the other side has read what was sent", || {
            // the row of the peer's socket: its local address is our peer, its receive queue the last number
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let row = table.lines().find(|row| {
                let mut columns = row.split_whitespace().skip(1);
                columns.next() == Some(&peer) && columns.next() == Some(&local)
            });
            // no row: the peer has closed, so it will read nothing more
            row.is_none_or(|row| row.split_whitespace().nth(4).is_some_and(|queues| queues.ends_with(":00000000")))
        });
    }

    /// Ends the connection with a reset instead of an orderly close.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&*self.stream);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

fn end_of(error: &std::io::Error) -> End {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Late,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => End::Reset,
        _ => panic!("unexpected socket error: {error}"),
    }
}

/// An IPv4 address as /proc/net/tcp writes it.
fn hex_address(address: std::net::SocketAddr) -> String {
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("the tests use IPv4 sockets") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())
}

/// Splits a head into its lines and judges every byte of it.
fn parse(raw: Vec<u8>) -> Head {
    let inner = &raw[..raw.len() - 4];
    let mut lines = Vec::new();
    let mut start = 0;
    for at in 0..inner.len() {
        if inner[at..].starts_with(b"\r\n") {
            lines.push(&inner[start..at]);
            start = at + 2;
        }
    }
    lines.push(&inner[start..]);
    for line in &lines {
        let bad = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        assert!(!line.iter().any(bad), "control character in a head:\n{}", text(&raw));
    }
    let line = String::from_utf8(lines[0].to_vec()).unwrap_or_else(|_| panic!("first line of\n{}", text(&raw)));
    let fields = lines[1..].iter().map(|line| parse_field(line, &raw)).collect();
    Head { line, fields, raw }
}

fn parse_field(line: &[u8], raw: &[u8]) -> Field {
    let colon = line.iter().position(|byte| *byte == b':');
    let colon = colon.unwrap_or_else(|| panic!("field without a colon in\n{}", text(raw)));
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    assert!(!name.is_empty() && name.iter().all(is_token), "bad field name in\n{}", text(raw));
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    (String::from_utf8_lossy(name).into_owned(), value[start..end].to_vec())
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    /// Only the end of the connection ends it.
    UntilClose,
}

/// What the length fields of a head say; panics when they contradict each other.
pub(crate) fn framing(head: &Head) -> Option<Framing> {
    let lengths = head.all("Content-Length");
    let codings = head.all("Transfer-Encoding");
    let both = !lengths.is_empty() && !codings.is_empty();
    assert!(!both && lengths.len() < 2 && codings.len() < 2, "ambiguous length in\n{}", text(&head.raw));
    if let Some(length) = lengths.first() {
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        assert!(digits, "bad Content-Length in\n{}", text(&head.raw));
        return Some(Framing::Length(length.parse().unwrap()));
    }
    if let Some(coding) = codings.first() {
        assert!(coding.eq_ignore_ascii_case("chunked"), "unknown transfer coding in\n{}", text(&head.raw));
        return Some(Framing::Chunked);
    }
    None
}

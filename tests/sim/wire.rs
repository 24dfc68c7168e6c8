//! A strict reader of HTTP/1.1 messages, written for the simulator alone, so that it shares no mistake with
//! the gateway. It reads what the gateway writes, to clients and to upstreams, and takes nothing that the
//! gateway has no reason to write (RFC 9112): no bare LF, no folding, no chunk extension.

use std::fmt::Write as _;

/// A message head.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) line: String,
    /// Names in lower case, values without surrounding space.
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    /// The values of a field.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a field that may be there once.
    pub(crate) fn one(&self, name: &str) -> Result<Option<&str>, String> {
        let mut all = self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let first = all.next();
        if all.next().is_some() { Err(format!("{name} is there more than once: {self:?}")) } else { Ok(first) }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The three parts of the first line.
    pub(crate) fn words(&self) -> Result<(&str, &str, &str), String> {
        let mut words = self.line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some(a), Some(b), Some(c)) => Ok((a, b, c)),
            _ => Err(format!("a first line of too few words: {:?}", self.line)),
        }
    }

    /// The length that the fields announce: `Ok(None)` when they say nothing.
    pub(crate) fn announced(&self) -> Result<Option<Framing>, String> {
        match (self.one("content-length")?, self.one("transfer-encoding")?) {
            (Some(_), Some(_)) => Err(format!("two framings: {self:?}")),
            (None, None) => Ok(None),
            (None, Some("chunked")) => Ok(Some(Framing::Chunked)),
            (None, Some(other)) => Err(format!("transfer coding {other:?}")),
            (Some(digits), None) if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                Err(format!("length {digits:?}"))
            }
            (Some(digits), None) => digits.parse().map(|n| Some(Framing::Length(n))).map_err(|e| format!("{e}")),
        }
    }
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a reader finds, in order.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Head(Head),
    Body(Vec<u8>),
    End { trailers: Vec<(String, String)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    UntilClose,
    Ended,
}

/// A reader of one side of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    at: usize,
    state: State,
    trailers: Vec<(String, String)>,
}

const LONGEST_HEAD: usize = 1 << 18;

impl Reader {
    pub(crate) fn new() -> Reader {
        Reader { bytes: Vec::new(), at: 0, state: State::Head, trailers: Vec::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether it stands between two messages with nothing left.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Head && self.at == self.bytes.len()
    }

    /// How the body behind the head that was just found is delimited. To be called before the next part.
    pub(crate) fn expect_body(&mut self, framing: Framing) {
        self.state = match framing {
            Framing::Empty | Framing::Length(0) => State::Ended,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
    }

    /// What follows is no HTTP: bytes until the end.
    pub(crate) fn expect_tunnel(&mut self) {
        self.state = State::UntilClose;
    }

    /// The head was no final one: another follows.
    pub(crate) fn expect_head(&mut self) {
        self.state = State::Head;
    }

    /// The connection has ended properly: whether that ends the message.
    pub(crate) fn close(&mut self) -> Option<Part> {
        (self.state == State::UntilClose).then(|| {
            self.state = State::Head;
            Part::End { trailers: Vec::new() }
        })
    }

    /// The next part, when it is there. Pieces of a body come as they are.
    pub(crate) fn next(&mut self) -> Result<Option<Part>, String> {
        loop {
            match self.state {
                State::Head => {
                    let Some(head) = self.head()? else { return Ok(None) };
                    return Ok(Some(Part::Head(head)));
                }
                State::Ended => {
                    self.state = State::Head;
                    return Ok(Some(Part::End { trailers: std::mem::take(&mut self.trailers) }));
                }
                State::Length(left) => {
                    let Some(body) = self.take(left) else { return Ok(None) };
                    let left = left - body.len() as u64;
                    self.state = if left == 0 { State::Ended } else { State::Length(left) };
                    return Ok(Some(Part::Body(body)));
                }
                State::UntilClose => return Ok(self.take(u64::MAX).map(Part::Body)),
                State::Size => {
                    let Some(line) = self.line()? else { return Ok(None) };
                    let plain = !line.is_empty()
                        && line.len() < 16
                        && line.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
                        && (line == "0" || !line.starts_with('0'));
                    if !plain {
                        return Err(format!("chunk size {line:?}"));
                    }
                    let size = u64::from_str_radix(&line, 16).map_err(|error| error.to_string())?;
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    let Some(body) = self.take(left) else { return Ok(None) };
                    let left = left - body.len() as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Some(Part::Body(body)));
                }
                State::DataEnd => {
                    let Some(line) = self.line()? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(format!("behind a chunk stands {line:?}"));
                    }
                    self.state = State::Size;
                }
                State::Trailers => {
                    let Some(line) = self.line()? else { return Ok(None) };
                    if line.is_empty() {
                        self.state = State::Ended;
                    } else {
                        let field = field(&line)?;
                        self.trailers.push(field);
                    }
                }
            }
        }
    }

    fn take(&mut self, most: u64) -> Option<Vec<u8>> {
        let n = (self.bytes.len() - self.at).min(usize::try_from(most).unwrap_or(usize::MAX));
        if n == 0 {
            return None;
        }
        self.at += n;
        Some(self.bytes[self.at - n..self.at].to_vec())
    }

    /// A line that ends with CRLF, without it.
    fn line(&mut self) -> Result<Option<String>, String> {
        let rest = &self.bytes[self.at..];
        let Some(lf) = rest.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() > LONGEST_HEAD { Err("a line without an end".to_owned()) } else { Ok(None) };
        };
        let line = rest[..lf].strip_suffix(b"\r").ok_or_else(|| format!("a bare LF behind {}", text(&rest[..lf])))?;
        let line = plain(line)?;
        self.at += lf + 1;
        Ok(Some(line))
    }

    fn head(&mut self) -> Result<Option<Head>, String> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
            // Nothing malformed may hide in a head whose end never comes.
            let bad = rest.iter().position(|byte| byte.is_ascii_control() && !b"\r\n\t".contains(byte));
            return match bad {
                Some(_) => Err(format!("a control character in {}", text(rest))),
                None if rest.len() > LONGEST_HEAD => Err("a head without an end".to_owned()),
                None => Ok(None),
            };
        };
        let mut lines = Vec::new();
        let head = &rest[..end];
        for line in head.split(|byte| *byte == b'\n') {
            lines.push(plain(line.strip_suffix(b"\r").unwrap_or(line))?);
        }
        // Every line but the last, whose CRLF was cut off above, must have had its CR.
        let lf = head.iter().filter(|byte| **byte == b'\n').count();
        if head.windows(2).filter(|two| two == b"\r\n").count() != lf {
            return Err(format!("a bare LF in {}", text(head)));
        }
        let mut lines = lines.into_iter();
        let line = lines.next().unwrap_or_default();
        let fields = lines.map(|line| field(&line)).collect::<Result<_, _>>()?;
        self.at += end + 4;
        Ok(Some(Head { line, fields }))
    }
}

/// A line as text; bytes above 0x7f are kept one by one.
fn plain(line: &[u8]) -> Result<String, String> {
    if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(format!("a control character in {}", text(line)));
    }
    Ok(line.iter().map(|byte| char::from(*byte)).collect())
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("a field line without a colon: {line:?}"))?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("a field name that is no token: {line:?}"));
    }
    let value = value.strip_prefix(' ').unwrap_or(value);
    if value.trim_matches([' ', '\t']) != value {
        return Err(format!("space around the value: {line:?}"));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    let _ = write!(text, "{}", bytes[..bytes.len().min(300)].escape_ascii());
    text
}

//! A reader of HTTP/1.1 messages that takes what RFC 9112 generates and nothing else. It shares no code with
//! the gateway: what it says of the gateway's output is a second opinion.
//!
//! Must not know: the gateway, and what it was given.

/// A field line.
pub type Line<'b> = (&'b [u8], &'b [u8]);

/// A head.
#[derive(Debug, PartialEq)]
pub struct Head<'b> {
    /// The three parts of the first line.
    pub start: [&'b [u8]; 3],
    /// In order.
    pub fields: Vec<Line<'b>>,
    /// Bytes with the empty line.
    pub len: usize,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has no bytes.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// A body, as far as it came.
#[derive(Debug, Default, PartialEq)]
pub struct Body<'b> {
    /// Without framing.
    pub content: Vec<u8>,
    /// In order.
    pub trailers: Vec<Line<'b>>,
    /// Where its end is, if that came.
    pub end: Option<usize>,
}

/// Why it is no message.
pub type Fault = &'static str;

impl<'b> Head<'b> {
    /// The values of the fields of this name.
    pub fn values(&self, name: &str) -> Vec<&'b [u8]> {
        values(&self.fields, name)
    }
}

/// The values of the lines of this name.
fn values<'b>(lines: &[Line<'b>], name: &str) -> Vec<&'b [u8]> {
    let named = lines.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name.as_bytes()));
    named.map(|(_, value)| *value).collect()
}

/// What was read, and what follows it; `None` when its end did not come.
type Read<'b, T> = Result<Option<(T, &'b [u8])>, Fault>;

/// Up to the next CRLF. A CR or LF that stands alone is a fault.
fn line(bytes: &[u8]) -> Read<'_, &[u8]> {
    let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Ok(None) };
    match &bytes[at..] {
        [b'\r', b'\n', rest @ ..] => Ok(Some((&bytes[..at], rest))),
        [b'\r'] => Ok(None),
        _ => Err("a CR or LF stands alone"),
    }
}

/// Field lines up to the empty line.
fn lines<'b>(mut bytes: &'b [u8]) -> Read<'b, Vec<Line<'b>>> {
    let mut found = Vec::new();
    while let Some((text, rest)) = line(bytes)? {
        bytes = rest;
        if text.is_empty() {
            return Ok(Some((found, rest)));
        }
        let colon = text.iter().position(|byte| *byte == b':').ok_or("a field has no colon")?;
        let (name, value) = (&text[..colon], &text[colon + 1..]);
        if !is_token(name) {
            return Err("a field name is no token");
        }
        if !value.iter().all(is_text) {
            return Err("a field value has a control character");
        }
        found.push((name, trim(value)));
    }
    Ok(None)
}

/// SP, HTAB, VCHAR or obs-text.
fn is_text(byte: &u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)
}

/// Without the SP and HTAB around it.
fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let to = value.iter().rposition(|byte| !is_space(byte)).map_or(from, |at| at + 1);
    &value[from..to]
}

/// Whether it is a token (RFC 9110 section 5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// The members of a comma-separated list.
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|member| !member.is_empty())
}

/// The words of the first line, the fields and the length of a head as somebody else wrote it: what it says is
/// not judged.
pub fn unjudged(bytes: &[u8]) -> Result<Head<'_>, Fault> {
    let (start, rest) = line(bytes)?.ok_or("the first line has no end")?;
    let mut words = start.splitn(3, |byte| *byte == b' ');
    let start = [(); 3].map(|()| words.next().unwrap_or(b""));
    let (fields, behind) = lines(rest)?.ok_or("the head has no end")?;
    Ok(Head { start, fields, len: bytes.len() - behind.len() })
}

/// A request's head; it must be there whole.
pub fn request(bytes: &[u8]) -> Result<Head<'_>, Fault> {
    let (start, rest) = line(bytes)?.ok_or("the request line has no end")?;
    let words: Vec<&[u8]> = start.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return Err("the request line has not three words") };
    if !is_token(method) {
        return Err("the method is no token");
    }
    if !matches!(target, [b'/', ..] | b"*") || !target.iter().all(|byte| matches!(byte, 0x21..=0x7e) && *byte != b'#') {
        return Err("the target is neither in origin-form nor in asterisk-form");
    }
    if version != b"HTTP/1.1" {
        return Err("the version is another");
    }
    let (fields, behind) = lines(rest)?.ok_or("the head has no end")?;
    let head = Head { start: [method, target, version], fields, len: bytes.len() - behind.len() };
    match head.values("host")[..] {
        [host] if host.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\\"<>^`{|}".contains(byte)) => Ok(head),
        [_] => Err("the Host is no authority"),
        _ => Err("there is not exactly one Host"),
    }
}

/// A response's head; it must be there whole.
pub fn response(bytes: &[u8]) -> Result<Head<'_>, Fault> {
    let (start, rest) = line(bytes)?.ok_or("the status line has no end")?;
    let mut words = start.splitn(3, |byte| *byte == b' ');
    let (Some(version), Some(status), Some(reason)) = (words.next(), words.next(), words.next()) else {
        return Err("the status line has not two spaces");
    };
    if version != b"HTTP/1.1" {
        return Err("the version is another");
    }
    if !matches!(status, [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
        return Err("the status is no number from 100 to 599");
    }
    if !reason.iter().all(is_text) {
        return Err("the reason has a control character");
    }
    let (fields, behind) = lines(rest)?.ok_or("the head has no end")?;
    Ok(Head { start: [version, status, reason], fields, len: bytes.len() - behind.len() })
}

/// What the fields say of a body, for requests and responses alike; `None` when they say nothing.
fn announced(head: &Head<'_>) -> Result<Option<Framing>, Fault> {
    match (&head.values("content-length")[..], &head.values("transfer-encoding")[..]) {
        ([], []) => Ok(None),
        ([length], []) => {
            let plain = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            if !plain || (length.len() > 1 && length[0] == b'0') {
                return Err("the Content-Length is no plain number");
            }
            let number = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
            Ok(Some(Framing::Length(number.ok_or("the Content-Length is too large")?)))
        }
        ([], [b"chunked"]) => Ok(Some(Framing::Chunked)),
        ([], _) => Err("the Transfer-Encoding is not chunked alone"),
        _ => Err("the body is framed twice"),
    }
}

/// How a request's body is delimited.
pub fn request_framing(head: &Head<'_>) -> Result<Framing, Fault> {
    Ok(match announced(head)? {
        None | Some(Framing::Length(0)) => Framing::Empty,
        Some(framing) => framing,
    })
}

/// How a response's body is delimited.
pub fn response_framing(head: &Head<'_>, to_head: bool) -> Result<Framing, Fault> {
    let announced = announced(head)?;
    match head.start[1] {
        [b'1', ..] | b"204" if announced.is_some() => Err("a response that never has a body announces one"),
        [b'1', ..] | b"204" | b"304" => Ok(Framing::Empty),
        _ if to_head => Ok(Framing::Empty),
        _ => Ok(announced.unwrap_or(Framing::UntilClose)),
    }
}

/// A body as the gateway writes it, from its first byte.
pub fn body(framing: Framing, bytes: &[u8]) -> Result<Body<'_>, Fault> {
    let plain = |content: &[u8], end| Body { content: content.to_vec(), trailers: Vec::new(), end };
    match framing {
        Framing::Empty => Ok(plain(b"", Some(0))),
        Framing::UntilClose => Ok(plain(bytes, None)),
        Framing::Length(length) => match usize::try_from(length) {
            Ok(length) if length <= bytes.len() => Ok(plain(&bytes[..length], Some(length))),
            _ => Ok(plain(bytes, None)),
        },
        Framing::Chunked => chunks(bytes, Extensions::Never),
    }
}

/// Whether chunk extensions may stand behind a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extensions {
    /// In what the gateway reads.
    Ignored,
    /// In what it writes; nor may a size begin with a nought.
    Never,
}

/// A chunked body.
pub fn chunks(bytes: &[u8], extensions: Extensions) -> Result<Body<'_>, Fault> {
    let mut body = Body::default();
    let mut left = bytes;
    while let Some((text, rest)) = line(left)? {
        let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = text.split_at(digits);
        match extensions {
            Extensions::Never if !extension.is_empty() => return Err("a chunk has an extension"),
            Extensions::Never if size.len() > 1 && size[0] == b'0' => return Err("a size begins with a nought"),
            _ => {}
        }
        if !extension.iter().all(is_text) || !(extension.is_empty() || trim(extension).starts_with(b";")) {
            return Err("what follows a size is no extension");
        }
        let digits = std::str::from_utf8(size).map_err(|_| "a size is no number")?;
        let size = u64::from_str_radix(digits, 16).map_err(|_| "a size is no number")?;
        if size == 0 {
            // Half a trailer section is not judged.
            let ended = rest.starts_with(b"\r\n") || rest.windows(4).any(|window| window == b"\r\n\r\n");
            if let Some((trailers, behind)) = if ended { lines(rest)? } else { None } {
                body.trailers = trailers;
                body.end = Some(bytes.len() - behind.len());
            }
            return Ok(body);
        }
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= rest.len()) else {
            body.content.extend_from_slice(rest);
            return Ok(body);
        };
        body.content.extend_from_slice(&rest[..size]);
        match &rest[size..] {
            [b'\r', b'\n', behind @ ..] => left = behind,
            [] | [b'\r'] => return Ok(body),
            _ => return Err("chunk data does not end with CRLF"),
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_generated_is_taken() {
        assert!(request(b"GET /a?b HTTP/1.1\r\nHost: a\r\nA: b c\r\n\r\n").is_ok());
        for bad in [
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(request(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(response(b"HTTP/1.1 200 \r\n\r\n").is_ok());
        for bad in ["HTTP/1.1 200\r\n\r\n", "HTTP/1.1 600 A\r\n\r\n", "HTTP/1.1 200 A\0\r\n\r\n", "HTTP/1.1 200 A\r\n"]
        {
            assert!(response(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn framing_is_said_once() {
        let of = |fields: &str| {
            let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            response_framing(&response(bytes.as_bytes()).expect("a head"), false)
        };
        assert_eq!(of(""), Ok(Framing::UntilClose));
        assert_eq!(of("Content-Length: 10\r\n"), Ok(Framing::Length(10)));
        assert_eq!(of("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked));
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 01\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunks_are_decoded() {
        let read = |bytes: &'static str| chunks(bytes.as_bytes(), Extensions::Ignored);
        let body = read("3 ;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nT: v\r\n\r\nmore").expect("a body");
        assert_eq!((&body.content[..], &body.trailers[..]), (&b"abc0123456789"[..], &[(&b"T"[..], &b"v"[..])][..]));
        assert_eq!(body.end, Some("3 ;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nT: v\r\n\r\n".len()));
        assert_eq!(read("3\r\nab").map(|body| (body.content, body.end)), Ok((b"ab".to_vec(), None)));
        for bad in ["\r\n", "x\r\n", "3\n", "3 a\r\n", "3\r\nabcd\r\n", "0\r\nT\r\n\r\n", "0\r\n T: v\r\n\r\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(chunks(b"3;a\r\n", Extensions::Never).is_err());
        assert!(chunks(b"03\r\n", Extensions::Never).is_err());
    }
}

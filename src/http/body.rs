//! Message bodies on their way through: how their end is found on the way in, and how they are framed on
//! the way out (RFC 9112 sections 6 and 7).
//!
//! Chunks are written anew: extensions end here, sizes have one spelling, and what was not understood is
//! not passed on. Must not know: sockets, and which direction a body takes.

use crate::http::fields::{Field, is_token};
use crate::http::head;

/// Bytes of chunk extensions that one body may carry; they mean nothing to anybody, so many are an attack.
const EXTENSION_BYTES: u16 = 4096;
/// Fields of a trailer section.
const MAX_TRAILERS: usize = 64;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// The chunks say.
    Chunked(Chunked),
    /// Everything until the connection closes.
    UntilClose,
    /// It has ended.
    Done,
}

/// How a body is framed on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is: its length was announced, or the end of the connection delimits it.
    Plain,
    /// In chunks.
    Chunked,
}

/// Where a chunked body stands, named by what is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size { value: u64, digits: u8 },
    SizeSpace { value: u64 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
}

/// The decoder of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: Chunk,
    extension_left: u16,
}

impl Default for Chunked {
    fn default() -> Chunked {
        Chunked { state: Chunk::Size { value: 0, digits: 0 }, extension_left: EXTENSION_BYTES }
    }
}

/// A part of a decoded body.
enum Piece<'a> {
    Data(&'a [u8]),
    /// The whole trailer section, with its empty line; ends the body.
    Trailers(&'a [u8]),
}

impl Chunked {
    /// Decodes as much of `input` as can be; returns what was consumed, and whether the body has ended.
    fn decode(
        &mut self,
        input: &[u8],
        trailer_limit: usize,
        mut piece: impl FnMut(Piece<'_>),
    ) -> Result<(usize, bool), &'static str> {
        let mut at = 0;
        while let Some(byte) = input.get(at).copied() {
            match self.state {
                Chunk::Data { left } => {
                    let n = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                    piece(Piece::Data(&input[at..at + n]));
                    at += n;
                    self.state = match left - n as u64 {
                        0 => Chunk::DataCr,
                        left => Chunk::Data { left },
                    };
                    continue;
                }
                Chunk::Trailers => {
                    return match trailers_end(&input[at..], trailer_limit)? {
                        None => Ok((at, false)),
                        Some(n) => {
                            piece(Piece::Trailers(&input[at..at + n]));
                            Ok((at + n, true))
                        }
                    };
                }
                _ => self.state = self.after(byte)?,
            }
            at += 1;
        }
        Ok((at, false))
    }

    /// The state behind one byte of the framing.
    fn after(&mut self, byte: u8) -> Result<Chunk, &'static str> {
        match (self.state, byte) {
            (Chunk::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                // 15 digits stay below 2^60, so that no sum of sizes can overflow.
                if digits >= 15 {
                    return Err("a chunk size is too long");
                }
                let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
                Ok(Chunk::Size { value: value << 4 | digit, digits: digits + 1 })
            }
            (Chunk::Size { digits: 0, .. }, _) => Err("a chunk size is missing"),
            (Chunk::Size { value, .. } | Chunk::SizeSpace { value }, b' ' | b'\t') => {
                self.spend_extension()?;
                Ok(Chunk::SizeSpace { value })
            }
            (Chunk::Size { value, .. } | Chunk::SizeSpace { value }, b';') => Ok(Chunk::Extension { value }),
            (Chunk::Size { value, .. } | Chunk::Extension { value }, b'\r') => Ok(Chunk::SizeLf { value }),
            (Chunk::Size { .. } | Chunk::SizeSpace { .. }, _) => Err("a chunk size is malformed"),
            (Chunk::Extension { value }, b'\t' | 0x20..=0x7e | 0x80..) => {
                self.spend_extension()?;
                Ok(Chunk::Extension { value })
            }
            (Chunk::Extension { .. }, _) => Err("a chunk extension has a control character"),
            (Chunk::SizeLf { value: 0 }, b'\n') => Ok(Chunk::Trailers),
            (Chunk::SizeLf { value }, b'\n') => Ok(Chunk::Data { left: value }),
            (Chunk::SizeLf { .. }, _) => Err("a chunk size does not end with CRLF"),
            (Chunk::DataCr, b'\r') => Ok(Chunk::DataLf),
            (Chunk::DataLf, b'\n') => Ok(Chunk::Size { value: 0, digits: 0 }),
            (Chunk::DataCr | Chunk::DataLf, _) => Err("chunk data does not end with CRLF"),
            (state @ (Chunk::Data { .. } | Chunk::Trailers), _) => Ok(state),
        }
    }

    fn spend_extension(&mut self) -> Result<(), &'static str> {
        self.extension_left = self.extension_left.checked_sub(1).ok_or("the chunk extensions are too long")?;
        Ok(())
    }
}

/// Length of the trailer section at the start of `bytes`; `None` when its end has not come.
fn trailers_end(bytes: &[u8], limit: usize) -> Result<Option<usize>, &'static str> {
    match bytes {
        [b'\r', b'\n', ..] => return Ok(Some(2)),
        [b'\r', other, ..] if *other != b'\n' => return Err("the trailers are malformed"),
        _ => {}
    }
    match head::end(bytes, 0) {
        head::End::At(end) if end <= limit => Ok(Some(end)),
        head::End::Missing if bytes.len() <= limit => Ok(None),
        head::End::BareLf => Err("a trailer line ends with a bare LF"),
        _ => Err("the trailers are larger than limits.header_bytes"),
    }
}

/// Reads a trailer section and copies what may stand in it (RFC 9110 section 6.5.1) to `out`, if it `keeps` any.
fn push_trailers(out: &mut Vec<u8>, section: &[u8], keeps: bool) -> Result<(), &'static str> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(section, &mut slots) {
        Ok(httparse::Status::Complete((_, fields))) => {
            for field in fields.iter().filter(|field| keeps && may_trail(field.name)) {
                for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
            Ok(())
        }
        Err(httparse::Error::TooManyHeaders) => Err("there are too many trailers"),
        _ => Err("the trailers are malformed"),
    }
}

/// Whether a field may be a trailer: not framing, routing, authentication, request modifiers or anything
/// that changes how the content is read.
fn may_trail(name: &str) -> bool {
    const NEVER: [&str; 17] = [
        "authorization",
        "www-authenticate",
        "cookie",
        "set-cookie",
        "cache-control",
        "age",
        "expires",
        "location",
        "retry-after",
        "vary",
        "range",
        "max-forwards",
        "content-encoding",
        "content-range",
        "content-location",
        "accept-encoding",
        "pragma",
    ];
    is_token(name.as_bytes())
        && matches!(Field::of(name), Field::Other | Field::ProxyStatus)
        && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
        && !name.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case("if-"))
}

/// What [`Transfer::pass`] did with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Bytes of the input that belong to the body and are dealt with.
    pub consumed: usize,
    /// So many bytes at the start of the input go out as they are, behind what was put in the output.
    pub direct: usize,
    /// Bytes of content among them, without framing.
    pub content: usize,
}

/// A body on its way: how it comes and how it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    body: Body,
    coding: Coding,
    /// Trailers are passed on.
    trailers: bool,
}

impl Transfer {
    /// A body that has no bytes.
    pub const EMPTY: Transfer = Transfer { body: Body::Done, coding: Coding::Plain, trailers: false };

    /// A body framed by `body` on the way in and by `coding` on the way out, with its trailers.
    pub fn new(body: Body, coding: Coding) -> Transfer {
        let body = if body == Body::Length(0) { Body::Done } else { body };
        Transfer { body, coding, trailers: coding == Coding::Chunked }
    }

    /// The same without trailers, when `drops` says so: a `Connection` that names fields names trailers too
    /// (RFC 9110 section 7.6.1), and any trailers may be dropped (RFC 9112 section 7.1.2).
    pub fn drop_trailers(self, drops: bool) -> Transfer {
        Transfer { trailers: self.trailers && !drops, ..self }
    }

    /// Whether the whole body came.
    pub fn is_done(&self) -> bool {
        self.body == Body::Done
    }

    /// Whether only the end of the upstream's connection ends it.
    pub fn is_until_close(&self) -> bool {
        self.body == Body::UntilClose
    }

    /// Whether only the end of our connection to the receiver will end it there.
    pub fn ends_by_close(&self) -> bool {
        self.coding == Coding::Plain && !matches!(self.body, Body::Length(_) | Body::Done)
    }

    /// Bytes that may go from socket to socket unseen: what is left of a body that passes as it is.
    pub fn unseen(&self) -> u64 {
        match self.body {
            Body::Length(left) => left,
            _ => 0,
        }
    }

    /// So many of those bytes went.
    pub fn pass_unseen(&mut self, n: usize) {
        if let Body::Length(left) = &mut self.body {
            *left = left.saturating_sub(n as u64);
            if *left == 0 {
                self.body = Body::Done;
            }
        }
    }

    /// Takes the body's next bytes from `input`. What must be framed anew goes to `out`.
    pub fn pass(&mut self, input: &[u8], trailer_limit: usize, out: &mut Vec<u8>) -> Result<Passed, &'static str> {
        let (coding, keeps_trailers) = (self.coding, self.trailers);
        match &mut self.body {
            Body::Done => Ok(Passed { consumed: 0, direct: 0, content: 0 }),
            Body::Length(left) => {
                let n = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                if *left == 0 {
                    self.body = Body::Done;
                }
                Ok(Passed { consumed: n, direct: n, content: n })
            }
            Body::UntilClose if coding == Coding::Plain => {
                Ok(Passed { consumed: input.len(), direct: input.len(), content: input.len() })
            }
            Body::UntilClose => {
                push_chunk(out, input);
                Ok(Passed { consumed: input.len(), direct: 0, content: input.len() })
            }
            Body::Chunked(chunked) => {
                let mut trailers = Ok(());
                let mut content = 0;
                let (consumed, ended) = chunked.decode(input, trailer_limit, |piece| match (piece, coding) {
                    (Piece::Data(data), coding) => {
                        content += data.len();
                        match coding {
                            Coding::Plain => out.extend_from_slice(data),
                            Coding::Chunked => push_chunk(out, data),
                        }
                    }
                    (Piece::Trailers(section), Coding::Plain) => trailers = push_trailers(out, section, false),
                    (Piece::Trailers(section), Coding::Chunked) => {
                        out.extend_from_slice(b"0\r\n");
                        trailers = push_trailers(out, section, keeps_trailers);
                        out.extend_from_slice(b"\r\n");
                    }
                })?;
                trailers?;
                if ended {
                    self.body = Body::Done;
                }
                Ok(Passed { consumed, direct: 0, content })
            }
        }
    }

    /// The sender closed its connection: whether that is the proper end of the body.
    pub fn close(&mut self, out: &mut Vec<u8>) -> bool {
        if self.body == Body::UntilClose {
            if self.coding == Coding::Chunked {
                out.extend_from_slice(b"0\r\n\r\n");
            }
            self.body = Body::Done;
        }
        self.is_done()
    }
}

fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut size = data.len();
    let mut line = [0u8; 18];
    let mut at = 16;
    line[16..].copy_from_slice(b"\r\n");
    while size > 0 {
        at -= 1;
        line[at] = DIGITS[size & 15];
        size >>= 4;
    }
    out.extend_from_slice(&line[at..]);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces that end at `cuts`; returns what came out, what was left, and whether it ended.
    fn run(wire: &[u8], cuts: &[usize], coding: Coding) -> Result<(Vec<u8>, Vec<u8>, bool), &'static str> {
        let mut transfer = Transfer::new(Body::Chunked(Chunked::default()), coding);
        let (mut out, mut pending) = (Vec::new(), Vec::new());
        let mut from = 0;
        for to in cuts.iter().copied().chain([wire.len()]) {
            let to = to.clamp(from, wire.len());
            pending.extend_from_slice(&wire[from..to]);
            from = to;
            let passed = transfer.pass(&pending, 100, &mut out)?;
            pending.drain(..passed.consumed);
        }
        Ok((out, pending, transfer.is_done()))
    }

    #[test]
    fn chunks_are_written_anew_at_every_cut() {
        let wire = b"5;ext=\"a\"\r\nhello\r\n00a \t;b\r\n0123456789\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nnext";
        for first in 0..wire.len() {
            for second in first..wire.len() {
                let (out, rest, ended) = run(wire, &[first, second], Coding::Plain).unwrap();
                assert_eq!((&out[..], &rest[..], ended), (&b"hello0123456789"[..], &b"next"[..], true));
            }
        }
        let (out, ..) = run(wire, &[], Coding::Chunked).unwrap();
        assert_eq!(out, b"5\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n");
    }

    #[test]
    fn malformed_chunks_are_refused_at_every_cut() {
        for bad in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\nhello\r\n",
            "5 \r\nhello",
            "5;a\nhello",
            "5;a\rb",
            "5\r\nhelloX",
            "5\r\nhello\rX",
            "5\r\nhello\n",
            "1000000000000000\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\n\rX",
            "0\r\nA b\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "5;\x00\r\n",
            " 5\r\n",
        ] {
            for cut in 0..bad.len() {
                assert!(run(bad.as_bytes(), &[cut], Coding::Chunked).is_err(), "{bad:?} cut at {cut}");
            }
        }
        let long = format!("5;{}\r\nhello\r\n", "a".repeat(5000));
        assert!(run(long.as_bytes(), &[], Coding::Plain).is_err());
        let trailers = format!("0\r\nA: {}\r\n\r\n", "a".repeat(200));
        assert!(run(trailers.as_bytes(), &[], Coding::Plain).is_err());
    }

    #[test]
    fn an_unfinished_body_is_not_done() {
        let mut transfer = Transfer::new(Body::Chunked(Chunked::default()), Coding::Chunked);
        let mut out = Vec::new();
        transfer.pass(b"5\r\nhello\r\n", 100, &mut out).unwrap();
        assert!(!transfer.close(&mut out));
        let mut until_close = Transfer::new(Body::UntilClose, Coding::Chunked);
        out.clear();
        until_close.pass(b"abc", 100, &mut out).unwrap();
        assert!(until_close.close(&mut out));
        assert_eq!(out, b"3\r\nabc\r\n0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_goes_out_decodes_to_what_came_in(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            cuts in prop::collection::vec(0usize..2500, 0..12),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (plain, rest, ended) = run(&wire, &cuts, Coding::Plain).unwrap();
            prop_assert_eq!(&plain, &chunks.concat());
            prop_assert!(ended && rest.is_empty());
            let (again, ..) = run(&wire, &cuts, Coding::Chunked).unwrap();
            prop_assert_eq!(run(&again, &[], Coding::Plain).unwrap().0, plain);
        }

        #[test]
        fn no_input_panics(wire in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'5'), Just(b'0'), Just(b';'), any::<u8>()],
            0..60,
        )) {
            let _ = run(&wire, &[7, 11, 30], Coding::Chunked);
        }
    }
}

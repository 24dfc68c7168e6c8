//! Response heads of upstreams: tokenised by httparse, judged here with the strictness of requests
//! (RFC 9112 sections 4 and 6.3). What is not accepted is answered by 502, and its connection is closed.
//!
//! Must not know: what the client gets.

use crate::http::fields::{self, Connection, Field, MAX_FIELDS};
use crate::http::head::{self, Limits};
use crate::http::request::{Storage, Version};

/// How the length of a response body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, whatever the fields say: `HEAD`, 1xx, 204, 304.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the upstream closes.
    UntilClose,
}

/// Why a response head is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// What is wrong.
    Malformed(&'static str),
    /// It is larger than the limits allow.
    TooLarge,
}

/// A valid response head, borrowed from the bytes it was read from.
pub struct Response<'h, 'b> {
    /// 100 to 599.
    pub status: u16,
    /// As sent; may be empty.
    pub reason: &'b str,
    /// The upstream's.
    pub version: Version,
    /// The fields in their order.
    pub fields: &'h [httparse::Header<'b>],
    /// What each field is; parallel to `fields`.
    pub kinds: &'h [Field],
    /// Of the body.
    pub framing: Framing,
    /// What `Connection` said.
    pub connection: Connection,
    /// A `Date` field came.
    pub has_date: bool,
    /// It announced a body that it cannot have: bytes may still come that belong to nothing.
    pub announces_too_much: bool,
    /// The body is a stream of events, for which silence is normal.
    pub is_event_stream: bool,
    /// Seconds after which the upstream closes an idle connection (`Keep-Alive: timeout`).
    pub keep_alive_s: Option<u32>,
    /// The head with the empty line, from which `fields` are borrowed.
    pub head: &'b [u8],
    /// Bytes of it.
    pub len: usize,
}

impl<'h, 'b> Response<'h, 'b> {
    /// Reads the head at the start of `bytes`; `None` when its end has not come. `to_head` says that the
    /// request was `HEAD`.
    pub fn parse(
        bytes: &'b [u8],
        to_head: bool,
        limits: &Limits,
        storage: &'h mut Storage<'b>,
    ) -> Result<Option<Response<'h, 'b>>, Invalid> {
        // httparse passes over empty lines; in front of a response nothing may stand (RFC 9112 section 4).
        if bytes.first().is_some_and(|byte| *byte != b'H') {
            return Err(Invalid::Malformed("the status line is malformed"));
        }
        let mut parsed = httparse::Response::new(&mut []);
        let slots = &mut storage.headers[..];
        let parsed_len =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, slots);
        let len = match parsed_len {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if bytes.len() > limits.head() => return Err(Invalid::TooLarge),
            Ok(httparse::Status::Partial) => {
                return match head::end(bytes, 0) {
                    head::End::BareLf => Err(Invalid::Malformed("a line of the head ends with a bare LF")),
                    _ => Ok(None),
                };
            }
            Err(httparse::Error::TooManyHeaders) => return Err(Invalid::TooLarge),
            Err(_) => return Err(Invalid::Malformed("the response head is malformed")),
        };
        if len > limits.head() {
            return Err(Invalid::TooLarge);
        }
        if bytes.get(12) != Some(&b' ') {
            return Err(Invalid::Malformed("the status line is malformed"));
        }
        if !head::lines_end_with_crlf(&bytes[..len]) {
            return Err(Invalid::Malformed("a line of the head ends with a bare LF"));
        }
        let (Some(status @ 100..=599), Some(minor)) = (parsed.code, parsed.version) else {
            return Err(Invalid::Malformed("the status is not between 100 and 599"));
        };
        let fields: &'h [httparse::Header<'b>] = parsed.headers;
        let mut response = Response {
            status,
            reason: parsed.reason.unwrap_or(""),
            version: if minor == 0 { Version::Http10 } else { Version::Http11 },
            fields,
            kinds: &[],
            framing: Framing::Empty,
            connection: Connection::default(),
            has_date: false,
            announces_too_much: false,
            is_event_stream: false,
            keep_alive_s: None,
            head: &bytes[..len],
            len,
        };
        let kinds = &mut storage.kinds[..fields.len().min(MAX_FIELDS)];
        response.read_fields(kinds, to_head).map_err(Invalid::Malformed)?;
        fields::drop_named(response.connection, fields, kinds).map_err(Invalid::Malformed)?;
        response.kinds = kinds;
        Ok(Some(response))
    }

    fn read_fields(&mut self, kinds: &mut [Field], to_head: bool) -> Result<(), &'static str> {
        let (mut length, mut chunked) = (None, false);
        let has_body = !(to_head || self.status < 200 || self.status == 204 || self.status == 304);
        for (field, kind) in self.fields.iter().zip(kinds.iter_mut()) {
            *kind = Field::of(field.name);
            match *kind {
                Field::Connection => self.connection.add(field.value)?,
                Field::ContentLength => {
                    if length.replace(fields::content_length(field.value)?).is_some() {
                        return Err("there are several Content-Length fields");
                    }
                    // RFC 9110 section 8.6: where there can be none, the field has no meaning to pass on.
                    if self.status < 200 || self.status == 204 {
                        *kind = Field::Dropped;
                    }
                }
                Field::TransferEncoding => {
                    // What cannot have a body may have any coding, as a 304 describes the response it is not.
                    if has_body {
                        fields::transfer_encoding(field.value)?;
                    }
                    if std::mem::replace(&mut chunked, true) {
                        return Err("there are several Transfer-Encoding fields");
                    }
                }
                Field::Date => self.has_date = true,
                Field::ContentType => {
                    self.is_event_stream =
                        field.value.get(..17).is_some_and(|t| t.eq_ignore_ascii_case(b"text/event-stream"));
                }
                Field::Dropped if field.name.eq_ignore_ascii_case("keep-alive") => {
                    self.keep_alive_s = keep_alive_timeout(field.value);
                }
                _ => {}
            }
        }
        // A 204 or 304 may be careless about the body that it does not have; nothing else may.
        let careless = self.status == 204 || self.status == 304;
        self.announces_too_much = careless && (chunked || self.status == 204 && length.is_some_and(|n| n > 0));
        self.framing = match (length, chunked) {
            _ if careless => Framing::Empty,
            (Some(_), true) => return Err("both Content-Length and Transfer-Encoding"),
            _ if !has_body => Framing::Empty,
            (None, true) if self.version == Version::Http10 => return Err("HTTP/1.0 has no Transfer-Encoding"),
            (None, true) => Framing::Chunked,
            (Some(length), false) => Framing::Length(length),
            (None, false) => Framing::UntilClose,
        };
        Ok(())
    }

    /// Whether the upstream lets its connection be used again after this response.
    pub fn keeps_alive(&self) -> bool {
        !self.connection.close
            && !self.announces_too_much
            && self.framing != Framing::UntilClose
            && (self.version == Version::Http11 || self.connection.keep_alive)
    }
}

fn keep_alive_timeout(value: &[u8]) -> Option<u32> {
    fields::list(value).find_map(|parameter| {
        let (name, seconds) = parameter.split_at_checked(8)?;
        let digits = name.eq_ignore_ascii_case(b"timeout=").then_some(seconds)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { request_line: 100, header_bytes: 200, headers: 5 };

    fn framing(bytes: &str, to_head: bool) -> Result<Option<Framing>, Invalid> {
        let mut storage = Storage::new();
        Response::parse(bytes.as_bytes(), to_head, &LIMITS, &mut storage).map(|found| found.map(|r| r.framing))
    }

    #[test]
    fn bodies_are_framed_as_the_standard_says() {
        let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        assert_eq!(framing(&head("Content-Length: 3\r\n"), false), Ok(Some(Framing::Length(3))));
        assert_eq!(framing(&head("Content-Length: 3\r\n"), true), Ok(Some(Framing::Empty)));
        assert_eq!(framing(&head("Transfer-Encoding: chunked\r\n"), false), Ok(Some(Framing::Chunked)));
        assert_eq!(framing(&head(""), false), Ok(Some(Framing::UntilClose)));
        assert_eq!(framing("HTTP/1.1 204 \r\nContent-Length: 3\r\n\r\n", false), Ok(Some(Framing::Empty)));
        assert_eq!(
            framing("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            Ok(Some(Framing::Empty))
        );
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Le", false), Ok(None));
    }

    #[test]
    fn invalid_heads_are_refused() {
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 O\x00K\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/1.1 600 High\r\n\r\n",
            "HTTP/1.1 20 Short\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\r\n\r\nHTTP/1.1 200\r\n\r\n",
            "\r\n\r\nHTTP",
            "hello\r\n\r\n",
        ] {
            assert!(framing(bad, false).is_err(), "{bad:?}");
        }
        let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(300));
        assert_eq!(framing(&large, false), Err(Invalid::TooLarge));
    }

    #[test]
    fn the_announced_idle_time_is_read() {
        assert_eq!(keep_alive_timeout(b"timeout=5, max=100"), Some(5));
        assert_eq!(keep_alive_timeout(b"max=100, Timeout=7"), Some(7));
        assert_eq!(keep_alive_timeout(b"max=100"), None);
    }
}

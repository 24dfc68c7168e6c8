//! Request heads: tokenised by httparse, judged here (RFC 9112 sections 3 and 6, RFC 9110 section 7).
//!
//! What this file accepts has exactly one reading; everything else is a [`Refusal`].
//! Must not know: services, upstreams, what will be sent on.

use crate::http::fields::{self, Connection, Field, MAX_FIELDS};
use crate::http::head::{self, Limits};
use crate::http::target::Target;
use std::mem::MaybeUninit;

/// The minor version of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A method as metrics know it: those of RFC 9110 section 9 and RFC 5789, and all others as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `CONNECT`
    Connect,
    /// `OPTIONS`
    Options,
    /// `TRACE`
    Trace,
    /// `PATCH`
    Patch,
    /// Any other, and those that could not be read.
    Other,
}

impl Method {
    /// All of them, in the order of their numbers.
    pub const ALL: [Method; 10] = [
        Method::Get,
        Method::Head,
        Method::Post,
        Method::Put,
        Method::Delete,
        Method::Connect,
        Method::Options,
        Method::Trace,
        Method::Patch,
        Method::Other,
    ];

    /// The one that a request names; case matters.
    pub fn of(token: &str) -> Method {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "CONNECT" => Method::Connect,
            "OPTIONS" => Method::Options,
            "TRACE" => Method::Trace,
            "PATCH" => Method::Patch,
            _ => Method::Other,
        }
    }

    /// Its label.
    pub fn word(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Connect => "CONNECT",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Patch => "PATCH",
            Method::Other => "_OTHER",
        }
    }
}

/// How the length of a request body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400, with what is wrong.
    Malformed(&'static str),
    /// 414
    LineTooLong,
    /// 431: bytes.
    FieldsTooLarge,
    /// 431: number.
    TooManyFields,
    /// 505
    Version,
    /// 501: `CONNECT`.
    Connect,
    /// 417: an expectation other than `100-continue`.
    Expectation,
    /// 413: a body larger than the resource takes.
    BodyTooLarge,
    /// 421: an `https` target on a connection that is not secured.
    Misdirected,
    /// 508: the request came from this process.
    Loop,
    /// 408: the head or the body came too slowly.
    Slow,
}

impl Refusal {
    /// The words of all refusals, for counters.
    pub const WORDS: [&'static str; 11] = [
        "malformed",
        "client_slow",
        "body_too_large",
        "line_too_long",
        "expectation",
        "misdirected",
        "fields_too_large",
        "too_many_fields",
        "connect_method",
        "version",
        "loop",
    ];

    /// Position of its word in [`Refusal::WORDS`].
    pub fn index(self) -> usize {
        match self {
            Refusal::Malformed(_) => 0,
            Refusal::Slow => 1,
            Refusal::BodyTooLarge => 2,
            Refusal::LineTooLong => 3,
            Refusal::Expectation => 4,
            Refusal::Misdirected => 5,
            Refusal::FieldsTooLarge => 6,
            Refusal::TooManyFields => 7,
            Refusal::Connect => 8,
            Refusal::Version => 9,
            Refusal::Loop => 10,
        }
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        Refusal::WORDS[self.index()]
    }

    /// The status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Malformed(_) => 400,
            Refusal::Slow => 408,
            Refusal::BodyTooLarge => 413,
            Refusal::LineTooLong => 414,
            Refusal::Expectation => 417,
            Refusal::Misdirected => 421,
            Refusal::FieldsTooLarge | Refusal::TooManyFields => 431,
            Refusal::Connect => 501,
            Refusal::Version => 505,
            Refusal::Loop => 508,
        }
    }

    /// What is wrong, in words.
    pub fn detail(self) -> &'static str {
        match self {
            Refusal::Malformed(what) => what,
            Refusal::Slow => "the request did not arrive in time",
            Refusal::BodyTooLarge => "the request body is larger than this resource takes",
            Refusal::LineTooLong => "the request line is longer than limits.request_line",
            Refusal::Expectation => "only the expectation 100-continue is known",
            Refusal::FieldsTooLarge => "the header fields are larger than limits.header_bytes",
            Refusal::TooManyFields => "there are more header fields than limits.headers",
            Refusal::Misdirected => "an https target needs a secured connection",
            Refusal::Connect => "CONNECT is not supported",
            Refusal::Version => "only HTTP/1.0 and HTTP/1.1 are spoken here",
            Refusal::Loop => "the request has passed this gateway before",
        }
    }

    /// The error of the `Proxy-Status` field (RFC 9209 section 2.3).
    pub fn token(self) -> &'static str {
        match self {
            Refusal::Loop => "proxy_loop_detected",
            _ => "http_request_error",
        }
    }
}

/// Where a head is parsed into: on the caller's stack, uninitialised.
pub struct Storage<'b> {
    pub(super) headers: [MaybeUninit<httparse::Header<'b>>; MAX_FIELDS],
    pub(super) kinds: [Field; MAX_FIELDS],
}

impl Storage<'_> {
    /// Room for one head.
    pub fn new() -> Self {
        Storage { headers: [const { MaybeUninit::uninit() }; MAX_FIELDS], kinds: [Field::Other; MAX_FIELDS] }
    }
}

impl Default for Storage<'_> {
    fn default() -> Self {
        Storage::new()
    }
}

/// A valid request head, borrowed from the bytes it was read from.
pub struct Request<'h, 'b> {
    /// A token; case matters.
    pub method: &'b str,
    /// What is asked for.
    pub target: Target<'b>,
    /// The client's.
    pub version: Version,
    /// The fields in their order.
    pub fields: &'h [httparse::Header<'b>],
    /// What each field is; parallel to `fields`.
    pub kinds: &'h [Field],
    /// Valid by grammar; the authority of an absolute target before the `Host` field.
    pub host: Option<&'b [u8]>,
    /// Of the body.
    pub framing: Framing,
    /// What `Connection` said.
    pub connection: Connection,
    /// `Expect: 100-continue` came, with HTTP/1.1.
    pub expects_continue: bool,
    /// `TE: trailers` came.
    pub takes_trailers: bool,
    /// A `Via` field came.
    pub has_via: bool,
    /// An `Upgrade` field came.
    pub has_upgrade: bool,
    /// `Max-Forwards` of `OPTIONS` and `TRACE`; of other methods it means nothing (RFC 9110 section 7.6.2).
    pub max_forwards: Option<u64>,
    /// The one valid `X-Request-Id`.
    pub request_id: Option<&'b [u8]>,
    /// The head with the empty line, from which `fields` are borrowed.
    pub head: &'b [u8],
    /// Bytes of it.
    pub len: usize,
}

impl<'h, 'b> Request<'h, 'b> {
    /// Reads the head at the start of `bytes`; `None` when its end has not come.
    pub fn parse(
        bytes: &'b [u8],
        limits: &Limits,
        storage: &'h mut Storage<'b>,
    ) -> Result<Option<Request<'h, 'b>>, Refusal> {
        let mut parsed = httparse::Request::new(&mut []);
        let slots = &mut storage.headers[..limits.headers.min(MAX_FIELDS)];
        let len = match parsed.parse_with_uninit_headers(bytes, slots) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Self::judge_partial(bytes, limits).map(|()| None),
            // A version that is told apart only by what has not come yet.
            Err(httparse::Error::Version) if begins_a_version(bytes) => {
                return Self::judge_partial(bytes, limits).map(|()| None);
            }
            Err(error) => return Err(Self::judge_error(bytes, error, limits)),
        };
        let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::Malformed("the request line is incomplete"));
        };
        let line = method.len() + target.len() + " HTTP/1.1\r\n".len() + 1;
        if line > limits.request_line {
            return Err(Refusal::LineTooLong);
        }
        if len - line > limits.header_bytes {
            return Err(Refusal::FieldsTooLarge);
        }
        if !head::lines_end_with_crlf(&bytes[..len]) {
            return Err(Refusal::Malformed("a line of the head ends with a bare LF"));
        }
        let fields: &'h [httparse::Header<'b>] = parsed.headers;
        let mut request = Request {
            method,
            target: Target::parse(method, target.as_bytes())?,
            version: if minor == 0 { Version::Http10 } else { Version::Http11 },
            fields,
            kinds: &[],
            host: None,
            framing: Framing::Empty,
            connection: Connection::default(),
            expects_continue: false,
            takes_trailers: false,
            has_via: false,
            has_upgrade: false,
            max_forwards: None,
            request_id: None,
            head: &bytes[..len],
            len,
        };
        let kinds = &mut storage.kinds[..fields.len()];
        request.read_fields(kinds)?;
        fields::drop_named(request.connection, fields, kinds).map_err(Refusal::Malformed)?;
        request.kinds = kinds;
        Ok(Some(request))
    }

    fn read_fields(&mut self, kinds: &mut [Field]) -> Result<(), Refusal> {
        let malformed = Refusal::Malformed;
        let (mut hosts, mut request_ids, mut length, mut chunked, mut forwards) = (0, 0, None, false, false);
        for (field, kind) in self.fields.iter().zip(kinds.iter_mut()) {
            *kind = Field::of(field.name);
            match *kind {
                Field::Host => {
                    hosts += 1;
                    self.host = Some(field.value);
                }
                Field::Connection => self.connection.add(field.value).map_err(malformed)?,
                Field::ContentLength => {
                    if length.replace(fields::content_length(field.value).map_err(malformed)?).is_some() {
                        return Err(malformed("there are several Content-Length fields"));
                    }
                }
                Field::TransferEncoding => {
                    fields::transfer_encoding(field.value).map_err(malformed)?;
                    if std::mem::replace(&mut chunked, true) {
                        return Err(malformed("there are several Transfer-Encoding fields"));
                    }
                }
                Field::Expect => {
                    if !field.value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Refusal::Expectation);
                    }
                    self.expects_continue = self.version == Version::Http11;
                }
                Field::Te => {
                    self.takes_trailers |= fields::list(field.value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
                }
                Field::Via => self.has_via = true,
                Field::Upgrade => self.has_upgrade = true,
                Field::MaxForwards if matches!(self.method, "OPTIONS" | "TRACE") => {
                    if std::mem::replace(&mut forwards, true) {
                        return Err(malformed("there are several Max-Forwards fields"));
                    }
                    self.max_forwards = fields::content_length(field.value).ok();
                }
                Field::RequestId => {
                    request_ids += 1;
                    self.request_id = is_request_id(field.value).then_some(field.value);
                }
                _ => {}
            }
        }
        if request_ids > 1 {
            self.request_id = None;
        }
        self.judge_host(hosts)?;
        self.framing = match (length, chunked) {
            (Some(_), true) => return Err(malformed("both Content-Length and Transfer-Encoding")),
            (None, true) if self.version == Version::Http10 => {
                return Err(malformed("HTTP/1.0 has no Transfer-Encoding"));
            }
            (None, true) => Framing::Chunked,
            (Some(0) | None, false) => Framing::Empty,
            (Some(length), false) => Framing::Length(length),
        };
        match self.method {
            "CONNECT" => Err(Refusal::Connect),
            "TRACE" if self.framing != Framing::Empty => Err(malformed("TRACE has no body")),
            _ => Ok(()),
        }
    }

    fn judge_host(&mut self, hosts: usize) -> Result<(), Refusal> {
        if hosts > 1 {
            return Err(Refusal::Malformed("there are several Host fields"));
        }
        if hosts == 0 && self.version == Version::Http11 {
            return Err(Refusal::Malformed("there is no Host field"));
        }
        if self.host.is_some_and(|host| !crate::http::target::is_host(host)) {
            return Err(Refusal::Malformed("the Host field is invalid"));
        }
        // RFC 9112 section 3.2.2: the authority of an absolute target replaces the field.
        if let Target::Resource { authority: Some(authority), .. } = self.target {
            self.host = Some(authority);
        }
        Ok(())
    }

    fn judge_partial(bytes: &[u8], limits: &Limits) -> Result<(), Refusal> {
        match memchr::memchr(b'\n', bytes) {
            None if bytes.len() > limits.request_line => Err(Refusal::LineTooLong),
            None => Ok(()),
            Some(at) if at + 1 > limits.request_line => Err(Refusal::LineTooLong),
            Some(at) if bytes.len() - at > limits.header_bytes => Err(Refusal::FieldsTooLarge),
            Some(_) => match head::end(bytes, 0) {
                head::End::BareLf => Err(Refusal::Malformed("a line of the head ends with a bare LF")),
                _ => Ok(()),
            },
        }
    }

    fn judge_error(bytes: &[u8], error: httparse::Error, limits: &Limits) -> Refusal {
        if let Err(refusal) = Self::judge_partial(bytes, limits) {
            return refusal;
        }
        match error {
            httparse::Error::TooManyHeaders => Refusal::TooManyFields,
            httparse::Error::Version if names_another_version(bytes) => Refusal::Version,
            httparse::Error::Version => Refusal::Malformed("the HTTP version is malformed"),
            httparse::Error::HeaderName => Refusal::Malformed("a field name is malformed"),
            httparse::Error::HeaderValue => Refusal::Malformed("a field value has a forbidden character"),
            httparse::Error::NewLine => Refusal::Malformed("a line end is malformed"),
            _ => Refusal::Malformed("the request line is malformed"),
        }
    }

    /// Whether the client can reuse its connection after this request.
    pub fn keeps_alive(&self) -> bool {
        !self.connection.close && (self.version == Version::Http11 || self.connection.keep_alive)
    }

    /// The first of `protocols`, which are in lower case, that the client asks for in a way that can be
    /// granted: with `GET`, HTTP/1.1, no body, and `Connection: upgrade` (RFC 9110 section 7.8).
    pub fn upgrade<'p>(&self, protocols: &'p [Box<[u8]>]) -> Option<&'p [u8]> {
        let possible = self.has_upgrade
            && self.connection.upgrade
            && self.version == Version::Http11
            && self.method == "GET"
            && self.framing == Framing::Empty;
        let asked =
            |protocol: &[u8]| upgrades(self.fields, self.kinds).any(|named| named.eq_ignore_ascii_case(protocol));
        protocols.iter().map(|protocol| &**protocol).find(|protocol| possible && asked(protocol))
    }

    /// Whether a `Via` field names `pseudonym` as received-by (RFC 9110 section 7.6.3).
    pub fn came_via(&self, pseudonym: &[u8]) -> bool {
        self.has_via
            && self.fields.iter().zip(self.kinds).any(|(field, kind)| {
                *kind == Field::Via
                    && fields::list(field.value)
                        .any(|hop| hop.split(|byte| byte.is_ascii_whitespace()).any(|word| word == pseudonym))
            })
    }

    /// The value of the first field of this name, given in lower case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

/// The protocols that `Upgrade` fields name.
pub fn upgrades<'b>(fields: &[httparse::Header<'b>], kinds: &[Field]) -> impl Iterator<Item = &'b [u8]> {
    let upgrades = fields.iter().zip(kinds).filter(|(_, kind)| **kind == Field::Upgrade);
    upgrades.flat_map(|(field, _)| fields::list(field.value))
}

/// Whether this is a well-formed request line but for a version that httparse does not take.
fn names_another_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
    let mut words = line.split(|byte| *byte == b' ');
    let version = words.nth(2).unwrap_or(b"");
    words.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Whether a request line that has not ended may still come to name a version.
fn begins_a_version(bytes: &[u8]) -> bool {
    let mut words = bytes.split(|byte| *byte == b' ');
    let Some(version) = words.nth(2) else { return false };
    let fits = |(byte, form): (&u8, &u8)| if *form == b'd' { byte.is_ascii_digit() } else { byte == form };
    words.next().is_none() && version.len() < 8 && version.iter().zip(b"HTTP/d.d").all(fits)
}

/// Whether an `X-Request-Id` is kept: 1 to 128 of `A-Za-z0-9._-`.
pub fn is_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Whether a method may be repeated without harm (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Empty lines in front of a request, which a server ignores (RFC 9112 section 2.2).
pub fn leading_empty_lines(bytes: &[u8]) -> usize {
    let mut at = 0;
    while bytes[at..].starts_with(b"\r\n") {
        at += 2;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { request_line: 100, header_bytes: 200, headers: 5 };

    fn refusal(bytes: &str) -> Option<Refusal> {
        let mut storage = Storage::new();
        Request::parse(bytes.as_bytes(), &LIMITS, &mut storage).err()
    }

    fn accepted(bytes: &str) -> bool {
        let mut storage = Storage::new();
        matches!(Request::parse(bytes.as_bytes(), &LIMITS, &mut storage), Ok(Some(_)))
    }

    #[test]
    fn one_reading_or_none() {
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: \x00\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1x\r\nHost: a\r\n\r\n",
            "G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        ] {
            assert!(matches!(refusal(bad), Some(Refusal::Malformed(_))), "{bad:?}: {:?}", refusal(bad));
        }
    }

    #[test]
    fn other_refusals_have_their_own_status() {
        assert_eq!(refusal("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Some(Refusal::Version));
        assert_eq!(refusal("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(Refusal::Version));
        assert_eq!(refusal("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Refusal::Connect));
        assert_eq!(refusal("GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"), Some(Refusal::Expectation));
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100));
        assert_eq!(refusal(&long), Some(Refusal::LineTooLong));
        assert_eq!(refusal(&long[..105]), Some(Refusal::LineTooLong));
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(200));
        assert_eq!(refusal(&large), Some(Refusal::FieldsTooLarge));
        assert_eq!(refusal(&large[..230]), Some(Refusal::FieldsTooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(5));
        assert_eq!(refusal(&many), Some(Refusal::TooManyFields));
    }

    #[test]
    fn a_version_is_judged_when_it_is_there() {
        let line = "GET / HTTP/2.0\r\nHost: a\r\n\r\n";
        for cut in 1..line.len() {
            assert!(matches!(refusal(&line[..cut]), None | Some(Refusal::Version)), "{:?}", &line[..cut]);
        }
        assert!(matches!(refusal("GET / HTTX"), Some(Refusal::Malformed(_))));
    }

    #[test]
    fn good_heads_are_read() {
        let bytes =
            b"POST http://b:1/p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nConnection: close, X\r\nX: 1\r\n\r\n";
        let mut storage = Storage::new();
        let request = Request::parse(bytes, &LIMITS, &mut storage).unwrap().unwrap();
        assert_eq!((request.method, request.host), ("POST", Some(&b"b:1"[..])));
        assert_eq!((request.framing, request.len), (Framing::Length(12), bytes.len()));
        assert!(!request.keeps_alive());
        assert_eq!(request.kinds[3], Field::Dropped);
        assert!(accepted("GET / HTTP/1.0\r\n\r\n"));
        assert!(accepted("GET / HTTP/1.1\r\nHost: a\r\nA: \u{e9}\r\n\r\n"));
    }

    #[test]
    fn a_loop_is_recognised() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 b, 1.1 fusegate-01234567 (x)\r\n\r\n";
        let mut storage = Storage::new();
        let request = Request::parse(bytes, &LIMITS, &mut storage).unwrap().unwrap();
        assert!(request.came_via(b"fusegate-01234567"));
        assert!(!request.came_via(b"fusegate-01234568"));
    }
}

//! Heads as they go out: written anew from what was parsed, so that nothing ambiguous is passed on.
//!
//! Everything is appended to one output buffer that the caller keeps; nothing is allocated or formatted.
//! Must not know: sockets, breakers, where the values come from.

use crate::http::body::Coding;
use crate::http::fields::{self, Field};
use crate::http::request::{Request, Version};
use crate::http::response::{self, Response};
use crate::http::target::Target;
use crate::http::{request, status};
use std::io::Write;
use std::net::IpAddr;

/// Where a request goes and what is added to it.
pub struct Onward<'a> {
    /// The upstream's path without a trailing `/`.
    pub base_path: &'a [u8],
    /// The upstream's whole path: the target when the client named the service alone.
    pub path: &'a [u8],
    /// What follows the service in the client's path.
    pub rest: &'a [u8],
    /// The `Host` to send instead of the client's.
    pub host: Option<&'a [u8]>,
    /// The `Host` when the client has named none either.
    pub authority: &'a [u8],
    /// The client's address.
    pub client: IpAddr,
    /// `fusegate-{8 hex}` of this process.
    pub pseudonym: &'a [u8],
    /// What becomes of the request's id.
    pub request_id: Id<'a>,
    /// The protocol to ask for.
    pub upgrade: Option<&'a [u8]>,
}

/// The field that carries the id of a request.
#[derive(Clone, Copy, Debug)]
pub enum Id<'a> {
    /// None is special: what the client sent passes.
    Off,
    /// `X-Request-Id` with this value, instead of the client's.
    Standard(&'a [u8]),
    /// A field of this name with this value, instead of the client's.
    Named(&'a str, &'a [u8]),
}

/// Writes the head of a request to an upstream.
pub fn request(out: &mut Vec<u8>, request: &Request<'_, '_>, onward: &Onward<'_>) {
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    if onward.rest.is_empty() {
        out.extend_from_slice(onward.path);
    } else {
        out.extend_from_slice(onward.base_path);
        out.extend_from_slice(onward.rest);
    }
    if let Target::Resource { query, .. } = request.target {
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = onward.host.or(request.host).unwrap_or(onward.authority);
    field(out, b"Host", host);
    let mut run = Run::of(request.head);
    let (takes_standard, taken) = match onward.request_id {
        Id::Off => (false, None),
        Id::Standard(_) => (true, None),
        Id::Named(name, _) => (false, Some(name)),
    };
    for (header, kind) in request.fields.iter().zip(request.kinds) {
        let passes = match kind {
            Field::Other => taken.is_none_or(|name| !name.eq_ignore_ascii_case(header.name)),
            Field::ContentType | Field::Date | Field::Via | Field::ProxyStatus => true,
            Field::RequestId => !takes_standard,
            Field::ContentLength => {
                run.length(out, header);
                false
            }
            // Without content there is nothing to wait for (RFC 9110 section 10.1.1).
            Field::Expect => request.expects_continue && request.framing != request::Framing::Empty,
            Field::MaxForwards => match request.max_forwards {
                None => true,
                Some(left) => {
                    run.end(out);
                    field(out, b"Max-Forwards", itoa::Buffer::new().format(left.saturating_sub(1)).as_bytes());
                    false
                }
            },
            Field::Trailer => request.framing == request::Framing::Chunked,
            Field::Dropped
            | Field::Connection
            | Field::TransferEncoding
            | Field::Host
            | Field::Te
            | Field::Upgrade
            | Field::Forwarding => false,
        };
        if passes {
            run.line(out, header);
        }
    }
    run.end(out);
    if request.framing == request::Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match (request.takes_trailers, onward.upgrade) {
        (false, None) => {}
        (true, None) => out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n"),
        (false, Some(_)) => out.extend_from_slice(b"Connection: upgrade\r\n"),
        (true, Some(_)) => out.extend_from_slice(b"Connection: upgrade, TE\r\nTE: trailers\r\n"),
    }
    if let Some(protocol) = onward.upgrade {
        field(out, b"Upgrade", protocol);
    }
    out.extend_from_slice(b"X-Forwarded-For: ");
    push_ip(out, onward.client);
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: http\r\n");
    if let Some(host) = request.host {
        field(out, b"X-Forwarded-Host", host);
    }
    out.extend_from_slice(match request.version {
        Version::Http11 => b"Via: 1.1 ",
        Version::Http10 => b"Via: 1.0 ",
    });
    out.extend_from_slice(onward.pseudonym);
    out.extend_from_slice(b"\r\n");
    match onward.request_id {
        Id::Off => {}
        Id::Standard(id) => field(out, b"X-Request-Id", id),
        Id::Named(name, id) => field(out, name.as_bytes(), id),
    }
    out.extend_from_slice(b"\r\n");
}

/// What a health check asks an upstream for.
pub struct Check<'a> {
    /// A token; case matters.
    pub method: &'a str,
    /// The upstream's path without a trailing `/`.
    pub base_path: &'a [u8],
    /// Path and query below that.
    pub path: &'a [u8],
    /// The `Host` to send.
    pub host: &'a [u8],
}

/// Writes the whole request of a health check, whose connection is used once.
pub fn check(out: &mut Vec<u8>, check: &Check<'_>) {
    out.extend_from_slice(check.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(check.base_path);
    out.extend_from_slice(check.path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, b"Host", check.host);
    field(out, b"User-Agent", concat!("fusegate/", env!("CARGO_PKG_VERSION"), " health-check").as_bytes());
    // A method that expects content says that it has none (RFC 9110 section 8.6).
    if ["POST", "PUT", "PATCH"].contains(&check.method) {
        field(out, b"Content-Length", b"0");
    }
    out.extend_from_slice(Persistence::Close.line());
    out.extend_from_slice(b"\r\n");
}

/// What the gateway says about the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: HTTP/1.1 persists.
    Implied,
    /// `Connection: keep-alive`, for HTTP/1.0.
    KeepAlive,
    /// `Connection: close`.
    Close,
}

impl Persistence {
    fn line(self) -> &'static [u8] {
        match self {
            Persistence::Implied => b"",
            Persistence::KeepAlive => b"Connection: keep-alive\r\n",
            Persistence::Close => b"Connection: close\r\n",
        }
    }
}

/// Writes the head of a response to a client. `date` is used when the upstream sent none.
pub fn response(out: &mut Vec<u8>, response: &Response<'_, '_>, coding: Coding, persistence: Persistence, date: &[u8]) {
    status_line(out, response.status, response.reason);
    let mut run = Run::of(response.head);
    for (header, kind) in response.fields.iter().zip(response.kinds) {
        let passes = match kind {
            Field::Other
            | Field::ContentType
            | Field::Date
            | Field::Via
            | Field::ProxyStatus
            | Field::Forwarding
            | Field::RequestId
            | Field::Expect
            | Field::MaxForwards
            | Field::Host => true,
            Field::ContentLength => {
                run.length(out, header);
                false
            }
            Field::Upgrade => response.status == 101,
            Field::Trailer => coding == Coding::Chunked,
            Field::Dropped | Field::Connection | Field::TransferEncoding | Field::Te => false,
        };
        if passes {
            run.line(out, header);
        }
    }
    run.end(out);
    // A 1xx has no date of its own: the final response has.
    if !response.has_date && response.status >= 200 {
        field(out, b"Date", date);
    }
    if coding == Coding::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match response.status {
        101 => out.extend_from_slice(b"Connection: upgrade\r\n"),
        200.. => out.extend_from_slice(persistence.line()),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// How the body of a response goes to a client of `version`.
pub fn response_coding(framing: response::Framing, version: Version) -> Coding {
    match (framing, version) {
        (response::Framing::Chunked | response::Framing::UntilClose, Version::Http11) => Coding::Chunked,
        _ => Coding::Plain,
    }
}

/// What is particular about an answer that the gateway makes itself.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Of the response.
    pub status: u16,
    /// Of the body.
    pub content_type: &'a str,
    /// Whole field lines with their CRLF.
    pub extra: &'a [u8],
    /// The `Date` of now.
    pub date: &'a [u8],
    /// Of the client's connection.
    pub persistence: Persistence,
    /// The request was `HEAD`: the length is told, the body is not sent.
    pub to_head: bool,
}

/// Writes a whole answer of the gateway's own.
pub fn answer(out: &mut Vec<u8>, answer: &Answer<'_>, body: &[u8]) {
    status_line(out, answer.status, status::reason(answer.status));
    if !body.is_empty() {
        field(out, b"Content-Type", answer.content_type.as_bytes());
    }
    if answer.status != 204 {
        field(out, b"Content-Length", itoa::Buffer::new().format(body.len()).as_bytes());
    }
    field(out, b"Date", answer.date);
    out.extend_from_slice(answer.extra);
    out.extend_from_slice(answer.persistence.line());
    out.extend_from_slice(b"\r\n");
    if !answer.to_head {
        out.extend_from_slice(body);
    }
}

fn status_line(out: &mut Vec<u8>, status: u16, reason: &str) {
    let digits = [b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&digits);
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Neighbouring lines of a head that pass as they came: copied in one go, in their order.
///
/// Only lines that would be written just so: a name, a colon and one space, the value, CRLF. All others are written
/// anew.
struct Run<'b> {
    head: &'b [u8],
    from: usize,
    to: usize,
}

impl<'b> Run<'b> {
    fn of(head: &'b [u8]) -> Run<'b> {
        Run { head, from: 0, to: 0 }
    }

    /// Passes a field that stands in the head.
    fn line(&mut self, out: &mut Vec<u8>, header: &httparse::Header<'b>) {
        let (name, value) = (header.name.as_bytes(), header.value);
        // Only numbers: what they lead to is looked at before it is copied.
        let from = (name.as_ptr() as usize).wrapping_sub(self.head.as_ptr() as usize);
        let at = from.wrapping_add(name.len() + 2);
        let to = at.wrapping_add(value.len() + 2);
        let is_plain = (value.as_ptr() as usize).wrapping_sub(self.head.as_ptr() as usize) == at
            && self.head.get(at.wrapping_sub(2)..at) == Some(b": ")
            && self.head.get(to.wrapping_sub(2)..to) == Some(b"\r\n");
        if !is_plain {
            self.end(out);
            return field(out, name, value);
        }
        if self.to != from {
            self.end(out);
            self.from = from;
        }
        self.to = to;
    }

    /// Passes a `Content-Length`, whose number is written without noughts in front.
    fn length(&mut self, out: &mut Vec<u8>, header: &httparse::Header<'b>) {
        let plain = fields::plain_length(header.value);
        if plain.len() == header.value.len() {
            return self.line(out, header);
        }
        self.end(out);
        field(out, header.name.as_bytes(), plain);
    }

    /// Copies what has been passed.
    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head[self.from..self.to]);
        self.from = self.to;
    }
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes an address; one of IPv4 in the clothes of IPv6 as IPv4.
pub fn push_ip(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let (mut text, mut len) = ([0; 16], 0);
            for octet in address.octets() {
                for (digit, least) in [(octet / 100, 100), (octet / 10 % 10, 10), (octet % 10, 0)] {
                    text[len] = b'0' + digit;
                    len += usize::from(octet >= least);
                }
                text[len] = b'.';
                len += 1;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        IpAddr::V6(address) => {
            // Writing to a vector cannot fail.
            let _ = write!(out, "{address}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Limits;
    use crate::http::request::Storage;

    const LIMITS: Limits = Limits { request_line: 8192, header_bytes: 8192, headers: 100 };

    #[test]
    fn a_request_is_written_anew() {
        let bytes = b"GET /v1/proxy/s/a%2Fb?q=1 HTTP/1.1\r\nhost: gate:8000\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n\
            X-Forwarded-For: 6.6.6.6\r\nx_forwarded_host: evil\r\nAccept: */*\r\nTE: trailers, gzip\r\nX-Request-Id: abc\r\n\r\n";
        let mut storage = Storage::new();
        let parsed = Request::parse(bytes, &LIMITS, &mut storage).unwrap().unwrap();
        let onward = Onward {
            base_path: b"/base",
            path: b"/base/",
            rest: b"/a%2Fb",
            host: Some(b"up:9001"),
            authority: b"up:9001",
            client: "::ffff:10.0.0.7".parse().unwrap(),
            pseudonym: b"fusegate-00000001",
            request_id: Id::Standard(b"abc"),
            upgrade: None,
        };
        let mut out = Vec::new();
        request(&mut out, &parsed, &onward);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "GET /base/a%2Fb?q=1 HTTP/1.1\r\nHost: up:9001\r\nAccept: */*\r\nConnection: TE\r\nTE: trailers\r\n\
             X-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: gate:8000\r\n\
             Via: 1.1 fusegate-00000001\r\nX-Request-Id: abc\r\n\r\n"
        );
    }

    #[test]
    fn lines_pass_in_runs_and_what_is_unusual_is_written_anew() {
        let bytes =
            b"GET /v1/proxy/s HTTP/1.1\r\nA: 1\r\nB:2\r\nC:  3\r\nD: 4 \r\nE:\r\nF: \r\nG: 5\r\nH: 6\r\nHost: h\r\n\
            I: 7\r\nContent-Length: 1\r\nJ: 8\r\nConnection: J\r\nK: 9\r\nL:\t10\r\nM: 11\r\n\r\n";
        let mut storage = Storage::new();
        let parsed = Request::parse(bytes, &LIMITS, &mut storage).unwrap().unwrap();
        let onward = Onward {
            base_path: b"",
            path: b"/",
            rest: b"",
            host: None,
            authority: b"up:9001",
            client: "10.0.0.7".parse().unwrap(),
            pseudonym: b"fusegate-00000001",
            request_id: Id::Off,
            upgrade: None,
        };
        let mut out = Vec::new();
        request(&mut out, &parsed, &onward);
        let lines = "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: \r\nF: \r\nG: 5\r\nH: 6\r\nI: 7\r\nContent-Length: 1\r\nK: 9\r\nL: 10\r\nM: 11\r\n";
        let added = "X-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\nVia: 1.1 fusegate-00000001\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}{added}\r\n"));
    }

    #[test]
    fn a_check_is_a_request_of_its_own() {
        let written = |method| {
            let mut out = Vec::new();
            check(&mut out, &Check { method, base_path: b"/base", path: b"/up?x=1", host: b"up:9001" });
            String::from_utf8(out).unwrap()
        };
        let agent = concat!("fusegate/", env!("CARGO_PKG_VERSION"), " health-check");
        let head =
            format!("HEAD /base/up?x=1 HTTP/1.1\r\nHost: up:9001\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n");
        assert_eq!(written("HEAD"), head);
        assert!(written("POST").contains("\r\nContent-Length: 0\r\n"));
    }

    #[test]
    fn a_response_is_written_anew() {
        let bytes = b"HTTP/1.0 200 Fine\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
            Set-Cookie: a\r\nSet-Cookie: b\r\nProxy-Authenticate: x\r\nProxy-Status: y\r\n\r\n";
        let mut storage = Storage::new();
        let parsed = Response::parse(bytes, false, &LIMITS, &mut storage).unwrap().unwrap();
        let mut out = Vec::new();
        response(&mut out, &parsed, Coding::Chunked, Persistence::Implied, b"now");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nProxy-Status: y\r\nDate: now\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
    }
}

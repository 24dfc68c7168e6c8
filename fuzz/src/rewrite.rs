//! What is accepted and written anew is exactly one message to a strict reader of its own: one `Host`, one
//! framing equal to the original's, nothing that was meant for this hop, and every other field in its order
//! with its value.
//!
//! What must come out is computed here from RFC 9110 section 7.6 and not from the gateway's own tables.
//! Must not know: how the gateway classifies fields.

use crate::strict::{self, Extensions, Framing, Head, members};
use fusegate::http::body::{Body, Chunked, Coding, Transfer};
use fusegate::http::head::Limits;
use fusegate::http::render::{self, Id, Onward, Persistence};
use fusegate::http::request::{self, Request, Storage, Version};
use fusegate::http::response::{self, Response};
use fusegate::http::target::{Route, Target};

const LIMITS: Limits = Limits { request_line: 8 << 10, header_bytes: 32 << 10, headers: 100 };
const PSEUDONYM: &[u8] = b"fusegate-0123abcd";
const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

/// A field that must come out.
#[derive(Clone, Debug)]
struct Due {
    name: Vec<u8>,
    value: Vec<u8>,
    /// `Connection` named it, and the gateway may keep it for the message needs it.
    optional: bool,
}

impl Due {
    fn new(name: &str, value: &[u8]) -> Due {
        Due { name: name.into(), value: value.into(), optional: false }
    }
}

/// The input is a message as it comes: a response if it begins with `HTTP/`, else a request.
pub fn check(bytes: &[u8]) {
    if bytes.starts_with(b"HTTP/") {
        for to_head in [false, true] {
            check_response(bytes, to_head);
        }
    } else {
        check_request(&bytes[request::leading_empty_lines(bytes)..]);
    }
}

fn check_request(bytes: &[u8]) {
    let mut storage = Storage::new();
    let Ok(Some(parsed)) = Request::parse(bytes, &LIMITS, &mut storage) else { return };
    let came = Came::read(bytes, parsed.len);
    assert_eq!(came.start[0], parsed.method.as_bytes());
    // Only a resource is passed on; where it does not lead to a service, the path stands for the rest.
    let Target::Resource { path, query, .. } = parsed.target else { return };
    let rest = match Route::of(path, b"/v1/proxy/") {
        Route::Proxy { rest, .. } => rest,
        _ => path,
    };
    let framing = came.framing(Framing::Empty);
    let (ipv4, ipv6) = ([192, 0, 2, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into());
    let known: [Box<[u8]>; 2] = [(*b"websocket").into(), (*b"h2c").into()];
    let id = parsed.request_id.unwrap_or(b"made");
    let ways = [
        (Some(&b"up:9001"[..]), ipv4, rest, Id::Standard(id)),
        (None, ipv6, &b""[..], Id::Named("Accept", id)),
        (None, ipv4, rest, Id::Off),
    ];
    for (host, client, rest, request_id) in ways {
        let onward = Onward {
            base_path: b"/base",
            path: b"/base/",
            rest,
            host,
            authority: b"up:9001",
            client,
            pseudonym: PSEUDONYM,
            request_id,
            upgrade: parsed.upgrade(&known),
        };
        let mut out = Vec::new();
        render::request(&mut out, &parsed, &onward);
        let head = strict::request(&out).unwrap_or_else(|fault| panic!("{fault}: {}", show(&out)));
        assert_eq!(head.len, out.len(), "the head ends early: {}", show(&out));
        assert_eq!(head.start[0], came.start[0], "the method is another: {}", show(&out));
        let target = if rest.is_empty() { [b"/base/", query].concat() } else { [b"/base", rest, query].concat() };
        assert_eq!(head.start[1], target, "the target is another: {}", show(&out));
        compare(&came.due_of_request(&parsed, &onward), &head, &out);
        assert_eq!(strict::request_framing(&head), Ok(framing), "{}", show(&out));
        let transfer = match parsed.framing {
            request::Framing::Empty => Transfer::EMPTY,
            request::Framing::Length(length) => Transfer::new(Body::Length(length), Coding::Plain),
            request::Framing::Chunked => Transfer::new(Body::Chunked(Chunked::default()), Coding::Chunked)
                .drop_trailers(parsed.connection.names_fields()),
        };
        check_body(transfer, framing, &bytes[parsed.len..], framing, head.len, out.clone());
    }
}

/// The whole message has one end and one content: `body`, which came in one framing, is passed on behind the
/// head in `out` and read there again in another.
fn check_body(mut transfer: Transfer, came: Framing, body: &[u8], goes: Framing, head: usize, mut out: Vec<u8>) {
    let Ok(passed) = transfer.pass(body, LIMITS.header_bytes, &mut out) else { return };
    out.extend_from_slice(&body[..passed.direct]);
    let due = match came {
        Framing::Chunked => strict::chunks(body, Extensions::Ignored),
        plain => strict::body(plain, body),
    };
    let due = due.unwrap_or_else(|fault| panic!("passed on, but {fault}: {}", show(body)));
    assert_eq!((transfer.is_done(), passed.content), (due.end.is_some(), due.content.len()), "{}", show(body));
    let read = strict::body(goes, &out[head..]).unwrap_or_else(|fault| panic!("{fault}: {}", show(&out)));
    assert_eq!(read.content, due.content, "{}", show(&out));
    let end = (due.end.is_some() && goes != Framing::UntilClose).then_some(out.len() - head);
    assert_eq!(read.end, end, "the message ends elsewhere: {}", show(&out));
}

fn check_response(bytes: &[u8], to_head: bool) {
    let mut storage = Storage::new();
    let Ok(Some(parsed)) = Response::parse(bytes, to_head, &LIMITS, &mut storage) else { return };
    let came = Came::read(bytes, parsed.len);
    assert_eq!(came.start[1], parsed.status.to_string().as_bytes());
    let interim = parsed.status < 200;
    if parsed.status == 101 && came.members("upgrade").is_empty() {
        // Nobody can have asked for it: it is answered by 502.
        return;
    }
    let arrives = match parsed.status {
        100..=199 | 204 | 304 => Framing::Empty,
        _ if to_head => Framing::Empty,
        _ => came.framing(Framing::UntilClose),
    };
    let source = match parsed.framing {
        response::Framing::Empty => Body::Done,
        response::Framing::Length(length) => Body::Length(length),
        response::Framing::Chunked => Body::Chunked(Chunked::default()),
        response::Framing::UntilClose => Body::UntilClose,
    };
    for version in [Version::Http11, Version::Http10] {
        if interim && version == Version::Http10 {
            continue;
        }
        let coding = if interim { Coding::Plain } else { render::response_coding(parsed.framing, version) };
        let transfer = Transfer::new(source, coding).drop_trailers(parsed.connection.names_fields());
        let lasting = match version {
            _ if interim => Persistence::Implied,
            _ if transfer.ends_by_close() => Persistence::Close,
            Version::Http11 => Persistence::Implied,
            Version::Http10 => Persistence::KeepAlive,
        };
        let goes = match (arrives, version) {
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
            (same, _) => same,
        };
        for persistence in [lasting, if interim { lasting } else { Persistence::Close }] {
            let mut out = Vec::new();
            render::response(&mut out, &parsed, coding, persistence, DATE);
            let head = strict::response(&out).unwrap_or_else(|fault| panic!("{fault}: {}", show(&out)));
            assert_eq!(head.len, out.len(), "the head ends early: {}", show(&out));
            assert_eq!(head.start[1], came.start[1], "the status is another: {}", show(&out));
            assert!(head.start[2] == came.start[2] || head.start[2].is_empty(), "{}", show(&out));
            compare(&came.due_of_response(parsed.status, coding, persistence), &head, &out);
            let framing = strict::response_framing(&head, to_head);
            assert_eq!(framing.map(empty), Ok(empty(goes)), "{}", show(&out));
            // Only the end of the connection may delimit it, then the client must be told.
            assert!(goes != Framing::UntilClose || persistence == Persistence::Close);
            let body = if interim { b"" } else { &bytes[parsed.len..] };
            check_body(transfer, empty(arrives), body, empty(goes), head.len, out.clone());
        }
    }
}

/// A length of nought is no body.
fn empty(framing: Framing) -> Framing {
    if framing == Framing::Length(0) { Framing::Empty } else { framing }
}

/// A head as it came, read apart from the gateway; names of fields in lower case.
struct Came<'b> {
    start: [&'b [u8]; 3],
    fields: Vec<(Vec<u8>, &'b [u8])>,
}

impl<'b> Came<'b> {
    fn read(bytes: &'b [u8], len: usize) -> Came<'b> {
        let head = strict::unjudged(bytes).unwrap_or_else(|fault| panic!("taken, but {fault}: {}", show(bytes)));
        assert_eq!(head.len, len, "the head ends elsewhere: {}", show(bytes));
        let fields = head.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
        Came { start: head.start, fields }
    }

    /// Members of all fields of this name, in lower case.
    fn members(&self, name: &str) -> Vec<Vec<u8>> {
        let named = self.fields.iter().filter(|(is, _)| is == name.as_bytes());
        named.flat_map(|(_, value)| members(value)).map(<[u8]>::to_ascii_lowercase).collect()
    }

    /// How the body is framed; as `otherwise` when no field says.
    fn framing(&self, otherwise: Framing) -> Framing {
        match (&self.members("content-length")[..], &self.members("transfer-encoding")[..]) {
            ([], []) => otherwise,
            ([length], []) => {
                let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
                empty(Framing::Length(length.expect("a length that is taken is a number")))
            }
            ([], [coding]) if coding == b"chunked" => Framing::Chunked,
            other => panic!("taken with the framing {other:?}"),
        }
    }

    fn due_of_request(&self, parsed: &Request<'_, '_>, onward: &Onward<'_>) -> Vec<Due> {
        let mut all = vec![Due::new("host", onward.host.or(parsed.host).unwrap_or(onward.authority))];
        let framing = self.framing(Framing::Empty);
        let is_http11 = self.start[2] == b"HTTP/1.1";
        for mut line in self.passing(false) {
            match &line.name[..] {
                // The gateway speaks for itself in these.
                b"host" => continue,
                b"x-request-id" if matches!(onward.request_id, Id::Standard(_)) => continue,
                name if matches!(onward.request_id, Id::Named(own, _) if own.as_bytes().eq_ignore_ascii_case(name)) => {
                    continue;
                }
                name if is_forwarding(name) => continue,
                // Trailers come with chunks alone; HTTP/1.0 cannot wait, and without content nothing is waited for.
                b"trailer" if framing != Framing::Chunked => continue,
                b"expect" if !is_http11 || framing == Framing::Empty => continue,
                // What is no number below 2^63 is left alone.
                b"max-forwards" if matches!(parsed.method, "OPTIONS" | "TRACE") => {
                    let digits = std::str::from_utf8(&line.value).ok().filter(|text| text.len() <= 19);
                    let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                    if let Some(left) = digits.and_then(|digits| digits.parse::<i64>().ok()) {
                        line.value = (left - 1).max(0).to_string().into_bytes();
                    }
                }
                _ => {}
            }
            all.push(line);
        }
        if framing == Framing::Chunked {
            all.push(Due::new("transfer-encoding", b"chunked"));
        }
        let trailers = self.members("te").contains(&b"trailers".to_vec());
        match (onward.upgrade, trailers) {
            (None, false) => {}
            (None, true) => all.push(Due::new("connection", b"TE")),
            (Some(_), false) => all.push(Due::new("connection", b"upgrade")),
            (Some(_), true) => all.push(Due::new("connection", b"upgrade, TE")),
        }
        if trailers {
            all.push(Due::new("te", b"trailers"));
        }
        if let Some(protocol) = onward.upgrade {
            all.push(Due::new("upgrade", protocol));
        }
        all.push(Due::new("x-forwarded-for", onward.client.to_string().as_bytes()));
        all.push(Due::new("x-forwarded-proto", b"http"));
        if let Some(host) = parsed.host {
            all.push(Due::new("x-forwarded-host", host));
        }
        let version: &[u8] = if is_http11 { b"1.1 " } else { b"1.0 " };
        all.push(Due::new("via", &[version, PSEUDONYM].concat()));
        match onward.request_id {
            Id::Off => {}
            Id::Standard(id) => all.push(Due::new("x-request-id", id)),
            Id::Named(name, id) => all.push(Due::new(&name.to_ascii_lowercase(), id)),
        }
        all
    }

    fn due_of_response(&self, status: u16, coding: Coding, persistence: Persistence) -> Vec<Due> {
        let mut all = self.passing(status == 101);
        all.retain(|line| match &line.name[..] {
            b"trailer" => coding == Coding::Chunked,
            b"content-length" => status >= 200 && status != 204,
            _ => true,
        });
        let date = all.iter().find(|line| line.name == b"date");
        let optional = date.is_some_and(|line| line.optional);
        if status >= 200 && (date.is_none() || optional) {
            all.push(Due { optional, ..Due::new("date", DATE) });
        }
        if coding == Coding::Chunked {
            all.push(Due::new("transfer-encoding", b"chunked"));
        }
        match (status, persistence) {
            (101, _) => all.push(Due::new("connection", b"upgrade")),
            (_, Persistence::Implied) => {}
            (_, Persistence::KeepAlive) => all.push(Due::new("connection", b"keep-alive")),
            (_, Persistence::Close) => all.push(Due::new("connection", b"close")),
        }
        all
    }

    /// Those that are not for this hop: not hop-by-hop by name nor named by `Connection`. `upgrades` lets `Upgrade`
    /// through.
    fn passing(&self, upgrades: bool) -> Vec<Due> {
        let options = self.members("connection");
        let mut passing = Vec::new();
        for (name, value) in &self.fields {
            let by_name = match &name[..] {
                b"upgrade" => !upgrades,
                b"connection" | b"keep-alive" | b"te" | b"transfer-encoding" | b"close" | b"http2-settings" => true,
                name => name.starts_with(b"proxy-") && name != b"proxy-status",
            };
            let named = options.contains(name) && name != b"upgrade";
            if by_name || (named && !is_needed(name)) {
                continue;
            }
            let mut value = value.to_vec();
            if name == b"content-length" {
                let noughts = value.iter().take_while(|digit| **digit == b'0').count().min(value.len() - 1);
                value.drain(..noughts);
            }
            passing.push(Due { name: name.clone(), value, optional: named });
        }
        passing
    }
}

/// What the message or the gateway needs: `Connection` need not be obeyed when it names such a field, for no
/// sender may name it.
fn is_needed(name: &[u8]) -> bool {
    matches!(name, b"host" | b"content-length" | b"via" | b"date" | b"expect") || is_forwarding(name)
}

/// `Forwarded` and its kin, also in the spelling that some servers take for the same.
fn is_forwarding(name: &[u8]) -> bool {
    let folded: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
    name == b"forwarded" || folded == b"x-real-ip" || folded.starts_with(b"x-forwarded-")
}

/// The fields of `head` are those that are due, in their order; an optional one may be missing.
fn compare(due: &[Due], head: &Head<'_>, out: &[u8]) {
    let mut due = due.iter();
    for (name, value) in &head.fields {
        let next = due.by_ref().find(|due| !due.optional || is(due, name, value));
        assert!(next.is_some_and(|due| is(due, name, value)), "due is {}, but: {}", tell(next), show(out));
    }
    let missing = due.find(|due| !due.optional);
    assert!(missing.is_none(), "missing is {}: {}", tell(missing), show(out));
}

fn is(due: &Due, name: &[u8], value: &[u8]) -> bool {
    due.name.eq_ignore_ascii_case(name) && due.value == value
}

fn tell(due: Option<&Due>) -> String {
    due.map_or("nothing".to_owned(), |due| format!("{}: {}", show(&due.name), show(&due.value)))
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

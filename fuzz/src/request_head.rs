//! Heads of requests: the verdict does not depend on how the bytes were cut, nor on what follows the head.
//!
//! Must not know: what is right for a request to say; that is for `rewrite`.

use crate::pieces;
use fusegate::http::fields::{Connection, Field};
use fusegate::http::head::{self, End, Limits};
use fusegate::http::request::{self, Framing, Request, Storage, Version};
use fusegate::http::target::Target;

/// Everything a caller can learn of a request.
#[derive(Debug, PartialEq)]
struct Seen<'b> {
    method: &'b str,
    target: Target<'b>,
    version: Version,
    fields: Vec<(&'b str, &'b [u8], Field)>,
    host: Option<&'b [u8]>,
    framing: Framing,
    connection: Connection,
    flags: [bool; 5],
    max_forwards: Option<u64>,
    request_id: Option<&'b [u8]>,
    len: usize,
}

#[derive(Debug, PartialEq)]
enum Verdict<'b> {
    Incomplete,
    Refused,
    Taken(Box<Seen<'b>>),
}

fn judge<'b>(bytes: &'b [u8], limits: &Limits) -> Verdict<'b> {
    let mut storage = Storage::new();
    let request = match Request::parse(bytes, limits, &mut storage) {
        Ok(Some(request)) => request,
        Ok(None) => return Verdict::Incomplete,
        Err(refusal) => {
            assert!((400..=599).contains(&refusal.status()), "{refusal:?}");
            return Verdict::Refused;
        }
    };
    assert_eq!(request.fields.len(), request.kinds.len());
    let fields = request.fields.iter().zip(request.kinds).map(|(field, kind)| (field.name, field.value, *kind));
    Verdict::Taken(Box::new(Seen {
        method: request.method,
        target: request.target,
        version: request.version,
        fields: fields.collect(),
        host: request.host,
        framing: request.framing,
        connection: request.connection,
        flags: [
            request.expects_continue,
            request.takes_trailers,
            request.has_via,
            request.has_upgrade,
            request.keeps_alive(),
        ],
        max_forwards: request.max_forwards,
        request_id: request.request_id,
        len: request.len,
    }))
}

/// The input is what a client sent, from its first byte.
pub fn check(data: &[u8]) {
    // A connection drops empty lines before it reads a head.
    let bytes = &data[request::leading_empty_lines(data)..];
    for limits in [
        Limits { request_line: 8 << 10, header_bytes: 32 << 10, headers: 100 },
        Limits { request_line: 64, header_bytes: 1 << 10, headers: 3 },
    ] {
        check_within(bytes, &limits);
    }
}

fn check_within(bytes: &[u8], limits: &Limits) {
    let whole = judge(bytes, limits);
    let end = head::end(bytes, 0);
    match &whole {
        Verdict::Incomplete => assert_eq!(end, End::Missing, "a head that has ended is not judged"),
        Verdict::Refused => {}
        Verdict::Taken(seen) => {
            assert_eq!(end, End::At(seen.len), "the head ends elsewhere");
            assert!(seen.len <= limits.head() && seen.fields.len() <= limits.headers, "a limit does not hold");
            assert_eq!(judge(&bytes[..seen.len], limits), whole, "the head alone has another reading");
            let followed = [&bytes[..seen.len], b"\0\r\n\r\nGET \xff"].concat();
            assert_eq!(judge(&followed, limits), whole, "what follows the head changes its reading");
        }
    }
    // What a growing input is told: to wait, then one verdict that stands.
    let mut last = Verdict::Incomplete;
    for cut in pieces::cuts(bytes) {
        let now = judge(&bytes[..cut], limits);
        assert!(last == Verdict::Incomplete || last == now, "cut at {cut}: first {last:?}, then {now:?}");
        if head::end(&bytes[..cut], 0) == End::Missing {
            assert_eq!(head::end(bytes, cut), end, "the end is missed when the first {cut} bytes were scanned before");
        }
        last = now;
    }
    assert_eq!(last, whole);
}

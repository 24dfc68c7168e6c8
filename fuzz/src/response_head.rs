//! Heads of responses: the verdict does not depend on how the bytes were cut, nor on what follows the head;
//! whether the request was `HEAD` changes the framing and nothing else.
//!
//! Must not know: what is right for a response to say; that is for `rewrite`.

use crate::pieces;
use fusegate::http::fields::{Connection, Field};
use fusegate::http::head::{self, End, Limits};
use fusegate::http::request::{Storage, Version};
use fusegate::http::response::{Framing, Response};

/// Everything a caller can learn of a response.
#[derive(Debug, PartialEq)]
struct Seen<'b> {
    status: u16,
    reason: &'b str,
    version: Version,
    fields: Vec<(&'b str, &'b [u8], Field)>,
    framing: Framing,
    connection: Connection,
    flags: [bool; 3],
    keep_alive_s: Option<u32>,
    len: usize,
}

#[derive(Debug, PartialEq)]
enum Verdict<'b> {
    Incomplete,
    Refused,
    Taken(Box<Seen<'b>>),
}

fn judge<'b>(bytes: &'b [u8], to_head: bool, limits: &Limits) -> Verdict<'b> {
    let mut storage = Storage::new();
    let response = match Response::parse(bytes, to_head, limits, &mut storage) {
        Ok(Some(response)) => response,
        Ok(None) => return Verdict::Incomplete,
        Err(_) => return Verdict::Refused,
    };
    assert_eq!(response.fields.len(), response.kinds.len());
    assert!((100..=599).contains(&response.status));
    let fields = response.fields.iter().zip(response.kinds).map(|(field, kind)| (field.name, field.value, *kind));
    Verdict::Taken(Box::new(Seen {
        status: response.status,
        reason: response.reason,
        version: response.version,
        fields: fields.collect(),
        framing: response.framing,
        connection: response.connection,
        flags: [response.has_date, response.is_event_stream, response.keeps_alive()],
        keep_alive_s: response.keep_alive_s,
        len: response.len,
    }))
}

/// The input is what an upstream sent, from its first byte.
pub fn check(bytes: &[u8]) {
    for limits in [
        Limits { request_line: 8 << 10, header_bytes: 32 << 10, headers: 100 },
        Limits { request_line: 64, header_bytes: 192, headers: 3 },
    ] {
        let [plain, to_head] = [false, true].map(|to_head| check_within(bytes, to_head, &limits));
        if let (Verdict::Taken(plain), Verdict::Taken(to_head)) = (plain, to_head) {
            assert_eq!(to_head.framing, Framing::Empty);
            assert_eq!((plain.status, plain.len, &plain.fields), (to_head.status, to_head.len, &to_head.fields));
        }
    }
}

fn check_within<'b>(bytes: &'b [u8], to_head: bool, limits: &Limits) -> Verdict<'b> {
    let whole = judge(bytes, to_head, limits);
    match &whole {
        Verdict::Incomplete => {
            assert_eq!(head::end(bytes, 0), End::Missing, "a head that has ended is not judged");
            assert!(bytes.len() <= limits.head(), "a head without bounds is waited for");
        }
        Verdict::Refused => {}
        Verdict::Taken(seen) => {
            assert_eq!(head::end(bytes, 0), End::At(seen.len), "the head ends elsewhere");
            assert!(seen.len <= limits.head(), "a limit does not hold");
            assert_eq!(judge(&bytes[..seen.len], to_head, limits), whole, "the head alone has another reading");
            let followed = [&bytes[..seen.len], b"\0\r\n\r\nHTTP/1.1 \xff"].concat();
            assert_eq!(judge(&followed, to_head, limits), whole, "what follows the head changes its reading");
        }
    }
    // What a growing input is told: to wait, then one verdict that stands.
    let mut last = Verdict::Incomplete;
    for cut in pieces::cuts(bytes) {
        let now = judge(&bytes[..cut], to_head, limits);
        assert!(last == Verdict::Incomplete || last == now, "cut at {cut}: first {last:?}, then {now:?}");
        last = now;
    }
    assert_eq!(last, whole);
    whole
}

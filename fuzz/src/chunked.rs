//! Chunked bodies: the same content, end and verdict however the bytes are cut; what goes out in chunks
//! decodes, by a reader of its own, to what goes out plain; and both are what came in.
//!
//! Must not know: heads.

use crate::strict::{self, Extensions};
use fusegate::http::body::{Body, Chunked, Coding, Transfer};

/// What becomes of a body.
#[derive(Debug, PartialEq)]
enum Outcome {
    Refused,
    Passed { out: Vec<u8>, consumed: usize, content: usize, done: bool },
}

/// Hands `wire` over in `pieces`, keeping what is not consumed, as a connection does.
fn pass(wire: &[u8], mut pieces: impl Iterator<Item = usize>, limit: usize, mut transfer: Transfer) -> Outcome {
    let (mut out, mut content, mut consumed, mut came) = (Vec::new(), 0, 0, 0);
    while came < wire.len() && !transfer.is_done() {
        came = wire.len().min(came + pieces.next().unwrap_or(usize::MAX - came));
        let Ok(passed) = transfer.pass(&wire[consumed..came], limit, &mut out) else { return Outcome::Refused };
        assert_eq!(passed.direct, 0, "chunks never go out as they came");
        consumed += passed.consumed;
        content += passed.content;
        assert!(consumed <= came && (transfer.is_done() || came - consumed <= limit), "more is kept than the limit");
    }
    let done = transfer.is_done();
    let held = out.len();
    assert_eq!(transfer.close(&mut out), done, "the end of the connection ends no chunked body");
    assert_eq!(out.len(), held, "a body that was cut short was made to look whole");
    Outcome::Passed { out, consumed, content, done }
}

/// The input is `cuts|wire`: each byte of `cuts` is the length of a piece of `wire` (`a` 1, `b` 2, …), over and
/// over; without a `|` all is `wire`.
pub fn check(data: &[u8]) {
    let (cuts, wire) = match data.iter().position(|byte| *byte == b'|') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (&b"c"[..], data),
    };
    for limit in [8 << 10, 48] {
        for coding in [Coding::Plain, Coding::Chunked] {
            check_coding(wire, cuts, limit, coding);
        }
        check_meaning(wire, limit);
    }
}

fn check_coding(wire: &[u8], cuts: &[u8], limit: usize, coding: Coding) {
    let transfer = Transfer::new(Body::Chunked(Chunked::default()), coding);
    let whole = decoded(pass(wire, [wire.len()].into_iter(), limit, transfer), coding);
    let mut ways: Vec<Vec<usize>> = Vec::new();
    if !cuts.is_empty() {
        ways.push(cuts.iter().map(|byte| usize::from(byte & 0x1f).max(1)).collect());
    }
    if wire.len() <= 1024 {
        ways.push(vec![1]);
    }
    for pieces in ways {
        let cut = decoded(pass(wire, pieces.iter().copied().cycle(), limit, transfer), coding);
        assert_eq!(cut, whole, "{coding:?} in pieces of {pieces:?}");
    }
}

/// Trailers by name and value.
type Trailers = Vec<(Vec<u8>, Vec<u8>)>;

/// Chunks may lie elsewhere after a cut; what they hold may not.
fn decoded(outcome: Outcome, coding: Coding) -> (Outcome, Trailers) {
    match outcome {
        Outcome::Passed { out, consumed, content, done } if coding == Coding::Chunked => {
            let body =
                strict::chunks(&out, Extensions::Never).unwrap_or_else(|fault| panic!("{fault}: {}", show(&out)));
            assert_eq!(body.end, done.then_some(out.len()), "{}", show(&out));
            let trailers = body.trailers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            (Outcome::Passed { out: body.content, consumed, content, done }, trailers)
        }
        other => (other, Vec::new()),
    }
}

/// What passes is what the wire says by the reader of its own; the two codings say the same.
fn check_meaning(wire: &[u8], limit: usize) {
    let all = || [wire.len()].into_iter();
    let new = |coding| Transfer::new(Body::Chunked(Chunked::default()), coding);
    let plain = pass(wire, all(), limit, new(Coding::Plain));
    let (chunked, trailers) = decoded(pass(wire, all(), limit, new(Coding::Chunked)), Coding::Chunked);
    assert_eq!(chunked, plain, "the codings differ");
    let (bare, none) = decoded(pass(wire, all(), limit, new(Coding::Chunked).drop_trailers(true)), Coding::Chunked);
    assert_eq!((bare, none), (chunked, Vec::new()), "without trailers the rest is the same");
    let Outcome::Passed { out, consumed, content, done } = plain else { return };
    let came = strict::chunks(wire, Extensions::Ignored).unwrap_or_else(|fault| panic!("taken, but {fault}"));
    assert_eq!(came.content, out);
    assert_eq!(came.end, done.then_some(consumed));
    assert_eq!(content, out.len());
    // The trailers are some of those that came, in their order, and none that a receiver must not merge.
    let mut behind = came.trailers.iter();
    for (name, value) in &trailers {
        assert!(behind.any(|(n, v)| n == name && v == value), "a trailer that did not come: {}", show(name));
        assert!(may_trail(&name.to_ascii_lowercase()), "this may not be a trailer: {}", show(name));
    }
}

/// RFC 9110 section 6.5.1: not what frames, routes, modifies, authenticates or describes the content.
fn may_trail(name: &[u8]) -> bool {
    let never: [&[u8]; 21] = [
        b"transfer-encoding",
        b"content-length",
        b"host",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"max-forwards",
        b"cache-control",
        b"authorization",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"www-authenticate",
        b"cookie",
        b"set-cookie",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"forwarded",
    ];
    let folded: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
    !never.contains(&name) && !name.starts_with(b"if-") && !folded.starts_with(b"x-forwarded-")
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

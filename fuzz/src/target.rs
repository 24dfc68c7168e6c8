//! Request targets, where they lead, and the guard of an upstream's base path: what it lets pass stays below
//! the base in the eyes of every server that decodes once, however that server takes paths apart.
//!
//! Must not know: heads, what services exist.

use fusegate::http::target::{Route, Target, escapes_base, is_host};

const PREFIX: &[u8] = b"/v1/proxy/";

/// The input is a target; what stands in front of a first space is the method.
pub fn check(data: &[u8]) {
    match data.iter().position(|byte| *byte == b' ') {
        Some(at) => {
            if let Ok(method) = std::str::from_utf8(&data[..at]) {
                check_target(method, &data[at + 1..]);
            }
        }
        None => {
            check_target("GET", data);
            check_target("OPTIONS", data);
        }
    }
    check_host(data);
}

fn check_target(method: &str, target: &[u8]) {
    let Ok(parsed) = Target::parse(method, target) else { return };
    assert!(target.iter().all(u8::is_ascii_graphic), "taken with bytes that are not visible ASCII");
    let Target::Resource { path, query, authority } = parsed else {
        assert!(matches!(method, "OPTIONS" | "CONNECT"));
        return;
    };
    // Nothing is rewritten: the parts are slices of the target and put together they are the target.
    match authority {
        None => assert_eq!([path, query].concat(), target),
        Some(authority) => {
            assert!(authority.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\\"<>".contains(byte)));
            let path = if is_slice(target, path) { path } else { b"" };
            assert!(target[..7].eq_ignore_ascii_case(b"http://"));
            assert_eq!([authority, path, query].concat(), &target[7..]);
            assert!(is_slice(target, authority));
        }
    }
    assert!(query.is_empty() || (is_slice(target, query) && query[0] == b'?'));
    assert!(path.starts_with(b"/") && !path.contains(&b'?') && escapes_are_whole(path));
    check_route(path);
    // The guard takes any path; most inputs do not lead to a service.
    check_guard(path);
}

fn check_route(path: &[u8]) {
    match Route::of(path, b"/v1/proxy/") {
        Route::Proxy { service, rest } => {
            let raw = &path[PREFIX.len()..path.len() - rest.len()];
            assert!(path.starts_with(PREFIX) && !raw.is_empty() && !raw.contains(&b'/'));
            assert!(rest.is_empty() || (is_slice(path, rest) && rest[0] == b'/'));
            assert_eq!(&*service, decode(raw));
            check_guard(rest);
        }
        Route::Own(_) => assert!(path.iter().all(|byte| byte.is_ascii_lowercase() || b"/1-".contains(byte))),
        Route::Unknown => {}
    }
}

fn check_guard(rest: &[u8]) {
    if escapes_base(rest) {
        return;
    }
    for model in Server::all() {
        assert!(model.lowest(rest) >= 0, "{model:?} leaves the base path");
    }
}

/// How a server takes a path apart.
#[derive(Clone, Copy, Debug)]
struct Server {
    /// Escapes are undone before segments are told apart, so that `%2f` is a `/`; else in each segment.
    decodes_first: bool,
    /// `\` is a `/`.
    backslash: bool,
    /// Empty segments do not count.
    merges: bool,
    /// What follows a `;` is no part of a segment's name.
    parameters: bool,
}

impl Server {
    fn all() -> impl Iterator<Item = Server> {
        (0..16u8).map(|bits| Server {
            decodes_first: bits & 1 > 0,
            backslash: bits & 2 > 0,
            merges: bits & 4 > 0,
            parameters: bits & 8 > 0,
        })
    }

    /// The lowest level that is reached on the way down `rest`, which begins with a `/` or is empty.
    fn lowest(self, rest: &[u8]) -> i64 {
        let path = if self.decodes_first { decode(rest) } else { rest.to_vec() };
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let (mut level, mut lowest) = (0, 0);
        for segment in path.split(|byte| *byte == b'/' || (self.backslash && *byte == b'\\')) {
            let segment = if self.decodes_first { segment.to_vec() } else { decode(segment) };
            let name = match segment.iter().position(|byte| *byte == b';') {
                Some(at) if self.parameters => &segment[..at],
                _ => &segment[..],
            };
            level += match name {
                b"" if self.merges => 0,
                b"." => 0,
                b".." => -1,
                _ => 1,
            };
            lowest = lowest.min(level);
        }
        lowest
    }
}

/// A value that is taken for a `Host` is one authority to any reader.
fn check_host(value: &[u8]) {
    if !is_host(value) {
        return;
    }
    assert!(!value.is_empty() && value.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\\"<>".contains(byte)));
    let behind = match value.iter().position(|byte| *byte == b']') {
        Some(at) => {
            assert_eq!(value[0], b'[');
            &value[at + 1..]
        }
        None => value,
    };
    let mut parts = behind.splitn(2, |byte| *byte == b':');
    parts.next();
    let port = std::str::from_utf8(parts.next().unwrap_or(b"")).expect("it is ASCII");
    assert!(port.is_empty() || port.parse::<u16>().is_ok(), "the port is {port}");
}

fn escapes_are_whole(path: &[u8]) -> bool {
    let escapes = path.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    escapes
        .map(|(at, _)| path.get(at + 1..at + 3))
        .all(|hex| hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut left = text.iter();
    while let Some(byte) = left.next() {
        decoded.push(match byte {
            b'%' => [left.next(), left.next()].iter().fold(0, |value, digit| {
                let digit = digit.and_then(|digit| char::from(*digit).to_digit(16)).expect("escapes are whole");
                value << 4 | digit as u8
            }),
            byte => *byte,
        });
    }
    decoded
}

/// Whether `part` lies in the memory of `whole`.
fn is_slice(whole: &[u8], part: &[u8]) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_differ() {
        let lowest = |rest: &str| Server::all().map(|server| server.lowest(rest.as_bytes())).min();
        for below in ["", "/", "/a/..", "/...", "/a%2e%2e", "/a//b/../c"] {
            assert_eq!(lowest(below), Some(0), "{below}");
        }
        for above in ["/..", "/%2e%2e", "/a%2f..%2f..", "/a%2fb/../..", "/a\\b/../..", "/a\\..\\..", "/..;x", "//.."] {
            assert_eq!(lowest(above), Some(-1), "{above}");
        }
    }
}

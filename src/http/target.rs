//! Request targets (RFC 9112 section 3.2) and what they route to.
//!
//! The path is never rewritten: percent-encoding, empty segments and the query reach the upstream byte
//! for byte. It is decoded once, for the service name and for the guard against leaving an upstream's
//! base path. Must not know: which services exist.

use crate::http::request::Refusal;
use std::borrow::Cow;

/// The gateway's own resources, and what more is kept for it; `/v1/circuits` with all below it.
const OWN: [&str; 8] =
    ["/livez", "/readyz", "/metrics", "/v1/status", "/v1/events", "/v1/config", "/v1/reload-config", "/v1/circuits"];

/// The resource of the gateway's own that paths under `prefix` would hide, when what they ask for is proxied.
pub fn hidden_by(prefix: &str) -> Option<&'static str> {
    let is_below = |path: &str, above: &str| {
        path.strip_prefix(above).is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'/', ..]))
    };
    let mut all = OWN.into_iter();
    all.find(|own| is_below(own, prefix) || *own == "/v1/circuits" && is_below(prefix, own))
}

/// Whether the path is one of the gateway's own, whatever is under the prefix; `/metrics` is by configuration.
pub fn is_own(path: &str) -> bool {
    path == "/" || path.starts_with("/v1/") || path != "/metrics" && OWN.contains(&path)
}

/// A request target in the form in which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'b> {
    /// `/path?query`, or the absolute form with the authority that replaces `Host`.
    Resource {
        /// From the first `/`, without the query; `/` when an absolute form has none.
        path: &'b [u8],
        /// With its `?`, or empty.
        query: &'b [u8],
        /// Of the absolute form.
        authority: Option<&'b [u8]>,
    },
    /// `*`, of `OPTIONS`.
    Asterisk,
    /// `host:port`, of `CONNECT`.
    Authority,
}

/// What a byte of a target may mean, one bit each, so that one pass over a target tells all of it.
const INVISIBLE: u8 = 1;
const FRAGMENT: u8 = 2;
const QUERY: u8 = 4;
const ESCAPE: u8 = 8;
/// No byte of a host that is a name or an IPv4 address (RFC 3986 section 3.2.2).
const NO_HOST: u8 = 16;

static MEANING: [u8; 256] = {
    let mut table = [INVISIBLE | NO_HOST; 256];
    let mut byte = 0x21;
    while byte <= 0x7e {
        table[byte] = match byte as u8 {
            b'#' => FRAGMENT | NO_HOST,
            b'?' => QUERY | NO_HOST,
            b'%' => ESCAPE,
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => 0,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {
                0
            }
            _ => NO_HOST,
        };
        byte += 1;
    }
    table
};

/// All that the bytes mean.
fn meanings(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |seen, byte| seen | MEANING[usize::from(*byte)])
}

impl<'b> Target<'b> {
    /// Reads a target.
    pub fn parse(method: &str, target: &'b [u8]) -> Result<Target<'b>, Refusal> {
        let seen = meanings(target);
        if seen & INVISIBLE != 0 {
            return Err(Refusal::Malformed("the request target has bytes that are not visible ASCII"));
        }
        if seen & FRAGMENT != 0 {
            return Err(Refusal::Malformed("the request target has a fragment"));
        }
        if method == "CONNECT" {
            return Ok(Target::Authority);
        }
        match target {
            b"*" if method == "OPTIONS" => Ok(Target::Asterisk),
            [b'/', ..] if seen & (QUERY | ESCAPE) == 0 => {
                Ok(Target::Resource { path: target, query: b"", authority: None })
            }
            [b'/', ..] => Self::resource(target, None),
            _ => Self::absolute(method, target),
        }
    }

    fn absolute(method: &str, target: &'b [u8]) -> Result<Target<'b>, Refusal> {
        // RFC 9110 section 7.4: what is asked for under https must come over a secured connection.
        if target.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https://")) {
            return Err(Refusal::Misdirected);
        }
        let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"http://"));
        if scheme.is_none() {
            return Err(Refusal::Malformed("the request target is neither a path nor an http URI"));
        }
        let after_scheme = &target[7..];
        let end = after_scheme.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(after_scheme.len());
        let (authority, rest) = after_scheme.split_at(end);
        if !is_host(authority) {
            return Err(Refusal::Malformed("the authority of the request target is invalid"));
        }
        match rest.first() {
            // RFC 9112 section 3.2.4: the absolute form of the asterisk.
            None if method == "OPTIONS" => Ok(Target::Asterisk),
            Some(b'/') => Self::resource(rest, Some(authority)),
            _ => Ok(Target::Resource { path: b"/", query: rest, authority: Some(authority) }),
        }
    }

    fn resource(target: &'b [u8], authority: Option<&'b [u8]>) -> Result<Target<'b>, Refusal> {
        let end = memchr::memchr(b'?', target).unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        if !escapes_are_whole(path) {
            return Err(Refusal::Malformed("the path has a malformed percent-encoding"));
        }
        Ok(Target::Resource { path, query, authority })
    }
}

/// Whether every `%` is followed by two hexadecimal digits.
fn escapes_are_whole(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path)
        .all(|at| matches!(path.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'b> {
    /// To a service.
    Proxy {
        /// Its name, decoded once. Not checked: it may be any bytes.
        service: Cow<'b, [u8]>,
        /// What follows the name: empty, or from the `/` on.
        rest: &'b [u8],
    },
    /// To the gateway itself.
    Own(Own),
    /// Nowhere.
    Unknown,
}

/// The gateway's own resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// `/`: the status page.
    Page,
    /// `/livez`
    Live,
    /// `/readyz`
    Ready,
    /// `/v1/status`
    Status,
    /// `/v1/events`
    Events,
    /// `/v1/config`
    Config,
    /// `/metrics`, or where the configuration has it.
    Metrics,
    /// `/v1/reload-config`
    Reload,
    /// `/v1/circuits/{service}/{index}/trip`
    Trip,
    /// `/v1/circuits/{service}/{index}/reset`
    Reset,
}

impl Own {
    /// All of them.
    pub const ALL: [Own; 10] = [
        Own::Page,
        Own::Live,
        Own::Ready,
        Own::Status,
        Own::Events,
        Own::Config,
        Own::Metrics,
        Own::Reload,
        Own::Trip,
        Own::Reset,
    ];

    /// Its path, with names for what may be different in it.
    pub fn path(self) -> &'static str {
        match self {
            Own::Page => "/",
            Own::Live => "/livez",
            Own::Ready => "/readyz",
            Own::Status => "/v1/status",
            Own::Events => "/v1/events",
            Own::Config => "/v1/config",
            Own::Metrics => "/metrics",
            Own::Reload => "/v1/reload-config",
            Own::Trip => "/v1/circuits/{service}/{index}/trip",
            Own::Reset => "/v1/circuits/{service}/{index}/reset",
        }
    }

    /// The methods that it takes, as `Allow` lists them.
    pub fn allow(self) -> &'static str {
        match self {
            Own::Page | Own::Live | Own::Ready | Own::Status | Own::Events | Own::Config | Own::Metrics => "GET, HEAD",
            Own::Reload | Own::Trip | Own::Reset => "POST",
        }
    }

    /// Whether it takes `method`.
    pub fn takes(self, method: &str) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method)
    }

    /// Whether only administration may ask for it.
    pub fn is_administration(self) -> bool {
        !matches!(self, Own::Live | Own::Ready)
    }
}

impl<'b> Route<'b> {
    /// Where `path` leads, when paths under `prefix`, which ends with its `/`, lead to services.
    pub fn of(path: &'b [u8], prefix: &[u8]) -> Route<'b> {
        if let Some(behind) = path.strip_prefix(prefix) {
            let end = memchr::memchr(b'/', behind).unwrap_or(behind.len());
            let (service, rest) = behind.split_at(end);
            if service.is_empty() {
                return Route::Unknown;
            }
            return Route::Proxy { service: decode(service), rest };
        }
        match path {
            b"/" => Route::Own(Own::Page),
            b"/livez" => Route::Own(Own::Live),
            b"/readyz" => Route::Own(Own::Ready),
            b"/v1/status" => Route::Own(Own::Status),
            b"/v1/events" => Route::Own(Own::Events),
            b"/v1/config" => Route::Own(Own::Config),
            b"/v1/reload-config" => Route::Own(Own::Reload),
            _ => match circuit(path) {
                Some((_, _, b"trip")) => Route::Own(Own::Trip),
                Some((_, _, b"reset")) => Route::Own(Own::Reset),
                _ => Route::Unknown,
            },
        }
    }
}

/// Service, index and action of `/v1/circuits/{service}/{index}/{action}`; as they stand there.
pub fn circuit(path: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = path.strip_prefix(b"/v1/circuits/")?.split(|byte| *byte == b'/');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// One octet of a path whose escapes are whole, and what follows it.
fn octet(path: &[u8]) -> Option<(u8, &[u8])> {
    match path {
        [b'%', a, b, rest @ ..] => Some((hex(*a) << 4 | hex(*b), rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

fn decode(segment: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', segment).is_none() {
        return Cow::Borrowed(segment);
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut left = segment;
    while let Some((byte, rest)) = octet(left) {
        decoded.push(byte);
        left = rest;
    }
    Cow::Owned(decoded)
}

/// Whether `rest`, appended to a base path, could climb above it in the eyes of some server.
///
/// Servers differ in what they decode first, what they take for a separator, whether they merge empty
/// segments and what they do with `;` parameters; the guard takes the worst of each.
pub fn escapes_base(rest: &[u8]) -> bool {
    if memchr::memchr2(b'%', b'.', rest).is_none() {
        return false;
    }
    let (mut depth, mut dots, mut others, mut parameters, mut plain) = (0i64, 0u32, false, false, true);
    let mut left = rest;
    loop {
        let next = octet(left);
        match next {
            None | Some((b'/' | b'\\', _)) => {
                // Only what every server takes for a segment of its own makes up for a later `..`.
                let ends_plainly = matches!(left, [] | [b'/', ..]);
                depth += match (others, dots) {
                    (false, 2) => -1,
                    (false, 0 | 1) => 0,
                    _ => i64::from(plain && ends_plainly),
                };
                if depth < 0 {
                    return true;
                }
                (dots, others, parameters, plain) = (0, false, false, ends_plainly);
            }
            Some((b';', _)) => parameters = true,
            Some(_) if parameters => {}
            Some((b'.', _)) => dots += 1,
            Some(_) => others = true,
        }
        match next {
            Some((_, rest)) => left = rest,
            None => return false,
        }
    }
}

/// Whether `value` is a valid `Host`: a non-empty uri-host and an optional port (RFC 9110 section 7.2).
pub fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', ..] => match memchr::memchr(b']', value) {
            Some(end) => value.split_at(end + 1),
            None => return false,
        },
        _ => value.split_at(value.iter().position(|byte| *byte == b':').unwrap_or(value.len())),
    };
    let port_is_valid = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0u32, |port, digit| port * 10 + u32::from(digit - b'0')) <= 65535
        }
        _ => false,
    };
    let host_is_valid = match host {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
        }
        _ => {
            let seen = meanings(host);
            !host.is_empty() && seen & NO_HOST == 0 && (seen & ESCAPE == 0 || escapes_are_whole(host))
        }
    };
    host_is_valid && port_is_valid
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        let resource = |path, query, authority| Ok(Target::Resource { path, query, authority });
        assert_eq!(Target::parse("GET", b"/a%2Fb//?x"), resource(b"/a%2Fb//", b"?x", None));
        assert_eq!(Target::parse("GET", b"http://h:1/a?b"), resource(b"/a", b"?b", Some(b"h:1")));
        assert_eq!(Target::parse("GET", b"HTTP://h?b"), resource(b"/", b"?b", Some(b"h")));
        assert_eq!(Target::parse("OPTIONS", b"*"), Ok(Target::Asterisk));
        assert_eq!(Target::parse("CONNECT", b"h:443"), Ok(Target::Authority));
        for bad in [
            &b"*"[..],
            b"a",
            b"/a#b",
            b"/%",
            b"/%4",
            b"/%zz",
            b"/\x7f",
            b"/\xc3\xa9",
            b"http://",
            b"ftp://h/",
            b"http://u@h/",
            b"http://h:99999/",
        ] {
            assert!(Target::parse("GET", bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn routes() {
        let proxy = |service: &'static [u8], rest| Route::Proxy { service: Cow::Borrowed(service), rest };
        assert_eq!(Route::of(b"/v1/proxy/users", b"/v1/proxy/"), proxy(b"users", b""));
        assert_eq!(Route::of(b"/v1/proxy/users/", b"/v1/proxy/"), proxy(b"users", b"/"));
        assert_eq!(Route::of(b"/v1/proxy/users//a", b"/v1/proxy/"), proxy(b"users", b"//a"));
        assert_eq!(Route::of(b"/v1/proxy/user%2ds/a", b"/v1/proxy/"), proxy(b"user-s", b"/a"));
        assert_eq!(Route::of(b"/v1/proxy/a%2fb/c", b"/v1/proxy/"), proxy(b"a/b", b"/c"));
        for unknown in [&b"/v1/proxy/"[..], b"/v1/proxy", b"/v1/proxyx/a", b"", b"/livez/"] {
            assert_eq!(Route::of(unknown, b"/v1/proxy/"), Route::Unknown);
        }
    }

    #[test]
    fn every_resource_has_its_path() {
        assert_eq!(Own::ALL.len(), Own::Reset as usize + 1, "none is left out");
        for own in Own::ALL {
            let path = own.path();
            let expected = if own == Own::Metrics { Route::Unknown } else { Route::Own(own) };
            assert_eq!(Route::of(path.as_bytes(), b"/v1/proxy/"), expected, "{path}");
            let is_kept = path == "/" || hidden_by(path).is_some();
            assert!(is_kept && (is_own(path) || own == Own::Metrics), "{path} could be hidden");
        }
    }

    #[test]
    fn another_prefix() {
        assert_eq!(Route::of(b"/api/a/b", b"/api/"), Route::Proxy { service: Cow::Borrowed(b"a"), rest: b"/b" });
        assert_eq!(Route::of(b"/v1/proxy/a", b"/api/"), Route::Unknown);
        assert_eq!(Route::of(b"/livez", b"/api/"), Route::Own(Own::Live));
        for hiding in ["/livez", "/v1", "/v1/status", "/v1/circuits", "/v1/circuits/a", "/metrics"] {
            assert!(hidden_by(hiding).is_some(), "{hiding}");
        }
        for fine in ["/v1/proxy", "/api", "/v1/statuses", "/livez/x", "/v1/circuit", "/v2"] {
            assert_eq!(hidden_by(fine), None, "{fine}");
        }
    }

    #[test]
    fn a_base_path_cannot_be_left() {
        for bad in [
            "/..",
            "/../a",
            "/a/../..",
            "/%2e%2e/",
            "/%2E.",
            "/..;x/a",
            "/..%5c",
            "/a/..%2f..",
            "/%2f..",
            "/.;/..",
            "//..",
            "/./..",
            "/..%3bx/a",
            "/a/..\\..\\b",
            "/a%2fb/../..",
            "/a\\b/../..",
            "/a;%2fb/../..",
            "/a%2fb\\../..",
        ] {
            assert!(escapes_base(bad.as_bytes()), "{bad}");
        }
        for good in ["", "/", "/a/..", "/a/b/../..", "/...", "/..a", "/a%2e%2e", "/.a./b..", "/a;..", "/%252e%252e"] {
            assert!(!escapes_base(good.as_bytes()), "{good}");
        }
    }

    #[test]
    fn hosts() {
        for good in ["a", "a:80", "[::1]", "[::1]:8000", "1.2.3.4", "a_b.c", "xn--a", "a:"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in ["", ":80", "a b", "a:b", "a:99999", "[::1", "[]", "[x]", "[::1]x", "a/b", "a@b", "a:1:2", "%zz"] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_the_guard_lets_pass_stays_below(rest in "(/(\\.|\\.\\.|%2e|%2E|%2f|%5c|;|a|\\\\|){0,4}){0,6}") {
            prop_assume!(!escapes_base(rest.as_bytes()));
            // A server that decodes once, then takes both slashes for separators, drops parameters and empty segments.
            let decoded = String::from_utf8(decode(rest.as_bytes()).into_owned()).unwrap();
            let mut depth = 0i32;
            for segment in decoded.split(['/', '\\']) {
                match segment.split(';').next().unwrap_or("") {
                    "" | "." => {}
                    ".." => depth -= 1,
                    _ => depth += 1,
                }
                prop_assert!(depth >= 0, "{rest}");
            }
        }
    }
}

//! Who may administer the gateway: programs on this machine that talk to it directly, and no browser on
//! behalf of a foreign page.
//!
//! A loopback peer can be a proxy or a browser that a web page has sent. A proxy is known by its
//! forwarding fields; a page by `Origin` and `Sec-Fetch-Site`; a name that was rebound to this address by
//! a `Host` that is not the gateway's own. Must not know: what is administered.

use crate::http::fields::Field;
use crate::http::request::Request;
use std::net::{IpAddr, SocketAddr};

/// Why a request may not administer; `None` when it may. `local` is our end of its connection.
pub fn refusal(request: &Request<'_, '_>, peer: IpAddr, local: Option<SocketAddr>) -> Option<&'static str> {
    if !peer.to_canonical().is_loopback() {
        return Some("administration is open to this machine only");
    }
    if request.kinds.iter().any(|kind| matches!(kind, Field::Forwarding | Field::Via)) {
        return Some("administration is not open to forwarded requests");
    }
    let is_own = |host: &[u8]| is_own_host(host, local);
    if !request.host.is_some_and(is_own) {
        return Some("the Host is not the gateway's own");
    }
    if request.field("sec-fetch-site").is_some_and(|site| site.eq_ignore_ascii_case(b"cross-site")) {
        return Some("administration is not open to other sites");
    }
    let origin_is_own = |origin: &[u8]| {
        let host = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        host.is_some_and(is_own)
    };
    if !request.field("origin").is_none_or(origin_is_own) {
        return Some("administration is not open to other origins");
    }
    None
}

/// Whether a host, with any port, is `localhost` or the address that the connection came to.
fn is_own_host(host: &[u8], local: Option<SocketAddr>) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| local.is_some_and(|l| l.ip().to_canonical() == ip.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Limits;
    use crate::http::request::Storage;

    fn judged(fields: &str, peer: &str) -> Option<&'static str> {
        let bytes = format!("POST /v1/reload-config HTTP/1.1\r\n{fields}\r\n");
        let mut storage = Storage::new();
        let limits = Limits { request_line: 8192, header_bytes: 8192, headers: 100 };
        let request = Request::parse(bytes.as_bytes(), &limits, &mut storage).unwrap().unwrap();
        refusal(&request, peer.parse().unwrap(), Some("127.0.0.1:8000".parse().unwrap()))
    }

    #[test]
    fn programs_of_this_machine_may() {
        for fields in [
            "Host: 127.0.0.1:8000\r\n",
            "Host: localhost\r\n",
            "Host: LOCALHOST:1234\r\n",
            "Host: localhost:8000\r\nOrigin: http://localhost:8000\r\nSec-Fetch-Site: same-origin\r\n",
        ] {
            assert_eq!(judged(fields, "127.0.0.1"), None, "{fields}");
        }
        assert_eq!(judged("Host: localhost\r\n", "::ffff:127.0.0.1"), None);
    }

    #[test]
    fn others_may_not() {
        for fields in [
            "Host: 127.0.0.1:8000\r\nX-Forwarded-For: 1.2.3.4\r\n",
            "Host: 127.0.0.1:8000\r\nForwarded: for=1.2.3.4\r\n",
            "Host: 127.0.0.1:8000\r\nVia: 1.1 a\r\n",
            "Host: evil.example\r\n",
            "Host: 127.0.0.2\r\n",
            "Host: localhost\r\nOrigin: null\r\n",
            "Host: localhost\r\nOrigin: http://evil.example\r\n",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            assert!(judged(fields, "127.0.0.1").is_some(), "{fields}");
        }
        assert!(judged("Host: 127.0.0.1\r\n", "10.0.0.1").is_some());
    }
}

//! Who may administer the gateway: without a token, programs on this machine that talk to it directly; with one,
//! whoever knows it. Never a browser on behalf of a foreign page.
//!
//! A loopback peer can be a proxy or a browser that a web page has sent. A proxy is known by its
//! forwarding fields; a page by `Origin` and `Sec-Fetch-Site`; a name that was rebound to this address by
//! a `Host` that is not the gateway's own. A rebound page does not know the token, so with one any `Host` is fine.
//! Must not know: what is administered.

use crate::config::model::{Admin, ReloadEndpoint};
use crate::http::fields::Field;
use crate::http::request::Request;
use crate::http::target::Own;
use crate::shard::net::Door;
use std::net::{IpAddr, SocketAddr};

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// The peer's address.
    pub peer: IpAddr,
    /// The listener that took its connection.
    pub door: Door,
    /// Our end of its connection, if that has an address.
    pub local: Option<SocketAddr>,
}

/// Why a request may not administer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Nothing that it could add would help.
    Forbidden(&'static str),
    /// It must carry the token.
    NoToken(&'static str),
}

/// Whether somebody asks who looks at pages: a program is told in its own language what is wrong.
pub fn wants_page(request: &Request<'_, '_>) -> bool {
    request.field("accept").is_some_and(|accept| memchr::memmem::find(accept, b"text/html").is_some())
}

/// Whether a resource does not exist for those who come in at this door.
pub fn is_hidden(own: Own, door: Door, endpoint: ReloadEndpoint) -> bool {
    own == Own::Reload && door == Door::Data && endpoint == ReloadEndpoint::Off
}

/// Whether a request may administer.
pub fn judge(
    own: Own,
    request: &Request<'_, '_>,
    from: From,
    admin: &Admin,
    endpoint: ReloadEndpoint,
) -> Result<(), Denial> {
    let is_reload = own == Own::Reload && from.door == Door::Data;
    if is_reload && endpoint == ReloadEndpoint::Any {
        return no_other_site(request, from, admin);
    }
    if from.door == Door::Data && admin.listen.is_some() && !is_reload {
        // Its address is not told: whoever asks may be anybody.
        return Err(Denial::Forbidden("administration has an address of its own, gateway.admin.listen"));
    }
    let Some(token) = &admin.token else {
        local_only(request, from, admin)?;
        return no_other_site(request, from, admin);
    };
    no_other_site(request, from, admin)?;
    match bearer(request) {
        None => Err(Denial::NoToken("administration needs a token: Authorization: Bearer TOKEN")),
        Some(given) if token.is(given) => Ok(()),
        Some(_) => Err(Denial::NoToken("the token is not the right one")),
    }
}

fn local_only(request: &Request<'_, '_>, from: From, admin: &Admin) -> Result<(), Denial> {
    if !from.peer.to_canonical().is_loopback() {
        return Err(Denial::Forbidden("administration is open to this machine only"));
    }
    if request.kinds.iter().any(|kind| matches!(kind, Field::Forwarding | Field::Via)) {
        return Err(Denial::Forbidden("administration is not open to forwarded requests"));
    }
    let is_own = |host: &[u8]| from.door == Door::Socket || is_own_host(host, from.local, admin);
    if !request.host.is_some_and(is_own) {
        return Err(Denial::Forbidden("the Host is not the gateway's own"));
    }
    Ok(())
}

fn no_other_site(request: &Request<'_, '_>, from: From, admin: &Admin) -> Result<(), Denial> {
    let values = |name: &'static str| {
        let named = request.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value)
    };
    if values("sec-fetch-site").any(|site| site.eq_ignore_ascii_case(b"cross-site")) {
        return Err(Denial::Forbidden("administration is not open to other sites"));
    }
    let origin_is_own = |origin: &[u8]| {
        let host = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        host.is_some_and(|host| is_own_host(host, from.local, admin))
    };
    if !values("origin").all(origin_is_own) {
        return Err(Denial::Forbidden("administration is not open to other origins"));
    }
    Ok(())
}

/// The token that a request carries (RFC 6750 section 2.1); none when it carries several.
fn bearer<'b>(request: &Request<'_, 'b>) -> Option<&'b [u8]> {
    let mut all = request.fields.iter().filter(|field| field.name.eq_ignore_ascii_case("authorization"));
    let (Some(field), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = field.value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whether a host, with any port, is `localhost`, the address that the connection came to, or a name of the
/// configuration.
fn is_own_host(host: &[u8], local: Option<SocketAddr>, admin: &Admin) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost")
        || admin.hosts.iter().any(|known| name.eq_ignore_ascii_case(known))
        || name.parse::<IpAddr>().is_ok_and(|ip| local.is_some_and(|l| l.ip().to_canonical() == ip.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::token::Token;
    use crate::http::head::Limits;
    use crate::http::request::Storage;

    fn judged(fields: &str, peer: &str) -> Option<Denial> {
        judged_by(&Admin::default(), fields, peer)
    }

    fn judged_by(admin: &Admin, fields: &str, peer: &str) -> Option<Denial> {
        let bytes = format!("POST /v1/reload-config HTTP/1.1\r\n{fields}\r\n");
        let mut storage = Storage::new();
        let limits = Limits { request_line: 8192, header_bytes: 8192, headers: 100 };
        let request = Request::parse(bytes.as_bytes(), &limits, &mut storage).unwrap().unwrap();
        let local = Some("127.0.0.1:8000".parse().unwrap());
        let from = From { peer: peer.parse().unwrap(), door: Door::Data, local };
        judge(Own::Reload, &request, from, admin, ReloadEndpoint::Loopback).err()
    }

    #[test]
    fn a_token_opens_to_everybody_but_other_sites() {
        let token = Token::parse(b"0123456789abcdef").unwrap();
        let admin = Admin { token: Some(token), hosts: vec!["gate.example".to_owned()], ..Admin::default() };
        let with = |fields: &str| {
            judged_by(
                &admin,
                &format!("Host: a.example\r\nAuthorization: bEARER 0123456789abcdef\r\n{fields}"),
                "10.0.0.1",
            )
        };
        for fields in ["", "X-Forwarded-For: 1.2.3.4\r\n", "Via: 1.1 a\r\n", "Origin: https://Gate.example:8443\r\n"] {
            assert_eq!(with(fields), None, "{fields}");
        }
        for fields in ["Origin: http://a.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
            assert!(matches!(with(fields), Some(Denial::Forbidden(_))), "{fields}");
        }
        assert!(matches!(with("Authorization: Bearer 0123456789abcdef\r\n"), Some(Denial::NoToken(_))), "two of them");
        for fields in
            ["", "Authorization: Bearer 0123456789abcdeg\r\n", "Authorization: Basic MDEy\r\n", "Authorization: B\r\n"]
        {
            let fields = format!("Host: localhost\r\n{fields}");
            assert!(matches!(judged_by(&admin, &fields, "127.0.0.1"), Some(Denial::NoToken(_))), "{fields}");
        }
    }

    #[test]
    fn names_of_the_configuration_are_own() {
        let admin = Admin { hosts: vec!["gate.example".to_owned()], ..Admin::default() };
        let fields = "Host: GATE.example:80\r\nOrigin: https://gate.example\r\n";
        assert_eq!(judged_by(&admin, fields, "127.0.0.1"), None);
        assert!(judged_by(&admin, "Host: gate.example.evil\r\n", "127.0.0.1").is_some());
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

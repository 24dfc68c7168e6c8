//! Upstream URLs, `Host` values and addresses to listen on, from text.
//!
//! RFC 3986, narrowed to what a gateway can use: a base path that ends in nothing surprising, a host that
//! is a name or a literal address. Names are not resolved here.
//!
//! Must not know: YAML, positions, sockets.

use super::diagnostics::{Fault, quote};
use super::model::UpstreamUrl;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `http://host[:port][/path]`.
pub(super) fn upstream(text: &str) -> Result<UpstreamUrl, Fault> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(no_scheme(text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        "https" => return Err(Fault::new("https is not supported yet").help("use http:// for now")),
        _ => {
            return Err(
                Fault::new(format!("scheme {} is not supported", quote(scheme))).help("write it as http://host:port")
            );
        }
    }
    if let Some(at) = rest.find(['?', '#']) {
        let what = if rest[at..].starts_with('?') { "a query" } else { "a fragment" };
        return Err(Fault::new(format!("an upstream URL cannot have {what}")));
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Fault::new("an upstream URL cannot have a user name or password"));
    }
    let (host, port) = host_port(authority)?;
    check_path(path)?;
    let port = port.unwrap_or(80);
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let authority = if port == 80 { bracketed } else { format!("{bracketed}:{port}") };
    let path = if path.is_empty() { "/" } else { path };
    Ok(UpstreamUrl { text: text.to_owned(), host, port, authority, path: path.to_owned() })
}

/// Proposes the text with a scheme in front, if that would do. A password is not repeated.
fn no_scheme(text: &str) -> Fault {
    if text.contains('@') {
        return Fault::new("the upstream has no scheme").help("write it as http://host:port");
    }
    let proposal = format!("http://{}", text.trim_start_matches("http:").trim_start_matches('/'));
    let fault = Fault::new(format!("upstream {} has no scheme", quote(text)));
    match upstream(&proposal) {
        Ok(_) => fault.help(format!("write {}", quote(&proposal))),
        Err(_) => fault.help("write it as http://host:port"),
    }
}

/// A `Host` value: host in lower case and without brackets, and the port if there is one.
pub(super) fn host_port(text: &str) -> Result<(String, Option<u16>), Fault> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inside) => {
            let (literal, behind) =
                inside.split_once(']').ok_or_else(|| Fault::new(format!("{} has no \"]\"", quote(text))))?;
            (ipv6(literal)?.to_string(), behind)
        }
        None => {
            let (name, behind) = text.split_at(text.find(':').unwrap_or(text.len()));
            if behind.rfind(':') > Some(0) {
                let fault = Fault::new(format!("{} is not a host and a port", quote(text)));
                return Err(fault.help("an IPv6 address stands in brackets: [::1]:8000"));
            }
            check_name(name)?;
            (name.to_ascii_lowercase(), behind)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) => Some(port_number(digits)?),
        None if port.is_empty() => None,
        None => return Err(Fault::new(format!("{} is not a port", quote(port)))),
    };
    match port {
        Some(0) => Err(Fault::new("port 0 cannot be connected to")),
        _ => Ok((host, port)),
    }
}

/// `127.0.0.1:8000`, `[::1]:8000`, `localhost:8000`, `:8000` (every IPv4 address). Port 0 lets the system choose.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Fault> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let fault = Fault::new(format!("{} is a port without an address", quote(text)));
        return Err(fault.help(format!("write \"127.0.0.1:{text}\", or \":{text}\" for every address")));
    }
    if text.parse::<IpAddr>().is_ok() {
        let example = if text.contains(':') { format!("[{text}]:8000") } else { format!("{text}:8000") };
        return Err(Fault::new(format!("{} has no port", quote(text))).help(format!("write {}", quote(&example))));
    }
    let not_one = || {
        let fault = Fault::new(format!("{} is not an address to listen on", quote(text)));
        fault.help("write an IP address and a port: 127.0.0.1:8000, [::1]:8000, :8000")
    };
    let (host, digits) = text.rsplit_once(':').ok_or_else(not_one)?;
    let address = match host {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(literal) => IpAddr::V6(literal.parse().map_err(|_| not_one())?),
            None => IpAddr::V4(host.parse().map_err(|_| not_one())?),
        },
    };
    Ok(SocketAddr::new(address, port_number(digits)?))
}

fn port_number(digits: &str) -> Result<u16, Fault> {
    let decimal = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number = decimal.then(|| digits.parse().ok()).flatten();
    number.ok_or_else(|| Fault::new(format!("{} is not a port: it must be from 1 to 65535", quote(digits))))
}

fn ipv6(literal: &str) -> Result<Ipv6Addr, Fault> {
    literal.parse().map_err(|_| {
        let fault = Fault::new(format!("{} is not an IPv6 address", quote(literal)));
        if literal.contains('%') { fault.help("a zone is not supported") } else { fault }
    })
}

/// A DNS name or an IPv4 address. Underscores are no part of a host name by RFC 1123, but containers are
/// named with them.
fn check_name(name: &str) -> Result<(), Fault> {
    let fault = || Fault::new(format!("{} is not a host name", quote(name)));
    if name.is_empty() {
        return Err(Fault::new("the host is missing"));
    }
    if !name.is_ascii() {
        return Err(fault().help("write an international name in its ASCII form (xn--…)"));
    }
    let whole = name.strip_suffix('.').unwrap_or(name);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if whole.len() > 253 || !whole.split('.').all(label) {
        return Err(fault());
    }
    // No top-level domain is a number, so this was meant as an address; `inet_aton` would read 1.2 as 1.0.0.2.
    let numeric = whole.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if numeric && name.parse::<Ipv4Addr>().is_err() {
        return Err(Fault::new(format!("{} is not an IPv4 address", quote(name))));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), Fault> {
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        let fine = match b {
            b'%' => [rest.next(), rest.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit())),
            _ => b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&b),
        };
        if !fine {
            let fault = Fault::new(format!("{} is not a valid path", quote(path)));
            return Err(fault.help("what is not a letter, digit or one of -._~!$&'()*+,;=:@/ is written as %XX"));
        }
    }
    if decoded(path).split(['/', '\\']).any(|segment| matches!(segment.split(';').next(), Some("." | ".."))) {
        return Err(Fault::new("an upstream URL cannot have \".\" or \"..\" as a path segment"));
    }
    Ok(())
}

/// `path` with the escapes undone that could hide a dot segment.
fn decoded(path: &str) -> String {
    let mut out = path.to_ascii_lowercase();
    for (escape, plain) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%3b", ";")] {
        out = out.replace(escape, plain);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T>(result: Result<T, Fault>) -> String {
        let Err(fault) = result else { return "accepted".to_owned() };
        fault.help.map_or(fault.message.clone(), |help| format!("{} | {help}", fault.message))
    }

    #[test]
    fn upstream_urls() {
        for (text, host, port, authority, path) in [
            ("http://localhost:9001", "localhost", 9001, "localhost:9001", "/"),
            ("HTTP://A.Example./x/%20y/", "a.example.", 80, "a.example.", "/x/%20y/"),
            ("http://a:80/", "a", 80, "a", "/"),
            ("http://10.0.0.1", "10.0.0.1", 80, "10.0.0.1", "/"),
            ("http://[0:0::1]:65535/a", "::1", 65535, "[::1]:65535", "/a"),
            ("http://my_app-1/...;a/..b", "my_app-1", 80, "my_app-1", "/...;a/..b"),
        ] {
            let url = upstream(text).unwrap();
            assert_eq!(
                (url.host.as_str(), url.port, url.authority.as_str(), url.path.as_str()),
                (host, port, authority, path)
            );
            assert_eq!(url.text, text);
        }
        assert_eq!(upstream("http://[::1]").unwrap().authority, "[::1]");
        assert_eq!(upstream("http://A").unwrap().normalised(), upstream("http://a:80/").unwrap().normalised());
    }

    #[test]
    fn what_is_no_upstream_url() {
        for (text, expected) in [
            ("localhost:9001", "upstream \"localhost:9001\" has no scheme | write \"http://localhost:9001\""),
            ("http:/a", "upstream \"http:/a\" has no scheme | write \"http://a\""),
            ("", "upstream \"\" has no scheme | write it as http://host:port"),
            ("https://a", "https is not supported yet | use http:// for now"),
            ("ftp://a", "scheme \"ftp\" is not supported | write it as http://host:port"),
            ("http://", "the host is missing"),
            ("http://:80", "the host is missing"),
            ("http://u:p@a/", "an upstream URL cannot have a user name or password"),
            ("http://a?x", "an upstream URL cannot have a query"),
            ("http://a/#x", "an upstream URL cannot have a fragment"),
            ("http://a:0", "port 0 cannot be connected to"),
            ("http://a:", "\"\" is not a port: it must be from 1 to 65535"),
            ("http://a:65536", "\"65536\" is not a port: it must be from 1 to 65535"),
            ("http://a:+80", "\"+80\" is not a port: it must be from 1 to 65535"),
            ("http://::1", "\"::1\" is not a host and a port | an IPv6 address stands in brackets: [::1]:8000"),
            ("http://[::1", "\"[::1\" has no \"]\""),
            ("http://[::1]8", "\"8\" is not a port"),
            ("http://[fe80::1%eth0]", "\"fe80::1%eth0\" is not an IPv6 address | a zone is not supported"),
            ("http://a b/", "\"a b\" is not a host name"),
            ("http://-a", "\"-a\" is not a host name"),
            ("http://a..b", "\"a..b\" is not a host name"),
            ("http://ä", "\"ä\" is not a host name | write an international name in its ASCII form (xn--…)"),
            ("http://300.1.1.1", "\"300.1.1.1\" is not an IPv4 address"),
            ("http://1.2", "\"1.2\" is not an IPv4 address"),
            ("http://a/b/../c", "an upstream URL cannot have \".\" or \"..\" as a path segment"),
            ("http://a/.", "an upstream URL cannot have \".\" or \"..\" as a path segment"),
            ("http://a/%2E%2e;x/", "an upstream URL cannot have \".\" or \"..\" as a path segment"),
            ("http://a/b%2f..", "an upstream URL cannot have \".\" or \"..\" as a path segment"),
        ] {
            assert_eq!(message(upstream(text)), expected, "{text}");
        }
        for text in
            ["http://a/ b", "http://a/%", "http://a/%4", "http://a/%zz", "http://a/\\", "http://a/ä", "http://a/\n"]
        {
            assert!(message(upstream(text)).contains("is not a valid path"), "{text}");
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        for (text, address) in [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::1]:8000", "[::1]:8000"),
            ("localhost:8000", "127.0.0.1:8000"),
            (":8000", "0.0.0.0:8000"),
        ] {
            assert_eq!(listen(text).unwrap().to_string(), address);
        }
        for (text, expected) in [
            (
                "8000",
                "\"8000\" is a port without an address | write \"127.0.0.1:8000\", or \":8000\" for every address",
            ),
            ("127.0.0.1", "\"127.0.0.1\" has no port | write \"127.0.0.1:8000\""),
            ("::1", "\"::1\" has no port | write \"[::1]:8000\""),
            ("127.0.0.1:70000", "\"70000\" is not a port: it must be from 1 to 65535"),
        ] {
            assert_eq!(message(listen(text)), expected);
        }
        for text in ["", "a.example:80", "1.2.3:80", "[::1:80", "http://127.0.0.1:80", "[127.0.0.1]:80"] {
            assert!(message(listen(text)).contains("is not an address to listen on"), "{text}");
        }
    }
}

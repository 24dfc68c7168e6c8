//! Problem documents (RFC 9457) with their `Proxy-Status` (RFC 9209): how the gateway says what went wrong.
//!
//! Must not know: what went wrong; it is told in words.

use crate::http::render::{self, Answer, Persistence};
use crate::http::status;

/// What went wrong, for the client.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Of the response.
    pub status: u16,
    /// The cause in words; no internal address.
    pub detail: &'a str,
    /// The cause in a word, as metrics and the access log name it.
    pub reason: &'a str,
    /// The error of `Proxy-Status` (RFC 9209 section 2.3), when one fits.
    pub token: Option<&'static str>,
    /// The service that was asked for, when it is one of the configuration.
    pub service: Option<&'a str>,
    /// The request id.
    pub instance: &'a [u8],
    /// Seconds, for `Retry-After`.
    pub retry_after_s: Option<u64>,
    /// Methods, for `Allow`.
    pub allow: Option<&'static str>,
    /// For `WWW-Authenticate`.
    pub challenge: Option<&'static str>,
}

/// Writes the whole response.
pub fn render(out: &mut Vec<u8>, problem: &Problem<'_>, persistence: Persistence, to_head: bool, date: &[u8]) {
    let mut number = itoa::Buffer::new();
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":\"");
    push_escaped(&mut body, status::reason(problem.status).as_bytes());
    body.extend_from_slice(b"\",\"status\":");
    body.extend_from_slice(number.format(problem.status).as_bytes());
    member(&mut body, b"detail", problem.detail.as_bytes());
    member(&mut body, b"reason", problem.reason.as_bytes());
    member(&mut body, b"instance", problem.instance);
    if let Some(service) = problem.service {
        member(&mut body, b"service", service.as_bytes());
    }
    body.extend_from_slice(b"}\n");

    let mut extra = Vec::with_capacity(128);
    if let Some(token) = problem.token {
        for part in [b"Proxy-Status: fusegate; error=", token.as_bytes(), b"\r\n"] {
            extra.extend_from_slice(part);
        }
    }
    if let Some(seconds) = problem.retry_after_s {
        for part in [b"Retry-After: ", number.format(seconds).as_bytes(), b"\r\n"] {
            extra.extend_from_slice(part);
        }
    }
    if let Some(allow) = problem.allow {
        for part in [b"Allow: ", allow.as_bytes(), b"\r\n"] {
            extra.extend_from_slice(part);
        }
    }
    if let Some(challenge) = problem.challenge {
        for part in [b"WWW-Authenticate: ", challenge.as_bytes(), b"\r\n"] {
            extra.extend_from_slice(part);
        }
    }
    let head = Answer {
        status: problem.status,
        content_type: "application/problem+json",
        extra: &extra,
        date,
        persistence,
        to_head,
    };
    render::answer(out, &head, &body);
}

fn member(body: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [b",\"".as_slice(), name, b"\":\""] {
        body.extend_from_slice(part);
    }
    push_escaped(body, value);
    body.push(b'"');
}

/// The texts are our own or of a restricted alphabet; what is not plain ASCII would be a slip, and stays
/// valid JSON all the same.
fn push_escaped(body: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        match byte {
            b'"' | b'\\' => body.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => body.push(*byte),
            _ => body.push(b'?'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_valid_json_with_its_fields() {
        let problem = Problem {
            status: 503,
            detail: "no \"upstream\" is\navailable",
            reason: "circuit_open",
            token: Some("destination_unavailable"),
            service: Some("users"),
            instance: b"abc",
            retry_after_s: Some(7),
            allow: None,
            challenge: None,
        };
        let mut out = Vec::new();
        render(&mut out, &problem, Persistence::Close, false, b"now");
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(head.contains("\r\nProxy-Status: fusegate; error=destination_unavailable\r\nRetry-After: 7\r\n"));
        assert!(head.ends_with("\r\nConnection: close"));
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["detail"], "no \"upstream\" is?available");
        assert_eq!((json["status"].as_u64(), json["service"].as_str()), (Some(503), Some("users")));
    }
}

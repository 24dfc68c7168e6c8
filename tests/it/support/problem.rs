//! What every error answer of the gateway has in common: a problem document (RFC 9457) and, where
//! an attempt was made or refused, a `Proxy-Status` field (RFC 9209) with an error token.

use super::caller::Response;

/// Checks that `response` is a well-formed problem document with this status, and returns its detail.
#[track_caller]
pub(crate) fn assert_problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    let kind = response.field("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("application/problem+json"), "Content-Type is {kind:?}");
    let document = response.json();
    for member in ["type", "title", "detail", "instance"] {
        let value = document[member].as_str();
        assert!(value.is_some_and(|value| !value.is_empty()), "no {member} in {document}");
    }
    assert_eq!(document["status"], status, "status of {document}");
    let detail = document["detail"].as_str().unwrap_or_default();
    // an internal address is not the business of a client
    assert!(status < 500 || !detail.contains("127.0.0.1"), "the detail names an address: {detail}");
    detail.to_owned()
}

/// The same, and `Proxy-Status` says `error=token`.
#[track_caller]
pub(crate) fn assert_proxy_problem(response: &Response, status: u16, token: &str) -> String {
    let detail = assert_problem(response, status);
    let field = response.field("Proxy-Status").unwrap_or_default();
    let named = field.split(';').any(|part| part.trim() == format!("error={token}"));
    assert!(named, "Proxy-Status is {field:?}, not error={token}");
    detail
}

//! The status page as a file: who gets it, under which rules it runs in a browser, what it must not contain. What it
//! does in a browser is looked at by `scripts/check-page`.

use crate::support::problem::assert_problem;
use crate::support::{Gateway, Response};
use std::os::unix::fs::PermissionsExt as _;

#[track_caller]
fn ask(gateway: &Gateway, method: &str, fields: &str) -> Response {
    let mut caller = gateway.connect();
    caller.send(format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: 0\r\n\r\n"));
    caller.answer_to(method)
}

/// The nonce of the policy; all else of the policy is held to the letter.
#[track_caller]
fn nonce(page: &Response) -> String {
    let policy = page.field("Content-Security-Policy").unwrap();
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap().to_owned();
    let expected = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'"
    );
    assert_eq!(policy, expected);
    assert!(nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit()), "{nonce}");
    nonce
}

#[test]
fn it_is_one_file_under_strict_rules() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    let page = gateway.fetch("/");
    assert_eq!(page.status, 200);
    for (name, value) in [
        ("Content-Type", "text/html; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    ] {
        assert_eq!(page.field(name).as_deref(), Some(value), "{name}");
    }
    let (text, nonce) = (page.text(), nonce(&page));
    assert_eq!(text.matches(&format!(" nonce=\"{nonce}\"")).count(), 2, "its script and its style");
    assert_eq!((text.matches("<script").count(), text.matches("<style").count()), (1, 1));
    assert!(!text.contains("{nonce}") && !text.contains("innerHTML") && !text.contains(" style=\""));
    for host in text.split("http://").skip(1).chain(text.split("https://").skip(1)) {
        assert!(host.starts_with("www.w3.org/2000/svg") || host.starts_with("localhost:9001"), "{host:.40}");
    }
    assert_ne!(nonce, self::nonce(&gateway.fetch("/")), "each answer has its own");
    let head = ask(&gateway, "HEAD", "");
    assert_eq!((head.status, head.field("Content-Length")), (200, Some(text.len().to_string())));
    let refused = ask(&gateway, "POST", "");
    assert_eq!((refused.status, refused.field("Allow").as_deref()), (405, Some("GET, HEAD")));
}

#[test]
fn it_is_for_whom_administration_is() {
    let gateway = Gateway::start("s: [http://127.0.0.1:9]\n");
    for fields in ["X-Forwarded-For: 1.2.3.4\r\n", "Sec-Fetch-Site: cross-site\r\nAccept: text/html\r\n"] {
        assert_problem(&ask(&gateway, "GET", fields), 403);
    }
}

#[test]
fn it_can_ask_for_the_token() {
    let gateway = Gateway::placed("admin: { token_file: token }", "", |directory, text| {
        let path = directory.join("token");
        std::fs::write(&path, "correct-horse-battery\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(directory.join("config.yaml"), text).unwrap();
        "config.yaml"
    });
    let browser = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    let page = ask(&gateway, "GET", browser);
    assert_eq!((page.status, page.field("Content-Type").as_deref()), (401, Some("text/html; charset=utf-8")));
    assert_eq!(page.field("WWW-Authenticate").as_deref(), Some("Bearer realm=\"fusegate\""));
    assert!(page.text().contains(&format!("<script nonce=\"{}\">", nonce(&page))));
    assert_problem(&ask(&gateway, "GET", ""), 401);
    assert_problem(&ask(&gateway, "GET", &format!("{browser}Origin: https://evil.example\r\n")), 403);
    let given = format!("{browser}Authorization: Bearer correct-horse-battery\r\n");
    assert_eq!(ask(&gateway, "GET", &given).status, 200);
}

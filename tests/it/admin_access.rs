//! Who may administer the gateway and where: a listener of its own, a unix socket, a token, further names, and
//! `reload_endpoint`.

use crate::support::caller::{Caller, Response};
use crate::support::gateway::run;
use crate::support::problem::assert_problem;
use crate::support::{Gateway, Origin, service};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const TOKEN: &str = "correct-horse-battery";

fn ask_at(address: SocketAddr, method: &str, path: &str, fields: &str) -> Response {
    let mut caller = Caller::connect(address);
    caller.send(format!("{method} {path} HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n"));
    caller.answer_to(method)
}

#[track_caller]
fn ask(gateway: &Gateway, method: &str, path: &str, fields: &str) -> Response {
    ask_at(gateway.addr(), method, path, fields)
}

/// The address of administration, as the log tells it.
#[track_caller]
fn admin_address(gateway: &mut Gateway) -> SocketAddr {
    let line = gateway.wait_for_log("the address", |line| line.contains("administration on 127.0.0.1:"));
    line.split("administration on ").nth(1).unwrap().trim().parse().unwrap()
}

/// Writes the token beside the configuration, which is then `config.yaml`.
fn with_token(token: &'static str) -> impl FnOnce(&Path, &str) -> &'static str {
    move |directory, text| {
        write_token(directory, token);
        std::fs::write(directory.join("config.yaml"), text).unwrap();
        "config.yaml"
    }
}

fn write_token(directory: &Path, token: &str) {
    let path = directory.join("token");
    std::fs::write(&path, token).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn bearer(token: &str) -> String {
    format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n")
}

#[test]
fn a_listener_of_its_own_serves_administration_and_nothing_else() {
    let origin = Origin::hello("hello");
    let services = service("s", &[&origin.url()], "");
    let mut gateway = Gateway::with("admin: { listen: \"127.0.0.1:0\" }", &services);
    let admin = admin_address(&mut gateway);
    let own = format!("Host: {admin}\r\n");
    for path in ["/livez", "/readyz", "/v1/status"] {
        assert_eq!(ask_at(admin, "GET", path, &own).status, 200, "{path}");
    }
    assert_eq!(ask_at(admin, "POST", "/v1/reload-config", &own).status, 200);
    assert_eq!(ask_at(admin, "POST", "/v1/circuits/s/0/trip", &own).status, 200);
    assert_eq!(ask_at(admin, "POST", "/v1/circuits/s/0/reset", &own).status, 200);
    assert_problem(&ask_at(admin, "GET", "/v1/proxy/s/", &own), 404);
    assert_problem(&ask_at(admin, "GET", "/v1/status", "Host: evil.example\r\n"), 403);
    assert_problem(&ask_at(admin, "GET", "/v1/status", &format!("{own}X-Forwarded-For: 1.2.3.4\r\n")), 403);

    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello");
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.fetch(path).status, 200, "{path}");
    }
    let refused = gateway.fetch("/v1/status");
    assert_problem(&refused, 403);
    assert!(refused.text().contains("gateway.admin.listen"), "{}", refused.text());
    let local = "Host: localhost\r\n";
    assert_problem(&ask(&gateway, "POST", "/v1/circuits/s/0/trip", local), 403);
    assert_eq!(ask(&gateway, "POST", "/v1/reload-config", local).status, 200);
}

#[test]
fn the_listener_is_a_matter_of_the_start() {
    let gateway = Gateway::start(&service("s", &["http://127.0.0.1:9"], ""));
    let section = gateway.section().to_owned();
    gateway.rewrite_config(&format!("{section}  admin: {{ listen: \"127.0.0.1:0\" }}\n"));
    let refused = gateway.reload();
    assert_problem(&refused, 422);
    assert!(refused.text().contains("gateway.admin.listen cannot change"), "{}", refused.text());
    assert_eq!(gateway.generation(), 1);
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let text = "gateway:\n  admin:\n    listen: 0.0.0.0:0\n";
    std::fs::write(directory.path().join("config.yaml"), text).unwrap();
    let started = run(directory.path(), &[]);
    assert_eq!(started.code, Some(78), "{}", started.output);
    assert!(started.output.contains("config.yaml:3:13: error: "), "{}", started.output);
    assert_eq!(run(directory.path(), &["check"]).code, Some(1));
}

#[test]
fn a_token_opens_administration_to_whoever_knows_it() {
    let origin = Origin::hello("hello");
    let services = service("s", &[&origin.url()], "");
    let gateway = Gateway::placed("admin: { token_file: token }", &services, with_token("correct-horse-battery\n"));
    for fields in [
        "Host: localhost\r\n".to_owned(),
        bearer("correct-horse-batterx"),
        bearer("correct-horse-batter"),
        bearer("correct-horse-battery-staple"),
        "Host: localhost\r\nAuthorization: Basic Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5\r\n".to_owned(),
        format!("Host: localhost\r\nAuthorization: {TOKEN}\r\n"),
        format!("{}Authorization: Bearer {TOKEN}\r\n", bearer(TOKEN)),
    ] {
        for (method, path) in [("GET", "/v1/status"), ("POST", "/v1/reload-config"), ("POST", "/v1/circuits/s/0/trip")]
        {
            let refused = ask(&gateway, method, path, &fields);
            assert_problem(&refused, 401);
            assert_eq!(refused.field("WWW-Authenticate").as_deref(), Some("Bearer realm=\"fusegate\""), "{fields:?}");
        }
    }
    for more in ["", "X-Forwarded-For: 10.0.0.1\r\n", "Forwarded: for=1.2.3.4\r\n", "Via: 1.1 proxy\r\n"] {
        assert_eq!(ask(&gateway, "GET", "/v1/status", &(bearer(TOKEN) + more)).status, 200, "{more:?}");
    }
    let foreign = format!("Host: gate.example\r\nAuthorization: bearer {TOKEN}\r\n");
    assert_eq!(ask(&gateway, "GET", "/v1/status", &foreign).status, 200);
    for more in ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        assert_problem(&ask(&gateway, "GET", "/v1/status", &(bearer(TOKEN) + more)), 403);
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.fetch(path).status, 200, "{path}");
    }
    // What is proxied keeps its own.
    let fields = "Host: a\r\nAuthorization: Bearer of-the-user\r\n";
    assert_eq!(ask(&gateway, "GET", "/v1/proxy/s/", fields).text(), "hello");
    assert_eq!(origin.last().field("Authorization").as_deref(), Some("Bearer of-the-user"));
    for path in ["/v1/status", "/v1/config", "/metrics"] {
        let shown = ask(&gateway, "GET", path, &bearer(TOKEN));
        assert_eq!(shown.status, 200, "{path}");
        assert!(!shown.text().contains(TOKEN), "{path}");
    }
    assert!(gateway.log_lines(|line| line.contains(TOKEN)).is_empty());
}

#[test]
fn the_token_is_read_anew_at_a_reload() {
    let gateway = Gateway::placed("admin: { token_file: token }", "", with_token(TOKEN));
    write_token(gateway.directory(), "another-token-of-mine");
    assert_eq!(ask(&gateway, "POST", "/v1/reload-config", &bearer("another-token-of-mine")).status, 401);
    let reloaded = ask(&gateway, "POST", "/v1/reload-config", &bearer(TOKEN));
    assert_eq!(reloaded.json()["status"], "reloaded", "{}", reloaded.text());
    assert_problem(&ask(&gateway, "GET", "/v1/status", &bearer(TOKEN)), 401);
    assert_eq!(ask(&gateway, "GET", "/v1/status", &bearer("another-token-of-mine")).status, 200);
    for bad in ["", "short\n", "with a space in the middle"] {
        write_token(gateway.directory(), bad);
        let refused = ask(&gateway, "POST", "/v1/reload-config", &bearer("another-token-of-mine"));
        assert_problem(&refused, 422);
        assert!(refused.text().contains("token_file"), "{}", refused.text());
    }
    std::fs::remove_file(gateway.directory().join("token")).unwrap();
    assert_problem(&ask(&gateway, "POST", "/v1/reload-config", &bearer("another-token-of-mine")), 422);
    assert_eq!(ask(&gateway, "GET", "/v1/status", &bearer("another-token-of-mine")).status, 200, "it stays in force");
}

#[test]
fn a_token_that_cannot_be_used_is_an_error_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let text = "gateway:\n  listen: 127.0.0.1:0\n  admin: { token_file: token }\n";
    std::fs::write(directory.path().join("config.yaml"), text).unwrap();
    for token in [None, Some(""), Some("short"), Some("two words, which is one more")] {
        let _ = std::fs::remove_file(directory.path().join("token"));
        token.into_iter().for_each(|token| write_token(directory.path(), token));
        for (arguments, code) in [(&[][..], 78), (&["check"][..], 1)] {
            let ended = run(directory.path(), arguments);
            assert_eq!(ended.code, Some(code), "{token:?}: {}", ended.output);
            assert!(ended.output.contains("config.yaml:3:24: error: token_file \"token\": "), "{}", ended.output);
        }
    }
    write_token(directory.path(), TOKEN);
    let shown = run(directory.path(), &["check", "-T"]);
    assert_eq!(shown.code, Some(0), "{}", shown.output);
    assert!(shown.output.contains("token_file: token") && !shown.output.contains(TOKEN), "{}", shown.output);
    let path = directory.path().join("token");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let warned = run(directory.path(), &["check"]);
    assert_eq!(warned.code, Some(0));
    assert!(warned.output.contains("warning: token_file \"token\" can be read by every user"), "{}", warned.output);
}

#[test]
fn further_names_are_the_gateways_own() {
    let gateway = Gateway::with("admin: { hosts: [Gate.example] }", "");
    for fields in ["Host: gate.example\r\n", "Host: GATE.example:80\r\nOrigin: https://gate.example\r\n"] {
        assert_eq!(ask(&gateway, "GET", "/v1/status", fields).status, 200, "{fields}");
    }
    for fields in
        ["Host: gate.example.evil\r\n", "Host: other.example\r\n", "Host: gate.example\r\nOrigin: http://a\r\n"]
    {
        assert_problem(&ask(&gateway, "GET", "/v1/status", fields), 403);
    }
}

#[test]
fn reloads_on_the_data_port_are_for_whom_the_configuration_says() {
    let forwarded = "Host: gate.example\r\nX-Forwarded-For: 10.0.0.1\r\n";
    let open = Gateway::with("reload_endpoint: any\nadmin: { listen: \"127.0.0.1:0\" }", "");
    assert_eq!(ask(&open, "POST", "/v1/reload-config", forwarded).status, 200);
    assert_problem(&ask(&open, "GET", "/v1/reload-config", forwarded), 405);
    for more in ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        assert_problem(&ask(&open, "POST", "/v1/reload-config", &format!("{forwarded}{more}")), 403);
    }
    assert_problem(&ask(&open, "GET", "/v1/status", forwarded), 403);

    let mut shut = Gateway::with("reload_endpoint: off\nadmin: { listen: \"127.0.0.1:0\" }", "");
    let admin = admin_address(&mut shut);
    for method in ["POST", "GET"] {
        assert_problem(&ask(&shut, method, "/v1/reload-config", "Host: localhost\r\n"), 404);
    }
    assert_eq!(ask_at(admin, "POST", "/v1/reload-config", "Host: localhost\r\n").status, 200);

    let local = Gateway::start("");
    assert_problem(&ask(&local, "POST", "/v1/reload-config", forwarded), 403);
    let section = local.section().to_owned();
    local.rewrite_config(&format!("{section}  reload_endpoint: any\n"));
    assert_eq!(local.reload().status, 200);
    assert_eq!(ask(&local, "POST", "/v1/reload-config", forwarded).status, 200, "a reload changes it");
}

/// What curl's `--unix-socket` does.
fn ask_socket(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A gateway whose administration is on a socket in a directory of its own.
fn on_socket(prepare: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf, Gateway) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    prepare(&path);
    let origin = "http://127.0.0.1:9";
    let settings = format!("admin: {{ listen: \"unix:{}\" }}", path.display());
    let mut gateway = Gateway::with(&settings, &service("s", &[origin], ""));
    let expected = format!("administration on unix:{}", path.display());
    gateway.wait_for_log("the socket", |line| line.ends_with(&expected));
    (directory, path, gateway)
}

#[test]
fn a_unix_socket_serves_its_user_with_any_host() {
    let (_directory, path, mut gateway) = on_socket(|_| {});
    let metadata = path.symlink_metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    for host in ["localhost", "anything.example"] {
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = ask_socket(&path, &request);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\"name\":\"s\""), "{answer}");
    }
    let close = "Host: a\r\nConnection: close\r\n";
    let two = format!("GET /livez HTTP/1.1\r\nHost: a\r\n\r\nPOST /v1/circuits/s/0/trip HTTP/1.1\r\n{close}\r\n");
    assert_eq!(ask_socket(&path, &two).matches("HTTP/1.1 200 ").count(), 2);
    let proxied = ask_socket(&path, &format!("GET /v1/proxy/s/ HTTP/1.1\r\n{close}\r\n"));
    assert!(proxied.starts_with("HTTP/1.1 404 "), "{proxied}");
    let forwarded = format!("GET /v1/status HTTP/1.1\r\n{close}X-Forwarded-For: 1.2.3.4\r\n\r\n");
    assert!(ask_socket(&path, &forwarded).starts_with("HTTP/1.1 403 "));
    assert_problem(&gateway.fetch("/v1/status"), 403);
    gateway.signal("TERM");
    assert!(gateway.wait_exit().success());
    assert!(path.symlink_metadata().is_err(), "the file goes with the gateway");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let (_directory, path, gateway) = on_socket(|path| drop(UnixListener::bind(path).unwrap()));
    let answer = ask_socket(&path, "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(gateway);
}

#[test]
fn what_else_stands_in_the_place_of_the_socket_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let text = format!("gateway:\n  listen: 127.0.0.1:0\n  admin: {{ listen: \"unix:{}\" }}\n", path.display());
    std::fs::write(directory.path().join("config.yaml"), text).unwrap();

    std::fs::write(&path, "precious").unwrap();
    let ended = run(directory.path(), &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    assert!(ended.output.contains("what is there is no socket, and stays"), "{}", ended.output);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let ended = run(directory.path(), &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    assert!(ended.output.contains("somebody listens there already"), "{}", ended.output);
    drop(UnixStream::connect(&path).expect("the other one still listens"));
    drop(listener);
}

//! The gateway's own routes: liveness and readiness for everybody, administration for local
//! operators only, never for a browser that another site sends.

use crate::support::caller::Response;
use crate::support::problem::assert_problem;
use crate::support::{Gateway, Origin, service};

fn setting() -> (Origin, Gateway) {
    let origin = Origin::hello("hello");
    let gateway = Gateway::start(&service("user-service", &[&origin.url()], ""));
    (origin, gateway)
}

#[track_caller]
fn ask(gateway: &Gateway, method: &str, path: &str, fields: &str) -> Response {
    let mut caller = gateway.connect();
    caller.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\n"));
    caller.answer_to(method)
}

#[test]
fn livez_and_readyz_answer_everybody() {
    let (_origin, gateway) = setting();
    for path in ["/livez", "/readyz"] {
        for fields in [
            "Host: localhost\r\n",
            "Host: evil.example\r\n",
            "Host: a\r\nOrigin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n",
            "Host: a\r\nX-Forwarded-For: 6.6.6.6\r\n",
        ] {
            let get = ask(&gateway, "GET", path, fields);
            assert_eq!(get.status, 200, "{path} {fields:?}");
            let head = ask(&gateway, "HEAD", path, fields);
            assert_eq!((head.status, head.body.len()), (200, 0));
            assert!(!get.text().contains("user-service"), "it tells nothing but the status");
        }
    }
}

#[test]
fn the_configuration_in_force_is_shown() {
    let gateway = Gateway::with("client: {header_timeout: 7s}", &service("s", &["http://127.0.0.1:9/base"], ""));
    gateway.rewrite_services("s: [nonsense]\n");
    assert_eq!(gateway.reload().status, 422);
    let answer = gateway.fetch("/v1/config");
    assert_eq!((answer.status, answer.field("Content-Type").as_deref()), (200, Some("application/json")));
    let shown = answer.json();
    assert_eq!((&shown["generation"], &shown["file"]), (&1.into(), &"config.yaml".into()));
    let config = &shown["config"];
    assert_eq!(config["gateway"]["client"]["header_timeout"], "7s");
    assert_eq!(config["services"][0]["upstreams"][0]["url"], "http://127.0.0.1:9/base");
    assert_eq!(config["services"][0]["upstreams"][0]["circuit_breaker"]["failure_threshold"], 5);
    gateway.rewrite_services("t: [http://127.0.0.1:9]\n");
    assert_eq!(gateway.reload().status, 200);
    let shown = gateway.fetch("/v1/config").json();
    assert_eq!((&shown["generation"], &shown["config"]["services"][0]["name"]), (&2.into(), &"t".into()));
    assert_problem(&ask(&gateway, "GET", "/v1/config", "Host: a\r\nX-Forwarded-For: 6.6.6.6\r\n"), 403);
}

#[test]
fn readiness_does_not_depend_on_upstreams() {
    let gateway = Gateway::start("s:\n  - http://127.0.0.1:9\n");
    for _ in 0..6 {
        gateway.fetch("/v1/proxy/s/");
    }
    assert_eq!(gateway.fetch("/readyz").status, 200);
}

#[test]
fn status_lists_services_and_upstreams_in_order() {
    let (a, b) = (Origin::hello("a"), Origin::hello("b"));
    let text = [service("one", &[&a.url(), &b.url()], ""), service("two", &[&b.url()], "")];
    let gateway = Gateway::start(&text.concat());
    let response = gateway.fetch("/v1/status");
    assert_eq!(response.status, 200);
    assert!(response.field("Content-Type").is_some_and(|kind| kind.starts_with("application/json")));
    let document = response.json();
    assert!(document["generation"].is_u64(), "{document}");
    let services = document["services"].as_array().unwrap();
    let names: Vec<&str> = services.iter().filter_map(|service| service["name"].as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    let urls: Vec<&str> =
        services[0]["upstreams"].as_array().unwrap().iter().filter_map(|upstream| upstream["url"].as_str()).collect();
    assert_eq!(urls, [a.url(), b.url()]);
    for service in services {
        for upstream in service["upstreams"].as_array().unwrap() {
            assert_eq!(upstream["state"], "closed");
            assert_eq!(upstream["failures_in_row"], 0);
        }
    }
}

#[test]
fn administration_answers_local_operators() {
    let (_origin, gateway) = setting();
    let own = gateway.addr();
    for fields in [
        "Host: localhost\r\n".to_owned(),
        "Host: LOCALHOST:1\r\n".to_owned(),
        "Host: 127.0.0.1\r\n".to_owned(),
        format!("Host: {own}\r\n"),
        "Host: 127.0.0.1:1\r\n".to_owned(),
        format!("Host: {own}\r\nOrigin: http://{own}\r\n"),
        format!("Host: {own}\r\nSec-Fetch-Site: same-origin\r\n"),
        format!("Host: {own}\r\nSec-Fetch-Site: none\r\n"),
    ] {
        assert_eq!(ask(&gateway, "GET", "/v1/status", &fields).status, 200, "{fields:?}");
        let fields = format!("{fields}Content-Length: 0\r\n");
        assert_eq!(ask(&gateway, "POST", "/v1/reload-config", &fields).status, 200, "{fields:?}");
    }
}

#[test]
fn administration_refuses_forwarded_and_cross_site_requests() {
    let (origin, gateway) = setting();
    let own = gateway.addr();
    let generation = gateway.generation();
    gateway.rewrite_services(&service("other", &[&origin.url()], ""));
    for fields in [
        format!("Host: {own}\r\nX-Forwarded-For: 10.0.0.1\r\n"),
        format!("Host: {own}\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        format!("Host: {own}\r\nForwarded: for=127.0.0.1\r\n"),
        format!("Host: {own}\r\nOrigin: https://evil.example\r\n"),
        format!("Host: {own}\r\nOrigin: http://127.0.0.1.evil.example\r\n"),
        format!("Host: {own}\r\nOrigin: null\r\n"),
        format!("Host: {own}\r\nSec-Fetch-Site: cross-site\r\n"),
        "Host: evil.example\r\n".to_owned(),
        format!("Host: evil.example:{}\r\n", own.port()),
        "Host: 127.0.0.1.evil.example\r\n".to_owned(),
        "Host: 10.0.0.1\r\n".to_owned(),
        "Host: localhost.evil.example\r\n".to_owned(),
    ] {
        assert_problem(&ask(&gateway, "GET", "/v1/status", &fields), 403);
        let fields = format!("{fields}Content-Length: 0\r\n");
        assert_problem(&ask(&gateway, "POST", "/v1/reload-config", &fields), 403);
    }
    assert_eq!(gateway.generation(), generation, "no refused reload was carried out");
    assert_eq!(gateway.fetch("/v1/proxy/user-service/").status, 200);
}

#[test]
fn proxied_requests_are_no_administration() {
    let (_origin, gateway) = setting();
    let fields = "Host: shop.example\r\nOrigin: https://other.example\r\nSec-Fetch-Site: cross-site\r\nX-Forwarded-For: 1.2.3.4\r\n";
    assert_eq!(ask(&gateway, "GET", "/v1/proxy/user-service/", fields).text(), "hello");
}

#[test]
fn a_paths_spelling_does_not_open_administration() {
    let (_origin, gateway) = setting();
    let fields = "Host: evil.example\r\n";
    for path in [
        "/v1/status",
        "/v1/status?x",
        "/v1/%73tatus",
        "//v1/status",
        "/v1//status",
        "/v1/status/",
        "/V1/status",
        "/v1/./status",
    ] {
        let status = ask(&gateway, "GET", path, fields).status;
        assert!(status == 403 || status == 404, "{path}: {status}");
    }
}

#[test]
fn administration_shares_a_kept_connection() {
    let (_origin, gateway) = setting();
    let mut caller = gateway.connect();
    for _ in 0..5 {
        assert_eq!(caller.get("/v1/status").status, 200);
        assert_eq!(caller.get("/v1/proxy/user-service/").text(), "hello");
        assert_eq!(caller.post("/v1/reload-config", "").status, 200);
        assert_eq!(caller.get("/readyz").status, 200);
    }
}

//! `docs/openapi.yaml` against the running program, both ways: each answer is described there (status, media type,
//! schema of its body), each method that is not described there is refused, and each answer that is described there
//! has been had.

use crate::events::Subscription;
use crate::support::caller::Caller;
use crate::support::{Gateway, Origin, RefusedPort, Response, ok, service, wait_until};
use fusegate::http::target::Own;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

/// Answers of the file that other tests have, because they take more than a request.
const ELSEWHERE: [(&str, &str, &str); 5] = [
    // process: readiness while it drains.
    ("get", "/readyz", "503"),
    ("head", "/readyz", "503"),
    // events: one subscriber too many.
    ("get", "/v1/events", "503"),
    // reload: one while another is under way, and a shard that does not switch.
    ("post", "/v1/reload-config", "409"),
    ("post", "/v1/reload-config", "500"),
];

/// The file, and what of it was seen.
struct Document {
    root: Value,
    seen: RefCell<BTreeSet<(String, String, String)>>,
}

impl Document {
    fn read() -> Document {
        let text = include_str!("../../docs/openapi.yaml");
        Document { root: serde_yaml::from_str(text).unwrap(), seen: RefCell::default() }
    }

    /// What a `$ref` points at, or the value itself.
    #[track_caller]
    fn follow<'d>(&'d self, value: &'d Value) -> &'d Value {
        match value["$ref"].as_str() {
            Some(name) => {
                self.root.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{name} is nowhere"))
            }
            None => value,
        }
    }

    fn paths(&self) -> &Map<String, Value> {
        self.root["paths"].as_object().unwrap()
    }

    /// The methods of a path.
    fn methods<'d>(&self, path: &'d Value) -> BTreeSet<&'d str> {
        let all = path.as_object().unwrap().keys().map(String::as_str);
        all.filter(|key| !["parameters", "description"].contains(key)).collect()
    }

    /// Every method, path and status.
    fn answers(&self) -> BTreeSet<(String, String, String)> {
        let mut all = BTreeSet::new();
        for (path, item) in self.paths() {
            for method in self.methods(item) {
                for status in
                    item[method]["responses"].as_object().unwrap().keys().filter(|status| *status != "default")
                {
                    all.insert((method.to_owned(), path.clone(), status.clone()));
                }
            }
        }
        all
    }

    /// The body is what the schema of this name says.
    #[track_caller]
    fn judge(&self, name: &str, body: &Value) {
        let schema = json!({"$ref": format!("#/components/schemas/{name}"), "components": self.root["components"]});
        self.judge_by(&schema, body);
    }

    #[track_caller]
    fn judge_by(&self, schema: &Value, body: &Value) {
        let mut schema = schema.clone();
        schema["components"] = self.root["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(body).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}\nin {body}", errors.join("\n"));
    }

    /// The answer is described, as one of the gateway's own.
    #[track_caller]
    fn has(&self, path: &str, method: &str, answer: &Response) {
        let what = format!("{method} {path}: {}", answer.status);
        let status = answer.status.to_string();
        let described = self.follow(&self.root["paths"][path][method.to_lowercase()]["responses"][&status]);
        assert!(described["description"].is_string(), "{what} is not in the file: {}", answer.text());
        self.seen.borrow_mut().insert((method.to_lowercase(), path.to_owned(), status));
        for (name, _) in described["headers"].as_object().into_iter().flatten() {
            assert!(answer.field(name).is_some(), "{what} has no {name}");
        }
        if method == "HEAD" {
            return;
        }
        let kind = answer.field("Content-Type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let schema = &described["content"][kind]["schema"];
        assert!(schema.is_object(), "{what} is {kind}, which is not in the file");
        if kind.ends_with("json") {
            self.judge_by(schema, &answer.json());
        }
    }
}

/// A request; the body has its length.
fn ask(gateway: &Gateway, method: &str, path: &str, fields: &str, body: &str) -> Response {
    let mut caller = gateway.connect();
    let host = if fields.contains("Host:") { String::new() } else { "Host: localhost\r\n".to_owned() };
    let length = body.len();
    caller.send(format!("{method} {path} HTTP/1.1\r\n{host}{fields}Content-Length: {length}\r\n\r\n{body}"));
    caller.answer_to(method)
}

/// Where a path with names in it can be asked for.
fn example(path: &str) -> String {
    path.replace("{service}", "s").replace("{index}", "0").replace("{rest}", "a/b")
}

const REFUSED: &str = "X-Forwarded-For: 192.0.2.1\r\n";

/// An answer of an operation of administration; of a stream the head alone.
#[track_caller]
fn answer_of(gateway: &Gateway, document: &Document, method: &str, path: &str, fields: &str) {
    if (method, path) == ("GET", "/v1/events") && !fields.contains("X-F") {
        drop(Subscription::open(gateway, "", ""));
        document.seen.borrow_mut().insert(("get".to_owned(), path.to_owned(), "200".to_owned()));
        return;
    }
    document.has(path, method, &ask(gateway, method, &example(path), fields, ""));
}

#[test]
fn it_describes_what_the_gateway_does() {
    let document = Document::read();
    let origin = Origin::answering(|_| ok("hello"));
    let (refused, silent) = (RefusedPort::new(), Origin::start(|conn| while conn.request().is_some() {}));
    let services = [
        service("s", &[&origin.url()], "body_limit: 10B"),
        service("down", &[&refused.url()], "circuit_breaker: {enabled: false}"),
        service("silent", &[&silent.url()], "timeouts: {response: 50ms}\ncircuit_breaker: {enabled: false}"),
        service("open", &[&origin.url()], ""),
    ];
    let gateway = Gateway::start(&services.concat());
    let own: BTreeSet<&str> = Own::ALL.into_iter().map(Own::path).collect();
    let is_proxied = |path: &str| path.starts_with("/v1/proxy/");
    let described: BTreeSet<&str> =
        document.paths().keys().map(String::as_str).filter(|path| !is_proxied(path)).collect();
    assert_eq!(described, own, "every resource is in the file, and no other");

    for own in Own::ALL {
        let path = own.path();
        let methods = document.methods(&document.root["paths"][path]);
        let allowed: BTreeSet<String> = own.allow().split(", ").map(str::to_lowercase).collect();
        assert_eq!(methods, allowed.iter().map(String::as_str).collect(), "{path}");
        let other = ask(&gateway, "DELETE", &example(path), "", "");
        assert_eq!((other.status, other.field("Allow").as_deref()), (405, Some(own.allow())), "{path}");
        document.judge("Problem", &other.json());
        for method in own.allow().split(", ") {
            answer_of(&gateway, &document, method, path, "");
            if own.is_administration() {
                answer_of(&gateway, &document, method, path, REFUSED);
            }
        }
        if matches!(own, Own::Trip | Own::Reset) {
            let moved = |service: &str, body: &str| {
                document.has(path, "POST", &ask(&gateway, "POST", &example(path).replace("/s/", service), "", body));
            };
            moved("/s/", "nonsense");
            moved("/nobody/", "");
            moved("/s/", &" ".repeat(5000));
        }
    }
    let open = ask(&gateway, "GET", "/metrics", "Accept: application/openmetrics-text\r\n", "");
    document.has("/metrics", "GET", &open);
    proxied(&gateway, &origin, &document);

    gateway.rewrite_services("s: [nonsense]\n");
    document.has("/v1/reload-config", "POST", &gateway.reload());
    let hidden = Gateway::with("reload_endpoint: off", "");
    document.has("/v1/reload-config", "POST", &hidden.reload());
    with_a_token(&document);

    let elsewhere = ELSEWHERE.map(|(method, path, status)| (method.to_owned(), path.to_owned(), status.to_owned()));
    let (answers, seen) = (document.answers(), document.seen.into_inner());
    let unseen: Vec<_> = answers.into_iter().filter(|one| !seen.contains(one) && !elsewhere.contains(one)).collect();
    assert!(unseen.is_empty(), "in the file, and nobody has seen it: {unseen:?}");
}

/// What the gateway answers in the place of an upstream, and that it passes each method on.
fn proxied(gateway: &Gateway, origin: &Origin, document: &Document) {
    assert_eq!(ask(gateway, "POST", "/v1/circuits/open/0/trip", "", "").status, 200);
    for template in ["/v1/proxy/{service}", "/v1/proxy/{service}/{rest}"] {
        for method in document.methods(&document.root["paths"][template]) {
            let method = method.to_uppercase();
            let path = example(template);
            assert_eq!(ask(gateway, &method, &path, "", "").status, 200, "{method} {path}");
            assert_eq!(origin.last().method(), method);
            let via = origin.last().field("Via").unwrap();
            let to = |service: &str| template.replace("{service}", service).replace("{rest}", "a");
            let has = |path: &str, fields: &str, body: &str, status: u16| {
                let answer = ask(gateway, &method, path, fields, body);
                assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
                document.has(template, &method, &answer);
            };
            has(&to("nobody"), "", "", 404);
            has(&to("down"), "", "", 502);
            has(&to("silent"), "", "", 504);
            has(&to("open"), "", "", 503);
            has(&path, &format!("Via: {via}\r\n"), "", 508);
            has(&path, "", &"x".repeat(11), 413);
            // A path that leaves its upstream; without a rest, a target that cannot be read.
            if template.ends_with("{rest}") {
                has("/v1/proxy/s/..", "", "", 400);
            } else {
                has("/v1/proxy/s%", "", "", 400);
            }
        }
    }
}

/// What those get who do not have the token.
fn with_a_token(document: &Document) {
    let gateway = Gateway::placed("admin: { token_file: token }", "s: [http://127.0.0.1:9]\n", |directory, text| {
        let path = directory.join("token");
        std::fs::write(&path, "correct-horse-battery\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(directory.join("config.yaml"), text).unwrap();
        "config.yaml"
    });
    for own in Own::ALL.into_iter().filter(|own| own.is_administration()) {
        for method in own.allow().split(", ") {
            let answer = ask(&gateway, method, &example(own.path()), "", "");
            assert_eq!(answer.status, 401, "{}", own.path());
            document.has(own.path(), method, &answer);
        }
    }
    let page = ask(&gateway, "GET", "/", "Accept: text/html\r\n", "");
    assert_eq!(page.status, 401);
    document.has("/", "GET", &page);
}

#[test]
fn it_describes_every_event() {
    let document = Document::read();
    let origin = Origin::hello("hello");
    let check = "health_check: {path: /, interval: 50ms, healthy: 1}";
    let gateway = Gateway::start(&service("s", &[&origin.url()], check));
    wait_until("checks have a verdict", || {
        gateway.status()["services"][0]["upstreams"][0]["health"]["state"] == "healthy"
    });
    let mut caller = Caller::connect(gateway.addr());
    for action in ["trip", "reset"] {
        assert_eq!(caller.post(&format!("/v1/circuits/s/0/{action}"), "").status, 200);
        assert_eq!(caller.get("/livez").status, 200);
    }
    assert_eq!(gateway.reload().status, 200);
    gateway.rewrite_services("s: [nonsense]\n");
    assert_eq!(gateway.reload().status, 422);
    let mut events = Subscription::open(&gateway, "Last-Event-ID: 0\r\n", "");
    let mut left: BTreeSet<String> = document.root["components"]["schemas"]
        .as_object()
        .unwrap()
        .keys()
        .filter_map(|name| Some(name.strip_suffix("Event")?.to_lowercase()))
        .collect();
    assert_eq!(left.len(), 7);
    let mut reloads = 0;
    while !left.is_empty() || reloads < 2 {
        let event = events.any();
        let (first, rest) = event.kind.split_at(1);
        document.judge(&format!("{}{rest}Event", first.to_uppercase()), &event.data);
        left.remove(&event.kind);
        reloads += usize::from(event.kind == "reload");
    }
}

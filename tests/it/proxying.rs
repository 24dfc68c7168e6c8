//! What of a request and a response passes unchanged, what is added, and what is dropped: targets,
//! forwarding fields, hop-by-hop fields, `Host`, `Via`, `X-Request-Id`, `Date`.

use crate::support::problem::assert_problem;
use crate::support::{Caller, Gateway, Origin, ok, reply, service};

/// A gateway before one origin under the name `user-service`.
fn before(origin: &Origin) -> Gateway {
    Gateway::start(&service("user-service", &[&origin.url()], ""))
}

/// Sends a GET with these field lines and returns the client, which has read a 200.
#[track_caller]
fn get_with(gateway: &Gateway, fields: &str) -> Caller {
    let mut caller = gateway.connect();
    caller.send(format!("GET /v1/proxy/user-service/x HTTP/1.1\r\nHost: shop.example:8080\r\n{fields}\r\n"));
    let response = caller.answer();
    assert_eq!(response.status, 200, "{}", response.text());
    caller
}

#[test]
fn the_prefix_is_what_the_configuration_says_and_a_reload_changes_it() {
    let origin = Origin::hello("hello");
    let services = service("user-service", &[&origin.url()], "");
    let gateway = Gateway::with("prefix: /api", &services);
    assert_eq!(gateway.fetch("/api/user-service/a//b?c").text(), "hello");
    assert_eq!(origin.last().target(), "/a//b?c");
    assert_problem(&gateway.fetch("/v1/proxy/user-service/a"), 404);
    assert_problem(&gateway.fetch("/api"), 404);
    assert_problem(&gateway.fetch("/apis/user-service"), 404);
    assert_eq!(gateway.status()["generation"], 1);

    let mut kept = gateway.connect();
    assert_eq!(kept.get("/api/user-service").text(), "hello");
    gateway.rewrite_config(&format!("{}{services}", gateway.section().replace("prefix: /api", "prefix: /other/one")));
    assert_eq!(gateway.reload().status, 200);
    assert_problem(&kept.get("/api/user-service"), 404);
    assert_eq!(kept.get("/other/one/user-service/x").text(), "hello");

    gateway.rewrite_config(&format!("{}{services}", gateway.section().replace("prefix: /api", "prefix: /v1")));
    let refused = gateway.reload();
    assert_problem(&refused, 422);
    assert!(refused.text().contains("would hide the gateway's own"), "{}", refused.text());
}

#[test]
fn path_and_query_reach_the_upstream_byte_for_byte() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    let rests = [
        "/",
        "/users/42",
        "/users/42/",
        "/a%2Fb",
        "/a%2fb",
        "//",
        "//double//slashes//",
        "/with%20space",
        "/?",
        "/?a=1&b=%20&c=/x/../y&d=?",
        "/a?b?c",
        "/%C3%A9t%C3%A9",
        "/semi;colon=1,2",
        "/~tilde!$&'()*+,;=:@",
        "/a/./b",
        "/a/../b",
        "/trailing.",
        "/%41",
    ];
    for rest in rests {
        let response = caller.get(&format!("/v1/proxy/user-service{rest}"));
        assert_eq!(response.status, 200, "{rest}: {}", response.text());
        assert_eq!(origin.last().target(), rest);
    }
}

#[test]
fn the_service_alone_means_the_upstreams_own_path() {
    let origin = Origin::hello("hello");
    let base = format!("{}/base/path", origin.url());
    let slash = format!("{}/base/", origin.url());
    let services =
        [service("bare", &[&origin.url()], ""), service("based", &[&base], ""), service("slashed", &[&slash], "")];
    let gateway = Gateway::start(&services.concat());
    let mut caller = gateway.connect();
    let expected = [
        ("bare", "/"),
        ("bare?q=1", "/?q=1"),
        ("bare/", "/"),
        ("based", "/base/path"),
        ("based?q=1", "/base/path?q=1"),
        ("based/", "/base/path/"),
        ("based/x?y", "/base/path/x?y"),
        ("based//x", "/base/path//x"),
        ("slashed", "/base/"),
        ("slashed?q", "/base/?q"),
        ("slashed/x", "/base/x"),
    ];
    for (path, target) in expected {
        assert_eq!(caller.get(&format!("/v1/proxy/{path}")).status, 200, "{path}");
        assert_eq!(origin.last().target(), target, "for {path}");
    }
}

#[test]
fn the_service_name_is_decoded_once_and_compared_by_byte() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/user%2Dservice/x").status, 200);
    assert_eq!(origin.last().target(), "/x");
    for unknown in ["User-Service", "user%252Dservice", "user-service%20", "user", "user-service.", "%2E%2E"] {
        let response = caller.get(&format!("/v1/proxy/{unknown}/x"));
        assert_problem(&response, 404);
    }
    assert_eq!(origin.heads(), 1);
}

#[test]
fn services_are_told_apart() {
    let (users, orders) = (Origin::hello("users"), Origin::hello("orders"));
    let text = format!("users:\n  - {}\norders.v2_x:\n  - {}\n", users.url(), orders.url());
    let gateway = Gateway::start(&text);
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/users").text(), "users");
    assert_eq!(caller.get("/v1/proxy/orders.v2_x/a").text(), "orders");
    assert_eq!(caller.get("/v1/proxy/users/").text(), "users");
}

#[test]
fn every_method_passes() {
    let origin = Origin::echo();
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH"] {
        caller.send(format!("{method} /v1/proxy/user-service/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"));
        assert_eq!(caller.answer().text(), "body", "{method}");
        assert_eq!(origin.last().method(), method);
    }
}

#[test]
fn an_absolute_target_is_routed_by_its_path() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send("GET http://shop.example/v1/proxy/user-service/x%2Fy?z HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    assert_eq!(caller.answer().status, 200);
    assert_eq!(origin.last().target(), "/x%2Fy?z");
    assert_eq!(origin.last().field("X-Forwarded-Host").as_deref(), Some("shop.example"));
}

#[test]
fn forwarding_fields_name_the_client_and_what_it_asked() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(&gateway, "");
    let request = origin.last();
    assert_eq!(request.field("X-Forwarded-For").as_deref(), Some("127.0.0.1"));
    assert_eq!(request.field("X-Forwarded-Proto").as_deref(), Some("http"));
    assert_eq!(request.field("X-Forwarded-Host").as_deref(), Some("shop.example:8080"));
}

#[test]
fn spoofed_forwarding_fields_are_dropped_however_they_are_spelled() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(
        &gateway,
        "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 6.6.6.7\r\nX_Forwarded_For: 6.6.6.8\r\n\
         X-Forwarded_For: 6.6.6.9\r\nX-Forwarded-Proto: https\r\nX_FORWARDED_PROTO: https\r\n\
         X-Forwarded-Host: evil.example\r\nX-Forwarded-Port: 666\r\nX-Forwarded-Prefix: /evil\r\n\
         X-Forwarded-Server: evil\r\nX_Forwarded_Anything: evil\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nX-Forwarding: kept\r\n",
    );
    let request = origin.last();
    let mut forwarded: Vec<(String, String)> = Vec::new();
    for (name, value) in &request.head.fields {
        let plain = name.to_ascii_lowercase().replace('_', "-");
        if plain.starts_with("x-forwarded-") || plain == "forwarded" || plain == "x-real-ip" {
            forwarded.push((name.clone(), String::from_utf8_lossy(value).into_owned()));
        }
    }
    forwarded.sort();
    let values: Vec<&str> = forwarded.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["127.0.0.1", "shop.example:8080", "http"], "{forwarded:?}");
    assert_eq!(request.field("X-Forwarding").as_deref(), Some("kept"), "only the prefix with its hyphen is ours");
}

#[test]
fn host_is_the_upstreams_unless_configured() {
    let origin = Origin::hello("hello");
    let url = origin.url();
    let services = [
        service("default", &[&url], ""),
        service("upstream", &[&url], "headers: {host: upstream}"),
        service("client", &[&url], "headers: {host: client}"),
        service("literal", &[&url], "headers: {host: fixed.example}"),
    ];
    let gateway = Gateway::start(&services.concat());
    let own = origin.addr().to_string();
    let mut caller = gateway.connect();
    for (name, host) in
        [("default", &*own), ("upstream", &*own), ("client", "shop.example"), ("literal", "fixed.example")]
    {
        caller.send(format!("GET /v1/proxy/{name}/ HTTP/1.1\r\nHost: shop.example\r\n\r\n"));
        assert_eq!(caller.answer().status, 200);
        assert_eq!(origin.last().field("Host").as_deref(), Some(host), "for {name}");
    }
}

/// The name of the gateway in a `Via` value that ends with it.
#[track_caller]
fn own_name(via: &str) -> String {
    let name = via.rsplit("1.1 ").next().unwrap_or_default();
    let hex = name.strip_prefix("fusegate-").unwrap_or_else(|| panic!("no name in Via {via:?}"));
    let valid = hex.len() == 8 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    assert!(valid, "not 8 hexadecimal digits in {via:?}");
    name.to_owned()
}

#[test]
fn via_names_this_process() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(&gateway, "");
    let first = origin.last().all("Via").join(", ");
    assert_eq!(first, format!("1.1 {}", own_name(&first)));
    get_with(&gateway, "Via: 1.0 fred, 1.1 wilma\r\n");
    assert_eq!(origin.last().all("Via").join(", "), format!("1.0 fred, 1.1 wilma, {first}"));

    let other = before(&origin);
    get_with(&other, "");
    let second = origin.last().all("Via").join(", ");
    assert_ne!(own_name(&second), own_name(&first), "each process has a name of its own");
}

#[test]
fn a_request_that_came_through_this_process_is_a_loop() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(&gateway, "");
    let name = own_name(&origin.last().all("Via").join(", "));
    for via in [format!("1.1 {name}"), format!("1.0 fred, 1.1 {name}"), format!("1.1 {name} (comment), 1.1 barney")] {
        let mut caller = gateway.connect();
        caller.send(format!("GET /v1/proxy/user-service/ HTTP/1.1\r\nHost: a\r\nVia: {via}\r\n\r\n"));
        assert_problem(&caller.answer(), 508);
    }
    assert_eq!(origin.heads(), 1, "no loop reaches the upstream");
    get_with(&gateway, "Via: 1.1 fusegate-zzzzzzzz\r\n");
}

#[test]
fn a_gateway_that_is_its_own_upstream_ends_the_loop() {
    let gateway = Gateway::start("other:\n  - http://127.0.0.1:9\n");
    let own = format!("http://{}/v1/proxy/own", gateway.addr());
    gateway.rewrite_services(&service("own", &[&own], ""));
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/own").status, 508);
}

#[test]
fn a_sound_request_id_is_kept_and_another_is_made() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let longest = "x".repeat(128);
    for id in ["a", "AZaz09._-", &longest] {
        get_with(&gateway, &format!("X-Request-Id: {id}\r\n"));
        assert_eq!(origin.last().field("X-Request-Id").as_deref(), Some(id));
    }
    let long = "x".repeat(129);
    let mut made = Vec::new();
    for fields in [
        "",
        "X-Request-Id:\r\n",
        "X-Request-Id: a b\r\n",
        "X-Request-Id: a/b\r\n",
        &format!("X-Request-Id: {long}\r\n"),
    ] {
        get_with(&gateway, fields);
        let id = origin.last().field("X-Request-Id").unwrap_or_else(|| panic!("no id for {fields:?}"));
        let sound = (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        assert!(sound, "{id:?}");
        made.push(id);
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 5, "made ids are unique: {made:?}");
}

#[test]
fn the_configuration_says_what_becomes_of_ids() {
    let sent = "X-Request-Id: mine\r\nx-corr: theirs\r\n";
    let seen = |setting: &str, fields: &str| {
        let origin = Origin::hello("hello");
        let config = service("user-service", &[&origin.url()], "");
        let gateway = Gateway::with(&format!("request_id: {setting}"), &config);
        get_with(&gateway, fields);
        let request = origin.last();
        (request.all("x-request-id"), request.all("x-corr"))
    };
    let (standard, corr) = seen("replace", sent);
    assert_eq!((standard.len(), standard[0].len(), corr), (1, 32, vec!["theirs".to_owned()]), "made, not the client's");
    assert_eq!(seen("off", sent), (vec!["mine".to_owned()], vec!["theirs".to_owned()]));
    assert_eq!(seen("off", ""), (vec![], vec![]));
    assert_eq!(seen("off", "X-Request-Id: mine\r\nConnection: x-request-id\r\n"), (vec![], vec![]));
    assert_eq!(seen("{header: X-Corr}", sent), (vec!["mine".to_owned()], vec!["theirs".to_owned()]));
    let (standard, corr) = seen("{header: X-Corr, mode: replace}", sent);
    assert_eq!((standard, corr.len(), corr[0].len()), (vec!["mine".to_owned()], 1, 32));
    for unsound in ["", "x-corr: not valid!\r\n", "x-corr: a\r\nX-CORR: b\r\n"] {
        let (standard, corr) = seen("{header: X-Corr}", unsound);
        assert_eq!((standard.len(), corr.len(), corr[0].len()), (0, 1, 32), "{unsound:?}");
    }
}

#[test]
fn a_problem_names_the_request_by_its_id() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/nobody/ HTTP/1.1\r\nHost: a\r\nX-Request-Id: my-id-1\r\n\r\n");
    let response = caller.answer();
    assert_problem(&response, 404);
    let instance = response.json()["instance"].as_str().unwrap_or_default().to_owned();
    assert!(instance.contains("my-id-1"), "{instance}");
}

#[test]
fn traceparent_passes_unchanged() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    get_with(&gateway, &format!("traceparent: {value}\r\ntracestate: a=b\r\n"));
    assert_eq!(origin.last().field("traceparent").as_deref(), Some(value));
    assert_eq!(origin.last().field("tracestate").as_deref(), Some("a=b"));
}

#[test]
fn hop_by_hop_fields_of_a_request_are_dropped() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(
        &gateway,
        "Connection: keep-alive, X-Named, x-other\r\nX-Named: 1\r\nX-Other: 2\r\nX-Third: 3\r\nKeep-Alive: timeout=5\r\n\
         TE: gzip\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nProxy-Authenticate: Basic\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nAuthorization: Bearer kept\r\n",
    );
    let request = origin.last();
    for gone in [
        "X-Named",
        "X-Other",
        "Keep-Alive",
        "TE",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "Upgrade",
    ] {
        assert!(request.all(gone).is_empty(), "{gone} passed");
    }
    assert!(!request.head.lists("Connection", "x-named"), "Connection passed as it was");
    assert_eq!(request.field("X-Third").as_deref(), Some("3"));
    assert_eq!(request.field("Authorization").as_deref(), Some("Bearer kept"));
}

#[test]
fn te_passes_for_trailers_alone() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    get_with(&gateway, "Connection: TE\r\nTE: deflate;q=0.5, trailers\r\n");
    let passed = origin.last().all("TE").join(", ");
    assert!(passed.is_empty() || passed.eq_ignore_ascii_case("trailers"), "TE is {passed:?}");
}

#[test]
fn hop_by_hop_fields_of_a_response_are_dropped() {
    let origin = Origin::answering(|_| {
        reply(
            200,
            "Connection: keep-alive, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n\
             Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Kept: 2\r\n",
            "hello",
        )
    });
    let gateway = before(&origin);
    let response = gateway.fetch("/v1/proxy/user-service/");
    assert_eq!(response.text(), "hello");
    for gone in ["X-Named", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Upgrade"] {
        assert!(response.head.all(gone).is_empty(), "{gone} passed");
    }
    assert!(!response.lists("Connection", "X-Named"));
    assert_eq!(response.field("X-Kept").as_deref(), Some("2"));
}

#[test]
fn connection_cannot_strip_what_the_gateway_sets_or_needs() {
    let origin = Origin::echo();
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send(
        "POST /v1/proxy/user-service/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\nX-Request-Id: my-id\r\n\
         Connection: Host, Content-Length, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, Via, X-Request-Id\r\n\r\nhello",
    );
    assert_eq!(caller.answer().text(), "hello");
    let request = origin.last();
    assert_eq!(request.field("Content-Length").as_deref(), Some("5"));
    assert_eq!(request.field("X-Forwarded-For").as_deref(), Some("127.0.0.1"));
    assert_eq!(request.field("X-Forwarded-Host").as_deref(), Some("shop.example"));
    assert_eq!(request.field("X-Forwarded-Proto").as_deref(), Some("http"));
    assert_eq!(request.all("Via").len(), 1);
    assert!(request.field("X-Request-Id").is_some());

    // the same for the coding of a body
    caller.send(
        "POST /v1/proxy/user-service/ HTTP/1.1\r\nHost: a\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nagain\r\n0\r\n\r\n",
    );
    assert_eq!(caller.answer().text(), "again");
}

#[test]
fn a_response_cannot_strip_its_own_length() {
    let origin = Origin::answering(|_| reply(200, "Connection: Content-Length\r\n", "hello"));
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    assert_eq!(caller.get("/v1/proxy/user-service/").text(), "hello");
    assert_eq!(caller.get("/v1/proxy/user-service/").text(), "hello");
}

#[test]
fn repeated_fields_keep_their_number_and_order() {
    let origin = Origin::answering(|_| {
        reply(200, "Set-Cookie: a=1; Path=/\r\nX-Many: 1\r\nSet-Cookie: b=2, c\r\nX-Many: 2\r\nSet-Cookie: a=3\r\n", "")
    });
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send(
        "GET /v1/proxy/user-service/ HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\nCookie: a=1\r\nAccept: text/plain;q=0.5\r\n\
         Cookie: b=2\r\nX-Empty:\r\n\r\n",
    );
    let response = caller.answer();
    assert_eq!(response.head.all("Set-Cookie"), ["a=1; Path=/", "b=2, c", "a=3"]);
    assert_eq!(response.head.all("X-Many"), ["1", "2"]);
    let request = origin.last();
    assert_eq!(request.all("Accept"), ["text/html", "text/plain;q=0.5"]);
    assert_eq!(request.all("Cookie"), ["a=1", "b=2"]);
    assert_eq!(request.all("X-Empty"), [""]);
}

#[test]
fn field_values_carry_every_high_byte_unchanged() {
    let high: Vec<u8> = (0x80..=0xFF).collect();
    let line = [b"X-High: a".as_slice(), &high, b"\tb\r\n"].concat();
    let value = [b"a".as_slice(), &high, b"\tb"].concat();
    let answer = [b"HTTP/1.1 200 OK\r\n".as_slice(), &line, b"Content-Length: 0\r\n\r\n"].concat();
    let origin = Origin::answering(move |_| answer.clone());
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    caller.send([b"GET /v1/proxy/user-service/ HTTP/1.1\r\nHost: a\r\n".as_slice(), &line, b"\r\n"].concat());
    let response = caller.answer();
    let find = |fields: &[(String, Vec<u8>)]| {
        fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-high")).map(|(_, value)| value.clone())
    };
    assert_eq!(find(&response.head.fields).as_deref(), Some(&*value), "in the response");
    assert_eq!(find(&origin.last().head.fields).as_deref(), Some(&*value), "in the request");
}

#[test]
fn date_is_added_only_when_the_upstream_sent_none() {
    let origin = Origin::answering(|request| match request.target() {
        "/dated" => reply(200, "Date: Tue, 15 Nov 1994 08:12:31 GMT\r\n", "x"),
        _ => ok("x"),
    });
    let gateway = before(&origin);
    let dated = gateway.fetch("/v1/proxy/user-service/dated");
    assert_eq!(dated.field("Date").as_deref(), Some("Tue, 15 Nov 1994 08:12:31 GMT"));
    let made = gateway.fetch("/v1/proxy/user-service/").field("Date").expect("a Date");
    // Sun, 06 Nov 1994 08:49:37 GMT
    assert!(made.len() == 29 && made.ends_with(" GMT") && &made[3..5] == ", ", "{made:?}");
}

#[test]
fn status_and_end_to_end_fields_of_a_response_pass() {
    let origin = Origin::answering(|request| {
        let status: u16 = request.target().trim_start_matches('/').parse().unwrap();
        let fields = "Content-Type: text/x\r\nLocation: /elsewhere\r\nServer: own/1\r\nETag: \"a\"\r\nWWW-Authenticate: Basic\r\n";
        reply(status, fields, "body")
    });
    let gateway = before(&origin);
    for status in [200, 201, 202, 206, 301, 302, 307, 400, 401, 404, 418, 429, 451, 500, 501, 505, 599] {
        let response = gateway.fetch(&format!("/v1/proxy/user-service/{status}"));
        assert_eq!(response.status, status);
        assert_eq!(response.text(), "body", "{status}");
        for (name, value) in
            [("Content-Type", "text/x"), ("Location", "/elsewhere"), ("ETag", "\"a\""), ("WWW-Authenticate", "Basic")]
        {
            assert_eq!(response.field(name).as_deref(), Some(value), "{name} of {status}");
        }
    }
}

#[test]
fn localhost_finds_an_upstream_that_listens_on_one_of_its_addresses() {
    let origin = Origin::hello("hello");
    let url = format!("http://localhost:{}", origin.addr().port());
    let gateway = Gateway::start(&service("user-service", &[&url], "retries: {attempts: 0}"));
    let mut caller = gateway.connect();
    for _ in 0..3 {
        assert_eq!(caller.get("/v1/proxy/user-service/").text(), "hello");
    }
    assert_eq!(gateway.breaker("user-service", &url), ("closed".to_owned(), 0), "another address is no failure");
}

#[test]
fn other_paths_are_404_problems() {
    let origin = Origin::hello("hello");
    let gateway = before(&origin);
    let mut caller = gateway.connect();
    for path in [
        "/v1",
        "/v1/",
        "/v1/proxy",
        "/v1/proxy/",
        "/v1/proxy//x",
        "/v2/proxy/user-service/",
        "/favicon.ico",
        "/v1/proxyuser-service",
    ] {
        assert_problem(&caller.get(path), 404);
    }
    assert_eq!(origin.heads(), 0);
}

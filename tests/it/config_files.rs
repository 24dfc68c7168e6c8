//! Configuration files of every kind, good and bad: a start, a reload and a check judge them alike and say the same,
//! and a bad one stops nothing that runs. Also what `check` and `schema` print.

use crate::support::gateway::{Finished, run};
use crate::support::problem::assert_problem;
use crate::support::{Gateway, Origin, service, wait_until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Puts something at the place of the configuration.
type Put = fn(&Path);

fn text(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
}

/// What no start accepts, and a part of what is said about it.
const BAD: &[(Put, &str)] = &[
    // values of every kind
    (
        |path| text(path, "s:\n  - localhost:9001\n"),
        "config.yaml:2:5: error: upstream \"localhost:9001\" has no scheme",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], timeouts: {connect: 500}}\n"),
        "config.yaml:1:48: error: connect needs a unit",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], timeouts: {connect: [1s]}}\n"),
        "1:48: error: connect must be a single value",
    ),
    (|path| text(path, "s: {upstreams: [http://a], timeouts: {total: 25h}}\n"), "1:46: error: total must be from"),
    (|path| text(path, "s: {upstreams: [http://a], timeouts: 5s}\n"), "1:38: error: timeouts must be a mapping"),
    (
        |path| text(path, "s: {upstreams: [http://a], retries: {attempts: 16}}\n"),
        "1:48: error: attempts must be from 0 to 15",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], retries: {attempts: -1}}\n"),
        "1:48: error: attempts must be from 0 to 15",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], retries: {budget: 20}}\n"),
        "1:46: error: budget needs a percent sign",
    ),
    (|path| text(path, "s: {upstreams: [http://a], body_limit: 64k}\n"), "1:40: error: body_limit has an unknown unit"),
    (
        |path| text(path, "s: {upstreams: [http://a], load_balancing: {policy: rr}}\n"),
        "1:53: error: policy \"rr\" is none of",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], circuit_breaker: {backoff: 0}}\n"),
        "1:55: error: backoff must be from 1 to 100",
    ),
    (
        |path| text(path, "s: {upstreams: [http://a], health_check: {interval: 1s}}\n"),
        "1:42: error: a health_check needs a path",
    ),
    (|path| text(path, "s: [{url: http://a, weight: 1001}]\n"), "1:29: error: weight must be from 0 to 1000"),
    (
        |path| text(path, "s: []\ngateway: {client: {half_close: yes}}\n"),
        "2:32: error: half_close must be true or false",
    ),
    (|path| text(path, "s: []\ngateway: {log: {level: }}\n"), "2:22: error: level has no value"),
    (
        |path| text(path, "s: []\ngateway: {listen: 8000}\n"),
        "2:19: error: listen: \"8000\" is a port without an address",
    ),
    // keys
    (|path| text(path, "s: {upstreams: [http://a], pools: {}}\n"), "1:28: error: unknown key \"pools\""),
    (
        |path| text(path, "s: {upstreams: [http://a], pool: {idle: 1s, idle: 2s}}\n"),
        "1:45: error: duplicate key \"idle\"",
    ),
    (|path| text(path, "s: [http://a]\ns: [http://b]\n"), "2:1: error: duplicate key \"s\""),
    (|path| text(path, "services: {a: [http://a]}\nb: [http://b]\n"), "2:1: error: services stand both"),
    // anchors, merges and references
    (|path| text(path, "s: *a\n"), "1:4: error: this alias has no anchor"),
    (|path| text(path, "s: &a [*a]\n"), "1:8: error: this alias stands inside of what it names"),
    (|path| text(path, "x-a: &a 5\ns: {<<: *a, upstreams: [http://a]}\n"), "2:9: error: \"<<\" merges a mapping"),
    (
        |path| text(path, "x-a: &a {idle: 5}\ns: {upstreams: [http://a], pool: {<<: *a}}\n"),
        "1:16: error: idle needs a unit",
    ),
    (|path| text(path, "s: ['http://${FUSEGATE_TEST_UNSET}']\n"), "FUSEGATE_TEST_UNSET"),
    // what is no configuration
    (|path| text(path, "just words\n"), "1:1: error: the file must be a mapping of services"),
    (|path| text(path, "s: [\n"), "error: invalid YAML"),
    (|path| text(path, "s: [http://a]\n---\nt: [http://b]\n"), "2:1: error: a second document"),
    (|path| text(path, "s: !include other.yaml\n"), "1:4: error: tag \"!include\""),
    (|path| text(path, b"s:\n  - http://a\xff\n"), "2:13: error: byte 0xff is not UTF-8"),
    (|path| text(path, b"\x7fELF\x02\x01\x01\x00\x00"), "config.yaml:1:"),
    // attacks
    (|path| text(path, "#".repeat(10 << 20)), "config.yaml: error: the file is larger than 4MiB"),
    (|path| text(path, "[".repeat(1 << 20)), "error: nested more than 64 levels deep"),
    (|path| text(path, "{a: ".repeat(1 << 18)), "error: nested more than 64 levels deep"),
    (|path| text(path, bomb()), "error: more than 200000 values, aliases expanded"),
    // what is no file
    (|path| std::fs::create_dir(path).unwrap(), "config.yaml: error: this is a directory, not a file"),
    (make_fifo, "config.yaml: error: this is not a regular file"),
    (|_| {}, "config.yaml: error: the file cannot be read: No such file or directory"),
    (|path| std::os::unix::fs::symlink(path, path).unwrap(), "config.yaml: error: the file cannot be read"),
];

/// Lists of lists of lists, each nine times the one before.
fn bomb() -> String {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..20 {
        text.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", ")));
    }
    text
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Takes away whatever is at the place of the configuration.
fn clear(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir(path).unwrap();
    } else {
        let _ = std::fs::remove_file(path);
    }
}

/// The one document that a check prints.
#[track_caller]
fn document(finished: &Finished) -> Value {
    assert_eq!(finished.output, finished.stdout);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
}

#[test]
fn what_is_bad_is_bad_at_start_at_reload_and_for_a_check() {
    let origin = Origin::hello("hello");
    let gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    let generation = gateway.generation();
    let path = gateway.directory().join("config.yaml");
    let mut caller = gateway.connect();
    for (put, expected) in BAD {
        clear(&path);
        put(&path);
        let check = run(gateway.directory(), &["check"]);
        assert_eq!(check.code, Some(1), "{}", check.output);
        assert!(check.output.contains(expected), "no {expected:?} in {}", check.output);

        let start = run(gateway.directory(), &[]);
        assert_eq!((start.code, &start.output), (Some(78), &check.output));

        let response = gateway.reload();
        assert_problem(&response, 422);
        let errors: Vec<String> = serde_json::from_value(response.json()["errors"].clone()).unwrap();
        assert_eq!(errors.join("\n").trim_end(), check.output.trim_end());
        assert_eq!(response.json()["generation"], generation);

        let json = run(gateway.directory(), &["check", "--json"]);
        assert_eq!(json.code, Some(1), "{}", json.output);
        let json = document(&json);
        assert_eq!((&json["valid"], &json["file"]), (&json!(false), &json!("config.yaml")));
        let told = json["diagnostics"].as_array().unwrap();
        assert_eq!(told.len(), errors.len());
        for (diagnostic, error) in told.iter().zip(&errors) {
            assert!(error.contains(diagnostic["message"].as_str().unwrap()), "{diagnostic} {error}");
        }
        assert_eq!(caller.get("/v1/proxy/s/").text(), "hello", "{expected}");
    }
    assert_eq!(gateway.generation(), generation);
}

#[test]
fn by_signal_the_messages_of_a_bad_file_are_logged() {
    let origin = Origin::hello("hello");
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    let generation = gateway.generation();
    let path = gateway.directory().join("config.yaml");
    for (put, expected) in BAD.iter().step_by(5) {
        clear(&path);
        put(&path);
        gateway.signal("HUP");
        gateway.wait_for_log(expected, |line| line.contains(expected));
        assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "hello", "{expected}");
    }
    assert_eq!(gateway.generation(), generation);
    clear(&path);
    gateway.rewrite_services(&service("t", &[&origin.url()], ""));
    gateway.signal("HUP");
    wait_until("a good file is taken", || gateway.generation() > generation);
}

/// Services that every start accepts.
const GOOD: &[&str] = &[
    "",
    "# nothing\n",
    "s: []\n",
    "s:\n  - http://127.0.0.1:9\n  - http://[::1]:9/base\n",
    "\"s\" : [ 'http://127.0.0.1:9', ]\r\n",
    "services:\n  a: [http://127.0.0.1:9]\n  x-b: {anchor: &b 5s}\n  c: {upstreams: [http://127.0.0.1:9], pool: {idle: *b}}\n",
    "x-a: &a {connect: 1s}\ns: {upstreams: [http://127.0.0.1:9], timeouts: {<<: *a, total: 0}}\n",
    "s: [{url: http://127.0.0.1:9, weight: 0}]\n",
    "s: [{url: http://127.0.0.1:9, weight: 2, backup: true, max_requests: 5}]\n",
    "s: {upstreams: [http://127.0.0.1:9], load_balancing: {policy: hash, hash_on: 'cookie:id'}}\n",
    "s: {upstreams: ['${FUSEGATE_TEST_UNSET:-http://127.0.0.1:9}'], circuit_breaker: {cooldown: 1m30s, jitter: 0.1}}\n",
];

#[test]
fn what_is_good_is_good_at_start_at_reload_and_for_a_check() {
    let running = Gateway::start("first: [http://127.0.0.1:9]\n");
    for services in GOOD {
        running.rewrite_services(services);
        let check = run(running.directory(), &["check"]);
        assert_eq!(check.code, Some(0), "{services}: {}", check.output);
        let json = run(running.directory(), &["check", "--json"]);
        assert_eq!((json.code, &document(&json)["valid"]), (Some(0), &json!(true)), "{}", json.output);
        assert_eq!(running.reload().status, 200, "{services}");
        let started = Gateway::start(services);
        assert_eq!(started.fetch("/livez").status, 200);

        // the file that says everything is another of them, and no change
        let printed = run(running.directory(), &["check", "-T"]);
        assert_eq!(printed.code, Some(0));
        running.rewrite_config(&printed.stdout);
        let response = running.reload();
        assert_eq!((response.status, &response.json()["status"]), (200, &json!("unchanged")), "{}", printed.stdout);
    }
}

/// Root reads every file, whatever its mode; what stands below a file nobody reads.
#[test]
fn a_path_that_leads_nowhere_is_told() {
    let directory = directory("s: [http://127.0.0.1:9]\n");
    for (arguments, code) in [(["check", "-c", "config.yaml/x"], 1), (["serve", "-c", "config.yaml/x"], 78)] {
        let finished = run(directory.path(), &arguments);
        assert_eq!(finished.code, Some(code), "{}", finished.output);
        assert!(finished.output.contains("config.yaml/x: error: the file cannot be read: Not a directory"));
    }
}

fn directory(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.yaml"), text).unwrap();
    directory
}

#[test]
fn a_check_tells_programs_what_it_tells_people() {
    let good = directory("s:\n  - http://127.0.0.1:9\n  - http://127.0.0.1:10\nt: []\n");
    let finished = run(good.path(), &["check", "--json"]);
    assert_eq!(finished.code, Some(0));
    let warning = json!({
        "severity": "warning", "file": "config.yaml", "line": 4, "column": 4,
        "message": "service \"t\" has no upstreams: it answers 503", "help": null,
    });
    let expected =
        json!({"valid": true, "file": "config.yaml", "services": 2, "upstreams": 2, "diagnostics": [warning]});
    assert_eq!(document(&finished), expected);

    let bad = directory("s:\n  upstreams: [http://127.0.0.1:9]\n  pool: {idel: 5}\n");
    let finished = run(bad.path(), &["check", "--json", "-c", "config.yaml"]);
    assert_eq!(finished.code, Some(1));
    let error = json!({
        "severity": "error", "file": "config.yaml", "line": 3, "column": 10,
        "message": "unknown key \"idel\" in pool of service \"s\"", "help": "did you mean \"idle\"?",
    });
    let expected =
        json!({"valid": false, "file": "config.yaml", "services": 0, "upstreams": 0, "diagnostics": [error]});
    assert_eq!(document(&finished), expected);

    let nowhere = tempfile::tempdir().unwrap();
    let finished = run(nowhere.path(), &["check", "--json", "-c", "absent.yaml"]);
    assert_eq!(finished.code, Some(1));
    let document = document(&finished);
    assert_eq!((&document["file"], &document["valid"]), (&json!("absent.yaml"), &json!(false)));
    assert_eq!(document["diagnostics"][0]["line"], 0);

    for arguments in [["check", "--json", "-T"], ["check", "-T", "--json"]] {
        assert_eq!(run(good.path(), &arguments).code, Some(2));
    }
}

#[test]
fn the_effective_configuration_is_printed_in_the_units_of_the_file() {
    let directory = directory(
        "payments:
  upstreams:
    - http://127.0.0.1:9
    - {url: \"http://127.0.0.1:10\", timeouts: {response: 5s}}
  retries: {budget: 0.125}
single: [\"http://127.0.0.1:${FUSEGATE_TEST_PORT:-11}\"]
gateway:
  defaults: {timeouts: {response: 1500ms, connect: 90s}, body_limit: 1024KiB}
",
    );
    for arguments in [["check", "-T"].as_slice(), &["-T"], &["-T", "-c", "config.yaml"]] {
        let finished = run(directory.path(), arguments);
        assert_eq!(finished.code, Some(0), "{}", finished.output);
        let printed = &finished.output;
        for part in [
            "\npayments:",
            "url: http://127.0.0.1:11\n",
            "response: 5s\n",
            "response: 1500ms\n",
            "connect: 90s\n",
            "budget: 12.5%\n",
            "body_limit: 1MiB\n",
            "failure_threshold: 5\n",
            "header_bytes: 32KiB\n",
            "listen: 127.0.0.1:8000\n",
        ] {
            assert!(format!("\n{printed}").contains(part), "no {part:?} in\n{printed}");
        }
        // it says the same of itself
        let again = tempfile::tempdir().unwrap();
        std::fs::write(again.path().join("config.yaml"), printed).unwrap();
        assert_eq!(run(again.path(), &["-T"]).output, *printed);
    }
    let bad = self::directory("s: 5\n");
    let finished = run(bad.path(), &["check", "-T"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.output.starts_with("config.yaml:1:4: error: "), "{}", finished.output);
}

#[test]
fn the_schema_is_printed() {
    let empty = tempfile::tempdir().unwrap();
    let finished = run(empty.path(), &["schema"]);
    assert_eq!(finished.code, Some(0));
    assert!(finished.output == include_str!("../../fusegate.schema.json"), "{}", finished.output);
}

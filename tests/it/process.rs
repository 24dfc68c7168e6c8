//! The program as a process: its arguments and exit codes, what it says about a bad configuration,
//! signals and draining, and that a log that nobody reads stops nothing.

use crate::support::gateway::run;
use crate::support::{Gate, Gateway, Origin, RefusedPort, ok, service, wait_until};
use std::net::{TcpListener, TcpStream};
use tempfile::TempDir;

/// A directory with this text as `config.yaml`.
fn directory(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.yaml"), text).unwrap();
    directory
}

const VALID: &str = "gateway: {listen: 127.0.0.1:0}\nuser-service:\n  - http://127.0.0.1:9\n";

#[test]
fn version_and_help_are_told_on_request() {
    let empty = tempfile::tempdir().unwrap();
    let version = run(empty.path(), &["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.output.starts_with("fusegate "), "{}", version.output);
    let help = run(empty.path(), &["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["serve", "check", "demo", "-c"] {
        assert!(help.output.contains(word), "no {word} in {}", help.output);
    }
}

#[test]
fn bad_usage_is_exit_2() {
    let empty = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 4] = [&["--nonsense"], &["chekc"], &["-c"], &["check", "--nonsense"]];
    for arguments in cases {
        let finished = run(empty.path(), arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {}", finished.output);
        assert!(!finished.output.is_empty());
    }
}

#[test]
fn an_invalid_configuration_at_start_is_exit_78() {
    let cases = [
        ("user-service: nonsense\n", "config.yaml:1:"),
        ("a:\n  - http://127.0.0.1:9\na:\n  - http://127.0.0.1:9\n", "config.yaml:3:1: error: "),
        ("a:\n  - ftp://127.0.0.1:9\n", "config.yaml:2:5: error: "),
        ("a: [\n", "config.yaml:"),
        ("gateway:\n  lisen: 127.0.0.1:0\n", "config.yaml:2:3: error: "),
    ];
    for (text, expected) in cases {
        let directory = directory(text);
        let finished = run(directory.path(), &["-c", "config.yaml"]);
        assert_eq!(finished.code, Some(78), "{text}: {}", finished.output);
        assert!(finished.output.contains(expected), "no {expected:?} in {}", finished.output);
    }
}

#[test]
fn a_missing_file_is_named() {
    let empty = tempfile::tempdir().unwrap();
    for arguments in [["serve", "-c", "absent.yaml"], ["check", "-c", "absent.yaml"]] {
        let finished = run(empty.path(), &arguments);
        assert!(finished.code.is_some_and(|code| code != 0), "{arguments:?}: {:?}", finished.code);
        assert!(finished.output.contains("absent.yaml"), "{}", finished.output);
    }
}

#[test]
fn a_port_in_use_is_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory1 = directory(&format!("gateway: {{listen: \"{address}\"}}\na:\n  - http://127.0.0.1:9\n"));
    let finished = run(directory1.path(), &["-c", "config.yaml"]);
    assert_eq!(finished.code, Some(1), "{}", finished.output);
    assert!(finished.output.contains(&address), "{}", finished.output);

    // a second gateway must not share the port of the first
    let gateway = Gateway::start("a:\n  - http://127.0.0.1:9\n");
    let address = gateway.addr().to_string();
    let directory2 = directory(&format!("gateway: {{listen: \"{address}\"}}\na:\n  - http://127.0.0.1:9\n"));
    let finished = run(directory2.path(), &["-c", "config.yaml"]);
    assert_eq!(finished.code, Some(1), "{}", finished.output);
    assert_eq!(gateway.fetch("/livez").status, 200);
}

#[test]
fn check_accepts_a_valid_file() {
    let directory = directory(VALID);
    let cases: [&[&str]; 4] = [&["check"], &["check", "-c", "config.yaml"], &["-t"], &["-t", "-c", "config.yaml"]];
    for arguments in cases {
        let finished = run(directory.path(), arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.output);
    }
}

#[test]
fn check_prints_every_problem_with_its_position() {
    let text = "\
gateway:
  listen: 127.0.0.1:0
  workers: many
user-service:
  upstreams:
    - http://localhost:9001
    - http://user@localhost:9002
  circuit_breaker: {colldown: 20s}
  timeouts: {connect: 500}
bad/name:
  - http://localhost:9001
empty-one:
  upstreams: []
  retries: {attempts: -1}
";
    let directory = directory(text);
    for arguments in [["check", "-c", "config.yaml"], ["-t", "-c", "config.yaml"]] {
        let finished = run(directory.path(), &arguments);
        assert_eq!(finished.code, Some(1), "{}", finished.output);
        let expected = [
            "config.yaml:3:12: error: ",
            "config.yaml:7:7: error: ",
            "config.yaml:8:21: error: ",
            "config.yaml:9:",
            "config.yaml:10:1: error: ",
            "config.yaml:14:",
            "did you mean \"cooldown\"",
            "500ms",
            // the source line and a caret
            "circuit_breaker: {colldown: 20s}",
            "^^^",
        ];
        for part in expected {
            assert!(finished.output.contains(part), "no {part:?} in\n{}", finished.output);
        }
    }
}

#[test]
fn fields_that_are_not_there_are_unknown_never_ignored() {
    for field in ["limits: {concurrent: 5}", "tls: {verify: false}"] {
        let directory = directory(&service("s", &["http://127.0.0.1:9"], field));
        let finished = run(directory.path(), &["check"]);
        let name = field.split(':').next().unwrap_or_default();
        assert_eq!(finished.code, Some(1), "{}", finished.output);
        assert!(finished.output.contains(name), "{}", finished.output);
    }
}

/// The processors that a thread of the gateway may use, by the name of the thread.
fn allowed(gateway: &Gateway, thread: &str) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let mut texts = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let text = texts.find(|text| text.lines().next() == Some(&format!("Name:\t{thread}")))?;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(list.trim().to_owned())
}

/// Those that this test, and so the gateway, may use: `0-2,7` as 0, 1, 2, 7.
fn processors() -> Vec<usize> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<usize>().unwrap()..=last.parse::<usize>().unwrap()
    };
    list.trim().split(',').flat_map(range).collect()
}

#[test]
fn each_shard_runs_on_a_processor_of_its_own() {
    let processors = processors();
    let workers = processors.len();
    let backwards: Vec<String> = processors.iter().rev().map(usize::to_string).collect();
    let forwards: Vec<String> = processors.iter().map(usize::to_string).collect();
    // Without a number, there are as many workers as there are processors in the list.
    let listed = format!("workers: auto\naffinity: [{}]", backwards.join(", "));
    for (settings, expected) in [(format!("workers: {workers}\naffinity: auto"), forwards), (listed, backwards)] {
        let origin = Origin::hello("here");
        let gateway = Gateway::with(&settings, &service("s", &[&origin.url()], ""));
        for (shard, processor) in expected.iter().enumerate() {
            let thread = format!("shard-{shard}");
            wait_until("the shard has settled", || allowed(&gateway, &thread).as_ref() == Some(processor));
        }
        assert_eq!(allowed(&gateway, &format!("shard-{workers}")), None);
        let everywhere = std::fs::read_to_string("/proc/self/status").unwrap();
        let main = allowed(&gateway, "fusegate").unwrap();
        assert!(everywhere.contains(&format!("Cpus_allowed_list:\t{main}\n")), "control is bound to {main}");
        for _ in 0..8 {
            assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "here");
        }
    }
}

/// How often the first shard's thread went to sleep, and its processor time in ticks of the system (proc(5)).
fn sleeps_and_ticks(gateway: &Gateway) -> (u64, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let name = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap_or_default();
    let shard = tasks.find(|path| name(path) == "shard-0\n").unwrap();
    let status = std::fs::read_to_string(shard.join("status")).unwrap();
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    let stat = std::fs::read_to_string(shard.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    (sleeps.trim().parse().unwrap(), ticks)
}

#[test]
fn a_shard_that_polls_busily_falls_asleep_when_nothing_comes() {
    let origin = Origin::hello("here");
    let silent = Origin::start(|conn| {
        let _ = conn.request();
        conn.wait_gone();
    });
    let services =
        service("s", &[&origin.url()], "") + &service("silent", &[&silent.url()], "timeouts: {response: 50ms}");
    let gateway = Gateway::with("", &services);
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "here");
    let section = gateway.section().to_owned();
    gateway.rewrite_config(&format!("{section}  busy_poll: 1s\n{services}"));
    let reloaded = gateway.reload();
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());

    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "here");
    let (sleeps, ticks) = sleeps_and_ticks(&gateway);
    wait_until("the shard sleeps", || sleeps_and_ticks(&gateway).0 > sleeps);
    let spent = sleeps_and_ticks(&gateway).1 - ticks;
    assert!(spent >= 3, "it has spent {spent} ticks until it slept");
    // Timers ring while it polls.
    assert_eq!(gateway.fetch("/v1/proxy/silent/").status, 504);
}

#[test]
fn shards_run_anywhere_unless_told() {
    let gateway = Gateway::with("workers: 2", "");
    for thread in ["shard-0", "shard-1"] {
        // A thread has its name a moment after it has begun.
        wait_until("the shard runs", || allowed(&gateway, thread).is_some());
        assert_eq!(allowed(&gateway, thread), allowed(&gateway, "fusegate"));
    }
    let section = gateway.section().to_owned();
    gateway.rewrite_config(&format!("{section}  affinity: auto\n"));
    let refused = gateway.reload();
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("gateway.affinity cannot change while the gateway runs"), "{}", refused.text());
}

#[test]
fn a_processor_that_is_refused_leaves_its_shard_unbound() {
    let origin = Origin::hello("here");
    let mut gateway = Gateway::with("affinity: 1023", &service("s", &[&origin.url()], ""));
    gateway.wait_for_log("the refusal", |line| {
        line.contains("ERROR") && line.contains("shard 0 cannot be bound to processor 1023, and runs anywhere: ")
    });
    assert_eq!(allowed(&gateway, "shard-0"), allowed(&gateway, "fusegate"));
    assert_eq!(gateway.fetch("/v1/proxy/s/").text(), "here");
}

#[test]
fn more_shards_than_processors_are_exit_1() {
    let workers = processors().len() + 1;
    let directory = directory(&format!("gateway: {{listen: 127.0.0.1:0, workers: {workers}, affinity: auto}}\n"));
    let finished = run(directory.path(), &["-c", "config.yaml"]);
    assert_eq!(finished.code, Some(1), "{}", finished.output);
    let expected = format!("gateway.affinity: {workers} workers cannot have a processor each");
    assert!(finished.output.contains(&expected), "{}", finished.output);
}

#[test]
fn variables_expand_in_values() {
    let text = "x-home: &a http://127.0.0.1:9\ns:\n  - ${FUSEGATE_TEST_UNSET:-http://127.0.0.1:9}\n  - *a\n";
    assert_eq!(run(directory(text).path(), &["check"]).code, Some(0));
    let text = "s:\n  - ${FUSEGATE_TEST_UNSET}\n";
    let finished = run(directory(text).path(), &["check"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.output.contains("config.yaml:2:"), "{}", finished.output);
    assert!(finished.output.contains("FUSEGATE_TEST_UNSET"), "{}", finished.output);
}

#[test]
fn serve_is_the_default_command() {
    let directory = directory("gateway: {listen: nonsense}\n");
    let (plain, serve) = (run(directory.path(), &[]), run(directory.path(), &["serve"]));
    assert_eq!((plain.code, serve.code), (Some(78), Some(78)));
    assert!(plain.output.contains("config.yaml:1:"), "{}", plain.output);
    assert!(serve.output.contains("config.yaml:1:"), "{}", serve.output);
}

/// A gateway with an exchange that waits for a gate.
fn waiting(settings: &str) -> (Gateway, crate::support::Caller, Gate, Origin) {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::answering(move |_| {
        door.wait();
        ok("late")
    });
    let gateway = Gateway::with(settings, &service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_heads(1);
    (gateway, caller, gate, origin)
}

#[track_caller]
fn wait_refused(gateway: &Gateway) {
    wait_until("new connections are refused", || TcpStream::connect(gateway.addr()).is_err());
}

#[test]
fn term_and_int_drain() {
    for signal in ["TERM", "INT"] {
        let (mut gateway, mut caller, gate, _origin) = waiting("workers: 4");
        let mut idle = gateway.connect();
        assert_eq!(idle.get("/livez").status, 200);
        assert_eq!(idle.get("/readyz").status, 200);
        gateway.signal(signal);
        wait_refused(&gateway);
        idle.expect_eof();
        assert!(gateway.is_running(), "the request in flight is waited for");
        gate.open();
        let response = caller.answer();
        assert_eq!(response.text(), "late");
        assert!(response.lists("Connection", "close"));
        caller.expect_eof();
        assert_eq!(gateway.wait_exit().code(), Some(0));
    }
}

#[test]
fn an_idle_gateway_ends_at_once() {
    let mut gateway = Gateway::with("workers: 4", "s:\n  - http://127.0.0.1:9\n");
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let (mut gateway, mut caller, gate, _origin) = waiting("drain: {timeout: 1h}");
    gateway.signal("TERM");
    wait_refused(&gateway);
    assert!(gateway.is_running());
    gateway.signal("TERM");
    gateway.wait_exit();
    assert!(caller.broken_answer().body.is_empty());
    gate.open();
}

#[test]
fn draining_has_an_end() {
    let (mut gateway, mut caller, gate, _origin) = waiting("drain: {timeout: 300ms}");
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
    assert!(caller.broken_answer().body.is_empty());
    gate.open();
}

#[test]
fn a_body_in_flight_is_drained_to_its_end() {
    let gate = Gate::default();
    let door = gate.clone();
    let origin = Origin::start(move |conn| {
        if conn.request().is_some() {
            let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst");
            door.wait();
            let _ = conn.send("later");
        }
    });
    let mut gateway = Gateway::start(&service("s", &[&origin.url()], ""));
    let mut caller = gateway.connect();
    caller.send("GET /v1/proxy/s/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.head().0, 200);
    assert_eq!(caller.exact(5), b"first");
    gateway.signal("TERM");
    wait_refused(&gateway);
    gate.open();
    assert_eq!(caller.exact(5), b"later");
    caller.expect_eof();
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

/// A service whose every request writes lines to the log: the breaker opens, half-opens and opens again.
fn chatty() -> (RefusedPort, String) {
    let refused = RefusedPort::new();
    let settings = "circuit_breaker: {failure_threshold: 1, cooldown: 1ms}\nretries: {attempts: 0}";
    let text = service("chatty", &[&refused.url()], settings);
    (refused, text)
}

#[test]
fn a_full_log_pipe_stops_nothing() {
    let origin = Origin::hello("hello");
    let (_refused, chatty) = chatty();
    let mut gateway = Gateway::start(&format!("{chatty}{}", service("s", &[&origin.url()], "")));
    gateway.stop_reading_log();
    let mut caller = gateway.connect();
    // a pipe holds 64 KiB: several times that in lines
    let mut failures = 0;
    while failures < 1000 {
        failures += usize::from(caller.get("/v1/proxy/chatty/").status == 502);
    }
    for _ in 0..10 {
        assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    }
    // control lives as well
    assert_eq!(gateway.fetch("/v1/status").status, 200);
    gateway.rewrite_services(&service("s", &[&origin.url()], "timeouts: {response: 7s}"));
    assert_eq!(gateway.reload().status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn a_closed_log_stops_nothing() {
    let origin = Origin::hello("hello");
    let (_refused, chatty) = chatty();
    let mut gateway = Gateway::start(&format!("{chatty}{}", service("s", &[&origin.url()], "")));
    gateway.close_log();
    let mut caller = gateway.connect();
    let mut failures = 0;
    while failures < 100 {
        failures += usize::from(caller.get("/v1/proxy/chatty/").status == 502);
    }
    assert_eq!(caller.get("/v1/proxy/s/").text(), "hello");
    gateway.rewrite_services(&service("s", &[&origin.url()], "timeouts: {response: 7s}"));
    assert_eq!(gateway.reload().status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.wait_exit().code(), Some(0));
}

#[test]
fn the_log_can_be_json_and_a_reload_changes_level_and_format() {
    let mut gateway = Gateway::with("log: { format: json }", "");
    let line = gateway.wait_for_log("the address", |line| line.contains("listening on"));
    let document: serde_json::Value = serde_json::from_str(&line).unwrap();
    let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 4, "{line}");
    assert!(keys.iter().all(|key| ["time", "level", "target", "message"].contains(key)), "{line}");
    assert_eq!(document["level"], "info");
    assert_eq!(document["target"], "fusegate::process");
    assert!(document["message"].as_str().is_some_and(|text| text.starts_with("listening on 127.0.0.1:")), "{line}");
    let time = document["time"].as_str().unwrap();
    assert!(time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{line}");

    let debug = gateway.section().replace("format: json", "level: debug");
    gateway.rewrite_config(&debug);
    assert_eq!(gateway.reload().status, 200);
    assert_eq!(gateway.fetch("/v1/proxy/a/%zz").status, 400);
    let line = gateway.wait_for_log("a line of level debug", |line| line.contains("refused with 400"));
    assert!(!line.starts_with('{') && line.contains("DEBUG"), "{line}");
}

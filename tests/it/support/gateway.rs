//! The gateway as a child process: the real program with a configuration in a directory of its own,
//! on a port that it chose itself. Its log is read all the time and printed when a test fails.

use super::caller::{Caller, Response};
use super::{LIMIT, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_fusegate");

/// The configuration of one service in mapping form; `settings` are further YAML lines of it.
pub(crate) fn service(name: &str, upstreams: &[&str], settings: &str) -> String {
    let mut text = format!("{name}:\n  upstreams:\n");
    for url in upstreams {
        text.push_str(&format!("    - {url}\n"));
    }
    text + &indented(settings)
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// The log of the child, line by line.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grew: Condvar,
    /// Set when the test wants the reading end closed.
    close: AtomicBool,
    /// Set when the test wants the pipe to fill up.
    pause: AtomicBool,
}

/// A running gateway. Dropping it kills the child.
pub(crate) struct Gateway {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
    /// The `gateway` section that every configuration of this test shares.
    section: String,
    log: Arc<Log>,
}

impl Gateway {
    /// One shard, the given services.
    pub(crate) fn start(services: &str) -> Gateway {
        Gateway::with("", services)
    }

    /// The given lines of the `gateway` section and the given services. One shard, unless the lines say `workers`.
    pub(crate) fn with(settings: &str, services: &str) -> Gateway {
        Gateway::spawn(Command::new(PROGRAM), settings, services, in_place)
    }

    /// The same; `place` puts the text of the configuration into the directory and says under which name.
    pub(crate) fn placed(settings: &str, services: &str, place: impl FnOnce(&Path, &str) -> &'static str) -> Gateway {
        Gateway::spawn(Command::new(PROGRAM), settings, services, place)
    }

    /// The same where a limit of the user (`max_inotify_instances`) is 0; `None` where the system does not let
    /// a test set limits.
    pub(crate) fn limited(limit: &str, settings: &str, services: &str) -> Option<Gateway> {
        let set = format!("echo 0 > /proc/sys/user/{limit}");
        let tried = Command::new("unshare").args(["-Ur", "sh", "-c", &set]).stderr(Stdio::null()).status();
        if !tried.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c", &format!("{set} && exec \"$0\" \"$@\""), PROGRAM]);
        Some(Gateway::spawn(command, settings, services, in_place))
    }

    /// The same where `hosts` stands for `/etc/hosts`, and no name server is asked (`sources` stands for
    /// `/etc/nsswitch.conf`); `None` where the system does not let a test mount.
    pub(crate) fn with_hosts(hosts: &Path, sources: &Path, services: &str) -> Option<Gateway> {
        let bind = |file: &Path, over: &str| format!("mount --bind '{}' {over}", file.display());
        let mount = format!("{} && {}", bind(hosts, "/etc/hosts"), bind(sources, "/etc/nsswitch.conf"));
        let tried = Command::new("unshare").args(["-Urm", "sh", "-c", &mount]).stderr(Stdio::null()).status();
        if !tried.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\""), PROGRAM]);
        Some(Gateway::spawn(command, "", services, in_place))
    }

    /// The same with so many descriptors for the whole process, and no way to have more.
    pub(crate) fn within(descriptors: u32, settings: &str, services: &str) -> Gateway {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), PROGRAM]);
        Gateway::spawn(command, settings, services, in_place)
    }

    fn spawn(
        mut command: Command,
        settings: &str,
        services: &str,
        place: impl FnOnce(&Path, &str) -> &'static str,
    ) -> Gateway {
        let workers = if settings.contains("workers:") { "" } else { "  workers: 1\n" };
        let section = format!("gateway:\n  listen: 127.0.0.1:0\n{workers}{}", indented(settings));
        let directory = tempfile::tempdir().unwrap();
        let name = place(directory.path(), &format!("{section}{services}"));
        let mut child = command
            .args(["-c", name])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        let reader = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr).split(b'\n');
            while !reader.close.load(Ordering::Relaxed) {
                if reader.pause.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                let Some(Ok(line)) = lines.next() else { return };
                reader.lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                reader.grew.notify_all();
            }
        });
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Gateway { child, address: unset, directory, section, log };
        let line = gateway.wait_for_log("the address", |line| line.contains("listening on 127.0.0.1:"));
        let port = line.split("listening on 127.0.0.1:").nth(1).unwrap_or_default();
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        gateway.address.set_port(port.parse().unwrap());
        gateway
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The id of the child.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory of the configuration.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its `gateway` section, for configurations that a test writes as a whole.
    pub(crate) fn section(&self) -> &str {
        &self.section
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> Caller {
        Caller::connect(self.address)
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub(crate) fn fetch(&self, path: &str) -> Response {
        super::fetch(self.address, path)
    }

    /// Replaces the whole configuration file at once; nothing is reloaded yet.
    pub(crate) fn rewrite_config(&self, text: &str) {
        write_whole(&self.directory.path().join("config.yaml"), text);
    }

    /// Replaces the services and keeps the `gateway` section.
    pub(crate) fn rewrite_services(&self, services: &str) {
        self.rewrite_config(&format!("{}{services}", self.section));
    }

    /// Asks for a reload over HTTP.
    #[track_caller]
    pub(crate) fn reload(&self) -> Response {
        let mut caller = self.connect();
        let host = self.address;
        caller.send(format!("POST /v1/reload-config HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"));
        caller.answer()
    }

    /// The status document.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let response = self.fetch("/v1/status");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// The generation of the running configuration.
    #[track_caller]
    pub(crate) fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap()
    }

    /// State and failures in a row of the breaker of one upstream.
    #[track_caller]
    pub(crate) fn breaker(&self, service: &str, url: &str) -> (String, u64) {
        let status = self.status();
        let find = |list: &Value, key: &str, value: &str| {
            let entry = list.as_array().into_iter().flatten().find(|entry| entry[key] == value);
            entry.cloned().unwrap_or_else(|| panic!("no {value} in {status}"))
        };
        let service = find(&status["services"], "name", service);
        let upstream = find(&service["upstreams"], "url", url);
        let state = upstream["state"].as_str().unwrap_or_else(|| panic!("no state in {upstream}"));
        let failures = upstream["failures_in_row"].as_u64();
        (state.to_owned(), failures.unwrap_or_else(|| panic!("no failures_in_row in {upstream}")))
    }

    /// Sends a signal by name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(kill.unwrap().success(), "kill -{name}");
    }

    /// Waits for the end of the child.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the gateway has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Whether the child still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until a line of the log, old or new, satisfies the predicate, and returns it.
    #[track_caller]
    pub(crate) fn wait_for_log(&mut self, what: &str, predicate: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + LIMIT;
        let mut lines = self.log.lines.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(line) = lines[seen..].iter().find(|line| predicate(line)) {
                return line.clone();
            }
            seen = lines.len();
            let ended = self.child.try_wait().unwrap();
            let log = lines.join("\n");
            assert!(Instant::now() < end && ended.is_none(), "no log line with {what}; {ended:?}\n{log}");
            lines = self.log.grew.wait_timeout(lines, Duration::from_millis(50)).unwrap().0;
        }
    }

    /// The lines logged so far that satisfy the predicate.
    pub(crate) fn log_lines(&self, predicate: impl Fn(&str) -> bool) -> Vec<String> {
        self.log.lines.lock().unwrap().iter().filter(|line| predicate(line)).cloned().collect()
    }

    /// Stops reading the log, so that its pipe fills up.
    pub(crate) fn stop_reading_log(&self) {
        self.log.pause.store(true, Ordering::Relaxed);
    }

    /// Closes the reading end of the log at the next line.
    pub(crate) fn close_log(&self) {
        self.log.close.store(true, Ordering::Relaxed);
    }

    /// The resident memory of the child in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // a poisoned lock must not hide the log
            let lines = self.log.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("--- log of the gateway\n{}\n---", lines.join("\n"));
        }
    }
}

/// Where a configuration is unless a test says otherwise.
fn in_place(directory: &Path, text: &str) -> &'static str {
    write_whole(&directory.join("config.yaml"), text);
    "config.yaml"
}

/// Replaces a file in one step, as an editor or a deployment does it.
pub(crate) fn write_whole(path: &Path, text: &str) {
    let new: PathBuf = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// What a program that ends by itself said.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    /// stdout and stderr, one after the other.
    pub(crate) output: String,
    pub(crate) stdout: String,
}

/// Runs the program with arguments in a directory until it ends; a program that goes on is killed and fails the test.
#[track_caller]
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> Finished {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!("{arguments:?} did not end by itself: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Finished { code: output.status.code(), output: stdout.clone() + &String::from_utf8_lossy(&output.stderr), stdout }
}

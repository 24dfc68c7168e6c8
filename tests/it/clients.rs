//! Programs that people use, not ours: curl and Python's client in front, Python's file server behind.

use crate::support::{Gateway, Origin, assert_same_bytes, noise, reply, service};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn hello() -> (Origin, Gateway) {
    let origin = Origin::answering(|request| match request.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\nX-Seen: HEAD\r\nContent-Length: 5\r\n\r\n".to_vec(),
        method => reply(
            200,
            &format!("X-Seen: {method}\r\n"),
            if request.body.is_empty() { b"hello" } else { &*request.body },
        ),
    });
    let gateway = Gateway::start(&service("user-service", &[&origin.url()], ""));
    (origin, gateway)
}

/// Runs curl on a path of the gateway and returns what it wrote; fails the test when curl fails.
#[track_caller]
fn curl(gateway: &Gateway, arguments: &[&str], path: &str) -> Output {
    let url = format!("http://{}{path}", gateway.addr());
    let output = Command::new("curl")
        .args(["-q", "-sS", "--noproxy", "*", "--max-time", "20"])
        .args(arguments)
        .arg(url)
        .current_dir(gateway.directory())
        .stdin(Stdio::null())
        .output()
        .expect("curl is needed for this test");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_gets_and_posts() {
    let (origin, gateway) = hello();
    let path = "/v1/proxy/user-service/a?b=c";
    assert_eq!(text(&curl(&gateway, &[], path)), "hello");
    assert_eq!(origin.last().target(), "/a?b=c");
    assert_eq!(text(&curl(&gateway, &["-d", "x=1&y=2"], path)), "x=1&y=2");
    assert_eq!(origin.last().method(), "POST");
    assert_eq!(text(&curl(&gateway, &["-X", "DELETE"], path)), "hello");
    let shown = text(&curl(&gateway, &["-i"], path));
    assert!(shown.starts_with("HTTP/1.1 200 ") && shown.ends_with("\r\n\r\nhello"), "{shown}");
}

#[test]
fn curl_speaks_http_1_0_and_head() {
    let (_origin, gateway) = hello();
    let path = "/v1/proxy/user-service/";
    assert_eq!(text(&curl(&gateway, &["--http1.0"], path)), "hello");
    let head = text(&curl(&gateway, &["-I"], path));
    assert!(head.contains("X-Seen: HEAD") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn curl_keeps_its_connection() {
    let (_origin, gateway) = hello();
    let url = format!("http://{}/v1/proxy/user-service/2", gateway.addr());
    let output = curl(&gateway, &["-w", "%{num_connects} ", &url], "/v1/proxy/user-service/1");
    assert_eq!(text(&output), "hello1 hello0 ", "the second request made no connection");
}

#[test]
fn curl_uploads_a_file() {
    let (_origin, gateway) = hello();
    let body = noise(5_000_000);
    std::fs::write(gateway.directory().join("up"), &body).unwrap();
    let path = "/v1/proxy/user-service/";
    // curl waits for a 100 by itself when a file is large
    for arguments in [["-T", "up", "-o", "down"], ["--data-binary", "@up", "-o", "down"]] {
        curl(&gateway, &arguments, path);
        assert_same_bytes(&std::fs::read(gateway.directory().join("down")).unwrap(), &body);
    }
    curl(&gateway, &["-T", "up", "-H", "Transfer-Encoding: chunked", "-o", "down"], path);
    assert_same_bytes(&std::fs::read(gateway.directory().join("down")).unwrap(), &body);
}

/// Runs a Python script with arguments and returns its output; fails the test when the script fails.
#[track_caller]
fn python(script: &str, arguments: &[&str]) -> String {
    let output = Command::new("python3")
        .args(["-I", "-c", script])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("python3 is needed for this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    text(&output)
}

#[test]
fn pythons_client_keeps_its_connection() {
    let (_origin, gateway) = hello();
    let script = r#"
import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
client.connect()
port = client.sock.getsockname()[1]
for number in range(20):
    if number % 2:
        client.request("POST", "/v1/proxy/user-service/x", body=iter([b"he", b"llo"]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})
    else:
        client.request("GET", "/v1/proxy/user-service/x")
    response = client.getresponse()
    assert response.status == 200, response.status
    assert response.read() == b"hello"
    assert not response.will_close
    assert client.sock.getsockname()[1] == port
client.request("GET", "/v1/proxy/nobody/")
response = client.getresponse()
assert response.status == 404, response.status
assert response.getheader("Content-Type").startswith("application/problem+json")
print("done")
"#;
    assert_eq!(python(script, &[&gateway.addr().port().to_string()]).trim(), "done");
}

/// Python's file server for a directory; killed when dropped.
struct FileServer {
    child: Child,
    url: String,
}

impl FileServer {
    fn start(directory: &Path) -> FileServer {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is needed for this test");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // Serving HTTP on 127.0.0.1 port 40123 (http://127.0.0.1:40123/) ...
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(port.parse::<u16>().is_ok(), "no port in {line:?}");
        FileServer { child, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn pythons_file_servers_take_turns() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(one.path().join("name"), "one").unwrap();
    std::fs::write(two.path().join("name"), "two").unwrap();
    let big = noise(3_000_000);
    std::fs::write(one.path().join("big"), &big).unwrap();
    std::fs::write(two.path().join("big"), &big).unwrap();
    let (first, second) = (FileServer::start(one.path()), FileServer::start(two.path()));
    let gateway = Gateway::start(&format!("user-service:\n  - {}\n  - {}\n", first.url, second.url));
    let names: Vec<String> = (0..6).map(|_| text(&curl(&gateway, &[], "/v1/proxy/user-service/name"))).collect();
    assert_eq!(names, ["one", "two", "one", "two", "one", "two"]);
    let got = curl(&gateway, &[], "/v1/proxy/user-service/big");
    assert_same_bytes(&got.stdout, &big);
    assert!(text(&curl(&gateway, &[], "/v1/proxy/user-service/")).contains("name"), "the directory listing");
    assert_eq!(gateway.fetch("/v1/proxy/user-service/absent").status, 404);
    assert_eq!(gateway.breaker("user-service", &first.url), ("closed".to_owned(), 0));

    // one of them is stopped: no request fails
    drop(first);
    for _ in 0..20 {
        assert_eq!(gateway.fetch("/v1/proxy/user-service/name").text(), "two");
    }
}

//! Configuration files: any text is read to its end or refused, and each diagnostic points into the text; what
//! is accepted keeps the promises of the model.
//!
//! Must not know: the keys of a configuration, but for those in the files it mutates.

use fusegate::config::model::{Config, HostHeader, is_service_name};
use fusegate::config::{self, Diagnostic, Severity};
use fusegate::http::target::{escapes_base, is_host};

/// Valid files to mutate.
const FILES: [&str; 3] = [
    include_str!("../seeds/config/short.yaml"),
    include_str!("../seeds/config/full.yaml"),
    include_str!("../seeds/config/anchors.yaml"),
];

/// What a person or a template might put in the wrong place.
const PIECES: [&str; 24] = [
    "\n",
    ": ",
    "- ",
    "  ",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "<<: *a",
    "${HOST}",
    "${",
    "$$",
    "|\n ",
    "~",
    "0",
    "-1",
    "18446744073709551616",
    "\u{e9}\u{202e}",
    "\u{7f}\t",
];

/// The input is the text of a file, or, when its first byte is 1, 2 or 3, edits of one of [`FILES`], five bytes
/// each.
pub fn check(data: &[u8]) {
    match data {
        [which @ 1..=3, edits @ ..] => check_text(&edited(FILES[usize::from(which - 1)], edits)),
        _ => check_text(&String::from_utf8_lossy(data)),
    }
}

fn edited(file: &str, edits: &[u8]) -> String {
    let mut text: Vec<char> = file.chars().collect();
    for edit in edits.chunks_exact(5).take(16) {
        let [what, high, low, length, extra] = edit else { continue };
        let at = usize::from(u16::from_be_bytes([*high, *low])) % (text.len() + 1);
        let end = text.len().min(at + usize::from(*length));
        let piece = || PIECES[usize::from(*extra) % PIECES.len()].chars();
        match what % 5 {
            0 => drop(text.drain(at..end)),
            1 => drop(text.splice(at..at, piece())),
            2 => drop(text.splice(at..end, piece())),
            3 => {
                let copy = text[at..end].to_vec();
                let to = text.len() * usize::from(*extra) / 255;
                text.splice(to..to, copy);
            }
            _ => drop(text.splice(at..at, [char::from(*extra)])),
        }
    }
    text.into_iter().collect()
}

fn environment(name: &str) -> Option<String> {
    match name {
        "HOST" => Some("a.example".to_owned()),
        "FIVE" => Some("5".to_owned()),
        "EMPTY" => Some(String::new()),
        "LONG" => Some("x".repeat(3000)),
        _ => None,
    }
}

fn check_text(text: &str) {
    let lines = Lines::of(text.strip_prefix('\u{feff}').unwrap_or(text));
    match config::parse("c.yaml", text, &environment) {
        Ok(loaded) => {
            assert!(loaded.warnings.iter().all(|warning| warning.severity == Severity::Warning));
            loaded.warnings.iter().for_each(|warning| lines.check(warning));
            check_config(&loaded.config);
        }
        Err(problems) => {
            assert!(problems.0.iter().any(|problem| problem.severity == Severity::Error), "refused without an error");
            problems.0.iter().for_each(|problem| lines.check(problem));
        }
    }
}

/// Characters of each line, as the text's reader counts them.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        Lines(text.split('\n').map(|line| line.chars().count()).collect())
    }

    /// The place is in the text, or just behind the end of a line; the report is one to three harmless lines.
    fn check(&self, diagnostic: &Diagnostic) {
        let Diagnostic { line, column, width, .. } = *diagnostic;
        let shown = diagnostic.to_string();
        if line == 0 {
            assert_eq!(column, 0, "{shown}");
        } else {
            assert!(line <= self.0.len(), "line {line} of {}: {shown}", self.0.len());
            let length = self.0[line - 1];
            assert!((1..=length + 1).contains(&column), "column {column} of {length}: {shown}");
        }
        assert!(width >= 1, "{shown}");
        assert!(!diagnostic.message.is_empty() && shown.lines().count() <= 3, "{shown}");
        let harmful = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}'));
        assert!(!shown.contains(harmful), "{}", shown.escape_debug());
    }
}

/// Whoever holds a configuration need not check anything again.
fn check_config(config: &Config) {
    let gateway = &config.gateway;
    let limits = &gateway.limits;
    assert!(!gateway.listen.is_empty());
    assert!((1..=256).contains(&limits.headers) && limits.request_line >= 64 && limits.header_bytes >= 1 << 10);
    assert!(limits.buffer >= limits.header_bytes + limits.request_line);
    let mut names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert!(names.iter().all(|name| is_service_name(name)));
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a service stands twice");
    for service in &config.services {
        assert!(service.retries.attempts <= 15 && service.body_limit != Some(0));
        assert!(service.total_timeout.is_none_or(|total| !total.is_zero()));
        assert!(service.upgrades.iter().all(|protocol| {
            !protocol.is_empty()
                && protocol.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && b != b',')
        }));
        for upstream in &service.upstreams {
            let url = &upstream.url;
            assert!(url.port > 0 && is_host(url.authority.as_bytes()), "{url:?}");
            let base = url.base_path().as_bytes();
            assert!(
                url.path.starts_with('/') && url.path.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
            );
            assert!(!escapes_base(base), "{url:?}");
            assert!(upstream.breaker.failure_threshold >= 1 && !upstream.breaker.cooldown.is_zero());
            assert!(upstream.max_requests != Some(0));
            let timeouts = &upstream.timeouts;
            let each = [timeouts.connect, timeouts.response, timeouts.idle, timeouts.stream];
            assert!(each.iter().all(|timeout| !timeout.is_zero()), "{timeouts:?}");
            if let HostHeader::Literal(host) = &upstream.host {
                assert!(is_host(host.as_bytes()), "Host: {host}");
            }
        }
    }
}

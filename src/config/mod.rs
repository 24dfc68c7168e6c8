//! The configuration file: from its path to a valid [`model::Config`], or to all of its problems at once.
//!
//! `tree` gives every node a place, `schema` holds the keys, `rules` is what they are made of, `reader` walks one by
//! the other, `services` merges settings. The way back: `print` writes a configuration as a file, `show` as a
//! document, `json_schema` writes the keys for editors. Must not know: sockets, threads, what the running process does
//! with a configuration.

pub mod model;
pub mod token;

mod diagnostics;
mod expand;
mod json_schema;
mod print;
mod reader;
mod rules;
mod schema;
mod services;
mod show;
mod suggest;
mod tree;
mod units;
mod url;

pub use diagnostics::{Diagnostic, Severity};
pub use json_schema::json_schema;
pub use print::print;
pub use show::show;

use diagnostics::{At, Fault, Findings};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a file. A configuration is written by hand or by a template; more is some other file.
const LARGEST: u64 = 4 << 20;

/// A valid configuration, and what is odd about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What the file says, defaults filled in.
    pub config: model::Config,
    /// In the order of the file; none of them an error.
    pub warnings: Vec<Diagnostic>,
}

/// Why a file cannot be used: all of its errors and warnings, in the order of the file, at least one error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Diagnostic>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(n, problem)| {
            let separator = if n > 0 { "\n" } else { "" };
            write!(f, "{separator}{problem}")
        })
    }
}

impl std::error::Error for Problems {}

/// Reads and understands the configuration file at `path`.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    understand(path, &read(path)?)
}

/// The bytes of the configuration file at `path`.
///
/// Never blocks on what is not a regular file, and reads at most 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, Problems> {
    bytes(path, LARGEST).map_err(|fault| problem(&path.display().to_string(), "", None, fault))
}

/// What the `bytes` of the file at `path` mean, with the environment of the process.
pub fn understand(path: &Path, bytes: &[u8]) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    // Of a bare file name this is empty, and joined with a path it is that path.
    let directory = path.parent().unwrap_or(Path::new(""));
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_in(Some(directory), &name, text, &|variable| std::env::var(variable).ok()),
        Err(error) => Err(not_utf8(&name, bytes, error.valid_up_to())),
    }
}

/// Reads the configuration `text`; `name` is the file name in messages, `env` looks up variables. Other files that
/// it names are not read.
pub fn parse(name: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    parse_in(None, name, text, env)
}

/// The same; files that the text names are read, from `directory` when their paths are relative.
fn parse_in(
    directory: Option<&Path>,
    name: &str,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut findings = Findings::default();
    let root = tree::read(text, &mut findings).map_err(|(at, fault)| problem(name, text, at, fault))?;
    let config = services::config(&root, &mut reader::Reader::new(&mut findings, env, directory));
    let failed = findings.errors() > 0;
    let found = findings.finish(name, text);
    if failed { Err(Problems(found)) } else { Ok(Loaded { config, warnings: found }) }
}

/// A span of time as the file would write it; the message when it is none.
pub fn duration(key: &str, text: &str) -> Result<std::time::Duration, String> {
    units::duration(key, text).map_err(|fault| fault.message)
}

/// A problem that is reported alone.
fn problem(name: &str, text: &str, at: impl Into<Option<At>>, fault: Fault) -> Problems {
    let mut findings = Findings::default();
    findings.error(at, fault);
    Problems(findings.finish(name, text))
}

fn bytes(path: &Path, largest: u64) -> Result<Vec<u8>, Fault> {
    let unreadable = |error: io::Error| Fault::new(format!("the file cannot be read: {error}"));
    // Asked before it is opened: opening a FIFO waits for a writer.
    let metadata = path.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Fault::new("this is a directory, not a file"));
    }
    if !metadata.is_file() {
        return Err(Fault::new("this is not a regular file"));
    }
    let mut bytes = Vec::new();
    // It can grow while it is read, so its length says nothing.
    File::open(path).and_then(|file| file.take(largest + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > largest {
        return Err(Fault::new(format!("the file is larger than {}", units::show_size(largest))));
    }
    Ok(bytes)
}

fn not_utf8(name: &str, bytes: &[u8], valid: usize) -> Problems {
    let text = String::from_utf8_lossy(bytes);
    let ahead = &text[..valid];
    let line_start = ahead.rfind(['\n', '\r']).map_or(0, |end| end + 1);
    let line = 1 + ahead.replace("\r\n", "\n").matches(['\n', '\r']).count();
    let at = At { line, column: ahead[line_start..].chars().count() + 1, width: 1 };
    problem(name, &text, at, Fault::new(format!("byte 0x{:02x} is not UTF-8", bytes[valid])))
}

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;

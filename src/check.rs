//! `fusegate check` and `fusegate schema`: what the gateway would say of a configuration, for people and for programs.
//!
//! A check reads the file by the same call as a start and a reload do, so the three agree; what only a running
//! process can find out (a port in use, a name that does not resolve) is no part of it.
//!
//! Must not know: the keys of a configuration.

use crate::config::{self, Diagnostic, Loaded, Problems};
use crate::control::Source;
use crate::process::{EXIT_FAILURE, eprint_quietly, print_quietly};
use serde::Serialize;
use std::process::ExitCode;

/// What a check prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Problems on stderr, and a line on stdout when there is none.
    Words,
    /// The effective configuration on stdout, problems on stderr.
    Configuration,
    /// One document on stdout.
    Json,
}

#[derive(Serialize)]
struct Document<'a> {
    valid: bool,
    file: &'a str,
    /// 0 for an invalid file.
    services: usize,
    upstreams: usize,
    diagnostics: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    severity: &'static str,
    file: &'a str,
    /// 0, like the column, when it is about the file as a whole.
    line: usize,
    column: usize,
    message: &'a str,
    help: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn of(diagnostic: &'a Diagnostic) -> Entry<'a> {
        let Diagnostic { severity, file, line, column, message, help, .. } = diagnostic;
        Entry { severity: severity.word(), file, line: *line, column: *column, message, help: help.as_deref() }
    }
}

/// Validates a configuration as the start would.
pub fn check(source: &Source, output: Output) -> ExitCode {
    let loaded = source.load();
    let (config, diagnostics) = match &loaded {
        Ok(Loaded { config, warnings }) => (Some(config), warnings),
        Err(Problems(problems)) => (None, problems),
    };
    let file = source.name();
    let services = config.map_or(0, |config| config.services.len());
    let upstreams =
        config.map_or(0, |config| config.services.iter().map(|service| service.upstreams.len()).sum::<usize>());
    if output == Output::Json {
        let diagnostics = diagnostics.iter().map(Entry::of).collect();
        let document = Document { valid: config.is_some(), file: &file, services, upstreams, diagnostics };
        // Only maps with keys that are not strings can fail, and there is none.
        print_quietly(&serde_json::to_string_pretty(&document).unwrap_or_default());
    } else {
        diagnostics.iter().for_each(|diagnostic| eprint_quietly(&diagnostic.to_string()));
    }
    match (config, output) {
        (Some(_), Output::Words) => print_quietly(&format!("{file}: ok, services: {services}, upstreams: {upstreams}")),
        (Some(config), Output::Configuration) => print_quietly(config::print(config).trim_end()),
        _ => {}
    }
    if config.is_some() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
}

/// Prints the JSON Schema of the configuration.
pub fn schema() -> ExitCode {
    print_quietly(config::json_schema().trim_end());
    ExitCode::SUCCESS
}

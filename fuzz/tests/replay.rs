//! Feeds every target its seeds and everything that was ever found, without a fuzzer.
//!
//! A finding goes to `regressions/<target>/` before it is mended, and stays.

use fusegate_fuzz::{Check, TARGETS};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The files of a target's directory, in order; none when there is no such directory.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the directory can be read").path()).collect();
    files.sort();
    files
}

/// Checks every file; the names of those that do not hold.
fn failing(check: Check, files: &[PathBuf]) -> Vec<String> {
    let holds = |file: &PathBuf| {
        let bytes = fs::read(file).expect("the input can be read");
        catch_unwind(AssertUnwindSafe(|| check(&bytes))).is_ok()
    };
    files.iter().filter(|file| !holds(file)).map(|file| file.display().to_string()).collect()
}

fn replay(name: &str) {
    let (_, check) = TARGETS.iter().find(|(is, _)| *is == name).expect("the target exists");
    let seeds = inputs("seeds", name);
    assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
    let failing = failing(*check, &[seeds, inputs("regressions", name)].concat());
    assert!(failing.is_empty(), "these do not hold:\n{}", failing.join("\n"));
}

#[test]
fn request_head() {
    replay("request_head");
}

#[test]
fn response_head() {
    replay("response_head");
}

#[test]
fn chunked() {
    replay("chunked");
}

#[test]
fn target() {
    replay("target");
}

#[test]
fn rewrite() {
    replay("rewrite");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn every_target_is_replayed() {
    let this = include_str!("replay.rs");
    for (name, _) in TARGETS {
        assert!(this.contains(&format!("replay(\"{name}\")")), "{name} is not replayed");
    }
}

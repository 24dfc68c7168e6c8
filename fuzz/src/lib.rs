//! What the fuzz targets check, as plain functions of the input: a wrong answer is a panic.
//!
//! Under cargo-fuzz each is driven by libFuzzer; without it, `tests/replay.rs` feeds them the seeds and
//! every past finding, and each target is a program that checks the files named on its command line.
//! Must not know: how the input was made.

pub mod chunked;
pub mod config;
mod pieces;
pub mod request_head;
pub mod response_head;
pub mod rewrite;
pub mod strict;
pub mod target;

use std::process::ExitCode;

/// Checks one input.
pub type Check = fn(&[u8]);

/// Every target with its name, which is also the name of its directories and of its program.
pub const TARGETS: [(&str, Check); 6] = [
    ("request_head", request_head::check),
    ("response_head", response_head::check),
    ("chunked", chunked::check),
    ("target", target::check),
    ("rewrite", rewrite::check),
    ("config", config::check),
];

/// Checks the files that the command line names; a wrong answer is a panic with its reason.
pub fn replay(check: Check) -> ExitCode {
    let mut names = std::env::args_os().skip(1).peekable();
    if names.peek().is_none() {
        eprintln!("name the files to check; to fuzz, use cargo fuzz run");
        return ExitCode::from(2);
    }
    for name in names {
        match std::fs::read(&name) {
            Ok(bytes) => check(&bytes),
            Err(error) => {
                eprintln!("{}: {error}", name.display());
                return ExitCode::from(2);
            }
        }
        println!("{}: holds", name.display());
    }
    ExitCode::SUCCESS
}

/// Makes a program of a [`Check`]: for libFuzzer, or one that checks the files on its command line.
#[macro_export]
macro_rules! target {
    ($check:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $check(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($check)
        }
    };
}

//! Holds the documents to what they say of the tests: each test that `docs/http.md` names must exist, and
//! each of its rows must name one.

// a failed unwrap is how a test fails
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The files in which a test of this module can stand, most likely first: `a` in tests/it, `a::b::tests` in src.
fn files(module: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !module.contains("::") {
        return vec![root.join("tests/it").join(format!("{module}.rs"))];
    }
    let base = root.join("src").join(module.trim_end_matches("::tests").replace("::", "/"));
    vec![base.with_extension("rs"), base.join("tests.rs"), base.join("mod.rs")]
}

fn exists(test: &str) -> bool {
    let Some((module, name)) = test.rsplit_once("::") else { return false };
    let begin = format!("fn {name}(");
    files(module).iter().any(|file| {
        std::fs::read_to_string(file).is_ok_and(|text| {
            // an attribute in front tells a test from a helper
            text.match_indices(&begin).any(|(at, _)| text[..at].trim_end().ends_with(']'))
                || text.contains("proptest!") && text.contains(&begin)
        })
    })
}

/// The cells of each table row of a document, without heads and rulers.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| Rule |");
    text.lines().filter(is_row).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_rule_of_http_names_tests_that_exist() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/http.md")).unwrap();
    let rows = rows(&text);
    assert!(rows.len() > 50, "the tables were not found: {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let [rule, sections, does, tests] = row.as_slice() else {
            wrong.push(format!("not four cells: {row:?}"));
            continue;
        };
        if rule.is_empty() || sections.is_empty() || does.is_empty() {
            wrong.push(format!("an empty cell: {row:?}"));
        }
        let mut named = tests.split(", ").map(|test| test.trim_matches('`')).peekable();
        if named.peek().is_none_or(|test| test.is_empty()) {
            wrong.push(format!("no test: {rule}"));
        }
        wrong.extend(named.filter(|test| !exists(test)).map(|test| format!("no such test: {test}")));
    }
    assert!(wrong.is_empty(), "docs/http.md:\n{}", wrong.join("\n"));
}

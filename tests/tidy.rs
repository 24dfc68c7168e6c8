//! Rules of the source tree as ordinary tests: which room may know which, what a file must open with, what
//! must not be named where. A rule that fails says where, with `file:line`.
//!
//! Code under `#[cfg(test)]` may use more, so it is left out before most rules look. The lexer below knows
//! just enough Rust for that: comments and literals cannot be taken for code.

// A failed unwrap is how a test fails.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A room of `src/`, and what it may use besides itself.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

/// From the ground up: a room may only use those above it in this list. `shard::mailbox` is that one module.
const ROOMS: [Room; 14] = [
    Room { name: "ground", uses: &[] },
    Room { name: "logging", uses: &["ground"] },
    Room { name: "policy", uses: &["ground"] },
    Room { name: "http", uses: &["ground"] },
    Room { name: "config", uses: &["policy", "http", "ground"] },
    Room { name: "shared", uses: &["config", "policy", "http", "ground"] },
    Room { name: "shard", uses: &["shared", "config", "policy", "http", "ground"] },
    Room { name: "control", uses: &["shard::mailbox", "shared", "config", "policy", "http", "logging", "ground"] },
    Room { name: "demo", uses: &[] },
    Room { name: "affinity", uses: &["config"] },
    Room {
        name: "process",
        uses: &["affinity", "logging", "demo", "control", "shard", "shared", "config", "policy", "http", "ground"],
    },
    Room { name: "check", uses: &["process", "control", "config"] },
    Room {
        name: "cli",
        uses: &[
            "check", "process", "logging", "demo", "control", "shard", "shared", "config", "policy", "http", "ground",
        ],
    },
    Room { name: "main", uses: &["cli"] },
];

/// Calls that panic and may stay outside tests.
struct Allowed {
    file: &'static str,
    call: &'static str,
    times: usize,
    reason: &'static str,
}

const PANICS: [Allowed; 2] = [
    Allowed { file: "src/shard/mod.rs", call: ".expect(", times: 1, reason: "Shard::check, in debug builds only" },
    Allowed { file: "src/shard/mod.rs", call: "panic!", times: 1, reason: "Shard::check, in debug builds only" },
];

const WIDTH: usize = 120;

#[test]
fn arrows_point_down() {
    let mut faults = Faults::default();
    for file in sources() {
        let Some(room) = ROOMS.iter().find(|room| room.name == file.room()) else {
            if file.path != "src/lib.rs" {
                faults.add(&file, 1, format!("`{}` is not in the list of rooms of tests/tidy.rs", file.room()));
            }
            continue;
        };
        let code = file.code();
        let outward = paths(&code, "crate").into_iter().chain(paths(&code, "fusegate"));
        for (line, path) in outward.chain(climbing(&code, &file.modules())) {
            if !may_use(room, &path) {
                faults.add(&file, line, format!("{} must not use `{}`", room.name, path.join("::")));
            }
        }
    }
    faults.report("rooms use what is below them, see ROOMS in tests/tidy.rs");
}

#[test]
fn the_list_of_rooms_has_no_cycle() {
    for (at, room) in ROOMS.iter().enumerate() {
        for used in room.uses {
            let used = used.split("::").next().unwrap();
            assert!(
                ROOMS[..at].iter().any(|below| below.name == used),
                "{} uses {used}, which is not below",
                room.name
            );
        }
    }
}

#[test]
fn files_say_what_they_are_for() {
    let mut faults = Faults::default();
    for file in sources() {
        if !file.text.starts_with("//!") {
            faults.add(&file, 1, "does not open with `//!`".to_owned());
            continue;
        }
        let opening = file.text.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join(" ");
        let opening = opening.split_whitespace().collect::<Vec<_>>().join(" ");
        let says = opening.contains("Must not know") || opening.contains("must not know");
        if !says && !file.is_test && !["src/main.rs", "src/lib.rs"].contains(&file.path.as_str()) {
            faults.add(&file, 1, "the opening does not say what the file must not know".to_owned());
        }
    }
    faults.report("a file opens with what it is for and what it must not know");
}

#[test]
fn the_data_path_has_no_shared_ownership() {
    let mut faults = Faults::default();
    for file in sources().iter().filter(|file| ["shard", "http", "policy"].contains(&file.room())) {
        let code = file.code();
        for (at, token) in code.iter().enumerate() {
            let cell = match token.text.as_str() {
                "Rc" => "RefCell",
                "Arc" => "Mutex",
                _ => continue,
            };
            if is(&code, at + 1, "<") && last_of_path(&code, at + 2) == Some(cell) {
                faults.add(file, token.line, format!("{}<{cell}", token.text));
            }
        }
    }
    faults.report("shard, http and policy have owners, not shared cells");
}

#[test]
fn nothing_panics_without_a_reason() {
    let mut faults = Faults::default();
    let mut found = [0; PANICS.len()];
    for file in sources() {
        for (line, call) in panics(&file.code()) {
            match PANICS.iter().position(|allowed| allowed.file == file.path && allowed.call == call) {
                Some(at) if found[at] < PANICS[at].times => found[at] += 1,
                _ => faults.add(&file, line, format!("`{call}`")),
            }
        }
    }
    for (allowed, found) in PANICS.iter().zip(found).filter(|(allowed, found)| *found < allowed.times) {
        faults
            .0
            .push(format!("{}: `{}` is allowed {} times, found {found}", allowed.file, allowed.call, allowed.times));
    }
    let mut rule = "outside tests, failures are values. Allowed are local invariants and debug checks:".to_owned();
    for allowed in &PANICS {
        let _ = write!(rule, "\n  {} {} ×{}: {}", allowed.file, allowed.call, allowed.times, allowed.reason);
    }
    faults.report(&rule);
}

#[test]
fn pure_rooms_know_no_socket_and_no_clock() {
    let mut faults = Faults::default();
    for file in sources().iter().filter(|file| ["http", "policy"].contains(&file.room())) {
        for token in file.code() {
            if ["mio", "Instant", "SystemTime"].contains(&token.text.as_str()) || token.text.starts_with("Tcp") {
                faults.add(file, token.line, format!("names `{}`", token.text));
            }
        }
    }
    faults.report("http and policy know no socket and no clock");
}

#[test]
fn shards_read_no_file_and_format_no_json() {
    let mut faults = Faults::default();
    for file in sources().iter().filter(|file| file.room() == "shard") {
        let code = file.code();
        for token in code.iter().filter(|token| ["serde", "serde_json", "serde_yaml"].contains(&token.text.as_str())) {
            faults.add(file, token.line, format!("names `{}`", token.text));
        }
        for (line, path) in
            paths(&code, "std").iter().filter(|(_, path)| path.first().is_some_and(|first| first == "fs"))
        {
            faults.add(file, *line, format!("names `std::{}`", path.join("::")));
        }
    }
    faults.report("a shard reads no file and knows no serde");
}

#[test]
fn lines_fit() {
    let mut faults = Faults::default();
    for file in sources() {
        for (at, line) in file.text.lines().enumerate() {
            let width = line.chars().count();
            // Rows of a table and texts cannot be wrapped.
            let whole = line.starts_with("//! |") || line.contains('"');
            if width > WIDTH && !whole {
                faults.add(&file, at + 1, format!("{width} characters"));
            }
        }
    }
    faults.report(&format!("lines have at most {WIDTH} characters"));
}

#[test]
fn dependencies_have_a_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let bare: Vec<String> =
        unexplained(&manifest).iter().map(|(line, name)| format!("Cargo.toml:{line}: {name}")).collect();
    Faults(bare).report("every dependency has a comment line above it that says why it is there");
}

/// What breaks a rule, a line each.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, file: &Source, line: usize, what: String) {
        self.0.push(format!("{}:{line}: {what}", file.path));
    }

    #[track_caller]
    fn report(self, rule: &str) {
        assert!(self.0.is_empty(), "{rule}\n\n{}\n\nfaults: {}", self.0.join("\n"), self.0.len());
    }
}

/// A file of `src/`.
struct Source {
    /// From the root of the project, with `/`.
    path: String,
    text: String,
    /// Its module is declared under `#[cfg(test)]`.
    is_test: bool,
}

impl Source {
    fn room(&self) -> &str {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().map_or(inside, |first| first.trim_end_matches(".rs"))
    }

    /// The modules that the file is in, itself included.
    fn modules(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let path = path.trim_end_matches("/mod");
        path.split('/').filter(|module| !["lib", "main"].contains(module)).map(str::to_owned).collect()
    }

    /// Its tokens without those of tests.
    fn code(&self) -> Vec<Token> {
        if self.is_test { Vec::new() } else { without_tests(&tokens(&self.text)).0 }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of `src/`, in order.
fn sources() -> Vec<Source> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    files.sort();
    let texts: Vec<String> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut tests = Vec::new();
    for (path, text) in files.iter().zip(&texts) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let directory = path.parent().unwrap();
        let children = if ["mod", "lib", "main"].contains(&stem) { directory.into() } else { directory.join(stem) };
        for module in without_tests(&tokens(text)).1 {
            tests.push(children.join(format!("{module}.rs")));
            tests.push(children.join(module).join("mod.rs"));
        }
    }
    assert!(files.len() > 10, "the sources are not where they are looked for");
    let named = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
    let source = |(path, text): (&PathBuf, String)| Source { path: named(path), text, is_test: tests.contains(path) };
    files.iter().zip(texts).map(source).collect()
}

fn may_use(room: &Room, path: &[String]) -> bool {
    path.first().is_some_and(|first| first == room.name)
        || room.uses.iter().any(|used| {
            let used: Vec<&str> = used.split("::").collect();
            path.len() >= used.len() && path.iter().zip(&used).all(|(have, used)| have == used)
        })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    line: usize,
    /// A word, one character of punctuation, or `""` for any literal.
    text: String,
}

/// The tokens of a Rust source, without comments.
fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let at = |at: usize| text.get(at).copied().unwrap_or('\0');
    let in_word = |char: char| char == '_' || char.is_alphanumeric();
    let mut found = Vec::new();
    let (mut line, mut i) = (1, 0);
    while i < text.len() {
        let (from, begun) = (i, line);
        let mut word = String::new();
        if at(i) == '/' && at(i + 1) == '/' {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if at(i).is_whitespace() {
            i += 1;
        } else if at(i) == '"' {
            i = string_end(&text, i);
            word.push_str("\"\"");
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < text.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
            word.push_str("\"\"");
        } else if in_word(at(i)) {
            while in_word(at(i)) {
                i += 1;
            }
            word.extend(&text[from..i]);
            let hashes = (i..text.len()).take_while(|i| at(*i) == '#').count();
            match word.as_str() {
                "r" | "br" | "cr" if at(i + hashes) == '"' => {
                    i = raw_string_end(&text, i + hashes + 1, hashes);
                    word = "\"\"".to_owned();
                }
                "b" | "c" if at(i) == '"' => {
                    i = string_end(&text, i);
                    word = "\"\"".to_owned();
                }
                // The character follows as a token of its own.
                "b" if at(i) == '\'' => word.clear(),
                _ => {}
            }
        } else {
            word.push(at(i));
            i += 1;
        }
        i = i.min(text.len());
        line += text[from..i].iter().filter(|char| **char == '\n').count();
        if !word.is_empty() {
            found.push(Token { line: begun, text: word });
        }
    }
    found
}

/// Behind the string literal whose opening quote stands at `from`.
fn string_end(text: &[char], from: usize) -> usize {
    let mut i = from + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Behind the raw string literal whose content begins at `from`.
fn raw_string_end(text: &[char], from: usize, hashes: usize) -> usize {
    let closes = |i: usize| text[i] == '"' && (1..=hashes).all(|n| text.get(i + n) == Some(&'#'));
    (from..text.len()).find(|i| closes(*i)).map_or(text.len(), |i| i + 1 + hashes)
}

fn is(code: &[Token], at: usize, text: &str) -> bool {
    code.get(at).is_some_and(|token| token.text == text)
}

fn are(code: &[Token], at: usize, texts: &[&str]) -> bool {
    texts.iter().enumerate().all(|(n, text)| is(code, at + n, text))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|char: char| char == '_' || char.is_alphabetic())
}

/// The tokens outside items under `#[cfg(test)]` or `#[cfg(all(test, …))]`; and the names of modules in
/// other files that are declared under it.
fn without_tests(code: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < code.len() {
        let is_test = are(code, i, &["#", "[", "cfg", "(", "test", ")", "]"])
            || are(code, i, &["#", "[", "cfg", "(", "all", "(", "test"]);
        if !is_test {
            kept.push(code[i].clone());
            i += 1;
            continue;
        }
        // The item ends with its braces, or with a semicolon outside all brackets.
        let mut depth = 0;
        let mut opening = true;
        while let Some(token) = code.get(i) {
            if depth == 0 && token.text == "mod" && is(code, i + 2, ";") {
                modules.push(code[i + 1].text.clone());
            }
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            i += 1;
            let ended = matches!(token.text.as_str(), "}" | ";") && depth == 0;
            // `use a::{b};` ends with its semicolon.
            if ended && !(token.text == "}" && is(code, i, ";")) {
                opening = false;
            }
            if !opening {
                break;
            }
        }
    }
    (kept, modules)
}

/// All paths that begin with `root::`, without it; the trees of `use` spread out.
fn paths(code: &[Token], root: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for at in 0..code.len() {
        // Behind `a::` it is a segment of another path; behind a bare `::` or `a:` it is not.
        let is_inside = at >= 3 && are(code, at - 2, &[":", ":"]) && is_word(&code[at - 3].text);
        if !is_inside && are(code, at, &[root, ":", ":"]) {
            spread(code, at + 3, &[], &mut found);
        }
    }
    found
}

/// The paths of the tree at `at`, each behind `prefix`; where the tree ends.
fn spread(code: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = prefix.to_vec();
    let line = code.get(at).map_or(0, |token| token.line);
    loop {
        if is(code, at, "{") {
            at += 1;
            while at < code.len() && !is(code, at, "}") {
                at = spread(code, at, &path, found).max(at + 1);
                if is(code, at, ",") {
                    at += 1;
                }
            }
            return at + 1;
        }
        let Some(token) = code.get(at) else { break };
        if token.text != "*" && !is_word(&token.text) {
            break;
        }
        path.push(token.text.clone());
        at += 1;
        if !are(code, at, &[":", ":"]) {
            break;
        }
        at += 2;
    }
    if is(code, at, "as") {
        at += 2;
    }
    found.push((line, path));
    at
}

/// Paths that leave the room through `super`, as they read from the crate's root.
fn climbing(code: &[Token], modules: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (line, path) in paths(code, "super") {
        let more = path.iter().take_while(|segment| *segment == "super").count();
        let rest = &path[more..];
        // In a module inside the file it would lead less far; outside tests there are none.
        match modules.len().saturating_sub(1 + more) {
            0 => found.push((line, rest.to_vec())),
            kept => found.push((line, modules[..kept].iter().chain(rest).cloned().collect())),
        }
    }
    found
}

/// The last segment of the path at `at`.
fn last_of_path(code: &[Token], mut at: usize) -> Option<&str> {
    while are(code, at + 1, &[":", ":"]) {
        at += 3;
    }
    code.get(at).map(|token| token.text.as_str())
}

/// Calls that panic.
fn panics(code: &[Token]) -> Vec<(usize, &'static str)> {
    const CALLS: [(&[&str], &str); 6] = [
        (&[".", "unwrap", "(", ")"], ".unwrap()"),
        (&[".", "expect", "("], ".expect("),
        (&["panic", "!"], "panic!"),
        (&["unreachable", "!"], "unreachable!"),
        (&["todo", "!"], "todo!"),
        (&["unimplemented", "!"], "unimplemented!"),
    ];
    let at = |at: usize| {
        let (_, call) = CALLS.iter().find(|(texts, _)| are(code, at, texts))?;
        // The name may stand on another line than its dot.
        Some((code[at + usize::from(call.starts_with('.'))].line, *call))
    };
    (0..code.len()).filter_map(at).collect()
}

/// Dependencies of a manifest without a comment line above them.
fn unexplained(manifest: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut inside, mut depth, mut above) = (false, 0, "");
    for (at, line) in manifest.lines().enumerate() {
        let is_heading = depth == 0 && line.starts_with('[');
        if is_heading {
            let heading = line.trim_matches(['[', ']']);
            inside = heading.ends_with("dependencies");
        }
        let one_of_its_own = is_heading && line.contains("dependencies.");
        let in_a_table = inside && !is_heading && depth == 0 && line.contains('=') && !line.starts_with('#');
        if (one_of_its_own || in_a_table) && !above.starts_with('#') {
            found.push((at + 1, line.to_owned()));
        }
        if !line.trim_start().starts_with('#') && !is_heading {
            depth += line.matches(['[', '{']).count();
            depth -= line.matches([']', '}']).count().min(depth);
        }
        above = line;
    }
    found
}

/// The rules are only as good as what finds their faults.
mod finders {
    use super::*;

    fn code(text: &str) -> Vec<Token> {
        without_tests(&tokens(text)).0
    }

    fn words(text: &str) -> String {
        tokens(text).into_iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
    }

    fn reached(text: &str, root: &str) -> Vec<String> {
        paths(&code(text), root).into_iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(
            words(r#"a("b \" c", 'd', '\'', '\u{e}', b'f', b"g", c"h")"#),
            r#"a ( "" , "" , "" , "" , "" , "" , "" )"#
        );
        assert_eq!(words(r###"r"a\" r#"b " c"# br##"d "# e"## f"###), r#""" "" "" f"#);
        assert_eq!(words("fn a<'b>(c: &'b str, d: 'static)"), "fn a < ' b > ( c : & ' b str , d : ' static )");
        assert_eq!(tokens("a\n\"\n\"\n b")[2], Token { line: 4, text: "b".to_owned() });
    }

    #[test]
    fn tests_are_left_out() {
        let text = "#[cfg(test)]\nmod tests;\na;\n#[cfg(test)]\n#[path = \"x\"]\nmod b { fn c() { d } }\ne;\n\
             #[cfg(test)]\nuse f::{g, h};\ni;\n#[cfg(not(test))]\nj;";
        let (kept, modules) = without_tests(&tokens(text));
        let kept: Vec<String> = kept.into_iter().map(|token| token.text).collect();
        assert_eq!(kept.join(" "), "a ; e ; i ; # [ cfg ( not ( test ) ) ] j ;");
        assert_eq!(modules, ["tests"]);
    }

    #[test]
    fn paths_are_found_wherever_they_stand() {
        let uses = "use crate::a;\nuse crate::b::{c, d::{self, e as f, *},\n  g};\nuse crate::{h::i, j};";
        let found = ["1 a", "2 b::c", "2 b::d::self", "2 b::d::e", "2 b::d::*", "3 b::g", "4 h::i", "4 j"];
        assert_eq!(reached(uses, "crate"), found);
        let inline = "fn a(b: crate::c::D) -> crate::f {\
             $crate::g!(crate::h::<i>::j, pub(in crate::k), ::crate::l, m::crate::n) }";
        assert_eq!(reached(inline, "crate"), ["1 c::D", "1 f", "1 g", "1 h", "1 k", "1 l"]);
        assert_eq!(reached("// crate::a\n/// [`crate::b`]\n\"crate::c\";", "crate"), Vec::<String>::new());
    }

    #[test]
    fn super_is_followed_out_of_a_room() {
        let from = |text: &str, modules: &[&str]| {
            let modules: Vec<String> = modules.iter().map(|module| (*module).to_owned()).collect();
            climbing(&code(text), &modules).into_iter().map(|(_, path)| path.join("::")).collect::<Vec<_>>()
        };
        assert_eq!(from("use super::a;", &["room", "file"]), ["room::a"]);
        assert_eq!(from("use super::super::other::A;", &["room", "file"]), ["other::A"]);
        assert_eq!(from("use super::other;", &["room"]), ["other"]);
    }

    #[test]
    fn an_arrow_is_judged_by_whole_segments() {
        let room = Room { name: "control", uses: &["shard::mailbox", "http"] };
        let may = |path: &str| may_use(&room, &path.split("::").map(str::to_owned).collect::<Vec<_>>());
        assert!(
            ["control::build", "shard::mailbox", "shard::mailbox::Notice", "http", "http::head"]
                .map(may)
                .iter()
                .all(|may| *may)
        );
        assert!(["shard", "shard::net", "shard::*", "shard::self", "https", "*"].map(may).iter().all(|may| !*may));
    }

    #[test]
    fn panics_and_cells_are_found() {
        let text = "a\n    .unwrap();\nb.expect(\"c\"); panic!(); d.unwrap_or(e); f.expect_err(g); assert!(h);";
        assert_eq!(panics(&code(text)), [(2, ".unwrap()"), (3, ".expect("), (3, "panic!")]);
        assert_eq!(last_of_path(&code("std::cell::RefCell<u8>"), 0), Some("RefCell"));
    }

    #[test]
    fn a_dependency_without_a_comment_is_found() {
        let manifest = "[package]\nname = \"a\"\n[dependencies]\n# why\nb = \"1\"\nc = { version = \"1\", \
             features = [\n  \"d = e\",\n] }\n\n[dev-dependencies]\n# why\nf = \"1\"\n\
             [target.x.dependencies]\ng = \"1\"\n# why\n[dependencies.h]\nversion = \"1\"\n";
        let found: Vec<usize> = unexplained(manifest).into_iter().map(|(line, _)| line).collect();
        assert_eq!(found, [6, 14]);
    }
}

//! Every key of the tables: the schema has it and the README tells of it, and each wrong value of it is an error that
//! says where. What the reader accepts, the schema accepts, and it prints as a file that says the same.

use super::rules::{Entry, Kind, Mapping, Shown, What, outline};
use super::schema::{self, Process, Settings};
use super::tests::{bad, good, read, schema_says};
use super::{Severity, json_schema, units};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const README: &str = include_str!("../../README.md");

/// A value or a mapping of the tables, and the keys that lead to it from a service, an upstream or the gateway.
struct Place {
    path: Vec<&'static str>,
    entry: Entry,
}

impl Place {
    fn key(&self) -> &'static str {
        self.entry.key
    }

    /// A file in which this key has a value, in the last line.
    fn file(&self, value: &str) -> String {
        let (head, mut indent) = match self.path[0] {
            "service" => ("s:\n  upstreams: [http://a]\n".to_owned(), 2),
            "upstream" => ("s:\n  - url: http://a\n".to_owned(), 4),
            _ => ("s: [http://a]\ngateway:\n".to_owned(), 2),
        };
        let mut file = head;
        for key in &self.path[1..] {
            file.push_str(&format!("{:indent$}{key}:\n", ""));
            // A check without a path is another mistake.
            if *key == "health_check" && self.key() != "path" {
                file.push_str(&format!("{:indent$}  path: /\n", ""));
            }
            indent += 2;
        }
        format!("{file}{:indent$}{}: {value}\n", "", self.key())
    }
}

/// Every place of the tables, mappings before what is in them. Those of `gateway.defaults` are those of a service.
fn places() -> Vec<Place> {
    let mut places = Vec::new();
    collect(&["service"], outline(schema::SERVICE, &Settings::default()), &mut places);
    collect(&["upstream"], outline(schema::UPSTREAM, &Settings::default()), &mut places);
    let gateway = outline(schema::GATEWAY, &Process::default());
    collect(&["gateway"], gateway, &mut places);
    places.retain(|place| place.path.get(1) != Some(&"defaults"));
    places
}

fn collect(path: &[&'static str], entries: Vec<Entry>, places: &mut Vec<Place>) {
    for mut entry in entries {
        let mut inside = Vec::new();
        if let What::Mapping(Mapping { entries, .. }) = &mut entry.what {
            inside = std::mem::take(entries);
        }
        let deeper = [path, &[entry.key]].concat();
        places.push(Place { path: path.to_vec(), entry });
        collect(&deeper, inside, places);
    }
}

#[test]
fn the_schema_is_one() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn the_schema_stands_beside_the_example() {
    let stored = include_str!("../../fusegate.schema.json");
    assert!(stored == json_schema(), "write it anew: fusegate schema > fusegate.schema.json");
    let first = include_str!("../../config.yaml").lines().next();
    assert_eq!(first, Some("# yaml-language-server: $schema=./fusegate.schema.json"));
}

#[test]
fn the_schema_has_the_keys_of_the_tables_and_no_other() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let mut found = BTreeSet::new();
    for root in ["service", "upstream", "gateway"] {
        keys_of(&schema, &schema["$defs"][root], root, &mut found);
    }
    found.retain(|path| !path.starts_with("gateway.defaults."));
    let expected: BTreeSet<String> =
        places().iter().map(|place| format!("{}.{}", place.path.join("."), place.key())).collect();
    assert_eq!(found, expected);
    assert!(expected.len() > 90, "{}", expected.len());
}

#[test]
fn what_is_shown_has_every_key() {
    let text = "s:\n  - url: http://a\n    health_check: {path: /up}\n";
    let shown = super::show(&good(text));
    let (service, gateway) = (&shown["services"][0], &shown["gateway"]);
    let mut missing = Vec::new();
    for place in places() {
        let root = match place.path[0] {
            "service" => [service, &service["upstreams"][0]],
            "upstream" => [&service["upstreams"][0], &Value::Null],
            _ => [gateway, &Value::Null],
        };
        let path: Vec<&str> = place.path[1..].iter().copied().chain([place.key()]).collect();
        let has = |root: &Value| path.iter().try_fold(root, |at, key| at.get(key)).is_some();
        let is_merged = place.path.len() == 1 && place.key() == "defaults";
        if !is_merged && !root.into_iter().any(has) {
            missing.push(format!("{}.{}", place.path.join("."), place.key()));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(service["name"], "s");
    assert_eq!(service["upstreams"][0]["circuit_breaker"]["cooldown"], "1m");
    assert_eq!(service["upstreams"][0]["weight"], 1);
    assert_eq!(gateway["admin"]["listen"], Value::Null);
    assert_eq!(super::show(&good("s: [http://a]"))["services"][0]["upstreams"][0]["health_check"], false);
}

/// Every key that the schema allows below `path`, each with a description.
fn keys_of(whole: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let named = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
    if let Some(name) = named.filter(|name| !["upstreams", "reference"].contains(name)) {
        keys_of(whole, &whole["$defs"][name], path, found);
    }
    schema["anyOf"].as_array().into_iter().flatten().for_each(|schema| keys_of(whole, schema, path, found));
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{path}");
        keys_of(whole, schema, &path, found);
        found.insert(path);
    }
    assert!(schema["properties"].is_null() || schema["additionalProperties"] == false, "{path}");
}

/// The rows of the README's tables of fields: the keys, and the defaults as far as there are as many.
fn rows() -> Vec<(Vec<String>, Vec<&'static str>)> {
    let mut rows = Vec::new();
    let mut section = "";
    for line in README.lines() {
        if let Some(of) = line.strip_prefix("| field of ") {
            // The table of a mapping names the keys in it; the other tables name all that leads to a key.
            let mapping = of.split('`').nth(1).filter(|name| of.starts_with('`') && *name != "gateway");
            section = mapping.unwrap_or_default();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [keys, defaults, _] = *cells else { continue };
        if !line.starts_with("| `") {
            continue;
        }
        let point = if section.is_empty() { "" } else { "." };
        let keys = keys.trim_end_matches(" ¹").split(", ").map(|key| key.trim_matches('`'));
        let keys: Vec<String> = keys.map(|key| format!("{section}{point}{key}")).collect();
        let defaults = if keys.len() == 1 { vec![defaults] } else { defaults.split(", ").collect() };
        rows.push((keys, defaults));
    }
    rows
}

#[test]
fn the_readme_tells_every_key_and_its_default() {
    let rows = rows();
    let mut wrong = Vec::new();
    for place in places() {
        let What::Value(_, shown) = &place.entry.what else { continue };
        let section = match place.path[1..] {
            [] if place.path[0] == "upstream" => "upstreams[].".to_owned(),
            [] => String::new(),
            ref path => path.join(".") + ".",
        };
        let name = format!("{section}{}", place.key());
        // A row names its first key in full, and the others of the same section by their last word.
        let cell = rows.iter().find_map(|(keys, defaults)| {
            let same = |key: &String| *key == name || (keys[0].starts_with(&section) && *key == place.key());
            let at = keys.iter().position(same)?;
            Some((defaults.len() == keys.len()).then(|| defaults[at]))
        });
        match (cell, shown) {
            (None, _) => wrong.push(format!("{name} is missing")),
            (Some(Some(cell)), Some(shown)) if !same_default(cell, shown) => {
                wrong.push(format!("{name} has the default {shown:?}, not {cell}"));
            }
            (Some(None), _) => wrong.push(format!("the row of {name} has not as many defaults as keys")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A cell is `30s`, `` `upstream` ``, `[websocket]` or `0 = off`.
fn same_default(cell: &str, shown: &Shown) -> bool {
    let cell = cell.split(" = ").next().unwrap_or(cell).replace('`', "");
    let text = |shown: &Shown| match shown {
        Shown::Bare(text) | Shown::Text(text) => text.clone(),
        Shown::List(_) => String::new(),
    };
    match shown {
        Shown::List(items) => cell == format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        one => {
            let shown = text(one);
            let time = |text: &str| units::duration("", text).ok();
            cell == shown || (time(&cell).is_some() && time(&cell) == time(&shown)) || format!("{cell}%") == shown
        }
    }
}

#[test]
fn the_examples_of_the_documents_are_valid() {
    let blocks: Vec<&str> = README.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2);
    for text in blocks.into_iter().chain([include_str!("../../config.yaml")]) {
        good(text);
    }
}

#[test]
fn what_the_schema_rejects() {
    for text in [
        "s: http://a\n",
        "s: [localhost:9001]\n",
        "s: [https://a]\n",
        "s: [{weight: 1}]\n",
        "s: {retries: {attempts: 1}}\n",
        "a/b: [http://a]\n",
        "..: []\n",
        "[http://a]\n",
        "gatewy: {listen: 0.0.0.0:80}\n",
        "x-codes: [500]\n",
        "services:\n  a: [http://a]\nb: [http://b]\n",
        "services: {a/b: [http://a]}\n",
        "services: []\nb: 5\n",
        "gateway: 5\n",
        "gateway: {lisen: 127.0.0.1:80}\n",
        "gateway: {upstreams: []}\n",
        "gateway: {defaults: {upstreams: []}}\n",
        "gateway: {defaults: {timeouts: {conect: 1s}}}\n",
        "s: {upstreams: [http://a], max_requests: 1}\n",
        "s: [{url: http://a, retries: {attempts: 1}}]\n",
        "s: [{url: http://a, timeouts: {total: 1s}}]\n",
        "s: [{url: http://a, circuit_breaker: {when_all_open: probe}}]\n",
    ] {
        bad(text);
        assert!(schema_says(text).is_err(), "{text}");
    }
}

/// Whether the schema is lenient about a wrong value of this kind: a range of a value with a unit it cannot say, and
/// of some texts and methods it does not.
fn lenient(kind: &Kind, value: &str) -> bool {
    match kind {
        Kind::Size(_) | Kind::Duration(_) | Kind::DurationOrZero(_) => schema_sees_unit(value),
        Kind::Text(_) | Kind::List(_) => value.contains("get"),
        _ => false,
    }
}

fn schema_sees_unit(value: &str) -> bool {
    units::size("", value).is_ok() || units::duration("", value).is_ok() || value.ends_with("GiB")
}

/// Wrong values of a kind, as YAML in one line.
fn wrong_values(kind: &Kind) -> Vec<String> {
    let scalar = ["", "~", "''", "' '", "[x]", "[]", "{x: y}", "{}"];
    let one = |more: &[&str]| scalar.iter().chain(more).map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let number = |least: u64, most: u64| {
        let mut all = one(&["-1", "1.5", "five", "'5'", "true", "1e30", "99999999999999999999999", "5s"]);
        all.push((most + 1).to_string());
        all.extend(least.checked_sub(1).map(|below| below.to_string()));
        all
    };
    let time = |least: Duration, most: Duration, zero: bool| {
        let mut all = one(&["5", "1.5", "-1s", "+1s", "5d", "5 s", "5S", "s", "1s1s", "1s1m", "soon", "true"]);
        all.push(units::show_duration(least / 2));
        all.push(format!("{}ms", most.as_millis() + 1));
        all.push(format!("{}h", "9".repeat(30)));
        all.extend((!zero).then(|| "0".to_owned()));
        all.extend((!zero).then(|| "0s".to_owned()));
        all
    };
    match kind {
        Kind::Flag => one(&["yes", "no", "1", "0", "'true'", "TRUE!", "maybe"]),
        Kind::Count(range) => number(*range.start(), *range.end()),
        Kind::CountOrAuto(range) => [number(*range.start(), *range.end()), one(&["automatic", "Auto"])].concat(),
        Kind::Size(range) => {
            let mut all = one(&["5", "1.5KiB", "-1B", "64k", "64kB", "1mib", "5x", "KiB", "1KiB1B", "large", "true"]);
            all.push(format!("{}B", range.end() + 1));
            all.push("99999999999GiB".to_owned());
            all.extend((*range.start() > 0).then(|| format!("{}B", range.start() - 1)));
            all.extend((*range.start() > 0).then(|| "0".to_owned()));
            all
        }
        Kind::Duration(range) => time(*range.start(), *range.end(), false),
        Kind::DurationOrZero(range) => time(*range.start(), *range.end(), true),
        Kind::Percent => {
            one(&["20", "1.5", "101%", "-1%", "-0.5", "20 %", "12.345%", "0.00001", "half", "'%'", "true"])
        }
        Kind::Factor(range) => {
            let mut all = one(&["0.5", "-1", "1.555", "twice", "1x", "2%", "true"]);
            all.push((range.end() / 100 + 1).to_string());
            all
        }
        Kind::Word(words) => {
            let mut all = one(&["nonsense", "5", "true", "1.5"]);
            all.push(words[0].to_uppercase());
            all.push(format!("{}s", words[0]));
            all
        }
        // A path may be almost anything.
        Kind::Text(form) if form.pattern == schema::PATH.pattern => one(&["5", "true", "1.5", "'a '", "\"\\ta\""]),
        Kind::Text(_) => one(&["ä", "'a b'", "5", "true", "\"a\\tb\"", "'['", "get b"]),
        Kind::List(_) => {
            let all =
                ["", "~", "x", "5", "{x: y}", "{}", "[[x]]", "[{x: y}]", "[~]", "['']", "['a b']", "[ä]", "[x, ~]"];
            all.map(str::to_owned).to_vec()
        }
        Kind::OneOrMore(_) => {
            let all = ["", "~", "''", "'a b'", "[]", "{x: y}", "{}", "[[x]]", "[{x: y}]", "[~]", "['']", "8000", "[x]"];
            all.map(str::to_owned).to_vec()
        }
    }
}

#[test]
fn every_wrong_value_of_every_field_is_an_error_that_says_where() {
    let mut tried = 0;
    for place in places() {
        let wrong = match &place.entry.what {
            What::Value(kind, _) => wrong_values(kind),
            What::Mapping(_) => ["5", "x", "true", "''", "[]", "[x]", "{nonsense: 1}"].map(str::to_owned).to_vec(),
            What::Apart(_) => continue,
        };
        for value in wrong {
            let file = place.file(&value);
            let line = file.lines().count();
            let indent = file.lines().last().map_or(0, |last| last.len() - last.trim_start().len());
            let problems = read(&file).expect_err(&file).0;
            let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
            assert!(!errors.is_empty());
            for error in errors {
                assert!(error.line == line && error.column > indent, "{error}\n{file}");
                assert!(error.message.contains(place.key()), "{error}");
            }
            let lenient = matches!(&place.entry.what, What::Value(kind, _) if lenient(kind, &value));
            assert!(lenient || schema_says(&file).is_err(), "the schema accepts\n{file}");
            tried += 1;
        }
    }
    assert!(tried > 1000, "{tried}");
}

#[test]
fn every_mapping_knows_its_keys_and_each_once() {
    for place in places() {
        let file = |inside: &str| place.file(inside);
        if matches!(place.entry.what, What::Mapping(_)) {
            let nonsense = bad(&file("{path: /, nonsense: 1}"));
            assert!(nonsense.iter().any(|error| error.contains("unknown key \"nonsense\"")), "{nonsense:?}");
        }
        if let What::Value(_, Some(shown)) = &place.entry.what {
            let (Shown::Bare(value) | Shown::Text(value)) = shown else { continue };
            let once = place.file(value);
            let Some(last) = once.lines().last() else { continue };
            let errors = bad(&format!("{once}{last}\n"));
            let expected = format!("duplicate key \"{}\"", place.key());
            assert!(errors.iter().any(|error| error.contains(&expected)), "{errors:?}");
        }
    }
}

#[test]
fn what_is_wrong_in_an_anchor_is_told_once_where_it_stands() {
    let file = "x-a:\n  breaker: &b {cooldown: 20}\n  more: &m\n    <<: *b\n    backoff: 0\n\
                s: {upstreams: [http://a], circuit_breaker: *b}\nt: {upstreams: [http://a], circuit_breaker: *m}\n\
                u: {upstreams: [http://a], circuit_breaker: {<<: [*b, *m], cooldown: 1s}}\n";
    assert_eq!(
        bad(file),
        ["2:26 cooldown needs a unit: write \"20ms\" or \"20s\"", "5:14 backoff must be from 1 to 100, not \"0\"",]
    );
}

/// Values of a kind, most of them right.
fn values(kind: &Kind) -> BoxedStrategy<String> {
    let number = |least: u64, most: u64| {
        prop_oneof![Just(least), Just(most), least..=most].prop_map(|number| number.to_string()).boxed()
    };
    let time = |least: Duration, most: Duration| {
        let (least, most) = (least.as_millis() as u64, most.as_millis() as u64);
        let exact = prop_oneof![Just(least), Just(most), least..=most].prop_map(|ms| format!("{ms}ms"));
        prop_oneof![exact, Just("1.5s".to_owned()), Just("1m30s".to_owned()), Just("1.00025s".to_owned())]
    };
    let list = |items: &[&str]| {
        let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        let some = prop::sample::subsequence(items.clone(), 0..=items.len());
        some.prop_map(|items| format!("[{}]", items.join(", "))).boxed()
    };
    match kind {
        Kind::Flag => any::<bool>().prop_map(|flag| flag.to_string()).boxed(),
        Kind::Count(range) => number(*range.start(), *range.end()),
        Kind::CountOrAuto(range) => prop_oneof![Just("auto".to_owned()), number(*range.start(), *range.end())].boxed(),
        Kind::Size(range) => number(*range.start(), *range.end()).prop_map(|bytes| bytes + "B").boxed(),
        Kind::Duration(range) => time(*range.start(), *range.end()).boxed(),
        Kind::DurationOrZero(range) => prop_oneof![Just("0".to_owned()), time(*range.start(), *range.end())].boxed(),
        Kind::Percent => (0..=10_000_u32).prop_map(|share| units::show_hundredths(share) + "%").boxed(),
        Kind::Factor(range) => range.clone().prop_map(units::show_hundredths).boxed(),
        Kind::Word(words) => prop::sample::select(words.clone()).prop_map(str::to_owned).boxed(),
        Kind::Text(form) | Kind::List(form) | Kind::OneOrMore(form) => {
            let mut words = (form.words)();
            words.extend(match form.numbers {
                Some(_) => ["404", "599", "200-299", "'100-100'"].as_slice(),
                None => &["/a$$b$${c", "header:X-A", "PATCH", "'127.0.0.1:1'", "'[::1]:80'", "a.b", "'22:22'", "'~'"],
            });
            if matches!(kind, Kind::Text(_)) {
                prop::sample::select(words).prop_map(str::to_owned).boxed()
            } else {
                list(&words)
            }
        }
    }
}

/// A file with one setting of a few places each, in block style; many are valid.
fn files() -> impl Strategy<Value = String> {
    let choices = places().into_iter().filter_map(|place| {
        let What::Value(kind, _) = &place.entry.what else { return None };
        let at = [place.path.as_slice(), &[place.entry.key]].concat();
        Some(values(kind).prop_map(move |value| (at.clone(), value)).boxed())
    });
    let choices: Vec<_> = choices.collect();
    let settings = || prop::collection::vec(prop::sample::select(choices.clone()).prop_flat_map(|choice| choice), 0..7);
    let names = || prop::sample::select(vec!["s", "on", "22", "x-y", "gateway", "services", "upstreams", "-", "~"]);
    let home = prop::sample::select(vec!["service", "gateway.defaults"]);
    (settings(), settings(), names(), home, any::<bool>()).prop_map(|(one, two, name, home, below)| {
        let mut tree = Vec::new();
        let mut upstream = Vec::new();
        for (path, value) in &one {
            match path[0] {
                "gateway" => put(&mut tree, path, value),
                "upstream" => put(&mut upstream, &path[1..], value),
                _ if home == "service" => put(&mut tree, &[&["service"], &path[1..]].concat(), value),
                _ => put(&mut tree, &[&["gateway", "defaults"], &path[1..]].concat(), value),
            }
        }
        let mut other = Vec::new();
        let of_upstreams = two.iter().filter(|(path, _)| path[0] == "upstream");
        of_upstreams.for_each(|(path, value)| put(&mut other, &path[1..], value));
        let list = format!("[{{url: http://a{}}}, {{url: http://b{}}}]", inside(&upstream), inside(&other));
        let service = tree.iter().position(|Branch(key, ..)| *key == "service").map(|at| tree.remove(at));
        let service = service.map_or_else(String::new, |Branch(_, _, settings)| inside(&settings));
        let listed = service.is_empty() && (name.starts_with("x-") || name == "gateway");
        let service = if listed { list } else { format!("{{upstreams: {list}{service}}}") };
        let service = if below {
            format!("services: {{{name}: {service}, t: [http://c]}}")
        } else {
            format!("{name}: {service}")
        };
        let gateway = tree.iter().map(|branch| format!("{}\n", branch.shown())).collect::<String>();
        format!("{service}\n{gateway}")
    })
}

/// A key, its value, or what is below it.
struct Branch(&'static str, Option<String>, Vec<Branch>);

impl Branch {
    fn shown(&self) -> String {
        let Branch(key, value, below) = self;
        let below = || below.iter().map(Branch::shown).collect::<Vec<_>>().join(", ");
        format!("{key}: {}", value.clone().unwrap_or_else(|| format!("{{{}}}", below())))
    }
}

fn put(tree: &mut Vec<Branch>, path: &[&'static str], value: &str) {
    let at = tree.iter().position(|branch| branch.0 == path[0]).unwrap_or_else(|| {
        let path_of_check = Branch("path", Some("/up".to_owned()), Vec::new());
        let begun = if path[0] == "health_check" { vec![path_of_check] } else { Vec::new() };
        tree.push(Branch(path[0], None, begun));
        tree.len() - 1
    });
    match &path[1..] {
        [] => tree[at].1 = Some(value.to_owned()),
        rest => put(&mut tree[at].2, rest, value),
    }
}

fn inside(tree: &[Branch]) -> String {
    tree.iter().map(|branch| format!(", {}", branch.shown())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn what_is_valid_prints_as_a_file_that_says_the_same(file in files()) {
        if read(&file).is_ok() {
            good(&file);
        }
    }
}

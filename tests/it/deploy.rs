//! What `deploy/` asks of Prometheus, against what the gateway really tells: a dashboard or an alert that names a metric,
//! a label or a word that does not exist would be empty for ever, and nobody would be told.

use crate::support::{Gateway, Origin, RefusedPort, ok, reply, service, wait_until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The samples of an exposition: for each metric, its labels with the values that they had.
type Samples = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// What Prometheus adds to every sample.
const ADDED: [&str; 2] = ["job", "instance"];
/// Words of the query language that are not names, besides functions, behind which a parenthesis stands.
const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
/// Those before a list of labels.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)).unwrap()
}

/// A piece of a query.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Mark(char),
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = query.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '"' => {
                let mut text = String::new();
                while let Some(letter) = rest.next().filter(|letter| *letter != '"') {
                    text.push(if letter == '\\' { rest.next().unwrap() } else { letter });
                }
                tokens.push(Token::Text(text));
            }
            // A range, with units or a variable of the dashboard.
            '[' => while rest.next().is_some_and(|letter| letter != ']') {},
            letter if letter.is_ascii_alphanumeric() || letter == '_' => {
                let mut name = String::from(letter);
                while let Some(letter) =
                    rest.next_if(|letter| letter.is_ascii_alphanumeric() || "_:.".contains(*letter))
                {
                    name.push(letter);
                }
                if !letter.is_ascii_digit() {
                    tokens.push(Token::Name(name));
                }
            }
            letter if letter.is_whitespace() => {}
            letter => tokens.push(Token::Mark(letter)),
        }
    }
    tokens
}

/// Whether this begins the labels of an aggregation, so that the name before it is no metric.
fn groups(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Name(name)) if name == "by" || name == "without")
}

/// What is wrong with the names of a query, and its labels: those of its metrics and those that it makes.
fn faults(query: &str, samples: &Samples) -> (Vec<String>, BTreeSet<String>) {
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<String> = ADDED.map(str::to_owned).into();
    let mut asked = Vec::new();
    let tokens = tokens(query);
    let mark = |at: usize, mark| tokens.get(at) == Some(&Token::Mark(mark));
    let mut at = 0;
    while at < tokens.len() {
        let Token::Name(name) = &tokens[at] else {
            at += 1;
            continue;
        };
        at += 1;
        if GROUPINGS.contains(&name.as_str()) {
            if mark(at, '(') {
                let list = tokens[at..].iter().take_while(|token| **token != Token::Mark(')'));
                asked.extend(list.filter_map(|token| if let Token::Name(label) = token { Some(label) } else { None }));
                at += tokens[at..].iter().position(|token| *token == Token::Mark(')')).unwrap();
            }
        } else if name == "label_replace" {
            // The new label, its value, the old label and the pattern are the next texts outside of braces.
            let mut depth = 0;
            let texts: Vec<&String> = tokens[at..]
                .iter()
                .filter_map(|token| {
                    match token {
                        Token::Mark('{') => depth += 1,
                        Token::Mark('}') => depth -= 1,
                        Token::Text(text) if depth == 0 => return Some(text),
                        _ => {}
                    }
                    None
                })
                .take(4)
                .collect();
            labels.insert(texts[0].clone());
            asked.push(texts[2]);
        } else if !mark(at, '(') && !groups(tokens.get(at)) && !WORDS.contains(&name.as_str()) {
            let Some(known) = samples.get(name) else {
                wrong.push(format!("no metric {name}"));
                continue;
            };
            labels.extend(known.keys().cloned());
            if mark(at, '{') {
                let end = at + tokens[at..].iter().position(|token| *token == Token::Mark('}')).unwrap();
                for matcher in tokens[at + 1..end].split(|token| *token == Token::Mark(',')) {
                    let Token::Name(label) = &matcher[0] else { panic!("{query}: {matcher:?}") };
                    let values = known.get(label);
                    if values.is_none() && !ADDED.contains(&label.as_str()) {
                        wrong.push(format!("{name} has no label {label}"));
                    }
                    // Only an equality with a word that is no variable names a value that must exist.
                    if let [_, Token::Mark('='), Token::Text(value)] = matcher
                        && values.is_some_and(|values| !values.contains(value))
                    {
                        wrong.push(format!("{name} has no {label}=\"{value}\""));
                    }
                }
                at = end;
            }
        }
    }
    wrong.extend(asked.iter().filter(|label| !labels.contains(**label)).map(|label| format!("no label {label}")));
    (wrong, labels)
}

/// The labels that a text shows: `{{name}}` of a legend, `{{ $labels.name }}` of an alert.
fn shown(text: &str) -> Vec<&str> {
    let inside = text.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim());
    inside
        .filter(|inside| !inside.starts_with("$value"))
        .map(|inside| inside.strip_prefix("$labels.").unwrap_or(inside))
        .collect()
}

/// Panics when a query, or a text beside it, names what the gateway does not tell.
#[track_caller]
fn check(whose: &str, query: &str, texts: &[&str], samples: &Samples) {
    let (mut wrong, labels) = faults(query, samples);
    for label in texts.iter().flat_map(|text| shown(text)) {
        if !labels.contains(label) {
            wrong.push(format!("shows a label {label}"));
        }
    }
    assert!(wrong.is_empty(), "{whose}: {}\n{query}", wrong.join(", "));
}

fn parse(exposition: &str) -> Samples {
    let mut samples = Samples::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, inside) = series.split_once('{').unwrap_or((series, ""));
        let labels = samples.entry(name.to_owned()).or_default();
        let mut label = None;
        for token in tokens(inside) {
            match (token, label.take()) {
                (Token::Name(name), _) => label = Some(name),
                (Token::Mark('='), name) => label = name,
                (Token::Text(value), Some(name)) => {
                    labels.entry(name).or_default().insert(value);
                }
                _ => {}
            }
        }
    }
    samples
}

/// What a gateway tells after requests that went well, failed, were repeated and refused.
fn exposition() -> Samples {
    let origin = Origin::answering(|request| match request.target() {
        "/broken" => reply(500, "", "no"),
        _ => ok("hello"),
    });
    let refused = RefusedPort::new();
    let good = service("good", &[&origin.url()], "");
    let bad = service("bad", &[&refused.url(), &origin.url()], "circuit_breaker: {failure_threshold: 1, cooldown: 1h}");
    let gateway = Gateway::start(&format!("{good}{bad}"));
    for path in ["/v1/proxy/good/", "/v1/proxy/good/broken", "/v1/proxy/bad/", "/v1/proxy/bad/", "/v1/proxy/nobody/"] {
        gateway.fetch(path);
    }
    let scrape = || parse(&gateway.fetch("/metrics").text());
    wait_until("the transition is counted", || scrape().contains_key("fusegate_circuit_transitions_total"));
    let mut samples = scrape();
    // Of a scrape, not of an exposition.
    samples.insert("up".to_owned(), BTreeMap::new());
    samples
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let samples = exposition();
    let dashboard: Value = serde_json::from_str(&file("grafana/fusegate.json")).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (query, legend) = (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            check(panel["title"].as_str().unwrap(), query, &[legend], &samples);
            queries += 1;
        }
    }
    assert!(queries > 30, "only {queries} queries were found");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let (metric, label) = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap();
        let query = format!("count by ({}) ({metric})", label.trim_end_matches(')'));
        check(variable["name"].as_str().unwrap(), &query, &[], &samples);
    }
}

#[test]
fn alerts_ask_for_what_there_is() {
    let samples = exposition();
    let rules: Value = serde_yaml::from_str(&file("prometheus/alerts.yaml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    let tests = file("prometheus/alerts_test.yaml");
    assert!(rules.len() >= 7, "only {} alerts were found", rules.len());
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        let texts = ["summary", "description"].map(|text| rule["annotations"][text].as_str().unwrap());
        check(name, rule["expr"].as_str().unwrap(), &texts, &samples);
        assert!(tests.contains(&format!("alertname: {name}\n")), "alerts_test.yaml has no {name} that fires");
    }
}

#[test]
fn names_that_do_not_exist_are_found() {
    let samples = parse("# HELP x\na_total{code=\"200\",state=\"half-open\"} 1\nb_bucket{le=\"+Inf\"} 2\nc 3\n");
    for (query, wrong) in [
        ("sum by (code) (rate(a_total{code=~\"$code\", job=\"x\"}[5m])) / 2.5e3 > 0 and on (job) c", ""),
        ("histogram_quantile(0.9, sum by (le) (rate(b_bucket[$__rate_interval])))", ""),
        ("sum by (class) (label_replace(a_total{code!=\"x\"}, \"class\", \"$1\", \"code\", \"(.)..\"))", ""),
        ("label_replace(c, \"class\", \"$1\", \"code\", \"(.)..\")", "no label code"),
        ("a_totals", "no metric a_totals"),
        ("b_bucket{code=\"200\"}", "b_bucket has no label code"),
        ("a_total{state=\"half_open\"}", "a_total has no state=\"half_open\""),
        ("sum by (service) (a_total)", "no label service"),
        ("max without (le) (a_total)", "no label le"),
        ("c and on (instance, upstream) c", "no label upstream"),
    ] {
        assert_eq!(faults(query, &samples).0.join(", "), wrong, "{query}");
    }
    assert_eq!(shown("{{a}} of {{ $labels.b }}: {{ $value | humanize }}"), ["a", "b"]);
}

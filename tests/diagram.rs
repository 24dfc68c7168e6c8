//! Holds `docs/breaker.md` to the code: every cause of a transition has one row, each row is provoked by a breaker
//! that is configured as a user would, and what it does and what the log says is what the row says. The diagram has
//! the same arrows, and every setting has a row.
//!
//! Must not know: how a breaker is built.

// A failed unwrap is how a test fails.
#![allow(clippy::unwrap_used)]

use fusegate::config;
use fusegate::control::build::{self, Facts};
use fusegate::control::history::History;
use fusegate::policy::breaker::{Breaker, Outcome, Permit, Settings, State, Transition, Why};
use fusegate::shard::mailbox::Moved;
use fusegate::shared::failure::Failure;
use fusegate::shared::snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rows of the table whose head begins with `| head |`.
fn table(text: &str, head: &str) -> Vec<Vec<String>> {
    let begin = format!("| {head} |");
    let rows = text.lines().skip_while(|line| !line.starts_with(&begin)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The name of a cause. A new one does not compile until it has one, and then wants a row and a driver.
fn name(why: Why) -> &'static str {
    match why {
        Why::InARow(_) => "InARow",
        Why::FailureRate(_) => "FailureRate",
        Why::SlowRate(_) => "SlowRate",
        Why::ProbeFailed => "ProbeFailed",
        Why::ProbesSucceeded(_) => "ProbesSucceeded",
        Why::CooledDown => "CooledDown",
        Why::NobodyLeft => "NobodyLeft",
        Why::LeaseOver => "LeaseOver",
        Why::ChecksFailed => "ChecksFailed",
        Why::ChecksSucceeded => "ChecksSucceeded",
        Why::Tripped => "Tripped",
        Why::Reset => "Reset",
    }
}

/// The causes, as the source lists them.
fn causes() -> BTreeSet<String> {
    let source = read("src/policy/breaker.rs");
    let (_, listed) = source.split_once("pub enum Why {").unwrap();
    let (listed, _) = listed.split_once("\n}").unwrap();
    let variants = listed.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    variants.map(|line| line.split(['(', ',']).next().unwrap().to_owned()).collect()
}

struct Row {
    cause: String,
    from: Vec<String>,
    to: String,
    reason: String,
}

fn rows() -> Vec<Row> {
    let row = |cells: Vec<String>| {
        let [cause, from, event, condition, to, reason] = <[String; 6]>::try_from(cells).unwrap();
        assert!(!event.is_empty() && !condition.is_empty());
        let from = from.split(", ").map(str::to_owned).collect();
        Row { cause: cause.trim_matches('`').to_owned(), from, to, reason }
    };
    table(&read("docs/breaker.md"), "cause").into_iter().map(row).collect()
}

/// Whether `text` is `pattern`, whose words in braces stand for anything but nothing.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('{') else { return pattern == text };
    let (_, after) = rest.split_once('}').unwrap();
    let Some(text) = text.strip_prefix(before) else { return false };
    text.char_indices().skip(1).map(|(at, _)| at).chain([text.len()]).any(|at| at > 0 && fits(after, &text[at..]))
}

/// A service of one upstream under a configuration, and what its breaker tells.
struct Stage {
    snapshot: Snapshot,
    settings: Settings,
    told: Vec<(Transition, Option<Failure>)>,
}

impl Stage {
    fn new(circuit_breaker: &str) -> Stage {
        let text = format!("s: {{upstreams: [http://a], circuit_breaker: {{{circuit_breaker}}}}}\n");
        let config = config::parse("c.yaml", &text, &|_| None).unwrap().config;
        let facts = Facts {
            shards: 1,
            descriptors: 100,
            log_dropped: || 0,
            service_slots: Arc::default(),
            upstream_slots: Arc::default(),
        };
        let (snapshot, _) = build::snapshot(&config, None, &build::Addresses::new(), &facts, 1, 1);
        let settings = snapshot.services[0].upstreams[0].breaker;
        Stage { snapshot, settings, told: Vec::new() }
    }

    /// One that was opened at 0.
    fn opened(circuit_breaker: &str) -> Stage {
        let mut stage = Stage::new(&format!("failure_threshold: 1, cooldown: 1s, {circuit_breaker}"));
        stage.ends(Outcome::Failure, 0);
        stage.told.clear();
        stage
    }

    fn breaker(&self) -> &Breaker {
        &self.snapshot.services[0].upstreams[0].identity.breaker
    }

    fn tell(&mut self, transition: Option<Transition>, outcome: Option<Outcome>) {
        let cause = (outcome == Some(Outcome::Failure)).then_some(Failure::Status(503));
        self.told.extend(transition.map(|transition| (transition, cause)));
    }

    fn acquire(&mut self, now: u64) -> Permit {
        let grant = self.breaker().acquire(now, self.settings.lease_ms, &self.settings).unwrap();
        self.tell(grant.transition, None);
        grant.permit
    }

    fn settle(&mut self, permit: Permit, outcome: Outcome, now: u64) {
        let transition = self.breaker().settle(permit, outcome, now, &self.settings);
        self.tell(transition, Some(outcome));
    }

    fn ends(&mut self, outcome: Outcome, now: u64) {
        let permit = self.acquire(now);
        self.settle(permit, outcome, now);
    }
}

/// Provokes a transition; the stage tells it last. `from` is the state in which it must happen.
fn provoke(cause: &str, from: &str) -> Stage {
    match cause {
        "InARow" => {
            let mut stage = Stage::new("failure_threshold: 3");
            for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Success] {
                stage.ends(outcome, 0);
            }
            (0..2).for_each(|_| stage.ends(Outcome::Failure, 0));
            assert!(stage.told.is_empty(), "two in a row");
            stage.ends(Outcome::Failure, 0);
            stage
        }
        "FailureRate" => {
            let mut stage = Stage::new("failure_threshold: 100, failure_rate: 50%, window: 1s, min_requests: 4");
            for outcome in [Outcome::Failure, Outcome::Success, Outcome::Success] {
                stage.ends(outcome, 0);
            }
            assert!(stage.told.is_empty());
            stage.ends(Outcome::Failure, 500);
            stage
        }
        "SlowRate" => {
            let mut stage = Stage::new("slow_after: 1s, slow_rate: 50%, window: 1s, min_requests: 4");
            for outcome in [Outcome::Slow, Outcome::Success, Outcome::Success] {
                stage.ends(outcome, 0);
            }
            assert!(stage.told.is_empty());
            stage.ends(Outcome::Slow, 500);
            stage
        }
        "ChecksFailed" => {
            let mut stage = Stage::new("");
            let transition = stage.breaker().check_failed(0, &stage.settings);
            stage.tell(transition, Some(Outcome::Failure));
            stage
        }
        "Tripped" | "Reset" => {
            let mut stage = if from == "closed" { Stage::new("") } else { Stage::opened("") };
            if from == "half-open" {
                let probe = stage.acquire(1000);
                stage.settle(probe, Outcome::Neutral, 1000);
            }
            let breaker = stage.breaker();
            let transition = if cause == "Reset" { breaker.reset() } else { Some(breaker.trip(1000, None)) };
            stage.tell(transition, None);
            stage
        }
        "CooledDown" => {
            let mut stage = Stage::opened("");
            assert!(!stage.breaker().available(999, &stage.settings));
            let probe = stage.acquire(1000);
            assert!(probe.is_probe());
            stage.settle(probe, Outcome::Neutral, 1000);
            stage
        }
        "NobodyLeft" => {
            let mut stage = Stage::opened("when_all_open: probe");
            let grant = stage.breaker().acquire_early(1, stage.settings.lease_ms, &stage.settings).unwrap();
            stage.tell(grant.transition, None);
            stage.settle(grant.permit, Outcome::Neutral, 1);
            stage
        }
        "LeaseOver" => {
            let mut stage = Stage::opened("probe_timeout: 2s");
            let late = stage.acquire(1000);
            assert!(!stage.breaker().available(2999, &stage.settings));
            stage.ends(Outcome::Neutral, 3000);
            stage.settle(late, Outcome::Neutral, 3000);
            stage
        }
        "ProbeFailed" => {
            let mut stage = Stage::opened("");
            stage.ends(Outcome::Failure, 1000);
            stage
        }
        "ProbesSucceeded" => {
            let mut stage = Stage::opened("");
            stage.ends(Outcome::Success, 1000);
            stage
        }
        "ChecksSucceeded" => {
            let mut stage = Stage::opened("");
            if from == "half-open" {
                stage.ends(Outcome::Neutral, 1000);
            }
            let transition = stage.breaker().check_passed();
            stage.tell(transition, None);
            stage
        }
        other => panic!("nothing provokes {other}"),
    }
}

#[test]
fn every_cause_has_one_row() {
    let listed: Vec<String> = rows().into_iter().map(|row| row.cause).collect();
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "twice: {listed:?}");
    assert_eq!(once, causes());
}

#[test]
fn every_row_is_what_the_breaker_does_and_the_log_says() {
    for row in rows() {
        for from in &row.from {
            let stage = provoke(&row.cause, from);
            let (transition, cause) = *stage.told.last().unwrap_or_else(|| panic!("{}: nothing is told", row.cause));
            let Transition { from: was, to, why, .. } = transition;
            assert_eq!((name(why), was.word(), to.word()), (&*row.cause, &**from, &*row.to));
            assert_eq!(stage.breaker().view().state, to, "{}", row.cause);
            let upstream = Arc::clone(&stage.snapshot.services[0].upstreams[0].identity);
            let mut history = History::default();
            let moved =
                Moved { upstream: Arc::clone(&upstream), at_ms: 0, transition, cause, observed: false, note: None };
            history.moved(&moved, SystemTime::UNIX_EPOCH);
            let reason = &history.of(&upstream).next().unwrap().reason;
            assert!(fits(&row.reason, reason), "{}: {reason:?} is logged, not {:?}", row.cause, row.reason);
        }
    }
}

#[test]
fn the_diagram_has_the_arrows_of_the_table() {
    let mut table = BTreeMap::<(String, String), BTreeSet<String>>::new();
    for row in rows() {
        for from in row.from {
            table.entry((from, row.to.clone())).or_default().insert(row.cause.clone());
        }
    }
    let text = read("docs/breaker.md");
    let drawn = text.lines().skip_while(|line| *line != "```mermaid").take_while(|line| *line != "```");
    let arrow = |line: &str| {
        let (arrow, causes) = line.trim().split_once(": ")?;
        let (from, to) = arrow.split_once(" --> ")?;
        let state = |word: &str| word.replace('_', "-");
        Some(((state(from), state(to)), causes.split(", ").map(str::to_owned).collect()))
    };
    assert_eq!(drawn.filter_map(arrow).collect::<BTreeMap<_, _>>(), table);
    let states = [State::Closed, State::Open, State::HalfOpen].map(|state| state.word().to_owned());
    assert!(table.keys().all(|(from, to)| states.contains(from) && states.contains(to)));
}

#[test]
fn every_setting_has_a_row() {
    let schema: serde_json::Value = serde_json::from_str(&fusegate::config::json_schema()).unwrap();
    let keys = |mapping: &str| -> BTreeSet<String> {
        schema["$defs"][mapping]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let text = read("docs/breaker.md");
    let first = |head| -> Vec<BTreeSet<String>> {
        let (mut found, mut rest) = (Vec::new(), text.as_str());
        while let Some(at) = rest.find(&format!("| {head} |")) {
            let named = table(&rest[at..], head).into_iter().map(|row| row[0].trim_matches('`').to_owned());
            found.push(named.collect());
            rest = &rest[at + 1..];
        }
        found
    };
    let [breaker, balance] = <[BTreeSet<String>; 2]>::try_from(first("setting")).unwrap();
    assert_eq!(breaker, keys("circuit_breaker"));
    let balancing = keys("load_balancing");
    let balancing = balancing.iter().map(|key| format!("load_balancing.{key}"));
    let own = ["upstreams[].weight", "upstreams[].backup"].map(str::to_owned);
    assert_eq!(balance, balancing.chain(own).collect());
    let policies = first("policy").pop().unwrap();
    assert_eq!(policies, fusegate::policy::balance::Policy::ALL.map(|policy| policy.word().to_owned()).into());
}

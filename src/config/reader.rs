//! Walks a tree by tables of fields and reads the leaves; every problem is noted and the walk goes on.
//!
//! Must not know: which fields there are, how settings merge.

use super::diagnostics::{At, Fault, Findings, quote};
use super::rules::{Choice, Field, Rule, Table};
use super::suggest::did_you_mean;
use super::tree::{Entry, LONGEST, Node, Value};
use super::{expand, units};
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// Bytes up to which a scalar may be a number or a boolean.
const LONGEST_NUMBER: usize = 64;

/// What a message says the key is part of.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    Gateway,
    Service(&'a str),
    UpstreamOf(&'a str),
}

/// A scalar with its references expanded.
pub(super) struct Text {
    pub(super) value: String,
    /// It may be a number, a boolean or null.
    plain: bool,
}

pub(super) struct Reader<'a> {
    pub(super) findings: &'a mut Findings,
    pub(super) scope: Scope<'a>,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// Where files are that the configuration names; `None` when they are not to be read.
    pub(super) directory: Option<&'a Path>,
    /// Keys from the scope to here.
    path: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        findings: &'a mut Findings,
        env: &'a dyn Fn(&str) -> Option<String>,
        directory: Option<&'a Path>,
    ) -> Reader<'a> {
        Reader { findings, scope: Scope::Gateway, env, directory, path: Vec::new() }
    }

    /// Notes what is wrong with a value; the message names the key, if it does not yet.
    pub(super) fn error(&mut self, node: &Node, mut fault: Fault) {
        if let Some(key) = self.path.last().filter(|key| !fault.message.contains(**key)) {
            fault.message.insert_str(0, &format!("{key}: "));
        }
        self.findings.error(node.at, fault);
    }

    /// Reads a mapping of settings into `target`; what is absent stays as it was. Nothing at all is an
    /// empty mapping, so that commenting out the last line of one breaks nothing.
    pub(super) fn mapping<T>(&mut self, node: &Node, table: Table<T>, target: &mut T) {
        match &node.value {
            Value::Mapping(entries) => entries.iter().for_each(|entry| self.entry(entry, table, target)),
            _ if node.is_null() => {}
            _ => {
                let fault = Fault::new(format!("{} must be a mapping", self.key()));
                self.error(node, fault.help(known(table)));
            }
        }
    }

    fn entry<T>(&mut self, entry: &Entry, table: Table<T>, target: &mut T) {
        let Some(field) = fields(table).find(|field| field.key == &*entry.key) else {
            let fault = Fault::new(format!("unknown key {} in {}", quote(&entry.key), self.here()));
            let help = did_you_mean(&entry.key, keys(table)).unwrap_or_else(|| known(table));
            return self.findings.error(entry.key_at, fault.help(help));
        };
        if let Rule::Elsewhere(place) = field.rule {
            let fault = Fault::new(format!("{} has no place in {}", field.key, self.here()));
            return self.findings.error(entry.key_at, fault.help(place));
        }
        self.path.push(field.key);
        self.field(&field.rule, &entry.value, target);
        self.path.pop();
    }

    /// `None` after an error: the target stays as it was.
    pub(super) fn field<T>(&mut self, rule: &Rule<T>, node: &Node, target: &mut T) -> Option<()> {
        match rule {
            Rule::Flag(lens) => (lens.set)(target, self.flag(node)?),
            Rule::Count(range, lens) => (lens.set)(target, self.count(node, range)?),
            Rule::CountOrAuto(range, lens) => (lens.set)(target, self.count_or_auto(node, range)?),
            Rule::Size(range, lens) => (lens.set)(target, self.size(node, range)?),
            Rule::Duration(range, lens) => (lens.set)(target, self.duration(node, range, false)?),
            Rule::DurationOrZero(range, lens) => (lens.set)(target, self.duration(node, range, true)?),
            Rule::Percent(lens) => (lens.set)(target, self.percent(node)?),
            Rule::Factor(range, lens) => (lens.set)(target, self.factor(node, range)?),
            Rule::Word(choice) => self.word(node, *choice, target)?,
            Rule::Text(_, set, _) => {
                let text = self.string(node)?;
                set(target, &text).unwrap_or_else(|fault| self.error(node, fault));
            }
            Rule::List(_, read, _) | Rule::OneOrMore(_, read, _) => read(target, node, self),
            Rule::Mapping(section) => section.read(target, node, self),
            Rule::Apart(_) | Rule::Elsewhere(_) => {}
        }
        Some(())
    }

    /// The key whose value is being read.
    pub(super) fn key(&self) -> &'static str {
        match (self.path.last(), self.scope) {
            (Some(key), _) => key,
            (None, Scope::Gateway) => "gateway",
            (None, Scope::Service(_)) => "a service",
            (None, Scope::UpstreamOf(_)) => "an upstream",
        }
    }

    /// Where a key stands, from the inside out.
    fn here(&self) -> String {
        let path = self.path.join(".");
        let of = if path.is_empty() { "" } else { " of " };
        match self.scope {
            Scope::Gateway if path.is_empty() => "gateway".to_owned(),
            Scope::Gateway => format!("gateway.{path}"),
            Scope::Service(name) => format!("{path}{of}service {}", quote(name)),
            Scope::UpstreamOf(name) => format!("{path}{of}an upstream of service {}", quote(name)),
        }
    }

    /// The text of a scalar that is not null, whatever kind of scalar it is.
    pub(super) fn text(&mut self, node: &Node) -> Option<Text> {
        let key = self.key();
        let Value::Scalar(scalar) = &node.value else {
            let kind = if matches!(node.value, Value::List(_)) { "a list" } else { "a mapping" };
            self.error(node, Fault::new(format!("{key} must be a single value, not {kind}")));
            return None;
        };
        if node.is_null() {
            self.error(node, Fault::new(format!("{key} has no value")));
            return None;
        }
        match expand::expand(&scalar.text, LONGEST, self.env) {
            Ok(value) if value.len() > LONGEST => {
                self.error(node, Fault::new(format!("{key} expands to more than {LONGEST} bytes")));
                None
            }
            // Inside of braces a reference has to be quoted, so the quotes say nothing about the value.
            Ok(value) => {
                let plain = scalar.plain || value != scalar.text;
                Some(Text { value, plain })
            }
            Err(misuse) => {
                let inside =
                    |inset| At { column: node.at.column + inset + misuse.offset, width: misuse.width, ..node.at };
                self.findings.error(scalar.inset.map_or(node.at, inside), misuse.fault);
                None
            }
        }
    }

    /// The leaf as YAML 1.2 reads it: a boolean, a number, or else text.
    fn leaf(&mut self, node: &Node) -> Option<(serde_yaml::Value, Text)> {
        let text = self.text(node)?;
        let short = text.plain && text.value.len() <= LONGEST_NUMBER;
        let read = if short { serde_yaml::from_str(&text.value).ok() } else { None };
        let leaf = read.filter(|value: &serde_yaml::Value| value.is_bool() || value.is_number());
        Some((leaf.unwrap_or_else(|| text.value.as_str().into()), text))
    }

    fn string(&mut self, node: &Node) -> Option<String> {
        let (value, text) = self.leaf(node)?;
        if value.is_string() {
            return Some(text.value);
        }
        let fault = Fault::new(format!("{} must be text, not {}", self.key(), quote(&text.value)));
        self.error(node, fault);
        None
    }

    fn word<T>(&mut self, node: &Node, choice: &dyn Choice<T>, target: &mut T) -> Option<()> {
        let text = self.string(node)?;
        if !choice.set(target, &text) {
            let (key, words) = (self.key(), choice.words());
            let fault = Fault::new(format!("{key} {} is none of {}", quote(&text), words.join(", ")));
            self.error(node, did_you_mean(&text, words).into_iter().fold(fault, Fault::help));
        }
        Some(())
    }

    fn flag(&mut self, node: &Node) -> Option<bool> {
        let (value, text) = self.leaf(node)?;
        if value.is_bool() {
            return value.as_bool();
        }
        let fault = Fault::new(format!("{} must be true or false, not {}", self.key(), quote(&text.value)));
        let help = match text.value.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" | "1" => Some("write true"),
            "no" | "off" | "false" | "0" => Some("write false"),
            _ => None,
        };
        self.error(node, help.into_iter().fold(fault, Fault::help));
        None
    }

    /// Whether a node is the word `false`, which switches a mapping off.
    pub(super) fn is_false(&mut self, node: &Node) -> bool {
        matches!(&node.value, Value::Scalar(scalar) if !node.is_null() && scalar.plain && scalar.text == "false")
    }

    fn percent(&mut self, node: &Node) -> Option<u32> {
        let text = self.text(node)?;
        units::percent(self.key(), &text.value).map_err(|fault| self.error(node, fault)).ok()
    }

    fn factor(&mut self, node: &Node, range: &RangeInclusive<u32>) -> Option<u32> {
        let text = self.text(node)?;
        match units::hundredths(&text.value) {
            Some(value) if range.contains(&value) => return Some(value),
            Some(_) => {
                let (least, most) = (range.start() / 100, range.end() / 100);
                self.error(node, out_of_range(self.key(), &text.value, least, most));
            }
            None => {
                let fault = Fault::new(format!("{} must be a number, not {}", self.key(), quote(&text.value)));
                self.error(node, fault.help("such as 2 or 1.5"));
            }
        }
        None
    }

    fn count(&mut self, node: &Node, range: &RangeInclusive<u64>) -> Option<u64> {
        let leaf = self.leaf(node)?;
        self.number(node, leaf, range, "a whole number")
    }

    fn count_or_auto(&mut self, node: &Node, range: &RangeInclusive<u64>) -> Option<Option<NonZeroUsize>> {
        let leaf = self.leaf(node)?;
        if leaf.0 == "auto" {
            return Some(None);
        }
        let number = self.number(node, leaf, range, "auto or a whole number")?;
        usize::try_from(number).ok().map(NonZeroUsize::new)
    }

    fn number(
        &mut self,
        node: &Node,
        (value, text): (serde_yaml::Value, Text),
        range: &RangeInclusive<u64>,
        wanted: &str,
    ) -> Option<u64> {
        if let Some(number) = value.as_u64().filter(|number| range.contains(number)) {
            return Some(number);
        }
        // What fits into no integer, YAML reads as a fraction.
        let digits = text.plain && !text.value.is_empty() && text.value.bytes().all(|b| b.is_ascii_digit());
        let whole = digits || value.as_u64().is_some() || value.as_i64().is_some();
        let fault = if whole {
            out_of_range(self.key(), &text.value, range.start(), range.end())
        } else {
            Fault::new(format!("{} must be {wanted}, not {}", self.key(), quote(&text.value)))
        };
        let quoted = !text.plain && text.value.parse::<u64>().is_ok();
        self.error(node, if quoted { fault.help("remove the quotes") } else { fault });
        None
    }

    fn size(&mut self, node: &Node, range: &RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(node)?;
        let fault = match units::size(self.key(), &text.value) {
            Ok(bytes) if range.contains(&bytes) => return Some(bytes),
            Ok(_) => {
                let (least, most) = (units::show_size(*range.start()), units::show_size(*range.end()));
                out_of_range(self.key(), &text.value, least, most)
            }
            Err(fault) => fault,
        };
        self.error(node, fault);
        None
    }

    fn duration(&mut self, node: &Node, range: &RangeInclusive<Duration>, zero: bool) -> Option<Duration> {
        let text = self.text(node)?;
        let fault = match units::duration(self.key(), &text.value) {
            Ok(value) if zero && value.is_zero() => return Some(value),
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(_) => {
                let least = if zero { "0 or from " } else { "" };
                let least = format!("{least}{}", units::show_duration(*range.start()));
                out_of_range(self.key(), &text.value, least, units::show_duration(*range.end()))
            }
            Err(fault) => fault,
        };
        self.error(node, fault);
        None
    }
}

fn out_of_range(key: &str, value: &str, least: impl Display, most: impl Display) -> Fault {
    Fault::new(format!("{key} must be from {least} to {most}, not {}", quote(value)))
}

fn fields<T>(table: Table<T>) -> impl Iterator<Item = &'static Field<T>> {
    table.iter().flat_map(|group| *group)
}

/// The keys that may stand in a mapping.
pub(super) fn keys<T>(table: Table<T>) -> impl Iterator<Item = &'static str> {
    fields(table).filter(|field| !matches!(field.rule, Rule::Elsewhere(_))).map(|field| field.key)
}

fn known<T>(table: Table<T>) -> String {
    format!("the keys are {}", keys(table).collect::<Vec<_>>().join(", "))
}

//! The schema of a configuration file for editors and other tools: JSON Schema, draft 2020-12, made of the tables of
//! keys. Its defaults are what the model begins with.
//!
//! It is a little more lenient than the reader: what is about several values together, or about the size of a value
//! with a unit, it says in words only.
//!
//! Must not know: which fields there are, YAML.

use super::rules::{Apart, Entry, Form, Kind, Mapping, Shown, Table, What, outline};
use super::schema::{self, Process, Settings};
use super::services::MOST_UPSTREAMS;
use super::units;
use serde_json::{Map, Value, json};

const NUMBER: &str = "[0-9]{1,18}(\\.[0-9]+)?";
/// Any of its values may stand in an environment variable.
const REFERENCE: &str = "\\$\\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\\}";

/// The schema as a text.
pub fn json_schema() -> String {
    let mut defs = Defs::default();
    let service = defs.table("service", schema::SERVICE, &Settings::default(), &["upstreams"]);
    let upstream = defs.table("upstream", schema::UPSTREAM, &Settings::default(), &["url"]);
    let gateway = defs.table("gateway", schema::GATEWAY, &Process::default(), &[]);
    let duration = format!("^(?=.)({NUMBER}h)?({NUMBER}m)?({NUMBER}s)?({NUMBER}ms)?$");
    for (name, value) in [
        ("upstreams", upstreams(&upstream)),
        ("url", any_of([json!({"type": "string", "pattern": "^[Hh][Tt][Tt][Pp]://[^/?#@\\s]+(/[^?#\\s]*)?$"})])),
        ("services", services(&service)),
        ("duration", text("A duration, such as 250ms, 5s or 1m30s.", &duration)),
        ("size", text("A size, such as 512B, 64KiB or 1MiB.", "^[0-9]{1,18}(B|KiB|MiB|GiB)$")),
        ("share", text("A share, such as 20% or 0.2.", "^0*(100(\\.0+)?|[0-9]{1,2}(\\.[0-9]{1,2}0*)?)%$")),
        ("reference", text("A value with ${NAME} or ${NAME:-default} in it.", REFERENCE)),
    ] {
        defs.0.insert(name.to_owned(), value);
    }
    let document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fusegate configuration",
        "description": "Services by name: lists of upstream URLs, or mappings with settings.",
        "type": ["object", "null"],
        "properties": {
            "gateway": {"description": "Settings of the process.", "anyOf": [gateway, reference("upstreams")]},
            "services": {
                "description": "All services, when they do not stand at the top level.",
                "anyOf": [reference("services"), service, reference("upstreams")],
            },
        },
        "patternProperties": {
            "^x-": ignored(),
            name_but("x-|gateway$|services$|"): a_service(&service),
        },
        "additionalProperties": false,
        "if": {
            "type": "object",
            "required": ["services"],
            "properties": {"services": {"type": "object", "not": {"required": ["upstreams"]}}},
        },
        "then": {"propertyNames": {"pattern": "^(gateway$|services$|x-)"}},
        "$defs": defs.0,
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// Names of services, but for those that begin like this.
fn name_but(but: &str) -> String {
    format!("^(?!{but}\\.{{1,2}}$)[A-Za-z0-9._-]+$")
}

fn ignored() -> Value {
    json!({
        "description": "Ignored, a home for anchors; but a list is a service.",
        "if": {"type": "array"},
        "then": reference("upstreams"),
    })
}

fn a_service(service: &Value) -> Value {
    json!({"description": "A service.", "anyOf": [reference("upstreams"), service]})
}

fn services(service: &Value) -> Value {
    json!({
        "type": "object",
        "patternProperties": {"^x-": ignored(), name_but("x-|"): a_service(service)},
        "additionalProperties": false,
        "not": {"required": ["upstreams"]},
    })
}

fn upstreams(upstream: &Value) -> Value {
    json!({"type": "array", "maxItems": MOST_UPSTREAMS, "items": {"anyOf": [reference("url"), upstream]}})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn text(description: &str, pattern: &str) -> Value {
    json!({"description": description, "type": "string", "pattern": pattern})
}

/// One of these, or a reference to a variable.
fn any_of(alternatives: impl IntoIterator<Item = Value>) -> Value {
    let all: Vec<Value> = alternatives.into_iter().chain([reference("reference")]).collect();
    json!({"anyOf": all})
}

/// What is referred to by name.
#[derive(Default)]
struct Defs(Map<String, Value>);

impl Defs {
    /// The schema of a mapping with the keys of a table.
    fn table<T>(&mut self, name: &str, table: Table<T>, default: &T, required: &[&str]) -> Value {
        let kind = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
        let mut schema = self.mapping(name, &outline(table, default));
        schema["type"] = kind;
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        self.put(name, name, schema)
    }

    fn mapping(&mut self, name: &str, entries: &[Entry]) -> Value {
        let properties = entries.iter().map(|entry| (entry.key.to_owned(), self.entry(name, entry)));
        let properties: Map<String, Value> = properties.collect();
        json!({"type": ["object", "null"], "properties": properties, "additionalProperties": false})
    }

    /// What two mappings have alike is there once. A name that means something else already gets the outer name in
    /// front.
    fn put(&mut self, outer: &str, name: &str, schema: Value) -> Value {
        let taken = self.0.get(name).is_some_and(|known| *known != schema);
        let name = if taken { format!("{outer}_{name}") } else { name.to_owned() };
        let refer = reference(&name);
        self.0.insert(name, schema);
        refer
    }

    fn entry(&mut self, outer: &str, entry: &Entry) -> Value {
        let (mut schema, default, bounds) = match &entry.what {
            What::Value(kind, shown) => (schema_of(kind), shown.as_ref().map(json_of), bounds(kind)),
            What::Mapping(Mapping { entries, optional, off, words }) => {
                let inside = self.mapping(entry.key, entries);
                let refer = self.put(outer, entry.key, inside);
                let schema = match words.as_slice() {
                    [] if *optional => json!({"anyOf": [refer, {"const": false}]}),
                    [] => refer,
                    words => any_of([json!({"enum": words}), refer]),
                };
                (schema, off.then(|| json!(false)), String::new())
            }
            What::Apart(Apart::Upstreams) => (reference("upstreams"), None, String::new()),
            What::Apart(Apart::Url) => (reference("url"), None, String::new()),
        };
        schema["description"] = json!(format!("{}{bounds}", entry.doc));
        if let Some(default) = default {
            schema["default"] = default;
        }
        schema
    }
}

/// What a pattern cannot say.
fn bounds(kind: &Kind) -> String {
    match kind {
        Kind::Size(range) => {
            format!(" From {} to {}.", units::show_size(*range.start()), units::show_size(*range.end()))
        }
        Kind::Duration(range) | Kind::DurationOrZero(range) => {
            let zero = if matches!(kind, Kind::DurationOrZero(_)) { " 0, or from" } else { " From" };
            format!("{zero} {} to {}.", units::show_duration(*range.start()), units::show_duration(*range.end()))
        }
        _ => String::new(),
    }
}

fn schema_of(kind: &Kind) -> Value {
    let zero = || json!({"enum": [0, "0"]});
    match kind {
        Kind::Flag => any_of([json!({"type": "boolean"})]),
        Kind::Count(range) => any_of([integer(*range.start(), *range.end())]),
        Kind::CountOrAuto(range) => any_of([json!({"const": "auto"}), integer(*range.start(), *range.end())]),
        Kind::Size(range) if *range.start() == 0 => any_of([reference("size"), zero()]),
        Kind::Size(_) => any_of([reference("size")]),
        Kind::Duration(_) => any_of([reference("duration")]),
        Kind::DurationOrZero(_) => any_of([reference("duration"), zero()]),
        Kind::Percent => {
            any_of([reference("share"), json!({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.0001})])
        }
        Kind::Factor(range) => {
            let (least, most) = (range.start() / 100, range.end() / 100);
            any_of([json!({"type": "number", "minimum": least, "maximum": most, "multipleOf": 0.01})])
        }
        Kind::Word(words) => any_of([json!({"enum": words})]),
        Kind::Text(form) => any_of(form_of(form)),
        Kind::List(form) => json!({"type": "array", "items": any_of(form_of(form))}),
        Kind::OneOrMore(form) => {
            let list = json!({"type": "array", "minItems": 1, "items": any_of(form_of(form))});
            any_of(form_of(form).into_iter().chain([list]))
        }
    }
}

fn form_of(form: &Form) -> Vec<Value> {
    let words = (form.words)();
    let words = (!words.is_empty()).then(|| json!({"enum": words}));
    let pattern = json!({"type": "string", "pattern": form.pattern});
    let numbers = form.numbers.map(|(least, most)| integer(least, most));
    words.into_iter().chain([pattern]).chain(numbers).collect()
}

fn integer(least: u64, most: u64) -> Value {
    json!({"type": "integer", "minimum": least, "maximum": most})
}

fn json_of(shown: &Shown) -> Value {
    match shown {
        Shown::Bare(text) => serde_json::from_str(text).unwrap_or_default(),
        Shown::Text(text) => json!(text),
        Shown::List(items) => items.iter().map(json_of).collect(),
    }
}

//! A configuration as a JSON document that says everything: each key of each table, with what is in force. What has no
//! value is `null`, what is switched off `false`.
//!
//! Must not know: which fields there are, who reads the document.

use super::model::Config;
use super::print::{entries_beside, entries_of};
use super::rules::{Entry, Mapping, Shown, What, outline};
use super::schema::{self, Process, Settings};
use serde_json::{Map, Value};

/// The document: `gateway`, and `services` in their order, each with its upstreams. It holds no secret, because a
/// configuration holds none: of a token it has the name of its file, and a URL has no user-info.
pub fn show(config: &Config) -> Value {
    let process = Process { gateway: config.gateway.clone(), defaults: Settings::default() };
    let mut gateway = mapping(outline(schema::GATEWAY, &process));
    // They are merged into every service.
    gateway.remove("defaults");
    let services = config.services.iter().map(|service| {
        let upstreams = service.upstreams.iter().map(|upstream| {
            let url = Map::from_iter([("url".to_owned(), Value::from(upstream.url.text.as_str()))]);
            Value::Object(url.into_iter().chain(mapping(entries_of(upstream))).collect())
        });
        let beside = mapping(entries_beside(service, None));
        let name = Map::from_iter([("name".to_owned(), Value::from(service.name.as_str()))]);
        let upstreams = [("upstreams".to_owned(), Value::Array(upstreams.collect()))];
        Value::Object(name.into_iter().chain(upstreams).chain(beside).collect())
    });
    let services = Value::Array(services.collect());
    Value::Object(Map::from_iter([("gateway".to_owned(), Value::Object(gateway)), ("services".to_owned(), services)]))
}

fn mapping(entries: Vec<Entry>) -> Map<String, Value> {
    let shown = |entry: Entry| {
        let value = match entry.what {
            What::Value(_, shown) => shown.map_or(Value::Null, value),
            What::Mapping(Mapping { off: true, .. }) => Value::Bool(false),
            What::Mapping(Mapping { entries, .. }) => Value::Object(mapping(entries)),
            What::Apart(_) => return None,
        };
        Some((entry.key.to_owned(), value))
    };
    entries.into_iter().filter_map(shown).collect()
}

fn value(shown: Shown) -> Value {
    match shown {
        Shown::Bare(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Shown::Text(text) => Value::String(text),
        Shown::List(items) => Value::Array(items.into_iter().map(value).collect()),
    }
}

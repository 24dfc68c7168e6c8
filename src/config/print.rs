//! A configuration as a file that says everything: no default is left out, nothing is inherited. Reading that file
//! gives the same configuration again.
//!
//! Must not know: which fields there are, what was said in the file that the configuration came from.

use super::model::{Config, Service, Upstream};
use super::rules::{Entry, Mapping, Shown, What, outline};
use super::schema::{self, Process, Settings};
use std::fmt::Write as _;

/// Upstreams of a service up to which each says all that it has. With more of them, the file could be larger than one
/// that is read; then they leave out what is built in.
const MANY: usize = 1000;

/// The text of the file. What stood in environment variables stands in it. A field that has no value unless the file
/// gives it one is left out.
pub fn print(config: &Config) -> String {
    // Such a name can only stand under `services`; with a service of the name `upstreams` there, it would be the
    // service `services`.
    let named = |name: &str| config.services.iter().any(|service| service.name == name);
    let below = named("gateway") && !named("upstreams");
    // Names that are no services unless they have a list. What such a service has besides its upstreams is what every
    // service begins with, and every other one says it all.
    let listed = |name: &str| name.starts_with("x-") || (name == "gateway" && !below);
    let mut services = Vec::new();
    let mut defaults = None;
    for service in &config.services {
        let name = service.name.clone();
        if listed(&name) {
            services.push((name, upstreams(service, false)));
            defaults = Some(beside(service, None));
        } else {
            services.push((name, whole(service)));
        }
    }
    if below {
        services = vec![("services".to_owned(), Yaml::Mapping(services))];
    }
    // As a list, a service has taken the place of these settings: all of them are defaults.
    if !services.iter().any(|(name, _)| name == "gateway") {
        let process = Process { gateway: config.gateway.clone(), defaults: Settings::default() };
        let mut gateway = tree(outline(schema::GATEWAY, &process));
        gateway.retain(|(key, _)| key != "defaults");
        gateway.extend(defaults.map(|defaults| ("defaults".to_owned(), Yaml::Mapping(defaults))));
        services.push(("gateway".to_owned(), Yaml::Mapping(gateway)));
    }
    let mut out = String::new();
    Yaml::Mapping(services).write(&mut out, 0, false);
    out
}

/// A service as a mapping. What all of its upstreams have alike stands beside them, once.
fn whole(service: &Service) -> Yaml {
    let first = service.upstreams.first();
    let alike = service.upstreams.iter().all(|upstream| {
        first.is_some_and(|first| {
            let Upstream { url, weight, backup, max_requests, .. } = first.clone();
            Upstream { url, weight, backup, max_requests, ..upstream.clone() } == *first
        })
    });
    let shared = if alike { Some(first.map_or_else(Settings::default, settings_of)) } else { None };
    let mut entries = vec![("upstreams".to_owned(), upstreams(service, alike))];
    entries.extend(beside(service, shared));
    Yaml::Mapping(entries)
}

/// The upstreams, in full or with what they cannot share.
fn upstreams(service: &Service, alike: bool) -> Yaml {
    let entries = |settings: &Settings| {
        let all = outline(schema::UPSTREAM, settings);
        tree(if alike { without(all, &outline(schema::SERVICE, settings)) } else { all })
    };
    let needless = if service.upstreams.len() > MANY { entries(&Settings::default()) } else { Vec::new() };
    let mut items = Vec::with_capacity(service.upstreams.len());
    // Neighbours are often the same but for their URL.
    let mut last: Option<(&Upstream, Vec<(String, Yaml)>)> = None;
    for upstream in &service.upstreams {
        let known = last.take().filter(|(known, _)| Upstream { url: known.url.clone(), ..upstream.clone() } == **known);
        let (known, settings) = known.unwrap_or_else(|| {
            let mut settings = entries(&settings_of(upstream));
            settings.retain(|entry| !needless.contains(entry));
            (upstream, settings)
        });
        let url = Yaml::Value(Shown::Text(upstream.url.text.clone()));
        items.push(if settings.is_empty() {
            url
        } else {
            Yaml::Mapping([("url".to_owned(), url)].into_iter().chain(settings.iter().cloned()).collect())
        });
        last = Some((known, settings));
    }
    Yaml::List(items)
}

/// What a service has besides its upstreams, with what they share.
fn beside(service: &Service, shared: Option<Settings>) -> Vec<(String, Yaml)> {
    tree(entries_beside(service, shared))
}

/// All that an upstream has but its URL.
pub(super) fn entries_of(upstream: &Upstream) -> Vec<Entry> {
    outline(schema::UPSTREAM, &settings_of(upstream))
}

/// What a service has besides its upstreams, with what they share; without that, what no upstream has.
pub(super) fn entries_beside(service: &Service, shared: Option<Settings>) -> Vec<Entry> {
    let Service { name: _, upstreams: _, balancing, retries, when_all_open, total_timeout, body_limit, upgrades } =
        service.clone();
    let alone = shared.is_none();
    let mut settings = shared.unwrap_or_default();
    settings.breaker.when_all_open = when_all_open;
    let settings = Settings { balancing, retries, total_timeout, body_limit, upgrades, ..settings };
    let entries = outline(schema::SERVICE, &settings);
    if alone { without(entries, &outline(schema::UPSTREAM, &settings)) } else { entries }
}

fn settings_of(upstream: &Upstream) -> Settings {
    let Upstream { url: _, breaker, timeouts, pool, host, max_requests, weight, backup, health, dns } =
        upstream.clone();
    Settings { breaker, timeouts, pool, host, max_requests, weight, backup, health, dns, ..Settings::default() }
}

/// The entries that are not in `others`.
fn without(entries: Vec<Entry>, others: &[Entry]) -> Vec<Entry> {
    let kept = entries.into_iter().filter_map(|entry| {
        let other = others.iter().find(|other| other.key == entry.key);
        match (entry.what, other.map(|other| &other.what)) {
            (what, None) => Some(Entry { what, ..entry }),
            (What::Mapping(mapping), Some(What::Mapping(other))) => {
                let entries = without(mapping.entries, &other.entries);
                (!entries.is_empty()).then_some(Entry { what: What::Mapping(Mapping { entries, ..mapping }), ..entry })
            }
            _ => None,
        }
    });
    kept.collect()
}

fn tree(entries: Vec<Entry>) -> Vec<(String, Yaml)> {
    let shown = |entry: Entry| {
        let value = match entry.what {
            What::Value(_, shown) => Yaml::Value(shown?),
            What::Mapping(Mapping { off: true, .. }) => Yaml::Value(Shown::Bare("false".to_owned())),
            What::Mapping(Mapping { entries, .. }) => Yaml::Mapping(tree(entries)),
            What::Apart(_) => return None,
        };
        Some((entry.key.to_owned(), value))
    };
    entries.into_iter().filter_map(shown).collect()
}

/// The printed file as a tree.
#[derive(Clone, PartialEq, Eq)]
enum Yaml {
    Value(Shown),
    List(Vec<Yaml>),
    Mapping(Vec<(String, Yaml)>),
}

impl Yaml {
    /// Writes it behind a key or a hyphen; the first line of it, if `begun`, has its indentation already.
    fn write(&self, out: &mut String, indent: usize, mut begun: bool) {
        let mut begin = |out: &mut String| {
            let indent = if std::mem::take(&mut begun) { 0 } else { indent };
            let _ = write!(out, "{:indent$}", "");
        };
        match self {
            Yaml::Value(shown) => {
                let _ = writeln!(out, "{}", value(shown));
            }
            Yaml::List(items) => items.iter().for_each(|item| {
                begin(out);
                out.push_str("- ");
                item.write(out, indent + 2, true);
            }),
            Yaml::Mapping(entries) => entries.iter().for_each(|(key, value)| {
                begin(out);
                let _ = write!(out, "{}:", scalar(key));
                match value {
                    Yaml::List(items) if items.is_empty() => return out.push_str(" []\n"),
                    Yaml::List(_) | Yaml::Mapping(_) => out.push('\n'),
                    Yaml::Value(_) => out.push(' '),
                }
                value.write(out, indent + 2, false);
            }),
        }
    }
}

fn value(shown: &Shown) -> String {
    match shown {
        Shown::Bare(text) => text.clone(),
        Shown::Text(text) => scalar(&escaped(text)),
        Shown::List(items) => format!("[{}]", items.iter().map(value).collect::<Vec<_>>().join(", ")),
    }
}

/// Doubles each dollar sign that the reader would take for the beginning of something.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        out.push(c);
        if c == '$' && matches!(rest.peek(), Some('$' | '{')) {
            out.push('$');
        }
    }
    out
}

/// Text as it is, when nothing could take it for anything else; else in quotes.
fn scalar(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:%-".contains(&byte);
    let harmless = text.bytes().all(plain)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && !text.ends_with(':')
        && serde_yaml::from_str::<serde_yaml::Value>(text).is_ok_and(|value| value.is_string());
    // A text in JSON is the same text in YAML.
    if harmless { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

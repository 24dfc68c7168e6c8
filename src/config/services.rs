//! From the tree of a file to the model: what at the top level is a service, how settings are laid over
//! each other, what two entries of one service may not say.
//!
//! Must not know: files, the bounds of single values.

use super::diagnostics::{Fault, quote};
use super::model::{Config, Service, Upstream, is_service_name};
use super::reader::{Reader, Scope};
use super::schema::{self, Process, Settings};
use super::suggest::did_you_mean;
use super::tree::{Entry, Node, Value};
use super::url;
use crate::policy::balance::{MOST_TURNS, Policy, turns_needed};
use std::collections::HashMap;

/// Upstreams of one service.
pub(super) const MOST_UPSTREAMS: usize = 65_000;

/// Reads the whole file. What could not be read is missing or has its default; `reader.findings` tells.
pub(super) fn config<'a>(root: &'a Node, reader: &mut Reader<'a>) -> Config {
    let entries: &[Entry] = match &root.value {
        Value::Mapping(entries) => entries,
        _ if root.is_null() => &[],
        _ => {
            let fault = Fault::new("the file must be a mapping of services");
            reader.error(root, fault.help("write \"name:\", and below it a list of URLs"));
            return Config { services: Vec::new(), gateway: Process::default().gateway };
        }
    };
    let mut process = Process::default();
    if let Some(node) = root.find("gateway").filter(|node| !is_list(node)) {
        let errors = reader.findings.errors();
        reader.mapping(node, schema::GATEWAY, &mut process);
        if reader.findings.errors() == errors {
            schema::check_affinity(&process.gateway, node, reader);
        }
        schema::check_metrics_path(&process.gateway, node, reader);
        schema::read_token(&mut process.gateway.admin, node, reader);
    }
    let below = services_below(root);
    let entries: Vec<&Entry> = match below {
        Some(below) => {
            for entry in entries.iter().filter(|entry| is_service(entry) && &*entry.key != "services") {
                let fault = Fault::new("services stand both at the top level and under \"services\"");
                reader.findings.error(entry.key_at, fault.help("write all of them in one of the two places"));
            }
            below.iter().filter(|entry| is_list(&entry.value) || !entry.key.starts_with("x-")).collect()
        }
        None => entries.iter().filter(|entry| is_service(entry)).collect(),
    };
    if entries.is_empty() {
        reader.findings.warning(None, Fault::new("no services: every request will be answered 404"));
    }
    let mut services = Vec::new();
    for entry in entries {
        reader.scope = Scope::Service(&entry.key);
        services.extend(service(entry, &process.defaults, reader));
    }
    Config { services, gateway: process.gateway }
}

/// The services of a file that keeps them under a key of their own. With `upstreams` in it, the key is the name
/// of a service.
fn services_below(root: &Node) -> Option<&[Entry]> {
    match root.find("services").map(|node| (node, &node.value)) {
        Some((node, Value::Mapping(entries))) if node.find("upstreams").is_none() => Some(entries),
        _ => None,
    }
}

fn is_list(node: &Node) -> bool {
    matches!(node.value, Value::List(_))
}

/// A list is a service whatever its name; anything else unless the name is reserved.
fn is_service(entry: &Entry) -> bool {
    is_list(&entry.value) || (&*entry.key != "gateway" && !entry.key.starts_with("x-"))
}

fn service<'a>(entry: &'a Entry, defaults: &Settings, reader: &mut Reader<'a>) -> Option<Service> {
    let name = &*entry.key;
    let listed = match &entry.value.value {
        Value::Mapping(_) => entry.value.find("upstreams"),
        _ => Some(&*entry.value),
    };
    let Some(listed) = listed else {
        no_upstreams(entry, defaults, reader);
        return None;
    };
    if let Err(fault) = check_name(name) {
        reader.findings.error(entry.key_at, fault);
    }
    let mut settings = defaults.clone();
    if let Value::Mapping(_) = &entry.value.value {
        reader.mapping(&entry.value, schema::SERVICE, &mut settings);
    }
    let upstreams = upstreams(entry, listed, &settings, reader);
    if settings.balancing.policy != Policy::Hash {
        // Inherited, and without effect: it is no part of what this service is.
        settings.balancing.hash_on = None;
    }
    let Settings { balancing, retries, breaker, total_timeout, body_limit, upgrades, .. } = settings;
    let when_all_open = breaker.when_all_open;
    let name = name.to_owned();
    Some(Service { name, upstreams, balancing, retries, when_all_open, total_timeout, body_limit, upgrades })
}

/// A mapping without upstreams is most likely not meant as a service; then what is in it says nothing.
fn no_upstreams(entry: &Entry, defaults: &Settings, reader: &mut Reader<'_>) {
    let name = &*entry.key;
    let meant = schema::home(name).or_else(|| did_you_mean(name, ["gateway", "services"]));
    if meant.is_none() {
        reader.mapping(&entry.value, schema::SERVICE, &mut defaults.clone());
    }
    let help = meant.unwrap_or_else(|| "add a list of URLs under \"upstreams:\"".to_owned());
    reader.findings.error(entry.key_at, Fault::new(format!("service {} has no upstreams", quote(name))).help(help));
}

fn check_name(name: &str) -> Result<(), Fault> {
    if !is_service_name(name) {
        let fault = Fault::new(format!("{} is not a service name", quote(name)));
        return Err(fault.help("a name is letters, digits, \"-\", \"_\", \".\""));
    }
    Ok(())
}

fn upstreams<'a>(entry: &'a Entry, listed: &'a Node, settings: &Settings, reader: &mut Reader<'a>) -> Vec<Upstream> {
    let name = &*entry.key;
    let Value::List(items) = &listed.value else {
        reader.error(listed, not_a_list(entry, listed));
        return Vec::new();
    };
    if items.is_empty() {
        let fault = Fault::new(format!("service {} has no upstreams: it answers 503", quote(name)));
        reader.findings.warning(listed.at, fault);
    }
    if items.len() > MOST_UPSTREAMS {
        let fault = Fault::new(format!("service {} has more than {MOST_UPSTREAMS} upstreams", quote(name)));
        reader.error(listed, fault);
        return Vec::new();
    }
    reader.scope = Scope::UpstreamOf(name);
    let mut first: HashMap<String, (usize, usize)> = HashMap::new();
    let mut upstreams: Vec<Upstream> = Vec::with_capacity(items.len());
    for item in items {
        let Some(upstream) = upstream(item, settings, reader) else { continue };
        let (index, line) = *first.entry(upstream.url.normalised()).or_insert((upstreams.len(), item.at.line));
        if upstreams.get(index).is_some_and(|other| !same_settings(other, &upstream)) {
            let fault = Fault::new(format!("{} is listed twice with different settings", quote(&upstream.url.text)));
            let help = format!("one URL has one circuit breaker and one pool; it stands on line {line} already");
            reader.error(item, fault.help(help));
        }
        upstreams.push(upstream);
    }
    let turns = |backup: bool| {
        let weights = upstreams.iter().filter(move |upstream| upstream.backup == backup);
        turns_needed(weights.map(|upstream| upstream.weight))
    };
    if turns(false).max(turns(true)) > MOST_TURNS {
        let fault = Fault::new(format!("the weights of service {} need more than {MOST_TURNS} turns", quote(name)));
        reader.error(listed, fault.help("use smaller weights, or weights that share a divisor"));
    } else if !upstreams.is_empty() && upstreams.iter().all(|upstream| upstream.weight == 0) {
        let fault = Fault::new(format!("every upstream of service {} has weight 0: it answers 503", quote(name)));
        reader.findings.warning(listed.at, fault);
    }
    upstreams
}

fn not_a_list(entry: &Entry, listed: &Node) -> Fault {
    let name = quote(&entry.key);
    let fault = Fault::new(match &entry.value.value {
        Value::Mapping(_) => format!("upstreams of service {name} must be a list"),
        _ => format!("service {name} must be a list of URLs or a mapping with upstreams"),
    });
    match (&listed.value, schema::home(&entry.key)) {
        _ if listed.is_null() => fault.help("without upstreams it is written []"),
        (_, Some(home)) => fault.help(home),
        (Value::Scalar(scalar), None) if url::upstream(&scalar.text).is_ok() => {
            fault.help(format!("write it as [{}]", quote(&scalar.text)))
        }
        _ => fault,
    }
}

fn upstream<'a>(item: &'a Node, settings: &Settings, reader: &mut Reader<'a>) -> Option<Upstream> {
    let mut settings = settings.clone();
    let at = match &item.value {
        Value::Mapping(_) => {
            reader.mapping(item, schema::UPSTREAM, &mut settings);
            let Some(url) = item.find("url") else {
                reader.error(item, Fault::new("an upstream needs a url"));
                return None;
            };
            url
        }
        _ => item,
    };
    let text = reader.text(at)?;
    match url::upstream(&text.value) {
        Ok(url) => Some(settings.upstream(url)),
        Err(fault) => {
            // Anchors are kept under such keys, but a list is a service whatever its name.
            let anchors = matches!(reader.scope, Scope::UpstreamOf(name) if name.starts_with("x-"));
            let help = anchors.then_some("a list is a service; keep anchors of lists inside of a mapping");
            reader.error(at, help.into_iter().fold(fault, Fault::help));
            None
        }
    }
}

fn same_settings(a: &Upstream, b: &Upstream) -> bool {
    a.breaker == b.breaker
        && a.timeouts == b.timeouts
        && a.pool == b.pool
        && a.host == b.host
        && a.max_requests == b.max_requests
        && (a.weight, a.backup) == (b.weight, b.backup)
        && (&a.health, a.dns) == (&b.health, b.dns)
}

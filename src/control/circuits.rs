//! Breakers by hand: `POST /v1/circuits/{service}/{index}/trip` and `…/reset`.
//!
//! A breaker belongs to an upstream's identity, so what was done by hand outlives every reload that keeps the
//! upstream. Must not know: how a breaker decides, who may ask.

use crate::config;
use crate::control::events::ByHand;
use crate::control::reload::to_json;
use crate::control::{Control, Courier, status};
use crate::ground::tick::Tick;
use crate::http::target::{self, Own};
use crate::shard::mailbox::{Moved, Ticket};
use crate::shared::snapshot::{Service, Upstream};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// Characters of a reason that are kept.
const REASON: usize = 256;

/// What an operator may say.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wish {
    /// Why, for log and status.
    reason: Option<String>,
    /// How long it stays open (`10m`); absent: until a reset.
    r#for: Option<String>,
}

#[derive(Serialize)]
struct Circuit<'a> {
    service: &'a str,
    index: usize,
    #[serde(flatten)]
    upstream: status::UpstreamStatus<'a>,
}

impl<C: Courier> Control<C> {
    /// Does what a ticket asks and answers it.
    pub(super) fn move_circuit(&mut self, ticket: &Ticket, now: Tick) {
        match self.try_move(ticket, now) {
            Ok(body) => self.answer(ticket, 200, "application/json", &body),
            Err((status, detail)) => {
                let reason = if status == 404 { "no_circuit" } else { "malformed" };
                self.answer_problem(ticket, status, reason, &detail);
            }
        }
    }

    fn try_move(&mut self, ticket: &Ticket, now: Tick) -> Result<Vec<u8>, (u16, String)> {
        let snapshot = Arc::clone(&self.snapshot);
        let (at, index) = find(&snapshot.services, &ticket.path).ok_or((404, "there is no such circuit".to_owned()))?;
        let (service, upstream) = (&snapshot.services[at], &snapshot.services[at].upstreams[index]);
        let wish = parse(&ticket.body).map_err(|why| (400, why))?;
        let trips = ticket.own == Own::Trip;
        let for_ms = match &wish.r#for {
            Some(_) if !trips => return Err((400, "a reset has no end: remove \"for\"".to_owned())),
            Some(text) => Some(span_ms(text).map_err(|why| (400, why))?),
            None => None,
        };
        let breaker = &upstream.identity.breaker;
        let transition = if trips { Some(breaker.trip(now.ms(), for_ms)) } else { breaker.reset() };
        if !trips {
            upstream.identity.warm_from_ms.store(now.ms().max(1), Ordering::Relaxed);
        }
        let note = wish.reason.map(|why| why.chars().filter(|c| !c.is_control()).take(REASON).collect::<String>());
        let event = ByHand {
            time: status::rfc3339(SystemTime::now()),
            service: &service.identity.name,
            index,
            upstream: &upstream.identity.url,
            reason: note.as_deref(),
            r#for: wish.r#for.as_deref(),
        };
        self.events.publish(if trips { "trip" } else { "reset" }, &event);
        if let Some(transition) = transition {
            let identity = Arc::clone(&upstream.identity);
            let moved = Moved { upstream: identity, at_ms: now.ms(), transition, cause: None, observed: false, note };
            self.moved(&moved, SystemTime::now());
        }
        let upstream = status::upstream_status(self, upstream, now);
        Ok(to_json(&Circuit { service: &service.identity.name, index, upstream }))
    }
}

fn find(services: &[Service], path: &[u8]) -> Option<(usize, usize)> {
    let (name, index, _) = target::circuit(path)?;
    let at = services.iter().position(|service| service.identity.name.as_bytes() == name)?;
    let index: usize = std::str::from_utf8(index).ok()?.parse().ok()?;
    let upstreams: &[Upstream] = &services[at].upstreams;
    (index < upstreams.len()).then_some((at, index))
}

fn parse(body: &[u8]) -> Result<Wish, String> {
    if body.trim_ascii().is_empty() {
        return Ok(Wish::default());
    }
    // Serde would take a list for the fields in their order.
    if !body.trim_ascii().starts_with(b"{") {
        return Err("the body is not a JSON object".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("the body is not what it should be: {error}"))
}

fn span_ms(text: &str) -> Result<u64, String> {
    let span = config::duration("for", text)?;
    if span.is_zero() {
        return Err("for must be longer than nothing".to_owned());
    }
    Ok(u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_strictly() {
        let wish = parse(b" {\"reason\": \"maintenance\", \"for\": \"10m\"}").unwrap();
        assert_eq!((wish.reason.as_deref(), span_ms(&wish.r#for.unwrap())), (Some("maintenance"), Ok(600_000)));
        assert!(parse(b"").unwrap().reason.is_none());
        for body in [&b"reason"[..], b"[]", b"{\"reson\": \"x\"}", b"{\"reason\": 5}", b"{} {}", b"\xff"] {
            assert!(parse(body).is_err());
        }
        assert!(span_ms("10").is_err() && span_ms("0").is_err() && span_ms("soon").is_err());
    }
}

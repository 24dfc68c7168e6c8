//! When names are asked for again, and how long an old answer stands (`dns.refresh`, `dns.stale`).
//!
//! Must not know: how a name is resolved, what an address is for.

use crate::config::model::{Config, Dns};
use crate::control::build;
use crate::control::resolve::Name;
use crate::ground::random::Random;
use crate::ground::tick::Tick;
use crate::shared::snapshot::Snapshot;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How often names without an answer are asked for again, unless `dns.refresh` is shorter.
const AGAIN: Duration = Duration::from_secs(5);
/// Names of one round; the others are due in the next.
const ROUND: usize = 256;

/// What is known of the names of the configuration in force. Literal addresses are none.
#[derive(Debug)]
pub struct Fresh {
    names: HashMap<Name, State>,
    random: Random,
}

#[derive(Debug)]
struct State {
    dns: Dns,
    due: Tick,
    /// The last answer with an address.
    answered: Option<Tick>,
    /// Why the last question had none.
    failing: Option<String>,
}

/// What becomes of the addresses of a name that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The last ones stand, for so long.
    Stand(Option<Duration>),
    /// They have stood for too long.
    Dropped,
}

impl Fresh {
    /// Nothing is known yet.
    pub fn new(seed: u64) -> Fresh {
        Fresh { names: HashMap::new(), random: Random::new(seed) }
    }

    /// Takes over the names of a configuration that came into force now, with the addresses of `snapshot`.
    pub fn follow(&mut self, config: &Config, snapshot: &Snapshot, now: Tick) {
        let known = build::known_addresses(config, snapshot);
        let mut old = std::mem::take(&mut self.names);
        for upstream in config.services.iter().flat_map(|service| &service.upstreams) {
            let name = build::name(&upstream.url);
            if name.0.parse::<IpAddr>().is_ok() {
                continue;
            }
            let dns = upstream.dns;
            if let Some(state) = self.names.get_mut(&name) {
                // Two upstreams with one name: the more careful setting of each.
                state.dns = Dns {
                    refresh: least(state.dns.refresh, dns.refresh),
                    stale: if state.dns.stale.is_zero() || dns.stale.is_zero() {
                        Duration::ZERO
                    } else {
                        state.dns.stale.max(dns.stale)
                    },
                };
                continue;
            }
            let has_address = known.get(&name).is_some_and(|addresses| !addresses.is_empty());
            let before = old.remove(&name);
            let answered = before.as_ref().and_then(|state| state.answered).or(has_address.then_some(now));
            let failing = before.and_then(|state| state.failing).filter(|_| !has_address);
            self.names.insert(name, State { dns, due: now, answered, failing });
        }
        for (name, state) in &mut self.names {
            let has_address = known.get(name).is_some_and(|addresses| !addresses.is_empty());
            state.due = due(&state.dns, has_address, now, &mut self.random);
        }
    }

    /// When the next name is due.
    pub fn next(&self) -> Option<Tick> {
        self.names.values().map(|state| state.due).filter(|due| *due != Tick::NEVER).min()
    }

    /// The names that are due, as many as one round takes.
    pub fn due(&self, now: Tick) -> Vec<Name> {
        let due = self.names.iter().filter(|(_, state)| state.due <= now);
        due.map(|(name, _)| name.clone()).take(ROUND).collect()
    }

    /// Puts everything off that is due: a reload is under way and asks for all.
    pub fn put_off(&mut self, now: Tick) {
        for state in self.names.values_mut().filter(|state| state.due <= now) {
            state.due = now.after(AGAIN);
        }
    }

    /// A name has an answer; whether it had none before.
    pub fn answered(&mut self, name: &Name, now: Tick) -> bool {
        let Some(state) = self.names.get_mut(name) else { return false };
        state.answered = Some(now);
        state.due = due(&state.dns, true, now, &mut self.random);
        state.failing.take().is_some()
    }

    /// A name has none; what becomes of its addresses, when that is news.
    pub fn failed(&mut self, name: &Name, why: &str, now: Tick) -> Option<Fate> {
        let state = self.names.get_mut(name)?;
        state.due = now.after(again(&state.dns));
        let is_new = state.failing.is_none();
        state.failing = Some(why.to_owned());
        let stale = state.dns.stale;
        match state.answered {
            Some(answered) if !stale.is_zero() && now.since(answered) >= stale => {
                state.answered = None;
                Some(Fate::Dropped)
            }
            Some(_) => is_new.then_some(Fate::Stand(Some(stale).filter(|stale| !stale.is_zero()))),
            None => None,
        }
    }

    /// Why a name has no answer; `None` when it has one, or is a literal address.
    pub fn failing(&self, name: &Name) -> Option<&str> {
        self.names.get(name)?.failing.as_deref()
    }
}

fn again(dns: &Dns) -> Duration {
    least(AGAIN, dns.refresh)
}

fn least(a: Duration, b: Duration) -> Duration {
    if a.is_zero() || !b.is_zero() && b < a { b } else { a }
}

/// A tenth earlier at most, so that names that were asked for together do not stay together.
fn due(dns: &Dns, has_address: bool, now: Tick, random: &mut Random) -> Tick {
    match (has_address, dns.refresh) {
        (false, _) => now.after(again(dns)),
        (true, Duration::ZERO) => Tick::NEVER,
        (true, refresh) => now.after(refresh - refresh * (random.next_u64() % 1000) as u32 / 10_000),
    }
}

/// Whether an answer has other addresses than before. Their order is not news: name servers rotate it.
pub fn differ(old: Option<&Vec<SocketAddr>>, new: &[SocketAddr]) -> bool {
    let sorted = |addresses: &[SocketAddr]| {
        let mut addresses = addresses.to_vec();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    };
    old.is_none_or(|old| sorted(old) != sorted(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::from_us(seconds * 1_000_000)
    }

    fn fresh(dns: Dns) -> (Fresh, Name) {
        let name = ("name.test".to_owned(), 80);
        let state = State { dns, due: at(0), answered: Some(at(0)), failing: None };
        (Fresh { names: HashMap::from([(name.clone(), state)]), random: Random::new(1) }, name)
    }

    #[test]
    fn old_answers_stand_until_they_are_stale() {
        let (mut fresh, name) = fresh(Dns { refresh: Duration::from_secs(30), stale: Duration::from_secs(60) });
        let stand = Fate::Stand(Some(Duration::from_secs(60)));
        assert_eq!(fresh.failed(&name, "gone", at(30)), Some(stand));
        assert_eq!(fresh.failing(&name), Some("gone"));
        assert_eq!(fresh.failed(&name, "gone", at(35)), None, "said once");
        assert_eq!(fresh.failed(&name, "gone", at(60)), Some(Fate::Dropped));
        assert_eq!(fresh.failed(&name, "gone", at(65)), None);
        assert!(fresh.answered(&name, at(70)));
        assert_eq!(fresh.failing(&name), None);
        let next = fresh.next().expect("due");
        assert!(next > at(96) && next <= at(100), "{next:?}");
    }

    #[test]
    fn zero_asks_never_again_and_keeps_for_ever() {
        let (mut fresh, name) = fresh(Dns { refresh: Duration::ZERO, stale: Duration::ZERO });
        assert!(!fresh.answered(&name, at(1)));
        assert_eq!(fresh.next(), None);
        assert_eq!(fresh.failed(&name, "gone", at(10_000)), Some(Fate::Stand(None)));
        assert_eq!(fresh.next(), Some(at(10_005)), "what fails is asked for again all the same");
    }

    #[test]
    fn the_order_of_addresses_is_no_news() {
        let [a, b]: [SocketAddr; 2] = ["127.0.0.1:1", "127.0.0.2:1"].map(|text| text.parse().unwrap());
        assert!(!differ(Some(&vec![a, b]), &[b, a]));
        assert!(differ(Some(&vec![a, b]), &[a]) && differ(None, &[a]));
    }
}

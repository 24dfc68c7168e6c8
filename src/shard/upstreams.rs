//! Upstream connections of one shard: connecting over the addresses of a name, and the pool of idle ones.
//!
//! An upstream connection points back to the client it serves and decides nothing. Idle ones lie in a
//! stack for each upstream, the newest on top; one that epoll reports is closed at once, so that the
//! check-out needs no system call. Must not know: exchanges, breakers.

use crate::ground::table::Table;
use crate::ground::tick::Tick;
use crate::shard::conn::{Conn, Ready};
use crate::shard::net::{ClientId, Net, Subject, UpstreamId, UpstreamKind};
use crate::shared::failure::Failure;
use crate::shared::snapshot;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One upstream connection.
#[derive(Debug)]
pub struct UpstreamConn<S> {
    /// The socket and its buffers.
    pub conn: Conn<S>,
    /// Where it stands.
    pub state: UpstreamState,
    /// Of its upstream: where it lies when idle.
    pub slot: usize,
}

/// States, named by what is awaited.
#[derive(Debug)]
pub enum UpstreamState {
    /// The connect to end.
    Connecting {
        /// Who waits for it.
        client: ClientId,
        /// Which of the addresses this is.
        order: Order,
    },
    /// A response, for a client.
    Serving {
        /// Who waits for it.
        client: ClientId,
    },
    /// Bytes of either side, after a 101.
    Tunnel {
        /// The other end.
        client: ClientId,
        /// It has our FIN, so that a hang-up is an orderly end.
        shut: bool,
    },
    /// Nothing: whatever comes now is its end.
    Idle,
}

/// The place of an address in the order in which one attempt tries them: the one that worked last, as it was
/// known when the attempt began, then the others. What other attempts find out meanwhile changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    first: u8,
    tried: u8,
}

impl Order {
    /// The first address to try.
    pub fn begin(to: &snapshot::Upstream) -> Order {
        let last = to.addresses.len().saturating_sub(1).min(usize::from(u8::MAX)) as u8;
        Order { first: to.identity.preferred.load(Ordering::Relaxed).min(last), tried: 0 }
    }

    /// The one after this, if there is one.
    pub fn next(self, to: &snapshot::Upstream) -> Option<Order> {
        let tried = self.tried.checked_add(1)?;
        (usize::from(tried) < to.addresses.len()).then_some(Order { tried, ..self })
    }

    /// Its place in the list of addresses.
    fn position(self) -> u8 {
        match self.tried {
            0 => self.first,
            // The first one has been taken out of the order.
            nth if nth <= self.first => nth - 1,
            nth => nth,
        }
    }

    /// Notes that this address worked.
    pub fn prefer(self, to: &snapshot::Upstream) {
        if self.tried > 0 {
            to.identity.preferred.store(self.position(), Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Stack {
    newest_last: Vec<UpstreamId>,
    live: usize,
}

/// The upstream connections of one shard.
#[derive(Debug)]
pub struct Upstreams<S> {
    /// All of them.
    pub table: Table<UpstreamConn<S>, UpstreamKind>,
    idle: Vec<Stack>,
    idle_count: usize,
}

impl<S> Default for Upstreams<S> {
    fn default() -> Upstreams<S> {
        Upstreams { table: Table::default(), idle: Vec::new(), idle_count: 0 }
    }
}

impl<S> Upstreams<S> {
    /// Takes the newest idle connection of an upstream for `client`.
    pub fn check_out(&mut self, slot: usize, client: ClientId) -> Option<UpstreamId> {
        let stack = self.idle.get_mut(slot)?;
        // Those that were closed meanwhile are still listed; the table knows.
        while let Some(id) = stack.newest_last.pop() {
            if let Some(upstream) = self.table.get_mut(id)
                && matches!(upstream.state, UpstreamState::Idle)
            {
                stack.live -= 1;
                self.idle_count -= 1;
                upstream.state = UpstreamState::Serving { client };
                upstream.conn.deadline = Tick::NEVER;
                return Some(id);
            }
        }
        None
    }

    /// Puts a sound connection into the pool until `deadline`, if there is room for it below `most`.
    pub fn check_in(&mut self, id: UpstreamId, deadline: Tick, most: usize) -> bool {
        let Some(upstream) = self.table.get_mut(id) else { return false };
        if self.idle.len() <= upstream.slot {
            self.idle.resize_with(upstream.slot + 1, || Stack { newest_last: Vec::new(), live: 0 });
        }
        let stack = &mut self.idle[upstream.slot];
        if stack.live >= most {
            return false;
        }
        upstream.state = UpstreamState::Idle;
        upstream.conn.deadline = deadline;
        stack.live += 1;
        self.idle_count += 1;
        stack.newest_last.push(id);
        if stack.newest_last.len() > 2 * stack.live + 16 {
            let table = &self.table;
            stack.newest_last.retain(|id| table.get(*id).is_some_and(|u| matches!(u.state, UpstreamState::Idle)));
        }
        true
    }

    /// Takes a connection out of the table, and out of the pool's count when it was idle.
    pub fn remove(&mut self, id: UpstreamId) -> Option<UpstreamConn<S>> {
        let upstream = self.table.remove(id)?;
        if let (UpstreamState::Idle, Some(stack)) = (&upstream.state, self.idle.get_mut(upstream.slot)) {
            stack.live -= 1;
            self.idle_count -= 1;
        }
        Some(upstream)
    }

    /// How many are idle.
    pub fn idle_len(&self) -> usize {
        self.idle_count
    }

    /// Takes an idle connection out of an upstream's stack, to be closed.
    pub fn idle_of(&mut self, slot: usize) -> Option<UpstreamId> {
        let stack = self.idle.get_mut(slot)?;
        let table = &self.table;
        std::iter::from_fn(|| stack.newest_last.pop())
            .find(|id| table.get(*id).is_some_and(|upstream| matches!(upstream.state, UpstreamState::Idle)))
    }

    /// Begins a connection to the first address, from `order` on, that takes one.
    pub fn connect<N: Net<Stream = S>>(
        &mut self,
        net: &mut N,
        to: &snapshot::Upstream,
        client: ClientId,
        order: Order,
    ) -> Result<UpstreamId, Failure> {
        let mut next = Some(order);
        let mut failure = Failure::Unreachable;
        while let Some(order) = next {
            let Some(address) = to.addresses.get(usize::from(order.position())) else { break };
            let opened = net.connect(*address).and_then(|mut socket| {
                net.register(&mut socket, Subject::Upstream(self.table.next_id()).token())?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => {
                    return Ok(self.table.insert(UpstreamConn {
                        conn: Conn::new(socket, Ready::NONE),
                        state: UpstreamState::Connecting { client, order },
                        slot: to.identity.slot.number(),
                    }));
                }
                Err(error) => failure = Failure::of_connect(&error),
            }
            next = order.next(to);
        }
        Err(failure)
    }
}

/// How long a connection may stay idle, given what the upstream announced: a second less than that, so
/// that we close first.
pub fn idle_time(pool: Duration, announced_s: Option<u32>) -> Duration {
    match announced_s {
        None => pool,
        Some(seconds) => {
            pool.min(Duration::from_secs(u64::from(seconds).saturating_sub(1)).max(Duration::from_millis(500)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_tried_once_and_the_preferred_one_first() {
        for addresses in 1..5u8 {
            for first in 0..addresses {
                let order: Vec<u8> = (0..addresses).map(|tried| Order { first, tried }.position()).collect();
                assert_eq!(order[0], first);
                let mut all = order.clone();
                all.sort_unstable();
                assert_eq!(all, (0..addresses).collect::<Vec<_>>(), "{order:?}");
            }
        }
    }

    #[test]
    fn we_close_before_the_upstream_does() {
        let pool = Duration::from_secs(4);
        assert_eq!(idle_time(pool, None), pool);
        assert_eq!(idle_time(pool, Some(60)), pool);
        assert_eq!(idle_time(pool, Some(3)), Duration::from_secs(2));
        assert_eq!(idle_time(pool, Some(1)), Duration::from_millis(500));
    }
}

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
        /// How many addresses were tried before this one.
        tried: u8,
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
}

impl<S> Default for Upstreams<S> {
    fn default() -> Upstreams<S> {
        Upstreams { table: Table::default(), idle: Vec::new() }
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
        }
        Some(upstream)
    }

    /// The idle connections whose upstream's slot `keeps` does not name.
    pub fn idle_where(&self, keeps: impl Fn(usize) -> bool) -> Vec<UpstreamId> {
        let gone = |upstream: &UpstreamConn<S>| matches!(upstream.state, UpstreamState::Idle) && !keeps(upstream.slot);
        self.table.iter().filter(|(_, upstream)| gone(upstream)).map(|(id, _)| id).collect()
    }

    /// Begins a connection to the first address, from the `tried`-th on, that takes one: the address that
    /// worked last comes first, then the others in their order.
    pub fn connect<N: Net<Stream = S>>(
        &mut self,
        net: &mut N,
        to: &snapshot::Upstream,
        client: ClientId,
        tried: u8,
    ) -> Result<UpstreamId, Failure> {
        let mut failure = Failure::Unreachable;
        for tried in tried..to.addresses.len().min(usize::from(u8::MAX)) as u8 {
            let address = to.addresses[position(to, tried)];
            let opened = net.connect(address).and_then(|mut socket| {
                net.register(&mut socket, Subject::Upstream(self.table.next_id()).token())?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => {
                    return Ok(self.table.insert(UpstreamConn {
                        conn: Conn::new(socket, Ready::NONE),
                        state: UpstreamState::Connecting { client, tried },
                        slot: to.identity.slot.number(),
                    }));
                }
                Err(error) => failure = Failure::of_connect(&error),
            }
        }
        Err(failure)
    }
}

/// The place in the list of addresses of the `tried`-th one to try.
fn position(to: &snapshot::Upstream, tried: u8) -> usize {
    let first = usize::from(to.identity.preferred.load(Ordering::Relaxed));
    let last = to.addresses.len() - 1;
    match usize::from(tried) {
        0 => first.min(last),
        // The preferred one has been taken out of the order.
        nth if nth <= first.min(last) => nth - 1,
        nth => nth,
    }
}

/// Notes that the `tried`-th address worked.
pub fn prefer(to: &snapshot::Upstream, tried: u8) {
    if tried > 0 && !to.addresses.is_empty() {
        to.identity.preferred.store(position(to, tried) as u8, Ordering::Relaxed);
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
    fn we_close_before_the_upstream_does() {
        let pool = Duration::from_secs(4);
        assert_eq!(idle_time(pool, None), pool);
        assert_eq!(idle_time(pool, Some(60)), pool);
        assert_eq!(idle_time(pool, Some(3)), Duration::from_secs(2));
        assert_eq!(idle_time(pool, Some(1)), Duration::from_millis(500));
    }
}

//! Accepting connections: bounded per turn, within `limits.connections`, and paused while the process has
//! no descriptor left (accept(2), EMFILE).
//!
//! Must not know: what a connection will ask.

use crate::ground::tick::Tick;
use crate::shard::client::{Client, ClientState, Then};
use crate::shard::net::{Door, Net, Subject};
use crate::shard::{Reply, Shard};
use std::io;
use std::time::Duration;

/// Connections of one turn; what is left over makes the next poll wait zero.
const PER_TURN: usize = 64;
/// Connections over the limit that a shard answers at a time.
const TURNED_AWAY: usize = 64;
/// How long a pause for want of descriptors lasts at most.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket of a shard.
#[derive(Debug)]
pub struct Listening<L> {
    /// The socket.
    pub socket: L,
    /// Its queue may hold connections.
    pub ready: bool,
}

/// Accepts what waits, as far as one turn goes.
pub fn accept<N: Net>(shard: &mut Shard<N>) {
    if shard.accept_again > shard.ctx.now {
        return;
    }
    let mut left = PER_TURN;
    for at in 0..shard.listeners.len() {
        while shard.listeners[at].ready && left > 0 {
            left -= 1;
            match shard.ctx.net.accept(&shard.listeners[at].socket) {
                Ok((socket, peer)) => {
                    let door = shard.ctx.net.door(&shard.listeners[at].socket);
                    welcome(shard, socket, peer.ip(), door);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => shard.listeners[at].ready = false,
                    // The connection ended while it was queued (accept(2)); the next one may be well.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                    _ => {
                        pause(shard);
                        return;
                    }
                },
            }
        }
    }
}

fn pause<N: Net>(shard: &mut Shard<N>) {
    if shard.accept_again == Tick::START {
        shard.ctx.trouble("accepting pauses: no descriptor or memory is left for another connection");
    }
    shard.ctx.counters().accept_pauses.bump();
    shard.accept_again = shard.ctx.now.after(PAUSE);
}

fn welcome<N: Net>(shard: &mut Shard<N>, mut socket: N::Stream, peer: std::net::IpAddr, door: Door) {
    shard.accept_again = Tick::START;
    let id = shard.clients.next_id();
    let token = Subject::Client(id).token();
    if shard.ctx.net.register(&mut socket, token).is_err() {
        pause(shard);
        return;
    }
    shard.ctx.counters().accepted.bump();
    let mut client = Client::new(socket, peer, door);
    client.conn.deadline = shard.ctx.now.after(shard.snapshot.client.keep_alive);
    client.counted = shard.ctx.process.connect(shard.snapshot.connections);
    if client.counted {
        let id = shard.clients.insert(client);
        return shard.drive(id);
    }
    shard.ctx.counters().over_limit.bump();
    if shard.turned_away >= TURNED_AWAY {
        // Dropped without a word: an answer needs a descriptor for as long as it takes to be read.
        return;
    }
    shard.turned_away += 1;
    let id = shard.clients.insert(client);
    let reply = Reply::unread(503, "the gateway has reached limits.connections", "connection_limit_reached");
    shard.reply(id, &Reply { outcome: "connections", ..reply });
    if let Some(client) = shard.clients.get_mut(id) {
        client.state = ClientState::Answering { then: Then::Linger };
    }
    shard.drive(id);
}

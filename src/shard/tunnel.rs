//! A tunnel: bytes both ways after a 101, each direction on its own, until both have ended.
//!
//! A direction ends with its sender's FIN, which is passed on when everything before it has gone. Back-pressure
//! is the same as everywhere: a sender is not read while its receiver has not taken what there is.
//! Must not know: which protocol is spoken.

use crate::ground::buffer::Buffer;
use crate::shard::Ctx;
use crate::shard::client::Client;
use crate::shard::conn::{Broken, Conn, Filled};
use crate::shard::exchange::ExchangeId;
use crate::shard::net::{Net, UpstreamId};
use crate::shard::upstreams::{UpstreamConn, UpstreamState};

/// Where a tunnel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The other end.
    pub upstream: UpstreamId,
    /// The exchange that it came from, which stays under way.
    pub exchange: ExchangeId,
    /// Client to upstream.
    pub up: Half,
    /// Upstream to client.
    pub down: Half,
    /// How long both may be silent, in milliseconds.
    pub silence_ms: u32,
}

/// One direction of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bytes may come.
    Open,
    /// The sender's last byte was read; some may wait in the receiver's `outbound`.
    Ending,
    /// The receiver has our FIN.
    Shut,
}

/// What a look at a tunnel gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Bytes moved, or an end was passed on.
    Moved,
    /// Nothing can be done before an event.
    Still,
    /// Both directions have ended, or one end is broken.
    Over,
}

/// Moves what can be moved, once in each direction.
pub fn advance<N: Net>(
    client: &mut Client<N::Stream>,
    upstream: &mut UpstreamConn<N::Stream>,
    tunnel: &mut Tunnel,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Flow {
    let up = pour(&mut client.conn, &mut upstream.conn, &mut tunnel.up, scratch, ctx);
    let down = pour(&mut upstream.conn, &mut client.conn, &mut tunnel.down, scratch, ctx);
    if let UpstreamState::Tunnel { shut, .. } = &mut upstream.state {
        *shut = tunnel.up == Half::Shut;
    }
    match (up, down) {
        (Err(Broken), _) | (_, Err(Broken)) => Flow::Over,
        _ if tunnel.up == Half::Shut && tunnel.down == Half::Shut => Flow::Over,
        (Ok(false), Ok(false)) => Flow::Still,
        _ => Flow::Moved,
    }
}

fn pour<N: Net>(
    from: &mut Conn<N::Stream>,
    to: &mut Conn<N::Stream>,
    half: &mut Half,
    scratch: &mut Buffer,
    ctx: &mut Ctx<N>,
) -> Result<bool, Broken> {
    let moved = match to.flush(&mut ctx.net, &mut ctx.pool) {
        Ok(n) => n > 0,
        Err(Broken) => return Ok(give_up(to, half, ctx)),
    };
    if !to.outbound.is_empty() {
        return Ok(moved);
    }
    match *half {
        Half::Shut => Ok(moved),
        Half::Ending => {
            // A receiver that is gone needs no end.
            let _ = ctx.net.shutdown_write(&mut to.socket);
            *half = Half::Shut;
            Ok(true)
        }
        Half::Open => {
            ctx.output.clear();
            // What came with the request's head, or behind the 101.
            if !from.inbound.is_empty() {
                let sent = to.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, from.inbound.bytes());
                from.inbound.clear(&mut ctx.pool);
                return Ok(sent.is_ok() || give_up(to, half, ctx));
            }
            scratch.reset();
            match from.fill(&mut ctx.net, scratch) {
                Filled::Nothing => Ok(moved),
                Filled::Broken => Err(Broken),
                Filled::End => {
                    *half = Half::Ending;
                    Ok(true)
                }
                Filled::Bytes(n) => {
                    ctx.budget = ctx.budget.saturating_sub(n);
                    let sent = to.send(&mut ctx.net, &mut ctx.pool, &mut ctx.output, scratch.bytes());
                    scratch.reset();
                    Ok(sent.is_ok() || give_up(to, half, ctx))
                }
            }
        }
    }
}

/// The receiver takes no more, so this direction is over; what it has sent itself can still be read. Always
/// progress.
fn give_up<N: Net>(to: &mut Conn<N::Stream>, half: &mut Half, ctx: &mut Ctx<N>) -> bool {
    to.outbound.clear(&mut ctx.pool);
    *half = Half::Shut;
    true
}

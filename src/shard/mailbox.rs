//! What shards and control tell each other. Both directions are bounded queues; a shard never waits.
//!
//! To a shard: commands, announced by its waker. To control: notices, from every thread of the process.
//! Must not know: what control does with a notice.

use crate::ground::queue::{Receiver, Sender, Untold};
use crate::http::render::Persistence;
use crate::http::request::Version;
use crate::http::target::Own;
use crate::policy::breaker::Transition;
use crate::shared::failure::Failure;
use crate::shared::snapshot::{Snapshot, UpstreamIdentity};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

/// Notices that may wait for control; most are small, so large ones are boxed.
pub const NOTICES: usize = 4096;
/// Bytes of a piece of an answer.
pub const PIECE: usize = 128 << 10;
/// Commands that may wait for a shard.
pub const COMMANDS: usize = 1024;

/// What control tells a shard.
#[derive(Debug)]
pub enum Command {
    /// This configuration is in force from now on.
    Switch {
        /// The configuration.
        snapshot: Arc<Snapshot>,
        /// Slots of upstreams whose idle connections must not be used any more.
        left: Vec<usize>,
    },
    /// The answer to a ticket: a whole response.
    Answer {
        /// The ticket's client.
        client: u64,
        /// What the access log says of it.
        told: Told,
        /// Head and body, in pieces that are sent in one turn each.
        pieces: VecDeque<Vec<u8>>,
    },
    /// The beginning of an answer that goes on: the head, and what there is to say at once.
    Begin {
        /// The ticket's client.
        client: u64,
        /// What the access log says of it.
        told: Told,
        /// In pieces that are sent in one turn each.
        pieces: VecDeque<Vec<u8>>,
    },
    /// What follows in an answer that goes on.
    Stream {
        /// The ticket's client.
        client: u64,
        /// What becomes of a client that is behind.
        part: Part,
        /// In pieces that are sent in one turn each.
        pieces: VecDeque<Vec<u8>>,
    },
    /// Take no more connections, finish what runs; the thread then ends with [`Notice::Drained`].
    Drain,
}

/// What the access log says of an answer of control.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its cause in a word.
    pub outcome: &'static str,
    /// The ticket's.
    pub request_id: Vec<u8>,
}

impl Told {
    /// Of an answer to `ticket`.
    pub fn of(ticket: &Ticket, outcome: &'static str) -> Told {
        Told { outcome, request_id: ticket.request_id.clone() }
    }
}

/// What a part of a stream is to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It must not be missed: a client that has too much of it to take is dropped.
    Event,
    /// A later one says it anew: a client that has something to take does not get it.
    Sample,
    /// The end. A client that has something to take is dropped.
    Last,
}

/// What control is told.
#[derive(Debug)]
pub enum Notice {
    /// A request for control to answer.
    Ticket(Box<Ticket>),
    /// The shard runs on the snapshot of this generation.
    Switched {
        /// Which shard.
        shard: usize,
        /// Of the snapshot.
        serial: u64,
    },
    /// A client to which control streams is gone.
    Left {
        /// Which shard.
        shard: usize,
        /// Which client.
        client: u64,
        /// It did not take what was sent, and was dropped for that.
        lagged: bool,
    },
    /// A breaker changed its state.
    Moved(Box<Moved>),
    /// Health checks changed their verdict.
    Checked(Box<Checked>),
    /// The shard has no client left.
    Drained {
        /// Which shard.
        shard: usize,
    },
    /// The shard's thread has ended although nobody asked it to.
    Died {
        /// Which shard.
        shard: usize,
        /// Why.
        why: String,
    },
    /// A signal came.
    Signal(i32),
    /// The configuration file has another content than the one that was loaded last.
    FileChanged {
        /// Of the content.
        fingerprint: u64,
    },
    /// A name was resolved, or was not.
    Resolved(Box<Resolved>),
    /// Accepting stopped for want of descriptors, or a panic was caught: a line for the log.
    Trouble {
        /// Which shard.
        shard: usize,
        /// In words.
        what: &'static str,
    },
}

/// A request that control answers.
#[derive(Debug)]
pub struct Ticket {
    /// The shard that waits.
    pub shard: usize,
    /// The client that waits.
    pub client: u64,
    /// What is asked.
    pub own: Own,
    /// It is not let in before it has given the token.
    pub needs_token: bool,
    /// The request was `HEAD`.
    pub to_head: bool,
    /// To be said in the answer.
    pub persistence: Persistence,
    /// Of the request.
    pub version: Version,
    /// Of the request.
    pub request_id: Vec<u8>,
    /// Of the request's target.
    pub path: Vec<u8>,
    /// Of the request's target, with its `?`; or empty.
    pub query: Vec<u8>,
    /// `Last-Event-ID` of the request.
    pub last_event_id: Option<Vec<u8>>,
    /// `Accept` of the request; empty without one.
    pub accept: Vec<u8>,
    /// Of the request, decoded.
    pub body: Vec<u8>,
}

/// A breaker's change of state.
#[derive(Debug)]
pub struct Moved {
    /// Whose.
    pub upstream: Arc<UpstreamIdentity>,
    /// When, in milliseconds since the start: control may hear of it late.
    pub at_ms: u64,
    /// From, to, why.
    pub transition: Transition,
    /// The failure that caused it.
    pub cause: Option<Failure>,
    /// The breaker only observes: nothing is skipped.
    pub observed: bool,
    /// What an operator said about it.
    pub note: Option<String>,
}

/// What became of a name.
#[derive(Debug)]
pub struct Resolved {
    /// Of the request to the resolver.
    pub round: u64,
    /// Host and port that were asked for.
    pub name: (String, u16),
    /// What the system said.
    pub result: Result<Vec<SocketAddr>, String>,
}

/// A new verdict of health checks.
#[derive(Debug)]
pub struct Checked {
    /// About whom.
    pub upstream: Arc<UpstreamIdentity>,
    /// When, in milliseconds since the start.
    pub at_ms: u64,
    /// The words of the verdicts before and after.
    pub verdicts: (&'static str, &'static str),
    /// Checks in a row that led to it.
    pub in_row: u64,
    /// What the last of them failed with.
    pub cause: Option<Failure>,
}

/// A shard's end of the mailbox.
#[derive(Debug)]
pub struct Mailbox {
    /// Which shard this is.
    pub shard: usize,
    /// From control.
    pub commands: Receiver<Command>,
    /// To control.
    pub notices: Sender<Notice>,
}

impl Mailbox {
    /// Tells control, unless its queue is full or it is gone.
    pub fn tell(&self, notice: Notice) -> Result<(), Untold> {
        self.notices.tell(notice)
    }
}

//! What is one for the whole process: its name on the wire, its readiness, its open client connections.
//!
//! Must not know: who asks.

use crate::shared::access::Access;
use crate::shared::metrics::ShardCounters;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Facts and words of the process that every thread shares.
#[derive(Debug)]
pub struct Process {
    /// `fusegate-{8 hex}`: the pseudonym in `Via`.
    pub pseudonym: String,
    /// One entry for each shard.
    pub shards: Box<[ShardCounters]>,
    /// Whether `/readyz` says yes.
    pub ready: AtomicBool,
    /// `metrics.buckets`: bounds of durations, in microseconds, rising.
    pub bounds_us: Box<[u64]>,
    /// The queues of the access log.
    pub access: Arc<Access>,
    connections: AtomicUsize,
}

impl Process {
    /// The process that `random` names, with so many shards and these bounds of histograms.
    pub fn new(random: u64, shards: usize, bounds: &[Duration]) -> Process {
        Process {
            pseudonym: format!("fusegate-{:08x}", random as u32),
            shards: (0..shards).map(|_| ShardCounters::default()).collect(),
            ready: AtomicBool::new(false),
            bounds_us: bounds.iter().map(|bound| bound.as_micros() as u64).collect(),
            access: Arc::new(Access::new(shards)),
            connections: AtomicUsize::new(0),
        }
    }

    /// A client connection begins, if it is within `limit`.
    pub fn connect(&self, limit: usize) -> bool {
        let within = self.connections.fetch_add(1, Ordering::Relaxed) < limit;
        if !within {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
        within
    }

    /// A client connection that was within the limit ended.
    pub fn disconnect(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Open client connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

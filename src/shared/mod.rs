//! What shards and the control thread both know: the immutable snapshot, words that are atomic, counters
//! with one writer, and the one failure type.
//!
//! Must not know: sockets, threads, files.

pub mod access;
pub mod failure;
pub mod metrics;
pub mod process;
pub mod snapshot;

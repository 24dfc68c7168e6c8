//! fusegate: a request gateway with strict round robin and a circuit breaker for every upstream.
//!
//! The rooms, from the ground up. Each may use those above it in this list, never those below
//! (`ARCHITECTURE.md` has the map).

pub mod config;
pub mod control;
pub mod demo;
pub mod ground;
pub mod http;
pub mod logging;
pub mod policy;
pub mod process;
pub mod shard;
pub mod shared;

pub mod affinity;
pub mod check;
pub mod cli;

//! The atomics and the lock that policy is built on, in one place so that a model checker can stand in for
//! them: a model includes policy's files and gives them a module of this name with its own types.
//!
//! Must not know: who uses them.

pub use std::sync::Mutex;
pub use std::sync::atomic::{AtomicU64, Ordering};

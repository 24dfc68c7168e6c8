//! What every room stands on: time, buffers, tables of slots, the timing wheel, queues between threads, and the
//! atomics that a model checker can replace.
//!
//! Must not know: HTTP, sockets, configuration, policy.

pub mod buffer;
pub mod calendar;
pub mod queue;
pub mod random;
pub mod sync;
pub mod table;
pub mod tick;
pub mod wheel;

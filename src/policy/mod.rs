//! Pure decisions: breaker, balance, retry. The clock is passed in.
//!
//! Must not know: sockets, configuration files, bytes of HTTP.

pub mod balance;
pub mod breaker;
pub mod class;
pub mod retry;
pub mod window;

#[cfg(test)]
mod balance_tests;
#[cfg(test)]
mod breaker_tests;

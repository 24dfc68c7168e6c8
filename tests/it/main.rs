//! Black-box tests of the gateway: the real program, real sockets on the loopback interface, real
//! and scripted upstreams. One binary, so that the support code is compiled once. Modules are named
//! by subject, tests by the behaviour that they hold.

// a failed unwrap is how a test fails
#![allow(clippy::unwrap_used)]

mod admin;
mod admin_access;
mod balance;
mod balance_rules;
mod breaker;
mod breaker_rules;
mod causes;
mod circuits;
mod clients;
mod config_files;
mod deploy;
mod events;
mod framing;
mod health;
mod intermediary;
mod limits;
mod metrics;
mod names;
mod openapi;
mod page;
mod process;
mod proxying;
mod refusals;
mod reload;
mod responses;
mod retry;
mod retry_rules;
mod smuggling;
mod support;
mod timeouts;
mod upgrades;
mod upstream_faults;
mod watch;

//! HTTP/1.1 as bytes: what may come in, what goes out (RFC 9110, RFC 9112). Pure functions.
//!
//! Must not know: sockets, clocks, configuration files, upstreams.

pub mod body;
pub mod fields;
pub mod head;
pub mod problem;
pub mod render;
pub mod request;
pub mod response;
pub mod status;
pub mod target;

//! What the tests are made of: the gateway as a child process, scripted upstreams, a raw client,
//! and a strict reader of HTTP/1.1 that they share. Nothing here knows the gateway's code.

pub(crate) mod caller;
pub(crate) mod gateway;
pub(crate) mod origin;
pub(crate) mod problem;
pub(crate) mod wire;

pub(crate) use caller::{Caller, Response, fetch};
pub(crate) use gateway::{Gateway, service};
pub(crate) use origin::{Origin, RefusedPort, ok, reply};

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The longest that any wait of a test may take: far beyond what is needed, so that only a hang reaches it.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Waits until `condition` holds; panics with `what` when it does not within [`LIMIT`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "waited {LIMIT:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A door that is shut until it is opened, once and for all who wait.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    /// Lets everybody through.
    pub(crate) fn open(&self) {
        *self.state.0.lock().unwrap() = true;
        self.state.1.notify_all();
    }

    /// Waits until the gate is open; panics when nobody opens it for twice [`LIMIT`].
    pub(crate) fn wait(&self) {
        let shut = self.state.0.lock().unwrap();
        let (open, _) = self.state.1.wait_timeout_while(shut, LIMIT * 2, |open| !*open).unwrap();
        assert!(*open, "a gate was never opened");
    }
}

/// Bytes that look random and are the same in every run: a body in which no piece can be lost,
/// doubled or moved without being seen.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut word: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `bytes` as one chunked body in chunks of at most `size` bytes, without trailers.
pub(crate) fn chunked(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut coded = Vec::with_capacity(bytes.len() + bytes.len() / size * 10 + 16);
    for chunk in bytes.chunks(size) {
        coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\n\r\n");
    coded
}

/// Compares long bodies without printing them.
#[track_caller]
pub(crate) fn assert_same_bytes(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "length of the body");
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        panic!("the bodies differ from byte {at:?} on");
    }
}

//! The `Date` of now, formatted once a second (RFC 9110 section 6.6.1).
//!
//! Must not know: the clock. Whoever runs the shard says what the wall clock shows.

use crate::ground::tick::Tick;
use httpdate::HttpDate;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of an IMF-fixdate.
const LEN: usize = 29;

/// A cached date.
#[derive(Debug)]
pub struct Date {
    /// The wall clock at [`Tick::START`], in microseconds since 1970.
    start_us: u64,
    second: u64,
    text: [u8; LEN],
}

impl Date {
    /// A clock that showed `start_us` at [`Tick::START`].
    pub fn new(start_us: u64) -> Date {
        Date { start_us, second: u64::MAX, text: [b' '; LEN] }
    }

    /// The wall clock was set.
    pub fn set(&mut self, start_us: u64) {
        self.start_us = start_us;
    }

    /// The wall clock at `now`, in microseconds since 1970.
    pub fn wall_us(&self, now: Tick) -> u64 {
        self.start_us.saturating_add(now.us())
    }

    /// The date at `now`.
    pub fn at(&mut self, now: Tick) -> &[u8] {
        let second = self.wall_us(now) / 1_000_000;
        if second != self.second {
            self.second = second;
            let date = HttpDate::from(UNIX_EPOCH + Duration::from_secs(second));
            // Into the array: this must not allocate. It has exactly the room of every date before 10000.
            let _ = write!(&mut self.text[..], "{date}");
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_tick() {
        let mut date = Date::new(784_111_777_000_000);
        assert_eq!(date.at(Tick::START), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.at(Tick::from_us(1_500_000)), b"Sun, 06 Nov 1994 08:49:38 GMT");
    }
}

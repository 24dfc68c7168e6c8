//! Monotonic time as a plain number, so that it can be an argument everywhere and a simulator can make it.
//!
//! Must not know: the clock. Whoever owns a thread reads it once per turn and passes a [`Tick`] on.

use std::time::Duration;

/// A moment of monotonic time: microseconds since the process began.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u64);

impl Tick {
    /// The start of the process.
    pub const START: Tick = Tick(0);
    /// Later than every other moment: a deadline that never comes.
    pub const NEVER: Tick = Tick(u64::MAX);

    /// The moment `us` microseconds after the start.
    pub const fn from_us(us: u64) -> Tick {
        Tick(us)
    }

    /// The moment `elapsed` after the start.
    pub fn from_elapsed(elapsed: Duration) -> Tick {
        Tick(Self::saturated(elapsed))
    }

    /// Microseconds since the start.
    pub const fn us(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the start.
    pub const fn ms(self) -> u64 {
        self.0 / 1000
    }

    /// The moment `span` later; never wraps.
    pub fn after(self, span: Duration) -> Tick {
        Tick(self.0.saturating_add(Self::saturated(span)))
    }

    /// How long it takes from `earlier` until this moment; zero when it is not later.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    fn saturated(span: Duration) -> u64 {
        // Not through u128: this runs several times per request.
        span.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(span.subsec_micros()))
    }
}

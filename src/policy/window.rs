//! The share of bad outcomes in the last seconds: what the rate triggers of a breaker look at.
//!
//! The window is cut into ten parts, each counted in one atomic word of a ring; a bucket that is older than the window
//! is begun anew by the first outcome that falls into it. A bucket that is full halves its counts: the share stays.
//! Must not know: the clock, what is done about a share.

use crate::ground::sync::{AtomicU64, Ordering};

/// A window has so many parts.
const TENTHS: u64 = 10;
/// More than the parts of a window: what is begun anew is older than any window that still counts, also for a thread
/// whose clock is some parts behind.
const BUCKETS: usize = 12;
const COUNT_BITS: u32 = 13;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const EPOCH_MASK: u64 = (1 << (64 - 3 * COUNT_BITS)) - 1;

/// How an outcome counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Neither failed nor slow.
    Good,
    /// Failed.
    Failed,
    /// Succeeded, but slowly.
    Slow,
}

/// Counts of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Outcomes.
    pub total: u64,
    /// Failed ones.
    pub failed: u64,
    /// Slow ones.
    pub slow: u64,
}

impl Counts {
    /// Whether `part` of the outcomes is at least `rate` of them all, in hundredths of a percent.
    pub fn reach(part: u64, rate: u32, total: u64) -> bool {
        part * 10_000 >= u64::from(rate) * total
    }
}

/// Outcomes of the last seconds.
#[derive(Debug, Default)]
pub struct Window {
    buckets: [AtomicU64; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    epoch: u64,
    counts: Counts,
}

impl Bucket {
    fn unpack(word: u64) -> Bucket {
        let part = |at: u32| word >> (at * COUNT_BITS) & MOST;
        Bucket { epoch: word >> (3 * COUNT_BITS), counts: Counts { total: part(2), failed: part(1), slow: part(0) } }
    }

    fn pack(self) -> u64 {
        let Counts { total, failed, slow } = self.counts;
        self.epoch << (3 * COUNT_BITS) | total << (2 * COUNT_BITS) | failed << COUNT_BITS | slow
    }

    fn add(&mut self, counted: Counted) {
        let counts = &mut self.counts;
        if counts.total == MOST {
            *counts = Counts { total: counts.total / 2, failed: counts.failed / 2, slow: counts.slow / 2 };
        }
        counts.total += 1;
        counts.failed += u64::from(counted == Counted::Failed);
        counts.slow += u64::from(counted == Counted::Slow);
    }
}

impl Window {
    /// Counts an outcome; what the last `window_ms` milliseconds hold with it, to a tenth of the window.
    pub fn record(&self, now_ms: u64, window_ms: u64, counted: Counted) -> Counts {
        let epoch = Self::epoch(now_ms, window_ms);
        let cell = &self.buckets[(epoch % BUCKETS as u64) as usize];
        let mut word = cell.load(Ordering::Relaxed);
        loop {
            let mut bucket = Bucket::unpack(word);
            if bucket.epoch != epoch & EPOCH_MASK {
                bucket = Bucket { epoch: epoch & EPOCH_MASK, counts: Counts::default() };
            }
            bucket.add(counted);
            match cell.compare_exchange_weak(word, bucket.pack(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(current) => word = current,
            }
        }
        self.counts(epoch)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    // Windows of different lengths count from different numbers, so that after a reload no bucket of the old window
    // is taken for one of the new. An epoch is not zero, so that an empty bucket belongs to none.
    fn epoch(now_ms: u64, window_ms: u64) -> u64 {
        let tenth = (window_ms / TENTHS).max(1);
        now_ms / tenth + (tenth.wrapping_mul(0x9e37_79b1) & EPOCH_MASK) + 1
    }

    fn counts(&self, epoch: u64) -> Counts {
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            let Bucket { epoch: of, counts } = Bucket::unpack(bucket.load(Ordering::Relaxed));
            if of != 0 && (epoch & EPOCH_MASK).wrapping_sub(of) & EPOCH_MASK < TENTHS {
                sum.total += counts.total;
                sum.failed += counts.failed;
                sum.slow += counts.slow;
            }
        }
        sum
    }
}

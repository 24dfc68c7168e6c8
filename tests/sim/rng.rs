//! The one source of chance of a run: a seed determines every choice, so a seed is a whole run.
//!
//! The generator is xorshift64* over a scrambled seed. Must not know: what is decided with it.

/// A stream of choices.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of `seed`; any seed is good.
    pub(crate) fn new(seed: u64) -> Random {
        Random(mix(seed, 0x5eed) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `bound`; 0 when that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// From `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A size whose magnitude is evenly spread: small ones are as likely as large ones.
    pub(crate) fn size(&mut self, most: usize) -> usize {
        let bits = u64::from(usize::BITS - most.leading_zeros());
        let width = self.below(bits + 1);
        (self.below(1 << width) as usize).min(most)
    }
}

/// A number that two numbers determine.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut mixed = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

/// Writes `len` bytes of the body that `key` names, from `offset` on. Any two bodies differ early and
/// everywhere, so that a byte of another body, or one out of place, is seen.
pub(crate) fn body_bytes(key: u64, offset: usize, len: usize, out: &mut Vec<u8>) {
    out.reserve(len);
    let mut at = offset;
    while at < offset + len {
        let block = mix(key, (at / 8) as u64).to_le_bytes();
        let from = at % 8;
        let take = (8 - from).min(offset + len - at);
        out.extend_from_slice(&block[from..from + take]);
        at += take;
    }
}

/// Where `bytes` differ from the body that `key` names at `offset`.
pub(crate) fn body_differs(key: u64, offset: usize, bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() {
        let place = offset + at;
        let block = mix(key, (place / 8) as u64).to_le_bytes();
        let from = place % 8;
        let take = (8 - from).min(bytes.len() - at);
        if block[from..from + take] != bytes[at..at + take] {
            return Some(place);
        }
        at += take;
    }
    None
}

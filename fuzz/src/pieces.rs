//! Where an input is cut: a network may deliver the same bytes in any pieces, and nothing may depend on it.
//!
//! Must not know: what the bytes mean.

/// Up to this length every cut is tried; longer inputs are sampled, so that an input costs no more than linear.
const EVERY_CUT: usize = 200;
/// Cuts that are sampled of a longer input.
const SAMPLED: usize = 48;

/// Lengths of prefixes to try, ascending, the whole included; the same for the same bytes.
pub(crate) fn cuts(bytes: &[u8]) -> Vec<usize> {
    if bytes.len() <= EVERY_CUT {
        return (0..=bytes.len()).collect();
    }
    let mut cuts = vec![0, 1, bytes.len() - 1, bytes.len()];
    // The neighbourhood of a line end is where a reader is most likely to change its mind.
    for at in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).take(8) {
        cuts.extend([at.saturating_sub(1), at, at + 1, at + 2]);
    }
    let mut state = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| mix(hash ^ u64::from(*byte)));
    while cuts.len() < SAMPLED {
        state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        cuts.push(state as usize % bytes.len());
    }
    cuts.retain(|cut| *cut <= bytes.len());
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_mul(0x0000_0100_0000_01b3);
    value ^ (value >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_in_order_and_end_with_the_whole() {
        for length in [0, 1, EVERY_CUT, EVERY_CUT + 1, 4096] {
            let bytes = b"a\r\n".repeat(length / 3 + 1);
            let cuts = cuts(&bytes[..length]);
            assert!(cuts.is_sorted() && cuts.last() == Some(&length), "{length}: {cuts:?}");
        }
    }
}

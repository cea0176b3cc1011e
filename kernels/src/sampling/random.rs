//! Numbers that depend on a seed and a count alone, so that a draw is the same in any batch.

/// Step of SplitMix64's state: 2⁶⁴ divided by the golden ratio.
pub(super) const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bits of a number: those of a double's significand.
pub(crate) const BITS: u32 = 53;

/// Number `draw` of the stream of `seed`, uniform in [0, 1).
///
/// SplitMix64 (Steele, Lea and Flood 2014), whose state after n steps is `start + n GAMMA`. The start is mixed from the
/// seed, so that streams of neighbouring seeds do not overlap.
pub(crate) fn uniform(seed: u64, draw: u64) -> f64 {
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(draw.wrapping_add(1).wrapping_mul(GAMMA)));
    (bits >> (u64::BITS - BITS)) as f64 / (1_u64 << BITS) as f64
}

/// SplitMix64's finaliser: a bijection in which each input bit changes about half of the output bits.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

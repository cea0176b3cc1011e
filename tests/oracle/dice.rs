//! Random choices that a seed repeats.

/// A stream of random numbers (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True `percent` times of a hundred.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A number below `limit`; small ones are more frequent, as 1/(n+1).
    pub(crate) fn zipf(&mut self, limit: usize) -> usize {
        let weight = |n: usize| 1000 / (n + 1);
        let mut left = self.below((0..limit).map(weight).sum());
        for n in 0..limit {
            match left.checked_sub(weight(n)) {
                Some(rest) => left = rest,
                None => return n,
            }
        }
        limit - 1
    }
}

//! Unnormalised probabilities.

/// Lanes of a reduction that the compiler can keep in vector registers.
const LANES: usize = 16;

/// The largest logit; minus infinity where there is none.
pub(super) fn max(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// The logarithm of the least weight that is kept, at most 0: the best token is always kept.
pub(crate) fn log_least(min_p: f32) -> f32 {
    min_p.ln().min(0.0)
}

/// Weights `exp((l - max) / temperature)` of logits, 0 below `least`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// The largest logit; its weight is 1.
    pub(super) max: f32,
    pub(super) temperature: f32,
    /// The smallest logit that has a weight.
    pub(super) least: f32,
}

impl Softmax {
    /// Weights below `min_p` become 0.
    pub(super) fn new(max: f32, temperature: f32, min_p: f32) -> Self {
        // A minimum of 0 keeps all finite logits, and so does a product that is not a number.
        let least = (max + temperature * log_least(min_p)).max(f32::MIN);
        Self { max, temperature, least }
    }

    /// The weight of a logit.
    pub(super) fn weight(&self, logit: f32) -> f32 {
        let weight = exp_of_negative((logit - self.max) / self.temperature);
        let weight = if logit >= self.least { weight } else { 0.0 };
        // The largest may be infinite, and its difference to itself is NaN then.
        if logit == self.max { 1.0 } else { weight }
    }

    /// Replaces logits by their weights.
    pub(super) fn weigh(&self, logits: &mut [f32]) {
        logits.iter_mut().for_each(|logit| *logit = self.weight(*logit));
    }

    /// The sum of all weights.
    pub(super) fn sum(&self, logits: &[f32]) -> f64 {
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for chunk in chunks {
            let mut weights = *chunk;
            self.weigh(&mut weights);
            for (lane, weight) in lanes.iter_mut().zip(weights) {
                *lane += f64::from(weight);
            }
        }
        let rest = rest.iter().map(|&logit| f64::from(self.weight(logit)));
        lanes.into_iter().chain(rest).sum()
    }

    /// The sum of the weights of tokens with their logits.
    pub(super) fn sum_of(&self, tokens: &[(u32, f32)]) -> f64 {
        tokens.iter().map(|&(_, logit)| f64::from(self.weight(logit))).sum()
    }

    /// The logarithm of a logit's share of a sum whose logarithm is `log_sum`.
    pub(super) fn log_weight(&self, logit: f32, log_sum: f64) -> f32 {
        if logit < self.least || logit.is_nan() {
            return f32::NEG_INFINITY;
        }
        let distance = if logit == self.max { 0.0 } else { f64::from(logit - self.max) };
        (distance - log_sum) as f32
    }
}

/// `eˣ` for `x <= 0`, to two units in the last place; 0 where the result would be less than a normal number.
///
/// `2ⁿ eʳ` with `x = n ln 2 + r` and a polynomial for `eʳ` (Cephes `expf`). Without branches or calls, so that the
/// compiler makes vectors of it, and without fused operations, so that it is the same on every machine.
#[expect(clippy::excessive_precision, reason = "coefficients as published")]
fn exp_of_negative(x: f32) -> f32 {
    /// `ln 2` in two parts; the first has so few bits that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_40e-4];
    /// Where the result leaves the normal numbers.
    const LEAST: f32 = -87.336_54;
    /// Adding it rounds to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;

    // A NaN becomes the bound as well.
    let bounded = x.max(LEAST);
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN_2[0] - n * LN_2[1];
    let mut sum = 1.987_569_150_0e-4;
    for coefficient in
        [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 0.5]
    {
        sum = sum * r + coefficient;
    }
    let exp_r = sum * r * r + r + 1.0;
    // The integer n, moved to where the exponent is.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x >= LEAST { exp_r * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units() {
        for i in 0..2_000_000 {
            let x = -87.336 * i as f32 / 2_000_000.0;
            let (found, exact) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((found / exact - 1.0).abs() < 2.4e-7, "{x}: {found} {exact}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        for x in [-87.34, -1e4, f32::MIN, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp_of_negative(x), 0.0, "{x}");
        }
    }
}

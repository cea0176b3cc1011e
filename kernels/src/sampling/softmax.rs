//! Unnormalised probabilities.

/// Lanes of a maximum that the compiler can keep in vector registers.
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
        // A minimum of 0, or one that is not a number, keeps all finite logits.
        let least = (max + temperature * min_p.ln().min(0.0)).max(f32::MIN);
        Self { max, temperature, least }
    }

    /// The weight of a logit, in f64 so that sums of them are exact enough.
    pub(super) fn weight(&self, logit: f32) -> f64 {
        // The largest may be infinite, and its difference to itself would be NaN.
        if logit == self.max {
            1.0
        } else if logit >= self.least {
            f64::from(((logit - self.max) / self.temperature).exp())
        } else {
            0.0
        }
    }

    /// The sum of all weights, in order of id.
    pub(super) fn sum(&self, logits: &[f32]) -> f64 {
        logits.iter().map(|&logit| self.weight(logit)).sum()
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

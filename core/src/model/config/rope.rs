//! Rotary embedding: frequencies and the table of cosines and sines.
//!
//! Computed in f32 in the order in which transformers computes it: at position 8192 one unit in the last place of a
//! frequency is already 5e-4 of an angle.

use crate::error::{Error, Result};

/// Rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// Frequencies are divided by this.
        factor: f32,
    },
    /// Low ones by a factor, high ones not, blended between (Llama 3.1).
    Llama3 {
        /// Low frequencies are divided by this.
        factor: f32,
        /// Wavelengths above `original / low` are low frequencies.
        low: f32,
        /// Wavelengths below `original / high` are high frequencies.
        high: f32,
        /// Context of the first training.
        original: f32,
    },
    /// Each by its own factor, one for each of the `head_dim / 2` frequencies (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl Rope {
    /// Radians a position, for each of the `head_dim / 2` pairs of a head.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            // One rounding, as a good f32 power has it.
            let power = f64::from(self.theta).powf(f64::from(exponent)) as f32;
            1.0 / power
        });
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let rule = Llama3 { factor: *factor, low: *low, high: *high, original: *original };
                plain.map(|f| rule.apply(f)).collect()
            }
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, by)| f / by).collect(),
        }
    }

    /// Cosines and sines for positions below `positions`: `[positions][head_dim / 2 cos | head_dim / 2 sin]`.
    pub fn rope_table(&self, head_dim: usize, positions: usize) -> Vec<f32> {
        let frequencies = self.inverse_frequencies(head_dim);
        let mut table = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            let position = position as f32;
            table.extend(frequencies.iter().map(|f| (position * f).cos()));
            table.extend(frequencies.iter().map(|f| (position * f).sin()));
        }
        table
    }

    /// Refuses factors that do not fit `head_dim` and frequencies that are no numbers.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if let RopeScaling::Factors(factors) = &self.scaling
            && factors.len() != head_dim / 2
        {
            return Err(Error::invalid(format!(
                "{} rotary factors, expected {} for head_dim {head_dim}",
                factors.len(),
                head_dim / 2
            )));
        }
        if let RopeScaling::Llama3 { low, high, .. } = self.scaling
            && high <= low
        {
            return Err(Error::invalid(format!(
                "rotary high_freq_factor {high} is not above low_freq_factor {low}"
            )));
        }
        match self.inverse_frequencies(head_dim).iter().find(|f| !(f.is_finite() && **f > 0.0)) {
            None => Ok(()),
            Some(f) => Err(Error::invalid(format!(
                "rotary base {} and its scaling give the frequency {f}",
                self.theta
            ))),
        }
    }
}

/// Llama 3.1's rule, for one frequency.
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    original: f32,
}

impl Llama3 {
    fn apply(&self, frequency: f32) -> f32 {
        let wavelength = std::f32::consts::TAU / frequency;
        if wavelength > self.original / self.low {
            return frequency / self.factor;
        }
        if wavelength < self.original / self.high {
            return frequency;
        }
        let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_tables_match_transformers() {
        // From transformers 5.23 (torch 2.15, f32): cosine and sine of the frequencies 1 and 5 of a head of 16, and of
        // Llama 3.1's rule.
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 };
        let llama3 = Rope { theta: 10_000.0, scaling };
        let factors = Rope { theta: 10_000.0, scaling: RopeScaling::Factors(vec![2.0; 8]) };
        for (rope, expected) in [(&plain, PLAIN), (&linear, LINEAR), (&llama3, LLAMA3)] {
            let frequencies = rope.inverse_frequencies(16);
            for (pair, (found, expected)) in frequencies.iter().zip(expected.0).enumerate() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{pair}: {found} {expected}");
            }
            let table = rope.rope_table(16, 251);
            for (at, expected) in (250 * 16..).zip(expected.1) {
                assert!((table[at] - expected).abs() < 1e-6, "{at}: {} {expected}", table[at]);
            }
        }
        assert_eq!(factors.inverse_frequencies(16)[0], 0.5);
        assert!(factors.check(16).is_ok());
        assert!(factors.check(32).is_err());
        let zero = Rope { theta: 10_000.0, scaling: RopeScaling::Factors(vec![0.0; 8]) };
        assert!(zero.check(16).is_err());
    }
    const PLAIN: ([f32; 8], [f32; 16]) = (
        [
            1.000000000,
            3.162277639e-01,
            1.000000015e-01,
            3.162277862e-02,
            9.999999776e-03,
            3.162277862e-03,
            1.000000047e-03,
            3.162277862e-04,
        ],
        [
            2.409882993e-01,
            -8.692457080e-01,
            9.912028313e-01,
            -5.168980360e-02,
            -8.011435866e-01,
            7.034406662e-01,
            9.689124227e-01,
            9.968765974e-01,
            -9.705280066e-01,
            -4.943803549e-01,
            -1.323517561e-01,
            9.986631870e-01,
            5.984721184e-01,
            7.107539773e-01,
            2.474039644e-01,
            7.897461951e-02,
        ],
    );
    const LINEAR: ([f32; 8], [f32; 16]) = (
        [
            2.500000000e-01,
            7.905694097e-02,
            2.500000037e-02,
            7.905694656e-03,
            2.499999944e-03,
            7.905694656e-04,
            2.500000119e-04,
            7.905694656e-05,
        ],
        [
            9.454402328e-01,
            6.100452542e-01,
            9.994494319e-01,
            -3.945952356e-01,
            8.109630942e-01,
            9.805322289e-01,
            9.980475307e-01,
            9.998046756e-01,
            -3.257955611e-01,
            7.923665643e-01,
            -3.317921609e-02,
            9.188550711e-01,
            5.850972533e-01,
            1.963581443e-01,
            6.245931610e-02,
            1.976295002e-02,
        ],
    );
    const LLAMA3: ([f32; 8], [f32; 16]) = (
        [
            1.000000000,
            9.583997726e-02,
            1.250000019e-02,
            3.952847328e-03,
            1.249999972e-03,
            3.952847328e-04,
            1.250000059e-04,
            3.952847328e-05,
        ],
        [
            2.409882993e-01,
            3.876218796e-01,
            -9.998623729e-01,
            5.501839519e-01,
            9.515679479e-01,
            9.951211810e-01,
            9.995117784e-01,
            9.999511838e-01,
            -9.705280066e-01,
            -9.218184948e-01,
            1.659189165e-02,
            8.350434899e-01,
            3.074385226e-01,
            9.866042435e-02,
            3.124491312e-02,
            9.881957434e-03,
        ],
    );
}

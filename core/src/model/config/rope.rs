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
        // From torch 2.15 in f32, in the order of transformers 5.23: frequencies of a head of 16, then the cosines and
        // sines at position 250.
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
        [1.0, 0.31622776, 0.1, 0.03162278, 1.0e-2, 3.1622779e-3, 1.0e-3, 3.162278e-4],
        [
            0.2409883,
            -0.8692457,
            0.99120283,
            -0.051689804,
            -0.8011436,
            0.70344067,
            0.9689124,
            0.9968766,
            -0.970528,
            -0.49438035,
            -0.13235176,
            0.9986632,
            0.5984721,
            0.710754,
            0.24740396,
            0.07897462,
        ],
    );

    const LINEAR: ([f32; 8], [f32; 16]) = (
        [0.25, 0.07905694, 0.025, 7.905695e-3, 2.5e-3, 7.9056947e-4, 2.5e-4, 7.905695e-5],
        [
            0.94544023,
            0.61004525,
            0.99944943,
            -0.39459524,
            0.8109631,
            0.9805322,
            0.99804753,
            0.9998047,
            -0.32579556,
            0.79236656,
            -0.033179216,
            0.9188551,
            0.58509725,
            0.19635814,
            0.062459316,
            0.01976295,
        ],
    );

    const LLAMA3: ([f32; 8], [f32; 16]) = (
        [1.0, 0.09583998, 0.0125, 3.9528473e-3, 1.25e-3, 3.9528473e-4, 1.25e-4, 3.9528473e-5],
        [
            0.2409883,
            0.38762188,
            -0.9998624,
            0.55018395,
            0.95156795,
            0.9951212,
            0.9995118,
            0.9999512,
            -0.970528,
            -0.9218185,
            0.016591892,
            0.8350435,
            0.30743852,
            0.098660424,
            0.031244913,
            9.881957e-3,
        ],
    );
}

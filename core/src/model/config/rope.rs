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

//! Samples to figures: percentiles, throughput, ratios.

use std::time::Duration;

use serde::Serialize;

/// What one request that succeeded did.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// From sending to the first chunk that holds a choice.
    pub ttft: Duration,
    /// Between later chunks.
    pub gaps: Vec<Duration>,
    /// From sending to the last such chunk.
    pub e2e: Duration,
    /// As the server's `usage` counts it.
    pub prompt_tokens: u64,
    /// As the server's `usage` counts it.
    pub output_tokens: u64,
}

impl Sample {
    /// `(e2e - ttft) / (output tokens - 1)`; `None` below two tokens.
    pub fn tpot(&self) -> Option<f64> {
        let later = self.output_tokens.checked_sub(1).filter(|&later| later > 0)?;
        Some((self.e2e - self.ttft).as_secs_f64() * 1e3 / later as f64)
    }
}

/// Median and tail, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; zeros where there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |p| percentile(&values, p);
        Self { median: at(50.0), p90: at(90.0), p99: at(99.0), max: at(100.0) }
    }
}

/// Linear between the two nearest ranks, as numpy's default; 0 where `sorted` is empty.
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = p / 100.0 * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    sorted[below] + (sorted[(below + 1).min(last)] - sorted[below]) * part
}

/// 50th percentile.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values.into_iter().collect()).median
}

/// The figures of one run or of several together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were not.
    pub failed: usize,
    /// Of the whole, in s.
    pub duration_s: f64,
    /// Completed requests a second.
    pub requests_per_s: f64,
    /// Output tokens a second.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens a second.
    pub total_tokens_per_s: f64,
    /// Time to the first token.
    pub ttft_ms: Spread,
    /// Time between chunks.
    pub itl_ms: Spread,
    /// Mean time per token after the first.
    pub tpot_ms: Spread,
    /// End to end.
    pub e2e_ms: Spread,
}

impl Figures {
    /// Of `samples` that took `duration` together.
    pub fn of(samples: &[Sample], failed: usize, duration: Duration) -> Self {
        let seconds = duration.as_secs_f64().max(1e-9);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let output: u64 = samples.iter().map(|sample| sample.output_tokens).sum();
        let prompt: u64 = samples.iter().map(|sample| sample.prompt_tokens).sum();
        Self {
            completed: samples.len(),
            failed,
            duration_s: seconds,
            requests_per_s: samples.len() as f64 / seconds,
            output_tokens_per_s: output as f64 / seconds,
            total_tokens_per_s: (prompt + output) as f64 / seconds,
            ttft_ms: Spread::of(samples.iter().map(|sample| ms(sample.ttft)).collect()),
            itl_ms: Spread::of(samples.iter().flat_map(|s| &s.gaps).map(|&gap| ms(gap)).collect()),
            tpot_ms: Spread::of(samples.iter().filter_map(Sample::tpot).collect()),
            e2e_ms: Spread::of(samples.iter().map(|sample| ms(sample.e2e)).collect()),
        }
    }
}

/// A figure against the base's, over rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Ratio {
    /// Median over rounds, divided by the base's median over rounds.
    pub of_medians: f64,
    /// Smallest ratio within one round.
    pub min: f64,
    /// Largest ratio within one round.
    pub max: f64,
}

impl Ratio {
    /// Of one value a round each.
    pub fn of(values: &[f64], base: &[f64]) -> Self {
        let ratio = |value: f64, base: f64| if base > 0.0 { value / base } else { 0.0 };
        let rounds = || values.iter().zip(base).map(|(&value, &base)| ratio(value, base));
        Self {
            of_medians: ratio(median(values.iter().copied()), median(base.iter().copied())),
            min: rounds().reduce(f64::min).unwrap_or(0.0),
            max: rounds().reduce(f64::max).unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn percentiles_lie_between_ranks() {
        let spread = Spread::of(vec![40.0, 10.0, 30.0, 20.0]);
        near(spread.median, 25.0);
        near(spread.p90, 37.0);
        near(spread.p99, 39.7);
        near(spread.max, 40.0);
        assert_eq!(Spread::of(vec![]), Spread::default());
        near(Spread::of(vec![3.0]).p99, 3.0);
    }

    #[test]
    fn figures_by_hand() {
        let ms = Duration::from_millis;
        let long = Sample {
            ttft: ms(100),
            gaps: vec![ms(10), ms(30)],
            e2e: ms(140),
            prompt_tokens: 7,
            output_tokens: 5,
        };
        let short = Sample {
            ttft: ms(50),
            e2e: ms(50),
            prompt_tokens: 3,
            output_tokens: 1,
            ..Sample::default()
        };
        assert_eq!(short.tpot(), None);
        let figures = Figures::of(&[long, short], 1, ms(500));
        assert_eq!((figures.completed, figures.failed), (2, 1));
        near(figures.requests_per_s, 4.0);
        near(figures.output_tokens_per_s, 12.0);
        near(figures.total_tokens_per_s, 32.0);
        near(figures.ttft_ms.median, 75.0);
        near(figures.itl_ms.median, 20.0);
        near(figures.tpot_ms.median, 10.0);
        near(figures.e2e_ms.median, 95.0);
    }

    #[test]
    fn ratios_by_hand() {
        let ratio = Ratio::of(&[90.0, 50.0, 80.0], &[100.0, 50.0, 160.0]);
        near(ratio.of_medians, 0.8);
        near(ratio.min, 0.5);
        near(ratio.max, 1.0);
        assert_eq!(Ratio::of(&[1.0], &[0.0]).of_medians, 0.0);
    }
}

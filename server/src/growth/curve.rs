//! Which points the curves have, and what was found at them.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::bench::stats::median;

/// Rows of the largest batch.
pub(super) const MOST_ROWS: usize = 256;

/// What grows along a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Distinct adapters in a batch of [`MOST_ROWS`].
    Distinct,
    /// Adapters in the registry, of which eight sequences use one.
    Registered,
    /// Tokens before the one that is computed, in each of four sequences of the base.
    Context,
    /// Sequences of the base.
    Batch,
}

/// In the order of the report.
pub(super) const CURVES: [Kind; 4] = [Kind::Distinct, Kind::Registered, Kind::Context, Kind::Batch];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Distinct => "distinct adapters",
            Self::Registered => "registered adapters",
            Self::Context => "context",
            Self::Batch => "batch",
        }
    }

    /// What stays as it is, for people.
    pub(super) fn fixed(self) -> &'static str {
        match self {
            Self::Distinct => "256 sequences",
            Self::Registered => "8 sequences of one of them",
            Self::Context => "4 sequences of the base",
            Self::Batch => "sequences of the base",
        }
    }

    fn values(self) -> &'static [usize] {
        match self {
            Self::Distinct | Self::Batch => &[1, 2, 4, 8, 16, 32, 64, 128, 256],
            Self::Registered => &[1, 10, 100, 1000, 10_000],
            Self::Context => &[64, 128, 256, 512, 1024, 2000, 4000, 8000],
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The largest value of a curve.
pub(super) fn largest(kind: Kind) -> usize {
    kind.values().last().copied().unwrap_or(0)
}

/// One of the curves.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    pub(super) kind: Kind,
    pub(super) fixed: &'static str,
    pub(super) points: Vec<Point>,
    /// Of the straight line nearest to the medians: what one more costs.
    pub(super) slope_ms: f64,
}

/// The time of a step at one value.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    pub(super) at: usize,
    /// Median over rounds.
    pub(super) step_ms: f64,
    pub(super) rounds: Vec<f64>,
}

/// Tokens that a sequence makes beyond its context.
pub(super) const OUTPUT: usize = 12;

impl Curve {
    /// The points that a model of this length has.
    pub(super) fn new(kind: Kind, max_model_len: usize) -> Self {
        let fits = |at: &usize| kind != Kind::Context || at + OUTPUT <= max_model_len.min(2048);
        let values = kind.values().iter().copied().filter(fits);
        let points = values.map(|at| Point { at, step_ms: 0.0, rounds: Vec::new() }).collect();
        Self { kind, fixed: kind.fixed(), points, slope_ms: 0.0 }
    }

    pub(super) fn summed(mut self) -> Self {
        for point in &mut self.points {
            point.step_ms = median(point.rounds.iter().copied());
        }
        let points: Vec<(f64, f64)> =
            self.points.iter().map(|point| (point.at as f64, point.step_ms)).collect();
        self.slope_ms = slope(&points);
        self
    }
}

/// Of least squares; 0 where all points lie at one value.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / n, y / n);
    let over: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let with: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if over > 0.0 { with / over } else { 0.0 }
}

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Of this layout.
    pub(super) schema: u32,
    pub(super) model: String,
    pub(super) device: String,
    /// Of the adapters that are used.
    pub(super) rank: usize,
    pub(super) rounds: usize,
    /// What this machine read from memory a second, before each curve of each round; empty where it was not measured.
    pub(super) read_gb_s: Vec<f64>,
    pub(super) curves: Vec<Curve>,
}

impl Report {
    /// For a terminal.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{} on {}, adapters of rank {}, {} rounds: ms of a step (least to most)\n",
            self.model, self.device, self.rank, self.rounds
        );
        if !self.read_gb_s.is_empty() {
            let read = median(self.read_gb_s.iter().copied());
            let _ = writeln!(text, "memory read {read:.1} GB/s beside it");
        }
        for curve in &self.curves {
            let _ = writeln!(
                text,
                "\n{} ({}): {:.5} ms for one more",
                curve.kind.name(),
                curve.fixed,
                curve.slope_ms
            );
            for point in &curve.points {
                let (least, most) = point.spread();
                let _ =
                    writeln!(text, "{:>8} {:>9.2} ({least:.2}-{most:.2})", point.at, point.step_ms);
            }
        }
        text
    }
}

impl Point {
    /// Least and most of the rounds.
    pub(super) fn spread(&self) -> (f64, f64) {
        let of = |pick: fn(f64, f64) -> f64| self.rounds.iter().copied().reduce(pick);
        (of(f64::min).unwrap_or(0.0), of(f64::max).unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_by_hand() {
        assert!((slope(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]) - 2.0).abs() < 1e-9);
        assert!((slope(&[(0.0, 1.0), (1.0, 0.0), (2.0, 2.0)]) - 0.5).abs() < 1e-9);
        assert_eq!(slope(&[(3.0, 1.0)]), 0.0);
    }

    #[test]
    fn contexts_end_where_the_model_does() {
        let last = |len| Curve::new(Kind::Context, len).points.last().map(|point| point.at);
        assert_eq!(last(512), Some(256));
        assert_eq!(last(2048), Some(2000));
        assert_eq!(last(32), None);
        assert_eq!(Curve::new(Kind::Registered, 1).points.len(), 5);
    }

    #[test]
    fn a_point_is_the_median_of_its_rounds() {
        let mut curve = Curve::new(Kind::Batch, 64);
        for point in &mut curve.points {
            point.rounds = vec![3.0, 9.0, 1.0];
        }
        let curve = curve.summed();
        assert!(curve.points.iter().all(|point| point.step_ms == 3.0));
        assert_eq!(curve.points[0].spread(), (1.0, 9.0));
        assert_eq!(curve.slope_ms, 0.0);
    }
}

//! What equal means.

use crate::case::Case;
use crate::naive::LogProbs;
use crate::run::{Outputs, RowOutput};
use crate::world::World;

/// How far log-probabilities may be off, in shares of their row's spread, the standard deviation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    /// Any of them.
    pub(crate) most: f64,
    /// In root mean square over all rows: rounding errors have outliers, wrong formulas are wrong everywhere.
    pub(crate) root: f64,
}

pub(crate) fn assert_close(name: &str, expected: &LogProbs, found: &Outputs, tolerance: Tolerance) {
    assert!(expected.keys().eq(found.keys()), "{name}: other rows");
    let (mut squares, mut values, mut worst) = (0.0, 0, (0.0, String::new()));
    for (place, expected) in expected {
        let count = expected.len() as f64;
        let mean = expected.iter().sum::<f64>() / count;
        let spread = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
        for (token, (expected, &found)) in expected.iter().zip(&found[place].logprobs).enumerate() {
            let difference = (expected - f64::from(found)).abs() / spread;
            if difference > worst.0 {
                let at = format!("sequence and position {place:?}, token {token}");
                worst = (difference, format!("{at}: expected {expected}, found {found}"));
            }
            squares += difference.powi(2);
            values += 1;
        }
    }
    let root = (squares / f64::from(values)).sqrt();
    let (most, at) = worst;
    assert!(
        most <= tolerance.most && root <= tolerance.root,
        "{name}: off by {most} of the spread at {at} and by {root} over all rows, over {tolerance:?}"
    );
}

/// The log-probabilities of a run, to compare others with.
pub(crate) fn widened(outputs: &Outputs) -> LogProbs {
    let widen = |row: &RowOutput| row.logprobs.iter().copied().map(f64::from).collect();
    outputs.iter().map(|(place, row)| (*place, widen(row))).collect()
}

/// Every bit of every row is the same.
pub(crate) fn assert_same_bits(name: &str, expected: &Outputs, found: &Outputs) {
    assert!(expected.keys().eq(found.keys()), "{name}: other rows");
    for (place, expected) in expected {
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let found = &found[place];
        assert_eq!(
            bits(&expected.logprobs),
            bits(&found.logprobs),
            "{name}: sequence and position {place:?}"
        );
        assert_eq!(expected.token, found.token, "{name}: {place:?}");
    }
}

/// The chosen tokens are those that the run forced, and what is said of them fits the row's log-probabilities.
pub(crate) fn assert_consistent(case: &Case, world: &World, found: &Outputs) {
    for (&(sequence, position), row) in found {
        let place = format!("{}: sequence {sequence}, position {position}", case.name);
        assert_eq!(row.token, world.tokens[sequence][position + 1], "{place}");
        let own = row.logprobs[row.token as usize];
        assert_eq!(row.logprob.to_bits(), own.to_bits(), "{place}");
        let better = row.logprobs.iter().filter(|&&other| other > own).count();
        // Logits that differ may have equal log-probabilities.
        let not_worse = row.logprobs.iter().filter(|&&other| other >= own).count();
        assert!((better..not_worse).contains(&(row.rank as usize)), "{place}: rank {}", row.rank);
    }
}

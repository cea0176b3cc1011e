//! What equal means.

use crate::case::Case;
use crate::naive::LogProbs;
use crate::run::{Outputs, RowOutput};
use crate::world::World;

/// Each row's log-probabilities differ by at most `tolerance` of their spread, the standard deviation.
pub(crate) fn assert_close(name: &str, expected: &LogProbs, found: &Outputs, tolerance: f64) {
    assert!(expected.keys().eq(found.keys()), "{name}: other rows");
    for (place, expected) in expected {
        let count = expected.len() as f64;
        let mean = expected.iter().sum::<f64>() / count;
        let spread = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
        for (token, (expected, &row)) in expected.iter().zip(&found[place].logprobs).enumerate() {
            let difference = (expected - f64::from(row)).abs() / spread;
            assert!(
                difference <= tolerance,
                "{name}: sequence and position {place:?}, token {token}: expected {expected}, found {row}, a \
                 difference of {difference} of the spread, over {tolerance}"
            );
        }
    }
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

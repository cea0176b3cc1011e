//! Which rows of which sequences run in which step.

use crate::case::Case;

/// Neighbouring rows of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) sequence: usize,
    /// Position of the first row.
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// The chunks of every step.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Vec<Chunk>>,
}

impl Plan {
    /// As the case says: chunks of prompts beside decodes.
    pub(crate) fn mixed(case: &Case) -> Self {
        let mut steps: Vec<Vec<Chunk>> = Vec::new();
        for (sequence, life) in case.lives.iter().enumerate() {
            let (mut first, mut step) = (0, life.arrives);
            while first < life.tokens() {
                let rows =
                    if first < life.prompt { life.chunk.min(life.prompt - first) } else { 1 };
                steps.resize_with(steps.len().max(step + 1), Vec::new);
                steps[step].push(Chunk { sequence, first, rows });
                (first, step) = (first + rows, step + 1);
            }
        }
        Self { steps }
    }

    /// Each sequence on its own, `rows` rows at a time.
    pub(crate) fn alone(case: &Case, rows: usize) -> Self {
        let mut steps = Vec::new();
        for (sequence, life) in case.lives.iter().enumerate() {
            for first in (0..life.tokens()).step_by(rows) {
                let rows = rows.min(life.tokens() - first);
                steps.push(vec![Chunk { sequence, first, rows }]);
            }
        }
        Self { steps }
    }

    /// All sequences in one step, whole.
    pub(crate) fn at_once(case: &Case) -> Self {
        let chunks = case.lives.iter().enumerate();
        let chunks =
            chunks.map(|(sequence, life)| Chunk { sequence, first: 0, rows: life.tokens() });
        Self { steps: vec![chunks.collect()] }
    }

    /// The most rows of any step.
    pub(crate) fn max_rows(&self) -> usize {
        let rows = |step: &Vec<Chunk>| step.iter().map(|chunk| chunk.rows).sum();
        self.steps.iter().map(rows).max().unwrap_or(0)
    }
}

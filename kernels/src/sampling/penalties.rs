//! Changes to logits before a draw.

use crate::args::{Penalties, SamplingParams};

/// How often tokens were seen, in a table as long as the vocabulary that is all zero between calls.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// 0: not seen. Otherwise 1 + occurrences in the output.
    table: Vec<u32>,
    seen: Vec<u32>,
}

impl Counts {
    /// Counts tokens; each occurrence adds `by`.
    fn add(&mut self, tokens: &[u32], by: u32) {
        for &token in tokens {
            let Some(count) = self.table.get_mut(token as usize) else { continue };
            if *count == 0 {
                *count = 1;
                self.seen.push(token);
            }
            *count += by;
        }
    }
}

/// Applies bans, bias and penalties.
pub(crate) fn adjust(logits: &mut [f32], params: &SamplingParams<'_>, counts: &mut Counts) {
    for &token in params.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for &(token, bias) in params.bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(penalties) = &params.penalties {
        penalise(logits, penalties, counts);
    }
}

/// Repetition as in `RepetitionPenaltyLogitsProcessor` of Hugging Face (Keskar et al. 2019); presence and frequency as
/// OpenAI defines them: `l - frequency * count - presence * (count > 0)`.
fn penalise(logits: &mut [f32], penalties: &Penalties<'_>, counts: &mut Counts) {
    counts.table.resize(logits.len(), 0);
    counts.add(penalties.prompt, 0);
    counts.add(penalties.output, 1);
    for token in counts.seen.drain(..) {
        let logit = &mut logits[token as usize];
        let in_output = std::mem::take(&mut counts.table[token as usize]) - 1;
        *logit = match *logit {
            positive if positive > 0.0 => positive / penalties.repetition,
            other => other * penalties.repetition,
        };
        if in_output > 0 {
            *logit -= penalties.presence + penalties.frequency * in_output as f32;
        }
    }
}

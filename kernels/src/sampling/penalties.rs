//! Changes to logits before a draw.

use crate::args::{Penalties, SamplingParams};

/// Applies bans, bias and penalties.
pub(crate) fn adjust(logits: &mut [f32], params: &SamplingParams<'_>) {
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
        penalise(logits, penalties);
    }
}

/// Repetition as in `RepetitionPenaltyLogitsProcessor` of Hugging Face (Keskar et al. 2019); presence and frequency as
/// OpenAI defines them: `l - frequency * count - presence * (count > 0)`.
fn penalise(logits: &mut [f32], penalties: &Penalties<'_>) {
    for seen in penalties.seen {
        let Some(logit) = logits.get_mut(seen.token as usize) else { continue };
        *logit = match *logit {
            positive if positive > 0.0 => positive / penalties.repetition,
            other => other * penalties.repetition,
        };
        if seen.in_output > 0 {
            *logit -= penalties.presence + penalties.frequency * seen.in_output as f32;
        }
    }
}

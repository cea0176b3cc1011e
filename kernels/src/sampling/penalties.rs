//! Changes to logits before a draw.

use super::Seen;
use crate::args::{Penalties, SamplingParams};

/// Applies bans, bias and penalties. `own` is the row's own token.
pub(crate) fn adjust(logits: &mut [f32], params: &SamplingParams<'_>, own: u32) {
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
        penalise(logits, penalties, own);
    }
}

/// Repetition as in `RepetitionPenaltyLogitsProcessor` of Hugging Face (Keskar et al. 2019); presence and frequency as
/// OpenAI defines them: `l - frequency * count - presence * (count > 0)`.
fn penalise(logits: &mut [f32], penalties: &Penalties<'_>, own: u32) {
    let mut own = penalties.own.then_some(own);
    for &Seen { token, mut in_output } in penalties.seen {
        if own == Some(token) {
            own = None;
            in_output += 1;
        }
        penalise_one(logits, penalties, Seen { token, in_output });
    }
    if let Some(token) = own {
        penalise_one(logits, penalties, Seen { token, in_output: 1 });
    }
}

fn penalise_one(logits: &mut [f32], penalties: &Penalties<'_>, seen: Seen) {
    let Some(logit) = logits.get_mut(seen.token as usize) else { return };
    *logit = match *logit {
        positive if positive > 0.0 => positive / penalties.repetition,
        other => other * penalties.repetition,
    };
    if seen.in_output > 0 {
        *logit -= penalties.presence + penalties.frequency * seen.in_output as f32;
    }
}

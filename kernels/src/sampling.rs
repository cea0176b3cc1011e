//! The definition of a draw.
//!
//! A NaN among the logits compares false with everything, so it counts as minus infinity: never drawn, never reported.
//!
//! What it must never do: panic on numbers, sort a vocabulary, or allocate once its scratch has grown.

mod candidates;
pub(crate) mod penalties;
pub(crate) mod random;
mod seen;
pub(crate) mod softmax;
#[cfg(test)]
pub(crate) mod tests;

use crate::args::{SampleRow, SampleTask, SamplingParams};

use candidates::{best, keep_reaching, nucleus};
use penalties::adjust;
use random::uniform;
use softmax::{Softmax, max};

pub use seen::{Seen, SeenTokens};

/// What a sample row gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The drawn token, or the scored one.
    pub token: u32,
    /// Its log-probability under the unmodified logits; NaN where not asked for.
    pub logprob: f32,
    /// How many tokens are strictly more probable under the unmodified logits; 0 where not asked for.
    pub rank: u32,
}

/// Memory that draws reuse. Nothing in it outlives a call but [`SamplingScratch::top`].
#[derive(Debug, Default)]
pub struct SamplingScratch {
    /// The logits before they are changed, where log-probabilities are wanted.
    unmodified: Vec<f32>,
    /// Tokens and their logits.
    candidates: Vec<(u32, f32)>,
    top: Vec<(u32, f32)>,
}

impl SamplingScratch {
    /// The best tokens of the last row with their log-probabilities, best first, ties to the lower id: as many as the
    /// row asked for, fewer where fewer have a logit above minus infinity.
    pub fn top(&self) -> &[(u32, f32)] {
        &self.top
    }
}

/// Draws from one row of logits, or scores it; overwrites the logits. `own` is the row's own token, which precedes the drawn
/// one. In this order:
///
/// 1. Log-probabilities and ranks are those of the unmodified logits: `l - ln Σ eˡ`.
/// 2. Banned tokens get minus infinity, `bias` is added, then [`Penalties`](crate::Penalties): repetition divides
///    positive logits and multiplies others, presence and frequency are subtracted. Ids beyond the vocabulary are
///    ignored.
/// 3. A temperature of 0 takes the best token, ties to the lower id. Otherwise `w = exp((l - max) / temperature)`.
/// 4. Kept are tokens with `w >= min_p`; of these the `top_k` best, ties to the lower id; of these the smallest set of
///    best ones whose sum of `w` reaches `top_p` of the sum over those left. The best token is always kept.
/// 5. With one number `u` in [0, 1) made from `(seed, draw)`, the token is the first in order of id at which the
///    running sum of `w` exceeds `u Σ w`.
///
/// Where no logit is above minus infinity the token is 0.
pub fn sample_row(
    logits: &mut [f32],
    row: &SampleRow<'_>,
    own: u32,
    scratch: &mut SamplingScratch,
) -> Sampled {
    scratch.top.clear();
    if row.logprobs.is_some() {
        scratch.unmodified.clear();
        scratch.unmodified.extend_from_slice(logits);
    }
    let token = match &row.task {
        SampleTask::Score(token) => *token,
        SampleTask::Draw(params) => draw(logits, params, own, scratch),
    };
    match row.logprobs {
        None => Sampled { token, logprob: f32::NAN, rank: 0 },
        Some(count) => report(token, count as usize, scratch),
    }
}

/// The log-probability and rank of `token`, and the `count` best tokens, from the unmodified logits.
fn report(token: u32, count: usize, scratch: &mut SamplingScratch) -> Sampled {
    let logits = &scratch.unmodified;
    let softmax = Softmax { max: max(logits), temperature: 1.0, least: f32::MIN };
    let log_sum = softmax.sum(logits).ln();
    best(logits, count, &mut scratch.top);
    for (_, score) in &mut scratch.top {
        *score = softmax.log_weight(*score, log_sum);
    }
    let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let rank = logits.iter().filter(|&&logit| logit > own).count() as u32;
    Sampled { token, logprob: softmax.log_weight(own, log_sum), rank }
}

fn draw(
    logits: &mut [f32],
    params: &SamplingParams<'_>,
    own: u32,
    scratch: &mut SamplingScratch,
) -> u32 {
    adjust(logits, params, own);
    let max = max(logits);
    if max == f32::NEG_INFINITY {
        return 0;
    }
    let greedy = params.temperature.is_nan() || params.temperature <= 0.0;
    if greedy {
        return logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32;
    }
    let softmax = Softmax::new(max, params.temperature, params.min_p);
    let uniform = uniform(params.seed, params.draw);
    let all = logits.len();
    let top_k = if params.top_k == 0 { all } else { all.min(params.top_k as usize) };
    let top_p = f64::from(params.top_p);
    let candidates = &mut scratch.candidates;
    if top_k == all && top_p >= 1.0 {
        let sum = softmax.sum(logits);
        softmax.weigh(logits);
        return pick((0..).zip(logits.iter().copied()), uniform * sum);
    } else if top_k == all {
        nucleus(logits, &softmax, top_p, candidates);
    } else {
        best(logits, top_k, candidates);
        if top_p < 1.0 {
            let wanted = top_p * softmax.sum_of(candidates);
            keep_reaching(candidates, &softmax, wanted);
        }
    }
    candidates.sort_unstable_by_key(|&(id, _)| id);
    let target = uniform * softmax.sum_of(candidates);
    pick(candidates.iter().map(|&(id, logit)| (id, softmax.weight(logit))), target)
}

/// The first token at which the running sum exceeds `target`.
fn pick(weights: impl Iterator<Item = (u32, f32)>, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for (id, weight) in weights {
        sum += f64::from(weight);
        if sum > target {
            return id;
        }
        // Where rounding keeps the sum from its target, it is the last one that could be drawn.
        if weight > 0.0 {
            last = id;
        }
    }
    last
}

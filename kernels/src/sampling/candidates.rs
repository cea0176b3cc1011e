//! The best tokens, found without sorting the vocabulary.

use std::cmp::Ordering;

use super::softmax::Softmax;

/// How many of the best tokens a nucleus looks at before it looks at all; most hold fewer.
const FIRST_LOOK: usize = 256;

/// Puts the `count` best tokens above minus infinity into `out`, best first, ties to the lower id.
///
/// Linear in the vocabulary: `out` fills up to twice the count, then the worse half goes and raises the bar.
pub(super) fn best(logits: &[f32], count: usize, out: &mut Vec<(u32, f32)>) {
    out.clear();
    if count == 0 {
        return;
    }
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        // A later token that only equals the bar loses to those before it.
        if logit > bar {
            out.push((id, logit));
            if out.len() == count.saturating_mul(2) {
                bar = keep_best(out, count);
            }
        }
    }
    if out.len() > count {
        keep_best(out, count);
    }
    out.sort_unstable_by(best_first);
}

/// Puts the smallest set of best tokens whose weights reach `share` of the sum over all into `out`, in any order.
pub(super) fn nucleus(logits: &[f32], softmax: &Softmax, share: f64, out: &mut Vec<(u32, f32)>) {
    let wanted = share * softmax.sum(logits);
    best(logits, FIRST_LOOK, out);
    if !keep_reaching(out, softmax, wanted) && out.len() == FIRST_LOOK {
        out.clear();
        out.extend((0..).zip(logits.iter().copied()).filter(|&(_, logit)| logit >= softmax.least));
        halve_to_reach(out, softmax, wanted);
    }
}

/// Does what [`keep_reaching`] does to candidates in any order, in linear time: it halves the range in which the last
/// one to keep must lie.
fn halve_to_reach(candidates: &mut Vec<(u32, f32)>, softmax: &Softmax, wanted: f64) {
    let (mut low, mut high) = (0, candidates.len());
    let mut sum_to_low = 0.0;
    while high - low > 1 {
        let middle = low.midpoint(high);
        candidates[low..high].select_nth_unstable_by(middle - low, best_first);
        let sum = sum_to_low + softmax.sum_of(&candidates[low..middle]);
        if sum >= wanted {
            high = middle;
        } else {
            (low, sum_to_low) = (middle, sum);
        }
    }
    candidates.truncate(high);
}

/// Keeps the first of `candidates`, which come best first, until their weights reach `wanted`; at least one. Returns
/// whether they reach it.
pub(super) fn keep_reaching(
    candidates: &mut Vec<(u32, f32)>,
    softmax: &Softmax,
    wanted: f64,
) -> bool {
    let mut sum = 0.0;
    let last = candidates.iter().position(|&(_, logit)| {
        sum += f64::from(softmax.weight(logit));
        sum >= wanted
    });
    if let Some(last) = last {
        candidates.truncate(last + 1);
    }
    last.is_some()
}

/// Drops all but the `count` best, in any order, and returns the last one's logit.
fn keep_best(candidates: &mut Vec<(u32, f32)>, count: usize) -> f32 {
    candidates.select_nth_unstable_by(count - 1, best_first);
    candidates.truncate(count);
    candidates[count - 1].1
}

fn best_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

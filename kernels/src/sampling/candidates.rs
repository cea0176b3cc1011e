//! The best tokens, found without sorting the vocabulary.

use std::cmp::Ordering;

use super::softmax::Softmax;

/// How many of the best tokens a nucleus looks at first; most hold fewer.
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

/// Keeps the smallest set of best tokens whose weights reach `share` of the sum over all, best first.
pub(super) fn nucleus(logits: &[f32], softmax: &Softmax, share: f64, out: &mut Vec<(u32, f32)>) {
    let wanted = share * softmax.sum(logits);
    let mut count = FIRST_LOOK;
    loop {
        best(logits, count, out);
        let all = out.len() < count;
        if keep_reaching(out, softmax, wanted) || all {
            return;
        }
        count *= 8;
    }
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
        sum += softmax.weight(logit);
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

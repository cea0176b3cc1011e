//! The steps of a draw as formulas in f64, with a sort.

use crate::args::SamplingParams;

/// The logits after step 2 of [`sample_row`].
fn direct_logits(logits: &[f32], params: &SamplingParams<'_>) -> Vec<f64> {
    let mut logits: Vec<f64> = logits
        .iter()
        .map(|&logit| if logit.is_nan() { f64::NEG_INFINITY } else { f64::from(logit) })
        .collect();
    for (id, logit) in logits.iter_mut().enumerate() {
        let id = id as u32;
        if params.banned.contains(&id) {
            *logit = f64::NEG_INFINITY;
        }
        *logit += params.bias.iter().filter(|b| b.0 == id).map(|b| f64::from(b.1)).sum::<f64>();
        let Some(penalties) = &params.penalties else { continue };
        let seen = penalties.seen.iter().find(|seen| seen.token == id);
        let count = seen.map_or(0, |seen| seen.in_output);
        if seen.is_some() {
            let repetition = f64::from(penalties.repetition);
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        *logit -= f64::from(penalties.frequency) * f64::from(count);
        *logit -= if count > 0 { f64::from(penalties.presence) } else { 0.0 };
    }
    logits
}

/// The probability of every token.
pub(super) fn direct(logits: &[f32], params: &SamplingParams<'_>) -> Vec<f64> {
    let logits = direct_logits(logits, params);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    let mut probabilities = vec![0.0; logits.len()];
    let best = logits[order[0]];
    if params.temperature == 0.0 || best == f64::NEG_INFINITY {
        probabilities[order[0]] = 1.0;
        return probabilities;
    }
    let weight = |id: usize| ((logits[id] - best) / f64::from(params.temperature)).exp();
    order.retain(|&id| weight(id) >= f64::from(params.min_p));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    if params.top_p < 1.0 {
        let mut sum = 0.0;
        let reached = order.iter().position(|&id| {
            sum += weight(id) / total;
            sum >= f64::from(params.top_p)
        });
        order.truncate(reached.map_or(order.len(), |last| last + 1));
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    for id in order {
        probabilities[id] = weight(id) / total;
    }
    probabilities
}

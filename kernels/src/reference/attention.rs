//! Attention of one row over cached positions.

use crate::args::AttentionShape;

use super::matmul::dot;
use super::memory::KvLayer;

/// `out = softmax(scale * q Kᵀ) V` for each head of one row, over the positions whose cache slots are in `slots`.
///
/// q and out are `[heads, head_dim]`. Heads share K and V in groups of `heads / kv_heads` neighbours (grouped-query
/// attention, Ainslie et al. 2023; `repeat_kv` of Hugging Face).
pub(super) fn row(
    shape: &AttentionShape,
    q: &[f32],
    (kv, slots): (&KvLayer<'_>, &[usize]),
    out: &mut [f32],
) {
    let d = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    for (head, (q, out)) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
        let first = head / group * d;
        let place = |slot: usize| slot * kv.width + first..slot * kv.width + first + d;
        let mut weights: Vec<f32> =
            slots.iter().map(|&slot| shape.scale * dot(q, &kv.k[place(slot)])).collect();
        softmax(&mut weights);
        out.fill(0.0);
        for (weight, &slot) in weights.iter().zip(slots) {
            for (out, v) in out.iter_mut().zip(&kv.v[place(slot)]) {
                *out += weight * v;
            }
        }
    }
}

/// `x = eˣ / Σ eˣ`, shifted by the largest so that nothing overflows.
fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

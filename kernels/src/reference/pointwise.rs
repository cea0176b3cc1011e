//! Operations on single rows: norms, rotation, activation.

/// `x = x / sqrt(mean(x²) + eps) * weight`, for each stretch of `weight.len()` values: a row, or every head of one.
///
/// `LlamaRMSNorm` of Hugging Face; for heads, `Qwen3RMSNorm` as `q_norm` and `k_norm`.
pub(super) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        let factor = 1.0 / (mean_square + eps).sqrt();
        for (x, weight) in x.iter_mut().zip(weight) {
            *x *= factor * weight;
        }
    }
}

/// Rotates the pairs `(x[i], x[i + d/2])` of every head by the angles whose `d/2` cosines and `d/2` sines are in
/// `angles`.
///
/// Hugging Face: `x * cos + rotate_half(x) * sin` (`apply_rotary_pos_emb`), the layout of its Llama and Qwen
/// checkpoints. Meta's own Llama files rotate neighbours instead.
pub(super) fn rotate_halves(x: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    for head in x.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// `x / (1 + e⁻ˣ)`: `hidden_act: "silu"` of Llama and Qwen.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

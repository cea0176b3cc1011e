//! A decoder in f64 that is written differently: merged weights, whole sequences, no cache, no pages.

use std::collections::BTreeMap;

use loraplex_kernels::{HostTensor, LoraWeights, Part};

use crate::case::{Case, Shape};
use crate::world::{EPS, Layer, Probe, ROPE_THETA, World};

/// Log-probabilities of the vocabulary, by sequence and position.
pub(crate) type LogProbs = BTreeMap<(usize, usize), Vec<f64>>;

type Rows = Vec<Vec<f64>>;

/// What every probe reads at every position of every sequence.
pub(crate) fn run(case: &Case, world: &World) -> BTreeMap<Probe, LogProbs> {
    let mut found: BTreeMap<Probe, LogProbs> = BTreeMap::new();
    for (sequence, tokens) in world.tokens.iter().enumerate() {
        let adapter = world.adapter_of[sequence].map(|adapter| &world.adapters[adapter]);
        for (probe, operands) in decode(case, world, &tokens[..tokens.len() - 1], adapter) {
            let logits = multiply(&operands, &widen(&world.heads[probe as usize]));
            for (position, logits) in logits.into_iter().enumerate() {
                let sum: f64 = logits.iter().map(|l| l.exp()).sum();
                let logprobs = logits.iter().map(|l| l - sum.ln()).collect();
                found.entry(probe).or_default().insert((sequence, position), logprobs);
            }
        }
    }
    found
}

fn decode(
    case: &Case,
    world: &World,
    tokens: &[u32],
    adapter: Option<&LoraWeights>,
) -> Vec<(Probe, Rows)> {
    let shape = &case.shape;
    let mut probes = Vec::new();
    let embedding = widen(&world.embedding);
    let mut residual: Rows =
        tokens.iter().map(|&token| embedding[token as usize].clone()).collect();
    for (index, layer) in world.layers.iter().enumerate() {
        let merged = |part| merge(&layer.parts[part as usize], adapter, index, part);
        let x = norm(&residual, &layer.attention_norm);
        let (mut q, mut k, mut v) = (
            multiply(&x, &merged(Part::Q)),
            multiply(&x, &merged(Part::K)),
            multiply(&x, &merged(Part::V)),
        );
        add_bias(layer, [&mut q, &mut k, &mut v]);
        let (q, k) = (turn(shape, &q, &layer.q_norm), turn(shape, &k, &layer.k_norm));
        let attended = attend(shape, &q, &k, &v);
        add(&mut residual, &multiply(&attended, &merged(Part::O)));
        let projected = norm(&residual, &layer.mlp_norm);
        let gate = multiply(&projected, &merged(Part::Gate));
        let up = multiply(&projected, &merged(Part::Up));
        let mlp: Rows = gate.iter().zip(&up).map(|(gate, up)| gated(gate, up)).collect();
        add(&mut residual, &multiply(&mlp, &merged(Part::Down)));
        if index == 0 {
            probes = vec![
                (Probe::Norm, x),
                (Probe::Q, q),
                (Probe::Attention, attended),
                (Probe::Projected, projected),
                (Probe::Mlp, mlp),
            ];
        }
    }
    probes.push((Probe::Decoder, norm(&residual, &world.last_norm)));
    probes
}

fn widen(tensor: &HostTensor) -> Rows {
    let row = |row| (0..tensor.cols).map(move |col| f64::from(tensor.at(row * tensor.cols + col)));
    (0..tensor.rows).map(|r| row(r).collect()).collect()
}

/// `W + scale B A`.
fn merge(weight: &HostTensor, adapter: Option<&LoraWeights>, layer: usize, part: Part) -> Rows {
    let mut merged = widen(weight);
    let parts = adapter.into_iter().flat_map(|adapter| &adapter.parts);
    for lora in parts.filter(|lora| (lora.layer, lora.part) == (layer, part)) {
        let (a, b) = (widen(&lora.a), widen(&lora.b));
        for (row, b) in merged.iter_mut().zip(&b) {
            for (a, b) in a.iter().zip(b) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += f64::from(lora.scale) * b * a);
            }
        }
    }
    merged
}

/// `x Wᵀ`.
fn multiply(x: &Rows, weight: &Rows) -> Rows {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.iter().map(|x| weight.iter().map(|w| dot(x, w)).collect()).collect()
}

fn add(to: &mut Rows, rows: &Rows) {
    for (to, row) in to.iter_mut().zip(rows) {
        to.iter_mut().zip(row).for_each(|(to, x)| *to += x);
    }
}

fn add_bias(layer: &Layer, [q, k, v]: [&mut Rows; 3]) {
    let Some(bias) = &layer.bias else { return };
    for ((q, k), v) in q.iter_mut().zip(k).zip(v) {
        let all = q.iter_mut().chain(k).chain(v);
        all.zip(bias).for_each(|(y, bias)| *y += f64::from(*bias));
    }
}

fn norm_row(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let root = (mean_square + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / root * f64::from(*weight)).collect()
}

fn norm(x: &Rows, weight: &[f32]) -> Rows {
    x.iter().map(|x| norm_row(x, weight)).collect()
}

/// Norms each head where the model does, and turns it by its position: `(x[i] + i x[i + d/2]) e^(i angle)`.
fn turn(shape: &Shape, rows: &Rows, weight: &[f32]) -> Rows {
    let half = shape.head_dim / 2;
    let turn_head = |position: usize, head: &[f64]| {
        let head = if shape.qk_norm { norm_row(head, weight) } else { head.to_vec() };
        let angle = |i: usize| position as f64 * ROPE_THETA.powf(-(i as f64) / half as f64);
        let real = (0..half).map(|i| head[i] * angle(i).cos() - head[i + half] * angle(i).sin());
        let imaginary =
            (0..half).map(|i| head[i] * angle(i).sin() + head[i + half] * angle(i).cos());
        real.chain(imaginary).collect::<Vec<f64>>()
    };
    let turn_row = |(position, row): (usize, &Vec<f64>)| {
        row.chunks(shape.head_dim).flat_map(|head| turn_head(position, head)).collect()
    };
    rows.iter().enumerate().map(turn_row).collect()
}

fn attend(shape: &Shape, q: &Rows, k: &Rows, v: &Rows) -> Rows {
    let d = shape.head_dim;
    let window = shape.window.map_or(usize::MAX, |window| window as usize);
    let mut out = vec![vec![0.0; shape.heads * d]; q.len()];
    for (i, out) in out.iter_mut().enumerate() {
        for head in 0..shape.heads {
            let kv = head * shape.kv_heads / shape.heads * d;
            let score = |j: usize| -> f64 {
                let dot: f64 = (0..d).map(|e| q[i][head * d + e] * k[j][kv + e]).sum();
                (dot / (d as f64).sqrt()).exp()
            };
            let seen: Vec<usize> = (0..=i).filter(|j| i - j < window).collect();
            let sum: f64 = seen.iter().map(|&j| score(j)).sum();
            for &j in &seen {
                let share = score(j) / sum;
                (0..d).for_each(|e| out[head * d + e] += share * v[j][kv + e]);
            }
        }
    }
    out
}

fn gated(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate * (1.0 / (1.0 + (-gate).exp())) * up).collect()
}

//! Random weights, adapters and tokens of a case.

use half::{bf16, f16};
use loraplex_kernels::{DType, HostData, HostTensor, LoraPart, LoraWeights, Part};

use crate::case::{Case, Mix, Ranks, Shape};

/// Decoder layers of every case.
pub(crate) const LAYERS: usize = 2;
pub(crate) const EPS: f32 = 1e-5;
pub(crate) const ROPE_THETA: f64 = 10_000.0;

/// Where a run stops and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Probe {
    /// The first layer's input, normed: `embed` and `rms_norm`.
    Norm,
    /// The first layer's q: `qkv`.
    Q,
    /// The first layer's attention: K and V of `qkv`, and `attention`.
    Attention,
    /// The first layer's residual after attention, normed: `project`.
    Projected,
    /// The first layer's `silu(gate) * up`: `gated_mlp`.
    Mlp,
    /// The last layer's output, normed.
    Decoder,
}

impl Probe {
    pub(crate) const ALL: [Self; 6] =
        [Self::Norm, Self::Q, Self::Attention, Self::Projected, Self::Mlp, Self::Decoder];

    /// Width of what is read.
    pub(crate) const fn width(self, shape: &Shape) -> usize {
        match self {
            Self::Norm | Self::Projected | Self::Decoder => shape.hidden,
            Self::Q | Self::Attention => shape.heads * shape.head_dim,
            Self::Mlp => shape.ffn,
        }
    }
}

/// Outputs and inputs of a part.
pub(crate) const fn part_shape(shape: &Shape, part: Part) -> (usize, usize) {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    match part {
        Part::Q => (q, shape.hidden),
        Part::K | Part::V => (kv, shape.hidden),
        Part::O => (shape.hidden, q),
        Part::Gate | Part::Up => (shape.ffn, shape.hidden),
        Part::Down => (shape.hidden, shape.ffn),
    }
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// In the order of [`Part::ALL`].
    pub(crate) parts: Vec<HostTensor>,
    /// Of q, k and v, stacked.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) q_norm: Vec<f32>,
    pub(crate) k_norm: Vec<f32>,
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) mlp_norm: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) embedding: HostTensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) last_norm: Vec<f32>,
    /// In the order of [`Probe::ALL`].
    pub(crate) heads: Vec<HostTensor>,
    pub(crate) adapters: Vec<LoraWeights>,
    /// The adapter of each sequence.
    pub(crate) adapter_of: Vec<Option<usize>>,
    /// The tokens of each sequence, and one more: what the last row draws.
    pub(crate) tokens: Vec<Vec<u32>>,
}

impl World {
    pub(crate) fn new(case: &Case) -> Self {
        let shape = &case.shape;
        let mut random = Random::named(&case.name, case.host);
        let layers = (0..LAYERS).map(|_| layer(shape, &mut random)).collect();
        let mut heads: Vec<HostTensor> =
            Probe::ALL.iter().map(|p| random.weight(shape.vocab, p.width(shape), 2.0)).collect();
        // Attention averages values, which makes them small.
        heads[Probe::Attention as usize] =
            random.weight(shape.vocab, Probe::Attention.width(shape), 5.0);
        let tokens = case.lives.iter().map(|life| random.tokens(life.tokens() + 1, shape.vocab));
        let tokens = tokens.collect();
        let mut world = Self {
            // Rows of a table are inputs, not outputs: unit variance, whatever the width.
            embedding: random.weight(shape.vocab, shape.hidden, (shape.hidden as f32).sqrt()),
            layers,
            last_norm: random.norm(shape.hidden),
            heads,
            adapters: case
                .adapters
                .iter()
                .map(|ranks| adapter(shape, ranks, &mut random))
                .collect(),
            adapter_of: assign(case),
            tokens,
        };
        if case.int8 {
            world.round_to_int8();
        }
        world
    }

    fn round_to_int8(&mut self) {
        let parts = self.layers.iter_mut().flat_map(|layer| &mut layer.parts);
        for weight in parts.chain(&mut self.heads).chain([&mut self.embedding]) {
            *weight = weight.to_int8(2);
        }
    }
}

fn layer(shape: &Shape, random: &mut Random) -> Layer {
    let parts = Part::ALL.map(|part| {
        let (out, inputs) = part_shape(shape, part);
        random.weight(out, inputs, 1.2)
    });
    let qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    Layer {
        parts: parts.into(),
        bias: shape.bias.then(|| random.values(qkv, 0.7)),
        q_norm: random.norm(shape.head_dim),
        k_norm: random.norm(shape.head_dim),
        attention_norm: random.norm(shape.hidden),
        mlp_norm: random.norm(shape.hidden),
    }
}

/// An adapter whose effect is as large as the base's.
fn adapter(shape: &Shape, ranks: &Ranks, random: &mut Random) -> LoraWeights {
    let mut parts = Vec::new();
    for layer in 0..LAYERS {
        for (part, &rank) in Part::ALL.into_iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
            let (out, inputs) = part_shape(shape, part);
            let scale = 0.5 + parts.len() as f32 % 4.0 * 0.5;
            let (a, b) = (random.weight(rank, inputs, 1.0), random.weight(out, rank, 1.0 / scale));
            parts.push(LoraPart { layer, part, scale, a, b });
        }
    }
    // In any order, as the contract says.
    parts.reverse();
    LoraWeights { parts }
}

fn assign(case: &Case) -> Vec<Option<usize>> {
    let (sequences, adapters) = (case.lives.len(), case.adapters.len());
    let by_popularity = |weight: &dyn Fn(usize) -> f64| -> Vec<usize> {
        let total: f64 = (0..adapters).map(weight).sum();
        let mut given: Vec<usize> = (0..adapters)
            .flat_map(|i| {
                let share = weight(i) / total * sequences as f64;
                std::iter::repeat_n(i, share.ceil() as usize)
            })
            .take(sequences)
            .collect();
        // Neighbours in order of arrival differ.
        given.sort_by_key(|i| i * 7 % 5);
        given
    };
    let root = (sequences as f64).sqrt().ceil() as usize;
    let popular = match case.mix {
        Mix::Skewed => by_popularity(&|i| 1.5_f64.powi(-(i as i32))),
        Mix::Zipf => by_popularity(&|i| 1.0 / (i + 1) as f64),
        _ => (0..sequences).map(|i| i % adapters).collect(),
    };
    (0..sequences)
        .map(|i| match case.mix {
            Mix::Base => None,
            Mix::Identical => Some(0),
            Mix::Uniform => Some(i % root.min(adapters)),
            Mix::Gaps if i % 3 == 1 => None,
            _ => Some(popular[i]),
        })
        .collect()
}

/// SplitMix64.
struct Random {
    state: u64,
    host: DType,
}

impl Random {
    fn named(name: &str, host: DType) -> Self {
        let state =
            name.bytes().fold(1, |state: u64, byte| state * 31 % 0xFFFF_FFFB + u64::from(byte));
        Self { state, host }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Mean 0, standard deviation 1.
    fn unit(&mut self) -> f32 {
        let uniform = (self.bits() >> 40) as f32 / (1_u64 << 24) as f32;
        (uniform - 0.5) * 12.0_f32.sqrt()
    }

    /// Values that bf16 holds exactly, so that every backend computes with the same weights.
    fn values(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| bf16::from_f32(self.unit() * deviation).to_f32()).collect()
    }

    /// Around 1.
    fn norm(&mut self, width: usize) -> Vec<f32> {
        (0..width).map(|_| bf16::from_f32(1.0 + 0.3 * self.unit()).to_f32()).collect()
    }

    /// Keeps the scale of its inputs, times `gain`.
    fn weight(&mut self, rows: usize, cols: usize, gain: f32) -> HostTensor {
        let values = self.values(rows * cols, gain / (cols as f32).sqrt());
        let data = match self.host {
            DType::F32 => HostData::F32(values),
            DType::Bf16 => HostData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            DType::F16 => HostData::F16(values.into_iter().map(f16::from_f32).collect()),
        };
        HostTensor::new(rows, cols, data).unwrap()
    }

    fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| (self.bits() % vocab as u64) as u32).collect()
    }
}

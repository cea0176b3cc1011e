//! A decoder of Llama-3.1-8B's shape with random weights.

use std::sync::Arc;

use half::bf16;
use loraplex_kernels::cuda::{Buffer, CudaBackend, KvCache, Linear, Vector};
use loraplex_kernels::{
    AdapterMemory, AttentionOp, AttentionShape, Backend, BufferKind, GatedMlpOp, HostData,
    HostTensor, KvShape, LoraPart, LoraWeights, PackedAdapter, Part, ProjectOp, QkvOp, Result,
    Site,
};

const LAYERS: usize = 32;
const HIDDEN: usize = 4096;
const FFN: usize = 14_336;
const VOCABULARY: usize = 128_256;
const EPS: f32 = 1e-5;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD: usize = 128;
pub(crate) const BLOCK: usize = 16;

const SHAPE: AttentionShape = AttentionShape {
    heads: HEADS,
    kv_heads: KV_HEADS,
    head_dim: HEAD,
    scale: 0.088_388_35,
    window: None,
};

struct Layer {
    qkv: Linear,
    o: Linear,
    gate_up: Linear,
    down: Linear,
}

/// Weights, activations and the cache.
pub(crate) struct Model {
    embedding: Linear,
    head: Linear,
    layers: Vec<Layer>,
    /// Every norm's weight.
    norm: Vector,
    rope: Vector,
    residual: Buffer,
    normed: Buffer,
    q: Buffer,
    attended: Buffer,
    mlp: Buffer,
    kv: KvCache,
}

impl Model {
    /// Room for steps of `rows` rows, `blocks` cache blocks and sequences of `positions` tokens.
    pub(crate) fn new(
        backend: &mut CudaBackend,
        rows: usize,
        blocks: usize,
        positions: usize,
    ) -> Result<Self> {
        let mut seed = 0;
        let mut linear = |backend: &mut CudaBackend, outputs: &[usize], inputs: usize| {
            seed += 1;
            backend.random_linear(outputs, inputs, (3.0 / inputs as f32).sqrt(), seed)
        };
        let qkv = [HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD];
        let layers = (0..LAYERS)
            .map(|index| {
                let layer = Layer {
                    qkv: linear(backend, &qkv, HIDDEN)?,
                    o: linear(backend, &[HIDDEN], HEADS * HEAD)?,
                    gate_up: linear(backend, &[FFN, FFN], HIDDEN)?,
                    down: linear(backend, &[HIDDEN], FFN)?,
                };
                backend.know_site(index, Site::Qkv, &layer.qkv)?;
                backend.know_site(index, Site::O, &layer.o)?;
                backend.know_site(index, Site::GateUp, &layer.gate_up)?;
                backend.know_site(index, Site::Down, &layer.down)?;
                Ok(layer)
            })
            .collect::<Result<_>>()?;
        let kv = KvShape {
            layers: LAYERS,
            blocks,
            block_size: BLOCK,
            kv_heads: KV_HEADS,
            head_dim: HEAD,
        };
        let operand = BufferKind::Operand;
        Ok(Self {
            embedding: linear(backend, &[VOCABULARY], HIDDEN)?,
            head: linear(backend, &[VOCABULARY], HIDDEN)?,
            layers,
            norm: backend.upload_vector(&[1.0; HIDDEN])?,
            rope: backend.upload_vector(&rope(positions))?,
            residual: backend.buffer(BufferKind::Residual, rows, HIDDEN)?,
            normed: backend.buffer(operand, rows, HIDDEN)?,
            q: backend.buffer(operand, rows, HEADS * HEAD)?,
            attended: backend.buffer(operand, rows, HEADS * HEAD)?,
            mlp: backend.buffer(operand, rows, FFN)?,
            kv: backend.kv_cache(kv)?,
        })
    }

    pub(crate) fn head(&self) -> (&Linear, &Buffer) {
        (&self.head, &self.normed)
    }

    /// Bytes of the weights that a decode step reads: all linears and the head.
    pub(crate) fn bytes() -> usize {
        let layer =
            HIDDEN * (HEADS + 2 * KV_HEADS) * HEAD + HIDDEN * HEADS * HEAD + 3 * HIDDEN * FFN;
        2 * (LAYERS * layer + VOCABULARY * HIDDEN)
    }

    pub(crate) fn forward(&mut self, backend: &mut CudaBackend) -> Result<()> {
        backend.embed(&self.embedding, &mut self.residual)?;
        backend.rms_norm(&self.residual, &self.norm, EPS, &mut self.normed)?;
        for index in 0..LAYERS {
            backend.qkv(QkvOp {
                layer: index,
                shape: SHAPE,
                weight: &self.layers[index].qkv,
                norm: None,
                rope: &self.rope,
                x: &self.normed,
                q: &mut self.q,
                kv: &mut self.kv,
            })?;
            let (q, kv, out) = (&self.q, &self.kv, &mut self.attended);
            backend.attention(AttentionOp { layer: index, shape: SHAPE, q, kv, out })?;
            self.project(backend, index, Site::O)?;
            let (x, out) = (&self.normed, &mut self.mlp);
            let weight = &self.layers[index].gate_up;
            backend.gated_mlp(GatedMlpOp { layer: index, weight, x, out })?;
            self.project(backend, index, Site::Down)?;
        }
        Ok(())
    }

    fn project(&mut self, backend: &mut CudaBackend, layer: usize, site: Site) -> Result<()> {
        let weights = &self.layers[layer];
        let (weight, x) = match site {
            Site::O => (&weights.o, &self.attended),
            _ => (&weights.down, &self.mlp),
        };
        backend.project(ProjectOp {
            layer,
            site,
            weight,
            x,
            residual: &mut self.residual,
            norm: &self.norm,
            eps: EPS,
            normed: &mut self.normed,
        })
    }
}

/// `[positions, d]`: cosines, then sines.
fn rope(positions: usize) -> Vec<f32> {
    let angle = |p: usize, i: usize| p as f64 * 5e5_f64.powf(-(i as f64) / (HEAD / 2) as f64);
    (0..positions)
        .flat_map(|p| {
            let cos = (0..HEAD / 2).map(move |i| angle(p, i).cos() as f32);
            cos.chain((0..HEAD / 2).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

/// An adapter with `rank` on every projection of these sites.
pub(crate) fn adapter(
    backend: &CudaBackend,
    rank: usize,
    sites: &[Site],
) -> Result<Arc<PackedAdapter>> {
    let mut state = 1_u32;
    let mut random = |rows: usize, cols: usize| {
        let amplitude = (3.0 / cols as f32).sqrt() * 0.1;
        let values = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 * amplitude - amplitude)
        });
        HostTensor::new(rows, cols, HostData::Bf16(values.collect()))
    };
    let mut parts = Vec::new();
    for layer in 0..LAYERS {
        for part in Part::ALL.into_iter().filter(|part| sites.contains(&part.site())) {
            let (out, inputs) = match part {
                Part::Q | Part::O => (HIDDEN, HIDDEN),
                Part::K | Part::V => (KV_HEADS * HEAD, HIDDEN),
                Part::Gate | Part::Up => (FFN, HIDDEN),
                Part::Down => (HIDDEN, FFN),
            };
            let (a, b) = (random(rank, inputs)?, random(out, rank)?);
            parts.push(LoraPart { layer, part, scale: 2.0, a, b });
        }
    }
    let memory = AdapterMemory::default();
    Ok(Arc::new(backend.packer().pack(LAYERS, &LoraWeights { parts }, &memory)?))
}

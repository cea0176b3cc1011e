//! A decoder of random weights, run step by step, with the time of each kind of operation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use loraplex_kernels::cpu::{
    CpuAdapter, CpuBackend, CpuBuffer, CpuKvCache, CpuLinear, CpuOptions, CpuVector,
};
use loraplex_kernels::{
    AdapterMemory, AttentionOp, AttentionShape, Backend, BufferKind, DType, GatedMlpOp, HostData,
    HostTensor, KvShape, LoraPart, LoraSegment, LoraWeights, Part, ProjectOp, QkvOp, RowToken,
    SampleRow, SampleTask, SamplingParams, SequenceSpan, Site, Step, StepOutput,
};

const BLOCK: usize = 16;
const POSITIONS: usize = 2048;
const MAX_ROWS: usize = 512;
const EPS: f32 = 1e-5;

/// Sizes of a decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
}

impl Shape {
    fn widths(&self, part: Part) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match part {
            Part::Q => (q, self.hidden),
            Part::K | Part::V => (kv, self.hidden),
            Part::O => (self.hidden, q),
            Part::Gate | Part::Up => (self.ffn, self.hidden),
            Part::Down => (self.hidden, self.ffn),
        }
    }

    /// Weights of a layer.
    pub(crate) fn layer_weights(&self) -> usize {
        let size = |part| {
            let (out, inputs) = self.widths(part);
            out * inputs
        };
        Part::ALL.into_iter().map(size).sum()
    }

    /// Weights that a step reads.
    pub(crate) fn weights(&self) -> usize {
        self.layers * self.layer_weights() + self.vocab * self.hidden
    }
}

struct Layer {
    qkv: CpuLinear,
    o: CpuLinear,
    gate_up: CpuLinear,
    down: CpuLinear,
    norm: CpuVector,
}

pub(crate) struct Model {
    pub(crate) shape: Shape,
    backend: CpuBackend,
    table: CpuLinear,
    layers: Vec<Layer>,
    rope: CpuVector,
    adapters: Vec<CpuAdapter>,
    residual: CpuBuffer,
    normed: CpuBuffer,
    q: CpuBuffer,
    attended: CpuBuffer,
    mlp: CpuBuffer,
    kv: CpuKvCache,
    output: StepOutput,
}

/// Time of a step, by kind of operation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) embed: Duration,
    pub(crate) qkv: Duration,
    pub(crate) attention: Duration,
    pub(crate) o: Duration,
    pub(crate) gate_up: Duration,
    pub(crate) down: Duration,
    pub(crate) sample: Duration,
    pub(crate) total: Duration,
}

/// One sequence of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence {
    pub(crate) context: usize,
    pub(crate) rows: usize,
    pub(crate) adapter: Option<usize>,
}

/// Small numbers that repeat late.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 24) as f32 * 0.2 - 0.1
    }

    fn tensor(&mut self, rows: usize, cols: usize) -> HostTensor {
        let values = (0..rows * cols).map(|_| bf16::from_f32(self.next())).collect();
        HostTensor::new(rows, cols, HostData::Bf16(values)).expect("as many values as places")
    }
}

impl Model {
    /// With weights in 8 bits or not, and `adapters` adapters of this rank on all projections.
    pub(crate) fn new(
        shape: Shape,
        (options, int8): (CpuOptions, bool),
        (adapters, rank): (usize, usize),
    ) -> Self {
        let held = |tensor: HostTensor| if int8 { tensor.to_int8(options.threads) } else { tensor };
        let mut backend = CpuBackend::new(options).expect("the machine has what is asked for");
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut linear = |backend: &mut CpuBackend, parts: &[Part]| {
            let tensors: Vec<HostTensor> = parts
                .iter()
                .map(|&part| {
                    let (rows, cols) = shape.widths(part);
                    held(noise.tensor(rows, cols))
                })
                .collect();
            backend.upload_linear(&tensors, None).expect("weights fit")
        };
        let layers = (0..shape.layers)
            .map(|_| Layer {
                qkv: linear(&mut backend, Site::Qkv.parts()),
                o: linear(&mut backend, Site::O.parts()),
                gate_up: linear(&mut backend, Site::GateUp.parts()),
                down: linear(&mut backend, Site::Down.parts()),
                norm: backend.upload_vector(&vec![1.0; shape.hidden]).expect("fits"),
            })
            .collect();
        let table = held(noise.tensor(shape.vocab, shape.hidden));
        let table = backend.upload_linear(&[table], None).expect("the table fits");
        let packer = backend.packer();
        let adapters: Vec<CpuAdapter> = (0..adapters)
            .map(|_| {
                let weights = lora(&shape, rank, &mut noise);
                let packed = packer
                    .pack(shape.layers, &weights, &AdapterMemory::default())
                    .expect("adapters fit");
                backend.upload_adapter(&Arc::new(packed)).expect("adapters fit")
            })
            .collect();
        let rope = vec![0.5; POSITIONS * shape.head_dim];
        let rope = backend.upload_vector(&rope).expect("the rotation table fits");
        let q = shape.heads * shape.head_dim;
        let mut buffer = |kind, width| backend.buffer(kind, MAX_ROWS, width).expect("buffers fit");
        Self {
            residual: buffer(BufferKind::Residual, shape.hidden),
            normed: buffer(BufferKind::Operand, shape.hidden),
            q: buffer(BufferKind::Operand, q),
            attended: buffer(BufferKind::Operand, q),
            mlp: buffer(BufferKind::Operand, shape.ffn),
            kv: backend
                .kv_cache(KvShape {
                    layers: shape.layers,
                    blocks: adapters.len().max(16) * POSITIONS / BLOCK,
                    block_size: BLOCK,
                    kv_heads: shape.kv_heads,
                    head_dim: shape.head_dim,
                })
                .expect("the cache fits"),
            table,
            layers,
            rope,
            adapters,
            shape,
            backend,
            output: StepOutput::default(),
        }
    }

    /// Runs a step of these sequences; the last row of each draws a token.
    pub(crate) fn step(&mut self, sequences: &[Sequence]) -> Times {
        let mut spans = Vec::new();
        let mut positions = Vec::new();
        let mut slots = Vec::new();
        let mut blocks = Vec::new();
        let mut segments = Vec::new();
        let mut samples = Vec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let first_row = positions.len() as u32;
            let rows = sequence.rows as u32;
            let (context, first_block) = (sequence.context as u32, blocks.len() as u32);
            spans.push(SequenceSpan { first_row, rows, context, first_block });
            let base = index * POSITIONS / BLOCK;
            blocks.extend((0..POSITIONS / BLOCK).map(|block| (base + block) as u32));
            let here = context..context + rows;
            slots.extend(here.clone().map(|position| (base * BLOCK) as u32 + position));
            positions.extend(here);
            if let Some(adapter) = sequence.adapter {
                let adapter = &self.adapters[adapter];
                match segments.last_mut() {
                    Some(LoraSegment { adapter: last, rows: count, .. })
                        if std::ptr::eq(*last, adapter) =>
                    {
                        *count += rows;
                    }
                    _ => segments.push(LoraSegment { adapter, first_row, rows }),
                }
            }
            let row = positions.len() as u32 - 1;
            samples.push(SampleRow {
                row,
                task: SampleTask::Draw(SamplingParams::GREEDY),
                logprobs: None,
            });
        }
        let tokens: Vec<RowToken> =
            (0..positions.len()).map(|row| RowToken::Known(row as u32 * 7 % 1000)).collect();
        let start = Instant::now();
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            slots: &slots,
            sequences: &spans,
            block_tables: &blocks,
            lora: &segments,
        };
        self.backend.begin_step(&step).expect("a good step");
        let mut times = self.run(&samples).expect("kernels do not fail");
        times.total = start.elapsed();
        times
    }

    fn run(&mut self, samples: &[SampleRow<'_>]) -> loraplex_kernels::Result<Times> {
        let Self { shape, backend, .. } = self;
        let mut times = Times::default();
        let heads = AttentionShape {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: 0.125,
            window: None,
        };
        let clock = Instant::now();
        backend.embed(&self.table, &mut self.residual)?;
        backend.rms_norm(&self.residual, &self.layers[0].norm, EPS, &mut self.normed)?;
        times.embed += clock.elapsed();
        for (layer, weights) in self.layers.iter().enumerate() {
            let clock = Instant::now();
            backend.qkv(QkvOp {
                layer,
                shape: heads,
                weight: &weights.qkv,
                norm: None,
                rope: &self.rope,
                x: &self.normed,
                q: &mut self.q,
                kv: &mut self.kv,
            })?;
            times.qkv += clock.elapsed();
            let clock = Instant::now();
            let (q, kv, out) = (&self.q, &self.kv, &mut self.attended);
            backend.attention(AttentionOp { layer, shape: heads, q, kv, out })?;
            times.attention += clock.elapsed();
            let clock = Instant::now();
            let mut project = ProjectOp {
                layer,
                site: Site::O,
                weight: &weights.o,
                x: &self.attended,
                residual: &mut self.residual,
                norm: &weights.norm,
                eps: EPS,
                normed: &mut self.normed,
            };
            backend.project(project)?;
            times.o += clock.elapsed();
            let clock = Instant::now();
            let (x, out) = (&self.normed, &mut self.mlp);
            backend.gated_mlp(GatedMlpOp { layer, weight: &weights.gate_up, x, out })?;
            times.gate_up += clock.elapsed();
            let clock = Instant::now();
            project = ProjectOp {
                layer,
                site: Site::Down,
                weight: &weights.down,
                x: &self.mlp,
                residual: &mut self.residual,
                norm: &weights.norm,
                eps: EPS,
                normed: &mut self.normed,
            };
            backend.project(project)?;
            times.down += clock.elapsed();
        }
        let clock = Instant::now();
        backend.sample(&self.table, &self.normed, samples)?;
        let ticket = backend.end_step()?;
        backend.wait(ticket, &mut self.output)?;
        times.sample += clock.elapsed();
        Ok(times)
    }
}

fn lora(shape: &Shape, rank: usize, noise: &mut Noise) -> LoraWeights {
    let mut weights = LoraWeights::default();
    for layer in 0..shape.layers {
        for part in Part::ALL {
            let (out, inputs) = shape.widths(part);
            let (a, b) = (noise.tensor(rank, inputs), noise.tensor(out, rank));
            weights.parts.push(LoraPart { layer, part, scale: 2.0, a, b });
        }
    }
    weights
}

impl Model {
    /// The type of its weights.
    pub(crate) fn dtype(&self) -> DType {
        self.backend.device().dtype
    }

    /// As the backend names it.
    pub(crate) fn device(&self) -> &str {
        &self.backend.device().name
    }
}

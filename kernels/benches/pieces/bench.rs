//! A backend with what one piece needs, and the step that uses it.

use std::sync::Arc;

use half::bf16;
use loraplex_kernels::cpu::{
    CpuAdapter, CpuBackend, CpuBuffer, CpuKvCache, CpuLinear, CpuOptions, CpuVector,
};
use loraplex_kernels::{
    AdapterMemory, AttentionOp, AttentionShape, Backend, BufferKind, DType, HostData, HostTensor,
    KvShape, LoraPart, LoraSegment, LoraWeights, Part, ProjectOp, RowToken, SampleRow, SampleTask,
    SamplingParams, SequenceSpan, Site, Step, StepOutput,
};

use crate::floor::Floor;

const BLOCK: usize = 16;
const HEADS: AttentionShape =
    AttentionShape { heads: 32, kv_heads: 8, head_dim: 128, scale: 0.09, window: None };
/// Of the sampler: few inputs, so that the choice and not the product is most of it.
const VOCAB: Shape = Shape { inputs: 64, outputs: 49_152, layers: 1, rank: 0 };
/// An element of a weight, of an adapter or of the cache.
const ELEMENT: usize = 2;

/// A projection, in so many layers; with a rank, each row has an adapter of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) layers: usize,
    pub(crate) rank: usize,
}

/// Sequences of one step.
#[derive(Debug, Clone, Copy)]
struct Rows {
    sequences: usize,
    each: usize,
    context: usize,
}

pub(crate) struct Bench {
    backend: CpuBackend,
    weights: Vec<CpuLinear>,
    adapters: Vec<CpuAdapter>,
    norm: CpuVector,
    x: CpuBuffer,
    residual: CpuBuffer,
    normed: CpuBuffer,
    attended: CpuBuffer,
    kv: CpuKvCache,
    rows: Rows,
    floor: Floor,
    output: StepOutput,
}

/// A matrix of small numbers that repeat.
fn tensor(rows: usize, cols: usize) -> HostTensor {
    let values = (0..rows * cols).map(|at| bf16::from_f32((at % 251) as f32 * 1e-3 - 0.125));
    HostTensor::new(rows, cols, HostData::Bf16(values.collect())).expect("as many values as places")
}

impl Bench {
    /// `rows` sequences of one row, or one of many.
    pub(crate) fn projection(shape: Shape, rows: usize, threads: usize) -> Self {
        let weights = shape.inputs * shape.outputs;
        let adapters = if shape.rank > 0 { rows } else { 0 };
        let lora = adapters * shape.rank * (shape.inputs + shape.outputs);
        let floor = if rows > 100 {
            Floor::Operations(2 * rows * weights)
        } else {
            Floor::Bytes((weights + lora) * ELEMENT)
        };
        let rows = if rows > 100 { (1, rows) } else { (rows, 1) };
        let rows = Rows { sequences: rows.0, each: rows.1, context: 0 };
        let mut bench = Self::new(shape, rows, floor, threads);
        bench.adapters = (0..adapters).map(|_| adapter(&mut bench.backend, shape)).collect();
        bench.begin();
        bench
    }

    /// Of [`HEADS`]: so many sequences, rows of each, and tokens before them.
    pub(crate) fn attention(
        (sequences, each, context): (usize, usize, usize),
        threads: usize,
    ) -> Self {
        let width = HEADS.heads * HEADS.head_dim;
        let shape = Shape { inputs: width, outputs: 64, layers: 1, rank: 0 };
        let floor = if each > 1 {
            // A row sees itself and what is before it; a score and its value are two products.
            Floor::Operations(2 * each * (each + 1) * width)
        } else {
            let cached = HEADS.kv_heads * HEADS.head_dim * 2 * ELEMENT;
            Floor::Bytes(sequences * (context + 1) * cached)
        };
        let mut bench = Self::new(shape, Rows { sequences, each, context }, floor, threads);
        bench.begin();
        bench
    }

    /// Of `rows` sequences, over [`VOCAB`].
    pub(crate) fn sampler(rows: usize, threads: usize) -> Self {
        let floor = Floor::Bytes(VOCAB.inputs * VOCAB.outputs * ELEMENT);
        Self::new(VOCAB, Rows { sequences: rows, each: 1, context: 0 }, floor, threads)
    }

    fn new(shape: Shape, rows: Rows, floor: Floor, threads: usize) -> Self {
        let options = CpuOptions { dtype: DType::Bf16, threads, isa: None };
        let mut backend = CpuBackend::new(options).expect("a backend");
        let count = rows.sequences * rows.each;
        let blocks = rows.sequences * (rows.context + rows.each).div_ceil(BLOCK);
        let weights = (0..shape.layers)
            .map(|_| {
                let weight = tensor(shape.outputs, shape.inputs);
                backend.upload_linear(&[weight], None).expect("weights fit")
            })
            .collect();
        let mut buffer =
            |kind, width: usize| backend.buffer(kind, count, width).expect("buffers fit");
        let x = buffer(BufferKind::Operand, shape.inputs);
        let residual = buffer(BufferKind::Residual, shape.outputs);
        let normed = buffer(BufferKind::Operand, shape.outputs);
        let attended = buffer(BufferKind::Operand, HEADS.heads * HEADS.head_dim);
        let norm = backend.upload_vector(&vec![1.0; shape.outputs]).expect("fits");
        let kv = KvShape {
            layers: 1,
            blocks,
            block_size: BLOCK,
            kv_heads: HEADS.kv_heads,
            head_dim: HEADS.head_dim,
        };
        let kv = backend.kv_cache(kv).expect("the cache fits");
        let output = StepOutput::default();
        let adapters = Vec::new();
        Self {
            backend,
            weights,
            adapters,
            norm,
            x,
            residual,
            normed,
            attended,
            kv,
            rows,
            floor,
            output,
        }
    }

    pub(crate) fn floor(&self) -> Floor {
        self.floor
    }

    /// Tells the backend of the step that the pieces belong to.
    fn begin(&mut self) {
        let Rows { sequences, each, context } = self.rows;
        let blocks_each = (context + each).div_ceil(BLOCK);
        let count = sequences * each;
        let spans: Vec<SequenceSpan> = (0..sequences)
            .map(|index| SequenceSpan {
                first_row: (index * each) as u32,
                rows: each as u32,
                context: context as u32,
                first_block: (index * blocks_each) as u32,
            })
            .collect();
        let positions: Vec<u32> = (0..count).map(|row| (context + row % each) as u32).collect();
        let slot = |row: usize| (row / each * blocks_each * BLOCK + context + row % each) as u32;
        let slots: Vec<u32> = (0..count).map(slot).collect();
        let blocks: Vec<u32> = (0..(sequences * blocks_each) as u32).collect();
        let tokens = vec![RowToken::Known(1); count];
        let segments = self.adapters.iter().enumerate();
        let segments: Vec<LoraSegment<'_, CpuAdapter>> = segments
            .map(|(row, adapter)| LoraSegment { adapter, first_row: row as u32, rows: 1 })
            .collect();
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            slots: &slots,
            sequences: &spans,
            block_tables: &blocks,
            lora: &segments,
        };
        self.backend.begin_step(&step).expect("a good step");
    }

    pub(crate) fn project(&mut self, layer: usize) {
        let project = ProjectOp {
            layer,
            site: Site::O,
            weight: &self.weights[layer],
            x: &self.x,
            residual: &mut self.residual,
            norm: &self.norm,
            eps: 1e-5,
            normed: &mut self.normed,
        };
        self.backend.project(project).expect("kernels do not fail");
    }

    pub(crate) fn attend(&mut self) {
        let (q, kv, out) = (&self.x, &self.kv, &mut self.attended);
        let attend = AttentionOp { layer: 0, shape: HEADS, q, kv, out };
        self.backend.attention(attend).expect("kernels do not fail");
    }

    /// A whole step of its own, since drawing ends one.
    pub(crate) fn sample(&mut self, params: SamplingParams<'_>) {
        self.begin();
        let draw = |row| SampleRow { row, task: SampleTask::Draw(params), logprobs: None };
        let rows: Vec<SampleRow<'_>> = (0..self.rows.sequences as u32).map(draw).collect();
        self.backend.sample(&self.weights[0], &self.x, &rows).expect("kernels do not fail");
        let ticket = self.backend.end_step().expect("a good step");
        self.backend.wait(ticket, &mut self.output).expect("kernels do not fail");
    }
}

/// On the projection alone, in all layers.
fn adapter(backend: &mut CpuBackend, shape: Shape) -> CpuAdapter {
    let mut weights = LoraWeights::default();
    for layer in 0..shape.layers {
        let (a, b) = (tensor(shape.rank, shape.inputs), tensor(shape.outputs, shape.rank));
        weights.parts.push(LoraPart { layer, part: Part::O, scale: 1.0, a, b });
    }
    let packed = backend
        .packer()
        .pack(shape.layers, &weights, &AdapterMemory::default())
        .expect("adapters fit");
    backend.upload_adapter(&Arc::new(packed)).expect("adapters fit")
}

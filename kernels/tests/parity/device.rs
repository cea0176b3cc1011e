//! A world on a backend: weights uploaded, buffers made and filled with NaN, operations in a decoder's order.

use std::sync::Arc;

use loraplex_kernels::{
    AdapterMemory, AttentionOp, AttentionShape, Backend, BufferKind, GatedMlpOp, HostTensor,
    KvShape, Part, ProjectOp, QkNorm, QkvOp, RowToken, SampleRow, SampleTask, SequenceSpan, Site,
    Step, StepMode, StepOutput,
};

use crate::case::{Case, Shape};
use crate::run::greedy;
use crate::world::{EPS, LAYERS, Layer, Probe, ROPE_THETA, World};

#[derive(Debug)]
struct DeviceLayer<B: Backend> {
    qkv: B::Linear,
    o: B::Linear,
    gate_up: B::Linear,
    down: B::Linear,
    q_norm: B::Vector,
    k_norm: B::Vector,
    attention_norm: B::Vector,
    mlp_norm: B::Vector,
}

#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    pub(crate) backend: B,
    pub(crate) adapters: Vec<B::Adapter>,
    /// Goes from step to step, as in the engine.
    pub(crate) output: StepOutput,
    shape: Shape,
    embedding: B::Linear,
    /// One row of NaN.
    poison: B::Linear,
    layers: Vec<DeviceLayer<B>>,
    last_norm: B::Vector,
    heads: Vec<B::Linear>,
    buffers: Buffers<B>,
}

#[derive(Debug)]
struct Buffers<B: Backend> {
    rows: usize,
    residual: B::Buffer,
    normed: B::Buffer,
    q: B::Buffer,
    attended: B::Buffer,
    mlp: B::Buffer,
    kv: B::KvCache,
    kv_shape: KvShape,
    rope: B::Vector,
}

impl<B: Backend> Device<B> {
    /// Room for steps of `rows` rows, and for `blocks` cache blocks.
    pub(crate) fn new(
        mut backend: B,
        (case, world): (&Case, &World),
        rows: usize,
        blocks: usize,
    ) -> Self {
        let shape = case.shape;
        let linear = |backend: &mut B, weight: &HostTensor| {
            backend.upload_linear(std::slice::from_ref(weight), None).unwrap()
        };
        let nan = HostTensor::from_f32(1, shape.hidden, vec![f32::NAN; shape.hidden]).unwrap();
        let packer = backend.packer();
        let memory = AdapterMemory::default();
        let pack = |adapter| Arc::new(packer.pack(LAYERS, adapter, &memory).unwrap());
        let packed = world.adapters.iter().map(pack);
        let mut device = Self {
            adapters: packed.map(|packed| backend.upload_adapter(&packed).unwrap()).collect(),
            embedding: linear(&mut backend, &world.embedding),
            poison: linear(&mut backend, &nan),
            layers: (world.layers.iter().enumerate())
                .map(|(index, layer)| upload_layer(&mut backend, index, layer))
                .collect(),
            last_norm: backend.upload_vector(&world.last_norm).unwrap(),
            heads: world.heads.iter().map(|head| linear(&mut backend, head)).collect(),
            output: StepOutput::default(),
            buffers: buffers(&mut backend, case, rows, blocks),
            shape,
            backend,
        };
        device.fill_with_nan();
        device
    }

    /// Issues the operations of a step that has begun, up to `probe`, and samples there.
    pub(crate) fn issue(&mut self, mode: StepMode, probe: Probe, rows: &[SampleRow<'_>]) {
        if mode == StepMode::Issue {
            self.backend.embed(&self.embedding, &mut self.buffers.residual).unwrap();
            self.run_layers(probe);
        }
        let operand = match probe {
            Probe::Norm | Probe::Projected | Probe::Decoder => &self.buffers.normed,
            Probe::Q => &self.buffers.q,
            Probe::Attention => &self.buffers.attended,
            Probe::Mlp => &self.buffers.mlp,
        };
        self.backend.sample(&self.heads[probe as usize], operand, rows).unwrap();
    }

    fn run_layers(&mut self, probe: Probe) {
        let (backend, buffers) = (&mut self.backend, &mut self.buffers);
        let first = &self.layers[0].attention_norm;
        backend.rms_norm(&buffers.residual, first, EPS, &mut buffers.normed).unwrap();
        if probe == Probe::Norm {
            return;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            layer.attend(backend, buffers, (index, &self.shape), probe);
            if matches!(probe, Probe::Q | Probe::Attention | Probe::Projected) {
                return;
            }
            let (x, out) = (&buffers.normed, &mut buffers.mlp);
            backend.gated_mlp(GatedMlpOp { layer: index, weight: &layer.gate_up, x, out }).unwrap();
            if probe == Probe::Mlp {
                return;
            }
            let norm =
                self.layers.get(index + 1).map_or(&self.last_norm, |next| &next.attention_norm);
            let op = ProjectOp {
                layer: index,
                site: Site::Down,
                weight: &layer.down,
                x: &buffers.mlp,
                residual: &mut buffers.residual,
                norm,
                eps: EPS,
                normed: &mut buffers.normed,
            };
            backend.project(op).unwrap();
        }
    }

    /// Sends NaN through every operation, so that it lies in every buffer and every block of the cache.
    fn fill_with_nan(&mut self) {
        let KvShape { block_size, blocks, .. } = self.buffers.kv_shape;
        let at_once = self.buffers.rows / block_size;
        for first in (0..blocks).step_by(at_once) {
            // The last step takes blocks of the one before again, to fill the buffers.
            let first = first.min(blocks.saturating_sub(at_once));
            let tables: Vec<u32> = (first as u32..blocks as u32).take(at_once).collect();
            let rows = tables.len() * block_size;
            let sequence = |i: usize| SequenceSpan {
                first_row: (i * block_size) as u32,
                rows: block_size as u32,
                context: 0,
                first_block: i as u32,
            };
            let step = Step {
                tokens: &vec![RowToken::Known(0); rows],
                positions: &(0..rows).map(|row| (row % block_size) as u32).collect::<Vec<_>>(),
                slots: &(0..rows).map(|row| (first * block_size + row) as u32).collect::<Vec<_>>(),
                sequences: &(0..tables.len()).map(sequence).collect::<Vec<_>>(),
                block_tables: &tables,
                lora: &[],
            };
            if self.backend.begin_step(&step).unwrap() == StepMode::Issue {
                self.backend.embed(&self.poison, &mut self.buffers.residual).unwrap();
                self.run_layers(Probe::Decoder);
            }
            let row = SampleRow { row: 0, task: SampleTask::Draw(greedy(&[])), logprobs: Some(3) };
            let head = &self.heads[Probe::Decoder as usize];
            self.backend.sample(head, &self.buffers.normed, &[row]).unwrap();
            let ticket = self.backend.end_step().unwrap();
            self.backend.wait(ticket, &mut self.output).unwrap();
            assert_eq!(self.output.tokens, [0], "a row of NaN draws token 0");
        }
    }
}

impl<B: Backend> DeviceLayer<B> {
    /// From the normed input to the normed residual after attention.
    fn attend(
        &self,
        backend: &mut B,
        buffers: &mut Buffers<B>,
        (layer, shape): (usize, &Shape),
        probe: Probe,
    ) {
        let attention = AttentionShape {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: shape.window,
        };
        let norm = QkNorm { q: &self.q_norm, k: &self.k_norm, eps: EPS };
        backend
            .qkv(QkvOp {
                layer,
                shape: attention,
                weight: &self.qkv,
                norm: shape.qk_norm.then_some(norm),
                rope: &buffers.rope,
                x: &buffers.normed,
                q: &mut buffers.q,
                kv: &mut buffers.kv,
            })
            .unwrap();
        if probe == Probe::Q {
            return;
        }
        let (q, kv, out) = (&buffers.q, &buffers.kv, &mut buffers.attended);
        backend.attention(AttentionOp { layer, shape: attention, q, kv, out }).unwrap();
        if probe == Probe::Attention {
            return;
        }
        backend
            .project(ProjectOp {
                layer,
                site: Site::O,
                weight: &self.o,
                x: &buffers.attended,
                residual: &mut buffers.residual,
                norm: &self.mlp_norm,
                eps: EPS,
                normed: &mut buffers.normed,
            })
            .unwrap();
    }
}

fn buffers<B: Backend>(backend: &mut B, case: &Case, rows: usize, blocks: usize) -> Buffers<B> {
    let shape = &case.shape;
    let kv_shape = KvShape {
        layers: LAYERS,
        blocks,
        block_size: case.block_size,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
    };
    // Whole blocks, so that those of NaN fill them.
    let rows = rows.next_multiple_of(case.block_size);
    let q = shape.heads * shape.head_dim;
    // NaN goes over whole blocks.
    let positions = case.lives.iter().map(|life| life.tokens()).max().unwrap().max(case.block_size);
    let rope = backend.upload_vector(&rope(shape, positions)).unwrap();
    let mut operand = |width| backend.buffer(BufferKind::Operand, rows, width).unwrap();
    Buffers {
        rows,
        normed: operand(shape.hidden),
        q: operand(q),
        attended: operand(q),
        mlp: operand(shape.ffn),
        residual: backend.buffer(BufferKind::Residual, rows, shape.hidden).unwrap(),
        kv: backend.kv_cache(kv_shape).unwrap(),
        kv_shape,
        rope,
    }
}

fn upload_layer<B: Backend>(backend: &mut B, index: usize, layer: &Layer) -> DeviceLayer<B> {
    let parts = |parts: &[Part]| -> Vec<HostTensor> {
        parts.iter().map(|&part| layer.parts[part as usize].clone()).collect()
    };
    let mut linear = |site: Site, bias: Option<&[f32]>| {
        let weight = backend.upload_linear(&parts(site.parts()), bias).unwrap();
        backend.know_site(index, site, &weight).unwrap();
        weight
    };
    DeviceLayer {
        qkv: linear(Site::Qkv, layer.bias.as_deref()),
        o: linear(Site::O, None),
        gate_up: linear(Site::GateUp, None),
        down: linear(Site::Down, None),
        q_norm: backend.upload_vector(&layer.q_norm).unwrap(),
        k_norm: backend.upload_vector(&layer.k_norm).unwrap(),
        attention_norm: backend.upload_vector(&layer.attention_norm).unwrap(),
        mlp_norm: backend.upload_vector(&layer.mlp_norm).unwrap(),
    }
}

/// `[positions, d]`: the cosines, then the sines.
fn rope(shape: &Shape, positions: usize) -> Vec<f32> {
    let half = shape.head_dim / 2;
    let angle = |p: usize, i: usize| p as f64 * ROPE_THETA.powf(-(i as f64) / half as f64);
    (0..positions)
        .flat_map(|p| {
            let cos = (0..half).map(move |i| angle(p, i).cos() as f32);
            cos.chain((0..half).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

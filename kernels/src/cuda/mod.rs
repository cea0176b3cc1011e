//! The operations on an NVIDIA GPU, through the driver alone: the same binary starts without CUDA.
//!
//! | module | holds |
//! |---|---|
//! | `probe` | whether this machine can run it, and what to install if not |
//! | `compile` | CUDA C++ of `cuda/*.cu` to machine code, kept on disk |
//! | `gpu`, `memory`, `staging` | streams and launches, allocations, copies from the host |
//! | `weights`, `adapter`, `copier`, `spares` | what lies on the device, how adapters are packed, and how they come there |
//! | `step` | a step's metadata as one block that kernels and graphs find their way in |
//! | `stack` | adapters whose A lies below the weights |
//! | `gemm`, `product`, `lora`, `layers`, `attention`, `sample`, `draws` | the operations |
//! | `results` | what a step gives, on its way to the host |
//! | `graphs` | steps that are replayed |
//!
//! What it must never do: call a library before [`probe`] has found it (cudarc panics), allocate in a step once shapes
//! have been seen, or let a kernel follow an index that nobody has checked.

mod adapter;
mod attention;
pub mod compile;
mod copier;
mod draws;
mod error;
mod gemm;
mod gpu;
mod graphs;
mod kernel_args;
mod kernels;
mod layers;
mod lora;
mod memory;
mod probe;
mod product;
mod results;
mod sample;
mod spares;
mod stack;
mod staging;
mod step;
#[cfg(test)]
mod tests;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::CudaEvent;

use crate::args::{
    AttentionOp, GatedMlpOp, KvShape, ProjectOp, QkvOp, SampleRow, Step, StepOutput,
};
use crate::backend::{
    AdapterPacker, Backend, BufferKind, DeviceInfo, DeviceMemory, OpCounters, StepMode,
};
use crate::error::{KernelError, Result};
use crate::weights::{DType, HostTensor, PackedAdapter, Site};

pub use adapter::Adapter;
pub use probe::{Probe, probe};
pub use sample::Ticket;
pub use stack::SLOT_RANKS;
pub use weights::{Buffer, KvCache, Linear, Vector};

use adapter::{AdapterRoom, Packer};
use copier::Copier;
use error::{Context as _, check_below};
use gemm::Gemm;
use gpu::{Gpu, Shape};
use graphs::{Graphs, Start};
use kernels::Kernels;
use lora::Place;
use memory::{Block, Workspace, padded};
use probe::{Library, require};
use sample::Sampler;
use stack::{MOST_SLOTS, Stack};
use staging::{Letters, Staging};
use step::StepState;
use weights::slot_lanes;

/// Most rows of a step: a grid's second dimension.
const MOST_ROWS: usize = 65_535;
/// Blocks of decode attention for each multiprocessor: enough to have all of them read at once.
const BLOCKS_EACH: usize = 4;
/// Words of metadata that there is room for from the start, so that captured steps keep their addresses.
const FIRST_META: usize = 1 << 20;

/// How to set the backend up.
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    /// Which device.
    pub device: usize,
    /// Folder for compiled kernels; `None` compiles at every start.
    pub kernel_cache: Option<PathBuf>,
    /// Row counts that steps of decodes are padded to and captured at; none switches graphs off. A backend with graphs
    /// serves one model: a step of a form that it has captured replays the operations of that time.
    pub graph_rows: Vec<usize>,
}

impl CudaOptions {
    /// Row counts as serving wants them: fine where a row more costs most.
    pub fn usual_graph_rows() -> Vec<usize> {
        let fine = [1, 2, 4].into_iter().chain((8..64).step_by(8));
        fine.chain((64..=256).step_by(16)).collect()
    }
}

/// An NVIDIA GPU.
#[derive(Debug)]
pub struct CudaBackend {
    gpu: Arc<Gpu>,
    device: DeviceInfo,
    counters: OpCounters,
    kernels: Kernels,
    gemm: Gemm,
    staging: Staging,
    copier: Copier,
    letters: Letters,
    step: StepState,
    limits: Limits,
    graphs: Graphs,
    work: Work,
    sampler: Sampler,
    room: Arc<AdapterRoom>,
    /// Recorded where the compute stream stands when an adapter's copy is queued.
    idle: CudaEvent,
    /// Group size and pairs of the prefill tiles that were sent for this step, and their count.
    prefill: Option<([usize; 2], usize)>,
    /// How many slots for adapters are below weights.
    slots: usize,
    stack: Stack,
    words: Vec<u32>,
    /// Rows of the smallest buffer, which bound a padded step, and of the largest.
    least_rows: usize,
    most_rows: usize,
}

/// Memory that operations share.
#[derive(Debug, Default)]
struct Work {
    /// The step's metadata.
    meta: Workspace,
    /// Products before their epilogue, bf16.
    products: Workspace,
    /// What LoRA adds to products where rows are few, bf16.
    deltas: Workspace,
    /// Results of the shrink, bf16, with `lanes` to a row.
    shrunk: Workspace,
    /// What each row's adapter has at each site.
    parts: Workspace,
    lanes: usize,
    /// Decode attention's partial results and how many have arrived.
    sums: Workspace,
    stats: Workspace,
    arrived: Workspace,
    /// Tiles of prefill attention.
    prefill: Workspace,
}

/// What the model allows, as its operations showed it: a replayed step is checked against it.
#[derive(Debug, Default)]
struct Limits {
    tokens: usize,
    positions: usize,
    cache: Option<KvShape>,
}

impl CudaBackend {
    /// Opens a device and makes its kernels ready: about a second the first time, then from the cache.
    pub fn new(options: CudaOptions) -> Result<Self> {
        let probe = probe(options.device)?;
        let gpu = Gpu::open(options.device, probe)?;
        let kernels = Kernels::load(&gpu.context, &gpu.probe, options.kernel_cache.as_deref())?;
        Ok(Self {
            device: DeviceInfo { name: gpu.probe.name.clone(), dtype: DType::Bf16 },
            counters: OpCounters::default(),
            kernels,
            gemm: Gemm::new(&gpu)?,
            staging: Staging::new(&gpu)?,
            copier: Copier::new(&gpu)?,
            letters: Letters::new(&gpu),
            step: StepState::default(),
            limits: Limits::default(),
            graphs: Graphs::new(&gpu, options.graph_rows),
            work: Work::default(),
            sampler: Sampler::default(),
            room: Arc::default(),
            idle: gpu.context.new_event(None).during("making an event")?,
            prefill: None,
            slots: 0,
            stack: Stack::default(),
            words: Vec::new(),
            least_rows: usize::MAX,
            most_rows: 0,
            gpu,
        })
    }

    /// Whether this machine has an NVIDIA driver: if so, somebody may expect its GPU to be used.
    pub fn has_driver() -> bool {
        require(Library::Driver).is_ok()
    }

    /// Whether this machine has what [`CudaBackend::new`] needs, and what to do if not.
    pub fn probe(device: usize) -> Result<Probe> {
        probe(device)
    }

    /// Weights that are made from here on have room below them for adapters of `slots` times 16 ranks, 64 at most: steps whose
    /// adapters find room there need no products of their own for A. A slot takes as much memory as A of an adapter of rank 16
    /// on all projections, and as much as its B.
    pub fn make_slots(&mut self, slots: usize) {
        self.slots = slots.min(MOST_SLOTS);
    }

    /// A weight `[outputs, inputs]` of random numbers, uniform in ±`amplitude`, made on the device; the outputs of all parts
    /// lie one behind the other.
    pub fn random_linear(
        &mut self,
        parts: &[usize],
        inputs: usize,
        amplitude: f32,
        seed: u64,
    ) -> Result<Linear> {
        let outputs: usize = parts.iter().sum();
        let slot_lanes = slot_lanes(parts, self.slots);
        let stride = padded(inputs);
        let elements = (padded(outputs) + self.slots * slot_lanes) * stride;
        let weight = Block::new(&self.gpu, elements * 2, "weights")?;
        let args = kernel_args::Random {
            out: weight.address(),
            elements: elements as u64,
            seed,
            amplitude,
            columns: inputs as u32,
            stride: stride as u32,
            unused: 0,
        };
        let shape = Shape::new([8 * self.gpu.probe.multiprocessors, 1, 1], 256);
        // SAFETY: the block was made just above with that many elements.
        unsafe { self.gpu.launch(&self.kernels.random_fill, &self.gpu.compute, shape, &args)? };
        let widths = parts.to_vec();
        Ok(Linear { weight: Arc::new(weight), bias: None, outputs, inputs, slot_lanes, widths })
    }

    /// Address of a part of the step's metadata.
    fn meta(&self, words: usize) -> u64 {
        self.work.meta.address() + 4 * words as u64
    }

    /// How many items the keys of single rows are cut into, at best.
    fn split(&self) -> usize {
        let kv_heads = self.limits.cache.map_or(1, |cache| cache.kv_heads);
        (BLOCKS_EACH * self.gpu.probe.multiprocessors).div_ceil(kv_heads)
    }

    fn begin(&mut self, step: &Step<'_, Adapter>) -> Result<StepMode> {
        // The thread that steps need not be the one that made the backend.
        self.gpu.bind()?;
        self.graphs.abandon();
        self.sampler.abandon();
        self.prefill = None;
        for segment in step.lora {
            segment.adapter.wait()?;
        }
        self.reserve_sampled(0)?;
        let sampler = std::cell::RefCell::new(&mut self.sampler);
        self.step.take(step, |row| sampler.borrow_mut().token(row))?;
        self.stack_adapters()?;
        let start = self.graphs.start(&self.step, self.least_rows);
        if let Start::Replay(_) = start {
            self.check_limits()?;
        }
        self.gemm.step = start;
        let (mut rows, mut padded) = (self.step.rows, false);
        if let Start::Warm(form) | Start::Record(form) | Start::Replay(form) = start {
            self.step.lanes = form.lanes();
            (rows, padded) = (form.rows(), true);
        }
        self.send_meta(rows, padded)?;
        self.counters.steps += 1;
        match start {
            Start::Plain | Start::Warm(_) => {}
            Start::Record(form) => self.graphs.record(form)?,
            Start::Replay(form) => {
                if self.graphs.replay(form)? {
                    self.count_all();
                    return Ok(StepMode::Replay);
                }
            }
        }
        self.spread_adapters()?;
        Ok(StepMode::Issue)
    }

    fn send_meta(&mut self, rows: usize, padded: bool) -> Result<()> {
        let split = self.split();
        let words = self.step.lay_out(rows, split, padded);
        let room = words.len().next_power_of_two().max(FIRST_META);
        self.graphs.make_room(&mut self.work.meta, 4 * room, "a step's metadata")?;
        // SAFETY: reserved just above, and read on the compute stream alone, or on the side between fork and join.
        unsafe { self.letters.send(self.work.meta.address(), words) }
    }

    /// A replayed step refers to nothing that the model does not have.
    fn check_limits(&mut self) -> Result<()> {
        let extremes = self.step.extremes;
        for (what, largest, count) in [
            ("row of a table", extremes.token, self.limits.tokens),
            ("position", extremes.position, self.limits.positions),
        ] {
            if let Some(largest) = largest {
                check_below(what, largest as usize, count)?;
            }
        }
        match self.limits.cache {
            Some(cache) => self.step.check_cache(&cache),
            None => Ok(()),
        }
    }
}

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Linear = Linear;
    type Vector = Vector;
    type KvCache = KvCache;
    type Adapter = Adapter;
    type Ticket = Ticket;

    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let (free, total) = self.gpu.context.mem_get_info().during("asking for free memory")?;
        Ok(Some(DeviceMemory { free, total }))
    }

    fn counters(&self) -> OpCounters {
        self.counters
    }

    fn upload_linear(&mut self, parts: &[HostTensor], bias: Option<&[f32]>) -> Result<Linear> {
        Linear::upload(&self.gpu, &mut self.staging, parts, bias, self.slots)
    }

    fn know_site(&mut self, layer: usize, site: Site, weight: &Linear) -> Result<()> {
        self.stack.know(&self.gpu, Place { layer, site }, weight, self.slots)
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<Vector> {
        Vector::upload(&self.gpu, &mut self.staging, values)
    }

    fn buffer(&mut self, kind: BufferKind, rows: usize, width: usize) -> Result<Buffer> {
        if rows > MOST_ROWS {
            let what = format!("a step of {rows} rows ({MOST_ROWS} at most)");
            return Err(KernelError::Unsupported(what));
        }
        self.least_rows = self.least_rows.min(rows);
        self.most_rows = self.most_rows.max(rows);
        Buffer::new(&self.gpu, kind, rows, width)
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<KvCache> {
        self.limits.cache = Some(shape);
        KvCache::new(&self.gpu, shape)
    }

    fn packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(Packer)
    }

    fn upload_adapter(&mut self, adapter: &Arc<PackedAdapter>) -> Result<Adapter> {
        self.gpu.bind()?;
        // A step that failed while it was recorded would have the copy recorded, too.
        self.graphs.abandon();
        let lanes = adapter.sites.iter().flatten().map(|site| site.lanes).max().unwrap_or(0);
        self.reserve_lanes(lanes)?;
        Adapter::upload(&self.gpu, (&self.copier, &self.room), adapter, &self.idle)
    }

    fn has_arrived(&self, adapter: &Adapter) -> bool {
        adapter.has_arrived()
    }

    fn wait_for_adapter(&self, adapter: &Adapter) -> Result<()> {
        adapter.wait()
    }

    fn release_memory(&mut self) {
        // The last step's.
        self.step.lora.clear();
        self.room.clear();
    }

    fn begin_step(&mut self, step: &Step<'_, Adapter>) -> Result<StepMode> {
        self.begin(step)
    }

    fn embed(&mut self, table: &Linear, residual: &mut Buffer) -> Result<()> {
        self.run_embed(table, residual)
    }

    fn rms_norm(
        &mut self,
        residual: &Buffer,
        weight: &Vector,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        self.run_norm(residual, weight, eps, out)
    }

    fn qkv(&mut self, op: QkvOp<'_, Self>) -> Result<()> {
        self.run_qkv(op)
    }

    fn attention(&mut self, op: AttentionOp<'_, Self>) -> Result<()> {
        self.run_attention(op)
    }

    fn project(&mut self, op: ProjectOp<'_, Self>) -> Result<()> {
        self.run_project(op)
    }

    fn gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()> {
        self.run_gated_mlp(op)
    }

    fn sample(&mut self, head: &Linear, x: &Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
        self.run_sample(head, x, rows)
    }

    fn end_step(&mut self) -> Result<Ticket> {
        self.run_end_step()
    }

    fn has_ended(&self, ticket: &Ticket) -> bool {
        ticket.has_ended()
    }

    fn wait(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<()> {
        self.run_wait(ticket, out)
    }
}

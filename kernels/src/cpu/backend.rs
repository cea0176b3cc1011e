//! The backend: what it owns, and the trait.

use std::sync::Arc;

use crate::args::{
    AttentionOp, GatedMlpOp, KvShape, ProjectOp, QkvOp, SampleRow, Step, StepOutput,
};
use crate::backend::{AdapterPacker, Backend, BufferKind, DeviceInfo, OpCounters, StepMode};
use crate::error::{KernelError, Result};
use crate::weights::{DType, HostTensor, PackedAdapter};

use super::adapter::{CpuAdapter, Packer};
use super::attend::RowTile;
use super::buffer::CpuBuffer;
use super::int8::Int8Rows;
use super::isa::{Arch, Isa};
use super::kv::CpuKvCache;
use super::lora::StepLora;
use super::memory::{Arena, Memory};
use super::pack::{CpuLinear, shape};
use super::pointwise::{Embed, Norm, rows_of};
use super::pool::Pool;
use super::sample::Sampling;
use super::shared::SharedMut;
use super::step::StepState;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct CpuOptions {
    /// Type of weights, operands and cache: [`DType::F32`] or [`DType::Bf16`].
    pub dtype: DType,
    /// Threads, the caller of the operations being one.
    pub threads: usize,
    /// `None` takes [`Isa::best`].
    pub isa: Option<Isa>,
}

/// Runs the operations in SIMD on a thread pool.
#[derive(Debug)]
pub struct CpuBackend {
    pub(crate) arch: Arch,
    pub(crate) pool: Pool,
    pub(crate) counters: OpCounters,
    pub(crate) step: StepState,
    pub(crate) lora: StepLora,
    pub(crate) scratch: Scratch,
    /// Inputs of products in 8 bits.
    pub(crate) int8: Int8Rows,
    pub(crate) sampling: Sampling,
    /// Of the attention at hand.
    pub(crate) row_tiles: Vec<RowTile>,
    device: DeviceInfo,
    arena: Arena,
}

/// Small constants.
#[derive(Debug)]
pub struct CpuVector {
    pub(crate) values: Vec<f32>,
}

/// A step that has run.
#[derive(Debug)]
pub struct CpuTicket {
    output: StepOutput,
}

/// Memory that a task may use while it runs: one region a worker.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    regions: Vec<Memory>,
    starts: Vec<SharedMut<u8>>,
}

impl Scratch {
    /// Makes sure of `bytes` for each of `workers`, and gives their addresses.
    pub(crate) fn take(&mut self, workers: usize, bytes: usize) -> Result<&[SharedMut<u8>]> {
        if self.regions.len() < workers || self.regions[0].len() < bytes {
            self.regions.clear();
            self.starts.clear();
            for _ in 0..workers {
                let mut region = Memory::new(bytes.next_power_of_two(), "scratch")?;
                self.starts.push(SharedMut::new(region.as_mut_ptr()));
                self.regions.push(region);
            }
        }
        Ok(&self.starts)
    }
}

impl CpuBackend {
    /// A backend without weights. Fails when the processor lacks the instruction set asked for, or the type is none to
    /// compute in.
    pub fn new(options: CpuOptions) -> Result<Self> {
        if options.threads == 0 {
            return Err(KernelError::Unsupported("a CPU backend with 0 threads".into()));
        }
        let isa = options.isa.unwrap_or_else(Isa::best);
        let arch = Arch::new(isa, options.dtype)?;
        let pool = Pool::new(options.threads)?;
        let dtype = match options.dtype {
            DType::F32 => "f32",
            _ => "bf16",
        };
        let name = format!("cpu ({dtype}, {}, {} threads)", isa.name(), options.threads);
        Ok(Self {
            arch,
            pool,
            counters: OpCounters::default(),
            step: StepState::default(),
            lora: StepLora::default(),
            scratch: Scratch::default(),
            int8: Int8Rows::default(),
            sampling: Sampling::default(),
            row_tiles: Vec::new(),
            device: DeviceInfo { name, dtype: options.dtype },
            arena: Arena::default(),
        })
    }

    /// Norms the step's rows.
    pub(crate) fn norm_rows(
        &mut self,
        residual: &CpuBuffer,
        (weight, eps): (&CpuVector, f32),
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let rows = self.step.rows();
        let width = weight.values.len();
        residual.check(BufferKind::Residual, rows, width)?;
        out.check(BufferKind::Operand, rows, width)?;
        let (arch, out_stride) = (&self.arch, out.stride);
        let out = SharedMut::new(out.row_mut(0));
        let x_size = arch.layout().x_size;
        // A few rows take less time than waking another thread.
        let per_task = (16 * 1024 / width).max(1);
        self.pool.run(rows.div_ceil(per_task), |task, _| {
            let rows = rows_of(task, per_task, rows);
            let norm = Norm {
                rows: rows.len(),
                x: residual.row(rows.start).cast(),
                x_stride: residual.stride,
                weight: &weight.values,
                eps,
                out: out.get().wrapping_add(rows.start * out_stride * x_size),
                out_stride,
            };
            // SAFETY: both buffers hold the rows; each task writes rows of its own.
            unsafe { arch.run(&norm) }
        })
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Linear = CpuLinear;
    type Vector = CpuVector;
    type KvCache = CpuKvCache;
    type Adapter = CpuAdapter;
    type Ticket = CpuTicket;

    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn counters(&self) -> OpCounters {
        self.counters
    }

    fn upload_linear(
        &mut self,
        parts: &[HostTensor],
        bias: Option<&[f32]>,
    ) -> Result<Self::Linear> {
        CpuLinear::new(parts, bias, (&self.arch, &mut self.arena, &mut self.pool))
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<Self::Vector> {
        Ok(CpuVector { values: values.to_vec() })
    }

    fn buffer(&mut self, kind: BufferKind, rows: usize, width: usize) -> Result<Self::Buffer> {
        CpuBuffer::new(self.arch.layout(), kind, (rows, width))
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::KvCache> {
        CpuKvCache::new(shape, self.arch.layout())
    }

    fn packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(Packer { arch: self.arch })
    }

    fn upload_adapter(&mut self, adapter: &Arc<PackedAdapter>) -> Result<Self::Adapter> {
        Ok(CpuAdapter(Arc::clone(adapter)))
    }

    fn begin_step(&mut self, step: &Step<'_, Self::Adapter>) -> Result<StepMode> {
        self.sampling.output.clear();
        self.step.take(step, &self.sampling.drawn, &mut self.lora)?;
        self.counters.steps += 1;
        Ok(StepMode::Issue)
    }

    fn embed(&mut self, table: &Self::Linear, residual: &mut Self::Buffer) -> Result<()> {
        let rows = self.step.rows();
        residual.check(BufferKind::Residual, rows, table.inputs)?;
        if let Some(&token) = self.step.tokens.iter().find(|&&token| token as usize >= table.out) {
            return Err(shape("token", table.out, token as usize));
        }
        let (arch, tokens, stride) = (&self.arch, &self.step.tokens, residual.stride);
        let residual = SharedMut::new(residual.row_mut(0).cast::<f32>());
        const PER_TASK: usize = 8;
        self.pool.run(rows.div_ceil(PER_TASK), |task, _| {
            for row in rows_of(task, PER_TASK, rows) {
                let residual = residual.get().wrapping_add(row * stride);
                let embed = Embed { table, token: tokens[row] as usize, residual };
                // SAFETY: the table has the token, the residual the row, which is this task's alone.
                unsafe { arch.run(&embed) }
            }
        })
    }

    fn rms_norm(
        &mut self,
        residual: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.norm_rows(residual, (weight, eps), out)
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

    fn sample(
        &mut self,
        head: &Self::Linear,
        x: &Self::Buffer,
        rows: &[SampleRow<'_>],
    ) -> Result<()> {
        self.run_sample(head, x, rows)
    }

    fn end_step(&mut self) -> Result<Self::Ticket> {
        // Segments hold adapters; a step that has ended must not keep one from being freed.
        self.lora.clear();
        Ok(CpuTicket { output: self.sampling.take_output() })
    }

    fn wait(&mut self, mut ticket: Self::Ticket, out: &mut StepOutput) -> Result<()> {
        std::mem::swap(out, &mut ticket.output);
        self.sampling.give_back(ticket.output);
        Ok(())
    }
}

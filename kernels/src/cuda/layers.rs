//! The operations of a layer but attention.

use super::CudaBackend;
use super::error::{check, check_below};
use super::gpu::Shape;
use super::kernel_args::{Embed, Gated, Qkv, Residual, ResidualStacked};
use super::lora::{Pending, Place, Queued};
use super::memory::padded;
use super::weights::{Buffer, Linear, Vector};
use crate::args::{GatedMlpOp, ProjectOp, QkvOp};
use crate::backend::BufferKind::{Operand, Residual as ResidualKind};
use crate::error::{KernelError, Result};
use crate::weights::Site;

/// Columns of a block of `gated_mlp_expand`.
const EXPAND_COLUMNS: usize = 128;
/// Columns and rows of a block of `gated_mlp_stacked`.
const STACKED_COLUMNS: usize = 256;
const STACKED_ROWS: usize = 8;
/// Head size, least rows and most slots for `qkv_stacked_many`.
const MANY_HEAD: usize = 128;
const MANY: usize = 33;
const MANY_SLOTS: usize = 8;
/// Columns of a warp of `residual_norm_stacked`, the most rows of which four blocks share each, and how many share others.
const WARP_COLUMNS: usize = 128;
const FOUR_SHARE: usize = 66;
const SHARES: usize = 2;
/// Most threads of `residual_norm_stacked1` and `2`.
const NORM_THREADS: [usize; 2] = [1024, 128];
/// Columns of a block of `gated_mlp`.
const GATED_COLUMNS: usize = 2048;
/// Most columns of a norm: what 1024 threads keep in registers.
const NORM_COLUMNS: usize = 16 * 1024;
/// Rows from which on a norm's blocks are small.
const MANY_ROWS: usize = 512;
/// Rows of a block of `qkv`.
const QKV_ROWS: usize = 4;

impl CudaBackend {
    pub(super) fn run_embed(&mut self, table: &Linear, residual: &Buffer) -> Result<()> {
        let rows = self.step.counts.rows;
        let out = residual.of(ResidualKind, rows, table.inputs)?;
        if let Some(token) = self.step.extremes.token {
            check_below("row of a table", token as usize, table.outputs)?;
        }
        self.limits.tokens = table.outputs;
        let args = Embed {
            table: table.weight.address(),
            residual: out,
            tokens: self.meta(self.step.counts.places().tokens),
            sampled: self.sampler.sampled(),
            stride: padded(table.inputs) as u32,
            residual_stride: residual.stride as u32,
            width: table.inputs as u32,
            vocabulary: table.outputs as u32,
        };
        let shape = Shape::new([rows, 1, 1], 256);
        // SAFETY: the residual has the step's rows; tokens are checked above, drawn ones in the kernel.
        unsafe { self.gpu.launch(&self.kernels.embed, &self.gpu.compute, shape, &args) }
    }

    pub(super) fn run_norm(
        &mut self,
        residual: &Buffer,
        weight: &Vector,
        eps: f32,
        out: &Buffer,
    ) -> Result<()> {
        let args = self.residual_args((residual, weight, out), eps)?;
        let shape = self.norm_shape(residual)?;
        // SAFETY: `residual_args` has checked the shapes; y is not read.
        unsafe { self.gpu.launch(&self.kernels.rms_norm, &self.gpu.compute, shape, &args) }
    }

    fn residual_args(
        &self,
        (residual, weight, out): (&Buffer, &Vector, &Buffer),
        eps: f32,
    ) -> Result<Residual> {
        let (rows, width) = (self.step.counts.rows, residual.width);
        check("norm", width, weight.len)?;
        Ok(Residual {
            y: 0,
            delta: 0,
            bias: 0,
            residual: residual.of(ResidualKind, rows, width)?,
            weight: weight.block.address(),
            normed: out.of(Operand, rows, width)?,
            stride: residual.stride as u32,
            width: width as u32,
            eps,
            unused: 0,
        })
    }

    pub(super) fn run_qkv(&mut self, op: QkvOp<'_, Self>) -> Result<()> {
        let (d, rows) = (op.shape.head_dim, self.step.counts.rows);
        let (q_width, kv_width) = (op.shape.heads * d, op.shape.kv_heads * d);
        check(
            "heads of the cache",
            [op.shape.kv_heads, d],
            [op.kv.shape.kv_heads, op.kv.shape.head_dim],
        )?;
        if let Some(norm) = &op.norm {
            check("norms of q and k", [d; 2], [norm.q.len, norm.k.len])?;
        }
        self.limits.positions = op.rope.len / d.max(1);
        if let Some(position) = self.step.extremes.position {
            check_below("position", position as usize, self.limits.positions)?;
        }
        self.limits.cache = Some(op.kv.shape);
        self.step.check_cache(&op.kv.shape)?;
        let q = op.q.of(Operand, rows, q_width)?;
        let x = op.x.of(Operand, rows, op.weight.inputs)?;
        let (k_cache, v_cache) = op.kv.layer(op.layer)?;
        let place = Place { layer: op.layer, site: Site::Qkv };
        let queued = self.product(place, op.weight, x, &[q_width, kv_width, kv_width])?;
        let places = self.step.counts.places();
        let args = Qkv {
            y: queued.y,
            delta: queued.delta,
            bias: op.weight.bias(),
            q_norm: op.norm.as_ref().map_or(0, |norm| norm.q.block.address()),
            k_norm: op.norm.as_ref().map_or(0, |norm| norm.k.block.address()),
            rope: op.rope.block.address(),
            positions: self.meta(places.positions),
            slots: self.meta(places.slots),
            q,
            k_cache,
            v_cache,
            y_stride: queued.y_stride as u32,
            q_stride: op.q.stride as u32,
            heads: op.shape.heads as u32,
            kv_heads: op.shape.kv_heads as u32,
            d: d as u32,
            d_padded: op.kv.d_padded as u32,
            block_size: op.kv.shape.block_size as u32,
            eps: op.norm.as_ref().map_or(0.0, |norm| norm.eps),
            rows: rows as u32,
            unused: 0,
            lora: queued.lora,
        };
        let heads = op.shape.heads + 2 * op.shape.kv_heads;
        let share = d == MANY_HEAD && rows >= MANY && self.step.stacked <= MANY_SLOTS;
        let (kernel, block) = match queued.lora_is {
            Pending::Stacked if share => (&self.kernels.qkv_stacked_many, 8 * QKV_ROWS),
            Pending::Stacked => (&self.kernels.qkv_stacked, QKV_ROWS),
            _ => (&self.kernels.qkv, QKV_ROWS),
        };
        let shape = Shape::early([heads, rows.div_ceil(block), 1], 128);
        // SAFETY: shapes, positions and slots are checked above; y is what was queued.
        unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &args) }
    }

    pub(super) fn run_project(&mut self, op: ProjectOp<'_, Self>) -> Result<()> {
        let (rows, width) = (self.step.counts.rows, op.residual.width);
        let x = op.x.of(Operand, rows, op.weight.inputs)?;
        let mut args = self.residual_args((op.residual, op.norm, op.normed), op.eps)?;
        let place = Place { layer: op.layer, site: op.site };
        let queued = self.product(place, op.weight, x, &[width])?;
        args.y = queued.y;
        args.delta = queued.delta;
        args.bias = op.weight.bias();
        if queued.lora_is == Pending::Stacked {
            return self.residual_stacked(&args, &queued);
        }
        let shape = self.norm_shape(op.residual)?;
        // SAFETY: `residual_args` has checked the shapes; y is what was queued and has the residual's stride.
        unsafe { self.gpu.launch(&self.kernels.residual_norm, &self.gpu.compute, shape, &args) }
    }

    /// As `residual_norm`, with LoRA. Blocks share a row, since B takes long to come to one multiprocessor; two rows share what
    /// is read of B where there are more rows than multiprocessors.
    fn residual_stacked(&self, args: &Residual, queued: &Queued) -> Result<()> {
        let (rows, multiprocessors) = (self.step.counts.rows, self.gpu.probe.multiprocessors);
        let shared = if rows > multiprocessors { 2 } else { 1 };
        let shares = match self.gpu.probe.capability.0 {
            ..9 => 1,
            _ if rows <= FOUR_SHARE => 4,
            _ => SHARES,
        };
        let columns = (args.stride as usize).div_ceil(shares).next_multiple_of(WARP_COLUMNS);
        let stacked = ResidualStacked {
            lora: queued.lora,
            y: args.y,
            bias: args.bias,
            residual: args.residual,
            weight: args.weight,
            normed: args.normed,
            y_stride: queued.y_stride as u32,
            stride: args.stride,
            width: args.width,
            eps: args.eps,
            rows: rows as u32,
            columns: columns as u32,
        };
        let threads = (columns / 4).min(NORM_THREADS[shared - 1]);
        let grid = [shares, rows.div_ceil(shared), 1];
        let shape = Shape { cluster: [shares, 1, 1], ..Shape::early(grid, threads) };
        let kernel = &self.kernels.residual_norm_stacked[shared - 1];
        // SAFETY: `residual_args` has checked the shapes; y and h are what was queued, tiles one a row.
        unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &stacked) }
    }

    pub(super) fn run_gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()> {
        let (rows, ffn) = (self.step.counts.rows, op.out.width);
        let x = op.x.of(Operand, rows, op.weight.inputs)?;
        let out = op.out.of(Operand, rows, ffn)?;
        let place = Place { layer: op.layer, site: Site::GateUp };
        let queued = self.product(place, op.weight, x, &[ffn, ffn])?;
        let args = Gated {
            lora: queued.lora,
            y: queued.y,
            bias: op.weight.bias(),
            out,
            y_stride: queued.y_stride as u32,
            out_stride: op.out.stride as u32,
            ffn: ffn as u32,
            rows: rows as u32,
            delta: queued.delta,
        };
        let (kernel, shape) = match queued.lora_is {
            Pending::Stacked => {
                let grid = [ffn.div_ceil(STACKED_COLUMNS), rows.div_ceil(STACKED_ROWS), 1];
                (&self.kernels.gated_mlp_stacked, Shape::early(grid, 128))
            }
            Pending::Tiles => {
                let grid = [ffn.div_ceil(EXPAND_COLUMNS), self.step.counts.tiles, 1];
                (&self.kernels.gated_mlp_expand, Shape::new(grid, 128))
            }
            Pending::No => {
                let grid = [ffn.div_ceil(GATED_COLUMNS), rows, 1];
                (&self.kernels.gated_mlp, Shape::early(grid, 256))
            }
        };
        // SAFETY: shapes are checked above; y is what was queued.
        unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &args) }
    }

    /// A block a row. With few rows each thread has four columns, so that the row is there at once; with many each has as
    /// many as it can keep, so that more rows fit on the device.
    fn norm_shape(&self, residual: &Buffer) -> Result<Shape> {
        if residual.stride > NORM_COLUMNS {
            return Err(KernelError::Unsupported(format!(
                "a hidden size of {} (the most is {NORM_COLUMNS})",
                residual.width
            )));
        }
        let rows = self.step.counts.rows;
        let columns = if rows <= MANY_ROWS { 4 } else { 16 };
        let threads = residual.stride.div_ceil(columns).next_multiple_of(32).clamp(128, 1024);
        Ok(Shape::early([rows, 1, 1], threads))
    }
}

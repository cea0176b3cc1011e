//! The operations of a layer but attention.

use cudarc::driver::CudaFunction;

use super::CudaBackend;
use super::error::{check, check_below};
use super::gpu::Shape;
use super::kernel_args::{Embed, Gated, Norm, Qkv, Residual};
use super::kernels::PackedKernel;
use super::lora::{Pending, Place};
use super::memory::padded;
use super::stack::{PACKED_COLUMNS, is_worth_packing};
use super::step::MOST_SMALL;
use super::weights::{Buffer, Linear, NORM_COLUMNS, Vector};
use crate::args::{GatedMlpOp, ProjectOp, QkvOp};
use crate::backend::BufferKind::{Operand, Residual as ResidualKind};
use crate::error::Result;
use crate::weights::Site;

/// Columns of a block of `gated_mlp_expand`.
const EXPAND_COLUMNS: usize = 128;
/// Columns and rows of a block of `gated_mlp_stacked`.
const STACKED_COLUMNS: usize = 256;
const STACKED_ROWS: usize = 8;
/// Columns of a block of `gated_mlp`.
const GATED_COLUMNS: usize = 2048;
/// Threads and columns of a block of `residual`; columns of one of `residual_stacked`. (One of `residual_packed` has
/// [`NORM_COLUMNS`].)
const RESIDUAL_THREADS: usize = 256;
const RESIDUAL_COLUMNS: usize = 1024;
const RESIDUAL_STACKED_COLUMNS: usize = 512;
/// Rows of a block of `qkv`.
const QKV_ROWS: usize = 4;
/// Rows of a warp in the kernels with B packed, but for prompts.
const PACKED_ROWS: usize = 8;
/// Heads and rows of a block of `qkv_prompts`; rows of one of `residual_prompts`, columns and rows of one of `gated_mlp_prompts`.
const PROMPT_HEADS: usize = 4;
const PROMPT_ROWS: usize = 16;
const PROMPT_BLOCK_ROWS: usize = 64;
const PROMPT_COLUMNS: usize = 256;
/// Warps of a block of `gated_mlp_packed`.
const GATED_WARPS: usize = 4;

/// Whether `qkv_packed` and `qkv_prompts` know heads of that size.
pub(super) const fn fits_packed(head_dim: usize) -> bool {
    head_dim.is_multiple_of(2 * PACKED_COLUMNS) && head_dim <= 8 * PACKED_COLUMNS
}

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
        out: &mut Buffer,
    ) -> Result<()> {
        let args = self.residual_args((residual, weight, out), eps)?;
        let grid = [args.norm.pieces as usize, args.rows as usize, 1];
        let shape = Shape::early(grid, RESIDUAL_THREADS);
        // SAFETY: `residual_args` has checked the shapes; y is null.
        unsafe { self.gpu.launch(&self.kernels.residual, &self.gpu.compute, shape, &args) }
    }

    fn residual_args(
        &self,
        (residual, weight, out): (&Buffer, &Vector, &mut Buffer),
        eps: f32,
    ) -> Result<Residual> {
        let (rows, width) = (self.step.counts.rows, residual.width);
        check("norm", width, weight.len)?;
        let x = out.norm_output(&self.gpu, (rows, width), eps)?;
        Ok(Residual {
            residual: residual.of(ResidualKind, rows, width)?,
            weight: weight.block.address(),
            x,
            norm: self.norm_of(out),
            stride: residual.stride as u32,
            rows: rows as u32,
            columns: self.norm_columns(out) as u32,
            ..Residual::default()
        })
    }

    /// What rows of x have yet to be divided by.
    pub(super) fn norm_of(&self, x: &Buffer) -> Norm {
        x.norm(self.norm_columns(x))
    }

    /// Columns of a block that sums up squares. It is the same in all of a step, and known where the step is replayed: a row's
    /// readers must know how many sums there are. Where rows are many and have no LoRA, it is one.
    fn norm_columns(&self, x: &Buffer) -> usize {
        match self.step.counts.rows {
            _ if self.packs() => NORM_COLUMNS,
            _ if self.step.stacked > 0 => RESIDUAL_STACKED_COLUMNS,
            rows if rows <= MOST_SMALL => RESIDUAL_COLUMNS,
            _ => x.stride,
        }
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
        let q = op.q.output(rows, q_width)?;
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
            norm: self.norm_of(op.x),
        };
        let heads = op.shape.heads + 2 * op.shape.kv_heads;
        let has_prompts = self.has_prompts();
        let prompts = [heads.div_ceil(PROMPT_HEADS), rows.div_ceil(PROMPT_ROWS), 1];
        let rows_of = |block: usize| [heads, rows.div_ceil(block), 1];
        let kernels = &self.kernels;
        let (kernel, grid, threads) = match queued.lora_is {
            Pending::Stacked if fits_packed(d) && self.packs() => {
                let kernel = self.form(&kernels.qkv_packed);
                (kernel, if has_prompts { prompts } else { rows_of(PACKED_ROWS) }, d / 2)
            }
            Pending::Stacked => (&kernels.qkv_stacked, rows_of(QKV_ROWS), 128),
            _ if fits_packed(d) && args.delta == 0 && has_prompts => {
                (&kernels.qkv_prompts, prompts, d / 2)
            }
            _ => (&kernels.qkv, rows_of(QKV_ROWS), 128),
        };
        let shape = Shape::early(grid, threads);
        // SAFETY: shapes, positions and slots are checked above; y is what was queued.
        unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &args) }
    }

    pub(super) fn run_project(&mut self, op: ProjectOp<'_, Self>) -> Result<()> {
        let (rows, width) = (self.step.counts.rows, op.residual.width);
        let x = op.x.of(Operand, rows, op.weight.inputs)?;
        let mut args = self.residual_args((op.residual, op.norm, op.normed), op.eps)?;
        let place = Place { layer: op.layer, site: op.site };
        let queued = self.product(place, op.weight, x, &[width])?;
        args.lora = queued.lora;
        args.y = queued.y;
        args.y_stride = queued.y_stride as u32;
        args.delta = queued.delta;
        args.bias = op.weight.bias();
        let (kernel, block, threads) = match queued.lora_is {
            Pending::Stacked if self.packs() => {
                let block = if self.has_prompts() { PROMPT_BLOCK_ROWS } else { PACKED_ROWS };
                (self.form(&self.kernels.residual_packed), block, NORM_COLUMNS)
            }
            Pending::Stacked => (&self.kernels.residual_stacked, 1, 128),
            _ => (&self.kernels.residual, 1, RESIDUAL_THREADS),
        };
        let grid = [args.norm.pieces as usize, rows.div_ceil(block), 1];
        let shape = Shape::early(grid, threads);
        // SAFETY: `residual_args` has checked the shapes; y and h are what was queued, tiles one a row.
        unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &args) }
    }

    /// Whether the step's adapters have B packed, and rows enough share it.
    pub(super) fn packs(&self) -> bool {
        self.step.stacked > 0 && is_worth_packing(self.step.stacked, self.step.counts.rows)
    }

    /// Whether the step has the kernels for prompts.
    fn has_prompts(&self) -> bool {
        self.step.counts.rows > MOST_SMALL
    }

    /// The form of a kernel that is for such a step.
    fn form<'a>(&self, kernel: &'a PackedKernel) -> &'a CudaFunction {
        kernel.of(self.step.stacked, self.has_prompts())
    }

    pub(super) fn run_gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()> {
        let (rows, ffn) = (self.step.counts.rows, op.out.width);
        let x = op.x.of(Operand, rows, op.weight.inputs)?;
        let out = op.out.output(rows, ffn)?;
        let place = Place { layer: op.layer, site: Site::GateUp };
        let queued = self.product(place, op.weight, x, &[ffn, ffn])?;
        let row_warps = rows.div_ceil(PACKED_ROWS).next_power_of_two().min(GATED_WARPS);
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
            norm: self.norm_of(op.x),
            row_warps: row_warps.ilog2(),
            unused: 0,
        };
        let (kernel, shape) = match queued.lora_is {
            Pending::Stacked if self.packs() => {
                let (columns, block) = if self.has_prompts() {
                    (PROMPT_COLUMNS, PROMPT_BLOCK_ROWS)
                } else {
                    (GATED_WARPS / row_warps * PACKED_COLUMNS, row_warps * PACKED_ROWS)
                };
                let grid = [ffn.div_ceil(columns), rows.div_ceil(block), 1];
                let kernel = self.form(&self.kernels.gated_mlp_packed);
                (kernel, Shape::early(grid, 32 * GATED_WARPS))
            }
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
}

//! The operations around linear layers: how they are cut into tasks, and what each task does after its product.

use std::ops::Range;

use crate::args::{GatedMlpOp, ProjectOp, QkvOp};
use crate::backend::BufferKind;
use crate::error::Result;
use crate::weights::Site;

use super::backend::CpuBackend;
use super::buffer::CpuBuffer;
use super::heads::{FinishHeads, HeadNorm};
use super::int8::{Int8Input, Source};
use super::isa::{Arch, Layout};
use super::lora::{Input, Shrinks, SiteShape, StepLora};
use super::pack::{CpuLinear, shape};
use super::pointwise::{AddResidual, Gate};
use super::pool::{Pool, part_of};
use super::product::{Adapted, Product, Strip, scratch_columns};
use super::shared::SharedMut;
use super::step::StepState;
use super::wide::LEAST_ROWS;

/// Panels that a task takes at most: as many streams of weights as one row has accumulators for.
const PANELS: usize = 4;

/// Rows of a block whose weights are widened: enough that widening does not show, few enough that their share of a part
/// of k lies in the second-level cache.
const WIDE_BLOCK: usize = 256;

/// How an operation is cut: rows in blocks, columns in runs of panels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    rows: usize,
    row_blocks: usize,
    units: usize,
    column_tasks: usize,
}

impl Grid {
    /// For `rows` rows of this weight and `units` units of `unit_panels` panels each; a unit is never cut.
    pub(crate) fn new(
        (layout, threads): (Layout, usize),
        (weight, rows): (&CpuLinear, usize),
        (units, unit_panels): (usize, usize),
    ) -> Self {
        let wide = layout.wide_rows > 0 && rows >= LEAST_ROWS && !weight.int8;
        let row_blocks = rows.div_ceil(if wide { WIDE_BLOCK } else { 2 * layout.tile });
        let per_task = (PANELS / unit_panels).max(1);
        // A multiple of the threads, so that equal tasks end at the same time.
        let column_tasks = units.div_ceil(per_task).next_multiple_of(threads).min(units);
        Self { rows, row_blocks, units, column_tasks }
    }

    pub(crate) fn tasks(&self) -> usize {
        self.row_blocks * self.column_tasks
    }

    /// Rows and units of a task. Tasks with the same units follow each other, so that their weights are at hand.
    pub(crate) fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (column, row) = (task / self.row_blocks, task % self.row_blocks);
        (part_of(self.rows, self.row_blocks, row), part_of(self.units, self.column_tasks, column))
    }

    /// The first unit of the task that a thread takes after this one, unless it has the same units.
    pub(crate) fn next(&self, task: usize) -> Option<usize> {
        let (_, units) = self.task(task);
        let next = if task + 1 < self.tasks() { self.task(task + 1).1 } else { return None };
        (next.start != units.start).then_some(next.start)
    }

    /// Rows and units that a task has at most.
    pub(crate) fn largest(&self) -> (usize, usize) {
        (self.rows.div_ceil(self.row_blocks.max(1)), self.units.div_ceil(self.column_tasks.max(1)))
    }
}

/// A linear layer under way.
struct Linear<'a> {
    arch: &'a Arch,
    input: Input,
    /// The input in 8 bits, where the weight is.
    int8: Option<Int8Input>,
    weight: &'a CpuLinear,
    lora: &'a StepLora,
    shrinks: Shrinks,
    /// Of a scratch tile.
    c_stride: usize,
}

impl Linear<'_> {
    /// Multiplies rows with strips of the weight, adds what LoRA adds, and leaves the result in `c`.
    fn product(&self, rows: Range<usize>, strips: &[Strip], (c, next): (*mut f32, Option<usize>)) {
        self.lora.help(&self.shrinks, self.arch);
        let size = self.arch.layout().x_size;
        let (expands, shrinks) = (&self.lora.expands[..], &self.shrinks);
        let product = Product {
            x: self.input.x.get().wrapping_add(rows.start * self.input.stride * size),
            x_stride: self.input.stride,
            rows,
            int8: self.int8.map(|x| (self.arch.dots(), x)),
            weight: self.weight,
            strips,
            lora: (!expands.is_empty()).then_some(Adapted { expands, shrinks }),
            next,
            c,
            c_stride: self.c_stride,
        };
        // SAFETY: rows and strips lie within the operands, as `begin_linear` and the grid make sure; `c` is this task's.
        unsafe { self.arch.run(&product) }
    }
}

/// The parts of the backend that a linear layer and what follows it need.
struct Parts<'a> {
    linear: Linear<'a>,
    pool: &'a mut Pool,
    step: &'a StepState,
    /// Scratch tiles, one a worker.
    tiles: &'a [SharedMut<u8>],
}

impl CpuBackend {
    /// Checks a linear layer's operands, lists the LoRA work of its site, and makes room for scratch tiles of so many
    /// rows and columns.
    fn begin_linear<'a>(
        &'a mut self,
        at: SiteShape<'_>,
        (weight, x): (&'a CpuLinear, &'a CpuBuffer),
        (rows, c_stride): (usize, usize),
    ) -> Result<Parts<'a>> {
        x.check(BufferKind::Operand, self.step.rows(), weight.inputs)?;
        let out = at.widths.iter().sum();
        if weight.out != out {
            return Err(shape("outputs of a weight", out, weight.out));
        }
        let input = Input {
            x: SharedMut::new(x.row(0).cast_mut()),
            stride: x.stride,
            width: weight.inputs,
        };
        let source =
            Source { x: input.x, stride: x.stride, rows: self.step.rows(), width: weight.inputs };
        let int8 = weight.int8.then(|| self.int8.quantize(source, (&self.arch, &mut self.pool)));
        let int8 = int8.transpose()?;
        let threads = self.pool.threads();
        let layout = self.arch.layout();
        let shrinks = self.lora.begin(at, input, (layout, threads, &mut self.counters))?;
        let tiles = self.scratch.take(threads, rows * c_stride * size_of::<f32>())?;
        let (arch, lora) = (&self.arch, &self.lora);
        let linear = Linear { arch, input, int8, weight, lora, shrinks, c_stride };
        Ok(Parts { linear, pool: &mut self.pool, step: &self.step, tiles })
    }

    fn grid(&self, weight: &CpuLinear, units: usize, unit_panels: usize) -> Grid {
        let machine = (self.arch.layout(), self.pool.threads());
        Grid::new(machine, (weight, self.step.rows()), (units, unit_panels))
    }

    /// See [`ProjectOp`].
    pub(crate) fn run_project(&mut self, op: ProjectOp<'_, Self>) -> Result<()> {
        let hidden = op.residual.width;
        op.residual.check(BufferKind::Residual, self.step.rows(), hidden)?;
        let layout = self.arch.layout();
        let grid = self.grid(op.weight, op.weight.panels(), 1);
        let (rows, panels) = grid.largest();
        let at = SiteShape { layer: op.layer, site: op.site, widths: &[hidden] };
        let c_stride = scratch_columns(layout, 1, panels);
        let Parts { linear, pool, tiles, .. } =
            self.begin_linear(at, (op.weight, op.x), (rows, c_stride))?;
        let stride = op.residual.stride;
        let residual = SharedMut::new(op.residual.row_mut(0).cast::<f32>());
        pool.run(grid.tasks(), |task, worker| {
            let (rows, panels) = grid.task(task);
            let column = layout.panel();
            let strip = Strip { panel: panels.start, panels: panels.len(), column };
            let c = tiles[worker].get().cast::<f32>();
            linear.product(rows.clone(), &[strip], (c, grid.next(task)));
            let columns = panels.start * layout.panel()..hidden.min(panels.end * layout.panel());
            let add = AddResidual {
                rows: rows.len(),
                columns: columns.len(),
                c: c.wrapping_add(column),
                c_stride,
                bias: op.weight.bias.as_ref().map(|bias| &bias[columns.clone()]),
                residual: residual.get().wrapping_add(rows.start * stride + columns.start),
                stride,
            };
            // SAFETY: rows and columns of the residual are this task's alone, and the tile holds them.
            unsafe { linear.arch.run(&add) }
        })?;
        self.norm_rows(op.residual, (op.norm, op.eps), op.normed)
    }

    /// See [`GatedMlpOp`].
    pub(crate) fn run_gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()> {
        let ffn = op.out.width;
        op.out.check(BufferKind::Operand, self.step.rows(), ffn)?;
        let layout = self.arch.layout();
        let width = layout.panel();
        // A unit is a panel of gate; the one of up makes it two, but more streams are worth more than more tasks.
        let grid = self.grid(op.weight, ffn.div_ceil(width), 1);
        let (rows, panels) = grid.largest();
        let at = SiteShape { layer: op.layer, site: Site::GateUp, widths: &[ffn, ffn] };
        // The columns of up may start in the middle of a panel, so its strip may be one panel longer.
        let c_stride = scratch_columns(layout, 2, panels + 1);
        let Parts { linear, pool, tiles, .. } =
            self.begin_linear(at, (op.weight, op.x), (rows, c_stride))?;
        let stride = op.out.stride;
        let out = SharedMut::new(op.out.row_mut(0));
        pool.run(grid.tasks(), |task, worker| {
            let (rows, panels) = grid.task(task);
            let columns = panels.start * width..ffn.min(panels.end * width);
            let up = ffn + columns.start..ffn + columns.end;
            let up_panels = up.start / width..up.end.div_ceil(width);
            let up_column = width * (2 + panels.len());
            let strips = [
                Strip { panel: panels.start, panels: panels.len(), column: width },
                Strip { panel: up_panels.start, panels: up_panels.len(), column: up_column },
            ];
            let c = tiles[worker].get().cast::<f32>();
            linear.product(rows.clone(), &strips, (c, grid.next(task)));
            let to = (rows.start * stride + columns.start) * layout.x_size;
            let bias = op.weight.bias.as_ref();
            let gate = Gate {
                rows: rows.len(),
                columns: columns.len(),
                gate: c.wrapping_add(width),
                up: c.wrapping_add(up_column + up.start % width),
                c_stride,
                bias: bias.map(|bias| [&bias[columns.clone()], &bias[up.clone()]]),
                out: out.get().wrapping_add(to),
                out_stride: stride,
            };
            // SAFETY: rows and columns of `out` are this task's alone, and the tile holds them.
            unsafe { linear.arch.run(&gate) }
        })
    }

    /// See [`QkvOp`].
    pub(crate) fn run_qkv(&mut self, op: QkvOp<'_, Self>) -> Result<()> {
        let d = op.shape.head_dim;
        let widths = [op.shape.heads, op.shape.kv_heads, op.shape.kv_heads].map(|heads| heads * d);
        self.check_qkv(&op)?;
        let layout = self.arch.layout();
        let width = layout.panel();
        // A unit is whole heads and whole panels.
        let unit = least_common_multiple(d, width);
        let grid = self.grid(op.weight, op.weight.out.div_ceil(unit), unit / width);
        let (rows, units) = grid.largest();
        let at = SiteShape { layer: op.layer, site: Site::Qkv, widths: &widths };
        let c_stride = scratch_columns(layout, 1, units * unit / width);
        let Parts { linear, pool, step, tiles } =
            self.begin_linear(at, (op.weight, op.x), (rows, c_stride))?;
        let q_stride = op.q.stride;
        let q = SharedMut::new(op.q.row_mut(0));
        let geometry = op.kv.geometry;
        let kv = SharedMut::new(op.kv.layer_mut(op.layer));
        let norm =
            op.norm.as_ref().map(|n| HeadNorm { q: &n.q.values, k: &n.k.values, eps: n.eps });
        pool.run(grid.tasks(), |task, worker| {
            let (rows, units) = grid.task(task);
            let columns = units.start * unit..op.weight.out.min(units.end * unit);
            let panels = columns.start / width..columns.end.div_ceil(width);
            let strip = Strip { panel: panels.start, panels: panels.len(), column: width };
            let next = grid.next(task).map(|first| first * unit / width);
            let c = tiles[worker].get().cast::<f32>();
            linear.product(rows.clone(), &[strip], (c, next));
            let finish = FinishHeads {
                positions: &step.positions[rows.clone()],
                slots: &step.slots[rows.clone()],
                heads: columns.start / d..columns.end / d,
                q_heads: op.shape.heads,
                kv_heads: op.shape.kv_heads,
                c: c.wrapping_add(width),
                c_stride,
                bias: op.weight.bias.as_ref().map(|bias| &bias[columns.clone()]),
                norm,
                rope: &op.rope.values,
                q: q.get().wrapping_add(rows.start * q_stride * layout.x_size),
                q_stride,
                kv: kv.get(),
                geometry,
            };
            // SAFETY: `check_qkv` has seen that positions and slots lie within the tables; the heads of these rows, in
            // `q` and in the cache, are this task's alone.
            unsafe { linear.arch.run(&finish) }
        })
    }

    fn check_qkv(&self, op: &QkvOp<'_, Self>) -> Result<()> {
        let (shape_of, d) = (&op.kv.shape, op.shape.head_dim);
        op.q.check(BufferKind::Operand, self.step.rows(), op.shape.heads * d)?;
        if (shape_of.kv_heads, shape_of.head_dim) != (op.shape.kv_heads, d) {
            let found = shape_of.kv_heads * shape_of.head_dim;
            return Err(shape("width of the KV cache", op.shape.kv_heads * d, found));
        }
        if op.layer >= shape_of.layers {
            return Err(shape("layers of the KV cache", op.layer + 1, shape_of.layers));
        }
        if self.step.slots_end > shape_of.blocks * shape_of.block_size {
            let found = shape_of.blocks * shape_of.block_size;
            return Err(shape("slots of the KV cache", self.step.slots_end, found));
        }
        if self.step.positions_end * d > op.rope.values.len() {
            let found = op.rope.values.len() / d;
            return Err(shape("positions of the rotation table", self.step.positions_end, found));
        }
        if let Some(norm) = &op.norm
            && (norm.q.values.len(), norm.k.values.len()) != (d, d)
        {
            return Err(shape("norm of a head", d, norm.q.values.len()));
        }
        Ok(())
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

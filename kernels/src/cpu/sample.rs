//! The operation that ends a step: logits of the wanted rows, a few rows at a time, and a draw from each.

use crate::args::{SampleRow, StepOutput};
use crate::backend::BufferKind;
use crate::error::Result;
use crate::sampling::{Sampled, SamplingScratch, sample_row};

use super::backend::CpuBackend;
use super::buffer::CpuBuffer;
use super::int8::Source;
use super::linear::Grid;
use super::memory::Memory;
use super::pack::{CpuLinear, shape};
use super::product::{Product, Strip};
use super::shared::SharedMut;

/// Rows whose logits are computed at once: enough to widen the head's weights once for them, and what bounds the memory.
const ROWS: usize = 32;

/// Results and scratch of sampling.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    /// Results of the step under way.
    pub(crate) output: StepOutput,
    /// Tokens of the last step that ended.
    pub(crate) drawn: Vec<u32>,
    /// Emptied results of earlier steps, for later ones to fill.
    spare: Vec<StepOutput>,
    /// `[ROWS, vocabulary]`, with a panel's width of room at both ends.
    logits: Option<Memory>,
    /// The wanted rows of the input, side by side.
    gathered: Option<CpuBuffer>,
    /// One a row.
    rows: Vec<RowScratch>,
}

#[derive(Debug, Default)]
struct RowScratch {
    sampled: Option<Sampled>,
    scratch: SamplingScratch,
}

impl Sampling {
    /// The step's results, to be carried by its ticket.
    pub(crate) fn take_output(&mut self) -> StepOutput {
        self.drawn.clone_from(&self.output.tokens);
        let next = self.spare.pop().unwrap_or_default();
        std::mem::replace(&mut self.output, next)
    }

    /// Memory that the caller of `wait` has no use for.
    pub(crate) fn give_back(&mut self, mut output: StepOutput) {
        output.clear();
        self.spare.push(output);
    }
}

impl CpuBackend {
    /// Logits of the wanted rows and what to do with them.
    pub(crate) fn run_sample(
        &mut self,
        head: &CpuLinear,
        x: &CpuBuffer,
        rows: &[SampleRow<'_>],
    ) -> Result<()> {
        x.check(BufferKind::Operand, self.step.rows(), head.inputs)?;
        if let Some(row) = rows.iter().find(|row| row.row as usize >= self.step.rows()) {
            return Err(shape("sample row", self.step.rows(), row.row as usize));
        }
        let layout = self.arch.layout();
        let stride = (head.panels() + 2) * layout.panel();
        let bytes = ROWS * stride * size_of::<f32>();
        if self.sampling.logits.as_ref().is_none_or(|logits| logits.len() < bytes) {
            self.sampling.logits = Some(Memory::new(bytes, "logits")?);
        }
        if self.sampling.gathered.as_ref().is_none_or(|gathered| gathered.width != head.inputs) {
            let size = (ROWS, head.inputs);
            self.sampling.gathered = Some(CpuBuffer::new(layout, BufferKind::Operand, size)?);
        }
        self.sampling.rows.resize_with(ROWS, RowScratch::default);
        for rows in rows.chunks(ROWS) {
            self.logits(head, x, rows)?;
            self.draw(head, rows)?;
        }
        Ok(())
    }

    /// Computes the logits of up to [`ROWS`] rows.
    fn logits(&mut self, head: &CpuLinear, x: &CpuBuffer, rows: &[SampleRow<'_>]) -> Result<()> {
        let layout = self.arch.layout();
        let sampling = &mut self.sampling;
        let (Some(logits), Some(gathered)) = (&mut sampling.logits, &mut sampling.gathered) else {
            return Ok(());
        };
        for (to, row) in rows.iter().enumerate() {
            let (from, to) = (x.row(row.row as usize), gathered.row_mut(to));
            // SAFETY: the row is one of `x`, and both rows have this many operands.
            unsafe { from.copy_to_nonoverlapping(to, head.inputs * layout.x_size) };
        }
        let source = Source {
            x: SharedMut::new(gathered.row_mut(0)),
            stride: gathered.stride,
            rows: rows.len(),
            width: head.inputs,
        };
        let int8 = head.int8.then(|| self.int8.quantize(source, (&self.arch, &mut self.pool)));
        let int8 = int8.transpose()?;
        let machine = (layout, self.pool.threads());
        let grid = Grid::new(machine, (head, rows.len()), (head.panels(), 1));
        let c_stride = (head.panels() + 2) * layout.panel();
        let logits = SharedMut::new(logits.as_mut_ptr::<f32>());
        let (arch, gathered) = (&self.arch, &*gathered);
        self.pool.run(grid.tasks(), |task, _| {
            let (rows, panels) = grid.task(task);
            let strip = Strip {
                panel: panels.start,
                panels: panels.len(),
                column: (1 + panels.start) * layout.panel(),
            };
            let product = Product {
                x: gathered.row(rows.start),
                x_stride: gathered.stride,
                rows: rows.clone(),
                int8: int8.map(|x| (arch.dots(), x)),
                weight: head,
                strips: &[strip],
                lora: None,
                next: grid.next(task),
                c: logits.get().wrapping_add(rows.start * c_stride),
                c_stride,
            };
            // SAFETY: rows and panels lie within the operands; rows and columns of the logits are this task's alone.
            unsafe { arch.run(&product) }
        })
    }

    /// Draws from the logits, a row a task.
    fn draw(&mut self, head: &CpuLinear, rows: &[SampleRow<'_>]) -> Result<()> {
        let panel = self.arch.layout().panel();
        let stride = (head.panels() + 2) * panel;
        let sampling = &mut self.sampling;
        let Some(logits) = &mut sampling.logits else { return Ok(()) };
        let logits = SharedMut::new(logits.as_mut_ptr::<f32>());
        let scratch = SharedMut::new(sampling.rows.as_mut_ptr());
        let tokens = &self.step.tokens;
        self.pool.run(rows.len(), |task, _| {
            // SAFETY: one row of logits and of scratch a task; both have `ROWS`.
            let (logits, scratch) = unsafe {
                let logits = logits.get().add(task * stride + panel);
                (std::slice::from_raw_parts_mut(logits, head.out), &mut *scratch.get().add(task))
            };
            if let Some(bias) = &head.bias {
                logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
            }
            let row = &rows[task];
            let own = tokens[row.row as usize];
            scratch.sampled = Some(sample_row(logits, row, own, &mut scratch.scratch));
        })?;
        for row in &mut sampling.rows[..rows.len()] {
            if let Some(sampled) = row.sampled.take() {
                sampling.output.push(sampled, row.scratch.top());
            }
        }
        Ok(())
    }
}

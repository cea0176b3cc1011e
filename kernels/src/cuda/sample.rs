//! From normed rows to tokens: logits, the rows that the device finishes, and those that the host draws.
//!
//! The device takes the best token, draws, scores, and finds the best tokens of a row. Rows that want more of that than the
//! kernels have room for (see `draws`) have their logits copied to the host, where
//! [`sample_row`](crate::sampling::sample_row) does what it does for every backend.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::memcpy_dtoh_async;

use super::CudaBackend;
use super::draws::{DRAW_WORDS, Draws, Places};
use super::error::{Context as _, check_below};
use super::gemm::{Operands, Product};
use super::gpu::Shape;
use super::kernel_args::{Gather, Norm, Pick};
use super::memory::{Workspace, padded};
use super::results::{PICKED_WORDS, Results, TOP_WORDS};
use super::weights::{Buffer, Linear};
use crate::args::{RowToken, SampleRow, StepOutput};
use crate::backend::BufferKind::Operand;
use crate::error::{KernelError, Result};
use crate::sampling::SamplingScratch;

/// Rows whose logits are computed at once: what bounds their memory.
const LOGIT_ROWS: usize = 256;
/// Sample rows that there is room for from the start, so that captured steps keep their addresses.
const FIRST_ROOM: usize = 4096;
/// Words of `Part` in `sample.cu`.
const PART_WORDS: usize = 4;
/// Logits of one block, and most blocks of a row.
const PART_LOGITS: usize = 4096;
const PARTS: usize = 32;

/// A step under way.
#[derive(Debug)]
pub struct Ticket {
    results: Arc<Mutex<Results>>,
}

impl Ticket {
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.results).has_ended()
    }
}

/// What sampling keeps between steps.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// Row numbers, then tasks, then what draws need to know.
    pub(super) wanted: Workspace,
    pub(super) places: Places,
    pub(super) draws: Draws,
    gathered: Workspace,
    pub(super) logits: Workspace,
    picked: Workspace,
    /// Best tokens of rows that want them.
    tops: Workspace,
    /// What blocks found in their parts of the vocabulary, and how many blocks of a row have.
    parts: Workspace,
    arrived: Workspace,
    /// Tokens of the last step by sample row.
    pub(super) sampled: Workspace,
    words: Vec<u32>,
    /// Of the step under way.
    current: Option<Arc<Mutex<Results>>>,
    /// Of the last step that ended.
    last: Option<Arc<Mutex<Results>>>,
    spare: Vec<Arc<Mutex<Results>>>,
    scratch: SamplingScratch,
}

fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sampler {
    /// Address of the tokens that the last step drew.
    pub(super) fn sampled(&self) -> u64 {
        self.sampled.address()
    }

    /// Address of what the kernels need to know of a sample row.
    pub(super) fn row_words(&self, row: usize) -> u64 {
        self.wanted.address() + 4 * (self.places.rows + DRAW_WORDS * row) as u64
    }

    /// Address of what the kernels find out about a sample row.
    pub(super) fn picked_of(&self, row: usize) -> u64 {
        self.picked.address() + 4 * (PICKED_WORDS * row) as u64
    }

    /// Address of its best tokens.
    pub(super) fn tops_of(&self, row: usize) -> u64 {
        self.tops.address() + 4 * (TOP_WORDS * self.draws.most_top() * row) as u64
    }

    /// The token of a sample row of the last step, if the host knows it. A row that the host draws is waited for.
    pub(super) fn token(&mut self, row: u32) -> Result<Option<u32>> {
        if of_last(self.last.as_deref(), row)?.is_on_device(row as usize) {
            return Ok(None);
        }
        drawn(self.last.as_deref(), row, &mut self.scratch).map(Some)
    }

    /// Results of an earlier step that nobody needs any more, or new ones.
    fn fresh(&mut self, backend: &Arc<super::gpu::Gpu>) -> Result<Arc<Mutex<Results>>> {
        let free = self.spare.iter().position(|results| Arc::strong_count(results) == 1);
        match free {
            Some(index) => {
                let results = self.spare.swap_remove(index);
                lock(&results).clear();
                Ok(results)
            }
            None => Ok(Arc::new(Mutex::new(Results::new(backend)?))),
        }
    }

    /// Forgets what a step left unfinished.
    pub(super) fn abandon(&mut self) {
        self.current = None;
    }
}

/// The token of a sample row of the last step, which is waited for.
fn drawn(last: Option<&Mutex<Results>>, row: u32, scratch: &mut SamplingScratch) -> Result<u32> {
    let mut last = of_last(last, row)?;
    last.finish(scratch)?;
    Ok(last.output().tokens[row as usize])
}

/// The results of the last step, which has such a sample row.
fn of_last(last: Option<&Mutex<Results>>, row: u32) -> Result<MutexGuard<'_, Results>> {
    let last = last.ok_or_else(|| super::error::mismatch("sampled row", "a step before", row))?;
    let last = lock(last);
    check_below("sampled row", row as usize, last.len())?;
    Ok(last)
}

impl CudaBackend {
    /// Room for the tokens of a step, before any graph is recorded.
    pub(super) fn reserve_sampled(&mut self, rows: usize) -> Result<()> {
        let rows = rows.max(FIRST_ROOM);
        self.graphs.make_room(&mut self.sampler.sampled, rows * 4, "sampled tokens")
    }

    pub(super) fn run_sample(
        &mut self,
        head: &Linear,
        x: &Buffer,
        rows: &[SampleRow<'_>],
    ) -> Result<()> {
        self.graphs.finish()?;
        if head.bias.is_some() {
            return Err(KernelError::Unsupported("a bias of the head".into()));
        }
        if self.sampler.current.is_some() {
            return Err(KernelError::Unsupported("sampling twice in a step".into()));
        }
        let from = x.of(Operand, self.step.counts.rows, head.inputs)?;
        for row in rows {
            check_below("sampled row", row.row as usize, self.step.rows)?;
        }
        let results = self.sampler.fresh(&self.gpu)?;
        self.sampler.current = Some(results.clone());
        if rows.is_empty() {
            return Ok(());
        }
        self.reserve_sampled(rows.len())?;
        let mut results = lock(&results);
        let Sampler { draws, last, scratch, .. } = &mut self.sampler;
        results.begin(head.outputs, rows, draws, |row| match self.step.token(row as usize) {
            RowToken::Known(token) => Ok(token),
            RowToken::Sampled(sample) => drawn(last.as_deref(), sample, scratch),
        })?;
        self.send_wanted(rows)?;
        for first in (0..rows.len()).step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(rows.len() - first);
            self.logits(head, (from, self.norm_of(x)), (first, count))?;
            self.finish(head, first, count, &mut results)?;
        }
        results.record()
    }

    /// Sends which rows are wanted, and what for.
    fn send_wanted(&mut self, rows: &[SampleRow<'_>]) -> Result<()> {
        let sampler = &mut self.sampler;
        sampler.words.clear();
        sampler.words.extend(rows.iter().map(|row| row.row));
        sampler.places = sampler.draws.write(&mut sampler.words);
        let room = rows.len().next_power_of_two();
        let words = sampler.words.len().next_power_of_two();
        sampler.wanted.reserve(&self.gpu, 4 * words, "sample rows")?;
        sampler.picked.reserve(&self.gpu, 4 * PICKED_WORDS * room, "sampled rows")?;
        let tops = TOP_WORDS * sampler.draws.most_top() * room;
        if tops > 0 {
            sampler.tops.reserve(&self.gpu, 4 * tops, "best tokens")?;
        }
        // SAFETY: reserved above, and read and written on the compute stream alone.
        unsafe { self.letters.send(sampler.wanted.address(), &sampler.words) }
    }

    /// Queues the logits of some of the sample rows, the first of which has number `first`.
    fn logits(
        &mut self,
        head: &Linear,
        (x, norm): (u64, Norm),
        (first, rows): (usize, usize),
    ) -> Result<()> {
        let (stride, outputs) = (padded(head.inputs), padded(head.outputs));
        let sampler = &mut self.sampler;
        let room = rows.next_power_of_two().min(LOGIT_ROWS);
        sampler.logits.reserve(&self.gpu, room * outputs * 4, "logits")?;
        sampler.gathered.reserve(&self.gpu, room * stride * 2, "gathered rows")?;
        let args = Gather {
            x,
            out: sampler.gathered.address(),
            rows: sampler.wanted.address() + 4 * first as u64,
            norm,
            stride: stride as u32,
            unused: 0,
        };
        let shape = Shape::new([rows, 1, 1], 256);
        // SAFETY: the rows are below the step's, which x has; there is room for as many in `gathered`.
        unsafe { self.gpu.launch(&self.kernels.gather, &self.gpu.compute, shape, &args)? };
        let x = sampler.gathered.address();
        let operands = Operands { x, weight: head.weight.address(), y: sampler.logits.address() };
        let product = Product { rows, inputs: stride, outputs, alike: outputs, wide: true };
        // SAFETY: the shapes are those of the head and of what was reserved.
        unsafe { self.plain_product(product, operands) }
    }

    /// Queues what becomes of those logits. Draws come first: what they change they put back where it is scored.
    fn finish(
        &mut self,
        head: &Linear,
        first: usize,
        count: usize,
        results: &mut Results,
    ) -> Result<()> {
        self.draw(head, first, count)?;
        if self.has_picks(first, count) {
            self.pick(head, first, count)?;
        }
        if self.top(head, first, count)? > 0 {
            let to = results.top_words(first, count);
            // SAFETY: the words are read only after the event that `record` records.
            unsafe {
                memcpy_dtoh_async(to, self.sampler.tops_of(first), self.gpu.compute.cu_stream())
            }
            .during("copying best tokens to the host")?;
        }
        let sampler = &mut self.sampler;
        let stride = padded(head.outputs);
        let to = results.picked_words(first, count);
        // SAFETY: as above.
        unsafe { memcpy_dtoh_async(to, sampler.picked_of(first), self.gpu.compute.cu_stream()) }
            .during("copying tokens to the host")?;
        for row in first..first + count {
            if results.is_on_device(row) {
                continue;
            }
            if results.is_full() {
                results.record()?;
                results.advance(row, &mut sampler.scratch)?;
            }
            let from = sampler.logits.address() + (4 * (row - first) * stride) as u64;
            let to = results.logits_of(row);
            // SAFETY: as above.
            unsafe { memcpy_dtoh_async(to, from, self.gpu.compute.cu_stream()) }
                .during("copying logits to the host")?;
        }
        Ok(())
    }

    /// Queues what takes the best token or scores one.
    fn pick(&mut self, head: &Linear, first: usize, count: usize) -> Result<()> {
        let sampler = &mut self.sampler;
        let parts = head.outputs.div_ceil(PART_LOGITS).clamp(1, PARTS);
        sampler.parts.reserve(&self.gpu, LOGIT_ROWS * PARTS * PART_WORDS * 4, "sampling")?;
        sampler.arrived.reserve(&self.gpu, LOGIT_ROWS * 4, "sampling")?;
        let args = Pick {
            logits: sampler.logits.address(),
            tasks: sampler.wanted.address() + 4 * (sampler.places.tasks + first) as u64,
            out: sampler.picked_of(first),
            sampled: sampler.sampled.address() + 4 * first as u64,
            parts: sampler.parts.address(),
            arrived: sampler.arrived.address(),
            stride: padded(head.outputs) as u32,
            vocabulary: head.outputs as u32,
        };
        let shape = Shape::new([parts, count, 1], 256);
        // SAFETY: logits, tasks and outputs have room for `count` rows from `first`.
        unsafe { self.gpu.launch(&self.kernels.pick, &self.gpu.compute, shape, &args) }
    }

    pub(super) fn run_end_step(&mut self) -> Result<Ticket> {
        self.graphs.finish()?;
        let results = match self.sampler.current.take() {
            Some(results) => results,
            None => self.sampler.fresh(&self.gpu)?,
        };
        self.sampler.last = Some(results.clone());
        Ok(Ticket { results })
    }

    pub(super) fn run_wait(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<()> {
        {
            let mut results = lock(&ticket.results);
            results.finish(&mut self.sampler.scratch)?;
            out.clone_from(results.output());
        }
        self.sampler.spare.push(ticket.results);
        Ok(())
    }
}

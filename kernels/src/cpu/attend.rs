//! The operation around attention: which rows and heads make a task.

use crate::args::{AttentionOp, AttentionShape, SequenceSpan};
use crate::backend::BufferKind;
use crate::error::Result;

use super::attention::{Attend, Cut, scratch_bytes};
use super::backend::CpuBackend;
use super::kv::CpuKvCache;
use super::pack::shape;
use super::pool::part_of;
use super::shared::SharedMut;

/// Some rows of a sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTile {
    sequence: usize,
    /// Counted from the sequence's first.
    first: usize,
    rows: usize,
}

/// Lists the row tiles of a step, of at most `per_tile` rows.
fn list_tiles(sequences: &[SequenceSpan], per_tile: usize, tiles: &mut Vec<RowTile>) {
    tiles.clear();
    for (sequence, span) in sequences.iter().enumerate() {
        let rows = span.rows as usize;
        let count = rows.div_ceil(per_tile);
        // The last rows see the most keys; starting with them leaves the short tasks to fill the end.
        for index in (0..count).rev() {
            let range = part_of(rows, count, index);
            tiles.push(RowTile { sequence, first: range.start, rows: range.len() });
        }
    }
}

impl CpuBackend {
    /// See [`AttentionOp`].
    pub(crate) fn run_attention(&mut self, op: AttentionOp<'_, Self>) -> Result<()> {
        let d = op.shape.head_dim;
        let rows = self.step.rows();
        op.q.check(BufferKind::Operand, rows, op.shape.heads * d)?;
        op.out.check(BufferKind::Operand, rows, op.shape.heads * d)?;
        self.check_blocks(&op.shape, op.kv, op.layer)?;
        let group = op.shape.heads / op.shape.kv_heads;
        let threads = self.pool.threads();
        let cut = Cut::of((group, op.shape.kv_heads), rows, threads);
        let head_cuts = group.div_ceil(cut.heads);
        let geometry = op.kv.geometry;
        let layout = self.arch.layout();
        let scratch = self.scratch.take(threads, scratch_bytes(&geometry, layout))?;
        list_tiles(&self.step.sequences, cut.rows, &mut self.row_tiles);
        let (arch, step, tiles) = (&self.arch, &self.step, &self.row_tiles);
        let out_stride = op.out.stride;
        let out = SharedMut::new(op.out.row_mut(0));
        let (q, kv) = (
            SharedMut::new(op.q.row(0).cast_mut()),
            SharedMut::new(op.kv.layer(op.layer).cast_mut()),
        );
        let per_tile = op.shape.kv_heads * head_cuts;
        self.pool.run(tiles.len() * per_tile, |task, worker| {
            let tile = tiles[task / per_tile];
            let sequence = &step.sequences[tile.sequence];
            let kv_head = task % per_tile / head_cuts;
            let first_head = kv_head * group + task % head_cuts * cut.heads;
            let row = sequence.first_row as usize + tile.first;
            let column = first_head * d;
            let attend = Attend {
                geometry,
                kv: kv.get(),
                kv_head,
                blocks: &step.block_tables[sequence.first_block as usize..],
                q: q.get().wrapping_add((row * op.q.stride + column) * layout.x_size),
                q_stride: op.q.stride,
                out: out.get().wrapping_add((row * out_stride + column) * layout.x_size),
                out_stride,
                rows: tile.rows,
                heads: cut.heads.min((kv_head + 1) * group - first_head),
                position: sequence.context as usize + tile.first,
                scale: op.shape.scale,
                window: op.shape.window,
                scratch: scratch[worker].get(),
            };
            // SAFETY: `check_blocks` has seen that the tables lead into the cache; rows and heads lie within q and out,
            // where they are this task's alone.
            unsafe { arch.run(&attend) }
        })
    }

    /// Whether every block that the step reads is there.
    fn check_blocks(&self, heads: &AttentionShape, kv: &CpuKvCache, layer: usize) -> Result<()> {
        let cache = &kv.shape;
        if (cache.kv_heads, cache.head_dim) != (heads.kv_heads, heads.head_dim) {
            let (wanted, found) =
                (heads.kv_heads * heads.head_dim, cache.kv_heads * cache.head_dim);
            return Err(shape("width of the KV cache", wanted, found));
        }
        if heads.kv_heads == 0 || !heads.heads.is_multiple_of(heads.kv_heads) || heads.heads == 0 {
            return Err(shape("q heads a kv head", heads.kv_heads, heads.heads));
        }
        if layer >= cache.layers {
            return Err(shape("layers of the KV cache", layer + 1, cache.layers));
        }
        if self.step.blocks_end > cache.blocks {
            return Err(shape("blocks of the KV cache", self.step.blocks_end, cache.blocks));
        }
        for sequence in &self.step.sequences {
            let tokens = sequence.context as usize + sequence.rows as usize;
            let end = sequence.first_block as usize + tokens.div_ceil(cache.block_size);
            if end > self.step.block_tables.len() {
                let found = self.step.block_tables.len();
                return Err(shape("block tables of a step", end, found));
            }
        }
        Ok(())
    }
}

//! Attention: rows alone by `decode.cu`, chunks of prompts by `prefill.cu` or, on Hopper, `prefill_hopper.cu`.

use super::CudaBackend;
use super::error::{check, check_below};
use super::gpu::Shape;
use super::graphs::most_items;
use super::kernel_args::{Decode, Paged, Prefill};
use super::kernels::HEAD_SIZES;
use super::step::ITEM_KEYS;
use crate::args::AttentionOp;
use crate::backend::BufferKind::Operand;
use crate::error::{KernelError, Result};

/// Heads of a group that a block of `decode.cu` takes.
const DECODE_HEADS: usize = 8;
/// Keys of an item that a block of `decode.cu` asks for at once: what its warps begin with, or, where rows are few, all of an
/// item. Many rows' would push each other's out of the cache.
const LEAST_EARLY: u32 = 64;
const MOST_EARLY: u32 = ITEM_KEYS as u32;
const FEW_ROWS: usize = 16;
/// Tiles that a grid may have in y, and one.
const MOST_TILES: usize = 1 << 16;
/// Words of `PrefillTile`.
const TILE_WORDS: usize = 8;

impl CudaBackend {
    pub(super) fn run_attention(&mut self, op: AttentionOp<'_, Self>) -> Result<()> {
        let (rows, d) = (self.step.counts.rows, op.shape.head_dim);
        let (heads, kv_heads) = (op.shape.heads, op.shape.kv_heads);
        let q = op.q.of(Operand, rows, heads * d)?;
        let out = op.out.output(rows, heads * d)?;
        check("heads of the cache", [kv_heads, d], [op.kv.shape.kv_heads, op.kv.shape.head_dim])?;
        check("query heads over those of the cache", 0, heads % kv_heads.max(1))?;
        let Some(variant) = HEAD_SIZES.iter().position(|&size| d <= size) else {
            return Err(KernelError::Unsupported(format!("a head of {d} elements (256 at most)")));
        };
        self.step.check_cache(&op.kv.shape)?;
        let group = heads / kv_heads;
        let (k, v) = op.kv.layer(op.layer)?;
        let places = self.step.counts.places();
        let cache = Paged {
            k,
            v,
            block_tables: self.meta(places.block_tables),
            kv_heads: kv_heads as u32,
            block_size: op.kv.shape.block_size as u32,
            d: d as u32,
            d_padded: op.kv.d_padded as u32,
        };
        let stride = op.q.stride as u32;
        let (scale, window) = (op.shape.scale, op.shape.window.unwrap_or(0));
        if scale.is_nan() || scale <= 0.0 {
            // `prefill.cuh` finds the largest score before it multiplies.
            return Err(KernelError::Unsupported(format!("scores times {scale} (above 0)")));
        }
        if self.step.sequences.iter().any(|sequence| sequence.rows == 1) {
            self.reserve_items(&op)?;
            let grid = [self.step.counts.items, kv_heads, group.div_ceil(DECODE_HEADS)];
            let args = Decode {
                cache,
                items: self.meta(places.items),
                q,
                out,
                sums: self.work.sums.address(),
                stats: self.work.stats.address(),
                arrived: self.work.arrived.address(),
                stride,
                group: group as u32,
                scale,
                window,
                early: if rows <= FEW_ROWS { MOST_EARLY } else { LEAST_EARLY },
                unused: 0,
            };
            let (kernel, shape) = (&self.kernels.decode[variant], Shape::early(grid, 128));
            // SAFETY: shapes and the cache's places are checked above; partial results have room for all items.
            unsafe { self.gpu.launch(kernel, &self.gpu.compute, shape, &args)? };
        }
        let tiles = self.prefill_tiles(group, self.kernels.prefill[variant].pairs)?;
        check_below("tiles of attention", tiles, MOST_TILES)?;
        if tiles > 0 {
            let tiles_at = self.work.prefill.address();
            let args = Prefill {
                cache,
                tiles: tiles_at,
                q,
                out,
                stride,
                group: group as u32,
                scale,
                window,
            };
            let kernel = &self.kernels.prefill[variant];
            let shape = Shape::new([kv_heads, tiles, 1], kernel.threads);
            let shape = Shape { shared: kernel.shared_bytes, ..shape };
            // SAFETY: as above; the tiles were sent before.
            unsafe { self.gpu.launch(&kernel.function, &self.gpu.compute, shape, &args)? };
        }
        Ok(())
    }

    /// Room for partial results of as many items as this step, or the largest captured one, may have.
    fn reserve_items(&mut self, op: &AttentionOp<'_, Self>) -> Result<()> {
        let (heads, kv_heads) = (op.shape.heads, op.shape.kv_heads);
        let items = most_items(self.step.counts, self.graphs.largest(), self.split());
        let columns = (heads / kv_heads).div_ceil(DECODE_HEADS) * kv_heads;
        let what = "partial results of attention";
        let work = &mut self.work;
        for (room, words) in [
            (&mut work.sums, items * heads * op.kv.d_padded),
            (&mut work.stats, items * heads * 2),
            (&mut work.arrived, items * columns),
        ] {
            self.graphs.make_room(room, words * 4, what)?;
        }
        Ok(())
    }

    /// Sends the tiles of sequences with several rows, once a step, so many pairs each. Returns how many there are.
    ///
    /// A sequence's last tiles see the most keys, so they come first.
    fn prefill_tiles(&mut self, group: usize, pairs: usize) -> Result<usize> {
        if let Some((sent, tiles)) = self.prefill
            && sent == [group, pairs]
        {
            return Ok(tiles);
        }
        self.words.clear();
        for sequence in self.step.sequences.iter().filter(|sequence| sequence.rows > 1) {
            let tiles = (sequence.rows as usize * group).div_ceil(pairs);
            for tile in (0..tiles).rev() {
                let first = (tile * pairs) as u32;
                let span =
                    [sequence.first_row, sequence.rows, sequence.context, sequence.first_block];
                self.words.extend(span);
                self.words.extend([first, 0, 0, 0]);
            }
        }
        let tiles = self.words.len() / TILE_WORDS;
        self.prefill = Some(([group, pairs], tiles));
        if tiles > 0 {
            let bytes = (self.words.len() * 4).next_power_of_two();
            self.work.prefill.reserve(&self.gpu, bytes, "tiles of attention")?;
            // SAFETY: reserved just above, and read on the compute stream alone.
            unsafe { self.letters.send(self.work.prefill.address(), &self.words)? };
        }
        Ok(tiles)
    }
}

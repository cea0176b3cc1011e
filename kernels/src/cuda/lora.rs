//! A product with its LoRA. `h = x Aᵀ` comes with the product where A lies below W (`stack`), and the kernel that reads y
//! multiplies it with B. Else a shrink makes it beside the product, and B is multiplied beside it, too, or by the reader.

use super::CudaBackend;
use super::error::check;
use super::gemm::{Operands, Product};
use super::gpu::Shape;
use super::kernel_args::{Expand, Lora, Shrink};
use super::memory::padded;
use super::step::{LARGE_TILE, MOST_SMALL};
use super::weights::{Linear, product_rows};
use crate::error::Result;
use crate::weights::Site;

/// Lanes of one block of the shrink.
const BLOCK_LANES: usize = 16;
/// K of a split is a multiple of this: eight warps take 32 at a time.
const CHUNK: usize = 256;
/// K of a split where rows are few, so that enough blocks read at once.
const FEW_ROWS_CHUNK: usize = 1024;
/// Most splits.
const SPLITS: usize = 8;
/// Columns of a block of the expand.
const EXPAND_COLUMNS: usize = 256;
/// Blocks of the expand for each multiprocessor.
const EXPAND_BLOCKS: usize = 5;
/// Blocks of the shrink for each multiprocessor: all that it holds. Blocks of a second wave would take as long as all others
/// together.
const SHRINK_BLOCKS: usize = 3;
/// How many tiles are reckoned with at most: one a row.
const USUAL_TILES: usize = 64;
/// Lanes that the workspace has at least: rank 64 on three parts.
const LEAST_LANES: usize = 192;

/// Which site of which layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) site: Site,
}

/// A product that was queued.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    /// `[rows, y_stride]` in bf16, without bias and LoRA.
    pub(super) y: u64,
    pub(super) y_stride: usize,
    /// What LoRA adds, laid out like y; 0 where it adds nothing or the consumer works it out.
    pub(super) delta: u64,
    pub(super) lora_is: Pending,
    pub(super) lora: Lora,
}

/// What the consumer of a product is to do about LoRA itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    No,
    /// Multiply what the shrink found with B, tile by tile.
    Tiles,
    /// Multiply h beside y with B, row by row.
    Stacked,
}

impl CudaBackend {
    /// Queues `x Wᵀ`, and what belongs to the adapters that change the site. x is `[rows, inputs]`.
    pub(super) fn product(
        &mut self,
        place: Place,
        weight: &Linear,
        x: u64,
        widths: &[usize],
    ) -> Result<Queued> {
        check("outputs of a linear weight", widths.iter().sum(), weight.outputs)?;
        let rows = product_rows(self.step.counts.rows);
        let (inputs, outputs) = (padded(weight.inputs), padded(weight.outputs));
        let most = product_rows(self.most_rows.max(rows));
        let widest = outputs + self.slots * weight.slot_lanes;
        let y = &mut self.work.products;
        self.graphs.make_room(y, most * widest * 2, "matrix products")?;
        let y = self.work.products.address();
        let stacked = self.stacked_lanes(place, weight);
        let lanes = self.step.lanes[place.site as usize];
        if lanes > 0 {
            self.count_operations(place);
        }
        let product = Product { rows, inputs, outputs, alike: outputs, wide: false };
        let operands = Operands { x, weight: weight.weight.address(), y };
        if lanes > 0 && stacked > 0 {
            let all = outputs + stacked;
            // SAFETY: as below; the weight has room for so many lanes behind its outputs, and y was reserved for them.
            unsafe { self.plain_product(Product { outputs: all, ..product }, operands)? };
            let lora = Lora {
                h: y + 2 * outputs as u64,
                lane_stride: all as u32,
                slot_lanes: weight.slot_lanes as u32,
                packed: self.stack.packed(place),
                parts: self.parts_of(place),
                ..self.lora(place)
            };
            return Ok(Queued { y, y_stride: all, lora, lora_is: Pending::Stacked, delta: 0 });
        }
        if lanes > 0 {
            self.reserve_lanes(lanes)?;
        }
        let lora = self.lora(place);
        let mut queued = Queued { y, y_stride: outputs, lora, lora_is: Pending::No, delta: 0 };
        // Where rows are many, what LoRA adds to gate and up takes longer to write and read than to work out twice.
        let fused = place.site == Site::GateUp && self.step.counts.rows > MOST_SMALL;
        if lanes > 0 {
            if !fused {
                let most = if place.site == Site::GateUp { most.min(MOST_SMALL) } else { most };
                let deltas = &mut self.work.deltas;
                self.graphs.make_room(deltas, most * outputs * 2, "LoRA's deltas")?;
                queued.delta = self.work.deltas.address();
            }
            // Room is made on the compute stream, so before the ways part.
            self.gpu.fork()?;
            self.shrink(lora, (x, inputs), lanes)?;
            if fused {
                queued.lora_is = Pending::Tiles;
            } else {
                self.expand(lora, widths, outputs)?;
            }
        }
        // SAFETY: x has as many rows as products take (`Buffer::new`), the weight its padded shape, y was reserved.
        unsafe { self.plain_product(product, operands)? };
        if lanes > 0 {
            self.gpu.join()?;
        }
        Ok(queued)
    }

    /// Queues a product, all sizes padded.
    ///
    /// # Safety
    ///
    /// The operands have the product's shapes, and live until it has run.
    pub(super) unsafe fn plain_product(
        &mut self,
        product: Product,
        operands: Operands,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.cut(product.rows, product.outputs) {
                Some(cut) => self.few_rows(cut, product, operands),
                None => self.gemm.run(product, operands),
            }
        }
    }

    fn lora(&self, place: Place) -> Lora {
        let places = self.step.counts.places();
        Lora {
            tiles: self.meta(places.tiles),
            h: self.work.shrunk.address(),
            lane_stride: self.work.lanes as u32,
            site: place.site.slot(place.layer) as u32,
            slot_lanes: 0,
            rows: self.step.counts.rows as u32,
            packed: 0,
            parts: 0,
        }
    }

    /// Blocks that share a tile's K in a shrink.
    fn splits(&self, inputs: usize, lanes: usize) -> usize {
        let rows = self.step.counts.rows;
        if rows > MOST_SMALL || self.gpu.probe.capability.0 < 9 {
            return 1;
        }
        let blocks = rows.min(USUAL_TILES) * lanes.div_ceil(BLOCK_LANES);
        let room = SHRINK_BLOCKS * self.gpu.probe.multiprocessors / blocks;
        let most = (inputs / FEW_ROWS_CHUNK).clamp(1, SPLITS);
        most.min(1 << room.max(1).ilog2())
    }

    /// Queues `h = scale * (x Aᵀ)` on the side stream.
    fn shrink(&self, lora: Lora, (x, inputs): (u64, usize), lanes: usize) -> Result<()> {
        let splits = self.splits(inputs, lanes);
        let chunk = inputs.div_ceil(splits).next_multiple_of(CHUNK);
        let grid = [self.step.counts.tiles, lanes.div_ceil(BLOCK_LANES), splits];
        let large = self.step.tile_rows() == LARGE_TILE;
        let kernel = if large { &self.kernels.shrink64 } else { &self.kernels.shrink16 };
        let args = Shrink {
            lora,
            x,
            x_stride: inputs as u32,
            inputs: inputs as u32,
            chunk: chunk as u32,
            unused: 0,
        };
        let shape = Shape { cluster: [1, 1, splits], ..Shape::new(grid, 256) };
        // SAFETY: tiles lie in the step's block; the tables that they point to belong to adapters that the step holds;
        // h has room for the step's rows (`reserve_lanes`); nothing else uses h between fork and join.
        unsafe { self.gpu.launch(kernel, &self.gpu.side, shape, &args) }
    }

    /// Queues `delta = h Bᵀ` behind the shrink.
    fn expand(&self, lora: Lora, widths: &[usize], outputs: usize) -> Result<()> {
        let tiles = self.step.counts.tiles;
        let columns: usize = widths.iter().map(|width| width.div_ceil(EXPAND_COLUMNS)).sum();
        // All blocks at once: those of a second wave would take as long as all others together.
        let turns = EXPAND_BLOCKS * self.gpu.probe.multiprocessors / columns;
        let args = Expand {
            lora,
            delta: self.work.deltas.address(),
            stride: outputs as u32,
            tiles: tiles as u32,
            widths: std::array::from_fn(|part| widths.get(part).map_or(0, |&width| width as u32)),
            unused: 0,
        };
        // It begins with B, which has been there for long.
        let grid = [columns, tiles.min(turns.max(1)), 1];
        let shape = Shape::early(grid, 128);
        // SAFETY: as for the shrink, whose h the kernel waits for; the deltas have the step's rows.
        unsafe { self.gpu.launch(&self.kernels.expand, &self.gpu.side, shape, &args) }
    }

    /// Makes room for the shrink of adapters with `lanes` lanes a site.
    pub(super) fn reserve_lanes(&mut self, lanes: usize) -> Result<()> {
        let lanes = lanes.max(LEAST_LANES).max(self.work.lanes).next_multiple_of(BLOCK_LANES);
        let rows = self.most_rows.max(MOST_SMALL);
        self.graphs.make_room(&mut self.work.shrunk, rows * lanes * 2, "LoRA's shrink")?;
        if lanes != self.work.lanes {
            self.graphs.forget()?;
        }
        self.work.lanes = lanes;
        Ok(())
    }

    /// Counts what one operation does for the step's adapters.
    fn count_operations(&mut self, place: Place) {
        let slot = place.site.slot(place.layer);
        for site in self.step.lora.iter().filter_map(|segment| segment.site(slot)) {
            self.counters.lora_shrinks += 1;
            let parts = site.parts.iter().filter(|part| part.rank > 0).count();
            self.counters.lora_expands += parts as u64;
        }
    }

    /// Counts what a replayed step does.
    pub(super) fn count_all(&mut self) {
        for segment in &self.step.lora {
            for site in segment.adapter.sites().iter().flatten() {
                self.counters.lora_shrinks += 1;
                let parts = site.parts.iter().filter(|part| part.rank > 0).count();
                self.counters.lora_expands += parts as u64;
            }
        }
    }
}

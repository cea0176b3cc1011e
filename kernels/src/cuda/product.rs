//! Products of few rows, by `product.cu`: as fast as memory gives W.

use super::CudaBackend;
use super::gemm::{Operands, Product};
use super::gpu::Shape;
use super::kernel_args::Product as ProductArgs;
use crate::error::Result;

/// Rows that `product.cu` is compiled for; others are padded up to the next.
const ROWS: [usize; 3] = [8, 16, 32];
/// Outputs of a block that has a multiprocessor for itself.
const ALONE: [usize; 2] = [64, 80];
/// Blocks that share K there. More of a cluster would leave some multiprocessors idle, since it needs neighbours: clusters of
/// two find all 132 of an H200, those of four 120.
const SHARES_ALONE: usize = 2;
/// Shared memory that only one block finds on a multiprocessor. Without it the blocks that begin before the product before
/// has ended lie two to a multiprocessor, where that one has left room, and the others have none. With no more than this there
/// is room beside a block of those that come in pairs, of 8 rows; the other kernels have longer rings.
const BYTES_ALONE: usize = 114 << 10;
/// With more rows than these cuBLASLt makes products whose blocks do not fit at once, or would leave more than a quarter of the
/// multiprocessors idle.
const MOST_OWN_ROWS: usize = 16;
/// Outputs of a block where two share a multiprocessor.
const PAIRED: usize = 128;
/// Blocks that share K there, at most.
const MOST_SHARES: usize = 4;
/// Stages of the ring.
const STAGES: usize = 3;

/// Whether a device has what `product.cu` needs: clusters, without which small weights do not fill it, and shared memory for
/// two blocks on a multiprocessor. Those for desks, from 12 on, have less.
const fn fits(capability: (i32, i32)) -> bool {
    matches!(capability.0, 9 | 10)
}

/// A kernel of `product.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    rows: usize,
    outputs: usize,
}

impl Variant {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of = |outputs| ROWS.into_iter().map(move |rows| Self { rows, outputs });
        let paired = of(PAIRED).filter(|variant| variant.rows <= MOST_OWN_ROWS);
        ALONE.into_iter().flat_map(of).chain(paired)
    }

    pub(super) fn name(self) -> String {
        format!("product{}_{}", self.rows, self.outputs)
    }

    /// Shared memory of a block; none where the kernel does not run.
    pub(super) fn shared_bytes(self, capability: (i32, i32)) -> usize {
        let (chunk, least) = if self.outputs == PAIRED { (128, 0) } else { (256, BYTES_ALONE) };
        let ring = STAGES * (self.outputs + self.rows) * chunk * 2;
        if fits(capability) { ring.max(least) } else { 0 }
    }
}

/// Which kernel makes a product, and how many blocks share K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    variant: Variant,
    shares: usize,
}

impl Cut {
    /// Of so many rows and outputs on a device of so many multiprocessors; none if cuBLASLt is faster.
    fn new(rows: usize, outputs: usize, multiprocessors: usize) -> Option<Self> {
        let rows = ROWS.into_iter().find(|&most| rows <= most)?;
        let blocks = |own: usize| SHARES_ALONE * outputs.div_ceil(own);
        let alone = ALONE.into_iter().find(|&own| blocks(own) <= multiprocessors);
        let is_worth =
            |&own: &usize| rows <= MOST_OWN_ROWS || 4 * blocks(own) >= 3 * multiprocessors;
        if let Some(outputs) = alone.filter(is_worth) {
            return Some(Self { variant: Variant { rows, outputs }, shares: SHARES_ALONE });
        }
        if rows > MOST_OWN_ROWS {
            return None;
        }
        // All blocks at once if K is cut in four, two turns in two.
        let (blocks, room) = (outputs.div_ceil(PAIRED), 2 * multiprocessors);
        let shares = match blocks {
            _ if blocks * MOST_SHARES <= room => MOST_SHARES,
            _ if blocks <= room => 2,
            _ => 1,
        };
        Some(Self { variant: Variant { rows, outputs: PAIRED }, shares })
    }
}

impl CudaBackend {
    /// How a product of so many rows and outputs, padded, is made here; none if cuBLASLt is to.
    pub(super) fn cut(&self, rows: usize, outputs: usize) -> Option<Cut> {
        let probe = &self.gpu.probe;
        if fits(probe.capability) { Cut::new(rows, outputs, probe.multiprocessors) } else { None }
    }

    /// Queues a product of few rows, all sizes padded.
    ///
    /// # Safety
    ///
    /// The operands have the product's shapes, and live until it has run.
    pub(super) unsafe fn few_rows(
        &self,
        cut: Cut,
        product: Product,
        operands: Operands,
    ) -> Result<()> {
        let Product { rows, inputs, outputs, wide, .. } = product;
        let Cut { variant, shares } = cut;
        let args = ProductArgs {
            x: operands.x,
            weight: operands.weight,
            y: operands.y,
            rows: rows as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
            shares: shares as u32,
            wide: wide.into(),
            unused: 0,
        };
        let shape = Shape {
            shared: variant.shared_bytes(self.gpu.probe.capability),
            cluster: [shares, 1, 1],
            ..Shape::early([outputs.div_ceil(variant.outputs) * shares, 1, 1], 256)
        };
        // SAFETY: the caller vouches for the operands. W lay there before the step; what the kernels before it make it
        // waits for.
        unsafe { self.gpu.launch(self.kernels.product(variant), &self.gpu.compute, shape, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shapes of Llama-3.1-8B on an H200, with adapters of 16 ranks below the weights.
    #[test]
    fn products_are_cut_so_that_all_multiprocessors_read() {
        let cut = |rows, outputs| {
            Cut::new(rows, outputs, 132).map(|cut| (cut.variant.name(), cut.shares))
        };
        let is = |name: &str, shares| Some((name.to_owned(), shares));
        assert_eq!(cut(1, 4096), is("product8_64", 2));
        assert_eq!(cut(8, 4096 + 8 * 16), is("product8_64", 2));
        assert_eq!(cut(9, 4096 + 16 * 16), is("product16_80", 2));
        assert_eq!(cut(32, 4096), is("product32_64", 2));
        assert_eq!(cut(17, 4096 + 32 * 16), is("product32_80", 2));
        assert_eq!(cut(8, 6144), is("product8_128", 4));
        assert_eq!(cut(16, 28_672), is("product16_128", 2));
        assert_eq!(cut(1, 128_256), is("product8_128", 1));
        // Others are cuBLASLt's: many outputs, few, or more rows.
        assert_eq!(cut(17, 6144), None);
        assert_eq!(cut(17, 2048), None);
        assert_eq!(cut(33, 4096), None);
    }
}

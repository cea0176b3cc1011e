//! Products of few rows, by `product.cu`: as fast as memory gives W.

use super::CudaBackend;
use super::gemm::{Operands, Product};
use super::gpu::Shape;
use super::kernel_args::Product as ProductArgs;
use crate::error::{KernelError, Result};

/// Rows that `product.cu` is compiled for; others are padded up to the next.
pub(super) const PRODUCT_ROWS: [usize; 2] = [8, 16];
/// Outputs of a block.
const OUTPUTS: usize = 128;
/// K of a stage.
const CHUNK: usize = 128;
/// Stages of the ring.
const STAGES: usize = 3;
/// Blocks that share K, at most.
const MOST_SHARES: usize = 4;

/// Whether a device has what `product.cu` needs: clusters, without which small weights do not fill it, and shared memory for
/// two blocks on a multiprocessor. Those for desks, from 12 on, have less.
pub(super) const fn fits(capability: (i32, i32)) -> bool {
    matches!(capability.0, 9 | 10)
}

/// What the ring of the kernel for `rows` rows takes.
pub(super) const fn product_shared_bytes(rows: usize) -> usize {
    STAGES * (OUTPUTS + rows) * CHUNK * 2
}

impl CudaBackend {
    /// Most rows of products that are made here: with more, cuBLASLt is faster.
    pub(super) fn most_few(&self) -> usize {
        if fits(self.gpu.probe.capability) { PRODUCT_ROWS[PRODUCT_ROWS.len() - 1] } else { 0 }
    }

    /// Whether products of so many rows are made here.
    pub(super) fn has_few(&self, rows: usize) -> bool {
        rows <= self.most_few()
    }

    /// Queues a product of few rows, all sizes padded.
    ///
    /// # Safety
    ///
    /// The operands have the product's shapes, and live until it has run.
    pub(super) unsafe fn few_rows(&self, product: Product, operands: Operands) -> Result<()> {
        let Product { rows, inputs, outputs, wide, .. } = product;
        let Some(variant) = PRODUCT_ROWS.iter().position(|&most| rows <= most) else {
            return Err(KernelError::Unsupported(format!("a product of few rows over {rows}")));
        };
        let blocks = outputs.div_ceil(OUTPUTS);
        let shares = self.shares(blocks);
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
            shared: product_shared_bytes(PRODUCT_ROWS[variant]),
            cluster: [shares, 1, 1],
            ..Shape::early([blocks * shares, 1, 1], 256)
        };
        // SAFETY: the caller vouches for the operands. W lay there before the step; what the kernels before it make it
        // waits for.
        unsafe { self.gpu.launch(&self.kernels.product[variant], &self.gpu.compute, shape, &args) }
    }

    /// Blocks that share K, so that all multiprocessors read: all blocks at once if K is cut in four, two turns in two.
    fn shares(&self, blocks: usize) -> usize {
        let room = 2 * self.gpu.probe.multiprocessors;
        if blocks * MOST_SHARES <= room {
            MOST_SHARES
        } else if blocks <= room {
            2
        } else {
            1
        }
    }
}

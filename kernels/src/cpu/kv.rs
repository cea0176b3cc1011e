//! The paged KV cache, laid out so that both products of attention stream it as they stream weights.
//!
//! In a block and head, K lies in panels of one vector over keys, `[keys / lanes][d / pair][lanes][pair]`, and V has
//! pairs of keys side by side, `[keys / pair][d][pair]`.

use crate::args::KvShape;
use crate::error::{KernelError, Result};

use super::isa::Layout;
use super::memory::Memory;

/// K and V of all layers.
#[derive(Debug)]
pub struct CpuKvCache {
    memory: Memory,
    pub(crate) shape: KvShape,
    pub(crate) geometry: Geometry,
    w_size: usize,
}

/// Where things lie in a layer of the cache, in elements of `W`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) block_size: usize,
    pub(crate) head_dim: usize,
    /// Lanes of a panel of K.
    pub(crate) lanes: usize,
    pub(crate) pair: usize,
    /// Panels of K in a block.
    pub(crate) groups: usize,
    /// Steps of `q · k`.
    pub(crate) steps: usize,
    /// `head_dim` rounded up to whole vectors: a row of V.
    pub(crate) v_width: usize,
    kv_heads: usize,
    k_len: usize,
    v_len: usize,
}

impl Geometry {
    fn new(shape: KvShape, layout: Layout) -> Self {
        let groups = shape.block_size.div_ceil(layout.lanes);
        let steps = layout.steps(shape.head_dim);
        let v_width = shape.head_dim.next_multiple_of(layout.lanes);
        Self {
            block_size: shape.block_size,
            head_dim: shape.head_dim,
            lanes: layout.lanes,
            pair: layout.pair,
            groups,
            steps,
            v_width,
            kv_heads: shape.kv_heads,
            k_len: groups * layout.lanes * steps * layout.pair,
            v_len: layout.steps(shape.block_size) * layout.pair * v_width,
        }
    }

    /// Elements of a head's K in a block.
    pub(crate) fn k_len(&self) -> usize {
        self.k_len
    }

    /// Elements of a head's V in a block.
    pub(crate) fn v_len(&self) -> usize {
        self.v_len
    }

    fn block_len(&self) -> usize {
        self.kv_heads * (self.k_len + self.v_len)
    }

    /// K of a head in a block.
    pub(crate) fn k(&self, block: usize, head: usize) -> usize {
        block * self.block_len() + head * (self.k_len + self.v_len)
    }

    /// V of a head in a block.
    pub(crate) fn v(&self, block: usize, head: usize) -> usize {
        self.k(block, head) + self.k_len
    }

    /// Elements of a panel of K.
    pub(crate) fn k_panel(&self) -> usize {
        self.steps * self.lanes * self.pair
    }

    /// The first step of the key at `offset` in its block, from where its block's K starts. Steps are
    /// `lanes * pair` apart.
    pub(crate) fn key(&self, offset: usize) -> usize {
        offset / self.lanes * self.k_panel() + offset % self.lanes * self.pair
    }

    /// The first element of the value at `offset` in its block, from where its block's V starts. Elements are `pair`
    /// apart.
    pub(crate) fn value(&self, offset: usize) -> usize {
        offset / self.pair * self.v_width * self.pair + offset % self.pair
    }
}

impl CpuKvCache {
    pub(crate) fn new(shape: KvShape, layout: Layout) -> Result<Self> {
        if shape.block_size == 0
            || shape.head_dim == 0
            || !shape.head_dim.is_multiple_of(layout.pair)
        {
            return Err(KernelError::Unsupported(format!("a KV cache of {shape:?}")));
        }
        let geometry = Geometry::new(shape, layout);
        let elements = shape.layers * shape.blocks * geometry.block_len();
        let memory = Memory::new(elements * layout.w_size, "KV cache")?;
        Ok(Self { memory, shape, geometry, w_size: layout.w_size })
    }

    fn layer_bytes(&self) -> usize {
        self.shape.blocks * self.geometry.block_len() * self.w_size
    }

    /// Address of a layer's first block.
    pub(crate) fn layer(&self, layer: usize) -> *const u8 {
        self.memory.as_ptr::<u8>().wrapping_add(layer * self.layer_bytes())
    }

    /// Address of a layer's first block, for writing.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> *mut u8 {
        let bytes = self.layer_bytes();
        self.memory.as_mut_ptr::<u8>().wrapping_add(layer * bytes)
    }
}

//! A sequence's share of the pool. It is moved back to the [`BlockManager`](super::BlockManager), never copied.

use super::{BlockHash, BlockId};

/// The blocks of one sequence, in order of position.
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
    /// Chain hash of each leading block that is full and indexed.
    pub(super) hashes: Vec<BlockHash>,
}

impl BlockTable {
    /// Block numbers, in order of position.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Blocks held.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        // Blocks that are dropped with their table would be lost to the pool.
        debug_assert!(
            self.blocks.is_empty() || std::thread::panicking(),
            "a block table was dropped with {} blocks",
            self.blocks.len()
        );
    }
}

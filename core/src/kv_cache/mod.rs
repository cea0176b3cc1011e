//! Which blocks hold whose keys and values. The tensors themselves live in the backend.
//!
//! What this module must never do: touch a device, or share a block between different adapters' generations or salts.

mod block_manager;
mod block_table;
mod prefix;

pub use block_manager::{BlockManager, BlockStats};
pub use block_table::BlockTable;
pub use prefix::{BlockHash, PrefixKey};

/// Number of a block in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

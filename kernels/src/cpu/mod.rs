//! The operations in SIMD on a thread pool.
//!
//! | module | holds |
//! |---|---|
//! | `backend` | [`CpuBackend`]: what it owns, and the trait |
//! | `linear`, `attend`, `sample` | the operations: how each is cut into tasks |
//! | `step`, `lora` | a step's metadata; its adapters' shrinks and expands |
//! | `product`, `shrink`, `expand`, `attention` | the large kernels, over register tiles (`tile`; `wide` for many rows) |
//! | `fetch` | what to ask the memory for while they compute |
//! | `heads`, `pointwise` | what follows a product, while it is in the cache |
//! | `int8` | products of 8-bit weights, in place of `tile`'s |
//! | `pack`, `adapter`, `kv`, `buffer` | layouts of weights, adapters, cache and activations |
//! | `isa`, `operands`, `simd` | instruction sets and element types; the door to vector code |
//! | [`probe`] | what this machine can do at most: reading and multiplying |
//! | `pool`, `memory`, `shared` | threads, huge pages, addresses that tasks share |
//!
//! Invariant: the order in which an output element is summed depends on shapes alone, not on rows, chunks, threads or
//! neighbours, so a token is bit-identical alone and in any batch.
//!
//! What it must never do: allocate in a step once it has seen its largest one, or wait for anything but its own threads.

mod adapter;
mod attend;
mod attention;
mod backend;
mod buffer;
mod expand;
mod fetch;
mod heads;
mod int8;
mod isa;
mod kv;
mod linear;
mod lora;
mod memory;
mod operands;
mod pack;
mod pointwise;
mod pool;
pub mod probe;
mod product;
mod sample;
mod shared;
mod shrink;
mod simd;
mod step;
mod tile;
mod wide;

pub use adapter::CpuAdapter;
pub use backend::{CpuBackend, CpuOptions, CpuTicket, CpuVector};
pub use buffer::CpuBuffer;
pub use isa::Isa;
pub use kv::CpuKvCache;
pub(crate) use memory::advise_huge_pages;
pub use pack::CpuLinear;

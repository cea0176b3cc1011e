//! Device operations of a decoder with segmented LoRA, behind one trait.
//!
//! | module | holds |
//! |---|---|
//! | [`backend`] | the trait [`Backend`]: eight operations that make a decoder layer |
//! | [`args`] | what the operations take: [`Step`], [`QkvOp`], [`SampleRow`], with shapes and units |
//! | [`weights`] | host tensors, LoRA weights and their packed form |
//! | [`sampling`] | the definition of a draw: penalties, temperature, truncation, seeded choice |
//! | [`mod@reference`] | plain loops in f32: the definition of every operation |
//! | [`cpu`] | the same operations in SIMD on a thread pool |
//! | [`cuda`] | the same operations on an NVIDIA GPU |
//!
//! What this crate must never do: know about requests, schedulers, files or tokenizers. A backend sees one step at a
//! time; its buffers are opaque to everyone else, so that they can live on a device.

pub mod args;
pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod reference;
pub mod sampling;
pub mod weights;

pub use args::{
    AttentionOp, AttentionShape, GatedMlpOp, KvShape, LoraSegment, Penalties, ProjectOp, QkNorm,
    QkvOp, RowToken, SampleRow, SampleTask, SamplingParams, SequenceSpan, Step, StepOutput,
};
pub use backend::{
    AdapterPacker, Backend, BufferKind, DeviceInfo, DeviceMemory, OpCounters, StepMode,
};
pub use error::{KernelError, Result};
pub use sampling::{Seen, SeenTokens};
pub use weights::{
    AdapterMemory, AlignedBytes, DType, HostData, HostTensor, INT8_BLOCK, Int8Blocks, LoraPart,
    LoraWeights, PackedAdapter, Part, SharedBytes, Site,
};

//! The trait that a device implements: weights go up once, then every step is eight kinds of fused operations.
//!
//! The operations are as large as a GPU wants them (a projection comes with its LoRA, its bias and what follows it), so
//! that each backend fuses in its own way. Between [`Backend::begin_step`] and [`Backend::end_step`] nothing is read
//! back to the host; a backend that captured a step of the same form may answer [`StepMode::Replay`], and the caller
//! then leaves the layers out.

use std::fmt::Debug;
use std::sync::Arc;

use crate::args::{
    AttentionOp, GatedMlpOp, KvShape, ProjectOp, QkvOp, SampleRow, Step, StepOutput,
};
use crate::error::Result;
use crate::weights::{AdapterMemory, DType, HostTensor, LoraWeights, PackedAdapter, Site};

/// What lives on the other side.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// For people: "cpu (avx512bf16, 2 threads)".
    pub name: String,
    /// Type of weights, operands and cache.
    pub dtype: DType,
}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Nobody has it.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// Which of the two kinds of activations a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferKind {
    /// The residual stream, always in f32 or as exact as the device can afford.
    Residual,
    /// Input of a matrix product, in the backend's dtype.
    Operand,
}

/// Whether the caller must issue the step's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepMode {
    /// Issue them.
    Issue,
    /// A captured graph runs them; go on with [`Backend::sample`].
    Replay,
}

/// How many operations a backend has run since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCounters {
    /// Steps begun.
    pub steps: u64,
    /// Shrinks (`x Aᵀ`), one a segment and site.
    pub lora_shrinks: u64,
    /// Expands (`h Bᵀ`), one a segment and part.
    pub lora_expands: u64,
}

/// Puts LoRA weights into a backend's own layout. Runs on loader threads, apart from the backend.
pub trait AdapterPacker: Debug + Send + Sync {
    /// Packs into bytes of `memory`, which may hold what another adapter left there; the adapter's shapes fit the model
    /// already.
    fn pack(
        &self,
        layers: usize,
        weights: &LoraWeights,
        memory: &AdapterMemory,
    ) -> Result<PackedAdapter>;
}

/// A device that runs decoder layers.
///
/// Invariant: the [`reference`](crate::reference) backend is the definition; every other one agrees with it within a
/// stated tolerance (`tests/parity.rs`). On the CPU an output element's reduction order does not depend on row count,
/// chunking or neighbouring rows.
pub trait Backend: Debug + Send + 'static {
    /// Activations `[max rows, width]`.
    type Buffer: Debug + Send;
    /// Weight `[out, in]` of a linear layer, packed, with its bias.
    type Linear: Debug + Send;
    /// Small constants: norm weights, rotation tables.
    type Vector: Debug + Send;
    /// Paged K and V of all layers.
    type KvCache: Debug + Send;
    /// An adapter resident on the device. Cloning shares it.
    type Adapter: Debug + Clone + Send + Sync;
    /// A step under way.
    type Ticket: Debug + Send;

    /// The device.
    fn device(&self) -> &DeviceInfo;

    /// The device's own memory; `None` where it shares the host's.
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    /// Operations run so far.
    fn counters(&self) -> OpCounters;

    /// Packs `parts`, stacked by rows, as one weight. `bias` holds one value a row.
    fn upload_linear(&mut self, parts: &[HostTensor], bias: Option<&[f32]>)
    -> Result<Self::Linear>;

    /// Tells which site of the model has a weight, before the first step. A backend that keeps something of adapters beside
    /// weights does so from the first step on then, and gives the same request the same bits whenever it comes.
    fn know_site(&mut self, _layer: usize, _site: Site, _weight: &Self::Linear) -> Result<()> {
        Ok(())
    }

    /// Puts constants on the device.
    fn upload_vector(&mut self, values: &[f32]) -> Result<Self::Vector>;

    /// Makes room for activations. What it holds before an operation has written to it is undefined.
    fn buffer(&mut self, kind: BufferKind, rows: usize, width: usize) -> Result<Self::Buffer>;

    /// Makes room for K and V.
    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::KvCache>;

    /// How to pack adapters for this backend, on other threads.
    fn packer(&self) -> Arc<dyn AdapterPacker>;

    /// Makes a packed adapter resident. Where it has to be copied, the copy may still be under way when this returns, and
    /// runs beside steps; a step with the adapter waits for it.
    fn upload_adapter(&mut self, adapter: &Arc<PackedAdapter>) -> Result<Self::Adapter>;

    /// Whether the adapter's copy has ended, well or not.
    fn has_arrived(&self, _adapter: &Self::Adapter) -> bool {
        true
    }

    /// Waits for the adapter's copy.
    fn wait_for_adapter(&self, _adapter: &Self::Adapter) -> Result<()> {
        Ok(())
    }

    /// Gives the device memory back that is kept for adapters to come. No step is under way.
    fn release_memory(&mut self) {}

    /// Takes the step's metadata; the slices are not needed afterwards. Tickets of steps before may still be out.
    fn begin_step(&mut self, step: &Step<'_, Self::Adapter>) -> Result<StepMode>;

    /// `residual[row] = table[token of row]`.
    fn embed(&mut self, table: &Self::Linear, residual: &mut Self::Buffer) -> Result<()>;

    /// `out = rms_norm(residual) * weight`, in f32: `x / sqrt(mean(x²) + eps)`.
    fn rms_norm(
        &mut self,
        residual: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// See [`QkvOp`].
    fn qkv(&mut self, op: QkvOp<'_, Self>) -> Result<()>;

    /// See [`AttentionOp`].
    fn attention(&mut self, op: AttentionOp<'_, Self>) -> Result<()>;

    /// See [`ProjectOp`].
    fn project(&mut self, op: ProjectOp<'_, Self>) -> Result<()>;

    /// See [`GatedMlpOp`].
    fn gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()>;

    /// Logits of the wanted rows (`x headᵀ`, f32) and what to do with them. `x` holds normed operands. Memory for
    /// logits is bounded, however many rows are wanted.
    fn sample(
        &mut self,
        head: &Self::Linear,
        x: &Self::Buffer,
        rows: &[SampleRow<'_>],
    ) -> Result<()>;

    /// Ends the step. Its results may still be on their way.
    fn end_step(&mut self) -> Result<Self::Ticket>;

    /// Whether the device is through with a step, well or not; where steps have ended when they are issued it always is.
    fn has_ended(&self, _ticket: &Self::Ticket) -> bool {
        true
    }

    /// Waits for a step and writes its results to `out`.
    fn wait(&mut self, ticket: Self::Ticket, out: &mut StepOutput) -> Result<()>;
}

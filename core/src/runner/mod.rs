//! From a step's plan to its tokens: rows, the model, the draws.
//!
//! What this module must never do: decide what runs, or look at a request's text.

mod batch;
mod model_runner;

use std::fmt::Debug;
use std::sync::Arc;

use loraplex_kernels::{OpCounters, StepOutput};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::scheduler::{Sequences, StepPlan};

pub use model_runner::ModelRunner;

/// Why a step did not start.
#[derive(Debug)]
pub struct StepError {
    /// What went wrong.
    pub error: Error,
    /// The generation that could not be had on the device, where that is all: what others do can be planned again.
    pub generation: Option<u64>,
}

impl<E: Into<Error>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self { error: error.into(), generation: None }
    }
}

/// Runs steps. Submission and collection are apart, so that a device may still be busy with one step when the next is
/// planned; collection is in the order of submission.
pub trait Runner: Debug + Send {
    /// Whether adapters are copied to the device before steps use them.
    fn copies_adapters(&self) -> bool;

    /// Begins to copy `adapters` to the device. A copy that cannot begin is tried again by the step that needs it, which
    /// then fails for the sequences that use it.
    fn copy_adapters(&mut self, adapters: &[Arc<Adapter>]);

    /// Adds to `arrived` the generations whose copies have ended since it was asked last; if `wait`, waits for one at
    /// least where any is under way.
    fn arrived_adapters(&mut self, wait: bool, arrived: &mut Vec<u64>);

    /// Starts a step.
    fn submit(&mut self, plan: &StepPlan, sequences: &Sequences) -> Result<(), StepError>;

    /// Whether the device is through with the oldest step under way.
    fn has_ended(&self) -> bool;

    /// Waits for the oldest step under way. `out` then holds one entry a sample: for each chunk of the plan its scores
    /// in order of position, then its draw.
    fn collect(&mut self, out: &mut StepOutput) -> Result<()>;

    /// Operations issued so far.
    fn counters(&self) -> OpCounters;

    /// Takes these generations off the device; no step under way uses them.
    fn evict(&mut self, generations: &[u64]);

    /// Gives the device memory back that is kept for adapters to come. No step is under way.
    fn release_memory(&mut self);

    /// Frees what the device holds of adapters that nobody else holds.
    fn release_unused_adapters(&mut self);
}

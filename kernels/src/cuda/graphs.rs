//! Captured steps: which forms of a step have a graph, and the one that is being recorded.
//!
//! A form runs as issued once, padded like its graph, so that whatever a library sets up at first use is there: that must
//! not happen while a graph is recorded. The second time it is recorded and run from the graph, from then on replayed.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::CUgraphInstantiate_flags_enum as Flags;
use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;

use super::error::Context as _;
use super::gpu::Gpu;
use super::memory::Workspace;
use super::stack::SLOT_RANKS;
use super::step::{Counts, StepState};
use crate::error::{KernelError, Result};
use crate::weights::Site;

/// What decides the launches of a step with one row a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    rows: usize,
    /// For each site the lanes that launches make room for; 0 leaves LoRA out.
    lanes: [usize; Site::ALL.len()],
    /// Slots below the weights that products give.
    stacked: usize,
}

impl Form {
    /// The form of a step that is padded to `rows` rows. Lanes are rounded up, so that ranks that are about the same
    /// share a graph.
    pub(super) fn of(step: &StepState, rows: usize) -> Self {
        let mut lanes = step.lanes;
        for (lanes, site) in lanes.iter_mut().zip(Site::ALL) {
            let parts = site.parts().len();
            if *lanes > 0 {
                // Products give all lanes of a slot, whatever the ranks.
                let ranks = if step.stacked > 0 { SLOT_RANKS } else { lanes.div_ceil(parts) };
                *lanes = ranks.next_power_of_two().max(16) * parts;
            }
        }
        Self { rows, lanes, stacked: step.stacked }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn lanes(&self) -> [usize; Site::ALL.len()] {
        self.lanes
    }
}

/// What begins with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The operations run as they are issued.
    Plain,
    /// So they do, padded.
    Warm(Form),
    /// They are recorded.
    Record(Form),
    /// They are there already.
    Replay(Form),
}

enum Stage {
    Seen,
    Ready(CudaGraph),
}

/// The graphs of a backend.
pub(super) struct Graphs {
    gpu: Arc<Gpu>,
    /// Ascending row counts that steps are padded to; none switches graphs off.
    sizes: Vec<usize>,
    stages: HashMap<Form, Stage>,
    /// The form of a step that runs as issued, and whose memory is there once it is through.
    warming: Option<Form>,
    recording: Option<Form>,
}

// SAFETY: graphs may be used from any thread, one at a time; the streams may too.
unsafe impl Send for Graphs {}

impl Debug for Graphs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graphs").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

impl Graphs {
    pub(super) fn new(gpu: &Arc<Gpu>, mut sizes: Vec<usize>) -> Self {
        sizes.sort_unstable();
        Self { gpu: gpu.clone(), sizes, stages: HashMap::new(), warming: None, recording: None }
    }

    /// The largest row count that is captured.
    pub(super) fn largest(&self) -> usize {
        self.sizes.last().copied().unwrap_or(0)
    }

    /// How a step starts; `most` is how many rows the buffers hold.
    pub(super) fn start(&mut self, step: &StepState, most: usize) -> Start {
        let size = self.sizes.iter().copied().find(|&size| size >= step.rows);
        let Some(size) = size.filter(|&size| step.rows > 0 && size <= most) else {
            return Start::Plain;
        };
        if !step.decodes_only() {
            return Start::Plain;
        }
        let form = Form::of(step, size);
        match self.stages.get(&form) {
            None => {
                self.warming = Some(form);
                Start::Warm(form)
            }
            Some(Stage::Seen) => Start::Record(form),
            Some(Stage::Ready(_)) => Start::Replay(form),
        }
    }

    /// Records what is issued from here on.
    pub(super) fn record(&mut self, form: Form) -> Result<()> {
        let begun = self.gpu.compute.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED);
        begun.during("beginning a graph")?;
        self.recording = Some(form);
        Ok(())
    }

    /// All of a step has been issued. If it was recorded it runs now.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let Some(form) = self.warming.take() {
            self.stages.insert(form, Stage::Seen);
        }
        let Some(form) = self.recording.take() else { return Ok(()) };
        let graph = self.gpu.compute.end_capture(Flags(0)).during("ending a graph")?;
        let graph =
            graph.ok_or_else(|| KernelError::Device("a graph without operations".into()))?;
        graph.launch().during("launching a graph")?;
        self.stages.insert(form, Stage::Ready(graph));
        Ok(())
    }

    /// Runs a form's graph. `false`: it was forgotten since the step began.
    pub(super) fn replay(&self, form: Form) -> Result<bool> {
        let Some(Stage::Ready(graph)) = self.stages.get(&form) else { return Ok(false) };
        graph.launch().during("launching a graph")?;
        Ok(true)
    }

    /// Forgets a step that was not finished.
    pub(super) fn abandon(&mut self) {
        self.warming = None;
        if self.recording.take().is_some() {
            // The capture is over whatever this says.
            let _ = self.gpu.compute.end_capture(Flags(0));
        }
    }

    /// Makes room of at least `bytes` bytes that graphs know the address of: where it moves, or is lost because there is no
    /// memory for more, they are forgotten.
    pub(super) fn make_room(
        &mut self,
        room: &mut Workspace,
        bytes: usize,
        what: &'static str,
    ) -> Result<()> {
        let moved = room.reserve(&self.gpu, bytes, what);
        if !matches!(moved, Ok(false)) {
            self.forget()?;
        }
        moved.map(|_| ())
    }

    /// Forgets all graphs, because memory that they use has moved.
    pub(super) fn forget(&mut self) -> Result<()> {
        if self.recording.is_some() {
            return Err(KernelError::Device("memory moved while a graph was recorded".into()));
        }
        if !self.stages.is_empty() {
            // One of them may run.
            self.gpu.synchronize()?;
            self.stages.clear();
        }
        Ok(())
    }
}

/// Items that the largest captured step may have.
pub(super) fn most_items(counts: Counts, largest: usize, split: usize) -> usize {
    counts.items.max(largest + split)
}

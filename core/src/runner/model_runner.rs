//! The runner over a real backend: the model's weights, its cache, and the adapters that are resident.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use loraplex_kernels::{
    Backend, KvShape, LoraSegment, OpCounters, SampleRow, StepMode, StepOutput,
};

use super::batch::{InputBatch, recycled, sample_rows};
use super::{Runner, StepError};
use crate::adapter::Adapter;
use crate::error::Result;
use crate::model::{Decoder, Workspace};
use crate::scheduler::{Sequences, StepPlan};

/// A decoder on a backend.
#[derive(Debug)]
pub struct ModelRunner<B: Backend> {
    backend: B,
    model: Decoder<B>,
    workspace: Workspace<B>,
    block_size: usize,
    batch: InputBatch,
    /// Empty between steps: the memory of what borrows from a step.
    segments: Vec<LoraSegment<'static, B::Adapter>>,
    samples: Vec<SampleRow<'static>>,
    residents: HashMap<u64, Resident<B>>,
    /// Generations whose copies have not been seen to end.
    coming: Vec<u64>,
    copies_adapters: bool,
    in_flight: VecDeque<B::Ticket>,
}

/// An adapter on the device. It does not keep the generation alive: that is what sequences and the registry do.
#[derive(Debug)]
struct Resident<B: Backend> {
    adapter: Weak<Adapter>,
    weights: B::Adapter,
}

impl<B: Backend> ModelRunner<B> {
    /// Room for steps of `max_rows` rows over a cache of shape `kv`.
    pub fn new(mut backend: B, model: Decoder<B>, kv: KvShape, max_rows: usize) -> Result<Self> {
        let workspace = Workspace::new(&mut backend, model.config(), kv, max_rows)?;
        let copies_adapters = backend.memory()?.is_some();
        Ok(Self {
            backend,
            model,
            workspace,
            block_size: kv.block_size,
            batch: InputBatch::default(),
            segments: Vec::new(),
            samples: Vec::new(),
            residents: HashMap::new(),
            coming: Vec::new(),
            copies_adapters,
            in_flight: VecDeque::new(),
        })
    }

    /// Has it copied unless it has been already, and waits for that. One whose copy failed is copied anew.
    fn make_resident(&mut self, adapter: &Arc<Adapter>) -> Result<()> {
        if let Some(resident) = self.residents.get_mut(&adapter.generation)
            && self.backend.wait_for_adapter(&resident.weights).is_ok()
        {
            if resident.adapter.strong_count() == 0 {
                // It has left host memory and is back.
                resident.adapter = Arc::downgrade(adapter);
            }
            return Ok(());
        }
        self.begin_copy(adapter)?;
        Ok(self.backend.wait_for_adapter(&self.residents[&adapter.generation].weights)?)
    }

    fn begin_copy(&mut self, adapter: &Arc<Adapter>) -> Result<()> {
        let weights = self.backend.upload_adapter(&adapter.packed)?;
        let resident = Resident { adapter: Arc::downgrade(adapter), weights };
        self.residents.insert(adapter.generation, resident);
        Ok(())
    }

    fn has_arrived(&self, generation: u64) -> bool {
        // One that nobody wanted any more has been dropped.
        let resident = self.residents.get(&generation);
        resident.is_none_or(|resident| self.backend.has_arrived(&resident.weights))
    }
}

/// Puts one segment for each run of chunks with the same adapter into `segments`.
fn segments<'a, B: Backend>(
    plan: &StepPlan,
    sequences: &Sequences,
    residents: &'a HashMap<u64, Resident<B>>,
    segments: &mut Vec<LoraSegment<'a, B::Adapter>>,
) {
    let (mut row, mut open) = (0, None);
    for chunk in &plan.chunks {
        let generation = sequences.get(chunk.slot).generation();
        match (generation, segments.last_mut()) {
            (Some(_), Some(last)) if open == generation => last.rows += chunk.rows as u32,
            (Some(generation), _) => segments.push(LoraSegment {
                adapter: &residents[&generation].weights,
                first_row: row,
                rows: chunk.rows as u32,
            }),
            (None, _) => {}
        }
        open = generation;
        row += chunk.rows as u32;
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn copies_adapters(&self) -> bool {
        self.copies_adapters
    }

    fn copy_adapters(&mut self, copies: &[Arc<Adapter>]) {
        for adapter in copies {
            self.coming.push(adapter.generation);
            if !self.residents.contains_key(&adapter.generation)
                && let Err(error) = self.begin_copy(adapter)
            {
                tracing::error!(adapter = adapter.name(), %error, "no copy on the device");
            }
        }
    }

    fn arrived_adapters(&mut self, wait: bool, arrived: &mut Vec<u64>) {
        let first = self.coming.first().and_then(|generation| self.residents.get(generation));
        if let Some(first) = first.filter(|_| wait) {
            // The step with the adapter tells what went wrong.
            let _ = self.backend.wait_for_adapter(&first.weights);
        }
        let mut coming = std::mem::take(&mut self.coming);
        coming.retain(|&generation| {
            let there = self.has_arrived(generation);
            if there {
                arrived.push(generation);
            }
            !there
        });
        self.coming = coming;
    }

    fn submit(&mut self, plan: &StepPlan, sequences: &Sequences) -> Result<(), StepError> {
        for chunk in &plan.chunks {
            // Those that came as copies are there; others are read where they lie, or found no room beside an older one.
            if let Some(adapter) = &sequences.get(chunk.slot).adapter {
                let there = self.make_resident(adapter);
                there.map_err(|error| {
                    let error = error.context(format_args!(
                        "LoRA adapter '{}' cannot be had on the device",
                        adapter.name()
                    ));
                    StepError { error, generation: Some(adapter.generation) }
                })?;
            }
        }
        self.batch.fill(plan, sequences, self.block_size);
        let mut lora = recycled(std::mem::take(&mut self.segments));
        segments(plan, sequences, &self.residents, &mut lora);
        let mode = self.backend.begin_step(&self.batch.step::<B>(&lora))?;
        self.segments = recycled(lora);
        if mode == StepMode::Issue {
            self.model.forward(&mut self.backend, &mut self.workspace)?;
        }
        let mut samples = recycled(std::mem::take(&mut self.samples));
        sample_rows(plan, sequences, &mut samples);
        self.backend.sample(self.model.head(), self.workspace.normed(), &samples)?;
        self.samples = recycled(samples);
        let ticket = self.backend.end_step()?;
        self.in_flight.push_back(ticket);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.in_flight.front().is_none_or(|ticket| self.backend.has_ended(ticket))
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<()> {
        let ticket = self.in_flight.pop_front().expect("collect follows submit");
        Ok(self.backend.wait(ticket, out)?)
    }

    fn counters(&self) -> OpCounters {
        self.backend.counters()
    }

    fn evict(&mut self, generations: &[u64]) {
        for generation in generations {
            self.residents.remove(generation);
        }
    }

    fn release_memory(&mut self) {
        self.backend.release_memory();
    }

    fn release_unused_adapters(&mut self) {
        self.residents.retain(|_, resident| resident.adapter.strong_count() > 0);
    }
}

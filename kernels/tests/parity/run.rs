//! Runs a plan on a backend and reads every row's log-probabilities.

use std::collections::{BTreeMap, HashMap};

use loraplex_kernels::{
    Backend, LoraSegment, OpCounters, RowToken, SampleRow, SampleTask, SamplingParams,
    SequenceSpan, Step,
};

use crate::case::Case;
use crate::device::Device;
use crate::plan::{Chunk, Plan};
use crate::world::{Probe, World};

/// What to run and where to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) case: &'a Case,
    pub(crate) world: &'a World,
    pub(crate) plan: &'a Plan,
    pub(crate) probe: Probe,
    /// How the row at a place draws; `None` forces the world's token by a bias, or scores it.
    pub(crate) draws: Option<fn(Place) -> SamplingParams<'static>>,
}

/// Sequence and position.
pub(crate) type Place = (usize, usize);

/// What a row gave.
#[derive(Debug, Clone)]
pub(crate) struct RowOutput {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) rank: u32,
    /// Of the whole vocabulary.
    pub(crate) logprobs: Vec<f32>,
}

pub(crate) type Outputs = BTreeMap<Place, RowOutput>;

/// The best token.
pub(crate) const fn greedy(bias: &[(u32, f32)]) -> SamplingParams<'_> {
    SamplingParams { bias, ..SamplingParams::GREEDY }
}

/// Runs a job on a fresh backend.
pub(crate) fn run_case<B: Backend>(make: impl Fn() -> B, job: &Job<'_>) -> (Outputs, OpCounters) {
    let tables = block_tables(job.case);
    // Two blocks belong to nobody.
    let blocks = tables.iter().map(Vec::len).sum::<usize>() + 2;
    let rows = job.plan.max_rows();
    let mut device = Device::new(make(), (job.case, job.world), rows, blocks);
    let before = device.backend.counters();
    let mut outputs = Outputs::new();
    let mut drawn = HashMap::new();
    let mut pending = None;
    for chunks in &job.plan.steps {
        let rows = StepRows::new(job, chunks, &tables, &drawn);
        let ticket = rows.submit(job, &mut device);
        drawn = rows.drawn();
        let ready = if job.case.one_behind {
            pending.replace((ticket, rows))
        } else {
            Some((ticket, rows))
        };
        if let Some((ticket, rows)) = ready {
            rows.collect(job, &mut device, ticket, &mut outputs);
        }
    }
    if let Some((ticket, rows)) = pending {
        rows.collect(job, &mut device, ticket, &mut outputs);
    }
    let after = device.backend.counters();
    let counters = OpCounters {
        steps: after.steps - before.steps,
        lora_shrinks: after.lora_shrinks - before.lora_shrinks,
        lora_expands: after.lora_expands - before.lora_expands,
    };
    (outputs, counters)
}

/// Blocks of every sequence, scattered over the pool.
fn block_tables(case: &Case) -> Vec<Vec<u32>> {
    let counts: Vec<usize> =
        case.lives.iter().map(|life| life.tokens().div_ceil(case.block_size)).collect();
    let total = counts.iter().sum::<usize>() + 2;
    // A stride that shares no factor with the total visits each block once.
    let stride = (total / 2 + 1..).find(|stride| gcd(*stride, total) == 1).unwrap();
    let mut pool = (0..total).map(|i| ((i * stride + 1) % total) as u32);
    counts.into_iter().map(|count| pool.by_ref().take(count).collect()).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The rows of one step, in order.
#[derive(Debug, Default)]
struct StepRows {
    places: Vec<Place>,
    tokens: Vec<RowToken>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    sequences: Vec<SequenceSpan>,
    block_tables: Vec<u32>,
    /// Adapter, first row, rows.
    segments: Vec<(usize, u32, u32)>,
    /// Whether the row is the last of its chunk and draws the next token.
    draws: Vec<bool>,
}

impl StepRows {
    fn new(
        job: &Job<'_>,
        chunks: &[Chunk],
        tables: &[Vec<u32>],
        drawn: &HashMap<Place, u32>,
    ) -> Self {
        let mut chunks = chunks.to_vec();
        if job.case.sorted {
            chunks.sort_by_key(|chunk| job.world.adapter_of[chunk.sequence]);
        }
        let mut rows = Self::default();
        for chunk in &chunks {
            rows.add(job, chunk, &tables[chunk.sequence], drawn);
        }
        rows
    }

    fn add(&mut self, job: &Job<'_>, chunk: &Chunk, table: &[u32], drawn: &HashMap<Place, u32>) {
        let Chunk { sequence, first, rows } = *chunk;
        let first_row = self.places.len() as u32;
        self.sequences.push(SequenceSpan {
            first_row,
            rows: rows as u32,
            context: first as u32,
            first_block: self.block_tables.len() as u32,
        });
        let size = job.case.block_size;
        // No more of the table than the step needs.
        self.block_tables.extend(&table[..(first + rows).div_ceil(size)]);
        for position in first..first + rows {
            let known = RowToken::Known(job.world.tokens[sequence][position]);
            let before = position.checked_sub(1).and_then(|p| drawn.get(&(sequence, p)));
            // Tokens of every other sequence come from the step before without a visit to the host.
            let sampled = before.filter(|_| sequence % 2 == 0).map(|&row| RowToken::Sampled(row));
            self.tokens.push(sampled.unwrap_or(known));
            self.places.push((sequence, position));
            self.positions.push(position as u32);
            self.slots.push(table[position / size] * size as u32 + (position % size) as u32);
            self.draws.push(position + 1 == first + rows);
        }
        let Some(adapter) = job.world.adapter_of[sequence] else { return };
        match self.segments.last_mut() {
            Some((last, start, count)) if *last == adapter && *start + *count == first_row => {
                *count += rows as u32;
            }
            _ => self.segments.push((adapter, first_row, rows as u32)),
        }
    }

    /// Sample rows come in reverse, so that they are not mistaken for rows of the step.
    fn sample_index(&self, row: usize) -> usize {
        self.places.len() - 1 - row
    }

    /// The sample row of each place that draws.
    fn drawn(&self) -> HashMap<Place, u32> {
        let rows = self.places.iter().enumerate().filter(|(row, _)| self.draws[*row]);
        rows.map(|(row, &place)| (place, self.sample_index(row) as u32)).collect()
    }

    fn submit<B: Backend>(&self, job: &Job<'_>, device: &mut Device<B>) -> B::Ticket {
        let adapters = device.adapters.clone();
        let segments: Vec<LoraSegment<'_, B::Adapter>> = self
            .segments
            .iter()
            .map(|&(adapter, first_row, rows)| {
                let adapter = &adapters[adapter];
                LoraSegment { adapter, first_row, rows }
            })
            .collect();
        let step = Step {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            sequences: &self.sequences,
            block_tables: &self.block_tables,
            lora: &segments,
        };
        let mode = device.backend.begin_step(&step).unwrap();
        let next = |&(sequence, position): &Place| job.world.tokens[sequence][position + 1];
        let biases: Vec<[(u32, f32); 1]> =
            self.places.iter().map(|place| [(next(place), 1e4)]).collect();
        let sample_row = |row: usize| {
            let place = self.places[row];
            let task = match job.draws {
                Some(draws) => SampleTask::Draw(draws(place)),
                None if self.draws[row] => SampleTask::Draw(greedy(&biases[row])),
                None => SampleTask::Score(next(&place)),
            };
            SampleRow { row: row as u32, task, logprobs: Some(job.case.shape.vocab as u32) }
        };
        let rows: Vec<SampleRow<'_>> = (0..self.places.len()).rev().map(sample_row).collect();
        device.issue(mode, job.probe, &rows);
        device.backend.end_step().unwrap()
    }

    fn collect<B: Backend>(
        &self,
        job: &Job<'_>,
        device: &mut Device<B>,
        ticket: B::Ticket,
        outputs: &mut Outputs,
    ) {
        device.backend.wait(ticket, &mut device.output).unwrap();
        let output = &device.output;
        assert_eq!(output.tokens.len(), self.places.len());
        for (row, &place) in self.places.iter().enumerate() {
            let index = self.sample_index(row);
            let mut logprobs = vec![f32::NAN; job.case.shape.vocab];
            let top = output.top_of(index);
            assert!(top.is_sorted_by(|a, b| a.1 >= b.1), "{}: best first", job.case.name);
            for &(token, logprob) in top {
                logprobs[token as usize] = logprob;
            }
            let (token, logprob, rank) =
                (output.tokens[index], output.logprobs[index], output.ranks[index]);
            outputs.insert(place, RowOutput { token, logprob, rank, logprobs });
        }
    }
}

//! The loop of an engine with one step in flight, and what it measures.

use std::fmt::Write as _;
use std::time::Instant;

use loraplex_kernels::cuda::{Adapter, CudaBackend};
use loraplex_kernels::{
    Backend, LoraSegment, Result, RowToken, SampleRow, SampleTask, SamplingParams, SequenceSpan,
    Site, Step, StepMode, StepOutput,
};

use crate::model::{BLOCK, Model, adapter};

const PROMPT: usize = 128;
const DECODES: usize = 128;
/// How often each cell is measured, in turns with those beside it.
const TURNS: usize = 3;
/// The same where a few parts in a thousand matter.
const IDLE_TURNS: usize = 9;
/// Prompts of a step, at least, and how often one is measured.
const LEAST_PROMPTS: usize = 4;
const PROMPT_TURNS: usize = 9;
/// Decode steps before the clock counts.
const WARM: usize = 8;
const ROWS: usize = 8192;
const LONG_PROMPT: usize = 2048;
const LONG_BATCH: usize = 16;
const BATCHES: [usize; 6] = [1, 8, 32, 64, 128, 256];
const DISTINCT: [usize; 5] = [0, 1, 8, 32, 64];
const RANK: usize = 16;

pub(crate) struct Bench {
    backend: CudaBackend,
    model: Model,
    adapters: Vec<Adapter>,
}

/// What room for adapters costs steps without any, which find the fastest algorithms for themselves.
pub(crate) fn idle(with: &mut Bench, without: &mut Bench, batch: usize) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..IDLE_TURNS {
        times[0].push(with.decode(batch, 0, DECODES)?);
        times[1].push(without.decode(batch, 0, DECODES)?);
    }
    let [with, without] = times.map(|mut times| median(&mut times));
    let share = without / with;
    println!("idle {batch:3} rows {with:7.3} ms, {without:.3} without room: {share:.4}");
    Ok(())
}

/// Rows of one sequence in a step.
#[derive(Clone, Copy)]
struct Chunk {
    sequence: usize,
    first: usize,
    rows: usize,
}

impl Bench {
    pub(crate) fn new(mut backend: CudaBackend, sites: &[Site]) -> Result<Self> {
        let start = Instant::now();
        let positions = LONG_PROMPT.max(PROMPT + DECODES) + BLOCK;
        let short = BATCHES[BATCHES.len() - 1] * (PROMPT + DECODES + BLOCK);
        let tokens = short.max(LONG_BATCH * positions);
        let model = Model::new(&mut backend, ROWS, tokens / BLOCK, positions)?;
        println!("weights after {:.1} s", start.elapsed().as_secs_f64());
        let packed = adapter(&backend, RANK, sites)?;
        let most = DISTINCT[DISTINCT.len() - 1];
        let start = Instant::now();
        let adapters =
            (0..most).map(|_| backend.upload_adapter(&packed)).collect::<Result<Vec<_>>>()?;
        let each = start.elapsed().as_secs_f64() * 1e3 / most as f64;
        println!("{most} adapters of {} bytes, {each:.1} ms each", packed.bytes.len());
        Ok(Self { backend, model, adapters })
    }

    /// All cells as JSON.
    pub(crate) fn run(&mut self) -> Result<String> {
        let mut json = format!(
            "{{\n\"device\": \"{}\",\n\"weight_bytes\": {},\n\"decode\": [",
            self.backend.device().name,
            Model::bytes()
        );
        let mut comma = "";
        for batch in BATCHES {
            let distinct: Vec<_> = DISTINCT.into_iter().filter(|&n| n <= batch).collect();
            let times = self.in_turns(batch, &distinct)?;
            let base = times[0];
            for (distinct, ms) in distinct.into_iter().zip(times) {
                let (rate, share) = (batch as f64 / ms * 1e3, base / ms);
                println!(
                    "decode {batch:3} rows {distinct:2} adapters {ms:7.3} ms {rate:7.0} tokens/s {share:.3} of base"
                );
                let _ = write!(
                    json,
                    "{comma}\n{{\"batch\": {batch}, \"adapters\": {distinct}, \"step_ms\": {ms:.4}, \
                     \"tokens_per_s\": {rate:.1}, \"share_of_base\": {share:.4}}}"
                );
                comma = ",";
            }
        }
        json += "\n],\n\"prefill\": [";
        comma = "";
        for distinct in [0, 1, 8] {
            // The first run chooses algorithms for its shapes.
            self.prefill(LONG_BATCH, LONG_PROMPT, distinct)?;
            let seconds = self.prefill(LONG_BATCH, LONG_PROMPT, distinct)?;
            let rate = (LONG_BATCH * LONG_PROMPT) as f64 / seconds;
            println!(
                "prefill {LONG_BATCH} x {LONG_PROMPT}, {distinct} adapters: {rate:.0} tokens/s"
            );
            let _ =
                write!(json, "{comma}\n{{\"adapters\": {distinct}, \"tokens_per_s\": {rate:.1}}}");
            comma = ",";
        }
        json += "\n]\n}\n";
        Ok(json)
    }

    /// What the adapters of these sites cost, at a few batches.
    pub(crate) fn costs(&mut self) -> Result<()> {
        for cell in [(1, 1), (8, 8), (32, 1), (32, 32), (64, 64)] {
            self.cost(cell)?;
        }
        Ok(())
    }

    /// What they cost with `distinct` of them over `batch` rows.
    pub(crate) fn cost(&mut self, (batch, distinct): (usize, usize)) -> Result<()> {
        let times = self.in_turns(batch, &[0, distinct])?;
        let (base, ms) = (times[0], times[1]);
        println!(
            "decode {batch:3} rows {distinct:2} adapters {ms:7.3} ms, {:+.3} ms, {:.3} of base",
            ms - base,
            base / ms
        );
        Ok(())
    }

    /// Median milliseconds of a step for each number of adapters. In turns, since clocks drift.
    fn in_turns(&mut self, batch: usize, distinct: &[usize]) -> Result<Vec<f64>> {
        let mut times = vec![Vec::new(); distinct.len()];
        for _ in 0..TURNS {
            for (times, &distinct) in times.iter_mut().zip(distinct) {
                times.push(self.decode(batch, distinct, DECODES)?);
            }
        }
        Ok(times.iter_mut().map(|times| median(times)).collect())
    }

    /// Seconds for prompts of `batch` sequences, in steps of at most [`ROWS`] rows.
    fn prefill(&mut self, batch: usize, prompt: usize, distinct: usize) -> Result<f64> {
        let start = Instant::now();
        let mut chunks = Vec::new();
        let mut rows = 0;
        let mut output = StepOutput::default();
        for sequence in 0..batch {
            chunks.push(Chunk { sequence, first: 0, rows: prompt });
            rows += prompt;
            if rows + prompt > ROWS || sequence + 1 == batch {
                let ticket = self.submit(&chunks, (batch, distinct), false)?;
                self.backend.wait(ticket, &mut output)?;
                chunks.clear();
                rows = 0;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// What `distinct` adapters cost a step of `rows` rows of prompts, of which there are as many and at least four.
    pub(crate) fn prompts(&mut self, (rows, distinct): (usize, usize)) -> Result<()> {
        let count = distinct.max(LEAST_PROMPTS);
        let mut times = [Vec::new(), Vec::new()];
        for turn in 0..PROMPT_TURNS {
            for (times, distinct) in times.iter_mut().zip([0, distinct]) {
                let seconds = self.prefill(count, rows / count, distinct)?;
                // The first chooses algorithms, the second makes sure of their code.
                if turn > 1 {
                    times.push(seconds * 1e3);
                }
            }
        }
        let [base, ms] = times.map(|mut times| median(&mut times));
        let share = base / ms;
        println!(
            "prompts {rows:4} rows {distinct:2} adapters {ms:7.3} ms, base {base:.3}: {share:.3}"
        );
        Ok(())
    }

    /// Seconds for one step of long prompts.
    pub(crate) fn prefill_step(&mut self, distinct: usize) -> Result<f64> {
        self.prefill(ROWS / LONG_PROMPT, LONG_PROMPT, distinct)
    }

    /// Median milliseconds of a decode step.
    pub(crate) fn decode(&mut self, batch: usize, distinct: usize, steps: usize) -> Result<f64> {
        self.prefill(batch, PROMPT, distinct)?;
        let mut output = StepOutput::default();
        let mut pending = None;
        let mut gaps = Vec::new();
        let mut last = Instant::now();
        for step in 0..steps {
            let first = PROMPT + step;
            let chunks: Vec<Chunk> =
                (0..batch).map(|sequence| Chunk { sequence, first, rows: 1 }).collect();
            // The step before the first was the last of the prompts, perhaps of some only.
            let ticket = self.submit(&chunks, (batch, distinct), step > 0)?;
            if let Some(before) = pending.replace(ticket) {
                self.backend.wait(before, &mut output)?;
                if step > WARM.min(steps / 2) {
                    gaps.push(last.elapsed().as_secs_f64() * 1e3);
                }
                last = Instant::now();
            }
        }
        if let Some(before) = pending {
            self.backend.wait(before, &mut output)?;
        }
        Ok(median(&mut gaps))
    }

    /// Submits chunks that draw greedily. Adapters go over the batch in equal neighbourhoods.
    fn submit(
        &mut self,
        chunks: &[Chunk],
        (batch, distinct): (usize, usize),
        sampled: bool,
    ) -> Result<<CudaBackend as Backend>::Ticket> {
        let mut step = StepRows::default();
        let prompt = chunks.iter().map(|chunk| chunk.rows).max().unwrap_or(0);
        let length = prompt.max(PROMPT + DECODES);
        let blocks = length / BLOCK + 1;
        for chunk in chunks {
            step.add(*chunk, blocks, sampled);
        }
        let mut segments: Vec<LoraSegment<'_, Adapter>> = Vec::new();
        for (chunk, span) in chunks.iter().zip(&step.spans).filter(|_| distinct > 0) {
            let adapter = &self.adapters[chunk.sequence * distinct / batch];
            match segments.last_mut() {
                Some(last) if std::ptr::eq(last.adapter, adapter) => last.rows += span.rows,
                _ => segments.push(LoraSegment {
                    adapter,
                    first_row: span.first_row,
                    rows: span.rows,
                }),
            }
        }
        let mode = self.backend.begin_step(&Step {
            tokens: &step.tokens,
            positions: &step.positions,
            slots: &step.slots,
            sequences: &step.spans,
            block_tables: &step.tables,
            lora: &segments,
        })?;
        if mode == StepMode::Issue {
            self.model.forward(&mut self.backend)?;
        }
        let last_row = |span: &SequenceSpan| span.first_row + span.rows - 1;
        let draws: Vec<SampleRow<'_>> = step
            .spans
            .iter()
            .map(|span| SampleRow {
                row: last_row(span),
                task: SampleTask::Draw(SamplingParams::GREEDY),
                logprobs: None,
            })
            .collect();
        let (head, x) = self.model.head();
        self.backend.sample(head, x, &draws)?;
        self.backend.end_step()
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[derive(Default)]
struct StepRows {
    tokens: Vec<RowToken>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<SequenceSpan>,
    tables: Vec<u32>,
}

impl StepRows {
    /// Adds rows of a sequence that owns `blocks` neighbouring blocks.
    fn add(&mut self, chunk: Chunk, blocks: usize, sampled: bool) {
        let Chunk { sequence, first, rows } = chunk;
        self.spans.push(SequenceSpan {
            first_row: self.tokens.len() as u32,
            rows: rows as u32,
            context: first as u32,
            first_block: self.tables.len() as u32,
        });
        let own = sequence * blocks;
        self.tables.extend((own..own + (first + rows).div_ceil(BLOCK)).map(|block| block as u32));
        for position in first..first + rows {
            let known = ((sequence * 7919 + position * 104_729) % 128_000) as u32;
            self.tokens.push(if sampled {
                RowToken::Sampled(sequence as u32)
            } else {
                RowToken::Known(known)
            });
            self.positions.push(position as u32);
            self.slots.push((own * BLOCK + position) as u32);
        }
    }
}

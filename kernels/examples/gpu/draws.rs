//! Times what ends a decode step, alone: the head's product and a draw from each row.

use std::time::Instant;

use loraplex_kernels::cuda::{Buffer, CudaBackend, Linear, Vector};
use loraplex_kernels::{
    Backend, BufferKind, Penalties, Result, RowToken, SampleRow, SampleTask, SamplingParams,
    SeenTokens, SequenceSpan, Step, StepOutput,
};

const HIDDEN: usize = 4096;
const VOCABULARY: usize = 128_256;
const BATCHES: [usize; 3] = [1, 64, 256];
/// Steps before the clock counts, and those that it counts; fewer where the host draws.
const STEPS: [usize; 2] = [10, 40];
const HOST_STEPS: [usize; 2] = [2, 8];
/// More best tokens than the device reports: the host draws such rows.
const HOST_TOP: u32 = 65;

struct Head {
    backend: CudaBackend,
    table: Linear,
    head: Linear,
    norm: Vector,
    residual: Buffer,
    x: Buffer,
}

/// Prints milliseconds of a step by what its rows want.
pub(crate) fn run(mut backend: CudaBackend) -> Result<()> {
    let rows = BATCHES[BATCHES.len() - 1];
    let amplitude = (3.0 / HIDDEN as f32).sqrt();
    let mut head = Head {
        table: backend.random_linear(&[VOCABULARY], HIDDEN, amplitude, 1)?,
        // Logits with a standard deviation of 3.
        head: backend.random_linear(&[VOCABULARY], HIDDEN, 3.0 * amplitude, 2)?,
        norm: backend.upload_vector(&[1.0; HIDDEN])?,
        residual: backend.buffer(BufferKind::Residual, rows, HIDDEN)?,
        x: backend.buffer(BufferKind::Operand, rows, HIDDEN)?,
        backend,
    };
    let prompt: Vec<u32> = (0..1000).map(|i| i * 97).collect();
    let output: Vec<u32> = (0..500).map(|i| i * 211).collect();
    let mut seen = SeenTokens::of_prompt(&prompt);
    output.iter().for_each(|&token| seen.push(token));
    let seen = seen.as_slice();
    let penalties = Penalties { repetition: 1.1, presence: 0.2, frequency: 0.1, seen, own: false };
    let greedy = SamplingParams::GREEDY;
    let plain = SamplingParams { temperature: 1.0, ..greedy };
    let both = SamplingParams { top_k: 50, top_p: 0.9, ..plain };
    let penalised = SamplingParams { penalties: Some(penalties), ..plain };
    let nucleus = SamplingParams { top_p: 0.9, ..plain };
    let kinds = [
        ("greedy", greedy, None),
        ("temperature 1", plain, None),
        ("temperature 1, logprobs", plain, Some(0)),
        ("temperature 1, 20 best", plain, Some(20)),
        ("temperature 0.7", SamplingParams { temperature: 0.7, ..plain }, None),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..plain }, None),
        ("top-p 0.9", nucleus, None),
        ("top-k 50, top-p 0.9", both, None),
        ("1500 penalties", penalised, None),
        ("1500 penalties, logprobs", penalised, Some(0)),
        ("on the host: temperature 1", plain, Some(HOST_TOP)),
        ("on the host: top-k 50, top-p 0.9", both, Some(HOST_TOP)),
        ("on the host: 1500 penalties", penalised, Some(HOST_TOP)),
    ];
    for batch in BATCHES {
        let mut base = f64::NAN;
        for (name, params, logprobs) in kinds {
            let ms = head.time(batch, params, logprobs)?;
            if name == "greedy" {
                base = ms;
            }
            println!("draw {batch:3} rows {name:34} {ms:8.3} ms, {:+8.3} to greedy", ms - base);
        }
    }
    Ok(())
}

impl Head {
    /// Median milliseconds of a step, with one step in flight.
    fn time(
        &mut self,
        batch: usize,
        params: SamplingParams<'_>,
        logprobs: Option<u32>,
    ) -> Result<f64> {
        let sequence =
            |row: u32| SequenceSpan { first_row: row, rows: 1, context: 0, first_block: row };
        let sequences: Vec<SequenceSpan> = (0..batch as u32).map(sequence).collect();
        let blocks: Vec<u32> = (0..batch as u32).collect();
        let (mut output, mut pending) = (StepOutput::default(), None);
        let (mut gaps, mut last) = (Vec::new(), Instant::now());
        let [warm, counted] = if logprobs == Some(HOST_TOP) { HOST_STEPS } else { STEPS };
        for step in 0..warm + counted {
            let token = |row: u32| match step {
                0 => RowToken::Known(row),
                _ => RowToken::Sampled(row),
            };
            let tokens: Vec<RowToken> = (0..batch as u32).map(token).collect();
            self.backend.begin_step(&Step {
                tokens: &tokens,
                positions: &vec![0; batch],
                slots: &blocks,
                sequences: &sequences,
                block_tables: &blocks,
                lora: &[],
            })?;
            self.backend.embed(&self.table, &mut self.residual)?;
            self.backend.rms_norm(&self.residual, &self.norm, 1e-5, &mut self.x)?;
            let draw = |row: u32| {
                let params = SamplingParams { seed: row.into(), draw: step as u64, ..params };
                SampleRow { row, task: SampleTask::Draw(params), logprobs }
            };
            let rows: Vec<SampleRow<'_>> = (0..batch as u32).map(draw).collect();
            self.backend.sample(&self.head, &self.x, &rows)?;
            if let Some(before) = pending.replace(self.backend.end_step()?) {
                self.backend.wait(before, &mut output)?;
            }
            if step >= warm {
                gaps.push(last.elapsed().as_secs_f64() * 1e3);
            }
            last = Instant::now();
        }
        if let Some(before) = pending {
            self.backend.wait(before, &mut output)?;
        }
        gaps.sort_by(f64::total_cmp);
        Ok(gaps[gaps.len() / 2])
    }
}

//! A plan's rows as the backend takes them. Its memory is reused from step to step.

use loraplex_kernels::{
    Backend, LoraSegment, Penalties, RowToken, SampleRow, SampleTask, SamplingParams, SequenceSpan,
    Step,
};

use crate::scheduler::{Chunk, Sequence, Sequences, StepPlan};

/// Rows, positions, slots and block tables of one step.
#[derive(Debug, Default)]
pub(super) struct InputBatch {
    tokens: Vec<RowToken>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<SequenceSpan>,
    block_tables: Vec<u32>,
}

impl InputBatch {
    /// Takes the rows of `plan`.
    pub(super) fn fill(&mut self, plan: &StepPlan, sequences: &Sequences, block_size: usize) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.block_tables.clear();
        for chunk in &plan.chunks {
            let sequence = sequences.get(chunk.slot);
            let blocks = sequence.table.blocks();
            self.spans.push(SequenceSpan {
                first_row: self.tokens.len() as u32,
                rows: chunk.rows as u32,
                context: chunk.first as u32,
                first_block: self.block_tables.len() as u32,
            });
            self.block_tables.extend(blocks.iter().map(|block| block.0));
            for position in chunk.first..chunk.first + chunk.rows {
                let block = blocks[position / block_size].0 as usize;
                self.tokens.push(match chunk.follows {
                    Some(sample) => RowToken::Sampled(sample),
                    None => RowToken::Known(sequence.tokens[position]),
                });
                self.positions.push(position as u32);
                self.slots.push((block * block_size + position % block_size) as u32);
            }
        }
    }

    /// The step, with the adapters' rows.
    pub(super) fn step<'a, B: Backend>(
        &'a self,
        lora: &'a [LoraSegment<'a, B::Adapter>],
    ) -> Step<'a, B::Adapter> {
        Step {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            sequences: &self.spans,
            block_tables: &self.block_tables,
            lora,
        }
    }
}

/// Puts the rows of `plan` whose logits are wanted into `rows`, in the order that
/// [`Runner::collect`](super::Runner::collect) promises.
pub(super) fn sample_rows<'a>(
    plan: &StepPlan,
    sequences: &'a Sequences,
    rows: &mut Vec<SampleRow<'a>>,
) {
    rows.reserve(plan.chunks.iter().map(Chunk::samples).sum());
    let mut first_row = 0;
    for chunk in &plan.chunks {
        let sequence = sequences.get(chunk.slot);
        for position in chunk.scores.clone() {
            rows.push(SampleRow {
                row: (first_row + position - 1 - chunk.first) as u32,
                task: SampleTask::Score(sequence.tokens[position]),
                logprobs: sequence.prompt_logprobs,
            });
        }
        if chunk.draws {
            rows.push(SampleRow {
                row: (first_row + chunk.rows - 1) as u32,
                task: SampleTask::Draw(draw(sequence, chunk)),
                logprobs: sequence.params.logprobs,
            });
        }
        first_row += chunk.rows;
    }
}

/// An empty vector in the memory of `used`. A step's rows borrow from that step, so their vector cannot be kept as it
/// is; collecting an emptied vector into one of the same layout keeps the memory without `unsafe`.
pub(super) fn recycled<T, U>(mut used: Vec<T>) -> Vec<U> {
    used.clear();
    used.into_iter().map(|_| unreachable!("the vector was emptied")).collect()
}

/// How the token behind a chunk is drawn.
fn draw<'a>(sequence: &'a Sequence, chunk: &Chunk) -> SamplingParams<'a> {
    let params = &sequence.params;
    // The chunk's own token may not be there yet.
    let drawn = chunk.first + chunk.rows - sequence.prompt_len;
    let early = drawn < params.min_tokens as usize;
    SamplingParams {
        banned: if early { &sequence.banned } else { &[] },
        bias: &params.logit_bias,
        penalties: sequence.seen.as_ref().map(|seen| Penalties {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            seen: seen.as_slice(),
            own: chunk.follows.is_some(),
        }),
        temperature: params.temperature,
        min_p: params.min_p,
        top_k: params.top_k,
        top_p: params.top_p,
        seed: sequence.seed,
        draw: drawn as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_vector_keeps_its_memory() {
        let text = String::from("borrowed");
        let mut kept: Vec<&'static str> = Vec::with_capacity(100);
        let memory = kept.as_ptr();
        for _ in 0..3 {
            let mut rows: Vec<&str> = recycled(kept);
            rows.extend([text.as_str(); 100]);
            kept = recycled(rows);
            assert!(kept.is_empty());
            assert_eq!((kept.as_ptr(), kept.capacity()), (memory, 100));
        }
    }
}

//! What the operations of a step take and give: shapes and units in one place.
//!
//! A *row* is one token of one sequence in this step. Rows of a sequence are neighbours, in order of position; rows of
//! one adapter are neighbours too, so that a LoRA segment is a range.

use crate::backend::Backend;
use crate::sampling::{Sampled, Seen};

/// The token of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowToken {
    /// Known to the host.
    Known(u32),
    /// The token drawn by this sample row of the step before, which may still be on the device.
    Sampled(u32),
}

/// Everything about a step but the weights. Slices named "one a row" have the same length.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a, A> {
    /// One a row.
    pub tokens: &'a [RowToken],
    /// Position in its sequence, one a row.
    pub positions: &'a [u32],
    /// Where K and V of the row go, one a row: block × block size + offset in the block.
    pub slots: &'a [u32],
    /// Ordered by first row; together they cover all rows.
    pub sequences: &'a [SequenceSpan],
    /// Block numbers of all sequences, one table after the other.
    pub block_tables: &'a [u32],
    /// Disjoint, ordered by first row; rows in no segment use the base alone.
    pub lora: &'a [LoraSegment<'a, A>],
}

/// The rows of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceSpan {
    /// First row.
    pub first_row: u32,
    /// Number of rows: 1 for a decode, more for a chunk of a prompt.
    pub rows: u32,
    /// Tokens that lie in the KV cache already; the position of the first row.
    pub context: u32,
    /// Where the sequence's block table starts in [`Step::block_tables`].
    pub first_block: u32,
}

/// Neighbouring rows that use one adapter.
#[derive(Debug, Clone, Copy)]
pub struct LoraSegment<'a, A> {
    /// Resident on the backend's device.
    pub adapter: &'a A,
    /// First row.
    pub first_row: u32,
    /// Number of rows, at least 1.
    pub rows: u32,
}

/// Shape of a paged KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Heads of K and of V.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of K and V that one token takes over all layers.
    pub const fn elements_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim
    }
}

/// Shape of the attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of K and of V.
    pub kv_heads: usize,
    /// Elements a head, a multiple of 2.
    pub head_dim: usize,
    /// Multiplies `q · k`, above 0; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A row at position `p` sees positions over `p - window`; `None` sees all up to `p`.
    pub window: Option<u32>,
}

/// Norms of q and k over each head (Qwen3), before the rotation.
#[derive(Debug)]
pub struct QkNorm<'a, B: Backend + ?Sized> {
    /// `[head_dim]`, for every q head.
    pub q: &'a B::Vector,
    /// `[head_dim]`, for every k head.
    pub k: &'a B::Vector,
    /// Added to the mean square.
    pub eps: f32,
}

/// Projects to q, k and v with LoRA, norms, rotates, and writes k and v to the cache.
#[derive(Debug)]
pub struct QkvOp<'a, B: Backend + ?Sized> {
    /// Decoder layer, for the adapter's site and the cache.
    pub layer: usize,
    /// Heads.
    pub shape: AttentionShape,
    /// `[heads*d + 2*kv_heads*d, hidden]`: q, k, v stacked, with their bias if the model has one.
    pub weight: &'a B::Linear,
    /// Norms of q and k, if the model has them.
    pub norm: Option<QkNorm<'a, B>>,
    /// `[positions, d]`: `d/2` cosines, then `d/2` sines, for rotation of halves (`x[i]` with `x[i + d/2]`).
    pub rope: &'a B::Vector,
    /// Operand, `[rows, hidden]`.
    pub x: &'a B::Buffer,
    /// Operand, `[rows, heads*d]`.
    pub q: &'a mut B::Buffer,
    /// Takes k and v at the rows' slots.
    pub kv: &'a mut B::KvCache,
}

/// Causal attention of every row over its sequence's cached positions, its own included.
#[derive(Debug)]
pub struct AttentionOp<'a, B: Backend + ?Sized> {
    /// Decoder layer of the cache.
    pub layer: usize,
    /// Heads.
    pub shape: AttentionShape,
    /// Operand, `[rows, heads*d]`.
    pub q: &'a B::Buffer,
    /// Holds the rows' own k and v already.
    pub kv: &'a B::KvCache,
    /// Operand, `[rows, heads*d]`.
    pub out: &'a mut B::Buffer,
}

/// `residual += x Wᵀ + b + LoRA; normed = rms_norm(residual)`.
#[derive(Debug)]
pub struct ProjectOp<'a, B: Backend + ?Sized> {
    /// Decoder layer, for the adapter's site.
    pub layer: usize,
    /// [`Site::O`](crate::Site::O) or [`Site::Down`](crate::Site::Down).
    pub site: crate::Site,
    /// `[hidden, in]`
    pub weight: &'a B::Linear,
    /// Operand, `[rows, in]`.
    pub x: &'a B::Buffer,
    /// Residual, `[rows, hidden]`.
    pub residual: &'a mut B::Buffer,
    /// Weight of the norm that follows, `[hidden]`.
    pub norm: &'a B::Vector,
    /// Added to the mean square.
    pub eps: f32,
    /// Operand, `[rows, hidden]`.
    pub normed: &'a mut B::Buffer,
}

/// `out = silu(gate) * up`, with LoRA on both.
#[derive(Debug)]
pub struct GatedMlpOp<'a, B: Backend + ?Sized> {
    /// Decoder layer, for the adapter's site.
    pub layer: usize,
    /// `[2*ffn, hidden]`: gate, then up.
    pub weight: &'a B::Linear,
    /// Operand, `[rows, hidden]`.
    pub x: &'a B::Buffer,
    /// Operand, `[rows, ffn]`.
    pub out: &'a mut B::Buffer,
}

/// One row of the step whose logits are wanted.
#[derive(Debug, Clone, Copy)]
pub struct SampleRow<'a> {
    /// Row of the step.
    pub row: u32,
    /// Draw a token, or score a known one.
    pub task: SampleTask<'a>,
    /// How many of the best tokens to report beside the chosen one; `None` reports no log-probability at all.
    pub logprobs: Option<u32>,
}

impl SampleRow<'_> {
    /// Whether the draw depends on the row's own token beyond the logits.
    pub(crate) fn counts_own_token(&self) -> bool {
        match &self.task {
            SampleTask::Draw(params) => params.penalties.is_some_and(|penalties| penalties.own),
            SampleTask::Score(_) => false,
        }
    }
}

/// What to do with a row's logits.
#[derive(Debug, Clone, Copy)]
pub enum SampleTask<'a> {
    /// Draw the next token.
    Draw(SamplingParams<'a>),
    /// Report the log-probability of this token (prompt log-probabilities).
    Score(u32),
}

/// How to draw a token. The steps are applied in the order of the fields; [`crate::sampling`] is the definition.
#[derive(Debug, Clone, Copy)]
pub struct SamplingParams<'a> {
    /// Set to minus infinity: tokens that may not come yet (`min_tokens`).
    pub banned: &'a [u32],
    /// Added to the logits.
    pub bias: &'a [(u32, f32)],
    /// Repetition, presence and frequency.
    pub penalties: Option<Penalties<'a>>,
    /// Divides the logits; 0 takes the best token and ignores the fields below.
    pub temperature: f32,
    /// Keep tokens whose probability is at least `min_p` times the best one's; 0 keeps all.
    pub min_p: f32,
    /// Keep the `top_k` best; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of best tokens whose probability, among those left, reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// With `draw`, determines the random number: the same pair gives the same number in any batch.
    pub seed: u64,
    /// How many tokens this sequence has drawn before.
    pub draw: u64,
}

impl SamplingParams<'_> {
    /// The best token.
    pub const GREEDY: Self = Self {
        banned: &[],
        bias: &[],
        penalties: None,
        temperature: 0.0,
        min_p: 0.0,
        top_k: 0,
        top_p: 1.0,
        seed: 0,
        draw: 0,
    };
}

/// Penalties for tokens seen before, as OpenAI and Hugging Face define them.
#[derive(Debug, Clone, Copy)]
pub struct Penalties<'a> {
    /// Over 1: positive logits of seen tokens are divided by it, negative ones multiplied. 1 is none.
    pub repetition: f32,
    /// Subtracted once for each token that the output holds.
    pub presence: f32,
    /// Subtracted for each occurrence in the output.
    pub frequency: f32,
    /// Tokens of the prompt and of the output so far, each once; those of the prompt alone count for `repetition` alone.
    pub seen: &'a [Seen],
    /// Whether the row's own token counts as one more of the output: it was not known when `seen` was made.
    pub own: bool,
}

/// What a step's sample rows gave. Flat and reused from step to step, so that reading it allocates nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// One a sample row: the drawn token, or the scored one.
    pub tokens: Vec<u32>,
    /// One a sample row: the chosen token's log-probability under the unmodified logits; NaN where not asked for.
    pub logprobs: Vec<f32>,
    /// One a sample row: how many tokens are strictly more probable than the chosen one; 0 where not asked for.
    pub ranks: Vec<u32>,
    /// Best tokens with their log-probabilities, best first; ties go to the lower id. All rows, one after the other.
    pub top: Vec<(u32, f32)>,
    /// One a sample row: where its part of `top` ends; it starts where the one before ends.
    pub top_ends: Vec<u32>,
}

impl StepOutput {
    /// The best tokens of sample row `index`.
    pub fn top_of(&self, index: usize) -> &[(u32, f32)] {
        let start = if index == 0 { 0 } else { self.top_ends[index - 1] as usize };
        &self.top[start..self.top_ends[index] as usize]
    }

    /// Appends one sample row.
    pub fn push(&mut self, sampled: Sampled, top: &[(u32, f32)]) {
        self.tokens.push(sampled.token);
        self.logprobs.push(sampled.logprob);
        self.ranks.push(sampled.rank);
        self.top.extend_from_slice(top);
        self.top_ends.push(self.top.len() as u32);
    }

    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.logprobs.clear();
        self.ranks.clear();
        self.top.clear();
        self.top_ends.clear();
    }
}

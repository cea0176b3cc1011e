//! What a client asks of the engine and what it gets back, in tokens and text; no wire format.

use std::sync::Arc;

use crate::adapter::Adapter;

/// A validated request: every number is inside its bound, every token inside the vocabulary.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What it is aborted by; others may share them.
    pub ids: Vec<String>,
    /// At least one token, and room for one more in the model's length.
    pub prompt: Vec<u32>,
    /// `None` uses the base model. Holding it keeps this generation alive.
    pub adapter: Option<Arc<Adapter>>,
    /// How to draw tokens and when to stop.
    pub params: SamplingParams,
    /// How tokens become text.
    pub text: TextOptions,
    /// Prompts share cached prefixes only under the same salt.
    pub cache_salt: Option<String>,
    /// Lower runs earlier; ties by arrival.
    pub priority: i32,
    /// How many of the best tokens to report at each prompt position; `Some(0)` reports the prompt's own tokens.
    pub prompt_logprobs: Option<u32>,
    /// What happens when the adapter's name gets a new generation before the output ends.
    pub update_policy: UpdatePolicy,
}

/// What a request does when its adapter is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpdatePolicy {
    /// Finishes on the generation that it started with.
    #[default]
    Pin,
    /// Takes the new generation at its next token; keys and values of the old one stay in its cache.
    Follow,
}

/// The adapter's content that made a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The adapter's generation.
    pub generation: u64,
    /// The trainer's own version of it.
    pub policy_version: Option<u64>,
}

/// How to draw tokens and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// In [0, 1].
    pub min_p: f32,
    /// The same seed gives the same tokens, alone or in a batch; `None` draws a fresh one.
    pub seed: Option<u64>,
    /// In [-2, 2].
    pub presence_penalty: f32,
    /// In [-2, 2].
    pub frequency_penalty: f32,
    /// Over 0; 1 is none.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the best tokens to report beside each drawn one; `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Tokens to draw at most, at least 1; prompt and output together stay within the model's length.
    pub max_tokens: u32,
    /// End tokens and `stop_token_ids` cannot be drawn before this many, and no stop text ends the output within them.
    pub min_tokens: u32,
    /// Go on after the model's end token.
    pub ignore_eos: bool,
    /// Further tokens that end the output.
    pub stop_token_ids: Vec<u32>,
}

impl SamplingParams {
    /// Whether a draw depends on the tokens before it.
    pub(crate) fn is_penalised(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: None,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
        }
    }
}

/// How tokens become text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextOptions {
    /// Texts that end the output; what follows the first of them is cut.
    pub stop: Vec<String>,
    /// Keep the stop text in the output.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { stop: Vec::new(), include_stop: false, skip_special_tokens: true }
    }
}

/// The next piece of a request's output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// New text: whole characters only, so it may lag behind the tokens and may be empty.
    pub text: String,
    /// New tokens.
    pub tokens: Vec<OutputToken>,
    /// On the first piece, if asked for: one entry a prompt token, `None` for the first token.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Prompt tokens whose KV came from the prefix cache; on the first piece.
    pub cached_tokens: u32,
    /// Set on the last piece.
    pub finish: Option<Finish>,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputToken {
    /// The token.
    pub id: u32,
    /// If log-probabilities were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// The adapter's generation that drew it; `None` is the base.
    pub version: Option<Version>,
}

/// Log-probabilities at one position, under the model's unmodified distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token at this position.
    pub token: u32,
    /// Its own log-probability.
    pub logprob: f32,
    /// How many tokens are strictly more probable.
    pub rank: u32,
    /// The best tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// How an output ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Which stop applied, when it was one that the request named.
    pub stop: Option<StopReason>,
}

/// Why an output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end token, a stop token or a stop text.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// Somebody aborted it; the tokens so far are valid.
    Abort,
}

/// The stop that a request named and that applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

//! One request inside the engine: its tokens, its blocks, and how far it has come; and the table of all.

use std::sync::Arc;
use std::time::Instant;

use loraplex_kernels::SeenTokens;

use super::Slot;
use crate::adapter::Adapter;
use crate::kv_cache::{BlockTable, PrefixKey};
use crate::request::{
    FinishReason, GenerateRequest, SamplingParams, StopReason, UpdatePolicy, Version,
};

/// Names a sequence for as long as the engine runs; rising with arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// Waiting or running work. It owns its blocks and keeps its adapter's generation alive.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SeqId,
    /// What its request is aborted by.
    pub names: Vec<String>,
    /// When the engine took it.
    pub arrival: Instant,
    /// Lower runs earlier.
    pub priority: i32,
    /// Prompt, then output.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Leading tokens whose keys and values lie in its blocks.
    pub computed: usize,
    /// Leading prompt tokens whose log-probability has been reported.
    pub scored: usize,
    /// Its share of the cache.
    pub table: BlockTable,
    /// Under which its blocks are shared.
    pub key: PrefixKey,
    /// Keeps its cached blocks apart from those of other salts.
    salt: Option<String>,
    /// The generation that its tokens come from; `None` is the base.
    pub adapter: Option<Arc<Adapter>>,
    /// What happens when that gets a successor.
    pub update_policy: UpdatePolicy,
    /// It has seen two generations: its blocks are nobody else's from then on.
    pub mixed: bool,
    /// Since when it waits for room for its adapter.
    pub deferred_since: Option<Instant>,
    /// Requests that were admitted while it was deferred, beyond their adapters' share of the batch.
    pub overtaken: usize,
    /// It has waited for room for its adapter for long.
    pub impatient: bool,
    /// How to draw.
    pub params: SamplingParams,
    /// Its tokens counted, where penalties ask for that.
    pub seen: Option<SeenTokens>,
    /// Seeds its draws.
    pub seed: u64,
    /// Reported at each prompt position, if asked for.
    pub prompt_logprobs: Option<u32>,
    /// End tokens that stop it without a reason of the request's own; empty with `ignore_eos`.
    pub end_tokens: Arc<[u32]>,
    /// Tokens that cannot be drawn before `min_tokens`.
    pub banned: Vec<u32>,
    /// Prompt tokens found in the cache at the first admission.
    pub cached_tokens: usize,
    /// How often it has given its blocks back before its end.
    pub preemptions: u32,
}

/// Why and by which stop a sequence ended.
pub type Ending = (FinishReason, Option<StopReason>);

impl Sequence {
    /// A sequence for `request`. `seed` is used where the request brings none.
    pub fn new(
        id: SeqId,
        arrival: Instant,
        request: GenerateRequest,
        end_tokens: &Arc<[u32]>,
        seed: u64,
    ) -> Self {
        let params = request.params;
        let end_tokens =
            if params.ignore_eos { Arc::from([].as_slice()) } else { end_tokens.clone() };
        let banned = if params.min_tokens == 0 {
            Vec::new()
        } else {
            end_tokens.iter().chain(&params.stop_token_ids).copied().collect()
        };
        let generation = request.adapter.as_ref().map(|adapter| adapter.generation);
        let prompt_len = request.prompt.len();
        let seen = params.is_penalised().then(|| SeenTokens::of_prompt(&request.prompt));
        let mut tokens = request.prompt;
        tokens.reserve_exact(params.max_tokens as usize);
        Self {
            id,
            names: request.ids,
            arrival,
            priority: request.priority,
            tokens,
            prompt_len,
            computed: 0,
            // Nothing predicts the first token.
            scored: 1,
            table: BlockTable::default(),
            key: PrefixKey::new(generation, request.cache_salt.as_deref()),
            salt: request.cache_salt,
            adapter: request.adapter,
            update_policy: request.update_policy,
            mixed: false,
            deferred_since: None,
            overtaken: 0,
            impatient: false,
            seed: params.seed.unwrap_or(seed),
            params,
            seen,
            prompt_logprobs: request.prompt_logprobs,
            end_tokens,
            banned,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    /// Takes the token that it has drawn.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(seen) = &mut self.seen {
            seen.push(token);
        }
    }

    /// Tokens drawn so far.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Tokens whose keys and values are still to be computed; at least one while it lives.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The adapter's generation; `None` is the base.
    pub fn generation(&self) -> Option<u64> {
        self.adapter.as_ref().map(|adapter| adapter.generation)
    }

    /// What its next token comes from.
    pub fn version(&self) -> Option<Version> {
        self.adapter.as_ref().map(|adapter| Version {
            generation: adapter.generation,
            policy_version: adapter.policy_version,
        })
    }

    /// Whether `new` succeeds its adapter and it wants that.
    pub(super) fn follows(&self, new: &Adapter) -> bool {
        self.update_policy == UpdatePolicy::Follow
            && self.adapter.as_ref().is_some_and(|adapter| {
                adapter.generation < new.generation && adapter.name() == new.name()
            })
    }

    /// Goes on with `new`. What it has computed stays as it is.
    pub(super) fn take(&mut self, new: Arc<Adapter>) {
        self.mixed |= self.computed > 0 || !self.output().is_empty();
        self.key = PrefixKey::new(Some(new.generation), self.salt.as_deref());
        self.adapter = Some(new);
    }

    /// Whether its last token ends it.
    pub fn ending(&self, max_model_len: usize) -> Option<Ending> {
        let &last = self.output().last()?;
        if self.end_tokens.contains(&last) {
            return Some((FinishReason::Stop, None));
        }
        if self.params.stop_token_ids.contains(&last) {
            return Some((FinishReason::Stop, Some(StopReason::Token(last))));
        }
        self.is_full_after(0, max_model_len).then_some((FinishReason::Length, None))
    }

    /// Whether it may have no further token once it has `more` tokens more.
    pub(super) fn is_full_after(&self, more: usize, max_model_len: usize) -> bool {
        self.output().len() + more >= self.params.max_tokens as usize
            || self.tokens.len() + more >= max_model_len
    }
}

/// Sequences by [`Slot`]: their places stay while they live.
#[derive(Debug, Default)]
pub struct Sequences {
    entries: Vec<Option<Sequence>>,
    vacant: Vec<Slot>,
}

impl Sequences {
    /// The sequence at `slot`, which is occupied.
    pub fn get(&self, slot: Slot) -> &Sequence {
        self.entries[slot.0].as_ref().expect("a slot is occupied until its sequence ends")
    }

    /// The sequence at `slot`, unless it has ended.
    pub fn find(&self, slot: Slot) -> Option<&Sequence> {
        self.entries[slot.0].as_ref()
    }

    pub(super) fn find_mut(&mut self, slot: Slot) -> Option<&mut Sequence> {
        self.entries[slot.0].as_mut()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Sequence {
        self.entries[slot.0].as_mut().expect("a slot is occupied until its sequence ends")
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> Slot {
        match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot.0] = Some(sequence);
                slot
            }
            None => {
                self.entries.push(Some(sequence));
                Slot(self.entries.len() - 1)
            }
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Sequence {
        self.vacant.push(slot);
        self.entries[slot.0].take().expect("a slot is occupied until its sequence ends")
    }
}

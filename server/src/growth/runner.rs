//! One point: a batch of sequences on an engine in this process, and how long its steps take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use loraplex_core::{
    Adapter, GenerateRequest, Llm, LoraRequest, OutputStream, SamplingParams, TextOptions,
    UpdatePolicy,
};

use super::curve::{Kind, MOST_ROWS, OUTPUT};
use crate::bench::adapters;
use crate::bench::stats::median;

/// Tokens of a prompt, where the context is not what grows.
const PROMPT: usize = 4;
/// Ids below are special tokens in most vocabularies.
const FIRST_ID: usize = 10;

/// An engine with adapters for every point.
pub(super) struct Runner {
    llm: Llm,
    model: String,
    /// On all projections.
    full: PathBuf,
    /// As small as an adapter can be: so many of them must fit into memory.
    small: PathBuf,
    used: Vec<Arc<Adapter>>,
    /// How many small ones the registry holds.
    registered: usize,
}

impl Runner {
    pub(super) async fn new(llm: Llm, folder: &Path, model: &Path, rank: usize) -> Result<Self> {
        let shapes = adapters::shapes(model)?;
        let full = adapters::write_some(folder.join("full"), &shapes, (rank, 7), 1)?;
        let small = adapters::write_some(folder.join("small"), &shapes, (1, 1), 2)?;
        let name = model.file_name().unwrap_or(model.as_os_str());
        let model = name.to_string_lossy().into_owned();
        let mut runner = Self { llm, model, full, small, used: Vec::new(), registered: 0 };
        for index in 0..MOST_ROWS {
            let name = format!("full-{index}");
            let adapters = runner.llm.adapters();
            adapters.load(LoraRequest::new(&name, &runner.full)).await?;
            let adapter = adapters.get(&name).await?;
            runner.used.push(adapter);
        }
        Ok(runner)
    }

    pub(super) fn model(&self) -> String {
        self.model.clone()
    }

    pub(super) fn device(&self) -> String {
        self.llm.info().device.clone()
    }

    pub(super) fn max_model_len(&self) -> usize {
        self.llm.info().max_model_len
    }

    /// Median time of a step where `kind` is `at`, in ms. To `prepare` a point, its prompts are computed and no more.
    pub(super) async fn step_ms(&mut self, kind: Kind, at: usize, prepare: bool) -> Result<f64> {
        if kind == Kind::Registered {
            self.register(at).await?;
        }
        let (rows, prompt) = match kind {
            Kind::Distinct => (MOST_ROWS, PROMPT),
            Kind::Registered => (8, PROMPT),
            Kind::Context => (4, at),
            Kind::Batch => (at, PROMPT),
        };
        let adapter = |row: usize| match kind {
            Kind::Distinct => Some(self.used[row % at].clone()),
            Kind::Registered => Some(self.used[0].clone()),
            Kind::Context | Kind::Batch => None,
        };
        let output = if prepare { 2 } else { OUTPUT };
        let mut streams = (0..rows)
            .map(|row| self.submit((row, prompt), adapter(row), output))
            .collect::<Result<Vec<OutputStream>>>()?;
        let last = streams.pop().context("a batch has a sequence")?;
        let gaps = gaps(last).await?;
        for stream in streams {
            stream.collect().await?;
        }
        // The first comes while prompts of others are computed, or earlier ones are not done.
        Ok(median(gaps.into_iter().skip(1)))
    }

    fn submit(
        &self,
        (row, prompt): (usize, usize),
        adapter: Option<Arc<Adapter>>,
        output: usize,
    ) -> Result<OutputStream> {
        let vocab = self.llm.info().vocab_size;
        ensure!(vocab > FIRST_ID, "a vocabulary of {vocab} tokens is too small");
        let token = |at: usize| (FIRST_ID + (7919 * row + 17 * at) % (vocab - FIRST_ID)) as u32;
        Ok(self.llm.engine().submit(GenerateRequest {
            ids: Vec::new(),
            prompt: (0..prompt).map(token).collect(),
            adapter,
            params: SamplingParams {
                temperature: 0.0,
                ignore_eos: true,
                max_tokens: output as u32,
                ..SamplingParams::default()
            },
            text: TextOptions::default(),
            cache_salt: None,
            priority: 0,
            prompt_logprobs: None,
            update_policy: UpdatePolicy::Pin,
        })?)
    }

    /// Brings the registry to `count` adapters beside those that other curves use; the one in use counts.
    async fn register(&mut self, count: usize) -> Result<()> {
        while self.registered + 1 < count {
            let request = LoraRequest::new(format!("small-{}", self.registered), &self.small);
            self.llm.adapters().load(request).await?;
            self.registered += 1;
        }
        Ok(())
    }

    /// Unloads what [`Kind::Registered`] loaded.
    pub(super) async fn forget_registered(&mut self) -> Result<()> {
        for index in 0..std::mem::take(&mut self.registered) {
            self.llm.adapters().unload(&format!("small-{index}"), false).await?;
        }
        Ok(())
    }
}

/// Time between the tokens of `stream`, in ms. Tokens that came together share it.
async fn gaps(mut stream: OutputStream) -> Result<Vec<f64>> {
    let (mut gaps, mut last) = (Vec::new(), None);
    while let Some(output) = stream.next().await {
        let tokens = output?.tokens.len();
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            let gap = (now - last).as_secs_f64() * 1e3 / tokens.max(1) as f64;
            gaps.extend(std::iter::repeat_n(gap, tokens));
        }
    }
    Ok(gaps)
}

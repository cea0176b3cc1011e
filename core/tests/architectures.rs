//! Every architecture and adapter feature against log-probabilities of transformers and PEFT in f32, on tiny random
//! checkpoints (`tests/fixtures/tiny`), for each backend; whole, in chunks, and with many adapters in one step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loraplex_core::adapter::peft::{self, PeftLimits};
use loraplex_core::model::{Checkpoint, Decoder, Workspace};
use loraplex_kernels::cpu::{CpuBackend, CpuOptions};
use loraplex_kernels::reference::ReferenceBackend;
use loraplex_kernels::{
    AdapterMemory, Backend, DType, KvShape, LoraSegment, RowToken, SampleRow, SampleTask,
    SequenceSpan, Step, StepOutput,
};
use serde_json::Value;

const BLOCK: usize = 8;
const BLOCKS: usize = 64;

const MODELS: [&str; 10] = [
    "llama",
    "llama3",
    "llama_linear",
    "llama_biased",
    "mistral",
    "mistral_window",
    "qwen2",
    "qwen3",
    "llama_sharded_f16",
    "llama_bf16",
];
const ADAPTED: [&str; 3] = ["llama", "qwen2", "qwen3"];
const ADAPTERS: [&str; 3] = ["all", "qv_rs", "pattern"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name)
}

fn cpu(dtype: DType) -> CpuBackend {
    CpuBackend::new(CpuOptions { dtype, threads: 2, isa: None }).unwrap()
}

/// Token ids of a prompt and the log-probabilities of the whole vocabulary after each of them.
struct Golden {
    tokens: Vec<u32>,
    log_softmax: Vec<Vec<f64>>,
}

fn golden(file: &Path) -> Vec<Golden> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let prompts = value["prompts"].as_array().unwrap().iter();
    prompts
        .map(|prompt| Golden {
            tokens: serde_json::from_value(prompt["token_ids"].clone()).unwrap(),
            log_softmax: serde_json::from_value(prompt["log_softmax"].clone()).unwrap(),
        })
        .collect()
}

/// A model on a backend with its adapters.
struct Rig<B: Backend> {
    backend: B,
    model: Decoder<B>,
    workspace: Workspace<B>,
    vocab: usize,
    adapters: Vec<B::Adapter>,
}

impl<B: Backend> Rig<B> {
    fn new(mut backend: B, folder: &Path, adapters: &[&str]) -> Self {
        let mut checkpoint = Checkpoint::open(folder).unwrap();
        let config = checkpoint.config.clone();
        let model = Decoder::load(&mut backend, &mut checkpoint, 64, &|_, _| ()).unwrap();
        let kv = KvShape {
            layers: config.layers,
            blocks: BLOCKS,
            block_size: BLOCK,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let workspace = Workspace::new(&mut backend, &config, kv, 256).unwrap();
        let packer = backend.packer();
        let (limits, memory) = (PeftLimits::new(64), AdapterMemory::default());
        let adapters = adapters
            .iter()
            .map(|name| {
                let adapter = folder.join("adapters").join(name);
                let loaded = peft::load(&adapter, &config, &limits, &memory).unwrap();
                let packed = packer.pack(config.layers, &loaded.weights, &memory).unwrap();
                backend.upload_adapter(&Arc::new(packed)).unwrap()
            })
            .collect();
        Self { backend, model, workspace, vocab: config.vocab_size, adapters }
    }

    /// Runs prompts side by side, each with an adapter or none (neighbours in that order), in chunks of at most `chunk`
    /// tokens. Returns the log-probabilities after each token of each prompt.
    fn run(&mut self, prompts: &[(&[u32], Option<usize>)], chunk: usize) -> Vec<Vec<Vec<f64>>> {
        let per_prompt = BLOCKS / prompts.len();
        let mut found = vec![Vec::new(); prompts.len()];
        let longest = prompts.iter().map(|(tokens, _)| tokens.len()).max().unwrap();
        for start in (0..longest).step_by(chunk) {
            let mut rows = Rows::default();
            let mut owners = Vec::new();
            let mut segments = Vec::new();
            for (index, &(tokens, adapter)) in prompts.iter().enumerate() {
                if start >= tokens.len() {
                    continue;
                }
                let part = &tokens[start..tokens.len().min(start + chunk)];
                let first_row = rows.tokens.len() as u32;
                rows.add(part, start, index * per_prompt..(index + 1) * per_prompt);
                owners.extend(std::iter::repeat_n(index, part.len()));
                if let Some(adapter) = adapter {
                    let adapter = &self.adapters[adapter];
                    segments.push(LoraSegment { adapter, first_row, rows: part.len() as u32 });
                }
            }
            let out = step(
                &mut self.backend,
                (&self.model, &mut self.workspace),
                &rows.step(&segments),
                self.vocab,
            );
            for (row, owner) in owners.into_iter().enumerate() {
                let mut row_found = vec![f64::NAN; self.vocab];
                for &(token, logprob) in out.top_of(row) {
                    row_found[token as usize] = f64::from(logprob);
                }
                found[owner].push(row_found);
            }
        }
        found
    }
}

#[derive(Default)]
struct Rows {
    tokens: Vec<RowToken>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<SequenceSpan>,
    tables: Vec<u32>,
}

impl Rows {
    fn add(&mut self, tokens: &[u32], start: usize, blocks: std::ops::Range<usize>) {
        // Blocks in falling order, so that a table that is not followed shows.
        let table: Vec<u32> = blocks.rev().map(|block| block as u32).collect();
        self.spans.push(SequenceSpan {
            first_row: self.tokens.len() as u32,
            rows: tokens.len() as u32,
            context: start as u32,
            first_block: self.tables.len() as u32,
        });
        for (offset, &token) in tokens.iter().enumerate() {
            let position = start + offset;
            self.tokens.push(RowToken::Known(token));
            self.positions.push(position as u32);
            self.slots.push(table[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
        }
        self.tables.extend(table);
    }

    fn step<'a, A>(&'a self, lora: &'a [LoraSegment<'a, A>]) -> Step<'a, A> {
        Step {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            sequences: &self.spans,
            block_tables: &self.tables,
            lora,
        }
    }
}

fn step<B: Backend>(
    backend: &mut B,
    (model, workspace): (&Decoder<B>, &mut Workspace<B>),
    step: &Step<'_, B::Adapter>,
    vocab: usize,
) -> StepOutput {
    backend.begin_step(step).unwrap();
    model.forward(backend, workspace).unwrap();
    let wanted: Vec<SampleRow<'_>> = (0..step.tokens.len() as u32)
        .map(|row| SampleRow { row, task: SampleTask::Score(0), logprobs: Some(vocab as u32) })
        .collect();
    backend.sample(model.head(), workspace.normed(), &wanted).unwrap();
    let ticket = backend.end_step().unwrap();
    let mut out = StepOutput::default();
    backend.wait(ticket, &mut out).unwrap();
    out
}

fn distance(found: &[Vec<f64>], golden: &Golden) -> f64 {
    assert_eq!(found.len(), golden.tokens.len());
    let pairs = found.iter().flatten().zip(golden.log_softmax.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, next| {
        // NaN must not pass as small.
        if next <= most { most } else { next }
    })
}

fn check_base<B: Backend>(name: &str, backend: B, tolerance: f64) {
    let folder = fixture(name);
    let mut rig = Rig::new(backend, &folder, &[]);
    let golden = golden(&folder.join("golden.json"));
    for case in &golden {
        for chunk in [64, 7, 1] {
            let found = rig.run(&[(&case.tokens, None)], chunk);
            let off = distance(&found[0], case);
            assert!(off <= tolerance, "{name}, chunks of {chunk}: off by {off}");
        }
    }
    let together: Vec<_> = golden.iter().map(|case| (case.tokens.as_slice(), None)).collect();
    for (found, case) in rig.run(&together, 5).iter().zip(&golden) {
        let off = distance(found, case);
        assert!(off <= tolerance, "{name} together: off by {off}");
    }
}

/// All adapters and the base in one step, each prompt of each.
fn check_adapters<B: Backend>(name: &str, backend: B, tolerance: f64) {
    let folder = fixture(name);
    let mut rig = Rig::new(backend, &folder, &ADAPTERS);
    let mut cases: Vec<(Golden, Option<usize>)> = Vec::new();
    for (index, adapter) in ADAPTERS.iter().enumerate() {
        let golden = golden(&folder.join(format!("golden_{adapter}.json")));
        cases.extend(golden.into_iter().map(|case| (case, Some(index))));
        let base = self::golden(&folder.join("golden.json")).swap_remove(0);
        cases.push((base, None));
    }
    let prompts: Vec<_> =
        cases.iter().map(|(case, adapter)| (case.tokens.as_slice(), *adapter)).collect();
    for chunk in [64, 3] {
        for (found, (case, adapter)) in rig.run(&prompts, chunk).iter().zip(&cases) {
            let off = distance(found, case);
            assert!(
                off <= tolerance,
                "{name}, adapter {adapter:?}, chunks of {chunk}: off by {off}"
            );
        }
    }
}

#[test]
fn the_reference_backend_agrees_with_transformers() {
    for name in MODELS {
        check_base(name, ReferenceBackend::new(), 1e-3);
    }
    for name in ADAPTED {
        check_adapters(name, ReferenceBackend::new(), 1e-3);
    }
}

#[test]
fn the_cpu_in_f32_agrees_with_transformers() {
    for name in MODELS {
        check_base(name, cpu(DType::F32), 1e-3);
    }
    for name in ADAPTED {
        check_adapters(name, cpu(DType::F32), 1e-3);
    }
}

/// The weights of these checkpoints are exact in bf16, so what is left is the rounding of activations: transformers in
/// bf16 is off by up to 0.19.
#[test]
fn the_cpu_in_bf16_agrees_with_transformers() {
    for name in MODELS {
        check_base(name, cpu(DType::Bf16), 0.2);
    }
    for name in ADAPTED {
        check_adapters(name, cpu(DType::Bf16), 0.25);
    }
}

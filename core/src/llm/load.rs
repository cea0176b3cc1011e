//! From a configuration to a running engine.

use std::sync::Arc;

use loraplex_kernels::cpu::{CpuBackend, CpuOptions};
use loraplex_kernels::cuda::{CudaBackend, CudaOptions};
use loraplex_kernels::reference::ReferenceBackend;
use loraplex_kernels::{AdapterPacker, Backend, DType, KvShape};

use super::{Llm, ModelInfo, Progress, memory};
use crate::adapter::AdapterManager;
use crate::config::{Device, EngineConfig, Quantization};
use crate::engine::{EngineHandle, EngineOptions};
use crate::error::{Error, Result};
use crate::kv_cache::BlockManager;
use crate::metrics::Metrics;
use crate::model::{Checkpoint, Decoder, ModelConfig};
use crate::runner::{ModelRunner, Runner};

pub(super) fn load(config: EngineConfig, progress: &dyn Progress) -> Result<Llm> {
    check(&config)?;
    progress.stage("checkpoint", 0, 1);
    let mut checkpoint = if config.dummy_weights {
        Checkpoint::dummy(&config.model, config.seed)?
    } else {
        Checkpoint::open(&config.model)?
    };
    if config.quantization == Some(Quantization::Int8) {
        checkpoint.hold_in_int8(threads(&config));
    }
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    progress.stage("checkpoint", 1, 1);
    let mut info = ModelInfo {
        architecture: checkpoint.config.architecture.name().to_owned(),
        max_model_len: 0,
        vocab_size: checkpoint.config.vocab_size,
        eos_token_ids: checkpoint.config.eos_token_ids.clone(),
        chat_template: config.chat_template.clone().or_else(|| checkpoint.chat_template()),
        special_tokens: checkpoint.special_tokens(),
        device: String::new(),
        dtype: DType::Bf16,
        kv_blocks: 0,
        block_size: config.cache.block_size,
        generation_defaults: checkpoint.generation_defaults(),
    };
    let model = checkpoint.config.clone();
    let built = match config.device {
        Device::Reference => build(ReferenceBackend::new(), &config, checkpoint, progress)?,
        Device::Cuda => build(cuda(&config, &model)?, &config, checkpoint, progress)?,
        Device::Auto if has_gpu() => build(cuda(&config, &model)?, &config, checkpoint, progress)?,
        Device::Auto | Device::Cpu => {
            build(cpu(&config, &checkpoint)?, &config, checkpoint, progress)?
        }
    };
    info.max_model_len = built.max_model_len;
    info.kv_blocks = built.blocks;
    info.device = match config.quantization {
        None => built.device,
        Some(Quantization::Int8) => format!("{}, weights in int8", built.device),
    };
    info.dtype = built.dtype;
    let name = config.served_model_name.unwrap_or_else(|| config.model.display().to_string());
    let metrics = Arc::new(Metrics::new(&name, config.lora.max_loras()));
    let blocks =
        BlockManager::new(built.blocks, config.cache.block_size, config.cache.prefix_caching);
    let engine = EngineHandle::start(
        built.runner,
        tokenizer.clone(),
        EngineOptions {
            scheduler: config.scheduler,
            max_model_len: built.max_model_len,
            vocab_size: info.vocab_size,
            blocks,
            end_tokens: info.eos_token_ids.as_slice().into(),
            seed: config.seed,
            adapter_pool: built.adapter_pool,
            metrics: metrics.clone(),
        },
    )?;
    let adapters =
        Arc::new(AdapterManager::new(config.lora, model, built.packer, Some(engine.clone()))?);
    Ok(Llm { engine, adapters, tokenizer, info, metrics })
}

/// What depends on the backend's type before it is hidden behind [`Runner`].
struct Built {
    runner: Box<dyn Runner>,
    packer: Arc<dyn AdapterPacker>,
    max_model_len: usize,
    blocks: usize,
    device: String,
    dtype: DType,
    adapter_pool: usize,
}

fn build<B: Backend>(
    mut backend: B,
    config: &EngineConfig,
    mut checkpoint: Checkpoint,
    progress: &dyn Progress,
) -> Result<Built> {
    let model = checkpoint.config.clone();
    let device = backend.device().clone();
    let mut kv = KvShape {
        layers: model.layers,
        blocks: 0,
        block_size: config.cache.block_size,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
    };
    let wanted = config.max_model_len.unwrap_or(model.max_position);
    let seqs = config.scheduler.max_num_seqs;
    let token_bytes = memory::token_bytes(&kv, device.dtype);
    let packer = backend.packer();
    let pool = memory::adapter_pool(&config.lora, &model, &*packer)?;
    let length = |blocks: usize| {
        memory::model_len(config.max_model_len, model.max_position, blocks, kv.block_size)
    };
    let layers = |done: usize, total: usize| progress.stage("weights", done as u64, total as u64);
    let (decoder, blocks) = match backend.memory()? {
        None => {
            let blocks = memory::kv_blocks(&config.cache, token_bytes, seqs, wanted);
            let positions = length(blocks)?;
            (Decoder::load(&mut backend, &mut checkpoint, positions, &layers)?, blocks)
        }
        // What is left is known when the weights are there.
        Some(_) => {
            let decoder = Decoder::load(&mut backend, &mut checkpoint, wanted, &layers)?;
            let left = backend.memory()?;
            let blocks = memory::device_blocks(&config.cache, token_bytes, pool, left)?;
            (decoder, blocks)
        }
    };
    kv.blocks = blocks;
    let max_model_len = length(blocks)?;
    let rows = config.scheduler.max_num_batched_tokens;
    let runner = ModelRunner::new(backend, decoder, kv, rows)?;
    Ok(Built {
        runner: Box::new(runner),
        packer,
        max_model_len,
        blocks: kv.blocks,
        device: device.name,
        dtype: device.dtype,
        adapter_pool: pool,
    })
}

/// Whether there is a GPU that can be used. One that is there and cannot says why.
fn has_gpu() -> bool {
    match CudaBackend::probe(0) {
        Ok(probe) => {
            tracing::info!("computing on {}", probe.name);
            true
        }
        Err(reason) if CudaBackend::has_driver() => {
            tracing::warn!(%reason, "computing on the CPU, though there is an NVIDIA driver");
            false
        }
        Err(reason) => {
            tracing::debug!(%reason, "computing on the CPU");
            false
        }
    }
}

fn cuda(config: &EngineConfig, model: &ModelConfig) -> Result<CudaBackend> {
    if !matches!(config.dtype, None | Some(DType::Bf16)) {
        return Err(Error::invalid("the GPU computes in bfloat16 alone; leave --dtype out"));
    }
    if let Some(Quantization::Int8) = config.quantization {
        return Err(Error::invalid(
            "quantization int8 is for the CPU, the GPU multiplies bfloat16 alone; leave --quantization out or take --device cpu",
        ));
    }
    let mut backend = CudaBackend::new(CudaOptions {
        device: 0,
        kernel_cache: config.kernel_cache.clone(),
        graph_rows: CudaOptions::usual_graph_rows(),
    })?;
    if let Some(memory) = backend.memory()? {
        let limits = (&config.lora, &config.cache);
        let packer = backend.packer();
        backend.make_slots(memory::adapter_slots(limits, memory, model, &*packer)?);
    }
    Ok(backend)
}

fn cpu(config: &EngineConfig, checkpoint: &Checkpoint) -> Result<CpuBackend> {
    let dtype = match config.dtype {
        None if checkpoint.config.dtype == DType::F32 => DType::F32,
        // The CPU multiplies bf16 alone; f16 checkpoints are rounded to it.
        None | Some(DType::Bf16) => DType::Bf16,
        Some(DType::F32) => DType::F32,
        Some(DType::F16) => {
            return Err(Error::invalid(
                "dtype float16 is not supported on the CPU; use bfloat16 or float32",
            ));
        }
    };
    Ok(CpuBackend::new(CpuOptions { dtype, threads: threads(config), isa: None })?)
}

fn threads(config: &EngineConfig) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    config.threads.unwrap_or_else(cores)
}

fn check(config: &EngineConfig) -> Result<()> {
    let bounds = [
        ("max-num-seqs", config.scheduler.max_num_seqs, 1, 65_536),
        ("max-num-batched-tokens", config.scheduler.max_num_batched_tokens, 1, 1 << 20),
        ("block-size", config.cache.block_size, 1, 1024),
        ("max-lora-rank", config.lora.max_rank, 1, 4096),
    ];
    for (name, value, least, most) in bounds {
        if !(least..=most).contains(&value) {
            return Err(Error::invalid(format!(
                "{name} is {value}, it must be from {least} to {most}"
            )));
        }
    }
    let (seqs, rows) = (config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens);
    if rows < seqs {
        return Err(Error::invalid(format!(
            "max-num-batched-tokens {rows} is less than max-num-seqs {seqs}: every running sequence needs a row"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_refuses_int8() {
        let config = EngineConfig {
            quantization: Some(Quantization::Int8),
            ..EngineConfig::new("some/model")
        };
        let error = cuda(&config, &memory::tests::odd_model()).unwrap_err().message;
        assert!(error.contains("int8") && error.contains("--device cpu"), "{error}");
    }
}

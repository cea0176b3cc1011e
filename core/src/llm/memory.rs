//! How much memory the KV cache and adapters take.

use half::bf16;
use loraplex_kernels::cuda::SLOT_RANKS;
use loraplex_kernels::{
    AdapterMemory, AdapterPacker, DType, DeviceMemory, HostData, HostTensor, KvShape, LoraPart,
    LoraWeights, Part,
};

use crate::config::{CacheConfig, CacheSize, LoraConfig, PoolSize};
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelConfig;

/// Taken for the cache when the system does not say what is free.
const FALLBACK: usize = 1 << 30;
/// What slots below the weights may take of a GPU's memory that may be used, as a divisor.
const SLOTS_SHARE: usize = 12;
/// Adapters of higher ranks are reckoned from one of this rank.
const LARGEST_PACKED: usize = 512;

/// Blocks for a cache whose token takes `bytes` bytes: enough for `sequences` of `max_len` tokens, within the limit.
pub(super) fn kv_blocks(
    config: &CacheConfig,
    token_bytes: usize,
    sequences: usize,
    max_len: usize,
) -> usize {
    let block_bytes = (token_bytes * config.block_size).max(1);
    match config.size {
        CacheSize::Blocks(blocks) => blocks,
        CacheSize::Bytes(bytes) => bytes / block_bytes,
        CacheSize::Auto => {
            let wanted = max_len.div_ceil(config.block_size).saturating_mul(sequences);
            wanted.min(available() / 4 / block_bytes)
        }
    }
}

/// Blocks for a cache on a device with memory of its own: what weights leave of the device's share once adapters have
/// their pool.
pub(super) fn device_blocks(
    config: &CacheConfig,
    token_bytes: usize,
    adapter_pool: usize,
    left: Option<DeviceMemory>,
) -> Result<usize> {
    let block_bytes = (token_bytes * config.block_size).max(1);
    let memory = left.unwrap_or(DeviceMemory { free: 0, total: 0 });
    let share = device_share(config, memory);
    let taken = memory.total - memory.free;
    let room = share.saturating_sub(taken).saturating_sub(adapter_pool);
    let wanted = match config.size {
        CacheSize::Blocks(blocks) => blocks.saturating_mul(block_bytes),
        CacheSize::Bytes(bytes) => bytes,
        CacheSize::Auto => room,
    };
    if wanted > room || room < block_bytes {
        let mib = |bytes: usize| bytes >> 20;
        return Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "the GPU has {} MiB, of which {} MiB may be used (--gpu-memory-utilization {}); weights take {} MiB, adapters {} MiB (--max-loras), the KV cache would take {} MiB",
                mib(memory.total),
                mib(share),
                config.device_share,
                mib(taken),
                mib(adapter_pool),
                mib(wanted.max(block_bytes))
            ),
        ));
    }
    Ok(wanted / block_bytes)
}

/// Bytes of a device that may be used.
fn device_share(config: &CacheConfig, memory: DeviceMemory) -> usize {
    (memory.total as f64 * f64::from(config.device_share)) as usize
}

/// Bytes of K and V that a token takes.
pub(super) fn token_bytes(shape: &KvShape, dtype: DType) -> usize {
    shape.elements_per_token() * dtype.size()
}

/// Bytes of the device that adapters may take.
pub(super) fn adapter_pool(
    lora: &LoraConfig,
    model: &ModelConfig,
    packer: &dyn AdapterPacker,
) -> Result<usize> {
    match lora.pool {
        PoolSize::Bytes(bytes) => Ok(bytes),
        // To the byte: with room to spare, one more than was asked for would fit beside many.
        PoolSize::Adapters(adapters) => {
            Ok(adapters.saturating_mul(adapter_bytes(lora.max_rank, model, packer)?))
        }
    }
}

/// Bytes of an adapter of that rank on all modules, as a backend lays it out.
fn adapter_bytes(rank: usize, model: &ModelConfig, packer: &dyn AdapterPacker) -> Result<usize> {
    let weights = zeros(rank.min(LARGEST_PACKED), 1, model)?;
    let layer = packer.pack(1, &weights, &AdapterMemory::default())?;
    let bytes = layer.bytes.len().saturating_mul(model.layers);
    Ok(match rank {
        0..=LARGEST_PACKED => bytes,
        _ => bytes.saturating_mul(rank.next_multiple_of(SLOT_RANKS)) / LARGEST_PACKED,
    })
}

/// An adapter of that rank on all modules of the first `layers` layers.
fn zeros(rank: usize, layers: usize, model: &ModelConfig) -> Result<LoraWeights> {
    let zeros = |rows: usize, cols: usize| {
        HostTensor::new(rows, cols, HostData::Bf16(vec![bf16::ZERO; rows * cols]))
    };
    let part = |(layer, part)| {
        let (inputs, outputs) = model.module_shape(part);
        let (a, b) = (zeros(rank, inputs)?, zeros(outputs, rank)?);
        Ok(LoraPart { layer, part, scale: 1.0, a, b })
    };
    let places = (0..layers).flat_map(|layer| Part::ALL.map(|part| (layer, part)));
    Ok(LoraWeights { parts: places.map(part).collect::<Result<_>>()? })
}

/// Slots below the weights of a GPU: for as many of the largest adapters as the pool holds, within a share of what may be used.
/// A slot takes about what an adapter of its rank does.
pub(super) fn adapter_slots(
    (lora, cache): (&LoraConfig, &CacheConfig),
    memory: DeviceMemory,
    model: &ModelConfig,
    packer: &dyn AdapterPacker,
) -> Result<usize> {
    if !lora.enabled {
        return Ok(0);
    }
    let pool = adapter_pool(lora, model, packer)?;
    let largest = adapter_bytes(lora.max_rank, model, packer)?;
    let wanted = pool.saturating_mul(lora.max_rank.div_ceil(SLOT_RANKS)) / largest.max(1);
    let slot = adapter_bytes(SLOT_RANKS, model, packer)?;
    Ok(wanted.min(device_share(cache, memory) / SLOTS_SHARE / slot.max(1)))
}

/// The model's length under a cache of `blocks` blocks: what was asked for must fit, the model's own limit is cut.
pub(super) fn model_len(
    asked: Option<usize>,
    limit: usize,
    blocks: usize,
    block_size: usize,
) -> Result<usize> {
    let room = blocks * block_size;
    match asked {
        Some(0) => Err(Error::invalid("max-model-len must be at least 1")),
        Some(asked) if asked > limit => Err(Error::invalid(format!(
            "max-model-len {asked} exceeds the model's own limit of {limit} positions"
        ))),
        Some(asked) if asked > room => Err(Error::invalid(format!(
            "the KV cache has room for {room} tokens, max-model-len is {asked}: give it more memory or lower the length"
        ))),
        Some(asked) => Ok(asked),
        None if room < block_size => {
            Err(Error::invalid("the KV cache has no room for a single block: give it more memory"))
        }
        None => Ok(limit.min(room)),
    }
}

fn available() -> usize {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()
        })
        .map_or(FALLBACK, |kib| kib << 10)
}

#[cfg(test)]
pub(super) mod tests {
    use loraplex_kernels::Backend as _;
    use loraplex_kernels::cpu::{CpuBackend, CpuOptions};
    use loraplex_kernels::reference::ReferenceBackend;

    use super::*;

    #[test]
    fn a_length_that_was_asked_for_must_fit() {
        assert_eq!(model_len(None, 100, 4, 16).ok(), Some(64));
        assert_eq!(model_len(None, 50, 4, 16).ok(), Some(50));
        assert_eq!(model_len(Some(64), 100, 4, 16).ok(), Some(64));
        for (asked, limit, blocks) in [(Some(65), 100, 4), (Some(60), 50, 4), (Some(0), 50, 4)] {
            assert!(model_len(asked, limit, blocks, 16).is_err());
        }
        assert!(model_len(None, 100, 0, 16).is_err());
    }

    /// Shapes that fill no vector of any layout.
    pub(in crate::llm) fn odd_model() -> ModelConfig {
        ModelConfig::from_hf(&serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 90, "intermediate_size": 122,
            "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 1,
            "vocab_size": 64, "max_position_embeddings": 64,
        }))
        .unwrap()
    }

    #[test]
    fn a_pool_has_room_for_as_many_as_were_asked_for_and_for_no_more() {
        let model = odd_model();
        let cpu = CpuBackend::new(CpuOptions { dtype: DType::Bf16, threads: 1, isa: None });
        for packer in [ReferenceBackend::new().packer(), cpu.unwrap().packer()] {
            for (max_rank, adapters) in [(1, 3), (7, 30), (16, 8), (1001, 2)] {
                let pool = PoolSize::Adapters(adapters);
                let lora = LoraConfig { max_rank, pool, ..LoraConfig::default() };
                let bytes = adapter_pool(&lora, &model, &*packer).unwrap();
                let weights = zeros(max_rank, model.layers, &model).unwrap();
                let packed = packer.pack(model.layers, &weights, &AdapterMemory::default());
                let one = packed.unwrap().bytes.len();
                match max_rank {
                    0..=LARGEST_PACKED => assert_eq!(bytes, adapters * one),
                    _ => assert_eq!(bytes / one, adapters),
                }
            }
        }
    }

    #[test]
    fn all_adapters_of_a_full_pool_have_slots() {
        let (model, packer) = (odd_model(), ReferenceBackend::new().packer());
        let of = |lora: &LoraConfig, total: usize| {
            let cache = CacheConfig { device_share: 0.5, ..CacheConfig::default() };
            let memory = DeviceMemory { free: 0, total: 2 * total };
            adapter_slots((lora, &cache), memory, &model, &*packer).unwrap()
        };
        let slots =
            |max_rank, pool| of(&LoraConfig { max_rank, pool, ..LoraConfig::default() }, 1 << 30);
        for (max_rank, expected) in [(8, 8), (16, 8), (24, 16), (64, 32)] {
            assert_eq!(slots(max_rank, PoolSize::Adapters(8)), expected, "rank {max_rank}");
        }
        let one = adapter_bytes(64, &model, &*packer).unwrap();
        assert_eq!(slots(64, PoolSize::Bytes(one / 2)), 2);
        let on = LoraConfig { pool: PoolSize::Bytes(one), ..LoraConfig::default() };
        assert_eq!((of(&on, 12 * one), of(&on, 9 * one)), (4, 3));
        assert_eq!(of(&LoraConfig { enabled: false, ..on }, 12 * one), 0);
    }

    #[test]
    fn auto_takes_no_more_than_can_be_used() {
        let config = CacheConfig::default();
        assert_eq!(kv_blocks(&config, 4, 2, 33), 6);
        let bytes = CacheConfig { size: CacheSize::Bytes(1000), ..config };
        assert_eq!(kv_blocks(&bytes, 4, 2, 33), 15);
    }
}

//! How much memory the KV cache takes.

use loraplex_kernels::{DType, DeviceMemory, KvShape};

use crate::config::{CacheConfig, CacheSize, LoraConfig, PoolSize};
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelConfig;

/// Taken for the cache when the system does not say what is free.
const FALLBACK: usize = 1 << 30;

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
    let share = (memory.total as f64 * f64::from(config.device_share)) as usize;
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

/// Bytes of K and V that a token takes.
pub(super) fn token_bytes(shape: &KvShape, dtype: DType) -> usize {
    shape.elements_per_token() * dtype.size()
}

/// Bytes of the device that adapters may take.
pub(super) fn adapter_pool(
    size: PoolSize,
    max_rank: usize,
    model: &ModelConfig,
    dtype: DType,
) -> usize {
    match size {
        PoolSize::Bytes(bytes) => bytes,
        PoolSize::Adapters(adapters) => {
            let (hidden, q, kv, ffn) =
                (model.hidden_size, model.q_size(), model.kv_size(), model.ffn_size);
            // Inputs and outputs of q, k and v, o, gate and up, down.
            let widths = (hidden + q) + 2 * (hidden + kv) + (q + hidden) + 3 * (hidden + ffn);
            let one = widths * max_rank * model.layers * dtype.size();
            // A backend's layout rounds ranks and rows up to whole vectors.
            adapters.saturating_mul(one + one / 8)
        }
    }
}

/// Slots for A of adapters below the weights on a GPU: for as many adapters of rank 16 as the pool holds, whose memory they
/// add half to.
pub(super) fn adapter_slots(lora: &LoraConfig, model: &ModelConfig) -> usize {
    let pool = adapter_pool(lora.pool, lora.max_rank, model, DType::Bf16);
    let one = adapter_pool(PoolSize::Adapters(1), 16, model, DType::Bf16);
    if lora.enabled { pool / one.max(1) } else { 0 }
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
mod tests {
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

    #[test]
    fn auto_takes_no_more_than_can_be_used() {
        let config = CacheConfig::default();
        assert_eq!(kv_blocks(&config, 4, 2, 33), 6);
        let bytes = CacheConfig { size: CacheSize::Bytes(1000), ..config };
        assert_eq!(kv_blocks(&bytes, 4, 2, 33), 15);
    }
}

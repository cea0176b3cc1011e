//! Weights from a GGUF file, under their Hugging Face names and in Hugging Face's row order.
//!
//! Quantised matrices come out as bf16 whatever the engine computes in, so that every dtype sees the same weights; those
//! of Q8_0 as they are where 8 bits are asked for.
//! A tensor is dequantised a piece at a time: its f32 form never exists as a whole.

mod header;
mod types;
mod value;

#[cfg(test)]
mod tests;

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use half::{bf16, f16};
use loraplex_kernels::{HostData, HostTensor, INT8_BLOCK, Int8Blocks};

pub(crate) use header::{Header, TensorInfo};
pub(crate) use types::BlockType;
pub(crate) use value::Metadata;

use super::floats;
use crate::error::{Error, Result};
use crate::files::{Source, file_name};
use crate::model::config::ModelConfig;

/// Elements that are dequantised at a time.
const PIECE: usize = 1 << 20;

/// What quantised matrices come out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// bf16.
    Widen,
    /// Q8_0 as it is, others as bf16.
    KeepInt8,
}

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct GgufFile {
    source: Source,
    /// Metadata and places of tensors.
    pub(crate) header: Header,
    /// Heads whose rows of q and of k the file interleaves.
    interleaved: Option<(usize, usize)>,
}

impl GgufFile {
    /// Opens `path` and reads its head.
    pub(crate) fn open(path: &Path) -> Result<(Self, ModelConfig)> {
        let source = Source::open(path)?
            .ok_or_else(|| Error::not_found(format!("no model found at {}", path.display())))?;
        let name = file_name(path);
        let header = Header::read(&source).map_err(|e| e.context(&name))?;
        if header.metadata.count("split.count")?.is_some_and(|parts| parts > 1) {
            return Err(Error::invalid(format!(
                "{name} is a part of a split model; join the parts with llama.cpp's gguf-split --merge"
            )));
        }
        let mut file = Self { source, header, interleaved: None };
        let factors = file.rope_factors().map_err(|e| e.context(&name))?;
        let config = ModelConfig::from_gguf(&file.header, factors).map_err(|e| e.context(&name))?;
        if file.header.metadata.text("general.architecture")? == Some("llama") {
            file.interleaved = Some((config.heads, config.kv_heads));
        }
        Ok((file, config))
    }

    /// Whether there is a tensor with this Hugging Face name.
    pub(crate) fn has(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.header.tensor(&name).is_some())
    }

    /// A tensor by its Hugging Face name.
    pub(crate) fn tensor(&self, name: &str, blocks: Blocks) -> Result<HostTensor> {
        let info = gguf_name(name).and_then(|name| self.header.tensor(&name));
        let info =
            info.ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))?;
        let data = self.data(info, blocks).map_err(|e| e.context(name))?;
        let (rows, cols) = (info.rows, info.cols);
        let heads = match self.interleaved {
            Some((heads, _)) if name.contains(".self_attn.q_proj.") => Some(heads),
            Some((_, heads)) if name.contains(".self_attn.k_proj.") => Some(heads),
            _ => None,
        };
        let Some(heads) = heads else { return Ok(HostTensor::new(rows, cols, data)?) };
        // A bias is one row of outputs; what is interleaved is the outputs.
        let (outputs, width) = if info.dimensions == 1 { (cols, 1) } else { (rows, cols) };
        let order = row_order(outputs, heads).ok_or_else(|| {
            Error::invalid(format!("{name}: {outputs} rows cannot be split into {heads} heads"))
        })?;
        let data = match data {
            HostData::F32(values) => HostData::F32(gather(&values, &order, width)),
            HostData::Bf16(values) => HostData::Bf16(gather(&values, &order, width)),
            HostData::F16(values) => HostData::F16(gather(&values, &order, width)),
            HostData::Int8(blocks) => HostData::Int8(Int8Blocks {
                scales: gather(&blocks.scales, &order, width / INT8_BLOCK),
                values: gather(&blocks.values, &order, width),
            }),
            HostData::Stored(..) => return Err(Error::internal("rows that are not decoded")),
        };
        Ok(HostTensor::new(rows, cols, data)?)
    }

    fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.header.tensor("rope_freqs.weight") else { return Ok(None) };
        match self.data(info, Blocks::Widen)? {
            HostData::F32(values) => Ok(Some(values)),
            _ => Err(Error::invalid("rope_freqs.weight is not of type F32")),
        }
    }

    fn data(&self, info: &TensorInfo, blocks: Blocks) -> Result<HostData> {
        let elements = info.rows * info.cols;
        match info.kind {
            BlockType::Quantized(GgmlDType::Q8_0)
                if blocks == Blocks::KeepInt8 && info.cols.is_multiple_of(INT8_BLOCK) =>
            {
                let mut kept = Int8Blocks {
                    scales: Vec::with_capacity(elements / INT8_BLOCK),
                    values: Vec::with_capacity(elements),
                };
                self.pieces(info, |bytes, _| {
                    // A scale, then the values.
                    let (blocks, _) = bytes.as_chunks::<{ size_of::<f16>() + INT8_BLOCK }>();
                    for [low, high, values @ ..] in blocks {
                        kept.scales.push(f16::from_le_bytes([*low, *high]));
                        kept.values.extend(values.iter().map(|value| value.cast_signed()));
                    }
                    Ok(())
                })?;
                Ok(HostData::Int8(kept))
            }
            BlockType::Quantized(kind) => {
                let mut values = Vec::with_capacity(elements);
                self.pieces(info, |bytes, count| {
                    let piece = dequantize(kind, bytes, count)?;
                    values.extend(piece.into_iter().map(bf16::from_f32));
                    Ok(())
                })?;
                Ok(HostData::Bf16(values))
            }
            BlockType::F32 => {
                let mut values = Vec::with_capacity(elements);
                self.pieces(info, |bytes, _| {
                    values.extend(floats(bytes, f32::from_le_bytes));
                    Ok(())
                })?;
                Ok(HostData::F32(values))
            }
            BlockType::F16 => {
                let mut values = Vec::with_capacity(elements);
                self.pieces(info, |bytes, _| {
                    values.extend(floats(bytes, f16::from_le_bytes));
                    Ok(())
                })?;
                Ok(HostData::F16(values))
            }
            BlockType::Bf16 => {
                let mut values = Vec::with_capacity(elements);
                self.pieces(info, |bytes, _| {
                    values.extend(floats(bytes, bf16::from_le_bytes));
                    Ok(())
                })?;
                Ok(HostData::Bf16(values))
            }
        }
    }

    /// Calls `take` with the bytes and the number of elements of each piece of a tensor, in order.
    fn pieces(
        &self,
        info: &TensorInfo,
        mut take: impl FnMut(&[u8], usize) -> Result<()>,
    ) -> Result<()> {
        let mut left = info.rows * info.cols;
        let mut offset = info.span.start;
        while left > 0 {
            // PIECE is a multiple of every block, and so is what is left at the end.
            let count = left.min(PIECE);
            let bytes = info.kind.bytes(count).ok_or_else(|| Error::internal("split block"))?;
            take(&self.source.read(offset, bytes)?, count)?;
            left -= count;
            offset += bytes as u64;
        }
        Ok(())
    }
}

fn dequantize(kind: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>> {
    qtensor_from_ggml(kind, bytes, vec![count], &Device::Cpu)
        .and_then(|tensor| tensor.dequantize(&Device::Cpu))
        .and_then(|tensor| tensor.to_vec1())
        .map_err(|error| Error::invalid(format!("cannot dequantise: {error}")))
}

/// For each row in Hugging Face's order, the row of the file: the file alternates between the halves of a head.
fn row_order(rows: usize, heads: usize) -> Option<Vec<usize>> {
    if heads == 0 || !rows.is_multiple_of(heads * 2) {
        return None;
    }
    let (head, half) = (rows / heads, rows / heads / 2);
    let order = (0..rows).map(|row| {
        let (start, within) = (row / head * head, row % head);
        start + within % half * 2 + within / half
    });
    Some(order.collect())
}

fn gather<T: Copy>(values: &[T], order: &[usize], width: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for row in order {
        out.extend_from_slice(&values[row * width..(row + 1) * width]);
    }
    out
}

/// The name that GGUF files use for a tensor.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, module) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = module.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

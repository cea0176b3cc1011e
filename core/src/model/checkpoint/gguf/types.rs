//! How GGUF stores elements: single ones or blocks of quantised ones.

use candle_core::quantized::GgmlDType;

use crate::error::{Error, Result};

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain float.
    Bf16,
    /// Blocks with scales of their own.
    Quantized(GgmlDType),
}

/// Types that exist but that nobody here can read.
const UNREADABLE: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl BlockType {
    /// The type with GGUF's number `id`.
    pub(crate) fn find(id: u32) -> Result<Self> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            30 => Self::Bf16,
            2 => Self::Quantized(GgmlDType::Q4_0),
            3 => Self::Quantized(GgmlDType::Q4_1),
            6 => Self::Quantized(GgmlDType::Q5_0),
            7 => Self::Quantized(GgmlDType::Q5_1),
            8 => Self::Quantized(GgmlDType::Q8_0),
            10 => Self::Quantized(GgmlDType::Q2K),
            11 => Self::Quantized(GgmlDType::Q3K),
            12 => Self::Quantized(GgmlDType::Q4K),
            13 => Self::Quantized(GgmlDType::Q5K),
            14 => Self::Quantized(GgmlDType::Q6K),
            _ => {
                let name = UNREADABLE.iter().find(|(known, _)| *known == id).map(|(_, name)| *name);
                return Err(Error::invalid(format!(
                    "GGUF type {} ({id}) is not supported; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K",
                    name.unwrap_or("unknown")
                )));
            }
        })
    }

    /// Elements of a block.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Quantized(kind) => kind.block_size(),
        }
    }

    /// Bytes of `elements` elements; `None` when they do not fill whole blocks or are too many.
    pub(crate) fn bytes(self, elements: usize) -> Option<usize> {
        let block = match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Quantized(kind) => kind.type_size(),
        };
        if !elements.is_multiple_of(self.block()) {
            return None;
        }
        (elements / self.block()).checked_mul(block)
    }
}

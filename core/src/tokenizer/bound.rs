//! How many tokens a text has at least, from its bytes alone: what cannot fit is refused before it is tokenised.

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use super::pieces::{Pieces, Scheme};

/// The most that one token can take of a text.
#[derive(Debug)]
pub(super) struct Bound {
    /// Bytes a token.
    most: usize,
    /// Bytes that never vanish: each is a token by itself if nothing else holds it.
    kept: [bool; 256],
}

impl Bound {
    /// `None` when there is no such number: the tokenizer drops characters in an unknown way, gathers them in one
    /// token, or lets a token swallow the spaces around it.
    pub(super) fn find(inner: &Inner, pieces: &Pieces) -> Option<Self> {
        let normalizer = match inner.get_normalizer() {
            None => Value::Null,
            Some(normalizer) => serde_json::to_value(normalizer).ok()?,
        };
        let shrinks = shrinks(&normalizer)?;
        if inner.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip) {
            return None;
        }
        let kept = pieces.single_bytes();
        // Byte-level vocabularies drop the bytes that they lack; others lose the characters around them too.
        let partial = pieces.scheme() == Scheme::Bytes && normalizer.is_null();
        let all = (0..=u8::MAX).all(|byte| kept[usize::from(byte)] || !occurs(byte));
        let most = pieces.longest().checked_mul(shrinks)?.max(1);
        (all || partial).then_some(Self { most, kept })
    }

    /// At least this many tokens come of `text`.
    pub(super) fn least(&self, text: &str) -> usize {
        let kept = text.bytes().filter(|byte| self.kept[usize::from(*byte)]).count();
        kept.div_ceil(self.most)
    }
}

/// Whether UTF-8 uses the byte.
fn occurs(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

/// By what factor a normalizer may shorten a text at most; `None` when that is not known.
fn shrinks(normalizer: &Value) -> Option<usize> {
    match normalizer.get("type").and_then(Value::as_str) {
        None if normalizer.is_null() => Some(1),
        Some("Prepend") => Some(1),
        // A composed character has at least a third of the bytes of its parts.
        Some("NFC") => Some(3),
        Some("Replace") if normalizer.get("pattern")?.get("String")? == " " => {
            let to = normalizer.get("content")?.as_str()?;
            (!to.is_empty()).then_some(1)
        }
        Some("Sequence") => normalizer
            .get("normalizers")?
            .as_array()?
            .iter()
            .try_fold(1usize, |product, step| product.checked_mul(shrinks(step)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_normalizers_have_no_bound() {
        assert_eq!(shrinks(&Value::Null), Some(1));
        assert_eq!(shrinks(&json!({"type": "NFKC"})), None);
        let steps = |second: &str| {
            shrinks(
                &json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": second}]}),
            )
        };
        assert_eq!(steps("NFC"), Some(9));
        assert_eq!(steps("Strip"), None);
        let replace = |to: &str| {
            shrinks(&json!({"type": "Replace", "pattern": {"String": " "}, "content": to}))
        };
        assert_eq!((replace("▁"), replace("")), (Some(1), None));
    }
}

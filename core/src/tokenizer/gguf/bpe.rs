//! Byte-level BPE (`gpt2`): merges from the file, words cut by the pre-tokenizer that the file names.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner};

use super::{Vocabulary, refuse};
use crate::error::{Error, Result};

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

/// How a text is cut into words, and what goes with it.
#[derive(Debug, Default)]
struct Pre {
    /// Cut at single digits first.
    digits: bool,
    /// Cut by each of these in turn.
    cuts: &'static [&'static str],
    /// Characters are composed first.
    compose: bool,
    /// A word that is a token is that token, whatever merges say.
    whole_words: bool,
    /// A text starts with the model's first token where the file does not say.
    bos: bool,
}

impl Pre {
    fn find(name: &str) -> Result<Self> {
        let none = Self::default();
        Ok(match name {
            "default" => Self { cuts: &DEFAULT, ..none },
            "gpt-2" | "phi-2" | "mpt" | "olmo" => Self { cuts: &[GPT2], ..none },
            "smollm" | "starcoder" | "refact" | "codeshell" => {
                Self { digits: true, cuts: &[GPT2], ..none }
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" => {
                Self { cuts: &[LLAMA3], whole_words: true, bos: true, ..none }
            }
            "smaug-bpe" | "dbrx" => Self { cuts: &[LLAMA3], ..none },
            "qwen2" | "deepseek-r1-qwen" => Self { cuts: &[QWEN2], compose: true, ..none },
            "tekken" => Self { cuts: &[TEKKEN], whole_words: true, bos: true, ..none },
            other => {
                return Err(Error::invalid(format!(
                    "GGUF pre-tokenizer {other} is not supported; supported are default, gpt-2, smollm, llama-bpe, qwen2, tekken and their equals"
                )));
            }
        })
    }

    fn build(&self) -> Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        if self.digits {
            steps.push(Digits::new(true).into());
        }
        for cut in self.cuts {
            let pattern = SplitPattern::Regex((*cut).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(|e| refuse(PRE, &e))?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

/// The tokenizer, and whether its texts start with the model's first token unless the file says otherwise.
pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<(Inner, bool)> {
    let metadata = vocabulary.metadata;
    let pre = match metadata.text(PRE)? {
        Some(name) => Pre::find(name)?,
        None => {
            tracing::warn!("the GGUF file names no pre-tokenizer; taking the default one");
            Pre::find("default")?
        }
    };
    let merges = metadata
        .texts(MERGES)?
        .ok_or_else(|| Error::invalid(format!("GGUF key {MERGES} is missing")))?;
    let pair = |merge: &String| {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| Error::invalid(format!("GGUF merge {merge:?} is no pair")))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let vocab: Vocab = vocabulary.iter().map(|(text, id, _)| (text.to_owned(), id)).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.whole_words)
        .build()
        .map_err(|e| refuse(MERGES, &e))?;
    let mut inner = Inner::new(model);
    if pre.compose {
        inner.with_normalizer(Some(NFC)).map_err(|e| refuse(PRE, &e))?;
    }
    inner.with_pre_tokenizer(Some(pre.build()?));
    inner.with_decoder(Some(ByteLevel::default()));
    Ok((inner, pre.bos))
}

#[cfg(test)]
mod tests {
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        Pre::find(name).unwrap().build().unwrap().pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().map(|(word, ..)| word.replace('Ġ', " ")).collect()
    }

    #[test]
    fn words_are_cut_where_the_model_cuts_them() {
        let text = "HelloWORLDs 1234's";
        assert_eq!(cut("gpt-2", text), ["HelloWORLDs", " 1234", "'s"]);
        assert_eq!(cut("smollm", text), ["HelloWORLDs", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(cut("qwen2", text), ["HelloWORLDs", " ", "1", "2", "3", "4", "'s"]);
        assert_eq!(cut("llama-bpe", text), ["HelloWORLDs", " ", "123", "4", "'s"]);
        assert_eq!(cut("smaug-bpe", text), cut("llama-bpe", text));
        let tekken = ["Hello", "WORLDs", " ", "1", "2", "3", "4", "'s"];
        assert_eq!(cut("tekken", text), tekken);
        assert_eq!(cut("tekken", &"A".repeat(1 << 16)).len(), 1);
        let error = Pre::find("kimi-k2").unwrap_err().message;
        assert!(error.contains("pre-tokenizer kimi-k2 is not supported"), "{error}");
    }
}

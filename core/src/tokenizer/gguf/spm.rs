//! SentencePiece BPE (`llama`): merges rebuilt from scores, bytes for what the vocabulary lacks, `▁` for spaces.

use std::cmp::Ordering;
use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer as Inner};

use super::{TokenType, Vocabulary, refuse};
use crate::error::{Error, Result};

const SCORES: &str = "tokenizer.ggml.scores";
const SPACE: &str = "▁";

/// The tokenizer, and that its texts start with the model's first token unless the file says otherwise.
pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<(Inner, bool)> {
    let metadata = vocabulary.metadata;
    let scores = metadata
        .reals(SCORES)?
        .filter(|scores| scores.len() == vocabulary.tokens.len())
        .ok_or_else(|| {
        Error::invalid(format!("GGUF key {SCORES} has no score for each token"))
    })?;
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let vocab: Vocab = vocabulary.iter().map(|(text, id, _)| (text.to_owned(), id)).collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges(vocabulary, scores))
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some((unknown, ..)) = vocabulary.iter().find(|(.., kind)| *kind == TokenType::Unknown) {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut inner = Inner::new(builder.build().map_err(|e| refuse(SCORES, &e))?);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = Vec::new();
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|e| refuse("space", &e));
    decoders.push(replace(SPACE, " ")?.into());
    decoders.push(ByteFallback::new().into());
    decoders.push(Fuse::new().into());
    if prefix {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(replace(" ", SPACE)?.into());
    inner
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|e| refuse("normalizer", &e))?;
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok((inner, true))
}

/// Every way to make a token from two others, the best token first; among those of equal score the longest left part,
/// as transformers orders them.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<(String, String)> {
    let normal = |kind: TokenType| matches!(kind, TokenType::Normal | TokenType::Unused);
    let parts: HashMap<&str, u32> = vocabulary
        .iter()
        .filter(|(.., kind)| normal(*kind))
        .map(|(text, id, _)| (text, id))
        .collect();
    let mut found = Vec::new();
    for ((text, _, kind), score) in vocabulary.iter().zip(scores) {
        if !normal(kind) {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if parts.contains_key(left) && parts.contains_key(right) {
                found.push((*score, left, right));
            }
        }
    }
    found.sort_by(|a, b| {
        let score = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
        score.then_with(|| b.1.len().cmp(&a.1.len())).then_with(|| b.2.len().cmp(&a.2.len()))
    });
    found.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

//! Texts made to take long (test T-CPU), and the bound that spares us the longest.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn no_text_takes_long() {
    let spm = from_gguf("gguf/spm/prefix.gguf");
    let mut tokenizers = vec![("smollm", smollm()), ("spm", spm)];
    for pre in ["default", "qwen2", "llama-bpe"] {
        tokenizers.push((pre, from_gguf(&format!("gguf/bpe/{pre}.gguf"))));
    }
    for (name, tokenizer) in tokenizers {
        for unit in [
            "a",
            " ",
            "\n",
            "1",
            "!",
            "é",
            "🦀",
            "a ",
            "\u{301}",
            "'",
            "\t \n",
            "<|im_start|>",
            "<|",
        ] {
            let text = unit.repeat((1 << 16) / unit.len());
            let start = Instant::now();
            let ids = tokenizer.encode(&text, false).unwrap();
            let encoded = start.elapsed();
            assert!(tokenizer.least_tokens(&text) <= ids.len(), "{name} {unit:?}");
            let decoded = tokenizer.decode(&ids, false).unwrap();
            let both = start.elapsed();
            println!("{name:10} {unit:?} {} ids, {encoded:?}, {both:?}", ids.len());
            assert!(decoded.len() <= text.len());
            assert!(both < Duration::from_secs(5), "{name} {unit:?}: {both:?}");
        }
    }
}

#[test]
fn texts_that_cannot_fit_are_known_before_they_are_read() {
    let text = "x".repeat(1 << 20);
    let check = |tokenizer: Tokenizer, least: usize| {
        assert_eq!(tokenizer.least_tokens(""), 0);
        assert!((least..1 << 20).contains(&tokenizer.least_tokens(&text)));
    };
    check(smollm(), (1 << 20) / 81);
    check(from_gguf("gguf/bpe/qwen2.gguf"), 10_000);
    check(from_gguf("gguf/bpe/llama-bpe.gguf"), 10_000);
    check(from_gguf("gguf/spm/prefix.gguf"), 10_000);
    // Bytes that a vocabulary lacks count for nothing.
    let small = from_gguf("gguf/models/llama-f16.gguf");
    assert_eq!(small.least_tokens(&"é".repeat(1000)), 0);
    assert!(small.least_tokens(&text) > 10_000);
}

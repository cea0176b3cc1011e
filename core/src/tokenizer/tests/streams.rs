//! Streams against whole decodes.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

#[test]
fn a_continued_text_keeps_its_space() {
    let tokenizer = Arc::new(from_gguf("gguf/spm/prefix.gguf"));
    let ids = tokenizer.encode("the", false).unwrap();
    assert_eq!(streamed(&tokenizer, &ids, false), "the");
    let mut stream = TokenStream::continuing(Arc::clone(&tokenizer), false);
    let text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    assert_eq!(text, " the");
}

#[test]
fn characters_arrive_whole() {
    let bytes = Arc::new(from_gguf("gguf/bpe/gpt-2.gguf"));
    let spm = Arc::new(from_gguf("gguf/spm/no-prefix.gguf"));
    for (tokenizer, marks) in [(&bytes, 1), (&spm, 3)] {
        let id = |byte: u8| -> u32 {
            let found =
                (0..tokenizer.vocab_size() as u32).find(|id| tokenizer.token_bytes(*id) == [byte]);
            found.unwrap()
        };
        let mut stream = TokenStream::new(Arc::clone(tokenizer), true);
        let crab: Vec<_> = "🦀".bytes().map(&id).collect();
        let pushed: Vec<_> = crab.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(pushed, [None, None, None, Some("🦀".into())]);
        assert_eq!(stream.flush(), None);
        for id in &crab[..3] {
            assert_eq!(stream.push(*id), None);
        }
        let mark = "\u{fffd}".repeat(marks);
        assert_eq!(stream.flush().as_deref(), Some(&mark[..]));
        // A character that never ends gives way to the next.
        stream.push(crab[0]);
        assert_eq!(stream.push(id(b'a')).as_deref(), Some("\u{fffd}a"));
    }
}

/// Vocabularies by name, made once: byte-level ones that hold every byte first.
static TOKENIZERS: LazyLock<Vec<Arc<Tokenizer>>> = LazyLock::new(|| {
    let names = [
        "bpe/gpt-2",
        "bpe/smollm",
        "bpe/llama-bpe",
        "bpe/default",
        "bpe/qwen2",
        "spm/prefix",
        "spm/no-prefix",
        "models/llama-f16",
    ];
    names.iter().map(|name| Arc::new(from_gguf(&format!("gguf/{name}.gguf")))).collect()
});

proptest! {
    #[test]
    fn streams_say_what_decodes_say(
        ids in proptest::collection::vec(0u32..420, 0..60),
        skip in any::<bool>(),
    ) {
        for (at, tokenizer) in TOKENIZERS.iter().enumerate() {
            let decoded = tokenizer.decode(&ids, skip).unwrap();
            prop_assert_eq!(&streamed(tokenizer, &ids, skip), &decoded);
            // Byte-level decoding is that of the library, broken characters included.
            if at < 5 {
                prop_assert_eq!(tokenizer.inner.decode(&ids, skip).unwrap(), decoded);
            }
        }
    }

    #[test]
    fn texts_come_back(text in "\\PC{0,40}|[ \\t\\n0-9a-z\u{301}é🦀'.<|]{0,60}") {
        for (at, tokenizer) in TOKENIZERS.iter().enumerate() {
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert!(tokenizer.least_tokens(&text) <= ids.len());
            // The others compose characters, put a space before, or lack bytes.
            if at < 4 {
                prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
            }
        }
    }
}

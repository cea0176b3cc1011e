//! GGUF files made byte by byte: quantised ones, ones with rotary factors, and broken ones.

use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::QTensor;
use proptest::prelude::*;

use super::*;
use crate::model::RopeScaling;

/// Writes GGUF as its specification says.
#[derive(Default)]
struct Writer {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.push([&text(name)[..], &kind.to_le_bytes(), value].concat());
    }

    fn number(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    /// `shape` is slowest first.
    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: &[u8]) {
        let mut head = text(name);
        head.extend((shape.len() as u32).to_le_bytes());
        head.extend(shape.iter().rev().flat_map(|n| n.to_le_bytes()));
        head.extend(kind.to_le_bytes());
        head.extend((self.data.len() as u64).to_le_bytes());
        self.tensors.push(head);
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn floats(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// The metadata of a small Llama, and its embedding table.
fn small() -> Writer {
    let mut writer = Writer::default();
    writer.key("general.architecture", 8, &text("llama"));
    let numbers = [
        ("embedding_length", 256),
        ("block_count", 1),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 64),
    ];
    for (name, value) in numbers {
        writer.number(&format!("llama.{name}"), value);
    }
    writer.floats("token_embd.weight", &[4, 256], &[0.5; 4 * 256]);
    writer
}

fn open(bytes: &[u8]) -> Result<(GgufFile, ModelConfig)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

#[test]
fn quantised_matrices_come_out_as_candle_has_them_rounded_to_bf16() {
    let types = [
        (GgmlDType::Q4_0, 2),
        (GgmlDType::Q4_1, 3),
        (GgmlDType::Q5_0, 6),
        (GgmlDType::Q5_1, 7),
        (GgmlDType::Q8_0, 8),
        (GgmlDType::Q2K, 10),
        (GgmlDType::Q3K, 11),
        (GgmlDType::Q4K, 12),
        (GgmlDType::Q5K, 13),
        (GgmlDType::Q6K, 14),
    ];
    // More than one piece.
    let (rows, cols) = (PIECE / 256 + 3, 256);
    let values: Vec<f32> =
        (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap();
    for (kind, id) in types {
        let quantized = QTensor::quantize(&tensor, kind).unwrap();
        let mut writer = small();
        let shape = [rows as u64, cols as u64];
        writer.tensor("blk.0.ffn_up.weight", &shape, id, &quantized.data().unwrap());
        let (file, config) = open(&writer.bytes()).unwrap();
        assert_eq!(config.dtype, loraplex_kernels::DType::Bf16);
        let found = file.tensor("model.layers.0.mlp.up_proj.weight", Blocks::Widen).unwrap();
        let HostData::Bf16(found) = found.data else { panic!("{kind:?}") };
        let whole = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        let whole: Vec<_> =
            whole.to_vec1::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
        assert_eq!(found, whole, "{kind:?}");
    }
}

#[test]
fn eight_bits_are_taken_as_they_are() {
    // Rows in the order of the file, as q of the `llama` architecture has them, and more than one block a row.
    let (rows, cols) = (16, 64);
    let values: Vec<f32> =
        (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap();
    let quantized = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
    let mut writer = small();
    let shape = [rows as u64, cols as u64];
    writer.tensor("blk.0.attn_q.weight", &shape, 8, &quantized.data().unwrap());
    writer.tensor("blk.0.ffn_up.weight", &shape, 8, &quantized.data().unwrap());
    let (file, _) = open(&writer.bytes()).unwrap();
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"] {
        let kept = file.tensor(name, Blocks::KeepInt8).unwrap();
        assert!(matches!(kept.data, HostData::Int8(_)), "{name}");
        let rounded = |x: f32| bf16::from_f32(x).to_f32();
        let kept: Vec<_> = kept.to_f32().into_iter().map(rounded).collect();
        assert_eq!(kept, file.tensor(name, Blocks::Widen).unwrap().to_f32(), "{name}");
    }
}

#[test]
fn rows_of_q_and_k_are_put_back_for_llama_alone() {
    // Row numbers as the converter moves them: `reshape(heads, 2, half).swapaxes(1, 2)`.
    let moved = |heads: usize, rows: usize| -> Vec<f32> {
        let half = rows / heads / 2;
        let row = |h: usize, i: usize, j: usize| (h * 2 * half + j * half + i) as f32;
        (0..heads)
            .flat_map(|h| (0..half).flat_map(move |i| (0..2).map(move |j| row(h, i, j))))
            .collect()
    };
    let spread = |rows: &[f32]| -> Vec<f32> { rows.iter().flat_map(|v| [*v; 256]).collect() };
    let plain: Vec<f32> = (0..256).map(|v| v as f32).collect();
    for (architecture, put_back) in [("llama", true), ("qwen2", false)] {
        let mut writer = small();
        writer.keys.clear();
        writer.key("general.architecture", 8, &text(architecture));
        for (name, value) in [
            ("embedding_length", 256),
            ("block_count", 1),
            ("feed_forward_length", 256),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("context_length", 64),
        ] {
            writer.number(&format!("{architecture}.{name}"), value);
        }
        writer.floats("blk.0.attn_q.weight", &[256, 256], &spread(&moved(4, 256)));
        writer.floats("blk.0.attn_k.weight", &[128, 256], &spread(&moved(2, 128)));
        writer.floats("blk.0.attn_q.bias", &[256], &moved(4, 256));
        let (file, config) = open(&writer.bytes()).unwrap();
        assert!(config.qkv_bias);
        let q =
            file.tensor("model.layers.0.self_attn.q_proj.weight", Blocks::Widen).unwrap().to_f32();
        let k =
            file.tensor("model.layers.0.self_attn.k_proj.weight", Blocks::Widen).unwrap().to_f32();
        let bias = file.tensor("model.layers.0.self_attn.q_proj.bias", Blocks::Widen).unwrap();
        assert_eq!((bias.rows, bias.cols), (1, 256));
        if put_back {
            assert_eq!(q, spread(&plain));
            assert_eq!(k, spread(&plain[..128]));
            assert_eq!(bias.to_f32(), plain);
        } else {
            assert_eq!(q, spread(&moved(4, 256)));
            assert_eq!(bias.to_f32(), moved(4, 256));
        }
    }
}

#[test]
fn rotary_scaling_is_understood_or_refused() {
    let mut writer = small();
    writer.floats("rope_freqs.weight", &[32], &[8.0; 32]);
    let (_, config) = open(&writer.bytes()).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Factors(vec![8.0; 32]));
    let mut writer = small();
    writer.floats("rope_freqs.weight", &[31], &[8.0; 31]);
    assert!(open(&writer.bytes()).unwrap_err().message.contains("31 rotary factors"));
    let mut writer = small();
    writer.key("llama.rope.scaling.type", 8, &text("linear"));
    writer.key("llama.rope.scaling.factor", 6, &4f32.to_le_bytes());
    writer.key("llama.rope.freq_base", 6, &5e5f32.to_le_bytes());
    let (_, config) = open(&writer.bytes()).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(config.rope.theta, 5e5);
    let mut writer = small();
    writer.key("llama.rope.scaling.type", 8, &text("yarn"));
    assert!(open(&writer.bytes()).unwrap_err().message.contains("yarn"));
}

#[test]
fn broken_files_are_refused_in_one_line() {
    let check = |change: &dyn Fn(&mut Writer), expect: &str| {
        let mut writer = small();
        change(&mut writer);
        let error = open(&writer.bytes()).unwrap_err().message;
        assert!(error.contains(expect) && !error.contains('\n'), "{error}");
    };
    check(&|w| w.number("general.alignment", 0), "alignment 0");
    check(&|w| w.number("general.alignment", u32::MAX), "alignment 4294967295");
    check(&|w| w.number("llama.block_count", 2), "llama.block_count is there twice");
    check(&|w| w.number("llama.expert_count", 8), "8 experts");
    check(&|w| w.number("split.count", 2), "part of a split model");
    check(&|w| w.number("llama.attention.value_length", 32), "value_length is 32");
    check(&|w| w.number("llama.rope.dimension_count", 32), "dimension_count is 32");
    check(&|w| w.number("llama.attention.key_length", 1 << 30), "the limit is 4096");
    check(&|w| w.key("llama.logit_scale", 6, &2f32.to_le_bytes()), "logit_scale is 2");
    check(&|w| w.key("x", 13, &[]), "value type 13");
    check(&|w| w.key("x", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), "lists of type 9");
    let claim = [&8u32.to_le_bytes()[..], &(1u64 << 24).to_le_bytes()].concat();
    check(&|w| w.key("x", 9, &claim), "claims 16777216 elements");
    check(&|w| w.key("x", 8, &u64::MAX.to_le_bytes()), "characters");
    check(&|w| w.floats("token_embd.weight", &[4, 256], &[0.5; 1024]), "is there twice");
    check(&|w| w.tensor("a", &[1 << 40, 1 << 40], 0, &[]), "is too large");
    check(&|w| w.tensor("a", &[1 << 33, 1 << 33, 4], 0, &[]), "is empty or too large");
    check(&|w| w.tensor("a", &[0], 0, &[]), "is empty");
    check(&|w| w.tensor("a", &[1, 2, 3, 4, 5], 0, &[]), "has 5 dimensions");
    check(&|w| w.tensor("a", &[100], 0, &[0; 12]), "beyond the end of the file");
    check(&|w| w.tensor("a", &[2, 16], 2, &[0; 18]), "whole blocks");
    check(&|w| w.tensor("a", &[256], 23, &[0; 256]), "a: GGUF type IQ4_XS (23)");
    check(&|w| w.tensor("a", &[256], 99, &[0; 256]), "unknown (99)");
    check(&|w| w.keys.truncate(0), "architecture unnamed");
    assert!(open(b"GGML").unwrap_err().message.contains("not a GGUF file"));
    assert!(open(b"").unwrap_err().message.contains("ends inside its head"));
    let mut old = small().bytes();
    old[4] = 1;
    assert!(open(&old).unwrap_err().message.contains("version 1"));
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let bytes = small().bytes();
    std::fs::write(&path, &bytes).unwrap();
    let (file, _) = GgufFile::open(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = file.tensor("model.embed_tokens.weight", Blocks::Widen).unwrap_err().message;
    assert!(error.contains("became shorter"), "{error}");
}

/// Opens a file and reads every tensor that it admits to have.
fn read_all(path: &Path) {
    if let Ok((file, _)) = GgufFile::open(path) {
        let _ = crate::tokenizer::Tokenizer::from_gguf(&file.header.metadata);
        for name in ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"] {
            let _ = file.tensor(name, Blocks::Widen);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_change_of_bytes_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let bytes = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/models/llama-f16.gguf");
        let mut bytes = std::fs::read(bytes).unwrap();
        // The head, where everything is decided, is the first part of the file.
        let head = 9000.min(bytes.len());
        for (at, byte) in changes {
            bytes[at.index(head)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(head));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, &bytes).unwrap();
        read_all(&path);
    }
}

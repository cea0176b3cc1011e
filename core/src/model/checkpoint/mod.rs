//! A model's files: a Hugging Face folder or a GGUF file, read one tensor at a time under Hugging Face's names.
//!
//! What this module must never do: map files into memory, unpickle, follow a name out of the folder, or hand out a
//! tensor whose shape is not what the configuration says.

mod dummy;
mod folder;
pub(crate) mod gguf;
pub(crate) mod safetensors;
mod shards;
#[cfg(test)]
mod tests;

use std::path::Path;

use loraplex_kernels::{DType, HostData, HostTensor};

use self::dummy::Dummy;
use self::folder::Folder;
pub(crate) use self::folder::token_text;
use self::gguf::{Blocks, GgufFile};
use self::shards::Shards;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::tokenizer::Tokenizer;

/// Sampling defaults of a checkpoint; `None` where it has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Best `k`.
    pub top_k: Option<u32>,
    /// Relative floor.
    pub min_p: Option<f32>,
    /// Penalty for seen tokens.
    pub repetition_penalty: Option<f32>,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model's shape.
    pub config: ModelConfig,
    origin: Origin,
    weights: Weights,
    /// Threads that round linear layers to 8 bits; `None` leaves them as they are.
    int8: Option<usize>,
}

#[derive(Debug)]
enum Origin {
    Folder(Box<Folder>),
    Gguf(Box<GgufFile>),
}

#[derive(Debug)]
enum Weights {
    Shards(Shards),
    /// In the file that the checkpoint comes from.
    Gguf,
    Dummy(Dummy),
}

impl Checkpoint {
    /// Opens a folder or a `.gguf` file and checks its configuration and the places of its tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let mut checkpoint = Self::describe(path)?;
        if let Origin::Folder(folder) = &checkpoint.origin {
            let shards = Shards::open(&folder.path)?;
            if !folder.names_dtype {
                // As the matrices are, so that a folder without the word is not widened.
                let table = shards.entry("model.embed_tokens.weight");
                checkpoint.config.dtype = match table.map(|(_, entry)| entry.dtype) {
                    Some(::safetensors::Dtype::BF16) => DType::Bf16,
                    Some(::safetensors::Dtype::F16) => DType::F16,
                    _ => DType::F32,
                };
            }
            checkpoint.weights = Weights::Shards(shards);
        }
        Ok(checkpoint)
    }

    /// The same model with random weights that depend on `seed` and their names alone. Reads no tensors.
    pub fn dummy(path: &Path, seed: u64) -> Result<Self> {
        let mut checkpoint = Self::describe(path)?;
        checkpoint.weights = Weights::Dummy(Dummy::new(seed));
        Ok(checkpoint)
    }

    /// Everything but the weights of a folder.
    fn describe(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            let (file, config) = GgufFile::open(path)?;
            return Ok(Self {
                config,
                origin: Origin::Gguf(Box::new(file)),
                weights: Weights::Gguf,
                int8: None,
            });
        }
        if !path.is_dir() {
            return Err(Error::not_found(format!(
                "no model found at {}: expected a folder or a .gguf file",
                path.display()
            )));
        }
        let (folder, config) = Folder::open(path)?;
        Ok(Self {
            config,
            origin: Origin::Folder(Box::new(folder)),
            weights: Weights::Dummy(Dummy::new(0)),
            int8: None,
        })
    }

    /// Whether there is a tensor of this name, such as `model.layers.3.self_attn.q_proj.weight`.
    pub fn has(&self, name: &str) -> bool {
        match (&self.weights, &self.origin) {
            (Weights::Shards(shards), _) => shards.has(name),
            (Weights::Gguf, Origin::Gguf(file)) => file.has(name),
            (Weights::Gguf, Origin::Folder(_)) => false,
            (Weights::Dummy(dummy), _) => dummy.has(&self.config, name),
        }
    }

    /// From here on, [`linear`](Self::linear) rounds to 8 bits, on this many threads.
    pub fn hold_in_int8(&mut self, threads: usize) {
        self.int8 = Some(threads);
    }

    /// Reads a tensor. A vector comes as one row.
    pub fn tensor(&mut self, name: &str) -> Result<HostTensor> {
        match (&self.weights, &self.origin) {
            (Weights::Shards(shards), _) => shards.tensor(name),
            (Weights::Gguf, Origin::Gguf(file)) => file.tensor(name, Blocks::Widen),
            (Weights::Gguf, Origin::Folder(_)) => Err(Error::internal("a folder without weights")),
            (Weights::Dummy(dummy), _) => dummy.tensor(&self.config, name),
        }
    }

    /// Reads a tensor that must be `[rows, cols]`.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<HostTensor> {
        expect_shape(name, self.tensor(name)?, (rows, cols))
    }

    /// Reads the weight of a linear layer, which must be `[rows, cols]`. In 8 bits it is the file's own where that has
    /// them.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<HostTensor> {
        let Some(threads) = self.int8 else { return self.matrix(name, rows, cols) };
        let tensor = match (&self.weights, &self.origin) {
            (Weights::Gguf, Origin::Gguf(file)) => file.tensor(name, Blocks::KeepInt8)?,
            _ => self.tensor(name)?,
        };
        let tensor = expect_shape(name, tensor, (rows, cols))?;
        Ok(match tensor.data {
            HostData::Int8(_) => tensor,
            _ => tensor.to_int8(threads),
        })
    }

    /// Reads a tensor that must hold `len` values.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.matrix(name, 1, len)?;
        Ok(match tensor.data {
            HostData::F32(values) => values,
            _ => tensor.to_f32(),
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.origin {
            Origin::Folder(folder) => Tokenizer::from_folder(&folder.path),
            Origin::Gguf(file) => Tokenizer::from_gguf(&file.header.metadata),
        }
    }

    /// The model's chat template (Jinja).
    pub fn chat_template(&self) -> Option<String> {
        match &self.origin {
            Origin::Folder(folder) => folder.chat_template.clone(),
            Origin::Gguf(file) => {
                let template = file.header.metadata.text("tokenizer.chat_template");
                template.ok().flatten().map(str::to_owned)
            }
        }
    }

    /// `bos_token`, `eos_token`, `pad_token` and `unk_token` as text, those that the model has.
    pub fn special_tokens(&self) -> Vec<(String, String)> {
        match &self.origin {
            Origin::Folder(folder) => folder.special_tokens.clone(),
            Origin::Gguf(file) => folder::gguf_special_tokens(&file.header.metadata),
        }
    }

    /// Sampling defaults that the model brings.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        match &self.origin {
            Origin::Folder(folder) => folder.generation_defaults.clone(),
            Origin::Gguf(_) => GenerationDefaults::default(),
        }
    }
}

fn expect_shape(
    name: &str,
    tensor: HostTensor,
    (rows, cols): (usize, usize),
) -> Result<HostTensor> {
    if (tensor.rows, tensor.cols) == (rows, cols) {
        return Ok(tensor);
    }
    Err(Error::invalid(format!(
        "tensor {name} is [{}, {}], expected [{rows}, {cols}]",
        tensor.rows, tensor.cols
    )))
}

/// The elements in little-endian `bytes`.
fn floats<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(move |chunk| read(*chunk))
}

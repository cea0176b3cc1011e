//! stub
use super::config::ModelConfig;
use crate::error::*;
use crate::tokenizer::Tokenizer;
use loraplex_kernels::HostTensor;
use std::path::Path;
#[derive(Debug)]
pub struct Checkpoint {
    pub config: ModelConfig,
}
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {}
impl Checkpoint {
    pub fn open(_: &Path) -> Result<Self> {
        todo()
    }
    pub fn dummy(_: &Path, _: u64) -> Result<Self> {
        todo()
    }
    pub fn matrix(&mut self, _: &str, _: usize, _: usize) -> Result<HostTensor> {
        todo()
    }
    pub fn vector(&mut self, _: &str, _: usize) -> Result<Vec<f32>> {
        todo()
    }
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        todo()
    }
    pub fn chat_template(&self) -> Option<String> {
        None
    }
    pub fn special_tokens(&self) -> Vec<(String, String)> {
        vec![]
    }
    pub fn generation_defaults(&self) -> GenerationDefaults {
        GenerationDefaults {}
    }
}
fn todo<T>() -> Result<T> {
    Err(Error::internal("stub"))
}

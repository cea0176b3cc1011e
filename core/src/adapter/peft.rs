//! stub
use crate::error::*;
use crate::model::ModelConfig;
use loraplex_kernels::LoraWeights;
use std::path::Path;
#[derive(Debug, Default)]
pub struct PeftLimits {
    pub max_rank: usize,
}
#[derive(Debug)]
pub struct LoadedPeft {
    pub weights: LoraWeights,
    pub rank: usize,
    pub modules: usize,
    pub digest: String,
}
pub fn load(_: &Path, _: &ModelConfig, _: &PeftLimits) -> Result<LoadedPeft> {
    Err(Error::internal(""))
}

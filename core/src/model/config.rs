//! stub
use loraplex_kernels::DType;
#[derive(Debug, Clone)]
pub struct Rope;
impl Rope {
    pub fn rope_table(&self, _: usize, _: usize) -> Vec<f32> {
        vec![]
    }
}
#[derive(Debug, Clone, Copy)]
pub enum Architecture {
    Llama,
}
impl Architecture {
    pub fn name(&self) -> &'static str {
        "x"
    }
}
#[derive(Debug, Clone)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn_size: usize,
    pub vocab_size: usize,
    pub max_position: usize,
    pub rms_eps: f32,
    pub rope: Rope,
    pub tied_embeddings: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: bool,
    pub window: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
    pub dtype: DType,
}

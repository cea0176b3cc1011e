//! The decoder that all supported architectures share: Llama, Mistral, Qwen2 and Qwen3 differ in biases, norms of q and
//! k, rotation and window, which are data of [`ModelConfig`].

use loraplex_kernels::{
    AttentionOp, AttentionShape, Backend, BufferKind, GatedMlpOp, HostTensor, KvShape, ProjectOp,
    QkNorm, QkvOp, Site,
};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use crate::error::Result;

/// Weights on a backend.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    config: ModelConfig,
    shape: AttentionShape,
    embedding: B::Linear,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    /// `None`: the embedding serves as the head too.
    head: Option<B::Linear>,
    rope: B::Vector,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    input_norm: B::Vector,
    qkv: B::Linear,
    qk_norm: Option<(B::Vector, B::Vector)>,
    o: B::Linear,
    post_norm: B::Vector,
    gate_up: B::Linear,
    down: B::Linear,
}

/// Activations of one step and the cache.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    residual: B::Buffer,
    normed: B::Buffer,
    q: B::Buffer,
    attention: B::Buffer,
    mlp: B::Buffer,
    kv: B::KvCache,
}

impl<B: Backend> Workspace<B> {
    /// Room for `rows` rows over a cache of shape `kv`.
    pub fn new(backend: &mut B, config: &ModelConfig, kv: KvShape, rows: usize) -> Result<Self> {
        let heads = config.heads * config.head_dim;
        Ok(Self {
            residual: backend.buffer(BufferKind::Residual, rows, config.hidden_size)?,
            normed: backend.buffer(BufferKind::Operand, rows, config.hidden_size)?,
            q: backend.buffer(BufferKind::Operand, rows, heads)?,
            attention: backend.buffer(BufferKind::Operand, rows, heads)?,
            mlp: backend.buffer(BufferKind::Operand, rows, config.ffn_size)?,
            kv: backend.kv_cache(kv)?,
        })
    }

    /// The last norm's output: what the head reads.
    pub fn normed(&self) -> &B::Buffer {
        &self.normed
    }
}

impl<B: Backend> Decoder<B> {
    /// Reads all weights. `progress` is told how many layers are done.
    pub fn load(
        backend: &mut B,
        checkpoint: &mut Checkpoint,
        max_positions: usize,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let config = checkpoint.config.clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let table = "model.embed_tokens.weight";
        // A table that is the head too is read whole for every token, otherwise one row of it: only the first is worth bits.
        let embedding = if config.tied_embeddings {
            checkpoint.linear(table, vocab, hidden)?
        } else {
            checkpoint.matrix(table, vocab, hidden)?
        };
        let embedding = backend.upload_linear(&[embedding], None)?;
        let head = if config.tied_embeddings {
            None
        } else {
            let head = checkpoint.linear("lm_head.weight", vocab, hidden)?;
            Some(backend.upload_linear(&[head], None)?)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            progress(layer, config.layers);
            layers.push(Layer::load(backend, checkpoint, &config, layer)?);
        }
        progress(config.layers, config.layers);
        let final_norm = checkpoint.vector("model.norm.weight", hidden)?;
        let rope = config.rope.rope_table(config.head_dim, max_positions);
        Ok(Self {
            shape: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).sqrt().recip(),
                window: config.window,
            },
            embedding,
            layers,
            final_norm: backend.upload_vector(&final_norm)?,
            head,
            rope: backend.upload_vector(&rope)?,
            config,
        })
    }

    /// The architecture's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weight that makes logits.
    pub fn head(&self) -> &B::Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Runs all layers over the rows of the step that the backend has begun; [`Workspace::normed`] then holds what the
    /// head reads.
    pub fn forward(&self, backend: &mut B, ws: &mut Workspace<B>) -> Result<()> {
        let eps = self.config.rms_eps;
        backend.embed(&self.embedding, &mut ws.residual)?;
        backend.rms_norm(&ws.residual, &self.layers[0].input_norm, eps, &mut ws.normed)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let next_norm = self.layers.get(index + 1).map_or(&self.final_norm, |l| &l.input_norm);
            let norm = layer.qk_norm.as_ref().map(|(q, k)| QkNorm { q, k, eps });
            backend.qkv(QkvOp {
                layer: index,
                shape: self.shape,
                weight: &layer.qkv,
                norm,
                rope: &self.rope,
                x: &ws.normed,
                q: &mut ws.q,
                kv: &mut ws.kv,
            })?;
            backend.attention(AttentionOp {
                layer: index,
                shape: self.shape,
                q: &ws.q,
                kv: &ws.kv,
                out: &mut ws.attention,
            })?;
            backend.project(ProjectOp {
                layer: index,
                site: Site::O,
                weight: &layer.o,
                x: &ws.attention,
                residual: &mut ws.residual,
                norm: &layer.post_norm,
                eps,
                normed: &mut ws.normed,
            })?;
            backend.gated_mlp(GatedMlpOp {
                layer: index,
                weight: &layer.gate_up,
                x: &ws.normed,
                out: &mut ws.mlp,
            })?;
            backend.project(ProjectOp {
                layer: index,
                site: Site::Down,
                weight: &layer.down,
                x: &ws.mlp,
                residual: &mut ws.residual,
                norm: next_norm,
                eps,
                normed: &mut ws.normed,
            })?;
        }
        Ok(())
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        backend: &mut B,
        checkpoint: &mut Checkpoint,
        config: &ModelConfig,
        layer: usize,
    ) -> Result<Self> {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        let hidden = config.hidden_size;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let vector = |backend: &mut B, checkpoint: &mut Checkpoint, rest: &str, len: usize| {
            let values = checkpoint.vector(&name(rest), len)?;
            Ok::<_, crate::Error>(backend.upload_vector(&values)?)
        };
        let input_norm = vector(backend, checkpoint, "input_layernorm.weight", hidden)?;
        let post_norm = vector(backend, checkpoint, "post_attention_layernorm.weight", hidden)?;
        let qk_norm = if config.qk_norm {
            let d = config.head_dim;
            let q = vector(backend, checkpoint, "self_attn.q_norm.weight", d)?;
            let k = vector(backend, checkpoint, "self_attn.k_norm.weight", d)?;
            Some((q, k))
        } else {
            None
        };
        let mut stack =
            Stack { backend, checkpoint, layer, prefix: format!("model.layers.{layer}.") };
        let qkv = stack.upload(
            Site::Qkv,
            &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
            hidden,
            config.qkv_bias,
        )?;
        let o = stack.upload(Site::O, &[("self_attn.o_proj", hidden)], q, config.o_bias)?;
        let ffn = config.ffn_size;
        let gate_up = stack.upload(
            Site::GateUp,
            &[("mlp.gate_proj", ffn), ("mlp.up_proj", ffn)],
            hidden,
            config.mlp_bias,
        )?;
        let down = stack.upload(Site::Down, &[("mlp.down_proj", hidden)], ffn, config.mlp_bias)?;
        Ok(Self { input_norm, qkv, qk_norm, o, post_norm, gate_up, down })
    }
}

/// Reads projections that share their input and uploads them as one weight.
struct Stack<'a, B: Backend> {
    backend: &'a mut B,
    checkpoint: &'a mut Checkpoint,
    layer: usize,
    prefix: String,
}

impl<B: Backend> Stack<'_, B> {
    fn upload(
        &mut self,
        site: Site,
        parts: &[(&str, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<B::Linear> {
        let mut weights: Vec<HostTensor> = Vec::with_capacity(parts.len());
        let mut bias = Vec::new();
        for &(part, outputs) in parts {
            let name = format!("{}{part}", self.prefix);
            weights.push(self.checkpoint.linear(&format!("{name}.weight"), outputs, inputs)?);
            if biased {
                bias.extend(self.checkpoint.vector(&format!("{name}.bias"), outputs)?);
            }
        }
        let bias = biased.then_some(bias.as_slice());
        let weight = self.backend.upload_linear(&weights, bias)?;
        self.backend.know_site(self.layer, site, &weight)?;
        Ok(weight)
    }
}

//! The definition of every operation: plain loops in f32, written to be read.
//!
//! | module | holds |
//! |---|---|
//! | `memory` | what lives "on the device": weights, activations, cache |
//! | `step` | the metadata of a step, copied and checked |
//! | `matmul` | linear layers and what LoRA adds to them |
//! | `int8` | linear layers whose weights have 8 bits |
//! | `pointwise` | norms, rotation, activation |
//! | `attention` | paged causal attention |
//! | `packing` | adapters as one block of f32 |
//!
//! What it must never do: trade clarity for speed, or round to anything narrower than f32, but for products that are defined
//! in 8 bits. Fresh memory holds NaN, so
//! that whoever reads what nobody wrote finds out.

mod attention;
mod int8;
mod matmul;
mod memory;
mod packing;
mod pointwise;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::args::{
    AttentionOp, GatedMlpOp, KvShape, ProjectOp, QkvOp, SampleRow, Step, StepOutput,
};
use crate::backend::{AdapterPacker, Backend, BufferKind, DeviceInfo, OpCounters, StepMode};
use crate::error::Result;
use crate::sampling::{SamplingScratch, sample_row};
use crate::weights::{DType, HostTensor, PackedAdapter, Site};

pub use memory::{Adapter, Buffer, KvCache, Linear, Ticket, Vector};

use packing::Packer;
use step::StepState;

/// Rows whose logits are computed at once: what bounds the memory of [`Backend::sample`].
const LOGIT_ROWS: usize = 8;

/// A backend that computes at once, on one thread, in f32.
#[derive(Debug)]
pub struct ReferenceBackend {
    device: DeviceInfo,
    counters: OpCounters,
    step: StepState,
    /// Results of the step under way.
    output: StepOutput,
    /// Emptied results of an earlier step, for the next one to fill.
    spare: StepOutput,
    /// Tokens of the last step that ended: what [`RowToken::Sampled`](crate::RowToken) points into.
    drawn: Vec<u32>,
    logits: Vec<f32>,
    scratch: SamplingScratch,
}

impl ReferenceBackend {
    /// A backend without weights.
    pub fn new() -> Self {
        Self {
            device: DeviceInfo { name: "reference (f32, 1 thread)".into(), dtype: DType::F32 },
            counters: OpCounters::default(),
            step: StepState::default(),
            output: StepOutput::default(),
            spare: StepOutput::default(),
            drawn: Vec::new(),
            logits: Vec::new(),
            scratch: SamplingScratch::default(),
        }
    }

    /// `x Wᵀ + b + LoRA` of the step's rows: `[rows, out]`. `widths` are the outputs of the site's parts.
    fn adapted(
        &mut self,
        weight: &Linear,
        x: &Buffer,
        slot: usize,
        widths: &[usize],
    ) -> Result<Vec<f32>> {
        memory::check(
            "linear weight",
            [widths.iter().sum(), x.width],
            [weight.out, weight.inputs],
        )?;
        let x = x.rows(self.step.rows())?;
        let mut y = vec![0.0; self.step.rows() * weight.out];
        matmul::linear(weight, x, &mut y);
        for segment in &self.step.lora {
            let Some(site) = segment.adapter.site(slot) else { continue };
            let x = &x[segment.span(weight.inputs)];
            let y = &mut y[segment.span(weight.out)];
            let scaled = matmul::shrink(&segment.adapter, site, x, weight.inputs);
            self.counters.lora_shrinks += 1;
            let mut first = 0;
            for (part, &width) in site.parts.iter().zip(widths) {
                if part.rank > 0 {
                    let output = matmul::Columns { first, width, stride: weight.out };
                    matmul::expand(&segment.adapter, part, (&scaled, site.lanes), (y, output));
                    self.counters.lora_expands += 1;
                }
                first += width;
            }
        }
        Ok(y)
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for ReferenceBackend {
    type Buffer = Buffer;
    type Linear = Linear;
    type Vector = Vector;
    type KvCache = KvCache;
    type Adapter = Adapter;
    type Ticket = Ticket;

    fn device(&self) -> &DeviceInfo {
        &self.device
    }

    fn counters(&self) -> OpCounters {
        self.counters
    }

    fn upload_linear(
        &mut self,
        parts: &[HostTensor],
        bias: Option<&[f32]>,
    ) -> Result<Self::Linear> {
        Linear::stack(parts, bias)
    }

    fn upload_vector(&mut self, values: &[f32]) -> Result<Self::Vector> {
        Ok(Vector { values: values.to_vec() })
    }

    fn buffer(&mut self, _kind: BufferKind, rows: usize, width: usize) -> Result<Self::Buffer> {
        Ok(Buffer::new(rows, width))
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::KvCache> {
        Ok(KvCache::new(shape))
    }

    fn packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(Packer)
    }

    fn upload_adapter(&mut self, adapter: &Arc<PackedAdapter>) -> Result<Self::Adapter> {
        Ok(Adapter::new(adapter))
    }

    fn begin_step(&mut self, step: &Step<'_, Self::Adapter>) -> Result<StepMode> {
        self.output.clear();
        self.step.take(step, &self.drawn)?;
        self.counters.steps += 1;
        Ok(StepMode::Issue)
    }

    fn embed(&mut self, table: &Self::Linear, residual: &mut Self::Buffer) -> Result<()> {
        memory::check("embedding", residual.width, table.inputs)?;
        let out = residual.rows_mut(self.step.rows())?;
        for (out, &token) in out.chunks_exact_mut(table.inputs).zip(&self.step.tokens) {
            table.row(token, out)?;
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        residual: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        memory::check("norm", [residual.width, weight.values.len()], [out.width; 2])?;
        let x = residual.rows(self.step.rows())?;
        let out = out.rows_mut(self.step.rows())?;
        out.copy_from_slice(x);
        pointwise::rms_norm(out, &weight.values, eps);
        Ok(())
    }

    fn qkv(&mut self, op: QkvOp<'_, Self>) -> Result<()> {
        let (d, q_width) = (op.shape.head_dim, op.shape.heads * op.shape.head_dim);
        let kv_width = op.shape.kv_heads * d;
        memory::check("q and kv", [q_width, kv_width], [op.q.width, op.kv.width()])?;
        let slot = Site::Qkv.slot(op.layer);
        let mut y = self.adapted(op.weight, op.x, slot, &[q_width, kv_width, kv_width])?;
        let q_out = op.q.rows_mut(self.step.rows())?;
        let width = q_width + 2 * kv_width;
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let (q, kv) = y.split_at_mut(q_width);
            let (k, v) = kv.split_at_mut(kv_width);
            if let Some(norm) = &op.norm {
                pointwise::rms_norm(q, &norm.q.values, norm.eps);
                pointwise::rms_norm(k, &norm.k.values, norm.eps);
            }
            let angles = op.rope.row(self.step.positions[row], d)?;
            pointwise::rotate_halves(q, angles);
            pointwise::rotate_halves(k, angles);
            q_out[row * q_width..][..q_width].copy_from_slice(q);
            op.kv.write(op.layer, self.step.slots[row], (k, v))?;
        }
        Ok(())
    }

    fn attention(&mut self, op: AttentionOp<'_, Self>) -> Result<()> {
        let q_width = op.shape.heads * op.shape.head_dim;
        memory::check("attention", [q_width; 2], [op.q.width, op.out.width])?;
        let q = op.q.rows(self.step.rows())?;
        let out = op.out.rows_mut(self.step.rows())?;
        let layer = op.kv.layer(op.layer)?;
        for sequence in &self.step.sequences {
            for row in (sequence.first_row..).take(sequence.rows as usize) {
                let row = row as usize;
                let slots = self.step.seen_slots(sequence, row, op.shape.window, &op.kv.shape)?;
                let span = row * q_width..(row + 1) * q_width;
                attention::row(&op.shape, &q[span.clone()], (&layer, &slots), &mut out[span]);
            }
        }
        Ok(())
    }

    fn project(&mut self, op: ProjectOp<'_, Self>) -> Result<()> {
        let hidden = op.residual.width;
        memory::check("normed", [hidden, hidden], [op.normed.width, op.norm.values.len()])?;
        let y = self.adapted(op.weight, op.x, op.site.slot(op.layer), &[hidden])?;
        let residual = op.residual.rows_mut(self.step.rows())?;
        for (residual, y) in residual.iter_mut().zip(&y) {
            *residual += y;
        }
        let normed = op.normed.rows_mut(self.step.rows())?;
        normed.copy_from_slice(residual);
        pointwise::rms_norm(normed, &op.norm.values, op.eps);
        Ok(())
    }

    fn gated_mlp(&mut self, op: GatedMlpOp<'_, Self>) -> Result<()> {
        let ffn = op.out.width;
        let y = self.adapted(op.weight, op.x, Site::GateUp.slot(op.layer), &[ffn, ffn])?;
        let out = op.out.rows_mut(self.step.rows())?;
        for (out, y) in out.chunks_exact_mut(ffn).zip(y.chunks_exact(2 * ffn)) {
            let (gate, up) = y.split_at(ffn);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = pointwise::silu(gate) * up;
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        head: &Self::Linear,
        x: &Self::Buffer,
        rows: &[SampleRow<'_>],
    ) -> Result<()> {
        memory::check("head", x.width, head.inputs)?;
        let x = x.rows(self.step.rows())?;
        for chunk in rows.chunks(LOGIT_ROWS) {
            let mut wanted = Vec::with_capacity(chunk.len() * head.inputs);
            for row in chunk {
                memory::check_index("sampled row", row.row as usize, self.step.rows())?;
                wanted.extend_from_slice(&x[row.row as usize * head.inputs..][..head.inputs]);
            }
            self.logits.resize(chunk.len() * head.out, 0.0);
            matmul::linear(head, &wanted, &mut self.logits);
            for (row, logits) in chunk.iter().zip(self.logits.chunks_exact_mut(head.out)) {
                let own = self.step.tokens[row.row as usize];
                let sampled = sample_row(logits, row, own, &mut self.scratch);
                self.output.push(sampled, self.scratch.top());
            }
        }
        Ok(())
    }

    fn end_step(&mut self) -> Result<Self::Ticket> {
        self.drawn.clone_from(&self.output.tokens);
        Ok(Ticket { output: std::mem::replace(&mut self.output, std::mem::take(&mut self.spare)) })
    }

    fn wait(&mut self, mut ticket: Self::Ticket, out: &mut StepOutput) -> Result<()> {
        std::mem::swap(out, &mut ticket.output);
        self.spare = ticket.output;
        Ok(())
    }
}

//! The kernels of a device, compiled and loaded.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::compile::compile_all;
use super::error::Context as _;
use super::probe::Probe;
use super::product::Variant;
use crate::error::{KernelError, Result};

/// Head sizes that attention is compiled for; others are padded up to the next.
pub(super) const HEAD_SIZES: [usize; 3] = [64, 128, 256];

/// A kernel with B packed: for one slot, for several, and for prompts.
#[derive(Debug)]
pub(super) struct PackedKernel {
    one: CudaFunction,
    several: CudaFunction,
    prompts: CudaFunction,
}

impl PackedKernel {
    pub(super) fn of(&self, slots: usize, has_prompts: bool) -> &CudaFunction {
        match (has_prompts, slots) {
            (true, _) => &self.prompts,
            (false, 1) => &self.one,
            (false, _) => &self.several,
        }
    }
}

/// Attention over chunks of prompts, for heads of up to some size.
#[derive(Debug)]
pub(super) struct PrefillKernel {
    pub(super) function: CudaFunction,
    /// (Token, head) pairs that a block takes.
    pub(super) pairs: usize,
    pub(super) threads: usize,
    pub(super) shared_bytes: usize,
}

/// Every kernel of `cuda/`.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed: CudaFunction,
    pub(super) residual: CudaFunction,
    pub(super) residual_stacked: CudaFunction,
    pub(super) residual_packed: PackedKernel,
    pub(super) qkv: CudaFunction,
    pub(super) qkv_prompts: CudaFunction,
    pub(super) qkv_stacked: CudaFunction,
    pub(super) qkv_packed: PackedKernel,
    pub(super) gated_mlp: CudaFunction,
    pub(super) gated_mlp_expand: CudaFunction,
    pub(super) gated_mlp_stacked: CudaFunction,
    pub(super) gated_mlp_packed: PackedKernel,
    pub(super) stack: CudaFunction,
    pub(super) spread: CudaFunction,
    pub(super) shrink16: CudaFunction,
    pub(super) shrink64: CudaFunction,
    pub(super) expand: CudaFunction,
    products: HashMap<Variant, CudaFunction>,
    /// In the order of [`HEAD_SIZES`].
    pub(super) decode: [CudaFunction; 3],
    /// In the order of [`HEAD_SIZES`].
    pub(super) prefill: [PrefillKernel; 3],
    pub(super) gather: CudaFunction,
    pub(super) pick: CudaFunction,
    pub(super) draw: CudaFunction,
    pub(super) top: CudaFunction,
    pub(super) random_fill: CudaFunction,
}

impl Kernels {
    /// Compiles for the device, or takes what the folder `cache` holds.
    pub(super) fn load(
        context: &Arc<CudaContext>,
        probe: &Probe,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let mut modules = HashMap::new();
        for compiled in compile_all(&probe.arch(), cache)? {
            let module = context
                .load_module(Ptx::from_binary(compiled.cubin))
                .during(&format!("loading {}", compiled.name))?;
            modules.insert(compiled.name, module);
        }
        let find = |source: &str, kernel: &str| find(&modules, source, kernel);
        let packed = |name: &str, prompts: &str| {
            let find = |kernel: &str| find(&format!("{name}.cu"), kernel);
            let (one, several) = (format!("{name}_one"), format!("{name}_packed"));
            let (one, several) = (find(&one)?, find(&several)?);
            Ok::<_, KernelError>(PackedKernel { one, several, prompts: find(prompts)? })
        };
        let large = |source: &str, kernel: &str, shared: usize| {
            let function = find(source, kernel)?;
            function
                .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32)
                .during(&format!("taking shared memory for {kernel}"))?;
            Ok(function)
        };
        let prefill = |d: usize| {
            let (file, pairs, threads, shared_bytes) = if probe.capability == (9, 0) && d == 128 {
                // Five tiles and the places of keys, where 1,024 bytes begin.
                ("prefill_hopper", 128, 256, 1024 + 5 * 128 * 128 * 2 + 5 * 128 * 4)
            } else {
                // Its `Tiles`.
                let (pairs, keys) = if d > 128 { (64, 32) } else { (128, 64) };
                ("prefill", pairs, 128, (pairs + 2 * keys) * (d + 8) * 2)
            };
            let function = large(&format!("{file}.cu"), &format!("{file}{d}"), shared_bytes)?;
            Ok::<_, KernelError>(PrefillKernel { function, pairs, threads, shared_bytes })
        };
        let product = |variant: Variant| {
            let shared = variant.shared_bytes(probe.capability);
            Ok((variant, large("product.cu", &variant.name(), shared)?))
        };
        let products = Variant::all().map(product).collect::<Result<_>>()?;
        let decode = |d: usize| find("decode.cu", &format!("decode{d}"));
        let [small, medium, large] = HEAD_SIZES;
        Ok(Self {
            embed: find("embed.cu", "embed")?,
            residual: find("residual.cu", "residual")?,
            residual_stacked: find("residual.cu", "residual_stacked")?,
            residual_packed: packed("residual", "residual_prompts")?,
            qkv: find("qkv.cu", "qkv")?,
            qkv_prompts: find("qkv.cu", "qkv_prompts")?,
            qkv_stacked: find("qkv.cu", "qkv_stacked")?,
            qkv_packed: packed("qkv", "qkv_prompts_packed")?,
            gated_mlp: find("gated_mlp.cu", "gated_mlp")?,
            gated_mlp_expand: find("gated_mlp.cu", "gated_mlp_expand")?,
            gated_mlp_stacked: find("gated_mlp.cu", "gated_mlp_stacked")?,
            gated_mlp_packed: packed("gated_mlp", "gated_mlp_prompts")?,
            stack: find("stack.cu", "stack")?,
            spread: find("spread.cu", "spread")?,
            shrink16: find("shrink.cu", "shrink16")?,
            shrink64: find("shrink.cu", "shrink64")?,
            expand: find("expand.cu", "expand")?,
            products,
            decode: [decode(small)?, decode(medium)?, decode(large)?],
            prefill: [prefill(small)?, prefill(medium)?, prefill(large)?],
            gather: find("sample.cu", "gather")?,
            pick: find("sample.cu", "pick")?,
            draw: find("draw.cu", "draw")?,
            top: find("draw.cu", "top")?,
            random_fill: find("random.cu", "random_fill")?,
        })
    }

    pub(super) fn product(&self, variant: Variant) -> &CudaFunction {
        &self.products[&variant]
    }
}

fn find(
    modules: &HashMap<&str, Arc<CudaModule>>,
    source: &str,
    kernel: &str,
) -> Result<CudaFunction> {
    modules[source].load_function(kernel).during(&format!("looking for {kernel} in {source}"))
}

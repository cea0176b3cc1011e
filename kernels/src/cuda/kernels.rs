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
use crate::error::Result;

/// Head sizes that attention is compiled for; others are padded up to the next.
pub(super) const HEAD_SIZES: [usize; 3] = [64, 128, 256];

/// Every kernel of `cuda/`.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed: CudaFunction,
    pub(super) residual: CudaFunction,
    pub(super) residual_stacked: CudaFunction,
    /// For one slot, and for several.
    pub(super) residual_packed: [CudaFunction; 2],
    pub(super) qkv: CudaFunction,
    pub(super) qkv_stacked: CudaFunction,
    /// For one slot, and for several.
    pub(super) qkv_packed: [CudaFunction; 2],
    pub(super) gated_mlp: CudaFunction,
    pub(super) gated_mlp_expand: CudaFunction,
    pub(super) gated_mlp_stacked: CudaFunction,
    /// For one slot, and for several.
    pub(super) gated_mlp_packed: [CudaFunction; 2],
    pub(super) stack: CudaFunction,
    pub(super) spread: CudaFunction,
    pub(super) shrink16: CudaFunction,
    pub(super) shrink64: CudaFunction,
    pub(super) expand: CudaFunction,
    products: HashMap<Variant, CudaFunction>,
    /// In the order of [`HEAD_SIZES`].
    pub(super) decode: [CudaFunction; 3],
    /// In the order of [`HEAD_SIZES`].
    pub(super) prefill: [CudaFunction; 3],
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
        let large = |source: &str, kernel: &str, shared: usize| {
            let function = find(source, kernel)?;
            function
                .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32)
                .during(&format!("taking shared memory for {kernel}"))?;
            Ok(function)
        };
        let prefill =
            |d: usize| large("prefill.cu", &format!("prefill{d}"), prefill_shared_bytes(d));
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
            residual_packed: [
                find("residual.cu", "residual_one")?,
                find("residual.cu", "residual_packed")?,
            ],
            qkv: find("qkv.cu", "qkv")?,
            qkv_stacked: find("qkv.cu", "qkv_stacked")?,
            qkv_packed: [find("qkv.cu", "qkv_one")?, find("qkv.cu", "qkv_packed")?],
            gated_mlp: find("gated_mlp.cu", "gated_mlp")?,
            gated_mlp_expand: find("gated_mlp.cu", "gated_mlp_expand")?,
            gated_mlp_stacked: find("gated_mlp.cu", "gated_mlp_stacked")?,
            gated_mlp_packed: [
                find("gated_mlp.cu", "gated_mlp_one")?,
                find("gated_mlp.cu", "gated_mlp_packed")?,
            ],
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

/// What `Tiles` in `prefill.cu` takes: 64 rows of q, and as many keys of K and of V as a step of its loop has.
pub(super) const fn prefill_shared_bytes(d: usize) -> usize {
    let keys = if d > 128 { 32 } else { 64 };
    (64 + 2 * keys) * (d + 8) * 2
}

fn find(
    modules: &HashMap<&str, Arc<CudaModule>>,
    source: &str,
    kernel: &str,
) -> Result<CudaFunction> {
    modules[source].load_function(kernel).during(&format!("looking for {kernel} in {source}"))
}

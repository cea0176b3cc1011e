//! What kernels take, as `cuda/*.cu` declares it.

use super::gpu::KernelArgs;

/// `Lora`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Lora {
    pub(super) tiles: u64,
    pub(super) h: u64,
    pub(super) lane_stride: u32,
    pub(super) site: u32,
    pub(super) slot_lanes: u32,
    pub(super) rows: u32,
    pub(super) packed: u64,
    pub(super) parts: u64,
}

/// `SpreadArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Spread {
    pub(super) tiles: u64,
    pub(super) parts: u64,
    pub(super) rows: u32,
    pub(super) unused: u32,
}

/// `StackArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Stack {
    pub(super) sites: u64,
    pub(super) places: u64,
    pub(super) slot: u32,
    pub(super) slots: u32,
}

/// `EmbedArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Embed {
    pub(super) table: u64,
    pub(super) residual: u64,
    pub(super) tokens: u64,
    pub(super) sampled: u64,
    pub(super) stride: u32,
    pub(super) residual_stride: u32,
    pub(super) width: u32,
    pub(super) vocabulary: u32,
}

/// `Norm`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Norm {
    pub(super) squares: u64,
    pub(super) pieces: u32,
    pub(super) width: u32,
    pub(super) eps: f32,
    pub(super) of_width: f32,
}

/// `ResidualArgs`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Residual {
    pub(super) lora: Lora,
    pub(super) y: u64,
    pub(super) delta: u64,
    pub(super) bias: u64,
    pub(super) residual: u64,
    pub(super) weight: u64,
    pub(super) x: u64,
    pub(super) norm: Norm,
    pub(super) y_stride: u32,
    pub(super) stride: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
}

/// `QkvArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Qkv {
    pub(super) y: u64,
    pub(super) delta: u64,
    pub(super) bias: u64,
    pub(super) q_norm: u64,
    pub(super) k_norm: u64,
    pub(super) rope: u64,
    pub(super) positions: u64,
    pub(super) slots: u64,
    pub(super) q: u64,
    pub(super) k_cache: u64,
    pub(super) v_cache: u64,
    pub(super) y_stride: u32,
    pub(super) q_stride: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) d: u32,
    pub(super) d_padded: u32,
    pub(super) block_size: u32,
    pub(super) eps: f32,
    pub(super) rows: u32,
    pub(super) unused: u32,
    pub(super) lora: Lora,
    pub(super) norm: Norm,
}

/// `GatedArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Gated {
    pub(super) lora: Lora,
    pub(super) y: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) y_stride: u32,
    pub(super) out_stride: u32,
    pub(super) ffn: u32,
    pub(super) rows: u32,
    pub(super) delta: u64,
    pub(super) norm: Norm,
    pub(super) row_warps: u32,
    pub(super) unused: u32,
}

/// `ShrinkArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Shrink {
    pub(super) lora: Lora,
    pub(super) x: u64,
    pub(super) x_stride: u32,
    pub(super) inputs: u32,
    pub(super) chunk: u32,
    pub(super) unused: u32,
}

/// `ProductArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Product {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) y: u64,
    pub(super) rows: u32,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) shares: u32,
    pub(super) wide: u32,
    pub(super) unused: u32,
}

/// `ExpandArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Expand {
    pub(super) lora: Lora,
    pub(super) delta: u64,
    pub(super) stride: u32,
    pub(super) tiles: u32,
    pub(super) widths: [u32; 3],
    pub(super) unused: u32,
}

/// `Paged`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Paged {
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) block_tables: u64,
    pub(super) kv_heads: u32,
    pub(super) block_size: u32,
    pub(super) d: u32,
    pub(super) d_padded: u32,
}

/// `DecodeArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Decode {
    pub(super) cache: Paged,
    pub(super) items: u64,
    pub(super) q: u64,
    pub(super) out: u64,
    pub(super) sums: u64,
    pub(super) stats: u64,
    pub(super) arrived: u64,
    pub(super) stride: u32,
    pub(super) group: u32,
    pub(super) scale: f32,
    pub(super) window: u32,
    pub(super) early: u32,
    pub(super) unused: u32,
}

/// `PrefillArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Prefill {
    pub(super) cache: Paged,
    pub(super) tiles: u64,
    pub(super) q: u64,
    pub(super) out: u64,
    pub(super) stride: u32,
    pub(super) group: u32,
    pub(super) scale: f32,
    pub(super) window: u32,
}

/// `GatherArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Gather {
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) rows: u64,
    pub(super) norm: Norm,
    pub(super) stride: u32,
    pub(super) unused: u32,
}

/// `PickArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Pick {
    pub(super) logits: u64,
    pub(super) tasks: u64,
    pub(super) out: u64,
    pub(super) sampled: u64,
    pub(super) parts: u64,
    pub(super) arrived: u64,
    pub(super) stride: u32,
    pub(super) vocabulary: u32,
}

/// `DrawArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Draw {
    pub(super) logits: u64,
    pub(super) draws: u64,
    pub(super) changes: u64,
    pub(super) out: u64,
    pub(super) sampled: u64,
    pub(super) tokens: u64,
    pub(super) stride: u32,
    pub(super) vocabulary: u32,
}

/// `TopArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Top {
    pub(super) logits: u64,
    pub(super) draws: u64,
    pub(super) out: u64,
    pub(super) stride: u32,
    pub(super) vocabulary: u32,
    pub(super) most: u32,
    pub(super) unused: u32,
}

/// `RandomArgs`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Random {
    pub(super) out: u64,
    pub(super) elements: u64,
    pub(super) seed: u64,
    pub(super) amplitude: f32,
    pub(super) columns: u32,
    pub(super) stride: u32,
    pub(super) unused: u32,
}

/// Says that the types are laid out as the kernels' parameters.
macro_rules! kernel_args {
    ($($name:ident: $bytes:literal),* $(,)?) => {$(
        const _: () = assert!(size_of::<$name>() == $bytes);
        // SAFETY: `repr(C)`, numbers alone, the fields of the struct that the kernel declares, in its order.
        unsafe impl KernelArgs for $name {}
    )*};
}

kernel_args! {
    Embed: 48,
    Residual: 136,
    Qkv: 200,
    Gated: 128,
    Stack: 24,
    Spread: 24,
    Shrink: 72,
    Product: 48,
    Expand: 80,
    Decode: 112,
    Prefill: 80,
    Gather: 56,
    Pick: 56,
    Draw: 56,
    Top: 40,
    Random: 40,
}

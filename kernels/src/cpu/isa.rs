//! Which vector instructions to use, and the door through which all vector code is entered.
//!
//! A kernel is a [`Task`]: one generic function that inlines into a function compiled for the instruction set that
//! [`Arch`] stands for. Nothing else calls vector code, so nothing else has to know what the processor offers.

use crate::error::{KernelError, Result};
use crate::weights::DType;

use super::int8::Dots;
use super::operands::{Operands, Single, Widen};
use super::simd::Simd;
use super::simd::portable::Portable;

#[cfg(target_arch = "x86_64")]
use super::{
    operands::Dot,
    simd::{avx2::Avx2, avx512::Avx512},
};

/// Instruction sets that the kernels are compiled for, from the best to the one that every processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with dot products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512 without them: bf16 is widened.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// What the compiler makes of plain Rust.
    Scalar,
}

impl Isa {
    /// Every one, the one with the most instructions first.
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Scalar];

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match self {
            Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512 => avx512,
            Self::Avx2 => avx2,
            Self::Scalar => true,
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn available(self) -> bool {
        self == Self::Scalar
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        let slow = |isa| isa == Self::Avx512Bf16 && slow_dot_products();
        let usable = |isa: &Self| isa.available() && !slow(*isa);
        Self::ALL.into_iter().find(usable).unwrap_or(Self::Scalar)
    }

    /// As in the backend's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512f",
            Self::Avx2 => "avx2",
            Self::Scalar => "scalar",
        }
    }
}

/// Whether a dot product of bf16 pairs takes longer than the two FMAs that do the same. It does on Intel's processors
/// (Emerald Rapids: 84 against 145 GFLOP/s a core), and takes half as long on AMD's.
#[cfg(target_arch = "x86_64")]
fn slow_dot_products() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// There are none.
#[cfg(not(target_arch = "x86_64"))]
fn slow_dot_products() -> bool {
    false
}

/// Vector code.
pub(crate) trait Task {
    /// Runs it. Implementations are `#[inline(always)]`, so that they are compiled for the instructions of `O`.
    ///
    /// # Safety
    /// The processor has the instructions of `O`, the pointers that the task holds are valid for what it says it does,
    /// and nobody else touches what it writes.
    unsafe fn run<O: Operands>(&self);
}

/// Lengths that follow from instruction set and element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// f32 lanes of a vector.
    pub(crate) lanes: usize,
    /// Accumulators of a register tile.
    pub(crate) tile: usize,
    /// k's in one step, see [`Operands`].
    pub(crate) pair: usize,
    /// Multiply-adds in one step.
    pub(crate) parts: usize,
    /// Rows of a tile over widened weights, or 0, see [`Operands`].
    pub(crate) wide_rows: usize,
    /// Bytes of an activation.
    pub(crate) x_size: usize,
    /// Bytes of a weight.
    pub(crate) w_size: usize,
}

impl Layout {
    fn of<O: Operands>() -> Self {
        Self {
            lanes: O::S::LANES,
            tile: O::S::TILE,
            pair: O::PAIR,
            parts: O::PARTS,
            wide_rows: O::WIDE_ROWS,
            x_size: size_of::<O::X>(),
            w_size: size_of::<O::W>(),
        }
    }

    /// Outputs of a panel of weights: two vectors.
    pub(crate) const fn panel(&self) -> usize {
        2 * self.lanes
    }

    /// Steps that a sum over `k` takes.
    pub(crate) const fn steps(&self, k: usize) -> usize {
        k.div_ceil(self.pair)
    }

    /// Elements of `W` in a panel whose sums run over `k`.
    pub(crate) const fn panel_elements(&self, k: usize) -> usize {
        self.steps(k) * self.pair * self.panel()
    }
}

/// An instruction set that is known to be there, with an element type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arch {
    isa: Isa,
    wide: bool,
    layout: Layout,
    dots: Dots,
}

impl Arch {
    /// Fails when the processor lacks `isa`, or `dtype` is not one to compute in.
    pub(crate) fn new(isa: Isa, dtype: DType) -> Result<Self> {
        if !isa.available() {
            return Err(KernelError::Unsupported(format!("{} on this processor", isa.name())));
        }
        let wide = match dtype {
            DType::F32 => true,
            DType::Bf16 => false,
            DType::F16 => return Err(KernelError::Unsupported("arithmetic in f16".into())),
        };
        let layout = match (isa, wide) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, false) => Layout::of::<Dot>(),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false) => Layout::of::<Widen<(Avx512, Avx2)>>(),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, true) => Layout::of::<Single<(Avx512, Avx2)>>(),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, false) => Layout::of::<Widen<(Avx2, Avx2)>>(),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, true) => Layout::of::<Single<(Avx2, Avx2)>>(),
            (_, false) => Layout::of::<Widen<(Portable, Portable)>>(),
            (_, true) => Layout::of::<Single<(Portable, Portable)>>(),
        };
        Ok(Self { isa, wide, layout, dots: Dots::best(isa) })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// How bytes are multiplied.
    pub(crate) fn dots(&self) -> Dots {
        self.dots
    }

    /// Runs vector code.
    ///
    /// # Safety
    /// As for [`Task::run`], but for the instructions, which are there.
    pub(crate) unsafe fn run<T: Task>(&self, task: &T) {
        // SAFETY: `new` has seen that the processor has the instructions; the rest is the caller's promise.
        unsafe {
            match (self.isa, self.wide) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512Bf16, false) => x86::avx512bf16(task),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512, false) => x86::avx512::<Widen<(Avx512, Avx2)>, T>(task),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512Bf16 | Isa::Avx512, true) => {
                    x86::avx512::<Single<(Avx512, Avx2)>, T>(task)
                }
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, false) => x86::avx2::<Widen<(Avx2, Avx2)>, T>(task),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, true) => x86::avx2::<Single<(Avx2, Avx2)>, T>(task),
                (_, false) => task.run::<Widen<(Portable, Portable)>>(),
                (_, true) => task.run::<Single<(Portable, Portable)>>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Dot, Operands, Task};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) unsafe fn avx512bf16<T: Task>(task: &T) {
        // SAFETY: compiled for the instructions of `Dot`; the rest is the caller's promise.
        unsafe { task.run::<Dot>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn avx512<O: Operands, T: Task>(task: &T) {
        // SAFETY: compiled for the instructions of `O`, which is made of `Avx512`; the rest is the caller's promise.
        unsafe { task.run::<O>() }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<O: Operands, T: Task>(task: &T) {
        // SAFETY: compiled for the instructions of `O`, which is made of `Avx2`; the rest is the caller's promise.
        unsafe { task.run::<O>() }
    }
}

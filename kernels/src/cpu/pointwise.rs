//! What follows the products, element by element: norms, the residual sum, the gated activation; and embedding.

use std::ops::Range;

use super::int8;
use super::isa::Task;
use super::operands::Operands;
use super::pack::CpuLinear;
use super::simd::{Simd, silu, sum_of_squares};

/// `out = rms_norm(x) * weight`, for some rows.
#[derive(Debug)]
pub(crate) struct Norm<'a> {
    pub(crate) rows: usize,
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    /// One an element of a row.
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    /// Elements of `X`.
    pub(crate) out: *mut u8,
    pub(crate) out_stride: usize,
}

impl Task for Norm<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let n = self.weight.len();
        for row in 0..self.rows {
            // SAFETY: the row has `n` elements.
            unsafe {
                let x = self.x.add(row * self.x_stride);
                let mean = sum_of_squares::<O::S>(x, n) / n as f32;
                let factor = 1.0 / (mean + self.eps).sqrt();
                let out = self.out.cast::<O::X>().add(row * self.out_stride);
                for (i, weight) in self.weight.iter().enumerate() {
                    out.add(i).write(O::to_x(*x.add(i) * factor * weight));
                }
            }
        }
    }
}

/// `residual += c + bias`, for some rows and columns.
#[derive(Debug)]
pub(crate) struct AddResidual<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) c: *const f32,
    pub(crate) c_stride: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) residual: *mut f32,
    pub(crate) stride: usize,
}

impl Task for AddResidual<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        for row in 0..self.rows {
            // SAFETY: both rows have the columns, and the residual's are this task's.
            unsafe {
                let c = std::slice::from_raw_parts(self.c.add(row * self.c_stride), self.columns);
                let to = self.residual.add(row * self.stride);
                let to = std::slice::from_raw_parts_mut(to, self.columns);
                match self.bias {
                    None => to.iter_mut().zip(c).for_each(|(to, c)| *to += c),
                    Some(bias) => {
                        for ((to, c), bias) in to.iter_mut().zip(c).zip(bias) {
                            *to += c + bias;
                        }
                    }
                }
            }
        }
    }
}

/// `out = silu(gate + bias) * (up + bias)`, for some rows and columns.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// In the scratch tile; overwritten, to the end of the last vector.
    pub(crate) gate: *mut f32,
    /// In the scratch tile; read to the end of the last vector.
    pub(crate) up: *const f32,
    pub(crate) c_stride: usize,
    /// Biases of gate and up.
    pub(crate) bias: Option<[&'a [f32]; 2]>,
    /// Elements of `X`.
    pub(crate) out: *mut u8,
    pub(crate) out_stride: usize,
}

impl Task for Gate<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        for row in 0..self.rows {
            // SAFETY: the scratch tile has a panel's width of room past the columns; the columns of `out` are this
            // task's.
            unsafe {
                let gate = self.gate.add(row * self.c_stride);
                let up = self.up.add(row * self.c_stride);
                for i in (0..self.columns).step_by(O::S::LANES) {
                    let mut g = O::S::load(gate.add(i));
                    let mut u = O::S::load(up.add(i));
                    if let Some([gate_bias, up_bias]) = self.bias {
                        g = O::S::add(g, load_part::<O::S>(&gate_bias[i..]));
                        u = O::S::add(u, load_part::<O::S>(&up_bias[i..]));
                    }
                    O::S::store(gate.add(i), O::S::mul(silu::<O::S>(g), u));
                }
                let out = self.out.cast::<O::X>().add(row * self.out_stride);
                convert::<O>(gate, self.columns, out);
            }
        }
    }
}

/// Up to a vector of `from`, filled up with zeros.
///
/// # Safety
/// The instructions of `S` are there.
#[inline(always)]
unsafe fn load_part<S: Simd>(from: &[f32]) -> S::F {
    // SAFETY: either slice holds a vector.
    unsafe {
        if from.len() >= S::LANES {
            return S::load(from.as_ptr());
        }
        let mut whole = [0.0; 16];
        whole[..from.len()].copy_from_slice(from);
        S::load(whole.as_ptr())
    }
}

/// Rounds `n` values to operands.
///
/// # Safety
/// Both pointers hold `n` elements.
#[inline(always)]
pub(crate) unsafe fn convert<O: Operands>(from: *const f32, n: usize, to: *mut O::X) {
    for i in 0..n {
        // SAFETY: the caller's promise.
        unsafe { to.add(i).write(O::to_x(*from.add(i))) };
    }
}

/// `residual = table[token]`, for one row.
#[derive(Debug)]
pub(crate) struct Embed<'a> {
    pub(crate) table: &'a CpuLinear,
    pub(crate) token: usize,
    pub(crate) residual: *mut f32,
}

impl Task for Embed<'_> {
    #[inline(always)]
    unsafe fn run<O: Operands>(&self) {
        let width = 2 * O::S::LANES;
        let lane = self.token % width;
        let panel = self.token / width;
        if self.table.int8 {
            let panel = self.table.panel(panel);
            for k in 0..self.table.inputs {
                // SAFETY: within the panel and the row.
                unsafe { self.residual.add(k).write(int8::at(panel, width, (lane, k))) };
            }
            return;
        }
        let panel = self.table.panel::<O::W>(panel);
        for k in 0..self.table.inputs {
            let at = (k / O::PAIR * width + lane) * O::PAIR + k % O::PAIR;
            // SAFETY: within the panel and the row.
            unsafe { self.residual.add(k).write(O::w_to_f32(panel.add(at).read())) };
        }
    }
}

/// Rows that tasks take one after the other.
pub(crate) fn rows_of(task: usize, per_task: usize, rows: usize) -> Range<usize> {
    task * per_task..rows.min((task + 1) * per_task)
}

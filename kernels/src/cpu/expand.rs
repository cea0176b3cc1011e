//! The kernel of an expand of one row: `c += h Bᵀ`, over neighbouring panels of B.
//!
//! B is short and was asked for before, so that nothing is asked for here. A sum runs as in [`tile`](super::tile), so that
//! a row's bits are the same where others share its adapter.

use super::operands::Operands;
use super::simd::Simd;

/// Some panels of B, two vectors each.
pub(crate) struct RowExpand<O: Operands> {
    /// The row's lanes.
    pub(crate) h: *const O::X,
    pub(crate) b: *const O::W,
    /// Elements from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) panels: usize,
    /// Steps of the sum over the rank.
    pub(crate) steps: usize,
    pub(crate) c: *mut f32,
}

impl<O: Operands> RowExpand<O> {
    /// # Safety
    /// The instructions of `O` are there, `h` and the panels are readable, `c` is this task's.
    #[inline(always)]
    pub(crate) unsafe fn run(&self) {
        let mut panel = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while panel + 4 <= self.panels {
                self.columns::<8>(panel);
                panel += 4;
            }
            if panel + 2 <= self.panels {
                self.columns::<4>(panel);
                panel += 2;
            }
            if panel < self.panels {
                self.columns::<2>(panel);
            }
        }
    }

    /// The columns of `P` vectors from `panel` on.
    ///
    /// # Safety
    /// As for [`RowExpand::run`].
    #[inline(always)]
    unsafe fn columns<const P: usize>(&self, panel: usize) {
        let vector = O::S::LANES * O::PAIR;
        // SAFETY: the caller's promise.
        unsafe {
            let mut b = self.b.add(panel * self.stride);
            let mut h = self.h;
            let c = self.c.add(panel * 2 * O::S::LANES);
            let mut acc = [O::S::splat(0.0); P];
            for (p, acc) in acc.iter_mut().enumerate() {
                *acc = O::S::load(c.add(p * O::S::LANES));
            }
            for _ in 0..self.steps {
                for (p, acc) in acc.iter_mut().enumerate() {
                    let w = b.add(p / 2 * self.stride + p % 2 * vector);
                    for part in 0..O::PARTS {
                        *acc = O::mac(*acc, O::weights(w, part), O::broadcast(h, part));
                    }
                }
                b = b.add(2 * vector);
                h = h.add(O::PAIR);
            }
            for (p, acc) in acc.iter().enumerate() {
                O::S::store(c.add(p * O::S::LANES), *acc);
            }
        }
    }
}

//! Adapters in this backend's layout: A of a site's parts stacked over lanes, B in panels like the weights'.
//!
//! A part's rank takes as many lanes as its step needs (an even number with bf16), nothing is padded to a largest rank.
//! The lanes lie in panels of one vector, the last of which has 8 lanes where these are enough.

use std::sync::Arc;

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::backend::AdapterPacker;
use crate::error::Result;
use crate::weights::{
    AdapterMemory, HostTensor, LoraPart, LoraWeights, PackedAdapter, PackedPart, PackedSite, Part,
    Site,
};

use super::isa::{Arch, Layout};
use super::pack::{PackPanel, SourceRow, shape};
use super::shared::SharedMut;

/// Lanes of the narrow panel.
pub(crate) const NARROW: usize = 8;
/// Every matrix starts at a cache line.
const ALIGN: usize = 64;

/// An adapter that steps can use. Cloning shares it.
#[derive(Debug, Clone)]
pub struct CpuAdapter(pub(crate) Arc<PackedAdapter>);

/// Packs adapters.
#[derive(Debug)]
pub(crate) struct Packer {
    pub(crate) arch: Arch,
}

/// Panels of a shrink: `wide` of a whole vector, then perhaps one of [`NARROW`] lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LanePanels {
    pub(crate) wide: usize,
    pub(crate) narrow: bool,
}

impl LanePanels {
    pub(crate) fn of(lanes: usize, layout: Layout) -> Self {
        let (whole, rest) = (lanes / layout.lanes, lanes % layout.lanes);
        let narrow = layout.lanes > NARROW && (1..=NARROW).contains(&rest);
        Self { wide: whole + usize::from(rest > 0 && !narrow), narrow }
    }

    /// Panels of both kinds.
    pub(crate) fn count(self) -> usize {
        self.wide + usize::from(self.narrow)
    }

    /// Lanes that the panels have.
    pub(crate) fn lanes(self, layout: Layout) -> usize {
        self.wide * layout.lanes + usize::from(self.narrow) * NARROW
    }

    /// Bytes of A with `k` columns.
    pub(crate) fn bytes(self, layout: Layout, k: usize) -> usize {
        self.lanes(layout) * layout.steps(k) * layout.pair * layout.w_size
    }
}

/// Bytes of B with `out` rows and this rank.
pub(crate) fn expand_bytes(layout: Layout, out: usize, rank: usize) -> usize {
    out.div_ceil(layout.panel()) * layout.panel_elements(rank) * layout.w_size
}

impl AdapterPacker for Packer {
    fn pack(
        &self,
        layers: usize,
        weights: &LoraWeights,
        memory: &AdapterMemory,
    ) -> Result<PackedAdapter> {
        let layout = self.arch.layout();
        let mut parts: Vec<Option<&LoraPart>> = vec![None; layers * Part::ALL.len()];
        for part in &weights.parts {
            check(part, layers)?;
            parts[part.layer * Part::ALL.len() + part.part as usize] = Some(part);
        }
        let of = |layer: usize, part: Part| parts[layer * Part::ALL.len() + part as usize];
        let mut sites = vec![None; layers * Site::ALL.len()];
        let mut len = 0;
        let mut max_rank = 0;
        for layer in 0..layers {
            for site in Site::ALL {
                let found = site.parts().iter().map(|&part| of(layer, part));
                let Some(packed) = place(layout, found, &mut len)? else { continue };
                max_rank = packed.parts.iter().map(|part| part.rank).fold(max_rank, usize::max);
                sites[site.slot(layer)] = Some(packed);
            }
        }
        // Panels are written whole; nobody reads what lies between matrices.
        let mut bytes = memory.take(len);
        let to = SharedMut::new(bytes.as_mut_ptr());
        (0..layers).into_par_iter().for_each(|layer| {
            for site in Site::ALL {
                if let Some(packed) = &sites[site.slot(layer)] {
                    let found = site.parts().iter().map(|&part| of(layer, part));
                    self.fill(packed, found, to.get());
                }
            }
        });
        Ok(PackedAdapter { bytes, sites, max_rank })
    }
}

impl Packer {
    /// Packs the matrices of a site at the places that [`place`] gave them.
    fn fill<'a>(
        &self,
        site: &PackedSite,
        parts: impl Iterator<Item = Option<&'a LoraPart>>,
        bytes: *mut u8,
    ) {
        let layout = self.arch.layout();
        let mut rows = vec![None; LanePanels::of(site.lanes, layout).lanes(layout)];
        let mut k = 0;
        for (packed, part) in site.parts.iter().zip(parts) {
            let Some(part) = part else { continue };
            k = part.a.cols;
            for (row, lane) in (packed.lane..).take(packed.rank).enumerate() {
                rows[lane] = Some(SourceRow::new(&part.a, row));
            }
            self.expand_panels(&part.b, bytes.wrapping_add(packed.b));
        }
        let mut to = bytes.wrapping_add(site.a);
        for rows in rows.chunks(layout.lanes) {
            // SAFETY: `place` made room for whole panels of A there, and one thread alone has a layer.
            unsafe { self.arch.run(&PackPanel { rows, k, to }) };
            to = to.wrapping_add(rows.len() * layout.steps(k) * layout.pair * layout.w_size);
        }
    }

    /// Packs B.
    fn expand_panels(&self, b: &HostTensor, to: *mut u8) {
        let layout = self.arch.layout();
        let bytes = layout.panel_elements(b.cols) * layout.w_size;
        let source = SourceRow::new(b, 0);
        for panel in 0..b.rows.div_ceil(layout.panel()) {
            let first = panel * layout.panel();
            let rows: Vec<_> = (first..first + layout.panel())
                .map(|row| (row < b.rows).then(|| source.at(row)))
                .collect();
            let to = to.wrapping_add(panel * bytes);
            // SAFETY: `place` made room for whole panels of B there, and one thread alone has a layer.
            unsafe { self.arch.run(&PackPanel { rows: &rows, k: b.cols, to }) };
        }
    }
}

/// Gives the matrices of a site their places from `len` on. `None` where the adapter leaves the site alone.
fn place<'a>(
    layout: Layout,
    parts: impl Iterator<Item = Option<&'a LoraPart>>,
    len: &mut usize,
) -> Result<Option<PackedSite>> {
    let mut site = PackedSite { a: *len, ..PackedSite::default() };
    let mut inputs = None;
    let mut b_len = 0;
    for (packed, part) in site.parts.iter_mut().zip(parts) {
        let Some(part) = part else { continue };
        let k = *inputs.get_or_insert(part.a.cols);
        if part.a.cols != k {
            return Err(shape("columns of the A matrices of a site", k, part.a.cols));
        }
        let rank = part.rank();
        *packed = PackedPart { rank, lane: site.lanes, scale: part.scale, b: b_len };
        site.lanes += layout.steps(rank) * layout.pair;
        b_len += expand_bytes(layout, part.b.rows, rank).next_multiple_of(ALIGN);
    }
    let Some(k) = inputs else { return Ok(None) };
    let a_bytes = LanePanels::of(site.lanes, layout).bytes(layout, k).next_multiple_of(ALIGN);
    for part in site.parts.iter_mut().filter(|part| part.rank > 0) {
        part.b += *len + a_bytes;
    }
    *len += a_bytes + b_len;
    Ok(Some(site))
}

fn check(part: &LoraPart, layers: usize) -> Result<()> {
    if part.layer >= layers {
        return Err(shape("layers of an adapter", layers, part.layer + 1));
    }
    if part.a.rows == 0 || part.b.cols != part.a.rows {
        return Err(shape("rank of an adapter's B", part.a.rows.max(1), part.b.cols));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::weights::DType;
    use crate::weights::testing::packer_contract;

    #[test]
    fn adapters_are_packed_from_any_bytes_into_any_memory() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for dtype in [DType::F32, DType::Bf16] {
                packer_contract(&Packer { arch: Arch::new(isa, dtype).unwrap() });
            }
        }
    }
}

//! Adapters as one block of f32: for each site the A matrices, stacked, then each part's B.

use crate::backend::AdapterPacker;
use crate::error::{KernelError, Result};
use crate::weights::{
    AdapterMemory, AlignedBytes, LoraPart, LoraWeights, PackedAdapter, PackedPart, PackedSite, Site,
};

use super::memory::check;

/// Lays out A as `[lanes, in]`, one lane a rank, and B as `[out, rank]`, both as the checkpoint has them.
#[derive(Debug)]
pub(super) struct Packer;

impl AdapterPacker for Packer {
    fn pack(
        &self,
        layers: usize,
        weights: &LoraWeights,
        _: &AdapterMemory,
    ) -> Result<PackedAdapter> {
        let mut parts: Vec<Option<&LoraPart>> = vec![None; layers * SLOT_PARTS];
        for part in &weights.parts {
            check("columns of B", part.rank(), part.b.cols)?;
            let place = part.part.site().slot(part.layer) * PARTS + part.part.index();
            let entry = parts.get_mut(place).ok_or_else(|| KernelError::Shape {
                what: "layer of an adapter".into(),
                expected: format!("below {layers}"),
                found: format!("{}", part.layer),
            })?;
            *entry = Some(part);
        }
        let mut values = Vec::new();
        let sites = parts
            .chunks_exact(PARTS)
            .map(|parts| pack_site(parts, &mut values))
            .collect::<Result<_>>()?;
        let max_rank = weights.parts.iter().map(LoraPart::rank).max().unwrap_or(0);
        Ok(PackedAdapter { bytes: AlignedBytes::from_f32s(&values), sites, max_rank })
    }
}

/// Places for parts in a site; some stay empty.
const PARTS: usize = 3;
/// Places for parts in a layer.
const SLOT_PARTS: usize = Site::ALL.len() * PARTS;

/// Appends the matrices of one site to `values`.
fn pack_site(parts: &[Option<&LoraPart>], values: &mut Vec<f32>) -> Result<Option<PackedSite>> {
    let offset = |values: &Vec<f32>| values.len() * size_of::<f32>();
    let mut site = PackedSite { a: offset(values), ..PackedSite::default() };
    let mut inputs = None;
    for (packed, part) in site.parts.iter_mut().zip(parts) {
        let Some(part) = part else { continue };
        let inputs = *inputs.get_or_insert(part.a.cols);
        check("columns of A", inputs, part.a.cols)?;
        *packed = PackedPart { rank: part.rank(), lane: site.lanes, scale: part.scale, b: 0 };
        site.lanes += part.rank();
        values.extend(part.a.to_f32());
    }
    for (packed, part) in site.parts.iter_mut().zip(parts) {
        let Some(part) = part else { continue };
        packed.b = offset(values);
        values.extend(part.b.to_f32());
    }
    Ok((site.lanes > 0).then_some(site))
}

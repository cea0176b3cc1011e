//! Adapters: packed on the host as one block, resident as one block with a table of its sites.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::CudaEvent;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::copier::Copier;
use super::error::{Context as _, check};
use super::gpu::Gpu;
use super::memory::{Block, Number, padded};
use super::spares::Spares;
use super::staging::Staging;
use super::weights::write_rows;
use crate::backend::AdapterPacker;
use crate::error::{KernelError, Result};
use crate::weights::{
    AdapterMemory, HostTensor, LoraPart, LoraWeights, PackedAdapter, PackedPart, PackedSite, Site,
};

/// Places for parts in a site; some stay empty.
pub(super) const PARTS: usize = 3;
/// Places for parts in a layer.
const LAYER_PARTS: usize = Site::ALL.len() * PARTS;

/// Lays out, for each site, A as `[lanes, inputs]` and each part's B as `[outputs, rank]`, in bf16 with inputs and ranks
/// rounded up to 8: rows start at multiples of 16 bytes, and a rank costs no more than the next multiple of 8.
#[derive(Debug)]
pub(super) struct Packer;

impl AdapterPacker for Packer {
    fn pack(
        &self,
        layers: usize,
        weights: &LoraWeights,
        memory: &AdapterMemory,
    ) -> Result<PackedAdapter> {
        let mut parts: Vec<Option<&LoraPart>> = vec![None; layers * LAYER_PARTS];
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
        let count: usize = parts.iter().flatten().map(|part| elements(part)).sum();
        let mut bytes = memory.take(count * size_of::<u16>());
        // SAFETY: as many initialised bytes as `count` numbers take, aligned to 64, with one owner.
        let words = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), count) };
        let mut layout = Layout { free: words, used: 0, matrices: Vec::new() };
        let sites =
            parts.chunks_exact(PARTS).map(|parts| layout.site(parts)).collect::<Result<_>>()?;
        // Together the matrices are all of it.
        layout.matrices.into_par_iter().for_each(|matrix| matrix.write());
        let max_rank = weights.parts.iter().map(LoraPart::rank).max().unwrap_or(0);
        Ok(PackedAdapter { bytes, sites, max_rank })
    }
}

/// Elements of a part, packed.
fn elements(part: &LoraPart) -> usize {
    padded(part.rank()) * (padded(part.a.cols) + part.b.rows)
}

/// A packed adapter whose matrices get their places.
struct Layout<'a> {
    free: &'a mut [u16],
    used: usize,
    matrices: Vec<Matrix<'a>>,
}

/// A matrix that is to be written as `[rows, stride]`, zeros below the tensor.
struct Matrix<'a> {
    tensor: &'a HostTensor,
    stride: usize,
    out: &'a mut [u16],
}

impl Matrix<'_> {
    fn write(self) {
        write_rows(self.tensor, self.stride, self.out);
    }
}

impl<'a> Layout<'a> {
    /// Appends the matrices of one site.
    fn site(&mut self, parts: &[Option<&'a LoraPart>]) -> Result<Option<PackedSite>> {
        let mut site = PackedSite { a: self.offset(), ..PackedSite::default() };
        let mut inputs = None;
        for (packed, part) in site.parts.iter_mut().zip(parts) {
            let Some(part) = part.filter(|part| part.rank() > 0) else { continue };
            let inputs = *inputs.get_or_insert(part.a.cols);
            check("columns of A", inputs, part.a.cols)?;
            *packed = PackedPart { rank: part.rank(), lane: site.lanes, scale: part.scale, b: 0 };
            site.lanes += padded(part.rank());
            self.append(&part.a, padded(part.rank()), padded(inputs));
        }
        for (packed, part) in site.parts.iter_mut().zip(parts) {
            let Some(part) = part.filter(|part| part.rank() > 0) else { continue };
            packed.b = self.offset();
            self.append(&part.b, part.b.rows, padded(part.rank()));
        }
        Ok((site.lanes > 0).then_some(site))
    }

    /// Bytes used.
    fn offset(&self) -> usize {
        self.used * size_of::<u16>()
    }

    fn append(&mut self, tensor: &'a HostTensor, rows: usize, stride: usize) {
        let (out, free) = std::mem::take(&mut self.free).split_at_mut(rows * stride);
        self.free = free;
        self.used += out.len();
        self.matrices.push(Matrix { tensor, stride, out });
    }
}

/// An adapter on the device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Adapter {
    resident: Arc<Resident>,
}

#[derive(Debug)]
pub(super) struct Resident {
    /// The packed bytes, then the table of sites. `None` only while it is dropped.
    block: Option<Block>,
    table: u64,
    packed: Arc<PackedAdapter>,
    room: Arc<AdapterRoom>,
    /// How the copy ended.
    copied: OnceLock<std::result::Result<(), String>>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.room.lock().put(block.bytes(), block);
        }
    }
}

/// The device's memory for adapters, of those that are gone too.
#[derive(Debug, Default)]
pub(super) struct AdapterRoom {
    spares: Mutex<Spares<Block>>,
}

impl AdapterRoom {
    /// A block of that size, new or used before.
    fn take(&self, gpu: &Arc<Gpu>, bytes: usize) -> Result<Block> {
        let mut spares = self.lock();
        if let Some(block) = spares.take(bytes) {
            return Ok(block);
        }
        spares.make_way(bytes);
        let block = match Block::new(gpu, bytes, "an adapter") {
            Err(KernelError::OutOfMemory { .. }) if !spares.is_empty() => {
                spares.clear();
                Block::new(gpu, bytes, "an adapter")?
            }
            other => other?,
        };
        spares.count(bytes);
        Ok(block)
    }

    /// Gives the device back what no adapter uses.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Spares<Block>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `LoraSite` of `lora.cuh`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct SiteEntry {
    a: u64,
    lanes: u32,
    unused: u32,
    parts: [PartEntry; PARTS],
}

/// `LoraPart` of `lora.cuh`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct PartEntry {
    b: u64,
    rank: u32,
    lane: u32,
    scale: f32,
    slot: u32,
}

/// Bytes of that.
pub(super) const PART_BYTES: usize = size_of::<PartEntry>();

// SAFETY: numbers alone, without padding.
unsafe impl Number for SiteEntry {}

impl Adapter {
    /// Has an adapter copied. `idle` is recorded on the compute stream first: the copy waits for the steps before it,
    /// which may still read what lay there.
    pub(super) fn upload(
        gpu: &Arc<Gpu>,
        (copier, room): (&Copier, &Arc<AdapterRoom>),
        packed: &Arc<PackedAdapter>,
        idle: &CudaEvent,
    ) -> Result<Self> {
        let bytes = packed.bytes.len().next_multiple_of(64);
        let block = room.take(gpu, bytes + packed.sites.len() * size_of::<SiteEntry>())?;
        idle.record(&gpu.compute).during("ordering an adapter's copy")?;
        gpu.copy.wait(idle).during("ordering an adapter's copy")?;
        let resident = Arc::new(Resident {
            table: block.address() + bytes as u64,
            block: Some(block),
            packed: packed.clone(),
            room: room.clone(),
            copied: OnceLock::new(),
        });
        copier.copy(resident.clone())?;
        Ok(Self { resident })
    }

    /// Whether its copy has ended, well or not.
    pub(super) fn has_arrived(&self) -> bool {
        self.resident.copied.get().is_some()
    }

    /// Waits for its copy.
    pub(super) fn wait(&self) -> Result<()> {
        self.resident.copied.wait().clone().map_err(KernelError::Device)
    }

    /// Address of the table of sites.
    pub(super) fn table(&self) -> u64 {
        self.resident.table
    }

    /// Tells adapters apart, those that are gone included.
    pub(super) fn resident(&self) -> Weak<Resident> {
        Arc::downgrade(&self.resident)
    }

    /// The largest of its ranks.
    pub(super) fn max_rank(&self) -> usize {
        self.resident.packed.max_rank
    }

    /// Indexed by [`Site::slot`].
    pub(super) fn sites(&self) -> &[Option<PackedSite>] {
        &self.resident.packed.sites
    }
}

impl Resident {
    /// Copies it, and tells those who wait how that ended.
    pub(super) fn copy(&self, staging: &mut Staging) {
        let copied = self.send(staging).and_then(|()| staging.finish());
        // Nobody else sets it.
        let _ = self.copied.set(copied.map_err(|error| error.to_string()));
    }

    /// Tells those who wait that nobody copies it.
    pub(super) fn give_up(&self, why: &str) {
        let _ = self.copied.set(Err(why.to_owned()));
    }

    fn send(&self, staging: &mut Staging) -> Result<()> {
        let Some(block) = &self.block else { return Ok(()) };
        let from = self.packed.bytes.as_slice();
        let sites = self.packed.sites.iter();
        let entries: Vec<SiteEntry> =
            sites.map(|site| entry(site.as_ref(), block.address())).collect();
        // SAFETY: the block has room for both, and the copy stream waits for its last readers (`Adapter::upload`).
        unsafe {
            staging.send(block.address(), (from.len(), 1), |range, out: &mut [u8]| {
                out.copy_from_slice(&from[range]);
            })?;
            staging.send(self.table, (entries.len(), 1), |range, out: &mut [SiteEntry]| {
                out.copy_from_slice(&entries[range]);
            })
        }
    }
}

fn entry(site: Option<&PackedSite>, base: u64) -> SiteEntry {
    let Some(site) = site else { return SiteEntry::default() };
    let part = |part: PackedPart| PartEntry {
        b: base + part.b as u64,
        rank: part.rank as u32,
        lane: part.lane as u32,
        scale: part.scale,
        slot: 0,
    };
    SiteEntry {
        a: base + site.a as u64,
        lanes: site.lanes as u32,
        unused: 0,
        parts: site.parts.map(part),
    }
}

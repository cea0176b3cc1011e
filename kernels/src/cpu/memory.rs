//! Memory for weights, caches and activations: zeroed, aligned to 64 bytes, in huge pages where it is large.

use std::sync::Arc;

use crate::error::{KernelError, Result};

/// Of every region, so that vectors never straddle cache lines.
const ALIGN: usize = 64;
/// A huge page on x86-64 and most other processors.
const HUGE: usize = 2 << 20;
/// Least size of a mapping that an [`Arena`] makes.
const CHUNK: usize = 64 << 20;

/// An anonymous mapping: zero until written, and without memory behind it until touched.
#[derive(Debug)]
struct Mapping {
    /// As mapped.
    base: *mut u8,
    mapped: usize,
    /// First multiple of [`HUGE`] in it.
    start: *mut u8,
}

// SAFETY: memory belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: a mapping is never written through a shared reference to it; regions of it are, see `Memory`.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize, what: &'static str) -> Result<Self> {
        let mapped = len.next_multiple_of(HUGE) + HUGE;
        // SAFETY: a new private mapping, placed by the system.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(KernelError::OutOfMemory { device: "cpu".into(), what, wanted: len });
        }
        let base = base.cast::<u8>();
        let start = base.wrapping_add(base.align_offset(HUGE));
        // A huge page for a little memory is two megabytes to clear for nothing.
        if len >= HUGE {
            advise_huge_pages(start, len.next_multiple_of(HUGE));
        }
        Ok(Self { base, mapped, start })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and whoever points into it holds it.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

/// Asks for huge pages behind untouched memory; where the system has none to give, ordinary ones do.
pub(crate) fn advise_huge_pages(start: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    {
        let skip = start.align_offset(4096);
        if len > skip {
            // SAFETY: advice changes no contents; the range lies within the caller's memory.
            unsafe {
                libc::madvise(start.wrapping_add(skip).cast(), len - skip, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

/// A region of memory. Owned: the one [`Memory`] for it decides who reads and writes.
#[derive(Debug)]
pub(crate) struct Memory {
    start: *mut u8,
    len: usize,
    /// Keeps the memory mapped.
    _mapping: Arc<Mapping>,
}

// SAFETY: a region belongs to one `Memory` and to no thread.
unsafe impl Send for Memory {}
// SAFETY: shared references give out addresses only; whoever uses them answers for it.
unsafe impl Sync for Memory {}

impl Memory {
    /// A region with a mapping of its own.
    pub(crate) fn new(len: usize, what: &'static str) -> Result<Self> {
        let mapping = Arc::new(Mapping::new(len.max(1), what)?);
        Ok(Self { start: mapping.start, len, _mapping: mapping })
    }

    /// Address of the first byte.
    pub(crate) fn as_ptr<T>(&self) -> *const T {
        self.start.cast_const().cast()
    }

    /// Address of the first byte, for writing.
    pub(crate) fn as_mut_ptr<T>(&mut self) -> *mut T {
        self.start.cast()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Gives out regions side by side, so that small weights share huge pages. What it gave out outlives it.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunk: Option<Arc<Mapping>>,
    used: usize,
    size: usize,
}

impl Arena {
    /// A zeroed region.
    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<Memory> {
        let need = len.next_multiple_of(ALIGN).max(ALIGN);
        let chunk = match &self.chunk {
            Some(chunk) if self.size - self.used >= need => chunk,
            _ => {
                self.size = need.max(CHUNK);
                self.used = 0;
                self.chunk.insert(Arc::new(Mapping::new(self.size, what)?))
            }
        };
        let start = chunk.start.wrapping_add(self.used);
        self.used += need;
        Ok(Memory { start, len, _mapping: Arc::clone(chunk) })
    }
}

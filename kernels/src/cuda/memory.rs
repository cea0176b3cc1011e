//! Memory on the device, and host memory that the device can reach.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result;

use super::error::{Context as _, describe, is_out_of_memory};
use super::gpu::Gpu;
use crate::error::{KernelError, Result};

/// Device memory of one allocation, aligned to 256 bytes.
#[derive(Debug)]
pub(super) struct Block {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
}

impl Block {
    /// Memory with anything in it. `what` names it in the error.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize, what: &'static str) -> Result<Self> {
        gpu.context.bind_to_thread().during("binding the device")?;
        // SAFETY: the address is not read on the host, and freed once, when the block is dropped.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Self { gpu: gpu.clone(), address, bytes }),
            Err(error) if is_out_of_memory(error) => Err(out_of_memory(gpu, bytes, what)),
            Err(error) => {
                Err(KernelError::Device(format!("memory for {what}: {}", describe(error))))
            }
        }
    }

    /// Memory in which every byte is `value`, once the compute stream gets there.
    pub(super) fn filled(
        gpu: &Arc<Gpu>,
        bytes: usize,
        value: u8,
        what: &'static str,
    ) -> Result<Self> {
        let block = Self::new(gpu, bytes, what)?;
        // SAFETY: the block was made just above, with that many bytes.
        unsafe { result::memset_d8_async(block.address, value, bytes, gpu.compute.cu_stream()) }
            .during("filling memory")?;
        Ok(block)
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `Block::new`, freed nowhere else. The call waits for work that uses the memory.
        let freed = self
            .gpu
            .context
            .bind_to_thread()
            .and_then(|()| unsafe { result::free_sync(self.address) });
        self.gpu.context.record_err(freed);
    }
}

/// The numbers that an operator needs.
fn out_of_memory(gpu: &Gpu, wanted: usize, what: &'static str) -> KernelError {
    let device = match gpu.context.mem_get_info() {
        Ok((free, total)) => {
            format!("{} ({free} of {total} bytes are free)", gpu.probe.name)
        }
        Err(_) => gpu.probe.name.clone(),
    };
    KernelError::OutOfMemory { device, what, wanted }
}

/// Memory that is made larger when more is wanted, by throwing away what it holds.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    block: Option<Block>,
}

impl Workspace {
    /// At least `bytes` bytes. Says whether the address has changed: whoever remembers it must forget it.
    pub(super) fn reserve(
        &mut self,
        gpu: &Arc<Gpu>,
        bytes: usize,
        what: &'static str,
    ) -> Result<bool> {
        if self.block.as_ref().is_some_and(|block| block.bytes() >= bytes) {
            return Ok(false);
        }
        gpu.synchronize()?;
        // The old memory goes first: the new may need its room.
        self.block = None;
        // Counters among them start at zero.
        self.block = Some(Block::filled(gpu, bytes, 0, what)?);
        Ok(true)
    }

    /// 0 where nothing was reserved.
    pub(super) fn address(&self) -> u64 {
        self.block.as_ref().map_or(0, Block::address)
    }
}

/// Page-locked host memory, aligned to 64 bytes, that is copied to and from the device without a detour.
///
/// Whoever hands it to a copy sees to it that nobody touches it until the copy is done.
#[derive(Debug)]
pub(super) struct Pinned {
    gpu: Arc<Gpu>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeros.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        gpu.context.bind_to_thread().during("binding the device")?;
        // SAFETY: freed once, when the value is dropped. Not write-combined: the host reads it too.
        let start =
            unsafe { result::malloc_host(bytes.max(1), 0) }.during("page-locking memory")?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| KernelError::Device("page-locked memory at address 0".into()))?;
        // SAFETY: the memory was allocated just above.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { gpu: gpu.clone(), start, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as `T`, a type of plain numbers.
    pub(super) fn as_slice<T: Number>(&self) -> &[T] {
        // SAFETY: initialised by `new`; any bits are a `T`; the start is aligned for it.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / size_of::<T>())
        }
    }

    pub(super) fn as_mut_slice<T: Number>(&mut self) -> &mut [T] {
        // SAFETY: as above, and this is the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.bytes / size_of::<T>())
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `Pinned::new`, freed nowhere else. The call waits for copies that use the memory.
        let freed = self
            .gpu
            .context
            .bind_to_thread()
            .and_then(|()| unsafe { result::free_host(self.start.as_ptr().cast()) });
        self.gpu.context.record_err(freed);
    }
}

/// Plain numbers.
///
/// # Safety
///
/// Any bits are a value, the type has no padding, and its alignment is at most 64.
pub(super) unsafe trait Number: Copy + Send + Sync {}

// SAFETY: integers and floats.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for u16 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}

/// `n` as the kernels want rows: a multiple of 8 elements, so that a row starts at a multiple of 16 bytes.
pub(super) const fn padded(n: usize) -> usize {
    n.next_multiple_of(8)
}

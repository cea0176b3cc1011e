//! Memory that a device can copy from: aligned, one block.

use std::sync::mpsc::Sender;

use crate::cpu::advise_huge_pages;

/// Of the first byte.
const ALIGN: usize = 64;
/// A block of this size asks for huge pages.
const HUGE: usize = 2 << 20;

/// Heap bytes that start at a multiple of 64.
pub struct AlignedBytes {
    /// At least [`ALIGN`] bytes more than are used.
    block: Vec<u8>,
    start: usize,
    len: usize,
    /// Who gets the block when the bytes are dropped; `None` frees it.
    home: Option<Sender<Vec<u8>>>,
}

impl AlignedBytes {
    /// `len` zero bytes. A large block has no memory behind it until it is written.
    pub fn zeroed(len: usize) -> Self {
        Self::of_block(Self::new_block(len), len, None)
    }

    /// The values one after the other, in the machine's byte order.
    pub fn from_f32s(values: &[f32]) -> Self {
        let mut bytes = Self::zeroed(size_of_val(values));
        for (word, value) in bytes.as_mut_slice().as_chunks_mut().0.iter_mut().zip(values) {
            *word = value.to_ne_bytes();
        }
        bytes
    }

    /// The values of [`AlignedBytes::from_f32s`].
    pub fn to_f32s(&self) -> Vec<f32> {
        self.as_slice().as_chunks().0.iter().map(|&word| f32::from_ne_bytes(word)).collect()
    }

    /// A zeroed block for `len` bytes.
    pub(super) fn new_block(len: usize) -> Vec<u8> {
        let mut block = vec![0; Self::block_len(len)];
        if block.len() >= HUGE {
            advise_huge_pages(block.as_mut_ptr(), block.len());
        }
        block
    }

    /// Bytes of a block for `len` bytes wherever the allocator puts it.
    pub(super) const fn block_len(len: usize) -> usize {
        len + ALIGN
    }

    /// `len` bytes of a block, which has room for them, with what it holds.
    pub(super) fn of_block(block: Vec<u8>, len: usize, home: Option<Sender<Vec<u8>>>) -> Self {
        let start = block.as_ptr().align_offset(ALIGN);
        debug_assert!(start + len <= block.len());
        Self { block, start, len, home }
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.block[self.start..][..self.len]
    }

    /// All bytes, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.block[self.start..][..self.len]
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.as_slice().as_ptr()
    }

    /// Address of the first byte, for writing.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_slice().as_mut_ptr()
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            // A home that is gone does not want it.
            let _ = home.send(std::mem::take(&mut self.block));
        }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

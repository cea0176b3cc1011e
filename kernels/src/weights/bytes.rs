//! Memory that a device can copy from: aligned, one block.

/// Heap bytes that start at a multiple of 64.
pub struct AlignedBytes {
    // One cache line an element, so that the allocation has its alignment.
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }

    /// The values one after the other, in the machine's byte order.
    pub fn from_f32s(values: &[f32]) -> Self {
        let mut bytes = Self::zeroed(size_of_val(values));
        let words = bytes.lines.iter_mut().flat_map(|line| line.0.as_chunks_mut().0);
        for (word, value) in words.zip(values) {
            *word = value.to_ne_bytes();
        }
        bytes
    }

    /// The values of [`AlignedBytes::from_f32s`].
    pub fn to_f32s(&self) -> Vec<f32> {
        let words = self.lines.iter().flat_map(|line| line.0.as_chunks().0);
        words.take(self.len / size_of::<f32>()).map(|&word| f32::from_ne_bytes(word)).collect()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    /// Address of the first byte, for writing.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

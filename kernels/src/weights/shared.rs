//! Bytes of a file in memory, owned by all whose tensors lie in it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A range of bytes. Cloning shares them.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    span: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`, which always has the same.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let span = 0..owner.as_ref().len();
        Self { owner: Arc::new(owner), span }
    }

    /// Some of them; `None` where the range leaves them.
    pub fn get(&self, span: Range<usize>) -> Option<Self> {
        self.as_slice().get(span.clone())?;
        let span = self.span.start + span.start..self.span.start + span.end;
        Some(Self { owner: self.owner.clone(), span })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.span.clone()]
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({:?})", self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ranges_stay_inside() {
        let all = SharedBytes::new(b"0123456789".to_vec());
        let some = all.get(2..8).unwrap();
        assert_eq!((some.as_slice(), some.len()), (&b"234567"[..], 6));
        assert_eq!(some.get(1..3).unwrap().as_slice(), b"34");
        assert!(some.get(6..6).unwrap().is_empty());
        assert!(some.get(0..7).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "a range that no file should have")]
        let reversed = some.get(3..2);
        assert!(reversed.is_none());
    }
}

//! Addresses that the tasks of a job share.

/// A pointer that may go to other threads. Whoever follows it answers for no two tasks writing the same place.
#[derive(Debug)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: an address is only a number; following it is unsafe and argued where it is done.
unsafe impl<T> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedMut<T> {}

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

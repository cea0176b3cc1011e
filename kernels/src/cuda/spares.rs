//! Memory of adapters that are gone, kept for others of the same size: a reload in place neither allocates nor waits.

/// Memory that nobody uses. With what is used it is never more than was used at once, or is about to be.
#[derive(Debug)]
pub(super) struct Spares<T> {
    /// With their bytes, the one that has been free for longest first.
    free: Vec<(usize, T)>,
    /// Bytes in use.
    used: usize,
    /// The most that have been.
    most: usize,
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self { free: Vec::new(), used: 0, most: 0 }
    }
}

impl<T> Spares<T> {
    /// One of exactly that size.
    pub(super) fn take(&mut self, bytes: usize) -> Option<T> {
        let index = self.free.iter().rposition(|(size, _)| *size == bytes)?;
        self.count(bytes);
        Some(self.free.remove(index).1)
    }

    /// Lets go of as many as a new one of that size takes the place of.
    pub(super) fn make_way(&mut self, bytes: usize) {
        let room = self.most.saturating_sub(self.used + bytes);
        let mut kept: usize = self.free.iter().map(|(size, _)| size).sum();
        self.free.retain(|(size, _)| {
            let stays = kept <= room;
            kept -= if stays { 0 } else { *size };
            stays
        });
    }

    /// A new one of that size is in use.
    pub(super) fn count(&mut self, bytes: usize) {
        self.used += bytes;
        self.most = self.most.max(self.used);
    }

    /// It is no longer in use.
    pub(super) fn put(&mut self, bytes: usize, one: T) {
        self.used -= bytes;
        self.free.push((bytes, one));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether one of that size was there before.
    fn get(spares: &mut Spares<()>, bytes: usize) -> bool {
        if spares.take(bytes).is_some() {
            return true;
        }
        spares.make_way(bytes);
        spares.count(bytes);
        false
    }

    fn kept(spares: &Spares<()>) -> usize {
        spares.free.iter().map(|(bytes, ())| bytes).sum()
    }

    #[test]
    fn what_is_kept_adds_nothing_to_the_most_that_was_used() {
        let mut spares = Spares::default();
        for _ in 0..4 {
            assert!(!get(&mut spares, 16));
        }
        spares.put(16, ());
        assert!(get(&mut spares, 16), "it has just become free");
        for _ in 0..4 {
            spares.put(16, ());
        }
        for others in 1..=16 {
            assert!(!get(&mut spares, 4));
            assert!(kept(&spares) + 4 * others <= 64, "{} beside {others}", kept(&spares));
        }
        assert_eq!(kept(&spares), 0);
        // More than ever: nothing can be kept beside it, and then all of it.
        spares.put(4, ());
        assert!(!get(&mut spares, 40));
        assert_eq!((spares.used, kept(&spares)), (100, 0));
        spares.put(40, ());
        assert!(!get(&mut spares, 24));
        assert_eq!((spares.used, kept(&spares)), (84, 0));
        spares.put(24, ());
        assert!(!get(&mut spares, 8));
        assert_eq!((spares.used, kept(&spares)), (68, 24));
    }
}

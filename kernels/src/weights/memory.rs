//! Host memory of adapters that are gone, for those to come: a replacement in place finds pages that are there, and
//! nobody on its way gives any back to the system.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::AlignedBytes;
use crate::error::{KernelError, Result};

/// Blocks below it are cheap to have anew.
const LEAST: usize = 1 << 20;
/// Bytes that wait for their next use at most.
const MOST: usize = 512 << 20;
/// How long they wait for it.
const IDLE: Duration = Duration::from_secs(30);

/// Gives out blocks and takes them back. Clones share what they keep; the default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct AdapterMemory {
    keeper: Option<Keeper>,
}

/// The way to the thread that takes blocks back and frees those that are too many or not wanted for long. So whoever
/// drops an adapter, be it the engine, frees no memory itself.
#[derive(Clone)]
struct Keeper {
    kept: Arc<Mutex<Kept>>,
    freed: Sender<Vec<u8>>,
}

/// The oldest first.
#[derive(Default)]
struct Kept(Vec<Vec<u8>>);

impl AdapterMemory {
    /// Memory that is used again. Its thread ends with the last block and the last clone.
    pub fn keeping() -> Result<Self> {
        let (freed, blocks) = channel();
        let kept = Arc::<Mutex<Kept>>::default();
        let keeper = Keeper { kept: kept.clone(), freed };
        std::thread::Builder::new()
            .name("lora-memory".into())
            .spawn(move || keep(&blocks, &kept))
            .map_err(|error| {
                KernelError::Device(format!("cannot start the thread of adapters' memory: {error}"))
            })?;
        Ok(Self { keeper: Some(keeper) })
    }

    /// `len` bytes with anything in them: whoever takes them writes all that is read later.
    pub fn take(&self, len: usize) -> AlignedBytes {
        let Some(keeper) = self.keeper.as_ref().filter(|_| len >= LEAST) else {
            return AlignedBytes::zeroed(len);
        };
        let found = lock(&keeper.kept).take(AlignedBytes::block_len(len));
        let block = found.unwrap_or_else(|| AlignedBytes::new_block(len));
        AlignedBytes::of_block(block, len, Some(keeper.freed.clone()))
    }
}

#[cfg(test)]
impl AdapterMemory {
    /// Memory whose first bytes, of about that many, are those of `block`.
    pub(crate) fn holding(block: Vec<u8>) -> Self {
        let kept = Arc::new(Mutex::new(Kept(vec![block])));
        Self { keeper: Some(Keeper { kept, freed: channel().0 }) }
    }
}

impl Kept {
    /// The smallest block that has `len` bytes and not many more.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = len..=len + len / 8;
        let blocks = self.0.iter().enumerate().filter(|(_, block)| fits.contains(&block.len()));
        let (index, _) = blocks.min_by_key(|(_, block)| block.len())?;
        Some(self.0.remove(index))
    }

    /// Adds a block and takes out those that are too many.
    fn put(&mut self, block: Vec<u8>) -> Vec<Vec<u8>> {
        self.0.push(block);
        let mut bytes: usize = self.0.iter().map(Vec::len).sum();
        let too_many = self.0.iter().take_while(|block| {
            let over = bytes > MOST;
            bytes -= block.len();
            over
        });
        let count = too_many.count();
        self.0.drain(..count).collect()
    }
}

fn keep(blocks: &Receiver<Vec<u8>>, kept: &Mutex<Kept>) {
    loop {
        // The lock is not held while it waits: others take blocks meanwhile.
        let is_empty = lock(kept).0.is_empty();
        let next = match is_empty {
            true => blocks.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => blocks.recv_timeout(IDLE),
        };
        // What is freed is freed outside of the lock.
        let freed = match next {
            Ok(block) => lock(kept).put(block),
            Err(RecvTimeoutError::Timeout) => std::mem::take(&mut lock(kept).0),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        drop(freed);
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Nothing that panics runs under it.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<usize> = lock(&self.kept).0.iter().map(Vec::len).collect();
        f.debug_struct("Keeper").field("kept", &sizes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose thread is the test's own.
    fn memory() -> (AdapterMemory, Receiver<Vec<u8>>, Arc<Mutex<Kept>>) {
        let (freed, blocks) = channel();
        let kept = Arc::<Mutex<Kept>>::default();
        (AdapterMemory { keeper: Some(Keeper { kept: kept.clone(), freed }) }, blocks, kept)
    }

    #[test]
    fn a_block_serves_again_what_is_about_its_size() {
        let (memory, blocks, kept) = memory();
        let mut first = memory.take(8 << 20);
        let address = first.as_ptr();
        assert_eq!(address.align_offset(64), 0);
        first.as_mut_slice().fill(7);
        drop(first);
        assert!(lock(&kept).put(blocks.try_recv().unwrap()).is_empty());
        let other = |len: usize| memory.take(len).as_ptr();
        assert_ne!(other((8 << 20) + 1), address, "too small for it");
        assert_ne!(other(7 << 20), address, "too large for it");
        let again = memory.take((8 << 20) - 100);
        assert_eq!((again.as_ptr(), again.len()), (address, (8 << 20) - 100));
        assert!(again.as_slice().iter().all(|&byte| byte == 7), "nobody has cleared it");
    }

    #[test]
    fn what_waits_is_bounded_and_small_blocks_are_not_kept() {
        let (memory, blocks, kept) = memory();
        let all: Vec<_> = (0..5).map(|_| memory.take(128 << 20)).collect();
        drop(memory.take(LEAST - 1));
        drop(all);
        let freed: usize = blocks.try_iter().map(|block| lock(&kept).put(block).len()).sum();
        assert_eq!((freed, lock(&kept).0.len()), (2, 3), "each is 64 bytes more than 128 MB");
        drop(memory.take(MOST + 1));
        let freed = lock(&kept).put(blocks.try_recv().unwrap());
        assert_eq!((freed.len(), lock(&kept).0.len()), (4, 0));
    }

    #[test]
    fn the_thread_takes_blocks_back_and_ends_with_the_last_of_them() {
        let (memory, blocks, kept) = memory();
        let thread = std::thread::spawn({
            let kept = kept.clone();
            move || keep(&blocks, &kept)
        });
        let [first, last] = [(), ()].map(|()| memory.take(LEAST));
        let address = first.as_ptr();
        drop(first);
        // It waits for the second one and for 30 seconds when it has the first.
        while lock(&kept).0.is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(memory.take(LEAST).as_ptr(), address);
        drop(memory);
        assert!(!thread.is_finished(), "a block can still come");
        drop(last);
        thread.join().unwrap();
        assert_eq!(lock(&kept).0.len(), 2);
    }
}

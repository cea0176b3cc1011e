//! Hands out blocks, counts who uses them, and keeps finished ones for sequences that start alike.

use std::collections::HashMap;

use super::{BlockHash, BlockId, BlockTable, PrefixKey};

/// Owns the numbers of all blocks of the pool.
///
/// A block is *used* (somebody's table holds it), *cached* (nobody holds it, its content may serve again) or *free*.
/// Cached blocks are given away when no free one is left, least recently used first; of one sequence the last block
/// goes first, so that what remains is still a prefix.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    caching: bool,
    blocks: Vec<Block>,
    index: HashMap<BlockHash, BlockId>,
    /// Blocks that nobody holds: a list by `prev` and `next`, oldest first; free ones before cached ones.
    idle: IdleList,
    stats: BlockStats,
}

/// How often prompts found their prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Prompt tokens looked up.
    pub queried_tokens: u64,
    /// Prompt tokens found.
    pub hit_tokens: u64,
}

#[derive(Debug, Clone)]
struct Block {
    users: u32,
    hash: Option<BlockHash>,
    /// What the hash stands for: compared on every hit, so that a collision can never serve foreign content.
    tokens: Box<[u32]>,
    prev: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct IdleList {
    first: u32,
    last: u32,
    len: usize,
}

impl BlockManager {
    /// A pool of `blocks` blocks of `block_size` tokens. Without `caching` nothing is kept after use.
    pub fn new(blocks: usize, block_size: usize, caching: bool) -> Self {
        let empty = Block { users: 0, hash: None, tokens: Box::default(), prev: NONE, next: NONE };
        let mut manager = Self {
            block_size,
            caching,
            blocks: vec![empty; blocks],
            index: HashMap::new(),
            idle: IdleList { first: NONE, last: NONE, len: 0 },
            stats: BlockStats::default(),
        };
        for block in 0..blocks {
            manager.push_idle_last(block as u32);
        }
        manager
    }

    /// Tokens a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Whether finished blocks are kept for others.
    pub fn is_caching(&self) -> bool {
        self.caching
    }

    /// Blocks in the pool.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be handed out now, cached ones included.
    pub fn available(&self) -> usize {
        self.idle.len
    }

    /// Counts since the start.
    pub fn stats(&self) -> BlockStats {
        self.stats
    }

    /// Takes the cached blocks that `tokens` starts with and returns how many tokens they hold. At least one token is
    /// left out, since the last one must be computed to go on from it.
    pub fn take_prefix(&mut self, key: PrefixKey, tokens: &[u32], table: &mut BlockTable) -> usize {
        debug_assert!(table.is_empty(), "a prefix is taken before anything else");
        if !self.caching {
            return 0;
        }
        let usable = tokens.len().saturating_sub(1) / self.block_size;
        let mut hash = key.root();
        for chunk in tokens.chunks_exact(self.block_size).take(usable) {
            hash = hash.extend(chunk);
            let Some(&block) = self.index.get(&hash) else { break };
            if *self.blocks[block.0 as usize].tokens != *chunk {
                break;
            }
            self.retain(block);
            table.blocks.push(block);
            table.hashes.push(hash);
        }
        table.blocks.len() * self.block_size
    }

    /// Counts a prompt of `queried` tokens of which the cache held `hit`.
    pub fn count_lookup(&mut self, queried: usize, hit: usize) {
        self.stats.queried_tokens += queried as u64;
        self.stats.hit_tokens += hit as u64;
    }

    /// Blocks that `table` lacks to hold `tokens` tokens.
    pub fn missing(&self, table: &BlockTable, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size).saturating_sub(table.len())
    }

    /// Grows `table` to hold `tokens` tokens. Returns false, changing nothing, when there are too few blocks.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.missing(table, tokens);
        if missing > self.idle.len {
            return false;
        }
        for _ in 0..missing {
            table.blocks.push(self.take_idle());
        }
        true
    }

    /// Puts the blocks of `table` that the first `computed` of `tokens` fill into the index.
    pub fn publish(
        &mut self,
        key: PrefixKey,
        table: &mut BlockTable,
        tokens: &[u32],
        computed: usize,
    ) {
        if !self.caching {
            return;
        }
        let full = computed / self.block_size;
        while table.hashes.len() < full {
            let at = table.hashes.len();
            let parent = table.hashes.last().copied().unwrap_or_else(|| key.root());
            let chunk = &tokens[at * self.block_size..(at + 1) * self.block_size];
            let hash = parent.extend(chunk);
            table.hashes.push(hash);
            let id = table.blocks[at];
            // Where a twin is cached already this block stays unnamed and is freed after use.
            if let std::collections::hash_map::Entry::Vacant(entry) = self.index.entry(hash) {
                entry.insert(id);
                let block = &mut self.blocks[id.0 as usize];
                block.hash = Some(hash);
                block.tokens = chunk.into();
            }
        }
    }

    /// Takes a table back.
    pub fn release(&mut self, mut table: BlockTable) {
        table.hashes.clear();
        // Last block first: it is the first to be given away.
        while let Some(id) = table.blocks.pop() {
            let block = &mut self.blocks[id.0 as usize];
            block.users -= 1;
            if block.users == 0 {
                if block.hash.is_some() {
                    self.push_idle_last(id.0);
                } else {
                    self.push_idle_first(id.0);
                }
            }
        }
    }

    /// Forgets all cached content that nobody uses; returns whether nothing remains named.
    pub fn reset_cache(&mut self) -> bool {
        let blocks = &mut self.blocks;
        self.index.retain(|_, id| {
            let block = &mut blocks[id.0 as usize];
            if block.users == 0 {
                block.hash = None;
            }
            block.users > 0
        });
        self.index.is_empty()
    }

    fn retain(&mut self, id: BlockId) {
        if self.blocks[id.0 as usize].users == 0 {
            self.unlink(id.0);
        }
        self.blocks[id.0 as usize].users += 1;
    }

    fn take_idle(&mut self) -> BlockId {
        let at = self.idle.first;
        self.unlink(at);
        let block = &mut self.blocks[at as usize];
        block.users = 1;
        if let Some(hash) = block.hash.take() {
            self.index.remove(&hash);
        }
        BlockId(at)
    }

    fn push_idle_last(&mut self, at: u32) {
        let last = self.idle.last;
        self.link(at, last, NONE);
    }

    fn push_idle_first(&mut self, at: u32) {
        let first = self.idle.first;
        self.link(at, NONE, first);
    }

    fn link(&mut self, at: u32, prev: u32, next: u32) {
        let block = &mut self.blocks[at as usize];
        (block.prev, block.next) = (prev, next);
        match prev {
            NONE => self.idle.first = at,
            prev => self.blocks[prev as usize].next = at,
        }
        match next {
            NONE => self.idle.last = at,
            next => self.blocks[next as usize].prev = at,
        }
        self.idle.len += 1;
    }

    fn unlink(&mut self, at: u32) {
        let Block { prev, next, .. } = self.blocks[at as usize];
        match prev {
            NONE => self.idle.first = next,
            prev => self.blocks[prev as usize].next = next,
        }
        match next {
            NONE => self.idle.last = prev,
            next => self.blocks[next as usize].prev = prev,
        }
        self.idle.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PrefixKey {
        PrefixKey::new(None, None)
    }

    fn fill(manager: &mut BlockManager, key: PrefixKey, tokens: &[u32]) -> (BlockTable, usize) {
        let mut table = BlockTable::default();
        let hit = manager.take_prefix(key, tokens, &mut table);
        assert!(manager.grow(&mut table, tokens.len()));
        manager.publish(key, &mut table, tokens, tokens.len());
        (table, hit)
    }

    #[test]
    fn a_finished_prompt_serves_one_that_starts_alike() {
        let mut manager = BlockManager::new(8, 4, true);
        let tokens: Vec<u32> = (0..10).collect();
        let (table, hit) = fill(&mut manager, key(), &tokens);
        assert_eq!(hit, 0);
        manager.release(table);
        assert_eq!(manager.available(), 8);

        let (table, hit) = fill(&mut manager, key(), &tokens);
        assert_eq!(hit, 8, "two full blocks; the last token is never taken from the cache");
        manager.release(table);
        let (table, hit) = fill(&mut manager, key(), &tokens[..8]);
        assert_eq!(hit, 4);
        manager.release(table);
    }

    #[test]
    fn another_generation_or_salt_never_hits() {
        let mut manager = BlockManager::new(16, 4, true);
        let tokens: Vec<u32> = (0..10).collect();
        let (table, _) = fill(&mut manager, PrefixKey::new(Some(1), None), &tokens);
        manager.release(table);
        for other in [key(), PrefixKey::new(Some(2), None), PrefixKey::new(Some(1), Some("tenant"))]
        {
            let (table, hit) = fill(&mut manager, other, &tokens);
            assert_eq!(hit, 0);
            manager.release(table);
        }
    }

    #[test]
    fn growth_is_all_or_nothing_and_evicts_the_oldest() {
        let mut manager = BlockManager::new(4, 4, true);
        let old: Vec<u32> = (0..9).collect();
        let (table, _) = fill(&mut manager, key(), &old);
        manager.release(table);
        let mut table = BlockTable::default();
        assert!(!manager.grow(&mut table, 17));
        assert!(table.is_empty());
        // Three of four: the free ones first, then the tail of the cached prefix.
        assert!(manager.grow(&mut table, 12));
        let mut again = BlockTable::default();
        assert_eq!(manager.take_prefix(key(), &old, &mut again), 4);
        manager.release(again);
        manager.release(table);
        assert_eq!(manager.available(), 4);
    }

    #[test]
    fn twins_are_freed_and_reset_forgets() {
        let mut manager = BlockManager::new(8, 2, true);
        let tokens = [1, 2, 3, 4, 5];
        let mut first = BlockTable::default();
        let mut second = BlockTable::default();
        assert!(manager.grow(&mut first, 5) && manager.grow(&mut second, 5));
        manager.publish(key(), &mut first, &tokens, 5);
        manager.publish(key(), &mut second, &tokens, 5);
        manager.release(second);
        assert!(!manager.reset_cache(), "a used block keeps its name");
        manager.release(first);
        assert!(manager.reset_cache());
        let mut table = BlockTable::default();
        assert_eq!(manager.take_prefix(key(), &tokens, &mut table), 0);
        manager.release(table);
        assert_eq!(manager.available(), 8);
    }
}

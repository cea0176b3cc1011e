//! Names of cached blocks: a chain of hashes that starts with the adapter's generation and the cache salt.

/// 128 bits of BLAKE3 over everything that determines a block's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 16]);

/// Start of a sequence's chain: blocks are shared only between sequences with equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixKey(BlockHash);

impl PrefixKey {
    /// `generation` is the adapter's, `None` for the base; the salt keeps tenants apart.
    pub fn new(generation: Option<u64>, salt: Option<&str>) -> Self {
        let mut hasher = blake3::Hasher::new();
        // A tag before each field keeps "no salt" apart from the empty one.
        match generation {
            Some(generation) => hasher.update(b"lora").update(&generation.to_le_bytes()),
            None => hasher.update(b"base"),
        };
        match salt {
            Some(salt) => hasher.update(b"salt").update(salt.as_bytes()),
            None => hasher.update(b"open"),
        };
        Self(truncate(&hasher))
    }

    /// The chain before the first block.
    pub fn root(&self) -> BlockHash {
        self.0
    }
}

impl BlockHash {
    /// The hash of a full block of `tokens` that follows `self`.
    pub fn extend(self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        truncate(&hasher)
    }
}

fn truncate(hasher: &blake3::Hasher) -> BlockHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    BlockHash(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_generations_and_salts_apart() {
        let keys = [
            PrefixKey::new(None, None),
            PrefixKey::new(None, Some("")),
            PrefixKey::new(None, Some("a")),
            PrefixKey::new(Some(1), None),
            PrefixKey::new(Some(2), None),
            PrefixKey::new(Some(1), Some("a")),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn a_chain_depends_on_every_block_before() {
        let root = PrefixKey::new(None, None).root();
        assert_eq!(root.extend(&[1, 2]), root.extend(&[1, 2]));
        assert_ne!(root.extend(&[1, 2]).extend(&[3]), root.extend(&[2, 1]).extend(&[3]));
    }
}

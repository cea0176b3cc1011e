//! BLAKE3 over both files of an adapter, in pieces: what a core has just read it hashes while it is in its cache.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode};
use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::error::Result;

/// Bytes that one core reads and hashes at a time: a power of two, so that a piece is a subtree of the hash.
const PIECE: usize = 1 << 20;

/// The digest of a configuration and of weights that are in memory, in hex.
pub(super) fn of(config: &[u8], weights: &[u8]) -> String {
    let mut digest = Hasher::new();
    digest.update(&head(config));
    digest.update_rayon(weights);
    digest.finalize().to_hex().to_string()
}

/// The same of weights that `read` brings: it fills bytes from an offset on.
pub(super) fn of_read(
    config: &[u8],
    weights: &mut [u8],
    read: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
) -> Result<String> {
    let head = head(config);
    let (whole, rest) = head.split_at(head.len() - head.len() % PIECE);
    let (first, others) = weights.split_at_mut(weights.len().min(PIECE - rest.len()));
    let mut pieces: Vec<(&[u8], &mut [u8])> = Vec::new();
    pieces.extend(whole.chunks(PIECE).map(|bytes| (bytes, &mut [][..])));
    pieces.push((rest, first));
    pieces.extend(others.chunks_mut(PIECE).map(|bytes| (&[][..], bytes)));
    // What the weights lie behind.
    let start = head.len() as u64;
    let hash = |(at, (known, bytes)): (usize, (&[u8], &mut [u8]))| {
        let offset = (at * PIECE) as u64;
        read((offset + known.len() as u64).saturating_sub(start), bytes)?;
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset).update(known).update(bytes);
        Ok(hasher)
    };
    let pieces = pieces.into_iter().enumerate();
    let pieces: Vec<_> = pieces.filter(|(_, (a, b))| a.len() + b.len() > 0).collect();
    let hashers = pieces.into_par_iter().map(hash).collect::<Result<Vec<Hasher>>>()?;
    let root = match &hashers[..] {
        [all] => all.finalize(),
        _ => {
            let values: Vec<_> = hashers.iter().map(Hasher::finalize_non_root).collect();
            let (left, right) = values.split_at(left_of(values.len()));
            merge_subtrees_root(&merge(left), &merge(right), Mode::Hash)
        }
    };
    Ok(root.to_hex().to_string())
}

/// What is hashed before the weights: the length keeps bytes from moving between the files unseen.
fn head(config: &[u8]) -> Vec<u8> {
    [&(config.len() as u64).to_le_bytes()[..], config].concat()
}

/// The value of neighbouring pieces, of which there is one at least.
fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_of(values.len()));
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

/// Of `count` pieces, at least two, those of the left subtree: the largest power of two that leaves some.
const fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn pieces_make_the_hash_of_the_whole() {
        let block: Vec<u8> = (0..65_521).map(|i| (i % 251) as u8 ^ (i / 1009) as u8).collect();
        let bytes = block.repeat(10 * PIECE / block.len());
        let check = |config: usize, weights: usize| {
            let (config, file) = (&bytes[..config], &bytes[..weights]);
            let mut found = vec![0; weights];
            let read = |at: u64, to: &mut [u8]| {
                to.copy_from_slice(&file[at as usize..][..to.len()]);
                Ok(())
            };
            let digest = of_read(config, &mut found, read).unwrap();
            let whole = [&(config.len() as u64).to_le_bytes()[..], config, file].concat();
            let expected = blake3::hash(&whole).to_hex().to_string();
            assert_eq!(digest, expected, "{} and {weights} bytes", config.len());
            assert_eq!(of(config, file), expected);
            assert!(found == file);
        };
        for total in [9, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1] {
            check(0, total - 8);
            check(1, total - 9);
        }
        for pieces in 3..9 {
            check(300, pieces * PIECE - 308);
            check(300, pieces * PIECE - 307);
        }
        // A configuration of a piece, of less and of more.
        for config in [PIECE - 9, PIECE - 8, PIECE - 7, 2 * PIECE - 8, 2 * PIECE] {
            check(config, 0);
            check(config, 1);
            check(config, PIECE + 7);
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_digest() {
        let read = |at, _: &mut [u8]| match at {
            0 => Ok(()),
            _ => Err(Error::invalid("gone")),
        };
        let digest = |len| of_read(b"{}", &mut vec![0; len], read);
        assert!(digest(PIECE / 2).is_ok());
        assert_eq!(digest(3 * PIECE).unwrap_err().message, "gone");
    }
}

//! Whether a library's file is whole. The loader maps what the headers promise; a file that ends before would kill the
//! process when it is touched, long after the load has succeeded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Sizes and offsets of the 64-bit little-endian format (System V ABI, chapters 4 and 5).
const HEADER: usize = 64;
const SEGMENT: usize = 56;

/// Refuses a file that is no library of this machine's kind, or does not hold what its headers promise.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let unreadable = |error: std::io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    let read = |at: u64, bytes: &mut [u8]| {
        file.read_exact_at(bytes, at).map_err(|_| format!("it is cut off at {len} bytes"))
    };
    let mut header = [0; HEADER];
    read(0, &mut header)?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err("it is not a library".into());
    }
    let first = number(&header, 32, 8);
    let count = number(&header, 56, 2);
    for index in 0..count {
        let mut segment = [0; SEGMENT];
        read(first.saturating_add(index * SEGMENT as u64), &mut segment)?;
        let end = number(&segment, 8, 8).saturating_add(number(&segment, 32, 8));
        if end > len {
            return Err(format!("it is cut off: {len} bytes of at least {end}"));
        }
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_whole_at_full_length_alone() {
        let own = std::env::current_exe().unwrap();
        check(&own).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut");
        let mut head = vec![0; 1 << 16];
        File::open(own).unwrap().read_exact_at(&mut head, 0).unwrap();
        for len in [0, 1, 63, 64, 100, 4096, 1 << 16] {
            std::fs::write(&path, &head[..len]).unwrap();
            let reason = check(&path).unwrap_err();
            assert!(reason.contains("cut off"), "{len}: {reason}");
        }
        std::fs::write(&path, [b'x'; 128]).unwrap();
        assert_eq!(check(&path).unwrap_err(), "it is not a library");
    }
}

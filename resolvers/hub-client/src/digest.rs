//! What a file's content must hash to: the Hub names SHA-256 for large files and git's SHA-1 for the others.

use sha1::Digest as _;
use sha2::Digest as _;

use crate::names::is_hex;

/// The digest of a file's content, which is its name among the blobs too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    /// Reads an ETag: 40 or 64 hexadecimal digits.
    pub(crate) fn from_etag(etag: &str) -> Option<Self> {
        let text = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        Self::from_hex(text)
    }

    /// Reads the name of a blob.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        (is_hex(text, 40) || is_hex(text, 64)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A hasher for a content of `len` bytes.
    pub(crate) fn hasher(&self, len: u64) -> Hasher {
        if self.0.len() == 64 {
            return Hasher::Sha256(sha2::Sha256::new());
        }
        let mut hasher = sha1::Sha1::new();
        hasher.update(format!("blob {len}\0"));
        Hasher::Git(hasher)
    }
}

/// Takes a content piece by piece.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Git(sha1::Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest(match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_of_sha256() {
        // `printf hello | git hash-object --stdin` and `| sha256sum`.
        for hex in [
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ] {
            let digest = Digest::from_etag(&format!("W/\"{hex}\"")).unwrap();
            let mut hasher = digest.hasher(5);
            hasher.update(b"hel");
            hasher.update(b"lo");
            assert_eq!(hasher.finish(), digest);
        }
    }

    #[test]
    fn what_is_no_digest_names_no_file() {
        for etag in ["", "\"abc\"", "../../etc/passwd", &"A".repeat(40), &"a".repeat(41)] {
            assert_eq!(Digest::from_etag(etag), None, "{etag}");
        }
    }
}

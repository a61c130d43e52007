//! BLAKE3 digests: the identity of files, checkpoints, requests and units of work.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A 256-bit BLAKE3 digest, written as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// The digest of the canonical JSON text of `value` (keys sorted).
    pub fn of_json(value: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self::of(super::json::canonical(value)?.as_bytes()))
    }

    /// The digest of a file's content, read in blocks.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut hasher = DigestBuilder::default();
        let mut file = File::open(path)?;
        let mut block = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&block[..n]);
        }
    }

    /// All 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first `n` digits, for file names and messages.
    pub fn short(&self, n: usize) -> &str {
        &self.0[..n.min(self.0.len())]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short(12))
    }
}

/// Computes a digest while data streams by.
#[derive(Default)]
pub struct DigestBuilder(blake3::Hasher);

impl DigestBuilder {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Adds one field, prefixed by its length, so that neighbouring fields cannot run together.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The digest of everything added so far.
    pub fn finish(&self) -> Digest {
        Digest(self.0.finalize().to_hex().to_string())
    }
}

/// SHA-256 in hexadecimal: what lm-eval names documents and prompts by.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    use std::fmt::Write;
    sha2::Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: BLAKE3 test vectors, empty input.
    #[test]
    fn empty_input() {
        assert_eq!(
            Digest::of(b"").as_str(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn fields_do_not_run_together() {
        let digest = |a: &[u8], b: &[u8]| DigestBuilder::default().field(a).field(b).finish();
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }
}

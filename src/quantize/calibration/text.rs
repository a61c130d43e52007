//! The text that calibration runs on. A file is never read whole into memory: its digest is taken while it streams by,
//! and of each sample's stretch only what its tokens can need is read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::CalibrationError;
use crate::base::digest::Digest;
use crate::model::tokenizer::Tokenizer;

/// The default: prose, code and data of this repository, and sentences of the embedded model's world.
static EMBEDDED: &str = include_str!("../../../models/calibration.txt");

/// Bytes of a stretch that are read for each token of a sample: two to four times what most text takes.
const BYTES_PER_TOKEN: u64 = 16;

/// A text in UTF-8.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// `None`: the embedded one.
    path: Option<PathBuf>,
    digest: Digest,
    len: u64,
}

impl CalibrationText {
    /// The text inside the binary.
    pub fn embedded() -> Self {
        Self { path: None, digest: Digest::of(EMBEDDED.as_bytes()), len: EMBEDDED.len() as u64 }
    }

    /// A file, which is read once for its digest.
    pub fn file(path: &Path) -> Result<Self, CalibrationError> {
        let failed = |source| CalibrationError::Read { path: path.to_path_buf(), source };
        let digest = Digest::of_file(path).map_err(failed)?;
        let len = std::fs::metadata(path).map_err(failed)?.len();
        if len == 0 {
            return Err(CalibrationError::Empty { text: path.display().to_string() });
        }
        Ok(Self { path: Some(path.to_path_buf()), digest, len })
    }

    /// Where it came from.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "embedded".to_owned(), |path| path.display().to_string())
    }

    /// BLAKE3 of all of it.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Sample `index` of `count`: the beginning of its stretch from its first line break on, with the special tokens the
    /// tokenizer adds, cut at `length` tokens. Empty where the stretch is.
    ///
    /// Stretch i of n covers bytes ⌊i·L/n⌋ to ⌊(i + 1)·L/n⌋ of L.
    pub fn sample(
        &self,
        index: usize,
        count: usize,
        length: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, CalibrationError> {
        let bound = |i: usize| (i as u128 * u128::from(self.len) / count.max(1) as u128) as u64;
        let (begin, end) = (bound(index), bound(index + 1));
        let bytes = self.read(begin, end.min(begin.saturating_add(length as u64 * BYTES_PER_TOKEN)))?;
        let text = self.whole_lines(&bytes, begin)?;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut ids = tokenizer.encode(text, true)?;
        ids.truncate(length);
        Ok(ids)
    }

    /// The text of a stretch: from after its first line break, where there is text behind it, without the parts of
    /// characters at its ends.
    fn whole_lines<'a>(&self, bytes: &'a [u8], begin: u64) -> Result<&'a str, CalibrationError> {
        let is_continuation = |b: &&u8| **b & 0xc0 == 0x80;
        // A character has at most three bytes after its first.
        let cut = if begin == 0 { 0 } else { bytes.iter().take(3).take_while(is_continuation).count() };
        let text = match std::str::from_utf8(&bytes[cut..]) {
            Ok(text) => text,
            Err(error) => {
                let valid = cut + error.valid_up_to();
                if error.error_len().is_some() {
                    let (text, offset) = (self.name(), begin + valid as u64);
                    return Err(CalibrationError::NotUtf8 { text, offset });
                }
                // The last character goes on beyond the stretch.
                std::str::from_utf8(&bytes[cut..valid]).unwrap_or_default()
            }
        };
        let after_break = text.split_once('\n').map(|(_, rest)| rest).filter(|rest| !rest.trim().is_empty());
        Ok(after_break.filter(|_| begin > 0).unwrap_or(text))
    }

    fn read(&self, begin: u64, end: u64) -> Result<Vec<u8>, CalibrationError> {
        let Some(path) = &self.path else {
            return Ok(EMBEDDED.as_bytes()[begin as usize..end as usize].to_vec());
        };
        let mut bytes = vec![0; (end - begin) as usize];
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(begin))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|source| CalibrationError::Read { path: path.clone(), source })?;
        Ok(bytes)
    }
}

//! A checkpoint wherever it lies: a directory, one weight file, or headers from a web server.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::ScanError;
use crate::checkpoint::files::CONFIG;
use crate::checkpoint::header::{self, Header, LENGTH_BYTES};
use crate::checkpoint::remote::RemoteCheckpoint;
use crate::checkpoint::{Checkpoint, CheckpointError};

/// What is scanned, or compared with.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A checkpoint directory, or one `.safetensors` file.
    Path(&'a Path),
    /// An address; only headers are read.
    Url(&'a str),
}

/// An opened target.
pub(super) enum Opened {
    Dir(Arc<Checkpoint>, HashMap<PathBuf, File>),
    File(WeightFile),
    Remote(RemoteCheckpoint),
}

/// One weight file, with the config beside it if there is one.
pub(super) struct WeightFile {
    pub path: PathBuf,
    pub header: Header,
    pub config: Option<Value>,
    file: File,
}

impl Opened {
    pub(super) fn open(target: Target<'_>) -> Result<Self, ScanError> {
        match target {
            Target::Url(url) => Ok(Self::Remote(crate::checkpoint::remote::open(url)?)),
            Target::Path(path) if path.is_file() => Ok(Self::File(WeightFile::open(path)?)),
            Target::Path(path) => {
                let checkpoint = Checkpoint::open(path)?;
                let files = checkpoint.shards().iter().map(|s| path.join(&s.file));
                let files = files.map(|p| Ok((p.clone(), open(&p)?))).collect::<Result<_, ScanError>>()?;
                Ok(Self::Dir(Arc::new(checkpoint), files))
            }
        }
    }

    /// As reports name it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Dir(checkpoint, _) => checkpoint.dir().display().to_string(),
            Self::File(file) => file.path.display().to_string(),
            Self::Remote(remote) => remote.url.clone(),
        }
    }

    /// The directory, where there is one with its metadata files.
    pub(super) fn dir(&self) -> Option<&Checkpoint> {
        match self {
            Self::Dir(checkpoint, _) => Some(checkpoint),
            _ => None,
        }
    }

    /// Whether values can be read.
    pub(super) fn has_values(&self) -> bool {
        !matches!(self, Self::Remote(_))
    }

    /// Fills `out` from byte `offset` of a tensor on. Read by position, not mapped: nothing stays in memory.
    pub(super) fn read(&self, tensor: &str, offset: u64, out: &mut [u8]) -> Result<(), ScanError> {
        let failed = |path: &Path, source| ScanError::Read { path: path.to_path_buf(), source };
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        match self {
            Self::Dir(checkpoint, files) => {
                let place = checkpoint.location(tensor);
                let place = place.ok_or_else(|| failed(checkpoint.dir(), missing()))?;
                let file = files.get(&place.path).ok_or_else(|| failed(&place.path, missing()))?;
                file.read_exact_at(out, place.offset + offset).map_err(|e| failed(&place.path, e))
            }
            Self::File(one) => {
                let info = one.header.get(tensor).ok_or_else(|| failed(&one.path, missing()))?;
                let at = one.header.data_start + info.begin + offset;
                one.file.read_exact_at(out, at).map_err(|e| failed(&one.path, e))
            }
            Self::Remote(remote) => Err(failed(Path::new(&remote.url), missing())),
        }
    }
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, ScanError> {
        let failed = |source| ScanError::Read { path: path.to_path_buf(), source };
        let invalid = |source| CheckpointError::Header { path: path.to_path_buf(), source };
        let file = open(path)?;
        let file_len = file.metadata().map_err(failed)?.len();
        let mut prefix = vec![0; file_len.min(LENGTH_BYTES) as usize];
        file.read_exact_at(&mut prefix, 0).map_err(failed)?;
        let json_len = header::json_len(&prefix, file_len).map_err(invalid)?;
        // At most MAX_HEADER_BYTES, and no more than the file holds.
        let mut json = vec![0; json_len as usize];
        file.read_exact_at(&mut json, LENGTH_BYTES).map_err(failed)?;
        let header = header::parse(&json, file_len).map_err(invalid)?;
        let config_path = path.with_file_name(CONFIG);
        let config = if config_path.is_file() { Some(read_json(&config_path)?) } else { None };
        Ok(Self { path: path.to_path_buf(), header, config, file })
    }
}

fn open(path: &Path) -> Result<File, ScanError> {
    File::open(path).map_err(|source| ScanError::Read { path: path.to_path_buf(), source })
}

fn read_json(path: &Path) -> Result<Value, ScanError> {
    let text = std::fs::read(path).map_err(|source| ScanError::Read { path: path.to_path_buf(), source })?;
    let value = serde_json::from_slice(&text);
    Ok(value.map_err(|source| CheckpointError::Json { path: path.to_path_buf(), source })?)
}

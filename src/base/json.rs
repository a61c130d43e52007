//! JSON artifacts: sorted keys, trailing newline, written atomically; errors name the file and the place.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A JSON file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The content is not the JSON that was expected; the source names line, column and field.
    #[error("{}: unexpected content", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Compact JSON text with all object keys sorted: the form that is hashed.
pub fn canonical(value: &impl Serialize) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    serde_json::to_string(&value)
}

/// Indented JSON text with all object keys sorted and a trailing newline: the form of every artifact.
pub fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// Writes `value` to `path` atomically, as [`pretty`].
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), JsonError> {
    let text = pretty(value).map_err(|source| JsonError::Parse { path: path.to_path_buf(), source })?;
    super::atomic::write(path, text.as_bytes())
        .map_err(|source| JsonError::Write { path: path.to_path_buf(), source })
}

/// Reads `path` as a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JsonError> {
    let bytes = std::fs::read(path).map_err(|source| JsonError::Read { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| JsonError::Parse { path: path.to_path_buf(), source })
}

impl JsonError {
    /// The underlying I/O error, if that is what failed.
    pub fn io(&self) -> Option<&std::io::Error> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Parse { .. } => None,
        }
    }
}

//! Why a checkpoint cannot be scanned at all; what a scan finds is no error.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::remote::RemoteError;
use crate::dense::DenseError;
use crate::record::{Classified, FailureClass};

/// A checkpoint that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The directory is not a readable checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The source cannot be read as dense tensors.
    #[error(transparent)]
    Source(#[from] DenseError),
    /// The address is not a readable checkpoint.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A metadata file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Classified for ScanError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Checkpoint(error) => error.failure_class(),
            Self::Source(error) => error.failure_class(),
            Self::Remote(error) => error.failure_class(),
            Self::Read { .. } => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Remote(error) => error.hint(),
            Self::Read { .. } => None,
        }
    }
}

//! Why a GGUF file cannot be imported.

use std::io;
use std::path::PathBuf;

use super::super::error::is_transient;
use super::super::header::shown;
use crate::record::{Classified, FailureClass};

/// A GGUF file that cannot be imported.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct GgufError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub problem: GgufProblem,
}

/// What is wrong with a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufProblem {
    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file: expected it to begin with 'GGUF', found {found:02x?}")]
    NotGguf {
        /// The first four bytes, fewer in a shorter file.
        found: Vec<u8>,
    },
    /// A version other than 2 and 3, or the other byte order.
    #[error("GGUF version {found}, expected 2 or 3 (little-endian)")]
    Version {
        /// The version field.
        found: u32,
    },
    /// The file ends too early.
    #[error("{what} at byte {at} needs {need} bytes, but the file ends at {file_bytes}: it is truncated")]
    Truncated {
        /// What was being read.
        what: String,
        /// Position in the file.
        at: u64,
        /// Bytes needed.
        need: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// A field of the header has a value that cannot be.
    #[error("{}: expected {expected}, found {found}", shown(field))]
    Field {
        /// The metadata key, or what the header calls it.
        field: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A metadata key that is needed is not there.
    #[error("no metadata key {key}")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// Something is wrong with one tensor.
    #[error("tensor {}: expected {expected}, found {found}", shown(tensor))]
    Tensor {
        /// Its name.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The file is valid, but holds something that is not supported.
    #[error("{}: {found} is not supported, expected {expected}", shown(field))]
    Unsupported {
        /// The metadata key or tensor.
        field: String,
        /// What is supported.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The output directory holds something already.
    #[error("{}: the output directory is not empty", path.display())]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl GgufProblem {
    /// A field with a value that cannot be.
    pub(crate) fn field(field: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let (field, expected) = (field.to_owned(), expected.to_owned());
        Self::Field { field, expected, found: found.to_string() }
    }

    /// A valid field that is not supported.
    pub(crate) fn unsupported(field: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let (field, expected) = (field.to_owned(), expected.to_owned());
        Self::Unsupported { field, expected, found: found.to_string() }
    }

    /// A tensor that is not as expected.
    pub(crate) fn tensor(tensor: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let (tensor, expected) = (tensor.to_owned(), expected.to_owned());
        Self::Tensor { tensor, expected, found: found.to_string() }
    }
}

impl Classified for GgufError {
    fn failure_class(&self) -> FailureClass {
        match &self.problem {
            GgufProblem::Unsupported { .. } => FailureClass::ModelUnsupported,
            GgufProblem::Io { source, .. } if is_transient(source) => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            GgufProblem::NotGguf { .. } => "name a .gguf file, or a checkpoint directory",
            GgufProblem::Version { .. } | GgufProblem::MissingKey { .. } => {
                "convert the model again with a current convert_hf_to_gguf.py of llama.cpp"
            }
            GgufProblem::Truncated { .. } => "download the file again",
            GgufProblem::Unsupported { .. } => {
                "use the model's original safetensors checkpoint instead of the GGUF file"
            }
            GgufProblem::OutputExists { .. } => "name a new directory, or remove the old one",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

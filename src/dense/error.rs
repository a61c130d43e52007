//! Why a checkpoint cannot be read as dense floats.

use crate::checkpoint::CheckpointError;
use crate::ops::dequantize::DequantizeError;
use crate::record::{Classified, FailureClass};

/// A checkpoint whose tensors cannot be presented as dense floats.
#[derive(Debug, thiserror::Error)]
pub enum DenseError {
    /// The files or the declared quantization cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A quantized weight cannot be rebuilt.
    #[error(transparent)]
    Dequantize(#[from] DequantizeError),
    /// A tensor holds codes that nothing declares.
    #[error("tensor {tensor} {dtype} {shape:?} is quantized, but {declared}")]
    Undeclared {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What the config says instead.
        declared: String,
    },
    /// A weight and `config.json` do not belong to the same model.
    #[error("tensor {tensor} is {shape:?}, expected {expected} by {key} of config.json")]
    Contradiction {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The shape by the config.
        expected: String,
        /// The keys that decide it.
        key: &'static str,
    },
    /// Splitting experts would give a tensor a name that is taken.
    #[error("tensor {tensor} is in the checkpoint, and {base} would be split into it too")]
    NameTaken {
        /// The name.
        tensor: String,
        /// The fused tensor.
        base: String,
    },
}

impl Classified for DenseError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Checkpoint(error) => error.failure_class(),
            Self::Dequantize(error) => error.failure_class(),
            Self::Undeclared { .. } => FailureClass::ModelUnsupported,
            Self::NameTaken { .. } | Self::Contradiction { .. } => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Dequantize(error) => error.hint(),
            Self::Undeclared { .. } => Some("start from the original, unquantized model".to_owned()),
            Self::Contradiction { .. } => {
                Some("config.json and weights come from different models; fetch both again".to_owned())
            }
            Self::NameTaken { .. } => Some("remove one of the two from the checkpoint".to_owned()),
        }
    }
}

//! Why a checkpoint cannot be quantized.

use std::path::PathBuf;

use super::calibration::CalibrationError;
use crate::base::json::JsonError;
use crate::checkpoint::CheckpointError;
use crate::dense::DenseError;
use crate::device::cuda::CudaError;
use crate::recipe::assignment::AssignmentError;
use crate::record::{Classified, Failure, FailureClass};

/// A quantization that cannot be planned or carried out.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The recipe cannot be applied to this checkpoint.
    #[error("{}", model.display())]
    Assignment {
        /// The source.
        model: PathBuf,
        /// Why.
        source: AssignmentError,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor}: {}, expected finite weights", at.as_deref().unwrap_or("holds NaN or infinity"))]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Where and what, if it was looked up.
        at: Option<String>,
    },
    /// The source cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The source's tensors cannot be presented as dense floats.
    #[error(transparent)]
    Source(#[from] DenseError),
    /// Static input scales are not known.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Several recipes that read the source differently were to be applied in one pass.
    #[error(
        "the recipes {first} and {other} do not split the same experts, expected recipes that can share one read"
    )]
    Split {
        /// One recipe.
        first: String,
        /// The other.
        other: String,
    },
    /// A file cannot be read or written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A GPU failed.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A GPU computes something else than the CPU.
    #[error("tensor {tensor}: {what}, expected the same bytes")]
    WrongDevice {
        /// The tensor.
        tensor: String,
        /// The device, the scheme and what differs.
        what: String,
    },
    /// A JSON file cannot be written.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Records of written shards do not belong to this plan.
    #[error("shard records: found {found}, expected {expected}")]
    Shards {
        /// What was passed.
        found: String,
        /// What the plan needs.
        expected: String,
    },
}

impl Classified for QuantizeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Assignment { source, .. } => source.failure_class(),
            Self::NonFinite { .. } => FailureClass::ModelUnsupported,
            Self::Checkpoint(error) => error.failure_class(),
            Self::Source(error) => error.failure_class(),
            Self::Calibration(error) => error.failure_class(),
            Self::Device(error) => error.failure_class(),
            Self::Split { .. } => FailureClass::UserConfigError,
            Self::Write { source, .. } | Self::Json(JsonError::Write { source, .. }) => {
                Failure::io("", source).class
            }
            Self::Json(_) | Self::Shards { .. } | Self::WrongDevice { .. } => FailureClass::Unknown,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Assignment { source, .. } => source.hint(),
            Self::NonFinite { .. } => {
                Some("the source itself is damaged or diverged in training; fetch it again".to_owned())
            }
            Self::Checkpoint(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Calibration(error) => error.hint(),
            Self::Device(error) => error.hint(),
            Self::Split { .. } => Some("apply them one after the other".to_owned()),
            Self::Write { .. } | Self::Json(_) => {
                Some("check space and permissions of the output directory".to_owned())
            }
            Self::WrongDevice { .. } => {
                Some("use --device cpu, and report the device, its driver and the scheme".to_owned())
            }
            Self::Shards { .. } => None,
        }
    }
}

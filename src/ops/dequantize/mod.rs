//! The dense f32 weight of a quantized module: the exact product of code and scale.
//!
//! | layout | value |
//! |---|---|
//! | float scales | `(code − zero_point) · scale` |
//! | NVFP4 | `code · (local / global)`, the quotient rounded to f32 as compressed-tensors' decompression does |
//! | NVFP4 of ModelOpt | `code · (local · weight_scale_2)`, the product in brackets rounded to f32 |
//! | MXFP4, MXFP6, MXFP8 | `code · 2^(byte − 127)` |
//!
//! With bf16 or f16 scales and codes of at most 8 bits the product is exact in f32; with f32 scales it is rounded once.
//! Source: compressed-tensors 0.19, `compressors/*/base.py` (`decompress`) and `forward_helpers.py` (`_dequantize`).
//! Values of scales are not judged here; `scan` does that.

mod declared;
mod fp8;
mod stored;

use super::weight_layout::{LayoutError, WeightLayout};
use crate::checkpoint::quant_args::Format;
use crate::checkpoint::{Checkpoint, CheckpointError, ConfigGroup};
use crate::record::{Classified, FailureClass};

pub use stored::{Global, PackedTensors, StoredWeight};

/// A dense weight.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseWeight {
    /// Row-major [N, K].
    pub data: Vec<f32>,
    /// [N, K].
    pub shape: [usize; 2],
}

/// A quantized module whose weight cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum DequantizeError {
    /// The declared scheme has no layout here.
    #[error("module {module}: the declared scheme cannot be read")]
    Layout {
        /// The module.
        module: String,
        /// Why.
        source: LayoutError,
    },
    /// The scheme implies no format and the config declares none.
    #[error("module {module}: neither the config nor its scheme names a format")]
    NoFormat {
        /// The module.
        module: String,
    },
    /// A tensor is missing or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor is there, but not as the scheme needs it.
    #[error("tensor {tensor}: found {found}, expected {expected}")]
    Tensor {
        /// Name.
        tensor: String,
        /// dtype and shape found.
        found: String,
        /// dtype and shape that the scheme implies.
        expected: String,
    },
}

impl Classified for DequantizeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Layout { .. } | Self::NoFormat { .. } => FailureClass::ModelUnsupported,
            Self::Checkpoint(error) => error.failure_class(),
            Self::Tensor { .. } => FailureClass::QuantCoverageFailure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            _ => Some("day0 scan DIR lists every tensor that is not as declared".to_owned()),
        }
    }
}

/// The layout of a config group: its declared format, else the one its scheme implies.
pub fn layout_of(module: &str, group: &ConfigGroup) -> Result<WeightLayout, DequantizeError> {
    let format: Format = group
        .format
        .or_else(|| group.scheme.format())
        .ok_or_else(|| DequantizeError::NoFormat { module: module.to_owned() })?;
    WeightLayout::new(&group.scheme.weights, format)
        .and_then(|layout| layout.in_dialect(group.dialect))
        .map_err(|source| DequantizeError::Layout { module: module.to_owned(), source })
}

/// The weight of a quantized module, rows in parallel.
pub fn dense_weight(
    ckpt: &Checkpoint,
    module: &str,
    group: &ConfigGroup,
) -> Result<DenseWeight, DequantizeError> {
    StoredWeight::declared(ckpt, module, group)?.dense(ckpt)
}

#[cfg(test)]
mod tests;

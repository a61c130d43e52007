//! Why a checkpoint cannot be run by the built-in engine.

use super::config::ConfigError;
use crate::checkpoint::{CheckpointError, QuantConfigError};
use crate::device::cuda::CudaError;
use crate::ops::dequantize::DequantizeError;
use crate::record::{Classified, FailureClass};

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint cannot be read, or lacks a tensor.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A quantized weight cannot be decoded.
    #[error(transparent)]
    Dequantize(#[from] DequantizeError),
    /// `quantization_config` cannot be used.
    #[error("config.json: quantization_config")]
    Quantization(#[from] QuantConfigError),
    /// A device fails.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A tensor does not have the shape that `config.json` implies.
    #[error("{tensor}: shape {found:?}, expected {expected:?} by config.json")]
    Shape {
        /// Name.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A head beside the embedding that `config.json` says is the head.
    #[error("lm_head.weight differs from the embedding, although config.json says tie_word_embeddings")]
    StoredHead,
    /// Inputs of a module are quantized in a way that is not implemented.
    #[error("{module}: input activations {found} are not implemented for {inputs} inputs")]
    Activations {
        /// Module name.
        module: String,
        /// K.
        inputs: usize,
        /// What the scheme asks for.
        found: String,
    },
    /// Keys and values are to be quantized.
    #[error("the KV cache scheme {found} is not implemented")]
    KvCache {
        /// As declared.
        found: String,
    },
    /// A stored scale cannot be divided by.
    #[error("{tensor}: scale {value}, expected a finite number above 0")]
    StoredScale {
        /// Name.
        tensor: String,
        /// Its value.
        value: f32,
    },
    /// Tensors that the graph does not use: it is not the graph this checkpoint was made for.
    #[error("{count} tensors of the checkpoint are not part of {architecture}: {}", names.join(", "))]
    Extra {
        /// Architecture that was built.
        architecture: String,
        /// How many.
        count: usize,
        /// The first of them.
        names: Vec<String>,
    },
}

impl Classified for ModelError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Config(e) => e.failure_class(),
            Self::Checkpoint(e) => e.failure_class(),
            Self::Dequantize(e) => e.failure_class(),
            Self::Quantization(e) => e.failure_class(),
            Self::Device(e) => e.failure_class(),
            Self::Shape { .. } => FailureClass::UserConfigError,
            Self::StoredScale { .. } => FailureClass::QuantCoverageFailure,
            Self::StoredHead | Self::Activations { .. } | Self::KvCache { .. } | Self::Extra { .. } => {
                FailureClass::ModelUnsupported
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Config(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Dequantize(e) => e.hint(),
            Self::Quantization(e) => e.hint(),
            Self::Device(e) => e.hint(),
            Self::Shape { .. } => Some("config.json and the weights belong to different models".to_owned()),
            Self::StoredScale { .. } => Some("day0 scan DIR lists every scale that is wrong".to_owned()),
            Self::StoredHead => Some(
                "loaders differ in which of the two they use: set tie_word_embeddings to false, or remove lm_head.weight"
                    .to_owned(),
            ),
            Self::Activations { .. } | Self::KvCache { .. } => {
                Some("serve this checkpoint with an external engine and --endpoint".to_owned())
            }
            Self::Extra { .. } => {
                Some("the model may be a variant; serve it with an external engine and --endpoint".to_owned())
            }
        }
    }
}

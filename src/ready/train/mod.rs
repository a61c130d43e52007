//! Training of the embedded model: an invented world, an endless seeded corpus, a llama graph with gradients, AdamW.
//! The family `token` of the gate `repro` trains with it; so does the example that made the embedded model.

pub mod corpus;
pub mod fused;
pub mod generator;
pub mod model;
pub mod tokens;
pub mod trainer;
pub mod words;

use crate::record::{Classified, FailureClass};

/// Training that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A tensor of the graph is not there.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// The loss does not depend on a tensor.
    #[error("no gradient reaches {name}")]
    NoGradient {
        /// Its name.
        name: String,
    },
    /// The tokenizer does not take a text.
    #[error("the tokenizer does not take the text: {detail}")]
    Tokenizer {
        /// Why.
        detail: String,
    },
    /// A schedule without rows.
    #[error("a batch has no rows")]
    NoRows,
    /// No worker threads.
    #[error("worker threads cannot be started")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl Classified for TrainError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::NoRows | Self::Threads(_) => FailureClass::UserConfigError,
            _ => FailureClass::Unknown,
        }
    }
}

/// What training returns.
pub type Result<T> = std::result::Result<T, TrainError>;

//! Why the engine cannot start or cannot answer.

use crate::device::cuda::CudaError;
use crate::model::ModelError;
use crate::record::{Classified, FailureClass};

/// An engine that cannot start, or a call it cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device that computes it fails.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A device without memory for the smallest batch. Says what would help, as servers and records of items pass messages
    /// on, but no hints.
    #[error("not even a batch of {rows} rows fits: {full}; use another device, or --device cpu")]
    BatchMemory {
        /// Rows that were tried last.
        rows: usize,
        /// What did not fit.
        full: CudaError,
    },
    /// Devices whose results are not those of each other.
    #[error("{first} and {other} differ in architecture, and so in results")]
    Devices {
        /// The first.
        first: String,
        /// One that differs.
        other: String,
    },
    /// What only a model in memory can do.
    #[error("{what} is not done on a GPU")]
    NotOnDevice {
        /// What was asked.
        what: &'static str,
    },
    /// Worker threads cannot be started.
    #[error("cannot start {count} worker threads")]
    Threads {
        /// How many were wanted.
        count: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// A request that the model cannot take.
    #[error("request {index}")]
    Request {
        /// Its place in the call.
        index: usize,
        /// Why.
        source: RequestError,
    },
    /// All logits are NaN: the weights are broken.
    #[error("the model gives no finite logits at position {position}")]
    NotFinite {
        /// Position whose next token was asked for.
        position: usize,
    },
}

/// What is wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No tokens.
    #[error("no tokens, expected at least one")]
    Empty,
    /// Nothing is given, or nothing is to be scored.
    #[error("context_len {context_len} of {len} tokens, expected 1 to {}", len.saturating_sub(1))]
    Context {
        /// Tokens given.
        context_len: usize,
        /// All tokens.
        len: usize,
    },
    /// A token beyond the vocabulary.
    #[error("token {token} at position {position}, expected less than the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Where.
        position: usize,
        /// V.
        vocab_size: usize,
    },
    /// More input than the model takes.
    #[error("{inputs} input tokens, expected at most {max_len}")]
    TooLong {
        /// Tokens that would be fed; the last one of a scored request is not.
        inputs: usize,
        /// `max_position_embeddings`, or what generation was limited to.
        max_len: usize,
    },
}

impl Classified for EngineError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Model(e) => e.failure_class(),
            Self::Device(e) | Self::BatchMemory { full: e, .. } => e.failure_class(),
            Self::NotOnDevice { .. } | Self::Devices { .. } => FailureClass::UserConfigError,
            Self::Threads { .. } => FailureClass::InfraTransient,
            Self::Request { source, .. } => source.failure_class(),
            Self::NotFinite { .. } => FailureClass::ModelUnsupported,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Model(e) => e.hint(),
            Self::Device(e) | Self::BatchMemory { full: e, .. } => e.hint(),
            Self::NotOnDevice { .. } => Some("use --device cpu".to_owned()),
            Self::Devices { .. } => Some("name devices of one kind with --device cuda:N,M".to_owned()),
            Self::Threads { .. } => Some("lower --threads or raise the process limit".to_owned()),
            Self::Request { source, .. } => source.hint(),
            Self::NotFinite { .. } => Some("scan the checkpoint for NaN and Inf with --values".to_owned()),
        }
    }
}

impl Classified for RequestError {
    fn failure_class(&self) -> FailureClass {
        FailureClass::UserConfigError
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty | Self::Context { .. } => "give the model at least one token".to_owned(),
            Self::Token { .. } => "the tokenizer belongs to another model".to_owned(),
            Self::TooLong { .. } => "truncate the request from the left".to_owned(),
        })
    }
}

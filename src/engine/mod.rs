//! Layer 5: batching, prefix sharing, scoring, generation.

pub mod error;
mod generate;
mod plan;
mod run;
mod score;
mod support;

#[cfg(test)]
mod tests;

pub use error::{EngineError, RequestError};
pub use run::{Engine, EngineOptions};
pub use score::TokenLogprobs;
pub use support::{check_supported, kernel_path, max_len, memory_bytes};

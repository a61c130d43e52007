//! Layer 5: batching, prefix sharing, scoring, generation.

pub mod error;
mod generate;
mod plan;
mod run;
mod score;

#[cfg(test)]
mod tests;

pub use error::{EngineError, RequestError};
pub use run::{Engine, EngineOptions};
pub use score::TokenLogprobs;

//! Layer 5: batching, prefix sharing, scoring, generation.

mod batch_limits;
mod calibrate;
pub mod error;
mod generator;
mod lane;
mod pages;
mod place;
mod plan;
mod prefix_cache;
mod run;
mod sampling;
mod score;
mod support;

#[cfg(test)]
pub(crate) mod tests;

pub use error::{EngineError, RequestError};
pub use generator::{
    GenerateRequest, Generated, GenerationFailure, Generator, GeneratorLoad, GeneratorOptions,
};
pub use place::EnginePlace;
pub(crate) use plan::common_prefix;
pub use run::{Engine, EngineOptions};
pub use sampling::{Sampler, Sampling};
pub use score::{PromptQuery, ScoreStats, TokenLogprobs};
pub use support::{check_supported, kernel_path, max_len, memory_bytes};

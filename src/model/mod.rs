//! Layer 4: decoder graph, architectures, quantized linears, tokenizer, chat template.

pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod error;
pub mod jinja;
pub mod kv_cache;
pub mod linear;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
mod linear_oracle_tests;

pub use config::ModelConfig;
pub use decoder::{Decoder, RaggedBatch};
pub use error::ModelError;
pub use kv_cache::{KvCache, Stored};

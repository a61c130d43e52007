//! Layer 4: decoder graph, architectures, quantized linears, tokenizer, chat template.

pub mod architecture;
pub mod chat_template;
pub mod config;
mod config_fields;
pub mod decoder;
pub mod error;
mod experts;
mod input_observer;
pub mod jinja;
pub mod kv_cache;
mod layer;
pub mod linear;
mod module_rows;
pub mod rope;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
mod linear_oracle_tests;

pub use config::ModelConfig;
pub use decoder::{Decoder, RaggedBatch};
pub use error::ModelError;
pub use kv_cache::{KvCache, Stored};

//! Layer 4: decoder graph, architectures, quantized linears, tokenizer, chat template.

pub mod architecture;
pub mod chat_template;
pub mod config;
mod config_fields;
pub mod cuda;
pub mod decoder;
pub mod error;
mod experts;
mod graph;
mod input_observer;
pub mod jinja;
pub mod kv_cache;
mod layer;
pub mod linear;
mod module_rows;
mod placement;
pub mod rope;
pub mod session;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
mod linear_oracle_tests;

pub use config::ModelConfig;
pub use cuda::CudaDecoder;
pub use decoder::{Decoder, RaggedBatch};
pub use error::ModelError;
pub use kv_cache::{KvCache, Stored};
pub use session::{Backend, CpuBackend, HeadAnswer, Session, Slots};

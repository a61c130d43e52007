//! Layer 2: checkpoints on disk and on the hub: headers, shards, GGUF import, quantization dialects.

pub mod declaration;
pub mod dir;
pub mod embedded;
pub mod error;
pub mod file_digest;
pub mod files;
pub mod gguf;
pub mod header;
pub mod http;
pub mod hub;
pub mod hub_dataset;
pub mod hub_env;
pub mod index;
pub mod modelopt;
pub mod name_match;
pub mod quant_args;
pub mod quantization_config;
pub mod remote;
pub mod source;
pub mod tensor;
#[cfg(test)]
pub(crate) mod test_server;
pub mod writer;

pub use dir::{Checkpoint, ShardInfo, TensorLocation};
pub use error::CheckpointError;
pub use quantization_config::{ConfigGroup, QuantConfigError, QuantizationConfig};
pub use source::{ModelKind, ResolvedModel, SourceError};
pub use tensor::TensorView;

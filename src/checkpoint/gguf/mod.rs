//! GGUF files (llama.cpp), turned into Hugging Face checkpoint directories: architectures as data, what a file says and
//! nobody knows is refused.
//!
//! Source of the format: ggml's `docs/gguf.md`; of the mapping: llama.cpp's `convert_hf_to_gguf.py`, inverted.

pub mod architecture;
pub mod blocks;
pub mod error;
pub mod hparams;
pub mod import;
mod keys;
pub mod plan;
pub mod reader;
mod rope;
#[cfg(test)]
pub(crate) mod test_file;
pub mod tokenizer;
mod tokenizer_bpe;
mod tokenizer_spm;
pub mod value;

pub use error::{GgufError, GgufProblem};
pub use import::{ImportDtype, ImportOptions, ImportSummary, import};

//! GGUF files (llama.cpp) of the llama architecture, turned into Hugging Face checkpoint directories.
//!
//! Source of the format: ggml's `docs/gguf.md`; of the mapping: llama.cpp's `convert_hf_to_gguf.py`, inverted.

pub mod blocks;
pub mod error;
pub mod import;
pub mod llama;
pub mod reader;
#[cfg(test)]
pub(crate) mod test_file;
pub mod tokenizer;
mod tokenizer_bpe;
mod tokenizer_spm;
pub mod value;

pub use error::{GgufError, GgufProblem};
pub use import::{ImportDtype, ImportOptions, ImportSummary, import};

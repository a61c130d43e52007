//! Texts as tokens.

use tokenizers::Tokenizer;

use super::{Result, TrainError};

/// The id of the token that separates documents: special tokens come first.
pub const END_OF_TEXT_ID: u32 = 0;

/// Token ids of `text`.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoded = tokenizer.encode(text, false);
    let encoded = encoded.map_err(|e| TrainError::Tokenizer { detail: e.to_string() })?;
    Ok(encoded.get_ids().to_vec())
}

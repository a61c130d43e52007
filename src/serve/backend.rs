//! What the server needs from an engine.

use crate::engine::{Engine, EngineError, TokenLogprobs};
use crate::record::failure::chain;
use crate::record::score::EngineIdentity;

/// An engine that could not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// Scoring and greedy generation, one call at a time.
pub trait Backend: Send + Sync {
    /// Log-probs of every prompt token given those before it; the first entry is `None`.
    /// `len = tokens.len()`.
    fn prompt_logprobs(
        &self,
        tokens: &[u32],
        top_n: usize,
    ) -> Result<Vec<Option<TokenLogprobs>>, BackendError>;

    /// At most `max_tokens` greedy tokens; generation ends after the first token in `stop_ids`, which is included.
    fn generate_greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        top_n: usize,
    ) -> Result<Vec<TokenLogprobs>, BackendError>;

    /// What answers.
    fn identity(&self) -> EngineIdentity;

    /// Longest sequence in tokens, prompt and generated together.
    fn max_len(&self) -> usize;

    /// Number of token ids.
    fn vocab_size(&self) -> usize;
}

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        Self(chain(&error))
    }
}

impl Backend for Engine {
    fn prompt_logprobs(
        &self,
        tokens: &[u32],
        top_n: usize,
    ) -> Result<Vec<Option<TokenLogprobs>>, BackendError> {
        Ok(Self::prompt_logprobs(self, tokens, top_n)?)
    }

    fn generate_greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        top_n: usize,
    ) -> Result<Vec<TokenLogprobs>, BackendError> {
        Ok(Self::generate_greedy(self, prompt, max_tokens, stop_ids, top_n)?)
    }

    fn identity(&self) -> EngineIdentity {
        Self::identity(self).clone()
    }

    fn max_len(&self) -> usize {
        Self::max_len(self)
    }

    fn vocab_size(&self) -> usize {
        Self::vocab_size(self)
    }
}

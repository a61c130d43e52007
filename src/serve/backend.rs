//! What the server needs from an engine.

use crate::record::score::EngineIdentity;

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands at this position.
    pub token: u32,
    /// ln p of that token.
    pub logprob: f32,
    /// The most likely tokens at this position, best first. A value that belongs to `token` is the same f32 as
    /// `logprob`.
    pub top: Vec<(u32, f32)>,
}

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

//! The request and the answer of log-likelihood scoring, the same for the built-in engine and for endpoints.

use serde::{Deserialize, Serialize};

/// Score `tokens[context_len..]` given everything before each of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreRequest {
    /// Context and continuation as token ids, already truncated to what the model takes.
    pub tokens: Vec<u32>,
    /// Number of leading tokens that are given and not scored; at least 1, less than `tokens.len()`.
    pub context_len: usize,
}

/// Log-likelihoods of one request's continuation tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreResult {
    /// ln p of each continuation token; `len = tokens.len() - context_len`.
    pub token_logprobs: Vec<f32>,
    /// Whether each continuation token is the most likely one at its place (ties count as greedy).
    pub token_is_greedy: Vec<bool>,
}

impl ScoreResult {
    /// Sum of the token log-probabilities, accumulated in f64 in token order.
    pub fn loglikelihood(&self) -> f64 {
        self.token_logprobs.iter().map(|l| f64::from(*l)).sum()
    }

    /// Whether the whole continuation is the greedy one.
    pub fn is_greedy(&self) -> bool {
        self.token_is_greedy.iter().all(|g| *g)
    }
}

/// What an engine that does not say what it computes on, or how, is known by.
pub const UNKNOWN: &str = "unknown";

/// What answered: everything that decides whether two sets of numbers may be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    /// Engine and its version, e.g. `day0 0.1.0+<git hash>` or `vllm 0.33.0`.
    pub engine: String,
    /// Device, e.g. `cpu`.
    pub device: String,
    /// Kernel path, e.g. `cpu-f32-avx512`; `unknown` for foreign engines.
    pub kernel_path: String,
    /// Digest of the checkpoint being served, if known.
    pub checkpoint_digest: Option<crate::base::digest::Digest>,
    /// Whether the digest is proven (day0 loaded the directory itself) or only declared by the user or the endpoint.
    pub identity_proven: bool,
    /// Digest of the tokenizer in use.
    pub tokenizer_digest: Option<crate::base::digest::Digest>,
}

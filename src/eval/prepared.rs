//! Items ready to be scored: rendered, tokenized, truncated and digested.

use crate::base::digest::Digest;
use crate::record::score::ScoreRequest;

/// One request of an item: a choice of a multiple-choice question, or a whole text to roll over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedRequest {
    /// Text that is given; empty for rolling requests.
    pub context: String,
    /// Text that is scored.
    pub continuation: String,
    /// What is sent to the engine: one request, or one per window of a rolling text; their log-likelihoods add up.
    pub windows: Vec<ScoreRequest>,
}

/// One document with its requests.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedItem {
    /// Index in the split.
    pub doc_id: usize,
    /// The row of the data set, keys in file order.
    pub doc: serde_json::Map<String, serde_json::Value>,
    /// Requests in lm-eval's order.
    pub requests: Vec<PreparedRequest>,
    /// Digest of the contexts and continuations.
    pub prompt_digest: Digest,
    /// Digest of the token ids and context lengths of all windows.
    pub token_digest: Digest,
}

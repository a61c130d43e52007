//! What evaluation needs from an engine, built in or behind an endpoint.

use crate::record::eval::ItemError;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
use crate::record::serve::Confirmation;

/// Called with the number of requests done since the last call.
pub type OnDone<'a> = &'a (dyn Fn(usize) + Sync);

/// Scores continuations given contexts.
pub trait Scorer: Send + Sync {
    /// What answers.
    fn identity(&self) -> EngineIdentity;

    /// The longest input in tokens, lm-eval's `max_length`: a request holds at most `max_len() + 1` tokens, because
    /// its last token is only predicted and never an input. A server that must also generate a token takes fewer:
    /// its scorer answers the server's limit − 2, as lm-eval's API models do.
    fn max_len(&self) -> usize;

    /// Whether what answers is still what was examined at the start, and what showed it; `None` of an engine in this
    /// process, which cannot be swapped. An error that is not transient means that it is another one.
    fn confirm(&self) -> Result<Option<Confirmation>, ItemError> {
        Ok(None)
    }

    /// One result for each request, in the order of the requests.
    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>>;
}

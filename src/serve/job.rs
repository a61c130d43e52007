//! What passes between a request's handler and the engine's thread.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::request::Completion;
use crate::engine::TokenLogprobs;

/// One request and where its answer goes. A receiver that is gone means that the client is.
pub(super) struct Job {
    pub request: Arc<Completion>,
    /// Unbounded, but a request's events are bounded by its tokens.
    pub events: UnboundedSender<Event>,
    pub received: Instant,
    /// Not answered by then, it is given up.
    pub deadline: Instant,
}

/// A piece of an answer. Choices count over all prompts: prompt · n + choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A prompt's log-probs from its first scored position on.
    Prompt { prompt: usize, entries: Vec<TokenLogprobs> },
    /// A generated token, and the text that is certain now.
    Token { choice: usize, entry: TokenLogprobs, text: String },
    /// The end of a choice, and the text that was held back.
    Finished { choice: usize, text: String, finish: Finish },
    /// There is no answer, or no more of it.
    Failed(Failed),
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// `max_tokens` reached.
    Length,
    /// The model's own end token.
    Eos,
    /// A token of `stop_token_ids`.
    StopToken(u32),
    /// A string of `stop`.
    StopString(String),
}

/// Why a request was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// The engine could not answer.
    Engine(String),
    /// The time for a request was over.
    TimedOut,
}

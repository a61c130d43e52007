//! What the server needs from an engine.

use crate::engine::{
    Engine, EngineError, GenerateRequest, Generated, Generator, GeneratorLoad, GeneratorOptions, PromptQuery,
    ScoreStats, TokenLogprobs,
};
use crate::record::failure::chain;
use crate::record::score::EngineIdentity;

/// An engine that could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        Self(chain(&error))
    }
}

/// A request that a generation has given up; the others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestFailed {
    /// The name the request was given.
    pub id: u64,
    /// Why.
    pub message: String,
}

/// Called with a prompt's place in the call and the log-probs of its scored tokens.
pub type OnScored<'a> = &'a mut (dyn FnMut(usize, Vec<TokenLogprobs>) + Send);

/// An engine: it scores prompts together, and generates for many requests at once.
pub trait Backend: Send + Sync {
    /// Log-probs of the prompts' tokens from each one's `first` on, handed out as they become known.
    fn score_prompts(&self, prompts: &[PromptQuery], done: OnScored<'_>) -> Result<ScoreStats, BackendError>;

    /// A batch that requests join and leave.
    fn generation(&self, options: GeneratorOptions) -> Box<dyn Generation + '_>;

    /// What answers.
    fn identity(&self) -> EngineIdentity;

    /// Longest sequence in tokens, prompt and generated together.
    fn max_len(&self) -> usize;

    /// Number of token ids.
    fn vocab_size(&self) -> usize;

    /// New rows that one forward pass takes at most.
    fn pass_rows(&self) -> usize;
}

/// Requests being generated.
pub trait Generation {
    /// Lets a request join under this name.
    fn add(&mut self, id: u64, request: GenerateRequest) -> Result<(), BackendError>;

    /// Ends one choice of a request, or all.
    fn cancel(&mut self, id: u64, choice: Option<usize>);

    /// The next tokens, or a request that gets no more.
    fn step(&mut self) -> Result<Vec<Generated>, RequestFailed>;

    /// How busy it is.
    fn load(&self) -> GeneratorLoad;
}

impl Backend for Engine {
    fn score_prompts(&self, prompts: &[PromptQuery], done: OnScored<'_>) -> Result<ScoreStats, BackendError> {
        Ok(Self::score_prompts(self, prompts, done)?)
    }

    fn generation(&self, options: GeneratorOptions) -> Box<dyn Generation + '_> {
        Box::new(self.generator(options))
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

    fn pass_rows(&self) -> usize {
        Self::pass_rows(self)
    }
}

impl Generation for Generator<'_> {
    fn add(&mut self, id: u64, request: GenerateRequest) -> Result<(), BackendError> {
        Ok(Self::add(self, id, request)?)
    }

    fn cancel(&mut self, id: u64, choice: Option<usize>) {
        Self::cancel(self, id, choice);
    }

    fn step(&mut self) -> Result<Vec<Generated>, RequestFailed> {
        Self::step(self).map_err(|f| RequestFailed { id: f.request, message: chain(&f.source) })
    }

    fn load(&self) -> GeneratorLoad {
        Self::load(self)
    }
}

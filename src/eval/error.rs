//! What can keep a task from being evaluated.

use std::path::PathBuf;

use crate::base::json::JsonError;
use crate::model::tokenizer::TokenizerError;
use crate::record::{Classified, FailureClass};
use crate::suite::{PromptError, SuiteError};

/// Items that cannot be prepared, or results that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The task or its data.
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// The prompt of a document.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The tokenizer.
    #[error("task {task}, document {doc_id}")]
    Tokenizer {
        /// Task.
        task: String,
        /// Document.
        doc_id: usize,
        /// Why.
        source: TokenizerError,
    },
    /// Items that cannot be scored, where all must be.
    #[error("task {task}: {count} item(s) cannot be scored, first document {doc_id}, {problem}")]
    Unscorable {
        /// Task.
        task: String,
        /// Items.
        count: usize,
        /// The first of them.
        doc_id: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Chat prompts were asked for without a template.
    #[error("the checkpoint has no chat template")]
    NoChatTemplate,
    /// A results file cannot be written.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A samples file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a request cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestProblem {
    /// Without context there must be a token to start from.
    #[error("the context is empty and the tokenizer names neither BOS nor EOS to stand for it")]
    NoPrefixToken,
    /// White space moves to the continuation, and then nothing is left.
    #[error("the context is only white space, which leaves no token before the continuation")]
    EmptyContext,
    /// Nothing to score.
    #[error("the continuation has no token of its own")]
    EmptyContinuation,
    /// The scored part alone is too long.
    #[error("the continuation has {tokens} tokens, but the model takes {max_len}")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The longest input.
        max_len: usize,
    },
}

impl Classified for EvalError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Write { source, .. } | Self::Json(JsonError::Write { source, .. }) => {
                crate::record::Failure::io("", source).class
            }
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Suite(error) => error.hint(),
            Self::Prompt(error) => error.hint(),
            Self::Tokenizer { source, .. } => source.hint(),
            Self::Unscorable { .. } => Some(
                "leave the task out, or shorten its rows; `day0 eval` scores the others and names these"
                    .to_owned(),
            ),
            Self::NoChatTemplate => Some("leave out --apply-chat-template".to_owned()),
            _ => None,
        }
    }
}

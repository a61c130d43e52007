//! A whole answer, collected from its events.

use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::job::{Event, Failed, Finish};
use super::request::Completion;
use crate::engine::TokenLogprobs;

/// What the engine said about a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    /// Log-probs of each prompt from its first scored position on; empty where none were asked for.
    pub prompts: Vec<Vec<TokenLogprobs>>,
    /// By number over all prompts.
    pub choices: Vec<ChoiceOutput>,
}

/// One choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChoiceOutput {
    pub generated: Vec<TokenLogprobs>,
    /// Text of the generated tokens, without what ended it.
    pub text: String,
    /// `None` until it is finished.
    pub finish: Option<Finish>,
}

/// Waits for the last event.
pub(super) async fn collect(
    request: &Completion,
    events: &mut UnboundedReceiver<Event>,
) -> Result<Output, ApiError> {
    let empty = || ChoiceOutput { generated: Vec::new(), text: String::new(), finish: None };
    let mut output = Output {
        prompts: vec![Vec::new(); request.prompts.len()],
        choices: (0..request.choices()).map(|_| empty()).collect(),
    };
    let mut open = output.choices.len();
    while open > 0 {
        match events.recv().await.ok_or_else(shutting_down)? {
            Event::Prompt { prompt, entries } => output.prompts[prompt] = entries,
            Event::Token { choice, entry, text } => {
                let choice = &mut output.choices[choice];
                choice.generated.push(entry);
                choice.text.push_str(&text);
            }
            Event::Finished { choice, text, finish } => {
                let choice = &mut output.choices[choice];
                choice.text.push_str(&text);
                choice.finish = Some(finish);
                open -= 1;
            }
            Event::Failed(failed) => return Err(failure(failed)),
        }
    }
    Ok(output)
}

/// The answer to a request that was given up.
pub(super) fn failure(failed: Failed) -> ApiError {
    match failed {
        Failed::Engine(message) => ApiError::internal(message),
        Failed::TimedOut => ApiError::unavailable("The request was not answered in time; try again."),
    }
}

/// The answer when the engine's thread has ended.
pub(super) fn shutting_down() -> ApiError {
    ApiError::unavailable("The server is shutting down.")
}

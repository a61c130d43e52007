//! Runs one prompt of a request on the engine.

use super::backend::{Backend, BackendError};
use super::request::{Completion, TokenizedPrompt};
use super::text::TextCodec;
use crate::engine::TokenLogprobs;

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

/// What the engine said about one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    /// Log-probs of the prompt when they were asked for; else empty.
    pub prompt: Vec<Option<TokenLogprobs>>,
    pub generated: Vec<TokenLogprobs>,
    /// Text of the generated tokens, without what ended it.
    pub text: String,
    pub finish: Finish,
}

/// Scores and continues `prompt`.
pub(super) fn complete(
    request: &Completion,
    prompt: &TokenizedPrompt,
    backend: &dyn Backend,
    text: &dyn TextCodec,
) -> Result<Output, BackendError> {
    let scored = request.logprobs.filter(|_| request.echo);
    let (prompt_logprobs, generated) = match (scored, request.max_tokens) {
        (Some(top_n), 0) => (checked_prompt_logprobs(backend, &prompt.ids, top_n)?, Vec::new()),
        (Some(top_n), 1) => score_and_next(backend, &prompt.ids, top_n)?,
        (Some(top_n), n) => {
            let scored = checked_prompt_logprobs(backend, &prompt.ids, top_n)?;
            (scored, generate(request, prompt, backend, n, top_n)?)
        }
        (None, 0) => (Vec::new(), Vec::new()),
        (None, n) => (Vec::new(), generate(request, prompt, backend, n, request.logprobs.unwrap_or(0))?),
    };
    let mut output =
        Output { prompt: prompt_logprobs, generated, text: String::new(), finish: Finish::Length };
    finish(request, prompt, text, &mut output);
    Ok(output)
}

/// `echo` with `max_tokens` 1, the request of every evaluation: one pass instead of two. A dummy token is appended
/// to the prompt; the ranking at its place is the ranking of the next token.
fn score_and_next(
    backend: &dyn Backend,
    ids: &[u32],
    top_n: usize,
) -> Result<(Vec<Option<TokenLogprobs>>, Vec<TokenLogprobs>), BackendError> {
    let mut extended = ids.to_vec();
    extended.push(0);
    let mut entries = checked_prompt_logprobs(backend, &extended, top_n.max(1))?;
    let mut next =
        entries.pop().flatten().ok_or_else(|| BackendError("no log-probs at the end".to_owned()))?;
    let (token, logprob) =
        *next.top.first().ok_or_else(|| BackendError("no ranking at the end".to_owned()))?;
    next.token = token;
    next.logprob = logprob;
    let entries_cut = entries.into_iter().map(|e| e.map(|e| cut(e, top_n))).collect();
    Ok((entries_cut, vec![cut(next, top_n)]))
}

fn cut(mut entry: TokenLogprobs, top_n: usize) -> TokenLogprobs {
    entry.top.truncate(top_n);
    entry
}

fn checked_prompt_logprobs(
    backend: &dyn Backend,
    ids: &[u32],
    top_n: usize,
) -> Result<Vec<Option<TokenLogprobs>>, BackendError> {
    let entries = backend.prompt_logprobs(ids, top_n)?;
    if entries.len() != ids.len() {
        return Err(BackendError(format!("{} log-probs for {} tokens", entries.len(), ids.len())));
    }
    Ok(entries)
}

fn generate(
    request: &Completion,
    prompt: &TokenizedPrompt,
    backend: &dyn Backend,
    max_tokens: usize,
    top_n: usize,
) -> Result<Vec<TokenLogprobs>, BackendError> {
    let stop_ids: Vec<u32> = request.eos_ids.iter().chain(&request.stop_token_ids).copied().collect();
    backend.generate_greedy(&prompt.ids, max_tokens, &stop_ids, top_n)
}

/// Fills in text and finish reason, and cuts the generation at the first stop string.
fn finish(request: &Completion, prompt: &TokenizedPrompt, text: &dyn TextCodec, output: &mut Output) {
    let ids: Vec<u32> = output.generated.iter().map(|t| t.token).collect();
    let last = ids.last().copied();
    let mut shown = ids.as_slice();
    if let Some(id) = last.filter(|id| request.stop_token_ids.contains(id)) {
        output.finish = Finish::StopToken(id);
        shown = &ids[..ids.len() - 1];
    } else if last.is_some_and(|id| request.eos_ids.contains(&id)) {
        output.finish = Finish::Eos;
        shown = &ids[..ids.len() - 1];
    } else if ids.len() < request.max_tokens && request.max_tokens > 1 {
        // An engine that leaves the end token out of its answer.
        output.finish = Finish::Eos;
    }
    output.text = continuation_text(&prompt.ids, shown, text);
    if first_stop(&output.text, &request.stop).is_none() {
        return;
    }
    for n in 1..=shown.len() {
        let so_far = continuation_text(&prompt.ids, &shown[..n], text);
        if let Some((at, stop)) = first_stop(&so_far, &request.stop) {
            so_far[..at].clone_into(&mut output.text);
            output.finish = Finish::StopString(stop.to_owned());
            output.generated.truncate(n);
            return;
        }
    }
}

/// The earliest stop string in `text`.
fn first_stop<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    stops.iter().filter_map(|s| Some((text.find(s.as_str())?, s.as_str()))).min_by_key(|(at, _)| *at)
}

/// Text of `generated` after `prompt`. It is decoded behind the prompt's last tokens, because a decoder may treat
/// the first token of a text differently (SentencePiece drops its leading space).
fn continuation_text(prompt: &[u32], generated: &[u32], text: &dyn TextCodec) -> String {
    const CONTEXT_TOKENS: usize = 6;
    let context = &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..];
    let before = text.decode(context);
    let whole = text.decode(&[context, generated].concat());
    match whole.strip_prefix(&before) {
        Some(continuation) => continuation.to_owned(),
        None => text.decode(generated),
    }
}

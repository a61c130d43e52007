//! `/v1/completions` requests: what was typed, and what is valid.

use serde::Deserialize;

use super::error::ApiError;
use super::fields::{Alternatives, OneOrMany};
use super::params::{MAX_CHOICES, MAX_LOGPROBS, Params, RawParams, check_model, count};
use super::prompt::{Prompt, Prompts};
use super::text::TextCodec;

/// Answer entries of one request: positions times entries per position. It bounds the answer to some hundred MiB.
const MAX_ENTRIES: usize = 4 << 20;

/// The fields of completions alone.
#[derive(Deserialize)]
struct RawCompletion {
    prompt: Option<Prompts>,
    echo: Option<bool>,
    logprobs: Option<i64>,
    logprob_start_len: Option<OneOrMany<StartLen>>,
    max_tokens: Option<i64>,
    add_special_tokens: Option<bool>,
}

/// `logprob_start_len`: one number, or one for each prompt.
struct StartLen;

impl Alternatives for StartLen {
    type One = i64;
    type Each = i64;
    const MOST: usize = MAX_CHOICES;
    const EXPECTED: &'static str = "logprob_start_len to be a number or a list of numbers";

    fn number(number: i64) -> Option<i64> {
        Some(number)
    }
}

/// What the model takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Longest sequence in tokens, prompt and generated together.
    pub max_len: usize,
    /// Number of token ids.
    pub vocab_size: usize,
}

/// A valid request for completions or chat.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Completion {
    pub prompts: Vec<TokenizedPrompt>,
    pub echo: bool,
    /// Ranked entries per position; `None`: no log-probs at all.
    pub logprobs: Option<usize>,
    pub max_tokens: usize,
    pub params: Params,
}

/// A prompt as the model sees it and as `echo` repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenizedPrompt {
    pub ids: Vec<u32>,
    /// The text as sent; `None` for token ids.
    pub text: Option<String>,
    /// First position whose log-prob is computed, at least 1; those before are null.
    pub first_scored: usize,
}

impl Completion {
    /// Ranked entries asked for at the prompt's positions, if these are scored at all: `prompt_logprobs`, and with
    /// `echo` `logprobs` (vLLM takes the one for the other).
    pub fn prompt_top_n(&self) -> Option<usize> {
        self.params.prompt_logprobs.max(self.logprobs.filter(|_| self.echo))
    }

    /// Choices over all prompts.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.params.n
    }

    /// The prompt of a choice.
    pub fn prompt_of(&self, choice: usize) -> usize {
        choice / self.params.n
    }
}

/// Parses and validates a body.
pub(super) fn parse(
    body: &[u8],
    limits: Limits,
    text: &dyn TextCodec,
    model_name: &str,
) -> Result<Completion, ApiError> {
    let (params, raw): (_, RawCompletion) = parse_parts(body, limits, text, model_name)?;
    let echo = raw.echo.unwrap_or(false);
    // 0 only makes sense with `echo`.
    let max_tokens = count("max_tokens", raw.max_tokens, i64::from(!echo), i64::MAX)?.unwrap_or(16);
    check_min_tokens(&params, max_tokens)?;
    let prompts = raw.prompt.map(|p| p.0).unwrap_or_default();
    if prompts.is_empty() {
        return Err(ApiError::bad("prompt", "prompt must be provided and non-empty."));
    }
    if prompts.len() * params.n > MAX_CHOICES {
        let n = prompts.len() * params.n;
        let message =
            format!("prompt list length times n is {n}, the maximum allowed count is {MAX_CHOICES}.");
        return Err(ApiError::bad("prompt", message));
    }
    let add_special = raw.add_special_tokens.unwrap_or(true);
    let starts = start_lens(raw.logprob_start_len, prompts.len())?;
    let prompts = prompts.into_iter().zip(starts).map(|(prompt, first_scored)| {
        let (ids, text) = match prompt {
            Prompt::Ids(ids) => (ids, None),
            Prompt::Text(s) => {
                (text.encode(&s, add_special).map_err(|e| ApiError::bad("prompt", e))?, Some(s))
            }
        };
        check_prompt(&ids, max_tokens, limits)?;
        Ok(TokenizedPrompt { ids, text, first_scored })
    });
    let completion = Completion {
        prompts: prompts.collect::<Result<_, ApiError>>()?,
        echo,
        logprobs: count("logprobs", raw.logprobs, 0, MAX_LOGPROBS)?,
        max_tokens,
        params,
    };
    check_size(&completion)?;
    Ok(completion)
}

/// The shared fields of a body, valid, and the endpoint's own as sent.
pub(super) fn parse_parts<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    limits: Limits,
    text: &dyn TextCodec,
    model_name: &str,
) -> Result<(Params, T), ApiError> {
    let params: RawParams = parse_json(body)?;
    check_model(params.model.as_deref(), model_name)?;
    Ok((params.check(limits.vocab_size, text.eos_ids())?, parse_json(body)?))
}

/// 400 for a body that is no such JSON.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("request body: {e}")))
}

/// First scored position of each prompt.
fn start_lens(given: Option<OneOrMany<StartLen>>, prompts: usize) -> Result<Vec<usize>, ApiError> {
    const NAME: &str = "logprob_start_len";
    let given = match given {
        None => return Ok(vec![1; prompts]),
        Some(OneOrMany::One(start)) => vec![start; prompts],
        Some(OneOrMany::Many(starts)) if starts.len() == prompts => starts,
        Some(OneOrMany::Many(starts)) => {
            let message = format!("{NAME} has {} entries for {prompts} prompts.", starts.len());
            return Err(ApiError::bad(NAME, message));
        }
    };
    given.into_iter().map(|start| Ok(count(NAME, Some(start), 0, i64::MAX)?.unwrap_or(0).max(1))).collect()
}

/// A choice that may not stop before `min_tokens` must be allowed so many.
pub(super) fn check_min_tokens(params: &Params, max_tokens: usize) -> Result<(), ApiError> {
    if params.min_tokens <= max_tokens {
        return Ok(());
    }
    let min_tokens = params.min_tokens;
    let message =
        format!("min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.");
    Err(ApiError::bad("min_tokens", message))
}

/// Whether prompt and answer fit the model.
pub(super) fn check_prompt(ids: &[u32], max_tokens: usize, limits: Limits) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::bad("prompt", "The decoder prompt cannot be empty."));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocab_size) {
        return Err(ApiError::bad("prompt", format!("Token id {id} is out of vocabulary.")));
    }
    let max_len = limits.max_len;
    if ids.len().saturating_add(max_tokens) > max_len {
        let message = format!(
            "This model's maximum context length is {max_len} tokens. However, you requested {max_tokens} output \
             tokens and your prompt contains {} input tokens. Please reduce the length of the input prompt or the \
             number of requested output tokens.",
            ids.len()
        );
        return Err(ApiError::bad("prompt", message));
    }
    Ok(())
}

/// Whether the answer stays within bounds.
pub(super) fn check_size(completion: &Completion) -> Result<(), ApiError> {
    let entries = completion.logprobs.max(completion.prompt_top_n()).map_or(0, |n| n + 1);
    let positions = completion.prompts.iter().map(|p| p.ids.len() + completion.max_tokens);
    let positions = positions.sum::<usize>().saturating_mul(completion.params.n);
    if positions.saturating_mul(entries) > MAX_ENTRIES {
        let message = format!(
            "{positions} positions with {entries} log-probs each exceed {MAX_ENTRIES} entries in one answer; send fewer \
             prompts per request"
        );
        return Err(ApiError::bad("prompt", message));
    }
    Ok(())
}

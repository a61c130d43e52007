//! `/v1/completions` requests: what was typed, and what is valid.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::backend::Backend;
use super::error::ApiError;
use super::prompt::{Prompt, Prompts};
use super::text::TextCodec;

/// Prompts in one request (vLLM's VLLM_MAX_COMPLETION_PROMPTS).
pub(super) const MAX_PROMPTS: usize = 1024;
/// Ranked log-probs per position (vLLM's default of `--max-logprobs`).
pub(super) const MAX_LOGPROBS: i64 = 20;
/// Answer entries of one request: positions times entries per position. It bounds the answer to some hundred MiB.
const MAX_ENTRIES: usize = 4 << 20;

/// The body as it was sent. Fields that are not named are ignored, as vLLM does; named fields that would change the
/// answer and are not served are refused.
#[derive(Debug, Deserialize)]
pub(super) struct RawRequest {
    pub model: Option<String>,
    prompt: Option<Prompts>,
    echo: Option<bool>,
    logprobs: Option<i64>,
    max_tokens: Option<i64>,
    temperature: Option<f64>,
    n: Option<i64>,
    best_of: Option<i64>,
    stream: Option<bool>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    add_special_tokens: Option<bool>,
    return_token_ids: Option<bool>,
    return_tokens_as_token_ids: Option<bool>,
    min_tokens: Option<i64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    use_beam_search: Option<bool>,
    include_stop_str_in_output: Option<bool>,
    suffix: Option<Value>,
    logit_bias: Option<Value>,
    allowed_token_ids: Option<Value>,
    bad_words: Option<Value>,
    prompt_logprobs: Option<Value>,
    logprob_token_ids: Option<Value>,
    prompt_embeds: Option<Value>,
    truncate_prompt_tokens: Option<Value>,
    structured_outputs: Option<Value>,
    response_format: Option<Value>,
}

/// The field `stop`: one string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "stop must be a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// A valid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Completion {
    pub prompts: Vec<TokenizedPrompt>,
    pub echo: bool,
    /// Ranked entries per position; `None`: no log-probs at all.
    pub logprobs: Option<usize>,
    pub max_tokens: usize,
    pub stop: Vec<String>,
    /// Ids given by the request, reported in `stop_reason`.
    pub stop_token_ids: Vec<u32>,
    /// Ids that end a generation without being reported.
    pub eos_ids: Vec<u32>,
    pub return_token_ids: bool,
    pub tokens_as_ids: bool,
}

/// A prompt as the model sees it and as `echo` repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenizedPrompt {
    pub ids: Vec<u32>,
    /// The text as sent; `None` for token ids.
    pub text: Option<String>,
}

/// Parses and validates a body.
pub(super) fn parse(
    body: &[u8],
    backend: &dyn Backend,
    text: &dyn TextCodec,
    model_name: &str,
) -> Result<Completion, ApiError> {
    let raw: RawRequest = serde_json::from_slice(body)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("request body: {e}")))?;
    check_model(raw.model.as_deref(), model_name)?;
    refuse_unsupported(&raw)?;
    let logprobs = logprobs(&raw)?;
    let echo = raw.echo.unwrap_or(false);
    let max_tokens = max_tokens(&raw, echo)?;
    let stop = match raw.stop {
        None => Vec::new(),
        Some(Stop::One(s)) => vec![s],
        Some(Stop::Many(list)) => list,
    };
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::bad("stop", "stop cannot contain an empty string."));
    }
    let prompts = raw.prompt.map(|p| p.0).unwrap_or_default();
    let prompts = tokenize(prompts, raw.add_special_tokens.unwrap_or(true), max_tokens, backend, text)?;
    let positions: usize = prompts.iter().map(|p| p.ids.len() + max_tokens).sum();
    if logprobs.is_some_and(|n| positions.saturating_mul(n + 1) > MAX_ENTRIES) {
        let message = format!(
            "{positions} positions with {} log-probs each exceed {MAX_ENTRIES} entries in one answer; send fewer \
             prompts per request",
            logprobs.unwrap_or(0) + 1
        );
        return Err(ApiError::bad("prompt", message));
    }
    Ok(Completion {
        prompts,
        echo,
        logprobs,
        max_tokens,
        stop,
        stop_token_ids: raw.stop_token_ids.unwrap_or_default(),
        eos_ids: if raw.ignore_eos.unwrap_or(false) { Vec::new() } else { text.eos_ids() },
        return_token_ids: raw.return_token_ids.unwrap_or(false),
        tokens_as_ids: raw.return_tokens_as_token_ids.unwrap_or(false),
    })
}

/// 404 for another model's name; no name means the one model there is.
pub(super) fn check_model(asked: Option<&str>, served: &str) -> Result<(), ApiError> {
    match asked {
        Some(name) if name != served => Err(ApiError {
            param: Some("model"),
            ..ApiError::new(StatusCode::NOT_FOUND, format!("The model `{name}` does not exist."))
        }),
        _ => Ok(()),
    }
}

fn refuse_unsupported(raw: &RawRequest) -> Result<(), ApiError> {
    if let Some(t) = raw.temperature {
        if !t.is_finite() || t < 0.0 {
            return Err(ApiError::bad("temperature", format!("temperature must be non-negative, got {t}.")));
        }
        if t > 0.0 {
            return Err(ApiError::unsupported("temperature", "decoding is greedy; send 0 or leave it out"));
        }
    }
    match raw.n {
        Some(n) if n < 1 => return Err(ApiError::bad("n", format!("n must be at least 1, got {n}."))),
        Some(n) if n > 1 => {
            return Err(ApiError::unsupported("n", "decoding is greedy, all choices would be the same"));
        }
        _ => {}
    }
    let is_set = |v: &Option<Value>| match v {
        None | Some(Value::Null) => false,
        Some(Value::Array(a)) => !a.is_empty(),
        Some(Value::Object(o)) => !o.is_empty(),
        Some(Value::String(s)) => !s.is_empty(),
        Some(_) => true,
    };
    let is_text = raw.response_format.as_ref().is_some_and(|f| f["type"] == "text");
    let off = |penalty: Option<f64>, neutral: f64| penalty.is_some_and(|p| p != neutral);
    let fields: [(&'static str, bool); 18] = [
        ("stream", raw.stream == Some(true)),
        ("best_of", raw.best_of.is_some_and(|n| n != 1)),
        ("use_beam_search", raw.use_beam_search == Some(true)),
        ("include_stop_str_in_output", raw.include_stop_str_in_output == Some(true)),
        ("min_tokens", raw.min_tokens.is_some_and(|n| n != 0)),
        ("frequency_penalty", off(raw.frequency_penalty, 0.0)),
        ("presence_penalty", off(raw.presence_penalty, 0.0)),
        ("repetition_penalty", off(raw.repetition_penalty, 1.0)),
        ("suffix", is_set(&raw.suffix)),
        ("logit_bias", is_set(&raw.logit_bias)),
        ("allowed_token_ids", is_set(&raw.allowed_token_ids)),
        ("bad_words", is_set(&raw.bad_words)),
        ("prompt_logprobs", is_set(&raw.prompt_logprobs)),
        ("logprob_token_ids", is_set(&raw.logprob_token_ids)),
        ("prompt_embeds", is_set(&raw.prompt_embeds)),
        ("truncate_prompt_tokens", is_set(&raw.truncate_prompt_tokens)),
        ("structured_outputs", is_set(&raw.structured_outputs)),
        ("response_format", is_set(&raw.response_format) && !is_text),
    ];
    match fields.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(ApiError::unsupported(name, "leave it out")),
        None => Ok(()),
    }
}

fn logprobs(raw: &RawRequest) -> Result<Option<usize>, ApiError> {
    match raw.logprobs {
        None => Ok(None),
        Some(n) if (0..=MAX_LOGPROBS).contains(&n) => Ok(Some(n as usize)),
        Some(n) => {
            Err(ApiError::bad("logprobs", format!("logprobs must be between 0 and {MAX_LOGPROBS}, got {n}.")))
        }
    }
}

/// `max_tokens`, 16 when absent; 0 only makes sense with `echo`.
fn max_tokens(raw: &RawRequest, echo: bool) -> Result<usize, ApiError> {
    match raw.max_tokens.unwrap_or(16) {
        0 if echo => Ok(0),
        n if n >= 1 => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
        n => Err(ApiError::bad("max_tokens", format!("max_tokens must be at least 1, got {n}."))),
    }
}

fn tokenize(
    prompts: Vec<Prompt>,
    add_special: bool,
    max_tokens: usize,
    backend: &dyn Backend,
    text: &dyn TextCodec,
) -> Result<Vec<TokenizedPrompt>, ApiError> {
    if prompts.is_empty() {
        return Err(ApiError::bad("prompt", "prompt must be provided and non-empty."));
    }
    if prompts.len() > MAX_PROMPTS {
        let n = prompts.len();
        let message = format!("prompt list length {n} exceeds the maximum allowed count of {MAX_PROMPTS}.");
        return Err(ApiError::bad("prompt", message));
    }
    prompts
        .into_iter()
        .map(|prompt| {
            let prompt = match prompt {
                Prompt::Ids(ids) => TokenizedPrompt { ids, text: None },
                Prompt::Text(s) => {
                    let ids = text.encode(&s, add_special).map_err(|e| ApiError::bad("prompt", e))?;
                    TokenizedPrompt { ids, text: Some(s) }
                }
            };
            check_prompt(&prompt.ids, max_tokens, backend)?;
            Ok(prompt)
        })
        .collect()
}

fn check_prompt(ids: &[u32], max_tokens: usize, backend: &dyn Backend) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::bad("prompt", "The decoder prompt cannot be empty."));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= backend.vocab_size()) {
        return Err(ApiError::bad("prompt", format!("Token id {id} is out of vocabulary.")));
    }
    let max_len = backend.max_len();
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

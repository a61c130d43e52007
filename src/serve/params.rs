//! The fields that completions and chat share: how to sample, when to stop, what to report.
//!
//! Bodies are parsed once for these fields and once for the endpoint's own. Fields that are not named are ignored, as
//! vLLM does; named fields that would change the answer and are not served are refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::error::ApiError;
use super::fields::{Alternatives, Bounded, OneOrMany, Unserved};
use crate::engine::Sampling;

/// Ranked log-probs per position (vLLM's default of `--max-logprobs`).
pub(super) const MAX_LOGPROBS: i64 = 20;
/// Choices of one request over all its prompts (vLLM's VLLM_MAX_COMPLETION_PROMPTS).
pub(super) const MAX_CHOICES: usize = 1024;
/// Stop strings of one request, and the length of one: each token is compared with all of them.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
/// Ids that end a generation, of one request: each token is compared with all of them.
const MAX_STOP_IDS: usize = 1024;
/// Biased tokens of one request (OpenAI allows 300).
const MAX_BIASES: usize = 1024;

/// The shared fields as they were sent.
#[derive(Deserialize)]
pub(super) struct RawParams {
    pub model: Option<String>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    seed: Option<i64>,
    n: Option<i64>,
    stop: Option<OneOrMany<Stop>>,
    stop_token_ids: Option<Bounded<u32, MAX_STOP_IDS>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    min_tokens: Option<i64>,
    logit_bias: Option<LogitBias>,
    prompt_logprobs: Option<i64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
    return_tokens_as_token_ids: Option<bool>,
    best_of: Option<i64>,
    use_beam_search: Option<bool>,
    suffix: Option<Unserved>,
    allowed_token_ids: Option<Unserved>,
    bad_words: Option<Unserved>,
    logprob_token_ids: Option<Unserved>,
    prompt_embeds: Option<Unserved>,
    truncate_prompt_tokens: Option<Unserved>,
    structured_outputs: Option<Unserved>,
    response_format: Option<ResponseFormat>,
}

/// The field `stop`: one string or several.
struct Stop;

impl Alternatives for Stop {
    type One = String;
    type Each = String;
    const MOST: usize = MAX_STOPS;
    const EXPECTED: &'static str = "stop to be a string or a list of strings";

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

/// `logit_bias`: token ids as strings, and what is added to their logits.
struct LogitBias(BTreeMap<String, f32>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LogitBiasVisitor)
    }
}

struct LogitBiasVisitor;

impl<'de> Visitor<'de> for LogitBiasVisitor {
    type Value = LogitBias;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "logit_bias to be an object of at most {MAX_BIASES} tokens")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
        let mut biases = BTreeMap::new();
        while let Some((token, bias)) = map.next_entry()? {
            biases.insert(token, bias);
            if biases.len() > MAX_BIASES {
                return Err(A::Error::invalid_length(biases.len(), &self));
            }
        }
        Ok(LogitBias(biases))
    }
}

/// `response_format`, of which only plain text is served.
#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// The shared fields, valid.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Params {
    pub n: usize,
    pub sampling: Sampling,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub include_stop: bool,
    /// Ids given by the request, reported in `stop_reason`.
    pub stop_token_ids: Vec<u32>,
    /// Ids that end a generation without being reported.
    pub eos_ids: Vec<u32>,
    /// Ranked entries in `prompt_logprobs`.
    pub prompt_logprobs: Option<usize>,
    pub stream: bool,
    /// A last chunk with the token counts.
    pub include_usage: bool,
    pub return_token_ids: bool,
    pub tokens_as_ids: bool,
}

impl RawParams {
    /// Validates; `vocab_size` bounds token ids, `eos_ids` are the model's.
    pub fn check(self, vocab_size: usize, eos_ids: Vec<u32>) -> Result<Params, ApiError> {
        self.refuse_unsupported()?;
        let stream = self.stream.unwrap_or(false);
        let prompt_logprobs = count("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)?;
        if stream && prompt_logprobs.is_some() {
            return Err(ApiError::bad(
                "prompt_logprobs",
                "`prompt_logprobs` are not available when `stream=True`.",
            ));
        }
        if self.stream_options.is_some() && !stream {
            return Err(ApiError::bad(
                "stream_options",
                "Stream options can only be defined when `stream=True`.",
            ));
        }
        let sampling = self.sampling(vocab_size)?;
        let stop = match self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(s)) => vec![s],
            Some(OneOrMany::Many(list)) => list,
        };
        if stop.iter().any(String::is_empty) {
            return Err(ApiError::bad("stop", "stop cannot contain an empty string."));
        }
        if stop.iter().any(|s| s.len() > MAX_STOP_BYTES) {
            let message = format!("stop may hold strings of at most {MAX_STOP_BYTES} bytes.");
            return Err(ApiError::bad("stop", message));
        }
        Ok(Params {
            n: count("n", self.n, 1, MAX_CHOICES as i64)?.unwrap_or(1),
            sampling,
            min_tokens: count("min_tokens", self.min_tokens, 0, i64::MAX)?.unwrap_or(0),
            stop,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            stop_token_ids: self.stop_token_ids.map(|ids| ids.0).unwrap_or_default(),
            eos_ids: if self.ignore_eos.unwrap_or(false) { Vec::new() } else { eos_ids },
            prompt_logprobs,
            stream,
            include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            tokens_as_ids: self.return_tokens_as_token_ids.unwrap_or(false),
        })
    }

    /// Ranges and defaults as vLLM's `SamplingParams`.
    fn sampling(&self, vocab_size: usize) -> Result<Sampling, ApiError> {
        let temperature =
            number("temperature", self.temperature, "non-negative", |t| t >= 0.0)?.unwrap_or(1.0);
        let penalty = |name, value| number(name, value, "between -2 and 2", |p| (-2.0..=2.0).contains(&p));
        let repetition =
            number("repetition_penalty", self.repetition_penalty, "greater than zero", |p| p > 0.0)?;
        // 0 and −1 both mean that all tokens are considered.
        let top_k = match self.top_k {
            None | Some(-1 | 0) => None,
            Some(k) if k > 0 => Some(k as usize),
            Some(k) => {
                return Err(ApiError::bad("top_k", format!("top_k must be 0, -1 or positive, got {k}.")));
            }
        };
        Ok(Sampling {
            temperature,
            top_p: number("top_p", self.top_p, "in (0, 1]", |p| p > 0.0 && p <= 1.0)?.filter(|p| *p < 1.0),
            top_k,
            min_p: number("min_p", self.min_p, "in [0, 1]", |p| (0.0..=1.0).contains(&p))?.unwrap_or(0.0),
            presence_penalty: penalty("presence_penalty", self.presence_penalty)?.unwrap_or(0.0),
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty)?.unwrap_or(0.0),
            repetition_penalty: repetition.filter(|p| *p != 1.0),
            logit_bias: self.logit_bias(vocab_size)?,
            seed: self.seed.map_or_else(rand::random, |seed| seed as u64),
        })
    }

    fn logit_bias(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let bad = |message: String| ApiError::bad("logit_bias", message);
        let entries = self.logit_bias.iter().flat_map(|biases| &biases.0);
        entries
            .map(|(token, bias)| {
                let id: u32 =
                    token.parse().map_err(|_| bad(format!("logit_bias: {token:?} is no token id.")))?;
                if id as usize >= vocab_size {
                    return Err(bad(format!("Token id {id} in logit_bias is out of vocabulary.")));
                }
                // vLLM limits a bias to this range.
                Ok((id, bias.clamp(-100.0, 100.0)))
            })
            .collect()
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let is_set = |field: Option<Unserved>| field.is_some_and(|held| held != Unserved::Empty);
        let is_text = self.response_format.as_ref().is_none_or(|f| f.kind == "text");
        let fields: [(&'static str, bool); 10] = [
            ("best_of", self.best_of.is_some_and(|n| n != 1)),
            ("use_beam_search", self.use_beam_search == Some(true)),
            ("suffix", is_set(self.suffix)),
            ("allowed_token_ids", is_set(self.allowed_token_ids)),
            ("bad_words", is_set(self.bad_words)),
            ("logprob_token_ids", is_set(self.logprob_token_ids)),
            ("prompt_embeds", is_set(self.prompt_embeds)),
            ("truncate_prompt_tokens", is_set(self.truncate_prompt_tokens)),
            ("structured_outputs", is_set(self.structured_outputs)),
            ("response_format", !is_text),
        ];
        match fields.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(ApiError::unsupported(name, "leave it out")),
            None => Ok(()),
        }
    }
}

/// 404 for another model's name; no name means the one model there is.
pub(super) fn check_model(asked: Option<&str>, served: &str) -> Result<(), ApiError> {
    match asked {
        Some(name) if name != served => {
            Err(ApiError::not_found(Some("model"), format!("The model `{name}` does not exist.")))
        }
        _ => Ok(()),
    }
}

/// A whole number within `least..=most`.
pub(super) fn count(
    name: &'static str,
    value: Option<i64>,
    least: i64,
    most: i64,
) -> Result<Option<usize>, ApiError> {
    match value {
        None => Ok(None),
        Some(n) if (least..=most).contains(&n) => Ok(Some(n as usize)),
        Some(n) if most == i64::MAX => {
            Err(ApiError::bad(name, format!("{name} must be at least {least}, got {n}.")))
        }
        Some(n) => Err(ApiError::bad(name, format!("{name} must be between {least} and {most}, got {n}."))),
    }
}

fn number(
    name: &'static str,
    value: Option<f64>,
    expected: &str,
    is_valid: impl Fn(f64) -> bool,
) -> Result<Option<f64>, ApiError> {
    match value {
        Some(x) if !x.is_finite() || !is_valid(x) => {
            Err(ApiError::bad(name, format!("{name} must be {expected}, got {x}.")))
        }
        other => Ok(other),
    }
}

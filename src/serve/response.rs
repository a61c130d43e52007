//! `/v1/completions` answers in vLLM's shape, whole and in chunks.
//!
//! Every log-prob is written as the exact decimal value of its f32 (widened to f64): clients that parse f64 get the
//! engine's value back bit for bit, and a token's log-prob and its entry among the ranked ones are equal as floats,
//! which is how lm-eval decides whether a token is greedy.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::job::Finish;
use super::output::Output;
use super::request::{Completion, TokenizedPrompt};
use super::text::TextCodec;
use crate::engine::TokenLogprobs;

/// What stands for −∞ (OpenAI's and vLLM's value; JSON has no infinity).
const LOGPROB_FLOOR: f64 = -9999.0;

/// What every answer and chunk of one request has in common.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub id: String,
    pub created: u64,
    pub model: String,
}

#[derive(Debug, serde::Serialize)]
pub(super) struct Response<'a, C> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<C>,
    pub service_tier: Option<Value>,
    pub system_fingerprint: Option<Value>,
    pub usage: Option<Usage>,
    pub kv_transfer_params: Option<Value>,
}

impl<'a, C> Response<'a, C> {
    pub fn new(meta: &'a Meta, object: &'static str, choices: Vec<C>, usage: Option<Usage>) -> Self {
        Self {
            id: &meta.id,
            object,
            created: meta.created,
            model: &meta.model,
            choices,
            service_tier: None,
            system_fingerprint: None,
            usage,
            kv_transfer_params: None,
        }
    }
}

#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Choice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
    /// The stop string or the stop token's id; null for the end token and for the length.
    pub stop_reason: Option<Value>,
    pub token_ids: Option<Vec<u32>>,
    pub prompt_logprobs: Option<Value>,
    pub prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, serde::Serialize)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
pub(super) struct Logprobs {
    /// Offset of each token's text in Unicode code points.
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<Option<f64>>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<Option<TopLogprobs>>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Usage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
    pub completion_tokens: usize,
    pub prompt_tokens_details: Option<Value>,
}

impl Usage {
    pub fn new(request: &Completion, generated: usize) -> Self {
        let prompt_tokens = request.prompts.iter().map(|p| p.ids.len()).sum();
        // vLLM runs `echo` with max_tokens 0 as max_tokens 1, drops the token and counts it.
        let completion_tokens = if request.max_tokens == 0 { request.choices() } else { generated };
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
        }
    }
}

/// Token text → log-prob, the actual token first, then by rank.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TopLogprobs(pub Vec<(String, f64)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// The whole answer.
pub(super) fn render(
    request: &Completion,
    output: &Output,
    text: &dyn TextCodec,
    meta: &Meta,
) -> serde_json::Result<Vec<u8>> {
    let choices = output.choices.iter().enumerate().map(|(index, choice)| {
        let at = request.prompt_of(index);
        let (prompt, entries) = (&request.prompts[at], &output.prompts[at]);
        let mut offset = 0;
        let positions = echoed(request, prompt, entries)
            .chain(choice.generated.iter().map(|entry| (entry.token, Some(entry))));
        let (finish_reason, stop_reason) = finish_fields(choice.finish.as_ref());
        Choice {
            index,
            text: echoed_text(request, prompt, text) + &choice.text,
            logprobs: logprobs(request, positions, &mut offset, text),
            finish_reason,
            stop_reason,
            token_ids: request
                .params
                .return_token_ids
                .then(|| choice.generated.iter().map(|t| t.token).collect()),
            prompt_logprobs: prompt_logprobs(request, prompt, entries, text),
            prompt_token_ids: request.params.return_token_ids.then(|| prompt.ids.clone()),
        }
    });
    let choices: Vec<Choice> = choices.collect();
    let generated = output.choices.iter().map(|c| c.generated.len()).sum();
    let usage = Usage::new(request, generated);
    serde_json::to_vec(&Response::new(meta, "text_completion", choices, Some(usage)))
}

/// The text of a prompt as an answer repeats it: vLLM leaves it out when token ids were asked for.
pub(super) fn echoed_text(request: &Completion, prompt: &TokenizedPrompt, text: &dyn TextCodec) -> String {
    if !request.echo || request.params.return_token_ids {
        return String::new();
    }
    prompt.text.clone().unwrap_or_else(|| text.decode(&prompt.ids))
}

/// The tokens of a prompt with their entries, if it is repeated; `entries` begin at the first scored position.
pub(super) fn echoed<'a>(
    request: &Completion,
    prompt: &'a TokenizedPrompt,
    entries: &'a [TokenLogprobs],
) -> impl Iterator<Item = (u32, Option<&'a TokenLogprobs>)> {
    let ids: &[u32] = if request.echo { &prompt.ids } else { &[] };
    ids.iter()
        .enumerate()
        .map(move |(i, id)| (*id, i.checked_sub(prompt.first_scored).and_then(|at| entries.get(at))))
}

/// OpenAI's `finish_reason` and vLLM's `stop_reason`.
pub(super) fn finish_fields(finish: Option<&Finish>) -> (Option<&'static str>, Option<Value>) {
    match finish {
        None => (None, None),
        Some(Finish::Length) => (Some("length"), None),
        Some(Finish::Eos) => (Some("stop"), None),
        Some(Finish::StopToken(id)) => (Some("stop"), Some(Value::from(*id))),
        Some(Finish::StopString(s)) => (Some("stop"), Some(Value::from(s.as_str()))),
    }
}

/// The text of a token in log-probs.
pub(super) fn token_name(request: &Completion, id: u32, text: &dyn TextCodec) -> String {
    if request.params.tokens_as_ids { format!("token_id:{id}") } else { text.token_text(id) }
}

/// The log-probs of consecutive positions, if they were asked for; `offset` is where their text begins, and then ends.
pub(super) fn logprobs<'a>(
    request: &Completion,
    positions: impl Iterator<Item = (u32, Option<&'a TokenLogprobs>)>,
    offset: &mut usize,
    text: &dyn TextCodec,
) -> Option<Logprobs> {
    let top_n = request.logprobs?;
    let mut logprobs = Logprobs::default();
    for (id, entry) in positions {
        let token = token_name(request, id, text);
        logprobs.text_offset.push(*offset);
        *offset += token.chars().count();
        logprobs.token_logprobs.push(entry.map(|e| to_json(e.logprob)));
        let top = entry.map(|e| top_logprobs(e, &token, top_n, |id| token_name(request, id, text)));
        logprobs.top_logprobs.push(top);
        logprobs.tokens.push(token);
    }
    Some(logprobs)
}

/// The actual token, then the `top_n` best: `top_n` + 1 entries, or `top_n` when the actual token is one of them.
/// Two tokens with the same text share an entry, which keeps the larger value: the maximum over the entries is then
/// always the best token's log-prob, which is what greediness is read from.
fn top_logprobs(
    entry: &TokenLogprobs,
    token: &str,
    top_n: usize,
    name: impl Fn(u32) -> String,
) -> TopLogprobs {
    let mut list = vec![(token.to_owned(), to_json(entry.logprob))];
    for (id, logprob) in entry.top.iter().take(top_n).filter(|(id, _)| *id != entry.token) {
        let (text, value) = (name(*id), to_json(*logprob));
        match list.iter_mut().find(|(t, _)| *t == text) {
            Some(present) => present.1 = present.1.max(value),
            None => list.push((text, value)),
        }
    }
    TopLogprobs(list)
}

/// vLLM's `prompt_logprobs`: for each position the token and the best by id, with their ranks.
pub(super) fn prompt_logprobs(
    request: &Completion,
    prompt: &TokenizedPrompt,
    entries: &[TokenLogprobs],
    text: &dyn TextCodec,
) -> Option<Value> {
    let top_n = request.params.prompt_logprobs?;
    let mut list = vec![Value::Null; prompt.first_scored.min(prompt.ids.len())];
    for entry in entries {
        let mut position = Map::new();
        let mut put = |id: u32, logprob: f32, rank: Option<usize>| {
            let value =
                json!({"logprob": to_json(logprob), "rank": rank, "decoded_token": text.token_text(id)});
            position.entry(id.to_string()).or_insert(value);
        };
        let rank = entry.top.iter().position(|(id, _)| *id == entry.token);
        put(entry.token, entry.logprob, rank.map(|r| r + 1).or(entry.rank));
        for (rank, (id, logprob)) in entry.top.iter().take(top_n).enumerate() {
            put(*id, *logprob, Some(rank + 1));
        }
        list.push(position.into());
    }
    Some(list.into())
}

/// A log-prob as JSON can hold it.
pub(super) fn to_json(logprob: f32) -> f64 {
    // `max` also turns NaN into the floor, which clients refuse.
    f64::from(logprob).max(LOGPROB_FLOOR)
}

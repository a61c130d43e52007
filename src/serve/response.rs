//! `/v1/completions` answers in vLLM's shape.
//!
//! Every log-prob is written as the exact decimal value of its f32 (widened to f64): clients that parse f64 get the
//! engine's value back bit for bit, and a token's log-prob and its entry among the ranked ones are equal as floats,
//! which is how lm-eval decides whether a token is greedy.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::complete::{Finish, Output};
use super::request::{Completion, TokenizedPrompt};
use super::text::TextCodec;
use crate::engine::TokenLogprobs;

/// What stands for −∞ (OpenAI's and vLLM's value; JSON has no infinity).
const LOGPROB_FLOOR: f64 = -9999.0;

#[derive(Debug, serde::Serialize)]
pub(super) struct Response {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<Choice>,
    pub service_tier: Option<Value>,
    pub system_fingerprint: Option<Value>,
    pub usage: Usage,
    pub kv_transfer_params: Option<Value>,
}

#[derive(Debug, serde::Serialize)]
pub(super) struct Choice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: &'static str,
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

/// The answer to `request`; `outputs` in the order of its prompts.
pub(super) fn render(
    request: &Completion,
    outputs: &[Output],
    text: &dyn TextCodec,
    (id, created, model): (String, u64, &str),
) -> Response {
    let mut usage = Usage::default();
    let mut choices = Vec::with_capacity(outputs.len());
    for (index, (prompt, output)) in request.prompts.iter().zip(outputs).enumerate() {
        usage.prompt_tokens += prompt.ids.len();
        // vLLM runs `echo` with max_tokens 0 as max_tokens 1, drops the token and counts it.
        usage.completion_tokens += if request.max_tokens == 0 { 1 } else { output.generated.len() };
        choices.push(choice(request, prompt, output, text, index));
    }
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
    Response {
        id,
        object: "text_completion",
        created,
        model: model.to_owned(),
        choices,
        service_tier: None,
        system_fingerprint: None,
        usage,
        kv_transfer_params: None,
    }
}

fn choice(
    request: &Completion,
    prompt: &TokenizedPrompt,
    output: &Output,
    text: &dyn TextCodec,
    index: usize,
) -> Choice {
    let (finish_reason, stop_reason) = match &output.finish {
        Finish::Length => ("length", None),
        Finish::Eos => ("stop", None),
        Finish::StopToken(id) => ("stop", Some(Value::from(*id))),
        Finish::StopString(s) => ("stop", Some(Value::from(s.as_str()))),
    };
    let logprobs = request.logprobs.map(|top_n| logprobs(request, &prompt.ids, output, text, top_n));
    let mut shown = String::new();
    // vLLM leaves the prompt's text out when token ids were asked for.
    if request.echo && !request.return_token_ids {
        shown = prompt.text.clone().unwrap_or_else(|| text.decode(&prompt.ids));
    }
    shown.push_str(&output.text);
    let generated_ids = || output.generated.iter().map(|t| t.token).collect();
    Choice {
        index,
        text: shown,
        logprobs,
        finish_reason,
        stop_reason,
        token_ids: request.return_token_ids.then(generated_ids),
        prompt_logprobs: None,
        prompt_token_ids: request.return_token_ids.then(|| prompt.ids.clone()),
    }
}

fn logprobs(
    request: &Completion,
    prompt_ids: &[u32],
    output: &Output,
    text: &dyn TextCodec,
    top_n: usize,
) -> Logprobs {
    let name = |id: u32| if request.tokens_as_ids { format!("token_id:{id}") } else { text.token_text(id) };
    let echoed = output.prompt.iter().zip(prompt_ids).map(|(entry, id)| (*id, entry.as_ref()));
    let generated = output.generated.iter().map(|entry| (entry.token, Some(entry)));
    let mut logprobs = Logprobs::default();
    let mut offset = 0;
    for (id, entry) in echoed.chain(generated) {
        let token = name(id);
        logprobs.text_offset.push(offset);
        offset += token.chars().count();
        logprobs.token_logprobs.push(entry.map(|e| to_json(e.logprob)));
        logprobs.top_logprobs.push(entry.map(|e| top_logprobs(e, &token, top_n, name)));
        logprobs.tokens.push(token);
    }
    logprobs
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

fn to_json(logprob: f32) -> f64 {
    // `max` also turns NaN into the floor, which clients refuse.
    f64::from(logprob).max(LOGPROB_FLOOR)
}

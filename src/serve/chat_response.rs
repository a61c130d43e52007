//! `/v1/chat/completions` answers, whole and in chunks.

use serde_json::{Value, json};

use super::job::Finish;
use super::output::Output;
use super::request::Completion;
use super::response::{Meta, Response, Usage, finish_fields, prompt_logprobs, to_json, token_name};
use super::text::TextCodec;
use crate::engine::TokenLogprobs;

/// The whole answer.
pub(super) fn render(
    request: &Completion,
    output: &Output,
    text: &dyn TextCodec,
    meta: &Meta,
) -> serde_json::Result<Vec<u8>> {
    let choices = output.choices.iter().enumerate().map(|(index, choice)| {
        let (finish_reason, stop_reason) = finish_fields(choice.finish.as_ref());
        let ids: Vec<u32> = choice.generated.iter().map(|t| t.token).collect();
        json!({
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": null, "tool_calls": []},
            "logprobs": logprobs(request, &choice.generated, text),
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": request.params.return_token_ids.then_some(ids),
        })
    });
    let choices: Vec<Value> = choices.collect();
    let usage = Usage::new(request, output.choices.iter().map(|c| c.generated.len()).sum());
    let mut answer = serde_json::to_value(Response::new(meta, "chat.completion", choices, Some(usage)))?;
    // Chat has one prompt; vLLM puts its fields beside the choices.
    answer["prompt_logprobs"] =
        prompt_logprobs(request, &request.prompts[0], &output.prompts[0], text).into();
    answer["prompt_token_ids"] =
        request.params.return_token_ids.then(|| request.prompts[0].ids.clone()).into();
    serde_json::to_vec(&answer)
}

/// One choice of a chunk.
pub(super) fn chunk_choice(index: usize, delta: &Value, logprobs: &Value, finish: Option<&Finish>) -> Value {
    let (finish_reason, stop_reason) = finish_fields(finish);
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason, "stop_reason": stop_reason})
}

/// `{"content": […]}` of generated tokens, or null where no log-probs were asked for.
pub(super) fn logprobs(request: &Completion, generated: &[TokenLogprobs], text: &dyn TextCodec) -> Value {
    let Some(top_n) = request.logprobs else { return Value::Null };
    let entry = |id: u32, logprob: f32| {
        let token = token_name(request, id, text);
        json!({"token": token, "logprob": to_json(logprob), "bytes": text.token_text(id).into_bytes()})
    };
    let content = generated.iter().map(|t| {
        let mut position = entry(t.token, t.logprob);
        let top: Vec<Value> = t.top.iter().take(top_n).map(|(id, logprob)| entry(*id, *logprob)).collect();
        position["top_logprobs"] = top.into();
        position
    });
    json!({"content": content.collect::<Vec<_>>()})
}

//! `/v1/chat/completions` requests: messages become one prompt through the checkpoint's template.

use serde::Deserialize;
use serde_json::Value;

use super::backend::Backend;
use super::error::ApiError;
use super::params::{MAX_LOGPROBS, count};
use super::request::{Completion, TokenizedPrompt, check_min_tokens, check_prompt, check_size, parse_parts};
use super::text::TextCodec;
use crate::model::chat_template::ChatMessage;

/// The fields of chat alone.
#[derive(Debug, Deserialize)]
struct RawChat {
    messages: Option<Vec<RawMessage>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    echo: Option<bool>,
    chat_template: Option<Value>,
    chat_template_kwargs: Option<Value>,
    documents: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    functions: Option<Value>,
    audio: Option<Value>,
}

/// One message as sent.
#[derive(Debug, Deserialize)]
pub(super) struct RawMessage {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Value>,
}

/// Text, or parts of which only texts are served.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "content must be a string or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Parses and validates a body.
pub(super) fn parse(
    body: &[u8],
    backend: &dyn Backend,
    text: &dyn TextCodec,
    model_name: &str,
) -> Result<Completion, ApiError> {
    let (params, raw): (_, RawChat) = parse_parts(body, backend, text, model_name)?;
    raw.refuse_unsupported()?;
    let most = raw.max_completion_tokens.or(raw.max_tokens);
    let max_tokens = count("max_tokens", most, 1, i64::MAX)?;
    let top_logprobs = count("top_logprobs", raw.top_logprobs, 0, MAX_LOGPROBS)?;
    let with_logprobs = raw.logprobs.unwrap_or(false);
    if top_logprobs.is_some_and(|n| n > 0) && !with_logprobs {
        return Err(ApiError::bad(
            "top_logprobs",
            "when using `top_logprobs`, `logprobs` must be set to true.",
        ));
    }
    let ids = prompt(raw.messages.unwrap_or_default(), raw.add_generation_prompt.unwrap_or(true), text)?;
    check_prompt(&ids, max_tokens.unwrap_or(1), backend)?;
    let room = max_tokens.unwrap_or(backend.max_len() - ids.len());
    check_min_tokens(&params, room)?;
    let completion = Completion {
        max_tokens: room,
        prompts: vec![TokenizedPrompt { ids, text: None, first_scored: 1 }],
        echo: false,
        logprobs: with_logprobs.then(|| top_logprobs.unwrap_or(0)),
        params,
    };
    check_size(&completion)?;
    Ok(completion)
}

/// Token ids of messages. The template writes special tokens itself.
pub(super) fn prompt(
    messages: Vec<RawMessage>,
    add_generation_prompt: bool,
    text: &dyn TextCodec,
) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::bad("messages", "messages must be provided and non-empty."));
    }
    let messages = messages.into_iter().map(RawMessage::check).collect::<Result<Vec<_>, _>>()?;
    let rendered = text
        .render_chat(&messages, add_generation_prompt)
        .ok_or_else(|| ApiError::bad("messages", "The model has no chat template; use /v1/completions."))?
        .map_err(|e| ApiError::bad("messages", e))?;
    text.encode(&rendered, false).map_err(|e| ApiError::bad("messages", e))
}

impl RawMessage {
    fn check(self) -> Result<ChatMessage, ApiError> {
        // An empty list is what an answer of this server holds, which clients send back.
        let is_empty = |calls: &Value| calls.is_null() || calls.as_array().is_some_and(Vec::is_empty);
        if self.tool_calls.is_some_and(|calls| !is_empty(&calls)) {
            return Err(ApiError::unsupported("messages", "tool calls are not served"));
        }
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let texts = parts.into_iter().map(|part| match (part.kind.as_str(), part.text) {
                    ("text", Some(text)) => Ok(text),
                    (kind, _) => Err(ApiError::unsupported("messages", &format!("a part of type {kind:?}"))),
                });
                // vLLM joins the text parts of a message by line breaks.
                texts.collect::<Result<Vec<_>, _>>()?.join("\n")
            }
        };
        Ok(ChatMessage::new(self.role, content))
    }
}

impl RawChat {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let is_set = |v: &Option<Value>| match v {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::String(text)) => text != "none",
            Some(_) => true,
        };
        let fields = [
            ("echo", self.echo == Some(true)),
            ("continue_final_message", self.continue_final_message == Some(true)),
            ("chat_template", is_set(&self.chat_template)),
            ("chat_template_kwargs", is_set(&self.chat_template_kwargs)),
            ("documents", is_set(&self.documents)),
            ("tools", is_set(&self.tools)),
            ("tool_choice", is_set(&self.tool_choice)),
            ("functions", is_set(&self.functions)),
            ("audio", is_set(&self.audio)),
        ];
        match fields.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(ApiError::unsupported(name, "leave it out")),
            None => Ok(()),
        }
    }
}

//! `/v1/chat/completions` requests: messages become one prompt through the checkpoint's template.

use serde::Deserialize;

use super::error::ApiError;
use super::fields::{Alternatives, Bounded, OneOrMany, Unserved};
use super::params::{MAX_LOGPROBS, count};
use super::request::{
    Completion, Limits, TokenizedPrompt, check_min_tokens, check_prompt, check_size, parse_parts,
};
use super::text::TextCodec;
use crate::model::chat_template::ChatMessage;

/// Messages of one request, and parts of one message: more than any context has room for.
const MAX_MESSAGES: usize = 16 * 1024;
const MAX_PARTS: usize = 1024;

/// The fields of chat alone.
#[derive(Deserialize)]
struct RawChat {
    messages: Option<Messages>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    echo: Option<bool>,
    chat_template: Option<Unserved>,
    chat_template_kwargs: Option<Unserved>,
    documents: Option<Unserved>,
    tools: Option<Unserved>,
    tool_choice: Option<Unserved>,
    functions: Option<Unserved>,
    audio: Option<Unserved>,
}

/// The messages of one request.
pub(super) type Messages = Bounded<RawMessage, MAX_MESSAGES>;

/// One message as sent.
#[derive(Deserialize)]
pub(super) struct RawMessage {
    role: String,
    content: Option<OneOrMany<Content>>,
    tool_calls: Option<Unserved>,
}

/// Text, or parts of which only texts are served.
struct Content;

impl Alternatives for Content {
    type One = String;
    type Each = Part;
    const MOST: usize = MAX_PARTS;
    const EXPECTED: &'static str = "content to be a string or a list of parts";

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
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
    limits: Limits,
    text: &dyn TextCodec,
    model_name: &str,
) -> Result<Completion, ApiError> {
    let (params, raw): (_, RawChat) = parse_parts(body, limits, text, model_name)?;
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
    let ids = prompt(raw.messages, raw.add_generation_prompt.unwrap_or(true), text)?;
    check_prompt(&ids, max_tokens.unwrap_or(1), limits)?;
    let room = max_tokens.unwrap_or(limits.max_len - ids.len());
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
    messages: Option<Messages>,
    add_generation_prompt: bool,
    text: &dyn TextCodec,
) -> Result<Vec<u32>, ApiError> {
    let messages = messages.map(|list| list.0).unwrap_or_default();
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
        if self.tool_calls.is_some_and(|calls| calls != Unserved::Empty) {
            return Err(ApiError::unsupported("messages", "tool calls are not served"));
        }
        let content = match self.content {
            None => String::new(),
            Some(OneOrMany::One(text)) => text,
            Some(OneOrMany::Many(parts)) => {
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
        let is_set = |field: Option<Unserved>| field == Some(Unserved::Something);
        let fields = [
            ("echo", self.echo == Some(true)),
            ("continue_final_message", self.continue_final_message == Some(true)),
            ("chat_template", is_set(self.chat_template)),
            ("chat_template_kwargs", is_set(self.chat_template_kwargs)),
            ("documents", is_set(self.documents)),
            ("tools", is_set(self.tools)),
            ("tool_choice", is_set(self.tool_choice)),
            ("functions", is_set(self.functions)),
            ("audio", is_set(self.audio)),
        ];
        match fields.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(ApiError::unsupported(name, "leave it out")),
            None => Ok(()),
        }
    }
}

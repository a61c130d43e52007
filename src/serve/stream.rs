//! Answers as server-sent events: one chunk for each token, `data: [DONE]` at the end.
//!
//! Format: html.spec.whatwg.org, "Server-sent events"; chunks as OpenAI's and vLLM's. The body reads the engine's
//! events itself, so that a client that goes away takes the receiver with it, which the engine notices.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header;
use axum::response::{IntoResponse, Response as HttpResponse};
use http_body::Frame;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::admission::Ticket;
use super::chat_response;
use super::error::ApiError;
use super::job::{Event, Finish};
use super::output::{failure, shutting_down};
use super::request::Completion;
use super::response::{self, Choice, Meta, Response, Usage, finish_fields};
use super::text::TextCodec;
use crate::engine::TokenLogprobs;

/// Which endpoint's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Completion,
    Chat,
}

/// Streams an answer. A request that fails before its first token gets an HTTP error.
pub(super) async fn respond(
    mut chunks: Chunks,
    mut events: UnboundedReceiver<Event>,
    ticket: Ticket,
) -> Result<HttpResponse, ApiError> {
    let first = match events.recv().await.ok_or_else(shutting_down)? {
        Event::Failed(failed) => return Err(failure(failed)),
        event => chunks.push(event),
    };
    let body = EventBody { chunks, events, ready: Some(first), ticket: Some(ticket) };
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::new(body)).into_response())
}

struct EventBody {
    chunks: Chunks,
    events: UnboundedReceiver<Event>,
    /// What the first event gave.
    ready: Option<String>,
    /// Goes with the last chunk.
    ticket: Option<Ticket>,
}

impl HttpBody for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            let text = match this.ready.take() {
                Some(text) => text,
                None if this.chunks.open == 0 => return Poll::Ready(None),
                None => match ready!(this.events.poll_recv(context)) {
                    Some(event) => this.chunks.push(event),
                    None => this.chunks.fail(&shutting_down()),
                },
            };
            if text.is_empty() {
                continue;
            }
            let last = if this.chunks.open == 0 { this.ticket.take() } else { None };
            let bytes = match last {
                Some(ticket) => ticket.until_written(text.into_bytes()),
                None => text.into(),
            };
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
    }
}

/// Turns events into chunks.
pub(super) struct Chunks {
    request: Arc<Completion>,
    text: Arc<dyn TextCodec>,
    shape: Shape,
    meta: Meta,
    prompts: Vec<Vec<TokenLogprobs>>,
    choices: Vec<Progress>,
    generated: usize,
    /// Choices that are not finished.
    open: usize,
}

#[derive(Clone, Default)]
struct Progress {
    has_begun: bool,
    /// Where the next token's text begins.
    offset: usize,
}

impl Chunks {
    pub fn new(request: Arc<Completion>, text: Arc<dyn TextCodec>, shape: Shape, meta: Meta) -> Self {
        Self {
            prompts: vec![Vec::new(); request.prompts.len()],
            choices: vec![Progress::default(); request.choices()],
            open: request.choices(),
            generated: 0,
            request,
            text,
            shape,
            meta,
        }
    }

    /// The chunks of one event, as they are sent.
    fn push(&mut self, event: Event) -> String {
        match event {
            Event::Prompt { prompt, entries } => {
                self.prompts[prompt] = entries;
                String::new()
            }
            Event::Token { choice, entry, text } => {
                self.generated += 1;
                let params = &self.request.params;
                let is_seen = !text.is_empty() || self.request.logprobs.is_some() || params.return_token_ids;
                let begin = self.begin(choice);
                if is_seen { begin + &self.chunk(choice, text, Some(&entry), None) } else { begin }
            }
            Event::Finished { choice, text, finish } => {
                self.open -= 1;
                self.begin(choice) + &self.chunk(choice, text, None, Some(&finish)) + &self.end()
            }
            Event::Failed(failed) => self.fail(&failure(failed)),
        }
    }

    /// The end of a stream that cannot go on.
    fn fail(&mut self, error: &ApiError) -> String {
        self.open = 0;
        line(&error.body()) + DONE
    }

    /// The first chunk of a choice: the role, or the prompt where it is repeated.
    fn begin(&mut self, index: usize) -> String {
        if std::mem::replace(&mut self.choices[index].has_begun, true) {
            return String::new();
        }
        if self.shape == Shape::Chat {
            let delta = json!({"role": "assistant", "content": ""});
            return self.wrap(vec![chat_response::chunk_choice(index, &delta, &Value::Null, None)]);
        }
        if !self.request.echo {
            return String::new();
        }
        let at = self.request.prompt_of(index);
        let prompt = &self.request.prompts[at];
        let positions = response::echoed(&self.request, prompt, &self.prompts[at]);
        let offset = &mut self.choices[index].offset;
        let choice = Choice {
            index,
            text: response::echoed_text(&self.request, prompt, &*self.text),
            logprobs: response::logprobs(&self.request, positions, offset, &*self.text),
            prompt_token_ids: self.request.params.return_token_ids.then(|| prompt.ids.clone()),
            ..Choice::default()
        };
        self.wrap(vec![choice])
    }

    fn chunk(
        &mut self,
        index: usize,
        text: String,
        entry: Option<&TokenLogprobs>,
        finish: Option<&Finish>,
    ) -> String {
        if self.shape == Shape::Chat {
            let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
            let logprobs = entry.map_or(Value::Null, |entry| {
                chat_response::logprobs(&self.request, std::slice::from_ref(entry), &*self.text)
            });
            let choice = chat_response::chunk_choice(index, &delta, &logprobs, finish);
            return self.wrap(vec![choice]);
        }
        let positions = entry.into_iter().map(|entry| (entry.token, Some(entry)));
        let offset = &mut self.choices[index].offset;
        let logprobs = response::logprobs(&self.request, positions, offset, &*self.text);
        let (finish_reason, stop_reason) = finish_fields(finish);
        let token_ids = self.request.params.return_token_ids;
        let choice = Choice {
            index,
            text,
            logprobs: logprobs.filter(|_| entry.is_some()),
            finish_reason,
            stop_reason,
            token_ids: token_ids.then(|| entry.into_iter().map(|e| e.token).collect()),
            ..Choice::default()
        };
        self.wrap(vec![choice])
    }

    /// After the last choice: the token counts if they were asked for, and the end mark.
    fn end(&self) -> String {
        if self.open > 0 {
            return String::new();
        }
        let usage = self.request.params.include_usage.then(|| Usage::new(&self.request, self.generated));
        let counts = usage.map_or_else(String::new, |usage| {
            line(&Response::<Value>::new(&self.meta, self.object(), Vec::new(), Some(usage)))
        });
        counts + DONE
    }

    fn wrap<C: Serialize>(&self, choices: Vec<C>) -> String {
        line(&Response::new(&self.meta, self.object(), choices, None))
    }

    fn object(&self) -> &'static str {
        match self.shape {
            Shape::Completion => "text_completion",
            Shape::Chat => "chat.completion.chunk",
        }
    }
}

const DONE: &str = "data: [DONE]\n\n";

/// One event. What is written here always has a JSON form.
fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).map_or_else(|_| String::new(), |json| format!("data: {json}\n\n"))
}

//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::admission::Client;
use super::chat::{self, Messages};
use super::error::ApiError;
use super::params::check_model;
use super::request::parse_json;
use super::routes::{App, blocking};

/// Admits the client, reads and parses its request, and answers it on a thread that may block.
async fn answer<R: DeserializeOwned>(
    app: &Arc<App>,
    client: Option<Extension<Client>>,
    body: Body,
    work: impl FnOnce(&App, R) -> Result<Json<Value>, ApiError> + Send + 'static,
) -> Result<Json<Value>, ApiError> {
    let _ticket = app.admission.admit(client.map(|c| c.0))?;
    let body = app.admission.read(body).await?;
    blocking(app, move |app| work(app, parse_json(&body.bytes)?)).await?
}

#[derive(Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Messages>,
    add_generation_prompt: Option<bool>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    client: Option<Extension<Client>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    answer(&app, client, body, |app, request: TokenizeRequest| {
        check_model(request.model.as_deref(), &app.model_name)?;
        let ids = match (request.prompt, request.messages) {
            (Some(prompt), None) => app
                .text
                .encode(&prompt, request.add_special_tokens.unwrap_or(true))
                .map_err(|e| ApiError::bad("prompt", e))?,
            (None, messages @ Some(_)) => {
                chat::prompt(messages, request.add_generation_prompt.unwrap_or(true), &*app.text)?
            }
            _ => return Err(ApiError::bad("prompt", "Either prompt or messages must be given.")),
        };
        let strs = request.return_token_strs.unwrap_or(false);
        let strs = strs.then(|| ids.iter().map(|id| app.text.token_text(*id)).collect::<Vec<_>>());
        let max_len = app.limits.max_len;
        Ok(Json(json!({"count": ids.len(), "max_model_len": max_len, "tokens": ids, "token_strs": strs})))
    })
    .await
}

#[derive(Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    client: Option<Extension<Client>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    answer(&app, client, body, |app, request: DetokenizeRequest| {
        check_model(request.model.as_deref(), &app.model_name)?;
        if let Some(id) = request.tokens.iter().find(|id| **id as usize >= app.limits.vocab_size) {
            return Err(ApiError::bad("tokens", format!("Token id {id} is out of vocabulary.")));
        }
        Ok(Json(json!({"prompt": app.text.decode(&request.tokens)})))
    })
    .await
}

/// What lm-eval's remote tokenizer asks for.
pub(super) async fn tokenizer_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": app.text.bos_token(),
        "eos_token": app.text.eos_token(),
        "chat_template": app.text.chat_template(),
        "model_max_length": app.limits.max_len,
    }))
}

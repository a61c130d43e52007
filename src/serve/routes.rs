//! The HTTP surface.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use super::backend::Backend;
use super::error::ApiError;
use super::queue::Job;
use super::request;
use super::response;
use super::text::TextCodec;
use crate::base::clock::unix_seconds;
use crate::record::provenance::TOOL_VERSION;

/// Largest request body in bytes (as vLLM's Rust front end).
const MAX_BODY_BYTES: usize = 32 << 20;
/// A body must have arrived after this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything the handlers share.
pub(super) struct App {
    pub backend: Arc<dyn Backend>,
    pub text: Arc<dyn TextCodec>,
    pub model_name: String,
    pub root: String,
    /// BLAKE3 of the API key.
    pub api_key: Option<blake3::Hash>,
    pub started: u64,
    pub jobs: mpsc::Sender<Job>,
    /// Requests admitted at once, from the first body byte to the answer.
    pub admitted: Semaphore,
    pub healthy: Arc<AtomicBool>,
    pub next_id: AtomicU64,
    /// Makes ids of different server processes differ.
    pub id_prefix: String,
}

type Shared = State<Arc<App>>;

pub(super) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), authorize));
    Router::new()
        .route("/health", get(health))
        .route("/version", get(|| async { Json(json!({"version": TOOL_VERSION})) }))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .merge(v1)
        .fallback(|request: Request| async move {
            ApiError::new(StatusCode::NOT_FOUND, format!("{} is not served here.", request.uri().path()))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} does not accept {}.", request.uri().path(), request.method());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .with_state(app)
}

/// `Authorization: Bearer KEY`, compared in constant time.
async fn authorize(State(app): Shared, request: Request, next: Next) -> Response {
    let Some(expected) = app.api_key else { return next.run(request).await };
    let key = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().split_first_chunk::<7>())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key);
    // Equality of blake3::Hash is constant-time.
    if key.is_some_and(|k| blake3::hash(k) == expected) {
        return next.run(request).await;
    }
    ApiError::new(StatusCode::UNAUTHORIZED, "A valid API key is required: Authorization: Bearer KEY.")
        .into_response()
}

async fn health(State(app): Shared) -> StatusCode {
    if app.healthy.load(Ordering::Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// OpenAI's list with vLLM's fields and day0's own: what exactly is served, and how it is computed.
async fn models(State(app): Shared) -> Json<Value> {
    let identity = app.backend.identity();
    Json(json!({"object": "list", "data": [{
        "id": app.model_name,
        "object": "model",
        "created": app.started,
        "owned_by": "day0",
        "root": app.root,
        "parent": null,
        "max_model_len": app.backend.max_len(),
        "checkpoint_digest": identity.checkpoint_digest,
        "tokenizer_digest": identity.tokenizer_digest,
        "engine": identity.engine,
        "kernel_path": identity.kernel_path,
        "device": identity.device,
    }]}))
}

async fn completions(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let _permit = admit(&app)?;
    let body = read_body(body).await?;
    let request = blocking(&app, move |app| {
        request::parse(&body, &*app.backend, &*app.text, &app.model_name).map(Arc::new)
    })
    .await??;
    let (reply, answer) = oneshot::channel();
    let job = Job { request: Arc::clone(&request), reply };
    app.jobs.send(job).await.map_err(|_| shutting_down())?;
    let outputs =
        answer.await.map_err(|_| shutting_down())?.map_err(|e| ApiError::internal(e.to_string()))?;
    let id = format!("cmpl-{}{:016x}", app.id_prefix, app.next_id.fetch_add(1, Ordering::Relaxed));
    let bytes = blocking(&app, move |app| {
        let meta = (id, unix_seconds(), app.model_name.as_str());
        serde_json::to_vec(&response::render(&request, &outputs, &*app.text, meta))
    })
    .await?
    .map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

#[derive(Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: String,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

async fn tokenize(State(app): Shared, body: Body) -> Result<Json<Value>, ApiError> {
    let _permit = admit(&app)?;
    let body = read_body(body).await?;
    blocking(&app, move |app| {
        let request: TokenizeRequest = parse_json(&body)?;
        request::check_model(request.model.as_deref(), &app.model_name)?;
        let ids = app
            .text
            .encode(&request.prompt, request.add_special_tokens.unwrap_or(true))
            .map_err(|e| ApiError::bad("prompt", e))?;
        let strs = request.return_token_strs.unwrap_or(false);
        let strs = strs.then(|| ids.iter().map(|id| app.text.token_text(*id)).collect::<Vec<_>>());
        let max_len = app.backend.max_len();
        Ok(Json(json!({"count": ids.len(), "max_model_len": max_len, "tokens": ids, "token_strs": strs})))
    })
    .await?
}

#[derive(Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn detokenize(State(app): Shared, body: Body) -> Result<Json<Value>, ApiError> {
    let _permit = admit(&app)?;
    let body = read_body(body).await?;
    blocking(&app, move |app| {
        let request: DetokenizeRequest = parse_json(&body)?;
        request::check_model(request.model.as_deref(), &app.model_name)?;
        if let Some(id) = request.tokens.iter().find(|id| **id as usize >= app.backend.vocab_size()) {
            return Err(ApiError::bad("tokens", format!("Token id {id} is out of vocabulary.")));
        }
        Ok(Json(json!({"prompt": app.text.decode(&request.tokens)})))
    })
    .await?
}

/// What lm-eval's remote tokenizer asks for.
async fn tokenizer_info(State(app): Shared) -> Json<Value> {
    Json(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": app.text.bos_token(),
        "eos_token": app.text.eos_token(),
        "chat_template": app.text.chat_template(),
        "model_max_length": app.backend.max_len(),
    }))
}

fn parse_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("request body: {e}")))
}

fn admit(app: &App) -> Result<SemaphorePermit<'_>, ApiError> {
    app.admitted.try_acquire().map_err(|_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server has too many requests in flight; try again.",
        )
    })
}

fn shutting_down() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The server is shutting down.")
}

/// The whole body, bounded in size and time.
async fn read_body(body: Body) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let message = format!("The request body was cut short or is larger than {MAX_BODY_BYTES} bytes.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    // A declared length is judged before anything is read.
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let bytes = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY_BYTES)).await;
    match bytes {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time.")),
    }
}

/// Runs `work` where it does not hold up other connections.
async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || work(&app))
        .await
        .map_err(|_| ApiError::internal("the request could not be processed"))
}

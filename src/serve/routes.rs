//! The HTTP surface.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access::{authorize, cross_origin, observe};
use super::admission::{Admission, Client};
use super::backend::Backend;
use super::error::ApiError;
use super::job::Job;
use super::metrics::Metrics;
use super::output::{collect, shutting_down};
use super::params::check_model;
use super::request::Limits;
use super::response::Meta;
use super::stream::{Chunks, Shape, respond};
use super::text::TextCodec;
use super::tokenizer_routes::{detokenize, tokenize, tokenizer_info};
use super::worker::Flags;
use super::{chat, chat_response, request, response};
use crate::base::clock::unix_seconds;
use crate::record::provenance::TOOL_VERSION;

/// Every path but the ones with a model's name in them.
pub(super) const PATHS: &[&str] = &[
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/openapi.json",
];

/// The API in OpenAPI 3.1.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// Everything the handlers share.
pub(super) struct App {
    pub backend: Arc<dyn Backend>,
    pub text: Arc<dyn TextCodec>,
    pub limits: Limits,
    pub model_name: String,
    pub root: String,
    /// BLAKE3 of the API keys; none: open to all.
    pub api_keys: Vec<blake3::Hash>,
    pub cors_origins: Vec<String>,
    pub started: u64,
    pub request_timeout: Duration,
    pub jobs: mpsc::Sender<Job>,
    pub admission: Admission,
    pub metrics: Arc<Metrics>,
    pub flags: Arc<Flags>,
    pub next_number: AtomicU64,
    /// Makes ids of different server processes differ.
    pub id_prefix: String,
}

type Shared = State<Arc<App>>;

pub(super) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), authorize));
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(|| async { Json(json!({"version": TOOL_VERSION})) }))
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .merge(v1)
        .fallback(|request: Request| async move {
            ApiError::not_found(None, format!("{} is not served here.", request.uri().path()))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} does not accept {}.", request.uri().path(), request.method());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), cross_origin))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// Whether the process works.
async fn health(State(app): Shared) -> StatusCode {
    if app.flags.broken.load(Ordering::Relaxed) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

/// Whether new requests are taken: not while the server drains.
async fn ready(state: Shared) -> StatusCode {
    let is_draining = state.flags.draining.load(Ordering::Relaxed);
    if is_draining { StatusCode::SERVICE_UNAVAILABLE } else { health(state).await }
}

async fn metrics(State(app): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

/// OpenAI's list with vLLM's fields and day0's own: what exactly is served, and how it is computed.
async fn models(State(app): Shared) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&app)]}))
}

async fn model(State(app): Shared, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    check_model(Some(&name), &app.model_name)?;
    Ok(Json(card(&app)))
}

fn card(app: &App) -> Value {
    let identity = app.backend.identity();
    json!({
        "id": app.model_name,
        "object": "model",
        "created": app.started,
        "owned_by": "day0",
        "root": app.root,
        "parent": null,
        "max_model_len": app.limits.max_len,
        "checkpoint_digest": identity.checkpoint_digest,
        "tokenizer_digest": identity.tokenizer_digest,
        "engine": identity.engine,
        "kernel_path": identity.kernel_path,
        "device": identity.device,
    })
}

async fn completions(
    State(app): Shared,
    client: Option<Extension<Client>>,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, client, body, Shape::Completion).await
}

async fn chat_completions(
    State(app): Shared,
    client: Option<Extension<Client>>,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, client, body, Shape::Chat).await
}

/// From the body to the answer. When the client goes away this future is dropped, and the events' receiver with it.
async fn answer(
    app: &Arc<App>,
    client: Option<Extension<Client>>,
    body: Body,
    shape: Shape,
) -> Result<Response, ApiError> {
    let received = Instant::now();
    if app.flags.draining.load(Ordering::Relaxed) {
        return Err(shutting_down());
    }
    let ticket = app.admission.admit(client.map(|c| c.0))?;
    let body = app.admission.read(body).await?;
    let request = blocking(app, move |app| {
        let parse = if shape == Shape::Chat { chat::parse } else { request::parse };
        parse(&body.bytes, app.limits, &*app.text, &app.model_name)
    });
    let request = Arc::new(request.await??);
    let (sender, mut events) = mpsc::unbounded_channel();
    let job = Job {
        request: Arc::clone(&request),
        events: sender,
        received,
        deadline: received + app.request_timeout,
    };
    app.jobs.send(job).await.map_err(|_| shutting_down())?;
    let prefix = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
    let meta = Meta {
        id: format!("{prefix}-{}", app.next_id()),
        created: unix_seconds(),
        model: app.model_name.clone(),
    };
    if request.params.stream {
        return respond(Chunks::new(request, Arc::clone(&app.text), shape, meta), events, ticket).await;
    }
    let output = collect(&request, &mut events).await?;
    let bytes = blocking(app, move |app| {
        let render = if shape == Shape::Chat { chat_response::render } else { response::render };
        render(&request, &output, &*app.text, &meta)
    });
    let bytes = bytes.await?.map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], ticket.until_written(bytes)).into_response())
}

/// Runs `work` where it does not hold up other connections.
pub(super) async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || work(&app))
        .await
        .map_err(|_| ApiError::internal("the request could not be processed"))
}

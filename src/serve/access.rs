//! Around every request: who asks, under which id, how it ended; and pages of other origins, where they are let in.
//!
//! Logs hold method, known path, status, time and id: no bodies, no headers, no keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::admission::Client;
use super::error::ApiError;
use super::routes::{App, PATHS};
use crate::base::{clock, progress};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken over from a client.
const MAX_ID_BYTES: usize = 64;

/// Gives the request an id, counts and logs the answer.
pub(super) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = given_id(request.headers()).unwrap_or_else(|| app.next_id());
    let method = request.method().clone();
    let asked = request.uri().path();
    let path = PATHS.iter().find(|path| **path == asked).copied().unwrap_or("other");
    if let Some(ConnectInfo(address)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied() {
        request.extensions_mut().insert(Client::Address(address.ip()));
    }
    let mut response = next.run(request).await;
    let status = response.status();
    app.metrics.answered(path, status.as_u16());
    let millis = start.elapsed().as_millis();
    let line =
        format!("{} {method} {path} {} {millis} ms request {id}", clock::now_iso8601(), status.as_u16());
    // Overload is no fault; every other server error should be seen.
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        progress::note(&line);
    } else {
        progress::detail(&line);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The client's own id, if it is short and plain.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let is_plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (is_plain && (1..=MAX_ID_BYTES).contains(&id.len())).then(|| id.to_owned())
}

/// `Authorization: Bearer KEY`, compared in constant time with every key.
pub(super) async fn authorize(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if app.api_keys.is_empty() {
        return next.run(request).await;
    }
    let key = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().split_first_chunk::<7>())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| blake3::hash(key));
    // Equality of blake3::Hash is constant-time, and all keys are looked at.
    let matches = |found: Option<usize>, (i, known): (usize, &blake3::Hash)| {
        if key.is_some_and(|k| k == *known) { Some(i) } else { found }
    };
    let Some(number) = app.api_keys.iter().enumerate().fold(None, matches) else {
        let message = "A valid API key is required: Authorization: Bearer KEY.";
        return ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    };
    request.extensions_mut().insert(Client::Key(number));
    next.run(request).await
}

/// Lets pages of the listed origins read answers, and answers their preflight questions.
pub(super) async fn cross_origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let Some(origin) = origin.filter(|o| app.cors_origins.iter().any(|known| known == "*" || known == o))
    else {
        return next.run(request).await;
    };
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        let allowed = HeaderValue::from_static("authorization, content-type, x-request-id");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

impl App {
    /// An id that no other request of any server process has.
    pub fn next_id(&self) -> String {
        format!("{}{:016x}", self.id_prefix, self.next_number.fetch_add(1, Ordering::Relaxed))
    }
}

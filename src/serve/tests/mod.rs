//! The server end to end over HTTP, on the fake engine.

mod chat;
mod completions;
mod generation;
mod robustness;
mod surface;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use serde_json::Value;

use super::fake::{ByteCodec, FakeEngine};
use super::{Server, ServerHandle, ServerOptions};

/// A server on this engine.
fn start(engine: FakeEngine, change: impl FnOnce(&mut ServerOptions)) -> (ServerHandle, Arc<FakeEngine>) {
    let mut options = ServerOptions::local("fake");
    change(&mut options);
    let engine = Arc::new(engine);
    let handle = Server::start(engine.clone(), Arc::new(ByteCodec), options).unwrap();
    (handle, engine)
}

/// Sends raw bytes and returns status and JSON body (null when empty).
fn raw(handle: &ServerHandle, request: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(handle.url().trim_start_matches("http://")).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body =
        if body.is_empty() { Value::Null } else { serde_json::from_str(body).expect("every body is JSON") };
    (status, body)
}

fn call(handle: &ServerHandle, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    raw(handle, request.as_bytes())
}

fn post(handle: &ServerHandle, body: &Value) -> (u16, Value) {
    call(handle, "POST", "/v1/completions", "Content-Type: application/json\r\n", &body.to_string())
}

fn completion(handle: &ServerHandle, body: &Value) -> Value {
    let (status, answer) = post(handle, body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Events of a stream: what stands behind `data:`, parsed, and whether it ended with `[DONE]`.
fn stream(handle: &ServerHandle, path: &str, body: &Value) -> (Vec<Value>, bool) {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address(handle)).unwrap();
    // HTTP/1.0: the body is not cut into chunks.
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 ") && head.contains("text/event-stream"), "{answer}");
    let mut data: Vec<&str> = body.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect();
    let is_done = data.last() == Some(&"[DONE]");
    data.retain(|d| *d != "[DONE]");
    (data.into_iter().map(|d| serde_json::from_str(d).unwrap()).collect(), is_done)
}

fn address(handle: &ServerHandle) -> String {
    handle.url().trim_start_matches("http://").to_owned()
}

/// The page `/metrics`' value of `name`.
fn metric(handle: &ServerHandle, name: &str) -> f64 {
    let mut stream = TcpStream::connect(address(handle)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let line = page.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {page}"));
    line.trim().parse().unwrap()
}

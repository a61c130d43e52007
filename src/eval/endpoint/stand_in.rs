//! A server for tests that answers as it is told, well or badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// One request as the stand-in sees it.
pub(crate) struct Call {
    /// How many requests to this path came before.
    pub number: usize,
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

/// What to do with it.
pub(crate) enum Reply {
    Json(u16, Value),
    /// Status, header line, body.
    With(u16, &'static str, Value),
    /// Any bytes, then the connection is closed.
    Raw(String),
    /// The connection is closed without an answer.
    Reset,
    /// No answer for this long.
    Hang(Duration),
}

type Handler = dyn Fn(&Call) -> Reply + Send + Sync;

/// Runs until dropped.
pub(crate) struct StandIn {
    pub url: String,
    completions: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    pub fn start(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, completions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopping, counter) = (Arc::clone(&stop), Arc::clone(&completions));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, counter) = (Arc::clone(&handler), Arc::clone(&counter));
                // A client that goes away ends its connection's thread.
                std::thread::spawn(move || answer(&stream.unwrap(), &*handler, &counter));
            }
        });
        Self { url, completions, stop, thread: Some(thread) }
    }

    /// Requests to `/v1/completions` so far.
    pub fn completions(&self) -> usize {
        self.completions.load(Ordering::Relaxed)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers one request and closes the connection.
fn answer(stream: &TcpStream, handler: &Handler, completions: &AtomicUsize) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let number = if path == "/v1/completions" { completions.fetch_add(1, Ordering::Relaxed) } else { 0 };
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let text = match handler(&Call { number, path, authorization, body }) {
        Reply::Json(status, body) => http(status, "", &body),
        Reply::With(status, header, body) => http(status, &format!("{header}\r\n"), &body),
        Reply::Raw(text) => text,
        Reply::Reset => String::new(),
        Reply::Hang(time) => {
            std::thread::sleep(time);
            String::new()
        }
    };
    let mut stream = stream;
    stream.write_all(text.as_bytes()).ok()?;
    stream.shutdown(Shutdown::Both).ok()
}

fn http(status: u16, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

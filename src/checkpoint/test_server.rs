//! A tiny HTTP server for tests: one thread, one request a connection, answers computed by a closure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What the client sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A header by its lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What the server answers.
#[derive(Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is closed.
    sent_bytes: usize,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Vec<u8>) -> Self {
        let sent_bytes = body.len();
        Self { status, headers: Vec::new(), body, sent_bytes }
    }

    /// The same reply from a server that dies after so many bytes of the body.
    pub(crate) fn broken_off(mut self, after: usize) -> Self {
        self.sent_bytes = after;
        self
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body.into())
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The requested range of `file`, or all of it when none is asked for.
    pub(crate) fn range(request: &Request, file: &[u8]) -> Self {
        let Some(range) = request.header("range").and_then(|r| r.strip_prefix("bytes=")) else {
            return Self::ok(file);
        };
        let (first, last) = range.split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        if first >= file.len() {
            return Self::new(416, Vec::new());
        }
        let last = last.parse::<usize>().unwrap_or(usize::MAX).min(file.len() - 1);
        Self::new(206, file[first..=last].to_vec())
            .header("Content-Range", &format!("bytes {first}-{last}/{}", file.len()))
    }
}

/// The server; stops when dropped.
pub(crate) struct TestServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen_by_thread, stop_of_thread) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop_of_thread.load(Ordering::Relaxed) {
                    return;
                }
                // A client may hang up whenever it likes.
                let _ = serve(&stream, &answer, &seen_by_thread);
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            // A panic in the closure shows as a refused connection in the test itself.
            let _ = thread.join();
        }
    }
}

fn serve(
    stream: &TcpStream,
    answer: &impl Fn(&Request) -> Reply,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.take(1 << 20));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let request = Request { path, headers };
    seen.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    )?;
    for (name, value) in &reply.headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    out.write_all(b"\r\n")?;
    out.write_all(&reply.body[..reply.sent_bytes])?;
    out.flush()
}

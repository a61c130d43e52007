//! `day0 serve` as a child process.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::common::{command, day0, ran, serial};

/// A running `day0 serve`, stopped when dropped.
pub struct Served {
    child: Child,
    /// Base URL.
    pub url: String,
}

impl Served {
    /// Serves `model` on a free port.
    pub fn start(model: &str) -> Self {
        let mut child = command(Path::new("."), ["serve", model, "--port", "0", "--quiet"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().to_owned() }
    }

    /// The first model of `/v1/models`.
    pub fn model_card(&self) -> Value {
        get(&format!("{}/v1/models", self.url))["data"][0].clone()
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url.trim_start_matches("http://")).unwrap()
    }

    /// Resident memory of the server.
    fn rss_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to a child that this process has not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(url: &str) -> Value {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::get(url).unwrap().json().unwrap()
}

fn post(url: &str, body: &Value) -> (u16, Value) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let response = reqwest::blocking::Client::new().post(url).json(body).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

/// The id of a text that is one token of the embedded model.
pub fn token_of(text: &str) -> u64 {
    let server = Served::start("day0-tiny");
    let body = json!({"model": server.model_card()["id"], "prompt": text});
    let (_, answer) = post(&format!("{}/tokenize", server.url), &body);
    answer["tokens"][0].as_u64().unwrap()
}

#[test]
fn serves_health_models_and_completions_and_stops_cleanly() {
    let _turn = serial();
    let mut server = Served::start("day0-tiny");
    let card = server.model_card();
    assert_eq!(card["checkpoint_digest"].as_str().map(str::len), Some(64), "{card:#}");
    let url = format!("{}/v1/completions", server.url);
    let body = json!({"model": card["id"], "prompt": "The", "echo": true, "logprobs": 1, "max_tokens": 0, "temperature": 0});
    let (status, answer) = post(&url, &body);
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(answer["choices"][0]["text"], json!("The"));
    let (status, answer) = post(&url, &json!({"model": "no-such-model", "prompt": "x"}));
    assert_eq!(status, 404, "{answer:#}");
    assert!(answer["error"]["message"].is_string());
    server.signal(libc::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_stops_a_server_that_drains() {
    let _turn = serial();
    let mut server = Served::start("day0-tiny");
    let mut stuck = server.connect();
    stuck.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    server.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    assert!(server.child.try_wait().unwrap().is_none(), "it waits for the request in flight");
    server.signal(libc::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
}

/// Idle, half a head, half a body; then prompts that cannot be: memory comes back.
#[test]
fn five_hundred_connections_and_huge_prompts_leave_nothing_behind() {
    let _turn = serial();
    let server = Served::start("day0-tiny");
    let url = format!("{}/v1/completions", server.url);
    let ok = || post(&url, &json!({"prompt": "The", "max_tokens": 4, "temperature": 0})).0;
    let ids = vec![1; 1_000_000];
    let storm = || {
        let clients: Vec<TcpStream> = (0..500)
            .map(|i| {
                let mut client = server.connect();
                let text = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{";
                // The server may refuse the body and close.
                let _ = client.write_all(&text.as_bytes()[..[0, 20, text.len()][i % 3]]);
                client
            })
            .collect();
        assert_eq!(reqwest::blocking::get(format!("{}/health", server.url)).unwrap().status(), 200);
        drop(clients);
        for _ in 0..3 {
            let (status, answer) = post(&url, &json!({"prompt": ids, "max_tokens": 1}));
            assert!(status == 400 || status == 503, "{answer}");
        }
    };
    assert_eq!(ok(), 200);
    storm();
    let before = server.rss_mib();
    for _ in 0..3 {
        storm();
    }
    assert_eq!(ok(), 200);
    let after = server.rss_mib();
    assert!(after < before + 48, "{before} MiB became {after} MiB");
}

#[test]
fn port_in_use_is_a_usage_error() {
    let _turn = serial();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    day0(Path::new("."), ["serve", "day0-tiny", "--port", &port]).expect(2).says(&port).says("hint:");
}

#[test]
fn evaluates_an_endpoint_like_the_built_in_engine() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let server = Served::start("day0-tiny");
    let eval = |out: &str, rest: &[&str]| {
        let args = ["eval", "--suite", "day0-tiny", "--limit", "20", "--out", out];
        ran(command(dir.path(), args.iter().chain(rest)).output().unwrap()).expect(0);
        super::common::read_json(dir.path().join(out).join("record.json"))["tasks"].clone()
    };
    let local = eval("local", &["--model", "day0-tiny"]);
    let remote = eval("remote", &["--endpoint", &server.url, "--tokenizer", "day0-tiny"]);
    assert_eq!(local, remote);
    assert_eq!(eval("declared", &["--endpoint", &server.url, "--model", "day0-tiny"]), remote);
    // It says what it serves: another checkpoint than the declared one is refused.
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "w8a8", "--out", "q"]).expect(0);
    let args = ["eval", "--suite", "day0-tiny", "--limit", "20", "--out", "other", "--endpoint", &server.url];
    let refused = ran(command(dir.path(), args.iter().chain(&["--model", "q"])).output().unwrap());
    refused.expect(3).says("checkpoint digest");
    ran(command(dir.path(), args).output().unwrap()).expect(2).says("--tokenizer");
}

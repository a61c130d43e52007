//! `day0 serve` as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};

use super::common::{command, day0, ran, read_json, turn};

/// A running `day0 serve`, stopped when dropped.
pub struct Served {
    child: Child,
    /// Base URL.
    pub url: String,
}

impl Served {
    /// Serves `model` on a free port.
    pub fn start(model: &str) -> Self {
        Self::start_with(model, &["--quiet"], &[])
    }

    /// The same with more arguments and environment variables.
    fn start_with(model: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let args = ["serve", model, "--port", "0"].into_iter().chain(args.iter().copied());
        let mut child = command(Path::new("."), args)
            .envs(variables.iter().copied())
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
        self.memory_mib("VmRSS:")
    }

    /// A line of the server's `/proc/PID/status`.
    fn memory_mib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    /// A number of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let page = client().get(format!("{}/metrics", self.url)).send().unwrap().text().unwrap();
        let line =
            page.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {page}"));
        line.trim().parse().unwrap()
    }

    /// Waits until a number of `/metrics` is 0.
    fn until_zero(&self, name: &str) {
        let start = Instant::now();
        while self.metric(name) != 0.0 {
            assert!(start.elapsed() < Duration::from_secs(10), "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(20));
        }
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
    let response = client().post(url).json(body).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

fn client() -> reqwest::blocking::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::new()
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
    let _turn = turn();
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
    let _turn = turn();
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
    let _turn = turn();
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
    let _turn = turn();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    day0(Path::new("."), ["serve", "day0-tiny", "--port", &port]).expect(2).says(&port).says("hint:");
}

#[test]
fn evaluates_an_endpoint_like_the_built_in_engine() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let server = Served::start("day0-tiny");
    let eval = |out: &str, rest: &[&str]| {
        let args = ["eval", "--suite", "day0-tiny", "--limit", "20", "--out", out];
        ran(command(dir.path(), args.iter().chain(rest)).output().unwrap()).expect(0);
        read_json(dir.path().join(out).join("record.json"))["tasks"].clone()
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

#[test]
fn keys_from_a_file_or_the_environment_guard_the_models() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "first-key\n\n  second-key  \n").unwrap();
    let by_file =
        Served::start_with("day0-tiny", &["--quiet", "--api-key-file", keys.to_str().unwrap()], &[]);
    let by_environment = Served::start_with("day0-tiny", &["--quiet"], &[("DAY0_API_KEY", "second-key")]);
    for server in [&by_file, &by_environment] {
        let models = |key: Option<&str>| {
            let request = client().get(format!("{}/v1/models", server.url));
            let request = key.into_iter().fold(request, reqwest::blocking::RequestBuilder::bearer_auth);
            request.send().unwrap().status().as_u16()
        };
        assert_eq!(models(None), 401);
        assert_eq!(models(Some("third-key")), 401);
        assert_eq!(models(Some("second-key")), 200);
    }
    std::fs::write(&keys, "\n").unwrap();
    day0(dir.path(), ["serve", "day0-tiny", "--api-key-file", keys.to_str().unwrap()])
        .expect(2)
        .says("no API key in it");
}

/// Logs name the request and say nothing of what was in it.
#[test]
fn logs_hold_request_ids_and_neither_prompts_nor_keys() {
    let _turn = turn();
    let mut server = Served::start_with("day0-tiny", &["--verbose"], &[("DAY0_API_KEY", "sesame-key")]);
    let ask = |id: &str, key: &str, body: &str| {
        let url = format!("{}/v1/completions?key=query-secret", server.url);
        let request = client().post(url).bearer_auth(key).header("x-request-id", id).body(body.to_owned());
        request.send().unwrap().status().as_u16()
    };
    assert_eq!(
        ask("trace-good", "sesame-key", r#"{"prompt": "The unspeakable text", "max_tokens": 2}"#),
        200
    );
    assert_eq!(
        ask("trace-bad", "sesame-key", r#"{"prompt": "The unspeakable text", "n": "unspeakable"}"#),
        400
    );
    assert_eq!(ask("trace-unknown", "wrong-key", r#"{"prompt": "The unspeakable text"}"#), 401);
    server.signal(libc::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    server.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    for (id, status) in [("trace-good", "200"), ("trace-bad", "400"), ("trace-unknown", "401")] {
        let line = log
            .lines()
            .find(|l| l.ends_with(&format!("request {id}")))
            .unwrap_or_else(|| panic!("{id}: {log}"));
        assert!(line.contains("POST /v1/completions") && line.contains(status), "{line}");
    }
    for secret in ["unspeakable", "sesame", "wrong-key", "query-secret"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

/// An id of which the embedded model's tokenizer knows nothing.
const UNUSED_TOKEN: usize = 831;

/// The embedded model with NaN for the embedding of [`UNUSED_TOKEN`], and a head of its own without.
fn write_model_with_a_broken_token(dir: &Path) {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/day0-tiny");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let mut config = read_json(from.join("config.json"));
    config["tie_word_embeddings"] = json!(false);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor(EMBEDDING).unwrap();
    let mut data = embedding.data().to_vec();
    let row = data.len() / embedding.shape()[0];
    // All bits set is a NaN.
    data[UNUSED_TOKEN * row..][..row].fill(0xff);
    let broken = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &data).unwrap();
    let mut views: Vec<(String, TensorView<'_>)> =
        tensors.tensors().into_iter().filter(|(name, _)| name != EMBEDDING).collect();
    views.push((EMBEDDING.to_owned(), broken));
    views.push(("lm_head.weight".to_owned(), embedding));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// Requests whose logits are not numbers fail; those that are computed together with them, or where they were, do not.
#[test]
fn broken_requests_do_not_disturb_others() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model_with_a_broken_token(dir.path());
    let server = Served::start(dir.path().to_str().unwrap());
    let url = format!("{}/v1/completions", server.url);
    let good =
        json!({"prompt": "The", "max_tokens": 40, "temperature": 0, "logprobs": 2, "ignore_eos": true});
    let ask = || {
        let (status, answer) = post(&url, &good);
        assert_eq!(status, 200, "{answer}");
        answer["choices"].clone()
    };
    let alone = ask();
    std::thread::scope(|scope| {
        for n in 1..4 {
            let url = &url;
            scope.spawn(move || {
                for _ in 0..10 {
                    let prompt = [vec![5; 40], vec![UNUSED_TOKEN]].concat();
                    let (status, answer) = post(url, &json!({"prompt": prompt, "max_tokens": 9, "n": n}));
                    let message = answer["error"]["message"].as_str().unwrap_or_default();
                    assert!(status == 500 && message.contains("no finite logits"), "{answer}");
                }
            });
        }
        for _ in 0..5 {
            assert_eq!(ask(), alone);
        }
    });
    assert_eq!(ask(), alone);
    server.until_zero("day0_kv_cache_bytes");
    assert_eq!(client().get(format!("{}/health", server.url)).send().unwrap().status(), 200);
}

/// A valid request with bytes changed, lost or doubled, or noise.
fn nonsense(random: &mut ChaCha8Rng) -> Vec<u8> {
    const VALID: [&str; 3] = [
        r#"{"prompt":"abc","max_tokens":2,"temperature":0.5,"logprobs":2,"echo":true,"stop":["x"]}"#,
        r#"{"prompt":[[1,2,3],[4,5]],"max_tokens":1,"logprobs":1,"echo":true,"temperature":0}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":2}"#,
    ];
    if random.random_bool(0.2) {
        return (0..random.random_range(0..200)).map(|_| random.random()).collect();
    }
    let mut bytes = VALID[random.random_range(0..VALID.len())].as_bytes().to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..3) {
            0 => bytes[at] = random.random(),
            1 => drop(bytes.drain(at..(at + 4).min(bytes.len()))),
            _ => bytes.extend_from_within(at..),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Sends `bodies` of nonsense, and begins `streams` of four choices each that it leaves after the first bytes.
fn misbehave(server: &Served, seed: u64, bodies: usize, streams: usize) {
    let (mut random, client) = (ChaCha8Rng::seed_from_u64(seed), client());
    for i in 0..bodies {
        let body = nonsense(&mut random);
        let path = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"][i % 4];
        let answer = client.post(format!("{}{path}", server.url)).body(body.clone()).send().unwrap();
        let status = answer.status().as_u16();
        let (text, answer) = (String::from_utf8_lossy(&body), answer.text().unwrap());
        assert!([200, 400, 404].contains(&status), "{path} {status}: {text}");
        assert!(status == 200 || answer.starts_with("{\"error\":"), "{path}: {text}");
    }
    let body =
        json!({"prompt": "The", "max_tokens": 100, "n": 4, "stream": true, "ignore_eos": true}).to_string();
    for _ in 0..streams {
        let mut stream = server.connect();
        let length = body.len();
        write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut begin = [0; 200];
        stream.read_exact(&mut begin).unwrap();
        assert!(begin.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&begin));
    }
}

/// The real engine after random bodies, streams that nobody reads to their end, and bodies that never came: nothing
/// runs, nothing is held, and it answers as before.
#[test]
fn nonsense_and_abandoned_streams_leave_nothing_behind() {
    let _turn = turn();
    let server = Served::start("day0-tiny");
    let url = format!("{}/v1/completions", server.url);
    let ask =
        || post(&url, &json!({"prompt": "The", "max_tokens": 8, "temperature": 0})).1["choices"].clone();
    let storm = |round: u64, bodies: usize, streams: usize| {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let server = &server;
                scope.spawn(move || misbehave(server, 10 * round + thread, bodies / 4, streams / 4));
            }
        });
    };
    let expected = ask();
    storm(0, 400, 40);
    let before = server.rss_mib();
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = server.connect();
            stream
                .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{")
                .unwrap();
            stream
        })
        .collect();
    storm(1, 2000, 100);
    drop(slow);
    for name in [
        "day0_num_requests_running",
        "day0_num_requests_waiting",
        "day0_num_sequences_running",
        "day0_num_sequences_waiting",
        "day0_kv_cache_bytes",
    ] {
        server.until_zero(name);
    }
    let after = server.rss_mib();
    assert!(after < before + 48, "{before} MiB became {after} MiB");
    assert_eq!(client().get(format!("{}/health", server.url)).send().unwrap().status(), 200);
    assert_eq!(ask(), expected);
}

/// The largest body of the smallest values is refused without becoming ten times its size.
#[test]
fn small_values_by_the_million_take_no_more_than_their_body() {
    let _turn = turn();
    let server = Served::start("day0-tiny");
    assert_eq!(post(&format!("{}/tokenize", server.url), &json!({"prompt": "The"})).0, 200);
    let before = server.memory_mib("VmHWM:");
    let list =
        |value: &str| format!("[{}{value}]", format!("{value},").repeat((31 << 20) / (value.len() + 1)));
    let prompt = "\"prompt\":\"The\",\"max_tokens\":1";
    let messages = "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":1";
    for (path, body) in [
        ("completions", format!("{{\"prompt\":{}}}", list("[]"))),
        ("completions", format!("{{{prompt},\"stop\":{}}}", list("\"\""))),
        ("completions", format!("{{{prompt},\"bad_words\":{}}}", list("[]"))),
        ("completions", format!("{{{prompt},\"response_format\":{{\"type\":\"x\",\"y\":{}}}}}", list("{}"))),
        ("chat/completions", format!("{{{messages},\"tools\":{}}}", list("[]"))),
        ("chat/completions", format!("{{\"messages\":{}}}", list("{\"role\":\"\"}"))),
    ] {
        let begin = &body[..60];
        let answer = client().post(format!("{}/v1/{path}", server.url)).body(body.clone()).send().unwrap();
        assert_eq!(answer.status(), 400, "{begin}");
        let after = server.memory_mib("VmHWM:");
        assert!(after < before + 112, "{begin}: {before} MiB became {after} MiB");
    }
}

#[test]
fn sequences_are_no_longer_than_asked_for() {
    let _turn = turn();
    let server =
        Served::start_with("day0-tiny", &["--quiet", "--max-model-len", "32", "--kv-cache-mib", "1"], &[]);
    assert_eq!(server.model_card()["max_model_len"], 32);
    let ask = |max_tokens: usize| {
        let body = json!({"prompt": vec![5; 30], "max_tokens": max_tokens, "ignore_eos": true});
        post(&format!("{}/v1/completions", server.url), &body)
    };
    let (status, answer) = ask(2);
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(2)), "{answer}");
    let (status, answer) = ask(3);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(status == 400 && message.contains("maximum context length is 32"), "{answer}");
    day0(Path::new("."), ["serve", "day0-tiny", "--max-model-len", "257"]).expect(2).says("256");
}

/// The rank of a prompt's token is its place in the list where that is long enough, and known where it is not.
#[test]
fn ranks_of_prompt_tokens_are_their_places() {
    let _turn = turn();
    let server = Served::start("day0-tiny");
    let ask = |n: usize| {
        let body =
            json!({"prompt": "The green house", "max_tokens": 1, "temperature": 0, "prompt_logprobs": n});
        let (status, answer) = post(&format!("{}/v1/completions", server.url), &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["prompt_logprobs"].as_array().unwrap()[1..].to_vec()
    };
    let (alone, listed) = (ask(0), ask(20));
    assert!(!alone.is_empty() && alone.len() == listed.len());
    for (alone, listed) in alone.iter().zip(&listed) {
        let (id, own) = alone.as_object().unwrap().iter().next().unwrap();
        assert!(own["rank"].as_u64().unwrap() >= 1);
        assert_eq!(own, &listed[id]);
        let is_listed = listed.as_object().unwrap().len() == 20;
        assert_eq!(own["rank"].as_u64().unwrap() <= 20, is_listed, "{own}");
    }
}

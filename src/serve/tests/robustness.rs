//! Clients that send nonsense, too much, too slowly, or go away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::super::ServerHandle;
use super::super::fake::{FakeEngine, NOT_FINITE_PROMPT};
use super::{address, call, completion, metric, post, raw, start};

/// A connection that is kept.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(handle: &ServerHandle) -> Self {
        let stream = TcpStream::connect(address(handle)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Status and body.
    fn post(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut request =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        self.0.get_mut().write_all(&request).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(n) = line.strip_prefix("content-length: ") {
                length = n.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, body)
    }
}

/// A random body: noise, or a valid request with bytes changed, lost or doubled.
fn nonsense(random: &mut ChaCha8Rng) -> Vec<u8> {
    const VALID: [&str; 3] = [
        r#"{"model":"fake","prompt":"abc","max_tokens":3,"temperature":0.5,"logprobs":2,"echo":true,"n":2,"stop":["x"]}"#,
        r#"{"prompt":[[1,2,3],[4,5]],"max_tokens":1,"logprobs":1,"echo":true,"logprob_start_len":[1,2],"top_p":0.9}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":2,"logit_bias":{"5":1}}"#,
    ];
    if random.random_bool(0.3) {
        let mut bytes = vec![0; random.random_range(0..200)];
        random.fill_bytes(&mut bytes);
        return bytes;
    }
    let mut bytes = VALID[random.random_range(0..VALID.len())].as_bytes().to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] = b"0123456789-.e[]{}\",:nft"[random.random_range(0..23)],
            2 => drop(bytes.drain(at..(at + 5).min(bytes.len()))),
            _ => bytes.extend_from_within(at..),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

fn until(what: &dyn Fn() -> bool) {
    let start = Instant::now();
    while !what() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(what());
}

#[test]
fn ten_thousand_random_bodies() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let mut statuses = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let handle = &handle;
                scope.spawn(move || {
                    let (mut random, mut connection) =
                        (ChaCha8Rng::seed_from_u64(seed), Connection::new(handle));
                    let mut seen = Vec::new();
                    for i in 0..2500 {
                        let body = nonsense(&mut random);
                        let path =
                            ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"][i % 4];
                        let (status, answer) = connection.post(path, &body);
                        let text = String::from_utf8_lossy(&body);
                        assert!([200, 400, 404].contains(&status), "{path} {status}: {text}");
                        assert!(status == 200 || answer.starts_with(b"{\"error\":"), "{path}: {text}");
                        seen.push(status);
                    }
                    seen
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect::<Vec<u16>>()
    });
    assert_eq!(call(&handle, "GET", "/health", "", "").0, 200);
    until(&|| metric(&handle, "day0_num_requests_running") == 0.0);
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 400, 404]);
}

#[test]
fn slow_bodies_are_given_up() {
    let (handle, _) = start(FakeEngine::default(), |o| {
        o.body_timeout = Duration::from_millis(300);
        o.max_queued_requests = 40;
    });
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n{";
    let mut slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(address(&handle)).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(post(&handle, &json!({"prompt": "x"})).0, 503, "all places are taken");
    for stream in &mut slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert_eq!(post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0, 200);
}

/// Heads that never end, and connections that nothing comes over, are closed; those in use are not.
#[test]
fn slow_heads_are_given_up() {
    let (handle, _) = start(FakeEngine::default(), |o| o.body_timeout = Duration::from_millis(300));
    let slow: Vec<TcpStream> = ["", "POST /v1/compl", "POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: b"]
        .iter()
        .map(|head| {
            let mut stream = TcpStream::connect(address(&handle)).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut used = Connection::new(&handle);
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(used.post("/v1/completions", br#"{"prompt":"x","max_tokens":1}"#).0, 200);
    }
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

/// A shutdown answers what has begun, closes what is idle, and takes nothing new.
#[test]
fn a_shutdown_ends_idle_connections_at_once() {
    let engine = FakeEngine { delay: Duration::from_millis(300), ..FakeEngine::default() };
    let (handle, engine) = start(engine, |_| {});
    let idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address(&handle)).unwrap()).collect();
    let mut kept = Connection::new(&handle);
    assert_eq!(kept.post("/tokenize", br#"{"prompt":"x"}"#).0, 200);
    std::thread::scope(|scope| {
        let mut busy = Connection::new(&handle);
        let answer = scope.spawn(move || busy.post("/v1/completions", br#"{"prompt":"x","max_tokens":1}"#).0);
        until(&|| engine.calls.load(Ordering::Relaxed) == 1);
        let start = Instant::now();
        handle.shutdown();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(answer.join().unwrap(), 200);
    });
    for mut stream in idle.into_iter().chain([kept.0.into_inner()]) {
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
    }
}

#[test]
fn bodies_cut_short_and_too_large() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let mut stream = TcpStream::connect(address(&handle)).unwrap();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    drop(stream);
    // Just enough to be too much, so that nothing is left unread when the server closes.
    let size = (32 << 20) + 1;
    let mut chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend_from_slice(format!("{size:x}\r\n").as_bytes());
    chunked.resize(chunked.len() + size, b' ');
    let mut stream = TcpStream::connect(address(&handle)).unwrap();
    stream.write_all(&chunked).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(metric(&handle, "day0_num_requests_running"), 0.0);
}

#[test]
fn a_million_tokens_are_too_long() {
    let (handle, engine) = start(FakeEngine::default(), |_| {});
    let ids = format!("{{\"prompt\":[1{}]}}", ",1".repeat(1_000_000));
    let words = json!({"prompt": "word ".repeat(1_000_000)}).to_string();
    for body in [ids, words] {
        let (status, answer) = call(&handle, "POST", "/v1/completions", "", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains("maximum context length"), "{answer}");
    }
    assert_eq!(engine.calls.load(Ordering::Relaxed), 0);
}

#[test]
fn a_client_that_goes_away_frees_its_work() {
    let engine = FakeEngine { max_len: 100_000, delay: Duration::from_millis(2), ..FakeEngine::default() };
    let (handle, engine) = start(engine, |_| {});
    let mut body = json!({"prompt": "x", "max_tokens": 50_000, "ignore_eos": true});
    for stream in [true, false] {
        body["stream"] = json!(stream);
        let text = body.to_string();
        let mut client = TcpStream::connect(address(&handle)).unwrap();
        write!(
            client,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
        .unwrap();
        let before = engine.calls.load(Ordering::Relaxed);
        until(&|| engine.calls.load(Ordering::Relaxed) > before + 5);
        if stream {
            let mut first = [0; 64];
            client.read_exact(&mut first).unwrap();
        }
        drop(client);
        until(&|| metric(&handle, "day0_num_requests_running") == 0.0);
        let after = engine.calls.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(engine.calls.load(Ordering::Relaxed), after, "nothing is generated for nobody");
    }
    assert_eq!(metric(&handle, "day0_requests_cancelled_total"), 2.0);
}

#[test]
fn idle_connections_hold_nobody_up() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let idle: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(address(&handle)).unwrap()).collect();
    assert_eq!(post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0, 200);
    assert_eq!(raw(&handle, b"nonsense\r\n\r\n").0, 400);
    drop(idle);
}

/// One request whose logits are not numbers fails alone.
#[test]
fn a_prompt_without_finite_logits_fails_alone() {
    let engine = FakeEngine { max_len: 512, delay: Duration::from_millis(5), ..FakeEngine::default() };
    let (handle, _) = start(engine, |_| {});
    let good = json!({"prompt": "x", "max_tokens": 120, "temperature": 0, "ignore_eos": true});
    let alone = completion(&handle, &good)["choices"].clone();
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| completion(&handle, &good)["choices"].clone());
        until(&|| metric(&handle, "day0_num_requests_running") == 1.0);
        for n in [1, 3] {
            let (status, answer) =
                post(&handle, &json!({"prompt": ["y", NOT_FINITE_PROMPT], "max_tokens": 9, "n": n}));
            assert_eq!(status, 500, "{answer}");
            assert!(answer["error"]["message"].as_str().unwrap().contains("no finite logits"), "{answer}");
        }
        assert_eq!(beside.join().unwrap(), alone);
    });
    until(&|| metric(&handle, "day0_num_sequences_running") == 0.0);
    assert_eq!(call(&handle, "GET", "/health", "", "").0, 200);
}

/// 160 prompts of 100 tokens that share `shared` of them, to be scored.
fn many_prompts(shared: usize) -> serde_json::Value {
    let prompt = |i: usize| [vec![7; shared], vec![i; 100 - shared]].concat();
    let prompts: Vec<_> = (0..160).map(prompt).collect();
    json!({"prompt": prompts, "max_tokens": 0, "echo": true, "logprobs": 0, "logprob_start_len": 99})
}

/// Between pieces of a large scoring request others begin, and whoever waits is counted.
#[test]
fn large_scoring_requests_let_others_in() {
    let engine = FakeEngine { max_len: 512, delay: Duration::from_millis(5), ..FakeEngine::default() };
    let (handle, engine) = start(engine, |_| {});
    let calls = || engine.calls.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let large = scope.spawn(|| post(&handle, &many_prompts(0)).0);
        until(&|| calls() > 0);
        // Another one waits for its turn.
        let next = scope.spawn(|| post(&handle, &many_prompts(0)).0);
        until(&|| metric(&handle, "day0_num_requests_waiting") == 1.0);
        assert_eq!(post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0, 200);
        assert!(calls() < 320, "it waited for all of them");
        assert_eq!((large.join().unwrap(), next.join().unwrap()), (200, 200));
    });
    // 4096 rows are 40 of these prompts.
    assert_eq!(engine.largest_batch.load(Ordering::Relaxed), 40);
    until(&|| metric(&handle, "day0_num_requests_waiting") == 0.0);

    // What prompts share is computed once: all fit one piece.
    assert_eq!(post(&handle, &many_prompts(90)).0, 200);
    assert_eq!(engine.largest_batch.load(Ordering::Relaxed), 160);
}

/// A client that goes away, or whose time is over, does not have all its prompts scored.
#[test]
fn large_scoring_requests_are_given_up() {
    let engine = FakeEngine { max_len: 512, delay: Duration::from_millis(10), ..FakeEngine::default() };
    let (handle, engine) = start(engine, |o| o.request_timeout = Duration::from_millis(700));
    let calls = || engine.calls.load(Ordering::Relaxed);
    let body = many_prompts(0).to_string();
    let mut client = TcpStream::connect(address(&handle)).unwrap();
    write!(
        client,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    until(&|| calls() > 0);
    drop(client);
    until(&|| metric(&handle, "day0_requests_cancelled_total") == 1.0);
    assert!(calls() < 160, "{}", calls());

    let before = calls();
    let (status, answer) = post(&handle, &many_prompts(0));
    assert_eq!(status, 503, "{answer}");
    assert!(calls() - before < 160, "{}", calls() - before);
}

/// An answer of which the client takes nothing is given up in the end, and its place is free again; one that is read
/// slowly is not.
#[test]
fn a_client_that_never_reads_loses_its_place() {
    let (handle, _) = start(FakeEngine { max_len: 30_000, ..FakeEngine::default() }, |o| {
        o.write_timeout = Duration::from_millis(500);
        o.max_queued_requests = 1;
    });
    // An answer of more bytes than the kernel holds.
    let least = 1024 * 20_000;
    let mut body = json!({"prompt": "x".repeat(20_000), "max_tokens": 0, "echo": true, "n": 1024});
    let status = || post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0;
    let ask = |body: &str| {
        let before = metric(&handle, "day0_prompt_tokens_total");
        let mut client = TcpStream::connect(address(&handle)).unwrap();
        write!(
            client,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        until(&|| metric(&handle, "day0_prompt_tokens_total") > before);
        assert_eq!(status(), 503, "its place is taken");
        client
    };
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let mut client = ask(&body.to_string());
        until(&|| status() == 200);
        let mut answer = Vec::new();
        // Closed or reset after what the kernel had.
        let _ = client.read_to_end(&mut answer);
        assert!(answer.len() < least, "{} bytes", answer.len());

        let mut client = ask(&body.to_string());
        let mut answer = Vec::new();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            if (&mut client).take(4 << 20).read_to_end(&mut answer).unwrap() == 0 {
                break;
            }
        }
        assert!(answer.len() > least, "{} bytes", answer.len());
        until(&|| status() == 200);
    }
}

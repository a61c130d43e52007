//! Everything around completions: other paths, keys, limits, overload, starting and stopping.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::fake::{ByteCodec, FakeEngine, PANIC_PROMPT};
use super::super::routes::{OPENAPI, PATHS};
use super::super::{Backend, Server, ServerHandle, ServerOptions};
use super::{call, completion, metric, post, raw, start};
use crate::record::score::ScoreRequest;
use crate::record::{Classified, FailureClass};

#[test]
fn other_paths_methods_and_bodies() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let status = |method: &str, path: &str, body: &str| {
        let (status, answer) = call(&handle, method, path, "", body);
        if status >= 400 {
            assert!(answer["error"]["message"].is_string(), "{method} {path}: {answer}");
        }
        status
    };
    assert_eq!(status("GET", "/health", ""), 200);
    assert_eq!(status("GET", "/version", ""), 200);
    assert_eq!(status("POST", "/health", ""), 405);
    assert_eq!(status("GET", "/v1/completions", ""), 405);
    assert_eq!(status("DELETE", "/v1/models", ""), 405);
    assert_eq!(status("GET", "/v1/nothing", ""), 404);
    assert_eq!(status("POST", "/v1/chat/completions", "{}"), 400);
    assert_eq!(status("GET", "/v1/models/fake", ""), 200);
    assert_eq!(status("GET", "/v1/models/org/other", ""), 404);
    assert_eq!(status("GET", "/ready", ""), 200);
    for broken in ["", "{", "{\"prompt\": \"a\"", "\u{0}", "null", "{\"prompt\": \"\\ud800\"}"] {
        assert_eq!(status("POST", "/v1/completions", broken), 400, "{broken:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(status("POST", "/v1/completions", &deep), 400);
    assert_eq!(status("POST", "/v1/completions", &format!("{{\"prompt\": {deep}")), 400);

    let too_long = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(raw(&handle, too_long.as_bytes()).0, 413);
    assert_eq!(status("GET", "/health", ""), 200);
}

#[test]
fn models_and_tokenizer() {
    let (handle, engine) = start(FakeEngine::default(), |o| "/models/fake".clone_into(&mut o.root));
    let (_, list) = call(&handle, "GET", "/v1/models", "", "");
    let model = &list["data"][0];
    assert_eq!(
        (&list["object"], &model["id"], &model["root"]),
        (&json!("list"), &json!("fake"), &json!("/models/fake"))
    );
    assert_eq!((&model["max_model_len"], &model["kernel_path"]), (&json!(64), &json!("fake")));
    let digest = Backend::identity(&*engine).checkpoint_digest.unwrap();
    assert_eq!(model["checkpoint_digest"], digest.as_str());

    let (_, info) = call(&handle, "GET", "/tokenizer_info", "", "");
    assert_eq!(info["eos_token"], "</s>");
    let (_, tokens) = call(&handle, "POST", "/tokenize", "", r#"{"prompt":"ab","add_special_tokens":false}"#);
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!([97, 98]), &json!(2)));
    let (_, text) = call(&handle, "POST", "/detokenize", "", r#"{"tokens":[97,98]}"#);
    assert_eq!(text["prompt"], "ab");
    assert_eq!(call(&handle, "POST", "/detokenize", "", r#"{"tokens":[999]}"#).0, 400);
    assert_eq!(call(&handle, "POST", "/tokenize", "", "{}").0, 400);
}

#[test]
fn api_key_guards_v1_only() {
    let (handle, _) =
        start(FakeEngine::default(), |o| o.api_keys = vec!["other".to_owned(), "secret".to_owned()]);
    let models = |header: &str| call(&handle, "GET", "/v1/models", header, "").0;
    assert_eq!(models(""), 401);
    assert_eq!(models("Authorization: Bearer secre\r\n"), 401);
    assert_eq!(models("Authorization: Bearer secret2\r\n"), 401);
    assert_eq!(models("Authorization: Basic secret\r\n"), 401);
    assert_eq!(models("Authorization: Bearer\r\n"), 401);
    assert_eq!(models("Authorization: Bearer secret\r\n"), 200);
    assert_eq!(models("authorization: bearer secret\r\n"), 200);
    assert_eq!(post(&handle, &json!({"prompt": "x"})).0, 401);
    assert_eq!(call(&handle, "GET", "/health", "", "").0, 200);
}

#[test]
fn concurrent_requests_get_their_own_answers() {
    let (handle, engine) = start(FakeEngine::default(), |_| {});
    std::thread::scope(|scope| {
        for i in 0..16u32 {
            let (handle, engine) = (&handle, &engine);
            scope.spawn(move || {
                let tokens = vec![i, i + 1, 2 * i, 7];
                let body = json!({"prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 1});
                let answer = completion(handle, &body);
                let expected = engine.score(&ScoreRequest { tokens, context_len: 3 }).token_logprobs[0];
                let value = answer["choices"][0]["logprobs"]["token_logprobs"][3].as_f64().unwrap();
                assert_eq!(value as f32, expected);
            });
        }
    });
}

#[test]
fn a_full_queue_is_503() {
    let engine = FakeEngine { delay: Duration::from_millis(300), ..FakeEngine::default() };
    let (handle, _) = start(engine, |o| o.max_queued_requests = 2);
    let heads: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| head(&handle, &posting(&json!({"prompt": "x", "max_tokens": 1})))))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let with = |status: &str| heads.iter().filter(|h| h.starts_with(status)).count();
    let (answered, refused) = (with("http/1.1 200"), with("http/1.1 503"));
    assert!(answered > 0 && refused > 0 && answered + refused == 6, "{heads:?}");
    let told = heads.iter().filter(|h| h.contains("retry-after: 1")).count();
    assert_eq!(told, refused, "{heads:?}");
    assert_eq!(post(&handle, &json!({"prompt": "x"})).0, 200, "it recovers");
}

#[test]
fn an_engine_panic_is_500_and_unhealthy() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let (status, answer) = post(&handle, &json!({"prompt": PANIC_PROMPT}));
    assert_eq!((status, &answer["error"]["type"]), (500, &json!("InternalServerError")));
    assert_eq!(call(&handle, "GET", "/health", "", "").0, 503);
}

#[test]
fn shutdown_drains_and_frees_the_port() {
    let engine = FakeEngine { delay: Duration::from_millis(300), ..FakeEngine::default() };
    let (handle, _) = start(engine, |_| {});
    let address = handle.url().trim_start_matches("http://").to_owned();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    // An idle connection and one that sent half a request do not hold the shutdown up for ever.
    let _idle = TcpStream::connect(&address).unwrap();
    std::thread::scope(|scope| {
        let in_flight = scope.spawn(|| post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0);
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        handle.shutdown();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(in_flight.join().unwrap(), 200, "the request in flight was answered");
    });
    assert!(TcpStream::connect(&address).is_err());
    let (again, _) = start_on(port);
    assert_eq!(call(&again, "GET", "/health", "", "").0, 200);
}

#[test]
fn a_stuck_client_delays_shutdown_only_by_the_drain_time() {
    let (handle, _) = start(FakeEngine::default(), |o| o.drain_timeout = Duration::from_millis(200));
    let mut stuck = TcpStream::connect(handle.url().trim_start_matches("http://")).unwrap();
    stuck.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    handle.shutdown();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

fn start_on(port: u16) -> (ServerHandle, Arc<FakeEngine>) {
    start(FakeEngine::default(), |o| o.port = port)
}

#[test]
fn a_port_in_use_is_a_configuration_error() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let port = handle.url().rsplit(':').next().unwrap().parse().unwrap();
    let mut options = ServerOptions::local("fake");
    options.port = port;
    let error = Server::start(Arc::new(FakeEngine::default()), Arc::new(ByteCodec), options).unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::UserConfigError);
    assert!(error.to_string().contains(&port.to_string()) && error.hint().unwrap().contains("--port"));

    let mut options = ServerOptions::local("fake");
    "no-such-host.invalid".clone_into(&mut options.host);
    let error = Server::start(Arc::new(FakeEngine::default()), Arc::new(ByteCodec), options).unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::UserConfigError);
}

#[test]
fn the_document_describes_every_path() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let described: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .filter(|p| !p.contains('{'))
        .collect();
    assert_eq!(described, PATHS);
    for path in PATHS {
        let method = if document["paths"][path].get("get").is_some() { "GET" } else { "POST" };
        let status = if *path == "/metrics" { 200 } else { call(&handle, method, path, "", "").0 };
        assert!(![404, 405].contains(&status), "{method} {path}: {status}");
    }
}

#[test]
fn requests_have_ids_and_are_counted() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let id = |header: &str| {
        let head = head(&handle, &format!("GET /v1/models HTTP/1.0\r\n{header}\r\n"));
        let line = head.lines().find_map(|l| l.strip_prefix("x-request-id: ")).unwrap();
        line.to_owned()
    };
    assert_eq!(id("X-Request-Id: my-1.a\r\n"), "my-1.a");
    assert_ne!(id(""), id(""));
    assert_ne!(id("X-Request-Id: a b\r\n"), "a b");
    completion(&handle, &json!({"prompt": "abc", "max_tokens": 2, "ignore_eos": true}));
    let models = "day0_answers_total{path=\"/v1/models\",status=\"200\"}";
    assert_eq!(metric(&handle, models), 4.0);
    assert_eq!(metric(&handle, "day0_prompt_tokens_total"), 4.0);
    assert_eq!(metric(&handle, "day0_generation_tokens_total"), 2.0);
    assert_eq!(metric(&handle, "day0_time_to_first_token_seconds_count"), 1.0);
}

/// A whole request for completions.
fn posting(body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The head of the answer to a request, in lower case.
fn head(handle: &ServerHandle, request: &str) -> String {
    use std::io::Read;
    let mut stream = TcpStream::connect(super::address(handle)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

#[test]
fn other_origins_only_where_they_are_let_in() {
    let asking =
        "OPTIONS /v1/completions HTTP/1.0\r\nOrigin: http://a\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    let (closed, _) = start(FakeEngine::default(), |_| {});
    assert!(!head(&closed, asking).contains("access-control"));
    let (open, _) = start(FakeEngine::default(), |o| {
        o.cors_origins = vec!["http://a".to_owned()];
        o.api_keys = vec!["k".to_owned()];
    });
    let answer = head(&open, asking);
    assert!(answer.contains(" 204 ") && answer.contains("access-control-allow-origin: http://a"), "{answer}");
    let get = "GET /health HTTP/1.0\r\nOrigin: http://a\r\n\r\n";
    assert!(head(&open, get).contains("access-control-allow-origin: http://a"));
    assert!(!head(&open, &get.replace("//a", "//b")).contains("access-control"));
}

#[test]
fn a_client_with_too_much_in_flight_gets_429() {
    let engine = FakeEngine { delay: Duration::from_millis(200), ..FakeEngine::default() };
    let (handle, _) = start(engine, |o| o.max_requests_per_client = Some(1));
    let ask = || post(&handle, &json!({"prompt": "x", "max_tokens": 1})).0;
    std::thread::scope(|scope| {
        let first = scope.spawn(ask);
        std::thread::sleep(Duration::from_millis(80));
        let refused = head(&handle, &posting(&json!({"prompt": "x", "max_tokens": 1})));
        assert!(refused.contains(" 429 ") && refused.contains("retry-after: 1"), "{refused}");
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(ask(), 200);
}

#[test]
fn a_request_that_takes_too_long_is_503() {
    let engine = FakeEngine { delay: Duration::from_millis(60), max_len: 4096, ..FakeEngine::default() };
    let (handle, _) = start(engine, |o| o.request_timeout = Duration::from_millis(300));
    let body = json!({"prompt": "x", "max_tokens": 4000, "ignore_eos": true});
    let (status, answer) = post(&handle, &body);
    assert_eq!((status, &answer["error"]["type"]), (503, &json!("ServiceUnavailableError")), "{answer}");
    let late = head(&handle, &posting(&body));
    assert!(late.contains(" 503 ") && late.contains("retry-after: 1"), "{late}");
    let in_time = head(&handle, &posting(&json!({"prompt": "x", "max_tokens": 1})));
    assert!(in_time.contains(" 200 ") && !in_time.contains("retry-after"), "{in_time}");
}

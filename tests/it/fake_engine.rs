//! An endpoint that speaks vLLM's completions API and misbehaves on demand.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::common::answer_http;

/// How one completion request is answered.
pub type Answer = dyn Fn(usize, &Value) -> (u16, Value) + Send + Sync;

/// A server on a free port, stopped when dropped.
pub struct FakeEngine {
    /// Base URL.
    pub url: String,
    stop: Arc<AtomicBool>,
}

/// Answers `/v1/models` with `card` and completions with `answer(number of the request, body)`.
pub fn start(card: Value, answer: Box<Answer>) -> FakeEngine {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (answer, count): (Arc<Answer>, _) = (Arc::from(answer), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if stopped.load(Ordering::SeqCst) {
                break;
            }
            let (card, answer, count) = (card.clone(), Arc::clone(&answer), Arc::clone(&count));
            std::thread::spawn(move || serve(&stream, &card, &*answer, &count));
        }
    });
    FakeEngine { url, stop }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn serve(stream: &TcpStream, card: &Value, answer: &Answer, count: &AtomicUsize) -> Option<()> {
    answer_http(stream, "", |path, body| {
        Some(if path.contains("/v1/models") {
            (200, json!({"object": "list", "data": [card]}))
        } else if path.contains("/v1/completions") {
            answer(count.fetch_add(1, Ordering::SeqCst), &serde_json::from_slice(body).ok()?)
        } else {
            (200, json!({}))
        })
    })
}

/// A correct completion: log-probs from `logprob(token)`, the generated token is `greedy`.
pub fn completion(body: &Value, greedy: u64, logprob: impl Fn(u64) -> f64) -> (u16, Value) {
    let prompts: Vec<Vec<u64>> = match &body["prompt"] {
        Value::Array(items) if items.first().is_some_and(Value::is_array) => items
            .iter()
            .map(|p| p.as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect())
            .collect(),
        Value::Array(items) => vec![items.iter().map(|t| t.as_u64().unwrap()).collect()],
        _ => vec![vec![1, 2, 3]],
    };
    let (echo, max_tokens) = (body["echo"] == json!(true), body["max_tokens"].as_u64().unwrap_or(16));
    let choices: Vec<Value> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let shown = if echo { prompt.clone() } else { Vec::new() };
            let all: Vec<u64> = shown.into_iter().chain((0..max_tokens).map(|_| greedy)).collect();
            let name = |t: u64| format!("token_id:{t}");
            let value = |i: usize, t: u64| if echo && i == 0 { Value::Null } else { json!(logprob(t)) };
            let top = |i: usize, t: u64| {
                if echo && i == 0 {
                    Value::Null
                } else {
                    json!({name(t): logprob(t), name(greedy): logprob(greedy)})
                }
            };
            let generated = vec![greedy; max_tokens as usize];
            json!({
                "index": index, "prompt_token_ids": prompt, "token_ids": generated, "text": "x".repeat(all.len()), "finish_reason": "length",
                "logprobs": {
                    "tokens": all.iter().map(|t| name(*t)).collect::<Vec<_>>(),
                    "token_logprobs": all.iter().enumerate().map(|(i, t)| value(i, *t)).collect::<Vec<_>>(),
                    "top_logprobs": all.iter().enumerate().map(|(i, t)| top(i, *t)).collect::<Vec<_>>(),
                    "text_offset": (0..all.len()).collect::<Vec<_>>(),
                }
            })
        })
        .collect();
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    (
        200,
        json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": choices,
        "usage": {"prompt_tokens": tokens, "completion_tokens": prompts.len() as u64 * max_tokens, "total_tokens": tokens}}),
    )
}

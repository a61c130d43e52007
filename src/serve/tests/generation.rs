//! Sampling, several choices, prompts scored together, streams.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::fake::FakeEngine;
use super::{completion, start, stream};
use crate::record::score::ScoreRequest;

const PATH: &str = "/v1/completions";

fn long() -> FakeEngine {
    FakeEngine { max_len: 512, ..FakeEngine::default() }
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    choices.map(|c| c["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn seeds_temperatures_and_choices() {
    let (handle, _) = start(long(), |_| {});
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "ab", "max_tokens": 12, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        texts(&completion(&handle, &body))
    };
    assert_eq!(ask(json!({"seed": 7})), ask(json!({"seed": 7})));
    assert_ne!(ask(json!({"seed": 7})), ask(json!({"seed": 8})));
    assert_ne!(ask(json!({})), ask(json!({})), "temperature is 1 and the seed random");
    assert_eq!(ask(json!({"temperature": 0})), ask(json!({"temperature": 0, "seed": 3})));
    assert_eq!(ask(json!({"top_k": 1})), ask(json!({"temperature": 0})));
    assert_eq!(ask(json!({"logit_bias": {"65": 100}})), ["AAAAAAAAAAAA"]);
    let three = ask(json!({"seed": 7, "n": 3}));
    assert!(three.len() == 3 && three[0] != three[1] && three[1] != three[2]);
    assert_eq!(three[0], ask(json!({"seed": 7}))[0]);

    let body = json!({"prompt": ["ab", "c"], "n": 2, "max_tokens": 3, "echo": true, "ignore_eos": true});
    let answer = completion(&handle, &body);
    let begins: Vec<String> = texts(&answer).iter().map(|t| t.chars().take(1).collect()).collect();
    assert_eq!(begins, ["a", "a", "c", "c"]);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[test]
fn waiting_prompts_are_scored_in_one_call() {
    let (handle, engine) = start(FakeEngine { delay: Duration::from_millis(20), ..long() }, |_| {});
    std::thread::scope(|scope| {
        for i in 0..24u32 {
            let (handle, engine) = (&handle, &engine);
            scope.spawn(move || {
                let tokens = vec![1, 2, 3, i];
                let body = json!({"prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0,
                                  "logprob_start_len": 3});
                let answer = completion(handle, &body);
                let logprobs = &answer["choices"][0]["logprobs"];
                assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 5);
                assert!((0..3).all(|at| logprobs["token_logprobs"][at].is_null()));
                let expected = engine.score(&ScoreRequest { tokens, context_len: 3 }).token_logprobs[0];
                assert_eq!(logprobs["token_logprobs"][3].as_f64().unwrap() as f32, expected);
            });
        }
    });
    assert!(engine.largest_batch.load(Ordering::Relaxed) > 4);
}

#[test]
fn prompt_logprobs_by_token_id() {
    let (handle, _) = start(long(), |_| {});
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 2, "temperature": 0});
    let choice = &completion(&handle, &body)["choices"][0];
    assert!(choice["logprobs"].is_null());
    let list = choice["prompt_logprobs"].as_array().unwrap();
    assert!(list.len() == 3 && list[0].is_null());
    for (entry, token) in list[1..].iter().zip(["6", "7"]) {
        let entry = entry.as_object().unwrap();
        assert!(entry[token]["logprob"].as_f64().unwrap() < 0.0 && (2..=3).contains(&entry.len()));
        let mut ranks: Vec<u64> = entry.values().map(|e| e["rank"].as_u64().unwrap()).collect();
        ranks.sort_unstable();
        assert_eq!(ranks[..2], [1, 2]);
        // The token itself comes first, and where it is not among the best it has the rank of its logit.
        let own = entry[token]["rank"].as_u64().unwrap();
        assert!(if entry.len() == 3 { own > 2 } else { own <= 2 }, "{entry:?}");
    }
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let (handle, _) = start(long(), |_| {});
    for extra in [
        json!({"echo": true, "logprobs": 2}),
        json!({"n": 2, "stop": ["a", "e"]}),
        json!({"logprobs": 1, "max_tokens": 1, "echo": true, "temperature": 0}),
        json!({"return_token_ids": true, "prompt": ["x", "yz"]}),
        json!({"echo": true, "max_tokens": 0}),
    ] {
        let mut body = json!({"prompt": "hé", "max_tokens": 40, "seed": 5});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let whole = completion(&handle, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let (chunks, is_done) = stream(&handle, PATH, &body);
        assert!(is_done);
        assert_eq!(chunks.last().unwrap()["usage"], whole["usage"], "{body}");
        for choice in whole["choices"].as_array().unwrap() {
            let pieces = || {
                chunks
                    .iter()
                    .flat_map(|c| c["choices"].as_array().unwrap())
                    .filter(|c| c["index"] == choice["index"])
            };
            let text: String = pieces().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(text, choice["text"], "{body}");
            let last = pieces().next_back().unwrap();
            assert_eq!(
                (&last["finish_reason"], &last["stop_reason"]),
                (&choice["finish_reason"], &choice["stop_reason"])
            );
            for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let all: Vec<Value> = pieces()
                    .flat_map(|c| c["logprobs"][field].as_array().cloned().unwrap_or_default())
                    .collect();
                assert_eq!(
                    all,
                    choice["logprobs"][field].as_array().cloned().unwrap_or_default(),
                    "{field} {body}"
                );
            }
        }
    }
}

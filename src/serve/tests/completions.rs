//! `/v1/completions`: scores, shapes, limits.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::super::TextCodec;
use super::super::fake::{BOS, ByteCodec, EOS, FakeEngine};
use super::{completion, post, start};
use crate::record::score::ScoreRequest;

/// The shape of vLLM 0.16's answer quoted in llama.cpp PR 15189.
#[test]
fn echo_shape() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let answer = completion(
        &handle,
        &json!({"model": "fake", "prompt": "hé", "max_tokens": 1, "echo": true, "logprobs": 2, "temperature": 0,
                "seed": 1234, "some_future_field": [1]}),
    );
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["prompt_tokens"], 4, "BOS and three bytes");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    assert_eq!(answer["usage"]["total_tokens"], 5);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert!(choice["stop_reason"].is_null() && choice["prompt_logprobs"].is_null());
    assert!(choice["text"].as_str().unwrap().starts_with("hé"), "the text as sent, without BOS");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap()[..4], ["<s>", "h", "\u{fffd}", "\u{fffd}"]);
    assert_eq!(logprobs["text_offset"].as_array().unwrap()[..], [0, 3, 4, 5, 6], "code points");
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    for at in 1..5 {
        let value = logprobs["token_logprobs"][at].as_f64().unwrap();
        assert!(value.is_finite() && value < 0.0);
        let top = logprobs["top_logprobs"][at].as_object().unwrap();
        assert!((1..=3).contains(&top.len()));
        let token = logprobs["tokens"][at].as_str().unwrap();
        assert_eq!(top.keys().next().unwrap(), token, "the actual token comes first");
    }
}

#[test]
fn top_logprobs_count_and_order() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let ask = |logprobs: usize| {
        let body = json!({"prompt": [[104, 105, 106]], "max_tokens": 4, "echo": true, "logprobs": logprobs,
                          "return_tokens_as_token_ids": true, "ignore_eos": true, "temperature": 0});
        completion(&handle, &body)["choices"][0]["logprobs"].clone()
    };
    for n in [0, 1, 5, 20] {
        let logprobs = ask(n);
        for at in 1..7 {
            let top = logprobs["top_logprobs"][at].as_object().unwrap();
            let values: Vec<f64> = top.values().map(|v| v.as_f64().unwrap()).collect();
            assert_eq!(values[0], logprobs["token_logprobs"][at].as_f64().unwrap());
            assert!(top.len() == n.max(1) || top.len() == n + 1, "{n} asked, {} given", top.len());
            assert!(values[1..].windows(2).all(|w| w[0] >= w[1]), "ranked");
            if at >= 3 && n > 0 {
                assert_eq!(top.len(), n, "a greedy token is among the best");
            }
        }
    }
}

#[test]
fn echo_without_generation() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let body = json!({"prompt": "One two", "max_tokens": 0, "echo": true, "logprobs": 5});
    let answer = completion(&handle, &body);
    assert_eq!(answer["choices"][0]["text"], "One two");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 8);
    assert_eq!(answer["usage"]["completion_tokens"], 1, "as vLLM counts");
}

#[test]
fn prompts_keep_their_order_and_ids_get_no_special_tokens() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let body = json!({"prompt": [[5, 6, 7], [5, 6, 8, 9]], "max_tokens": 1, "echo": true, "logprobs": 1,
                      "return_token_ids": true});
    let answer = completion(&handle, &body);
    let choices = answer["choices"].as_array().unwrap();
    let entries = |c: &Value| c["logprobs"]["tokens"].as_array().unwrap().len();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(choices.iter().map(entries).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(choices[1]["prompt_token_ids"], json!([5, 6, 8, 9]));
    assert_eq!(choices[1]["token_ids"].as_array().unwrap().len(), 1);
    assert_eq!(answer["usage"]["prompt_tokens"], 7);

    let texts =
        completion(&handle, &json!({"prompt": ["ab", "c"], "return_token_ids": true, "max_tokens": 1}));
    assert_eq!(texts["choices"][0]["prompt_token_ids"], json!([BOS, 97, 98]));
    assert_eq!(texts["choices"][1]["prompt_token_ids"], json!([BOS, 99]));
    let plain =
        json!({"prompt": "c", "add_special_tokens": false, "return_token_ids": true, "max_tokens": 1});
    assert_eq!(completion(&handle, &plain)["choices"][0]["prompt_token_ids"], json!([99]));
}

/// One pass with a dummy token at the end gives what two passes give.
#[test]
fn one_generated_token_is_the_first_of_many() {
    let (handle, engine) = start(FakeEngine::default(), |_| {});
    let ask = |max_tokens: usize| {
        let body = json!({"prompt": [80, 81, 82, 83], "max_tokens": max_tokens, "echo": true, "logprobs": 3,
                          "return_token_ids": true, "ignore_eos": true, "temperature": 0});
        completion(&handle, &body)["choices"][0].clone()
    };
    let one = ask(1);
    assert_eq!(engine.calls.load(Ordering::Relaxed), 1);
    let many = ask(2);
    assert_eq!(one["token_ids"][0], many["token_ids"][0]);
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let (one, many) = (&one["logprobs"][field], &many["logprobs"][field]);
        assert_eq!(one.as_array().unwrap()[..], many.as_array().unwrap()[..5], "{field}");
    }
}

/// Log-probs in JSON are the engine's f32, bit for bit.
#[test]
fn values_are_exact() {
    let (handle, engine) = start(FakeEngine::default(), |_| {});
    let tokens = vec![1, 2, 3, 200, 7, 9];
    let body = json!({"prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 1});
    let answer = completion(&handle, &body);
    let expected = engine.score(&ScoreRequest { tokens, context_len: 1 }).token_logprobs;
    for (at, logprob) in expected.iter().enumerate() {
        let value = answer["choices"][0]["logprobs"]["token_logprobs"][at + 1].as_f64().unwrap();
        assert_eq!((value as f32).to_bits(), logprob.to_bits());
    }
}

#[test]
fn stops() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let base = json!({"prompt": [70, 71], "max_tokens": 12, "return_token_ids": true, "logprobs": 1,
                      "ignore_eos": true, "temperature": 0});
    let ask = |extra: Value| {
        let mut body = base.clone();
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        completion(&handle, &body)["choices"][0].clone()
    };
    let free = ask(json!({}));
    assert_eq!(
        (free["finish_reason"].as_str(), free["token_ids"].as_array().unwrap().len()),
        (Some("length"), 12)
    );
    let third = free["token_ids"][2].as_u64().unwrap();

    let by_id = ask(json!({"stop_token_ids": [third]}));
    assert_eq!((&by_id["finish_reason"], &by_id["stop_reason"]), (&json!("stop"), &json!(third)));
    assert!(by_id["token_ids"].as_array().unwrap().len() <= 3);

    let text = free["text"].as_str().unwrap();
    let stop = text.chars().find(char::is_ascii_graphic).expect("the fake writes some ASCII").to_string();
    let by_text = ask(json!({"stop": [stop, "never"]}));
    assert_eq!(by_text["stop_reason"], stop);
    assert_eq!(by_text["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    let tokens = by_text["token_ids"].as_array().unwrap().len();
    assert_eq!(by_text["logprobs"]["tokens"].as_array().unwrap().len(), tokens);
}

#[test]
fn the_end_token_ends_and_is_not_shown() {
    let (handle, _) = start(FakeEngine { max_len: 4096, ..FakeEngine::default() }, |_| {});
    // 258 equally likely tokens: among 4,000 greedy ones the end token appears.
    let body = json!({"prompt": [1], "max_tokens": 4000, "return_token_ids": true, "temperature": 0});
    let choice = &completion(&handle, &body)["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["token_ids"].as_array().unwrap().last().unwrap(), &json!(EOS));
    assert!(!choice["text"].as_str().unwrap().contains("</s>"));
}

/// A good request but for one field.
fn with(field: &str, value: Value) -> Value {
    let mut body = json!({"model": "fake", "prompt": "x", "max_tokens": 1});
    body[field] = value;
    body
}

#[test]
fn malformed_requests() {
    let (handle, engine) = start(FakeEngine::default(), |_| {});
    assert_eq!(post(&handle, &with("n", json!(1))).0, 200);
    let calls = engine.calls.load(Ordering::Relaxed);
    let table: Vec<(u16, Value, &str)> = vec![
        (404, with("model", json!("no-such-model")), "does not exist"),
        (400, with("model", json!(5)), "request body"),
        (400, with("temperature", json!(-1)), "non-negative"),
        (400, with("prompt", json!(vec!["word"; 2000].join(" "))), "maximum context length is 64 tokens"),
        (400, with("prompt", json!(vec![1; 64])), "maximum context length"),
        (400, with("prompt", json!([1_000_000_000])), "out of vocabulary"),
        (400, with("prompt", json!([258])), "258 is out of vocabulary"),
        (400, with("prompt", json!([-1])), "token id"),
        (400, with("prompt", json!([1, "a"])), "mixes"),
        (400, with("prompt", json!([])), "non-empty"),
        (400, with("prompt", json!([[]])), "empty"),
        (400, with("prompt", json!({"a": 1})), "a string"),
        (400, with("prompt", Value::Null), "non-empty"),
        (400, json!({"model": "fake"}), "non-empty"),
        (400, with("prompt", json!(vec!["a"; 1025])), "1024"),
        (400, with("n", json!(0)), "between 1 and 1024"),
        (400, with("n", json!(1025)), "between 1 and 1024"),
        (400, with("max_tokens", json!(-1)), "max_tokens"),
        (400, with("max_tokens", json!(0)), "at least 1"),
        (400, with("max_tokens", json!(i64::MAX)), "maximum context length"),
        (400, with("max_tokens", json!("many")), "request body"),
        (400, with("logprobs", json!(21)), "between 0 and 20"),
        (400, with("logprobs", json!(-1)), "between 0 and 20"),
        (400, with("stream", json!("yes")), "request body"),
        (400, with("best_of", json!(2)), "`best_of`"),
        (400, with("echo", json!("yes")), "request body"),
        (400, with("stop", json!("")), "empty string"),
        (400, with("stop", json!(5)), "stop to be a string"),
        (400, with("prompt_logprobs", json!(-1)), "between 0 and 20"),
        (400, with("stop", json!(vec!["x"; 65])), "at most 64"),
        (400, with("response_format", json!({"type": "json_object"})), "`response_format`"),
        (400, json!([1]), "request body"),
    ];
    for (status, body, message) in table {
        let (got, answer) = post(&handle, &body);
        assert_eq!(got, status, "{body}: {answer}");
        let error = &answer["error"];
        assert!(error["message"].as_str().unwrap().contains(message), "{body}: {answer}");
        assert_eq!(error["code"], status);
        assert!(error["type"].is_string() && error.get("param").is_some(), "{answer}");
    }
    assert_eq!(engine.calls.load(Ordering::Relaxed), calls, "a refused request costs no engine time");
}

#[test]
fn sampling_fields_out_of_range() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    for (status, body, message) in [
        (400, with("top_p", json!(0)), "(0, 1]"),
        (400, with("top_k", json!(-2)), "top_k"),
        (400, with("min_p", json!(1.5)), "[0, 1]"),
        (400, with("presence_penalty", json!(3)), "between -2 and 2"),
        (400, with("repetition_penalty", json!(0)), "greater than zero"),
        (400, with("logit_bias", json!({"999": 1})), "out of vocabulary"),
        (400, with("logit_bias", json!({"a": 1})), "no token id"),
        (400, with("logprob_start_len", json!([1, 2])), "2 entries for 1 prompts"),
        (400, with("logprob_start_len", json!(-1)), "at least 0"),
        (400, with("min_tokens", json!(-1)), "min_tokens"),
        (400, with("min_tokens", json!(17)), "less than or equal to max_tokens"),
        (400, with("stream_options", json!({"include_usage": true})), "stream=True"),
    ] {
        let (got, answer) = post(&handle, &body);
        assert_eq!(got, status, "{body}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(message), "{body}: {answer}");
    }
}

#[test]
fn neutral_values_change_nothing() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    for neutral in [
        with("stop", json!([])),
        with("n", json!(1)),
        with("temperature", json!(0)),
        with("stream", json!(false)),
        with("logit_bias", json!({})),
        with("response_format", json!({"type": "text"})),
        with("max_tokens", Value::Null),
        with("suffix", Value::Null),
        with("prompt", json!(vec![1; 63])),
    ] {
        assert_eq!(post(&handle, &neutral).0, 200, "{neutral}");
    }
}

#[test]
fn colliding_token_texts_keep_the_best_value() {
    // Two bytes that are no UTF-8 have the same text.
    assert_eq!(ByteCodec.token_text(0x80), ByteCodec.token_text(0x81));
    let (handle, engine) = start(FakeEngine { max_len: 2048, ..FakeEngine::default() }, |_| {});
    let tokens: Vec<u32> = (0..1000).map(|i| 128 + (i * 37) % 128).collect();
    let body = json!({"prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 5});
    let logprobs = completion(&handle, &body)["choices"][0]["logprobs"].clone();
    let greedy = engine.score(&ScoreRequest { tokens, context_len: 1 }).token_is_greedy;
    for (at, greedy) in greedy.iter().enumerate() {
        let top = logprobs["top_logprobs"][at + 1].as_object().unwrap();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(logprobs["token_logprobs"][at + 1].as_f64().unwrap() == best, *greedy, "position {at}");
    }
}

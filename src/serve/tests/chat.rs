//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::super::ServerHandle;
use super::super::fake::FakeEngine;
use super::{call, completion, start, stream};

const PATH: &str = "/v1/chat/completions";

fn ask(handle: &ServerHandle, body: &Value) -> (u16, Value) {
    call(handle, "POST", PATH, "", &body.to_string())
}

fn body(extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "seed": 2,
                          "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn the_template_makes_the_prompt() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let (status, answer) =
        ask(&handle, &body(&json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true})));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["role"], &choice["finish_reason"]),
        (&json!("assistant"), &json!("length"))
    );
    let prompt = "[user]hi[assistant]";
    let plain = json!({"prompt": prompt, "add_special_tokens": false, "max_tokens": 9, "seed": 2, "ignore_eos": true});
    assert_eq!(choice["message"]["content"], completion(&handle, &plain)["choices"][0]["text"]);
    assert_eq!(answer["prompt_token_ids"].as_array().unwrap().len(), prompt.len());
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 19, "total_tokens": 28, "completion_tokens": 9, "prompt_tokens_details": null})
    );
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 9);
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert!(entry["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap() && top.len() == 2);
        assert!(entry["bytes"].is_array() && entry["token"].is_string());
    }
    let (_, tokens) =
        call(&handle, "POST", "/tokenize", "", r#"{"messages":[{"role":"user","content":"hi"}]}"#);
    assert_eq!(tokens["tokens"], answer["prompt_token_ids"]);
}

#[test]
fn parts_length_and_choices() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
    let (_, of_parts) = ask(&handle, &body(&json!({"messages": parts, "n": 2})));
    let (_, of_text) = ask(&handle, &body(&json!({"n": 2, "logprobs": false})));
    assert_eq!(of_parts["choices"], of_text["choices"]);
    assert_eq!(of_text["choices"].as_array().unwrap().len(), 2);
    // Without a limit an answer may fill the model's 64 positions.
    let (_, full) =
        ask(&handle, &json!({"messages": [{"role": "user", "content": "hi"}], "ignore_eos": true}));
    assert_eq!(full["usage"]["total_tokens"], 64);
}

/// What a client sends back is the message it was given.
#[test]
fn an_answer_is_accepted_as_history() {
    let (handle, _) = start(FakeEngine { max_len: 512, ..FakeEngine::default() }, |_| {});
    let (_, first) = ask(&handle, &body(&json!({})));
    let message = &first["choices"][0]["message"];
    assert_eq!(message["tool_calls"], json!([]));
    let history = json!([{"role": "user", "content": "hi"}, message, {"role": "user", "content": "more"}]);
    let (status, answer) = ask(&handle, &body(&json!({"messages": history})));
    assert_eq!(status, 200, "{answer}");
    let called = json!([{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]);
    assert_eq!(ask(&handle, &body(&json!({"messages": called}))).0, 400);
}

#[test]
fn a_stream_has_role_pieces_and_end() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}, "logprobs": true});
    let (chunks, is_done) = stream(&handle, PATH, &body(&extra));
    assert!(is_done && chunks[0]["object"] == "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
    let (_, whole) = ask(&handle, &body(&json!({"logprobs": true})));
    assert_eq!(deltas.collect::<String>(), whole["choices"][0]["message"]["content"]);
    let entries: Vec<&Value> =
        chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    assert_eq!(
        entries,
        whole["choices"][0]["logprobs"]["content"].as_array().unwrap().iter().collect::<Vec<_>>()
    );
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
}

#[test]
fn malformed_requests() {
    let (handle, _) = start(FakeEngine::default(), |_| {});
    let message = |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
    for (extra, part) in [
        (json!({"messages": []}), "non-empty"),
        (json!({"messages": null}), "non-empty"),
        (json!({"messages": "hi"}), "request body"),
        (json!({"messages": [{"content": "x"}]}), "role"),
        (message("user", json!(5)), "content to be a string"),
        (message("user", json!([{"type": "image_url", "image_url": {}}])), "image_url"),
        (message("system", json!("x")), "no system role"),
        (message("user", json!("x".repeat(100))), "maximum context length"),
        (json!({"top_logprobs": 2}), "`logprobs` must be set"),
        (json!({"logprobs": true, "top_logprobs": 21}), "between 0 and 20"),
        (json!({"max_tokens": 0}), "at least 1"),
        (json!({"tools": [{"type": "function"}]}), "`tools`"),
        (json!({"chat_template": "x"}), "`chat_template`"),
        (json!({"n": 0}), "between 1 and"),
        (json!({"response_format": {"type": "json_object"}}), "`response_format`"),
    ] {
        let (status, answer) = ask(&handle, &body(&extra));
        assert_eq!(status, 400, "{extra}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{extra}: {answer}");
    }
    assert_eq!(ask(&handle, &body(&json!({"model": "other"}))).0, 404);
}

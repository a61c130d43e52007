//! The client against day0's own server and against servers that misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::stand_in::{Call, Reply, StandIn};
use super::{ApiKey, EndpointClient, EndpointError, EndpointOptions, EndpointScorer, RetryPolicy};
use crate::eval::Scorer;
use crate::record::eval::ItemError;
use crate::record::score::{ScoreRequest, ScoreResult};
use crate::record::{Classified, FailureClass};
use crate::serve::fake::{ByteCodec, FakeEngine};
use crate::serve::{Server, ServerHandle, ServerOptions};

fn options(url: &str) -> EndpointOptions {
    let millis = Duration::from_millis;
    EndpointOptions {
        retry: RetryPolicy { retries: 2, base_delay: millis(5), max_delay: millis(20) },
        timeout: millis(2000),
        ..EndpointOptions::new(url)
    }
}

fn fake_server() -> (ServerHandle, Arc<FakeEngine>) {
    let engine = Arc::new(FakeEngine::default());
    let handle = Server::start(engine.clone(), Arc::new(ByteCodec), ServerOptions::local("fake")).unwrap();
    (handle, engine)
}

fn requests(n: u32) -> Vec<ScoreRequest> {
    (0..n).map(|i| ScoreRequest { tokens: vec![i, 2 * i, 7, i + 3, 9], context_len: 3 }).collect()
}

fn score(options: &EndpointOptions, requests: &[ScoreRequest]) -> Vec<Result<ScoreResult, ItemError>> {
    EndpointScorer::connect(options, None).unwrap().score(requests, &|_| {})
}

/// A well-behaved answer: the i-th prompt token has log-prob −i.
fn good_answer(body: &Value) -> Value {
    let choice = |(index, prompt): (usize, &Value)| {
        let tokens = prompt.as_array().unwrap().len() + 1;
        let logprob = |i: usize| if i == 0 { Value::Null } else { json!(-(i as f64)) };
        let top = |i: usize| if i == 0 { Value::Null } else { json!({"t": -(i as f64)}) };
        json!({"index": index, "text": "", "logprobs": {
            "tokens": vec!["t"; tokens],
            "token_logprobs": (0..tokens).map(logprob).collect::<Vec<_>>(),
            "top_logprobs": (0..tokens).map(top).collect::<Vec<_>>(),
        }})
    };
    let choices: Vec<Value> = body["prompt"].as_array().unwrap().iter().enumerate().map(choice).collect();
    json!({"object": "text_completion", "choices": choices})
}

/// Lists a model, and leaves `/v1/completions` to `completions`.
fn stand_in(completions: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> StandIn {
    StandIn::start(move |call| match call.path.as_str() {
        "/v1/models" => {
            Reply::Json(200, json!({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]}))
        }
        "/version" => Reply::Json(200, json!({"version": "9.9"})),
        "/v1/completions" => completions(call),
        _ => Reply::Json(404, json!({"error": {"message": "nothing here"}})),
    })
}

#[test]
fn scores_in_order_with_progress() {
    let (server, engine) = fake_server();
    let requests = requests(50);
    for (batch_size, concurrency) in [(1, 1), (7, 3), (64, 8)] {
        let options = EndpointOptions { batch_size, concurrency, ..options(&server.url()) };
        let scorer = EndpointScorer::connect(&options, None).unwrap();
        assert_eq!(scorer.max_len(), 62, "a generated token and a predicted one");
        assert_eq!(scorer.identity().engine, "fake 1");
        assert!(!scorer.identity().identity_proven);
        let done = AtomicUsize::new(0);
        let results = scorer.score(&requests, &|n| {
            done.fetch_add(n, Ordering::Relaxed);
        });
        let expected: Vec<_> = requests.iter().map(|r| Ok(engine.score(r))).collect();
        assert_eq!(results, expected);
        assert_eq!(done.into_inner(), 50);
    }
    assert!(score(&options(&server.url()), &[]).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Scores over HTTP are the engine's, bit for bit, whatever the batches.
    #[test]
    fn same_bits_as_in_process(
        items in prop::collection::vec((prop::collection::vec(0u32..258, 2..60), 0.0..1.0f64), 1..12),
        batch_size in 1usize..5,
    ) {
        let (server, engine) = fake_server();
        let requests: Vec<ScoreRequest> = items
            .into_iter()
            .map(|(tokens, at)| {
                let context_len = 1 + ((tokens.len() - 1) as f64 * at) as usize;
                ScoreRequest { tokens, context_len }
            })
            .collect();
        let options = EndpointOptions { batch_size, ..options(&server.url()) };
        for (request, result) in requests.iter().zip(score(&options, &requests)) {
            let (result, expected) = (result.unwrap(), engine.score(request));
            let bits = |r: &ScoreResult| r.token_logprobs.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&result), bits(&expected));
            prop_assert_eq!(result.token_is_greedy, expected.token_is_greedy);
        }
    }
}

#[test]
fn one_bad_request_fails_alone() {
    let (server, engine) = fake_server();
    let mut requests = requests(20);
    requests[13].tokens = vec![1; 65];
    requests[5].tokens[2] = 100_000;
    let results = score(&options(&server.url()), &requests);
    for (at, (request, result)) in requests.iter().zip(results).enumerate() {
        match at {
            5 | 13 => {
                let error = result.unwrap_err();
                assert_eq!((error.status, error.transient), (Some(400), false), "{error:?}");
            }
            _ => assert_eq!(result.unwrap(), engine.score(request)),
        }
    }
}

#[test]
fn what_is_sent() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let server = stand_in(move |call| {
        log.lock().unwrap().push((call.body.clone(), call.authorization.clone()));
        Reply::Json(200, good_answer(&call.body))
    });
    let options = EndpointOptions { api_key: Some(ApiKey::new("k\n")), ..options(&server.url) };
    let results = score(&options, &requests(2));
    assert_eq!(results[1].as_ref().unwrap().token_logprobs, [-3.0, -4.0]);
    let (body, authorization) = seen.lock().unwrap()[0].clone();
    let expected = json!({"model": "m", "prompt": [[0, 0, 7, 3, 9], [1, 2, 7, 4, 9]], "max_tokens": 1,
                          "temperature": 0, "logprobs": 1, "echo": true, "seed": 1234, "return_token_ids": true});
    assert_eq!(body, expected);
    assert_eq!(authorization.as_deref(), Some("Bearer k"));
    assert_eq!(EndpointScorer::connect(&options, None).unwrap().identity().engine, "vllm 9.9");
}

/// Every way to misbehave that recovers: the scores arrive, after this many calls.
#[test]
fn recovers() {
    type Bad = fn() -> Reply;
    let table: [(&str, Bad); 6] = [
        ("500", || Reply::Json(500, json!({"error": {"message": "oops"}}))),
        ("503", || Reply::Json(503, json!({"detail": "loading"}))),
        ("429", || Reply::With(429, "Retry-After: 0", json!({"error": {"message": "slow down"}}))),
        ("reset", || Reply::Reset),
        ("half an answer", || Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"cho".to_owned())),
        ("timeout", || Reply::Hang(Duration::from_millis(500))),
    ];
    for (name, bad) in table {
        let server =
            stand_in(
                move |call| if call.number < 2 { bad() } else { Reply::Json(200, good_answer(&call.body)) },
            );
        let options = EndpointOptions { timeout: Duration::from_millis(200), ..options(&server.url) };
        let results = score(&options, &requests(3));
        assert!(results.iter().all(Result::is_ok), "{name}: {results:?}");
        assert_eq!(server.completions(), 3, "{name}");
    }
}

#[test]
fn retry_after_is_waited_for() {
    let server = stand_in(|call| match call.number {
        0 => Reply::With(429, "Retry-After: 1", json!({})),
        _ => Reply::Json(200, good_answer(&call.body)),
    });
    let start = Instant::now();
    assert!(score(&options(&server.url), &requests(1))[0].is_ok());
    assert!(start.elapsed() >= Duration::from_millis(990));
}

/// Every way to misbehave that does not recover: status, transient, words in the message, calls made.
#[test]
fn gives_up() {
    type Bad = fn(&Call) -> Reply;
    let edit = |call: &Call, field: &str, value: Value| {
        let mut answer = good_answer(&call.body);
        answer["choices"][0]["logprobs"][field] = value;
        Reply::Json(200, answer)
    };
    #[expect(clippy::type_complexity, reason = "a table of cases")]
    let table: [(&str, Box<dyn Fn(&Call) -> Reply + Send + Sync>, Option<u16>, bool, &str, usize); 13] = [
        (
            "500s",
            Box::new((|_| Reply::Json(500, json!({"error": {"message": "oops"}}))) as Bad),
            Some(500),
            true,
            "oops",
            3,
        ),
        (
            "429s",
            Box::new((|_| Reply::With(429, "Retry-After: 0", json!({}))) as Bad),
            Some(429),
            false,
            "429",
            3,
        ),
        ("resets", Box::new((|_| Reply::Reset) as Bad), None, true, "", 3),
        ("hangs", Box::new((|_| Reply::Hang(Duration::from_secs(1))) as Bad), None, true, "timed out", 3),
        (
            "401",
            Box::new((|_| Reply::Json(401, json!({"error": "Unauthorized"}))) as Bad),
            Some(401),
            false,
            "Unauthorized",
            1,
        ),
        ("403", Box::new((|_| Reply::Json(403, json!({"message": "no"}))) as Bad), Some(403), false, "no", 1),
        (
            "redirect",
            Box::new((|_| Reply::With(302, "Location: http://127.0.0.1:1/", json!({}))) as Bad),
            Some(302),
            false,
            "302",
            1,
        ),
        (
            "not JSON",
            Box::new((|_| Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ok>".to_owned())) as Bad),
            Some(200),
            false,
            "unexpected answer",
            1,
        ),
        (
            "no choices",
            Box::new((|_| Reply::Json(200, json!({"choices": []}))) as Bad),
            Some(200),
            false,
            "choices [] in the answer",
            1,
        ),
        // llama-server ignores echo.
        (
            "echo ignored",
            Box::new(move |c: &Call| edit(c, "token_logprobs", json!([-0.5]))),
            Some(200),
            false,
            "ignore echo",
            1,
        ),
        (
            "too many",
            Box::new(move |c: &Call| edit(c, "token_logprobs", json!([null, -1, -1, -1, -1, -1, -1]))),
            Some(200),
            false,
            "7 log-prob entries for 5",
            1,
        ),
        (
            "zeros",
            Box::new(move |c: &Call| edit(c, "token_logprobs", json!([null, 0, 0, 0, 0, 0]))),
            Some(200),
            false,
            "exactly 0",
            1,
        ),
        (
            "clamped",
            Box::new(move |c: &Call| edit(c, "token_logprobs", json!([null, -1, -1, -9999.0, -1, -1]))),
            Some(200),
            false,
            "-9999",
            1,
        ),
    ];
    for (name, bad, status, transient, words, calls) in table {
        let server = stand_in(bad);
        let options = EndpointOptions { timeout: Duration::from_millis(200), ..options(&server.url) };
        let error = score(&options, &requests(1)).remove(0).unwrap_err();
        assert_eq!((error.status, error.transient), (status, transient), "{name}: {error:?}");
        assert!(error.message.contains(words), "{name}: {error:?}");
        assert_eq!(server.completions(), calls, "{name}");
    }
}

#[test]
fn a_server_that_refuses_extra_fields_is_asked_without() {
    let server = stand_in(|call| match call.body.get("return_token_ids") {
        Some(_) => Reply::Json(422, json!({"detail": "unknown field"})),
        None => Reply::Json(200, good_answer(&call.body)),
    });
    let options = EndpointOptions { batch_size: 1, concurrency: 1, ..options(&server.url) };
    assert!(score(&options, &requests(4)).iter().all(Result::is_ok));
    assert_eq!(server.completions(), 5, "refused once only");
}

#[test]
fn other_token_ids_are_noticed() {
    let server = stand_in(|call| {
        let mut answer = good_answer(&call.body);
        answer["choices"][0]["prompt_token_ids"] = json!([1, 0, 0, 7, 3, 9]);
        Reply::Json(200, answer)
    });
    let error = score(&options(&server.url), &requests(1)).remove(0).unwrap_err();
    assert!(error.message.contains("other token ids"), "{error:?}");
}

/// A refusal, or a server that is down, ends the run soon instead of failing item by item for hours.
#[test]
fn hopeless_runs_end_early() {
    for (status, at_most) in [(401, 1), (500, 3 * 3)] {
        let server = stand_in(move |_| Reply::Json(status, json!({})));
        let options = EndpointOptions { batch_size: 1, concurrency: 1, ..options(&server.url) };
        let results = score(&options, &requests(50));
        assert_eq!(results.len(), 50);
        assert!(results.iter().all(|r| r.as_ref().unwrap_err().status == Some(status)));
        assert!(server.completions() <= at_most, "{status}: {}", server.completions());
    }
}

#[test]
fn connecting() {
    let class = |o: &EndpointOptions| EndpointScorer::connect(o, None).unwrap_err().failure_class();
    assert_eq!(class(&options("nonsense")), FailureClass::UserConfigError);
    // Port 1 is not listened on.
    let refused = EndpointScorer::connect(&options("http://127.0.0.1:1"), None).unwrap_err();
    assert_eq!(refused.failure_class(), FailureClass::DeploymentHealthFailed);
    assert!(refused.hint().unwrap().contains("curl http://127.0.0.1:1/v1/models"));

    let server = stand_in(|call| Reply::Json(200, good_answer(&call.body)));
    let other = EndpointOptions { model: Some("x".to_owned()), ..options(&server.url) };
    let error = EndpointScorer::connect(&other, None).unwrap_err();
    assert!(matches!(&error, EndpointError::NoSuchModel { served, .. } if served == &["m"]), "{error}");
    assert_eq!(error.failure_class(), FailureClass::UserConfigError);

    let locked = StandIn::start(|_| Reply::Json(401, json!({"error": "Unauthorized"})));
    assert_eq!(class(&options(&locked.url)), FailureClass::EvalJudgeFailed);
    for list in [json!({}), json!({"data": []}), json!({"data": [{}]}), json!({"data": 5}), json!([1])] {
        let empty = StandIn::start(move |_| Reply::Json(200, list.clone()));
        assert_eq!(class(&options(&empty.url)), FailureClass::DeploymentHealthFailed);
    }
}

#[test]
fn keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::File::create(&path).and_then(|mut f| std::io::Write::write_all(&mut f, b"abc\n")).unwrap();
    assert_eq!(ApiKey::from_file(&path).unwrap().reveal(), "abc");
    let error = ApiKey::from_file(&dir.path().join("none")).unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::UserConfigError);
    assert!(ApiKey::from_env("DAY0_TEST_NO_SUCH_KEY").is_err());
}

/// SGLang's answer: entries from the start positions on, the i-th prompt token with log-prob −i.
fn sglang_answer(body: &Value) -> Value {
    let prompts = body["input_ids"].as_array().unwrap();
    let answer = |(prompt, start): (&Value, &Value)| {
        let (tokens, start) = (prompt.as_array().unwrap(), start.as_u64().unwrap() as usize);
        let value = |i: usize| if i == start { Value::Null } else { json!(-(i as f64)) };
        let entry = |i: usize| json!([value(i), tokens[i], "t"]);
        let top = |i: usize| if i == start { Value::Null } else { json!([[-(i as f64).min(4.0), 1, "t"]]) };
        let n = body["sampling_params"]["max_new_tokens"].as_u64().unwrap() as usize;
        json!({"text": "x".repeat(n), "meta_info": {
            "prompt_tokens": tokens.len(), "completion_tokens": n,
            "input_token_logprobs": (start..tokens.len()).map(entry).collect::<Vec<_>>(),
            "input_top_logprobs": (start..tokens.len()).map(top).collect::<Vec<_>>(),
            "output_token_logprobs": vec![json!([-0.5, 7, "x"]); n],
            "output_top_logprobs": vec![json!([[-0.5, 7, "x"]]); n],
        }})
    };
    prompts.iter().zip(body["logprob_start_len"].as_array().unwrap()).map(answer).collect()
}

/// Damages an answer.
type Edit = Box<dyn Fn(&mut Value) + Send + Sync>;

fn sglang(edit: impl Fn(&mut Value) + Send + Sync + 'static) -> StandIn {
    StandIn::start(move |call| match call.path.as_str() {
        "/v1/models" => {
            Reply::Json(200, json!({"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 100}]}))
        }
        "/get_model_info" => Reply::Json(200, json!({"model_path": "m"})),
        "/generate" => {
            let mut answer = sglang_answer(&call.body);
            edit(&mut answer);
            Reply::Json(200, answer)
        }
        path => Reply::Json(404, json!({"error": {"message": format!("nothing at {path}")}})),
    })
}

#[test]
fn sglang_scores_from_the_last_context_token_on() {
    let server = sglang(|_| ());
    let results = score(&options(&server.url), &requests(3));
    let expected = ScoreResult { token_logprobs: vec![-3.0, -4.0], token_is_greedy: vec![true, true] };
    assert_eq!(results, vec![Ok(expected); 3]);
    assert_eq!(server.completions(), 0, "/v1/completions is not needed");
    // The probe's questions: all of a prompt, and what comes after it.
    let client = EndpointClient::new(&options(&server.url)).unwrap();
    client.served_model().unwrap();
    let choice = client.echo("m", &[&[5, 6, 7]]).unwrap().remove(0);
    assert_eq!(choice.prompt_token_ids.as_deref(), Some(&[5, 6, 7][..]));
    assert_eq!(choice.logprobs.unwrap().token_logprobs, [None, Some(-1.0), Some(-2.0), Some(-0.5)]);
    let generated = client.generate("m", &[5, 6, 7], 4).unwrap();
    assert_eq!((generated.text.as_str(), generated.token_ids.as_deref()), ("xxxx", Some(&[7, 7, 7, 7][..])));
    assert_eq!(generated.logprobs.unwrap().token_logprobs, [Some(-0.5); 4]);
}

#[test]
fn sglang_answers_that_cannot_be_right() {
    let entries = |answer: &mut Value| answer[0]["meta_info"]["input_token_logprobs"].clone();
    let with = move |f: fn(&mut Vec<Value>)| -> Edit {
        Box::new(move |answer: &mut Value| {
            let mut list = entries(answer).as_array().unwrap().clone();
            f(&mut list);
            answer[0]["meta_info"]["input_token_logprobs"] = list.into();
        })
    };
    let table: Vec<(Edit, &str)> = vec![
        (with(|list| drop(list.pop())), "log-prob entries"),
        (with(|list| list.reverse()), "other token ids"),
        (with(|list| list[1][0] = json!(-9999.0)), "is -9999"),
        (with(|list| list[2][0] = Value::Null), "is null"),
        (Box::new(|a| a[0]["meta_info"]["input_top_logprobs"] = Value::Null), "no ranked"),
        (Box::new(|a| a[0]["meta_info"]["input_token_logprobs"] = Value::Null), "no log-probs"),
        (Box::new(|a| drop(a.as_array_mut().unwrap().pop())), "answers of /generate for"),
        (Box::new(|a| *a = json!({"text": "x"})), "unexpected answer of /generate"),
    ];
    for (edit, words) in table {
        let server = sglang(edit);
        let results = score(&options(&server.url), &requests(2));
        let error = results[0].as_ref().unwrap_err();
        assert!(error.message.contains(words) && !error.transient, "{words}: {error:?}");
    }
}

#[test]
fn a_server_that_restarts_with_another_checkpoint_is_noticed() {
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answers);
    let server = stand_in(move |call| {
        let mut answer = good_answer(&call.body);
        if counter.fetch_add(1, Ordering::Relaxed) >= 2 {
            answer["choices"][0]["logprobs"]["token_logprobs"][1] = json!(-7.5);
            answer["choices"][0]["logprobs"]["top_logprobs"][1] = json!({"t": -7.5});
        }
        Reply::Json(200, answer)
    });
    let options = options(&server.url);
    let scorer =
        EndpointScorer::connect(&options, None).unwrap().watching(vec![vec![1, 2, 3]], None).unwrap();
    scorer.confirm().unwrap();
    let error = scorer.confirm().unwrap_err();
    assert!(!error.transient && error.message.contains("another checkpoint answers"), "{error:?}");
}

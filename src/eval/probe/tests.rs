//! Probes of day0's own server and of servers that must be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ProbeTarget, probe, require_usable, still_up};
use crate::base::digest::Digest;
use crate::base::threads;
use crate::checkpoint::http::install_crypto;
use crate::eval::endpoint::stand_in::{Call, Reply, StandIn};
use crate::eval::endpoint::{ApiKey, EndpointOptions, RetryPolicy};
use crate::record::serve::ServeRecord;
use crate::record::{Classified, FailureClass, Provenance};
use crate::serve::fake::{ByteCodec, FakeEngine};
use crate::serve::{Backend, Server, ServerHandle, ServerOptions};

fn server(seed: u64, change: impl FnOnce(&mut ServerOptions)) -> (ServerHandle, Digest) {
    let engine = Arc::new(FakeEngine { seed, ..FakeEngine::default() });
    let digest = engine.identity().checkpoint_digest.unwrap();
    let mut options = ServerOptions::local("fake");
    change(&mut options);
    (Server::start(engine, Arc::new(ByteCodec), options).unwrap(), digest)
}

fn options(url: &str) -> EndpointOptions {
    let millis = Duration::from_millis;
    EndpointOptions {
        retry: RetryPolicy { retries: 1, base_delay: millis(5), max_delay: millis(5) },
        timeout: millis(2000),
        ..EndpointOptions::new(url)
    }
}

/// Runs `work` with the target of a probe.
fn with_target<'a, T>(
    options: &EndpointOptions,
    digest: impl Into<Option<&'a Digest>>,
    launched: bool,
    work: impl FnOnce(&ProbeTarget<'_>) -> T,
) -> T {
    work(&ProbeTarget {
        arm: "candidate",
        options,
        launched,
        directory: None,
        attempts: 1,
        command: "day0 serve x".to_owned(),
        startup_timeout: Duration::from_millis(300),
        expected_digest: digest.into(),
        text: &ByteCodec,
        tokenizer_digest: Some(&Digest::of(b"bytes")),
        provenance: &Provenance::new(threads::detect(Some(1))),
    })
}

fn probe_url(url: &str) -> ServeRecord {
    with_target(&options(url), &Digest::of(b"x"), false, probe)
}

#[test]
fn a_good_server_passes_and_stays_up() {
    let (server, digest) = server(1, |_| {});
    with_target(&options(&server.url()), &digest, true, |target| {
        let mut record = probe(target);
        assert!(record.health.ok, "{record:?}");
        let identity = record.identity.clone().unwrap();
        assert_eq!(identity.checkpoint_digest.as_ref(), Some(&digest));
        assert!(identity.identity_proven);
        let canary = record.canary.clone().unwrap();
        assert!(canary.tokens == 16 && canary.finite && canary.repeatable, "{canary:?}");
        assert!(record.self_test.as_ref().unwrap().pass(), "{record:?}");
        assert!(record.fingerprint.is_some());
        require_usable(&record).unwrap();

        still_up(target, &mut record);
        assert!(record.stayed_up.as_ref().unwrap().ok);
        server.shutdown();
        still_up(target, &mut record);
        let gone = record.stayed_up.clone().unwrap();
        assert_eq!((gone.ok, gone.status), (false, None), "{gone:?}");
    });
}

#[test]
fn a_model_swapped_behind_a_declared_endpoint_is_noticed() {
    let (server_a, digest) = server(1, |_| {});
    let mut record = with_target(&options(&server_a.url()), &digest, false, probe);
    let fingerprint = record.fingerprint.clone().unwrap();
    assert_eq!((fingerprint.start.loglikelihoods.len(), fingerprint.token_ids_echoed), (8, Some(true)));
    assert!(!record.identity.as_ref().unwrap().identity_proven);
    with_target(&options(&server_a.url()), &digest, false, |t| still_up(t, &mut record));
    assert!(record.stayed_up.as_ref().unwrap().ok);
    let end = record.fingerprint.clone().unwrap().end.unwrap();
    assert_eq!(end.digest, fingerprint.start.digest);

    let (server_b, _) = server(2, |_| {});
    with_target(&options(&server_b.url()), &digest, false, |t| still_up(t, &mut record));
    let seen = record.stayed_up.clone().unwrap();
    assert_eq!((seen.ok, seen.status), (false, Some(200)), "it answers, but is another one");
    assert!(seen.detail.contains("identity"), "{seen:?}");
    // The same claim, other scores.
    record.identity.as_mut().unwrap().checkpoint_digest = Some(Digest::of(&2u64.to_le_bytes()));
    with_target(&options(&server_b.url()), &digest, false, |t| still_up(t, &mut record));
    let seen = record.stayed_up.clone().unwrap();
    assert_eq!((seen.ok, seen.status), (false, Some(200)));
    assert!(seen.detail.contains("fixed prompts"), "{seen:?}");
}

#[test]
fn api_keys() {
    let (server, digest) = server(1, |o| o.api_keys = vec!["k".to_owned()]);
    let without = with_target(&options(&server.url()), &digest, false, probe);
    assert_eq!(without.self_test.as_ref().unwrap().refused_status, Some(401));
    let error = require_usable(&without).unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::EvalJudgeFailed);
    let with = EndpointOptions { api_key: Some(ApiKey::new("k")), ..options(&server.url()) };
    require_usable(&with_target(&with, &digest, false, probe)).unwrap();
}

#[test]
fn another_tokenizer_is_refused() {
    let server = StandIn::start(|call| match call.path.as_str() {
        "/health" => Reply::Json(200, json!({})),
        _ => Reply::Json(200, json!({"data": [{"id": "m", "tokenizer_digest": Digest::of(b"other")}]})),
    });
    let record = probe_url(&server.url);
    let error = require_usable(&record).unwrap_err().to_string();
    assert!(error.contains("tokenizer"), "{error}");
}

/// A server that does not tell its checkpoint serves what the user declares, and nothing known otherwise.
#[test]
fn a_checkpoint_is_declared_or_unknown() {
    let server = StandIn::start(|call| match call.path.as_str() {
        "/health" => Reply::Json(200, json!({})),
        "/v1/models" => Reply::Json(200, json!({"data": [{"id": "m"}]})),
        _ => Reply::Json(404, json!({})),
    });
    let declared = Digest::of(b"declared");
    for expected in [Some(&declared), None] {
        let record = with_target(&options(&server.url), expected, false, probe);
        assert_eq!(record.identity.unwrap().checkpoint_digest.as_ref(), expected);
    }
}

#[test]
fn unhealthy() {
    let start = Instant::now();
    let record = probe_url("http://127.0.0.1:1");
    assert!(!record.health.ok && record.identity.is_none());
    assert!(start.elapsed() >= Duration::from_millis(300), "it may still be starting");
    assert_eq!(require_usable(&record).unwrap_err().failure_class(), FailureClass::DeploymentHealthFailed);

    let refused = StandIn::start(|_| Reply::Json(403, json!({"message": "no"})));
    assert_eq!(probe_url(&refused.url).health.status, Some(403));
    assert!(!probe_url("nonsense").health.ok);
}

/// The engine needs some time; the probe waits for it.
#[test]
fn a_slow_start() {
    let calls = AtomicUsize::new(0);
    let server = StandIn::start(move |call| match call.path.as_str() {
        "/health" if calls.fetch_add(1, Ordering::Relaxed) < 1 => Reply::Json(503, json!({})),
        "/health" => Reply::Json(200, json!({})),
        _ => Reply::Json(404, json!({})),
    });
    assert!(probe_url(&server.url).health.ok);
}

/// With this seed the canary's first token is ASCII, so that its text names it.
const ASCII_SEED: u64 = 5;

/// A server made of the fake engine's true answers, bent by `bend`.
fn bent(bend: impl Fn(&Call, &mut Value) + Send + Sync + 'static) -> (StandIn, ServerHandle) {
    let (honest, _) = server(ASCII_SEED, |_| {});
    let url = honest.url();
    install_crypto();
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let stand_in = StandIn::start(move |call| {
        let url = format!("{url}{}", call.path);
        let request = if call.body.is_null() { client.get(url) } else { client.post(url).json(&call.body) };
        let answer = request.send().unwrap();
        let status = answer.status().as_u16();
        let mut body: Value = answer.json().unwrap_or_default();
        if call.path == "/v1/completions" {
            bend(call, &mut body);
        }
        Reply::Json(status, body)
    });
    (stand_in, honest)
}

#[test]
fn servers_whose_logprobs_are_wrong() {
    type Bend = fn(&Call, &mut Value);
    let table: [(&str, Bend, &str); 7] = [
        (
            "echo ignored, as llama-server",
            |call, answer| {
                if call.body["echo"] == true {
                    let l = &mut answer["choices"][0]["logprobs"];
                    for field in ["tokens", "token_logprobs", "top_logprobs"] {
                        l[field] = json!([l[field].as_array().unwrap().last().unwrap()]);
                    }
                }
            },
            "ignore echo",
        ),
        ("no log-probs", |_, answer| answer["choices"][0]["logprobs"] = Value::Null, "log-prob entries"),
        (
            "zeros",
            |call, answer| {
                let values = answer["choices"][0]["logprobs"]["token_logprobs"].as_array_mut().unwrap();
                let from = usize::from(call.body["echo"] == true);
                for value in &mut values[from..] {
                    *value = json!(0.0);
                }
            },
            "exactly 0",
        ),
        (
            "shifted by one",
            |call, answer| {
                if call.body["echo"] == true {
                    for field in ["token_logprobs", "top_logprobs"] {
                        let values = answer["choices"][0]["logprobs"][field].as_array_mut().unwrap();
                        values[1..].rotate_right(1);
                    }
                }
            },
            "greedy token",
        ),
        (
            "first not null",
            |call, answer| {
                if call.body["echo"] == true {
                    answer["choices"][0]["logprobs"]["token_logprobs"][0] = json!(-1.0);
                }
            },
            "not null",
        ),
        (
            "other tokens",
            |_, answer| {
                if answer["choices"][0].get("prompt_token_ids").is_some() {
                    answer["choices"][0]["prompt_token_ids"] = json!([256, 1, 2]);
                }
            },
            "other token ids",
        ),
        (
            "another answer each time",
            |call, answer| {
                if call.body.get("echo").is_none() {
                    answer["choices"][0]["text"] = json!(format!("{}", call.number));
                }
            },
            "not repeatable",
        ),
    ];
    for (name, bend, words) in table {
        let (stand_in, _honest) = bent(bend);
        let record = probe_url(&stand_in.url);
        let error = require_usable(&record).expect_err(name);
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert_eq!(error.failure_class(), FailureClass::EvalJudgeFailed, "{name}");
    }
}

/// A server that returns no token ids: the first generated token is found by its text.
#[test]
fn without_token_ids() {
    let prompt = super::fixed::canary_prompt(&ByteCodec);
    let engine = FakeEngine { seed: ASCII_SEED, ..FakeEngine::default() };
    let first = engine.most_likely(&prompt);
    assert!(first < 128, "choose another seed: the first token is {first}");
    let (stand_in, _honest) = bent(|_, answer| {
        let choice = answer["choices"][0].as_object_mut().unwrap();
        choice.remove("token_ids");
        choice.remove("prompt_token_ids");
    });
    let record = probe_url(&stand_in.url);
    require_usable(&record).unwrap();
    assert_eq!(record.fingerprint.unwrap().token_ids_echoed, None);
}

#[test]
fn a_server_that_dies_midway() {
    let dead = Arc::new(AtomicBool::new(false));
    let die = Arc::clone(&dead);
    let (honest, digest) = server(1, |_| {});
    let url = honest.url();
    install_crypto();
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let server = StandIn::start(move |call| {
        if die.load(Ordering::Relaxed) || (call.path == "/v1/completions" && call.number >= 2) {
            return Reply::Reset;
        }
        let url = format!("{url}{}", call.path);
        let request = if call.body.is_null() { client.get(url) } else { client.post(url).json(&call.body) };
        Reply::Json(200, request.send().unwrap().json().unwrap_or_default())
    });
    let record = with_target(&options(&server.url), &digest, false, probe);
    assert!(record.canary.is_some() && !record.self_test.as_ref().unwrap().pass());
    assert!(record.log_excerpt.starts_with("self-test"), "{record:?}");
    dead.store(true, Ordering::Relaxed);
    assert!(!probe_url(&server.url).health.ok);
}

//! Engines that day0 starts from `serve.engine.command`: every way in which they fail, and how the release ends.

use std::path::Path;

use serde_json::{Value, json};

use super::common::{Ran, command, ran, read_json, serial};
use super::fake_vllm::{self, Fault};

/// A release whose arms are served by the fake, in `dir/run`.
fn release(dir: &Path, fault: Fault) -> (Ran, Value) {
    std::fs::write(dir.join("day0.yaml"), fake_vllm::config(fault, dir)).unwrap();
    let args = [
        "release",
        "--limit",
        "24",
        "--recipe",
        "w8a8",
        "--suite",
        "tiny_colours,tiny_homes",
        "--out",
        "run",
    ];
    let ran = ran(command(dir, args).output().unwrap());
    assert_no_engine_is_left(dir);
    let path = dir.join("run/release.json");
    let record = if path.exists() { read_json(path) } else { Value::Null };
    (ran, record)
}

/// No process of the fake is there any more; they are told by their directory.
#[track_caller]
fn assert_no_engine_is_left(dir: &Path) {
    let mark = format!("FAKE_VLLM_DIR={}", dir.display());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let found = environment.split(|b| *b == 0).any(|v| v == mark.as_bytes());
        assert!(!found, "process {} is left", entry.file_name().display());
    }
}

#[track_caller]
fn ends(fault: Fault, code: i32, class: &str) -> (tempfile::TempDir, Value) {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let (ran, record) = release(dir.path(), fault);
    ran.expect(code);
    assert_eq!(record["failure_class"], json!(class), "{}", record["detail"]);
    (dir, record)
}

/// Items as the run scored them.
fn samples(dir: &Path) -> String {
    let read =
        |arm| std::fs::read_to_string(dir.join(format!("run/eval/{arm}/samples_tiny_homes.jsonl"))).unwrap();
    read("baseline") + &read("candidate")
}

#[test]
fn an_engine_that_starts_slowly_serves_both_arms_one_after_the_other() {
    let (dir, record) = ends(Fault::SlowStart, 3, "INSUFFICIENT_EVIDENCE");
    let serve = read_json(dir.path().join("run/serve/candidate.json"));
    assert_eq!(serve["identity"]["engine"], json!("vllm 0.33.0"));
    assert_eq!(serve["identity"]["identity_proven"], json!(true));
    assert!(serve["command"].as_str().unwrap().contains("quantize/checkpoint"), "{serve}");
    assert_eq!(serve["process"]["restarts"], json!(0));
    assert_eq!(serve["stayed_up"]["ok"], json!(true));
    let log = std::fs::read_to_string(dir.path().join("run/serve/candidate.log")).unwrap();
    assert!(log.contains("vLLM API server version"), "{log}");
    assert!(!record["artifacts"].to_string().contains(".log"));
}

#[test]
fn an_engine_that_crashes_once_is_started_again_and_nothing_changes() {
    let (dir, record) = ends(Fault::CrashOnce, 3, "INSUFFICIENT_EVIDENCE");
    let serve = read_json(dir.path().join("run/serve/candidate.json"));
    assert_eq!(serve["process"]["restarts"], json!(1));
    assert!(record["findings"].to_string().contains("ended by itself and was started again"));
    let retried = record["execution"]["retried"].to_string();
    assert!(retried.contains("ended while scoring") && retried.contains("Segmentation fault"), "{retried}");
    let (calm, _) = ends(Fault::None, 3, "INSUFFICIENT_EVIDENCE");
    assert_eq!(samples(dir.path()), samples(calm.path()));
}

#[test]
fn an_engine_that_crashes_again_cannot_be_deployed() {
    let (_, record) = ends(Fault::CrashAlways, 4, "DEPLOYMENT_HEALTH_FAILED");
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("after 1 restart") && detail.contains("Segmentation fault"), "{detail}");
}

#[test]
fn an_engine_that_never_comes_up_says_why() {
    let (_, record) = ends(Fault::NeverUp, 4, "DEPLOYMENT_HEALTH_FAILED");
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("2 attempts") && detail.contains("CUDA out of memory"), "{detail}");
    assert!(record["findings"].to_string().contains("reproduce with"));
}

#[test]
fn an_engine_that_serves_something_else_is_caught() {
    let (_, record) = ends(Fault::WrongModel, 3, "COMPARABILITY_FAILED");
    assert!(record["detail"].as_str().unwrap().contains("/models/other"), "{}", record["detail"]);
}

#[test]
fn another_model_after_a_crash_is_caught() {
    let (_, record) = ends(Fault::OtherModelAfterCrash, 3, "COMPARABILITY_FAILED");
    assert!(record["detail"].as_str().unwrap().contains("fixed prompts"), "{}", record["detail"]);
}

#[test]
fn engines_without_prompt_logprobs_or_that_refuse_are_judge_failures() {
    for fault in [Fault::NoPromptLogprobs, Fault::Unauthorized, Fault::RateLimit] {
        ends(fault, 3, "EVAL_JUDGE_FAILED");
    }
}

#[test]
fn a_storm_of_429_passes() {
    let (dir, _) = ends(Fault::RateLimitStorm, 3, "INSUFFICIENT_EVIDENCE");
    let (calm, _) = ends(Fault::None, 3, "INSUFFICIENT_EVIDENCE");
    assert_eq!(samples(dir.path()), samples(calm.path()));
}

#[test]
fn a_template_that_cannot_work_is_a_usage_error() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        std::fs::write(dir.path().join("day0.yaml"), text).unwrap();
        ran(command(dir.path(), ["release", "--out", "run"]).output().unwrap()).expect(2)
    };
    refused("serve: {engine: {command: 'vllm serve {model}'}}").says("{port} is missing");
    refused("serve: {engine: {command: 'vllm serve {model} --port {prot}'}}").says("did you mean 'port'?");
    refused("serve: {engine: {comand: 'x'}}").says("did you mean 'command'?");
    let both = "serve: {engine: {command: 'x {model} {port}'}}\nengine: {endpoint: 'http://h:1'}";
    refused(both).says("an endpoint is named, too");
}

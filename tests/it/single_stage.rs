//! Single-stage commands do their stage and nothing else; small commands say what they promise.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::common::{day0, read_json, serial};

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn quantize_writes_the_checkpoint_and_nothing_else() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "w4a16", "--out", "q"]).expect(0);
    assert_eq!(names(dir.path()), set(&["q"]));
    let files = names(&dir.path().join("q"));
    assert!(files.contains("config.json") && files.contains("model.safetensors"), "{files:?}");
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "w4a16", "--out", "q"])
        .expect(2)
        .says("exists already");
    let dry = ["quantize", "day0-tiny", "--recipe", "w4a16", "--out", "p", "--dry-run"];
    day0(dir.path(), dry).expect(10);
    assert_eq!(names(dir.path()), set(&["q"]));
}

#[test]
fn scan_and_gates_write_nothing() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8", "--out", "q"]).expect(0);
    let scan = day0(dir.path(), ["scan", "q", "--against", "day0-tiny", "--json"]).expect(0).json();
    assert_eq!(scan["quant_method"], json!("compressed-tensors"));
    assert_eq!(scan["defects"], json!([]));
    let args = ["gate", "ptq", "--checkpoint", "q", "--source", "day0-tiny", "--recipe", "fp8_dynamic"];
    let report = day0(dir.path(), args).expect(0).json();
    assert_eq!(report["verdict"], json!("ACCEPT"));
    assert_eq!(names(dir.path()), set(&["q"]));
}

#[test]
fn every_builtin_recipe_but_the_experts_one_passes_the_ptq_gate() {
    let _turn = serial();
    for recipe in ["fp8_dynamic", "w8a8", "w4a16", "w4a16_g64", "w4a16_g32", "nvfp4a16", "mxfp4a16", "w2a16"]
    {
        let dir = tempfile::tempdir().unwrap();
        day0(dir.path(), ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q"]).expect(0);
        let args = ["gate", "ptq", "--checkpoint", "q", "--source", "day0-tiny", "--recipe", recipe];
        day0(dir.path(), args).expect(0);
    }
}

#[test]
fn eval_writes_what_lm_eval_writes() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let args = ["eval", "--model", "day0-tiny", "--suite", "day0-tiny", "--limit", "10", "--out", "e"];
    day0(dir.path(), args).expect(0);
    let results = read_json(dir.path().join("e/results.json"));
    for key in ["results", "configs", "versions", "n-shot", "n-samples", "higher_is_better"] {
        assert!(results.get(key).is_some(), "{key}");
    }
    let samples: Vec<String> =
        names(&dir.path().join("e")).into_iter().filter(|n| n.starts_with("samples_")).collect();
    assert!(samples.len() >= 4, "{samples:?}");
    // A second call finds everything done.
    day0(dir.path(), args).expect(0);
    let run = day0(dir.path(), ["gate", "run", "--run", "e"]).expect(0).json();
    assert_eq!(run["verdict"], json!("ACCEPT"));
    assert_eq!(names(dir.path()), set(&["e"]));
}

#[test]
fn compare_gate_reads_upstream_scores() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("b.json", r#"{"mmlu": 50.0, "arc": 0.57}"#);
    for (name, text, code) in [
        ("same.json", r#"{"mmlu": 49.6, "arc": 0.56}"#, 0),
        ("worse.json", r#"{"mmlu": 47.5, "arc": 0.57}"#, 1),
        ("gain.json", r#"{"mmlu": 60.0, "arc": 0.57}"#, 3),
        ("fewer.json", r#"{"mmlu": 50.0}"#, 3),
    ] {
        write(name, text);
        day0(dir.path(), ["gate", "compare", "--baseline", "b.json", "--candidate", name]).expect(code);
    }
    day0(dir.path(), ["gate", "compare", "--baseline", "b.json", "--candidate", "none.json"])
        .expect(2)
        .says("none.json");
}

#[test]
fn run_gate_reads_upstream_summaries() {
    let dir = tempfile::tempdir().unwrap();
    let task = |status: &str, scored: usize| {
        json!({"tasks": {"mmlu": {"status": status, "expected_samples": 9, "scored_samples": scored, "score": 50.0,
            "errors": []}}})
    };
    for (name, summary, code, class) in [
        ("good.json", task("SUCCESS", 9), 0, json!(null)),
        ("dropped.json", task("SUCCESS", 8), 3, json!("SAMPLE_ACCOUNTING_FAILED")),
        ("running.json", task("RUNNING", 9), 75, json!("INFRA_TRANSIENT")),
        ("exploded.json", task("FAILED", 9), 3, json!("UNKNOWN")),
    ] {
        std::fs::write(dir.path().join(name), summary.to_string()).unwrap();
        let report = day0(dir.path(), ["gate", "run", "--run", name]).expect(code).json();
        assert_eq!(report["failure_class"], class, "{name}");
    }
}

#[test]
fn small_commands_answer() {
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["list", "recipes"]).expect(0).says("fp8_dynamic");
    day0(dir.path(), ["list", "suites"]).expect(0).says("day0-tiny");
    day0(dir.path(), ["list", "architectures"]).expect(0).says("LlamaForCausalLM");
    let doctor = day0(dir.path(), ["doctor", "--json", "--threads", "2"]).expect(0).json();
    assert_eq!(doctor["threads"], json!({"count": 2, "origin": "--threads"}));
    day0(dir.path(), ["completions", "bash"]).expect(0).says("complete");
    day0(dir.path(), ["runs"]).expect(0);
    day0(dir.path(), ["init"]).expect(0);
    day0(dir.path(), ["init"]).expect(2).says("--force");
    day0(dir.path(), ["--version"]).expect(0).says("day0");
    day0(dir.path(), ["no-such-command"]).expect(2);
}

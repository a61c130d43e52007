//! Single-stage commands do their stage and nothing else; small commands say what they promise.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::common::{command, day0, ran, read_json, turn};

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn quantize_writes_the_checkpoint_and_nothing_else() {
    let _turn = turn();
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
    let _turn = turn();
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
fn every_builtin_recipe_that_fits_passes_the_ptq_gate() {
    let _turn = turn();
    // No experts here.
    let refused = ["nvfp4_experts_only"];
    for recipe in day0::recipe::builtin_names() {
        let dir = tempfile::tempdir().unwrap();
        let code = if refused.contains(recipe) { 4 } else { 0 };
        day0(dir.path(), ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q"]).expect(code);
        if code == 0 {
            gate_ptq(dir.path(), recipe);
        } else {
            assert_eq!(names(dir.path()), set(&[]), "{recipe}");
        }
    }
}

fn gate_ptq(dir: &Path, recipe: &str) {
    let args = ["gate", "ptq", "--checkpoint", "q", "--source", "day0-tiny", "--recipe", recipe];
    assert_eq!(day0(dir, args).expect(0).json()["verdict"], json!("ACCEPT"), "{recipe}");
}

/// The layout of ModelOpt: written, accepted by the gate, run by the engine; refused before anything is written where
/// it holds no such scheme.
#[test]
fn modelopt_layout_from_quantize_to_eval() {
    let _turn = turn();
    for (recipe, code) in [("fp8_dynamic", 0), ("nvfp4a16", 0), ("mxfp8", 0), ("w4a16", 4), ("w8a8", 4)] {
        let dir = tempfile::tempdir().unwrap();
        let quantize = ["quantize", "day0-tiny", "--recipe", recipe, "--format", "modelopt", "--out", "q"];
        let ran = day0(dir.path(), quantize).expect(code);
        if code != 0 {
            ran.says("does not hold");
            assert_eq!(names(dir.path()), set(&[]), "{recipe}");
            continue;
        }
        assert!(names(&dir.path().join("q")).contains("hf_quant_config.json"));
        gate_ptq(dir.path(), recipe);
        let eval = ["eval", "--model", "q", "--suite", "day0-tiny", "--limit", "2", "--out", "e"];
        day0(dir.path(), eval).expect(0);
    }
}

/// The engine runs every scheme whose inputs it can quantize.
#[test]
fn engine_runs_the_new_schemes() {
    let _turn = turn();
    let constants = "name: constants\nversion: 1\ndescription: static inputs\ngroups:\n  \
                     - targets: ['re:.*mlp']\n    weights: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16}\n    \
                     input_activations: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16, dynamic: local, amax: 30}\n  \
                     - targets: [Linear]\n    weights: {num_bits: 8, type: float, strategy: tensor}\n    \
                     input_activations: {num_bits: 8, type: float, strategy: tensor, amax: 30}\n";
    let args = "{num_bits: 4, type: float, strategy: group, group_size: 32}";
    let mxfp4 = format!(
        "name: mxfp4\nversion: 1\ndescription: MXFP4 inputs\ngroups:\n  - targets: [Linear]\n    weights: {args}\n    \
         input_activations: {}\n",
        args.replace('}', ", dynamic: true}")
    );
    for recipe in [
        "fp8_block",
        "w4afp8",
        "w4a16_asym_g32",
        "mxfp6a16",
        "mxfp8a16",
        "mxfp8",
        "mxfp4.yaml",
        "constants.yaml",
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("constants.yaml"), constants).unwrap();
        std::fs::write(dir.path().join("mxfp4.yaml"), &mxfp4).unwrap();
        day0(dir.path(), ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q"]).expect(0);
        gate_ptq(dir.path(), recipe);
        let eval = ["eval", "--model", "q", "--suite", "day0-tiny", "--limit", "2", "--out", "e"];
        day0(dir.path(), eval).expect(0);
    }
}

#[test]
fn eval_writes_what_lm_eval_writes() {
    let _turn = turn();
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
    let bf16 = [
        "eval",
        "--model",
        "day0-tiny",
        "--suite",
        "day0-tiny",
        "--limit",
        "10",
        "--dtype",
        "bf16",
        "--out",
        "b",
    ];
    day0(dir.path(), bf16).expect(0);
    assert!(read_json(dir.path().join("b/record.json")).to_string().contains("cpu-bf16-"));
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

/// The recipe of a summary may be any of ours.
#[test]
fn ptq_gate_knows_every_builtin_recipe_in_summaries() {
    for recipe in day0::recipe::builtin_names() {
        let bucket = day0::gate::upstream::precision_bucket(recipe);
        let bucket = bucket.unwrap_or_else(|| panic!("{recipe} has no bucket"));
        let counts = json!({bucket: 4});
        let summary = json!({"source_bytes": 2, "output_bytes": 1, "layer_precision_counts": counts});
        let report = day0::gate::upstream::ptq_summary(&summary, Some(recipe));
        assert!(report.pass, "{recipe}: {}", report.detail);
    }
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
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    ran(command(dir.path(), ["completions", "zsh"]).stdout(full).output().unwrap()).expect(0);
    day0(dir.path(), ["runs"]).expect(0);
    day0(dir.path(), ["init"]).expect(0);
    day0(dir.path(), ["init"]).expect(2).says("--force");
    day0(dir.path(), ["--version"]).expect(0).says("day0");
    day0(dir.path(), ["no-such-command"]).expect(2);
}

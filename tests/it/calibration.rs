//! Recipes whose input scales are calibrated, from the command line to the verdict.

use std::path::Path;

use serde_json::{Value, json};

use super::common::{day0, overwrite_with_zeros, read_json, turn};

fn quantize(dir: &Path, rest: &[&str]) -> Value {
    let args = ["quantize", "day0-tiny", "--out", "q", "--json"];
    day0(dir, args.iter().chain(rest)).expect(0).json()
}

#[test]
fn text_and_numbers_are_recorded_and_both_layouts_are_served() {
    let _turn = turn();
    let text = "Fela works as a doctor. Siko wears brown.\n".repeat(200);
    for (recipe, layout) in
        [("nvfp4", "compressed-tensors"), ("nvfp4", "modelopt"), ("fp8_static", "modelopt")]
    {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), &text).unwrap();
        let flags = [
            "--recipe",
            recipe,
            "--format",
            layout,
            "--calibration",
            "text.txt",
            "--calibration-samples",
            "5",
            "--calibration-length",
            "40",
        ];
        let record = quantize(dir.path(), &flags);
        let calibration = &record["calibration"];
        assert_eq!(calibration["data"]["text"], json!("text.txt"), "{record:#}");
        assert_eq!(
            calibration["data"]["text_digest"],
            json!(blake3::hash(text.as_bytes()).to_hex().to_string())
        );
        assert_eq!((&calibration["samples"], &calibration["tokens"]), (&json!(5), &json!(200)));
        assert_eq!((&calibration["scales"], &calibration["filled"]), (&json!(28), &json!([])));
        let gate = ["gate", "ptq", "--checkpoint", "q", "--source", "day0-tiny", "--recipe", recipe];
        assert_eq!(day0(dir.path(), gate).expect(0).json()["verdict"], json!("ACCEPT"));
        let eval = ["eval", "--model", "q", "--suite", "day0-tiny", "--limit", "2", "--out", "e"];
        day0(dir.path(), eval).expect(0);
        let scale = match (recipe, layout) {
            ("nvfp4", "compressed-tensors") => "input_global_scale",
            _ => "input_scale",
        };
        overwrite_with_zeros(&dir.path().join("q"), &format!("model.layers.0.mlp.up_proj.{scale}"));
        let report = day0(dir.path(), gate).expect(3).json();
        assert_eq!(report["verdict"], json!("ANOMALOUS"));
        assert_eq!(report["failure_class"], json!("QUANT_COVERAGE_FAILURE"));
        assert!(report["detail"].as_str().unwrap().contains("up_proj"), "{report:#}");
    }
}

#[test]
fn a_dry_run_says_what_calibration_takes_and_bad_texts_are_usage_errors() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let quantize = ["quantize", "day0-tiny", "--recipe", "nvfp4", "--out", "q"];
    let dry = day0(dir.path(), quantize.iter().chain(&["--dry-run"])).expect(10);
    dry.says("64 samples of 256 tokens from the text 'embedded'");
    let missing = day0(dir.path(), quantize.iter().chain(&["--calibration", "none.txt"])).expect(2);
    missing.says("none.txt").says("hint:");
    std::fs::write(dir.path().join("bad.txt"), b"\xff\xfe").unwrap();
    day0(dir.path(), quantize.iter().chain(&["--calibration", "bad.txt"])).expect(2).says("not UTF-8");
    let unused = ["quantize", "day0-tiny", "--recipe", "fp8", "--out", "q8", "--calibration-samples", "4"];
    day0(dir.path(), unused).expect(0).says("calibration: not needed");
}

#[test]
fn an_unknown_architecture_cannot_be_calibrated() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8", "--out", "made"]).expect(0);
    // The same weights under a name that no engine here knows.
    let source = super::common::cache().join("models");
    let model = find(&source, "model.safetensors").expect("the embedded model lies in the cache");
    let strange = dir.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    for entry in std::fs::read_dir(model.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, strange.join(path.file_name().unwrap())).unwrap();
    }
    let mut config = read_json(strange.join("config.json"));
    config["architectures"] = json!(["StrangeForCausalLM"]);
    config["model_type"] = json!("strange");
    std::fs::write(strange.join("config.json"), config.to_string()).unwrap();
    let quantize = |recipe: &str, out: &str, dry: bool| {
        let args = ["quantize", "strange", "--recipe", recipe, "--out", out];
        day0(dir.path(), args.iter().chain(dry.then_some(&"--dry-run")))
    };
    for recipe in ["nvfp4", "fp8_static"] {
        for dry in [false, true] {
            let ran = quantize(recipe, "q", dry).expect(4);
            ran.says("StrangeForCausalLM").says("needs calibrated input scales").says("fp8_dynamic");
        }
        assert!(!dir.path().join("q").exists());
    }
    quantize("nvfp4a16", "q", false).expect(0);
    let args =
        ["release", "strange", "--recipe", "nvfp4", "--endpoint", "http://127.0.0.1:9", "--out", "run"];
    day0(dir.path(), args).expect(4).says("INFEASIBLE").says("MODEL_UNSUPPORTED");
}

fn find(dir: &Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|n| n == name) {
            return Some(path);
        }
    }
    None
}

#[test]
fn a_release_calibrates_exports_serves_and_decides() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let release = |out: &str, recipe: &str| {
        let args = ["release", "--recipe", recipe, "--limit", "40", "--out", out];
        let ran = day0(dir.path(), args);
        let verdict = read_json(dir.path().join(out).join("release.json"))["verdict"].clone();
        let expected = match verdict.as_str() {
            Some("ANOMALOUS") => 3,
            Some("REGRESSION") => 1,
            other => panic!("{other:?} of 40 items"),
        };
        ran.expect(expected)
    };
    release("one", "nvfp4");
    let record = read_json(dir.path().join("one/quantize/record.json"));
    assert_eq!(record["calibration"]["data"]["text"], json!("embedded"));
    assert_eq!(record["calibration"]["scales"], json!(28));
    let ledger = std::fs::read_to_string(dir.path().join("one/ledger.jsonl")).unwrap();
    for unit in ["quantize/calibrate-0", "quantize/calibrate-1", "quantize/calibration"] {
        assert!(ledger.contains(unit), "{unit}");
    }
    // Another recipe of the same model finds the calibration done.
    release("two", "fp8_static").says("units reused from an earlier run");
    let scales = |run: &str| {
        let ledger = std::fs::read_to_string(dir.path().join(run).join("ledger.jsonl")).unwrap();
        let line =
            ledger.lines().find(|l| l.contains("quantize/calibration\"") && l.contains("amax")).unwrap();
        let entry: Value = serde_json::from_str(line).unwrap();
        entry["output"]["inputs"]["amax"].clone()
    };
    assert_eq!(scales("one"), scales("two"));
    assert!(scales("one").is_object());
}

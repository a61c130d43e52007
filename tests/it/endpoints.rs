//! Releases whose arms are endpoints that somebody else started.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::common::{day0, read_json, turn};
use super::fake_engine::{self, completion};
use super::serving::Served;

/// A `day0.yaml` in `dir` that names both endpoints.
fn config(dir: &Path, baseline: &str, candidate: &str) {
    let text = format!(
        "suites: [tiny_colours]\nlimit: 1500\nnoise_floor: true\n\
         engine: {{endpoint: \"{candidate}\", baseline_endpoint: \"{baseline}\"}}\n"
    );
    std::fs::write(dir.join("day0.yaml"), text).unwrap();
}

#[test]
fn both_arms_over_endpoints_are_watched_at_every_wave() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8_dynamic", "--out", "q"]).expect(0);
    let baseline = Served::start("day0-tiny");
    let candidate = Served::start(dir.path().join("q").to_str().unwrap());
    config(dir.path(), &baseline.url, &candidate.url);
    day0(dir.path(), ["release", "--out", "run"]).expect(0).says("ACCEPT");
    let run = dir.path().join("run");
    for arm in ["baseline", "candidate"] {
        let record = read_json(run.join(format!("eval/{arm}/record.json")));
        let looks = record["tasks"]["tiny_colours"]["visit"]["looks"].as_array().unwrap().len();
        let confirmations = record["confirmations"].as_array().unwrap();
        assert_eq!(confirmations.len(), looks, "{arm}");
        let last = confirmations.last().unwrap();
        assert_eq!(last["wave"], json!(format!("score/{arm}/tiny_colours/{}", looks - 1)));
        let opening = &read_json(run.join(format!("serve/{arm}.json")))["fingerprint"]["start"];
        assert_eq!(last["confirmation"]["reading"]["digest"], opening["digest"]);
        assert_eq!(record["identity"]["identity_proven"], json!(false));
    }
    // day0's engine gives the same bits whatever it is asked together.
    let noise = &read_json(run.join("eval/noise.json"))["tiny_colours"];
    assert_eq!((noise["items"].as_u64(), noise["flips"].as_u64()), (Some(256), Some(0)));
    assert_eq!(noise["max_abs_dll"], json!(0.0));
    let report = std::fs::read_to_string(run.join("report.md")).unwrap();
    assert!(report.contains("scored again one prompt at a time"), "{report}");
    assert!(report.contains("declared, not proven"), "{report}");
}

/// An engine that is swapped in the middle of the evaluation is noticed at the wave, not at the end.
#[test]
fn a_checkpoint_that_changes_between_waves_ends_the_evaluation() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8_dynamic", "--out", "q"]).expect(0);
    let card = Served::start(dir.path().join("q").to_str().unwrap()).model_card();
    let swapped = Arc::new(AtomicBool::new(false));
    let swap = Arc::clone(&swapped);
    let answer = move |n: usize, body: &Value| {
        // Sixteen completions probe; the next ones score the first wave.
        swap.fetch_or(n > 20, Ordering::Relaxed);
        let worse = if swap.load(Ordering::Relaxed) { 1.0 } else { 0.0 };
        completion(body, 5, move |t| -1.0 - worse - (t % 7) as f64 / 10.0)
    };
    let engine = fake_engine::start(card, Box::new(answer));
    let args =
        ["release", "--suite", "tiny_colours", "--limit", "400", "--endpoint", &engine.url, "--out", "run"];
    day0(dir.path(), args).expect(3).says("COMPARABILITY_FAILED").says("another checkpoint answers");
    assert!(swapped.load(Ordering::Relaxed));
    assert!(!dir.path().join("run/eval/candidate/record.json").exists(), "nothing of it is kept as a result");
}

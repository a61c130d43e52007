//! `day0 eval`: a killed one goes on where it stopped and ends with the same bytes; items that cannot be scored are named.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::common::{command, day0, read_json, turn};

fn args(out: &str) -> Vec<&str> {
    vec!["eval", "--model", "day0-tiny", "--suite", "day0-tiny", "--limit", "300", "--out", out]
}

/// Everything that must not depend on when the run was killed: samples as they are, results without times.
fn outcome(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("samples_") {
            files.push((name, std::fs::read(path).unwrap()));
        } else if name == "results.json" {
            let mut results: Value = read_json(path);
            let map = results.as_object_mut().unwrap();
            map.remove("date").unwrap();
            map.remove("total_evaluation_time_seconds").unwrap();
            files.push((name, results.to_string().into_bytes()));
        }
    }
    files.sort();
    files
}

#[test]
fn ten_kills_at_random_moments_change_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    day0(dir.path(), args("calm")).expect(0);
    let whole = start.elapsed();
    let expected = outcome(&dir.path().join("calm"));
    assert_eq!(expected.len(), 6, "five tasks and results.json");

    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (mut kills, mut seen) = (0, 0);
    while kills < 10 {
        let mut child =
            command(dir.path(), args("killed")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20) + whole.mul_f64(rng.random_range(0.0..0.3)));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_some() {
            // It had ended before: it counts for nothing, and another one is begun.
            assert_eq!(outcome(&dir.path().join("killed")), expected);
            std::fs::remove_dir_all(dir.path().join("killed")).unwrap();
            seen = 0;
            continue;
        }
        kills += 1;
        let journal = std::fs::read_to_string(dir.path().join("killed/items.jsonl")).unwrap_or_default();
        let keys: Vec<String> = journal
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .map(|l| l["key"].to_string())
            .collect();
        let distinct: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!(keys.len(), distinct.len(), "an item was scored twice");
        assert!(keys.len() >= seen || journal.is_empty(), "outcomes are never lost");
        seen = keys.len();
    }
    day0(dir.path(), args("killed")).expect(0);
    assert_eq!(outcome(&dir.path().join("killed")), expected);
    assert!(
        !dir.path().join("killed/items.jsonl").exists(),
        "a finished run keeps its outcomes in its record"
    );
}

#[test]
fn an_item_that_does_not_fit_is_named_and_not_scored() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let yaml = "task: t\ndataset_path: org/none\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: q\n\
                doc_to_target: gold\ndoc_to_choice: choices\n";
    let row = |choice: &str| serde_json::json!({"q": "Tom has a", "choices": [choice, " cat"], "gold": 1});
    let rows = [row(" dog"), row(&" dog".repeat(5000)), row(" red ball")].map(|r| r.to_string()).join("\n");
    std::fs::write(dir.path().join("t.yaml"), yaml).unwrap();
    std::fs::write(dir.path().join("t.test.jsonl"), rows).unwrap();
    let args = ["eval", "--model", "day0-tiny", "--suite", "t.yaml", "--data", ".", "--out", "e"];
    for _ in 0..2 {
        // Resuming does not score the others again, and does not make the item go away.
        day0(dir.path(), args).expect(3).says("document 1 is not scored: request 0: the continuation has");
    }
    let task = &read_json(dir.path().join("e/record.json"))["tasks"]["t"];
    assert_eq!(task["expected"], 3);
    let failed: Vec<bool> = task["items"].as_array().unwrap().iter().map(|i| !i["error"].is_null()).collect();
    assert_eq!(failed, [false, true, false]);
    let results = read_json(dir.path().join("e/results.json"));
    assert_eq!(results["n-samples"]["t"], serde_json::json!({"original": 3, "effective": 2}));
    let samples = std::fs::read_to_string(dir.path().join("e/samples_t.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 2);
    // A release on the same task is refused before anything runs.
    let args = ["release", "day0-tiny", "--suite", "t.yaml", "--data", ".", "--out", "r"];
    day0(dir.path(), args).expect(2).says("1 item(s) cannot be scored, first document 1");
    assert!(!dir.path().join("r/quantize").exists());
}

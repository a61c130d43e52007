//! Comparisons and plans through the command line: early stopping, replays, other harnesses' runs, swapped inputs.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::{command, day0, ran, read_json, serial};

/// A finished evaluation of `model` in `dir/out`.
fn eval(dir: &Path, model: &str, out: &str) {
    let args = ["eval", "--model", model, "--suite", "tiny_colours", "--limit", "300", "--out", out];
    day0(dir, args).expect(0);
}

/// Evaluations of day0-tiny in `a` and of its w4a16 candidate in `b`.
fn two_runs(dir: &Path) {
    day0(dir, ["quantize", "day0-tiny", "--recipe", "w4a16", "--out", "q"]).expect(0);
    eval(dir, "day0-tiny", "a");
    eval(dir, "q", "b");
}

/// The run in `dir/from` as lm-eval would have left it in `dir/to`.
fn as_lm_eval(dir: &Path, from: &str, to: &str) {
    let target = dir.join(to).join("org__model");
    std::fs::create_dir_all(&target).unwrap();
    let mut results = read_json(dir.join(from).join("results.json"));
    results.as_object_mut().unwrap().remove("day0_version");
    results["lm_eval_version"] = json!("0.4.13");
    results["config"]["model"] = json!("hf");
    std::fs::write(target.join("results_2026-11-21T10-00-00.000001.json"), results.to_string()).unwrap();
    std::fs::copy(
        dir.join(from).join("samples_tiny_colours.jsonl"),
        target.join("samples_tiny_colours_2026-11-21T10-00-00.000001.jsonl"),
    )
    .unwrap();
}

#[test]
fn two_runs_are_compared_and_flips_explained() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    two_runs(dir.path());
    let ours = day0(dir.path(), ["compare", "a", "b"]).expect(0);
    assert!(ours.stdout.contains("| tiny_colours | acc |"), "{}", ours.stdout);
    let report = day0(dir.path(), ["compare", "a", "b", "--json"]).expect(0).json();
    let flips = report["per_task"]["tiny_colours"]["flips"].as_array().unwrap().len();
    assert_eq!(flips > 0, ours.stdout.contains("### Flipped items of tiny_colours"), "{}", ours.stdout);
    if flips > 0 {
        assert!(ours.stdout.contains("target `") && ours.stdout.contains("> "), "{}", ours.stdout);
    }
    // The same items in another harness's files say the same.
    as_lm_eval(dir.path(), "a", "la");
    as_lm_eval(dir.path(), "b", "lb");
    for (a, b) in [("la", "lb"), ("a", "lb"), ("la", "b")] {
        let other = day0(dir.path(), ["compare", a, b, "--json"]).expect(0).json();
        for key in ["n", "flips_b", "flips_c", "baseline", "candidate", "upper", "choice_kl"] {
            let (ours, theirs) =
                (&report["per_task"]["tiny_colours"][key], &other["per_task"]["tiny_colours"][key]);
            assert_eq!(ours, theirs, "{a} against {b}: {key}");
        }
    }
    // One run against itself is no comparison.
    day0(dir.path(), ["compare", "a", "a"]).expect(3).says("COMPARABILITY_FAILED");
    day0(dir.path(), ["compare", "a", "nowhere"]).expect(2);
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    day0(dir.path(), ["compare", "a", "empty"]).expect(2).says("holds no evaluation");
}

#[test]
fn nemo_evaluator_rewards_are_compared() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    for (run, lost) in [("a", 0), ("b", 40)] {
        let lines: Vec<String> = (0..400)
            .map(|i| {
                let reward = if i % 4 == 0 || i < lost { 0.0 } else { 1.0 };
                json!({"problem_idx": i, "reward": reward, "repeat": 0, "expected_answer": i}).to_string()
            })
            .collect();
        let path = dir.path().join(run);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("results.jsonl"), lines.join("\n")).unwrap();
        let card = json!({"run_id": run, "config": {"model": run}, "benchmark": {"name": "gsm8k"}});
        std::fs::write(path.join("eval-1.json"), card.to_string()).unwrap();
    }
    let report = day0(dir.path(), ["compare", "a", "b", "--json"]).expect(0).json();
    assert_eq!(report["verdict"], json!("REGRESSION"), "{report:#}");
    assert_eq!(report["per_task"]["gsm8k"]["flips_b"], json!(30));
    // Another answer key is another item.
    let path = dir.path().join("b/results.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"expected_answer\":7}", "\"expected_answer\":8}", 1)).unwrap();
    day0(dir.path(), ["compare", "a", "b"]).expect(3).says("item 7");
    std::fs::write(&path, text.replacen("\"problem_idx\":7,", "", 1)).unwrap();
    day0(dir.path(), ["compare", "a", "b"]).expect(2).says("line 8").says("problem_idx");
}

#[test]
fn whatever_is_swapped_in_one_arm_is_named() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    two_runs(dir.path());
    let honest = read_json(dir.path().join("b/record.json"));
    let baseline = read_json(dir.path().join("a/record.json"));
    let path = dir.path().join("swapped.json");
    let other = &honest["identity"]["tokenizer_digest"];
    let item = |place: usize, field: &str| format!("/tasks/tiny_colours/items/{place}/{field}");
    let swaps = [
        ("tiny_colours item 17", item(17, "prompt_digest"), other.clone()),
        ("tiny_colours item 23", item(23, "token_digest"), other.clone()),
        (
            "comparability.checkpoint",
            "/identity/checkpoint_digest".to_owned(),
            baseline["identity"]["checkpoint_digest"].clone(),
        ),
        ("comparability.version", "/tasks/tiny_colours/version".to_owned(), json!("9.0")),
    ];
    for (named, field, value) in swaps {
        let mut record = honest.clone();
        *record.pointer_mut(&field).unwrap() = value;
        std::fs::write(&path, record.to_string()).unwrap();
        for command in [
            vec!["compare", "a", "swapped.json"],
            vec!["gate", "compare", "--baseline", "a", "--candidate", "swapped.json"],
        ] {
            day0(dir.path(), command).expect(3).says("COMPARABILITY_FAILED").says(named);
        }
    }
}

#[test]
fn a_decided_task_stops_and_its_path_is_kept() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let args = ["release", "--suite", "tiny_colours", "--recipe", "w2a16", "--noise-floor", "--out", "run"];
    day0(dir.path(), args).expect(0).says("ACCEPT");
    let run = dir.path().join("run");
    let records =
        ["baseline", "candidate"].map(|arm| read_json(run.join("eval").join(arm).join("record.json")));
    let visits = records.each_ref().map(|r| &r["tasks"]["tiny_colours"]["visit"]);
    assert_eq!(visits[0], visits[1]);
    let (visited, left_out) =
        (visits[0]["order"].as_array().unwrap().len(), visits[0]["not_needed"].as_u64().unwrap() as usize);
    assert!(visited < 1000 && visited + left_out == 4096, "{visited} {left_out}");
    let gate = read_json(run.join("gates/run_baseline.json"));
    assert_eq!(gate["per_task"]["tiny_colours"]["not_needed_samples"], json!(left_out));
    let task = &read_json(run.join("gates/compare.json"))["per_task"]["tiny_colours"];
    assert_eq!(task["looks"].as_array().unwrap().last().unwrap()["decision"], json!("within"));
    assert_eq!(task["noise"]["items"], json!(visited.min(256)));
    let report = std::fs::read_to_string(run.join("report.md")).unwrap();
    assert!(report.contains(&format!("{visited} of 4096")), "{report}");
    assert!(report.contains("when the baseline is scored again"), "{report}");
    // The gate replays the path from the records alone; a path that was cut is no decision.
    let decide = |candidate: &str| {
        let baseline = if candidate == "cut" { "cut/baseline.json" } else { "run/eval/baseline" };
        let path = if candidate == "cut" { "cut/candidate.json" } else { "run/eval/candidate" };
        day0(dir.path(), ["gate", "compare", "--baseline", baseline, "--candidate", path])
    };
    decide("run").expect(0).says("ACCEPT");
    std::fs::create_dir(dir.path().join("cut")).unwrap();
    for (name, record) in ["baseline", "candidate"].into_iter().zip(&records) {
        let mut record = record.clone();
        let task = &mut record["tasks"]["tiny_colours"];
        let kept: Vec<Value> = task["visit"]["order"].as_array().unwrap()[..16].to_vec();
        task["items"].as_array_mut().unwrap().retain(|item| kept.contains(&item["doc_id"]));
        let right =
            task["items"].as_array().unwrap().iter().filter(|i| i["values"]["acc"] == json!(1.0)).count();
        task["metrics"]["acc"]["value"] = json!(right as f64 / 16.0);
        task["visit"] = json!({"order": kept, "looks": [16], "not_needed": 4080});
        std::fs::write(dir.path().join(format!("cut/{name}.json")), record.to_string()).unwrap();
    }
    decide("cut").expect(3).says("SAMPLE_ACCOUNTING_FAILED").says("stopped after 16 of 4096 items");
    // All items, when asked for.
    let all = [
        "release",
        "--suite",
        "tiny_colours",
        "--recipe",
        "w2a16",
        "--limit",
        "200",
        "--no-early-stop",
        "--out",
        "all",
    ];
    day0(dir.path(), all).expect(3);
    let record = read_json(dir.path().join("all/eval/candidate/record.json"));
    assert_eq!(record["tasks"]["tiny_colours"]["visit"], Value::Null);
    assert_eq!(record["tasks"]["tiny_colours"]["items"].as_array().unwrap().len(), 200);
}

#[test]
fn killed_runs_stop_at_the_same_item() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let release = |run: &'static str| {
        ["release", "--suite", "tiny_colours", "--recipe", "w2a16", "--limit", "1000", "--out", run]
    };
    let files = |run: &str| {
        let path = dir.path().join(run);
        let mut bytes = Vec::new();
        for arm in ["baseline", "candidate"] {
            bytes.push(std::fs::read(path.join(format!("eval/{arm}/samples_tiny_colours.jsonl"))).unwrap());
        }
        let mut gate = read_json(path.join("gates/compare.json"));
        day0::release::remove_volatile(&mut gate);
        (bytes, gate)
    };
    let with_cache = |args: &[&str], cache: &str| {
        let mut command = command(dir.path(), args);
        command.env("DAY0_CACHE", dir.path().join(cache)).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let start = Instant::now();
    ran(with_cache(&release("calm"), "c0").output().unwrap()).expect(0);
    let whole = start.elapsed();
    let expected = files("calm");
    for (run, cache, share) in [("k1", "c1", 0.45), ("k2", "c2", 0.7), ("k3", "c3", 0.85)] {
        let mut child = with_cache(&release(run), cache).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share).max(Duration::from_millis(1)));
        child.kill().unwrap();
        let ended = child.wait().unwrap().code();
        if ended.is_none() {
            let begun = dir.path().join(run).join("run.json").exists();
            let args = if begun { vec!["release", "--resume", run] } else { release(run).to_vec() };
            ran(with_cache(&args, cache).output().unwrap()).expect(0);
        }
        assert!(files(run) == expected, "{run} took another path");
    }
}

#[test]
fn a_plan_says_what_a_suite_can_show() {
    let _turn = serial();
    let dir = tempfile::tempdir().unwrap();
    let args = ["power", "--suite", "day0-tiny", "--margin", "1", "--simulations", "100"];
    day0(dir.path(), args)
        .expect(0)
        .says("tiny_colours")
        .says("not planned (no 0/1 items that count alike): tiny_stories");
    let rows = day0(dir.path(), args.iter().copied().chain(["--json"])).expect(0).json();
    let first = &rows[0];
    assert_eq!((first["items"].as_u64(), first["flip_rate"].as_f64()), (Some(4096), Some(0.02)));
    assert!(first["no_drop"]["items_median"].as_u64().unwrap() < 2000, "{first}");
    let small = day0(dir.path(), args.iter().copied().chain(["--limit", "200"])).expect(0);
    let small = small.says("warning: tiny_colours");
    day0(dir.path(), ["power", "--suite", "day0-tiny", "--margin", "0"]).expect(2);
    // 320 documents are enough for a metric without a scale, 200 are not, and the flags see no outcome that is.
    small.says("warning: tiny_stories cannot be certified: 200 documents, fewer than 300");
    // The margins and tiers of the release that is planned.
    let text = "margin: 0.03\ntasks: {tiny_homes: {margin: 0.02}, tiny_pets: {tier: advisory}}\n";
    std::fs::write(dir.path().join("day0.yaml"), text).unwrap();
    let args = ["power", "--suite", "day0-tiny", "--simulations", "20", "--flip-rates", "0.02", "--json"];
    let rows = day0(dir.path(), args).expect(0).json();
    let of = |task: &str| rows.as_array().unwrap().iter().find(|row| row["task"] == task).unwrap().clone();
    assert_eq!((&of("tiny_colours")["margin"], &of("tiny_homes")["margin"]), (&json!(0.03), &json!(0.02)));
    assert_eq!(
        (&of("tiny_colours")["tier"], &of("tiny_pets")["tier"]),
        (&json!("required"), &json!("advisory"))
    );
    let args: Vec<&str> = args.into_iter().chain(["--margin", "5"]).collect();
    let rows = day0(dir.path(), args).expect(0).json();
    assert_eq!(rows[0]["margin"], json!(0.05));
    std::fs::remove_file(dir.path().join("day0.yaml")).unwrap();
    // From a finished run: its own flip rates, and how long it took.
    day0(dir.path(), ["release", "--limit", "40", "--out", "run"]).expect(3);
    let from = ["power", "--suite", "day0-tiny", "--from", "run", "--simulations", "50", "--json"];
    let rows = day0(dir.path(), from).expect(0).json();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    assert!(rows[0]["flip_rate"].as_f64().unwrap() > 0.0);
}

//! Comparisons and plans through the command line: early stopping, replays, other harnesses' runs, swapped inputs.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::{command, day0, ran, read_json, turn};

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
    let _turn = turn();
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
    // Two runs of another harness are held to one engine, and to one answer key.
    let results = dir.path().join("lb/org__model/results_2026-11-21T10-00-00.000001.json");
    let honest = std::fs::read_to_string(&results).unwrap();
    let mut other = read_json(&results);
    other["config"]["model"] = json!("vllm");
    std::fs::write(&results, other.to_string()).unwrap();
    day0(dir.path(), ["compare", "la", "lb"]).expect(3).says("comparability.engine").says("--across-engines");
    day0(dir.path(), ["compare", "la", "lb", "--across-engines"]).expect(0);
    std::fs::write(&results, honest).unwrap();
    let samples = dir.path().join("lb/org__model/samples_tiny_colours_2026-11-21T10-00-00.000001.jsonl");
    let text = std::fs::read_to_string(&samples).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines[5]["target"] = json!(if lines[5]["target"] == "0" { "1" } else { "0" });
    let swapped: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&samples, swapped.join("\n")).unwrap();
    for baseline in ["la", "a"] {
        let ran = day0(dir.path(), ["compare", baseline, "lb"]).expect(3);
        ran.says("comparability.targets").says("tiny_colours item 5");
    }
    // One run against itself is no comparison.
    day0(dir.path(), ["compare", "a", "a"]).expect(3).says("COMPARABILITY_FAILED");
    day0(dir.path(), ["compare", "a", "nowhere"]).expect(2);
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    day0(dir.path(), ["compare", "a", "empty"]).expect(2).says("holds no evaluation");
}

/// A flag goes before the file, and the file before the default.
#[test]
fn margin_and_policy_come_from_the_flag_else_the_file_else_the_default() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    two_runs(dir.path());
    std::fs::write(dir.path().join("c.yaml"), "policy: threshold\nmargin: 0.2\n").unwrap();
    let decided = |more: &[&str]| {
        let args = ["gate", "compare", "--baseline", "a", "--candidate", "b"].iter().chain(more);
        let report = day0(dir.path(), args).json();
        let margin = &report["per_task"]["tiny_colours"]["margin"]["absolute"];
        (report["checks"]["policy"]["policy"].as_str().unwrap().to_owned(), margin.as_f64().unwrap())
    };
    let expected = |policy: &str, margin| (policy.to_owned(), margin);
    let flags = ["--policy", "certify", "--threshold", "0.3"];
    assert_eq!(decided(&[]), expected("certify", 0.01));
    assert_eq!(decided(&["--config", "c.yaml"]), expected("threshold", 0.2));
    assert_eq!(decided(&[&["--config", "c.yaml"], &flags[..]].concat()), expected("certify", 0.3));
    assert_eq!(decided(&flags), expected("certify", 0.3));
}

#[test]
fn nemo_evaluator_rewards_are_compared() {
    let _turn = turn();
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
    // Nothing tells the prompts: no drop is accepted only on the user's word, and never on a part of the problems.
    let rewards = std::fs::read_to_string(dir.path().join("a/results.jsonl")).unwrap();
    std::fs::create_dir(dir.path().join("c")).unwrap();
    std::fs::write(dir.path().join("c/results.jsonl"), rewards).unwrap();
    let card = |config: Value| {
        let card = json!({"run_id": "c", "config": config, "benchmark": {"name": "gsm8k"}});
        std::fs::write(dir.path().join("c/eval-1.json"), card.to_string()).unwrap();
    };
    let verdict = |more: &[&str]| {
        let args = ["compare", "a", "c", "--json"];
        day0(dir.path(), args.iter().chain(more)).expect(0).json()["verdict"].clone()
    };
    card(json!({"model": "c"}));
    assert_eq!(verdict(&[]), json!("ANOMALOUS"));
    day0(dir.path(), ["compare", "a", "c"]).expect(0).says("prompts unknown").says("--trust-prompts");
    assert_eq!(verdict(&["--trust-prompts"]), json!("ACCEPT"));
    let path = dir.path().join("a/eval-1.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    let limited = |model: &str| json!({"model": model, "limit_samples": 400});
    card(limited("c"));
    let card = json!({"run_id": "a", "config": limited("a"), "benchmark": {"name": "gsm8k"}});
    std::fs::write(&path, card.to_string()).unwrap();
    assert_eq!(verdict(&["--trust-prompts"]), json!("ANOMALOUS"));
    std::fs::write(&path, whole).unwrap();
    // Another answer key is another item.
    let path = dir.path().join("b/results.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"expected_answer\":7}", "\"expected_answer\":8}", 1)).unwrap();
    day0(dir.path(), ["compare", "a", "b"]).expect(3).says("item 7");
    std::fs::write(&path, text.replacen("\"problem_idx\":7,", "", 1)).unwrap();
    day0(dir.path(), ["compare", "a", "b"]).expect(2).says("line 8").says("problem_idx");
}

/// A directory with a task of 40 documents: `edit` makes another one of its YAML and rows.
fn task_dir(dir: &Path, name: &str, edit: impl Fn(&mut String, &mut Vec<Value>)) {
    let target = dir.join(name);
    std::fs::create_dir(&target).unwrap();
    let mut yaml = "task: t\ndataset_path: org/none\noutput_type: multiple_choice\ntest_split: test\n\
                    doc_to_text: q\ndoc_to_target: gold\ndoc_to_choice: choices\nmetadata:\n  version: 1.0\n"
        .to_owned();
    let row = |i: usize| {
        let (name, animal) = (["Tom", "Anna", "Ben", "Mia"][i % 4], ["cat", "dog"][i / 4 % 2]);
        json!({"q": format!("{name} has {i} pets. {name} keeps a"), "choices": [animal, "red ball"], "gold": 0})
    };
    let mut rows: Vec<Value> = (0..40).map(row).collect();
    edit(&mut yaml, &mut rows);
    std::fs::write(target.join("t.yaml"), yaml).unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(target.join("t.test.jsonl"), lines.join("\n")).unwrap();
}

/// Exchanges the ids of two pieces of a checkpoint's vocabulary.
fn exchange_ids(checkpoint: &Path, a: &str, b: &str) {
    let path = checkpoint.join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    let vocab = &mut tokenizer["model"]["vocab"];
    let (of_a, of_b) = (vocab[a].clone(), vocab[b].clone());
    assert!(of_a.is_u64() && of_b.is_u64(), "{of_a} {of_b}");
    vocab[a] = of_b;
    vocab[b] = of_a;
    std::fs::write(path, tokenizer.to_string()).unwrap();
}

/// Each swap is made where it would happen: in the data, the tokenizer, the model, the task.
#[test]
fn whatever_is_swapped_in_one_arm_is_named() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "w4a16", "--out", "q"]).expect(0);
    std::fs::create_dir(dir.path().join("q2")).unwrap();
    for entry in std::fs::read_dir(dir.path().join("q")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join("q2").join(path.file_name().unwrap())).unwrap();
        }
    }
    exchange_ids(&dir.path().join("q2"), "2", "3");
    task_dir(dir.path(), "honest", |_, _| ());
    task_dir(dir.path(), "word", |_, rows| rows[17]["q"] = json!("Anna has 17 pets. Anna sees a"));
    task_dir(dir.path(), "answer", |_, rows| rows[9]["gold"] = json!(1));
    task_dir(dir.path(), "version", |yaml, _| *yaml = yaml.replace("version: 1.0", "version: 2.0"));
    let eval = |model: &str, task: &str, out: &str| {
        let suite = format!("{task}/t.yaml");
        day0(dir.path(), ["eval", "--model", model, "--suite", &suite, "--data", task, "--out", out])
            .expect(0);
    };
    eval("day0-tiny", "honest", "a");
    eval("q", "honest", "b");
    day0(dir.path(), ["compare", "a", "b"]).expect(0);
    for (out, model, task, named) in [
        ("prompt", "q", "word", vec!["comparability.prompts: t item 17", "comparability.task_digest: t"]),
        ("target", "q", "answer", vec!["comparability.targets: t item 9"]),
        ("token", "q2", "honest", vec!["comparability.tokens: t item 2", "comparability.tokenizer"]),
        ("checkpoint", "day0-tiny", "honest", vec!["comparability.checkpoint", "bit-identical"]),
        ("version", "q", "version", vec!["comparability.version: t: 2.0 on the candidate"]),
    ] {
        eval(model, task, out);
        let mut compared = day0(dir.path(), ["compare", "a", out]).expect(3).says("COMPARABILITY_FAILED");
        for words in named {
            compared = compared.says(words);
        }
        day0(dir.path(), ["gate", "compare", "--baseline", "a", "--candidate", out])
            .expect(3)
            .says("COMPARABILITY_FAILED");
    }
}

#[test]
fn a_decided_task_stops_and_its_path_is_kept() {
    let _turn = turn();
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
    // Of a release directory each side reads its own arm.
    let both = day0(dir.path(), ["compare", "run", "run"]).expect(0);
    both.says("# ACCEPT: run (candidate arm) against run (baseline arm)");
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
    let _turn = turn();
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
    let _turn = turn();
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

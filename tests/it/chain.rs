//! The chain through the command line: every verdict and every failure class that it can reach.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::common::{Ran, day0, overwrite_with_zeros, read_json, turn};
use super::fake_engine::{self, completion};

/// Runs a release in `dir/run` and returns what it printed with its `release.json`.
fn release(dir: &Path, args: &[&str]) -> (Ran, Value) {
    let args: Vec<&str> = ["release", "--out", "run"].iter().chain(args).copied().collect();
    let ran = day0(dir, args);
    let path = dir.join("run/release.json");
    let record = if path.exists() { read_json(&path) } else { Value::Null };
    (ran, record)
}

#[track_caller]
fn assert_closed(record: &Value, verdict: &str, class: &str) {
    assert_eq!(record["verdict"], json!(verdict), "{record:#}");
    assert_eq!(record["failure_class"], json!(class), "{record:#}");
}

#[test]
fn too_few_items_are_not_enough_evidence_under_both_policies() {
    let _turn = turn();
    for policy in ["certify", "threshold"] {
        let dir = tempfile::tempdir().unwrap();
        let (ran, record) = release(dir.path(), &["--limit", "40", "--policy", policy]);
        ran.expect(3).says("ANOMALOUS").says("INSUFFICIENT_EVIDENCE").says("run");
        assert_closed(&record, "ANOMALOUS", "INSUFFICIENT_EVIDENCE");
        assert!(dir.path().join("run/report.md").is_file());
    }
}

#[test]
fn second_release_reuses_the_baseline_arm_and_says_so() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["release", "--out", "one", "--limit", "30"]).expect(3);
    let again = day0(dir.path(), ["release", "--out", "two", "--limit", "30"]).expect(3);
    again.says("reused from an earlier run");
    assert_eq!(read_json(dir.path().join("two/release.json"))["baseline_reused"], json!(true));
    let report = std::fs::read_to_string(dir.path().join("two/report.md")).unwrap();
    assert!(report.contains("reused"), "{report}");
    // Reused or not, the numbers are the same.
    let scores =
        |run: &str| read_json(dir.path().join(run).join("eval/baseline/record.json"))["tasks"].clone();
    assert_eq!(scores("one"), scores("two"));
}

#[test]
fn damaging_recipe_is_a_regression() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (ran, record) = release(dir.path(), &["--recipe", "w2a16", "--limit", "1000"]);
    ran.expect(1).says("REGRESSION").says("Do not publish");
    assert_closed(&record, "REGRESSION", "ACCURACY_REGRESSION");
}

#[test]
fn recipe_that_matches_nothing_is_infeasible_before_anything_is_served() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (ran, record) = release(dir.path(), &["--recipe", "nvfp4_experts_only"]);
    ran.expect(4).says("INFEASIBLE").says("MODEL_UNSUPPORTED");
    assert_closed(&record, "INFEASIBLE", "MODEL_UNSUPPORTED");
    assert!(!dir.path().join("run/serve").exists());
    assert!(!dir.path().join("run/quantize/checkpoint").exists());
}

#[test]
fn plan_prints_the_graph_and_runs_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let ran = day0(dir.path(), ["release", "--plan"]).expect(10);
    for node in ["quantize/shard-0", "gate/ptq", "score/candidate/", "gate/compare"] {
        assert!(ran.stdout.contains(node), "{}", ran.stdout);
    }
    assert!(ran.stdout.contains("threads  device") && !ran.stdout.contains("unknown"), "{}", ran.stdout);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let ran = day0(dir.path(), ["release", "--plan", "--endpoint", "http://127.0.0.1:9"]).expect(10);
    assert!(ran.stdout.contains("unknown"), "{}", ran.stdout);
}

#[test]
fn a_plan_names_what_no_outcome_could_certify() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let plan = |args: &[&str]| {
        let all = ["release", "--plan", "--suite", "tiny_colours"].iter().chain(args);
        day0(dir.path(), all.copied()).expect(10).stdout
    };
    assert!(!plan(&[]).contains("cannot be certified"));
    // Enough for the interval of the whole split at 2.5 %, but a part is certified by its looks alone.
    let few = plan(&["--limit", "400"]);
    assert!(few.contains("note       tiny_colours cannot be certified: 400 items"), "{few}");
    assert!(!plan(&["--limit", "400", "--no-early-stop"]).contains("cannot be certified"));
}

/// The prompts of a release are set as those of `day0 eval`, by flags or `day0.yaml`, and are part of what a run is.
#[test]
fn prompts_of_a_release_have_examples_and_an_instruction() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let tasks = |args: &[&str]| {
        let all = ["release", "--plan", "--suite", "tiny_colours", "--limit", "8"].iter().chain(args);
        let text = day0(dir.path(), all.copied()).expect(10).stdout;
        text.lines().find(|line| line.starts_with("task ")).unwrap().to_owned()
    };
    let plain = tasks(&[]);
    let shots = tasks(&["--num-fewshot", "2"]);
    let seeded = tasks(&["--num-fewshot", "2", "--fewshot-seed", "7"]);
    let told = tasks(&["--system-instruction", "Answer."]);
    let all = [&plain, &shots, &seeded, &told];
    for (place, one) in all.iter().enumerate() {
        assert!(all[..place].iter().all(|other| other != one), "{all:?}");
    }
    std::fs::write(dir.path().join("day0.yaml"), "num_fewshot: 2\nfewshot_seed: 7\n").unwrap();
    assert_eq!(tasks(&[]), seeded);
    assert_eq!(tasks(&["--fewshot-seed", "1234"]), shots);
    let (_, record) = release(dir.path(), &["--suite", "tiny_colours", "--limit", "8"]);
    assert_eq!(record["failure_class"], json!("INSUFFICIENT_EVIDENCE"), "{record:#}");
    let results = read_json(dir.path().join("run/eval/candidate/results.json"));
    assert_eq!(results["n-shot"]["tiny_colours"], json!(2), "{}", results["n-shot"]);
}

#[test]
fn endpoint_that_serves_the_baseline_as_the_candidate_is_caught() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let server = super::serving::Served::start("day0-tiny");
    let (ran, record) = release(dir.path(), &["--limit", "40", "--endpoint", &server.url]);
    ran.expect(3).says("COMPARABILITY_FAILED");
    assert_closed(&record, "ANOMALOUS", "COMPARABILITY_FAILED");
}

/// A candidate with one damaged tensor or config, given to the ptq gate.
fn damaged(damage: impl Fn(&Path)) -> Value {
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8_dynamic", "--out", "q"]).expect(0);
    damage(&dir.path().join("q"));
    let args = ["gate", "ptq", "--checkpoint", "q", "--source", "day0-tiny", "--recipe", "fp8_dynamic"];
    day0(dir.path(), args).expect(3).json()
}

#[test]
fn zeroed_scale_tensor_is_a_coverage_failure() {
    let _turn = turn();
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    let report = damaged(|dir| overwrite_with_zeros(dir, name));
    assert_eq!(report["verdict"], json!("ANOMALOUS"));
    assert_eq!(report["failure_class"], json!("QUANT_COVERAGE_FAILURE"));
    assert!(report["detail"].as_str().unwrap().contains(name), "{report:#}");
}

#[test]
fn export_that_declares_no_quantization_is_caught() {
    let _turn = turn();
    let report = damaged(|dir| {
        let path = dir.join("config.json");
        let mut config = read_json(&path);
        config.as_object_mut().unwrap().remove("quantization_config");
        std::fs::write(&path, config.to_string()).unwrap();
    });
    assert_eq!(report["failure_class"], json!("QUANT_COVERAGE_FAILURE"));
}

#[test]
fn changed_tokenizer_is_caught() {
    let _turn = turn();
    let report = damaged(|dir| {
        let path = dir.join("tokenizer_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("eos_token", "eos_tokem", 1)).unwrap();
    });
    assert_eq!(report["failure_class"], json!("QUANT_COVERAGE_FAILURE"));
    assert!(report["detail"].as_str().unwrap().contains("tokenizer_config.json"), "{report:#}");
}

/// Rows of one of the embedded tasks.
fn colours() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/day0-tiny/data/tiny_colours.test.jsonl");
    std::fs::read_to_string(path).unwrap()
}

/// A multiple-choice task `name` with these rows, in files in `dir`.
fn local_task(dir: &Path, name: &str, rows: &[String]) {
    let task = "task: NAME\ndataset_path: local\ndata_stem: NAME\ntest_split: test\n\
        output_type: multiple_choice\ndoc_to_text: \"{{context}}\"\ndoc_to_choice: \"{{choices}}\"\n\
        doc_to_target: label\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n\
        primary_metric: acc\nmetadata:\n  version: 1.0\n";
    std::fs::write(dir.join(format!("{name}.yaml")), task.replace("NAME", name)).unwrap();
    std::fs::write(dir.join(format!("{name}.test.jsonl")), rows.join("\n")).unwrap();
}

#[test]
fn published_score_that_is_far_away_is_a_baseline_mismatch() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<String> = colours().lines().take(300).map(str::to_owned).collect();
    local_task(dir.path(), "local", &rows);
    std::fs::write(dir.path().join("c.yaml"), "tasks: {local: {published: 0.3}}\n").unwrap();
    let (ran, record) = release(dir.path(), &["--suite", "local.yaml", "--data", ".", "--config", "c.yaml"]);
    ran.expect(3);
    assert_closed(&record, "ANOMALOUS", "EXTERNAL_BASELINE_MISMATCH");
}

/// Identity of the candidate that a release of day0-tiny will make, as an honest endpoint would give it.
fn candidate_card(dir: &Path) -> Value {
    candidate_card_of(dir, "fp8_dynamic")
}

/// The same of another recipe.
pub fn candidate_card_of(dir: &Path, recipe: &str) -> Value {
    day0(dir, ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q"]).expect(0);
    let server = super::serving::Served::start(dir.join("q").to_str().unwrap());
    server.model_card()
}

#[test]
fn gain_that_quantization_cannot_explain_is_implausible() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // Every gold is the same word, which the baseline has no reason to prefer.
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row["label"] = json!(row["choices"].as_array().unwrap().iter().position(|c| c == "red")?);
        Some(row.to_string())
    };
    let rows: Vec<String> = colours().lines().filter_map(row).take(400).collect();
    local_task(dir.path(), "constant", &rows);
    let card = candidate_card(dir.path());
    let gold = super::serving::token_of(" red");
    let likes_gold = move |t| if t == gold { -0.01 } else { -9.0 };
    let engine = fake_engine::start(card, Box::new(move |_, body| completion(body, gold, likes_gold)));
    let args = ["--suite", "constant.yaml", "--data", ".", "--endpoint", &engine.url];
    let (ran, record) = release(dir.path(), &args);
    ran.expect(3);
    assert_closed(&record, "ANOMALOUS", "IMPLAUSIBLE_GAIN");
}

/// A release whose candidate is served by an endpoint with these answers.
fn against(answer: impl Fn(usize, &Value) -> (u16, Value) + Send + Sync + 'static) -> (Ran, Value) {
    let dir = tempfile::tempdir().unwrap();
    let engine = fake_engine::start(candidate_card(dir.path()), Box::new(answer));
    release(dir.path(), &["--limit", "40", "--endpoint", &engine.url])
}

fn good(body: &Value) -> (u16, Value) {
    completion(body, 5, |t| -1.0 - (t % 7) as f64 / 10.0)
}

/// Completions that the probes make before scoring begins.
const PROBE_REQUESTS: usize = 16;

#[test]
fn refused_credentials_are_a_judge_failure() {
    let _turn = turn();
    let (ran, record) = against(|_, _| (401, json!({"error": {"message": "bad key", "code": 401}})));
    ran.expect(3);
    assert_closed(&record, "ANOMALOUS", "EVAL_JUDGE_FAILED");
}

/// A run that ended for want of a key goes on with one: what failed is scored again, and decided on.
#[test]
fn a_run_with_refused_credentials_resumes_once_they_are_good() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let good_key = Arc::new(AtomicBool::new(true));
    let accepted = Arc::clone(&good_key);
    let answer = move |n: usize, body: &Value| {
        // The probes pass, then the key expires in the middle of scoring.
        if n > PROBE_REQUESTS + 2 && !accepted.load(Ordering::SeqCst) {
            return (401, json!({"error": {"message": "expired key", "code": 401}}));
        }
        good(body)
    };
    let engine = fake_engine::start(candidate_card(dir.path()), Box::new(answer));
    let args = ["--limit", "40", "--suite", "tiny_colours", "--endpoint", &engine.url];
    good_key.store(false, Ordering::SeqCst);
    let (ran, record) = release(dir.path(), &args);
    ran.expect(3);
    assert_closed(&record, "ANOMALOUS", "EVAL_JUDGE_FAILED");
    good_key.store(true, Ordering::SeqCst);
    let code = day0(dir.path(), ["release", "--resume", "run"]).code;
    let resumed = read_json(dir.path().join("run/release.json"));
    let scores =
        |run: &str| read_json(dir.path().join(run).join("eval/candidate/results.json"))["results"].clone();
    // As if the key had been good all the time.
    let calm = dir.path().join("calm");
    std::fs::create_dir(&calm).unwrap();
    let (ran, record) = release(&calm, &args);
    assert_eq!((code, &resumed["failure_class"]), (ran.code, &record["failure_class"]), "{resumed:#}");
    assert_ne!(record["failure_class"], json!("EVAL_JUDGE_FAILED"));
    assert_eq!(scores("run"), scores("calm/run"));
}

#[test]
fn answers_that_lack_items_are_a_sample_accounting_failure() {
    let _turn = turn();
    // Only while scoring: the probe at the end must find a healthy server.
    let refused = PROBE_REQUESTS..PROBE_REQUESTS + 60;
    let (ran, record) = against(move |n, body| {
        if refused.contains(&n) {
            (400, json!({"error": {"message": "no", "code": 400}}))
        } else {
            good(body)
        }
    });
    ran.expect(3);
    assert_closed(&record, "ANOMALOUS", "SAMPLE_ACCOUNTING_FAILED");
}

#[test]
fn endpoint_that_ignores_echo_is_refused() {
    let _turn = turn();
    let (ran, _) = against(|_, body| {
        let (status, mut answer) = good(body);
        for choice in answer["choices"].as_array_mut().unwrap() {
            choice["logprobs"] = Value::Null;
        }
        (status, answer)
    });
    assert!(matches!(ran.code, Some(3 | 4)), "{:?} {}", ran.code, ran.stdout);
}

#[test]
fn endpoint_that_does_not_answer_is_a_deployment_failure() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // A port that was free a moment ago and has no listener.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ran, record) =
        release(dir.path(), &["--limit", "40", "--endpoint", &format!("http://127.0.0.1:{port}")]);
    ran.expect(4);
    assert_closed(&record, "INFEASIBLE", "DEPLOYMENT_HEALTH_FAILED");
}

#[test]
fn endpoint_that_breaks_while_scoring_is_transient_and_resumes() {
    let _turn = turn();
    let (ran, record) = against(|n, body| if n > PROBE_REQUESTS { (500, json!({})) } else { good(body) });
    ran.expect(75).says("--resume");
    assert_eq!(record["verdict"], Value::Null);
    assert_eq!(record["failure_class"], json!("INFRA_TRANSIENT"));
}

//! Engines that day0 starts from `serve.engine.command`: every way in which they fail, and how the release ends.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::{Ran, command, day0, ran, read_json, turn};
use super::fake_vllm::{Fault, GREETING, Setup, starts};

const RELEASE: [&str; 9] =
    ["release", "--limit", "24", "--recipe", "w8a8", "--suite", "tiny_colours,tiny_homes", "--out", "run"];

/// Processes end when they are next scheduled, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with a day0.yaml whose arms are served by the fake.
fn prepared(setup: impl Into<Setup>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("day0.yaml"), setup.into().config(dir.path())).unwrap();
    dir
}

/// Runs day0 in `dir`; no engine outlives it.
#[track_caller]
fn run(dir: &Path, args: &[&str]) -> Ran {
    let ran = day0(dir, args);
    assert_no_engine_is_left(dir);
    ran
}

/// Waits until `found` returns nothing; fails with what it still returns.
#[track_caller]
fn soon_empty(mut found: impl FnMut() -> BTreeSet<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = found();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:?} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Names of the entries of /proc with the fake's directory in their environment.
fn engines(dir: &Path) -> BTreeSet<String> {
    let mark = format!("FAKE_VLLM_DIR={}", dir.display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    });
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// No process of the fake is there any more.
#[track_caller]
pub fn assert_no_engine_is_left(dir: &Path) {
    soon_empty(|| engines(dir));
}

/// State and process group of a process, as /proc/PID/stat has them after the name.
fn state_and_group(pid: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.nth(1)?.to_owned()))
}

/// The living members of these process groups.
fn members(groups: &BTreeSet<String>) -> BTreeSet<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let lives = |pid: &String| {
        state_and_group(pid).is_some_and(|(state, group)| state != "Z" && groups.contains(&group))
    };
    names.filter(lives).collect()
}

#[track_caller]
fn ends(setup: impl Into<Setup>, code: i32, class: &str) -> (tempfile::TempDir, Value) {
    let _turn = turn();
    let dir = prepared(setup);
    run(dir.path(), &RELEASE).expect(code);
    let record = read_json(dir.path().join("run/release.json"));
    assert_eq!(record["failure_class"], json!(class), "{}", record["detail"]);
    (dir, record)
}

/// Items as the run scored them.
fn samples(dir: &Path) -> String {
    let read =
        |arm| std::fs::read_to_string(dir.join(format!("run/eval/{arm}/samples_tiny_homes.jsonl"))).unwrap();
    read("baseline") + &read("candidate")
}

/// The items of a run in which nothing goes wrong. It takes its turn like any other.
fn calm() -> &'static str {
    static CALM: OnceLock<String> = OnceLock::new();
    CALM.get_or_init(|| samples(ends(Fault::None, 3, "INSUFFICIENT_EVIDENCE").0.path()))
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
    assert_eq!(samples(dir.path()), calm());
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
    assert_eq!(samples(dir.path()), calm());
}

#[test]
fn another_version_after_a_crash_is_caught() {
    let (_, record) = ends(Fault::OtherVersionAfterCrash, 3, "COMPARABILITY_FAILED");
    assert!(record["detail"].as_str().unwrap().contains("vllm 0.34.0"), "{}", record["detail"]);
}

#[test]
fn an_engine_that_hangs_is_ended_at_its_deadline() {
    let setup = Setup { settings: json!({"startup_seconds": 1}), ..Fault::Hangs.into() };
    let (_, record) = ends(setup, 4, "DEPLOYMENT_HEALTH_FAILED");
    assert!(record["detail"].as_str().unwrap().contains("2 attempts"), "{}", record["detail"]);
}

#[test]
fn both_engines_at_once_give_the_same() {
    let settings = json!({"startup_seconds": 60, "both_at_once": true});
    let (dir, _) = ends(Setup { settings, ..Fault::None.into() }, 3, "INSUFFICIENT_EVIDENCE");
    let ledger = std::fs::read_to_string(dir.path().join("run/ledger.jsonl")).unwrap();
    let first = |unit: &str| ledger.find(&format!("\"{unit}\"")).unwrap();
    assert!(first("serve/candidate") < first("score/baseline/tiny_homes/0"));
    assert_eq!(samples(dir.path()), calm());
}

#[test]
fn an_engine_that_ignores_sigterm_is_killed() {
    let settings = json!({"startup_seconds": 60, "stop_seconds": 1});
    ends(Setup { settings, piped: true, fault: Fault::IgnoresSigterm }, 3, "INSUFFICIENT_EVIDENCE");
}

/// Kills day0 as soon as the engine of `arm` says something.
fn kill_day0(setup: Setup, arm: &str) {
    let _turn = turn();
    let dir = prepared(setup);
    let mut child = command(dir.path(), RELEASE).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let log = dir.path().join(format!("run/serve/{arm}.log"));
    let deadline = Instant::now() + 2 * PATIENCE;
    while !std::fs::read_to_string(&log).unwrap_or_default().contains(GREETING) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no engine came up");
        std::thread::sleep(Duration::from_millis(5));
    }
    let groups: BTreeSet<String> =
        engines(dir.path()).iter().filter_map(|pid| state_and_group(pid)).map(|(_, group)| group).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!groups.is_empty());
    // With the engine everything ends that is in its group, which the test is not.
    assert!(!groups.contains(&state_and_group("self").unwrap().1));
    soon_empty(|| members(&groups));
    assert_no_engine_is_left(dir.path());
}

#[test]
fn engines_end_when_day0_is_killed() {
    let settings = json!({"startup_seconds": 60, "stop_seconds": 1});
    kill_day0(Setup { settings: settings.clone(), ..Fault::None.into() }, "baseline");
    kill_day0(Setup { settings, piped: true, fault: Fault::IgnoresSigterm }, "candidate");
}

#[test]
fn an_interrupted_run_waits_for_its_engine_again() {
    let calm = calm();
    let _turn = turn();
    let dir = prepared(Fault::InterruptedScoring);
    run(dir.path(), &RELEASE).expect(130);
    run(dir.path(), &["release", "--resume", "run"]).expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_eq!(starts(dir.path()), 2);
    assert_eq!(samples(dir.path()), calm);
    assert_eq!(read_json(dir.path().join("run/serve/candidate.json"))["process"]["restarts"], json!(0));
}

/// Two tasks of an array, without a batch system: one probes the arm, both start an engine of it.
#[test]
fn two_processes_score_one_run_each_with_its_own_engine() {
    let calm = calm();
    let _turn = turn();
    let dir = prepared(Fault::InterruptedStart);
    run(dir.path(), &RELEASE).expect(130);
    assert_eq!(starts(dir.path()), 1, "an interrupted start is not tried again");
    let task = |number: &str| {
        let args = ["unit", "score", "--run", "run", "--part", number, "--parts", "2"];
        let mut task = command(dir.path(), args);
        task.env("SLURM_ARRAY_JOB_ID", "7").env("SLURM_ARRAY_TASK_ID", number);
        task.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let tasks = ["0", "1"].map(task);
    let outputs: [Output; 2] = tasks.map(|task| task.wait_with_output().unwrap());
    for output in outputs {
        ran(output).expect(0);
    }
    assert_no_engine_is_left(dir.path());
    assert_eq!(starts(dir.path()), 3);
    let looks = dir.path().join("run/slurm/served");
    for task in ["7_0", "7_1"] {
        let look = read_json(looks.join(format!("candidate-{task}.json")));
        assert_eq!(look["stayed_up"]["ok"], json!(true), "{look}");
    }
    // As after an interrupt between the last wave and the look: nothing is started only to be looked at.
    std::fs::remove_dir_all(&looks).unwrap();
    run(dir.path(), &["release", "--resume", "run"]).expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_eq!(starts(dir.path()), 3);
    let record = read_json(dir.path().join("run/release.json"));
    assert!(record["findings"].to_string().contains("no look after the last request"));
    assert_eq!(samples(dir.path()), calm);
}

#[test]
fn a_template_that_cannot_work_is_a_usage_error() {
    let _turn = turn();
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

//! The readiness gates through the command line.

use std::path::Path;

use serde_json::{Value, json};

use super::common::{command, day0, ran, read_json, turn};

pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A repository whose counts are what its script prints.
fn repository(dir: &Path, failed: u64, total: u64, types: u64) {
    let passed = total - failed;
    write(
        dir,
        "tests.sh",
        &format!("echo '{failed} failed, {passed} passed in 0.1s'; exit {}\n", u8::from(failed > 0)),
    );
    write(
        dir,
        "types.sh",
        &format!("i=0; while [ $i -lt {types} ]; do echo 'error TS1:'; i=$((i+1)); done\n"),
    );
    let config = "quality:\n  commands:\n    tests: {run: sh tests.sh, format: pytest}\n    typecheck: {run: sh types.sh, format: tsc}\n";
    write(dir, "qa.yaml", config);
}

/// Founding document 004: capture, work, check; blocked by more failures, warned by removed tests.
#[test]
fn diff_blocks_more_failures_and_warns_of_removed_tests() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    repository(dir, 1, 10, 3);
    let missing = day0(dir, ["ready", "diff", "check"]).expect(3);
    missing.says("INSUFFICIENT_EVIDENCE");
    day0(dir, ["ready", "diff", "check", "--advisory"]).expect(0).says("advisory");
    day0(dir, ["ready", "diff", "capture"]).expect(0).says("quality-baseline.json");
    let baseline = read_json(dir.join(".day0/quality-baseline.json"));
    assert_eq!(baseline["tests"], json!({"total": 10, "passed": 9, "failed": 1, "skipped": 0}));
    assert_eq!(baseline["typecheck"]["errorCount"], json!(3));
    day0(dir, ["ready", "diff", "capture"]).expect(2).says("--force");
    day0(dir, ["ready", "diff", "check"]).expect(0).says("PASSED");
    day0(dir, ["ready", "diff", "check", "--brief"])
        .expect(0)
        .says("1 failing tests")
        .says("RED")
        .says("Boy scout");
    repository(dir, 1, 8, 2);
    day0(dir, ["ready", "diff", "check"])
        .expect(0)
        .says("2 were removed")
        .says("| type errors | 3 | 2 | -1 |");
    repository(dir, 2, 12, 3);
    let worse = day0(dir, ["ready", "diff", "check"]).expect(3);
    worse.says("FAILED").says("| failed tests | 1 | 2 | +1 |").says("READINESS_FAILED");
    let report = day0(dir, ["ready", "diff", "check", "--json"]).expect(3).json();
    assert_eq!(report["failure_class"], json!("READINESS_FAILED"));
    write(dir, "tests.sh", "exit 3\n");
    day0(dir, ["ready", "diff", "check"]).expect(3).says("INSUFFICIENT_EVIDENCE").says("exit code 3");
}

/// Founding document 004: the ratchet only tightens; loosening needs a reason that stays.
#[test]
fn ratchet_tightens_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    repository(dir, 1, 10, 3);
    day0(dir, ["ready", "ratchet", "check"]).expect(2).says("ratchet init");
    day0(dir, ["ready", "ratchet", "init", "--by", "me"]).expect(0);
    day0(dir, ["ready", "ratchet", "init"]).expect(2).says("--force");
    let thresholds = |dir: &Path| read_json(dir.join("quality-ratchet.json"))["thresholds"].clone();
    let first = json!({"testCount": {"min": 10}, "testFailures": {"max": 1}, "typecheckErrors": {"max": 3}});
    assert_eq!(thresholds(dir), first);
    day0(dir, ["ready", "ratchet", "check"]).expect(0).says("3 threshold(s) kept");
    repository(dir, 0, 12, 4);
    day0(dir, ["ready", "ratchet", "check"]).expect(3).says("RATCHET_VIOLATED").says("typecheckErrors");
    day0(dir, ["ready", "ratchet", "update"]).expect(3);
    assert_eq!(thresholds(dir), first, "a violation changes nothing");
    repository(dir, 0, 12, 3);
    day0(dir, ["ready", "ratchet", "update", "--by", "PR-7"]).expect(0);
    assert_eq!(thresholds(dir)["testCount"], json!({"min": 12}));
    assert_eq!(read_json(dir.join("quality-ratchet.json"))["updatedBy"], json!("PR-7"));
    day0(dir, ["ready", "ratchet", "update", "--set", "testCount=11"]).expect(2);
    day0(dir, ["ready", "ratchet", "update", "--set", "testCount=11", "--reason", "moved"]).expect(0);
    let loosened = |dir: &Path| read_json(dir.join("quality-ratchet.json"))["loosened"].clone();
    assert_eq!(loosened(dir)[0]["reason"], json!("moved"));
    // Starting again forgets no loosening, and is one where it weakens or drops a threshold.
    repository(dir, 1, 12, 3);
    let anew = ["ready", "ratchet", "init", "--force", "--metrics", "testCount,testFailures"];
    day0(dir, anew).expect(2).says("loosened only with a reason").says("--reason");
    assert_eq!(thresholds(dir)["testFailures"], json!({"max": 0}), "nothing was written");
    day0(dir, anew.iter().chain(&["--reason", "no types"])).expect(0);
    assert_eq!(thresholds(dir), json!({"testCount": {"min": 12}, "testFailures": {"max": 1}}));
    let of = |index: usize, field: &str| loosened(dir)[index][field].clone();
    assert_eq!((of(0, "reason"), of(1, "metric")), (json!("moved"), json!("testFailures")));
    assert_eq!((of(2, "metric"), of(2, "to")), (json!("typecheckErrors"), json!({})));
    write(
        dir,
        "quality-ratchet.json",
        r#"{"version": 1, "updatedAt": "", "updatedBy": "", "thresholds": {"testCoun": {"min": 1}}}"#,
    );
    day0(dir, ["ready", "ratchet", "check"]).expect(2).says("did you mean 'testCount'?");
}

const QA: &str = "container: never
max_log_bytes: 100000
full:
  - {label: fine, command: echo out; echo err >&2, timeout_s: 20}
  - {label: late, command: echo never, timeout_s: 20, tier: release}
";

const ARTIFACTS: [&str; 5] = ["run.json", "stdout.log", "stderr.log", "results.json", "RUN_INSTRUCTIONS.md"];

#[track_caller]
pub fn artifacts(out: &Path, error_kind: Option<&str>) -> (Value, Value) {
    for name in ARTIFACTS {
        assert!(out.join(name).is_file(), "{name}");
    }
    let error = out.join("error.json");
    assert_eq!(error.is_file(), error_kind.is_some());
    if let Some(kind) = error_kind {
        assert_eq!(read_json(&error)["kind"], json!(kind), "{}", read_json(&error));
    }
    (read_json(out.join("run.json")), read_json(out.join("results.json")))
}

/// Founding document 002: a plain success, with every artifact and without error.json.
#[test]
fn qa_passes_with_its_artifacts() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "qa.yaml", QA);
    day0(dir.path(), ["ready", "qa"]).expect(0).says("mode local");
    let out = dir.path().join("outputs/qa");
    let (run, results) = artifacts(&out, None);
    assert_eq!((&run["state"], &run["mode"]), (&json!("finished"), &json!("local")));
    assert_eq!(results["counts"], json!({"attempted": 1, "passed": 1, "skipped": 1}));
    assert!(std::fs::read_to_string(out.join("stdout.log")).unwrap().contains("out\n"));
    assert!(std::fs::read_to_string(out.join("stderr.log")).unwrap().contains("err\n"));
    let how = std::fs::read_to_string(out.join("RUN_INSTRUCTIONS.md")).unwrap();
    assert!(how.contains("day0 ready qa --config qa.yaml --tier pr"), "{how}");
    day0(dir.path(), ["ready", "qa", "--tier", "release"]).expect(0);
}

/// Founding document 002, "Outputs and artifacts": what a run leaves is of that run, also where its file
/// cannot be used.
#[test]
fn qa_leaves_nothing_of_an_earlier_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let out = dir.join("outputs/qa");
    write(dir, "qa.yaml", QA);
    let succeeds = || day0(dir, ["ready", "qa"]).expect(0);
    succeeds();
    write(&out, "checks/notes.md", "mine");
    write(dir, "qa.yaml", &QA.replace("label: fine", "label: other"));
    succeeds();
    assert!(out.join("checks/other.stdout").is_file() && out.join("checks/notes.md").is_file());
    assert!(!out.join("checks/fine.stdout").exists() && !out.join("checks/fine.stderr").exists());
    let refused = |args: &[&str], says: &str| {
        day0(dir, args).expect(2).says(says);
        let (run, results) = artifacts(&out, Some("runner"));
        assert_eq!((&run["state"], &results["complete"]), (&json!("aborted"), &json!(false)));
        assert_eq!((&run["commands"], &results["checks"]), (&json!({}), &json!([])));
        assert!(read_json(out.join("error.json"))["message"].as_str().unwrap().contains(says));
        let log = std::fs::read_to_string(out.join("stderr.log")).unwrap();
        assert!(log.contains(says) && !log.contains("err\n"), "{log}");
        assert!(!out.join("checks/other.stdout").exists());
        let how = std::fs::read_to_string(out.join("RUN_INSTRUCTIONS.md")).unwrap();
        assert!(how.contains("was not settled"), "{how}");
    };
    refused(&["ready", "qa", "--container", "docker"], "image: containers need one");
    write(dir, "qa.yaml", &QA.replace("full:", "full: ["));
    refused(&["ready", "qa"], "qa.yaml: ");
    std::fs::remove_file(dir.join("qa.yaml")).unwrap();
    refused(&["ready", "qa"], "qa.yaml: ");
    write(dir, "qa.yaml", QA);
    succeeds();
    artifacts(&out, None);
}

/// Founding document 002, "Quick rerun instructions": the exact command, also where a path has spaces.
#[test]
fn qa_says_how_to_run_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "my checks.yaml", QA);
    day0(dir, ["ready", "qa", "--config", "my checks.yaml", "--out", "it's here"]).expect(0);
    let how = std::fs::read_to_string(dir.join("it's here/RUN_INSTRUCTIONS.md")).unwrap();
    let command = how.lines().find_map(|l| l.strip_prefix("day0 ")).unwrap();
    std::fs::remove_file(dir.join("it's here/run.json")).unwrap();
    let line = format!("exec \"$0\" {command}");
    let mut again = std::process::Command::new("sh");
    again.args(["-c", &line, env!("CARGO_BIN_EXE_day0")]).current_dir(dir);
    ran(again.output().unwrap()).expect(0);
    assert!(dir.join("it's here/run.json").is_file(), "{command}");
}

/// Founding document 002: failures, hangs, crashes, floods and bytes that are no text are recorded, each under its label.
#[test]
fn qa_records_whatever_goes_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let checks = "  - {label: fails, command: exit 4, timeout_s: 20}
  - {label: hangs, command: 'sleep 60 & sleep 60', timeout_s: 0.3}
  - {label: dies, command: kill -SEGV $$, timeout_s: 20}
  - {label: flood, command: 'head -c 300000000 /dev/zero; echo the end', timeout_s: 60}
  - {label: bytes, command: [printf, '\\377\\376'], timeout_s: 20}
  - {label: missing, command: [/no/such/program], timeout_s: 20, required: false}
";
    write(dir.path(), "qa.yaml", &(QA.to_owned() + checks));
    day0(dir.path(), ["ready", "qa", "--out", "o"]).expect(3).says("READINESS_FAILED").says("fails");
    let (_, results) = artifacts(&dir.path().join("o"), Some("checks_failed"));
    let of = |label: &str| {
        let checks = results["checks"].as_array().unwrap();
        checks.iter().find(|c| c["label"] == label).unwrap().clone()
    };
    assert_eq!((&of("fails")["status"], &of("fails")["exit_code"]), (&json!("failed"), &json!(4)));
    assert_eq!(of("hangs")["status"], json!("timed_out"));
    assert_eq!((&of("dies")["status"], &of("dies")["signal"]), (&json!("failed"), &json!(11)));
    assert_eq!(
        (&of("flood")["status"], &of("flood")["output_bytes"]),
        (&json!("passed"), &json!(300_000_008))
    );
    assert!(of("flood")["tail"].as_str().unwrap().ends_with("the end"));
    assert!(std::fs::metadata(dir.path().join("o/stdout.log")).unwrap().len() < 3_000_000);
    assert_eq!(of("bytes")["status"], json!("passed"));
    assert!(of("missing")["detail"].as_str().unwrap().contains("cannot be started"));
    assert_eq!(
        read_json(dir.path().join("o/error.json"))["failed_checks"],
        json!(["fails", "hangs", "dies"])
    );
}

const FALLBACK: &str = "container: podman
image: {name: none, probe: ['true']}
runtimes: {podman: {command: [/no/such/podman]}}
full:
  - {label: all, command: echo full, timeout_s: 20}
reduced:
  - {label: some, command: echo reduced, timeout_s: 20}
";

/// Founding document 002: a runtime that is missing falls back, visibly; the exit code is the project's policy.
#[test]
fn qa_without_a_runtime_runs_the_failsafe() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "qa.yaml", FALLBACK);
    day0(dir.path(), ["ready", "qa"]).expect(0).says("QA_DEGRADED").says("/no/such/podman");
    let (run, results) = artifacts(&dir.path().join("outputs/qa"), Some("fallback"));
    assert_eq!(run["mode"], json!("failsafe"));
    assert!(run["fallback_reason"].as_str().unwrap().contains("podman client"));
    assert_eq!(results["checks"][0]["label"], json!("some"));
    write(dir.path(), "qa.yaml", &format!("failsafe_is_enough: false\n{FALLBACK}"));
    day0(dir.path(), ["ready", "qa"]).expect(3);
    // Hard failure: neither can execute.
    write(dir.path(), "qa.yaml", &FALLBACK.replace("echo reduced", "[/no/such/check]"));
    day0(dir.path(), ["ready", "qa"]).expect(3);
    artifacts(&dir.path().join("outputs/qa"), Some("runner"));
}

/// Founding document 002: never dies silently. The runner is killed while a check runs.
#[test]
fn qa_that_is_killed_leaves_whole_artifacts() {
    let dir = tempfile::tempdir().unwrap();
    let slow = "  - {label: slow, command: 'touch started; sleep 30', timeout_s: 60}\n";
    write(dir.path(), "qa.yaml", &(QA.to_owned() + slow));
    let mut child = command(dir.path(), ["ready", "qa"]).spawn().unwrap();
    wait_for(&dir.path().join("started"));
    child.kill().unwrap();
    child.wait().unwrap();
    let (run, results) = artifacts(&dir.path().join("outputs/qa"), Some("unfinished"));
    assert_eq!(run["state"], json!("running"));
    assert_eq!((&results["complete"], &results["checks"][0]["status"]), (&json!(false), &json!("passed")));
    // A signal that can be handled ends the check and says so.
    std::fs::remove_file(dir.path().join("started")).unwrap();
    let child = command(dir.path(), ["ready", "qa"]).spawn().unwrap();
    wait_for(&dir.path().join("started"));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    ran(child.wait_with_output().unwrap()).expect(128 + 15);
    artifacts(&dir.path().join("outputs/qa"), Some("interrupted"));
}

pub fn wait_for(path: &Path) {
    let start = std::time::Instant::now();
    while !path.exists() {
        assert!(start.elapsed().as_secs() < 60, "{} does not appear", path.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Founding document 000: a family that a command runs, its gates, resume by seed, and the estimate.
#[test]
fn repro_measures_jobs_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let job = r#"tdmpc2=echo $((1 + $(cat n 2>/dev/null || echo 0))) > n; test -f ok -o {seed} != 1 || exit 9;
        for s in $(seq 1 {steps}); do echo "{\"step\": $s, \"metrics\": {\"loss\": 2, \"consistency_loss\": 1, \"reward_loss\": 1, \"value_loss\": 1}}"; done;
        echo '{"metrics": {"save_load_max_diff": 0}}'"#;
    let measure = [
        "ready",
        "repro",
        "measure",
        "--models",
        "tdmpc2",
        "--seeds",
        "0,0,1",
        "--steps",
        "20",
        "--command",
        job,
    ];
    day0(dir, measure).expect(0).says("seed_runs.json");
    let runs = |dir: &Path| {
        read_json(dir.join("reports/quality-gates/seed_runs.json"))["families"][0]["runs"].clone()
    };
    assert!(runs(dir)[2]["error"].as_str().unwrap().contains("exit code 9"));
    day0(dir, ["ready", "repro", "check"]).expect(3).says("tdmpc2.seed_success_rate").says("2 of 3 seeds");
    write(dir, "ok", "");
    day0(dir, measure).expect(0);
    assert_eq!(
        std::fs::read_to_string(dir.join("n")).unwrap().trim(),
        "4",
        "only the failed seed runs again"
    );
    day0(dir, ["ready", "repro", "check"]).expect(0).says("not evaluated: 20 steps, its window is 2000");
    day0(dir, ["ready", "repro", "check", "--tier", "release"]).expect(3).says("INSUFFICIENT_EVIDENCE");
    assert!(dir.join("reports/quality-gates/curve_tdmpc2_loss.svg").is_file());
    let estimates =
        day0(dir, ["ready", "repro", "estimate", "--scenarios", "5x5000,7x10000", "--json"]).expect(0).json();
    assert_eq!(
        (estimates.as_array().unwrap().len(), &estimates[1]["scenario"]),
        (2, &json!({"seeds": 7, "steps": 10000}))
    );
    day0(dir, ["ready", "repro", "measure", "--families", "jepa"])
        .expect(2)
        .says("no command runs this family");
    write(dir, "reports/quality-gates/seed_runs.json", r#"{"schema_version": 1, "families": [{"runs": 3}]}"#);
    day0(dir, ["ready", "repro", "check"]).expect(2).says("seed_runs.json");
}

/// A release that is accepted in seconds: one task, a wide margin.
const QUICK: &str = "suites: [tiny_pets]\nlimit: 100\nmargin: 0.5\n";

fn release(dir: &Path, config: &str, code: i32) -> Value {
    write(dir, "day0.yaml", &format!("{QUICK}{config}"));
    if dir.join("run").exists() {
        std::fs::remove_dir_all(dir.join("run")).unwrap();
    }
    day0(dir, ["release", "--out", "run"]).expect(code);
    read_json(dir.join("run/release.json"))
}

fn level<'a>(record: &'a Value, gate: &str) -> &'a Value {
    record["readiness"].as_array().unwrap().iter().find(|r| r["gate"] == gate).unwrap()
}

/// DESIGN section 1: a required readiness gate that fails turns ACCEPT into ANOMALOUS / READINESS_FAILED; an advisory one
/// is a note.
#[test]
fn a_required_gate_that_fails_turns_accept_into_anomalous() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "qa.yaml", "container: never\nfull: [{label: broken, command: exit 1, timeout_s: 9}]\n");
    let plain = release(dir, "", 0);
    assert_eq!(plain["verdict"], json!("ACCEPT"), "{plain:#}");
    assert_eq!(level(&plain, "roundtrip")["result"], json!("pass"));
    let report = std::fs::read_to_string(dir.join("run/report.md")).unwrap();
    for line in [
        "## Readiness",
        "| roundtrip | required | pass |",
        "| qa | off | not run |",
        "| roundtrip.output_parity | holds |",
        "| Coverage Completeness | 20/20 | 20% |",
        "Quality Gate: PASS",
    ] {
        assert!(report.contains(line), "{line}\n{report}");
    }
    let advisory = release(dir, "readiness: {qa: advisory}\n", 0);
    assert_eq!(advisory["verdict"], json!("ACCEPT"));
    assert!(level(&advisory, "qa")["result"].as_str().unwrap().contains("note"));
    let required = release(dir, "readiness: {qa: required}\n", 3);
    assert_eq!(
        (&required["verdict"], &required["failure_class"]),
        (&json!("ANOMALOUS"), &json!("READINESS_FAILED"))
    );
    assert!(dir.join("run/qa/error.json").is_file());
    write(dir, "qa.yaml", FALLBACK);
    let degraded = release(dir, "readiness: {qa: required}\n", 3);
    assert_eq!(degraded["failure_class"], json!("QA_DEGRADED"));
}

/// DESIGN section 7: required, and no evidence is INSUFFICIENT_EVIDENCE: of a diff without any baseline, and of a ratchet
/// whose counts nobody can count.
#[test]
fn a_required_gate_without_evidence_is_not_accepted() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let diff = "readiness: {diff: required}\n";
    let blind = release(dir, diff, 3);
    assert_eq!(
        (&blind["verdict"], &blind["failure_class"]),
        (&json!("ANOMALOUS"), &json!("INSUFFICIENT_EVIDENCE"))
    );
    let report = std::fs::read_to_string(dir.join("run/report.md")).unwrap();
    assert!(report.contains("day0 ready diff capture"), "{report}");
    repository(dir, 1, 10, 3);
    day0(dir, ["ready", "diff", "capture"]).expect(0);
    repository(dir, 0, 10, 3);
    let compared = release(dir, diff, 0);
    assert_eq!(compared["verdict"], json!("ACCEPT"), "{compared:#}");
    assert!(level(&compared, "diff")["detail"].as_str().unwrap().contains("improved: failed tests −1"));
    let report = std::fs::read_to_string(dir.join("run/report.md")).unwrap();
    assert!(report.contains("| failed tests | 1 | 0 | -1 |"), "{report}");
    // A baseline of counts and of a release: both sides hold both.
    std::fs::rename(dir.join("run"), dir.join("elsewhere")).unwrap();
    day0(dir, ["ready", "diff", "capture", "--force", "--run", "elsewhere"]).expect(0);
    let captured = read_json(dir.join(".day0/quality-baseline.json"));
    assert_eq!(captured["tests"]["total"], json!(10));
    assert!(captured["release"]["sizeRatio"]["value"].is_f64(), "{captured:#}");
    std::fs::remove_dir_all(dir.join("elsewhere")).unwrap();
    // Advisory: how fast the two runs were is not asked here.
    let both = release(dir, "readiness: {diff: advisory}\n", 0);
    let seen = both["gates"].as_array().unwrap().iter().find(|g| g["gate"] == "diff").unwrap();
    assert!(seen["checks"]["captured.sizeRatio"]["current"].is_object(), "{seen:#}");
    // A ratchet of counts.
    write(
        dir,
        "quality-ratchet.json",
        r#"{"version": 1, "updatedAt": "", "updatedBy": "", "thresholds": {"testCount": {"min": 5}}}"#,
    );
    let advisory = release(dir, "", 0);
    assert_eq!(level(&advisory, "ratchet")["result"], json!("pass"), "{advisory:#}");
    assert!(level(&advisory, "ratchet")["detail"].as_str().unwrap().contains("1 not evaluated"));
    assert_eq!(release(dir, "readiness: {ratchet: required}\n", 0)["verdict"], json!("ACCEPT"));
    write(dir, "tests.sh", "exit 3\n");
    let uncounted = release(dir, "readiness: {ratchet: required}\n", 3);
    assert_eq!(uncounted["failure_class"], json!("INSUFFICIENT_EVIDENCE"));
}

/// Founding document 004 in a release: the ratchet of the repository, and the last accepted release.
#[test]
fn a_release_keeps_the_ratchet_and_what_was_accepted_before() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ratchet = |max: f64| {
        let text = format!(
            r#"{{"version": 1, "updatedAt": "", "updatedBy": "", "thresholds": {{"sizeRatio": {{"max": {max}}}, "testCount": {{"min": 5}}}}}}"#
        );
        write(dir, "quality-ratchet.json", &text);
    };
    ratchet(0.9);
    repository(dir, 1, 10, 3);
    let kept = release(dir, "quality: {ratchetEnabled: true}\n", 0);
    assert!(level(&kept, "ratchet")["result"].as_str().unwrap().starts_with("pass"));
    let report = std::fs::read_to_string(dir.join("run/report.md")).unwrap();
    for line in ["| sizeRatio | ≤ 0.9 | ", "| testCount | ≥ 5 | 10 | kept |"] {
        assert!(report.contains(line), "{line}\n{report}");
    }
    std::fs::rename(dir.join("run"), dir.join("accepted")).unwrap();
    ratchet(0.1);
    let violated = release(dir, "quality: {ratchetEnabled: true}\n", 3);
    assert_eq!(violated["failure_class"], json!("RATCHET_VIOLATED"));
    assert_eq!(release(dir, "", 0)["verdict"], json!("ACCEPT"), "a note where it is not enabled");
    let same = release(dir, "readiness: {diff: required}\n", 0);
    assert!(level(&same, "diff")["detail"].as_str().unwrap().contains("accepted"), "{same:#}");
    let score = day0(dir, ["gate", "quality", "--run", "run"]).expect(0).json();
    assert_eq!(score["checks"]["score"]["coverage"], json!(20), "{score:#}");
    day0(dir, ["ready", "ratchet", "check", "--run", "accepted"]).expect(3).says("sizeRatio");
    day0(dir, ["ready", "diff", "capture", "--run", "accepted"]).expect(0);
    day0(dir, ["ready", "diff", "check", "--run", "run"]).expect(0).says("recovery.tiny_pets");
    // Counts and a release keep a ratchet of both, outside a release too; one of them alone is not enough.
    ratchet(0.9);
    let counts = ["ready", "ratchet", "check", "--counts", ".day0/quality-baseline.json"];
    day0(dir, ["ready", "diff", "capture", "--force"]).expect(0);
    day0(dir, counts).expect(3).says("INSUFFICIENT_EVIDENCE").says("sizeRatio");
    day0(dir, counts.iter().chain(&["--advisory"])).expect(0).says("1 not evaluated");
    day0(dir, counts.iter().chain(&["--run", "accepted"])).expect(0).says("2 threshold(s) kept");
    // A run directory that is not whole.
    write(dir, "run/ready/stray.txt", "x");
    day0(dir, ["gate", "quality", "--run", "run"]).expect(3).says("ready/stray.txt");
}

//! `day0 ready qa` with a container runtime that is a script: every way in which a container can end or be
//! lost.

use std::path::Path;

use serde_json::{Value, json};

use super::common::{command, day0, read_json};
use super::ready::{artifacts, wait_for, write};

/// A runtime whose containers are processes on this machine and whose states are files. A check's label says
/// what else goes wrong; a check that touches `gone` ends the daemon, one that writes `says` decides what
/// `inspect` prints.
const RUNTIME: &str = r#"
echo "$1 $2" >>calls
state() { echo "$1" >"state.$name"; exit "${1#* }"; }
lacks() { echo "no $1 here" >&2; exit 125; }
case "$1" in
  --version) echo "fake 1.0" ;;
  image) test ! -e no-image ;;
  pull) if [ -e no-registry ]; then lacks registry; fi ;;
  run)
    shift
    name="$2"
    while [ "$1" != --entrypoint ]; do shift; done
    program="$2"
    shift 3
    case "$name" in
      *-probe) if [ -e no-probe ]; then lacks daemon; fi ;;
      *-absent) lacks container ;;
      *-created) echo "created 0" >"state.$name"; exit 125 ;;
      *-uninvoked) echo "created 0" >"state.$name"; exit 127 ;;
    esac
    code=0
    "$program" "$@" || code=$?
    if [ -e gone ]; then lacks daemon; fi
    state "exited $code"
    ;;
  inspect)
    if [ -e gone ]; then lacks daemon; fi
    if [ -e says ]; then cat says; else cat "state.$4"; fi
    ;;
  rm) rm -f "state.$3" ;;
esac
"#;

/// A project whose full set is `full` and whose docker is the script.
fn project(dir: &Path, full: &str) {
    write(dir, "fake.sh", RUNTIME);
    let text = format!(
        "container: docker
image: {{name: none}}
runtimes: {{docker: {{command: [sh, fake.sh]}}, podman: {{command: [sh, fake.sh]}}}}
full:
{full}
reduced:
  - {{label: reduced, command: echo reduced, timeout_s: 20}}
"
    );
    write(dir, "qa.yaml", &text);
}

/// Runs one check of this label; returns `run.json` and `results.json`.
#[track_caller]
fn one(label: &str, line: &str, code: i32, error_kind: Option<&str>) -> (Value, Value) {
    let dir = tempfile::tempdir().unwrap();
    let words = serde_json::to_string(&["/bin/sh", "-c", line]).unwrap();
    project(dir.path(), &format!("  - {{label: {label}, command: {words}, timeout_s: 20}}"));
    day0(dir.path(), ["ready", "qa"]).expect(code);
    artifacts(&dir.path().join("outputs/qa"), error_kind)
}

/// Founding document 002, "Container mode": the exit code reflects the outcome inside the container, whatever
/// code it is.
#[test]
fn an_exit_code_of_the_check_is_its_own() {
    let (run, results) = one("check", "exit 0", 0, None);
    assert_eq!((&run["mode"], &run["runtime"]), (&json!("container"), &json!("docker")));
    assert_eq!(results["checks"][0]["status"], json!("passed"));
    for code in [1, 3, 125, 126, 127, 137, 143, 255] {
        let (run, results) = one("check", &format!("echo why >&2; exit {code}"), 3, Some("checks_failed"));
        assert_eq!(run["mode"], json!("container"), "{code}: {run:#}");
        let check = &results["checks"][0];
        assert_eq!((&check["status"], &check["exit_code"]), (&json!("failed"), &json!(code)), "{check:#}");
        assert!(check["tail"].as_str().unwrap().contains("why"), "{check:#}");
    }
    // A program that the image lacks was never started, and is the check's mistake.
    let (_, results) = one("uninvoked", "exit 0", 3, Some("checks_failed"));
    assert_eq!(results["checks"][0]["exit_code"], json!(127));
}

/// Founding document 002, "Failsafe is triggered when": container-loss scenarios, each told apart from a
/// failing check.
#[test]
fn a_lost_container_is_no_failing_check() {
    for (label, line, says) in [
        ("absent", "exit 0", "no exit code can be retrieved"),
        ("created", "exit 0", "the runtime says 'created 0'"),
        ("gone", "touch gone; exit 0", "no daemon here"),
        ("gone", "touch gone; exit 4", "no daemon here"),
        (
            "contradicted",
            "echo exited 9 >says; exit 0",
            "the client saw exit code 0, the runtime says 'exited 9'",
        ),
        ("running", "echo running 0 >says; exit 1", "the runtime says 'running 0'"),
        // The script is the client, and the check its child.
        ("client", "kill -KILL $PPID", "the client was killed by signal 9"),
        // Killed from outside once, and not again.
        ("killed", "test -e once || { touch once; exit 137; }", "the container was killed by signal 9"),
        ("ended", "test -e once || { touch once; exit 143; }", "the container was killed by signal 15"),
    ] {
        let (run, results) = one(label, line, 0, Some("fallback"));
        assert_eq!(run["mode"], json!("failsafe"), "{label}: {run:#}");
        let reason = run["fallback_reason"].as_str().unwrap();
        assert!(reason.contains(&format!("'{label}' was lost")) && reason.contains(says), "{reason}");
        assert_eq!(results["lost"][0]["status"], json!("lost"), "{results:#}");
        assert_eq!(results["checks"][0]["label"], json!("reduced"), "{results:#}");
    }
}

/// Founding document 002, "Container mode": a loss forgets no failure that was seen before it.
#[test]
fn what_failed_before_the_loss_still_fails() {
    let dir = tempfile::tempdir().unwrap();
    project(
        dir.path(),
        "  - {label: first, command: exit 3, timeout_s: 20}
  - {label: absent, command: exit 0, timeout_s: 20}
  - {label: never, command: exit 0, timeout_s: 20}",
    );
    day0(dir.path(), ["ready", "qa"]).expect(3).says("READINESS_FAILED");
    let out = dir.path().join("outputs/qa");
    let (run, results) = artifacts(&out, Some("checks_failed"));
    assert_eq!(run["mode"], json!("failsafe"));
    let statuses: Vec<&Value> = results["lost"].as_array().unwrap().iter().map(|c| &c["status"]).collect();
    assert_eq!(statuses, ["failed", "lost"]);
    assert_eq!(read_json(out.join("error.json"))["failed_checks"], json!(["first"]));
}

/// Founding document 002, "Failsafe is triggered when": image, pull or run failures prevent starting the
/// container.
#[test]
fn an_image_that_cannot_be_pulled_falls_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    project(dir, "  - {label: check, command: exit 0, timeout_s: 20}");
    write(dir, "no-image", "");
    day0(dir, ["ready", "qa"]).expect(0).says("mode container");
    let calls = std::fs::read_to_string(dir.join("calls")).unwrap();
    assert!(calls.contains("pull none\n"), "{calls}");
    for (missing, step, says) in
        [("no-registry", "image", "no registry here"), ("no-probe", "probe", "no daemon here")]
    {
        write(dir, missing, "");
        day0(dir, ["ready", "qa"]).expect(0).says("QA_DEGRADED");
        let (run, _) = artifacts(&dir.join("outputs/qa"), Some("fallback"));
        let last = run["attempts"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["step"], &last["ok"]), (&json!(step), &json!(false)), "{run:#}");
        assert!(run["fallback_reason"].as_str().unwrap().contains(says), "{run:#}");
        std::fs::remove_file(dir.join(missing)).unwrap();
    }
}

/// The order of runtimes: docker, then podman, by running a trivial container and not by finding a client.
#[test]
fn podman_follows_a_docker_that_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    project(dir, "  - {label: check, command: exit 0, timeout_s: 20}");
    write(dir, "broken.sh", "if [ \"$1\" = run ]; then echo 'no daemon' >&2; exit 125; fi\n");
    let text = std::fs::read_to_string(dir.join("qa.yaml")).unwrap();
    let broken = text.replacen("[sh, fake.sh]", "[sh, broken.sh]", 1);
    write(dir, "qa.yaml", &broken.replace("container: docker", "container: auto"));
    day0(dir, ["ready", "qa"]).expect(0).says("mode container");
    let (run, _) = artifacts(&dir.join("outputs/qa"), None);
    assert_eq!(run["runtime"], json!("podman"));
    let tried: Vec<String> = run["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| format!("{} {} {}", a["runtime"].as_str().unwrap(), a["step"].as_str().unwrap(), a["ok"]))
        .collect();
    let expected = [
        "docker client true",
        "docker image true",
        "docker probe false",
        "podman client true",
        "podman image true",
        "podman probe true",
    ];
    assert_eq!(tried, expected);
}

/// Founding document 002, "Outputs and artifacts": the mode signal is there before the first check runs, so
/// that a runner that is killed leaves it.
#[test]
fn the_mode_is_written_before_the_checks_run() {
    let slow = "touch started; sleep 30";
    for (label, mode) in [("slow", "container"), ("absent", "failsafe")] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        project(dir, &format!("  - {{label: {label}, command: {slow}, timeout_s: 60}}"));
        let text = std::fs::read_to_string(dir.join("qa.yaml")).unwrap();
        write(dir, "qa.yaml", &text.replace("echo reduced", slow));
        let mut child = command(dir, ["ready", "qa"]).spawn().unwrap();
        wait_for(&dir.join("started"));
        child.kill().unwrap();
        child.wait().unwrap();
        let out = dir.join("outputs/qa");
        let (run, results) = artifacts(&out, Some("unfinished"));
        assert_eq!((&run["state"], &run["mode"]), (&json!("running"), &json!(mode)), "{run:#}");
        assert_eq!((&run["runtime"], &results["mode"]), (&json!("docker"), &json!(mode)), "{run:#}");
        assert_eq!(read_json(out.join("error.json"))["mode"], json!(mode));
        assert_eq!(run["fallback_reason"].as_str().unwrap().contains("was lost"), mode == "failsafe");
    }
}

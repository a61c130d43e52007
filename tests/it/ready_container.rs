//! `day0 ready qa` with a real container runtime: podman, with images built without a registry.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use day0::base::env_vars;
use serde_json::json;

use super::common::{Ran, command, ran, read_json};
use super::ready::wait_for;

/// Runs podman so that it works on this host.
const PODMAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/podman/podman.sh");
/// Runs a trivial container with it.
const PROBE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/podman/probe.sh");

fn podman(args: &[&str]) -> Command {
    let mut command = Command::new(PODMAN);
    command.args(args);
    command
}

/// Why podman can run nothing here, if it cannot. Where it is required, that fails the test.
fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let probed = Command::new(PROBE).stdin(Stdio::null()).output().unwrap();
        if probed.status.success() {
            return None;
        }
        let printed = String::from_utf8_lossy(&probed.stdout);
        let reason = printed.lines().next_back().unwrap_or("the probe says nothing").to_owned();
        let required = env_vars::is_true(env_vars::DAY0_REQUIRE_PODMAN);
        assert!(!required, "podman is required: {reason}");
        println!("skipped: podman can run nothing: {reason}");
        Some(reason)
    };
    MISSING.get_or_init(probe).as_deref()
}

/// A directory that becomes an image from scratch: programs with the libraries they need.
fn root(dir: &Path) {
    let programs =
        [env!("CARGO_BIN_EXE_day0"), "/bin/sh", "/bin/true", "/bin/sleep", "/bin/cat", "/bin/touch"];
    for program in programs {
        let name = Path::new(program).file_name().unwrap();
        copy(Path::new(program), &dir.join("bin").join(name));
        let listed = Command::new("ldd").arg(program).output().unwrap();
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|w| w.starts_with('/'))
        {
            copy(Path::new(word), &dir.join(word.trim_start_matches('/')));
        }
    }
    std::fs::write(
        dir.join("Containerfile"),
        "FROM scratch\nCOPY bin /bin\nCOPY lib /lib\nCOPY lib64 /lib64\n",
    )
    .unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !to.exists() {
        std::fs::copy(from, to).unwrap();
    }
}

/// The name of a test's image, removed with it.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        // One that was never built is as gone as it should be.
        let _ = podman(&["rmi", "-f", &self.0]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A project with an image of its own and this full set.
fn project(dir: &Path, containerfile: Option<&str>, full: &str) -> Image {
    let tag = dir.file_name().unwrap().to_string_lossy().to_lowercase().replace('.', "");
    let image = Image(format!("localhost/day0-qa-{tag}"));
    let context = dir.join("image");
    root(&context);
    if let Some(text) = containerfile {
        std::fs::write(context.join("Containerfile"), text).unwrap();
    }
    let wrapper = serde_json::to_string(&[PODMAN]).unwrap();
    let text = format!(
        "container: podman
image: {{name: {}, context: image, file: image/Containerfile, probe: [/bin/true], timeout_s: 120}}
runtimes:
  podman:
    command: {wrapper}
    run_args: [--cgroups=disabled, --ulimit, 'nofile=1024:1024', --ulimit, 'nproc=1000:1000', --network=none]
full:
{full}
reduced:
  - {{label: reduced, command: [/bin/true], timeout_s: 20}}
",
        image.0
    );
    std::fs::write(dir.join("qa.yaml"), text).unwrap();
    image
}

fn qa(dir: &Path) -> Ran {
    ran(command(dir, ["ready", "qa"]).output().unwrap())
}

#[track_caller]
fn artifacts(dir: &Path) {
    for name in ["run.json", "stdout.log", "stderr.log", "results.json", "RUN_INSTRUCTIONS.md"] {
        assert!(dir.join("outputs/qa").join(name).is_file(), "{name}");
    }
}

/// Nothing of a run may stay behind.
#[track_caller]
fn no_container_is_left(dir: &Path) {
    let run = read_json(dir.join("outputs/qa/run.json"));
    let prefix = format!("day0-{}", run["run_id"].as_str().unwrap());
    let listed = podman(&["ps", "-a", "--format", "{{.Names}}"]).output().unwrap();
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(!names.contains(&prefix), "{names}");
}

/// Founding document 002, "Container mode": output captured, exit codes of the commands inside, a failing check told
/// apart from a lost container, a timeout that ends the container.
#[test]
fn checks_run_in_containers() {
    if missing().is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let full = "  - {label: version, command: [/bin/day0, --version], timeout_s: 60}
  - {label: writes, command: 'touch inside; cat qa.yaml', timeout_s: 60}
  - {label: fails, command: 'echo why >&2; exit 3', timeout_s: 60}
  - {label: hangs, command: [/bin/sleep, '60'], timeout_s: 2}";
    let _image = project(dir.path(), None, full);
    qa(dir.path()).expect(3).says("READINESS_FAILED");
    artifacts(dir.path());
    let out = dir.path().join("outputs/qa");
    let run = read_json(out.join("run.json"));
    assert_eq!((&run["mode"], &run["runtime"]), (&json!("container"), &json!("podman")), "{run:#}");
    assert!(run["versions"]["podman"].as_str().unwrap().contains("podman"));
    let results = read_json(out.join("results.json"));
    let status = |i: usize| results["checks"][i]["status"].clone();
    assert_eq!(
        [status(0), status(1), status(2), status(3)],
        ["passed", "passed", "failed", "timed_out"],
        "{results:#}"
    );
    assert_eq!(results["checks"][2]["exit_code"], json!(3));
    assert!(results["checks"][0]["tail"].as_str().unwrap().contains("day0 "));
    assert!(std::fs::read_to_string(out.join("stderr.log")).unwrap().contains("why"));
    assert!(dir.path().join("inside").is_file(), "the working directory is mounted");
    assert_eq!(read_json(out.join("error.json"))["kind"], json!("checks_failed"));
    no_container_is_left(dir.path());
}

/// Founding document 002: the container is lost while a check runs; the failsafe still gives logs and results.
#[test]
fn a_container_that_is_killed_falls_back() {
    if missing().is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let full = "  - {label: first, command: [/bin/true], timeout_s: 60}
  - {label: slow, command: 'echo begun; touch started; sleep 60', timeout_s: 100}";
    let _image = project(dir.path(), None, full);
    let child =
        command(dir.path(), ["ready", "qa"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&dir.path().join("started"));
    let run = read_json(dir.path().join("outputs/qa/run.json"));
    let name = format!("day0-{}-slow", run["run_id"].as_str().unwrap());
    assert!(podman(&["kill", &name]).stdout(Stdio::null()).status().unwrap().success());
    ran(child.wait_with_output().unwrap()).expect(0).says("QA_DEGRADED");
    artifacts(dir.path());
    let out = dir.path().join("outputs/qa");
    let (run, results) = (read_json(out.join("run.json")), read_json(out.join("results.json")));
    assert_eq!(run["mode"], json!("failsafe"));
    assert!(run["fallback_reason"].as_str().unwrap().contains("'slow' was lost"), "{run:#}");
    assert_eq!(results["lost"][1]["status"], json!("lost"));
    assert_eq!(results["checks"][0]["label"], json!("reduced"));
    assert_eq!(read_json(out.join("error.json"))["kind"], json!("fallback"));
    assert!(std::fs::read_to_string(out.join("stdout.log")).unwrap().contains("begun"));
    no_container_is_left(dir.path());
}

/// Founding document 002: image failures prevent starting the container.
#[test]
fn an_image_that_cannot_be_built_or_run_falls_back() {
    if missing().is_some() {
        return;
    }
    for (containerfile, step) in [
        ("FROM scratch\nCOPY nothing /nothing\n", "image"),
        ("FROM scratch\nCOPY Containerfile /x\n", "probe"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let _image = project(
            dir.path(),
            Some(containerfile),
            "  - {label: first, command: [/bin/true], timeout_s: 60}",
        );
        qa(dir.path()).expect(0).says("QA_DEGRADED");
        artifacts(dir.path());
        let run = read_json(dir.path().join("outputs/qa/run.json"));
        let attempts = run["attempts"].as_array().unwrap();
        let last = attempts.last().unwrap();
        assert_eq!((&last["step"], &last["ok"]), (&json!(step), &json!(false)), "{run:#}");
        assert_eq!(run["mode"], json!("failsafe"));
    }
}

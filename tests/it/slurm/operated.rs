//! What people do with a run on a cluster: cancel it, mend what stopped it, run it in containers and with an engine.

use super::cluster::{Site, is_there, local, state, until};
use crate::common::read_json;
use crate::fake_vllm::{Fault, GREETING, Setup, starts};
use crate::launched::assert_no_engine_is_left;

/// Seconds within which anything must happen: the machine is shared with other tests.
const PATIENCE: u64 = 150;

/// Fewer items than the release that others are compared with.
const SMALL: [&str; 3] = ["--wait", "--suite", "tiny_homes"];

#[test]
fn cancel_ends_every_living_job_and_nothing_is_submitted_again() {
    if !is_there() {
        return;
    }
    let site = Site::new("prologue: 'case \"$SLURM_JOB_NAME\" in *-quantize) sleep 300;; esac'\n");
    site.submit(&[]);
    let jobs = ["closeout", "compare", "score", "scan", "quantize"].map(|stage| site.job(stage));
    let first = format!("{}_0", jobs[4]);
    until("the first job", PATIENCE, || state(&first) == "RUNNING");
    site.day0(&["status", "run"]).expect(0).says("running").says("RUNNING");
    let said = site.day0(&["cancel", "run"]).expect(0).stdout;
    let cancelled: Vec<&str> = said.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(cancelled, jobs);
    for job in &jobs {
        until("the end of a job", PATIENCE, || {
            let states = state(job);
            !states.is_empty() && states.lines().all(|state| state == "CANCELLED")
        });
    }
    site.day0(&["status", "run"]).expect(0).says("stopped; it resumes");
    site.day0(&["cancel", "run"]).expect(0).says("nothing of this run");
    assert_eq!(site.submission()["number"], 1);
}

/// The program is killed for its memory the first time, as Slurm says; more of it is what the hint asks for.
#[test]
fn a_run_that_had_too_little_memory_goes_on_with_more() {
    if !is_there() {
        return;
    }
    let site = Site::new("");
    let day0 = env!("CARGO_BIN_EXE_day0");
    let killed_once = "case \"$2\" in scan) [ -e SITE/killed ] || { touch SITE/killed; exit 137; };; esac";
    site.add_command("day0-once", &format!("{killed_once}; exec {day0} \"$@\""));
    site.add_command("scontrol", "REAL \"$@\" | sed s/JobState=FAILED/JobState=OUT_OF_MEMORY/");
    let profile = |memory: &str| {
        let (program, path) = (site.path().join("bin/day0-once"), site.path_variable());
        let text = format!(
            "cpus: 1\nmemory: {memory}\nprogram: {}\nenvironment: {{PATH: '{path}'}}\n",
            program.display()
        );
        std::fs::write(site.path().join("cluster.yaml"), text).unwrap();
    };
    profile("500M");
    let ended = site.day0(&Site::release_args(&["--wait"])).expect(3);
    ended.says("USER_CONFIG_ERROR").says("raise `memory` of this stage");
    profile("600M");
    let resumed = site.day0(&["release", "--resume", "run", "--wait", "--profile", "cluster.yaml"]);
    resumed.expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_eq!(site.outcome(), *local());
    let submission = site.submission();
    let stages: Vec<&str> =
        submission["jobs"].as_array().unwrap().iter().map(|job| job["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["scan", "score", "compare", "closeout"], "the quantizer's work is kept");
}

/// A container runtime that notes how it was called and runs the command as it is.
fn runs_in_container(container: &str, runtime: &str, stub: &str, expected: &[&str]) {
    let site = Site::new(&format!(
        "stages: {{quantize: {{tasks: 1}}, score: {{tasks: 1}}}}\ncontainer: {container}\n"
    ));
    site.add_command(runtime, &format!("echo \"$*\" >> SITE/calls; {stub}"));
    site.jobs_find_commands_in(&site.path_variable());
    site.day0(&Site::release_args(&SMALL)).expect(3).says("INSUFFICIENT_EVIDENCE");
    let calls = std::fs::read_to_string(site.path().join("calls")).unwrap();
    let stages: Vec<&str> =
        calls.lines().map(|call| call.split(" unit ").nth(1).unwrap().split(' ').next().unwrap()).collect();
    assert_eq!(stages, ["quantize", "scan", "score", "compare"], "closeout needs Slurm's commands\n{calls}");
    let directory = site.path().canonicalize().unwrap().display().to_string();
    for call in calls.lines() {
        for text in expected {
            assert!(call.contains(&text.replace("SITE", &directory)), "{text} is missing in {call}");
        }
    }
}

#[test]
fn jobs_run_in_apptainer() {
    if !is_there() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    let image = image.path().display();
    runs_in_container(
        &format!("{{image: '{image}', runtime: apptainer, arguments: [--cleanenv]}}"),
        "apptainer",
        "[ \"$1 $2 $4\" = 'exec --bind --pwd' ] || exit 9; cd \"$5\"; shift 7; exec \"$@\"",
        &["SITE:SITE", "--pwd SITE --cleanenv ", &format!("--cleanenv {image} ")],
    );
}

#[test]
fn jobs_run_in_pyxis() {
    if !is_there() {
        return;
    }
    runs_in_container(
        "{image: 'nvcr.io#x', runtime: pyxis}",
        "srun",
        "while case \"$1\" in --*) :;; *) false;; esac; do shift; done; exec \"$@\"",
        &["--cpus-per-task=1 --container-image=nvcr.io#x ", "--container-workdir=SITE ", "SITE:SITE"],
    );
}

#[test]
fn an_engine_started_in_a_job_crashes_is_started_again_and_ends_with_the_job() {
    if !is_there() {
        return;
    }
    let site = Site::new("stages: {score: {tasks: 1}}\n");
    let setup = Setup::from(Fault::CrashOnce);
    std::fs::write(site.path().join("day0.yaml"), setup.config(site.path())).unwrap();
    site.day0(&Site::release_args(&SMALL)).expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_no_engine_is_left(site.path());
    assert_eq!(starts(site.path()), 2);
    let log = site.run().join(format!("serve/candidate-{}_0.log", site.job("score")));
    assert!(std::fs::read_to_string(log).unwrap().contains(GREETING));
    let serve = read_json(site.run().join("serve/candidate.json"));
    assert_eq!(serve["identity"]["engine"], "vllm 0.33.0");
    let retried = site.record()["execution"]["retried"].to_string();
    assert!(retried.contains("ended while scoring"), "{retried}");
}

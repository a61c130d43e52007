//! Nothing goes wrong.

use super::cluster::{Site, is_there, local, slurm};
use crate::common::read_json;

#[test]
fn a_release_through_slurm_has_the_bytes_of_a_local_one() {
    if !is_there() {
        return;
    }
    // More than half of a node's CPUs, so that two tasks at once are on two nodes.
    let site = Site::new("stages: {score: {tasks: 3, throttle: 2, cpus: 5}}\n");
    site.day0(&Site::release_args(&["--wait", "--ci"])).expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_eq!(site.outcome(), *local());
    let record = read_json(site.run().join("release.json"));
    let places = record["execution"]["places"].as_array().unwrap();
    let jobs: std::collections::BTreeSet<&str> = places.iter().map(|p| p["job"].as_str().unwrap()).collect();
    assert!(jobs.len() >= 5, "quantize, scan, three score tasks and compare: {jobs:?}");
    let nodes: std::collections::BTreeSet<&str> = places
        .iter()
        .filter(|p| p["units"].as_str().unwrap().starts_with("score/"))
        .map(|p| p["place"].as_str().unwrap())
        .collect();
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), ["n1", "n2"]);
    let report = std::fs::read_to_string(site.run().join("report.md")).unwrap();
    for text in ["## Where it ran", "| score/candidate/", "| n1 |", "Nothing was tried again"] {
        assert!(report.contains(text), "{text} is missing in\n{report}");
    }
    // Each engine was started once a task of the array, not once a wave.
    let serve = places.iter().filter(|p| p["units"] == "serve/candidate").count();
    assert_eq!(serve, 1);
    let junit = std::fs::read_to_string(site.run().join("junit.xml")).unwrap();
    assert!(junit.contains("<failure type=\"INSUFFICIENT_EVIDENCE\""), "{junit}");
    site.day0(&["status", "run"]).expect(0).says("closed: ANOMALOUS").says("COMPLETED");
    site.day0(&["logs", "run", "--stage", "score"]).expect(0).says("==> score ");
    site.day0(&["cancel", "run"]).expect(0).says("nothing of this run");
    // What ended with a verdict is not submitted again.
    site.resume().expect(3);
    assert_eq!(site.submission()["number"], 1);
}

#[test]
fn a_plan_shows_the_jobs_and_writes_their_scripts() {
    if !is_there() {
        return;
    }
    let site =
        Site::new("partition: main\ntime: 10\nsignal_seconds: 30\nstages: {score: {tasks: 2, nodes: 2}}\n");
    let args =
        ["release", "--plan", "--executor", "slurm", "--profile", "cluster.yaml", "--scripts", "scripts"];
    let ran = site.day0(&args).expect(10);
    for text in ["gate/compare", "closeout", "all, however they ended"] {
        assert!(ran.stdout.contains(text), "{}", ran.stdout);
    }
    let score = ran.stdout.lines().find(|line| line.starts_with("score")).unwrap();
    let cells: Vec<&str> = score.split_whitespace().collect();
    // Tasks, nodes, CPUs, GPUs, memory, limit, partition.
    assert_eq!([cells[1], cells[3], cells[4], cells[5]], ["2", "2", "1", "–"], "{score}");
    assert_eq!(cells[6..9], ["default", "10", "main"], "{score}");
    for stage in ["quantize", "scan", "score", "compare", "closeout"] {
        let script = site.path().join(format!("scripts/{stage}.sh"));
        slurm("sbatch", &["--test-only", script.to_str().unwrap()]);
    }
    assert!(!site.run().exists());
}

#[test]
fn a_profile_that_slurm_refuses_is_a_usage_error_and_submits_nothing() {
    if !is_there() {
        return;
    }
    let site = Site::new("partition: nowhere\n");
    site.day0(&Site::release_args(&[])).expect(2).says("partition");
    assert!(!site.run().join("slurm/submissions.json").exists());
    // One stage that is refused keeps all others from being submitted.
    let site = Site::new("stages: {compare: {partition: nowhere}}\n");
    site.day0(&Site::release_args(&[])).expect(2).says("partition");
    assert!(!site.run().join("slurm/submissions.json").exists());
    let site = Site::new("program: /nowhere/day0\n");
    site.day0(&Site::release_args(&[])).expect(2).says("program: /nowhere/day0 does not exist");
    let site = Site::new("partiton: main\n");
    site.day0(&Site::release_args(&[])).expect(2).says("did you mean 'partition'?").says("line 2");
}

#[test]
fn an_impossible_release_is_not_submitted() {
    if !is_there() {
        return;
    }
    let site = Site::new("");
    let args = ["release", "--recipe", "nvfp4_experts_only", "--out", "run", "--executor", "slurm"];
    site.day0(&args).expect(4).says("INFEASIBLE");
    assert!(!site.run().join("slurm").exists());
}

//! Jobs that are stopped, requeued, cancelled, lose their node or their disk.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cluster::{Site, is_there, local, restarts, slurm, state, until};
use crate::chain::candidate_card_of;
use crate::fake_engine::{self, completion};

/// Seconds within which anything must happen: the machine is shared with other tests.
const PATIENCE: u64 = 150;

/// Waits until the score array has results and its task 0 still runs.
fn until_scoring(site: &Site) -> String {
    until("the first score", PATIENCE, || site.units_done("score/") > 0);
    format!("{}_0", site.job("score"))
}

#[test]
fn a_requeued_task_goes_on_where_it_was() {
    if !is_there() {
        return;
    }
    let site = Site::new("stages: {score: {tasks: 2}}\n");
    site.submit(&[]);
    let task = until_scoring(&site);
    slurm("scontrol", &["requeue", &task]);
    site.resume().expect(3);
    assert_eq!(site.outcome(), *local());
    assert_eq!(restarts(&task), 1);
    assert_eq!(site.submission()["number"], 1, "the same ids went on");
}

#[test]
fn a_cancelled_task_ends_the_run_without_a_verdict_and_it_resumes() {
    if !is_there() {
        return;
    }
    let site = Site::new("stages: {score: {tasks: 2}}\n");
    site.submit(&[]);
    let task = until_scoring(&site);
    slurm("scancel", &[&task]);
    until("release.json", PATIENCE, || site.run().join("slurm/closed.json").is_file());
    let record = site.record();
    assert_eq!(record["failure_class"], "INFRA_TRANSIENT");
    assert!(record["detail"].as_str().unwrap().contains("CANCELLED"), "{}", record["detail"]);
    // The job that wrote it may still be there for a moment, which is nothing to wait for.
    site.resume().expect(3);
    assert_eq!(site.outcome(), *local());
    assert_eq!(site.submission()["number"], 2);
}

/// The node's daemon is killed, its job's process is not: Slurm starts the job again elsewhere while the first one still
/// works. Leases keep them apart.
#[test]
fn a_killed_node_daemon_moves_the_job_and_nothing_is_owned_twice() {
    if !is_there() {
        return;
    }
    let site = Site::new("partition: frail\nstages: {score: {tasks: 1}}\n");
    site.submit(&[]);
    let task = until_scoring(&site);
    let node = slurm("squeue", &["-h", "-r", "-o", "%N", "-j", &task]).trim().to_owned();
    let conf = day0::base::env_vars::get("SLURM_CONF").unwrap();
    let dir = std::path::Path::new(&conf).parent().unwrap().to_path_buf();
    let pid = std::fs::read_to_string(dir.join(format!("slurmd.{node}.pid"))).unwrap();
    // It stops until Slurm has started the job again, so that both are there.
    let first = working_process(&site, &task);
    slurm("kill", &["-STOP", &first]);
    slurm("kill", &["-9", pid.trim()]);
    until("the restart", PATIENCE, || restarts(&task) > 0);
    slurm("kill", &["-CONT", &first]);
    site.resume().expect(3);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster.sh");
    assert!(Command::new(script).args(["node", dir.to_str().unwrap(), &node]).status().unwrap().success());
    assert_eq!(site.outcome(), *local());
    assert_eq!(restarts(&task), 1);
    // No unit was begun while another had it, and each was done once but gates, which every process judges anew.
    assert_eq!(site.record()["execution"]["retried"], serde_json::json!([]));
    let done: Vec<_> = site.done().into_iter().filter(|unit| !unit.starts_with("gate/")).collect();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), done.len(), "{done:?}");
}

/// The process that runs the units of a task.
fn working_process(site: &Site, task: &str) -> String {
    let mut found = None;
    until("a unit that runs", PATIENCE, || {
        let state = site.day0(&["status", "run", "--json"]).expect(0).json();
        let running = state["running"].as_array().unwrap().clone();
        found = running.iter().find(|unit| unit["job"] == task).map(|unit| unit["pid"].to_string());
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_full_run_directory_is_a_transient_fault_and_the_run_resumes_once_there_is_room() {
    if !is_there() {
        return;
    }
    let site = Site::new("max_resubmissions: 0\nstages: {score: {tasks: 1}}\n");
    std::fs::create_dir(site.run()).unwrap();
    let run = site.run().display().to_string();
    let mount = |options: &str| {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs", &run])
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount("size=1024k") {
        let required = day0::base::env_vars::get("DAY0_REQUIRE_SLURM").as_deref() == Some("1");
        assert!(!required, "DAY0_REQUIRE_SLURM=1, but no file system can be mounted here");
        println!("skipped: no file system can be mounted here");
        return;
    }
    let ended = site.day0(&Site::release_args(&["--wait"]));
    assert_eq!(ended.code, Some(75), "{}\n{}", ended.stdout, ended.stderr);
    let record = site.record();
    assert_eq!(record["failure_class"], "INFRA_TRANSIENT");
    assert!(record["detail"].to_string().contains("No space left on device"), "{}", record["detail"]);
    assert!(!site.run().join("quantize/checkpoint").exists());
    assert!(Command::new("mount").args(["-o", "remount,size=64m", &run]).status().unwrap().success());
    let resumed = site.resume();
    let outcome = (resumed.code == Some(3)).then(|| site.outcome());
    assert!(Command::new("umount").args(["--lazy", &run]).status().unwrap().success());
    resumed.expect(3);
    assert_eq!(outcome.as_ref(), Some(local()));
}

/// Slurm's smallest limit is a minute, and the warning may come half of that early. The engine answers slowly until the
/// job was put back into the queue.
#[test]
fn a_job_at_its_time_limit_saves_what_it_has_and_goes_on_under_its_id() {
    if !is_there() {
        return;
    }
    let slow = Arc::new(AtomicBool::new(false));
    let answers_slowly = Arc::clone(&slow);
    let site = Site::new("time: 1\nsignal_seconds: 10\nstages: {score: {tasks: 1}}\n");
    let card = candidate_card_of(site.path(), "w8a8");
    let engine = fake_engine::start(
        card,
        Box::new(move |_, body| {
            if answers_slowly.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(2));
            }
            completion(body, 5, |t| -1.0 - (t % 7) as f64 / 10.0)
        }),
    );
    site.submit(&["--endpoint", &engine.url]);
    let task = until_scoring(&site);
    slow.store(true, Ordering::Relaxed);
    let before = site.units_done("score/");
    until("the requeue", PATIENCE, || restarts(&task) == 1);
    slow.store(false, Ordering::Relaxed);
    let log = std::fs::read_to_string(site.run().join(format!("slurm/logs/{task}.out"))).unwrap();
    assert!(before > 0 && !log.contains("panicked"), "{log}");
    let ended = site.resume();
    assert!(matches!(ended.code, Some(1 | 3)), "{}\n{}", ended.stdout, ended.stderr);
    assert_eq!(state(&task), "COMPLETED");
    assert_eq!(site.submission()["number"], 1, "the same ids went on");
    let record = site.record();
    let restarted = serde_json::json!([{"job": task, "restarts": 1}]);
    assert_eq!(record["execution"]["restarted"], restarted);
    // Units before and after the warning, in one job; at most the wave that was under way was begun twice.
    let places = record["execution"]["places"].to_string();
    assert!(places.contains(&format!("\"{task}\"")) && places.contains(&format!("\"{task}+1\"")), "{places}");
    let retried = record["execution"]["retried"].as_array().unwrap().len();
    assert!(retried <= 1, "{}", record["execution"]["retried"]);
    // The same as a run that nobody stopped.
    let calm = Site::new("");
    let args = ["release", "--limit", "40", "--recipe", "w8a8", "--out", "run", "--endpoint", &engine.url];
    let local = calm.day0(&args);
    assert_eq!(local.code, ended.code, "{}\n{}", local.stdout, local.stderr);
    assert_eq!(site.outcome(), calm.outcome());
}

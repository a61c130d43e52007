//! Runs that go on: what a resume, a closeout and a host that was stopped find and leave, on a list of jobs.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::cluster::Site;
use super::fake::{CONSEQUENCE, FakeSlurm, LOST};
use crate::common::turn;

/// What sbatch says where the controller has taken a job and its answer was lost.
const LOST_ANSWER: &str =
    "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1";

#[test]
fn a_host_stopped_during_its_checks_leaves_a_run_of_slurms_with_its_profile() {
    let _turn = turn();
    let refused = "echo 'sbatch: error: Invalid account' >&2; exit 1";
    // Named or not, it goes on where it was to run, as it was to.
    let cases: [(&str, Option<i32>, &[&str]); 2] =
        [("kill -9 $PPID", None, &[]), (refused, Some(2), &["--executor", "slurm"])];
    for (check, code, more) in cases {
        let slurm = FakeSlurm::new("partition: kept");
        slurm.write("on-check", check);
        assert_eq!(slurm.release().code, code);
        slurm.remove("on-check");
        let args = [&["release", "--resume", "run"], more].concat();
        slurm.day0(&args).expect(10).says("submitted: quantize 101");
        assert_eq!(slurm.last().0, 1);
        let script = slurm.lines("run/slurm/scripts/1/score.sh");
        assert!(script.contains(&"#SBATCH --partition=kept".to_owned()), "{script:?}");
    }
}

#[test]
fn a_job_whose_submitter_was_killed_before_it_could_note_it_is_found() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.write("on-submit", "kill -9 $PPID");
    assert_eq!(slurm.release().code, None);
    assert_eq!(slurm.last(), (1, false, Vec::new()));
    slurm.day0(&["cancel", "run"]).expect(0).says("stopped job 101 (quantize)");
    assert_eq!(slurm.lines("cancelled"), ["101"]);
}

#[test]
fn an_answer_that_is_lost_submits_no_job_twice_and_the_environment_says_nothing_to_sbatch() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.write("on-submit", &format!("[ $id -ne 102 ] || {{ {LOST_ANSWER}; }}"));
    let mut release = slurm.command(&FakeSlurm::release_args());
    release.env("SBATCH_PARTITION", "other").env("SQUEUE_STATES", "RUNNING");
    assert_eq!(release.output().unwrap().status.code(), Some(10));
    let ids: Vec<String> = slurm.last().2.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, ["101", "102", "103", "104", "105"]);
    assert_eq!(slurm.lines("jobs").len(), 5);
    let environment = slurm.lines("environment");
    assert!(environment.iter().all(|line| line.starts_with("SLURM_CONF=")), "{environment:?}");
}

#[test]
fn only_a_living_closeout_is_worth_waiting_for() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.release().expect(10);
    slurm.resume().expect(10);
    assert_eq!(slurm.last().0, 1, "its jobs go on");
    slurm.end("101", "JobState=RUNNING NodeList=n1");
    slurm.end("105", "JobState=COMPLETING NodeList=n1");
    slurm.resume().expect(10);
    assert_eq!(slurm.last().0, 2);
    let cancelled = slurm.lines("cancelled");
    assert!(
        ["101", "102", "103", "104"].iter().all(|id| cancelled.contains(&(*id).to_owned())),
        "{cancelled:?}"
    );
}

#[test]
fn a_closeout_closes_its_own_submission_only() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.release().expect(10);
    slurm.end("105", CONSEQUENCE);
    slurm.resume().expect(10);
    for (id, why) in [("105", "submission 2 goes on"), ("999", "job 999 closes no submission")] {
        slurm.runs_as("closeout", id).expect(0).says(why);
        assert!(!slurm.is_closed() && !slurm.site.run().join("release.json").exists(), "{id}");
    }
}

#[test]
fn a_closeout_killed_while_submitting_cancels_its_half_when_it_runs_again() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.release().expect(10);
    slurm.first_ends(LOST);
    slurm.write("on-submit", "[ $id -ne 107 ] || kill -9 $PPID");
    assert_eq!(slurm.runs_as("closeout", "105").code, None);
    assert_eq!(slurm.last(), (2, false, vec![("quantize".to_owned(), "106".to_owned())]));
    // It goes on while it is in the queue again, and nobody else does.
    slurm.resume().expect(10);
    assert_eq!(slurm.lines("cancelled"), [""; 0]);
    slurm.remove("on-submit");
    slurm.runs_as("closeout", "105").expect(0);
    let mut cancelled = slurm.lines("cancelled");
    cancelled.sort();
    assert_eq!(cancelled, ["106", "107"]);
    let (number, complete, jobs) = slurm.last();
    assert_eq!((number, complete, jobs.len(), jobs[0].1.as_str()), (2, true, 5, "108"));
}

#[test]
fn resuming_uses_up_none_of_the_resubmissions() {
    let _turn = turn();
    let slurm = FakeSlurm::new("max_resubmissions: 1");
    slurm.release().expect(10);
    for numbers in [[1, 2], [3, 4]] {
        for number in numbers {
            assert_eq!(slurm.last().0, number);
            slurm.first_ends(LOST);
            slurm.runs("closeout").expect(0);
        }
        assert_eq!(slurm.last().0, numbers[1], "one resubmission is allowed");
        assert!(slurm.is_closed());
        slurm.resume().expect(10);
    }
}

#[test]
fn a_verdict_that_something_in_the_way_decided_is_not_the_last_word() {
    let _turn = turn();
    let slurm = FakeSlurm::new("memory: 1G");
    slurm.release().expect(10);
    slurm.runs("quantize").expect(0);
    slurm.end("102", "JobState=OUT_OF_MEMORY ExitCode=0:125 NodeList=n1");
    for id in ["103", "104"] {
        slurm.end(id, CONSEQUENCE);
    }
    slurm.runs("closeout").expect(0);
    let record = slurm.site.record();
    assert_eq!(
        (&record["failure_class"], &record["verdict"]),
        (&"USER_CONFIG_ERROR".into(), &"ANOMALOUS".into())
    );
    slurm.write("cluster.yaml", "memory: 2G");
    slurm.day0(&["release", "--resume", "run", "--profile", "cluster.yaml"]).expect(10);
    let stages = |slurm: &FakeSlurm| slurm.last().2.into_iter().map(|(stage, _)| stage).collect::<Vec<_>>();
    assert_eq!(stages(&slurm), ["scan", "score", "compare", "closeout"]);
    assert!(slurm.lines("run/slurm/scripts/2/scan.sh").contains(&"#SBATCH --mem=2G".to_owned()));
    for stage in stages(&slurm) {
        slurm.runs(&stage).expect(0);
    }
    // Evidence decided now, on every unit: that is repeated.
    slurm.resume().expect(3).says("INSUFFICIENT_EVIDENCE");
    assert_eq!(slurm.last().0, 2);
    // A result that does not hold any more is made again, with what follows from it.
    std::fs::remove_file(slurm.site.run().join("eval/candidate/record.json")).unwrap();
    slurm.resume().expect(10);
    assert_eq!(stages(&slurm), ["compare", "closeout"]);
}

/// An engine that does not come up is a verdict; once the run is resumed, that one is no evidence any more.
#[test]
fn what_an_earlier_submission_saw_does_not_decide_the_next() {
    let _turn = turn();
    let slurm = FakeSlurm::new("");
    slurm.write("day0.yaml", "serve: {engine: {command: 'false {model} {port}', startup_seconds: 5}}");
    slurm.release().expect(10);
    for stage in ["quantize", "scan", "score", "compare", "closeout"] {
        slurm.runs(stage).expect(0);
    }
    assert_eq!(slurm.site.record()["failure_class"], "DEPLOYMENT_HEALTH_FAILED");
    slurm.resume().expect(10);
    assert_eq!((slurm.last().0, slurm.last().2[0].0.as_str()), (2, "score"));
    slurm.first_ends("JobState=OUT_OF_MEMORY ExitCode=0:125 NodeList=n1");
    slurm.runs("closeout").expect(0);
    let record = slurm.site.record();
    assert_eq!(record["failure_class"], "USER_CONFIG_ERROR", "{}", record["detail"]);
    assert!(record["detail"].to_string().contains("OUT_OF_MEMORY"), "{}", record["detail"]);
}

/// The warning before a time limit, which comes while closeout reads the ledger.
#[test]
fn a_warning_does_not_stop_a_closeout_half_way() {
    let _turn = turn();
    let site = Site::new("");
    let args = ["release", "--limit", "4", "--suite", "tiny_homes", "--recipe", "w8a8", "--out", "run"];
    site.day0(&args).expect(3).says("INSUFFICIENT_EVIDENCE");
    let mut closeout = site.command(&["unit", "closeout", "--run", "run"]);
    let mut closeout = closeout.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", closeout.id());
    let usr1 = 1u64 << (libc::SIGUSR1 - 1);
    let is_caught = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
        caught.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & usr1 != 0)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_caught() {
        assert!(Instant::now() < deadline, "no handler");
        std::thread::sleep(Duration::from_micros(200));
    }
    // SAFETY: sends a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(closeout.id() as i32, libc::SIGUSR1) }, 0);
    assert_eq!(closeout.wait().unwrap().code(), Some(0));
    assert_eq!(site.record()["failure_class"], "INSUFFICIENT_EVIDENCE", "{}", site.record()["detail"]);
}

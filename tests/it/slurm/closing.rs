//! Closeout: what it submits again, and that it closes the run whatever it may not do.

use super::cluster::{Site, is_there, local, slurm};

/// A profile whose quantize job runs `how` before the program.
fn quantize_begins_with(how: &str) -> String {
    format!(
        "stages: {{quantize: {{tasks: 1}}, score: {{tasks: 1}}}}\nprologue: |\n  \
         case \"$SLURM_JOB_NAME\" in *-quantize) {how} ;; esac\n"
    )
}

/// Killed without a word, which may pass by itself.
const KILLED: &str = "kill -9 $$";
/// The same, the first time only.
const KILLED_ONCE: &str = "[ -e killed ] || { touch killed; kill -9 $$; }";

/// What fails in the first line of a refusal, as Slurm says it.
const REFUSES: &str =
    "echo 'sbatch: error: Batch job submission failed: Access/permission denied' >&2; exit 1";

#[test]
fn a_node_that_may_not_submit_closes_the_run_and_a_host_that_may_goes_on() {
    if !is_there() {
        return;
    }
    let site = Site::new(&quantize_begins_with(KILLED_ONCE));
    site.add_command("sbatch", REFUSES);
    site.jobs_find_commands_in(&site.path_variable());
    site.day0(&Site::release_args(&["--wait"])).expect(75).says("INFRA_TRANSIENT");
    let detail = site.record()["detail"].to_string();
    assert!(detail.contains("Access/permission denied") && detail.contains("signal 9"), "{detail}");
    site.resume().expect(3);
    assert_eq!(site.outcome(), *local());
    assert_eq!(site.submission()["number"], 2);
    let report = std::fs::read_to_string(site.run().join("report.md")).unwrap();
    assert!(report.contains("Tried again:") && report.contains("the run was resumed"), "{report}");
}

#[test]
fn nodes_without_the_commands_of_slurm_close_the_run_from_its_files() {
    if !is_there() {
        return;
    }
    let site = Site::new(&quantize_begins_with(KILLED));
    for name in ["rm", "sleep"] {
        site.add_command(name, "exec REAL \"$@\"");
    }
    site.jobs_find_commands_in(site.path().join("bin").to_str().unwrap());
    site.day0(&Site::release_args(&["--wait"])).expect(75).says("INFRA_TRANSIENT");
    let detail = site.record()["detail"].to_string();
    assert!(detail.contains("nobody knows how it ended") && detail.contains("sbatch"), "{detail}");
}

#[test]
fn jobs_that_nobody_remembers_are_submitted_again_once() {
    if !is_there() {
        return;
    }
    let site = Site::new(&quantize_begins_with(KILLED));
    let forgets = "case \"$*\" in *'show job'*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; \
                   esac; exec REAL \"$@\"";
    site.add_command("scontrol", forgets);
    site.jobs_find_commands_in(&site.path_variable());
    site.day0(&Site::release_args(&["--wait"])).expect(75).says("nobody knows how it ended");
    let submission = site.submission();
    assert_eq!((&submission["number"], &submission["because"]["is_guess"]), (&2.into(), &true.into()));
    // What was tried again is said everywhere, also where no unit ever ran.
    let report = std::fs::read_to_string(site.run().join("report.md")).unwrap();
    assert!(report.contains("- submission 2 (job "), "{report}");
    site.day0(&["status", "run"]).expect(0).says("tried again: submission 2 (job ");
    assert_eq!(site.record()["execution"]["resubmitted"][0]["number"], 2);
}

/// Neither the waiting host nor the nodes hear from the controller: the files of the run say enough.
#[test]
fn a_transient_fault_is_submitted_again_up_to_the_maximum_also_without_a_controller() {
    if !is_there() {
        return;
    }
    let site = Site::new(&quantize_begins_with("exit 75"));
    let down = "case \"$*\" in *'show job'*) \
                echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1;; \
                esac; exec REAL \"$@\"";
    site.add_command("scontrol", down);
    // sbatch passes PATH on to the jobs.
    let mut release = site.command(&Site::release_args(&["--wait", "--ci"]));
    let ended = crate::common::ran(release.env("PATH", site.path_variable()).output().unwrap());
    ended.expect(75).says("exit code 75").says("Unable to contact slurm controller");
    let submission = site.submission();
    assert_eq!(submission["number"], 3, "max_resubmissions is 2");
    assert!(submission["submitted_by"].as_str().unwrap().starts_with("job "), "{submission}");
    assert!(submission["because"]["what"].as_str().unwrap().contains("exit code 75"), "{submission}");
    let junit = std::fs::read_to_string(site.run().join("junit.xml")).unwrap();
    assert!(junit.contains("<error type=\"INFRA_TRANSIENT\""), "{junit}");
}

/// Slurm's shortest limit is a minute: the controller's answer is changed instead.
#[test]
fn a_job_that_hit_its_time_limit_is_submitted_again_under_new_ids() {
    if !is_there() {
        return;
    }
    let site = Site::new(&quantize_begins_with(KILLED_ONCE));
    site.add_command("scontrol", "REAL \"$@\" | sed s/JobState=FAILED/JobState=TIMEOUT/");
    site.jobs_find_commands_in(&site.path_variable());
    site.day0(&Site::release_args(&["--wait"])).expect(3);
    assert_eq!(site.outcome(), *local());
    let submission = site.submission();
    assert_eq!(submission["number"], 2);
    let report = std::fs::read_to_string(site.run().join("report.md")).unwrap();
    assert!(report.contains("TIMEOUT") && report.contains("- submission 2 (job "), "{report}");
}

#[test]
fn a_submission_that_is_refused_half_way_leaves_nothing_in_the_queue() {
    if !is_there() {
        return;
    }
    let site = Site::new("");
    let third = format!(
        "case \"$*\" in *--parsable*) echo x >> SITE/count; \
         [ \"$(wc -l < SITE/count)\" -ne 3 ] || {{ {REFUSES}; }};; esac; exec REAL \"$@\""
    );
    site.add_command("sbatch", &third);
    let with_path = |args: &[&str]| {
        crate::common::ran(site.command(args).env("PATH", site.path_variable()).output().unwrap())
    };
    with_path(&Site::release_args(&["--ci"])).expect(2).says("Access/permission denied");
    let left = site.submission();
    let ids: Vec<String> = left["jobs"].as_array().unwrap().iter().map(|j| j["id"].to_string()).collect();
    assert_eq!((left["complete"].as_bool(), ids.len()), (Some(false), 2));
    for id in ids {
        let shown = slurm("scontrol", &["-o", "show", "job", &id]);
        assert!(shown.contains("JobState=CANCELLED") && !shown.contains("JobState=PENDING"), "{shown}");
    }
    site.day0(&["cancel", "run"]).expect(0).says("nothing of this run");
    let junit = std::fs::read_to_string(site.run().join("junit.xml")).unwrap();
    assert!(junit.contains("<error type=\"USER_CONFIG_ERROR\""), "{junit}");
    site.day0(&["logs", "run", "--stage", "scores"]).expect(2).says("did you mean 'score'?").says("closeout");
    // Without a controller the state of the ledger is still shown.
    site.add_command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1");
    with_path(&["status", "run"]).expect(0).says("units done").says("its jobs are unknown: scontrol");
}

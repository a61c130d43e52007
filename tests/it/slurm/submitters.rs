//! Hosts that submit and are killed.

use std::process::Stdio;
use std::time::Duration;

use super::cluster::{Site, is_there, local, slurm, until};

/// A host that is killed between two submissions leaves a held job; resuming removes it and submits all.
#[test]
fn a_submit_host_killed_while_submitting_leaves_nothing_that_runs() {
    if !is_there() {
        return;
    }
    let site = Site::new("stages: {score: {tasks: 2}}\n");
    // An sbatch that kills who calls it the third time it really submits.
    let third = "case \"$*\" in *--parsable*) echo x >> SITE/count; \
                 [ \"$(wc -l < SITE/count)\" -eq 3 ] && kill -9 $PPID && exit 1;; esac; exec REAL \"$@\"";
    site.add_command("sbatch", third);
    let mut release = site.command(&Site::release_args(&["--wait"]));
    let output = release.env("PATH", site.path_variable()).output().unwrap();
    assert_eq!(output.status.code(), None, "killed");
    let left = site.submission();
    assert_eq!((left["complete"].as_bool(), left["jobs"].as_array().unwrap().len()), (Some(false), 2));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.units_done(""), 0, "the first job is held");
    site.resume().expect(3);
    assert_eq!(site.outcome(), *local());
    let ids: Vec<String> = left["jobs"].as_array().unwrap().iter().map(|j| j["id"].to_string()).collect();
    for id in ids {
        assert!(slurm("scontrol", &["-o", "show", "job", &id]).contains("JobState=CANCELLED"));
    }
}

#[test]
fn a_submit_host_killed_while_waiting_changes_nothing() {
    if !is_there() {
        return;
    }
    let site = Site::new("stages: {score: {tasks: 2}}\n");
    let mut child = site
        .command(&Site::release_args(&["--wait"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the first unit", 150, || site.units_done("") > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    site.resume().expect(3);
    assert_eq!(site.outcome(), *local());
    assert_eq!(site.submission()["number"], 1);
}

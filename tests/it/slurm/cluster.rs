//! The cluster, and runs on it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Ran, command, ran, read_json};

/// Whether there is a cluster to test on. Without one a test says so and ends, unless `DAY0_REQUIRE_SLURM` is 1.
pub fn is_there() -> bool {
    let sinfo = Command::new("sinfo").args(["-h", "-o", "%T"]).output();
    let there = day0::base::env_vars::get("SLURM_CONF").is_some() && sinfo.is_ok_and(|o| o.status.success());
    if !there {
        assert_ne!(
            day0::base::env_vars::get("DAY0_REQUIRE_SLURM").as_deref(),
            Some("1"),
            "DAY0_REQUIRE_SLURM=1, but no Slurm answers (SLURM_CONF)"
        );
        println!("skipped: no Slurm here; see tests/slurm/cluster.sh");
    }
    there
}

/// A directory with a cache of its own, in which a release runs.
pub struct Site {
    dir: tempfile::TempDir,
}

/// Items of each task: too few for ACCEPT, so every run that comes to its end returns 3.
const LIMIT: &str = "40";

impl Site {
    /// With a cluster profile.
    pub fn new(profile: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // One thread a task, as Slurm grants it: the machine is shared.
        std::fs::write(dir.path().join("cluster.yaml"), format!("cpus: 1\n{profile}")).unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// Writes a command of this name into `bin`. In the shell script, SITE stands for this directory, REAL for the command that
    /// it hides.
    pub fn add_command(&self, name: &str, script: &str) {
        let bin = self.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let mut script = script.replace("SITE", self.path().to_str().unwrap());
        if script.contains("REAL") {
            script = script.replace("REAL", slurm("sh", &["-c", &format!("command -v {name}")]).trim());
        }
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// PATH with `bin` before all else.
    pub fn path_variable(&self) -> String {
        let path = day0::base::env_vars::get("PATH").unwrap();
        format!("{}:{path}", self.path().join("bin").display())
    }

    /// Lets the jobs look for commands in `path`.
    pub fn jobs_find_commands_in(&self, path: &str) {
        let profile = self.path().join("cluster.yaml");
        let text = std::fs::read_to_string(&profile).unwrap();
        std::fs::write(&profile, format!("{text}environment: {{PATH: '{path}'}}\n")).unwrap();
    }

    /// `release.json`.
    pub fn record(&self) -> Value {
        read_json(self.run().join("release.json"))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command(self.path(), args);
        command.env("DAY0_CACHE", self.path().join("cache"));
        command
    }

    pub fn day0(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// The arguments that submit a release.
    pub fn release_args<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let args = ["release", "--limit", LIMIT, "--recipe", "w8a8", "--out", "run"];
        let slurm = ["--executor", "slurm", "--profile", "cluster.yaml"];
        args.iter().chain(&slurm).chain(more).copied().collect()
    }

    /// Submits without waiting.
    pub fn submit(&self, more: &[&str]) -> Ran {
        self.day0(&Self::release_args(more)).expect(10).says("submitted")
    }

    /// Waits for the end of what was submitted, or submits what is left and waits.
    pub fn resume(&self) -> Ran {
        self.day0(&["release", "--resume", "run", "--wait"])
    }

    /// The last submission.
    pub fn submission(&self) -> Value {
        let all = read_json(self.run().join("slurm/submissions.json"));
        all.as_array().unwrap().last().unwrap().clone()
    }

    /// Slurm's id of the job of a stage.
    pub fn job(&self, stage: &str) -> String {
        let submission = self.submission();
        let job =
            submission["jobs"].as_array().unwrap().iter().find(|j| j["stage"] == stage).unwrap().clone();
        job["id"].to_string()
    }

    /// Units of which the ledger holds a result.
    pub fn units_done(&self, prefix: &str) -> usize {
        self.done().iter().filter(|unit| unit.starts_with(prefix)).count()
    }

    /// The units of which the ledger holds a result, one for each result.
    pub fn done(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.run().join("ledger.jsonl")).unwrap_or_default();
        let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries
            .filter(|e| e["event"] == "done")
            .filter_map(|e| Some(e["unit"].as_str()?.to_owned()))
            .collect()
    }

    /// What a run through Slurm must share with any other on the same inputs.
    pub fn outcome(&self) -> Outcome {
        Outcome::of(&self.run())
    }
}

/// Everything of a finished run that may not depend on where it ran.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    release: Value,
    results: Vec<Value>,
    samples: Vec<(String, String)>,
}

impl Outcome {
    pub fn of(run: &Path) -> Self {
        let mut release = read_json(run.join("release.json"));
        day0::release::remove_volatile(&mut release);
        for key in ["run_id", "recommendation", "baseline_reused"] {
            release.as_object_mut().unwrap().remove(key);
        }
        let mut found = Self { release, results: Vec::new(), samples: Vec::new() };
        for arm in ["baseline", "candidate"] {
            for name in ["results.json", "record.json"] {
                let mut value = read_json(run.join("eval").join(arm).join(name));
                day0::release::remove_volatile(&mut value);
                found.results.push(value);
            }
            for entry in std::fs::read_dir(run.join("eval").join(arm)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.starts_with("samples_") {
                    found.samples.push((format!("{arm}/{name}"), std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.samples.sort();
        assert_eq!(found.samples.len(), 10);
        found
    }
}

/// The local run that all others are compared with, made once.
pub fn local() -> &'static Outcome {
    static LOCAL: OnceLock<Outcome> = OnceLock::new();
    LOCAL.get_or_init(|| {
        let site = Site::new("");
        let args = ["release", "--limit", LIMIT, "--recipe", "w8a8", "--out", "run", "--threads", "1"];
        site.day0(&args).expect(3);
        site.outcome()
    })
}

/// Polls until `done`; panics after `seconds`.
#[track_caller]
pub fn until(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "{what} did not come within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a command of Slurm.
#[track_caller]
pub fn slurm(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    said
}

/// State of a job or a task, e.g. `RUNNING`.
pub fn state(job: &str) -> String {
    let output =
        Command::new("squeue").args(["-h", "-t", "all", "-r", "-o", "%T", "-j", job]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// How often a job or a task was requeued.
pub fn restarts(job: &str) -> u32 {
    let text = slurm("scontrol", &["-o", "show", "job", job]);
    let word = text.split(' ').find_map(|w| w.strip_prefix("Restarts="));
    word.and_then(|n| n.parse().ok()).unwrap_or(0)
}

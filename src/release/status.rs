//! Where a run stands, from its directory alone; Slurm is asked where its commands are there. And how to stop it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::execution::execution;
use super::jobs::STAGES;
use super::run_dir::RunDir;
use super::slurm::{SlurmDir, living, tail};
use crate::base::closest::suggestion;
use crate::base::json;
use crate::exec::slurm::{JobReport, Slurm};
use crate::exec::{Ledger, Owner, Snapshot, UnitHistory};
use crate::record::release::{Execution, ReleaseRecord};
use crate::record::{Failure, FailureClass, Verdict};

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has ended, with a verdict or without.
    Closed,
    /// A process works on it.
    Running,
    /// Its jobs are queued.
    Queued,
    /// Nobody works on it; it resumes.
    Stopped,
    /// No process works on it, and its jobs cannot be asked for.
    Unknown,
}

/// Where a run stands.
#[derive(Debug, Clone, Serialize)]
pub struct RunState {
    /// The run directory.
    pub run: PathBuf,
    /// When it began, ISO 8601 UTC.
    pub created_at: String,
    /// What it is doing.
    pub state: State,
    /// Its verdict, once it is closed with one.
    pub verdict: Option<Verdict>,
    /// The class that decided, once it is closed.
    pub failure_class: Option<FailureClass>,
    /// Units done, by the first word of their names.
    pub done: BTreeMap<String, usize>,
    /// Units that run now, with the place and the job.
    pub running: Vec<UnitPlace>,
    /// Units whose last attempt failed: unit and why.
    pub failed: Vec<(String, String)>,
    /// What was tried again.
    pub execution: Execution,
    /// Jobs of the last submission.
    pub jobs: Vec<JobState>,
    /// Why nothing is known of its jobs.
    pub jobs_unknown: Option<String>,
}

/// A running unit.
#[derive(Debug, Clone, Serialize)]
pub struct UnitPlace {
    /// Unit.
    pub unit: String,
    /// Node or host.
    pub place: String,
    /// Process there.
    pub pid: u32,
    /// Slurm job; empty for a local run.
    pub job: String,
}

/// A job, or a task of an array.
#[derive(Debug, Clone, Serialize)]
pub struct JobState {
    /// Stage.
    pub stage: String,
    /// Slurm's id.
    pub id: u64,
    /// What Slurm says.
    pub report: JobReport,
}

/// Looks at the run at `path`.
pub fn status(path: &Path) -> Result<RunState, Failure> {
    let (run, record) = RunDir::join_existing(path)?;
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    let dir = SlurmDir::of(&run);
    let (jobs, jobs_unknown) = jobs(&dir)?;
    let mut done = BTreeMap::new();
    for history in snapshot.units.values().filter(|h| h.done.is_some()) {
        let kind = history.unit.split('/').next().unwrap_or_default();
        *done.entry(kind.to_owned()).or_default() += 1;
    }
    let release = closed_record(&run, &dir)?;
    let state = state(release.is_some(), &snapshot, &jobs, jobs_unknown.is_some());
    Ok(RunState {
        run: path.to_path_buf(),
        created_at: record.created_at,
        state,
        verdict: release.as_ref().and_then(|r| r.verdict),
        failure_class: release.as_ref().and_then(|r| r.failure_class),
        done,
        running: running(&snapshot),
        failed: failed(&snapshot),
        execution: execution(&run)?,
        jobs,
        jobs_unknown,
    })
}

/// `release.json`, unless a later submission is to write it again.
fn closed_record(run: &RunDir, dir: &SlurmDir) -> Result<Option<ReleaseRecord>, Failure> {
    let path = run.join("release.json");
    let last = dir.submissions()?.pop();
    let superseded = last.is_some_and(|last| {
        dir.closed().ok().flatten().is_none_or(|closed| closed.submission != last.number)
    });
    if superseded || !path.is_file() { Ok(None) } else { Ok(Some(json::read(&path)?)) }
}

fn state(closed: bool, snapshot: &Snapshot, jobs: &[JobState], jobs_unknown: bool) -> State {
    if !snapshot.running.is_empty() || jobs.iter().any(|j| j.report.state == "RUNNING") {
        State::Running
    } else if closed {
        State::Closed
    } else if jobs.iter().any(|j| j.report.is_alive()) {
        State::Queued
    } else if jobs_unknown {
        State::Unknown
    } else {
        State::Stopped
    }
}

fn running(snapshot: &Snapshot) -> Vec<UnitPlace> {
    let place = |(key, owner): (_, &Owner)| UnitPlace {
        unit: snapshot.units.get(key).map(|h| h.unit.clone()).unwrap_or_default(),
        place: owner.place().to_owned(),
        pid: owner.pid,
        job: owner.job.clone().unwrap_or_default(),
    };
    snapshot.running.iter().map(place).collect()
}

fn failed(snapshot: &Snapshot) -> Vec<(String, String)> {
    let last = |history: &UnitHistory| {
        let failure = history.attempts.last()?.failure.as_ref()?;
        Some((history.unit.clone(), failure.message.clone()))
    };
    snapshot.units.values().filter(|h| h.done.is_none()).filter_map(last).collect()
}

/// Jobs of the last submission, and why they are unknown where this host cannot ask for them.
fn jobs(dir: &SlurmDir) -> Result<(Vec<JobState>, Option<String>), Failure> {
    let mut found = Vec::new();
    let Some(last) = dir.submissions()?.pop() else { return Ok((found, None)) };
    if !Slurm.is_here() {
        return Ok((found, Some("this host has none of Slurm's commands".to_owned())));
    }
    for job in &last.jobs {
        match job.reports(dir) {
            Ok(reports) => found.extend(reports.into_iter().map(|report| JobState {
                stage: job.stage.clone(),
                id: job.id.0,
                report,
            })),
            // The others would be asked for as long again.
            Err(failure) => return Ok((found, Some(failure.message))),
        }
    }
    Ok((found, None))
}

/// One log of a run.
pub struct Log {
    /// What wrote it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its end.
    pub text: String,
}

/// What the logs of engines are asked for by.
const SERVE: &str = "serve";

/// Logs of the run at `path`: of its engines, and of its jobs, of those of one stage with `stage`.
pub fn logs(path: &Path, stage: Option<&str>, bytes: u64) -> Result<Vec<Log>, Failure> {
    if let Some(stage) = stage.filter(|s| !STAGES.contains(s) && *s != SERVE) {
        let stages: Vec<&str> = STAGES.into_iter().chain([SERVE]).collect();
        return Err(Failure::config(format!(
            "--stage {stage}: no such stage; there are {}",
            stages.join(", ")
        ))
        .with_hint(suggestion(stage, &stages)));
    }
    let (run, _) = RunDir::join_existing(path)?;
    let dir = SlurmDir::of(&run);
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for submission in dir.submissions()? {
        for job in submission.jobs.iter().filter(|job| stage.is_none_or(|s| s == job.stage)) {
            match &job.tasks {
                None => found.push((format!("{} {}", job.stage, job.id), dir.log(job.id, None))),
                Some(tasks) => {
                    let named =
                        |t: &u32| (format!("{} {}_{t}", job.stage, job.id), dir.log(job.id, Some(*t)));
                    found.extend(tasks.iter().map(named));
                }
            }
        }
    }
    if stage.is_none_or(|s| s == SERVE) {
        let logs = std::fs::read_dir(run.join("serve")).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> =
            logs.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        let name = |p: &Path| p.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        found.extend(logs.into_iter().map(|p| (format!("serve {}", name(&p)), p)));
    }
    let log = |(name, path): (String, PathBuf)| Log { text: tail(&path, bytes), name, path };
    Ok(found.into_iter().map(log).filter(|log| log.path.is_file()).collect())
}

/// Stops the run at `path`: its jobs are cancelled; a local process gets SIGTERM. Returns what was stopped.
pub fn cancel(path: &Path) -> Result<Vec<String>, Failure> {
    let (run, record) = RunDir::join_existing(path)?;
    let mut stopped = Vec::new();
    // From the end: a closeout that saw the others end would submit them again.
    for job in living(&run, &record.run_id)? {
        Slurm.cancel(&[job.id])?;
        stopped.push(format!("job {} ({})", job.id, job.stage));
    }
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    let mut owners: Vec<&Owner> = snapshot.running.values().filter(|owner| owner.job.is_none()).collect();
    owners.sort_by_key(|owner| (&owner.host, owner.pid));
    owners.dedup();
    for owner in owners {
        if !owner.is_visible() {
            let message = format!("process {} runs on {}, not here", owner.pid, owner.host);
            return Err(Failure::config(message).with_hint("cancel it there"));
        }
        // SAFETY: sends a signal; the start time was compared when the lease was found to be alive.
        if unsafe { libc::kill(owner.pid as i32, libc::SIGTERM) } == 0 {
            stopped.push(format!("process {}", owner.pid));
        }
    }
    run.event("cancelled", "release", &stopped.join(", "));
    Ok(stopped)
}

//! What was submitted, as files of the run directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::digest::Digest;
use crate::base::json;
use crate::exec::Owner;
use crate::exec::slurm::{JobId, JobReport, Profile, recorded, reports};
use crate::record::Failure;
use crate::release::jobs::CLOSEOUT;
use crate::release::run_dir::RunDir;

/// One submission of what was left to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubmissionRecord {
    /// From 1 on.
    pub number: u32,
    /// When, ISO 8601 UTC.
    pub submitted_at: String,
    /// By a host, or by a closeout job.
    pub submitted_by: String,
    /// Why a closeout job submitted what was left; `None` where a person did.
    #[serde(default)]
    pub because: Option<Cause>,
    /// Directory in which the jobs run.
    pub directory: PathBuf,
    /// Cache that all nodes share.
    pub cache: PathBuf,
    /// The program on the nodes.
    pub program: PathBuf,
    /// Digest of the program that submitted: tasks run by another one would make other units.
    pub build: Digest,
    /// Jobs in order; what was submitted before a submitter was killed.
    pub jobs: Vec<JobRecord>,
    /// Whether all jobs were submitted and let go.
    pub complete: bool,
}

impl SubmissionRecord {
    /// The job that closes the run, once it is submitted.
    pub fn closeout(&self) -> Option<&JobRecord> {
        self.jobs.iter().find(|job| job.stage == CLOSEOUT)
    }

    /// Whether one of its jobs is, or was, this process. A job is `12`, `12_3` or `12_3+1`.
    pub fn ran(&self, owner: &Owner) -> bool {
        let id = owner.job.as_deref().and_then(|job| job.split(['_', '+']).next()?.parse().ok());
        id.is_some_and(|id| self.jobs.iter().any(|job| job.id == JobId(id)))
    }
}

/// Why units were left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// In words.
    pub what: String,
    /// Whether it is only supposed to pass, because nobody knows what happened: that is tried once.
    pub is_guess: bool,
}

/// One job of a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Stage.
    pub stage: String,
    /// Slurm's id.
    pub id: JobId,
    /// Tasks of the array; `None` for a job that is no array.
    pub tasks: Option<Vec<u32>>,
    /// Number of units.
    pub units: usize,
}

impl JobRecord {
    /// What became of it and of each of its tasks. An error: the controller does not answer.
    pub fn reports(&self, dir: &SlurmDir) -> Result<Vec<JobReport>, Failure> {
        reports(self.id, self.tasks.as_deref(), &dir.exits())
    }

    /// The same without the controller.
    pub fn recorded(&self, dir: &SlurmDir) -> Vec<JobReport> {
        recorded(self.id, self.tasks.as_deref(), &dir.exits())
    }
}

/// How a submission ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Which submission.
    pub submission: u32,
    /// Exit code that `day0 release` returns for it.
    pub exit_code: u8,
}

/// `slurm/` of a run.
#[derive(Debug, Clone)]
pub struct SlurmDir {
    path: PathBuf,
}

impl SlurmDir {
    /// The directory of `run`, which need not exist yet.
    pub fn of(run: &RunDir) -> Self {
        Self::at(run.path())
    }

    /// The directory of the run at `run`.
    pub fn at(run: &Path) -> Self {
        Self { path: run.join("slurm") }
    }

    /// Whether the run is one of Slurm's, submitted or about to be.
    pub fn exists(&self) -> bool {
        self.submissions_file().is_file() || self.profile_file().is_file()
    }

    fn submissions_file(&self) -> PathBuf {
        self.path.join("submissions.json")
    }

    fn profile_file(&self) -> PathBuf {
        self.path.join("profile.json")
    }

    /// Logs of all jobs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Files with exit codes.
    pub fn exits(&self) -> PathBuf {
        self.path.join("exit")
    }

    /// Scripts of a submission.
    pub fn scripts(&self, submission: u32) -> PathBuf {
        self.path.join(format!("scripts/{submission}"))
    }

    /// Log of a job or a task.
    pub fn log(&self, job: JobId, task: Option<u32>) -> PathBuf {
        self.logs().join(task.map_or_else(|| format!("{job}.out"), |task| format!("{job}_{task}.out")))
    }

    /// Creates the directories that jobs write to.
    pub fn create(&self) -> Result<(), Failure> {
        for dir in [self.logs(), self.exits()] {
            std::fs::create_dir_all(&dir).map_err(|e| Failure::io(dir.display(), &e))?;
        }
        Ok(())
    }

    /// The profile, from before anything was submitted on; `None` of a run that is not Slurm's.
    pub fn profile(&self) -> Result<Option<Profile>, Failure> {
        let path = self.profile_file();
        if path.is_file() { Ok(Some(json::read(&path)?)) } else { Ok(None) }
    }

    /// Keeps the profile.
    pub fn keep_profile(&self, profile: &Profile) -> Result<(), Failure> {
        Ok(json::write(&self.profile_file(), profile)?)
    }

    /// All submissions.
    pub fn submissions(&self) -> Result<Vec<SubmissionRecord>, Failure> {
        let path = self.submissions_file();
        if path.is_file() { Ok(json::read(&path)?) } else { Ok(Vec::new()) }
    }

    /// Writes the record of one submission, the last one or a new one.
    pub fn keep(&self, record: &SubmissionRecord) -> Result<(), Failure> {
        let mut all = self.submissions()?;
        all.retain(|r| r.number != record.number);
        all.push(record.clone());
        Ok(json::write(&self.submissions_file(), &all)?)
    }

    /// Drops the records after a submission: of what was not submitted to its end, and is cancelled.
    pub fn forget_after(&self, number: u32) -> Result<(), Failure> {
        let mut all = self.submissions()?;
        let before = all.len();
        all.retain(|r| r.number <= number);
        if all.len() == before { Ok(()) } else { Ok(json::write(&self.submissions_file(), &all)?) }
    }

    /// How the last submission that was closed ended.
    pub fn closed(&self) -> Result<Option<Closed>, Failure> {
        let path = self.path.join("closed.json");
        if path.is_file() { Ok(Some(json::read(&path)?)) } else { Ok(None) }
    }

    /// Notes that a submission is closed.
    pub fn keep_closed(&self, closed: &Closed) -> Result<(), Failure> {
        Ok(json::write(&self.path.join("closed.json"), closed)?)
    }
}

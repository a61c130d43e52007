//! The artifacts of `day0 ready qa` (founding document 002): `run.json`, `results.json`, `error.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the checks ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QaMode {
    /// Full set in containers.
    Container,
    /// Full set on this machine, because the file declares `container: never`.
    Local,
    /// Reduced set on this machine, because no container runtime worked.
    Failsafe,
}

impl std::fmt::Display for QaMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::Local => "local",
            Self::Failsafe => "failsafe",
        })
    }
}

/// When a check is run; a command runs one tier and those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckTier {
    /// On every change.
    #[default]
    Pr,
    /// Every night.
    Nightly,
    /// Before a release.
    Release,
}

impl std::fmt::Display for CheckTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pr => "pr",
            Self::Nightly => "nightly",
            Self::Release => "release",
        })
    }
}

/// Where the runner is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QaState {
    /// Still running, or killed: the artifacts say how far it came.
    Running,
    /// Ended.
    Finished,
    /// Stopped by a signal or by an error of the runner itself.
    Aborted,
}

/// `run.json`: what ran, when, how, with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QaRun {
    /// Schema of this record.
    pub schema_version: u32,
    /// Identifies the run; processes it starts carry it in their environment.
    pub run_id: String,
    /// Where the runner is.
    pub state: QaState,
    /// How the checks ran; before a runtime was found, how they will run at best.
    pub mode: QaMode,
    /// The container runtime, in container mode.
    pub runtime: Option<String>,
    /// Why the mode is failsafe; empty otherwise.
    pub fallback_reason: String,
    /// What was tried to get containers, in order.
    pub attempts: Vec<ContainerAttempt>,
    /// Tier asked for.
    pub tier: CheckTier,
    /// Configuration file.
    pub config: String,
    /// Working directory.
    pub directory: String,
    /// Commands by label.
    pub commands: BTreeMap<String, String>,
    /// Start, ISO 8601 UTC.
    pub started_at: String,
    /// End, ISO 8601 UTC; empty while running.
    pub ended_at: String,
    /// Process of the runner.
    pub pid: u32,
    /// Version and revision of day0, of the runtime, and of the machine.
    pub versions: BTreeMap<String, String>,
    /// Hints about the environment: CPUs, memory, operating system, CI.
    pub environment: BTreeMap<String, String>,
}

/// One step towards a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerAttempt {
    /// `docker`, `podman` or `apptainer`.
    pub runtime: String,
    /// `client`, `image`, `probe` or the label of the check during which the container was lost.
    pub step: String,
    /// Whether it worked.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// State of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Exit code 0.
    Passed,
    /// Another exit code, a signal, or a command that cannot be started.
    Failed,
    /// Killed at its timeout.
    TimedOut,
    /// Not run: another tier.
    Skipped,
    /// Not run: the runner ended before.
    NotRun,
    /// The container went away under it; the failsafe decides instead.
    Lost,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Label.
    pub label: String,
    /// The command as declared.
    pub command: String,
    /// Tier.
    pub tier: CheckTier,
    /// Whether it decides.
    pub required: bool,
    /// What became of it.
    pub status: CheckStatus,
    /// Exit code, if it ended by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Duration in seconds.
    pub elapsed_s: f64,
    /// Timeout in seconds.
    pub timeout_s: f64,
    /// Bytes it printed on standard output and standard error.
    pub output_bytes: u64,
    /// The end of what it printed.
    pub tail: String,
    /// Why it failed, in words.
    pub detail: String,
}

/// `results.json`: counts and checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QaResults {
    /// Schema of this record.
    pub schema_version: u32,
    /// How the checks ran.
    pub mode: QaMode,
    /// Whether the runner ended by itself.
    pub complete: bool,
    /// Number of checks by status.
    pub counts: BTreeMap<String, usize>,
    /// The checks in order of declaration.
    pub checks: Vec<CheckResult>,
    /// Checks that ran in containers until one was lost and the failsafe took over; the last of them lost it.
    pub lost: Vec<CheckResult>,
    /// Whether the failsafe's success is enough for exit code 0, as the file declares.
    pub failsafe_is_enough: bool,
}

impl QaResults {
    /// Checks that had failed in their containers before the failsafe took over, which forgets none of them.
    pub fn failed_before(&self) -> impl Iterator<Item = &CheckResult> {
        self.lost.iter().filter(|c| matches!(c.status, CheckStatus::Failed | CheckStatus::TimedOut))
    }
}

/// `error.json`: whenever a run is not a plain success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QaError {
    /// Schema of this record.
    pub schema_version: u32,
    /// `checks_failed`, `fallback`, `unfinished`, `interrupted` or `runner`.
    pub kind: String,
    /// In words.
    pub message: String,
    /// How the checks ran.
    pub mode: QaMode,
    /// Labels of the required checks that did not pass.
    pub failed_checks: Vec<String>,
    /// What was tried to get containers.
    pub attempts: Vec<ContainerAttempt>,
    /// How to go on.
    pub hint: String,
}

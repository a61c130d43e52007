//! The commands of Slurm: sbatch, scontrol, squeue, sacct, scancel.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::{env_vars, interrupt, progress};
use crate::record::{Failure, FailureClass};

/// A job, or all tasks of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What sbatch is told beside the script.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// Jobs that must have succeeded.
    pub after_ok: Vec<JobId>,
    /// Jobs that must have ended.
    pub after_any: Vec<JobId>,
    /// Whether it waits to be released.
    pub hold: bool,
    /// The script's job name, by which a job is found whose submission was not confirmed.
    pub name: String,
    /// Jobs that had this name before.
    pub known: Vec<JobId>,
}

/// How often a command is tried while the controller does not answer, and the first pause.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a question may take. A controller that is gone costs each command the better part of a minute, and who asks
/// has files to go by.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// The Slurm of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slurm;

impl Slurm {
    /// Whether its commands are there.
    pub fn is_here(self) -> bool {
        Command::new("sbatch").arg("--version").output().is_ok_and(|o| o.status.success())
    }

    /// Whether sbatch would take the script; nothing is submitted.
    pub fn test(self, script: &Path) -> Result<(), Failure> {
        let path = script.display().to_string();
        let syntax = Command::new("bash").args(["-n", &path]).output();
        if let Ok(output) = syntax
            && !output.status.success()
        {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Failure::config(format!("the batch script is not valid: {said}"))
                .with_hint("look at `prologue` in the cluster profile"));
        }
        call("sbatch", &["--test-only".to_owned(), path]).map(|_| ())
    }

    /// Submits a script, once: where sbatch's answer leaves open whether there is a job, it is looked for by its name.
    pub fn submit(self, script: &Path, how: &Submission) -> Result<JobId, Failure> {
        let mut arguments = vec!["--parsable".to_owned()];
        let list = |kind: &str, jobs: &[JobId]| {
            let ids: Vec<String> = jobs.iter().map(JobId::to_string).collect();
            (!jobs.is_empty()).then(|| format!("{kind}:{}", ids.join(":")))
        };
        let dependencies: Vec<String> = [list("afterok", &how.after_ok), list("afterany", &how.after_any)]
            .into_iter()
            .flatten()
            .collect();
        if !dependencies.is_empty() {
            arguments.push(format!("--dependency={}", dependencies.join(",")));
        }
        if how.hold {
            arguments.push("--hold".to_owned());
        }
        arguments.push(script.display().to_string());
        let newest = || -> Result<Option<String>, Failure> {
            let found = self.named(&how.name)?.into_iter().rfind(|id| !how.known.contains(id));
            Ok(found.map(|id| id.to_string()))
        };
        let said = call_once("sbatch", &arguments, Some(&newest))?;
        // `id` or `id;cluster`.
        let id = said.trim().split(';').next().and_then(|id| id.parse().ok());
        id.map(JobId).ok_or_else(|| {
            Failure::new(
                FailureClass::Unknown,
                format!("sbatch answered '{}' instead of a job id", said.trim()),
            )
        })
    }

    /// Lets a held job go.
    pub fn release(self, job: JobId) -> Result<(), Failure> {
        call("scontrol", &["release".to_owned(), job.to_string()]).map(|_| ())
    }

    /// Cancels jobs; those that have ended already are no error.
    pub fn cancel(self, jobs: &[JobId]) -> Result<(), Failure> {
        if jobs.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> =
            std::iter::once("--quiet".to_owned()).chain(jobs.iter().map(JobId::to_string)).collect();
        call("scancel", &ids).map(|_| ())
    }

    /// Ids of this user's jobs with this name that have not ended.
    pub fn named(self, name: &str) -> Result<Vec<JobId>, Failure> {
        let said = call("squeue", &["--me", "-h", "-o", "%F", "-n", name].map(str::to_owned))?;
        let mut ids: Vec<JobId> = said.lines().filter_map(|l| l.trim().parse().ok()).map(JobId).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// `scontrol show job`: one map a task, none of those that the controller does not know any more, and none at all where
    /// there is no `scontrol`. Asked once.
    pub(super) fn show(job: JobId) -> Result<Vec<BTreeMap<String, String>>, Failure> {
        let arguments = ["-o", "show", "job", &job.to_string()].map(str::to_owned);
        match once("scontrol", &arguments, Some(ASK_LIMIT)) {
            Ok(said) => Ok(said.lines().map(fields).filter(|f| f.contains_key("JobState")).collect()),
            Err(Refusal::Missing(_)) => Ok(Vec::new()),
            Err(Refusal::Refused(said)) if said.contains("Invalid job id") => Ok(Vec::new()),
            Err(refusal) => Err(refusal.failure("scontrol")),
        }
    }

    /// `sacct`: lines `id|state|code:signal|nodes`. `None`: there is no accounting.
    pub(super) fn account(job: JobId) -> Option<String> {
        let arguments = ["-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", &job.to_string()];
        once("sacct", &arguments.map(str::to_owned), Some(ASK_LIMIT)).ok()
    }
}

/// `Key=value` words. A value with blanks in it loses what follows the first, which no field read here has.
fn fields(line: &str) -> BTreeMap<String, String> {
    line.split(' ')
        .filter_map(|word| word.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// What the environment may tell a command of Slurm: `SLURM_*` is what an enclosing job says of itself, and a job
/// submitted by another must not take over its restarts or array; the others are options, and those of sbatch count
/// more than the lines of a script (sbatch(1), INPUT ENVIRONMENT VARIABLES).
const VARIABLES: [&str; 5] = ["SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SACCT_"];

/// A command of Slurm that does what its arguments and the script say, whatever the environment says.
fn command_of(name: &str) -> Command {
    let mut command = Command::new(name);
    for variable in VARIABLES.into_iter().flat_map(env_vars::names_beginning) {
        if variable != env_vars::SLURM_CONF {
            command.env_remove(variable);
        }
    }
    command
}

/// Why a command of Slurm gave no answer.
enum Refusal {
    /// It is not on this host.
    Missing(std::io::Error),
    /// The controller does not answer.
    Down(String),
    /// The request was refused.
    Refused(String),
}

impl Refusal {
    fn failure(self, command: &str) -> Failure {
        match self {
            Self::Missing(error) => Failure::config(format!("{command}: {error}"))
                .with_hint("run this on a host that has Slurm's commands, or use --executor local"),
            Self::Down(said) => Failure::new(FailureClass::InfraTransient, format!("{command}: {said}"))
                .with_hint("the Slurm controller does not answer; try again"),
            Self::Refused(said) => Failure::config(format!("{command}: {said}"))
                .with_hint("what sbatch refuses comes from the cluster profile"),
        }
    }
}

/// Runs a command of Slurm; tries again while the controller does not answer.
fn call(command: &str, arguments: &[String]) -> Result<String, Failure> {
    call_once(command, arguments, None)
}

/// The same for what must not be done twice. Once an answer was lost, `done` is asked before every repetition and before
/// giving up: what the command would have said had it been done.
fn call_once(
    command: &str,
    arguments: &[String],
    done: Option<&dyn Fn() -> Result<Option<String>, Failure>>,
) -> Result<String, Failure> {
    let mut pause = PAUSE;
    let (mut attempt, mut lost) = (1, false);
    loop {
        let said = match once(command, arguments, None) {
            Ok(said) => return Ok(said),
            Err(Refusal::Down(said)) => said,
            Err(refusal) => return Err(refusal.failure(command)),
        };
        lost |= done.is_some() && is_lost(&said);
        let is_last = attempt == TRIES || interrupt::received().is_some();
        if lost || !is_last {
            progress::detail(&format!("{command}: {said}; trying again"));
            // The controller may be about to do what it was asked.
            std::thread::sleep(pause);
        }
        if lost && let Some(said) = done.map_or(Ok(None), |done| done())? {
            return Ok(said);
        }
        if is_last {
            return Err(Refusal::Down(said).failure(command));
        }
        pause *= 2;
        attempt += 1;
    }
}

/// Runs a command of Slurm, for at most `limit`.
fn once(name: &str, arguments: &[String], limit: Option<Duration>) -> Result<String, Refusal> {
    let mut command = command_of(name);
    command.args(arguments).stdin(Stdio::null());
    let start = Instant::now();
    let output = match limit {
        Some(limit) => output_within(&mut command, limit),
        None => command.output(),
    };
    let output = output.map_err(Refusal::Missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if let Some(limit) = limit.filter(|limit| start.elapsed() >= *limit) {
        return Err(Refusal::Down(format!("no answer within {} s", limit.as_secs())));
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if is_down(&said) { Refusal::Down(said) } else { Refusal::Refused(said) })
}

/// What a command prints; after `limit` it is killed with all that it started.
fn output_within(command: &mut Command, limit: Duration) -> std::io::Result<Output> {
    let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let group = child.id() as i32;
    let (ended, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                // SAFETY: sends a signal to the group that the child leads, which is not reaped before the other end of the
                // channel is dropped.
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
        });
        let output = child.wait_with_output();
        drop(ended);
        output
    })
}

/// Whether the controller, not the request, is at fault.
fn is_down(said: &str) -> bool {
    [
        "Unable to contact slurm controller",
        "Socket timed out",
        "Connection refused",
        "Zero Bytes were transmitted",
        "Slurm temporarily unable to accept job",
        "Resource temporarily unavailable",
    ]
    .iter()
    .any(|text| said.contains(text))
}

/// Whether the request was sent and only its answer is missing.
fn is_lost(said: &str) -> bool {
    ["Socket timed out", "Zero Bytes were transmitted"].iter().any(|text| said.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_scontrol() {
        let line =
            "JobId=8 ArrayJobId=2 ArrayTaskId=1 JobState=FAILED ExitCode=3:0 Dependency=(null) Reason=A B=";
        let found = fields(line);
        assert_eq!((found["ArrayTaskId"].as_str(), found["ExitCode"].as_str()), ("1", "3:0"));
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "echo a; sleep 60; echo b"]);
        let output = output_within(&mut command, Duration::from_millis(200)).unwrap();
        assert!(!output.status.success() && start.elapsed() < Duration::from_secs(30));
        assert_eq!(output.stdout, b"a\n");
        let output = output_within(Command::new("echo").arg("b"), Duration::from_secs(60)).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"b\n");
    }

    #[test]
    fn a_command_that_is_not_there_is_said_to_be_missing() {
        let found = once("day0-no-such-command", &[], None);
        assert!(matches!(found, Err(Refusal::Missing(_))));
    }

    #[test]
    fn controllers_that_are_down() {
        assert!(is_down(
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
        ));
        assert!(!is_down("sbatch: error: invalid partition specified: x"));
    }
}

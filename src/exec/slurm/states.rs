//! What became of a job: from the controller, else from accounting, else from the file with its exit code. Each task of an
//! array is looked for by itself: the controller forgets one some minutes after its end (MinJobAge), whatever the
//! others do.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::control::{JobId, Slurm};
use crate::exec::triage::Ended;
use crate::record::Failure;

/// One job, or one task of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Task of the array.
    pub task: Option<u32>,
    /// Slurm's word for its state; `UNKNOWN` where nobody knows it any more.
    pub state: String,
    /// Why it waits or was cancelled.
    pub reason: String,
    /// Exit code, once it has ended.
    pub exit_code: Option<u8>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Node.
    pub node: String,
    /// How often it was requeued.
    pub restarts: u32,
}

/// States of jobs that have not ended (squeue(1), JOB STATE CODES).
const ALIVE: [&str; 13] = [
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
];

/// State of a job that nobody knows any more.
const UNKNOWN: &str = "UNKNOWN";

impl JobReport {
    /// Whether nobody knows how it ended.
    pub fn is_unknown(&self) -> bool {
        self.state == UNKNOWN
    }

    /// Whether it may still do something.
    pub fn is_alive(&self) -> bool {
        ALIVE.contains(&self.state.as_str())
    }

    /// Whether it ended well.
    pub fn is_done(&self) -> bool {
        self.state == "COMPLETED"
    }

    /// Whether it never ran because a job it waited for failed: a consequence, no cause. Accounting knows no reasons: there it
    /// is a job that was cancelled before it had a node, `after_failure` of a job of the same chain.
    pub fn is_consequence(&self, after_failure: bool) -> bool {
        let never_began = self.state == "CANCELLED" && self.node.is_empty();
        self.reason == "DependencyNeverSatisfied" || (after_failure && never_began)
    }

    /// Whether it will still do something: of a job that is completing nothing is left but its end.
    pub fn will_act(&self) -> bool {
        self.is_alive() && self.state != "COMPLETING"
    }

    /// Its end, for triage.
    pub fn ended<'a>(&'a self, log: &'a str) -> Ended<'a> {
        Ended { exit_code: self.exit_code, signal: self.signal, slurm_state: Some(&self.state), log }
    }
}

/// Reports of a job: one, or one for each of the `tasks` of an array. `exits` is the directory with exit codes. An error:
/// there is a controller, and it does not answer.
pub fn reports(job: JobId, tasks: Option<&[u32]>, exits: &Path) -> Result<Vec<JobReport>, Failure> {
    let shown = Slurm::show(job)?;
    Ok(complete(job, tasks, shown.iter().flat_map(from_scontrol).collect(), exits))
}

/// The same without the controller: what accounting and the exit codes say.
pub fn recorded(job: JobId, tasks: Option<&[u32]>, exits: &Path) -> Vec<JobReport> {
    complete(job, tasks, Vec::new(), exits)
}

fn complete(job: JobId, tasks: Option<&[u32]>, shown: Vec<JobReport>, exits: &Path) -> Vec<JobReport> {
    let expected = tasks.map_or_else(|| vec![None], |tasks| tasks.iter().copied().map(Some).collect());
    let mut found: BTreeMap<Option<u32>, JobReport> = shown.into_iter().map(|r| (r.task, r)).collect();
    if expected.iter().any(|task| !found.contains_key(task)) {
        let accounted = Slurm::account(job).unwrap_or_default();
        for report in accounted.lines().flat_map(from_sacct) {
            found.entry(report.task).or_insert(report);
        }
    }
    let take = |task| found.remove(&task).unwrap_or_else(|| from_file(job, task, exits));
    expected.into_iter().map(take).collect()
}

fn from_scontrol(fields: &BTreeMap<String, String>) -> Vec<JobReport> {
    let text = |key: &str| fields.get(key).map(String::as_str).unwrap_or_default();
    let known =
        |key: &str| Some(text(key)).filter(|t| !matches!(*t, "" | "(null)" | "None")).unwrap_or_default();
    let state = text("JobState");
    let (exit_code, signal) = exit_of(text("ExitCode"));
    let ended = !ALIVE.contains(&state);
    let report = |task| JobReport {
        task,
        state: state.to_owned(),
        reason: known("Reason").to_owned(),
        exit_code: exit_code.filter(|_| ended),
        signal: signal.filter(|_| ended),
        node: known("NodeList").to_owned(),
        restarts: text("Restarts").parse().unwrap_or(0),
    };
    match text("ArrayTaskId") {
        "" => vec![report(None)],
        tasks => task_ids(tasks).into_iter().map(|id| report(Some(id))).collect(),
    }
}

/// `0-3,5%2` as numbers.
fn task_ids(text: &str) -> Vec<u32> {
    const MOST: u32 = 100_000;
    let list = text.split('%').next().unwrap_or_default();
    let one = |part: &str| -> Option<Vec<u32>> {
        match part.split_once('-') {
            Some((from, to)) => {
                let (from, to) = (from.parse::<u32>().ok()?, to.parse::<u32>().ok()?);
                Some((from..=to.min(from.saturating_add(MOST))).collect())
            }
            None => Some(vec![part.parse().ok()?]),
        }
    };
    list.split(',').filter_map(one).flatten().collect()
}

/// `3:0` as exit code and signal.
fn exit_of(text: &str) -> (Option<u8>, Option<i32>) {
    let Some((code, signal)) = text.split_once(':') else { return (None, None) };
    (code.parse().ok(), signal.parse().ok().filter(|s| *s != 0))
}

/// One report, or one for each of the tasks that never began, which share a line: `12_[0-3]`.
fn from_sacct(line: &str) -> Vec<JobReport> {
    let parts: Vec<&str> = line.split('|').collect();
    let [id, state, exit, node, ..] = parts[..] else { return Vec::new() };
    let Some(state) = state.split_whitespace().next() else { return Vec::new() };
    let (exit_code, signal) = exit_of(exit);
    let report = |task| JobReport {
        task,
        state: state.to_owned(),
        reason: String::new(),
        exit_code,
        signal,
        // What sacct writes where there was none.
        node: if node == "None assigned" { String::new() } else { node.to_owned() },
        restarts: 0,
    };
    match id.split_once('_') {
        None => vec![report(None)],
        Some((_, tasks)) => {
            task_ids(tasks.trim_matches(['[', ']'])).into_iter().map(|task| report(Some(task))).collect()
        }
    }
}

/// The file `<job>` or `<job>_<task>` holds the exit code. A job without one was killed with its script, or never began.
fn from_file(job: JobId, task: Option<u32>, exits: &Path) -> JobReport {
    let name = task.map_or_else(|| job.to_string(), |task| format!("{job}_{task}"));
    let code = std::fs::read_to_string(exits.join(name)).ok().and_then(|text| text.trim().parse().ok());
    JobReport {
        task,
        state: match code {
            Some(0) => "COMPLETED",
            Some(_) => "FAILED",
            None => UNKNOWN,
        }
        .to_owned(),
        reason: String::new(),
        exit_code: code,
        signal: None,
        node: String::new(),
        restarts: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scontrol_says() {
        let fields = |text: &str| {
            text.split(' ')
                .filter_map(|w| w.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect()
        };
        let failed =
            fields("JobId=9 JobState=FAILED Reason=NonZeroExitCode Restarts=1 ExitCode=3:0 NodeList=n1");
        let report = &from_scontrol(&failed)[0];
        assert_eq!((report.exit_code, report.node.as_str(), report.restarts), (Some(3), "n1", 1));
        assert!(!report.is_alive() && !report.is_done());
        let waiting = fields("JobId=9 ArrayTaskId=0-2,5%2 JobState=PENDING Reason=Dependency ExitCode=0:0");
        let reports = from_scontrol(&waiting);
        assert_eq!(reports.iter().filter_map(|r| r.task).collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert!(reports.iter().all(|r| r.is_alive() && r.exit_code.is_none()));
    }

    #[test]
    fn what_sacct_says() {
        let report = &from_sacct("12_3|CANCELLED by 0|0:15|n2")[0];
        assert_eq!((report.task, report.state.as_str(), report.signal), (Some(3), "CANCELLED", Some(15)));
        assert!(!report.is_consequence(true), "it had begun");
        assert_eq!(from_sacct(""), []);
        let waited = from_sacct("12_[0-1,4%2]|CANCELLED by 0|0:0|None assigned");
        assert_eq!(waited.iter().filter_map(|r| r.task).collect::<Vec<_>>(), [0, 1, 4]);
        assert!(waited.iter().all(|r| r.is_consequence(true) && !r.is_consequence(false)));
    }

    #[test]
    fn files_of_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, code) in [("7_0", "0\n"), ("7_1", "75\n"), ("8", "0"), ("77", "1")] {
            std::fs::write(dir.path().join(name), code).unwrap();
        }
        let states = |job, tasks: Option<&[u32]>| -> Vec<String> {
            complete(JobId(job), tasks, Vec::new(), dir.path()).into_iter().map(|r| r.state).collect()
        };
        assert_eq!(states(7, Some(&[0, 1, 2])), ["COMPLETED", "FAILED", "UNKNOWN"]);
        assert_eq!(states(8, None), ["COMPLETED"]);
        assert_eq!(states(9, None), ["UNKNOWN"]);
    }

    /// The controller still knows task 1, which ended last; task 0 has left its exit code, task 2 nothing.
    #[test]
    fn tasks_that_the_controller_has_forgotten_are_looked_for_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("7_0"), "3\n").unwrap();
        let shown = from_sacct("7_1|NODE_FAIL|0:0|n1");
        let found = complete(JobId(7), Some(&[0, 1, 2]), shown, dir.path());
        let found: Vec<_> = found.iter().map(|r| (r.task, r.state.as_str(), r.exit_code)).collect();
        let expected =
            [(Some(0), "FAILED", Some(3)), (Some(1), "NODE_FAIL", Some(0)), (Some(2), "UNKNOWN", None)];
        assert_eq!(found, expected);
    }
}

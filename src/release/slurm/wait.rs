//! Waiting for a submitted run to be closed.

use std::path::Path;
use std::time::{Duration, Instant};

use super::closing::{LOG_BYTES, tail};
use super::state::{JobRecord, SlurmDir, SubmissionRecord};
use crate::base::{interrupt, json, progress};
use crate::exec::Ledger;
use crate::exec::slurm::{JobReport, Slurm};
use crate::exec::triage::{Ended, classify};
use crate::record::release::ReleaseRecord;
use crate::record::{Failure, FailureClass, Outcome};
use crate::release::conductor::Ending;
use crate::release::jobs::CLOSEOUT;

/// How often the run directory is looked at, and how often Slurm is asked.
const LOOK: Duration = Duration::from_millis(500);
const ASK: Duration = Duration::from_secs(15);
/// A closeout job that has ended may have written a file that this host does not see yet.
const GRACE: Duration = Duration::from_secs(60);
/// One that failed has written none.
const SHORT_GRACE: Duration = Duration::from_secs(5);

/// Waits until closeout has closed the run at `path`.
pub fn wait(path: &Path) -> Result<Ending, Failure> {
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    let dir = SlurmDir::at(path);
    let (mut asked, mut gone_since, mut said) = (Instant::now(), None::<Instant>, String::new());
    let mut failed = false;
    // A host without Slurm's commands has the files to go by, and so has one whose controller does not answer.
    let may_ask = Slurm.is_here();
    loop {
        let submissions = dir.submissions()?;
        let Some(last) = submissions.last() else {
            return Err(Failure::config(format!("{}: was not submitted to Slurm", path.display())));
        };
        if let Some(closed) = dir.closed()?
            && closed.submission == last.number
        {
            let record: ReleaseRecord = json::read(&path.join("release.json"))?;
            let outcome = record.verdict.map_or(Outcome::Transient, Outcome::Verdict);
            return Ok(Ending::Closed { record: Box::new(record), outcome, run: path.to_path_buf() });
        }
        if let Some(signal) = interrupt::received() {
            return Ok(Ending::Interrupted { signal, run: path.to_path_buf() });
        }
        if may_ask && (asked.elapsed() >= ASK || said.is_empty()) {
            let line = match ask(&submissions, &dir, path) {
                Ok(Asked { line, closeout_alive, closeout_failed }) => {
                    failed = closeout_failed;
                    gone_since = if closeout_alive { None } else { gone_since.or(Some(Instant::now())) };
                    line
                }
                Err(failure) => failure.message,
            };
            if line != said {
                progress::note(&line);
                said = line;
            }
            asked = Instant::now();
        }
        let grace = if failed { SHORT_GRACE } else { GRACE };
        if gone_since.is_some_and(|since| since.elapsed() > grace) {
            return Err(Failure::new(FailureClass::InfraTransient, lost(path, &submissions, &dir))
                .with_hint(format!("resume with `day0 release --resume {}`", path.display())));
        }
        std::thread::sleep(LOOK);
    }
}

/// That closeout did not close the run, with its own word on why.
fn lost(path: &Path, submissions: &[SubmissionRecord], dir: &SlurmDir) -> String {
    let log = closeout(submissions).map(|job| tail(&dir.log(job.id, None), LOG_BYTES)).unwrap_or_default();
    let said = classify(&Ended { log: &log, ..Ended::default() }).excerpt;
    let said = if said.is_empty() { said } else { format!("; its log says: {said}") };
    format!("{}: the closeout job ended without closing the run{said}", path.display())
}

/// The job that is to close the run: while the last submission has none yet, that of the one before, which submits it.
fn closeout(submissions: &[SubmissionRecord]) -> Option<&JobRecord> {
    submissions.iter().rev().find_map(SubmissionRecord::closeout)
}

/// What Slurm says of all jobs.
struct Asked {
    line: String,
    closeout_alive: bool,
    closeout_failed: bool,
}

fn ask(submissions: &[SubmissionRecord], dir: &SlurmDir, run: &Path) -> Result<Asked, Failure> {
    let mut parts = Vec::new();
    let closing = closeout(submissions).map_or_else(|| Ok(Vec::new()), |job| job.reports(dir))?;
    let closeout_alive = closing.iter().any(JobReport::is_alive);
    let closeout_failed = closing.iter().any(|r| r.exit_code.is_some_and(|code| code != 0));
    for job in submissions.last().map(|last| &last.jobs).into_iter().flatten() {
        let reports = if job.stage == CLOSEOUT { closing.clone() } else { job.reports(dir)? };
        let done = reports.iter().filter(|r| r.is_done()).count();
        let state = match reports.as_slice() {
            [one] => one.state.to_lowercase(),
            many => format!("{done}/{} done", many.len()),
        };
        parts.push(format!("{} {state}", job.stage));
    }
    let units = Ledger::snapshot(&run.join("ledger.jsonl"))?.unwrap_or_default();
    let done = units.units.values().filter(|u| u.done.is_some()).count();
    Ok(Asked { line: format!("{}; {done} units done", parts.join(", ")), closeout_alive, closeout_failed })
}

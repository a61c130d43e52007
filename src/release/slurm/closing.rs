//! The job that closes a run, whatever happened to the others: it submits what is left where that may help, and
//! otherwise writes `release.json`.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::part::same_place;
use super::state::{Cause, Closed, SlurmDir, SubmissionRecord};
use super::submit::{Which, submit_rest};
use crate::base::progress;
use crate::base::threads::Threads;
use crate::exec::triage::{Ended, Triage, classify};
use crate::exec::{Ledger, RunSummary, Snapshot};
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass};
use crate::release::closeout;
use crate::release::conductor::{self, Ending, Existing};
use crate::release::graph::{self, Build, Jobs};
use crate::release::jobs::CLOSEOUT;

/// Bytes at the end of a log that are looked at.
pub(super) const LOG_BYTES: u64 = 64 << 10;

/// Runs the closeout job of the run at `path`; 0 once its verdict is in `release.json`, or what is left was submitted.
pub fn run(path: &Path, threads: Threads) -> Result<u8, Failure> {
    let dir = SlurmDir::at(path);
    let ending = match Existing::join(path, threads.clone()) {
        Ok(existing) => match close_or_submit(&existing, &dir)? {
            Some(ending) => ending,
            None => return Ok(exit_code::ACCEPT),
        },
        Err(failure) => closeout::unreadable(path, threads, &failure)?,
    };
    let code = match &ending {
        Ending::Closed { outcome, .. } => outcome.exit_code(),
        _ => exit_code::TRANSIENT,
    };
    let submission = dir.submissions()?.last().map_or(0, |last| last.number);
    dir.keep_closed(&Closed { submission, exit_code: code })?;
    Ok(exit_code::ACCEPT)
}

/// Closes the run, whatever cannot be found out or submitted. `None`: what is left was submitted.
fn close_or_submit(existing: &Existing, dir: &SlurmDir) -> Result<Option<Ending>, Failure> {
    let last = dir.submissions()?.pop();
    let failed =
        |failure| (RunSummary { failure: Some((CLOSEOUT.to_owned(), failure)), ..Default::default() }, None);
    let (mut summary, cause) = look(existing, last.as_ref()).unwrap_or_else(failed);
    if let Some((last, cause)) = last.as_ref().zip(cause) {
        let what = cause.what.clone();
        match submit_again(existing, dir, last, cause) {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(failure) => {
                let message = format!("{what}; what is left could not be submitted: {failure}");
                let failure = Failure::new(FailureClass::InfraTransient, message)
                    .with_hint("resume the run on a host that may submit jobs");
                summary.failure = Some(("resubmission".to_owned(), failure));
            }
        }
    }
    finish(existing, &summary).map(Some)
}

/// Submits what is left, unless that was done as often as the profile allows.
fn submit_again(
    existing: &Existing,
    dir: &SlurmDir,
    last: &SubmissionRecord,
    cause: Cause,
) -> Result<bool, Failure> {
    let profile = dir.profile()?;
    if last.number > profile.max_resubmissions {
        return Ok(false);
    }
    let place = same_place(existing.run.path(), &existing.record.run_id, last)?;
    let which = Which { number: last.number + 1, because: Some(cause) };
    submit_rest(existing, &profile, &place, which).map(|_| true)
}

fn finish(existing: &Existing, summary: &RunSummary) -> Result<Ending, Failure> {
    let Existing { run, inputs, .. } = existing;
    Ledger::open(&run.ledger())?.compact()?;
    match inputs.impossible() {
        Some(failure) => closeout::infeasible(run, inputs, failure),
        None => closeout::close(run, inputs, summary),
    }
}

/// What the units left, with why the chain ended early if it did, and the cause where trying again may help.
fn look(
    existing: &Existing,
    last: Option<&SubmissionRecord>,
) -> Result<(RunSummary, Option<Cause>), Failure> {
    let Existing { run, inputs, .. } = existing;
    if inputs.impossible().is_some() {
        return Ok((RunSummary::default(), None));
    }
    let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
    let build = Build::new(inputs, run);
    let jobs = Jobs::new(&build, plan);
    let graph = graph::build(&build, &jobs);
    let ledger = Ledger::open(&run.ledger())?;
    let mut summary = conductor::look(&graph, &ledger)?;
    let left: Vec<&str> = graph
        .nodes()
        .iter()
        .map(|n| n.name.as_str())
        .filter(|name| !summary.outputs.contains_key(*name))
        .collect();
    if left.is_empty() || summary.halted {
        return Ok((summary, None));
    }
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    let Found { subject, triage, is_guess } = cause(&left, &snapshot, last, &SlurmDir::of(run));
    let guessed = last.and_then(|last| last.because.as_ref()).is_some_and(|because| because.is_guess);
    let again = triage.retry && triage.class == FailureClass::InfraTransient && !(is_guess && guessed);
    let again = again.then(|| Cause { what: format!("{subject}: {}", triage.what), is_guess });
    summary.failure = Some((subject, Failure::from(triage)));
    Ok((summary, again))
}

/// Why units are left.
struct Found {
    subject: String,
    triage: Triage,
    is_guess: bool,
}

/// Why units are left: what a unit said last, else how its job ended. What will not pass counts before what may.
fn cause(left: &[&str], snapshot: &Snapshot, last: Option<&SubmissionRecord>, dir: &SlurmDir) -> Found {
    let mut found: Vec<Found> = Vec::new();
    for history in snapshot.units.values().filter(|h| left.contains(&h.unit.as_str())) {
        let failure = history.attempts.last().and_then(|a| a.failure.as_ref()).filter(|f| f.signal.is_none());
        let of =
            |failure| Found { subject: history.unit.clone(), triage: of_failure(failure), is_guess: false };
        found.extend(failure.map(of));
    }
    found.extend(last.map(|last| of_jobs(last, dir)).into_iter().flatten());
    // A unit's own word on what happened says more than the exit code of the job around it; what is known, more than what
    // is supposed.
    found.sort_by_key(|f| (f.triage.class == FailureClass::InfraTransient, f.is_guess, f.triage.retry));
    found.into_iter().next().unwrap_or_else(|| {
        let what = format!("{} units are not done, {} first; no job says why", left.len(), left[0]);
        Found { subject: left[0].to_owned(), triage: guess(what), is_guess: true }
    })
}

/// How the jobs of a submission ended that did not end well.
fn of_jobs(last: &SubmissionRecord, dir: &SlurmDir) -> Vec<Found> {
    let mut found = Vec::new();
    let mut answers = true;
    for job in last.jobs.iter().filter(|job| job.stage != CLOSEOUT) {
        // A controller that does not answer once is not asked for every job.
        let shown = answers.then(|| job.reports(dir)).transpose().unwrap_or_else(|failure| {
            progress::note(&failure.message);
            None
        });
        answers = shown.is_some();
        for report in shown.unwrap_or_else(|| job.recorded(dir)) {
            if report.is_done() || report.is_alive() || report.is_consequence() {
                continue;
            }
            let log = tail(&dir.log(job.id, report.task), LOG_BYTES);
            let mut triage = classify(&report.ended(&log));
            // Killed with its script, and forgotten by the controller.
            let is_guess = report.is_unknown() && triage.class == FailureClass::Unknown;
            if is_guess {
                triage = guess("nobody knows how it ended".to_owned());
            } else if !report.node.is_empty() {
                triage.what = format!("{} on {}", triage.what, report.node);
            }
            let task = report.task.map_or_else(String::new, |task| format!(" task {task}"));
            found.push(Found { subject: format!("job {} ({}){task}", job.id, job.stage), triage, is_guess });
        }
    }
    found
}

/// What may pass, for all that is known.
fn guess(what: String) -> Triage {
    Triage {
        class: FailureClass::InfraTransient,
        retry: true,
        what,
        ..classify(&Ended { exit_code: Some(exit_code::TRANSIENT), ..Ended::default() })
    }
}

/// A unit knows its class; whether it may pass by itself is in the words.
fn of_failure(failure: &Failure) -> Triage {
    let words =
        classify(&Ended { exit_code: Some(failure.exit_code()), log: &failure.message, ..Ended::default() });
    Triage {
        class: failure.class,
        retry: failure.class == FailureClass::InfraTransient && words.retry,
        what: failure.message.clone(),
        excerpt: String::new(),
        hint: words.hint,
    }
}

/// The last `bytes` of a file as text; empty where there is none.
pub(crate) fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
}

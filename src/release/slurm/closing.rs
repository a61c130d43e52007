//! The job that closes a run, whatever happened to the others: it submits what is left where that may help, and
//! otherwise writes `release.json`.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::cause::{Found, cause};
use super::part::same_place;
use super::standing::Standing;
use super::state::{Cause, Closed, SlurmDir, SubmissionRecord};
use super::submit::{Which, living, submit_rest, wait_for_submitter};
use crate::base::threads::Threads;
use crate::base::{env_vars, progress};
use crate::exec::slurm::{JobId, Slurm};
use crate::exec::{Ledger, RunSummary, UnitHistory};
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass};
use crate::release::closeout;
use crate::release::conductor::{self, Ending, Existing};
use crate::release::graph::{self, Build, Jobs};
use crate::release::jobs::CLOSEOUT;
use crate::release::run_dir::RunDir;

/// Bytes at the end of a log that are looked at.
pub(super) const LOG_BYTES: u64 = 64 << 10;

/// Runs the closeout job of the run at `path`; 0 once its verdict is in `release.json`, or what is left was submitted, or
/// where another job is to do that.
pub fn run(path: &Path, threads: Threads) -> Result<u8, Failure> {
    let dir = SlurmDir::at(path);
    let Some(number) = undisturbed(path, &dir)? else { return Ok(exit_code::ACCEPT) };
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
    // What could not be submitted to its end was cancelled, and is nothing to wait for.
    dir.forget_after(number)?;
    dir.keep_closed(&Closed { submission: number, exit_code: code })?;
    Ok(exit_code::ACCEPT)
}

/// The number of the submission that this job is to close, now the last one of the run: of one after it that was not
/// submitted to its end, because this job was stopped meanwhile, every job is cancelled. `None`: there is a newer
/// one, or none that this job is of.
fn undisturbed(path: &Path, dir: &SlurmDir) -> Result<Option<u32>, Failure> {
    let own_id = env_vars::get(env_vars::SLURM_JOB_ID).and_then(|id| id.parse().ok()).map(JobId);
    let Some(number) = own_number(&dir.submissions()?, own_id) else { return Ok(None) };
    if dir.submissions()?.last().is_none_or(|last| last.number <= number) {
        return Ok(Some(number));
    }
    let (run, record) = RunDir::join_existing(path)?;
    wait_for_submitter(&run, &record.run_id, number + 1)?;
    if own_number(&dir.submissions()?, own_id).is_none() {
        return Ok(None);
    }
    if let Err(failure) = cancel_others(&run, &record.run_id, own_id) {
        progress::note(&format!("jobs of submission {} may be left in the queue: {failure}", number + 1));
    }
    dir.forget_after(number)?;
    Ok(Some(number))
}

fn cancel_others(run: &RunDir, run_id: &str, own_id: Option<JobId>) -> Result<(), Failure> {
    let jobs = living(run, run_id)?;
    let others: Vec<JobId> = jobs.iter().map(|job| job.id).filter(|id| Some(*id) != own_id).collect();
    Slurm.cancel(&others)
}

/// The number of the submission whose closeout job this is, of the last one where this is no job; `None` where a newer one
/// goes on, or the job is of none.
fn own_number(submissions: &[SubmissionRecord], own_id: Option<JobId>) -> Option<u32> {
    let Some(id) = own_id else { return Some(submissions.last().map_or(0, |last| last.number)) };
    let own = submissions.iter().find(|s| s.closeout().is_some_and(|job| job.id == id));
    let Some(own) = own else {
        progress::note(&format!("job {id} closes no submission of this run"));
        return None;
    };
    let newer = submissions.iter().find(|s| s.complete && s.number > own.number);
    if let Some(newer) = newer {
        progress::note(&format!("submission {} goes on, which is to close the run", newer.number));
        return None;
    }
    Some(own.number)
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
    let Some(profile) = dir.profile()? else {
        return Err(Failure::config("slurm/profile.json is not there").with_hint("resume with --profile"));
    };
    let submissions = dir.submissions()?;
    let resubmitted = since_asked(&submissions).filter(|s| s.because.is_some()).count();
    if resubmitted >= profile.max_resubmissions as usize {
        return Ok(false);
    }
    let place = same_place(existing.run.path(), &existing.record.run_id, last)?;
    let which = Which { number: last.number + 1, because: Some(cause) };
    submit_rest(existing, &profile, &place, which).map(|_| true)
}

/// The submissions since somebody asked for the run, the last one first: what closeout submitted, and what it did so for.
fn since_asked(submissions: &[SubmissionRecord]) -> impl Iterator<Item = &SubmissionRecord> {
    let asked = submissions.iter().rposition(|s| s.because.is_none()).unwrap_or(0);
    submissions[asked..].iter().rev()
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
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    // What a resume was to do again and could not says nothing any more.
    let submissions = SlurmDir::of(run).submissions()?;
    let standing = Standing::of(&graph, &ledger, &|key| {
        let done_by = snapshot.units.get(key).and_then(UnitHistory::done_by);
        done_by.is_some_and(|owner| since_asked(&submissions).any(|submission| submission.ran(owner)))
    })?;
    summary.outputs.retain(|name, _| standing.contains(name));
    summary.halted = standing.halted;
    let left: Vec<&str> = graph
        .nodes()
        .iter()
        .map(|n| n.name.as_str())
        .filter(|name| !summary.outputs.contains_key(*name))
        .collect();
    if left.is_empty() || summary.halted {
        return Ok((summary, None));
    }
    let Found { subject, triage, is_guess } = cause(&left, &snapshot, last, &SlurmDir::of(run));
    let guessed = last.and_then(|last| last.because.as_ref()).is_some_and(|because| because.is_guess);
    let again = triage.retry && triage.class == FailureClass::InfraTransient && !(is_guess && guessed);
    let again = again.then(|| Cause { what: format!("{subject}: {}", triage.what), is_guess });
    summary.failure = Some((subject, Failure::from(triage)));
    Ok((summary, again))
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

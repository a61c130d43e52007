//! The job that closes a run, whatever happened to the others: it submits what is left where that may help, and
//! otherwise writes `release.json`.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::part::same_place;
use super::state::{Closed, SlurmDir, SubmissionRecord};
use super::submit::submit_rest;
use crate::exec::slurm::reports;
use crate::exec::triage::{Ended, Triage, classify};
use crate::exec::{Ledger, RunSummary, Snapshot};
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass};
use crate::release::closeout;
use crate::release::conductor::{self, Ending, Existing};
use crate::release::graph::{self, Build, Jobs};
use crate::release::jobs::CLOSEOUT;

/// Bytes at the end of a log that are looked at.
const LOG_BYTES: u64 = 64 << 10;

/// Runs the closeout job; always 0, because its verdict is in `release.json`.
pub fn run(existing: &Existing) -> Result<u8, Failure> {
    let dir = SlurmDir::of(&existing.run);
    let submissions = dir.submissions()?;
    let last = submissions.last();
    let (summary, again) = look(existing, last)?;
    if let (true, Some(last)) = (again, last) {
        let profile = dir.profile()?;
        if last.number <= profile.max_resubmissions {
            let place = same_place(existing.run.path(), &existing.record.run_id, last);
            submit_rest(existing, &profile, &place, last.number + 1)?;
            return Ok(0);
        }
    }
    let ending = finish(existing, &summary)?;
    let code = match &ending {
        Ending::Closed { outcome, .. } => outcome.exit_code(),
        _ => exit_code::TRANSIENT,
    };
    dir.keep_closed(&Closed { submission: last.map_or(0, |s| s.number), exit_code: code })?;
    Ok(0)
}

fn finish(existing: &Existing, summary: &RunSummary) -> Result<Ending, Failure> {
    let Existing { run, inputs, .. } = existing;
    Ledger::open(&run.ledger())?.compact()?;
    match inputs.impossible() {
        Some(failure) => closeout::infeasible(run, inputs, failure),
        None => closeout::close(run, inputs, summary),
    }
}

/// What the units left, with why the chain ended early if it did, and whether trying again may help.
fn look(existing: &Existing, last: Option<&SubmissionRecord>) -> Result<(RunSummary, bool), Failure> {
    let Existing { run, inputs, .. } = existing;
    if inputs.impossible().is_some() {
        return Ok((RunSummary::default(), false));
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
        return Ok((summary, false));
    }
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    let (subject, triage) = cause(&left, &snapshot, last, &SlurmDir::of(run))?;
    let again = triage.retry && triage.class == FailureClass::InfraTransient;
    summary.failure = Some((subject, Failure::from(triage)));
    Ok((summary, again))
}

/// Why units are left: what a unit said last, else how its job ended. What will not pass counts before what may.
fn cause(
    left: &[&str],
    snapshot: &Snapshot,
    last: Option<&SubmissionRecord>,
    dir: &SlurmDir,
) -> Result<(String, Triage), Failure> {
    let mut found: Vec<(String, Triage)> = Vec::new();
    for history in snapshot.units.values().filter(|h| left.contains(&h.unit.as_str())) {
        let failure = history.attempts.last().and_then(|a| a.failure.as_ref()).filter(|f| f.signal.is_none());
        found.extend(failure.map(|failure| (history.unit.clone(), of_failure(failure))));
    }
    for job in last.iter().flat_map(|s| &s.jobs).filter(|job| job.stage != CLOSEOUT) {
        for report in reports(job.id, &dir.exits())? {
            if report.is_done() || report.is_alive() || report.is_consequence() {
                continue;
            }
            let log = tail(&dir.log(job.id, report.task), LOG_BYTES);
            let mut triage = classify(&report.ended(&log));
            if !report.node.is_empty() {
                triage.what = format!("{} on {}", triage.what, report.node);
            }
            let task = report.task.map_or_else(String::new, |task| format!(" task {task}"));
            found.push((format!("job {} ({}){task}", job.id, job.stage), triage));
        }
    }
    // A unit's own word on what happened says more than the exit code of the job around it.
    let unknown = || {
        let triage = classify(&Ended { log: "", ..Ended::default() });
        let what = format!("{} units are not done, {} first; no job says why", left.len(), left[0]);
        (left[0].to_owned(), Triage { what, class: FailureClass::InfraTransient, ..triage })
    };
    let weight = |triage: &Triage| (triage.class == FailureClass::InfraTransient, triage.retry);
    found.sort_by_key(|(_, triage)| weight(triage));
    Ok(found.into_iter().next().unwrap_or_else(unknown))
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

//! Why units are left once the jobs of a submission have ended.

use super::closing::{LOG_BYTES, tail};
use super::state::{JobRecord, SlurmDir, SubmissionRecord};
use crate::base::progress;
use crate::exec::slurm::{JobId, JobReport};
use crate::exec::triage::{Ended, Triage, classify};
use crate::exec::{Attempt, Snapshot, UnitHistory};
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass};
use crate::release::jobs::CLOSEOUT;

/// Why units are left.
pub(super) struct Found {
    pub subject: String,
    pub triage: Triage,
    /// Whether it is only supposed, because nobody knows what happened.
    pub is_guess: bool,
}

/// Why units are left: what a unit said last, else how its job ended. What will not pass counts before what may.
pub(super) fn cause(
    left: &[&str],
    snapshot: &Snapshot,
    last: Option<&SubmissionRecord>,
    dir: &SlurmDir,
) -> Found {
    let histories = snapshot.units.values().filter(|h| left.contains(&h.unit.as_str()));
    let mut found: Vec<Found> = histories.filter_map(|history| of_unit(history, last)).collect();
    found.extend(last.map(|last| of_jobs(last, dir)).into_iter().flatten());
    // A unit's own word on what happened says more than the exit code of the job around it; what is known, more than what
    // is supposed.
    found.sort_by_key(|f| (f.triage.class == FailureClass::InfraTransient, f.is_guess, f.triage.retry));
    found.into_iter().next().unwrap_or_else(|| {
        let what = format!("{} units are not done, {} first; no job says why", left.len(), left[0]);
        Found { subject: left[0].to_owned(), triage: guess(what), is_guess: true }
    })
}

/// What a unit said last, in the jobs of `last`: what failed in an earlier submission was submitted again.
fn of_unit(history: &UnitHistory, last: Option<&SubmissionRecord>) -> Option<Found> {
    let attempt = history.attempts.last().filter(|attempt| last.is_none_or(|last| is_of(attempt, last)))?;
    let failure = attempt.failure.as_ref().filter(|failure| failure.signal.is_none())?;
    Some(Found { subject: history.unit.clone(), triage: of_failure(failure), is_guess: false })
}

/// Whether an attempt belongs to a submission: by its job, or, made outside of any, by its time.
fn is_of(attempt: &Attempt, submission: &SubmissionRecord) -> bool {
    if attempt.owner.job.is_some() {
        submission.ran(&attempt.owner)
    } else {
        attempt.failed_at >= submission.submitted_at
    }
}

/// How the jobs of a submission ended that did not end well.
fn of_jobs(last: &SubmissionRecord, dir: &SlurmDir) -> Vec<Found> {
    let mut answers = true;
    let jobs = last.jobs.iter().filter(|job| job.stage != CLOSEOUT).map(|job| {
        // A controller that does not answer once is not asked for every job.
        let shown = answers.then(|| job.reports(dir)).transpose().unwrap_or_else(|failure| {
            progress::note(&failure.message);
            None
        });
        answers = shown.is_some();
        (job, shown.unwrap_or_else(|| job.recorded(dir)))
    });
    let jobs: Vec<(&JobRecord, Vec<JobReport>)> = jobs.collect();
    of_reports(&jobs, &|job, task| tail(&dir.log(job, task), LOG_BYTES))
}

/// The same from the reports of the jobs, in the order in which they wait for each other.
fn of_reports(
    jobs: &[(&JobRecord, Vec<JobReport>)],
    log: &dyn Fn(JobId, Option<u32>) -> String,
) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for (job, reports) in jobs {
        let after_failure = !found.is_empty();
        for report in reports {
            if report.is_done() || report.is_alive() || report.is_consequence(after_failure) {
                continue;
            }
            found.push(of_report(job, report, &log(job.id, report.task)));
        }
    }
    found
}

fn of_report(job: &JobRecord, report: &JobReport, log: &str) -> Found {
    let mut triage = classify(&report.ended(log));
    // Killed with its script, and forgotten by the controller.
    let is_guess = report.is_unknown() && triage.class == FailureClass::Unknown;
    if is_guess {
        triage = guess("nobody knows how it ended".to_owned());
    } else if !report.node.is_empty() {
        triage.what = format!("{} on {}", triage.what, report.node);
    }
    let task = report.task.map_or_else(String::new, |task| format!(" task {task}"));
    Found { subject: format!("job {} ({}){task}", job.id, job.stage), triage, is_guess }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::digest::Digest;
    use crate::exec::{KeyBuilder, Owner};

    fn job(stage: &str, id: u64) -> JobRecord {
        JobRecord { stage: stage.to_owned(), id: JobId(id), tasks: None, units: 1 }
    }

    fn report(state: &str, node: &str, reason: &str) -> JobReport {
        JobReport {
            task: None,
            state: state.to_owned(),
            reason: reason.to_owned(),
            exit_code: None,
            signal: None,
            node: node.to_owned(),
            restarts: 0,
        }
    }

    fn submission(submitted_at: &str, jobs: Vec<JobRecord>) -> SubmissionRecord {
        SubmissionRecord {
            number: 2,
            submitted_at: submitted_at.to_owned(),
            submitted_by: "h".to_owned(),
            because: None,
            directory: "/".into(),
            cache: "/".into(),
            program: "/".into(),
            build: Digest::of(b""),
            jobs,
            complete: true,
        }
    }

    /// By accounting, which has no reasons, the jobs that waited look like ones that somebody cancelled.
    #[test]
    fn jobs_that_were_cancelled_because_one_before_them_failed_are_no_cause() {
        let (score, compare) = (job("score", 1), job("compare", 2));
        let of = |failed: JobReport, waited: JobReport| {
            let jobs = [(&score, vec![failed]), (&compare, vec![waited])];
            let found = of_reports(&jobs, &|_, _| String::new());
            found.into_iter().map(|f| (f.subject, f.triage.retry)).collect::<Vec<_>>()
        };
        for state in ["TIMEOUT", "NODE_FAIL"] {
            let expected = [("job 1 (score)".to_owned(), true)];
            assert_eq!(of(report(state, "n1", ""), report("CANCELLED", "", "")), expected, "{state}");
            let known = report("CANCELLED", "", "DependencyNeverSatisfied");
            assert_eq!(of(report(state, "n1", ""), known), expected, "{state}");
        }
        // Somebody cancelled it, whether or not it had begun.
        let cancelled = of(report("COMPLETED", "n1", ""), report("CANCELLED", "", ""));
        assert_eq!(cancelled, [("job 2 (compare)".to_owned(), false)]);
        assert_eq!(of(report("TIMEOUT", "n1", ""), report("CANCELLED", "n1", "")).len(), 2);
    }

    fn history(job: Option<&str>, failed_at: &str, failure: Failure) -> UnitHistory {
        let owner = Owner { job: job.map(str::to_owned), ..Owner::current() };
        let attempt = Attempt { owner, done: false, failure: Some(failure), failed_at: failed_at.to_owned() };
        UnitHistory {
            unit: "scan".to_owned(),
            attempts: vec![attempt],
            done: None,
            reused: false,
            elapsed_s: 0.0,
        }
    }

    /// What failed before was submitted again: only what failed since says why units are left now.
    #[test]
    fn failures_of_earlier_submissions_do_not_decide() {
        // Its only job is one that is not asked what became of it.
        let last = submission("2026-02-01T00:00:00Z", vec![job(CLOSEOUT, 12)]);
        let (before, since) = ("2026-01-31T00:00:00Z", "2026-02-02T00:00:00Z");
        let dir = tempfile::tempdir().unwrap();
        let dir = SlurmDir::at(dir.path());
        let cases = [
            (Some("7"), since, false),
            (Some("1"), since, false),
            (Some("12"), before, true),
            (Some("12_3+1"), before, true),
            (None, before, false),
            (None, since, true),
        ];
        for (job, at, counts) in cases {
            let failure = Failure::new(FailureClass::EvalJudgeFailed, "an old word");
            let key = KeyBuilder::new("k").finish();
            let units = [(key, history(job, at, failure))].into();
            let snapshot = Snapshot { units, ..Snapshot::default() };
            let found = cause(&["scan"], &snapshot, Some(&last), &dir);
            assert_eq!(found.triage.what == "an old word", counts, "{job:?} {at}: {}", found.triage.what);
        }
    }
}

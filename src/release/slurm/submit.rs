//! Submitting what is left of a run.
//!
//! The first job is held until all are submitted, so that a submitter which is killed in between leaves nothing that
//! runs without an end. Every job waits for the one before it to succeed; closeout waits for all of them to end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::part::{same_place, unfinished};
use super::plan::{Place, Planned, plan};
use super::standing::Standing;
use super::state::{Cause, JobRecord, SlurmDir, SubmissionRecord};
use crate::base::{clock, progress};
use crate::exec::slurm::{JobId, JobReport, Profile, ProfileFile, Slurm, Submission};
use crate::exec::{Claim, Done, Flow, Graph, KeyBuilder, Ledger, Owner, UnitKey};
use crate::record::{Failure, FailureClass};
use crate::release::conductor::Existing;
use crate::release::graph::{Build, Jobs};
use crate::release::jobs::{CLOSEOUT, STAGES};
use crate::release::last_looks;
use crate::release::run_dir::RunDir;

/// What `resume` found.
pub enum Resumed {
    /// Jobs of an earlier submission go on.
    Going(SubmissionRecord),
    /// What was left was submitted.
    Submitted(SubmissionRecord),
}

/// Submits a run for the first time.
pub fn submit(existing: &Existing, profile: &Profile) -> Result<SubmissionRecord, Failure> {
    let slurm_dir = SlurmDir::of(&existing.run);
    slurm_dir.create()?;
    slurm_dir.keep_profile(profile)?;
    let place = Place::here(existing.run.path(), &existing.record.run_id, profile, &existing.inputs.cache)?;
    submit_rest(existing, profile, &place, Which { number: 1, because: None })
}

/// Goes on with a run that was submitted before. `profile` replaces the one it had.
pub fn resume(existing: &Existing, profile: Option<Profile>) -> Result<Resumed, Failure> {
    let slurm_dir = SlurmDir::of(&existing.run);
    let submissions = slurm_dir.submissions()?;
    let kept = || match slurm_dir.profile()? {
        Some(profile) => Ok(profile),
        None => ProfileFile::default().validate(&STAGES),
    };
    let Some(last) = submissions.last() else {
        // Killed or refused before anything was submitted, or run here so far.
        let profile = profile.map_or_else(kept, Ok)?;
        return submit(existing, &profile).map(Resumed::Submitted);
    };
    let closed = slurm_dir.closed()?.is_some_and(|closed| closed.submission == last.number);
    // A closeout that has closed the run may take a moment to end; nothing goes on.
    if !closed && is_going_on(&submissions, &slurm_dir)? {
        return Ok(Resumed::Going(last.clone()));
    }
    let strays: Vec<JobId> =
        living(&existing.run, &existing.record.run_id)?.iter().map(|job| job.id).collect();
    Slurm.cancel(&strays)?;
    // Whoever asks for the run again has mended what kept an engine from staying up.
    last_looks::forget_failed(&existing.run)?;
    let mut place = same_place(existing.run.path(), &existing.record.run_id, last)?;
    let profile = match profile {
        Some(profile) => {
            slurm_dir.keep_profile(&profile)?;
            profile
        }
        None => kept()?,
    };
    if profile.program.is_none() {
        place.program = Place::here(existing.run.path(), "", &profile, &place.cache)?.program;
    }
    let which = Which { number: last.number + 1, because: None };
    submit_rest(existing, &profile, &place, which).map(Resumed::Submitted)
}

/// Whether a job lives that will close the run, or submit what is left of it: without one nobody would, whatever else
/// lives.
fn is_going_on(submissions: &[SubmissionRecord], dir: &SlurmDir) -> Result<bool, Failure> {
    let closeout = match submissions {
        [.., last] if last.complete => last.closeout(),
        // The closeout of the one before is submitting it.
        [.., before, last] if last.because.is_some() => before.closeout(),
        _ => None,
    };
    match closeout {
        Some(job) => Ok(job.reports(dir)?.iter().any(JobReport::will_act)),
        None => Ok(false),
    }
}

/// A job that has not ended.
pub struct LivingJob {
    /// Its stage.
    pub stage: String,
    /// Slurm's id.
    pub id: JobId,
}

/// Jobs of a run that have not ended, the last stage first: those of its last submission and those with its name. A submitter
/// that was killed leaves jobs that wait for ever, one of which may not even be in its record.
pub fn living(run: &RunDir, run_id: &str) -> Result<Vec<LivingJob>, Failure> {
    let Some(last) = SlurmDir::of(run).submissions()?.pop() else { return Ok(Vec::new()) };
    let place = same_place(run.path(), run_id, &last)?;
    let dir = SlurmDir::of(run);
    let mut found = Vec::new();
    for stage in STAGES.into_iter().rev() {
        let mut ids = Slurm.named(&place.job_name(stage))?;
        for job in last.jobs.iter().filter(|job| job.stage == stage) {
            if !ids.contains(&job.id) && job.reports(&dir)?.iter().any(JobReport::is_alive) {
                ids.push(job.id);
            }
        }
        found.extend(ids.into_iter().map(|id| LivingJob { stage: stage.to_owned(), id }));
    }
    Ok(found)
}

/// Which submission of a run.
pub(super) struct Which {
    /// Its number.
    pub number: u32,
    /// Why a closeout job submits.
    pub because: Option<Cause>,
}

/// Submits the jobs whose units are not all done, and the one that closes the run.
pub(super) fn submit_rest(
    existing: &Existing,
    profile: &Profile,
    place: &Place,
    which: Which,
) -> Result<SubmissionRecord, Failure> {
    profile.check_paths()?;
    let Existing { run, inputs, .. } = existing;
    let quantize_plan = inputs.plan.as_ref().map_err(Clone::clone)?;
    let build = Build::new(inputs, run);
    let jobs = Jobs::new(&build, quantize_plan);
    let graph = crate::release::graph::build(&build, &jobs);
    let ledger = Ledger::open(&run.ledger())?;
    // Reads the candidate, which may take longer than a lease holds.
    let standing = Standing::of(&graph, &ledger, &|_| false)?;
    let key = key(&existing.record.run_id, which.number);
    if let Claim::Busy(owner) = ledger.claim_again(&key, UNIT)? {
        return Err(busy(&owner));
    }
    let submitted = submit_planned(existing, profile, place, which, (&graph, &standing));
    let noted = match &submitted {
        Ok(record) => ledger.finish(
            &key,
            UNIT,
            &Done {
                output: serde_json::json!(record.jobs.len()),
                flow: Flow::Continue,
                elapsed_s: 0.0,
                peak_memory_bytes: None,
                reused: false,
                inputs: None,
            },
        ),
        Err(failure) => ledger.fail(&key, UNIT, failure).map(|()| true),
    };
    // The jobs are submitted or cancelled, whatever the ledger could be told.
    if let Err(error) = noted {
        progress::note(&format!("the submission is not in the ledger: {error}"));
    }
    submitted
}

/// Name of the unit that a submission is: two processes never submit one at once.
const UNIT: &str = "submission";

fn key(run_id: &str, number: u32) -> UnitKey {
    KeyBuilder::new("submission/1").part("run", run_id).part("number", number).finish()
}

/// How often who submits is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// Waits until nobody submits submission `number` of a run any more; who was lost while submitting counts for the time of
/// its lease.
pub(super) fn wait_for_submitter(run: &RunDir, run_id: &str, number: u32) -> Result<(), Failure> {
    let (ledger, key) = (Ledger::open(&run.ledger())?, key(run_id, number));
    loop {
        match ledger.claim(&key, UNIT)? {
            Claim::Done(_) => return Ok(()),
            Claim::Busy(owner) => progress::note(&busy(&owner).message),
            Claim::Granted => {
                let lost =
                    Failure::new(FailureClass::InfraTransient, "who submitted it was stopped meanwhile");
                return Ok(ledger.fail(&key, UNIT, &lost)?);
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn busy(owner: &Owner) -> Failure {
    let message = format!("process {} on {} is submitting this run", owner.pid, owner.place());
    Failure::new(FailureClass::InfraTransient, message).with_hint("wait for it, then ask `day0 status`")
}

fn submit_planned(
    existing: &Existing,
    profile: &Profile,
    place: &Place,
    which: Which,
    (graph, standing): (&Graph<'_>, &Standing),
) -> Result<SubmissionRecord, Failure> {
    let dir = SlurmDir::of(&existing.run);
    let mut planned = plan(graph, &existing.inputs, profile, place);
    let left = unfinished(&planned, standing);
    let mut record = SubmissionRecord {
        number: which.number,
        submitted_at: clock::now_iso8601(),
        submitted_by: submitter(),
        because: which.because,
        directory: place.directory.clone(),
        cache: place.cache.clone(),
        program: place.program.clone(),
        build: existing.inputs.build.clone(),
        jobs: Vec::new(),
        complete: false,
    };
    let mut wanted: Vec<usize> = Vec::new();
    for (index, tasks) in left {
        planned[index].script.tasks = tasks;
        wanted.push(index);
    }
    wanted.extend(planned.iter().position(|p| p.job.is_none()));
    let mut scripts = Vec::new();
    // All are checked before any is submitted.
    for index in wanted {
        let script = planned[index].write(&dir.scripts(record.number))?;
        Slurm.test(&script)?;
        scripts.push((&planned[index], script));
    }
    let before = dir.submissions()?;
    let known: Vec<JobId> = before.iter().flat_map(|s| &s.jobs).map(|job| job.id).collect();
    // Who is killed between two of the following leaves a record by whose names all jobs are found.
    dir.keep(&record)?;
    if let Err(failure) = submit_chain(&scripts, &dir, &mut record, &known) {
        let ids: Vec<JobId> = record.jobs.iter().map(|job| job.id).collect();
        if let Err(error) = Slurm.cancel(&ids) {
            progress::note(&format!("jobs are left in the queue: {error}"));
        }
        return Err(failure);
    }
    existing.run.event("submitted", "release", &format!("{} jobs", record.jobs.len()));
    Ok(record)
}

/// Submits all jobs and lets the first one go.
fn submit_chain(
    scripts: &[(&Planned<'_>, PathBuf)],
    dir: &SlurmDir,
    record: &mut SubmissionRecord,
    known: &[JobId],
) -> Result<(), Failure> {
    for (planned, script) in scripts {
        chain(planned, script, dir, record, known)?;
    }
    if let Some(first) = record.jobs.first() {
        Slurm.release(first.id)?;
    }
    record.complete = true;
    dir.keep(record)
}

/// Submits one job after those of the record.
fn chain(
    planned: &Planned<'_>,
    script: &Path,
    dir: &SlurmDir,
    record: &mut SubmissionRecord,
    known: &[JobId],
) -> Result<(), Failure> {
    let ids: Vec<JobId> = record.jobs.iter().map(|job| job.id).collect();
    let is_closeout = planned.stage() == CLOSEOUT;
    let how = Submission {
        after_ok: if is_closeout { Vec::new() } else { ids.last().copied().into_iter().collect() },
        after_any: if is_closeout { ids.clone() } else { Vec::new() },
        hold: ids.is_empty(),
        name: planned.script.name.clone(),
        known: known.to_vec(),
    };
    let id = Slurm.submit(script, &how)?;
    record.jobs.push(JobRecord {
        stage: planned.stage().to_owned(),
        id,
        tasks: planned.script.tasks.clone(),
        units: planned.units(),
    });
    dir.keep(record)
}

/// Who submits: a host, or a job that closes a run.
fn submitter() -> String {
    let own = Owner::current();
    match &own.job {
        Some(job) => format!("job {job} on {}", own.place()),
        None => own.host,
    }
}

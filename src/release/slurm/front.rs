//! `day0 release --executor slurm`: begin, go on, plan.

use std::path::Path;

use super::plan::{Place, Planned, plan};
use super::standing::Standing;
use super::state::{SlurmDir, SubmissionRecord};
use super::submit::{Resumed, resume, submit};
use super::wait::wait;
use crate::base::progress;
use crate::base::threads::Threads;
use crate::base::units::human_seconds;
use crate::exec::Graph;
use crate::exec::slurm::{Profile, ProfileFile};
use crate::record::Failure;
use crate::record::verdict::exit_code;
use crate::release::closeout;
use crate::release::conductor::{Ending, Existing, Request};
use crate::release::config::ReleaseConfig;
use crate::release::jobs::STAGES;
use crate::release::preflight::Inputs;

/// Submits a release, or goes on with one; with `and_wait`, until it is closed.
pub fn release(request: Request, profile: Option<ProfileFile>, and_wait: bool) -> Result<Ending, Failure> {
    let profile = profile.map(valid).transpose()?;
    let (existing, submission) = if let Some(path) = &request.resume {
        let existing = Existing::join(path, request.threads)?;
        if existing.inputs.gpus().is_some() {
            return Err(no_gpus());
        }
        if let Some(ended) = already_closed(&existing)? {
            return Ok(ended);
        }
        let submission = match resume(&existing, profile)? {
            Resumed::Going(submission) | Resumed::Submitted(submission) => submission,
        };
        (existing, submission)
    } else {
        let existing = Existing::create(request.config, request.out.as_deref(), request.threads)?;
        existing.run.event("start", "release", &existing.inputs.config.model);
        if let Some(failure) = existing.inputs.impossible() {
            return closeout::infeasible(&existing.run, &existing.inputs, failure);
        }
        for line in existing.inputs.uncertifiable() {
            progress::note(&line);
        }
        let profile = profile.map_or_else(|| valid(ProfileFile::default()), Ok)?;
        let submission = submit(&existing, &profile)?;
        (existing, submission)
    };
    if and_wait {
        return wait(existing.run.path());
    }
    Ok(Ending::Submitted { run: existing.run.path().to_path_buf(), jobs: jobs_of(&submission) })
}

/// The refusal of `device:` beside this executor.
pub fn no_gpus() -> Failure {
    Failure::config("device: under Slurm the built-in engine computes on CPUs")
        .with_hint("serve.engine names a command that serves on GPUs")
}

/// The profile, with what may go wrong said.
fn valid(file: ProfileFile) -> Result<Profile, Failure> {
    let profile = file.validate(&STAGES)?;
    for remark in profile.remarks() {
        progress::note(&remark);
    }
    Ok(profile)
}

/// A run that ended with a verdict is not run again, unless something kept units from being done, which may be mended now:
/// more memory, another key, an engine that comes up.
fn already_closed(existing: &Existing) -> Result<Option<Ending>, Failure> {
    let dir = SlurmDir::of(&existing.run);
    let closed = dir.closed()?.zip(dir.submissions()?.pop());
    let ended = closed.is_some_and(|(closed, last)| {
        closed.submission == last.number && closed.exit_code != exit_code::TRANSIENT
    });
    if ended && (existing.inputs.impossible().is_some() || Standing::of_run(existing)?.is_settled) {
        return wait(existing.run.path()).map(Some);
    }
    Ok(None)
}

fn jobs_of(submission: &SubmissionRecord) -> Vec<String> {
    let text = |job: &super::state::JobRecord| match &job.tasks {
        Some(tasks) => format!("{} {} ({} tasks)", job.stage, job.id, tasks.len()),
        None => format!("{} {}", job.stage, job.id),
    };
    submission.jobs.iter().map(text).collect()
}

/// The jobs of a release as text, one a line; with `scripts`, their scripts are written there.
pub fn describe(
    config: ReleaseConfig,
    profile: ProfileFile,
    threads: Threads,
    scripts: Option<&Path>,
) -> Result<Vec<String>, Failure> {
    let profile = valid(profile)?;
    let inputs = Inputs::gather(config, threads)?;
    crate::release::conductor::with_graph(&inputs, &|graph| lines(graph, &inputs, &profile, scripts))
}

fn lines(
    graph: &Graph<'_>,
    inputs: &Inputs,
    profile: &Profile,
    scripts: Option<&Path>,
) -> Result<Vec<String>, Failure> {
    let place = Place::here(Path::new("runs/planned"), "planned", profile, &inputs.cache)?;
    let planned = plan(graph, inputs, profile, &place);
    let mut lines = vec![
        "stage     tasks  units  nodes  cpus  gpus          memory    limit       partition   estimate  after"
            .to_owned(),
    ];
    let mut before = "–".to_owned();
    for one in &planned {
        if let Some(dir) = scripts {
            one.write(dir)?;
        }
        let after = if one.job.is_none() { "all, however they ended".to_owned() } else { before.clone() };
        lines.push(line(one, &after));
        one.stage().clone_into(&mut before);
    }
    Ok(lines)
}

fn line(planned: &Planned<'_>, after: &str) -> String {
    let resources = &planned.script.resources;
    let or_default = |value: &Option<String>| value.clone().unwrap_or_else(|| "default".to_owned());
    let gpus: Vec<&str> =
        [&resources.gpus, &resources.gres].into_iter().flatten().map(String::as_str).collect();
    format!(
        "{:<9} {:>5} {:>6} {:>6} {:>5}  {:<12}  {:<8}  {:<10}  {:<10} {:>9}  {after}",
        planned.stage(),
        planned.script.tasks.as_ref().map_or(1, Vec::len),
        planned.units(),
        planned.script.nodes(),
        planned.script.cpus(),
        if gpus.is_empty() { "–".to_owned() } else { gpus.join(",") },
        or_default(&resources.memory),
        or_default(&resources.time),
        or_default(&resources.partition),
        planned.estimate_s.map_or_else(|| "unknown".to_owned(), human_seconds),
    )
}

//! What a Slurm task runs: the units of one part of a stage.

use std::collections::BTreeSet;
use std::path::Path;

use super::plan::Place;
use super::standing::Standing;
use super::state::{SlurmDir, SubmissionRecord};
use super::{closing, plan};
use crate::base::interrupt;
use crate::base::threads::Threads;
use crate::exec::{Graph, RunSummary, Share};
use crate::gate;
use crate::record::serve::ServeRecord;
use crate::record::{Failure, FailureClass};
use crate::release::arm::ArmName;
use crate::release::conductor::{self, Existing};
use crate::release::graph::{Build, Jobs, names};
use crate::release::jobs::{self, CLOSEOUT, STAGES};
use crate::release::{eval_units, last_looks};

/// Which units.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// A stage, the name of a unit, or its key.
    pub key: &'a str,
    /// Which task of how many.
    pub of: Option<(usize, usize)>,
}

/// Runs a part of the run at `path`. `Ok` holds the exit code: 0 when the units are done, whatever their verdict, or are
/// not needed any more; 128 + the signal that stopped them.
pub fn run_part(
    path: &Path,
    part: &Part<'_>,
    threads: Threads,
    say: &(dyn Fn(&str) + Sync),
) -> Result<u8, Failure> {
    let no_handlers = |e| Failure::io("signal handlers", &e);
    if part.key == CLOSEOUT {
        // It must not stop between two looks at the ledger, and has nothing to store.
        interrupt::ignore_warning().map_err(no_handlers)?;
        return closing::run(path, threads);
    }
    interrupt::install_warning().map_err(no_handlers)?;
    let existing = Existing::join(path, threads)?;
    let Existing { run, inputs, .. } = &existing;
    if inputs.impossible().is_some() {
        return Ok(0);
    }
    if let Some(submission) = SlurmDir::of(run).submissions()?.last() {
        check_build(submission, &existing)?;
    }
    let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
    let build = Build::new(inputs, run);
    let jobs = Jobs::new(&build, plan);
    let graph = crate::release::graph::build(&build, &jobs);
    let names = select(&graph, part)?;
    let summary = run_arm_by_arm(&build, &graph, &names, say)?;
    let left: Vec<&String> = names.iter().filter(|n| !summary.outputs.contains_key(*n)).collect();
    match (&summary.failure, summary.interrupted) {
        _ if left.is_empty() => Ok(0),
        (_, Some(signal)) => {
            run.event("interrupted", part.key, &format!("signal {signal}"));
            Ok(Failure::interrupted(signal).exit_code())
        }
        (Some((node, failure)), None) => {
            run.event("failed", node, &failure.message);
            Err(failure.clone())
        }
        // Only where nothing failed: the gate may be one of later units, which decided before these ran again.
        (None, None) if summary.halted => Ok(0),
        (None, None) => {
            let message =
                format!("{} units wait for others that are not done, {} first", left.len(), left[0]);
            Err(Failure::new(FailureClass::InfraTransient, message)
                .with_hint("run the stages before this one first"))
        }
    }
}

/// Runs the nodes with these names; where the engines of both arms do not fit beside each other, what the baseline's
/// answers first. Each engine is looked at once more before it is stopped.
fn run_arm_by_arm<'a>(
    build: &'a Build<'a>,
    graph: &Graph<'a>,
    nodes: &BTreeSet<String>,
    say: &(dyn Fn(&str) + Sync),
) -> Result<RunSummary, Failure> {
    let of_baseline = |name: &&String| name.split(['/', '-']).any(|word| word == ArmName::Baseline.as_str());
    let first: BTreeSet<String> = nodes.iter().filter(of_baseline).cloned().collect();
    let both = eval_units::both_arms_fit(build) || first.is_empty() || first.len() == nodes.len();
    let groups = if both { vec![nodes.clone()] } else { vec![first.clone(), &first ^ nodes] };
    let mut summary = RunSummary::default();
    for group in groups {
        summary = conductor::execute(build, graph, say, Share::Part(&group))?;
        // A warning that came with the last unit leaves time for the look; one in the middle does not, and who goes on looks.
        let whole = group.iter().all(|n| summary.outputs.contains_key(n));
        for arm in ArmName::BOTH {
            // An engine that did not come up is not to be started once more for it.
            let opening: Option<ServeRecord> = summary.output(&names::serve(arm));
            let opening = opening.filter(|opening| gate::serve(opening).pass);
            if let Some(opening) = opening.filter(|_| whole || summary.interrupted.is_none()) {
                last_looks::take(build, arm, &opening)?;
            }
            build.arm(arm).stop();
        }
        if summary.failure.is_some() || summary.interrupted.is_some() {
            break;
        }
    }
    Ok(summary)
}

/// A program that was replaced since the submission makes other units than those that the others wait for.
fn check_build(submission: &SubmissionRecord, existing: &Existing) -> Result<(), Failure> {
    if submission.build == existing.inputs.build {
        return Ok(());
    }
    Err(Failure::config(format!(
        "{}: the program is another build than the one that submitted the run",
        submission.program.display()
    ))
    .with_hint("install the program under another path, or submit the run again"))
}

fn select(graph: &Graph<'_>, part: &Part<'_>) -> Result<BTreeSet<String>, Failure> {
    if STAGES.contains(&part.key) {
        let (index, parts) = part.of.unwrap_or((0, 1));
        let jobs = jobs::jobs(graph, &|_| Some(parts));
        let Some(job) = jobs.into_iter().find(|job| job.stage == part.key) else {
            return Ok(BTreeSet::new());
        };
        let count = job.parts.len();
        return job.parts.into_iter().nth(index).ok_or_else(|| {
            Failure::config(format!("--part {index}: the stage {} has {count} parts", part.key))
        });
    }
    let one = graph.nodes().iter().find(|n| n.name == part.key || n.unit.key().as_str() == part.key);
    match one {
        Some(node) => Ok(BTreeSet::from([node.name.clone()])),
        None => Err(Failure::config(format!("{}: no stage, unit or key of this run", part.key))
            .with_hint(format!("stages: {}; units: `day0 release --plan`", STAGES.join(", ")))),
    }
}

/// Parts of each planned job in which results are missing or do not stand.
pub(super) fn unfinished(
    planned: &[plan::Planned<'_>],
    standing: &Standing,
) -> Vec<(usize, Option<Vec<u32>>)> {
    let mut left = Vec::new();
    for (index, planned) in planned.iter().enumerate() {
        let Some(job) = &planned.job else { continue };
        let parts: Vec<u32> = (0u32..)
            .zip(&job.parts)
            .filter(|(_, nodes)| nodes.iter().any(|n| !standing.contains(n)))
            .map(|(part, _)| part)
            .collect();
        if !parts.is_empty() {
            left.push((index, job.is_array().then_some(parts)));
        }
    }
    left
}

/// Where the jobs of an existing run go: where they went before. `run` may be named from another directory than then.
pub(super) fn same_place(run: &Path, run_id: &str, before: &SubmissionRecord) -> Result<Place, Failure> {
    let run = std::path::absolute(run).map_err(|e| Failure::io(run.display(), &e))?;
    Ok(Place {
        run,
        run_id: run_id.to_owned(),
        directory: before.directory.clone(),
        cache: before.cache.clone(),
        program: before.program.clone(),
    })
}

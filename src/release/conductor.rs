//! The conductor: gathers the inputs, runs the chain, closes the run with `release.json` and `report.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::arm::ArmName;
use super::closeout;
use super::config::{ConfigFile, ReleaseConfig};
use super::graph::{self, Build, Jobs};
use super::jobs;
use super::preflight::Inputs;
use super::run_dir::{RunDir, RunRecord};
use super::stage_lines::StageLines;
use crate::base::interrupt;
use crate::base::progress;
use crate::base::threads::Threads;
use crate::eval::PreparedTask;
use crate::exec::{Executor, Graph, Ledger, LocalExecutor, Node, RunSummary, Share};
use crate::record::release::ReleaseRecord;
use crate::record::{Failure, Outcome};

/// How often a stage repeats a unit after a transient fault.
const RETRIES_PER_STAGE: usize = 1;

/// What the user asked for.
pub struct Request {
    /// Flags and file, merged; ignored when resuming.
    pub config: ConfigFile,
    /// Run directory for a new run.
    pub out: Option<PathBuf>,
    /// Run to continue.
    pub resume: Option<PathBuf>,
    /// Worker threads.
    pub threads: Threads,
}

/// How a release ended.
pub enum Ending {
    /// With a record.
    Closed {
        /// `release.json`.
        record: Box<ReleaseRecord>,
        /// Its outcome.
        outcome: Outcome,
        /// The run directory.
        run: PathBuf,
    },
    /// Not yet: jobs will do the work.
    Submitted {
        /// The run directory.
        run: PathBuf,
        /// The jobs, in words.
        jobs: Vec<String>,
    },
    /// By a signal; the run directory resumes.
    Interrupted {
        /// The signal.
        signal: i32,
        /// The run directory.
        run: PathBuf,
    },
}

/// Runs a release. `say` receives one line a stage.
///
/// # Errors
/// Usage and configuration errors, before any stage ran.
pub fn run(request: Request, say: &(dyn Fn(&str) + Sync)) -> Result<Ending, Failure> {
    let Existing { run, inputs, .. } = open(request)?;
    run.event("start", "release", &inputs.config.model);
    if let Some(failure) = inputs.impossible() {
        return closeout::infeasible(&run, &inputs, failure);
    }
    let plan = match &inputs.plan {
        Ok(plan) => plan,
        Err(failure) => return closeout::infeasible(&run, &inputs, failure),
    };
    for line in inputs.uncertifiable() {
        say(&format!("note: {line}"));
    }
    let build = Build::new(&inputs, &run);
    let jobs = Jobs::new(&build, plan);
    let graph = graph::build(&build, &jobs);
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    run.event("planned", "release", &format!("{} units", graph.nodes().len()));
    let summary = execute(&build, &graph, say, Share::Whole)?;
    for arm in &build.arms {
        arm.stop();
    }
    if let Some(signal) = summary.interrupted {
        run.event("interrupted", "release", &format!("signal {signal}"));
        return Ok(Ending::Interrupted { signal, run: run.path().to_path_buf() });
    }
    closeout::close(&run, &inputs, &summary)
}

/// Fetches everything a release reads into the caches: the model, and the data of its suites. Returns a line for each.
pub fn prefetch(config: ReleaseConfig, threads: Threads) -> Result<Vec<String>, Failure> {
    let inputs = Inputs::gather(config, threads)?;
    let model = &inputs.model;
    let mut lines = vec![format!("model {}: {} ({})", model.name, model.dir.display(), inputs.source_digest)];
    let task = |t: &PreparedTask| format!("task {}: {} items ({})", t.name(), t.items.len(), t.digest);
    lines.extend(inputs.tasks.iter().map(task));
    Ok(lines)
}

/// The work graph of a release as text, without running anything: the digests of its inputs, then a line
/// `key stage name` for each unit, and, where it runs in this process, a line for each stage.
pub fn plan(config: ReleaseConfig, threads: Threads, runs_here: bool) -> Result<Vec<String>, Failure> {
    let inputs = Inputs::gather(config, threads)?;
    let mut lines: Vec<String> =
        inputs.provenance().inputs.iter().map(|(name, digest)| format!("{name:<10} {digest}")).collect();
    lines.extend(inputs.tasks.iter().map(|task| format!("task       {}  {}", task.digest, task.name())));
    lines.extend(inputs.uncertifiable().into_iter().map(|line| format!("note       {line}")));
    let units = |graph: &Graph<'_>| {
        let unit = |n: &Node<'_>| format!("{}  {:<9} {}", n.unit.key(), n.stage, n.name);
        let mut lines: Vec<String> = graph.nodes().iter().map(unit).collect();
        if runs_here {
            lines.extend(jobs::local_table(graph, &inputs));
        }
        Ok(lines)
    };
    lines.extend(with_graph::<Vec<String>>(&inputs, &units)?);
    Ok(lines)
}

/// Gives the graph of a release that is only planned to `work`.
pub(super) fn with_graph<T>(
    inputs: &Inputs,
    work: &dyn Fn(&Graph<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some(failure) = inputs.impossible() {
        return Err(failure.clone());
    }
    let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
    // Nothing is created: the directory only names where the artifacts would go.
    let run = RunDir::planned(Path::new("runs/planned"));
    let build = Build::new(inputs, &run);
    let jobs = Jobs::new(&build, plan);
    work(&graph::build(&build, &jobs))
}

/// A run directory with the inputs it was begun with.
pub struct Existing {
    /// The directory.
    pub run: RunDir,
    /// What it was asked to do.
    pub record: RunRecord,
    /// Its inputs.
    pub inputs: Inputs,
}

impl Existing {
    /// The run at `path`, which other processes may be working on.
    pub fn join(path: &Path, threads: Threads) -> Result<Self, Failure> {
        let (run, record) = RunDir::join_existing(path)?;
        Self::checked(run, record, threads)
    }

    /// The run at `path`, which nobody else works on: what killed processes left half-written is removed.
    fn take(path: &Path, threads: Threads) -> Result<Self, Failure> {
        let (run, record) = RunDir::open(path)?;
        Self::checked(run, record, threads)
    }

    fn checked(run: RunDir, record: RunRecord, threads: Threads) -> Result<Self, Failure> {
        let config = ConfigFile::read(&run.config())?.validate()?;
        let inputs = Inputs::gather(config, threads)?;
        let digest = inputs.digest();
        if digest != record.input_digest {
            let message = format!(
                "{}: the inputs changed since the run began (digest {}, now {})",
                run.path().display(),
                record.input_digest.short(12),
                digest.short(12)
            );
            return Err(Failure::config(message)
                .with_hint("start a new run; results of other inputs are never mixed"));
        }
        Ok(Self { run, record, inputs })
    }

    /// A new run directory.
    pub fn create(config: ConfigFile, out: Option<&Path>, threads: Threads) -> Result<Self, Failure> {
        let inputs = Inputs::gather(config.validate()?, threads)?;
        let (run, record) = RunDir::create(out, &inputs.digest(), &inputs.config)?;
        Ok(Self { run, record, inputs })
    }
}

fn open(request: Request) -> Result<Existing, Failure> {
    match &request.resume {
        Some(path) => Existing::take(path, request.threads),
        None => Existing::create(request.config, request.out.as_deref(), request.threads),
    }
}

/// Runs a share of the graph in this process.
pub(super) fn execute<'a>(
    build: &'a Build<'a>,
    graph: &Graph<'a>,
    say: &(dyn Fn(&str) + Sync),
    share: Share<'_>,
) -> Result<RunSummary, Failure> {
    let ledger = Ledger::open(&build.run.ledger())?;
    if ledger.damaged_lines() > 0 {
        progress::note(&format!(
            "ledger: {} torn or damaged lines; their units run again",
            ledger.damaged_lines()
        ));
    }
    if matches!(share, Share::Whole) {
        ledger.compact()?;
    }
    let baseline = build.keys.arms[ArmName::Baseline as usize].as_str();
    let shared = Ledger::open(&build.inputs.cache.join(format!("baseline/{baseline}.jsonl")))?;
    let lines = StageLines::new(build, say);
    let executor = LocalExecutor {
        shared: Some(&shared),
        retries_per_stage: RETRIES_PER_STAGE,
        observer: &|node, done| lines.done(node, done),
        share,
        ..LocalExecutor::new(&ledger)
    };
    executor.run(graph)
}

/// What the ledger says of a graph, without running anything.
pub(super) fn look(graph: &Graph<'_>, ledger: &Ledger) -> Result<RunSummary, Failure> {
    let nothing = BTreeSet::new();
    let executor = LocalExecutor { share: Share::Part(&nothing), ..LocalExecutor::new(ledger) };
    executor.run(graph)
}

//! The conductor: gathers the inputs, runs the chain, closes the run with `release.json` and `report.md`.

use std::path::{Path, PathBuf};

use super::arm::ArmName;
use super::closeout;
use super::config::{ConfigFile, ReleaseConfig};
use super::graph::{self, Build, Jobs};
use super::preflight::Inputs;
use super::run_dir::RunDir;
use super::stage_lines::StageLines;
use crate::base::interrupt;
use crate::base::progress;
use crate::base::threads::Threads;
use crate::exec::{Executor, Ledger, LocalExecutor, RunSummary};
use crate::quantize::QuantizePlan;
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
    let (run, inputs) = open(request)?;
    run.event("start", "release", &inputs.config.model);
    if let Some(failure) = inputs.impossible() {
        return closeout::infeasible(&run, &inputs, failure);
    }
    let plan = match &inputs.plan {
        Ok(plan) => plan,
        Err(failure) => return closeout::infeasible(&run, &inputs, failure),
    };
    let build = Build::new(&inputs, &run);
    let summary = execute(&build, plan, say)?;
    for arm in &build.arms {
        arm.stop();
    }
    if let Some(signal) = summary.interrupted {
        run.event("interrupted", "release", &format!("signal {signal}"));
        return Ok(Ending::Interrupted { signal, run: run.path().to_path_buf() });
    }
    closeout::close(&run, &inputs, &summary)
}

/// The graph of a release as text lines `key stage name`, without running anything.
pub fn plan(config: ReleaseConfig, threads: Threads) -> Result<Vec<String>, Failure> {
    let inputs = Inputs::gather(config, threads)?;
    if let Some(failure) = inputs.impossible() {
        return Err(failure.clone());
    }
    let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
    // Nothing is created: the directory only names where the artifacts would go.
    let run = RunDir::planned(Path::new("runs/planned"));
    let build = Build::new(&inputs, &run);
    let jobs = Jobs::new(&build, plan);
    let graph = graph::build(&build, &jobs);
    Ok(graph.nodes().iter().map(|n| format!("{}  {:<9} {}", n.unit.key(), n.stage, n.name)).collect())
}

fn open(request: Request) -> Result<(RunDir, Inputs), Failure> {
    if let Some(path) = &request.resume {
        let (run, record) = RunDir::open(path)?;
        let config = ConfigFile::read(&run.config())?.validate()?;
        let inputs = Inputs::gather(config, request.threads)?;
        let digest = inputs.digest();
        if digest != record.input_digest {
            let message = format!(
                "{}: the inputs changed since the run began (digest {}, now {})",
                path.display(),
                record.input_digest.short(12),
                digest.short(12)
            );
            return Err(Failure::config(message)
                .with_hint("start a new run; results of other inputs are never mixed"));
        }
        return Ok((run, inputs));
    }
    let inputs = Inputs::gather(request.config.validate()?, request.threads)?;
    let run = RunDir::create(request.out.as_deref(), &inputs.digest(), &inputs.config)?;
    Ok((run, inputs))
}

fn execute<'a>(
    build: &'a Build<'a>,
    plan: &'a QuantizePlan,
    say: &(dyn Fn(&str) + Sync),
) -> Result<RunSummary, Failure> {
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    let ledger = Ledger::open(&build.run.ledger())?;
    if ledger.damaged_lines() > 0 {
        progress::note(&format!(
            "ledger: {} torn or damaged lines; their units run again",
            ledger.damaged_lines()
        ));
    }
    let baseline = build.keys.arms[ArmName::Baseline as usize].as_str();
    let shared = Ledger::open(&build.inputs.cache.join(format!("baseline/{baseline}.jsonl")))?;
    let jobs = Jobs::new(build, plan);
    let graph = graph::build(build, &jobs);
    let lines = StageLines::new(build, say);
    let executor = LocalExecutor {
        ledger: &ledger,
        shared: Some(&shared),
        retries_per_stage: RETRIES_PER_STAGE,
        observer: &|node, done| lines.done(node, done),
    };
    executor.run(&graph)
}

//! `day0 gate`: one gate on records or on upstream summaries. Starts no other stage.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Settings, output};
use crate::base::{env_vars, json};
use crate::checkpoint::source;
use crate::gate::{self, upstream};
use crate::ready::integrity;
use crate::ready::lineage::{self, Attempt};
use crate::record::eval::EvalRecord;
use crate::record::release::ReleaseRecord;
use crate::record::{Failure, GateReport, Provenance};
use crate::release::config::{ConfigFile, DEFAULT_MARGIN, Policy};
use crate::{recipe, scan};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    gate: Gate,
}

#[derive(Debug, Subcommand)]
enum Gate {
    /// Is the checkpoint what the recipe promised?
    Ptq(Ptq),
    /// Is it served, and is what is served this checkpoint?
    Serve {
        /// Serve record.
        #[arg(long, value_name = "FILE")]
        record: PathBuf,
    },
    /// Is one evaluation complete and sane?
    Run {
        /// Evaluation record, its directory, or an upstream run summary.
        #[arg(long, value_name = "FILE|DIR")]
        run: PathBuf,
    },
    /// Is the candidate within the margin of the baseline?
    Compare(Compare),
    /// How good is a run: its findings, its attempts, and whether its directory is whole.
    Quality {
        /// Run directory; of several recipe attempts one each, in order.
        #[arg(long, value_name = "RUN", required = true)]
        run: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Ptq {
    /// Upstream validation summary.
    #[arg(long, value_name = "FILE", conflicts_with = "checkpoint", required_unless_present = "checkpoint")]
    summary: Option<PathBuf>,
    /// Quantized checkpoint.
    #[arg(long, value_name = "MODEL", requires = "source")]
    checkpoint: Option<String>,
    /// The checkpoint it was made from.
    #[arg(long, value_name = "MODEL")]
    source: Option<String>,
    /// Recipe that made it.
    #[arg(long, value_name = "R")]
    recipe: Option<String>,
}

#[derive(Debug, Args)]
struct Compare {
    /// Evaluation record or directory of the original model, or an upstream score file {task: score}.
    #[arg(long, value_name = "FILE|DIR")]
    baseline: PathBuf,
    /// The same of the quantized model.
    #[arg(long, value_name = "FILE|DIR")]
    candidate: PathBuf,
    /// Largest drop allowed, as a share of the scale; else that of --config, else 0.01.
    #[arg(long)]
    threshold: Option<f64>,
    /// The threshold is relative to the baseline's score (score files).
    #[arg(long)]
    relative: bool,
    /// Full scale per task {task: maximum} (score files).
    #[arg(long, value_name = "FILE")]
    scales: Option<PathBuf>,
    /// How to decide about evaluation records; else as --config says, else certify.
    #[arg(long, value_parser = super::policy_parser())]
    policy: Option<Policy>,
    /// Margins and tiers per task (evaluation records).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    let report = match arguments.gate {
        Gate::Ptq(ptq) => decide_ptq(&ptq, settings)?,
        Gate::Serve { record } => gate::serve(&json::read(&record)?),
        Gate::Run { run } => decide_run(&run)?,
        Gate::Compare(compare) => decide_compare(&compare)?,
        Gate::Quality { run } => decide_quality(&run)?,
    };
    output::json(&report)?;
    Ok(report.outcome().exit_code())
}

fn decide_ptq(ptq: &Ptq, settings: &Settings) -> Result<GateReport, Failure> {
    let cache = env_vars::cache_dir();
    match (&ptq.summary, &ptq.checkpoint, &ptq.source) {
        (None, Some(checkpoint), Some(source)) => {
            let checkpoint = source::resolve(checkpoint, &cache)?;
            let source = source::resolve(source, &cache)?;
            let recipe = ptq.recipe.as_ref().map(|r| recipe::load(r)).transpose()?;
            let provenance = Provenance::new(settings.threads.clone());
            Ok(gate::ptq(&scan::scan(&checkpoint.dir, Some(&source.dir), recipe.as_ref(), provenance)?))
        }
        (Some(summary), ..) => Ok(upstream::ptq_summary(&json::read(summary)?, ptq.recipe.as_deref())),
        _ => Err(Failure::config("--checkpoint needs --source")),
    }
}

fn decide_quality(runs: &[PathBuf]) -> Result<GateReport, Failure> {
    let read = |run: &PathBuf| Ok(json::read(&run.join("release.json"))?);
    let records = runs.iter().map(read).collect::<Result<Vec<ReleaseRecord>, Failure>>()?;
    let attempts: Vec<Attempt<'_>> = records.iter().map(Attempt::of).collect();
    let integrity = runs.last().map(|run| integrity::examine(run)).transpose()?;
    Ok(gate::quality::decide(&lineage::state(&attempts), integrity.as_ref()))
}

/// A directory means the record in it.
fn record_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("record.json") } else { path.to_path_buf() }
}

/// Our records say their schema; upstream's summaries do not.
fn is_record(value: &Value) -> bool {
    value.get("schema_version").is_some() && value.get("tasks").is_some()
}

fn decide_run(path: &Path) -> Result<GateReport, Failure> {
    let path = record_path(path);
    let value: Value = json::read(&path)?;
    if is_record(&value) {
        Ok(gate::run(&json::read::<EvalRecord>(&path)?))
    } else {
        Ok(upstream::run_summary(&value))
    }
}

fn decide_compare(compare: &Compare) -> Result<GateReport, Failure> {
    let (baseline_path, candidate_path) = (record_path(&compare.baseline), record_path(&compare.candidate));
    let (baseline, candidate): (Value, Value) = (json::read(&baseline_path)?, json::read(&candidate_path)?);
    if is_record(&baseline) && is_record(&candidate) {
        if compare.relative || compare.scales.is_some() {
            let message =
                "--relative and --scales are for score files; evaluation records declare their scales";
            return Err(Failure::config(message).with_hint("set margins per task in --config FILE"));
        }
        let file =
            compare.config.as_ref().map_or_else(|| Ok(ConfigFile::default()), |p| ConfigFile::read(p))?;
        let flags = ConfigFile { policy: compare.policy, margin: compare.threshold, ..ConfigFile::default() };
        let config = file.overridden_by(flags).validate()?;
        let baseline = json::read(&baseline_path)?;
        let candidate = json::read(&candidate_path)?;
        return Ok(gate::compare(&baseline, &candidate, &config.compare_options(&baseline)));
    }
    let scales: Option<Value> = compare.scales.as_ref().map(|p| json::read(p)).transpose()?;
    Ok(upstream::compare_summaries(
        &baseline,
        &candidate,
        compare.threshold.unwrap_or(DEFAULT_MARGIN),
        compare.relative,
        scales.as_ref(),
    ))
}

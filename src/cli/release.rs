//! `day0 release`.

use std::path::PathBuf;

use clap::Args;

use super::calibration_flags::CalibrationFlags;
use super::{Settings, output};
use crate::base::progress;
use crate::ops::kernel_path::ComputeDtype;
use crate::quantize::calibration::CalibrationConfig;
use crate::record::Failure;
use crate::record::verdict::exit_code;
use crate::release::config::{ConfigFile, EngineConfig, Policy};
use crate::release::{self, Ending, Request};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny [default: day0-tiny].
    model: Option<String>,
    /// Configuration file; flags override it [default: ./day0.yaml if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Recipe name or file [default: fp8_dynamic].
    #[arg(long, value_name = "R")]
    recipe: Option<String>,
    /// Suites or tasks, comma-separated [default: day0-tiny].
    #[arg(long, value_name = "S", value_delimiter = ',')]
    suite: Option<Vec<String>>,
    /// How the compare gate decides [default: certify].
    #[arg(long, value_parser = super::policy_parser())]
    policy: Option<Policy>,
    /// At most N items a task, from a seeded permutation.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The run directory [default: runs/<time>-<digest>].
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Continue a run.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["model", "config", "recipe", "suite", "policy", "limit", "data", "dtype", "endpoint", "no_early_stop", "noise_floor", "calibration", "calibration_samples", "calibration_length"])]
    resume: Option<PathBuf>,
    /// What the built-in engine's linear layers multiply; bf16 is faster [default: f32].
    #[arg(long, value_parser = super::dtype_parser())]
    dtype: Option<ComputeDtype>,
    /// OpenAI-compatible endpoint that serves the candidate.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    calibration: CalibrationFlags,
    /// Score all items of every task even when it is decided before.
    #[arg(long)]
    no_early_stop: bool,
    /// Score part of the baseline again on portable kernels and report what changes.
    #[arg(long)]
    noise_floor: bool,
    /// Print the work graph and run nothing (exit code 10).
    #[arg(long)]
    plan: bool,
}

/// Read without being asked for, when it is there.
const DEFAULT_CONFIG: &str = "day0.yaml";

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    let config = typed_config(&arguments)?;
    if arguments.plan {
        for line in release::plan(config.validate()?, settings.threads.clone())? {
            output::line(&line);
        }
        return Ok(exit_code::PLANNED);
    }
    let say = |line: &str| if settings.json { progress::note(line) } else { output::line(line) };
    let request =
        Request { config, out: arguments.out, resume: arguments.resume, threads: settings.threads.clone() };
    match release::run(request, &say)? {
        Ending::Closed { record, outcome, run } => {
            if settings.json {
                output::json(&record)?;
            }
            say("");
            say(&record.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string()));
            if let Some(class) = record.failure_class {
                say(&format!("{class}: {}", record.detail));
                for finding in
                    record.findings.iter().filter(|f| f.decides() && f.failure_class == class).take(1)
                {
                    say(&format!("next: {}", finding.hint));
                }
            }
            say(&record.recommendation);
            say(&run.display().to_string());
            Ok(outcome.exit_code())
        }
        Ending::Interrupted { signal, run } => {
            progress::note(&format!("interrupted; resume with `day0 release --resume {}`", run.display()));
            Ok(exit_code::interrupted(signal))
        }
    }
}

fn typed_config(arguments: &Arguments) -> Result<ConfigFile, Failure> {
    let file = match &arguments.config {
        Some(path) => ConfigFile::read(path)?,
        None if arguments.resume.is_none() && std::path::Path::new(DEFAULT_CONFIG).is_file() => {
            progress::note(&format!("using ./{DEFAULT_CONFIG}"));
            ConfigFile::read(DEFAULT_CONFIG.as_ref())?
        }
        None => ConfigFile::default(),
    };
    Ok(file.overridden_by(ConfigFile {
        model: arguments.model.clone(),
        recipe: arguments.recipe.clone(),
        suites: arguments.suite.clone(),
        data: arguments.data.clone(),
        policy: arguments.policy,
        limit: arguments.limit,
        dtype: arguments.dtype,
        noise_floor: arguments.noise_floor.then_some(true),
        calibration: Some(arguments.calibration.config()).filter(|c| *c != CalibrationConfig::default()),
        early_stop: arguments.no_early_stop.then_some(false),
        engine: arguments
            .endpoint
            .clone()
            .map(|url| EngineConfig { endpoint: Some(url), ..EngineConfig::default() }),
        ..ConfigFile::default()
    }))
}

//! `day0 release`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::calibration_flags::CalibrationFlags;
use super::{Settings, output};
use crate::base::{atomic, env_vars, progress};
use crate::device::cuda::DeviceChoice;
use crate::exec::slurm::ProfileFile;
use crate::ops::kernel_path::ComputeDtype;
use crate::quantize::calibration::CalibrationConfig;
use crate::record::Failure;
use crate::record::verdict::exit_code;
use crate::release::config::{ConfigFile, EngineConfig, ExecutorFile, ExecutorName, Policy};
use crate::release::slurm::SlurmDir;
use crate::release::{self, Ending, JUNIT_FILE, Request, SUMMARY_FILE};
use crate::report;
use crate::report::ci::Unclosed;

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
    /// Number of examples before each question, over the tasks' own.
    #[arg(long, value_name = "N")]
    num_fewshot: Option<usize>,
    /// Seed that draws the examples [default: 1234].
    #[arg(long, value_name = "N")]
    fewshot_seed: Option<u64>,
    /// Put prompts into the model's chat template.
    #[arg(long)]
    apply_chat_template: bool,
    /// System instruction before a task's description.
    #[arg(long, value_name = "TEXT")]
    system_instruction: Option<String>,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The run directory [default: runs/<time>-<digest>].
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Continue a run.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["model", "config", "recipe", "suite", "policy", "limit", "num_fewshot", "fewshot_seed", "apply_chat_template", "system_instruction", "data", "dtype", "device", "endpoint", "no_early_stop", "noise_floor", "calibration", "calibration_samples", "calibration_length"])]
    resume: Option<PathBuf>,
    /// What the built-in engine's linear layers multiply; bf16 is faster [default: f32].
    #[arg(long, value_parser = super::dtype_parser())]
    dtype: Option<ComputeDtype>,
    /// Where the built-in engine computes: cpu, auto, cuda or cuda:N,M [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
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
    /// Where the work runs: in this process, or as Slurm jobs (exit code 10 once they are submitted) [default: local; a
    /// resumed run goes on where it was].
    #[arg(long, value_parser = ["local", "slurm"])]
    executor: Option<String>,
    /// Cluster profile: partition, resources per stage, prologue, container.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Container image in which the jobs run; overrides the profile's.
    #[arg(long, value_name = "IMAGE", conflicts_with = "resume")]
    container: Option<String>,
    /// Wait for the submitted jobs and return the verdict's exit code.
    #[arg(long)]
    wait: bool,
    /// Write what a CI system shows: junit.xml and summary.md in the run directory, the summary also to the file named by
    /// GITHUB_STEP_SUMMARY.
    #[arg(long)]
    ci: bool,
    /// Fetch the model and the data of the suites into the caches and stop: for nodes without internet.
    #[arg(long, conflicts_with_all = ["resume", "plan", "wait", "ci"])]
    prefetch: bool,
    /// Print the inputs' digests, the work graph and its stages or Slurm jobs with resources and estimated time, and run
    /// nothing (exit code 10).
    #[arg(long)]
    plan: bool,
    /// Write the batch scripts of the plan into this directory.
    #[arg(long, value_name = "DIR", requires = "plan")]
    scripts: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    // Where a CI system looks for files, when they are asked for.
    let ci = arguments.ci.then(|| {
        // A directory that holds another run already keeps that one's files.
        let new = arguments.out.clone().filter(|out| !out.join("run.json").exists());
        new.or_else(|| arguments.resume.clone())
    });
    match (release(arguments, settings), ci) {
        (Ok(Ended::Ending(ending)), Some(run)) => {
            write_for_ci(&ending, run.as_deref())?;
            end(&ending, settings)
        }
        (Ok(Ended::Ending(ending)), None) => end(&ending, settings),
        (Ok(Ended::Code(code)), _) => Ok(code),
        (Err(failure), Some(run)) => {
            write_unclosed(&Unclosed::failed(&failure), run.as_deref())?;
            Err(failure)
        }
        (Err(failure), None) => Err(failure),
    }
}

/// What the command came to.
enum Ended {
    /// A release, with its ending.
    Ending(Ending),
    /// Something else, with its exit code.
    Code(u8),
}

fn release(arguments: Arguments, settings: &Settings) -> Result<Ended, Failure> {
    let mut config = typed_config(&arguments)?;
    let executor = executor(&arguments, &config.executor.take().unwrap_or_default())?;
    if matches!(executor, Executor::Slurm(_))
        && config.device.as_ref().is_some_and(|d| *d != DeviceChoice::Cpu)
    {
        return Err(release::slurm::no_gpus());
    }
    if arguments.prefetch {
        for line in release::prefetch(config.validate()?, settings.threads.clone())? {
            output::line(&line);
        }
        return Ok(Ended::Code(exit_code::ACCEPT));
    }
    if arguments.plan {
        return plan(config, executor, &arguments, settings).map(Ended::Code);
    }
    let say = |line: &str| say(line, settings);
    let (out, resume) = (arguments.out, arguments.resume);
    let request = Request { config, out, resume, threads: settings.threads.clone() };
    let ending = match executor {
        Executor::Local => release::run(request, &say)?,
        Executor::Slurm(profile) => release::slurm::release(request, profile.map(|p| *p), arguments.wait)?,
    };
    Ok(Ended::Ending(ending))
}

fn say(line: &str, settings: &Settings) {
    if settings.json { progress::note(line) } else { output::line(line) }
}

/// Writes what a CI system shows of any ending.
fn write_for_ci(ending: &Ending, run: Option<&Path>) -> Result<(), Failure> {
    match ending {
        Ending::Closed { record, run, .. } => {
            write_ci_files(&report::ci::junit(record), &report::ci::summary(record), Some(run))
        }
        Ending::Submitted { run, jobs } => write_unclosed(&Unclosed::submitted(jobs), Some(run)),
        Ending::Interrupted { signal, .. } => {
            write_unclosed(&Unclosed::failed(&Failure::interrupted(*signal)), run)
        }
    }
}

fn write_unclosed(unclosed: &Unclosed, run: Option<&Path>) -> Result<(), Failure> {
    write_ci_files(&unclosed.junit(), &unclosed.summary(), run)
}

/// Writes `junit.xml` and `summary.md` into the run directory, where it is known, and appends the summary where the CI
/// system wants it.
fn write_ci_files(junit: &str, summary: &str, run: Option<&Path>) -> Result<(), Failure> {
    if let Some(run) = run {
        std::fs::create_dir_all(run).map_err(|e| Failure::io(run.display(), &e))?;
        for (name, text) in [(JUNIT_FILE, junit), (SUMMARY_FILE, summary)] {
            let path = run.join(name);
            atomic::write(&path, text.as_bytes()).map_err(|e| Failure::io(path.display(), &e))?;
        }
    }
    let Some(path) = env_vars::get_os(env_vars::GITHUB_STEP_SUMMARY).map(PathBuf::from) else {
        return Ok(());
    };
    let append = || OpenOptions::new().append(true).create(true).open(&path)?.write_all(summary.as_bytes());
    append().map_err(|e| Failure::io(path.display(), &e))
}

/// Where the work runs.
enum Executor {
    Local,
    Slurm(Option<Box<ProfileFile>>),
}

/// The executor that was named; a run that was submitted to Slurm goes on there.
fn executor(arguments: &Arguments, file: &ExecutorFile) -> Result<Executor, Failure> {
    let submitted = arguments.resume.as_ref().is_some_and(|run| SlurmDir::at(run).exists());
    let scripts = arguments.scripts.is_some() || arguments.profile.is_some() || arguments.container.is_some();
    let slurm = match (arguments.executor.as_deref(), file.name) {
        (Some(name), _) => name == "slurm",
        (None, Some(name)) => name == ExecutorName::Slurm || scripts,
        (None, None) => submitted || scripts,
    };
    if slurm {
        let profile = arguments.profile.as_deref().or(file.profile.as_deref());
        let profile = profile.map(ProfileFile::read).transpose()?;
        let profile = match &arguments.container {
            Some(image) => Some(profile.unwrap_or_default().with_image(image.clone())),
            None => profile,
        };
        return Ok(Executor::Slurm(profile.map(Box::new)));
    }
    if scripts || arguments.wait {
        return Err(Failure::config("--profile, --container, --scripts and --wait are for --executor slurm"));
    }
    Ok(Executor::Local)
}

fn plan(
    config: ConfigFile,
    executor: Executor,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<u8, Failure> {
    let (config, threads) = (config.validate()?, &settings.threads);
    let runs_here = matches!(executor, Executor::Local);
    for line in release::plan(config.clone(), threads.clone(), runs_here)? {
        output::line(&line);
    }
    if let Executor::Slurm(profile) = executor {
        let scripts = arguments.scripts.as_deref();
        let profile = *profile.unwrap_or_default();
        for line in release::slurm::describe(config, profile, threads.clone(), scripts)? {
            output::line(&line);
        }
    }
    Ok(exit_code::PLANNED)
}

/// Says how a release ended.
fn end(ending: &Ending, settings: &Settings) -> Result<u8, Failure> {
    let say = |line: &str| say(line, settings);
    match ending {
        Ending::Closed { record, outcome, run } => {
            if settings.json {
                output::json(record)?;
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
        Ending::Submitted { run, jobs } => {
            say(&format!("submitted: {}", jobs.join(", ")));
            let run = run.display();
            progress::note(&format!(
                "follow it with `day0 status {run}`, wait with `day0 release --resume {run} --wait`"
            ));
            say(&run.to_string());
            Ok(exit_code::PLANNED)
        }
        Ending::Interrupted { signal, run } => {
            progress::note(&format!("interrupted; resume with `day0 release --resume {}`", run.display()));
            Ok(exit_code::interrupted(*signal))
        }
    }
}

fn typed_config(arguments: &Arguments) -> Result<ConfigFile, Failure> {
    let file = match &arguments.resume {
        Some(_) => ConfigFile::default(),
        None => super::config_file(arguments.config.as_deref())?,
    };
    Ok(file.overridden_by(ConfigFile {
        model: arguments.model.clone(),
        recipe: arguments.recipe.clone(),
        suites: arguments.suite.clone(),
        data: arguments.data.clone(),
        policy: arguments.policy,
        limit: arguments.limit,
        num_fewshot: arguments.num_fewshot,
        fewshot_seed: arguments.fewshot_seed,
        apply_chat_template: arguments.apply_chat_template.then_some(true),
        system_instruction: arguments.system_instruction.clone(),
        dtype: arguments.dtype,
        device: arguments.device.clone(),
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

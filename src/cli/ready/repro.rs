//! `day0 ready repro`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::qa::Tier;
use crate::base::digest::Digest;
use crate::base::units::human_seconds;
use crate::base::{atomic, env_vars, json};
use crate::checkpoint::{Checkpoint, source};
use crate::cli::{Settings, output};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::gate;
use crate::ops::kernel_path::ComputeDtype;
use crate::quantize::calibration::CalibrationConfig;
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::ready::repro::estimate::{Estimated, Scenario, estimate};
use crate::ready::repro::{
    Family, FamilyKind, JobRunner, Measure, NamedRunner, PtqRunner, RoundtripRunner, Runner, TokenRunner,
    load,
};
use crate::record::repro::SeedRuns;
use crate::record::{Failure, GateReport, Provenance, SCHEMA_VERSION};
use crate::release::calibrate_units::{self, CalibrateJob};
use crate::release::quantize_units::{self, QuantizeJob, QuantizeOutput};
use crate::release::{keys, program_digest};
use crate::{engine, recipe, report, suite};

/// Where measurements go unless told otherwise (document 000).
const DEFAULT_OUT: &str = "reports/quality-gates";
/// The measurements.
const SEED_RUNS: &str = "seed_runs.json";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run families under several seeds.
    Measure(MeasureArgs),
    /// Predict how long other numbers of seeds and steps would take.
    Estimate {
        #[command(flatten)]
        input: Input,
        /// SEEDSxSTEPS, comma-separated.
        #[arg(long, value_name = "LIST", default_value = "5x5000,7x10000,10x10000,7x20000,10x20000")]
        scenarios: String,
    },
    /// Decide on what was measured.
    Check {
        #[command(flatten)]
        input: Input,
        /// Decide by the criteria of this tier and of those before it.
        #[arg(long, value_enum, default_value_t = Tier::Nightly)]
        tier: Tier,
        /// Warn instead of failing.
        #[arg(long)]
        advisory: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Input {
    /// What `measure` wrote.
    #[arg(long, value_name = "FILE", default_value = "reports/quality-gates/seed_runs.json")]
    input: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    /// Families, comma-separated: ptq, roundtrip, token, dreamerv3, tdmpc2, jepa, diffusion, or files.
    #[arg(
        long,
        alias = "models",
        value_name = "F",
        value_delimiter = ',',
        default_value = "ptq,roundtrip,token"
    )]
    families: Vec<String>,
    /// Seeds, comma-separated; one that stands twice is run twice.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,1,2,3,4")]
    seeds: Vec<u64>,
    /// Steps of each run: items of ptq, prompts of roundtrip, optimizer steps of the others.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Device of the jobs that commands run.
    #[arg(long, value_name = "D", default_value = "auto")]
    device: String,
    /// The candidate, as it is [default: day0-tiny, quantized by the recipe].
    #[arg(long, value_name = "MODEL", conflicts_with = "recipe")]
    candidate: Option<String>,
    /// Recipe that makes the candidate from day0-tiny.
    #[arg(long, value_name = "R", default_value = "fp8_dynamic")]
    recipe: String,
    /// Suites or tasks of ptq.
    #[arg(long, value_name = "S", default_value = "day0-tiny")]
    suite: String,
    /// What the built-in engine's linear layers multiply.
    #[arg(long, value_parser = crate::cli::dtype_parser(), default_value = "f32")]
    dtype: ComputeDtype,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// FAMILY=COMMAND with {seed}, {steps}, {device} and {out}; it prints its metrics as JSON lines.
    #[arg(long, value_name = "FAMILY=COMMAND")]
    command: Vec<String>,
    /// Longest time of one run of a command.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    timeout: u64,
    /// Directory to write to; a killed measurement goes on there.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    out: PathBuf,
}

pub(super) fn run(command: Command, settings: &Settings) -> Result<u8, Failure> {
    match command {
        Command::Measure(arguments) => measure(&arguments, settings),
        Command::Estimate { input, scenarios } => {
            let estimated = estimate(&read(&input.input)?, &Scenario::list(&scenarios)?)?;
            print_estimates(&estimated, settings)
        }
        Command::Check { input, tier, advisory } => {
            let decided = gate::repro::decide(&read(&input.input)?, tier.into());
            if !settings.json {
                print_checks(&decided);
            }
            super::finish(&decided, advisory, settings)
        }
    }
}

fn read(path: &Path) -> Result<SeedRuns, Failure> {
    let runs: SeedRuns = json::read(path)?;
    if runs.schema_version != SCHEMA_VERSION {
        let found = runs.schema_version;
        let message = format!("{}: schema_version is {found}, expected {SCHEMA_VERSION}", path.display());
        return Err(Failure::config(message).with_hint("measure again with this version"));
    }
    Ok(runs)
}

fn measure(arguments: &MeasureArgs, settings: &Settings) -> Result<u8, Failure> {
    let families = arguments.families.iter().map(|f| load(f)).collect::<Result<Vec<_>, _>>()?;
    if arguments.seeds.is_empty() {
        return Err(Failure::config("--seeds: at least one seed is needed"));
    }
    let commands = commands(&arguments.command)?;
    let mut provenance = Provenance::new(settings.threads.clone());
    engine::kernel_path(arguments.dtype).clone_into(&mut provenance.kernel_path);
    let needs_candidate = families.iter().any(|f| matches!(f.kind, FamilyKind::Ptq | FamilyKind::Roundtrip));
    let candidate = needs_candidate.then(|| candidate(arguments, settings)).transpose()?;
    let runner = |family: Family| {
        let runner = runner(&family, candidate.as_deref(), &commands, arguments, settings)?;
        NamedRunner::new(family, runner)
    };
    let measure = Measure {
        runners: families.into_iter().map(runner).collect::<Result<_, _>>()?,
        seeds: arguments.seeds.clone(),
        steps: arguments.steps,
        device: arguments.device.clone(),
        build: program_digest()?,
        provenance,
    };
    let ledger = Ledger::open(&arguments.out.join("ledger.jsonl"))?;
    let executor = LocalExecutor { retries_per_stage: 1, ..LocalExecutor::new(&ledger) };
    let summary = crate::cli::run_graph(&executor, &measure.graph())?;
    let runs = measure.record(&summary)?;
    let path = arguments.out.join(SEED_RUNS);
    json::write(&path, &runs)?;
    for (name, svg) in report::curves(&runs) {
        let path = arguments.out.join(name);
        atomic::write(&path, svg.as_bytes()).map_err(|e| Failure::io(path.display(), &e))?;
    }
    let decided = gate::repro::decide(&runs, Tier::Nightly.into());
    json::write(&arguments.out.join("gate.json"), &decided)?;
    let text = report::repro(&runs, &decided);
    let report_path = arguments.out.join("report.md");
    atomic::write(&report_path, text.as_bytes()).map_err(|e| Failure::io(report_path.display(), &e))?;
    if settings.json {
        output::json(&runs)?;
    } else {
        print_checks(&decided);
        output::line(&path.display().to_string());
    }
    Ok(0)
}

/// The candidate's directory; the embedded model is quantized where none is named.
fn candidate(arguments: &MeasureArgs, settings: &Settings) -> Result<PathBuf, Failure> {
    let cache = env_vars::cache_dir();
    if let Some(model) = &arguments.candidate {
        return Ok(source::resolve(model, &cache)?.dir);
    }
    let key = Digest::of(format!("{} {}", arguments.recipe, program_digest()?).as_bytes());
    let target = arguments.out.join(format!("candidate-{}", key.short(12)));
    if !target.is_dir() {
        quantize(&arguments.recipe, &target, &arguments.out, settings)?;
    }
    Ok(target)
}

/// Quantizes the embedded model.
fn quantize(recipe: &str, target: &Path, out: &Path, settings: &Settings) -> Result<(), Failure> {
    let model = source::resolve("day0-tiny", &env_vars::cache_dir())?;
    let checkpoint = Arc::new(Checkpoint::open(&model.dir)?);
    let recipe = recipe::load(recipe)?;
    let program = program_digest()?;
    let plan = QuantizePlan::new(Arc::clone(&checkpoint), recipe, Arithmetic::F32)?;
    let (config, plans) = (CalibrationConfig::default(), std::iter::once(&plan));
    let calibration = calibrate_units::job(&checkpoint, plans, &config, &settings.threads, &program)?;
    let calibrated = calibration.as_ref().map(CalibrateJob::key);
    let key = keys::candidate(&checkpoint.digest()?, &plan.recipe().digest, &program, calibrated.as_ref());
    let output = QuantizeOutput { plan: &plan, target: target.to_path_buf(), record: None, key };
    let provenance = Provenance::new(settings.threads.clone());
    let calibration = calibration.as_ref();
    let (outputs, own_targets) = (vec![output], true);
    let job = QuantizeJob { outputs, sync: false, own_targets, gpus: None, provenance, calibration };
    let mut graph = Graph::default();
    quantize_units::add_quantize(&mut graph, &job);
    let ledger = Ledger::open(&out.join("ledger.jsonl"))?;
    let executor = LocalExecutor { retries_per_stage: 1, ..LocalExecutor::new(&ledger) };
    crate::cli::run_graph(&executor, &graph).map(|_| ())
}

fn runner(
    family: &Family,
    candidate: Option<&Path>,
    commands: &[(String, String)],
    arguments: &MeasureArgs,
    settings: &Settings,
) -> Result<Box<dyn Runner>, Failure> {
    let checkpoint = candidate.map(Path::to_path_buf).unwrap_or_default();
    let threads = settings.threads.clone();
    Ok(match family.kind {
        FamilyKind::Ptq => {
            let suite = suite::load(&arguments.suite, arguments.data.as_deref())?;
            Box::new(PtqRunner { checkpoint, suite, threads, dtype: arguments.dtype })
        }
        FamilyKind::Roundtrip => Box::new(RoundtripRunner {
            checkpoint,
            scratch: arguments.out.join("scratch"),
            threads,
            dtype: arguments.dtype,
        }),
        FamilyKind::Token => Box::new(TokenRunner { threads: threads.count }),
        FamilyKind::Command => {
            let named =
                commands.iter().find(|(name, _)| *name == family.family || family.aliases.contains(name));
            let template = named.map(|(_, command)| command.clone()).or_else(|| family.command.clone());
            let template = template.ok_or_else(|| {
                Failure::config(format!("{}: no command runs this family", family.family))
                    .with_hint(format!("--command {}='… --seed {{seed}} --steps {{steps}}'", family.family))
            })?;
            Box::new(JobRunner {
                family: family.family.clone(),
                template,
                device: arguments.device.clone(),
                out: crate::ready::qa::absolute(&arguments.out.join("jobs")),
                dir: PathBuf::from("."),
                timeout: Duration::from_secs(arguments.timeout),
            })
        }
    })
}

fn commands(list: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |text: &String| {
        let parts = text.split_once('=').map(|(name, command)| (name.to_owned(), command.to_owned()));
        parts.ok_or_else(|| Failure::config(format!("--command {text}: expected FAMILY=COMMAND")))
    };
    list.iter().map(split).collect()
}

fn print_estimates(estimated: &[Estimated], settings: &Settings) -> Result<u8, Failure> {
    if settings.json {
        output::json(&estimated)?;
        return Ok(0);
    }
    output::line(&format!("{:<14} {:>6} {:>8} {:>14}  95 % interval", "family", "seeds", "steps", "time"));
    for e in estimated {
        let interval = e.interval.map_or_else(
            || "unknown: one run says nothing about the spread".to_owned(),
            |(low, high)| format!("{} … {}", human_seconds(low), human_seconds(high)),
        );
        let Scenario { seeds, steps } = e.scenario;
        let time = human_seconds(e.seconds);
        let ended = e.steps_available.map_or_else(String::new, |n| format!("  (there are {n} steps)"));
        output::line(&format!("{:<14} {seeds:>6} {steps:>8} {time:>14}  {interval}{ended}", e.family));
    }
    Ok(0)
}

fn print_checks(decided: &GateReport) {
    for (name, seen) in &decided.checks {
        let text = |key: &str| seen[key].as_str().unwrap_or_default().to_owned();
        output::line(&format!("{:<36} {:<14} {}", name, text("state"), text("detail")));
    }
}

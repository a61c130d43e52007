//! Layer 10: the command line. One file a subcommand; data goes to standard output, everything else to standard error.

mod bench;
mod calibration_flags;
mod compare;
mod completions;
mod doctor;
mod eval;
mod gate;
mod import;
mod init;
mod list;
mod output;
mod preflight;
mod power;
mod power_from;
mod power_time;
mod quantize;
mod ready;
mod release;
mod runs;
mod scan;
mod serve;
mod run_state;
mod unit;

use std::ffi::OsString;
use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::base::interrupt;
use crate::base::progress::{self, Verbosity};
use crate::base::threads::{self, Threads};
use crate::exec::{Executor, Graph, RunSummary};
use crate::gate::Policy;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::Failure;
use crate::record::engine::EngineSupport;
use crate::record::scan::TensorError;
use crate::record::verdict::exit_code;
use crate::release::config::ConfigFile;

/// Decides whether a quantized language model may be published, and proves it.
#[derive(Debug, Parser)]
#[command(name = "day0", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
struct Global {
    /// Print machine-readable JSON on standard output.
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but errors and the result.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Say more.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Number of worker threads [default: Slurm's, else the cgroup's, else the physical cores].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole chain, from checkpoint to verdict.
    Release(release::Arguments),
    /// Write a commented day0.yaml.
    Init(init::Arguments),
    /// Turn a GGUF file into a Hugging Face checkpoint.
    Import(import::Arguments),
    /// Quantize a checkpoint.
    Quantize(quantize::Arguments),
    /// Verify a checkpoint: coverage, scales, sizes, metadata.
    Scan(scan::Arguments),
    /// Serve a checkpoint with an OpenAI-compatible API.
    Serve(serve::Arguments),
    /// Measure a server or the engine: generation and scoring.
    Bench(bench::Arguments),
    /// Evaluate one model.
    Eval(eval::Arguments),
    /// Compare two runs item by item: day0's, lm-eval's or NeMo Evaluator's.
    Compare(compare::Arguments),
    /// Plan a comparison: what it can show, how many items it takes, how long.
    Power(power::Arguments),
    /// Decide one gate on records or upstream summaries.
    Gate(gate::Arguments),
    /// Readiness gates: reproducibility, QA, baseline diff, ratchet.
    Ready(ready::Arguments),
    /// List runs.
    Runs(runs::Arguments),
    /// Show where a run stands, from any host that sees its directory.
    Status(run_state::StatusArguments),
    /// Show the logs of a run.
    Logs(run_state::LogsArguments),
    /// Stop a run; it resumes.
    Cancel(run_state::CancelArguments),
    /// Run units of a run: what a job of a batch system does.
    #[command(hide = true)]
    Unit(unit::Arguments),
    /// List recipes, suites, tasks or architectures.
    List(list::Arguments),
    /// Show what this machine and this build can do.
    Doctor,
    /// Print a completion script.
    Completions(completions::Arguments),
}

/// What every subcommand gets.
struct Settings {
    json: bool,
    threads: Threads,
}

/// Runs the command line and returns the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print();
            let code = if error.use_stderr() { exit_code::USAGE } else { exit_code::ACCEPT };
            return if printed.is_ok() { code } else { exit_code::USAGE };
        }
    };
    let Global { json, quiet, verbose, threads } = cli.global;
    progress::set_verbosity(match (quiet, verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    });
    let settings = Settings { json, threads: threads::detect(threads.map(usize::from)) };
    let result = start_workers(&settings.threads).and_then(|()| dispatch(cli.command, &settings));
    result.unwrap_or_else(|failure| {
        output::failure(&failure);
        failure.exit_code()
    })
}

fn dispatch(command: Command, settings: &Settings) -> Result<u8, Failure> {
    match command {
        Command::Release(arguments) => release::run(arguments, settings),
        Command::Init(arguments) => init::run(&arguments),
        Command::Import(arguments) => import::run(&arguments, settings),
        Command::Quantize(arguments) => quantize::run(&arguments, settings),
        Command::Scan(arguments) => scan::run(&arguments, settings),
        Command::Serve(arguments) => serve::run(arguments, settings),
        Command::Bench(arguments) => bench::run(&arguments, settings),
        Command::Eval(arguments) => eval::run(&arguments, settings),
        Command::Compare(arguments) => compare::run(&arguments, settings),
        Command::Power(arguments) => power::run(&arguments, settings),
        Command::Gate(arguments) => gate::run(arguments, settings),
        Command::Ready(arguments) => ready::run(arguments, settings),
        Command::Runs(arguments) => runs::run(&arguments, settings),
        Command::Status(arguments) => run_state::status(&arguments, settings),
        Command::Logs(arguments) => run_state::logs(&arguments),
        Command::Cancel(arguments) => run_state::cancel(&arguments),
        Command::Unit(arguments) => unit::run(&arguments, settings),
        Command::List(arguments) => list::run(&arguments, settings),
        Command::Doctor => doctor::run(settings),
        Command::Completions(arguments) => Ok(completions::run::<Cli>(&arguments)),
    }
}

/// Runs a graph to its end: a unit's failure or a signal becomes this command's failure.
fn run_graph(executor: &dyn Executor, graph: &Graph<'_>) -> Result<RunSummary, Failure> {
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    let summary = executor.run(graph)?;
    match (summary.interrupted, &summary.failure) {
        (Some(signal), _) => Err(Failure::interrupted(signal)),
        (None, Some((_, failure))) => Err(failure.clone()),
        (None, None) => Ok(summary),
    }
}

/// One engine's support as a line of a report.
fn engine_line(engine: &EngineSupport) -> String {
    let loads = match (engine.loads, &engine.min_compute_capability) {
        (true, Some(capability)) => format!("loads it from compute capability {capability} on"),
        (true, None) => "loads it".to_owned(),
        (false, _) => "does not load it".to_owned(),
    };
    let remarks =
        if engine.remarks.is_empty() { String::new() } else { format!("; {}", engine.remarks.join("; ")) };
    format!("{:<22} {loads}{remarks}", engine.engine)
}

/// Weights whose errors are printed.
const WORST: usize = 10;

/// The weights that quantizing damaged most.
fn print_worst(errors: &[TensorError]) {
    if errors.is_empty() {
        return;
    }
    output::line(
        "worst weights          SQNR dB        MSE  largest  saturated  zeroed  underflowed of groups",
    );
    for error in crate::scan::worst(errors, WORST) {
        let sqnr = error.sqnr_db.map_or_else(|| "-".to_owned(), |db| format!("{db:.2}"));
        output::line(&format!(
            "  {:<14} {sqnr:>13} {:>10.3e} {:>8.2e} {:>10} {:>7} {:>12} {:>9}  {}",
            error.precision,
            error.mse,
            error.max_error,
            error.saturated_groups,
            error.zeroed_groups,
            error.underflowed_scales,
            error.groups,
            error.module
        ));
    }
}

/// Read without being asked for, when it is there.
const DEFAULT_CONFIG: &str = "day0.yaml";

/// The configuration file that was named, else the one in this directory, else nothing.
fn config_file(named: Option<&Path>) -> Result<ConfigFile, Failure> {
    match named {
        Some(path) => ConfigFile::read(path),
        None if Path::new(DEFAULT_CONFIG).is_file() => {
            progress::note(&format!("using ./{DEFAULT_CONFIG}"));
            ConfigFile::read(DEFAULT_CONFIG.as_ref())
        }
        None => Ok(ConfigFile::default()),
    }
}

/// The policies of the compare gate as a flag's values.
fn policy_parser() -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(["certify", "threshold"]).map(|name| match name.as_str() {
        "threshold" => Policy::Threshold,
        _ => Policy::Certify,
    })
}

/// `f32` or `bf16`.
fn dtype_parser() -> impl TypedValueParser<Value = ComputeDtype> {
    PossibleValuesParser::new(["f32", "bf16"]).map(|name| match name.as_str() {
        "bf16" => ComputeDtype::Bf16,
        _ => ComputeDtype::F32,
    })
}

/// All parallel work runs on rayon's global pool, of the detected size.
fn start_workers(threads: &Threads) -> Result<(), Failure> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.count)
        .build_global()
        .map_err(|e| Failure::config(format!("{} worker threads cannot be started: {e}", threads.count)))
}

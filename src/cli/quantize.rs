//! `day0 quantize`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::calibration_flags::CalibrationFlags;
use super::{Settings, output};
use crate::base::atomic::staging_path;
use crate::base::units::human_bytes;
use crate::base::{disk, env_vars, progress};
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, source};
use crate::device::cuda::DeviceChoice;
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::quantize::preflight::{self, PreflightOptions};
use crate::quantize::{Arithmetic, Gpus, QuantizePlan};
use crate::recipe::{self, Recipe};
use crate::record::preflight::PreflightRecord;
use crate::record::quantize::QuantizeRecord;
use crate::record::scan::ScanRecord;
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass, Provenance};
use crate::release::calibrate_units::{self, CalibrateJob};
use crate::release::quantize_units::{self, QuantizeJob, QuantizeOutput};
use crate::release::{keys, program_digest};
use crate::scan::{ScanOptions, Target};
use crate::{gate, scan};

/// Sources from this size on take long enough to say how long.
const LONG_RUN_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny.
    model: String,
    /// Recipe name or file; several make several checkpoints from one read.
    #[arg(long = "recipe", value_name = "R", required = true)]
    recipes: Vec<String>,
    /// Directory to write; with several recipes each writes DIR/<recipe>. An interrupted run continues by the same
    /// command.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Do not wait for storage: after a crash of the system the checkpoint may be damaged.
    #[arg(long)]
    no_sync: bool,
    /// Dtype in which weights are divided by their scales.
    #[arg(long, default_value = "f32")]
    arithmetic: ArithmeticFlag,
    /// Layout of tensors and config: compressed-tensors (vLLM, SGLang, transformers) or modelopt (TensorRT-LLM, vLLM).
    #[arg(long, default_value = "compressed-tensors")]
    format: FormatFlag,
    /// Say what would be written, how long it takes, which engines load it, and write nothing (exit code 10).
    #[arg(long)]
    dry_run: bool,
    /// Devices that engines will cut layers for (tensor parallelism); impossible cuts are refused.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    tp: Option<u16>,
    #[command(flatten)]
    calibration: CalibrationFlags,
    /// Where weights are quantized: auto (every usable GPU, else the CPU), cpu, cuda, or cuda:N[,M...]. The bytes written
    /// are the same.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Read everything once more afterwards and report the error of each weight: MSE, SQNR, clipped and lost groups.
    #[arg(long)]
    errors: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatFlag {
    /// weight_packed, weight_scale, … and quantization_config.
    CompressedTensors,
    /// weight, weight_scale, weight_scale_2, … and hf_quant_config.json.
    Modelopt,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArithmeticFlag {
    /// f32, as the GPU path of compressed-tensors.
    F32,
    /// The weight's own dtype, as llm-compressor on a CPU.
    Bf16,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let out = &arguments.out;
    let ledger_path = staging_path(out).with_extension("ledger.jsonl");
    // With a ledger beside it, an earlier run was stopped between the rename and its last entry.
    if out.exists() && !ledger_path.exists() {
        return Err(
            Failure::config(format!("{}: exists already", out.display())).with_hint("choose a new --out")
        );
    }
    let dialect = match arguments.format {
        FormatFlag::CompressedTensors => Dialect::CompressedTensors,
        FormatFlag::Modelopt => Dialect::Modelopt,
    };
    let in_dialect = |name: &String| Ok::<_, Failure>(recipe::load(name)?.in_dialect(dialect)?);
    let recipes = arguments.recipes.iter().map(in_dialect).collect::<Result<Vec<_>, _>>()?;
    let model = source::resolve(&arguments.model, &env_vars::cache_dir())?;
    let checkpoint = Arc::new(Checkpoint::open(&model.dir)?);
    let arithmetic = match arguments.arithmetic {
        ArithmeticFlag::F32 => Arithmetic::F32,
        ArithmeticFlag::Bf16 => Arithmetic::WeightDtype,
    };
    if arguments.dry_run {
        return dry_run(&checkpoint, &recipes, arithmetic, arguments, settings);
    }
    let (plans, calibration) = preflight_all(&checkpoint, &recipes, arithmetic, arguments, settings)?;
    let gpus = open_gpus(&arguments.device)?;
    let start = Instant::now();
    let job = QuantizeJob {
        outputs: outputs(arguments, &plans, &checkpoint, calibration.as_ref())?,
        sync: !arguments.no_sync,
        own_targets: false,
        provenance: provenance(settings, gpus.as_ref()),
        calibration: calibration.as_ref(),
        gpus,
    };
    check_target(&job, out, &ledger_path)?;
    check_space(&job, out)?;
    let records = execute(&job, &ledger_path)?;
    say_rate(&records, start.elapsed().as_secs_f64());
    let mut code = 0;
    let mut verified = Vec::new();
    for (output, (record, recipe)) in job.outputs.iter().zip(records.into_iter().zip(&recipes)) {
        let scanned = verify(&output.target, &checkpoint, recipe, arguments.errors, settings)?;
        if code == 0 {
            code = scanned.defects.iter().map(|d| d.failure_class).min().map_or(0, exit_code::of_class);
        }
        verified.push((output.target.clone(), record, scanned));
    }
    // Until here the same command goes on where it was stopped.
    std::fs::remove_file(&ledger_path).map_err(|e| Failure::io(ledger_path.display(), &e))?;
    report(&verified, settings)?;
    Ok(code)
}

/// The devices asked for. With `auto`, a GPU that cannot be used is said and the CPU works.
fn open_gpus(choice: &DeviceChoice) -> Result<Option<Gpus>, Failure> {
    let (devices, unusable) = choice.open()?;
    if let Some(error) = unusable {
        let failure = Failure::from(error);
        let hint = failure.hint.map_or(String::new(), |hint| format!("; {hint}"));
        progress::note(&format!("quantizing on the CPU: {}{hint}", failure.message));
    }
    Ok(Gpus::new(devices))
}

fn provenance(settings: &Settings, gpus: Option<&Gpus>) -> Provenance {
    let mut provenance = Provenance::new(settings.threads.clone());
    if let Some(gpus) = gpus {
        let names: Vec<String> = gpus.devices().iter().map(|d| format!("{d:?}")).collect();
        provenance.device = names.join(", ");
        provenance.kernel_path = format!("cuda-{}", gpus.devices()[0].architecture());
    }
    provenance
}

/// Says beforehand what nobody should have to find out afterwards, and refuses what cannot be made. A plan for each
/// recipe.
fn preflight_all(
    checkpoint: &Arc<Checkpoint>,
    recipes: &[Recipe],
    arithmetic: Arithmetic,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<(Vec<QuantizePlan>, Option<CalibrateJob>), Failure> {
    // A short run is over before its time is measured.
    let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
    let is_long = infos.map(TensorInfo::num_bytes).sum::<u64>() >= LONG_RUN_BYTES;
    let target = is_long.then_some(arguments.out.as_path());
    let devices = arguments.tp.map(usize::from);
    let (mut records, mut plans) = (Vec::new(), Vec::new());
    for recipe in recipes {
        let options = PreflightOptions { devices, target };
        let (before, plan) = preflight::preflight(checkpoint, recipe, arithmetic, options)?;
        if let Some(failure) = before.impossible {
            return Err(failure);
        }
        records.push(before);
        plans.extend(plan);
    }
    let calibration = calibration(checkpoint, plans.iter(), arguments, settings)?;
    for (record, plan) in records.iter_mut().zip(&plans) {
        announce(record, plan, calibration.as_ref());
        super::preflight::note(record);
    }
    Ok((plans, calibration))
}

/// The calibration that the plans need, if any does.
fn calibration<'a>(
    checkpoint: &Arc<Checkpoint>,
    plans: impl Iterator<Item = &'a QuantizePlan>,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<Option<CalibrateJob>, Failure> {
    let config = arguments.calibration.config();
    calibrate_units::job(checkpoint, plans, &config, &settings.threads, &program_digest()?)
}

/// Adds the calibration to the plan of a recipe that needs it.
fn announce(record: &mut PreflightRecord, plan: &QuantizePlan, calibration: Option<&CalibrateJob>) {
    if let (true, Some(job), Some(work)) = (plan.needs_calibration(), calibration, &mut record.plan) {
        job.announce(work);
    }
}

/// Replays the loaders' rules on what was written. Reads headers and the values of scales.
fn verify(
    out: &Path,
    source: &Checkpoint,
    recipe: &Recipe,
    errors: bool,
    settings: &Settings,
) -> Result<ScanRecord, Failure> {
    let provenance = Provenance::new(settings.threads.clone());
    let against = Some(Target::Path(source.dir()));
    let options = ScanOptions { errors, ..ScanOptions::default() };
    Ok(scan::scan_target(Target::Path(out), against, Some(recipe), options, provenance)?)
}

/// Says everything that is known beforehand and writes nothing.
fn dry_run(
    checkpoint: &Arc<Checkpoint>,
    recipes: &[Recipe],
    arithmetic: Arithmetic,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<u8, Failure> {
    let mut records = Vec::new();
    for recipe in recipes {
        let devices = arguments.tp.map(usize::from);
        let options = PreflightOptions { devices, target: Some(arguments.out.as_path()) };
        let (mut record, plan) = preflight::preflight(checkpoint, recipe, arithmetic, options)?;
        match calibration(checkpoint, plan.iter(), arguments, settings) {
            Ok(job) => plan.iter().for_each(|plan| announce(&mut record, plan, job.as_ref())),
            Err(failure) if failure.class == FailureClass::ModelUnsupported => {
                record.impossible.get_or_insert(failure);
            }
            Err(failure) => return Err(failure),
        }
        if !settings.json {
            super::preflight::print(&record, plan.as_ref().filter(|_| progress::is_verbose()));
        }
        records.push(record);
    }
    match records.as_slice() {
        [record] if settings.json => output::json(record)?,
        several if settings.json => output::json(&several)?,
        _ => {}
    }
    // The record is the answer; the failure is what the exit code says.
    records.into_iter().find_map(|record| record.impossible).map_or(Ok(exit_code::PLANNED), Err)
}

/// The checkpoints to be made: `--out` itself for one recipe, a directory in it for each of several.
fn outputs<'a>(
    arguments: &Arguments,
    plans: &'a [QuantizePlan],
    checkpoint: &Checkpoint,
    calibration: Option<&CalibrateJob>,
) -> Result<Vec<QuantizeOutput<'a>>, Failure> {
    let mut outputs: Vec<QuantizeOutput<'a>> = Vec::new();
    let (source, program) = (checkpoint.digest()?, program_digest()?);
    for plan in plans {
        let calibration = calibration.filter(|_| plan.needs_calibration()).map(CalibrateJob::key);
        let key = keys::candidate(&source, &plan.recipe().digest, &program, calibration.as_ref());
        let key = keys::derived(&format!("arithmetic-{:?}", arguments.arithmetic), &key);
        let target = match plans.len() {
            1 => arguments.out.clone(),
            _ => arguments.out.join(&plan.recipe().name),
        };
        if outputs.iter().any(|o| o.target == target) {
            let message = format!("--recipe: two recipes are called '{}'", plan.recipe().name);
            return Err(Failure::config(message));
        }
        outputs.push(QuantizeOutput { plan, target, record: None, key });
    }
    Ok(outputs)
}

/// Refuses a target that another job made, before anything is written: its ledger, too, may lie beside it.
fn check_target(job: &QuantizeJob<'_>, out: &Path, ledger_path: &Path) -> Result<(), Failure> {
    let ledger = Ledger::snapshot(ledger_path)?.unwrap_or_default();
    if !out.exists() || quantize_units::is_ledger_of(job, &ledger) {
        return Ok(());
    }
    let why = format!("{} holds other work", ledger_path.display());
    Err(quantize_units::made_by_another(out, &why))
}

/// Refuses a job for which there is no space, before any work.
fn check_space(job: &QuantizeJob<'_>, out: &Path) -> Result<(), Failure> {
    let needed = quantize_units::missing_bytes(job);
    let free = disk::free_bytes(out).map_err(|e| Failure::io(out.display(), &e))?;
    match free {
        Some(free) if free < needed => {
            let message = format!(
                "{}: No space left: {} are needed, {} are free",
                out.display(),
                human_bytes(needed),
                human_bytes(free)
            );
            Err(Failure::new(FailureClass::InfraTransient, message)
                .with_hint("make space, or choose another --out"))
        }
        _ => Ok(()),
    }
}

/// Runs the job with a ledger beside the target, which is removed once everything is verified.
fn execute(job: &QuantizeJob<'_>, ledger_path: &Path) -> Result<Vec<QuantizeRecord>, Failure> {
    let ledger = Ledger::open(ledger_path)?.without_sync();
    let mut graph = Graph::default();
    quantize_units::add_quantize(&mut graph, job);
    let executor = LocalExecutor::new(&ledger);
    let summary = super::run_graph(&executor, &graph)?;
    let records: Option<Vec<QuantizeRecord>> =
        (0..job.outputs.len()).map(|i| summary.output(&quantize_units::finish_name(i))).collect();
    records.ok_or_else(|| Failure::new(FailureClass::Unknown, "the quantizer left no record"))
}

/// How fast it was: bytes of the source a second, waiting for storage not counted.
fn say_rate(records: &[QuantizeRecord], elapsed_s: f64) {
    let sync_s: f64 = records.iter().filter_map(|r| r.sync_s).sum();
    if let Some(first) = records.first() {
        let work_s = (elapsed_s - sync_s).max(1e-9);
        let rate = first.source_tensor_bytes as f64 / work_s / 1e9;
        progress::note(&format!("quantized in {work_s:.2} s ({rate:.2} GB/s), stored in {sync_s:.2} s more"));
    }
}

/// The record of the quantizer, with that of the verifier as `verification`; a list of them for several recipes.
fn report(verified: &[(PathBuf, QuantizeRecord, ScanRecord)], settings: &Settings) -> Result<(), Failure> {
    if settings.json {
        let not_json = |e: serde_json::Error| Failure::new(FailureClass::Unknown, e.to_string());
        let both = |(_, record, scanned): &(PathBuf, QuantizeRecord, ScanRecord)| {
            let mut both = serde_json::to_value(record).map_err(not_json)?;
            both["verification"] = serde_json::to_value(scanned).map_err(not_json)?;
            Ok::<_, Failure>(both)
        };
        let all = verified.iter().map(both).collect::<Result<Vec<_>, _>>()?;
        return match all.as_slice() {
            [one] => output::json(one),
            several => output::json(&several),
        };
    }
    for (target, record, scanned) in verified {
        output::line(&format!(
            "{}: {} modules, {} -> {}",
            target.display(),
            record.quantized_modules,
            human_bytes(record.source_tensor_bytes),
            human_bytes(record.output_tensor_bytes)
        ));
        if scanned.errors.is_empty() {
            worst_by_sqnr(record);
        }
        super::print_worst(&scanned.errors);
        for finding in gate::ptq(scanned).findings.iter().filter(|f| f.decides()) {
            output::line(&format!("{:<22} {finding}", finding.failure_class.to_string()));
        }
    }
    Ok(())
}

/// The worst weights by what the quantizer itself summed up.
fn worst_by_sqnr(record: &QuantizeRecord) {
    let mut modules: Vec<(f64, &str, &str)> = record
        .shards
        .iter()
        .flat_map(|shard| &shard.modules)
        .filter_map(|m| Some((m.sqnr_db?, m.precision.as_str(), m.module.as_str())))
        .collect();
    modules.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(b.2)));
    for (sqnr_db, precision, module) in modules.iter().take(super::WORST) {
        output::line(&format!("  {precision:<14} {sqnr_db:>8.2} dB SQNR  {module}"));
    }
}

//! `day0 quantize`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::{Settings, output};
use crate::base::units::human_bytes;
use crate::base::{env_vars, progress};
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, source};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::quantize::preflight::{self, PreflightOptions};
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::recipe::{self, Recipe};
use crate::record::quantize::QuantizeRecord;
use crate::record::scan::ScanRecord;
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass, Provenance};
use crate::release::quantize_units::{self, QuantizeJob};
use crate::release::{keys, program_digest};
use crate::scan::{ScanOptions, Target};
use crate::{gate, scan};

/// Sources from this size on take long enough to say how long.
const LONG_RUN_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny.
    model: String,
    /// Recipe name or file.
    #[arg(long, value_name = "R")]
    recipe: String,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
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
    if out.exists() {
        return Err(
            Failure::config(format!("{}: exists already", out.display())).with_hint("choose a new --out")
        );
    }
    let recipe = recipe::load(&arguments.recipe)?.in_dialect(match arguments.format {
        FormatFlag::CompressedTensors => Dialect::CompressedTensors,
        FormatFlag::Modelopt => Dialect::Modelopt,
    })?;
    let model = source::resolve(&arguments.model, &env_vars::cache_dir())?;
    let checkpoint = Arc::new(Checkpoint::open(&model.dir)?);
    let arithmetic = match arguments.arithmetic {
        ArithmeticFlag::F32 => Arithmetic::F32,
        ArithmeticFlag::Bf16 => Arithmetic::WeightDtype,
    };
    if arguments.dry_run {
        return dry_run(&checkpoint, &recipe, arithmetic, arguments, settings);
    }
    // A short run is over before its time is measured.
    let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
    let is_long = infos.map(TensorInfo::num_bytes).sum::<u64>() >= LONG_RUN_BYTES;
    let target = is_long.then_some(out.as_path());
    let devices = arguments.tp.map(usize::from);
    let before =
        preflight::preflight(&checkpoint, &recipe, arithmetic, PreflightOptions { devices, target })?;
    if let Some(failure) = before.impossible {
        return Err(failure);
    }
    super::preflight::note(&before);
    let plan = QuantizePlan::new(Arc::clone(&checkpoint), recipe.clone(), arithmetic)?;
    let key = keys::candidate(&checkpoint.digest()?, &recipe.digest, &program_digest()?);
    let key = keys::derived(&format!("arithmetic-{:?}", arguments.arithmetic), &key);
    let job = QuantizeJob {
        plan: &plan,
        target: out.clone(),
        record: None,
        key,
        provenance: Provenance::new(settings.threads.clone()),
    };
    let record = execute(&job)?;
    let scanned = verify(out, &checkpoint, &recipe, arguments.errors, settings)?;
    report(&record, &scanned, out, settings)?;
    Ok(scanned.defects.iter().map(|d| d.failure_class).min().map_or(0, exit_code::of_class))
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
    recipe: &Recipe,
    arithmetic: Arithmetic,
    arguments: &Arguments,
    settings: &Settings,
) -> Result<u8, Failure> {
    let options =
        PreflightOptions { devices: arguments.tp.map(usize::from), target: Some(arguments.out.as_path()) };
    let record = preflight::preflight(checkpoint, recipe, arithmetic, options)?;
    if settings.json {
        output::json(&record)?;
    } else {
        let every = if progress::is_verbose() && record.plan.is_some() {
            Some(QuantizePlan::new(Arc::clone(checkpoint), recipe.clone(), arithmetic)?)
        } else {
            None
        };
        super::preflight::print(&record, every.as_ref());
    }
    // The record is the answer; the failure is what the exit code says.
    record.impossible.map_or(Ok(exit_code::PLANNED), Err)
}

/// Runs the job with a ledger beside the target, which is gone when the checkpoint is complete.
fn execute(job: &QuantizeJob<'_>) -> Result<QuantizeRecord, Failure> {
    let ledger_path = crate::base::atomic::staging_path(&job.target).with_extension("ledger.jsonl");
    let ledger = Ledger::open(&ledger_path)?;
    let mut graph = Graph::default();
    quantize_units::add_quantize(&mut graph, job);
    let executor =
        LocalExecutor { ledger: &ledger, shared: None, retries_per_stage: 0, observer: &|_, _| () };
    let summary = super::run_graph(&executor, &graph)?;
    let record = summary
        .output("quantize/finish")
        .ok_or_else(|| Failure::new(crate::record::FailureClass::Unknown, "the quantizer left no record"))?;
    std::fs::remove_file(&ledger_path).map_err(|e| Failure::io(ledger_path.display(), &e))?;
    Ok(record)
}

/// The record of the quantizer, with that of the verifier as `verification`.
fn report(
    record: &QuantizeRecord,
    scanned: &ScanRecord,
    out: &Path,
    settings: &Settings,
) -> Result<(), Failure> {
    if settings.json {
        let not_json = |e: serde_json::Error| Failure::new(FailureClass::Unknown, e.to_string());
        let mut both = serde_json::to_value(record).map_err(not_json)?;
        both["verification"] = serde_json::to_value(scanned).map_err(not_json)?;
        return output::json(&both);
    }
    output::line(&format!(
        "{}: {} modules, {} -> {}",
        out.display(),
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

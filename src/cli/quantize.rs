//! `day0 quantize`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::{Settings, output};
use crate::base::atomic::staging_path;
use crate::base::units::human_bytes;
use crate::base::{disk, env_vars, progress};
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, source};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::recipe;
use crate::record::quantize::QuantizeRecord;
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass, Provenance};
use crate::release::quantize_units::{self, QuantizeJob, QuantizeOutput};
use crate::release::{keys, program_digest};

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
    /// Say what would be written and write nothing (exit code 10).
    #[arg(long)]
    dry_run: bool,
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
    let plans = recipes
        .into_iter()
        .map(|recipe| QuantizePlan::new(Arc::clone(&checkpoint), recipe, arithmetic))
        .collect::<Result<Vec<_>, _>>()?;
    if arguments.dry_run {
        for plan in &plans {
            output::line(&format!(
                "{} modules in {} shards, {} predicted",
                plan.modules().len(),
                plan.num_shards(),
                human_bytes(plan.predicted_tensor_bytes())
            ));
        }
        return Ok(exit_code::PLANNED);
    }
    let start = Instant::now();
    let job = QuantizeJob {
        outputs: outputs(arguments, &plans, &checkpoint)?,
        sync: !arguments.no_sync,
        provenance: Provenance::new(settings.threads.clone()),
    };
    check_space(&job, out)?;
    let records = execute(&job, &ledger_path)?;
    report(&job, &records, start.elapsed().as_secs_f64(), settings)?;
    Ok(0)
}

/// The checkpoints to be made: `--out` itself for one recipe, a directory in it for each of several.
fn outputs<'a>(
    arguments: &Arguments,
    plans: &'a [QuantizePlan],
    checkpoint: &Checkpoint,
) -> Result<Vec<QuantizeOutput<'a>>, Failure> {
    let mut outputs: Vec<QuantizeOutput<'a>> = Vec::new();
    for plan in plans {
        let key = keys::candidate(&checkpoint.digest()?, &plan.recipe().digest, &program_digest()?);
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

/// Runs the job with a ledger beside the target, which is gone when all checkpoints are complete.
fn execute(job: &QuantizeJob<'_>, ledger_path: &Path) -> Result<Vec<QuantizeRecord>, Failure> {
    let ledger = Ledger::open(ledger_path)?.without_sync();
    let mut graph = Graph::default();
    quantize_units::add_quantize(&mut graph, job);
    let executor =
        LocalExecutor { ledger: &ledger, shared: None, retries_per_stage: 0, observer: &|_, _| () };
    let summary = super::run_graph(&executor, &graph)?;
    let records: Option<Vec<QuantizeRecord>> =
        (0..job.outputs.len()).map(|i| summary.output(&quantize_units::finish_name(i))).collect();
    let records =
        records.ok_or_else(|| Failure::new(FailureClass::Unknown, "the quantizer left no record"))?;
    std::fs::remove_file(ledger_path).map_err(|e| Failure::io(ledger_path.display(), &e))?;
    Ok(records)
}

/// Says what was written and how fast: bytes of the source a second, waiting for storage not counted.
fn report(
    job: &QuantizeJob<'_>,
    records: &[QuantizeRecord],
    elapsed_s: f64,
    settings: &Settings,
) -> Result<(), Failure> {
    let sync_s: f64 = records.iter().filter_map(|r| r.sync_s).sum();
    if let Some(first) = records.first() {
        let work_s = (elapsed_s - sync_s).max(1e-9);
        let rate = first.source_tensor_bytes as f64 / work_s / 1e9;
        progress::note(&format!("quantized in {work_s:.2} s ({rate:.2} GB/s), stored in {sync_s:.2} s more"));
    }
    match records {
        [record] if settings.json => return output::json(record),
        several if settings.json => return output::json(&several),
        _ => {}
    }
    for (record, output) in records.iter().zip(&job.outputs) {
        output::line(&format!(
            "{}: {} modules, {} -> {}",
            output.target.display(),
            record.quantized_modules,
            human_bytes(record.source_tensor_bytes),
            human_bytes(record.output_tensor_bytes)
        ));
    }
    Ok(())
}

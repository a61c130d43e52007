//! `day0 quantize`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::{Settings, output};
use crate::base::env_vars;
use crate::base::units::human_bytes;
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, source};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::recipe;
use crate::record::quantize::QuantizeRecord;
use crate::record::verdict::exit_code;
use crate::record::{Failure, Provenance};
use crate::release::quantize_units::{self, QuantizeJob};
use crate::release::{keys, program_digest};

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
    let plan = QuantizePlan::new(Arc::clone(&checkpoint), recipe.clone(), arithmetic)?;
    if arguments.dry_run {
        output::line(&format!(
            "{} modules in {} shards, {} predicted",
            plan.modules().len(),
            plan.num_shards(),
            human_bytes(plan.predicted_tensor_bytes())
        ));
        return Ok(exit_code::PLANNED);
    }
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
    report(&record, out, settings)?;
    Ok(0)
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

fn report(record: &QuantizeRecord, out: &std::path::Path, settings: &Settings) -> Result<(), Failure> {
    if settings.json {
        return output::json(record);
    }
    output::line(&format!(
        "{}: {} modules, {} -> {}",
        out.display(),
        record.quantized_modules,
        human_bytes(record.source_tensor_bytes),
        human_bytes(record.output_tensor_bytes)
    ));
    Ok(())
}

//! `day0 scan`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Settings, output};
use crate::base::env_vars;
use crate::base::units::human_bytes;
use crate::checkpoint::hub::HubId;
use crate::checkpoint::hub_env::HubEnv;
use crate::checkpoint::{files, remote, source};
use crate::record::scan::{DiffKind, ScanRecord};
use crate::record::{Failure, FailureClass, Provenance};
use crate::scan::{ScanOptions, Target};
use crate::{gate, recipe, scan};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Checkpoint: directory, .safetensors file, hub id, or URL (the last two: headers only).
    model: String,
    /// Source to compare with.
    #[arg(long, value_name = "MODEL|URL")]
    against: Option<String>,
    /// Recipe that made the checkpoint.
    #[arg(long, value_name = "R")]
    recipe: Option<String>,
    /// Read every value: NaN, infinity, tensors of zeros; fetches a model on the hub.
    #[arg(long)]
    values: bool,
    /// With --against: compare metadata and sizes only, and do not measure the error of each weight.
    #[arg(long, requires = "against")]
    no_errors: bool,
}

/// Where a checkpoint turned out to lie.
enum Place {
    Path(PathBuf),
    Url(String),
}

impl Place {
    /// A hub id is scanned where it is, by its headers, unless its values are needed or it must come from the cache.
    fn find(model: &str, needs_values: bool) -> Result<Self, Failure> {
        let path = Path::new(model);
        if remote::is_url(model) {
            return Ok(Self::Url(model.to_owned()));
        }
        if path.is_file() && files::has_extension(model, "safetensors") {
            return Ok(Self::Path(path.to_path_buf()));
        }
        let env = HubEnv::from_env();
        match HubId::parse(model).filter(|_| !needs_values && !env.offline && !path.exists()) {
            Some(id) => Ok(Self::Url(remote::hub_url(&id, &env))),
            None => Ok(Self::Path(source::resolve(model, &env_vars::cache_dir())?.dir)),
        }
    }

    fn target(&self) -> Target<'_> {
        match self {
            Self::Path(path) => Target::Path(path),
            Self::Url(url) => Target::Url(url),
        }
    }
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let provenance = Provenance::new(settings.threads.clone());
    let recipe = arguments.recipe.as_ref().map(|r| recipe::load(r)).transpose()?;
    let place = Place::find(&arguments.model, arguments.values)?;
    if arguments.values && matches!(place, Place::Url(_)) {
        return Err(Failure::config(format!(
            "{}: --values needs the weights, not an address",
            arguments.model
        ))
        .with_hint("name the model's hub id or a directory; or leave --values out to scan headers"));
    }
    let against = arguments.against.as_ref().map(|model| Place::find(model, false)).transpose()?;
    let options =
        ScanOptions { values: arguments.values, digests: arguments.values, errors: !arguments.no_errors };
    let against = against.as_ref().map(Place::target);
    let record = scan::scan_target(place.target(), against, recipe.as_ref(), options, provenance)?;
    if settings.json {
        output::json(&record)?;
    } else {
        print(&record);
    }
    Ok(worst_finding(&record).map_or(0, crate::record::verdict::exit_code::of_class))
}

/// A scan exits by its worst finding; what could not be checked stays a line in the record. A checkpoint that declares
/// no quantization is a defective export only where it is compared with what it should have been made from.
fn worst_finding(record: &ScanRecord) -> Option<FailureClass> {
    let coverage = &record.coverage;
    let is_export = record.source.is_some() || coverage.recipe_targets.is_some();
    let is_incomplete = !coverage.unexpected_unquantized.is_empty()
        || !coverage.declaration_mismatch.is_empty()
        || record.metadata_diffs.iter().any(|d| d.kind == DiffKind::Blocking)
        || (is_export && record.quant_method.is_none());
    let incomplete = is_incomplete.then_some(FailureClass::QuantCoverageFailure);
    record.defects.iter().map(|d| d.failure_class).chain(incomplete).min()
}

fn print(record: &ScanRecord) {
    let method = record.quant_method.as_deref().unwrap_or("none declared");
    output::line(&format!("checkpoint      {}", record.checkpoint));
    output::line(&format!("quantization    {method}"));
    let size = &record.size;
    output::line(&format!(
        "size            {}, {:.3} bits per weight, {} parameters",
        human_bytes(size.output_bytes),
        size.bits_per_weight,
        size.parameters
    ));
    if let (Some(source), Some(bf16)) = (size.source_bytes, size.source_bf16_bytes) {
        output::line(&format!(
            "against         {}: {:.3} of its {}, {:.3} of it in BF16",
            record.source.as_deref().unwrap_or("source"),
            size.output_bytes as f64 / source as f64,
            human_bytes(source),
            size.output_bytes as f64 / bf16 as f64
        ));
    }
    if let Some(transfer) = &record.transfer {
        let share = 100.0 * transfer.bytes_read as f64 / transfer.weight_file_bytes.max(1) as f64;
        output::line(&format!(
            "read            {} in {} requests, {share:.3} % of {}",
            human_bytes(transfer.bytes_read),
            transfer.requests,
            human_bytes(transfer.weight_file_bytes)
        ));
    }
    for (precision, count) in &record.coverage.modules_by_precision {
        output::line(&format!("  {precision:<22} {count} modules"));
    }
    for (scale, range) in &record.scale_ranges {
        output::line(&format!("  {scale:<22} {:.3e} to {:.3e}", range.min, range.max));
    }
    print_values(record);
    super::print_worst(&record.errors);
    for engine in &record.engines {
        output::line(&super::engine_line(engine));
    }
    for diff in record.metadata_diffs.iter().filter(|d| d.kind == DiffKind::Expected) {
        output::line(&format!("expected        {} {} differs", diff.file, diff.field));
    }
    for finding in &gate::ptq(record).findings {
        let kind = if finding.decides() { finding.failure_class.to_string() } else { "note".to_owned() };
        output::line(&format!("{kind:<22} {finding}"));
    }
}

fn print_values(record: &ScanRecord) {
    let Some(values) = &record.values else { return };
    let largest =
        values.largest.as_ref().map_or(String::new(), |(tensor, x)| format!(", largest {x:.3e} in {tensor}"));
    output::line(&format!(
        "values          {} float tensors, {}{largest}",
        values.tensors,
        human_bytes(values.bytes)
    ));
    for tensor in &values.zero_tensors {
        output::line(&format!("all zero        {tensor}"));
    }
}

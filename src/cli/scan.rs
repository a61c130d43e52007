//! `day0 scan`.

use clap::Args;

use super::{Settings, output};
use crate::base::env_vars;
use crate::base::units::human_bytes;
use crate::checkpoint::source;
use crate::record::scan::ScanRecord;
use crate::record::{Failure, FailureClass, Provenance};
use crate::{gate, recipe, scan};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Checkpoint: directory, hub id, or URL (headers only).
    model: String,
    /// Source to compare with.
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// Recipe that made the checkpoint.
    #[arg(long, value_name = "R")]
    recipe: Option<String>,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let provenance = Provenance::new(settings.threads.clone());
    let recipe = arguments.recipe.as_ref().map(|r| recipe::load(r)).transpose()?;
    let record = if arguments.model.starts_with("http://") || arguments.model.starts_with("https://") {
        scan::scan_remote(&arguments.model, None, recipe.as_ref(), provenance)?
    } else {
        let cache = env_vars::cache_dir();
        let model = source::resolve(&arguments.model, &cache)?;
        let against = arguments.against.as_ref().map(|m| source::resolve(m, &cache)).transpose()?;
        scan::scan(&model.dir, against.as_ref().map(|m| m.dir.as_path()), recipe.as_ref(), provenance)?
    };
    if settings.json {
        output::json(&record)?;
    } else {
        print(&record);
    }
    Ok(worst_defect(&record).map_or(0, crate::record::verdict::exit_code::of_class))
}

/// A scan exits by its worst defect; what could not be checked stays a line in the record.
fn worst_defect(record: &ScanRecord) -> Option<FailureClass> {
    record.defects.iter().map(|d| d.failure_class).min()
}

fn print(record: &ScanRecord) {
    let method = record.quant_method.as_deref().unwrap_or("none declared");
    output::line(&format!("checkpoint      {}", record.checkpoint));
    output::line(&format!("quantization    {method}"));
    output::line(&format!(
        "size            {}, {:.3} bits per weight, {} parameters",
        human_bytes(record.size.output_bytes),
        record.size.bits_per_weight,
        record.size.parameters
    ));
    for (precision, count) in &record.coverage.modules_by_precision {
        output::line(&format!("  {precision:<22} {count} modules"));
    }
    for finding in &gate::ptq(record).findings {
        output::line(&format!("{:<22} {finding}", finding.failure_class.to_string()));
    }
    for (check, why) in &record.not_checked {
        output::line(&format!("not checked     {check}: {why}"));
    }
}

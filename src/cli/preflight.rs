//! How a preflight is printed.

use super::{engine_line, output};
use crate::base::progress;
use crate::base::units::{human_bytes, human_seconds};
use crate::quantize::QuantizePlan;
use crate::record::preflight::{PlannedCalibration, PlannedWork, PreflightRecord, TimeEstimate};

/// Cutting problems that are named one by one.
const LISTED_PROBLEMS: usize = 5;

/// The whole record, for `--dry-run`. `every` lists modules one by one.
pub(super) fn print(record: &PreflightRecord, every: Option<&QuantizePlan>) {
    output::line(&format!("recipe                 {} version {}", record.recipe, record.recipe_version));
    let Some(work) = &record.plan else { return };
    for line in summary(work) {
        output::line(&line);
    }
    if work.files.len() <= 20 || every.is_some() {
        for file in &work.files {
            output::line(&format!("  {:<40} {}", file.file, human_bytes(file.tensor_bytes)));
        }
    }
    for scheme in &work.schemes {
        output::line(&format!(
            "{:<22} {} modules, {} -> {}",
            scheme.precision,
            scheme.modules,
            human_bytes(scheme.source_bytes),
            human_bytes(scheme.predicted_bytes)
        ));
    }
    if let Some(plan) = every {
        for module in plan.modules() {
            let precision = module.layout.precision();
            output::line(&format!("  {:<14} {} {:?}", precision, module.name, module.shape));
        }
        for (module, reason) in plan.excluded_modules() {
            output::line(&format!("  {:<14} {module}: {reason}", "left"));
        }
    } else {
        for line in &work.modules {
            let what = line.precision.as_deref().unwrap_or("left");
            let shape = line.shape.map_or(String::new(), |shape| format!(" {shape:?}"));
            let reason = line.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            output::line(&format!("  {what:<14} {} x {}{shape}{reason}", line.count, line.pattern));
        }
    }
    cutting(work);
    for engine in &work.engines {
        output::line(&engine_line(engine));
    }
}

/// The lines before a run, on standard error.
pub(super) fn note(record: &PreflightRecord) {
    let Some(work) = &record.plan else { return };
    for line in summary(work) {
        progress::note(&line);
    }
    for engine in work.engines.iter().filter(|e| !e.loads) {
        progress::note(&engine_line(engine));
    }
}

/// Sizes, time and memory.
fn summary(work: &PlannedWork) -> Vec<String> {
    let mut lines = vec![format!(
        "writes                 {} of tensors in {} files, {:.3} of {}",
        human_bytes(work.predicted_bytes),
        work.files.len(),
        work.predicted_bytes as f64 / work.source_bytes.max(1) as f64,
        human_bytes(work.source_bytes)
    )];
    if let Some(PlannedCalibration { data, engine_bytes }) = &work.calibration {
        lines.push(format!(
            "calibration            {} samples of {} tokens from the text '{}', {} of weights in memory",
            data.samples,
            data.sequence_length,
            data.text,
            human_bytes(*engine_bytes)
        ));
    }
    if let Some(time) = &work.time {
        lines.push(format!("time                   {}", time_line(time)));
    }
    lines.push(format!("memory                 at most {}", human_bytes(work.peak_memory_bytes)));
    lines
}

fn time_line(time: &TimeEstimate) -> String {
    format!(
        "{} to {} by a sample of {}: {}/s through the pipeline, {}/s read",
        human_seconds(time.seconds_low),
        human_seconds(time.seconds_high),
        human_bytes(time.sample_bytes),
        human_bytes(time.pipeline_bytes_per_s as u64),
        human_bytes(time.read_bytes_per_s as u64)
    )
}

fn cutting(work: &PlannedWork) {
    let (devices, problems) = (work.devices, &work.cutting_problems);
    let plural = if devices == 1 { "" } else { "s" };
    if problems.is_empty() {
        output::line(&format!("{devices} device{plural:<14} layers can be cut so"));
    }
    for problem in problems.iter().take(LISTED_PROBLEMS) {
        output::line(&format!(
            "{devices} device{plural:<14} {}: {}, expected {}",
            problem.module, problem.observed, problem.expected
        ));
    }
    if problems.len() > LISTED_PROBLEMS {
        output::line(&format!("{devices} device{plural:<14} {} more", problems.len() - LISTED_PROBLEMS));
    }
    if work.unknown_roles > 0 && devices > 1 {
        output::line(&format!(
            "not checked            {} modules whose names say no role",
            work.unknown_roles
        ));
    }
}

//! `day0 compare`: any two runs, item by item. Starts nothing and writes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::{Settings, output};
use crate::base::progress;
use crate::eval::{self, Run, Side};
use crate::gate::{self, Policy};
use crate::record::{Failure, FailureClass, GateReport};
use crate::release::config::ConfigFile;
use crate::report;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Run of the original model: a directory of day0 eval, lm-eval (with samples) or NeMo Evaluator (results.jsonl); of
    /// a release directory its baseline.
    #[arg(value_name = "RUN_A")]
    baseline: PathBuf,
    /// Run of the other model; of a release directory its candidate.
    #[arg(value_name = "RUN_B")]
    candidate: PathBuf,
    /// Largest drop allowed: share of the scale, relative for perplexities.
    #[arg(long)]
    margin: Option<f64>,
    /// How to decide.
    #[arg(long, default_value = "certify", value_parser = super::policy_parser())]
    policy: Policy,
    /// Metric that decides in runs of other harnesses [default: acc, exact_match, bits_per_byte, else the first].
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Margins and tiers per task.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Engines, devices and kernel paths may differ: say so instead of refusing.
    #[arg(long)]
    across_engines: bool,
    /// Runs that do not tell their prompts or right answers (NeMo Evaluator) were asked the same: on your word.
    #[arg(long)]
    trust_prompts: bool,
    /// Flipped items to show of each task.
    #[arg(long, value_name = "N", default_value_t = 3)]
    flips: usize,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let (baseline, candidate) = read(arguments)?;
    for note in baseline.notes.iter().chain(&candidate.notes) {
        progress::note(note);
    }
    let file =
        arguments.config.as_ref().map_or_else(|| Ok(ConfigFile::default()), |p| ConfigFile::read(p))?;
    let margin = arguments.margin.or(file.margin);
    let config = ConfigFile { policy: Some(arguments.policy), margin, ..file }.validate()?;
    let mut options = config.compare_options(&baseline.record);
    options.imported = baseline.foreign || candidate.foreign;
    // Only runs of two harnesses differ in their engines by necessity.
    options.across_engines = arguments.across_engines || baseline.foreign != candidate.foreign;
    options.trust_prompts = arguments.trust_prompts;
    let report = gate::compare(&baseline.record, &candidate.record, &options);
    if settings.json {
        output::json(&report)?;
    } else {
        show(&report, &baseline, &candidate, arguments.flips)?;
    }
    // The work is a comparison: it is done when there is one, whatever it says.
    match report.failure_class {
        Some(class) if !has_evidence(&report) => Err(Failure::new(class, report.detail)),
        _ => Ok(0),
    }
}

/// Both runs, on the metric of the one that day0 made.
fn read(arguments: &Arguments) -> Result<(Run, Run), Failure> {
    let named = |_: &str| arguments.metric.clone();
    let baseline = eval::read_run(&arguments.baseline, Side::Baseline, &named)?;
    let of = |run: &Run| -> BTreeMap<String, String> {
        let metric = |(name, t): (&String, &crate::record::eval::TaskRecord)| {
            (name.clone(), t.primary_metric.name.clone())
        };
        run.record.tasks.iter().map(metric).collect()
    };
    let theirs = of(&baseline);
    let metric_of = |task: &str| named(task).or_else(|| theirs.get(task).cloned());
    let candidate = eval::read_run(&arguments.candidate, Side::Candidate, &metric_of)?;
    if !baseline.foreign || candidate.foreign {
        return Ok(blanked(baseline, candidate));
    }
    let ours = of(&candidate);
    let metric_of = |task: &str| named(task).or_else(|| ours.get(task).cloned());
    let again = eval::read_run(&arguments.baseline, Side::Baseline, &metric_of)?;
    Ok(blanked(again, candidate))
}

/// What only one of the two runs says is no difference between them.
fn blanked(mut baseline: Run, mut candidate: Run) -> (Run, Run) {
    if baseline.foreign != candidate.foreign {
        eval::blank_what_others_lack(&mut baseline.record);
        eval::blank_what_others_lack(&mut candidate.record);
    }
    (baseline, candidate)
}

fn has_evidence(report: &GateReport) -> bool {
    report::evidence(report).next().is_some()
}

fn show(report: &GateReport, baseline: &Run, candidate: &Run, flips: usize) -> Result<(), Failure> {
    let verdict = report.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
    output::line(&format!("# {verdict}: {} against {}", candidate.title, baseline.title));
    output::line("");
    if has_evidence(report) {
        output::line(&report::table(report));
    }
    for finding in &report.findings {
        let kind = if finding.decides() { finding.failure_class.to_string() } else { "note".to_owned() };
        output::line(&format!("- {kind}: {finding}"));
        if finding.decides() && finding.failure_class != FailureClass::AccuracyRegression {
            output::line(&format!("  - next: {}", finding.hint));
        }
    }
    let texts = report::shown_flips(report, flips)
        .into_iter()
        .map(|(task, ids)| Ok((task.clone(), eval::item_texts(&baseline.dir, &task, &ids)?)))
        .collect::<Result<report::Texts, Failure>>()?;
    output::line("");
    output::line(report::explain(report, &texts, flips).trim_end());
    Ok(())
}

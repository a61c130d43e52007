//! Units of the readiness gates. They run after the comparison, whatever it said: each looks itself at whether there is
//! something for it to judge. None of them stops another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::graph::{Build, names};
use super::readiness::{Level, ReadinessConfig, leveled, merged};
use crate::base::{atomic, json as json_file};
use crate::exec::{Context, FnUnit, Graph, KeyBuilder, Node, Output};
use crate::gate;
use crate::ready::config::QualityConfig;
use crate::ready::qa::{self, QaOptions};
use crate::ready::repro::{
    self, Family, FamilyKind, JobRunner, PtqRunner, RoundtripRunner, Runner, TokenRunner,
};
use crate::ready::{lineage, ratchet, release_metrics, snapshot};
use crate::record::qa::CheckTier;
use crate::record::repro::{FamilyRuns, SeedRun, SeedRuns};
use crate::record::snapshot::{Snapshot, is_count};
use crate::record::{Failure, FailureClass, Finding, GateName, GateReport, SCHEMA_VERSION};
use crate::{report, suite};

/// Prompts of the round trip.
const ROUNDTRIP_PROMPTS: u64 = 16;

/// Node that counts for `diff` and `ratchet`.
const COUNTS: &str = "ready/counts";

/// Names of the readiness gates' nodes, in order.
pub const GATES: [&str; 4] = ["gate/repro", "gate/qa", "gate/diff", "gate/ratchet"];

/// Whether an output says that there was nothing to do.
pub fn not_run(output: &Value) -> Option<&str> {
    output.get("not_run").and_then(Value::as_str)
}

/// Adds the units of every readiness gate that the configuration asks for.
pub fn add<'a>(graph: &mut Graph<'a>, build: &'a Build<'a>) {
    let config = &build.inputs.config.readiness;
    let mut runs = vec!["repro/roundtrip".to_owned()];
    graph.add(roundtrip_node(build));
    if config.repro != Level::Off {
        for name in &config.families {
            for (index, seed) in config.seeds.iter().enumerate() {
                let node = seed_node(build, name, *seed, index);
                runs.push(node.name.clone());
                graph.add(node);
            }
        }
    }
    let reads = runs.clone();
    graph.add(gate_node(build, GATES[0], "repro", (Needs::Candidate, reads), move |context| {
        repro_gate(build, &runs, context)
    }));
    if config.qa != Level::Off {
        graph.add(gate_node(build, GATES[1], "qa", (Needs::Acceptance, Vec::new()), move |_| qa_gate(build)));
    }
    let counts_read = if wants_counts(config) { vec![COUNTS.to_owned()] } else { Vec::new() };
    if wants_counts(config) {
        // Shown as time of the first gate that asks.
        let stage = if config.diff == Level::Off { "ratchet" } else { "diff" };
        let needs = Needs::Acceptance;
        graph.add(guarded(
            COUNTS.to_owned(),
            stage,
            key(build, COUNTS),
            (needs, Vec::new()),
            |_| counts(build),
            None,
        ));
    }
    if config.diff != Level::Off {
        let needs = (Needs::Acceptance, counts_read.clone());
        graph.add(gate_node(build, GATES[2], "diff", needs, |context| diff_gate(build, context)));
    }
    if config.ratchet != Level::Off && config.ratchet_file.is_file() {
        let decide = |context: &Context<'_>| ratchet_gate(build, context);
        graph.add(gate_node(build, GATES[3], "ratchet", (Needs::Acceptance, counts_read), decide));
    }
}

/// Whether a gate asks what the repository's commands count: a captured baseline, or a ratchet that decides and holds
/// counts. An advisory ratchet asks for nothing that the release has not measured itself.
fn wants_counts(config: &ReadinessConfig) -> bool {
    let captured = config.diff != Level::Off && Path::new(snapshot::BASELINE_FILE).is_file();
    let ratchet = || ratchet::load(&config.ratchet_file).ok().flatten();
    let held = || ratchet().is_some_and(|ratchet| ratchet.thresholds.keys().any(|metric| is_count(metric)));
    captured || (config.ratchet == Level::Required && held())
}

/// What must have gone well before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// The candidate is what the recipe promised.
    Candidate,
    /// Nothing has decided against the candidate yet.
    Acceptance,
}

impl Needs {
    /// Why there is nothing to do, if there is not.
    fn missing(self, context: &Context<'_>) -> Option<String> {
        let passed = |gate: &str| context.output::<GateReport>(gate).is_ok_and(|report| report.pass);
        match self {
            _ if !passed(names::GATE_PTQ) => {
                Some("there is no candidate that passed its own gate".to_owned())
            }
            Self::Acceptance if !passed(names::GATE_COMPARE) => {
                Some("the comparison decided without it".to_owned())
            }
            _ => None,
        }
    }
}

/// A node that always runs, and says so where there is nothing to do. Without `holds` it decides again on every resume.
fn guarded<'a>(
    name: String,
    stage: &'static str,
    key: KeyBuilder,
    (needs, reads): (Needs, Vec<String>),
    run: impl Fn(&Context<'_>) -> Result<Output, Failure> + Send + Sync + 'a,
    holds: Option<fn(&Value) -> bool>,
) -> Node<'a> {
    let unit = FnUnit::new(key.finish(), move |context| match needs.missing(context) {
        Some(reason) => Output::of(&json!({"not_run": reason})),
        None => run(context),
    })
    .verified_by(move |output: &Value| not_run(output).is_none() && holds.is_some_and(|holds| holds(output)));
    let unit = if holds.is_none() { unit.repeated().reading(reads) } else { unit };
    Node { name, stage, after: Vec::new(), always: true, shared: false, cost: 0, unit: Box::new(unit) }
}

fn key(build: &Build<'_>, kind: &str) -> KeyBuilder {
    KeyBuilder::new(kind)
        .part("candidate", build.keys.candidate.as_str())
        .part("compare", build.keys.compare.as_str())
        .part("build", &build.inputs.build)
}

/// A gate: stored under `gates/`, decided again on every resume, never halting what comes after.
fn gate_node<'a>(
    build: &'a Build<'a>,
    name: &'static str,
    stage: &'static str,
    (needs, reads): (Needs, Vec<String>),
    decide: impl Fn(&Context<'_>) -> Result<GateReport, Failure> + Send + Sync + 'a,
) -> Node<'a> {
    let path = build.run.join(format!("gates/{stage}.json"));
    let run = move |context: &Context<'_>| {
        let report = decide(context)?;
        json_file::write(&path, &report)?;
        Output::of(&report)
    };
    guarded(name.to_owned(), stage, key(build, name), (needs, reads), run, None)
}

fn roundtrip_node<'a>(build: &'a Build<'a>) -> Node<'a> {
    let run = move |_: &Context<'_>| {
        let runner = RoundtripRunner {
            checkpoint: build.run.checkpoint(),
            scratch: build.run.join("ready/scratch"),
            threads: build.inputs.threads.clone(),
            dtype: build.inputs.config.dtype,
        };
        Output::of(&runner.run(0, ROUNDTRIP_PROMPTS)?)
    };
    guarded(
        "repro/roundtrip".to_owned(),
        "repro",
        key(build, "ready-roundtrip/1").part("prompts", ROUNDTRIP_PROMPTS),
        (Needs::Candidate, Vec::new()),
        run,
        Some(|_| true),
    )
}

fn seed_node<'a>(build: &'a Build<'a>, family: &'a str, seed: u64, index: usize) -> Node<'a> {
    let config = &build.inputs.config.readiness;
    let name = repro::node_name(family, seed, index);
    let key = key(build, "ready-seed/1")
        .part("family", family)
        .part("seed", seed)
        .part("index", index)
        .part("steps", config.steps)
        .part("threads", build.inputs.threads.count);
    let run = move |_: &Context<'_>| {
        let family = repro::load(family)?;
        Output::of(&runner(build, &family)?.run(seed, config.steps)?)
    };
    let holds =
        |output: &Value| serde_json::from_value::<SeedRun>(output.clone()).is_ok_and(|run| !run.broke_off());
    guarded(name, "repro", key, (Needs::Acceptance, Vec::new()), run, Some(holds))
}

fn runner(build: &Build<'_>, family: &Family) -> Result<Box<dyn Runner>, Failure> {
    let inputs = build.inputs;
    let threads = inputs.threads.clone();
    Ok(match family.kind {
        FamilyKind::Token => Box::new(TokenRunner { threads: threads.count }),
        FamilyKind::Command => Box::new(JobRunner {
            family: family.family.clone(),
            template: family.command.clone().unwrap_or_default(),
            device: "auto".to_owned(),
            out: qa::absolute(&build.run.join("ready/jobs")),
            dir: PathBuf::from("."),
            timeout: Duration::from_secs(86_400),
        }),
        FamilyKind::Ptq | FamilyKind::Roundtrip => {
            let suite = suite::load(&inputs.config.suites.join(","), inputs.config.data.as_deref())?;
            Box::new(PtqRunner {
                checkpoint: build.run.checkpoint(),
                suite,
                threads,
                dtype: inputs.config.dtype,
            })
        }
    })
}

/// The gate `repro`: the round trip by its own level, the other families by theirs.
fn repro_gate(build: &Build<'_>, nodes: &[String], context: &Context<'_>) -> Result<GateReport, Failure> {
    let config = &build.inputs.config.readiness;
    let mut families: Vec<FamilyRuns> = Vec::new();
    for node in nodes {
        let Ok(run) = context.output::<SeedRun>(node) else { continue };
        let name = node.split('/').nth(1).unwrap_or_default();
        let named = config.families.iter().find(|f| node.starts_with(&format!("repro/{f}/")));
        let family = repro::load(named.map_or(name, String::as_str))?;
        let steps = if node == "repro/roundtrip" { ROUNDTRIP_PROMPTS } else { config.steps };
        match families.iter_mut().find(|f| f.family == family.family) {
            Some(known) => known.runs.push(run),
            None => families.push(FamilyRuns {
                family: family.family,
                step: family.step,
                steps,
                criteria: family.criteria,
                runs: vec![run],
            }),
        }
    }
    // The file of the family that comes with the program does not know what this release allows.
    if let Some(ptq) = families.iter_mut().find(|f| f.family == "ptq") {
        gate::repro::with_margins(ptq, &build.inputs.margins());
    }
    let provenance = build.provenance();
    let whole =
        SeedRuns { schema_version: SCHEMA_VERSION, device: provenance.device.clone(), families, provenance };
    json_file::write(&build.run.join("ready/seed_runs.json"), &whole)?;
    for (name, svg) in report::curves(&whole) {
        let path = build.run.join("ready").join(name);
        atomic::write(&path, svg.as_bytes()).map_err(|e| Failure::io(path.display(), &e))?;
    }
    let (roundtrip, others): (Vec<_>, Vec<_>) =
        whole.families.iter().cloned().partition(|f| f.family == "roundtrip");
    let decided = |families, tier| gate::repro::decide(&SeedRuns { families, ..whole.clone() }, tier);
    let engine_known = build.inputs.engine_gap.is_none() && checkable(&roundtrip);
    let mut own = decided(roundtrip, CheckTier::Pr);
    if !engine_known {
        own = without_outputs(own);
    }
    let mut reports = vec![leveled(own, config.roundtrip)];
    let accepted = context.output::<GateReport>(names::GATE_COMPARE).is_ok_and(|report| report.pass);
    if config.repro != Level::Off && accepted {
        reports.push(leveled(decided(others, config.repro_tier), config.repro));
    }
    Ok(merged(GateName::Repro, reports))
}

/// Whether the built-in engine could answer the round trip's prompts.
fn checkable(roundtrip: &[FamilyRuns]) -> bool {
    roundtrip.iter().flat_map(|f| &f.runs).all(|run| run.finals.contains_key("max_abs_diff"))
}

/// A model that only an external engine runs has the parity of its tensors; that of its outputs is not known.
fn without_outputs(report: GateReport) -> GateReport {
    let soften = |f: Finding| {
        if f.failure_class == FailureClass::InsufficientEvidence { f.as_note() } else { f }
    };
    let findings = report.findings.into_iter().map(soften).collect();
    GateReport::new(report.gate, report.checks, report.per_task, findings)
}

fn qa_gate(build: &Build<'_>) -> Result<GateReport, Failure> {
    let config = &build.inputs.config.readiness;
    let file = qa::quoted(&config.qa_config.display().to_string());
    let options = QaOptions {
        config_path: config.qa_config.clone(),
        container: None,
        dir: qa::absolute(".".as_ref()),
        out: qa::absolute(&build.run.join("qa")),
        tier: config.qa_tier,
        rerun: format!("day0 ready qa --config {file} --tier {}", config.qa_tier),
    };
    let outcome = qa::run(&options)?;
    if let Some(signal) = outcome.signal {
        return Err(Failure::interrupted(signal));
    }
    let error = outcome.error.as_ref().map(|e| e.message.as_str());
    Ok(leveled(gate::qa::decide(&outcome.results, error), config.qa))
}

/// What the commands of the repository count, once for all gates that ask.
fn counts(build: &Build<'_>) -> Result<Output, Failure> {
    // A release whose own file names no commands counts what the repository counts.
    let quality = match &build.inputs.config.quality {
        own if own.commands.is_empty() => QualityConfig::find(None, ".".as_ref())?.unwrap_or_default(),
        own => own.clone(),
    };
    Output::of(&snapshot::take(&quality.counted(), ".".as_ref())?)
}

/// What this release measured, with the counts where a gate asks for them.
fn measured(build: &Build<'_>, context: &Context<'_>) -> Result<Snapshot, Failure> {
    let own = release_metrics::of_run(build.run.path())?;
    if !wants_counts(&build.inputs.config.readiness) {
        return Ok(own);
    }
    Ok(Snapshot { release: own.release, ..context.output(COUNTS)? })
}

fn diff_gate(build: &Build<'_>, context: &Context<'_>) -> Result<GateReport, Failure> {
    let config = &build.inputs.config;
    let recipe = &build.inputs.recipe.name;
    let baseline = Path::new(snapshot::BASELINE_FILE);
    let mut reports = Vec::new();
    match lineage::last_accepted(build.run.path(), &config.model, recipe) {
        Some(run) => {
            let (before, now) = (release_metrics::of_run(&run)?, release_metrics::of_run(build.run.path())?);
            let mut compared = against("accepted", gate::diff::check(Some(&before), &now));
            compared.detail = format!("{} ({})", compared.detail, run.display());
            reports.push(compared);
        }
        None => reports.push(no_earlier(&config.model, recipe, baseline.is_file())),
    }
    if baseline.is_file() {
        let compared = gate::diff::check(Some(&snapshot::read(baseline)?), &measured(build, context)?);
        reports.push(against("captured", compared));
    }
    Ok(leveled(merged(GateName::Diff, reports), config.readiness.diff))
}

/// The report with the name of its baseline before every check: both baselines may hold the same metrics.
fn against(which: &str, mut report: GateReport) -> GateReport {
    report.checks =
        report.checks.into_iter().map(|(check, seen)| (format!("{which}.{check}"), seen)).collect();
    for finding in &mut report.findings {
        finding.check = format!("{which}.{}", finding.check);
    }
    report
}

/// The first release of a model has no release to be worse than: a note where there was a captured baseline to compare
/// with, else no evidence.
fn no_earlier(model: &str, recipe: &str, captured: bool) -> GateReport {
    let finding =
        Finding::new(GateName::Diff, "accepted.baseline", FailureClass::InsufficientEvidence, model)
            .observed(format!("no accepted release of it with {recipe} beside this run"))
            .hint("capture a baseline before the release: day0 ready diff capture");
    let finding = if captured { finding.as_note() } else { finding };
    let mut report = GateReport::new(GateName::Diff, BTreeMap::new(), BTreeMap::new(), vec![finding]);
    if report.pass {
        "no earlier release to compare with".clone_into(&mut report.detail);
    }
    report
}

fn ratchet_gate(build: &Build<'_>, context: &Context<'_>) -> Result<GateReport, Failure> {
    let config = &build.inputs.config.readiness;
    let Some(ratchet) = ratchet::load(&config.ratchet_file)? else {
        return Ok(GateReport::new(GateName::Ratchet, BTreeMap::new(), BTreeMap::new(), Vec::new()));
    };
    let only_measured = config.ratchet != Level::Required;
    let report = gate::ratchet::check(&ratchet, &measured(build, context)?, only_measured);
    Ok(leveled(report, config.ratchet))
}

/// What a release says of readiness gates that it was asked for and could not decide.
pub fn undecided(config: &ReadinessConfig, gates: &[GateReport]) -> Vec<Finding> {
    let expected = [
        (GateName::Repro, Level::Required == config.roundtrip || Level::Required == config.repro),
        (GateName::Qa, config.qa == Level::Required),
        (GateName::Diff, config.diff == Level::Required),
        (GateName::Ratchet, config.ratchet == Level::Required),
    ];
    let missing =
        expected.into_iter().filter(|(gate, required)| *required && !gates.iter().any(|g| g.gate == *gate));
    missing
        .map(|(gate, _)| {
            Finding::new(gate, "readiness", FailureClass::InsufficientEvidence, gate.to_string())
                .observed("required, and not decided")
                .hint("see why it did not run, and release again")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DESIGN section 7: required, and no evidence is INSUFFICIENT_EVIDENCE; a captured baseline is evidence.
    #[test]
    fn without_any_baseline_a_diff_is_no_evidence() {
        let blind = no_earlier("m", "r", false);
        assert_eq!(blind.failure_class, Some(FailureClass::InsufficientEvidence));
        assert!(blind.findings[0].hint.contains("day0 ready diff capture"));
        assert!(no_earlier("m", "r", true).pass);
        // Where nobody requires it, the release goes on.
        assert!(leveled(no_earlier("m", "r", false), Level::Advisory).pass);
    }

    #[test]
    fn checks_of_two_baselines_stay_apart() {
        let snapshot = Snapshot::default();
        let reports = ["accepted", "captured"]
            .map(|which| against(which, gate::diff::check(Some(&snapshot), &snapshot)));
        let both = merged(GateName::Diff, reports.into());
        for check in ["accepted.testFailures", "captured.testFailures", "captured.comparison"] {
            assert!(both.checks.contains_key(check), "{check}");
        }
    }
}

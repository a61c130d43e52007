//! The end of every run: `release.json` and `report.md`, whatever happened.

use std::collections::BTreeMap;
use std::path::Path;

use super::arm::{ArmEngine, ArmName};
use super::conductor::Ending;
use super::config::{ConfigFile, Level, ReadinessConfig};
use super::graph::names;
use super::noise_units::is_measurable;
use super::preflight::Inputs;
use super::readiness::leveled;
use super::ready_units;
use super::run_dir::{RunDir, RunRecord};
use crate::base::digest::Digest;
use crate::base::json;
use crate::base::threads::Threads;
use crate::exec::RunSummary;
use crate::ready::integrity;
use crate::ready::lineage::{self, Attempt};
use crate::record::provenance::peak_memory_bytes;
use crate::record::release::{ReadinessRecord, ReleaseRecord, StageRecord};
use crate::record::serve::{ServeRecord, ServeSpeed};
use crate::record::{
    Failure, Finding, Folded, GateName, GateReport, Outcome, Provenance, SCHEMA_VERSION, Verdict, fold,
};
use crate::{gate, report};

/// Stages in order, with the node whose gate decides each.
fn stages() -> Vec<(&'static str, String)> {
    let mut stages = vec![("quantize", names::FINISH.to_owned()), ("scan", names::GATE_PTQ.to_owned())];
    for arm in ArmName::BOTH {
        stages.push((arm.serve_stage(), names::gate_serve(arm)));
    }
    for arm in ArmName::BOTH {
        stages.push((arm.eval_stage(), names::gate_run(arm)));
    }
    stages.push(("compare", names::GATE_COMPARE.to_owned()));
    stages.extend(ready_units::GATES.map(|gate| (gate.trim_start_matches("gate/"), gate.to_owned())));
    stages
}

/// Closes a run that never started because the request is impossible.
pub fn infeasible(run: &RunDir, inputs: &Inputs, failure: &Failure) -> Result<Ending, Failure> {
    let finding = finding_of("quantize", failure);
    write(run, inputs, &RunSummary::default(), vec![finding])
}

/// Closes a run from what its units left.
pub fn close(run: &RunDir, inputs: &Inputs, summary: &RunSummary) -> Result<Ending, Failure> {
    let findings = summary.failure.iter().map(|(node, failure)| finding_of(node, failure)).collect();
    write(run, inputs, summary, findings)
}

/// Closes the run at `path`, whose inputs cannot be read here any more: all that is known is why.
pub fn unreadable(path: &Path, threads: Threads, failure: &Failure) -> Result<Ending, Failure> {
    let run = RunDir::planned(path);
    let config = ConfigFile::read(&run.config()).and_then(ConfigFile::validate).ok();
    let (model, recipe, suites) = config.map_or_else(Default::default, |c| (c.model, c.recipe, c.suites));
    let identity: Option<RunRecord> = json::read(&run.join("run.json")).ok();
    let findings = vec![finding_of("inputs", failure)];
    let folded = fold(&findings);
    let mut provenance = Provenance::new(threads);
    provenance.timing.started_at = crate::base::clock::now_iso8601();
    let record = ReleaseRecord {
        schema_version: SCHEMA_VERSION,
        run_id: identity.map_or_else(String::new, |identity| identity.run_id),
        verdict: folded.outcome.verdict(),
        failure_class: folded.failure_class,
        detail: folded.detail.clone(),
        recommendation: recommendation(&folded, &recipe, &run, &[]),
        model,
        recipe,
        suites,
        stages: Vec::new(),
        gates: Vec::new(),
        findings,
        readiness: Vec::new(),
        not_tested: Vec::new(),
        speed: BTreeMap::new(),
        baseline_reused: false,
        execution: super::execution::execution(&run).unwrap_or_default(),
        artifacts: BTreeMap::new(),
        provenance,
    };
    store(&run, record, folded.outcome)
}

/// What a stage that could not run means for the release.
fn finding_of(node: &str, failure: &Failure) -> Finding {
    let finding =
        Finding::new(GateName::Release, "stage", failure.class, node).observed(failure.message.clone());
    match &failure.hint {
        Some(hint) => finding.hint(hint.clone()),
        None => finding,
    }
}

fn write(run: &RunDir, inputs: &Inputs, summary: &RunSummary, own: Vec<Finding>) -> Result<Ending, Failure> {
    let mut gates = gates(summary);
    let config = &inputs.config.readiness;
    let compared = gates.iter().any(|g| g.gate == GateName::Compare && g.pass);
    let undecided = if compared { ready_units::undecided(config, &gates) } else { Vec::new() };
    let mut findings: Vec<Finding> =
        gates.iter().flat_map(|g| g.findings.clone()).chain(own).chain(undecided).collect();
    // A run that was closed before and resumed is open again: its old index names none of what came since.
    remove_index(run)?;
    if config.quality != Level::Off {
        let report = quality(run, config.quality, &gates, &findings)?;
        findings.extend(report.findings.clone());
        gates.push(report);
    }
    let folded = fold(&findings);
    let complete = summary.outputs.contains_key(names::GATE_COMPARE);
    // Without a finding and without a comparison something was skipped that nobody noticed: never ACCEPT.
    let folded = if folded.outcome.is_accept() && !complete { incomplete() } else { folded };
    let readiness = readiness(config, &gates);
    let identity: RunRecord = json::read(&run.join("run.json"))?;
    let mut record = ReleaseRecord {
        schema_version: SCHEMA_VERSION,
        run_id: identity.run_id,
        model: inputs.config.model.clone(),
        recipe: inputs.recipe.name.clone(),
        suites: inputs.config.suites.clone(),
        verdict: folded.outcome.verdict(),
        failure_class: folded.failure_class,
        detail: folded.detail.clone(),
        recommendation: recommendation(&folded, &inputs.recipe.name, run, &gates),
        stages: stage_records(summary, &inputs.config.readiness),
        gates,
        findings,
        readiness,
        not_tested: not_tested(inputs),
        speed: speeds(summary),
        baseline_reused: summary.reused.iter().any(|n| n.starts_with("score/baseline")),
        execution: super::execution::execution(run)?,
        artifacts: artifacts(run.path())?,
        provenance: provenance(inputs, summary),
    };
    record.findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    store(run, record, folded.outcome)
}

/// Writes `report.md` and, last, `release.json`.
fn store(run: &RunDir, record: ReleaseRecord, outcome: Outcome) -> Result<Ending, Failure> {
    let text = report::release(&record, &flipped_texts(&record, run)?);
    let report_path = run.join("report.md");
    crate::base::atomic::write(&report_path, text.as_bytes())
        .map_err(|e| Failure::io(report_path.display(), &e))?;
    json::write(&run.join("release.json"), &record)?;
    let verdict = outcome.verdict().map_or_else(|| "no verdict".into(), |v| v.to_string());
    run.event("closed", "release", &verdict);
    Ok(Ending::Closed { record: Box::new(record), outcome, run: run.path().to_path_buf() })
}

fn remove_index(run: &RunDir) -> Result<(), Failure> {
    let path = run.join("release.json");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(path.display(), &error))
        }
        _ => Ok(()),
    }
}

/// The gate `quality`, on everything found so far and on the run directory itself.
fn quality(
    run: &RunDir,
    level: Level,
    gates: &[GateReport],
    findings: &[Finding],
) -> Result<GateReport, Failure> {
    let attempt = Attempt { findings, gates, verdict: fold(findings).outcome.verdict() };
    let integrity = integrity::examine(run.path())?;
    let report = leveled(gate::quality::decide(&lineage::state(&[attempt]), Some(&integrity)), level);
    json::write(&run.join("gates/quality.json"), &report)?;
    Ok(report)
}

/// One line a readiness gate for people.
fn readiness(config: &ReadinessConfig, gates: &[GateReport]) -> Vec<ReadinessRecord> {
    let records = config.levels().into_iter().map(|(name, level)| {
        // The round trip is a family of the gate `repro`.
        let gate = if name == "roundtrip" { "repro" } else { name };
        let report = gates.iter().find(|g| g.gate.to_string() == gate).filter(|_| level != Level::Off);
        let (result, detail) = match report {
            None => ("not run".to_owned(), String::new()),
            Some(report) => {
                let own = |f: &&Finding| (name == "roundtrip") == f.check.starts_with("roundtrip.");
                let mine = report.findings.iter().filter(|f| gate != "repro" || own(f));
                let (broken, notes) =
                    mine.fold((0, 0), |(b, n), f| if f.decides() { (b + 1, n) } else { (b, n + 1) });
                let result = match (broken, notes) {
                    (0, 0) => "pass".to_owned(),
                    (0, notes) => format!("pass with {notes} note(s)"),
                    (broken, _) => format!("**fail**: {broken} finding(s)"),
                };
                (result, report.detail.clone())
            }
        };
        let level = serde_json::to_value(level).ok().and_then(|v| v.as_str().map(str::to_owned));
        ReadinessRecord { gate: name.to_owned(), level: level.unwrap_or_default(), result, detail }
    });
    records.collect()
}

/// Texts of the flipped items that the report shows.
fn flipped_texts(record: &ReleaseRecord, run: &RunDir) -> Result<report::Texts, Failure> {
    let Some(compare) = record.gates.iter().find(|gate| gate.gate == GateName::Compare) else {
        return Ok(report::Texts::new());
    };
    let dir = run.join("eval/baseline");
    let shown = report::shown_flips(compare, report::SHOWN_FLIPS);
    let texts = shown.into_iter().filter(|(_, ids)| !ids.is_empty()).map(|(task, ids)| {
        let texts = crate::eval::item_texts(&dir, &task, &ids)?;
        Ok((task, texts))
    });
    texts.collect()
}

fn incomplete() -> Folded {
    let class = crate::record::FailureClass::Unknown;
    fold(&[Finding::new(GateName::Release, "complete", class, "release")
        .observed("the chain did not reach the compare gate")])
}

/// Reports of all gates that ran, in order. The gate after scoring replaces the one before it.
fn gates(summary: &RunSummary) -> Vec<GateReport> {
    let mut order = vec![names::GATE_PTQ.to_owned()];
    for arm in ArmName::BOTH {
        let end = names::gate_serve_end(arm);
        order.push(if summary.outputs.contains_key(&end) { end } else { names::gate_serve(arm) });
    }
    order.extend(ArmName::BOTH.map(names::gate_run));
    order.push(names::GATE_COMPARE.to_owned());
    order.extend(ready_units::GATES.map(str::to_owned));
    order.iter().filter_map(|name| summary.output(name)).collect()
}

fn stage_records(summary: &RunSummary, config: &ReadinessConfig) -> Vec<StageRecord> {
    let asked = |stage: &str| match stage {
        "qa" => config.qa != Level::Off,
        "diff" => config.diff != Level::Off,
        "ratchet" => config.ratchet != Level::Off && config.ratchet_file.is_file(),
        _ => true,
    };
    stages()
        .into_iter()
        .filter(|(stage, _)| asked(stage))
        .map(|(stage, node)| {
            let done =
                summary.outputs.get(&node).is_some_and(|output| ready_units::not_run(output).is_none());
            let report: Option<GateReport> = summary.output(&node);
            StageRecord {
                stage: stage.to_owned(),
                verdict: report.and_then(|r| r.verdict),
                skipped: if done { String::new() } else { "an earlier stage ended the chain".to_owned() },
                elapsed_s: summary.stage_seconds.get(stage).copied().unwrap_or(0.0),
            }
        })
        .collect()
}

/// How fast the arms are, baseline and candidate.
fn speeds(summary: &RunSummary) -> BTreeMap<String, ServeSpeed> {
    let of = |arm: ArmName| summary.output::<ServeRecord>(&names::serve_end(arm))?.speed;
    ArmName::BOTH.into_iter().filter_map(|arm| Some((arm.to_string(), of(arm)?))).collect()
}

/// May the checkpoint be published? One sentence.
fn recommendation(folded: &Folded, recipe: &str, run: &RunDir, gates: &[GateReport]) -> String {
    let compare = gates.iter().find(|gate| gate.gate == GateName::Compare);
    let tasks = compare.map_or(0, report::decided);
    match folded.outcome {
        Outcome::Verdict(Verdict::Accept) => {
            format!("Publish: {recipe} is within the margin of the original on all {tasks} tasks.")
        }
        Outcome::Verdict(Verdict::Regression) => {
            format!("Do not publish: {recipe} is shown to be worse than the margin allows.")
        }
        Outcome::Verdict(Verdict::Anomalous) => {
            "Do not publish yet: the evidence cannot be trusted or is not enough.".to_owned()
        }
        Outcome::Verdict(Verdict::Infeasible) => {
            format!("Do not publish: {recipe} cannot be made or served for this model as asked.")
        }
        Outcome::Transient => {
            format!("No answer yet: resume with `day0 release --resume {}`.", run.path().display())
        }
    }
}

/// What this release does not say anything about.
fn not_tested(inputs: &Inputs) -> Vec<String> {
    let mut list = vec![
        "generation quality: only log-likelihood tasks ran".to_owned(),
        "other engines, devices and tensor-parallel layouts than the one named in the records".to_owned(),
    ];
    let off = inputs.config.readiness.levels().into_iter().filter(|(_, level)| *level == Level::Off);
    let off: Vec<&str> = off.map(|(gate, _)| gate).collect();
    if !off.is_empty() {
        list.push(format!("readiness gates that are off: {}", off.join(", ")));
    }
    if let Some(limit) = inputs.config.limit {
        list.push(format!("all items but {limit} a task (--limit)"));
    }
    if inputs.config.noise_floor && !is_measurable(&inputs.engines[ArmName::Baseline as usize]) {
        list.push("the noise floor: this machine has one kernel path only".to_owned());
    }
    if inputs.gpus().is_some() {
        list.push("repetition on the GPU: the readiness gates compute on the CPU".to_owned());
    }
    if inputs.engines.iter().any(|e| matches!(e, ArmEngine::Endpoint { .. })) {
        list.push("identity of the declared endpoint: declared, not proven".to_owned());
    }
    list
}

/// Digests of the run's artifacts. JSON is hashed without what differs between two runs on the same inputs.
fn artifacts(run: &Path) -> Result<BTreeMap<String, Digest>, Failure> {
    let mut found = BTreeMap::new();
    let mut open = vec![run.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| Failure::io(dir.display(), &e))? {
            let path = entry.map_err(|e| Failure::io(dir.display(), &e))?.path();
            let name = path.strip_prefix(run).unwrap_or(&path).display().to_string();
            if path.is_dir() {
                open.push(path);
            } else if !integrity::is_unindexed(&name) {
                found.insert(name, artifact_digest(&path)?);
            }
        }
    }
    Ok(found)
}

/// Keys whose values are times, places or process details.
const VOLATILE: [&str; 17] = [
    "process",
    "threads",
    "execution",
    "timing",
    "setup_s",
    "steps_s",
    "elapsed_s",
    "sync_s",
    "speed",
    "device_seconds",
    "url",
    "date",
    "start_time",
    "end_time",
    "total_evaluation_time_seconds",
    "command",
    "log_excerpt",
];

fn artifact_digest(path: &Path) -> Result<Digest, Failure> {
    if path.extension().is_some_and(|e| e == "json")
        && !path.components().any(|c| c.as_os_str() == "checkpoint")
    {
        let mut value: serde_json::Value = json::read(path)?;
        remove_volatile(&mut value);
        return Digest::of_json(&value).map_err(|e| Failure::config(format!("{}: {e}", path.display())));
    }
    Digest::of_file(path).map_err(|e| Failure::io(path.display(), &e))
}

/// Removes everything that differs between two runs on the same inputs.
pub fn remove_volatile(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|key, _| !VOLATILE.contains(&key.as_str()));
            map.values_mut().for_each(remove_volatile);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_volatile),
        _ => {}
    }
}

fn provenance(inputs: &Inputs, summary: &RunSummary) -> Provenance {
    let mut provenance = inputs.provenance();
    provenance.timing.started_at = crate::base::clock::now_iso8601();
    provenance.timing.elapsed_s = summary.stage_seconds.values().sum();
    provenance.timing.peak_memory_bytes = summary.peak_memory_bytes.max(peak_memory_bytes());
    provenance
}

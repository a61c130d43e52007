//! The gate itself: proof, evidence, policy, findings.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::evidence::{Path, TaskEvidence, Terms};
use super::options::{self, CompareOptions, Policy, Tier};
use super::policy::{certify, threshold};
use super::sample::Sample;
use super::sequential::{self, StopRule};
use super::wording::task_findings;
use super::{baseline, proof};
use crate::gate::findings::Collector;
use crate::gate::run;
use crate::record::eval::EvalRecord;
use crate::record::{FailureClass, GateName, GateReport};

/// Decides on two arms.
pub fn compare(baseline: &EvalRecord, candidate: &EvalRecord, options: &CompareOptions) -> GateReport {
    let mut out = Collector::new(GateName::Compare);
    run::collect(&mut out, baseline, "baseline.run.", options.imported);
    run::collect(&mut out, candidate, "candidate.run.", options.imported);
    let first = out.findings.len();
    proof::collect(&mut out, baseline, candidate);
    if options.across_engines {
        proof::excuse_engines(&mut out.findings[first..]);
    }
    let rules = rules(baseline, options);
    visits(&mut out, &rules, baseline, candidate);
    options::check(&mut out, options, baseline);
    record_checks(&mut out);
    if out.findings.iter().any(|f| f.decides() && f.failure_class != FailureClass::InsufficientEvidence) {
        plain_scores(&mut out, baseline, candidate);
        return out.report("");
    }
    let mut tasks = evidence(&mut out, baseline, candidate, options, &rules);
    if options.policy == Policy::Certify {
        certify(tasks.values_mut(), options.alpha);
    }
    for (name, task) in &tasks {
        let mut findings = task_findings(name, task, options.policy);
        findings.extend(baseline::above_chance(&baseline.tasks[*name], name, task, options.alpha));
        findings.extend(options.published.get(*name).and_then(|p| baseline::published(name, task, *p)));
        for finding in findings {
            out.add(if task.tier == Tier::Advisory { finding.as_note() } else { finding });
        }
    }
    baseline::unverified(&mut out, options, &tasks.keys().copied().collect::<Vec<_>>());
    for check in ["accuracy", "evidence", "gain", "baseline.chance", "baseline.published"] {
        out.check(check, json!({}));
    }
    out.check("policy", json!({"policy": options.policy, "alpha": options.alpha, "tasks": tasks.len()}));
    for (name, task) in &tasks {
        out.per_task.insert((*name).to_owned(), json!(task));
    }
    let margin = if options.policy == Policy::Certify { "shown to be within" } else { "within" };
    out.report(format!("all {} task(s) {margin} the margin", tasks.len()))
}

/// Under which rule each task could stop early.
fn rules(baseline: &EvalRecord, options: &CompareOptions) -> BTreeMap<String, StopRule> {
    options.stop_rules(baseline.tasks.iter().map(|(name, task)| (name.as_str(), &task.primary_metric, false)))
}

/// A task may leave items out only when a look decided it.
fn visits(
    out: &mut Collector,
    rules: &BTreeMap<String, StopRule>,
    baseline: &EvalRecord,
    candidate: &EvalRecord,
) {
    for (name, task) in &baseline.tasks {
        let other = candidate.tasks.get(name);
        if let Some((observed, expected)) =
            other.and_then(|other| sequential::fault(rules.get(name), task, other))
        {
            let check = "comparability.visit";
            let finding = out.finding(check, FailureClass::SampleAccountingFailed, name);
            out.add(finding.observed(observed).expected(expected));
        }
    }
}

/// What the checks before any judgement saw.
fn record_checks(out: &mut Collector) {
    for group in ["baseline.run", "candidate.run", "comparability", "options"] {
        let first = out.findings.iter().find(|f| f.check.starts_with(group) && f.decides());
        let first = first.map(ToString::to_string);
        out.check(group, json!({"first_finding": first}));
    }
}

/// The scores of arms that cannot be compared.
fn plain_scores(out: &mut Collector, baseline: &EvalRecord, candidate: &EvalRecord) {
    for (name, task) in &baseline.tasks {
        let other = candidate.tasks.get(name).and_then(run::weighted_mean);
        let scores = json!({
            "metric": task.primary_metric.name,
            "baseline": run::weighted_mean(task),
            "candidate": other,
            "verdict": Value::Null,
            "within_threshold": false,
        });
        out.per_task.insert(name.clone(), scores);
    }
}

/// Evidence of every task; under `threshold` already judged.
fn evidence<'a>(
    out: &mut Collector,
    baseline: &'a EvalRecord,
    candidate: &EvalRecord,
    options: &CompareOptions,
    rules: &BTreeMap<String, StopRule>,
) -> BTreeMap<&'a str, TaskEvidence> {
    let mut tasks = BTreeMap::new();
    for (name, task) in &baseline.tasks {
        let margin = options.margin_of(name, &task.primary_metric);
        let other = candidate.tasks.get(name);
        let sample = other.and_then(|other| Some((other, Sample::new(task, other, margin)?)));
        let Some((other, sample)) = sample else {
            // The proof compared the items already; this is the net below it.
            out.add(
                out.finding("evidence", FailureClass::InsufficientEvidence, name).observed("no paired items"),
            );
            continue;
        };
        let rule = rules.get(name).filter(|_| task.visit.is_some() && sample.exchangeable());
        let path = Path::of(rule, task, other);
        let terms = Terms { margin, tier: options.tier(name), alpha: options.alpha, path };
        let mut evidence = TaskEvidence::new(task, other, &sample, &terms);
        evidence.noise = options.noise.get(name).cloned();
        if options.policy == Policy::Threshold {
            threshold(&mut evidence, &sample);
        }
        tasks.insert(name.as_str(), evidence);
    }
    tasks
}

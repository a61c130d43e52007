//! The gate itself: proof, evidence, policy, findings.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::evidence::{Path, TaskEvidence, TaskVerdict, Terms};
use super::options::{self, CompareOptions, Policy, Tier};
use super::pairs::Pairs;
use super::policy::{certify, threshold};
use super::sample::Sample;
use super::sequential::{self, StopRule};
use super::subject::{Facts, Subject, TaskFacts};
use super::wording::task_findings;
use super::{baseline, proof};
use crate::base::stats::{Alpha, benjamini_hochberg};
use crate::gate::findings::Collector;
use crate::gate::run;
use crate::record::eval::{EvalRecord, GroupRecord, NoiseFloor};
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Decides on two arms.
pub fn compare(baseline: &EvalRecord, candidate: &EvalRecord, options: &CompareOptions) -> GateReport {
    let mut out = Collector::new(GateName::Compare);
    run::collect(&mut out, baseline, "baseline.run.", options.imported);
    run::collect(&mut out, candidate, "candidate.run.", options.imported);
    let first = out.findings.len();
    proof::collect(&mut out, baseline, candidate, options);
    if options.across_engines {
        proof::excuse_engines(&mut out.findings[first..]);
    }
    let facts: Facts<'_> =
        baseline.tasks.iter().map(|(name, task)| (name.as_str(), TaskFacts::of(task))).collect();
    let subjects = options.subjects(&common_groups(baseline, candidate), &facts);
    let rules = options.stop_rules(&subjects, &facts);
    visits(&mut out, &subjects, &rules, baseline, candidate);
    options::check(&mut out, options, baseline, &subjects);
    record_checks(&mut out);
    if out.findings.iter().any(|f| f.decides() && f.failure_class != FailureClass::InsufficientEvidence) {
        plain_scores(&mut out, baseline, candidate);
        return out.report("");
    }
    let mut judged = judge(&mut out, &subjects, &rules, baseline, candidate, options);
    if options.policy == Policy::Certify {
        let (parts, deciding): (Vec<_>, Vec<_>) =
            judged.iter_mut().map(|(.., e)| e).partition(|e| e.part_of.is_some());
        certify(deciding, options.alpha);
        certify(parts, options.alpha);
    }
    for (subject, pairs, evidence) in &judged {
        for finding in findings(&subject.name, pairs, evidence, options) {
            let decides = subject.decides() && evidence.tier == Tier::Required;
            out.add(if decides { finding } else { finding.as_note() });
        }
    }
    for finding in where_it_hurts(judged.iter().map(|(subject, _, evidence)| (*subject, evidence))) {
        out.add(finding.as_note());
    }
    let deciding: Vec<&str> =
        judged.iter().filter(|(s, ..)| s.decides()).map(|(s, ..)| s.name.as_str()).collect();
    baseline::unverified(&mut out, options, &deciding);
    for check in ["accuracy", "evidence", "gain", "baseline.chance", "baseline.published"] {
        out.check(check, json!({}));
    }
    out.check("policy", json!({"policy": options.policy, "alpha": options.alpha, "tasks": deciding.len()}));
    let margin = if options.policy == Policy::Certify { "shown to be within" } else { "within" };
    let accepted = format!("all {} task(s) {margin} the margin", deciding.len());
    for (subject, _, mut evidence) in judged {
        if !subject.decides() {
            // The path of a part is the group's.
            evidence.looks.clear();
        }
        out.per_task.insert(subject.name.clone(), json!(evidence));
    }
    out.report(accepted)
}

/// A subject, its items and what they show.
type Judged<'a> = (&'a Subject, Pairs<'a>, TaskEvidence);

/// Evidence of every subject; under `threshold` already judged.
fn judge<'a>(
    out: &mut Collector,
    subjects: &'a [Subject],
    rules: &BTreeMap<String, StopRule>,
    baseline: &'a EvalRecord,
    candidate: &'a EvalRecord,
    options: &CompareOptions,
) -> Vec<Judged<'a>> {
    let mut judged = Vec::new();
    for subject in subjects {
        let pairs = Pairs::of(subject, baseline, candidate);
        let parts = subjects.iter().filter(|other| other.part_of == subject.part_of).count();
        let rule = match &subject.part_of {
            None => rules.get(&subject.name).copied(),
            Some(group) => rules.get(group).map(|rule| StopRule { tests: parts, ..*rule }),
        };
        match pairs.and_then(|pairs| Some((evidence(subject, &pairs, options, rule)?, pairs))) {
            Some((evidence, pairs)) => judged.push((subject, pairs, evidence)),
            None if subject.decides() => {
                // The proof compared the items already; this is the net below it.
                let finding = out.finding("evidence", FailureClass::InsufficientEvidence, &subject.name);
                out.add(finding.observed("no paired items that can be judged"));
            }
            None => {}
        }
    }
    judged
}

/// Groups that both arms have alike. Where they differ, each task is decided by itself, which is stricter.
fn common_groups(baseline: &EvalRecord, candidate: &EvalRecord) -> BTreeMap<String, GroupRecord> {
    let same = |(name, group): &(&String, &GroupRecord)| candidate.groups.get(*name) == Some(*group);
    baseline.groups.iter().filter(same).map(|(name, group)| (name.clone(), group.clone())).collect()
}

/// A subject may leave items out only when a look decided it.
fn visits(
    out: &mut Collector,
    subjects: &[Subject],
    rules: &BTreeMap<String, StopRule>,
    baseline: &EvalRecord,
    candidate: &EvalRecord,
) {
    for subject in subjects.iter().filter(|subject| subject.decides()) {
        let Some(pairs) = Pairs::of(subject, baseline, candidate) else { continue };
        if let Some((observed, expected)) = sequential::fault(rules.get(&subject.name), subject, &pairs) {
            let check = "comparability.visit";
            let finding = out.finding(check, FailureClass::SampleAccountingFailed, &subject.name);
            out.add(finding.observed(observed).expected(expected));
        }
    }
}

/// Which tasks of a group got worse at all, whatever the margin: where to look first. A list of discoveries, of which a
/// share of at most 5 % is false on average (Benjamini and Hochberg).
fn where_it_hurts<'a>(judged: impl Iterator<Item = (&'a Subject, &'a TaskEvidence)>) -> Vec<Finding> {
    let mut groups: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    for (subject, evidence) in judged.filter(|(subject, _)| !subject.pooled) {
        if let (Some(group), Some(p)) = (&subject.part_of, evidence.mcnemar_p) {
            groups.entry(group).or_default().push((subject.name.as_str(), p));
        }
    }
    let list = |(group, tasks): (&str, Vec<(&'a str, f64)>)| {
        let adjusted = benjamini_hochberg(&tasks.iter().map(|(_, p)| *p).collect::<Vec<f64>>());
        let worse: Vec<&str> = tasks
            .iter()
            .zip(adjusted)
            .filter(|(_, p)| *p <= Alpha::FIVE_PERCENT.value())
            .map(|((name, _), _)| *name)
            .collect();
        let finding = Finding::new(GateName::Compare, "alarm", FailureClass::AccuracyRegression, group);
        let observed = format!("{} of {} tasks got worse: {}", worse.len(), tasks.len(), worse.join(", "));
        (!worse.is_empty()).then(|| finding.observed(observed))
    };
    groups.into_iter().filter_map(list).collect()
}

/// Findings of one judged subject. A part is worth a word only where it got worse.
fn findings(
    name: &str,
    pairs: &Pairs<'_>,
    evidence: &TaskEvidence,
    options: &CompareOptions,
) -> Vec<Finding> {
    if evidence.part_of.is_some() {
        let worse = evidence.verdict == TaskVerdict::Regression;
        return if worse { task_findings(name, evidence, options.policy) } else { Vec::new() };
    }
    let mut findings = task_findings(name, evidence, options.policy);
    findings.extend(baseline::above_chance(pairs, name, evidence, options.alpha));
    findings.extend(options.published.get(name).and_then(|p| baseline::published(name, evidence, *p)));
    findings
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

/// Evidence of a subject; under `threshold` already judged. `None` without items that can be paired.
fn evidence(
    subject: &Subject,
    pairs: &Pairs<'_>,
    options: &CompareOptions,
    rule: Option<StopRule>,
) -> Option<TaskEvidence> {
    let margin = options.margin_of(&subject.name, pairs.metric());
    let sample = Sample::new(pairs, margin)?;
    let rule = rule.filter(|_| sample.exchangeable()).map(|rule| StopRule { margin: margin.value(), ..rule });
    let terms = Terms {
        margin,
        tier: options.tier(&subject.name),
        pooled: if subject.pooled { subject.tasks.clone() } else { Vec::new() },
        part_of: subject.part_of.clone(),
        alpha: options.alpha,
        path: Path::of(rule.as_ref(), pairs),
    };
    let mut evidence = TaskEvidence::new(pairs, &sample, &terms);
    evidence.noise = noise(subject, options);
    if options.policy == Policy::Threshold {
        threshold(&mut evidence, &sample);
    }
    Some(evidence)
}

/// The noise floor of a subject: of a group that of its tasks together.
fn noise(subject: &Subject, options: &CompareOptions) -> Option<NoiseFloor> {
    let of_tasks: Vec<&NoiseFloor> =
        subject.tasks.iter().filter_map(|task| options.noise.get(task)).collect();
    let items: usize = of_tasks.iter().map(|noise| noise.items).sum();
    let first = of_tasks.first()?;
    let weighted: f64 = of_tasks.iter().map(|noise| noise.mean_abs_dll * noise.items as f64).sum();
    Some(NoiseFloor {
        how: first.how.clone(),
        items,
        flips: of_tasks.iter().map(|noise| noise.flips).sum(),
        mean_abs_dll: weighted / items.max(1) as f64,
        max_abs_dll: of_tasks.iter().map(|noise| noise.max_abs_dll).fold(0.0, f64::max),
    })
}

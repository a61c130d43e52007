//! `gate_compare.py`: two files `{task: score}`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{number, shown};
use crate::gate::decimal::{Decimal, exceeds};
use crate::gate::findings::Collector;
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Highest score that is plausible on either scale.
const HIGHEST_SCORE: f64 = 100.0;

/// A gain above this fraction of the scale is more than quantization can explain.
const IMPLAUSIBLE_GAIN: f64 = 0.05;

/// Decides whether every task's drop is at most `threshold` of its scale, or of the baseline's score if `relative`.
///
/// A task's scale is the one in `scales` (`{task: scale}`), else 1 if both scores are within [0, 1], else 100; an
/// inferred scale is noted. Empty `scales` are none.
pub fn compare_summaries(
    baseline: &Value,
    candidate: &Value,
    threshold: f64,
    relative: bool,
    scales: Option<&Value>,
) -> GateReport {
    let mut out = Collector::new(GateName::Compare);
    if !(threshold.is_finite() && threshold >= 0.0) {
        out.add(config("threshold").observed(threshold.to_string()).expected("a finite number ≥ 0"));
    }
    let scales = read_scales(&mut out, scales);
    let arms = scores(&mut out, "baseline", baseline).zip(scores(&mut out, "candidate", candidate));
    let (Some((baseline, candidate)), true) = (arms, out.findings.is_empty()) else {
        return out.report("");
    };
    task_sets(&mut out, baseline, candidate);
    if !out.findings.is_empty() {
        return out.report("");
    }
    let mut inferred = Vec::new();
    for (task, score) in baseline {
        let rule = Rule { threshold, relative, scale: scales.get(task).and_then(Value::as_f64) };
        if rule.scale.is_none() {
            inferred.push(task.as_str());
        }
        let (seen, findings) = judge(task, score, &candidate[task], &rule);
        out.per_task.insert(task.clone(), seen);
        out.findings.extend(findings);
    }
    if !inferred.is_empty() {
        let note = finding("scale", FailureClass::UserConfigError, &inferred.join(", "));
        out.add(
            note.observed("scale inferred from the scores").hint("name the scales with --scales").as_note(),
        );
    }
    for check in ["scores", "accuracy", "gain"] {
        out.check(check, json!({"threshold": threshold, "relative": relative}));
    }
    out.report(format!("all {} task(s) within threshold {threshold}", baseline.len()))
}

/// How one task is judged.
struct Rule {
    threshold: f64,
    relative: bool,
    scale: Option<f64>,
}

fn finding(check: &str, class: FailureClass, subject: &str) -> Finding {
    Finding::new(GateName::Compare, check, class, subject)
}

fn config(subject: &str) -> Finding {
    finding("input", FailureClass::UserConfigError, subject)
}

/// Scales as an object of positive finite numbers; a finding otherwise.
fn read_scales(out: &mut Collector, scales: Option<&Value>) -> Map<String, Value> {
    let positive = |value: &Value| number(Some(value)).is_some_and(|scale| scale > 0.0);
    match scales {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Array(list)) if list.is_empty() => Map::new(),
        Some(Value::Object(scales)) if scales.values().all(positive) => scales.clone(),
        Some(other) => {
            let expected = "{task: positive finite number}";
            out.add(config("scales").observed(other.to_string()).expected(expected));
            Map::new()
        }
    }
}

fn scores<'a>(out: &mut Collector, arm: &str, scores: &'a Value) -> Option<&'a Map<String, Value>> {
    let found = scores.as_object();
    if found.is_none() {
        out.add(config(arm).observed(scores.to_string()).expected("{task: score}"));
    }
    found
}

fn task_sets(out: &mut Collector, baseline: &Map<String, Value>, candidate: &Map<String, Value>) {
    let names = |scores: &Map<String, Value>| scores.keys().cloned().collect::<BTreeSet<String>>();
    let (a, b) = (names(baseline), names(candidate));
    let missing: Vec<&str> = a.symmetric_difference(&b).map(String::as_str).collect();
    if !missing.is_empty() {
        out.add(
            finding("tasks", FailureClass::SampleAccountingFailed, &missing.join(", "))
                .observed("task sets differ; missing on one side")
                .expected("the same tasks on both sides"),
        );
    } else if baseline.is_empty() {
        out.add(config("baseline").observed("no tasks to compare"));
    }
}

fn judge(task: &str, baseline: &Value, candidate: &Value, rule: &Rule) -> (Value, Vec<Finding>) {
    let valid = |score: &Value| number(Some(score)).filter(|score| (0.0..=HIGHEST_SCORE).contains(score));
    let mut findings = Vec::new();
    for (arm, score) in [("baseline", baseline), ("candidate", candidate)] {
        if valid(score).is_none() {
            findings.push(
                finding("scores", FailureClass::Unknown, task)
                    .observed(format!("{arm} score {}", shown(Some(score))))
                    .expected("a finite number in [0, 100]"),
            );
        }
    }
    let Some((b, c)) = valid(baseline).zip(valid(candidate)) else {
        let seen =
            json!({"baseline": baseline, "candidate": candidate, "drop": null, "within_threshold": false});
        return (seen, findings);
    };
    let scale = rule.scale.unwrap_or(if b <= 1.0 && c <= 1.0 { 1.0 } else { HIGHEST_SCORE });
    let unit = if rule.relative { b } else { scale };
    let [high, low, decimal_scale] = [b, c, scale].map(Decimal::of);
    let undefined = rule.relative && b == 0.0;
    let within = !undefined && !exceeds(high, low, Decimal::of(rule.threshold), Decimal::of(unit));
    let drop_fraction = (!undefined).then(|| (b - c) / unit);
    let observed = format!("{b} to {c}");
    if undefined {
        findings.push(
            finding("accuracy", FailureClass::Unknown, task)
                .observed("a baseline of 0 has no relative drop")
                .hint("judge this task by an absolute threshold"),
        );
    } else if !within {
        let of = if rule.relative { "the baseline" } else { "the scale" };
        findings.push(
            finding("accuracy", FailureClass::AccuracyRegression, task)
                .observed(&observed)
                .expected(format!("a drop of at most {} of {of}", rule.threshold)),
        );
    }
    if exceeds(low, high, Decimal::of(IMPLAUSIBLE_GAIN), decimal_scale) {
        findings.push(
            finding("gain", FailureClass::ImplausibleGain, task)
                .observed(&observed)
                .expected(format!("a gain of at most {IMPLAUSIBLE_GAIN} of scale {scale}")),
        );
    }
    let seen = json!({
        "baseline": b,
        "candidate": c,
        "drop": b - c,
        "drop_fraction": drop_fraction,
        "scale": scale,
        "within_threshold": within,
    });
    (seen, findings)
}

//! `gate_run.py`: a run summary.

use serde_json::{Value, json};

use super::words::is_judge_error;
use super::{number, shown};
use crate::gate::findings::Collector;
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// States of a run that is still to end (NeMo Evaluator resumes after a walltime TIMEOUT).
const NOT_TERMINAL: [&str; 4] = ["TIMEOUT", "RESUMING", "RUNNING", "PENDING"];

/// Upstream's precedence among the problems of a run, across its tasks.
const PRECEDENCE: [FailureClass; 5] = [
    FailureClass::EvalJudgeFailed,
    FailureClass::InfraTransient,
    FailureClass::SampleAccountingFailed,
    FailureClass::Unknown,
    FailureClass::UserConfigError,
];

/// Decides on `{tasks: {name: {status, expected_samples, scored_samples, score, errors}}}`.
///
/// One class decides, by upstream's precedence: the problems of other classes are usually its consequences (a run
/// that is still going has no score yet), and stay in the report as notes.
pub fn run_summary(summary: &Value) -> GateReport {
    let mut out = Collector::new(GateName::Run);
    let Some(tasks) = summary["tasks"].as_object().filter(|tasks| !tasks.is_empty()) else {
        out.add(
            finding("tasks", FailureClass::UserConfigError, "summary").observed("run summary has no tasks"),
        );
        return out.report("");
    };
    for (name, task) in tasks {
        let findings = problems(name, task);
        let reasons: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.check, f.observed)).collect();
        out.per_task.insert(name.clone(), json!({"ok": findings.is_empty(), "reasons": reasons}));
        out.findings.extend(findings);
    }
    let dominant =
        PRECEDENCE.into_iter().find(|class| out.findings.iter().any(|f| f.failure_class == *class));
    let all = out.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    out.findings = std::mem::take(&mut out.findings)
        .into_iter()
        .map(|f| if Some(f.failure_class) == dominant { f } else { f.as_note() })
        .collect();
    for check in ["status", "errors", "accounting", "score"] {
        out.check(check, json!({}));
    }
    let mut report = out.report(format!("all {} task(s) valid", tasks.len()));
    if !report.pass {
        report.detail = all;
    }
    report
}

fn finding(check: &str, class: FailureClass, subject: &str) -> Finding {
    Finding::new(GateName::Run, check, class, subject)
}

fn problems(name: &str, task: &Value) -> Vec<Finding> {
    if !task.is_object() {
        let found = finding("tasks", FailureClass::UserConfigError, name);
        return vec![found.observed(task.to_string()).expected("an object")];
    }
    [status(name, task), errors(name, task), accounting(name, task), score(name, task)]
        .into_iter()
        .flatten()
        .collect()
}

fn status(name: &str, task: &Value) -> Option<Finding> {
    let status = task["status"].as_str().unwrap_or_default();
    let class = match status {
        "SUCCESS" => return None,
        status if NOT_TERMINAL.contains(&status) => FailureClass::InfraTransient,
        _ => FailureClass::Unknown,
    };
    let observed = match class {
        FailureClass::InfraTransient => format!("{status}: not terminal yet"),
        _ => shown(task.get("status")),
    };
    Some(finding("status", class, name).observed(observed).expected("SUCCESS"))
}

fn errors(name: &str, task: &Value) -> Option<Finding> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let errors: Vec<String> = match &task["errors"] {
        Value::Null => Vec::new(),
        Value::Array(list) => list.iter().map(text).collect(),
        other => vec![text(other)],
    };
    let first = errors.iter().find(|error| is_judge_error(error));
    let class = if first.is_some() { FailureClass::EvalJudgeFailed } else { FailureClass::Unknown };
    let first = first.or(errors.first())?;
    let kind = if class == FailureClass::Unknown { "error" } else { "judge/auth error" };
    Some(finding("errors", class, name).observed(format!("{kind}: {first}")).expected("no errors"))
}

fn accounting(name: &str, task: &Value) -> Option<Finding> {
    let failure = finding("accounting", FailureClass::SampleAccountingFailed, name);
    for key in ["expected_samples", "scored_samples"] {
        if task[key].as_u64().is_none() {
            return Some(failure.observed(format!("{key} {}", shown(task.get(key)))).expected("a count"));
        }
    }
    let (expected, scored) = (&task["expected_samples"], &task["scored_samples"]);
    let complete = expected == scored && *expected != json!(0);
    (!complete).then(|| failure.observed(format!("scored {scored} of {expected} samples")))
}

fn score(name: &str, task: &Value) -> Option<Finding> {
    let failure = finding("score", FailureClass::SampleAccountingFailed, name);
    match task.get("score") {
        None | Some(Value::Null) => Some(failure.observed("no score")),
        score if number(score).is_none() => {
            Some(failure.observed(format!("score not numeric: {}", shown(score))))
        }
        _ => None,
    }
}

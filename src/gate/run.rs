//! Gate `run`: is one arm's evaluation complete and sane?
//!
//! Per task: the run is finished; expected = scored + explicitly failed + not needed once the task was decided (whether
//! it was is checked by gate `compare`), none failed; the split is whole or says why not; every score is finite; no
//! log-probability is clamped, positive or exactly zero where that cannot be; the primary metric is there and is what
//! its items say.
//!
//! A failed item is EVAL_JUDGE_FAILED when the endpoint refused (401, 403, 429), INFRA_TRANSIENT when a retry could
//! help, else SAMPLE_ACCOUNTING_FAILED.

use std::collections::BTreeSet;

use serde_json::json;

use super::findings::Collector;
use super::serve::is_refusal;
use crate::record::eval::{EvalRecord, ItemRecord, TaskRecord, TaskStatus};
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Log-probabilities at or below this are stand-ins for "not computed": vLLM clamps −inf to −9999.0
/// (vllm/entrypoints/openai/completion/serving.py).
const CLAMPED: f64 = -9999.0;

/// Log-probabilities above this are no rounding error of a probability ≤ 1.
const POSITIVE: f64 = 1e-3;

/// Nats a byte or word that no real text reaches; a long text may well sum to less than [`CLAMPED`].
const NATS_PER_UNIT: f64 = 100.0;

/// Relative difference between a reported metric and the mean of its items that rounding can explain.
const METRIC_TOLERANCE: f64 = 1e-6;

/// Decides on one arm's evaluation.
pub fn run(record: &EvalRecord) -> GateReport {
    let mut out = Collector::new(GateName::Run);
    collect(&mut out, record, "", false);
    for (name, task) in &record.tasks {
        let reasons: Vec<String> = out
            .findings
            .iter()
            .filter(|f| f.decides() && f.subject.split(' ').next() == Some(name))
            .map(ToString::to_string)
            .collect();
        let metric = task.metrics.get(&task.primary_metric.name);
        let evidence = json!({
            "ok": reasons.is_empty(),
            "reasons": reasons,
            "status": task.status,
            "expected_samples": task.expected,
            "scored_samples": task.scored(),
            "failed_samples": task.failed(),
            "not_needed_samples": task.not_needed(),
            "full_split": task.full_split,
            "limited_by": task.limited_by,
            "metric": task.primary_metric.name,
            "score": metric.map(|m| m.value),
            "stderr": metric.and_then(|m| m.stderr),
        });
        out.per_task.insert(name.clone(), evidence);
    }
    for check in ["schema", "status", "accounting", "finite", "log_probs", "metrics"] {
        out.check(check, json!({}));
    }
    out.report(format!("all {} task(s) valid", record.tasks.len())).about(&record.arm)
}

/// Adds the findings of one arm; `prefix` goes before the names of the checks. An `imported` run may have items without
/// log-likelihoods.
pub(super) fn collect(out: &mut Collector, record: &EvalRecord, prefix: &str, imported: bool) {
    let before = out.findings.len();
    out.require_schema(record.schema_version);
    if record.tasks.is_empty() {
        out.add(out.finding("status", FailureClass::UserConfigError, "run").observed("no tasks"));
    }
    for (name, task) in &record.tasks {
        status(out, name, task);
        accounting(out, name, task);
        items(out, name, task, imported);
        metrics(out, name, task);
    }
    for finding in &mut out.findings[before..] {
        finding.gate = out.gate;
        finding.check.insert_str(0, prefix);
    }
}

fn status(out: &mut Collector, name: &str, task: &TaskRecord) {
    match task.status {
        TaskStatus::Success => {}
        TaskStatus::Running => out.add(
            out.finding("status", FailureClass::InfraTransient, name)
                .observed(format!("not terminal yet: {} of {} items", task.items.len(), task.expected))
                .hint("resume the run"),
        ),
        // The items say why; without any, nobody knows.
        TaskStatus::Failed if task.failed() > 0 => {}
        TaskStatus::Failed => {
            out.add(out.finding("status", FailureClass::Unknown, name).observed("the task could not be run"));
        }
    }
}

fn accounting(out: &mut Collector, name: &str, task: &TaskRecord) {
    let failure = || out_of_accounting(name);
    let visited = task.items.len();
    let not_needed = task.not_needed();
    let distinct: BTreeSet<usize> = task.items.iter().map(|item| item.doc_id).collect();
    // An unfinished run misses items because it is unfinished.
    if task.status != TaskStatus::Running && visited + not_needed != task.expected {
        let left_out = if not_needed > 0 { format!(", {not_needed} not needed") } else { String::new() };
        out.add(
            failure()
                .observed(format!("{} scored, {} failed{left_out}", task.scored(), task.failed()))
                .expected(format!("{} items", task.expected)),
        );
    }
    if task.expected == 0 {
        out.add(failure().observed("no items expected"));
    }
    if distinct.len() != visited {
        out.add(failure().observed(format!("{visited} items, {} of them distinct", distinct.len())));
    }
    if let Some(visit) = &task.visit {
        let order: BTreeSet<usize> = visit.order.iter().copied().collect();
        // Between two looks at a group there may be no item of this task.
        let ascends = |a: usize, b: usize| a < b || (a == b && visit.group.is_some());
        let ascending = visit.looks.windows(2).all(|pair| ascends(pair[0], pair[1]));
        if order != distinct
            || visit.order.len() != visited
            || !ascending
            || visit.looks.last() != Some(&visited)
        {
            out.add(
                failure()
                    .observed(format!("{} items in the order of visit", visit.order.len()))
                    .expected(format!("the {visited} items, each once, up to the last look")),
            );
        }
    }
    if task.expected > task.full_split || (task.limited_by.is_empty() && task.expected != task.full_split) {
        out.add(
            failure()
                .observed(format!("{} items expected without a declared limit", task.expected))
                .expected(format!("the {} items of the split", task.full_split)),
        );
    }
    if task.truncated > 0 {
        out.add(
            failure()
                .observed(format!(
                    "{} of {visited} items have a context that was cut on the left to fit the model's input",
                    task.truncated
                ))
                .as_note(),
        );
    }
    let failed = task.items.iter().filter_map(|item| Some((item, item.error.as_ref()?)));
    let findings = failed.map(|(item, error)| {
        let class = match error {
            error if is_refusal(error.status) => FailureClass::EvalJudgeFailed,
            error if error.transient => FailureClass::InfraTransient,
            _ => FailureClass::SampleAccountingFailed,
        };
        let status = error.status.map_or_else(String::new, |status| format!("status {status}: "));
        Finding::new(GateName::Run, "accounting", class, format!("{name} item {}", item.doc_id))
            .observed(format!("failed: {status}{}", error.message))
    });
    out.add_list(findings.collect());
}

fn out_of_accounting(name: &str) -> Finding {
    Finding::new(GateName::Run, "accounting", FailureClass::SampleAccountingFailed, name)
}

fn items(out: &mut Collector, name: &str, task: &TaskRecord, imported: bool) {
    let judged = |item: &&ItemRecord| item.error.is_none() && !(imported && item.loglikelihoods.is_empty());
    let scored: Vec<&ItemRecord> = task.items.iter().filter(judged).collect();
    for (check, fault) in [("finite", not_finite as ItemCheck), ("log_probs", bad_log_probs)] {
        let findings = scored.iter().filter_map(|item| {
            let observed = fault(item, task)?;
            let subject = format!("{name} item {}", item.doc_id);
            let class = FailureClass::SampleAccountingFailed;
            Some(Finding::new(GateName::Run, check, class, subject).observed(observed))
        });
        out.add_list(findings.collect());
    }
    let mut all = scored.iter().flat_map(|item| &item.loglikelihoods);
    if let Some(first) = all.next().filter(|_| scored.len() > 1)
        && all.all(|l| l == first)
    {
        out.add(
            out.finding("log_probs", FailureClass::SampleAccountingFailed, name)
                .observed(format!("every log-likelihood is {first}"))
                .hint("the endpoint does not return prompt log-probs; run the self-test"),
        );
    }
}

/// What is wrong with one scored item, if anything.
type ItemCheck = fn(&ItemRecord, &TaskRecord) -> Option<String>;

fn not_finite(item: &ItemRecord, task: &TaskRecord) -> Option<String> {
    let metric = &task.primary_metric.name;
    match () {
        () if item.loglikelihoods.is_empty() => Some("no log-likelihood".to_owned()),
        () if item.loglikelihoods.len() != item.is_greedy.len() => {
            let (lls, greedy) = (item.loglikelihoods.len(), item.is_greedy.len());
            Some(format!("{lls} log-likelihoods but {greedy} greedy flags"))
        }
        () if !item.loglikelihoods.iter().all(|l| l.is_finite()) => {
            Some("a log-likelihood that is not finite".to_owned())
        }
        () if !(item.weight.is_finite() && item.weight > 0.0) => Some(format!("weight {}", item.weight)),
        () => match item.values.get(metric) {
            None => Some(format!("no value of {metric}")),
            Some(value) if !value.is_finite() => Some(format!("{metric} is {value}")),
            Some(_) => None,
        },
    }
}

fn bad_log_probs(item: &ItemRecord, task: &TaskRecord) -> Option<String> {
    // One request weighted by its length, of a metric without a scale: a text whose log-likelihood grows with it.
    let long_text = task.primary_metric.scale.is_none() && item.loglikelihoods.len() == 1;
    let clamped = |l: &f64| *l <= CLAMPED && (!long_text || -l > NATS_PER_UNIT * item.weight);
    let zero = |l: &f64| *l == 0.0;
    match () {
        () if item.loglikelihoods.iter().any(clamped) => Some("a clamped log-probability".to_owned()),
        () if item.loglikelihoods.iter().any(|l| *l > POSITIVE) => {
            Some("a positive log-probability".to_owned())
        }
        // A single sure token may round to probability 1; several choices at once, or a whole text, cannot.
        () if item.loglikelihoods.iter().all(zero) && (item.loglikelihoods.len() > 1 || long_text) => {
            Some("log-likelihoods of exactly zero".to_owned())
        }
        () => None,
    }
}

fn metrics(out: &mut Collector, name: &str, task: &TaskRecord) {
    let metric = &task.primary_metric;
    let failure = || Finding::new(GateName::Run, "metrics", FailureClass::SampleAccountingFailed, name);
    // A group that was decided early may not have come to an item of this task.
    let unvisited = task.items.is_empty() && task.not_needed() > 0;
    let Some(reported) = task.metrics.get(&metric.name) else {
        if task.status == TaskStatus::Success && !unvisited {
            out.add(failure().observed(format!("no score for {}", metric.name)));
        }
        return;
    };
    if !reported.value.is_finite() {
        out.add(failure().observed(format!("{} is {}", metric.name, reported.value)));
        return;
    }
    // With failed items there is no metric to check, and the run fails anyway.
    if task.failed() == 0 && aggregation(task).is_none() {
        let mean = weighted_mean(task).map_or_else(|| "no number".to_owned(), |mean| mean.to_string());
        out.add(
            failure()
                .observed(format!("{} reported as {}", metric.name, reported.value))
                .expected(format!("what its items say, whose mean is {mean}")),
        );
    }
}

/// How a metric follows from its items' values and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregation {
    /// Weighted mean: accuracies, bits per byte.
    Mean,
    /// exp of the weighted mean: perplexities, whose items hold negative log-likelihoods.
    ExpMean,
}

/// The aggregation that gives the reported value of the primary metric; `None` if neither does. Bounded metrics are
/// means.
pub(super) fn aggregation(task: &TaskRecord) -> Option<Aggregation> {
    let metric = &task.primary_metric;
    let reported = task.metrics.get(&metric.name)?.value;
    let mean = weighted_mean(task)?;
    let is = |value: f64| (value - reported).abs() <= METRIC_TOLERANCE * value.abs().max(1.0);
    match () {
        () if is(mean) => Some(Aggregation::Mean),
        () if metric.scale.is_none() && is(mean.exp()) => Some(Aggregation::ExpMean),
        () => None,
    }
}

/// Mean of the primary metric over the scored items, by their weights; `None` without items or values.
pub(super) fn weighted_mean(task: &TaskRecord) -> Option<f64> {
    let scored = task.items.iter().filter(|item| item.error.is_none());
    let (mut sum, mut weights) = (0.0, 0.0);
    for item in scored {
        sum += item.weight * item.values.get(&task.primary_metric.name)?;
        weights += item.weight;
    }
    (weights > 0.0).then_some(sum / weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::fixtures::{accuracy_arm, failed_item, perplexity_arm};
    use crate::record::{Outcome, Verdict};

    fn class(change: impl FnOnce(&mut TaskRecord)) -> Option<FailureClass> {
        let mut record = accuracy_arm("baseline", &[1.0; 20]);
        change(record.tasks.get_mut("task").unwrap());
        run(&record).failure_class
    }

    const ACCOUNTING: Option<FailureClass> = Some(FailureClass::SampleAccountingFailed);

    #[test]
    fn a_complete_run_passes() {
        let report = run(&accuracy_arm("baseline", &[1.0, 0.0, 1.0]));
        assert_eq!(report.verdict, Some(Verdict::Accept), "{}", report.detail);
        assert_eq!(report.per_task["task"]["scored_samples"], json!(3));
        assert_eq!(report.per_task["task"]["ok"], json!(true));
        assert_eq!(report.subject, "baseline");
        assert!(run(&perplexity_arm("baseline", &[1.5, 1.6])).pass);
    }

    #[test]
    fn no_tasks_is_a_configuration_error() {
        let mut record = accuracy_arm("baseline", &[1.0]);
        record.tasks.clear();
        assert_eq!(run(&record).failure_class, Some(FailureClass::UserConfigError));
    }

    #[test]
    fn contexts_that_were_cut_are_noted() {
        let mut record = accuracy_arm("baseline", &[1.0, 0.0, 1.0]);
        record.tasks.get_mut("task").unwrap().truncated = 2;
        let report = run(&record);
        assert!(report.pass, "{}", report.detail);
        assert!(
            report
                .findings
                .iter()
                .any(|f| !f.decides() && f.observed.starts_with("2 of 3 items have a context"))
        );
    }

    #[test]
    fn an_unfinished_run_is_transient() {
        let mut record = accuracy_arm("baseline", &[1.0; 20]);
        let task = record.tasks.get_mut("task").unwrap();
        task.status = TaskStatus::Running;
        task.items.truncate(7);
        assert_eq!(run(&record).outcome(), Outcome::Transient);
        assert_eq!(run(&record).failure_class, Some(FailureClass::InfraTransient));
    }

    #[test]
    fn a_failed_task_without_a_reason_is_unknown() {
        assert_eq!(class(|t| t.status = TaskStatus::Failed), Some(FailureClass::Unknown));
    }

    #[test]
    fn every_item_is_accounted_for() {
        assert_eq!(class(|t| drop(t.items.pop())), ACCOUNTING);
        assert_eq!(class(|t| t.items[3].doc_id = 2), ACCOUNTING);
        assert_eq!(class(|t| t.full_split = 21), ACCOUNTING);
        assert_eq!(class(|t| t.full_split = 19), ACCOUNTING);
        let declared = |t: &mut TaskRecord| {
            t.full_split = 4000;
            t.limited_by = "--limit 20".into();
        };
        assert_eq!(class(declared), None);
        let empty = |t: &mut TaskRecord| {
            t.items.clear();
            t.expected = 0;
            t.full_split = 0;
        };
        assert_eq!(class(empty), ACCOUNTING);
    }

    #[test]
    fn failed_items_by_cause() {
        let with = |status, transient| class(|t| t.items[4] = failed_item(4, status, transient));
        for status in [401, 403, 429] {
            assert_eq!(with(Some(status), true), Some(FailureClass::EvalJudgeFailed));
        }
        assert_eq!(with(Some(503), true), Some(FailureClass::InfraTransient));
        assert_eq!(with(None, true), Some(FailureClass::InfraTransient));
        assert_eq!(with(None, false), ACCOUNTING);
        assert_eq!(with(Some(400), false), ACCOUNTING);
    }

    #[test]
    fn scores_must_be_finite() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(class(|t| t.items[0].loglikelihoods[1] = bad), ACCOUNTING);
            assert_eq!(class(|t| *t.items[0].values.get_mut("acc").unwrap() = bad), ACCOUNTING);
            assert_eq!(class(|t| t.metrics.get_mut("acc").unwrap().value = bad), ACCOUNTING);
        }
        assert_eq!(class(|t| t.items[0].weight = 0.0), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].loglikelihoods.clear()), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].is_greedy.clear()), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].values.clear()), ACCOUNTING);
        assert_eq!(class(|t| t.metrics.clear()), ACCOUNTING);
    }

    #[test]
    fn log_probs_must_be_real() {
        assert_eq!(class(|t| t.items[0].loglikelihoods[1] = -9999.0), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].loglikelihoods[1] = 0.5), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].loglikelihoods.fill(0.0)), ACCOUNTING);
        assert_eq!(class(|t| t.items[0].loglikelihoods[1] = 0.0), None, "one sure token may round to 1");
        assert_eq!(class(|t| t.items.iter_mut().for_each(|i| i.loglikelihoods.fill(-1.0))), ACCOUNTING);
    }

    /// Makes the metric what the items say again.
    fn settle(record: &mut EvalRecord) {
        let task = record.tasks.get_mut("text").unwrap();
        let mean = weighted_mean(task).unwrap();
        task.metrics.get_mut("bits_per_byte").unwrap().value = mean;
    }

    #[test]
    fn a_long_text_may_sum_below_the_clamp() {
        let mut record = perplexity_arm("baseline", &[1.5, 1.6]);
        let item = &mut record.tasks.get_mut("text").unwrap().items[0];
        item.weight = 20_000.0;
        item.loglikelihoods[0] = -20_794.0;
        settle(&mut record);
        assert!(run(&record).pass);
        record.tasks.get_mut("text").unwrap().items[0].weight = 90.0;
        settle(&mut record);
        assert_eq!(run(&record).failure_class, ACCOUNTING);
        record.tasks.get_mut("text").unwrap().items[0].loglikelihoods[0] = 0.0;
        assert_eq!(run(&record).failure_class, ACCOUNTING);
    }

    #[test]
    fn a_metric_is_what_its_items_say() {
        let mut perplexity = perplexity_arm("baseline", &[1.5, 1.6]);
        let task = perplexity.tasks.get_mut("text").unwrap();
        let mean = weighted_mean(task).unwrap();
        task.metrics.get_mut("bits_per_byte").unwrap().value = mean.exp();
        assert_eq!(aggregation(task), Some(Aggregation::ExpMean));
        assert!(run(&perplexity).pass);
        perplexity.tasks.get_mut("text").unwrap().metrics.get_mut("bits_per_byte").unwrap().value =
            mean + 1.0;
        assert_eq!(run(&perplexity).failure_class, ACCOUNTING);
        assert_eq!(class(|t| t.metrics.get_mut("acc").unwrap().value = 0.95), ACCOUNTING);
    }
}

//! What the gate says of each judged task, in findings.

use super::evidence::{TaskEvidence, TaskVerdict};
use super::options::Policy;
use super::policy::{IMPLAUSIBLE_GAIN, is_limited};
use crate::record::{FailureClass, Finding, GateName};

/// Flip rate above which a task is worth a look whatever its verdict: accuracy hides changes that cancel (A. Dutta et
/// al., Accuracy is not all you need, arXiv 2407.09141). The value is day0's.
const FLIP_ALARM: f64 = 0.10;

/// Mean KL in nats of the choice distributions above which a task is worth a look. The value is day0's.
const CHOICE_KL_ALARM: f64 = 0.10;

/// Standard errors by which the margin of the right choice may fall before it is worth a look. The value is day0's.
const SHIFT_ALARM: f64 = 3.0;

/// What to do about items that are a prefix of their data set.
const WHOLE_OR_SAMPLE: &str =
    "score all items, or a seeded sample of them on both arms: `day0 release --limit N` draws one";

/// Findings of one judged task: its verdict and its alarms.
pub(super) fn task_findings(name: &str, task: &TaskEvidence, policy: Policy) -> Vec<Finding> {
    let finding = |check: &str, class| Finding::new(GateName::Compare, check, class, name);
    let mut findings = Vec::new();
    let margin = format!(
        "a drop of {} {}",
        if policy == Policy::Certify { "less than" } else { "at most" },
        task.margin
    );
    match task.verdict {
        TaskVerdict::Within if task.lower > Some(0.0) => findings.push(
            finding("accuracy", FailureClass::AccuracyRegression)
                .observed(format!("{}: detectable, but within the margin", drop_text(task)))
                .as_note(),
        ),
        TaskVerdict::Within => {}
        TaskVerdict::Regression => findings.push(
            finding("accuracy", FailureClass::AccuracyRegression).observed(drop_text(task)).expected(margin),
        ),
        TaskVerdict::ImplausibleGain => findings.push(
            finding("gain", FailureClass::ImplausibleGain)
                .observed(drop_text(task))
                .expected(format!("a gain of at most {} %", 100.0 * IMPLAUSIBLE_GAIN)),
        ),
        TaskVerdict::Undecided => {
            let undecided = finding("evidence", FailureClass::InsufficientEvidence)
                .observed(undecided_text(task))
                .expected(margin);
            findings.push(if task.is_sample { undecided } else { undecided.hint(WHOLE_OR_SAMPLE) });
        }
    }
    findings.extend(notes_on_items(name, task, policy));
    let alarms = [("flip rate", task.psi, FLIP_ALARM), ("choice KL", task.choice_kl, CHOICE_KL_ALARM)];
    for (what, value, ceiling) in alarms {
        if let Some(value) = value.filter(|value| *value > ceiling) {
            let alarm = finding("alarm", FailureClass::AccuracyRegression);
            findings.push(
                alarm.observed(format!("{what} {value:.4}")).expected(format!("at most {ceiling}")).as_note(),
            );
        }
    }
    if let (Some(shift), Some(stderr)) = (task.gold_margin_shift, task.gold_margin_stderr)
        && task.verdict == TaskVerdict::Within
        && shift < -SHIFT_ALARM * stderr
    {
        let alarm = finding("alarm", FailureClass::AccuracyRegression);
        let observed = format!(
            "the margin of the right choice fell by {:.4} ± {stderr:.4} nats although the score did not",
            -shift
        );
        findings.push(alarm.observed(observed).as_note());
    }
    if let Some(noise) = &task.noise {
        let observed = format!(
            "{} of {} items flip when the baseline is scored again {}, mean |Δ ln p| {:.2e}, largest {:.2e}",
            noise.flips, noise.items, noise.how, noise.mean_abs_dll, noise.max_abs_dll
        );
        findings.push(finding("noise", FailureClass::AccuracyRegression).observed(observed).as_note());
    }
    findings
}

/// Notes on which of the items were judged, and by what.
fn notes_on_items(name: &str, task: &TaskEvidence, policy: Policy) -> Vec<Finding> {
    let TaskEvidence { n, not_needed, full_split, limited_by, .. } = task;
    let limited = is_limited(task);
    let parts = [
        (*not_needed > 0).then(|| format!("decided after {n} of {} items", n + not_needed)),
        (limited && task.verdict == TaskVerdict::Within)
            .then(|| format!("judged on {n} of {full_split} items ({limited_by})")),
        (limited && task.looks.is_empty() && policy == Policy::Certify).then(|| {
            "judged by the interval of a part of the items: a longer plan on the same items is no independent test, and \
             its 5 % add to those of this one"
                .to_owned()
        }),
    ];
    let note = |observed| {
        let class = FailureClass::InsufficientEvidence;
        Finding::new(GateName::Compare, "evidence", class, name).observed(observed).as_note()
    };
    parts.into_iter().flatten().map(note).collect()
}

/// `acc 0.8210 to 0.8158, drop 0.52 % (0.11 % to 0.93 %), n 4000, 30 items lost, 9 gained`.
fn drop_text(task: &TaskEvidence) -> String {
    let percent = |value: Option<f64>| value.map_or("?".to_owned(), |v| format!("{:.2} %", 100.0 * v));
    let (drop, lower, upper) = (percent(task.drop_fraction), percent(task.lower), percent(task.upper));
    let flips = match (task.flips_b, task.flips_c) {
        (Some(lost), Some(gained)) => format!(", {lost} items lost, {gained} gained"),
        _ => String::new(),
    };
    let TaskEvidence { metric, baseline, candidate, n, .. } = task;
    format!("{metric} {baseline:.4} to {candidate:.4}, drop {drop} ({lower} to {upper}), n {n}{flips}")
}

/// The drop, and what would settle it: flip rate, detectable effect, n needed.
fn undecided_text(task: &TaskEvidence) -> String {
    let parts = [
        Some(drop_text(task)),
        task.psi.map(|psi| format!("flip rate {psi:.4}")),
        task.mde.map(|mde| format!("detectable drop {:.2} %", 100.0 * mde)),
        task.n_needed_no_drop.map(|n| format!("n needed {n} if there is no drop")),
        task.n_needed.map(|n| format!("n needed {n} if this is the drop")),
        (!task.unreliable.is_empty()).then(|| task.unreliable.clone()),
        is_limited(task)
            .then(|| format!("{} of {} items visited ({})", task.n, task.full_split, task.limited_by)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

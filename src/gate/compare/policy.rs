//! The two policies: from a task's evidence to its verdict.

use super::evidence::{TaskEvidence, TaskVerdict};
use super::options::{Margin, Tier};
use super::sample::Sample;
use crate::base::stats::{Alpha, holm};
use crate::gate::decimal::{Decimal, exceeds};

/// A gain above this fraction of the scale (of the baseline for metrics without one) is more than quantization can
/// explain.
pub(super) const IMPLAUSIBLE_GAIN: f64 = 0.05;

/// [`IMPLAUSIBLE_GAIN`] in the unit of the task's drop fraction.
fn gain_limit(task: &TaskEvidence) -> f64 {
    match (task.margin, task.scale) {
        (Margin::Relative(_), Some(scale)) => IMPLAUSIBLE_GAIN * scale / task.baseline,
        _ => IMPLAUSIBLE_GAIN,
    }
}

/// Certify: only what is shown.
///
/// A task that had looks is within or a regression as soon as one of them shows it; the fixed-n interval decides at the
/// last item of the split, at half the level. A limited plan that had looks is within by them alone, because a longer
/// plan would look at the same items again. Upper bound of the drop < margin: within. Lower bound > margin, also after Holm's correction across the tasks of
/// the same tier: regression. Gain shown to be above [`IMPLAUSIBLE_GAIN`]: implausible. Else undecided. ACCEPT needs
/// every required task within, each at level α: an intersection-union test, which needs no correction.
pub(super) fn certify<'a>(tasks: impl IntoIterator<Item = &'a mut TaskEvidence>, alpha: Alpha) {
    let (required, advisory) = tasks.into_iter().partition(|task| task.tier == Tier::Required);
    for family in [required, advisory] {
        let mut family: Vec<&mut TaskEvidence> = family;
        let p_values: Vec<f64> = family
            .iter()
            .map(|task| task.p_value.filter(|_| task.unreliable.is_empty()).unwrap_or(1.0))
            .collect();
        for (task, adjusted) in family.iter_mut().zip(holm(&p_values)) {
            task.p_adjusted = Some(adjusted);
            task.judge(certified(task, adjusted, alpha));
        }
    }
}

fn certified(task: &TaskEvidence, p_adjusted: f64, alpha: Alpha) -> TaskVerdict {
    let (Some(lower), Some(upper), true) = (task.lower, task.upper, task.unreliable.is_empty()) else {
        return TaskVerdict::Undecided;
    };
    let margin = task.margin.value();
    let stopped = task.not_needed > 0;
    let interval_may = task.looks.is_empty() || !is_limited(task);
    // p-values of tasks with looks join two tests; the interval alone need not show what the betting does.
    let shown_worse = lower > margin || !task.looks.is_empty();
    match () {
        () if task.gain_upper.is_some_and(|upper| upper < -gain_limit(task)) => TaskVerdict::ImplausibleGain,
        () if task.within_by_betting() || (!stopped && interval_may && upper < margin) => TaskVerdict::Within,
        () if shown_worse && p_adjusted <= alpha.value() => TaskVerdict::Regression,
        () => TaskVerdict::Undecided,
    }
}

/// Threshold: the upstream rule on the point estimate, the boundary included, decided on decimals.
///
/// A run of fewer items than the split has is undecided: the point estimate says nothing about its own error.
pub(super) fn threshold(task: &mut TaskEvidence, sample: &Sample) {
    let verdict = match sample.decimals(task.margin) {
        None => TaskVerdict::Undecided,
        Some(_) if is_limited(task) || sample.too_few_documents() => TaskVerdict::Undecided,
        Some(d) if exceeds(d.better, d.worse, Decimal::of(task.margin.value()), d.unit) => {
            TaskVerdict::Regression
        }
        Some(d) if exceeds(d.worse, d.better, Decimal::of(IMPLAUSIBLE_GAIN), d.gain_unit) => {
            TaskVerdict::ImplausibleGain
        }
        Some(_) => TaskVerdict::Within,
    };
    task.judge(verdict);
}

/// Whether fewer items were planned than the split has.
pub(super) fn is_limited(task: &TaskEvidence) -> bool {
    !task.limited_by.is_empty() || task.n + task.not_needed < task.full_split
}

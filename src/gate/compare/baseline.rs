//! Checks of the baseline alone: whether the task can show damage at all, and whether its score is the known one.

use super::evidence::TaskEvidence;
use super::options::{CompareOptions, Published};
use super::pairs::Pairs;
use super::policy::is_limited;
use super::sample::choices;
use crate::base::stats::{Alpha, wilson};
use crate::gate::decimal::{Decimal, exceeds};
use crate::gate::findings::Collector;
use crate::record::{FailureClass, Finding, GateName};

/// The share of right answers that guessing gives: the mean of 1/choices. `None` unless the metric counts right
/// answers among at least two choices.
fn chance(pairs: &Pairs<'_>) -> Option<f64> {
    let metric = pairs.metric();
    let items = || pairs.items().map(|(item, _)| item);
    let is_count = |v: &f64| *v == 0.0 || *v == 1.0;
    let countable = metric.higher_is_better
        && metric.scale == Some(1.0)
        && items().all(|item| item.values.get(&metric.name).is_some_and(is_count));
    let sizes = || items().map(|item| choices(item).len());
    if !countable || sizes().count() == 0 || sizes().any(|n| n < 2) {
        return None;
    }
    Some(sizes().map(|n| 1.0 / n as f64).sum::<f64>() / sizes().count() as f64)
}

/// A baseline that is not shown to be better than guessing cannot lose anything, so nothing follows from a candidate
/// that is as good: INSUFFICIENT_EVIDENCE. One-sided score test of the binomial share at level `alpha`.
pub(super) fn above_chance(
    pairs: &Pairs<'_>,
    name: &str,
    evidence: &TaskEvidence,
    alpha: Alpha,
) -> Option<Finding> {
    let chance = chance(pairs)?;
    let noise = alpha.z() * (chance * (1.0 - chance) / evidence.n as f64).sqrt();
    (evidence.baseline <= chance + noise).then(|| {
        Finding::new(GateName::Compare, "baseline.chance", FailureClass::InsufficientEvidence, name)
            .observed(format!(
                "the baseline's {} of {:.4} is within noise of guessing",
                evidence.metric, evidence.baseline
            ))
            .expected(format!("more than {:.4} at n {}", chance + noise, evidence.n))
            .hint("choose a task that this model can do: on this one damage cannot show")
    })
}

/// Whether a share measured on a part of the split is shown to be off: its Wilson interval, too, is out of tolerance.
fn shown_off(evidence: &TaskEvidence, Published { score, tolerance }: Published) -> bool {
    let whole = !is_limited(evidence) && evidence.not_needed == 0;
    let n = evidence.n as u64;
    let is_share = evidence.psi.is_some();
    whole
        || is_share && {
            let bounds = wilson(evidence.baseline * evidence.n as f64, n, Alpha::FIVE_PERCENT);
            bounds.lower > score + tolerance || bounds.upper < score - tolerance
        }
}

/// Compares the baseline with its published score. On a part of the split the sampling error must be exceeded, too;
/// otherwise it is a note.
pub(super) fn published(name: &str, evidence: &TaskEvidence, published: Published) -> Option<Finding> {
    let Published { score, tolerance } = published;
    let (high, low) =
        if evidence.baseline > score { (evidence.baseline, score) } else { (score, evidence.baseline) };
    let unit = evidence.scale.unwrap_or(score);
    let [high, low, unit] = [high, low, unit].map(Decimal::of);
    exceeds(high, low, Decimal::of(tolerance), unit).then(|| {
        let finding = Finding::new(
            GateName::Compare,
            "baseline.published",
            FailureClass::ExternalBaselineMismatch,
            name,
        )
        .observed(format!("{} {:.4} measured on the baseline", evidence.metric, evidence.baseline))
        .expected(format!("{score} ± {tolerance} as published"));
        if shown_off(evidence, published) { finding } else { finding.as_note() }
    })
}

/// One note that names the tasks without a published score.
pub(super) fn unverified(out: &mut Collector, options: &CompareOptions, tasks: &[&str]) {
    let without: Vec<&str> =
        tasks.iter().copied().filter(|task| !options.published.contains_key(*task)).collect();
    if !without.is_empty() {
        out.add(
            out.finding("baseline.published", FailureClass::ExternalBaselineMismatch, without.join(", "))
                .observed("externally unverified: no published score given")
                .as_note(),
        );
    }
}

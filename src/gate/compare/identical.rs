//! Signs that both arms are one model: the baseline served twice, or scores from the other arm's cache.
//!
//! Engines that are not bit-reproducible give one model slightly different scores each time, so equal bits are not the
//! only sign: the arms must differ by more than what the same model differs from itself.

use crate::record::eval::{EvalRecord, ItemRecord, NoiseFloor, TaskRecord};
use crate::record::serve::FingerprintReading;
use crate::record::{FailureClass, Finding, GateName};

/// Nats by which at least one of the eight fixed prompts changes between two models. Of all recipes w8a16 changes least:
/// on the embedded model its prompts move by 0.012 to 0.39 nats, on SmolLM2 fp8_dynamic moves none by less than 0.21.
const SAME_MODEL_NATS: f64 = 1e-3;

/// How many times the change between two scorings of one model (the noise floor, or the spread of an arm's own readings)
/// still counts as that model. The arms of a comparison are two scorings, each off by as much as the noise floor's two.
const NOISE_FACTOR: f64 = 2.0;

fn finding(check: &str, subject: &str) -> Finding {
    Finding::new(GateName::Compare, check, FailureClass::ComparabilityFailed, subject)
        .expected("a quantized model answers a little differently")
        .hint("the candidate is not what is served, or its scores came from the baseline's cache")
}

/// Both arms score the fixed prompts of the endpoint watch alike: no prompt differs by more than [`SAME_MODEL_NATS`], or
/// by more than an arm's own readings spread.
pub(super) fn fixed_prompts(baseline: &EvalRecord, candidate: &EvalRecord) -> Option<Finding> {
    let (a, b) = (readings(baseline), readings(candidate));
    let nearest = a.iter().flat_map(|a| b.iter().map(|b| a.distance(b))).reduce(f64::min)?;
    let spread = |readings: &[&FingerprintReading]| {
        readings.iter().map(|reading| readings[0].distance(reading)).fold(0.0, f64::max)
    };
    let same = SAME_MODEL_NATS.max(NOISE_FACTOR * spread(&a).max(spread(&b)));
    (nearest <= same).then(|| {
        finding("comparability.fixed_prompts", "engine")
            .observed(format!("both arms score the fixed prompts alike, within {nearest:.1e} nats"))
    })
}

fn readings(record: &EvalRecord) -> Vec<&FingerprintReading> {
    record.confirmations.iter().map(|c| &c.confirmation.reading).collect()
}

/// Both arms score a task alike: more than half of its items to the bit, or all of them within the noise floor.
pub(super) fn task(
    name: &str,
    baseline: &TaskRecord,
    candidate: &TaskRecord,
    noise: Option<&NoiseFloor>,
) -> Option<Finding> {
    let pairs = || baseline.items.iter().zip(&candidate.items);
    let (identical, items) = (pairs().filter(|(a, b)| same_bits(a, b)).count(), baseline.items.len());
    let finding = finding("comparability.identical", name);
    if 2 * identical > items {
        let observed =
            format!("log-likelihoods of {identical} of {items} items are bit-identical on both arms");
        return Some(finding.observed(observed));
    }
    let floor = noise.map(|noise| noise.mean_abs_dll).filter(|floor| *floor > 0.0)?;
    let changes = || {
        pairs().flat_map(|(a, b)| a.loglikelihoods.iter().zip(&b.loglikelihoods)).map(|(a, b)| (a - b).abs())
    };
    let mean = changes().sum::<f64>() / changes().count() as f64;
    (mean <= NOISE_FACTOR * floor).then(|| {
        finding.observed(format!(
            "the arms differ by {mean:.1e} nats on average, two scorings of the baseline by {floor:.1e}"
        ))
    })
}

fn same_bits(a: &ItemRecord, b: &ItemRecord) -> bool {
    let bits = |item: &ItemRecord| -> Vec<u64> { item.loglikelihoods.iter().map(|l| l.to_bits()).collect() };
    !a.loglikelihoods.is_empty() && bits(a) == bits(b)
}

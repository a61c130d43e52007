//! Every rule of founding document 000, at its threshold and beyond.

use std::collections::BTreeMap;

use super::*;
use crate::base::threads::Threads;
use crate::record::{Provenance, SCHEMA_VERSION};

/// A run whose loss falls in a straight line.
fn run(seed: u64, steps: u64, from: f64, to: f64) -> SeedRun {
    let loss = (1..=steps)
        .map(|step| Point { step, value: Some(from + (to - from) * step as f64 / steps as f64) })
        .collect();
    SeedRun {
        seed,
        steps_done: steps,
        steps_available: None,
        error: String::new(),
        setup_s: 0.0,
        steps_s: 1.0,
        curves: BTreeMap::from([("loss".to_owned(), loss)]),
        finals: BTreeMap::new(),
        non_finite: BTreeMap::new(),
        digest: None,
        repeat_digest: None,
        repeat_values: BTreeMap::new(),
        prompts_digest: None,
        notes: vec![],
    }
}

fn criterion(name: &str, rule: Rule, metrics: &[&str], tier: CheckTier) -> Criterion {
    let metrics = metrics.iter().map(|m| (*m).to_owned()).collect();
    Criterion { name: name.to_owned(), rule, metrics, tier }
}

fn report(runs: Vec<SeedRun>, criteria: Vec<Criterion>, tier: CheckTier) -> GateReport {
    let steps = runs.first().map_or(0, |r| r.steps_done);
    let family = FamilyRuns { family: "f".into(), step: "step".into(), steps, criteria, runs };
    let threads = Threads { count: 1, origin: "test".into() };
    let runs = SeedRuns {
        schema_version: SCHEMA_VERSION,
        device: "cpu".into(),
        families: vec![family],
        provenance: Provenance::new(threads),
    };
    decide(&runs, tier)
}

fn class(runs: Vec<SeedRun>, rule: Rule, metrics: &[&str]) -> Option<FailureClass> {
    report(runs, vec![criterion("c", rule, metrics, CheckTier::Nightly)], CheckTier::Release).failure_class
}

const FAILED: Option<FailureClass> = Some(FailureClass::ReadinessFailed);
const NOT_ENOUGH: Option<FailureClass> = Some(FailureClass::InsufficientEvidence);

/// A run that ends with a value.
fn ending(seed: u64, value: f64) -> SeedRun {
    run(seed, 100, value, value)
}

/// Document 000, "Recommended Threshold Defaults": seed variance ≤ 10 % on main loss components; DESIGN section 7:
/// (max − min) / mean.
#[test]
fn seed_variance() {
    let rule = Rule::RelativeSpread { max: 0.10 };
    // Mean 1.0, spread 0.1 and a little more.
    assert_eq!(class(vec![ending(0, 0.95), ending(1, 1.05)], rule, &["loss"]), None);
    assert_eq!(class(vec![ending(0, 0.949), ending(1, 1.051)], rule, &["loss"]), FAILED);
    assert_eq!(class(vec![ending(0, 1.0)], rule, &["loss"]), NOT_ENOUGH);
    assert_eq!(class(vec![ending(0, 1.0), ending(1, 1.0)], rule, &["other"]), FAILED);
    assert_eq!(class(vec![ending(0, 0.0), ending(1, 0.0)], rule, &["loss"]), None);
}

/// Document 000, "Seed stability": the same seed produces key losses within ±5–10 %.
#[test]
fn seed_stability() {
    let rule = Rule::RepeatWithin { max: 0.10 };
    assert_eq!(class(vec![ending(0, 1.0), ending(0, 1.1)], rule, &["loss"]), None);
    assert_eq!(class(vec![ending(0, 1.0), ending(0, 0.89)], rule, &["loss"]), FAILED);
    assert_eq!(class(vec![ending(0, 1.0), ending(1, 1.0)], rule, &["loss"]), NOT_ENOUGH);
    let with = |again| SeedRun {
        repeat_values: BTreeMap::from([("loss".to_owned(), [Some(2.0), again])]),
        ..ending(0, 2.0)
    };
    assert_eq!(class(vec![with(Some(2.0))], rule, &["loss"]), None);
    assert_eq!(class(vec![with(Some(2.3))], rule, &["loss"]), FAILED);
    assert_eq!(class(vec![with(None)], rule, &["loss"]), FAILED);
}

/// DESIGN section 7: scores have the same bits under the same seed, and a spread below the margin across seeds.
#[test]
fn scores_have_the_same_bits_and_a_small_spread() {
    let with = |again: &str| SeedRun {
        digest: Some("a".into()),
        repeat_digest: Some(again.into()),
        ..ending(0, 1.0)
    };
    assert_eq!(class(vec![with("a")], Rule::SameBits, &[]), None);
    assert_eq!(class(vec![with("b")], Rule::SameBits, &[]), FAILED);
    assert_eq!(class(vec![ending(0, 1.0)], Rule::SameBits, &[]), NOT_ENOUGH);
    let score = |seed, value| SeedRun {
        finals: BTreeMap::from([("score.x".to_owned(), Some(value))]),
        ..ending(seed, 1.0)
    };
    let rule = Rule::AbsoluteSpread { below: 0.01 };
    assert_eq!(class(vec![score(0, 0.5), score(1, 0.509)], rule, &["score.*"]), None);
    assert_eq!(class(vec![score(0, 0.5), score(1, 0.52)], rule, &["score.*"]), FAILED);
    assert_eq!(class(vec![score(0, 0.5), score(1, f64::NAN)], rule, &["score.*"]), FAILED);
    // Seeds that asked the same say nothing by a spread of nothing; that is a fact about the suite, and fails nothing.
    let asked = |seed, what: &str| SeedRun { prompts_digest: Some(what.into()), ..score(seed, 0.5) };
    let spread = |runs| report(runs, vec![criterion("c", rule, &["score.*"], CheckTier::Pr)], CheckTier::Pr);
    let same = spread(vec![asked(0, "a"), asked(1, "a")]);
    assert!(same.pass && same.findings.is_empty());
    assert_eq!(
        (&same.checks["f.c"]["state"], &same.checks["f.c"]["pass"]),
        (&json!("not evaluated"), &Value::Null)
    );
    assert_eq!(spread(vec![asked(0, "a"), asked(1, "b")]).checks["f.c"]["state"], json!("holds"));
}

/// DESIGN section 7: the spread across seeds is below the margin, which is the release's, task by task.
#[test]
fn spreads_are_held_against_the_margin_of_each_task() {
    let score = |seed, value: f64| SeedRun {
        finals: BTreeMap::from([
            ("score.a".to_owned(), Some(value)),
            ("score.b".to_owned(), Some(value)),
            ("unbounded.c".to_owned(), Some(10.0 * value)),
        ]),
        ..ending(seed, 1.0)
    };
    let mut family = FamilyRuns {
        family: "ptq".into(),
        step: "item".into(),
        steps: 100,
        criteria: vec![
            criterion("spread", Rule::AbsoluteSpread { below: 0.01 }, &["score.*"], CheckTier::Nightly),
            criterion("unbounded", Rule::RelativeSpread { max: 0.01 }, &["unbounded.*"], CheckTier::Nightly),
            criterion("finite", Rule::Finite, &[], CheckTier::Release),
        ],
        runs: vec![score(0, 0.50), score(1, 0.52)],
    };
    let margins = [
        ("a", Margin::Absolute(0.05)),
        ("b", Margin::Relative(0.02)),
        ("c", Margin::Relative(0.1)),
        ("not scored", Margin::Absolute(0.5)),
    ];
    with_margins(&mut family, &margins.map(|(task, margin)| (task.to_owned(), margin)).into());
    let names: Vec<&str> = family.criteria.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["spread.a", "spread.b", "unbounded.c", "finite"]);
    let broken = |c: &Criterion| matches!(evaluate(&family, c), Outcome::Broken(_));
    assert_eq!(family.criteria.iter().map(broken).collect::<Vec<_>>(), [false, true, false, false]);
    // Nothing was scored: the family's own criteria stay.
    let mut empty = FamilyRuns { runs: vec![ending(0, 1.0)], ..family.clone() };
    empty.criteria =
        vec![criterion("spread", Rule::AbsoluteSpread { below: 0.01 }, &["score.*"], CheckTier::Pr)];
    let before = empty.criteria.clone();
    with_margins(&mut empty, &BTreeMap::new());
    assert_eq!(empty.criteria, before);
}

/// Document 000, "Seed success rate": at least 80 % of seeds; DESIGN section 7: ⌈0.8 · n⌉ seeds.
#[test]
fn seed_success_rate() {
    let n = |n: usize| seeds_needed(0.8, n);
    assert_eq!([1, 2, 3, 4, 5, 10, 15].map(n), [1, 2, 3, 4, 4, 8, 12]);
    let rule = Rule::SuccessRate { min: 0.8 };
    let with_failures = |failures: usize| {
        (0..5)
            .map(|seed| {
                let error = if seed < failures as u64 { "crashed".to_owned() } else { String::new() };
                SeedRun { error, ..ending(seed, 1.0) }
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(class(with_failures(1), rule, &[]), None);
    assert_eq!(class(with_failures(2), rule, &[]), FAILED);
    // A seed succeeds by the family's own criteria.
    let own = vec![
        criterion("rate", rule, &[], CheckTier::Nightly),
        criterion("drop", Rule::Decrease { min: 0.1, within: 100 }, &["loss"], CheckTier::Nightly),
    ];
    let flat = |seed| run(seed, 100, 2.0, 1.99);
    let falling = |seed| run(seed, 100, 2.0, 1.0);
    let four = vec![flat(0), falling(1), falling(2), falling(3), falling(4)];
    assert!(report(four, own.clone(), CheckTier::Nightly).pass);
    let three = vec![flat(0), flat(1), falling(2), falling(3), falling(4)];
    assert_eq!(report(three, own, CheckTier::Nightly).failure_class, FAILED);
}

/// Document 000, "Loss trend" and "Loss decrease": ≥ 10 % within 2,000 steps. DESIGN section 7: a shorter run is not
/// evaluated, never a pass.
#[test]
fn loss_trend() {
    let rule = Rule::Decrease { min: 0.10, within: 2000 };
    assert_eq!(class(vec![run(0, 2000, 2.0, 1.0)], rule, &["loss"]), None);
    assert_eq!(class(vec![run(0, 2000, 2.0, 1.85)], rule, &["loss"]), FAILED);
    assert_eq!(class(vec![run(0, 1999, 2.0, 0.1)], rule, &["loss"]), NOT_ENOUGH);
    // It must have fallen by step 2,000, not at some later time.
    assert_eq!(class(vec![run(0, 40_000, 2.0, 1.0)], rule, &["loss"]), FAILED);
    assert_eq!(class(vec![run(0, 2000, -2.0, -3.0)], rule, &["loss"]), NOT_ENOUGH);
    assert_eq!(class(vec![run(0, 2000, 2.0, 1.0)], rule, &["other"]), FAILED);
    let short = report(
        vec![run(0, 200, 2.0, 1.0)],
        vec![criterion("loss_trend", rule, &["loss"], CheckTier::Release)],
        CheckTier::Nightly,
    );
    assert!(short.pass, "{}", short.detail);
    assert_eq!(short.checks["f.loss_trend"]["state"], json!("not evaluated"));
    assert_eq!(short.checks["f.loss_trend"]["pass"], Value::Null);
    assert!(short.findings[0].observed.contains("200 steps, its window is 2000"));
}

/// Document 000, "Numerical stability": no NaN or Inf in the defined step budget; finite logits and losses.
#[test]
fn numerical_stability() {
    let rule = Rule::Finite;
    assert_eq!(class(vec![ending(0, 1.0)], rule, &["loss"]), None);
    assert_eq!(class(vec![ending(0, 1.0)], rule, &["logits"]), FAILED);
    let counted = SeedRun { non_finite: BTreeMap::from([("loss".to_owned(), 1)]), ..ending(0, 1.0) };
    assert_eq!(class(vec![ending(0, 1.0), counted], rule, &["loss"]), FAILED);
    let null = SeedRun { finals: BTreeMap::from([("logits".to_owned(), None)]), ..ending(0, 1.0) };
    assert_eq!(class(vec![null], rule, &["logits"]), FAILED);
    assert_eq!(class(vec![ending(0, f64::NAN)], rule, &["loss"]), FAILED);
    // Steps that were not done are not known to be finite.
    let short = SeedRun { steps_done: 50, ..ending(1, 1.0) };
    assert_eq!(class(vec![ending(0, 1.0), short.clone()], rule, &["loss"]), FAILED);
    // Unless there are no more steps to do.
    let whole = SeedRun { steps_available: Some(50), ..short };
    assert_eq!(class(vec![ending(0, 1.0), whole], rule, &["loss"]), None);
    // A metric that was never finite is known by its count alone.
    let only = SeedRun { non_finite: BTreeMap::from([("loglikelihood.x".to_owned(), 3)]), ..ending(0, 1.0) };
    assert_eq!(class(vec![only.clone()], rule, &[]), FAILED);
    assert_eq!(class(vec![only], rule, &["loglikelihood.x"]), FAILED);
}

/// Document 000, "Seed success rate": what broke off is counted there, and nowhere else unless it shows more.
#[test]
fn what_broke_off_is_left_to_the_success_rate() {
    let crashed = || SeedRun { error: "exit code 9".into(), steps_done: 3, ..ending(1, 1.0) };
    let bits =
        |again: &str, run| SeedRun { digest: Some("a".into()), repeat_digest: Some(again.into()), ..run };
    assert_eq!(class(vec![ending(0, 1.0), crashed()], Rule::Finite, &["loss"]), None);
    assert_eq!(class(vec![bits("a", ending(0, 1.0)), crashed()], Rule::SameBits, &[]), None);
    assert_eq!(class(vec![bits("a", ending(0, 1.0)), bits("b", crashed())], Rule::SameBits, &[]), FAILED);
    let same = SeedRun { seed: 0, ..crashed() };
    let repeated = vec![ending(0, 1.0), ending(0, 1.0), SeedRun { curves: BTreeMap::new(), ..same }];
    assert_eq!(class(repeated, Rule::RepeatWithin { max: 0.1 }, &["loss"]), None);
    for rule in [Rule::Finite, Rule::SameBits, Rule::AtMost { max: 9.0 }] {
        assert_eq!(class(vec![crashed()], rule, &[]), NOT_ENOUGH, "nothing was seen to hold");
    }
}

/// Document 000, "Save/Load parity": outputs differ only within tolerance.
#[test]
fn parity() {
    let with =
        |value| SeedRun { finals: BTreeMap::from([("max_abs_diff".to_owned(), value)]), ..ending(0, 1.0) };
    let rule = Rule::AtMost { max: 0.0 };
    assert_eq!(class(vec![with(Some(0.0))], rule, &["max_abs_diff"]), None);
    assert_eq!(class(vec![with(Some(1e-30))], rule, &["max_abs_diff"]), FAILED);
    assert_eq!(class(vec![with(None)], rule, &["max_abs_diff"]), FAILED);
    assert_eq!(class(vec![ending(0, 1.0)], rule, &["max_abs_diff"]), NOT_ENOUGH);
}

/// DESIGN section 7: a command runs one tier and those below.
#[test]
fn criteria_of_later_tiers_are_notes() {
    let broken = |tier| {
        let criteria = vec![criterion("finite", Rule::Finite, &["logits"], CheckTier::Release)];
        report(vec![ending(0, 1.0)], criteria, tier)
    };
    let nightly = broken(CheckTier::Nightly);
    assert!(nightly.pass && nightly.findings.len() == 1);
    assert_eq!(nightly.checks["f.finite"]["pass"], json!(false));
    assert_eq!(broken(CheckTier::Release).failure_class, FAILED);
}

#[test]
fn nothing_measured_is_no_evidence() {
    assert_eq!(class(vec![], Rule::Finite, &[]), NOT_ENOUGH);
    assert_eq!(report(vec![ending(0, 1.0)], vec![], CheckTier::Pr).failure_class, NOT_ENOUGH);
}

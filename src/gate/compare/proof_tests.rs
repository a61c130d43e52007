//! Runs that look comparable and are not, or that do not tell.

use super::*;
use crate::base::digest::Digest;
use crate::gate::fixtures::accuracy_arm;
use crate::record::eval::{EvalRecord, NoiseFloor, TaskRecord, WaveConfirmation, unknown_digest};
use crate::record::serve::{Confirmation, FingerprintReading};
use crate::record::{FailureClass, GateReport, Verdict};

/// Arms that are accepted: 4,000 items, three quarters right, `lost` of them on the baseline only.
fn arms(lost: usize) -> [EvalRecord; 2] {
    let values = |right: usize| -> Vec<f64> { (0..4000).map(|i| f64::from(u8::from(i < right))).collect() };
    [accuracy_arm("baseline", &values(3000)), accuracy_arm("candidate", &values(3000 - lost))]
}

fn task_of(record: &mut EvalRecord) -> &mut TaskRecord {
    record.tasks.get_mut("task").unwrap()
}

fn decide(arms: &[EvalRecord; 2], options: &CompareOptions) -> GateReport {
    compare(&arms[0], &arms[1], options)
}

#[test]
fn right_answers_are_compared() {
    let class = |change: fn(&mut EvalRecord)| {
        let mut arms = arms(0);
        for arm in &mut arms {
            task_of(arm).items.iter_mut().for_each(|item| item.gold = Some(1));
        }
        change(&mut arms[1]);
        decide(&arms, &CompareOptions::default()).failure_class
    };
    assert_eq!(class(|_| ()), None);
    let comparability = Some(FailureClass::ComparabilityFailed);
    assert_eq!(class(|r| task_of(r).items[3].target_digest = Some(Digest::of(b"other"))), comparability);
    assert_eq!(class(|r| task_of(r).items[3].gold = Some(2)), comparability);
    // Where only one run tells them, either digest or index must be told by both.
    assert_eq!(class(|r| task_of(r).items[3].gold = None), None);
    assert_eq!(class(|r| task_of(r).items[3].target_digest = None), None);
    let untold = class(|r| {
        task_of(r).items[3].gold = None;
        task_of(r).items[3].target_digest = None;
    });
    assert_eq!(untold, Some(FailureClass::InsufficientEvidence));
}

#[test]
fn prompts_that_nobody_tells_are_not_proven() {
    let with = |lost, trust_prompts| {
        let mut arms = arms(lost);
        for arm in &mut arms {
            task_of(arm).items.iter_mut().for_each(|item| item.prompt_digest = unknown_digest());
        }
        decide(&arms, &CompareOptions { trust_prompts, ..CompareOptions::default() })
    };
    let report = with(0, false);
    assert_eq!(report.failure_class, Some(FailureClass::InsufficientEvidence));
    assert!(report.detail.contains("prompts unknown: not proven"), "{}", report.detail);
    assert_eq!(with(200, false).verdict, Some(Verdict::Regression), "shown worse whatever was asked");
    let trusted = with(0, true);
    assert!(trusted.pass, "{}", trusted.detail);
    assert!(trusted.findings.iter().any(|f| f.check == "comparability.unknown" && !f.decides()));
}

/// The readings of one arm's fixed prompts, one for each wave.
fn watched(record: &mut EvalRecord, readings: &[[f64; 8]]) {
    let confirmation = |(wave, reading): (usize, &[f64; 8])| WaveConfirmation {
        wave: format!("score/{wave}"),
        confirmation: Confirmation {
            engine: "engine".into(),
            tokenizer_digest: None,
            token_ids_echoed: None,
            reading: FingerprintReading { digest: Digest::of(b"reading"), loglikelihoods: reading.to_vec() },
        },
    };
    record.confirmations = readings.iter().enumerate().map(confirmation).collect();
}

#[test]
fn one_model_behind_both_endpoints_scores_the_fixed_prompts_alike() {
    let with = |baseline: &[[f64; 8]], candidate: &[[f64; 8]]| {
        let mut arms = arms(0);
        watched(&mut arms[0], baseline);
        watched(&mut arms[1], candidate);
        decide(&arms, &CompareOptions::default())
    };
    let base = [-30.0; 8];
    let moved = |by: f64| {
        let mut reading = base;
        reading[5] += by;
        reading
    };
    for by in [0.0, 1e-4, -1e-4] {
        let report = with(&[base], &[moved(by)]);
        assert_eq!(report.failure_class, Some(FailureClass::ComparabilityFailed), "{by}");
        assert!(report.detail.contains("both arms score the fixed prompts alike"), "{}", report.detail);
    }
    // What w8a16, the gentlest recipe, moves least on the embedded model.
    assert!(with(&[base], &[moved(0.012)]).pass);
    // An engine that does not repeat itself explains as much as its own readings spread.
    let noisy = [base, moved(0.01)];
    assert!(!with(&noisy, &[moved(0.025)]).pass);
    assert!(with(&noisy, &[moved(0.06)]).pass);
    // One wave that the other arm's model answered is enough.
    assert!(!with(&[base, base], &[moved(0.5), base]).pass);
    assert!(with(&[base], &[]).pass, "an engine in this process is not watched");
}

#[test]
fn arms_that_differ_by_no_more_than_noise_are_one_model() {
    let with = |mean_abs_dll: f64| {
        let noise = NoiseFloor { how: "again".into(), items: 256, flips: 0, mean_abs_dll, max_abs_dll: 1.0 };
        let options =
            CompareOptions { noise: [("task".to_owned(), noise)].into(), ..CompareOptions::default() };
        decide(&arms(0), &options)
    };
    // The fixture's arms differ by 1e-3 nats in every log-likelihood.
    assert!(with(0.0).pass && with(4e-4).pass);
    let report = with(6e-4);
    assert_eq!(report.failure_class, Some(FailureClass::ComparabilityFailed));
    assert!(report.detail.contains("two scorings of the baseline by 6.0e-4"), "{}", report.detail);
}

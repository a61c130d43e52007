//! The 27 behaviours of upstream's `tests/test_gates.py` at a2fbac7ba, one test each, and the documented differences.

use serde_json::{Value, json};

use super::*;
use crate::record::{FailureClass, GateReport, Outcome, Verdict};

#[expect(clippy::needless_pass_by_value, reason = "so that calls read as upstream's")]
fn compare(baseline: Value, candidate: Value) -> GateReport {
    compare_summaries(&baseline, &candidate, 0.01, false, None)
}

fn compare_relative(baseline: f64, candidate: f64) -> GateReport {
    compare_summaries(&json!({"t": baseline}), &json!({"t": candidate}), 0.01, true, None)
}

/// `run_summary` of one good task after `change`.
fn run(change: impl FnOnce(&mut Value)) -> GateReport {
    let mut task = json!({
        "status": "SUCCESS", "expected_samples": 100, "scored_samples": 100, "score": 42.0, "errors": [],
    });
    change(&mut task);
    run_summary(&json!({"tasks": {"gpqa": task}}))
}

/// `ptq_summary` of a good checkpoint after `change`.
fn ptq(change: impl FnOnce(&mut Value)) -> GateReport {
    let mut summary = json!({
        "source_bytes": 16_000_000_000u64,
        "output_bytes": 8_000_000_000u64,
        "recipe": "nvfp4",
        "layer_precision_counts": {
            "NVFP4": 224, "BF16_or_excluded": 3, "unexpected_unquantized": 0, "declaration_mismatch": 0,
        },
        "metadata_diffs": [],
    });
    change(&mut summary);
    ptq_summary(&summary, None)
}

fn assert_decision(report: &GateReport, verdict: Verdict, class: Option<FailureClass>) {
    let found = (report.verdict, report.failure_class);
    assert_eq!(found, (Some(verdict), class), "{}", report.detail);
    assert_eq!(report.decision, report.verdict);
    assert_eq!(report.pass, verdict == Verdict::Accept);
}

const REGRESSION: (Verdict, Option<FailureClass>) =
    (Verdict::Regression, Some(FailureClass::AccuracyRegression));
const ACCOUNTING: Option<FailureClass> = Some(FailureClass::SampleAccountingFailed);
const COVERAGE: Option<FailureClass> = Some(FailureClass::QuantCoverageFailure);
const CONFIG: Option<FailureClass> = Some(FailureClass::UserConfigError);

// compare

#[test]
fn compare_accept_within_threshold() {
    let report = compare(json!({"gpqa": 50.0, "scicode": 30.0}), json!({"gpqa": 49.5, "scicode": 29.8}));
    assert_decision(&report, Verdict::Accept, None);
    assert_eq!(report.detail, "all 2 task(s) within threshold 0.01");
}

#[test]
fn compare_regression_exceeds_threshold() {
    let report = compare(json!({"gpqa": 50.0}), json!({"gpqa": 47.5}));
    assert_decision(&report, REGRESSION.0, REGRESSION.1);
    assert!(report.detail.contains("gpqa"));
}

#[test]
fn compare_anomalous_implausible_gain() {
    let report = compare(json!({"gpqa": 50.0}), json!({"gpqa": 60.0}));
    assert_decision(&report, Verdict::Anomalous, Some(FailureClass::ImplausibleGain));
}

#[test]
fn compare_anomalous_out_of_range() {
    let report = compare(json!({"gpqa": 50.0}), json!({"gpqa": 150.0}));
    assert_decision(&report, Verdict::Anomalous, Some(FailureClass::Unknown));
}

#[test]
fn compare_mismatched_task_sets() {
    let report = compare(json!({"gpqa": 50.0}), json!({"scicode": 30.0}));
    assert_decision(&report, Verdict::Anomalous, ACCOUNTING);
    assert!(report.per_task.is_empty());
}

#[test]
fn compare_relative_threshold() {
    assert_decision(&compare_relative(50.0, 49.6), Verdict::Accept, None);
    assert_decision(&compare_relative(50.0, 49.4), REGRESSION.0, REGRESSION.1);
}

#[test]
fn compare_0_to_1_scale_full_collapse_is_regression() {
    let report = compare(json!({"tau2": 1.0}), json!({"tau2": 0.0}));
    assert_decision(&report, REGRESSION.0, REGRESSION.1);
    assert!(report.detail.contains("tau2"));
}

#[test]
fn compare_0_to_1_scale_within_threshold_accepts() {
    assert_decision(&compare(json!({"t": 0.900}), json!({"t": 0.895})), Verdict::Accept, None);
}

#[test]
fn compare_explicit_scale_override() {
    let scales = json!({"t": 100.0});
    let report = compare_summaries(&json!({"t": 0.5}), &json!({"t": 0.4}), 0.01, false, Some(&scales));
    assert_decision(&report, Verdict::Accept, None);
    assert_eq!(report.per_task["t"]["scale"], json!(100.0));
}

#[test]
fn compare_mixed_scales_in_one_suite() {
    let report = compare(json!({"gpqa": 50.0, "tau2": 1.0}), json!({"gpqa": 49.8, "tau2": 0.0}));
    assert_decision(&report, REGRESSION.0, REGRESSION.1);
    assert!(report.detail.contains("tau2") && !report.detail.contains("gpqa"));
}

#[test]
fn compare_invalid_scales_rejected() {
    // NaN is no JSON; a file with it does not parse, which the caller reports as USER_CONFIG_ERROR.
    for bad in
        [json!([1, 2]), json!(5), json!({"t": "100"}), json!({"t": 0}), json!({"t": -5}), json!({"t": true})]
    {
        let report = compare_summaries(&json!({"t": 50.0}), &json!({"t": 49.5}), 0.01, false, Some(&bad));
        assert_decision(&report, Verdict::Anomalous, CONFIG);
    }
}

#[test]
fn compare_empty_or_none_scales_ok() {
    for empty in [None, Some(json!(null)), Some(json!({})), Some(json!([]))] {
        let (a, b) = (json!({"t": 50.0}), json!({"t": 49.5}));
        assert_decision(&compare_summaries(&a, &b, 0.01, false, empty.as_ref()), Verdict::Accept, None);
    }
}

#[test]
fn compare_non_numeric_score_is_anomalous_not_crash() {
    for bad in [json!("42"), json!(null), json!(true), json!([1]), json!({})] {
        let report = compare(json!({"gpqa": 50.0}), json!({"gpqa": bad}));
        assert_decision(&report, Verdict::Anomalous, Some(FailureClass::Unknown));
        assert_eq!(report.per_task["gpqa"]["drop"], json!(null));
    }
}

// run

#[test]
fn run_all_valid() {
    let report = run(|_| {});
    assert_decision(&report, Verdict::Accept, None);
    assert_eq!(report.per_task["gpqa"], json!({"ok": true, "reasons": []}));
}

#[test]
fn run_dropped_samples() {
    let report = run(|task| task["scored_samples"] = json!(90));
    assert_decision(&report, Verdict::Anomalous, ACCOUNTING);
    assert_eq!(report.per_task["gpqa"]["ok"], json!(false));
}

#[test]
fn run_judge_error() {
    let report = run(|task| task["errors"] = json!(["judge rate limit exceeded"]));
    assert_decision(&report, Verdict::Anomalous, Some(FailureClass::EvalJudgeFailed));
}

#[test]
fn run_missing_score() {
    assert_decision(&run(|task| task["score"] = json!(null)), Verdict::Anomalous, ACCOUNTING);
}

#[test]
fn run_timeout_is_not_terminal() {
    let report = run(|task| task["status"] = json!("TIMEOUT"));
    assert!(!report.pass);
    assert_eq!(report.failure_class, Some(FailureClass::InfraTransient));
    assert_eq!(report.outcome(), Outcome::Transient);
}

#[test]
fn run_no_tasks() {
    for empty in [json!({"tasks": {}}), json!({}), json!(null), json!([])] {
        assert_decision(&run_summary(&empty), Verdict::Anomalous, CONFIG);
    }
}

#[test]
fn run_non_numeric_score_fails() {
    for bad in [json!("42"), json!(true), json!([])] {
        assert_decision(&run(|task| task["score"] = bad), Verdict::Anomalous, ACCOUNTING);
    }
}

#[test]
fn run_running_is_infra_transient() {
    let report = run(|task| {
        task["status"] = json!("RUNNING");
        task["score"] = json!(null);
    });
    assert!(!report.pass);
    assert_eq!(report.failure_class, Some(FailureClass::InfraTransient));
    assert!(report.detail.contains("no score"), "{}", report.detail);
}

// ptq

#[test]
fn ptq_pass() {
    let report = ptq(|_| {});
    assert_decision(&report, Verdict::Accept, None);
    for check in ["size", "coverage", "metadata"] {
        assert_eq!(report.checks[check]["pass"], json!(true), "{check}");
    }
    assert_eq!(report.checks["size"]["ratio"], json!(0.5));
}

#[test]
fn ptq_not_smaller() {
    let report = ptq(|summary| summary["output_bytes"] = json!(16_000_000_000u64));
    assert_decision(&report, Verdict::Anomalous, COVERAGE);
}

#[test]
fn ptq_zero_coverage_is_model_unsupported() {
    let report = ptq(|summary| summary["layer_precision_counts"]["NVFP4"] = json!(0));
    assert_decision(&report, Verdict::Infeasible, Some(FailureClass::ModelUnsupported));
}

#[test]
fn ptq_unexpected_unquantized() {
    let report = ptq(|summary| summary["layer_precision_counts"]["unexpected_unquantized"] = json!(24));
    assert_decision(&report, Verdict::Anomalous, COVERAGE);
}

#[test]
fn ptq_metadata_diff() {
    let report = ptq(|summary| summary["metadata_diffs"] = json!(["chat_template changed"]));
    assert_decision(&report, Verdict::Anomalous, COVERAGE);
    assert!(report.detail.contains("chat_template changed"));
}

#[test]
fn ptq_unknown_recipe() {
    assert_decision(&ptq(|summary| summary["recipe"] = json!("mystery")), Verdict::Anomalous, CONFIG);
}

// Documented differences and what upstream does not test.

#[test]
fn missing_negative_or_fractional_sample_counts_fail() {
    for key in ["expected_samples", "scored_samples"] {
        for bad in [json!(null), json!(-1), json!(99.5), json!("100"), json!(true)] {
            assert_decision(&run(|task| task[key] = bad), Verdict::Anomalous, ACCOUNTING);
        }
        let missing = run(|task| drop(task.as_object_mut().unwrap().remove(key)));
        assert_decision(&missing, Verdict::Anomalous, ACCOUNTING);
    }
    let none = run(|task| {
        task["expected_samples"] = json!(0);
        task["scored_samples"] = json!(0);
    });
    assert_decision(&none, Verdict::Anomalous, ACCOUNTING);
}

#[test]
fn baseline_zero_with_relative_is_anomalous() {
    for candidate in [0.0, 0.5] {
        let report = compare_relative(0.0, candidate);
        assert_eq!(report.verdict, Some(Verdict::Anomalous));
        assert_eq!(report.per_task["t"]["within_threshold"], json!(false));
    }
    assert_eq!(compare_relative(0.0, 0.0).failure_class, Some(FailureClass::Unknown));
}

#[test]
fn exact_ties_are_within_on_every_three_decimal_score() {
    for thousandths in 10..=1000 {
        let (b, c) = (f64::from(thousandths) / 1e3, f64::from(thousandths - 10) / 1e3);
        assert_decision(&compare(json!({"t": b}), json!({"t": c})), Verdict::Accept, None);
        let below = f64::from(thousandths * 10 - 101) / 1e4;
        if below >= 0.0 {
            assert_decision(&compare(json!({"t": b}), json!({"t": below})), REGRESSION.0, REGRESSION.1);
        }
    }
}

#[test]
fn a_gain_of_exactly_five_percent_is_plausible() {
    assert_decision(&compare(json!({"t": 0.30}), json!({"t": 0.35})), Verdict::Accept, None);
    let report = compare(json!({"t": 0.30}), json!({"t": 0.3501}));
    assert_decision(&report, Verdict::Anomalous, Some(FailureClass::ImplausibleGain));
}

#[test]
fn an_anomaly_outranks_a_regression() {
    let report = compare(json!({"a": 50.0, "b": 50.0}), json!({"a": 10.0, "b": null}));
    assert_decision(&report, Verdict::Anomalous, Some(FailureClass::Unknown));
    assert_eq!(report.per_task["a"]["within_threshold"], json!(false));
}

#[test]
fn exit_codes_follow_the_verdict() {
    let code = |report: &GateReport| report.outcome().exit_code();
    assert_eq!(code(&compare(json!({"t": 1}), json!({"t": 1}))), 0);
    assert_eq!(code(&compare(json!({"t": 1}), json!({"t": 0}))), 1);
    assert_eq!(code(&compare(json!({"t": 1}), json!({}))), 3);
    assert_eq!(code(&ptq(|summary| summary["layer_precision_counts"] = json!({}))), 4);
    assert_eq!(code(&run(|task| task["status"] = json!("PENDING"))), 75);
}

#[test]
fn auth_is_a_word() {
    let with = |error: &str| run(|task| task["errors"] = json!([error])).failure_class;
    assert_eq!(with("author field missing"), Some(FailureClass::Unknown));
    assert_eq!(with("auth failed"), Some(FailureClass::EvalJudgeFailed));
    assert_eq!(with("HTTP 403"), Some(FailureClass::EvalJudgeFailed));
}

#[test]
fn run_classes_keep_upstream_precedence_across_tasks() {
    let good = json!({"status": "SUCCESS", "expected_samples": 5, "scored_samples": 5, "score": 1.0});
    let (mut dropped, mut running, mut judge) = (good.clone(), good.clone(), good);
    dropped["scored_samples"] = json!(4);
    running["status"] = json!("RESUMING");
    judge["errors"] = json!(["judge failed"]);
    let class = |tasks: Value| run_summary(&json!({"tasks": tasks})).failure_class;
    assert_eq!(class(json!({"a": dropped, "b": running})), Some(FailureClass::InfraTransient));
    assert_eq!(class(json!({"a": dropped, "b": running, "c": judge})), Some(FailureClass::EvalJudgeFailed));
    assert_eq!(class(json!({"a": dropped, "b": 3})), ACCOUNTING);
    let failed = run(|task| task["status"] = json!("FAILED"));
    assert_decision(&failed, Verdict::Anomalous, Some(FailureClass::Unknown));
}

#[test]
fn ptq_classes_keep_upstream_precedence() {
    let report = ptq(|summary| {
        summary["output_bytes"] = json!("8 GB");
        summary["layer_precision_counts"]["NVFP4"] = json!(0);
        summary["layer_precision_counts"]["declaration_mismatch"] = json!(2);
    });
    assert_decision(&report, Verdict::Infeasible, Some(FailureClass::ModelUnsupported));
    for part in ["output_bytes", "NVFP4", "declaration_mismatch"] {
        assert!(report.detail.contains(part), "{}", report.detail);
    }
}

#[test]
fn ptq_malformed_summaries_are_configuration_errors() {
    for empty in [json!(null), json!({}), json!([]), json!("x")] {
        assert_decision(&ptq_summary(&empty, None), Verdict::Anomalous, CONFIG);
    }
    for bad in [json!(0), json!(-1), json!(null), json!(true)] {
        assert_decision(&ptq(|s| s["source_bytes"] = bad.clone()), Verdict::Anomalous, CONFIG);
        assert_decision(&ptq(|s| s["output_bytes"] = bad), Verdict::Anomalous, CONFIG);
    }
    for bad in [json!(-1), json!(0.5), json!("0")] {
        let report = ptq(|s| s["layer_precision_counts"]["declaration_mismatch"] = bad);
        assert_decision(&report, Verdict::Anomalous, CONFIG);
    }
    assert_decision(&ptq(|s| s["metadata_diffs"] = json!("none")), Verdict::Anomalous, CONFIG);
}

#[test]
fn the_recipe_flag_wins_over_the_summary() {
    let summary = json!({
        "source_bytes": 2, "output_bytes": 1, "recipe": "nvfp4", "layer_precision_counts": {"FP8": 3},
    });
    assert!(!ptq_summary(&summary, None).pass);
    assert!(ptq_summary(&summary, Some("FP8_dynamic")).pass);
}

#[test]
fn every_documented_recipe_has_a_bucket() {
    let recipes = [
        "fp8_dynamic",
        "fp8",
        "fp8_block",
        "w8a8",
        "w8a16",
        "w4a16",
        "w4a16_g64",
        "w4a16_g32",
        "w4a16_asym_g32",
        "nvfp4a16",
        "nvfp4",
        "nvfp4_experts_only",
        "mxfp4a16",
        "mxfp8a16",
        "w2a16",
        "int4_awq",
        "nvfp4_mlp_only",
        "nvfp4_omlp_only",
    ];
    for recipe in recipes {
        assert!(precision_bucket(recipe).is_some(), "{recipe}");
    }
    assert_eq!(precision_bucket("mystery"), None);
}

#[test]
fn a_threshold_that_is_no_number_is_a_configuration_error() {
    for bad in [f64::NAN, f64::INFINITY, -0.01] {
        let report = compare_summaries(&json!({"t": 1}), &json!({"t": 1}), bad, false, None);
        assert_decision(&report, Verdict::Anomalous, CONFIG);
    }
    assert_decision(&compare(json!([1]), json!({"t": 1})), Verdict::Anomalous, CONFIG);
    assert_decision(&compare(json!({}), json!({})), Verdict::Anomalous, CONFIG);
}

#[test]
fn reports_have_upstreams_keys() {
    for report in [compare(json!({"t": 1}), json!({"t": 1})), run(|_| {}), ptq(|_| {})] {
        let printed = serde_json::to_value(&report).unwrap();
        for key in ["pass", "decision", "verdict", "failure_class", "detail", "checks", "per_task"] {
            assert!(printed.get(key).is_some(), "{key}");
        }
    }
}

//! Whether the gate ever accepts what it must not, and says of everything else why.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::base::digest::Digest;
use crate::base::stats::PairedCounts;
use crate::gate::fixtures::{accuracy_arm, accuracy_task, arm, failed_item, perplexity_arm};
use crate::record::eval::{EvalRecord, ItemOrder, TaskRecord, TaskStatus};
use crate::record::{FailureClass, GateReport, Verdict};

const COMPARABILITY: Option<FailureClass> = Some(FailureClass::ComparabilityFailed);
const ACCOUNTING: Option<FailureClass> = Some(FailureClass::SampleAccountingFailed);
const INSUFFICIENT: Option<FailureClass> = Some(FailureClass::InsufficientEvidence);
const REGRESSION: Option<FailureClass> = Some(FailureClass::AccuracyRegression);

/// 0/1 values of both arms: `right` items right on both, `b` lost, `c` gained, the rest wrong on both.
fn values(n: usize, right: usize, b: usize, c: usize) -> (Vec<f64>, Vec<f64>) {
    let flag = |on: bool| f64::from(u8::from(on));
    let baseline = (0..n).map(|i| flag(i < right + b)).collect();
    let candidate = (0..n).map(|i| flag(i < right || (right + b..right + b + c).contains(&i))).collect();
    (baseline, candidate)
}

fn arms(n: usize, right: usize, b: usize, c: usize) -> (EvalRecord, EvalRecord) {
    let (baseline, candidate) = values(n, right, b, c);
    (accuracy_arm("baseline", &baseline), accuracy_arm("candidate", &candidate))
}

fn threshold() -> CompareOptions {
    CompareOptions { policy: Policy::Threshold, ..CompareOptions::default() }
}

fn certify(n: usize, right: usize, b: usize, c: usize) -> GateReport {
    let (baseline, candidate) = arms(n, right, b, c);
    compare(&baseline, &candidate, &CompareOptions::default())
}

fn evidence(report: &GateReport, task: &str) -> TaskEvidence {
    serde_json::from_value(report.per_task[task].clone()).unwrap()
}

/// Class of a comparison that would be accepted, after `change` of the candidate.
fn class(change: impl FnOnce(&mut EvalRecord)) -> Option<FailureClass> {
    let (baseline, mut candidate) = arms(4000, 3000, 8, 6);
    assert!(compare(&baseline, &candidate, &CompareOptions::default()).pass);
    change(&mut candidate);
    compare(&baseline, &candidate, &CompareOptions::default()).failure_class
}

fn task_of(record: &mut EvalRecord) -> &mut TaskRecord {
    record.tasks.values_mut().next().unwrap()
}

#[test]
fn certify_accepts_what_is_shown_to_be_within() {
    let report = certify(4000, 3000, 30, 28);
    assert_eq!(report.verdict, Some(Verdict::Accept), "{}", report.detail);
    let task = evidence(&report, "task");
    assert_eq!((task.n, task.flips_b, task.flips_c), (4000, Some(30), Some(28)));
    assert_eq!((task.verdict, task.method), (TaskVerdict::Within, Method::Tango));
    assert!(task.upper.unwrap() < 0.01 && task.lower.unwrap() < 0.0);
    assert_eq!(task.flips.len(), 58);
    assert_eq!(task.flips.iter().filter(|flip| flip.lost).count(), 30);
    for check in ["baseline.run", "candidate.run", "comparability", "options", "accuracy", "policy"] {
        assert_eq!(report.checks[check]["pass"], json!(true), "{check}");
    }
}

#[test]
fn certify_proves_a_regression() {
    let report = certify(4000, 3000, 200, 40);
    assert_eq!((report.verdict, report.failure_class), (Some(Verdict::Regression), REGRESSION));
    assert!(report.detail.contains("200 items lost, 40 gained"), "{}", report.detail);
}

#[test]
fn certify_does_not_decide_without_evidence() {
    let report = certify(40, 30, 1, 0);
    assert_eq!((report.verdict, report.failure_class), (Some(Verdict::Anomalous), INSUFFICIENT));
    for part in ["n 40", "flip rate 0.0250", "detectable drop", "n needed"] {
        assert!(report.detail.contains(part), "{part}: {}", report.detail);
    }
    // Not one flip in 40 items shows nothing either.
    let none = certify(40, 30, 0, 0);
    assert_eq!(none.failure_class, INSUFFICIENT);
    assert_eq!(evidence(&none, "task").n_needed_no_drop, Some(299));
}

#[test]
fn a_drop_may_be_detectable_and_within() {
    let report = certify(40_000, 30_000, 250, 50);
    assert!(report.pass, "{}", report.detail);
    assert!(report.findings.iter().any(|f| f.observed.contains("detectable, but within")));
}

#[test]
fn an_implausible_gain_is_anomalous() {
    let report = certify(4000, 3000, 10, 400);
    assert_eq!(report.failure_class, Some(FailureClass::ImplausibleGain));
    // A gain that is not shown to exceed the limit is none.
    assert!(certify(4000, 3000, 10, 210).pass);
}

#[test]
fn the_margin_itself_is_not_within() {
    // Without flips the exact bound is 1 − α^(1/n): 298 items just miss a margin of 1 %, 299 reach it.
    assert_eq!(certify(298, 220, 0, 0).failure_class, INSUFFICIENT);
    assert!(certify(299, 220, 0, 0).pass);
    // A margin exactly at the upper bound is not met, the next float above it is.
    let (baseline, candidate) = arms(4000, 3000, 30, 28);
    let upper =
        PairedCounts::new(4000, 30, 28).unwrap().tango_bounds(crate::base::stats::Alpha::FIVE_PERCENT).upper;
    let with = |margin: f64| {
        let margin = Some(Margin::Absolute(margin));
        compare(&baseline, &candidate, &CompareOptions { margin, ..CompareOptions::default() }).pass
    };
    assert!(!with(upper) && with(upper.next_up()));
}

#[test]
fn margins_and_tiers_of_a_task_are_its_own() {
    let (baseline, candidate) = arms(4000, 3000, 200, 40);
    let with = |task: TaskOptions| {
        let tasks = [("task".to_owned(), task)].into();
        compare(&baseline, &candidate, &CompareOptions { tasks, ..CompareOptions::default() })
    };
    assert!(with(TaskOptions { margin: Some(Margin::Absolute(0.06)), ..TaskOptions::default() }).pass);
    // With every task advisory there is nothing to accept on.
    let advisory = with(TaskOptions { tier: Tier::Advisory, ..TaskOptions::default() });
    assert_eq!(advisory.failure_class, INSUFFICIENT);
    assert!(advisory.findings.iter().any(|f| f.check == "accuracy" && !f.decides()));
}

#[test]
fn a_required_task_that_was_not_evaluated_is_missed() {
    let (baseline, candidate) = arms(4000, 3000, 8, 6);
    let mut options = CompareOptions::default();
    options.tasks.insert("other".into(), TaskOptions::default());
    assert_eq!(compare(&baseline, &candidate, &options).failure_class, INSUFFICIENT);
    options.tasks.insert("other".into(), TaskOptions { tier: Tier::Advisory, ..TaskOptions::default() });
    assert!(compare(&baseline, &candidate, &options).pass);
}

#[test]
fn regressions_are_corrected_across_tasks() {
    // One-sided p of about 0.03 at the margin: a regression alone, not among eight tasks.
    let (bad_base, bad_cand) = values(4000, 3000, 71, 14);
    let (good_base, good_cand) = values(4000, 3000, 8, 6);
    let suite = |name: &str, bad: &[f64], good: &[f64], others: usize| {
        let mut tasks = vec![accuracy_task("bad", bad, name)];
        tasks.extend((0..others).map(|i| accuracy_task(&format!("good{i}"), good, name)));
        arm(name, tasks)
    };
    let judge = |others| {
        let baseline = suite("baseline", &bad_base, &good_base, others);
        compare(&baseline, &suite("candidate", &bad_cand, &good_cand, others), &CompareOptions::default())
    };
    let alone = judge(0);
    let p = evidence(&alone, "bad").p_value.unwrap();
    assert!((0.01..0.05).contains(&p), "{p}");
    assert_eq!(alone.failure_class, REGRESSION);
    let family = judge(7);
    assert_eq!(family.failure_class, INSUFFICIENT);
    assert!((evidence(&family, "bad").p_adjusted.unwrap() - 8.0 * p).abs() < 1e-12);
}

#[test]
fn an_undecided_task_does_not_hide_a_regression() {
    let suite = |name: &str, bad: &[f64], few: &[f64]| {
        arm(name, vec![accuracy_task("bad", bad, name), accuracy_task("few", few, name)])
    };
    let (bad, few) = (values(4000, 3000, 200, 40), values(40, 30, 1, 0));
    let baseline = suite("baseline", &bad.0, &few.0);
    let report = compare(&baseline, &suite("candidate", &bad.1, &few.1), &CompareOptions::default());
    assert_eq!(report.failure_class, REGRESSION);
    assert!(report.findings.iter().any(|f| Some(f.failure_class) == INSUFFICIENT));
}

#[test]
fn threshold_decides_on_counts() {
    let with = |n, right, b, c| {
        let (baseline, candidate) = arms(n, right, b, c);
        compare(&baseline, &candidate, &threshold())
    };
    // 3 of 300 is exactly one percent, though the means differ by more in floating point.
    assert!(with(300, 167, 3, 0).pass);
    assert_eq!(with(300, 167, 4, 0).failure_class, REGRESSION);
    assert!(with(400, 200, 0, 20).pass);
    assert_eq!(with(400, 200, 0, 21).failure_class, Some(FailureClass::ImplausibleGain));
}

#[test]
fn threshold_can_be_relative() {
    let (baseline, candidate) = arms(1000, 495, 5, 0);
    let options = |margin| CompareOptions { margin: Some(Margin::Relative(margin)), ..threshold() };
    assert!(compare(&baseline, &candidate, &options(0.01)).pass);
    assert_eq!(compare(&baseline, &candidate, &options(0.0099)).failure_class, REGRESSION);
    let (baseline, candidate) = arms(1000, 0, 0, 0);
    assert_eq!(compare(&baseline, &candidate, &options(0.01)).failure_class, INSUFFICIENT);
}

#[test]
fn a_limited_run_is_never_accepted_by_threshold() {
    for (b, c) in [(0, 0), (8, 0), (0, 8)] {
        let (mut baseline, mut candidate) = arms(100, 70, b, c);
        for record in [&mut baseline, &mut candidate] {
            task_of(record).limited_by = "--limit 100".into();
            task_of(record).full_split = 4000;
        }
        assert_eq!(compare(&baseline, &candidate, &threshold()).failure_class, INSUFFICIENT);
    }
}

#[test]
fn a_limited_run_is_accepted_by_certify_only_if_the_interval_shows_it() {
    let with = |n, right, order| {
        let (mut baseline, mut candidate) = arms(n, right, 0, 0);
        for record in [&mut baseline, &mut candidate] {
            task_of(record).limited_by = format!("--limit {n}");
            task_of(record).full_split = 4000;
            task_of(record).order = order;
        }
        compare(&baseline, &candidate, &CompareOptions::default())
    };
    let sampled = Some(ItemOrder::Permuted { seed: 1 });
    assert_eq!(with(40, 30, sampled).failure_class, INSUFFICIENT);
    let shown = with(400, 300, sampled);
    assert!(shown.pass, "{}", shown.detail);
    let note = |report: &GateReport| {
        report.findings.iter().any(|f| !f.decides() && f.observed.contains("no independent test"))
    };
    assert!(shown.findings.iter().any(|f| f.observed.contains("400 of 4000 items")) && note(&shown));
    assert!(note(&with(40, 30, sampled)), "an undecided plan is the one that will be extended");
    // The first items of the data set, or nobody knows which, are no sample: they show nothing about the rest.
    for order in [Some(ItemOrder::Dataset), None] {
        let prefix = with(400, 300, order);
        assert_eq!(prefix.failure_class, INSUFFICIENT, "{order:?}");
        let finding = prefix.findings.iter().find(|f| f.check == "evidence" && f.decides()).unwrap();
        assert!(finding.observed.contains("no random sample") && finding.hint.contains("seeded sample"));
    }
}

/// Bits per byte around 1.5, the candidate's higher by the factor `1 + shift`, each document a little differently.
fn text_arms(documents: usize, shift: f64) -> (EvalRecord, EvalRecord) {
    let wave = |i: usize| ((i * 37) % 101) as f64 / 101.0 - 0.5;
    let base: Vec<f64> = (0..documents).map(|i| 1.5 + 0.4 * wave(i)).collect();
    let cand: Vec<f64> =
        base.iter().enumerate().map(|(i, b)| b * (1.0 + shift + 0.01 * wave(i * 7 + 3))).collect();
    (perplexity_arm("baseline", &base), perplexity_arm("candidate", &cand))
}

#[test]
fn bits_per_byte_is_judged_relative_and_lower_is_better() {
    let judge = |shift, options: &CompareOptions| {
        let (baseline, candidate) = text_arms(400, shift);
        compare(&baseline, &candidate, options)
    };
    for options in [CompareOptions::default(), threshold()] {
        assert!(judge(0.005, &options).pass, "{:?}", options.policy);
        assert!(judge(-0.005, &options).pass, "{:?}", options.policy);
        assert_eq!(judge(0.02, &options).failure_class, REGRESSION);
        assert_eq!(judge(-0.08, &options).failure_class, Some(FailureClass::ImplausibleGain));
    }
    let report = judge(0.005, &CompareOptions::default());
    let task = evidence(&report, "text");
    assert_eq!((task.method, task.margin), (Method::PairedT, Margin::Relative(0.01)));
    assert!((task.drop_fraction.unwrap() - 0.005).abs() < 5e-4 && task.drop > 0.0 && task.flips_b.is_none());
}

#[test]
fn bits_per_byte_needs_three_hundred_documents() {
    for options in [CompareOptions::default(), threshold()] {
        let (baseline, candidate) = text_arms(299, 0.001);
        assert_eq!(compare(&baseline, &candidate, &options).failure_class, INSUFFICIENT);
        let (baseline, candidate) = text_arms(300, 0.001);
        assert!(compare(&baseline, &candidate, &options).pass);
    }
}

#[test]
fn a_perplexity_is_judged_by_its_logarithm() {
    // Items hold negative log-likelihoods a word; the metric is exp of their mean.
    let as_perplexity = |mut record: EvalRecord| {
        let metric = task_of(&mut record).metrics.get_mut("bits_per_byte").unwrap();
        metric.value = metric.value.exp();
        record
    };
    // The mean rises by 0.4 % of 1.5 nats, the perplexity by exp(0.006) − 1 = 0.6 %.
    let (baseline, candidate) = text_arms(400, 0.004);
    let report = compare(&as_perplexity(baseline), &as_perplexity(candidate), &CompareOptions::default());
    let task = evidence(&report, "text");
    assert!(report.pass, "{}", report.detail);
    assert!((task.baseline - 1.5f64.exp()).abs() < 0.1, "{}", task.baseline);
    let fraction = task.drop_fraction.unwrap();
    assert!(
        (fraction - (task.candidate / task.baseline - 1.0)).abs() < 1e-12 && (fraction - 0.006).abs() < 5e-4
    );
    assert!(task.lower.unwrap() < fraction && fraction < task.upper.unwrap());
    // 0.9 % of the mean is within one percent, exp(0.0135) − 1 = 1.4 % of the perplexity is not.
    for options in [CompareOptions::default(), threshold()] {
        let (baseline, candidate) = text_arms(400, 0.009);
        assert!(compare(&baseline, &candidate, &options).pass);
        let report = compare(&as_perplexity(baseline), &as_perplexity(candidate), &options);
        assert_eq!(report.failure_class, REGRESSION);
    }
}

#[test]
fn unconditional_requests_are_no_choices() {
    let (mut baseline, mut candidate) = arms(4000, 3000, 8, 6);
    let before = compare(&baseline, &candidate, &CompareOptions::default());
    for record in [&mut baseline, &mut candidate] {
        for item in &mut task_of(record).items {
            item.values.insert("acc_mutual_info".into(), 0.0);
            item.loglikelihoods.extend([-5.0, -6.0, -7.0, -8.0]);
            item.is_greedy.extend([false; 4]);
        }
    }
    let after = compare(&baseline, &candidate, &CompareOptions::default());
    assert_eq!(evidence(&before, "task"), evidence(&after, "task"));
}

#[test]
fn a_metric_without_scale_needs_a_relative_margin() {
    let (baseline, candidate) = text_arms(400, 0.0);
    let options = CompareOptions { margin: Some(Margin::Absolute(0.01)), ..CompareOptions::default() };
    assert_eq!(compare(&baseline, &candidate, &options).failure_class, Some(FailureClass::UserConfigError));
}

#[test]
fn rare_differences_of_a_continuous_metric_decide_nothing() {
    // Scores of 0, 0.5 and 1 with three differing items: t would claim far too narrow an interval.
    let base: Vec<f64> = (0..1000).map(|i| [1.0, 0.5, 1.0][i % 3]).collect();
    let mut cand = base.clone();
    for value in &mut cand[..3] {
        *value -= 0.5;
    }
    let (baseline, candidate) = (accuracy_arm("baseline", &base), accuracy_arm("candidate", &cand));
    let report = compare(&baseline, &candidate, &CompareOptions::default());
    assert_eq!(report.failure_class, INSUFFICIENT);
    assert!(report.detail.contains("3 differing items"), "{}", report.detail);
}

#[test]
fn clusters_widen_the_interval() {
    let (mut baseline, mut candidate) = arms(4000, 3000, 40, 20);
    let plain = evidence(&compare(&baseline, &candidate, &CompareOptions::default()), "task");
    for record in [&mut baseline, &mut candidate] {
        for item in &mut task_of(record).items {
            item.cluster = Some(format!("subject {}", item.doc_id / 400));
        }
    }
    let clustered = evidence(&compare(&baseline, &candidate, &CompareOptions::default()), "task");
    assert_eq!(clustered.method, Method::TangoOrCluster);
    assert!(clustered.upper > plain.upper && clustered.lower <= plain.lower);
}

#[test]
fn the_proof_names_the_first_difference() {
    let named = |change: fn(&mut EvalRecord), class: Option<FailureClass>, name: &str| {
        let (baseline, mut candidate) = arms(4000, 3000, 8, 6);
        change(&mut candidate);
        let report = compare(&baseline, &candidate, &CompareOptions::default());
        assert_eq!(report.failure_class, class, "{name}");
        assert!(report.detail.contains(name), "{name}: {}", report.detail);
        assert_eq!(report.checks["comparability"]["pass"], json!(false));
        assert_eq!(report.per_task["task"]["within_threshold"], json!(false));
    };
    named(|r| r.identity.engine = "vllm".into(), COMPARABILITY, "engine");
    named(|r| r.identity.device = "cuda:0".into(), COMPARABILITY, "device");
    named(|r| r.identity.kernel_path = "avx2".into(), COMPARABILITY, "kernel_path");
    named(|r| r.identity.tokenizer_digest = Some(Digest::of(b"other")), COMPARABILITY, "tokenizer");
    named(|r| r.identity.tokenizer_digest = None, COMPARABILITY, "tokenizer");
    named(|r| r.identity.checkpoint_digest = Some(Digest::of(b"baseline")), COMPARABILITY, "checkpoint");
    named(|r| r.identity.checkpoint_digest = None, COMPARABILITY, "checkpoint");
    named(|r| task_of(r).version = "2.0".into(), COMPARABILITY, "version");
    named(|r| task_of(r).task_digest = Digest::of(b"other"), COMPARABILITY, "task_digest");
    named(|r| task_of(r).primary_metric.scale = Some(100.0), COMPARABILITY, "metric");
    named(|r| task_of(r).items[7].prompt_digest = Digest::of(b"other"), COMPARABILITY, "task item 7");
    named(|r| task_of(r).items[9].token_digest = Digest::of(b"other"), COMPARABILITY, "task item 9");
    named(|r| task_of(r).items[4].target_digest = Some(Digest::of(b"other")), COMPARABILITY, "task item 4");
    named(|r| task_of(r).items.iter_mut().for_each(|i| i.weight = 2.0), COMPARABILITY, "task item 0");
    named(|r| task_of(r).items[3].cluster = Some("a".into()), COMPARABILITY, "task item 3");
    named(|r| task_of(r).items[5].doc_id = 5000, ACCOUNTING, "item 5000 at place 5");
    named(
        |r| {
            task_of(r).items[2].loglikelihoods.pop();
            task_of(r).items[2].is_greedy.pop();
        },
        COMPARABILITY,
        "3 requests",
    );
    named(
        |r| {
            let task = r.tasks.remove("task").unwrap();
            r.tasks.insert("renamed".into(), task);
        },
        ACCOUNTING,
        "renamed",
    );
}

#[test]
fn the_baseline_served_as_the_candidate_is_caught() {
    let (baseline, mut candidate) = arms(4000, 3000, 0, 0);
    candidate.tasks.clone_from(&baseline.tasks);
    let report = compare(&baseline, &candidate, &CompareOptions::default());
    assert_eq!(report.failure_class, COMPARABILITY);
    assert!(report.detail.contains("bit-identical"), "{}", report.detail);
    // Of two models some items may round alike, but not most.
    let with_others = |others: usize| {
        let mut candidate = candidate.clone();
        for item in &mut task_of(&mut candidate).items[..others] {
            item.loglikelihoods[0] -= 1e-4;
        }
        compare(&baseline, &candidate, &CompareOptions::default())
    };
    let mostly = with_others(1999);
    assert_eq!(mostly.failure_class, COMPARABILITY);
    assert!(mostly.detail.contains("2001 of 4000 items are bit-identical"), "{}", mostly.detail);
    assert!(with_others(2000).pass);
}

#[test]
fn only_complete_runs_are_compared() {
    assert_eq!(
        class(|r| task_of(r).items[4] = failed_item(4, Some(429), false)),
        Some(FailureClass::EvalJudgeFailed)
    );
    assert_eq!(
        class(|r| task_of(r).items[4] = failed_item(4, Some(500), true)),
        Some(FailureClass::InfraTransient)
    );
    assert_eq!(class(|r| task_of(r).items[4].loglikelihoods[0] = f64::NAN), ACCOUNTING);
    assert_eq!(class(|r| drop(task_of(r).items.pop())), ACCOUNTING);
    assert_eq!(class(|r| r.tasks.clear()), ACCOUNTING);
    let nothing = compare(&arm("baseline", vec![]), &arm("candidate", vec![]), &CompareOptions::default());
    assert_eq!(nothing.failure_class, Some(FailureClass::UserConfigError));
    let unfinished = class(|r| {
        task_of(r).status = TaskStatus::Running;
        task_of(r).items.truncate(100);
    });
    assert_eq!(unfinished, ACCOUNTING, "the item sets differ, too");
    assert_eq!(class(|r| r.schema_version = 99), Some(FailureClass::UserConfigError));
}

#[test]
fn a_baseline_at_chance_shows_nothing() {
    // Four choices: 25 % of 4000 items are right by guessing, 26.1 % is within noise of that, 27 % is not.
    assert_eq!(certify(4000, 1040, 4, 4).failure_class, INSUFFICIENT);
    assert!(certify(4000, 1080, 4, 4).pass);
}

#[test]
fn published_scores_are_compared_with_the_baseline() {
    let (baseline, candidate) = arms(4000, 2992, 8, 6);
    let within = |published: f64, tolerance: f64| {
        let published = Published { score: published, tolerance };
        let published = [("task".to_owned(), published)].into();
        compare(&baseline, &candidate, &CompareOptions { published, ..CompareOptions::default() })
    };
    let with = |published: f64| within(published, Published::TOLERANCE);
    // The baseline is at exactly 0.75.
    assert!(with(0.70).pass && with(0.80).pass && with(0.75).pass);
    assert_eq!(with(0.6999).failure_class, Some(FailureClass::ExternalBaselineMismatch));
    assert_eq!(with(0.8001).failure_class, Some(FailureClass::ExternalBaselineMismatch));
    // Each score has its own tolerance.
    assert!(within(0.74, 0.01).pass && within(0.60, 0.15).pass);
    assert_eq!(within(0.72, 0.01).failure_class, Some(FailureClass::ExternalBaselineMismatch));
    assert_eq!(with(75.0).failure_class, Some(FailureClass::UserConfigError));
    let none = compare(&baseline, &candidate, &CompareOptions::default());
    assert!(none.pass && none.findings.iter().any(|f| f.observed.contains("externally unverified")));
}

#[test]
fn margins_must_be_fractions() {
    let (baseline, candidate) = arms(4000, 3000, 8, 6);
    for bad in [0.0, -0.01, 1.0, f64::NAN, f64::INFINITY] {
        let options = CompareOptions { margin: Some(Margin::Absolute(bad)), ..CompareOptions::default() };
        let report = compare(&baseline, &candidate, &options);
        assert_eq!(report.failure_class, Some(FailureClass::UserConfigError), "{bad}");
    }
}

#[test]
fn alarms_are_notes() {
    let report = certify(40_000, 30_000, 2500, 2500);
    assert!(report.pass, "{}", report.detail);
    assert!(report.findings.iter().any(|f| f.check == "alarm" && f.observed.contains("flip rate 0.125")));
    assert_eq!(evidence(&report, "task").flips.len(), 200);
}

#[test]
fn options_are_read_strictly() {
    let text = json!({
        "policy": "threshold", "alpha": 0.025, "margin": {"relative": 0.02},
        "tasks": {"a": {"margin": {"absolute": 0.005}, "tier": "advisory"}},
        "published": {"a": {"score": 0.5}},
    });
    let options: CompareOptions = serde_json::from_value(text).unwrap();
    assert_eq!(options.published["a"], Published { score: 0.5, tolerance: 0.05 });
    assert_eq!((options.tier("a"), options.tier("b")), (Tier::Advisory, Tier::Required));
    for bad in [json!({"alpha": 0.7}), json!({"margins": 1}), json!({"tasks": {"a": {"teir": "required"}}})] {
        assert!(serde_json::from_value::<CompareOptions>(bad).is_err());
    }
}

/// Values of the baseline and of the candidate.
type Pair = (Vec<f64>, Vec<f64>);

/// A task of either kind: 0/1 values from counts, or continuous ones.
fn arbitrary_task() -> impl Strategy<Value = Pair> {
    let counts = (1usize..3000, 0.0f64..1.0, 0.0f64..0.06, 0.0f64..0.06).prop_map(|(n, right, b, c)| {
        let (b, c) = ((b * n as f64) as usize, (c * n as f64) as usize);
        values(n, (right * (n - b - c) as f64) as usize, b, c)
    });
    let continuous =
        (2usize..600, -0.03f64..0.03, 0.0f64..0.1, any::<u64>()).prop_map(|(n, shift, noise, seed)| {
            let wave = |i: usize| {
                ((i as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed) >> 40) as f64
            };
            let unit = |i: usize| wave(i) / f64::from(1u32 << 24);
            let base: Vec<f64> = (0..n).map(|i| 0.5 + 0.2 * unit(i)).collect();
            let cand =
                base.iter().enumerate().map(|(i, b)| b - shift + noise * (unit(i + n) - 0.5)).collect();
            (base, cand)
        });
    prop_oneof![counts, continuous]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn accept_means_every_required_bound_below_its_margin_and_every_check_passed(
        tasks in prop::collection::vec((arbitrary_task(), 0.002f64..0.08, any::<bool>()), 1..4),
        limited in any::<bool>(),
        policy in prop_oneof![Just(Policy::Certify), Just(Policy::Threshold)],
    ) {
        let record = |name: &str, pick: fn(&Pair) -> &Vec<f64>| {
            let tasks = tasks.iter().enumerate().map(|(i, (task, ..))| {
                let mut task = accuracy_task(&format!("task{i}"), pick(task), name);
                if limited {
                    task.limited_by = "--limit".into();
                    task.order = Some(ItemOrder::Permuted { seed: 1 });
                    task.full_split = 20_000;
                }
                task
            });
            arm(name, tasks.collect())
        };
        let (baseline, candidate) = (record("baseline", |t| &t.0), record("candidate", |t| &t.1));
        let mut options = CompareOptions { policy, ..CompareOptions::default() };
        for (i, (_, margin, required)) in tasks.iter().enumerate() {
            let tier = if *required { Tier::Required } else { Tier::Advisory };
            let task = TaskOptions { margin: Some(Margin::Absolute(*margin)), tier, ..TaskOptions::default() };
            options.tasks.insert(format!("task{i}"), task);
        }
        let report = compare(&baseline, &candidate, &options);
        prop_assert_eq!(report.pass, report.verdict == Some(Verdict::Accept));
        if report.pass {
            prop_assert!(tasks.iter().any(|(.., required)| *required));
            prop_assert!(!(limited && policy == Policy::Threshold));
            for seen in report.checks.values() {
                prop_assert_eq!(&seen["pass"], &json!(true));
            }
            for (i, (_, margin, _)) in tasks.iter().enumerate().filter(|(_, (.., required))| *required) {
                let task = evidence(&report, &format!("task{i}"));
                prop_assert_eq!(task.verdict, TaskVerdict::Within);
                if policy == Policy::Certify {
                    prop_assert!(task.upper.unwrap() < *margin && task.unreliable.is_empty());
                } else {
                    prop_assert!(task.drop <= *margin + 1e-12);
                }
            }
        }
    }

    #[test]
    fn any_damage_to_the_candidate_record_is_never_accepted(item in 0usize..300, damage in 0usize..9) {
        let (baseline, mut candidate) = arms(1000, 700, 1, 1);
        let task = task_of(&mut candidate);
        match damage {
            0 => task.items[item].prompt_digest = Digest::of(b"other"),
            1 => task.items[item].token_digest = Digest::of(b"other"),
            2 => task.items[item].loglikelihoods[1] = f64::NAN,
            3 => task.items[item].loglikelihoods[1] = -9999.0,
            4 => task.items[item] = failed_item(item, None, false),
            5 => drop(task.items.remove(item)),
            6 => task.items.swap(item, item + 1),
            7 => task.items[item].values.clear(),
            _ => task.items[item].loglikelihoods.fill(0.0),
        }
        let report = compare(&baseline, &candidate, &CompareOptions::default());
        prop_assert!(!report.pass && report.verdict == Some(Verdict::Anomalous), "{}", report.detail);
    }
}

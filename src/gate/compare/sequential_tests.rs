//! Whether a task stops when it may, and only then.

use serde_json::json;

use super::pairs::Pairs;
use super::*;
use crate::base::stats::{Alpha, PairedCounts};
use crate::gate::fixtures::accuracy_arm;
use crate::record::eval::{EvalRecord, ItemOrder, TaskRecord, Visit};
use crate::record::{FailureClass, GateReport, Verdict};

const RULE: StopRule = StopRule { margin: 0.01, alpha: Alpha::FIVE_PERCENT, tests: 1, whole: true };

fn wave(n: u64, lost: u64, gained: u64) -> WaveCounts {
    WaveCounts { n, lost, gained, right: n * 3 / 4, guessed: Some(n as f64 / 4.0) }
}

fn decision(rule: StopRule, waves: &[WaveCounts]) -> Option<(u64, Decision)> {
    let last = rule.replay(waves).pop()?;
    Some((last.n, last.decision?))
}

#[test]
fn stops_at_the_first_look_that_decides() {
    let calm = [wave(64, 0, 0); 40];
    let (n, what) = decision(RULE, &calm).unwrap();
    assert_eq!(what, Decision::Within);
    // Without flips no test at 1/40 can know before ln 40 / ln(1 + m/(1 − m)) = 367 items.
    assert!((367..1000).contains(&n), "{n}");
    let (n, what) = decision(RULE, &[wave(64, 12, 0); 40]).unwrap();
    assert!(what == Decision::Regression && n <= 128, "{n}");
    assert_eq!(
        decision(RULE, &[wave(64, 1, 0); 40]),
        None,
        "a drop of 1.6 points takes more than 2560 items"
    );
}

#[test]
fn more_tasks_ask_for_more_evidence_of_a_regression() {
    let damage = [wave(32, 3, 1); 60];
    let at = |tests| decision(StopRule { tests, ..RULE }, &damage).unwrap().0;
    assert!(at(1) < at(20), "{} {}", at(1), at(20));
}

#[test]
fn a_gain_or_a_baseline_at_chance_does_not_stop_as_within() {
    let gain = [wave(64, 0, 6); 20];
    assert!(decision(RULE, &gain).is_none());
    let guessing = WaveCounts { right: 16, ..wave(64, 0, 0) };
    assert!(decision(RULE, &[guessing; 40]).is_none());
}

/// Both arms of a task that was planned with `full` items and stopped after `n`, in waves of 64.
fn stopped(n: usize, full: usize, lost: impl Fn(usize) -> bool) -> (EvalRecord, EvalRecord) {
    changed(n, full, |i, right| right && !lost(i))
}

/// The same, where `still` says of an item and whether the baseline is right whether the candidate is.
fn changed(n: usize, full: usize, still: impl Fn(usize, bool) -> bool) -> (EvalRecord, EvalRecord) {
    let right = |i: usize| !i.is_multiple_of(4);
    let value = |on: bool| f64::from(u8::from(on));
    let base: Vec<f64> = (0..n).map(|i| value(right(i))).collect();
    let cand: Vec<f64> = (0..n).map(|i| value(still(i, right(i)))).collect();
    let visit = |mut record: EvalRecord| {
        let task = task_of(&mut record);
        task.expected = full;
        task.full_split = full;
        task.visit = Some(Visit {
            order: (0..n).rev().collect(),
            looks: (1..=n.div_ceil(64)).map(|w| n.min(64 * w)).collect(),
            group: None,
            not_needed: full - n,
        });
        record
    };
    (visit(accuracy_arm("baseline", &base)), visit(accuracy_arm("candidate", &cand)))
}

fn task_of(record: &mut EvalRecord) -> &mut TaskRecord {
    record.tasks.values_mut().next().unwrap()
}

fn decide(arms: &(EvalRecord, EvalRecord)) -> GateReport {
    compare(&arms.0, &arms.1, &CompareOptions::default())
}

fn evidence(report: &GateReport) -> TaskEvidence {
    serde_json::from_value(report.per_task["task"].clone()).unwrap()
}

#[test]
fn a_stopped_task_is_judged_by_its_looks() {
    let n = decision(RULE, &[wave(64, 0, 0); 40]).unwrap().0 as usize;
    let report = decide(&stopped(n, 4096, |_| false));
    assert_eq!(report.verdict, Some(Verdict::Accept), "{}", report.detail);
    let task = evidence(&report);
    assert_eq!((task.n, task.not_needed, task.method), (n, 4096 - n, Method::Betting));
    assert_eq!(task.looks.len(), n / 64);
    assert_eq!(task.looks.last().unwrap().decision, Some(Decision::Within));
    assert!(task.upper.unwrap() <= 0.01 && task.lower.unwrap() < 0.0, "{task:?}");
    assert!(report.findings.iter().any(|f| f.observed.contains("decided after")));
    assert_eq!(report.checks["comparability"]["pass"], json!(true));

    let report = decide(&stopped(128, 4096, |i| i % 5 == 0));
    assert_eq!(report.verdict, Some(Verdict::Regression), "{}", report.detail);
}

#[test]
fn leaving_items_out_without_a_decision_is_not_accounted_for() {
    let accounting = Some(FailureClass::SampleAccountingFailed);
    // Too early: the last look decides nothing.
    assert_eq!(decide(&stopped(320, 4096, |_| false)).failure_class, accounting);
    // Too late: a look before the last decided.
    assert_eq!(decide(&stopped(2048, 4096, |_| false)).failure_class, accounting);
    // Not the same path on both arms.
    let n = decision(RULE, &[wave(64, 0, 0); 40]).unwrap().0 as usize;
    let mut arms = stopped(n, 4096, |_| false);
    task_of(&mut arms.1).visit.as_mut().unwrap().order.swap(0, 1);
    assert_eq!(decide(&arms).failure_class, accounting);
    // More items left out than the plan had.
    let mut arms = stopped(n, 4096, |_| false);
    for arm in [&mut arms.0, &mut arms.1] {
        task_of(arm).visit.as_mut().unwrap().not_needed += 1;
    }
    assert_eq!(decide(&arms).failure_class, accounting);
    // The looks are not those of the items.
    let mut arms = stopped(n, 4096, |_| false);
    for arm in [&mut arms.0, &mut arms.1] {
        task_of(arm).visit.as_mut().unwrap().looks.pop();
    }
    assert_eq!(decide(&arms).failure_class, accounting);
}

#[test]
fn at_the_last_item_the_interval_decides_at_half_the_level() {
    // 300 items without a flip: z²/(n + z²) is 0.0089 at 5 %, 0.0126 at 2.5 %.
    let arms = stopped(300, 300, |_| false);
    let report = decide(&arms);
    assert_eq!(report.failure_class, Some(FailureClass::InsufficientEvidence));
    let task = evidence(&report);
    assert_eq!((task.method, task.level.value()), (Method::Tango, 0.025));
    assert!((task.upper.unwrap() - 0.012_643).abs() < 1e-5, "{task:?}");
    let fixed = |mut record: EvalRecord| {
        task_of(&mut record).visit = None;
        record
    };
    assert!(decide(&(fixed(arms.0), fixed(arms.1))).pass);
}

/// 800 items with 5 lost and 5 gained: the interval shows the drop to be within the margin, the looks do not. It may
/// decide at the last item of the split, and of a limited plan that had no looks; a limited plan with looks could be
/// extended on the same items, and its interval would be spent again.
#[test]
fn the_interval_of_a_limited_plan_with_looks_decides_nothing() {
    let limited = |(mut a, mut b): (EvalRecord, EvalRecord), looks: bool| {
        for record in [&mut a, &mut b] {
            let task = task_of(record);
            "--limit 800".clone_into(&mut task.limited_by);
            task.full_split = 4096;
            task.order = Some(ItemOrder::Permuted { seed: 1 });
            task.visit = task.visit.take().filter(|_| looks);
        }
        (a, b)
    };
    let arms = || changed(800, 800, |i, right| (right && i % 160 != 1) || i % 160 == 0);
    let whole = decide(&arms());
    let of_whole = evidence(&whole);
    assert_eq!((of_whole.flips_b, of_whole.flips_c), (Some(5), Some(5)));
    assert!(of_whole.looks.iter().all(|look| look.decision.is_none()), "{:?}", of_whole.looks.last());
    assert!(whole.pass, "{}", whole.detail);
    assert!(decide(&limited(arms(), false)).pass);
    let report = decide(&limited(arms(), true));
    assert_eq!(report.failure_class, Some(FailureClass::InsufficientEvidence), "{}", report.detail);
    let task = evidence(&report);
    assert!(task.upper.unwrap() < 0.01 && task.upper == of_whole.upper, "the interval alone would accept");
    // What is needed is planned by the test that decides.
    assert!(of_whole.n_needed_no_drop < Some(1200), "{:?}", of_whole.n_needed_no_drop);
    assert!((1200..4096).contains(&task.n_needed_no_drop.unwrap()), "{:?}", task.n_needed_no_drop);
    assert!(task.mde > of_whole.mde, "{:?} {:?}", task.mde, of_whole.mde);
    // Looks show it of a limited plan, too.
    let n = decision(RULE, &[wave(64, 0, 0); 40]).unwrap().0 as usize;
    let report = decide(&limited(stopped(n, 800, |_| false), true));
    assert!(report.pass, "{}", report.detail);
}

/// The simulator and the gate judge the last look alike.
#[test]
fn the_end_of_a_plan_is_judged_as_by_the_gate() {
    for lost in [0, 3, 8, 9, 10, 11, 12, 20, 40] {
        let spread = |i: usize| !i.is_multiple_of(4) && i % 8 == 1 && i / 8 < lost;
        let arms = stopped(400, 400, spread);
        let pairs = Pairs::of(&Subject::task("task", None), &arms.0, &arms.1).unwrap();
        let waves = super::sequential::waves(&pairs).unwrap();
        let looks = RULE.replay(&waves);
        if looks.iter().any(|look| look.decision.is_some()) {
            continue;
        }
        let counts = PairedCounts::new(400, lost as u64, 0).unwrap();
        let expected = match RULE.at_the_end(counts, looks.last()) {
            Some(Decision::Within) => TaskVerdict::Within,
            Some(Decision::Regression) => TaskVerdict::Regression,
            None => TaskVerdict::Undecided,
        };
        assert_eq!(evidence(&decide(&arms)).verdict, expected, "{lost} lost");
    }
}

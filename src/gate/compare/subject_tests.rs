//! Groups that are decided as one.

use super::*;
use crate::base::stats::{Alpha, Ratio};
use crate::gate::fixtures::{accuracy_task, arm};
use crate::record::eval::{EvalRecord, GroupRecord, Visit};
use crate::record::{FailureClass, GateReport, Verdict};

/// Items of a task: right on both, lost, gained, wrong on both, in this order.
#[derive(Clone, Copy)]
struct Part {
    right: usize,
    lost: usize,
    gained: usize,
    wrong: usize,
}

fn arms(parts: &[Part], by_size: bool) -> (EvalRecord, EvalRecord) {
    let record = |name: &str, counts: fn(&Part) -> [(usize, f64); 4]| {
        let task = |(index, part): (usize, &Part)| {
            let values: Vec<f64> = counts(part).iter().flat_map(|(n, value)| vec![*value; *n]).collect();
            accuracy_task(&format!("t{index}"), &values, name)
        };
        let mut record = arm(name, parts.iter().enumerate().map(task).collect());
        let tasks = record.tasks.keys().cloned().collect();
        let metrics = [("acc".to_owned(), by_size)].into();
        record.groups.insert("all".to_owned(), GroupRecord { tasks, metrics, advisory: Vec::new() });
        record
    };
    (
        record("baseline", |p| [(p.right, 1.0), (p.lost, 1.0), (p.gained, 0.0), (p.wrong, 0.0)]),
        record("candidate", |p| [(p.right, 1.0), (p.lost, 0.0), (p.gained, 1.0), (p.wrong, 0.0)]),
    )
}

fn evidence(report: &GateReport, name: &str) -> TaskEvidence {
    serde_json::from_value(report.per_task[name].clone()).unwrap()
}

fn decide(arms: &(EvalRecord, EvalRecord)) -> GateReport {
    compare(&arms.0, &arms.1, &CompareOptions::default())
}

/// Forty subjects of a hundred questions, one flipped either way: none says anything about one point, all together do.
const SUBJECT: Part = Part { right: 60, lost: 1, gained: 1, wrong: 38 };

#[test]
fn subjects_that_show_nothing_alone_show_it_together() {
    let parts = [SUBJECT; 40];
    let together = decide(&arms(&parts, true));
    assert_eq!(together.verdict, Some(Verdict::Accept), "{}", together.detail);
    assert_eq!(together.detail, "all 1 task(s) shown to be within the margin");
    let group = evidence(&together, "all");
    assert_eq!((group.n, group.full_split, group.pooled.len()), (4000, 4000, 40));
    assert_eq!((group.flips_b, group.flips_c, group.method), (Some(40), Some(40), Method::Tango));
    assert!(group.flips.is_empty() && group.part_of.is_none());
    let part = evidence(&together, "t7");
    assert_eq!((part.part_of.as_deref(), part.n, part.flips.len()), (Some("all"), 100, 2));
    assert_eq!(part.verdict, TaskVerdict::Undecided);
    assert!(together.findings.iter().all(|finding| finding.subject != "t7"));
    // Each by itself, as asked, or because the arms do not agree on the group.
    let each = arms(&parts, true);
    let mut options = CompareOptions::default();
    options.tasks.insert("all".into(), TaskOptions { pooled: false, ..TaskOptions::default() });
    assert_eq!(compare(&each.0, &each.1, &options).failure_class, Some(FailureClass::InsufficientEvidence));
    let mut other = arms(&parts, true);
    other.1.groups.clear();
    assert_eq!(decide(&other).failure_class, Some(FailureClass::InsufficientEvidence));
}

#[test]
fn a_group_has_its_own_margin_tier_and_published_score() {
    let parts = [Part { right: 60, lost: 5, gained: 1, wrong: 34 }; 40];
    let arms = arms(&parts, true);
    assert_eq!(decide(&arms).failure_class, Some(FailureClass::AccuracyRegression));
    let with = |options: CompareOptions| compare(&arms.0, &arms.1, &options);
    let of_group =
        |task| CompareOptions { tasks: [("all".to_owned(), task)].into(), ..CompareOptions::default() };
    let margin = Some(Margin::Absolute(0.06));
    assert!(with(of_group(TaskOptions { margin, ..TaskOptions::default() })).pass);
    let advisory = with(of_group(TaskOptions { tier: Tier::Advisory, ..TaskOptions::default() }));
    assert_eq!(
        advisory.failure_class,
        Some(FailureClass::InsufficientEvidence),
        "nothing is left to accept on"
    );
    let published = Published { score: 0.9, tolerance: Published::TOLERANCE };
    let published =
        CompareOptions { published: [("all".to_owned(), published)].into(), ..CompareOptions::default() };
    assert_eq!(with(published).failure_class, Some(FailureClass::ExternalBaselineMismatch));
    // A part that got much worse is a note where the group is within.
    let mut parts = [Part { right: 600, lost: 2, gained: 2, wrong: 396 }; 40];
    parts[3] = Part { right: 500, lost: 100, gained: 0, wrong: 400 };
    let report = decide(&self::arms(&parts, true));
    assert!(report.pass, "{}", report.detail);
    assert!(report.findings.iter().any(|f| f.subject == "t3" && f.check == "accuracy" && !f.decides()));
    assert!(
        report.findings.iter().any(|f| f.subject == "all" && f.observed == "1 of 40 tasks got worse: t3")
    );
}

#[test]
fn tasks_that_count_alike_are_strata() {
    // Half of the score is a task of 200 items that lost ten, the other half one of 2,000 that gained none.
    let parts = [
        Part { right: 100, lost: 10, gained: 0, wrong: 90 },
        Part { right: 1000, lost: 20, gained: 20, wrong: 960 },
    ];
    let alike = evidence(&decide(&arms(&parts, false)), "all");
    assert_eq!(alike.method, Method::Stratified);
    assert!((alike.drop - 0.025).abs() < 1e-12 && (alike.baseline - f64::midpoint(0.55, 0.51)).abs() < 1e-12);
    let variance = |n: f64, psi: f64, drop: f64| (psi - drop * drop) / (n - 1.0);
    let stderr = (variance(200.0, 0.05, 0.05) / 4.0 + variance(2000.0, 0.02, 0.0) / 4.0).sqrt();
    assert!((alike.stderr.unwrap() - stderr).abs() < 1e-12, "{:?} {stderr}", alike.stderr);
    let by_size = evidence(&decide(&arms(&parts, true)), "all");
    assert!((by_size.drop - 10.0 / 2200.0).abs() < 1e-12);
    // A limit took a tenth of the second task: its items stand for ten times as many.
    let mut limited = arms(&[parts[0], Part { right: 100, lost: 2, gained: 2, wrong: 96 }], true);
    for record in [&mut limited.0, &mut limited.1] {
        let task = record.tasks.get_mut("t1").unwrap();
        task.full_split = 2000;
        "--limit 200".clone_into(&mut task.limited_by);
    }
    let limited = evidence(&decide(&limited), "all");
    assert!((limited.drop - 10.0 / 2200.0).abs() < 1e-12, "{}", limited.drop);
    assert_eq!((limited.method, limited.n, limited.full_split), (Method::Stratified, 400, 2200));
}

/// Both arms of a group of three tasks that stopped at its looks: waves of 32 items, every third a task's.
fn stopped(waves: usize, full: usize, lost: usize) -> (EvalRecord, EvalRecord) {
    let n = waves * 32 / 3 * 3;
    let own = n / 3;
    let mut arms =
        arms(&[Part { right: own * 3 / 4 - lost, lost, gained: 0, wrong: own - own * 3 / 4 }; 3], true);
    for record in [&mut arms.0, &mut arms.1] {
        for (place, task) in record.tasks.values_mut().enumerate() {
            task.expected = full;
            task.full_split = full;
            // Item i of the group is item i / 3 of task i mod 3; the lost ones come first.
            let until = |end: usize| (end + 2 - place) / 3;
            task.visit = Some(Visit {
                order: (0..own).rev().collect(),
                looks: (1..=waves).map(|wave| until((wave * 32).min(n)).min(own)).collect(),
                group: Some("all".into()),
                not_needed: full - own,
            });
        }
    }
    arms
}

#[test]
fn a_group_stops_by_looks_at_all_its_tasks() {
    let accounting = Some(FailureClass::SampleAccountingFailed);
    let decided = (1..60).find(|waves| decide(&stopped(*waves, 4000, 0)).pass).expect("decided at some look");
    let arms = stopped(decided, 4000, 0);
    let report = decide(&arms);
    let group = evidence(&report, "all");
    assert_eq!((group.method, group.looks.len()), (Method::Betting, decided));
    assert_eq!(group.looks.last().unwrap().decision, Some(Decision::Within));
    assert_eq!(group.n + group.not_needed, 12_000);
    assert!(evidence(&report, "t0").looks.is_empty());
    // One look before or after, and looks at something else, are no decision.
    for waves in [decided - 1, decided + 1] {
        assert_eq!(decide(&stopped(waves, 4000, 0)).failure_class, accounting, "{waves} of {decided}");
    }
    let mut options = CompareOptions::default();
    options.tasks.insert("all".into(), TaskOptions { pooled: false, ..TaskOptions::default() });
    let apart = compare(&arms.0, &arms.1, &options);
    assert_eq!(apart.failure_class, accounting);
    assert!(apart.detail.contains("looks at something else"), "{}", apart.detail);
    // Another path of one task on one arm.
    let mut other = stopped(decided, 4000, 0);
    other.1.tasks.get_mut("t1").unwrap().visit.as_mut().unwrap().order.swap(0, 1);
    assert_eq!(decide(&other).failure_class, accounting);
}

/// The stratified interval keeps its level where strata weigh differently and flips are rare: with the rule that at least
/// thirty alike differing items' worth of information is there, a drop of the margin is accepted in about 5 %.
#[test]
fn the_stratified_interval_keeps_its_level() {
    use rand::{Rng as _, SeedableRng as _};
    let strata = [(150usize, 0.06, 0.02), (600, 0.05, 0.01), (1500, 0.04, 0.0)];
    let margin = strata.iter().map(|(.., drop)| drop / 3.0).sum::<f64>();
    let runs = 2000;
    let accepted = (0..runs)
        .filter(|run| {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(*run);
            let (mut num, mut den, mut of) = (Vec::new(), Vec::new(), Vec::new());
            for (stratum, (n, flips, drop)) in strata.iter().enumerate() {
                let weight = 2250.0 / 3.0 / *n as f64;
                for _ in 0..*n {
                    let draw: f64 = rng.random();
                    let lost = f64::midpoint(*flips, *drop);
                    let change = if draw < lost {
                        1.0
                    } else if draw < *flips {
                        -1.0
                    } else {
                        0.0
                    };
                    num.push(change * weight);
                    den.push(weight);
                    of.push(stratum);
                }
            }
            Ratio::stratified(&num, &den, &of).unwrap().bounds(Alpha::FIVE_PERCENT).upper < margin
        })
        .count();
    let share = accepted as f64 / runs as f64;
    assert!((0.03..=0.065).contains(&share), "{share}");
}

//! Gate `ratchet`: are ratcheted metrics kept? (Founding document 004, "Quality Ratchet".)
//!
//! A `min` can only go up, a `max` only down. Exact metrics are compared and tightened exactly. Noisy ones (scores,
//! throughput) tighten on their confidence bound, and are violated when their whole interval lies beyond the threshold:
//! a measurement of the same truth then violates with probability Φ(−1.645 · √2) = 1 %, not 12 %.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::findings::Collector;
use crate::base::closest::suggestion;
use crate::record::ratchet::{Loosening, RATCHET_VERSION, Ratchet, Threshold};
use crate::record::snapshot::{Direction, Measured, Snapshot, direction, is_count, metric_names};
use crate::record::{FailureClass, GateName, GateReport};

/// A ratchet that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RatchetError {
    /// Written for another version.
    #[error("version is {found}, expected {RATCHET_VERSION}")]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// A metric that nothing measures.
    #[error("thresholds.{metric}: unknown metric, {}", suggestion(metric, &metric_names()))]
    UnknownMetric {
        /// Its name.
        metric: String,
    },
    /// A threshold without a limit, with two, in the wrong direction, or not finite.
    #[error("thresholds.{metric}: {problem}")]
    Threshold {
        /// Metric.
        metric: String,
        /// What is wrong.
        problem: String,
    },
    /// Loosening without a reason.
    #[error("{metric}: a threshold is loosened only with a reason")]
    NoReason {
        /// Metric.
        metric: String,
    },
}

/// Checks that every threshold is one of a known metric, in its direction.
pub fn validate(ratchet: &Ratchet) -> Result<(), RatchetError> {
    if ratchet.version != RATCHET_VERSION {
        return Err(RatchetError::Version { found: ratchet.version });
    }
    ratchet.thresholds.iter().try_for_each(|(metric, threshold)| limit(metric, threshold).map(|_| ()))
}

/// The limit of a threshold with its direction.
fn limit(metric: &str, threshold: &Threshold) -> Result<(Direction, f64), RatchetError> {
    let wrong =
        |problem: &str| RatchetError::Threshold { metric: metric.to_owned(), problem: problem.to_owned() };
    let direction =
        direction(metric).ok_or_else(|| RatchetError::UnknownMetric { metric: metric.to_owned() })?;
    let (found, value) = match (threshold.min, threshold.max) {
        (Some(value), None) => (Direction::Higher, value),
        (None, Some(value)) => (Direction::Lower, value),
        (Some(_), Some(_)) => return Err(wrong("both min and max are given")),
        (None, None) => return Err(wrong("neither min nor max is given")),
    };
    if found != direction {
        let expected = if direction == Direction::Higher { "min" } else { "max" };
        return Err(wrong(&format!("expected {expected}, for which way is better is not the file's choice")));
    }
    if !value.is_finite() {
        return Err(wrong("not a finite number"));
    }
    Ok((direction, value))
}

fn threshold(direction: Direction, value: f64) -> Threshold {
    match direction {
        Direction::Higher => Threshold { min: Some(value), max: None },
        Direction::Lower => Threshold { min: None, max: Some(value) },
    }
}

/// Decides whether `current` keeps every threshold. With `only_measured`, which is how an advisory ratchet is asked,
/// thresholds of metrics that `current` does not hold are not evaluated: nobody asked for them, so they are no findings.
pub fn check(ratchet: &Ratchet, current: &Snapshot, only_measured: bool) -> GateReport {
    let mut out = Collector::new(GateName::Ratchet);
    if let Err(error) = validate(ratchet) {
        out.add(
            out.finding("thresholds", FailureClass::UserConfigError, "ratchet").observed(error.to_string()),
        );
        return out.report("");
    }
    let metrics = current.metrics();
    let (mut improved, mut kept) = (0, 0);
    for (metric, limits) in &ratchet.thresholds {
        let Ok((direction, limit)) = limit(metric, limits) else { continue };
        match metrics.get(metric) {
            Some(measured) => {
                improved += usize::from(tightened(direction, limit, measured).is_some());
                kept += 1;
                one(&mut out, metric, direction, limit, *measured);
            }
            None if only_measured => {}
            None => not_measured(&mut out, metric, current),
        }
        let seen = metrics.get(metric);
        out.check(metric, json!({"limit": limits, "measured": seen}));
        if only_measured && seen.is_none() {
            out.mark(metric, Value::Null);
        }
    }
    let better = if improved > 0 { format!(", {improved} can be tightened") } else { String::new() };
    let unknown = ratchet.thresholds.len() - kept;
    let rest = if unknown > 0 { format!(", {unknown} not evaluated") } else { String::new() };
    out.report(format!("{kept} threshold(s) kept{better}{rest}"))
}

fn one(out: &mut Collector, metric: &str, direction: Direction, limit: f64, measured: Measured) {
    // The end of the interval that is kindest to the measurement.
    let (best, name) = match direction {
        Direction::Higher => (measured.high(), "at least"),
        Direction::Lower => (measured.low(), "at most"),
    };
    let beyond = |value: f64| match direction {
        Direction::Higher => value < limit,
        Direction::Lower => value > limit,
    };
    let finding = |out: &Collector, class| {
        out.finding(metric, class, metric).observed(measured.to_string()).expected(format!("{name} {limit}"))
    };
    if !measured.value.is_finite() || !best.is_finite() {
        out.add(finding(out, FailureClass::InsufficientEvidence).hint("measure the metric again"));
    } else if beyond(best) {
        out.add(finding(out, FailureClass::RatchetViolated));
    } else if beyond(measured.value) {
        out.add(
            finding(out, FailureClass::RatchetViolated).hint("within the noise of the measurement").as_note(),
        );
    }
}

fn not_measured(out: &mut Collector, metric: &str, current: &Snapshot) {
    let reason = current.failed_commands.values().next().cloned();
    let hint = if is_count(metric) {
        "configure a command that counts it, or fix the one that failed"
    } else {
        "measure it by a release: --run RUN"
    };
    out.add(
        out.finding(metric, FailureClass::InsufficientEvidence, metric)
            .observed(reason.filter(|_| is_count(metric)).unwrap_or_else(|| "not measured".to_owned()))
            .expected("a measurement")
            .hint(hint),
    );
}

/// The new limit where the measurement is better, on its pessimistic bound.
fn tightened(direction: Direction, limit: f64, measured: &Measured) -> Option<f64> {
    let (bound, better) = match direction {
        Direction::Higher => (measured.low(), measured.low() > limit),
        Direction::Lower => (measured.high(), measured.high() < limit),
    };
    (better && bound.is_finite()).then_some(bound)
}

/// Tightens every threshold that `current` improves on; `None` when nothing changed (document 004,
/// `updateQualityRatchet`).
pub fn update(ratchet: &Ratchet, current: &Snapshot, by: &str) -> Result<Option<Ratchet>, RatchetError> {
    validate(ratchet)?;
    let metrics = current.metrics();
    let mut new = ratchet.clone();
    for (metric, limits) in &mut new.thresholds {
        let (direction, value) = limit(metric, limits)?;
        if let Some(better) = metrics.get(metric).and_then(|m| tightened(direction, value, m)) {
            *limits = threshold(direction, better);
        }
    }
    if new.thresholds == ratchet.thresholds {
        return Ok(None);
    }
    current.timestamp.clone_into(&mut new.updated_at);
    by.clone_into(&mut new.updated_by);
    Ok(Some(new))
}

/// The first ratchet: a threshold at what `current` measured, for every metric or those named.
pub fn init(current: &Snapshot, by: &str, only: &[String]) -> Result<Ratchet, RatchetError> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let metrics: BTreeMap<String, Measured> =
        current.metrics().into_iter().filter(|(name, _)| wanted(name)).collect();
    if let Some(metric) = only.iter().find(|name| !metrics.contains_key(*name)) {
        return Err(match direction(metric) {
            None => RatchetError::UnknownMetric { metric: metric.clone() },
            Some(_) => {
                RatchetError::Threshold { metric: metric.clone(), problem: "was not measured".to_owned() }
            }
        });
    }
    let mut thresholds = BTreeMap::new();
    for (metric, measured) in metrics {
        let direction =
            direction(&metric).ok_or_else(|| RatchetError::UnknownMetric { metric: metric.clone() })?;
        let bound = if direction == Direction::Higher { measured.low() } else { measured.high() };
        thresholds.insert(metric, threshold(direction, bound));
    }
    let ratchet = Ratchet {
        version: RATCHET_VERSION,
        updated_at: current.timestamp.clone(),
        updated_by: by.to_owned(),
        thresholds,
        loosened: Vec::new(),
    };
    validate(&ratchet)?;
    Ok(ratchet)
}

/// Who changes a ratchet, when and why.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// When, ISO 8601 UTC.
    pub at: &'a str,
    /// By whom.
    pub by: &'a str,
    /// Why; needed where a threshold becomes weaker.
    pub reason: &'a str,
}

/// Sets one threshold to `value`, also where that is weaker; a weaker one needs a reason, which stays in the file.
pub fn set(ratchet: &Ratchet, metric: &str, value: f64, change: Change<'_>) -> Result<Ratchet, RatchetError> {
    let direction =
        direction(metric).ok_or_else(|| RatchetError::UnknownMetric { metric: metric.to_owned() })?;
    let to = threshold(direction, value);
    limit(metric, &to)?;
    let mut new = ratchet.clone();
    if let Some(from) = new.thresholds.insert(metric.to_owned(), to) {
        new.loosened.extend(loosening(metric, from, Some(to), change)?);
    }
    change.at.clone_into(&mut new.updated_at);
    change.by.clone_into(&mut new.updated_by);
    Ok(new)
}

/// `new` in the place of `old`, with every loosening that `old` records and those that this is.
pub fn replace(old: &Ratchet, new: Ratchet, change: Change<'_>) -> Result<Ratchet, RatchetError> {
    let mut loosened = old.loosened.clone();
    for (metric, from) in &old.thresholds {
        loosened.extend(loosening(metric, *from, new.thresholds.get(metric).copied(), change)?);
    }
    Ok(Ratchet { loosened, ..new })
}

/// The record of a threshold that becomes weaker, or goes; it needs a reason.
fn loosening(
    metric: &str,
    from: Threshold,
    to: Option<Threshold>,
    change: Change<'_>,
) -> Result<Option<Loosening>, RatchetError> {
    let (direction, before) = limit(metric, &from)?;
    let after = to.map(|to| limit(metric, &to)).transpose()?;
    let weaker = after.is_none_or(|(_, after)| match direction {
        Direction::Higher => after < before,
        Direction::Lower => after > before,
    });
    let reason = change.reason.trim();
    if weaker && reason.is_empty() {
        return Err(RatchetError::NoReason { metric: metric.to_owned() });
    }
    Ok(weaker.then(|| Loosening {
        at: change.at.to_owned(),
        by: change.by.to_owned(),
        metric: metric.to_owned(),
        from,
        to: to.unwrap_or_default(),
        reason: reason.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::snapshot::{LintCounts, TestCounts, TypecheckCounts};

    fn snapshot(total: u64, failed: u64, type_errors: u64, lint_errors: u64) -> Snapshot {
        Snapshot {
            timestamp: "now".into(),
            tests: Some(TestCounts { total, passed: total - failed, failed, skipped: 0 }),
            typecheck: Some(TypecheckCounts { error_count: type_errors, exit_code: 0 }),
            lint: Some(LintCounts { error_count: lint_errors, warning_count: 0 }),
            ..Snapshot::default()
        }
    }

    /// The thresholds of document 004.
    fn document() -> Ratchet {
        let only: Vec<String> =
            ["testCount", "testFailures", "typecheckErrors", "lintErrors"].map(String::from).to_vec();
        init(&snapshot(847, 0, 12, 34), "SUP-456", &only).unwrap()
    }

    fn class(current: &Snapshot) -> Option<FailureClass> {
        check(&document(), current, false).failure_class
    }

    /// Document 004, "Rules": each row of the table, at its threshold and one beyond.
    #[test]
    fn every_rule_of_the_document() {
        let violated = Some(FailureClass::RatchetViolated);
        assert_eq!(class(&snapshot(847, 0, 12, 34)), None);
        assert_eq!(class(&snapshot(848, 0, 11, 33)), None);
        // testCount.min: agents cannot delete tests without adding replacements; DESIGN: ratchet rejects.
        assert_eq!(class(&snapshot(846, 0, 12, 34)), violated);
        assert_eq!(class(&snapshot(847, 1, 12, 34)), violated);
        assert_eq!(class(&snapshot(847, 0, 13, 34)), violated);
        assert_eq!(class(&snapshot(847, 0, 12, 35)), violated);
    }

    /// Document 004, `checkQualityRatchet`: returns the violations.
    #[test]
    fn violations_are_all_named() {
        let report = check(&document(), &snapshot(800, 2, 12, 34), false);
        assert!(report.detail.contains("testCount") && report.detail.contains("testFailures"));
        assert_eq!(report.checks["lintErrors"]["pass"], json!(true));
        assert_eq!(report.checks["testCount"]["pass"], json!(false));
    }

    /// Document 004, "Enforcement Points": if metrics improved, it auto-tightens. `updateQualityRatchet` returns true
    /// if the ratchet was updated.
    #[test]
    fn better_metrics_tighten_and_worse_ones_change_nothing() {
        let new = update(&document(), &snapshot(900, 0, 10, 40), "b").unwrap().unwrap();
        assert_eq!(new.thresholds["testCount"].min, Some(900.0));
        assert_eq!(new.thresholds["typecheckErrors"].max, Some(10.0));
        assert_eq!(new.thresholds["lintErrors"].max, Some(34.0));
        assert_eq!((new.updated_by.as_str(), new.updated_at.as_str()), ("b", "now"));
        assert_eq!(update(&document(), &snapshot(800, 3, 20, 40), "b").unwrap(), None);
    }

    #[test]
    fn what_was_not_measured_is_not_kept() {
        let mut current = snapshot(847, 0, 12, 34);
        current.lint = None;
        assert_eq!(class(&current), Some(FailureClass::InsufficientEvidence));
        // DESIGN section 7: advisory warns and goes on. What nobody measured is no finding, and no pass either.
        let advisory = check(&document(), &current, true);
        assert!(advisory.pass && advisory.findings.is_empty());
        assert_eq!(advisory.checks["lintErrors"]["pass"], Value::Null);
        assert_eq!(advisory.checks["testCount"]["pass"], json!(true));
        assert_eq!(advisory.detail, "3 threshold(s) kept, 1 not evaluated");
    }

    /// DESIGN section 7: noisy metrics tighten on their confidence bound.
    #[test]
    fn noisy_metrics_use_their_bounds() {
        let of = |value, stderr| {
            let measured = Measured::with_stderr(value, stderr);
            Snapshot { release: BTreeMap::from([("recovery.a".to_owned(), measured)]), ..Snapshot::default() }
        };
        let ratchet = init(&of(1.0, 0.01), "x", &[]).unwrap();
        let min = ratchet.thresholds["recovery.a"].min.unwrap();
        assert!((min - (1.0 - 0.016_448_536)).abs() < 1e-9, "{min}");
        // Below the threshold, but within its own noise: noted.
        let report = check(&ratchet, &of(0.98, 0.01), false);
        assert!(report.pass && report.findings.len() == 1);
        assert_eq!(
            check(&ratchet, &of(0.95, 0.01), false).failure_class,
            Some(FailureClass::RatchetViolated)
        );
        assert_eq!(update(&ratchet, &of(1.001, 0.05), "y").unwrap(), None);
        assert!(update(&ratchet, &of(1.001, 0.001), "y").unwrap().is_some());
        let nan = check(&ratchet, &of(f64::NAN, 0.0), false);
        assert_eq!(nan.failure_class, Some(FailureClass::InsufficientEvidence));
    }

    /// DESIGN section 7: loosening needs a reason that is recorded.
    #[test]
    fn loosening_needs_a_reason_that_stays() {
        let change = |reason| Change { at: "t", by: "me", reason };
        let weaker = |reason| set(&document(), "testCount", 800.0, change(reason));
        assert_eq!(weaker(" "), Err(RatchetError::NoReason { metric: "testCount".into() }));
        let new = weaker("tests moved to another repository").unwrap();
        assert_eq!(new.thresholds["testCount"].min, Some(800.0));
        assert_eq!(new.loosened[0].from.min, Some(847.0));
        assert_eq!(new.loosened[0].reason, "tests moved to another repository");
        assert!(set(&document(), "testCount", 900.0, change("")).unwrap().loosened.is_empty());
    }

    /// Document 004: thresholds never loosen; DESIGN section 7: loosening needs a reason that is recorded, also where the
    /// whole file is written anew.
    #[test]
    fn starting_again_loosens_with_a_reason_and_keeps_those_before() {
        let change = |reason| Change { at: "t", by: "me", reason };
        let old = set(&document(), "testCount", 800.0, change("moved")).unwrap();
        let anew = |current: &Snapshot, only: &[&str], reason| {
            let only: Vec<String> = only.iter().map(|m| (*m).to_owned()).collect();
            replace(&old, init(current, "me", &only).unwrap(), change(reason))
        };
        let all = ["testCount", "testFailures", "typecheckErrors", "lintErrors"];
        let tighter = anew(&snapshot(900, 0, 12, 30), &all, "").unwrap();
        assert_eq!((tighter.loosened.len(), tighter.thresholds["testCount"].min), (1, Some(900.0)));
        let weaker = snapshot(900, 0, 13, 30);
        assert_eq!(anew(&weaker, &all, ""), Err(RatchetError::NoReason { metric: "typecheckErrors".into() }));
        let new = anew(&weaker, &all, "a new compiler").unwrap();
        assert_eq!((new.loosened.len(), new.loosened[1].to.max), (2, Some(13.0)));
        // A threshold that goes is weaker than any.
        let gone = &all[..3];
        assert!(anew(&snapshot(900, 0, 12, 30), gone, " ").is_err());
        let removed = &anew(&snapshot(900, 0, 12, 30), gone, "no linter").unwrap().loosened[1];
        assert_eq!((removed.metric.as_str(), removed.from.max), ("lintErrors", Some(34.0)));
        assert_eq!(removed.to, Threshold::default());
    }

    #[test]
    fn init_takes_what_was_measured_and_nothing_else() {
        let none = init(&snapshot(1, 0, 0, 0), "x", &["throughput.score".to_owned()]);
        assert!(none.unwrap_err().to_string().contains("was not measured"));
        assert!(init(&snapshot(1, 0, 0, 0), "x", &["tests".to_owned()]).is_err());
    }

    proptest! {
        /// Document 004: monotonic thresholds that can only tighten, never loosen.
        #[test]
        fn updates_never_loosen(steps in proptest::collection::vec((0..2000_u64, 0..50_u64, 0..50_u64, 0..50_u64), 1..8)) {
            let mut ratchet = document();
            for (total, failed, types, lints) in steps {
                let current = snapshot(total.max(failed), failed, types, lints);
                let before = ratchet.clone();
                ratchet = update(&ratchet, &current, "p").unwrap().unwrap_or(ratchet);
                prop_assert!(ratchet.thresholds["testCount"].min >= before.thresholds["testCount"].min);
                for name in ["testFailures", "typecheckErrors", "lintErrors"] {
                    prop_assert!(ratchet.thresholds[name].max <= before.thresholds[name].max);
                }
                // What tightened the ratchet keeps every threshold that it tightened.
                if check(&before, &current, false).pass {
                    prop_assert!(check(&ratchet, &current, false).pass);
                }
            }
        }
    }
}

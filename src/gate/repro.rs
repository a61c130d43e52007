//! Gate `repro`: are results reproducible? (Founding document 000.)
//!
//! - relative spread: (max − min) / |mean| of the seeds' final values.
//! - decrease: 1 − mean of the window that ends at step `within` / mean of the first window; a window is a fiftieth of
//!   `within`. A run that is shorter is not evaluated, which is never a pass.
//! - success: at least ⌈min · n⌉ of n seeds run to their end and meet the criteria of their kind.
//!
//! The share of the seeds that must succeed is allowed to the decrease too. Everything else holds for every seed that ran
//! to its end; one that broke off is left to the success rate, unless what it left shows that a criterion is broken.
//!
//! The final value of a curve is the mean of its last tenth.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Margin;
use super::findings::Collector;
use crate::record::qa::CheckTier;
use crate::record::repro::{Criterion, FamilyRuns, Point, Rule, SeedRun, SeedRuns};
use crate::record::{FailureClass, GateName, GateReport};

/// What a criterion says.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Holds(String),
    Broken(String),
    NotEvaluated(String),
    /// There is nothing that it could say, whatever is measured.
    Pointless(String),
}

/// Decides about all families, with the criteria of `tier` and the tiers before it.
pub fn decide(runs: &SeedRuns, tier: CheckTier) -> GateReport {
    let mut out = Collector::new(GateName::Repro);
    out.require_schema(runs.schema_version);
    for family in &runs.families {
        for criterion in &family.criteria {
            judge(&mut out, family, criterion, tier);
        }
        if family.criteria.is_empty() {
            let check = format!("{}.criteria", family.family);
            out.add(out.finding(&check, FailureClass::InsufficientEvidence, &family.family).observed("none"));
        }
    }
    if runs.families.is_empty() {
        out.add(out.finding("families", FailureClass::InsufficientEvidence, "seed runs").observed("none"));
    }
    let names: Vec<&str> = runs.families.iter().map(|f| f.family.as_str()).collect();
    out.report(format!("{} reproducible", names.join(", ")))
}

/// Puts the margin of each task in place of the spreads that the criteria allow all of them.
pub fn with_margins(family: &mut FamilyRuns, margins: &BTreeMap<String, Margin>) {
    let metrics: BTreeSet<&String> = family.runs.iter().flat_map(|run| run.finals.keys()).collect();
    let of_tasks = |criterion: &Criterion| -> Vec<Criterion> {
        let is_spread = matches!(criterion.rule, Rule::RelativeSpread { .. } | Rule::AbsoluteSpread { .. });
        let Some(prefix) = criterion.metrics.iter().find_map(|m| m.strip_suffix('*')).filter(|_| is_spread)
        else {
            return Vec::new();
        };
        let of_task = |metric: &&String| {
            let task = metric.strip_prefix(prefix)?;
            let rule = match *margins.get(task)? {
                Margin::Absolute(below) => Rule::AbsoluteSpread { below },
                Margin::Relative(max) => Rule::RelativeSpread { max },
            };
            let name = format!("{}.{task}", criterion.name);
            Some(Criterion { name, rule, metrics: vec![(*metric).clone()], tier: criterion.tier })
        };
        metrics.iter().filter_map(of_task).collect()
    };
    let criteria = family.criteria.iter().flat_map(|criterion| {
        let own = of_tasks(criterion);
        if own.is_empty() { vec![criterion.clone()] } else { own }
    });
    family.criteria = criteria.collect();
}

fn judge(out: &mut Collector, family: &FamilyRuns, criterion: &Criterion, tier: CheckTier) {
    let check = format!("{}.{}", family.family, criterion.name);
    let outcome = evaluate(family, criterion);
    let asked = criterion.tier <= tier;
    let finding = |class, observed: &str| {
        out.finding(&check, class, &family.family).observed(observed).expected(describe(criterion))
    };
    let (found, detail) = match &outcome {
        Outcome::Holds(detail) => (None, detail),
        Outcome::Broken(detail) => (Some(finding(FailureClass::ReadinessFailed, detail)), detail),
        Outcome::NotEvaluated(why) => {
            let observed = format!("not evaluated: {why}");
            let hint = "run more steps, or a lower --tier";
            (Some(finding(FailureClass::InsufficientEvidence, &observed).hint(hint)), why)
        }
        Outcome::Pointless(why) => (None, why),
    };
    if let Some(finding) = found {
        out.add(if asked { finding } else { finding.as_note() });
    }
    let state = match outcome {
        Outcome::Holds(_) => "holds",
        Outcome::Broken(_) => "broken",
        Outcome::NotEvaluated(_) | Outcome::Pointless(_) => "not evaluated",
    };
    let tier = criterion.tier;
    out.check(&check, json!({"state": state, "detail": detail, "tier": tier, "decides": asked}));
    if state != "holds" {
        out.mark(&check, if state == "broken" { json!(false) } else { Value::Null });
    }
}

fn describe(criterion: &Criterion) -> String {
    match criterion.rule {
        Rule::RelativeSpread { max } => format!("(max − min) / mean ≤ {max}"),
        Rule::AbsoluteSpread { below } => format!("max − min < {below}"),
        Rule::SameBits => "the same bits".to_owned(),
        Rule::RepeatWithin { max } => format!("within ±{max} of the first run"),
        Rule::Decrease { min, within } => format!("a decrease of ≥ {min} within {within} steps"),
        Rule::Finite => "finite values in all steps".to_owned(),
        Rule::AtMost { max } => format!("≤ {max}"),
        Rule::SuccessRate { min } => format!("≥ {min} of the seeds succeed"),
    }
}

fn evaluate(family: &FamilyRuns, criterion: &Criterion) -> Outcome {
    if family.runs.is_empty() {
        return Outcome::NotEvaluated("no seed was run".to_owned());
    }
    match criterion.rule {
        Rule::RelativeSpread { max } => spread(family, criterion, |low, high, mean| {
            let spread = (high - low) / mean.abs();
            (no_more(spread, max), format!("{spread:.4}"))
        }),
        Rule::AbsoluteSpread { below } => {
            spread(family, criterion, |low, high, _| (high - low < below, format!("{:.4}", high - low)))
        }
        Rule::RepeatWithin { max } => repeats(family, criterion, max),
        Rule::SuccessRate { min } => success_rate(family, min),
        Rule::SameBits | Rule::Finite | Rule::AtMost { .. } => every_seed(family, criterion),
        Rule::Decrease { .. } => {
            let outcomes = family.runs.iter().map(|run| per_seed(family, criterion, run)).collect();
            let rate = family.criteria.iter().find_map(|c| match c.rule {
                Rule::SuccessRate { min } => Some(min),
                _ => None,
            });
            needed(outcomes, rate.map_or(family.runs.len(), |min| seeds_needed(min, family.runs.len())))
        }
    }
}

/// Whether `value` is at most `limit`: shares are decided on their decimals, not on the noise of their last bits. What is
/// not a number is within nothing.
fn no_more(value: f64, limit: f64) -> bool {
    value <= limit + 1e-12
}

/// ⌈min · n⌉, where a product that is whole but for its last bits counts as whole: 0.8 · 15 is 12.
fn seeds_needed(min: f64, n: usize) -> usize {
    (min * n as f64 - 1e-9).ceil().max(0.0) as usize
}

/// Every seed that ran to its end, and those that broke off and show all the same that the criterion is broken.
fn every_seed(family: &FamilyRuns, criterion: &Criterion) -> Outcome {
    let judged = family.runs.iter().map(|run| (run.broke_off(), per_seed(family, criterion, run)));
    let outcomes: Vec<(u64, Outcome)> = judged
        .filter(|(broke_off, (_, outcome))| !broke_off || matches!(outcome, Outcome::Broken(_)))
        .map(|(_, outcome)| outcome)
        .collect();
    if outcomes.is_empty() {
        return Outcome::NotEvaluated("no seed ran to its end".to_owned());
    }
    let all = outcomes.len();
    needed(outcomes, all)
}

/// Enough seeds hold; too few that hold or may hold is broken, else not evaluated.
fn needed(outcomes: Vec<(u64, Outcome)>, needed: usize) -> Outcome {
    let n = outcomes.len();
    let mut holds = 0;
    let (mut broken, mut unknown) = (Vec::new(), Vec::new());
    for (seed, outcome) in outcomes {
        match outcome {
            Outcome::Holds(_) => holds += 1,
            Outcome::Broken(why) => broken.push(format!("seed {seed}: {why}")),
            Outcome::NotEvaluated(why) | Outcome::Pointless(why) => unknown.push(why),
        }
    }
    if holds >= needed {
        return Outcome::Holds(format!("{holds} of {n} seeds"));
    }
    if holds + unknown.len() < needed {
        return Outcome::Broken(format!("{holds} of {n} seeds; {}", broken.join("; ")));
    }
    unknown.dedup();
    Outcome::NotEvaluated(unknown.join("; "))
}

/// A criterion of one run.
fn per_seed(family: &FamilyRuns, criterion: &Criterion, run: &SeedRun) -> (u64, Outcome) {
    let outcome = match criterion.rule {
        Rule::Finite => finite(family, criterion, run),
        Rule::SameBits => match (&run.digest, &run.repeat_digest) {
            (Some(first), Some(again)) if first == again => Outcome::Holds("the same bits".to_owned()),
            (Some(_), Some(_)) => Outcome::Broken("the repetition gave other bits".to_owned()),
            _ => Outcome::NotEvaluated("no repetition was run".to_owned()),
        },
        Rule::Decrease { min, within } => decrease(criterion, run, min, within),
        Rule::AtMost { max } => at_most(criterion, run, max),
        _ => Outcome::Holds(String::new()),
    };
    (run.seed, outcome)
}

/// Metrics of a run that a criterion names, and the first of them that it lacks; a name that ends in `*` stands for all
/// that begin so, no name for all.
fn named<'a>(criterion: &'a Criterion, run: &'a SeedRun) -> (Vec<&'a str>, Option<&'a str>) {
    let reported = run.curves.keys().chain(run.finals.keys()).chain(run.non_finite.keys());
    let known: BTreeSet<&str> = reported.map(String::as_str).collect();
    if criterion.metrics.is_empty() {
        return (known.into_iter().collect(), None);
    }
    let (mut found, mut missing) = (Vec::new(), None);
    for name in &criterion.metrics {
        match name.strip_suffix('*') {
            Some(prefix) => found.extend(known.iter().filter(|k| k.starts_with(prefix))),
            None if known.contains(name.as_str()) => found.push(name.as_str()),
            None => missing = missing.or(Some(name.as_str())),
        }
    }
    (found, missing)
}

/// All metrics that a criterion names, or the one that is missing.
fn metrics<'a>(criterion: &'a Criterion, run: &'a SeedRun) -> Result<Vec<&'a str>, &'a str> {
    let (found, missing) = named(criterion, run);
    missing.map_or(Ok(found), Err)
}

fn finite(family: &FamilyRuns, criterion: &Criterion, run: &SeedRun) -> Outcome {
    let (names, missing) = named(criterion, run);
    for name in &names {
        let counted = run.non_finite.get(*name).copied().unwrap_or(0);
        let absent = run.finals.get(*name).is_some_and(|v| v.is_none_or(|v| !v.is_finite()));
        let in_curve = run.curves.get(*name).is_some_and(|c| c.iter().any(|p| finite_value(*p).is_none()));
        if counted > 0 || absent || in_curve {
            return Outcome::Broken(format!("{name} is not finite {} time(s)", counted.max(1)));
        }
    }
    // What broke off has shown nothing that is not finite.
    if run.broke_off() {
        return Outcome::NotEvaluated(run.error.clone());
    }
    if let Some(name) = missing {
        return Outcome::Broken(format!("metric {name} is missing"));
    }
    // Values of steps that were not done are not known to be finite.
    if let Some(short) = too_short(family, run) {
        return Outcome::Broken(short);
    }
    if names.is_empty() {
        return Outcome::NotEvaluated("no metric was reported".to_owned());
    }
    Outcome::Holds(format!("{} metric(s) finite", names.len()))
}

/// What is missing of a run that did fewer steps than it was asked for and could.
fn too_short(family: &FamilyRuns, run: &SeedRun) -> Option<String> {
    let wanted = run.steps_wanted(family.steps);
    (run.steps_done < wanted).then(|| format!("{} of {wanted} steps done", run.steps_done))
}

fn finite_value(point: Point) -> Option<f64> {
    point.value.filter(|v| v.is_finite())
}

fn decrease(criterion: &Criterion, run: &SeedRun, min: f64, within: u64) -> Outcome {
    if run.steps_done < within {
        return Outcome::NotEvaluated(format!("{} steps, its window is {within}", run.steps_done));
    }
    let names = match metrics(criterion, run) {
        Ok(names) => names,
        Err(name) => return Outcome::Broken(format!("metric {name} is missing")),
    };
    let window = (within / 50).max(1);
    let mut least: Option<(f64, &str)> = None;
    for name in names {
        let Some(curve) = run.curves.get(name) else {
            return Outcome::Broken(format!("metric {name} has no curve"));
        };
        let mean = |from: u64, to: u64| mean_of(curve.iter().filter(|p| p.step > from && p.step <= to));
        let (Some(first), Some(last)) = (mean(0, window), mean(within - window, within)) else {
            return Outcome::NotEvaluated(format!("{name} has no finite points in both windows"));
        };
        if first <= 0.0 {
            return Outcome::NotEvaluated(format!("{name} begins at {first}, a share of it means nothing"));
        }
        let fall = 1.0 - last / first;
        if least.is_none_or(|(l, _)| fall < l) {
            least = Some((fall, name));
        }
    }
    match least {
        None => Outcome::NotEvaluated("no metric was reported".to_owned()),
        Some((fall, name)) if no_more(min, fall) => Outcome::Holds(format!("{name} fell by {fall:.4}")),
        Some((fall, name)) => Outcome::Broken(format!("{name} fell by {fall:.4}")),
    }
}

/// Mean of the points; `None` without any, or with one that is not finite.
fn mean_of<'a>(points: impl Iterator<Item = &'a Point>) -> Option<f64> {
    let values = points.map(|p| finite_value(*p)).collect::<Option<Vec<f64>>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn at_most(criterion: &Criterion, run: &SeedRun, max: f64) -> Outcome {
    // Final values of a run that broke off are not those of its end.
    if run.broke_off() {
        return Outcome::NotEvaluated(run.error.clone());
    }
    let names = match metrics(criterion, run) {
        Ok(names) => names,
        Err(name) => return Outcome::NotEvaluated(format!("metric {name} is missing")),
    };
    let mut worst = None;
    for name in names {
        match final_value(run, name) {
            Some(value) if value <= max => worst = Some(worst.map_or(value, |w: f64| w.max(value))),
            Some(value) => return Outcome::Broken(format!("{name} is {value}")),
            None => return Outcome::Broken(format!("{name} is not finite")),
        }
    }
    worst.map_or_else(
        || Outcome::NotEvaluated("no metric was reported".to_owned()),
        |w| Outcome::Holds(format!("at most {w}")),
    )
}

/// The final value of a metric: of a curve the mean of its last tenth.
pub fn final_value(run: &SeedRun, metric: &str) -> Option<f64> {
    if let Some(value) = run.finals.get(metric) {
        return value.filter(|v| v.is_finite());
    }
    let curve = run.curves.get(metric)?;
    let last = curve.len().div_ceil(10).max(1);
    mean_of(curve[curve.len().saturating_sub(last)..].iter())
}

/// The runs that have values of their end: those that did not break off.
fn complete(family: &FamilyRuns) -> Vec<&SeedRun> {
    family.runs.iter().filter(|run| !run.broke_off()).collect()
}

fn spread(
    family: &FamilyRuns,
    criterion: &Criterion,
    judge: impl Fn(f64, f64, f64) -> (bool, String),
) -> Outcome {
    let complete = complete(family);
    let [first, others @ ..] = complete.as_slice() else {
        return Outcome::NotEvaluated("no seed ran to its end".to_owned());
    };
    if others.is_empty() {
        return Outcome::NotEvaluated("a spread needs two seeds that ran to their end".to_owned());
    }
    if first.prompts_digest.is_some() && others.iter().all(|run| run.prompts_digest == first.prompts_digest) {
        let why = "every seed asked the same, so its spread says nothing: no task draws examples";
        return Outcome::Pointless(why.to_owned());
    }
    let names = match metrics(criterion, first) {
        Ok(names) => names,
        Err(name) => return Outcome::Broken(format!("metric {name} is missing")),
    };
    if names.is_empty() {
        return if criterion.metrics.iter().any(|m| m.ends_with('*')) {
            Outcome::Holds("no such metric".to_owned())
        } else {
            Outcome::NotEvaluated("no metric was reported".to_owned())
        };
    }
    let mut widest = Vec::new();
    for name in names {
        let values: Option<Vec<f64>> = complete.iter().map(|run| final_value(run, name)).collect();
        let Some(values) = values else { return Outcome::Broken(format!("{name} is missing or not finite")) };
        let (low, high) =
            values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        // Equal values have no spread, whatever their mean.
        let (holds, shown) = if high == low { (true, "0".to_owned()) } else { judge(low, high, mean) };
        if !holds {
            return Outcome::Broken(format!("{name}: {shown} over {} seeds", values.len()));
        }
        widest.push(format!("{name}: {shown}"));
    }
    Outcome::Holds(widest.join(", "))
}

/// Repetitions of a seed: those that a run holds itself, and runs of the same seed.
fn repeats(family: &FamilyRuns, criterion: &Criterion, max: f64) -> Outcome {
    let mut pairs: Vec<(u64, String, Option<f64>, Option<f64>)> = Vec::new();
    let wanted = |name: &str| criterion.metrics.is_empty() || criterion.metrics.iter().any(|m| m == name);
    let complete = complete(family);
    for (index, run) in complete.iter().enumerate() {
        let own = run.repeat_values.iter().filter(|(name, _)| wanted(name));
        pairs.extend(own.map(|(name, [first, again])| (run.seed, name.clone(), *first, *again)));
        for other in complete[..index].iter().filter(|o| o.seed == run.seed) {
            let names = run.curves.keys().chain(run.finals.keys()).filter(|name| wanted(name));
            pairs.extend(names.map(|n| (run.seed, n.clone(), final_value(other, n), final_value(run, n))));
        }
    }
    if pairs.is_empty() {
        return Outcome::NotEvaluated("no seed was run twice".to_owned());
    }
    let mut widest = 0.0_f64;
    for (seed, name, first, again) in pairs {
        let (Some(first), Some(again)) = (first, again) else {
            return Outcome::Broken(format!("seed {seed}: {name} is missing or not finite"));
        };
        let off = if first == again { 0.0 } else { (again - first).abs() / first.abs() };
        if !no_more(off, max) {
            return Outcome::Broken(format!("seed {seed}: {name} is {again} after {first}"));
        }
        widest = widest.max(off);
    }
    Outcome::Holds(format!("at most {widest:.4} off"))
}

fn success_rate(family: &FamilyRuns, min: f64) -> Outcome {
    let mut unevaluated = Vec::new();
    let mut failed = Vec::new();
    let n = family.runs.len();
    for run in &family.runs {
        let mut why = if run.broke_off() { Some(run.error.clone()) } else { too_short(family, run) };
        for criterion in family.criteria.iter().filter(|_| !run.broke_off()) {
            match per_seed(family, criterion, run).1 {
                Outcome::Broken(broken) => {
                    why = why.or_else(|| Some(format!("{}: {broken}", criterion.name)));
                }
                Outcome::NotEvaluated(_) => unevaluated.push(criterion.name.as_str()),
                Outcome::Holds(_) | Outcome::Pointless(_) => {}
            }
        }
        failed.extend(why.map(|why| format!("seed {}: {why}", run.seed)));
    }
    unevaluated.sort_unstable();
    unevaluated.dedup();
    let (passed, needed) = (n - failed.len(), seeds_needed(min, n));
    let without =
        if unevaluated.is_empty() { String::new() } else { format!(" (without {})", unevaluated.join(", ")) };
    if passed >= needed {
        Outcome::Holds(format!("{passed} of {n} seeds{without}"))
    } else {
        Outcome::Broken(format!("{passed} of {n} seeds, {needed} needed; {}", failed.join("; ")))
    }
}

#[cfg(test)]
#[path = "repro_tests.rs"]
mod tests;

//! `day0 power`: what a comparison on these tasks can show, and what it will cost, before any compute.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Settings, output};
use crate::base::stats::{Alpha, minimal_detectable, needed_n};
use crate::base::units::human_seconds;
use crate::eval;
use crate::gate::{CompareOptions, Facts, StopRule, Subject, TaskFacts};
use crate::record::Failure;
use crate::record::eval::MetricInfo;
use crate::release::power::{Outcome, Scenario, simulate};
use crate::suite::{self, Suite, Task};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Suites or tasks, comma-separated.
    #[arg(long, value_name = "S")]
    suite: String,
    /// Largest drop that may be published, in points (hundredths) of the scale.
    #[arg(long, value_name = "POINTS", default_value_t = 1.0)]
    margin: f64,
    /// Assumed shares of items that change either way.
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_values_t = [0.02, 0.05, 0.10])]
    flip_rates: Vec<f64>,
    /// Finished comparison whose flip rates and speed are assumed instead: a release's run directory.
    #[arg(long, value_name = "RUN", conflicts_with = "flip_rates")]
    from: Option<PathBuf>,
    /// Model to time: it scores 16 items of each task on this machine.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// At most N items a task.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Score all items of every task even when it is decided before.
    #[arg(long)]
    no_early_stop: bool,
    /// Simulated tasks for each line.
    #[arg(long, value_name = "N", default_value_t = 500)]
    simulations: usize,
}

/// One line: a task under one assumption.
#[derive(Debug, Serialize)]
struct Row {
    task: String,
    items: usize,
    flip_rate: f64,
    /// Smallest drop that all items show with power 0.8.
    detectable: f64,
    /// Items that show "within" with power 0.8 at a fixed n, without a drop.
    needed: Option<u64>,
    /// What happens without a drop.
    no_drop: Outcome,
    /// What happens with a drop of five margins.
    damaged: Outcome,
    /// Seconds for the median number of items without a drop, both arms.
    seconds: Option<f64>,
}

/// Seed of the simulations: the same question has the same answer.
const SEED: u64 = 1234;
/// Damage that a plan looks at, in margins.
const DAMAGE: f64 = 5.0;

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let margin = arguments.margin / 100.0;
    if !(margin > 0.0 && margin < 1.0) {
        return Err(Failure::config(format!("--margin {}: not between 0 and 100 points", arguments.margin)));
    }
    if let Some(bad) = arguments.flip_rates.iter().find(|rate| !(**rate > 0.0 && **rate <= 1.0)) {
        return Err(Failure::config(format!("--flip-rates {bad}: not a share between 0 and 1")));
    }
    let suite = suite::load(&arguments.suite, arguments.data.as_deref())?;
    let subjects = subjects(&suite, arguments);
    let measured = arguments.from.as_deref().map(super::power_from::Measured::read).transpose()?;
    let timed =
        arguments.model.as_deref().map(|m| super::power_time::Timed::of(m, &suite, settings)).transpose()?;
    let mut rows = Vec::new();
    let mut others = Vec::new();
    for subject in &subjects {
        if !subject.countable {
            others.push(subject.name.as_str());
            continue;
        }
        let rates = match &measured {
            Some(measured) => vec![measured.flip_rate(&subject.name)],
            None => arguments.flip_rates.clone(),
        };
        let rule = StopRule { margin, alpha: Alpha::FIVE_PERCENT, tests: subjects.len() };
        let seconds_per_item = match (&timed, &measured) {
            (Some(timed), _) => timed.seconds_per_item(&subject.tasks),
            (None, measured) => measured.as_ref().and_then(super::power_from::Measured::seconds_per_item),
        };
        for flip_rate in rates {
            rows.push(row(&subject.name, subject.items, flip_rate, rule, arguments, seconds_per_item));
        }
    }
    if settings.json {
        output::json(&rows)?;
    } else {
        show(&rows, &others, margin);
    }
    Ok(0)
}

/// What is decided, and whether it can be planned.
struct Planned {
    name: String,
    tasks: Vec<String>,
    items: usize,
    /// Whether all its items are 0/1 and count alike.
    countable: bool,
}

/// What a release of this suite decides: each task, or a group that has a score of its own.
fn subjects(suite: &Suite, arguments: &Arguments) -> Vec<Planned> {
    let metric = |task: &Task| {
        let kind = task.config.primary_metric;
        MetricInfo {
            name: kind.name().to_owned(),
            higher_is_better: kind.higher_is_better(),
            scale: kind.scale(),
        }
    };
    let metrics: BTreeMap<&str, MetricInfo> =
        suite.tasks.iter().map(|task| (task.config.task.as_str(), metric(task))).collect();
    let planned = |task: &Task| arguments.limit.map_or(task.docs.len(), |limit| limit.min(task.docs.len()));
    let of_name = |name: &str| suite.tasks.iter().find(|task| task.config.task == name);
    let fact = |task: &'_ Task| TaskFacts {
        metric: &metrics[task.config.task.as_str()],
        clustered: task.config.cluster.is_some(),
        whole: planned(task) == task.docs.len(),
    };
    let facts: Facts<'_> = suite.tasks.iter().map(|t| (t.config.task.as_str(), fact(t))).collect();
    let options = CompareOptions::default();
    let subjects = options.subjects(&eval::group_records(&suite.groups), &facts);
    let countable = options.stop_rules(&subjects, &facts);
    let plan = |subject: Subject| Planned {
        items: subject.tasks.iter().filter_map(|name| of_name(name)).map(|task| planned(task)).sum(),
        countable: countable.contains_key(&subject.name),
        name: subject.name,
        tasks: subject.tasks,
    };
    subjects.into_iter().filter(Subject::decides).map(plan).collect()
}

fn row(
    task: &str,
    items: usize,
    flip_rate: f64,
    rule: StopRule,
    arguments: &Arguments,
    seconds_per_item: Option<f64>,
) -> Row {
    let early_stop = !arguments.no_early_stop;
    let level = if early_stop { rule.part() } else { rule.alpha };
    let scenario = Scenario { items, flip_rate, drop: 0.0, rule, early_stop };
    let no_drop = simulate(&scenario, arguments.simulations, SEED);
    let drop = (DAMAGE * rule.margin).min(flip_rate.max(rule.margin));
    let damage = Scenario { drop, flip_rate: flip_rate.max(drop), ..scenario };
    Row {
        task: task.to_owned(),
        items,
        flip_rate,
        detectable: minimal_detectable((flip_rate / items.max(1) as f64).sqrt(), level),
        needed: needed_n(flip_rate, rule.margin, level),
        no_drop,
        damaged: simulate(&damage, arguments.simulations, SEED),
        seconds: seconds_per_item.map(|s| s * no_drop.items_median as f64),
    }
}

fn show(rows: &[Row], others: &[&str], margin: f64) {
    output::line(&format!(
        "margin {:.2} points of the scale, certify at 5 % per side; flip rates are assumed unless --from is given",
        100.0 * margin
    ));
    output::line(&format!(
        "{:<20} {:>6} {:>6} {:>11} {:>8} {:>10} {:>8} {:>8} {:>9} {:>8} {:>10}",
        "task",
        "items",
        "flips",
        "detectable",
        "n fixed",
        "certified",
        "median",
        "p90",
        "damaged",
        "median",
        "time"
    ));
    for row in rows {
        let time = row.seconds.map_or_else(|| "–".to_owned(), human_seconds);
        output::line(&format!(
            "{:<20} {:>6} {:>5.1}% {:>8.2} pt {:>8} {:>9.0}% {:>8} {:>8} {:>8.0}% {:>8} {:>10}",
            row.task,
            row.items,
            100.0 * row.flip_rate,
            100.0 * row.detectable,
            row.needed.map_or_else(|| "–".to_owned(), |n| n.to_string()),
            100.0 * row.no_drop.within,
            row.no_drop.items_median,
            row.no_drop.items_p90,
            100.0 * row.damaged.regression,
            row.damaged.items_median,
            time
        ));
    }
    output::line("");
    output::line(&format!(
        "detectable: smallest drop all items show with power 0.8; n fixed: items that certify without a drop at power \
         0.8 without early stopping; certified, median, p90: share certified and items used if there is no drop; \
         damaged, median: share called and items used if the drop is {DAMAGE:.0} margins (at most the flip rate)"
    ));
    match rows.iter().map(|row| row.seconds).sum::<Option<f64>>() {
        Some(_) => output::line(
            "time: both arms to the median number of items; of several assumed flip rates, one will come true",
        ),
        None => output::line("time: give --model to time it, or --from a finished run"),
    }
    if !others.is_empty() {
        output::line(&format!("not planned (no 0/1 items that count alike): {}", others.join(", ")));
    }
    for row in rows.iter().filter(|row| row.no_drop.within < 0.8) {
        output::line(&format!(
            "warning: {} at {:.1} % flips is certified in only {:.0} % of runs: widen its margin, make it advisory, or \
             add tasks",
            row.task,
            100.0 * row.flip_rate,
            100.0 * row.no_drop.within
        ));
    }
}

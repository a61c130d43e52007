//! `day0 power`: what a comparison on these tasks can show, and what it will cost, before any compute.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Settings, output};
use crate::base::progress;
use crate::base::stats::{minimal_detectable, needed_n};
use crate::base::units::human_seconds;
use crate::gate::{Policy, Subject, Tier};
use crate::record::Failure;
use crate::release::Decided;
use crate::release::config::{ConfigFile, ReleaseConfig};
use crate::release::power::{Outcome, Scenario, simulate};
use crate::suite::{self, Suite};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Suites or tasks, comma-separated.
    #[arg(long, value_name = "S")]
    suite: String,
    /// Configuration whose margins, tiers and limit are planned; flags override it [default: ./day0.yaml if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Largest drop that may be published of tasks that the configuration sets none for, in points (hundredths) of the
    /// scale [default: 1].
    #[arg(long, value_name = "POINTS")]
    margin: Option<f64>,
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
    tier: Tier,
    items: usize,
    /// Largest allowed drop, as a share of the scale.
    margin: f64,
    flip_rate: f64,
    /// Smallest drop that all items show with power 0.8, by the test that decides at their end.
    detectable: f64,
    /// Items that show "within" with power 0.8 by that test, without a drop.
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
    if let Some(margin) = arguments.margin.filter(|margin| !(*margin > 0.0 && *margin < 100.0)) {
        return Err(Failure::config(format!("--margin {margin}: not between 0 and 100 points")));
    }
    if let Some(bad) = arguments.flip_rates.iter().find(|rate| !(**rate > 0.0 && **rate <= 1.0)) {
        return Err(Failure::config(format!("--flip-rates {bad}: not a share between 0 and 1")));
    }
    let config = config(arguments)?;
    let suite = suite::load(&config.suites.join(","), config.data.as_deref())?;
    let decided = decided(&suite, &config);
    let measured = arguments.from.as_deref().map(super::power_from::Measured::read).transpose()?;
    let timed =
        arguments.model.as_deref().map(|m| super::power_time::Timed::of(m, &suite, settings)).transpose()?;
    let mut rows = Vec::new();
    let mut others = Vec::new();
    for subject in decided.subjects.iter().filter(|subject| subject.decides()) {
        let Some(rule) = decided.rules.get(&subject.name) else {
            others.push(subject.name.as_str());
            continue;
        };
        let rates = match &measured {
            Some(measured) => vec![measured.flip_rate(&subject.name)],
            None => arguments.flip_rates.clone(),
        };
        let seconds_per_item = match (&timed, &measured) {
            (Some(timed), _) => timed.seconds_per_item(&subject.tasks),
            (None, measured) => measured.as_ref().and_then(super::power_from::Measured::seconds_per_item),
        };
        let scenario = Scenario {
            items: decided.items(subject),
            flip_rate: 0.0,
            drop: 0.0,
            rule: *rule,
            early_stop: config.early_stop,
        };
        for flip_rate in rates {
            let scenario = Scenario { flip_rate, ..scenario };
            let tier = decided.options.tier(&subject.name);
            rows.push(row(subject, tier, scenario, arguments.simulations, seconds_per_item));
        }
    }
    let never = decided.uncertifiable();
    if settings.json {
        output::json(&rows)?;
        for line in &never {
            progress::note(line);
        }
    } else {
        show(&rows, &others, &never);
    }
    Ok(0)
}

/// The release that is planned: that of the configuration, with what the flags say. Only certify has anything to plan.
fn config(arguments: &Arguments) -> Result<ReleaseConfig, Failure> {
    let flags = ConfigFile {
        suites: Some(vec![arguments.suite.clone()]),
        data: arguments.data.clone(),
        margin: arguments.margin.map(|points| points / 100.0),
        limit: arguments.limit,
        early_stop: arguments.no_early_stop.then_some(false),
        policy: Some(Policy::Certify),
        ..ConfigFile::default()
    };
    super::config_file(arguments.config.as_deref())?.overridden_by(flags).validate()
}

/// What a release of this suite decides: each task, or a group that has a score of its own.
fn decided(suite: &Suite, config: &ReleaseConfig) -> Decided {
    let planned = |docs: usize| config.limit.map_or(docs, |limit| limit.min(docs));
    let tasks: Vec<_> = suite.tasks.iter().map(|task| (task.as_ref(), planned(task.docs.len()))).collect();
    Decided::of(config, &tasks, &suite.groups)
}

fn row(
    subject: &Subject,
    tier: Tier,
    scenario: Scenario,
    simulations: usize,
    seconds_per_item: Option<f64>,
) -> Row {
    let Scenario { items, flip_rate, rule, early_stop, .. } = scenario;
    let (test, level) = rule.last_test(early_stop);
    let no_drop = simulate(&scenario, simulations, SEED);
    let drop = (DAMAGE * rule.margin).min(flip_rate.max(rule.margin));
    let damage = Scenario { drop, flip_rate: flip_rate.max(drop), ..scenario };
    Row {
        task: subject.name.clone(),
        tier,
        items,
        margin: rule.margin,
        flip_rate,
        detectable: minimal_detectable(test, (flip_rate / items.max(1) as f64).sqrt(), level),
        needed: needed_n(test, flip_rate, rule.margin, level),
        no_drop,
        damaged: simulate(&damage, simulations, SEED),
        seconds: seconds_per_item.map(|s| s * no_drop.items_median as f64),
    }
}

fn show(rows: &[Row], others: &[&str], never: &[String]) {
    output::line("certify at 5 % per side; flip rates are assumed unless --from is given");
    output::line(&format!(
        "{:<20} {:>6} {:>8} {:>6} {:>11} {:>8} {:>10} {:>8} {:>8} {:>9} {:>8} {:>10}",
        "task",
        "items",
        "margin",
        "flips",
        "detectable",
        "n needed",
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
            "{:<20} {:>6} {:>5.2} pt {:>5.1}% {:>8.2} pt {:>8} {:>9.0}% {:>8} {:>8} {:>8.0}% {:>8} {:>10}",
            row.task,
            row.items,
            100.0 * row.margin,
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
        "detectable: smallest drop all items show with power 0.8; n needed: items that certify without a drop at power \
         0.8 by the test at the plan's end (of a --limit with early stopping its looks, else the interval); certified, \
         median, p90: share certified and items used if there is no drop; damaged, median: share called and items used \
         if the drop is {DAMAGE:.0} margins (at most the flip rate)"
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
    for line in never {
        output::line(&format!("warning: {line}"));
    }
    let required = rows.iter().filter(|row| row.tier == Tier::Required);
    for row in required.filter(|row| row.no_drop.within < 0.8) {
        output::line(&format!(
            "warning: {} at {:.1} % flips is certified in only {:.0} % of runs: widen its margin, make it advisory, or \
             add tasks",
            row.task,
            100.0 * row.flip_rate,
            100.0 * row.no_drop.within
        ));
    }
}

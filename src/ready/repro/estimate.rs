//! Run time of other numbers of seeds and steps, from measured runs (founding document 000, "Estimate Runtime").
//!
//! Each measured run i of a family gives a set-up aᵢ and a rate rᵢ, seconds a step. A scenario of n seeds with N steps
//! takes tᵢ = aᵢ + min(N, M)·rᵢ a seed by run i, where M is the number of steps that the family's data hold, if they end.
//! The estimate is n·t̄ and its 95 % prediction interval n·t̄ ± t(0.975, m − 1) · s · √(n + n²/m), with m runs and their
//! standard deviation s (Hahn & Meeker, Statistical Intervals, 1991, 4.7: the sum of n future observations).

use serde::Serialize;

use crate::base::stats::student_quantile;
use crate::record::Failure;
use crate::record::repro::{FamilyRuns, SeedRun, SeedRuns};

/// So many seeds with so many steps each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scenario {
    /// Seeds.
    pub seeds: u64,
    /// Steps of each.
    pub steps: u64,
}

/// The predicted time of one family.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimated {
    /// Family.
    pub family: String,
    /// Scenario.
    pub scenario: Scenario,
    /// Steps that each seed would do, where the data hold fewer than the scenario asks for.
    pub steps_available: Option<u64>,
    /// Seconds of all seeds together.
    pub seconds: f64,
    /// Bounds of the 95 % prediction interval; `None` from a single run.
    pub interval: Option<(f64, f64)>,
}

impl Scenario {
    /// Reads `5x5000,7x10000`.
    pub fn list(text: &str) -> Result<Vec<Self>, Failure> {
        text.split(',').map(|part| Self::parse(part.trim())).collect()
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let number = |t: &str| t.parse::<u64>().ok().filter(|n| *n > 0);
        text.split_once('x')
            .and_then(|(seeds, steps)| Some(Self { seeds: number(seeds)?, steps: number(steps)? }))
            .ok_or_else(|| {
                Failure::config(format!("scenario '{text}': expected SEEDSxSTEPS")).with_hint("e.g. 5x5000")
            })
    }
}

/// Every family under every scenario.
pub fn estimate(runs: &SeedRuns, scenarios: &[Scenario]) -> Result<Vec<Estimated>, Failure> {
    let mut all = Vec::new();
    for family in &runs.families {
        let measured = rates(family)?;
        all.extend(scenarios.iter().map(|scenario| one(&family.family, &measured, *scenario)));
    }
    if all.is_empty() {
        return Err(Failure::config("no family was measured"));
    }
    Ok(all)
}

/// What a measured run says about the time of others.
struct Rate<'a> {
    run: &'a SeedRun,
    seconds_a_step: f64,
}

impl Rate<'_> {
    /// Seconds of a seed with `steps` steps.
    fn seconds(&self, steps: u64) -> f64 {
        self.run.setup_s + self.seconds_a_step * self.run.steps_wanted(steps) as f64
    }
}

/// The rate of each run that did steps.
fn rates(family: &FamilyRuns) -> Result<Vec<Rate<'_>>, Failure> {
    let usable = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
    let rates: Vec<Rate<'_>> = family
        .runs
        .iter()
        .filter(|r| r.steps_done > 0 && !r.broke_off() && usable(r.setup_s) && usable(r.steps_s))
        .map(|run| Rate { run, seconds_a_step: run.steps_s / run.steps_done as f64 })
        .collect();
    if rates.is_empty() {
        let message = format!("{}: no run was finished, so there is no rate to go by", family.family);
        return Err(Failure::config(message).with_hint("measure again; the failed seeds are run again"));
    }
    Ok(rates)
}

fn one(family: &str, measured: &[Rate<'_>], scenario: Scenario) -> Estimated {
    let times: Vec<f64> = measured.iter().map(|rate| rate.seconds(scenario.steps)).collect();
    let steps_available = measured.iter().filter_map(|rate| rate.run.steps_available).min();
    let (m, n) = (times.len() as f64, scenario.seeds as f64);
    let mean = times.iter().sum::<f64>() / m;
    let seconds = n * mean;
    let interval = (times.len() > 1).then(|| {
        let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (m - 1.0);
        let half = student_quantile(0.975, times.len() - 1) * (variance * (n + n * n / m)).sqrt();
        ((seconds - half).max(0.0), seconds + half)
    });
    let steps_available = steps_available.filter(|available| *available < scenario.steps);
    Estimated { family: family.to_owned(), scenario, steps_available, seconds, interval }
}

#[cfg(test)]
mod tests {
    use super::super::measure::empty_run;
    use super::*;

    /// A family of runs of (set-up, seconds of all steps), with `steps` steps each.
    fn family(times: &[(f64, f64)], steps: u64) -> FamilyRuns {
        let run = |(setup_s, steps_s): &(f64, f64)| SeedRun {
            setup_s: *setup_s,
            steps_s: *steps_s,
            steps_done: steps,
            ..empty_run(0)
        };
        let runs = times.iter().map(run).collect();
        FamilyRuns { family: "f".into(), step: "s".into(), steps, criteria: vec![], runs }
    }

    fn estimated(family: &FamilyRuns, seeds: u64, steps: u64) -> Estimated {
        one("f", &rates(family).unwrap(), Scenario { seeds, steps })
    }

    /// Document 000: the scenarios of its own command.
    #[test]
    fn scenarios_are_read() {
        let list = Scenario::list("5x5000,7x10000,10x10000,7x20000,10x20000").unwrap();
        assert_eq!((list.len(), list[1]), (5, Scenario { seeds: 7, steps: 10_000 }));
        for text in ["5", "x5", "0x5", "5x0", "5x-1", "", "5x5,,"] {
            assert!(Scenario::list(text).unwrap_err().message.contains("expected SEEDSxSTEPS"), "{text}");
        }
    }

    /// Document 000, "Estimate Runtime from Measured Results".
    #[test]
    fn time_is_set_up_and_steps_of_every_seed() {
        let exact = estimated(&family(&[(2.0, 1.0), (2.0, 1.0)], 10), 5, 100);
        assert!((exact.seconds - 60.0).abs() < 1e-9);
        assert_eq!(exact.interval, Some((exact.seconds, exact.seconds)));
        assert_eq!(estimated(&family(&[(2.0, 1.0)], 10), 1, 1).interval, None);
        assert!(rates(&family(&[], 10)).is_err());
    }

    /// Document 000, "Estimate Runtime from Measured Results": a data set of 320 documents takes no longer for 5,000
    /// steps than for 320.
    #[test]
    fn steps_end_where_the_data_do() {
        let mut measured = family(&[(2.0, 32.0)], 320);
        measured.runs[0].steps_available = Some(320);
        let long = estimated(&measured, 5, 5000);
        assert!((long.seconds - 5.0 * 34.0).abs() < 1e-9, "{}", long.seconds);
        assert_eq!((long.steps_available, long.scenario.steps), (Some(320), 5000));
        let short = estimated(&measured, 1, 100);
        assert!((short.seconds - 12.0).abs() < 1e-9, "{}", short.seconds);
        assert_eq!(short.steps_available, None);
    }

    /// Document 000, "Estimate Runtime from Measured Results".
    /// Three runs of 10, 11 and 12 s: s = 1, t(0.975, 2) = 4.302653 (R: qt(0.975, 2)).
    #[test]
    fn the_interval_is_that_of_a_sum_of_future_runs() {
        let measured = family(&[(10.0, 0.0), (11.0, 0.0), (12.0, 0.0)], 5);
        let (low, high) = estimated(&measured, 3, 9).interval.unwrap();
        let half = 4.302_653 * (3.0_f64 + 3.0).sqrt();
        assert!((low - (33.0 - half)).abs() < 1e-4 && (high - (33.0 + half)).abs() < 1e-4, "{low} {high}");
    }
}

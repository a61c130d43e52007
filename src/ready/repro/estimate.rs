//! Run time of other numbers of seeds and steps, from measured runs (founding document 000, "Estimate Runtime").
//!
//! Each measured run i of a family gives a set-up aᵢ and a rate rᵢ, seconds a step. A scenario of n seeds with N steps
//! takes tᵢ = aᵢ + N·rᵢ a seed by run i; the estimate is n·t̄ and its 95 % prediction interval
//! n·t̄ ± t(0.975, m − 1) · s · √(n + n²/m), with m runs and their standard deviation s (Hahn & Meeker, Statistical
//! Intervals, 1991, 4.7: the sum of n future observations).

use serde::Serialize;

use crate::base::stats::student_quantile;
use crate::record::Failure;
use crate::record::repro::{FamilyRuns, SeedRuns};

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

/// (set-up, seconds a step) of each run that did steps.
fn rates(family: &FamilyRuns) -> Result<Vec<(f64, f64)>, Failure> {
    let usable = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
    let rates: Vec<(f64, f64)> = family
        .runs
        .iter()
        .filter(|r| r.steps_done > 0 && r.error.is_empty() && usable(r.setup_s) && usable(r.steps_s))
        .map(|r| (r.setup_s, r.steps_s / r.steps_done as f64))
        .collect();
    if rates.is_empty() {
        let message = format!("{}: no run was finished, so there is no rate to go by", family.family);
        return Err(Failure::config(message).with_hint("measure again; the failed seeds are run again"));
    }
    Ok(rates)
}

fn one(family: &str, measured: &[(f64, f64)], scenario: Scenario) -> Estimated {
    let times: Vec<f64> = measured.iter().map(|(setup, rate)| setup + rate * scenario.steps as f64).collect();
    let (m, n) = (times.len() as f64, scenario.seeds as f64);
    let mean = times.iter().sum::<f64>() / m;
    let seconds = n * mean;
    let interval = (times.len() > 1).then(|| {
        let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (m - 1.0);
        let half = student_quantile(0.975, times.len() - 1) * (variance * (n + n * n / m)).sqrt();
        ((seconds - half).max(0.0), seconds + half)
    });
    Estimated { family: family.to_owned(), scenario, seconds, interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Document 000: the scenarios of its own command.
    #[test]
    fn scenarios_are_read() {
        let list = Scenario::list("5x5000,7x10000,10x10000,7x20000,10x20000").unwrap();
        assert_eq!((list.len(), list[1]), (5, Scenario { seeds: 7, steps: 10_000 }));
        for text in ["5", "x5", "0x5", "5x0", "5x-1", "", "5x5,,"] {
            assert!(Scenario::list(text).unwrap_err().message.contains("expected SEEDSxSTEPS"), "{text}");
        }
    }

    #[test]
    fn time_is_set_up_and_steps_of_every_seed() {
        let exact = one("f", &[(2.0, 0.1), (2.0, 0.1)], Scenario { seeds: 5, steps: 100 });
        assert!((exact.seconds - 60.0).abs() < 1e-9);
        assert_eq!(exact.interval, Some((exact.seconds, exact.seconds)));
        assert_eq!(one("f", &[(2.0, 0.1)], Scenario { seeds: 1, steps: 1 }).interval, None);
    }

    /// Three runs of 10, 11 and 12 s: s = 1, t(0.975, 2) = 4.302653 (R: qt(0.975, 2)).
    #[test]
    fn the_interval_is_that_of_a_sum_of_future_runs() {
        let measured = [(10.0, 0.0), (11.0, 0.0), (12.0, 0.0)];
        let (low, high) = one("f", &measured, Scenario { seeds: 3, steps: 9 }).interval.unwrap();
        let half = 4.302_653 * (3.0_f64 + 3.0).sqrt();
        assert!((low - (33.0 - half)).abs() < 1e-4 && (high - (33.0 + half)).abs() < 1e-4, "{low} {high}");
    }
}

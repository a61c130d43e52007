//! What a comparison will probably show and cost, by simulating the very rule that judges it.

use std::ops::Range;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::waves::wave_ends;
use crate::gate::{Decision, StopRule, WaveCounts};

/// An assumed truth about a task of independent 0/1 items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scenario {
    /// Items of the plan.
    pub items: usize,
    /// Share of items that change either way.
    pub flip_rate: f64,
    /// True drop; at most `flip_rate` in size.
    pub drop: f64,
    /// The rule.
    pub rule: StopRule,
    /// Whether the task may stop early.
    pub early_stop: bool,
}

/// How simulated tasks ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Share shown to be within the margin.
    pub within: f64,
    /// Share called a regression.
    pub regression: f64,
    /// Median number of items visited.
    pub items_median: usize,
    /// Nine of ten tasks visit at most this many items.
    pub items_p90: usize,
}

/// Simulates `tasks` tasks; the same seed gives the same outcome.
pub fn simulate(scenario: &Scenario, tasks: usize, seed: u64) -> Outcome {
    let ends = wave_ends(scenario.items, scenario.early_stop);
    let ended: Vec<(Option<Decision>, usize)> = (0..tasks)
        .into_par_iter()
        .map(|task| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(task as u64);
            one_task(scenario, &ends, &mut rng)
        })
        .collect();
    let share = |decision| {
        ended.iter().filter(|(found, _)| *found == Some(decision)).count() as f64 / tasks.max(1) as f64
    };
    let mut items: Vec<usize> = ended.iter().map(|(_, items)| *items).collect();
    items.sort_unstable();
    let quantile = |q: usize| items.get((items.len() * q / 100).min(items.len().saturating_sub(1)));
    Outcome {
        within: share(Decision::Within),
        regression: share(Decision::Regression),
        items_median: quantile(50).copied().unwrap_or_default(),
        items_p90: quantile(90).copied().unwrap_or_default(),
    }
}

fn one_task(scenario: &Scenario, ends: &[usize], rng: &mut ChaCha8Rng) -> (Option<Decision>, usize) {
    let lost = f64::midpoint(scenario.flip_rate, scenario.drop);
    visit(&scenario.rule, ends, scenario.early_stop, |places| {
        draw(places.len(), lost, scenario.flip_rate, rng)
    })
}

/// How a plan of `items` items ends if none of them changes: what is not shown then is shown by no outcome.
pub fn without_flips(rule: &StopRule, items: usize, early_stop: bool) -> Option<Decision> {
    let quiet = |places: Range<usize>| {
        let n = places.len() as u64;
        WaveCounts { n, lost: 0, gained: 0, right: n, guessed: None }
    };
    visit(rule, &wave_ends(items, early_stop), early_stop, quiet).0
}

/// Visits the waves of a plan until a look or the end decides: the decision, and the items visited.
fn visit(
    rule: &StopRule,
    ends: &[usize],
    early_stop: bool,
    mut wave: impl FnMut(Range<usize>) -> WaveCounts,
) -> (Option<Decision>, usize) {
    let mut follower = rule.follow();
    let (mut last, mut start) = (None, 0);
    for end in ends {
        let look = follower.look(&wave(start..*end));
        start = *end;
        if early_stop {
            if look.decision.is_some() {
                return (look.decision, *end);
            }
            last = Some(look);
        }
    }
    let decision = follower.counts().and_then(|counts| rule.at_the_end(counts, last.as_ref()));
    (decision, start)
}

fn draw(n: usize, lost: f64, flips: f64, rng: &mut ChaCha8Rng) -> WaveCounts {
    let mut counts = WaveCounts { n: n as u64, lost: 0, gained: 0, right: 0, guessed: None };
    for _ in 0..n {
        let draw: f64 = rng.random();
        counts.lost += u64::from(draw < lost);
        counts.gained += u64::from((lost..flips).contains(&draw));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::waves::Sequence;
    use super::*;
    use crate::base::stats::Alpha;

    /// Simulated tasks: enough for a standard error of half a percent at 5 %.
    const TASKS: usize = 2000;

    fn scenario(items: usize, flip_rate: f64, drop: f64) -> Scenario {
        let rule = StopRule { margin: 0.01, alpha: Alpha::FIVE_PERCENT, tests: 1, whole: true };
        Scenario { items, flip_rate, drop, rule, early_stop: true }
    }

    /// A drop of exactly the margin is the worst that must not be accepted.
    #[test]
    fn a_drop_of_the_margin_is_accepted_in_at_most_five_percent() {
        for rate in [0.02, 0.04, 0.06, 0.08, 0.10] {
            let found = simulate(&scenario(2376, rate, 0.01), TASKS, 1);
            assert!(found.within <= 0.05, "{rate}: {found:?}");
        }
        let long = simulate(&scenario(10_042, 0.02, 0.01), TASKS, 2);
        assert!(long.within <= 0.05, "{long:?}");
    }

    /// A plan that was not enough is extended again and again on the same permutation, up to the full split: a drop of the
    /// margin is accepted at some time in at most five percent all the same, because of a limited plan the looks alone
    /// show "within". The intervals of all those plans together would accept far more.
    #[test]
    fn extending_a_plan_does_not_spend_the_level_again() {
        const FULL: usize = 10_042;
        const RUNS: u64 = 1000;
        let plans: Vec<usize> = (300..FULL).step_by(300).chain([FULL]).collect();
        let accepted = |always_whole: bool| {
            let runs = (0..RUNS).into_par_iter().filter(|run| {
                let mut rng = ChaCha8Rng::seed_from_u64(*run);
                // Lost and gained items among the first i.
                let mut sums = vec![(0u64, 0u64)];
                for place in 0..FULL {
                    let (draw, (lost, gained)) = (rng.random::<f64>(), sums[place]);
                    sums.push((
                        lost + u64::from(draw < 0.03),
                        gained + u64::from((0.03..0.05).contains(&draw)),
                    ));
                }
                let wave = |places: Range<usize>| WaveCounts {
                    n: places.len() as u64,
                    lost: sums[places.end].0 - sums[places.start].0,
                    gained: sums[places.end].1 - sums[places.start].1,
                    right: 0,
                    guessed: None,
                };
                let decided = plans.iter().find_map(|items| {
                    let whole = always_whole || *items == FULL;
                    let rule = StopRule { whole, ..scenario(*items, 0.05, 0.01).rule };
                    visit(&rule, &wave_ends(*items, true), true, wave).0
                });
                decided == Some(Decision::Within)
            });
            runs.count() as f64 / RUNS as f64
        };
        let (share, without) = (accepted(false), accepted(true));
        let noise = 2.0 * (0.05 * 0.95 / RUNS as f64).sqrt();
        assert!(share <= 0.05 + noise, "{share}");
        assert!(without > 0.07, "as if every plan were the last: {without}");
    }

    /// A plan of a part of the split needs more items than the interval would.
    #[test]
    fn a_limited_plan_is_decided_by_its_looks() {
        let whole = scenario(1000, 0.02, 0.0);
        let part = Scenario { rule: StopRule { whole: false, ..whole.rule }, ..whole };
        let (whole, part) = (simulate(&whole, 500, 7), simulate(&part, 500, 7));
        assert!(part.within < whole.within, "{part:?} {whole:?}");
    }

    /// A group whose tasks differ in size, flip rate and drop, and whose score drops by exactly the margin: visited as a
    /// permutation of all items, it is not accepted more often than one task.
    #[test]
    fn a_group_that_drops_by_the_margin_is_accepted_in_at_most_five_percent() {
        let rule = StopRule { margin: 0.01, alpha: Alpha::FIVE_PERCENT, tests: 1, whole: true };
        // (items, lost, gained): 8 + 24 − 16 + 4 = 20 of 2,000 items net.
        let tasks = [(200usize, 10, 2), (600, 30, 6), (800, 4, 20), (400, 8, 4)];
        let sizes: Vec<(usize, usize)> = tasks.iter().enumerate().map(|(i, (n, ..))| (i, *n)).collect();
        let accepted = (0..TASKS as u64)
            .into_par_iter()
            .filter(|seed| {
                // The finite population is drawn anew each time, so that the margin is the mean of many.
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                let outcomes: Vec<Vec<i8>> = tasks
                    .iter()
                    .map(|(n, lost, gained)| {
                        let rate = |count: i32| f64::from(count) / *n as f64;
                        let (lost, flips) = (rate(*lost), rate(lost + gained));
                        (0..*n)
                            .map(|_| match rng.random::<f64>() {
                                draw if draw < lost => -1,
                                draw if draw < flips => 1,
                                _ => 0,
                            })
                            .collect()
                    })
                    .collect();
                let sequence = Sequence::of_group("g", &sizes, rule, *seed);
                let mut follower = rule.follow();
                let mut last = None;
                for wave in 0..sequence.waves.len() {
                    let changes: Vec<i8> = sequence.items(wave).map(|(t, i)| outcomes[t][i]).collect();
                    let count = |change| changes.iter().filter(|c| **c == change).count() as u64;
                    let look = follower.look(&WaveCounts {
                        n: changes.len() as u64,
                        lost: count(-1),
                        gained: count(1),
                        right: 0,
                        guessed: None,
                    });
                    if look.decision.is_some() {
                        return look.decision == Some(Decision::Within);
                    }
                    last = Some(look);
                }
                let counts = follower.counts().unwrap();
                rule.at_the_end(counts, last.as_ref()) == Some(Decision::Within)
            })
            .count();
        let share = accepted as f64 / TASKS as f64;
        assert!(share <= 0.05, "{share}");
    }

    /// The bound of the betting test is about ln(40)·2ψ/m² = 1,475 items.
    #[test]
    fn no_drop_is_accepted_early() {
        let found = simulate(&scenario(10_042, 0.02, 0.0), TASKS, 3);
        assert!(found.items_median <= 1800 && found.within > 0.99, "{found:?}");
    }

    #[test]
    fn five_points_are_called_early() {
        for rate in [0.06, 0.08, 0.10] {
            let found = simulate(&scenario(10_042, rate, 0.05), TASKS, 4);
            assert!(found.items_median <= 450 && found.regression > 0.99, "{rate}: {found:?}");
        }
    }

    /// A drop below the margin is not called a regression more often than the level allows.
    #[test]
    fn a_drop_of_the_margin_is_called_a_regression_in_at_most_five_percent() {
        let found = simulate(&scenario(2376, 0.05, 0.01), TASKS, 5);
        assert!(found.regression <= 0.05, "{found:?}");
    }

    #[test]
    fn without_early_stopping_all_items_are_visited() {
        let all = Scenario { early_stop: false, ..scenario(2376, 0.02, 0.0) };
        let found = simulate(&all, 200, 6);
        assert_eq!((found.items_median, found.items_p90), (2376, 2376));
        assert!(found.within > 0.9, "{found:?}");
    }
}

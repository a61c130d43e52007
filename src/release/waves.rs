//! Waves: how many items are scored on both arms before the next look, and in which order.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::graph::node;
use super::score_units::{Wave, score_name};
use crate::exec::{Context, FnUnit, KeyBuilder, Node, Output, UnitKey};
use crate::gate::{Look, StopRule, WaveCounts};
use crate::record::Failure;
use crate::record::eval::{ItemRecord, MetricInfo};
use crate::suite::python_random::PythonRandom;

/// Items of a wave without a look after it: few enough that a kill loses little, enough to keep batches full.
const PLAIN_WAVE: usize = 1024;
/// Items of the first waves with looks: damage of five points shows within a few hundred items.
const FIRST_WAVE: usize = 32;
/// Later waves are this fraction of what was visited, so a task stops at most 6 % late.
const GROWTH: usize = 16;

/// Number of items visited after each wave of `items`; the last is all of them.
pub fn wave_ends(items: usize, looks: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut end = 0;
    while end < items {
        let step = if looks { FIRST_WAVE.max(end / GROWTH / FIRST_WAVE * FIRST_WAVE) } else { PLAIN_WAVE };
        end = items.min(end + step);
        ends.push(end);
    }
    ends
}

/// What is scored wave by wave: a task, or the tasks of a group that is looked at as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Name of the task or group.
    pub name: String,
    /// The group, where it is one.
    pub group: Option<String>,
    /// The rule by which a look may stop it.
    pub rule: Option<StopRule>,
    /// Its tasks, by index.
    pub tasks: Vec<usize>,
    /// For each wave, the places of each task's items in that task's own order of visit.
    pub waves: Vec<Vec<Range<usize>>>,
}

impl Sequence {
    /// A task of `items` items by itself.
    pub fn of_task(name: &str, task: usize, items: usize, rule: Option<StopRule>) -> Self {
        let ends = wave_ends(items, rule.is_some());
        let mut start = 0;
        let waves = ends.into_iter().map(|end| {
            let places = std::mem::replace(&mut start, end)..end;
            Vec::from([places])
        });
        Self { name: name.to_owned(), group: None, rule, tasks: vec![task], waves: waves.collect() }
    }

    /// A group of `(task, items)`: its items are visited as a permutation of all of them together, so that every wave
    /// is a sample of the whole group. `seed` decides which task comes next; each task keeps its own order, which comes
    /// from another seed.
    pub fn of_group(name: &str, tasks: &[(usize, usize)], rule: StopRule, seed: u64) -> Self {
        let turns: Vec<usize> =
            tasks.iter().enumerate().flat_map(|(place, (_, items))| vec![place; *items]).collect();
        let order = PythonRandom::new(seed).permutation(turns.len());
        let (mut done, mut start) = (vec![0; tasks.len()], 0);
        let mut waves = Vec::new();
        for end in wave_ends(turns.len(), true) {
            let before = done.clone();
            for turn in &order[start..end] {
                done[turns[*turn]] += 1;
            }
            waves.push(before.into_iter().zip(&done).map(|(from, to)| from..*to).collect());
            start = end;
        }
        Self {
            name: name.to_owned(),
            group: Some(name.to_owned()),
            rule: Some(rule),
            tasks: tasks.iter().map(|(task, _)| *task).collect(),
            waves,
        }
    }

    /// Items of a wave: task and place in its order of visit.
    pub fn items(&self, wave: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.tasks
            .iter()
            .zip(&self.waves[wave])
            .flat_map(|(task, places)| places.clone().map(move |i| (*task, i)))
    }

    /// Items visited up to and with `wave`.
    pub fn visited(&self, wave: usize) -> usize {
        self.waves.get(wave).map_or(0, |ranges| ranges.iter().map(|range| range.end).sum())
    }

    /// Items of one task visited at each look up to and with the one after `wave`.
    pub fn looks_of(&self, task: usize, wave: usize) -> Vec<usize> {
        let place = self.tasks.iter().position(|t| *t == task);
        place.map_or_else(Vec::new, |place| {
            self.waves.iter().take(wave + 1).map(|ranges| ranges[place].end).collect()
        })
    }
}

/// Name of the look after a wave.
pub fn look_name(sequence: &str, wave: usize) -> String {
    format!("look/{sequence}/{wave}")
}

/// Output of a look: the counts of its wave, and what all waves up to it show.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LookOutput {
    /// Counts of this wave; `None` where it cannot be counted, or was not needed.
    counts: Option<WaveCounts>,
    /// The last look so far; `None` before a wave that can be counted.
    look: Option<Look>,
}

impl LookOutput {
    /// Whether the sequence is decided, here or before.
    pub fn is_decided(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.decision.is_some())
    }
}

/// A look after wave `wave` of the sequence `name`.
pub struct LookUnit<'a> {
    /// Sequence.
    pub name: &'a str,
    /// Names of its tasks.
    pub tasks: Vec<&'a str>,
    /// Metric that decides.
    pub metric: MetricInfo,
    /// Rule.
    pub rule: StopRule,
    /// The wave before the look.
    pub wave: usize,
    /// Keys of all waves so far on both arms.
    pub after: Vec<UnitKey>,
    /// Names of both arms.
    pub arms: [String; 2],
}

impl<'a> LookUnit<'a> {
    /// The key: everything that the look depends on.
    pub fn key(&self) -> UnitKey {
        // Whether the plan is whole changes no look, only what is made of the last one.
        let StopRule { margin, alpha, tests, whole: _ } = self.rule;
        let builder = KeyBuilder::new("look/2")
            .part("margin", margin)
            .part("alpha", alpha.value())
            .part("tests", tests)
            .part("metric", &self.metric.name);
        self.after.iter().fold(builder, |builder, key| builder.part("after", key.as_str())).finish()
    }

    /// The node.
    pub fn node(self, stage: &'static str) -> Node<'a> {
        let mut after: Vec<String> =
            self.arms.iter().map(|arm| score_name(arm, self.name, self.wave)).collect();
        after.extend((self.wave > 0).then(|| look_name(self.name, self.wave - 1)));
        let name = look_name(self.name, self.wave);
        let reads = after.clone();
        let unit = FnUnit::new(self.key(), move |context| Output::of(&self.look(context)?))
            .verified_by(|output: &Value| LookOutput::deserialize(output).is_ok())
            .reading(reads);
        node(name, stage, after, unit)
    }

    fn look(&self, context: &Context<'_>) -> Result<LookOutput, Failure> {
        let mut counts = Vec::with_capacity(self.wave + 1);
        for wave in 0..self.wave {
            let before: LookOutput = context.output(&look_name(self.name, wave))?;
            if before.is_decided() {
                return Ok(LookOutput { counts: None, look: before.look });
            }
            counts.push(before.counts);
        }
        let wave = |arm: &String| context.output::<Wave>(&score_name(arm, self.name, self.wave));
        let [baseline, candidate] = &self.arms;
        let own = self.count(&wave(baseline)?, &wave(candidate)?);
        counts.push(own);
        // A wave that cannot be counted ends early stopping: the task goes on to its last item.
        let all: Option<Vec<WaveCounts>> = counts.into_iter().collect();
        let look = all.and_then(|all| self.rule.replay(&all).pop());
        Ok(LookOutput { counts: own, look })
    }

    /// Counts of one wave; `None` where an item cannot be counted.
    fn count(&self, baseline: &Wave, candidate: &Wave) -> Option<WaveCounts> {
        let mut sum: Option<WaveCounts> = None;
        for task in &self.tasks {
            // A wave of a group need not hold an item of every task, but then on neither arm.
            let (a, b) = match (baseline.items.get(*task), candidate.items.get(*task)) {
                (Some(a), Some(b)) => (a, b),
                (None, None) => continue,
                _ => return None,
            };
            let (a, b): (Vec<&ItemRecord>, Vec<&ItemRecord>) = (a.iter().collect(), b.iter().collect());
            let own = WaveCounts::of(&self.metric, &a, &b)?;
            sum = Some(sum.map_or(own, |sum| sum.plus(&own)));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::stats::Alpha;

    const RULE: StopRule = StopRule { margin: 0.01, alpha: Alpha::FIVE_PERCENT, tests: 1, whole: true };

    #[test]
    fn every_item_is_in_one_wave() {
        for rule in [None, Some(RULE)] {
            let sequence = Sequence::of_task("t", 3, 5000, rule);
            let all: Vec<(usize, usize)> =
                (0..sequence.waves.len()).flat_map(|w| sequence.items(w)).collect();
            assert_eq!(all, (0..5000).map(|i| (3, i)).collect::<Vec<_>>());
            assert_eq!(sequence.visited(sequence.waves.len() - 1), 5000);
        }
    }

    #[test]
    fn every_wave_of_a_group_is_a_sample_of_all_its_tasks() {
        let sizes = [(0, 100), (1, 900), (2, 3000)];
        let sequence = Sequence::of_group("g", &sizes, RULE, 1234);
        assert_eq!(sequence, Sequence::of_group("g", &sizes, RULE, 1234));
        assert_ne!(sequence, Sequence::of_group("g", &sizes, RULE, 1235));
        let last = sequence.waves.len() - 1;
        for (task, items) in sizes {
            let mut seen: Vec<usize> = (0..=last)
                .flat_map(|wave| sequence.items(wave))
                .filter_map(|(t, place)| (t == task).then_some(place))
                .collect();
            // In its own order.
            assert!(seen.is_sorted());
            seen.dedup();
            assert_eq!(seen.len(), items);
            let looks = sequence.looks_of(task, last);
            assert_eq!((looks.len(), looks.last()), (last + 1, Some(&items)));
            // Half-way, about half of each.
            let half = (0..=last).find(|wave| sequence.visited(*wave) >= 2000).unwrap();
            let share = looks[half] as f64 / items as f64;
            assert!((share - 0.5).abs() < 0.16, "task {task}: {share}");
        }
        assert_eq!(sequence.visited(0), 32);
    }
}

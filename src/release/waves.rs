//! The waves of a task: how many items are scored on both arms before the next look.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::graph::node;
use super::score_units::{Wave, score_name};
use crate::exec::{Context, FnUnit, KeyBuilder, Node, Output, UnitKey};
use crate::gate::{Look, StopRule, WaveCounts};
use crate::record::Failure;
use crate::record::eval::{ItemRecord, MetricInfo};

/// Items of a wave without a look after it: few enough that a kill loses little, enough to keep batches full.
const PLAIN_WAVE: usize = 1024;
/// Items of the first waves with looks: damage of five points shows within a few hundred items.
const FIRST_WAVE: usize = 32;
/// Later waves are this fraction of what was visited, so a task stops at most 6 % late.
const GROWTH: usize = 16;

/// The waves of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskWaves {
    /// Number of items visited after each wave; the last is all of them.
    pub ends: Vec<usize>,
    /// The rule by which a look may stop the task.
    pub rule: Option<StopRule>,
}

impl TaskWaves {
    /// Waves over `items`, with looks where there is a rule.
    pub fn new(items: usize, rule: Option<StopRule>) -> Self {
        let mut ends = Vec::new();
        let mut end = 0;
        while end < items {
            let step = match rule {
                None => PLAIN_WAVE,
                Some(_) => FIRST_WAVE.max(end / GROWTH / FIRST_WAVE * FIRST_WAVE),
            };
            end = items.min(end + step);
            ends.push(end);
        }
        Self { ends, rule }
    }

    /// Positions of a wave's items in the order of visit.
    pub fn items(&self, wave: usize) -> std::ops::Range<usize> {
        let start = if wave == 0 { 0 } else { self.ends[wave - 1] };
        start..self.ends[wave]
    }
}

/// Name of the look after a wave.
pub fn look_name(task: &str, wave: usize) -> String {
    format!("look/{task}/{wave}")
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
    /// Whether the task is decided, here or before.
    pub fn is_decided(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.decision.is_some())
    }
}

/// A look after wave `wave` of the task `name`.
pub struct LookUnit<'a> {
    /// Task.
    pub name: &'a str,
    /// Metric that decides.
    pub metric: MetricInfo,
    /// Rule.
    pub rule: StopRule,
    /// The wave before the look.
    pub wave: usize,
    /// Keys of the wave on both arms and of the look before.
    pub after: Vec<UnitKey>,
    /// Names of both arms.
    pub arms: [String; 2],
}

impl<'a> LookUnit<'a> {
    /// The key: everything that the look depends on.
    pub fn key(&self) -> UnitKey {
        let StopRule { margin, alpha, tests } = self.rule;
        let builder = KeyBuilder::new("look/1")
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
        let unit = FnUnit::new(self.key(), move |context| Output::of(&self.look(context)?))
            .verified_by(|output: &Value| LookOutput::deserialize(output).is_ok());
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
        let [baseline, candidate] = &self.arms;
        let items = |arm: &String| -> Result<Vec<ItemRecord>, Failure> {
            Ok(context.output::<Wave>(&score_name(arm, self.name, self.wave))?.items)
        };
        let (baseline, candidate) = (items(baseline)?, items(candidate)?);
        let own = WaveCounts::of(
            &self.metric,
            &baseline.iter().collect::<Vec<_>>(),
            &candidate.iter().collect::<Vec<_>>(),
        );
        counts.push(own);
        // A wave that cannot be counted ends early stopping: the task goes on to its last item.
        let all: Option<Vec<WaveCounts>> = counts.into_iter().collect();
        let look = all.and_then(|all| self.rule.replay(&all).pop());
        Ok(LookOutput { counts: own, look })
    }
}

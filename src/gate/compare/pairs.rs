//! The records of one subject on both arms.

use super::subject::Subject;
use crate::record::eval::{EvalRecord, ItemRecord, MetricInfo, TaskRecord};

/// A task on both arms.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub baseline: &'a TaskRecord,
    pub candidate: &'a TaskRecord,
}

/// The tasks of a subject on both arms; at least one. Both arms have the same items.
pub(super) struct Pairs<'a> {
    pub tasks: Vec<Pair<'a>>,
    /// Whether they are the tasks of a group.
    pub pooled: bool,
    weight_by_size: bool,
}

impl<'a> Pairs<'a> {
    /// The tasks of `subject`; `None` where one is missing on an arm.
    pub fn of(subject: &Subject, baseline: &'a EvalRecord, candidate: &'a EvalRecord) -> Option<Self> {
        let pair = |task: &String| {
            Some(Pair { baseline: baseline.tasks.get(task)?, candidate: candidate.tasks.get(task)? })
        };
        let tasks: Vec<Pair<'a>> = subject.tasks.iter().map(pair).collect::<Option<_>>()?;
        (!tasks.is_empty()).then_some(Self {
            tasks,
            pooled: subject.pooled,
            weight_by_size: subject.weight_by_size,
        })
    }

    /// The metric that decides.
    pub fn metric(&self) -> &'a MetricInfo {
        &self.tasks[0].baseline.primary_metric
    }

    /// The items on both arms, task by task.
    pub fn items(&self) -> impl Iterator<Item = (&'a ItemRecord, &'a ItemRecord)> {
        self.tasks.iter().flat_map(|pair| pair.baseline.items.iter().zip(&pair.candidate.items))
    }

    /// Items of the full splits.
    pub fn full_split(&self) -> usize {
        self.tasks.iter().map(|pair| pair.baseline.full_split).sum()
    }

    /// Why fewer were planned; empty for the full splits.
    pub fn limited_by(&self) -> String {
        self.tasks.iter().map(|p| &p.baseline.limited_by).find(|l| !l.is_empty()).cloned().unwrap_or_default()
    }

    /// Whether the items are all of the splits or random samples of them.
    pub fn is_sample(&self) -> bool {
        self.tasks.iter().all(|pair| pair.baseline.is_sample() && pair.candidate.is_sample())
    }

    /// Items left out because a look decided.
    pub fn not_needed(&self) -> usize {
        self.tasks.iter().map(|pair| pair.baseline.not_needed()).sum()
    }

    /// Weight of an item of each task. All items count alike where the tasks count by size and were planned whole: the
    /// items of a group that stopped early are a sample of all of them. Where a limit took a part of each, items stand
    /// for those that were left out.
    pub fn factors(&self) -> Vec<f64> {
        let sizes = |of: fn(&TaskRecord) -> usize| -> Vec<f64> {
            self.tasks.iter().map(|pair| of(pair.baseline) as f64).collect()
        };
        let whole = self.tasks.iter().all(|pair| pair.baseline.expected == pair.baseline.full_split);
        if !self.pooled || (self.weight_by_size && whole) {
            return vec![1.0; self.tasks.len()];
        }
        let (visited, full) = (sizes(|task| task.items.len()), sizes(|task| task.full_split));
        let shares = if self.weight_by_size { full } else { vec![1.0; visited.len()] };
        let (all, whole): (f64, f64) = (visited.iter().sum(), shares.iter().sum());
        visited.iter().zip(shares).map(|(n, share)| share / whole * all / n).collect()
    }
}

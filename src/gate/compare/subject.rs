//! What is decided: a task by itself, or the tasks of a group together.
//!
//! A group that has a score of its own (MMLU's 57 subjects) is decided as one: its tasks are fixed strata of one
//! question, each too small to show anything about a margin of one point. The outermost such group decides; its tasks
//! and the groups inside it are its parts, which are reported and decide nothing.

use std::collections::BTreeMap;

use super::options::{CompareOptions, Margin, Policy, Tier};
use super::sequential::StopRule;
use crate::record::eval::{GroupRecord, MetricInfo, TaskRecord};

/// A task, or a group of tasks that is pooled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Name of the task or group.
    pub name: String,
    /// Tasks it consists of: itself, or those of the group in order.
    pub tasks: Vec<String>,
    /// Whether it is a group.
    pub pooled: bool,
    /// Whether a group's tasks count by their number of items; else each counts the same.
    pub weight_by_size: bool,
    /// The group that is decided instead, where this is a part of one.
    pub part_of: Option<String>,
}

/// What decides whether a task may stop early.
#[derive(Debug, Clone, Copy)]
pub struct TaskFacts<'a> {
    /// Metric that decides.
    pub metric: &'a MetricInfo,
    /// Whether its items come in groups and so are not exchangeable.
    pub clustered: bool,
    /// Whether all items of the split are planned.
    pub whole: bool,
    /// Whether every item is right or wrong: a scale of 1 alone says only that no item has more.
    pub binary: bool,
}

/// Facts of tasks by name.
pub type Facts<'a> = BTreeMap<&'a str, TaskFacts<'a>>;

impl<'a> TaskFacts<'a> {
    /// What a record says of its task. Clusters show in the items, and so does whether they are right or wrong.
    pub fn of(task: &'a TaskRecord) -> Self {
        let metric = &task.primary_metric;
        let values = task.items.iter().filter_map(|item| item.values.get(&metric.name));
        Self {
            metric,
            clustered: false,
            whole: task.expected == task.full_split,
            binary: values.into_iter().all(|value| *value == 0.0 || *value == 1.0),
        }
    }
}

impl Subject {
    pub(super) fn task(name: &str, part_of: Option<&String>) -> Self {
        Self {
            name: name.to_owned(),
            tasks: vec![name.to_owned()],
            pooled: false,
            weight_by_size: true,
            part_of: part_of.cloned(),
        }
    }

    /// Whether it decides.
    pub fn decides(&self) -> bool {
        self.part_of.is_none()
    }
}

impl CompareOptions {
    /// Subjects of these tasks, parts included. Of groups that overlap without one holding the other, the larger one
    /// decides and the other is no subject.
    pub fn subjects(&self, groups: &BTreeMap<String, GroupRecord>, facts: &Facts<'_>) -> Vec<Subject> {
        let mut pooled: Vec<(&String, &GroupRecord)> =
            groups.iter().filter(|(name, group)| self.is_pooled(name, group, facts)).collect();
        pooled.sort_by_key(|(name, group)| (std::cmp::Reverse(group.tasks.len()), *name));
        let mut owner: BTreeMap<&str, &String> = BTreeMap::new();
        let mut subjects = Vec::new();
        for (name, group) in pooled {
            let owners: Vec<Option<&String>> =
                group.tasks.iter().map(|task| owner.get(task.as_str()).copied()).collect();
            let part_of = owners[0];
            if owners.iter().any(|owner| *owner != part_of) {
                continue;
            }
            if part_of.is_none() {
                owner.extend(group.tasks.iter().map(|task| (task.as_str(), name)));
            }
            subjects.push(Subject {
                name: name.clone(),
                tasks: group.tasks.clone(),
                pooled: true,
                weight_by_size: by_size(group, facts),
                part_of: part_of.cloned(),
            });
        }
        subjects.extend(facts.keys().map(|task| Subject::task(task, owner.get(task).copied())));
        subjects
    }

    /// Whether a group has one score that can be pooled from its tasks' items: the same bounded metric decides all.
    fn is_pooled(&self, name: &str, group: &GroupRecord, facts: &Facts<'_>) -> bool {
        let metric_of = |task: &String| facts.get(task.as_str()).map(|facts| facts.metric);
        let first = group.tasks.first().and_then(metric_of);
        let same = first.is_some() && group.tasks.iter().all(|task| metric_of(task) == first);
        same && first.is_some_and(|metric| group.metrics.contains_key(&metric.name))
            && first.is_some_and(|metric| metric.scale.is_some())
            && !facts.contains_key(name)
            && self.tasks.get(name).is_none_or(|options| options.pooled)
    }

    /// How each deciding subject may stop early; subjects that cannot are left out: those whose items are not right or
    /// wrong on a scale of 1, whose margin is relative, whose items are not exchangeable, and groups whose items do not count alike.
    pub fn stop_rules(&self, subjects: &[Subject], facts: &Facts<'_>) -> BTreeMap<String, StopRule> {
        let family =
            |tier: Tier| subjects.iter().filter(|s| s.decides() && self.tier(&s.name) == tier).count();
        let rule = |subject: &Subject| {
            let of_tasks: Option<Vec<&TaskFacts<'_>>> =
                subject.tasks.iter().map(|task| facts.get(task.as_str())).collect();
            let of_tasks = of_tasks?;
            let Margin::Absolute(margin) = self.margin_of(&subject.name, of_tasks.first()?.metric) else {
                return None;
            };
            let whole = of_tasks.iter().all(|task| task.whole);
            let alike = !subject.pooled || (subject.weight_by_size && whole);
            let bounded =
                of_tasks.iter().all(|task| task.metric.scale == Some(1.0) && task.binary && !task.clustered);
            let tests = family(self.tier(&subject.name));
            (alike && bounded && self.policy == Policy::Certify)
                .then(|| (subject.name.clone(), StopRule { margin, alpha: self.alpha, tests, whole }))
        };
        subjects.iter().filter(|subject| subject.decides()).filter_map(rule).collect()
    }
}

/// Whether the tasks of a pooled group count by size in the metric that decides.
fn by_size(group: &GroupRecord, facts: &Facts<'_>) -> bool {
    let first = group.tasks.first().and_then(|task| facts.get(task.as_str()));
    first.and_then(|facts| group.metrics.get(&facts.metric.name)).copied().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::compare::TaskOptions;

    fn group(tasks: &[&str], metric: Option<&str>) -> GroupRecord {
        let tasks = tasks.iter().map(|task| (*task).to_owned()).collect();
        let metrics = metric.map(|metric| (metric.to_owned(), true)).into_iter().collect();
        GroupRecord { tasks, metrics, advisory: Vec::new() }
    }

    #[test]
    fn the_outermost_group_with_a_score_decides() {
        let acc = MetricInfo { name: "acc".into(), higher_is_better: true, scale: Some(1.0) };
        let bits = MetricInfo { name: "bits_per_byte".into(), higher_is_better: false, scale: None };
        let fact = |metric| TaskFacts { metric, clustered: false, whole: true, binary: true };
        let facts: Facts<'_> = [("a", &acc), ("b", &acc), ("c", &acc), ("d", &acc), ("t", &bits)]
            .map(|(name, metric)| (name, fact(metric)))
            .into();
        let groups: BTreeMap<String, GroupRecord> = [
            ("all", group(&["a", "b", "c"], Some("acc"))),
            ("some", group(&["b", "c"], Some("acc"))),
            // Overlaps, has another metric, holds another metric, is a bundle: none of them decides.
            ("across", group(&["c", "d"], Some("acc"))),
            ("norm", group(&["a", "b", "c", "d"], Some("acc_norm"))),
            ("mixed", group(&["d", "t"], Some("acc"))),
            ("bundle", group(&["a", "b", "c", "d", "t"], None)),
        ]
        .map(|(name, group)| (name.to_owned(), group))
        .into();
        let shown = |options: &CompareOptions| -> Vec<String> {
            let name = |s: &Subject| match &s.part_of {
                Some(group) => format!("{} in {group}", s.name),
                None => s.name.clone(),
            };
            options.subjects(&groups, &facts).iter().map(name).collect()
        };
        let mut options = CompareOptions::default();
        assert_eq!(shown(&options), ["all", "some in all", "a in all", "b in all", "c in all", "d", "t"]);
        let rules = options.stop_rules(&options.subjects(&groups, &facts), &facts);
        assert_eq!(rules.keys().collect::<Vec<_>>(), ["all", "d"]);
        assert!(rules.values().all(|rule| rule.tests == 3));
        // Part of the group limited: its items no longer count alike.
        let mut limited = facts.clone();
        limited.get_mut("b").unwrap().whole = false;
        let rules = options.stop_rules(&options.subjects(&groups, &limited), &limited);
        assert_eq!(rules.keys().collect::<Vec<_>>(), ["d"]);
        // Scores between right and wrong have no looks, whatever their scale.
        let mut shares = facts.clone();
        shares.get_mut("d").unwrap().binary = false;
        let rules = options.stop_rules(&options.subjects(&groups, &shares), &shares);
        assert_eq!(rules.keys().collect::<Vec<_>>(), ["all"]);
        options.tasks.insert("all".into(), TaskOptions { pooled: false, ..TaskOptions::default() });
        assert_eq!(shown(&options), ["across", "a", "b", "c in across", "d in across", "t"]);
    }
}

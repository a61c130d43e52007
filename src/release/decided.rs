//! What a release will decide of the tasks that it plans, by the same options and rules as the gate, and what of it no
//! outcome could show: known before anything is scored.

use std::collections::BTreeMap;

use super::config::ReleaseConfig;
use super::power::without_flips;
use crate::base::stats::{PairedCounts, Test, zero_flip_n};
use crate::eval;
use crate::gate::{
    CompareOptions, Decision, Facts, MIN_DOCUMENTS, Margin, Policy, StopRule, Subject, TaskFacts, Tier,
};
use crate::record::eval::MetricInfo;
use crate::suite::{Group, Task};

/// A task, and how many of its items are planned.
pub type PlannedTask<'a> = (&'a Task, usize);

/// What the gate will decide.
pub struct Decided {
    /// What it is asked.
    pub options: CompareOptions,
    /// Tasks and groups, parts included.
    pub subjects: Vec<Subject>,
    /// Which of them may stop early.
    pub rules: BTreeMap<String, StopRule>,
    early_stop: bool,
    planned: BTreeMap<String, Planned>,
}

/// A task as the plan knows it.
struct Planned {
    metric: MetricInfo,
    items: usize,
    whole: bool,
    binary: bool,
}

impl Planned {
    fn of(task: &Task, items: usize) -> Self {
        Self {
            metric: eval::primary_metric(task),
            items,
            whole: items == task.docs.len(),
            // What computes its own results gives shares: truthfulqa_mc2 that of the probability of true answers.
            binary: task.config.process_results.is_none(),
        }
    }
}

impl Decided {
    /// What `config` decides of these tasks of a suite with these groups.
    pub fn of(config: &ReleaseConfig, tasks: &[PlannedTask<'_>], groups: &[Group]) -> Self {
        let name = |task: &Task| task.config.task.clone();
        let planned: BTreeMap<String, Planned> =
            tasks.iter().map(|(task, items)| (name(task), Planned::of(task, *items))).collect();
        let fact = |(task, _): &PlannedTask<'_>| {
            let known = &planned[&task.config.task];
            let clustered = task.config.cluster.is_some();
            TaskFacts { metric: &known.metric, clustered, whole: known.whole, binary: known.binary }
        };
        let facts: Facts<'_> = tasks.iter().map(|task| (task.0.config.task.as_str(), fact(task))).collect();
        let metrics = planned.iter().map(|(name, task)| (name.clone(), task.metric.clone())).collect();
        let groups = eval::group_records(groups);
        let options = config.options_for(&metrics, &groups);
        let subjects = options.subjects(&groups, &facts);
        let rules = options.stop_rules(&subjects, &facts);
        Self { options, subjects, rules, early_stop: config.early_stop, planned }
    }

    /// Planned items of a subject.
    pub fn items(&self, subject: &Subject) -> usize {
        subject.tasks.iter().filter_map(|task| self.planned.get(task)).map(|task| task.items).sum()
    }

    /// What required subjects cannot be certified by any outcome of the plan, and why, in words.
    pub fn uncertifiable(&self) -> Vec<String> {
        let required = |s: &&Subject| s.decides() && self.options.tier(&s.name) == Tier::Required;
        let line = |subject: &Subject| {
            Some(format!("{} cannot be certified: {}", subject.name, self.never_shown(subject)?))
        };
        self.subjects.iter().filter(required).filter_map(line).collect()
    }

    /// Why not even a candidate without any damage is accepted; `None` where one may be.
    fn never_shown(&self, subject: &Subject) -> Option<String> {
        let tasks: Vec<&Planned> =
            subject.tasks.iter().map(|task| self.planned.get(task)).collect::<Option<_>>()?;
        let (first, items) = (tasks.first()?, self.items(subject));
        if first.metric.scale.is_none() && items < MIN_DOCUMENTS {
            return Some(format!("{items} documents, fewer than {MIN_DOCUMENTS}"));
        }
        if self.options.policy == Policy::Threshold {
            let whole = tasks.iter().all(|task| task.whole);
            return (!whole).then(|| "the threshold policy accepts no part of a split".to_owned());
        }
        let margin = self.options.margin_of(&subject.name, &first.metric);
        let level = self.options.alpha;
        if let Some(rule) = self.rules.get(&subject.name) {
            let shown = without_flips(rule, items, self.early_stop) == Some(Decision::Within);
            let (test, level) = rule.last_test(self.early_stop);
            return (!shown).then(|| too_few(items, margin, zero_flip_n(test, margin.value(), level)));
        }
        let Margin::Absolute(share) = margin else { return None };
        let alone = !subject.pooled && first.binary && first.metric.scale == Some(1.0);
        let counts = PairedCounts::new(items as u64, 0, 0).filter(|_| alone)?;
        let needed = zero_flip_n(Test::Interval, share, level);
        (counts.p_within(share) >= level.value()).then(|| too_few(items, margin, needed))
    }
}

fn too_few(items: usize, margin: Margin, needed: Option<u64>) -> String {
    let needed = needed.map_or_else(String::new, |n| format!("; that takes about {n}"));
    format!("{items} items do not show a drop of less than {margin} even if none of them changes{needed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::config::ConfigFile;
    use crate::suite::{self, Suite};

    fn uncertifiable(suite: &Suite, limit: usize, config: &str) -> Vec<String> {
        let config = ConfigFile::parse(config, "day0.yaml").unwrap().validate().unwrap();
        let tasks: Vec<PlannedTask<'_>> =
            suite.tasks.iter().map(|task| (task.as_ref(), limit.min(task.docs.len()))).collect();
        Decided::of(&config, &tasks, &suite.groups).uncertifiable()
    }

    #[test]
    fn what_no_outcome_can_show_is_said_before_anything_is_scored() {
        let suite = suite::load("tiny_colours", None).unwrap();
        let lines = |limit, config: &str| uncertifiable(&suite, limit, config);
        assert_eq!(lines(usize::MAX, ""), Vec::<String>::new());
        // The interval of all items at 5 % needs 299, the looks of a part more.
        assert_eq!(lines(299, "early_stop: false"), Vec::<String>::new());
        let few = lines(298, "early_stop: false");
        assert!(few[0].starts_with("tiny_colours cannot be certified: 298 items"), "{few:?}");
        assert!(few[0].ends_with("takes about 299"), "{few:?}");
        assert_eq!(lines(381, "").len(), 1, "381 would do for the interval at 2.5 % alone");
        assert_eq!(lines(1000, ""), Vec::<String>::new());
        assert_eq!(lines(100, "margin: 0.5"), Vec::<String>::new());
        assert_eq!(lines(100, "tasks: {tiny_colours: {tier: advisory}}"), Vec::<String>::new());
        assert!(lines(1000, "policy: threshold")[0].contains("no part of a split"));
        assert_eq!(lines(usize::MAX, "policy: threshold"), Vec::<String>::new());
    }

    /// The items of truthfulqa_mc2 are shares of probability: nothing counts them as right or wrong, nothing flips.
    #[test]
    fn a_share_of_probability_has_no_looks() {
        let dir = tempfile::tempdir().unwrap();
        let row = r#"{"question": "Is water wet?", "mc1_targets": {"choices": ["Yes", "No"], "labels": [1, 0]}, "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]}}"#;
        std::fs::write(dir.path().join("truthfulqa.validation.jsonl"), format!("{row}\n")).unwrap();
        let suite = suite::load("truthfulqa_mc1,truthfulqa_mc2", Some(dir.path())).unwrap();
        let config = ConfigFile::default().validate().unwrap();
        let tasks: Vec<PlannedTask<'_>> = suite.tasks.iter().map(|task| (task.as_ref(), 1)).collect();
        let decided = Decided::of(&config, &tasks, &suite.groups);
        assert_eq!(decided.subjects.len(), 2);
        assert_eq!(decided.rules.into_keys().collect::<Vec<_>>(), ["truthfulqa_mc1"]);
    }

    #[test]
    fn few_documents_are_named_and_a_suite_may_call_a_task_advisory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.yaml");
        let all = |metadata: &str| {
            let text = format!("group: all\ntask: [tiny_colours, tiny_stories]\nmetadata: {{{metadata}}}\n");
            std::fs::write(&path, text).unwrap();
            suite::load(path.to_str().unwrap(), None)
        };
        let required = all("version: 1.0").unwrap();
        let lines = uncertifiable(&required, 200, "margin: 0.5");
        assert_eq!(lines, ["tiny_stories cannot be certified: 200 documents, fewer than 300"]);
        let advisory = all("version: 1.0, advisory: [tiny_stories]").unwrap();
        assert_eq!(uncertifiable(&advisory, 200, "margin: 0.5"), Vec::<String>::new());
        let strict = "margin: 0.5\ntasks: {tiny_stories: {tier: critical}}";
        assert_eq!(
            uncertifiable(&advisory, 200, strict).len(),
            1,
            "the configuration decides over the suite"
        );
        let error = all("advisory: [tiny_storeys]").unwrap_err().to_string();
        assert!(error.contains("advisory"), "{error}");
    }
}

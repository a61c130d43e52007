//! When a task, or a group that is decided as one, may stop before its last planned item, and the replay of the path
//! that led there.
//!
//! Items are visited in waves along a permutation fixed before the run; after each wave the counts of both arms are
//! looked at. Each side of the test spends half of α on the betting test (`base::stats::betting`), which may be looked
//! at after every wave, and half on the fixed-n interval of the last item of the split: the false acceptances of both
//! add up to α at most. A plan of fewer items has no such last item: a longer plan visits the same permutation, so an
//! interval at the end of each would spend its half again every time, while the betting test stays valid however often
//! and however far the plan is extended. So of a limited plan only the betting test shows "within". A regression stops a task at the level that Holm's correction demands of the first of all tasks,
//! so it stands whatever the other tasks turn out to be.
//!
//! A look that shows "within" stops the task only if nothing else would need more items: the gain is not an
//! implausible one, and the baseline is better than guessing.

use serde::{Deserialize, Serialize};

use super::pairs::{Pair, Pairs};
use super::policy::IMPLAUSIBLE_GAIN;
use super::sample::choices;
use super::subject::Subject;
use crate::base::stats::{Alpha, Betting, Claim, PairedCounts, Test, WaveFlips};
use crate::record::eval::{ItemRecord, MetricInfo, TaskRecord};

/// Parts of α: the betting test and the interval of the last look.
const PARTS: u32 = 2;
/// A look asks for a baseline above chance at α over this many, more than there are looks.
const CHANCE_LOOKS: u32 = 100;

/// The rule by which a task of 0/1 items may stop early.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StopRule {
    /// Largest allowed drop, as a share of the scale 1.
    pub margin: f64,
    /// Level of the whole test, one side.
    pub alpha: Alpha,
    /// Subjects among which Holm's correction is made.
    pub tests: usize,
    /// Whether all items of the split are planned: only then the interval of the last look may show "within".
    pub whole: bool,
}

/// What a look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The drop is below the margin.
    Within,
    /// The drop is above the margin.
    Regression,
}

/// Paired outcomes of one wave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WaveCounts {
    /// Items.
    pub n: u64,
    /// Right only on the baseline.
    pub lost: u64,
    /// Right only on the candidate.
    pub gained: u64,
    /// Right on the baseline.
    pub right: u64,
    /// Items that guessing gets right: the sum of 1/choices; `None` where there is nothing to choose.
    pub guessed: Option<f64>,
}

/// State after one wave; everything is summed over all waves so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Items.
    pub n: u64,
    /// Right only on the baseline.
    pub lost: u64,
    /// Right only on the candidate.
    pub gained: u64,
    /// ln of the largest wealth so far against "the drop is at least the margin".
    pub ln_e_within: f64,
    /// ln of the largest wealth so far against "the drop is at most the margin".
    pub ln_e_worse: f64,
    /// What follows.
    pub decision: Option<Decision>,
}

impl StopRule {
    /// Level of the betting test and of the last look's interval, each.
    pub fn part(&self) -> Alpha {
        self.alpha.part_of(PARTS)
    }

    /// All looks, from the first to the one that decides or the last.
    pub fn replay(&self, waves: &[WaveCounts]) -> Vec<Look> {
        let mut follower = self.follow();
        let mut looks = Vec::with_capacity(waves.len());
        for wave in waves {
            looks.push(follower.look(wave));
            if looks.last().is_some_and(|look| look.decision.is_some()) {
                break;
            }
        }
        looks
    }

    /// Starts to follow a task.
    pub fn follow(&self) -> Follower {
        Follower {
            rule: *self,
            within: Betting::new(Claim::Within, self.margin),
            worse: Betting::new(Claim::Worse, self.margin),
            sum: WaveCounts { n: 0, lost: 0, gained: 0, right: 0, guessed: Some(0.0) },
        }
    }

    /// The test that shows "within" at the end of a plan that had looks or none, and its level.
    pub fn last_test(&self, looks: bool) -> (Test, Alpha) {
        match (looks, self.whole) {
            (false, _) => (Test::Interval, self.alpha),
            (true, true) => (Test::Interval, self.part()),
            (true, false) => (Test::Betting, self.part()),
        }
    }

    /// The decision of all planned items without a decision before: by the last of the looks, if there were any, or by
    /// the interval; of a limited plan that had looks by them alone. (Gate `compare` decides so, too, with Holm's
    /// correction across all tasks.)
    pub fn at_the_end(&self, counts: PairedCounts, last: Option<&Look>) -> Option<Decision> {
        let (test, level) = self.last_test(last.is_some());
        let p_interval = counts.p_at_most(self.margin);
        let p = last.map_or(p_interval, |look| self.p_worse(p_interval.min((-look.ln_e_worse).exp())));
        let within = (test == Test::Interval && counts.p_within(self.margin) < level.value())
            || last.is_some_and(|look| self.proves_within(look.ln_e_within));
        match () {
            () if within => Some(Decision::Within),
            () if self.rejects(p) => Some(Decision::Regression),
            () => None,
        }
    }

    /// Whether a wealth of e^`ln_e` proves that the drop is below the margin.
    pub fn proves_within(&self, ln_e: f64) -> bool {
        ln_e >= -self.part().value().ln()
    }

    /// p-value of the betting part as a part of the whole test.
    pub fn p_worse(&self, p_value: f64) -> f64 {
        (f64::from(PARTS) * p_value).min(1.0)
    }

    /// Whether Holm's correction rejects `p` even if it is the smallest of all tasks.
    fn rejects(&self, p: f64) -> bool {
        self.tests as f64 * p <= self.alpha.value()
    }

    fn may_stop_within(&self, sum: &WaveCounts) -> bool {
        let n = sum.n as f64;
        let gain = (sum.gained as f64 - sum.lost as f64) / n;
        let above_chance = sum.guessed.is_none_or(|guessed| {
            let chance = guessed / n;
            let noise = self.alpha.part_of(CHANCE_LOOKS).z() * (chance * (1.0 - chance) / n).sqrt();
            sum.right as f64 / n > chance + noise
        });
        gain < IMPLAUSIBLE_GAIN && above_chance
    }
}

/// A task between its looks.
#[derive(Debug, Clone)]
pub struct Follower {
    rule: StopRule,
    within: Betting,
    worse: Betting,
    sum: WaveCounts,
}

impl Follower {
    /// Looks after one more wave.
    pub fn look(&mut self, wave: &WaveCounts) -> Look {
        let flips = WaveFlips { n: wave.n, lost: wave.lost, gained: wave.gained };
        self.within.push(flips);
        self.worse.push(flips);
        self.sum = self.sum.plus(wave);
        let (rule, sum) = (&self.rule, &self.sum);
        let decision = match () {
            () if rule.rejects(rule.p_worse(self.worse.p_value())) => Some(Decision::Regression),
            () if rule.proves_within(self.within.log_max()) && rule.may_stop_within(sum) => {
                Some(Decision::Within)
            }
            () => None,
        };
        Look {
            n: sum.n,
            lost: sum.lost,
            gained: sum.gained,
            ln_e_within: self.within.log_max(),
            ln_e_worse: self.worse.log_max(),
            decision,
        }
    }

    /// All counts so far; `None` before the first wave.
    pub fn counts(&self) -> Option<PairedCounts> {
        PairedCounts::new(self.sum.n, self.sum.lost, self.sum.gained)
    }
}

impl WaveCounts {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            n: self.n + other.n,
            lost: self.lost + other.lost,
            gained: self.gained + other.gained,
            right: self.right + other.right,
            guessed: self.guessed.zip(other.guessed).map(|(a, b)| a + b),
        }
    }

    /// Counts the paired items of one wave, the same items on both arms in the same order. `None` where an item failed
    /// or its value is not 0 or 1: such a task is decided at its end or not at all.
    pub fn of(metric: &MetricInfo, baseline: &[&ItemRecord], candidate: &[&ItemRecord]) -> Option<Self> {
        let value = |item: &&ItemRecord| {
            let value = item.values.get(&metric.name).copied()?;
            (item.error.is_none() && item.weight == 1.0 && (value == 0.0 || value == 1.0))
                .then_some((value == 1.0) == metric.higher_is_better)
        };
        if baseline.len() != candidate.len() {
            return None;
        }
        let mut counts = Self { n: baseline.len() as u64, lost: 0, gained: 0, right: 0, guessed: Some(0.0) };
        for (a, b) in baseline.iter().zip(candidate) {
            if a.doc_id != b.doc_id {
                return None;
            }
            let (right, still_right) = (value(a)?, value(b)?);
            counts.right += u64::from(right);
            counts.lost += u64::from(right && !still_right);
            counts.gained += u64::from(!right && still_right);
            let sizes = choices(a).len();
            counts.guessed = counts.guessed.filter(|_| sizes > 1).map(|sum| sum + 1.0 / sizes as f64);
        }
        Some(counts)
    }
}

/// The waves of a subject as its records say they were visited; `None` if it had no looks or an item cannot be counted.
pub(super) fn waves(pairs: &Pairs<'_>) -> Option<Vec<WaveCounts>> {
    let mut sums: Option<Vec<WaveCounts>> = None;
    for pair in &pairs.tasks {
        let own = task_waves(pair)?;
        sums = Some(match sums {
            None => own,
            Some(sums) if sums.len() == own.len() => {
                sums.iter().zip(&own).map(|(sum, wave)| sum.plus(wave)).collect()
            }
            Some(_) => return None,
        });
    }
    sums
}

fn task_waves(pair: &Pair<'_>) -> Option<Vec<WaveCounts>> {
    let Pair { baseline, candidate } = pair;
    let visit = baseline.visit.as_ref()?;
    let mut start = 0;
    let mut waves = Vec::with_capacity(visit.looks.len());
    for end in &visit.looks {
        let ids = visit.order.get(start..*end)?;
        let items = |task| ids.iter().map(|id| find(task, *id)).collect::<Option<Vec<&ItemRecord>>>();
        waves.push(WaveCounts::of(&baseline.primary_metric, &items(baseline)?, &items(candidate)?)?);
        start = *end;
    }
    Some(waves)
}

fn find(task: &TaskRecord, doc_id: usize) -> Option<&ItemRecord> {
    let place = task.items.binary_search_by_key(&doc_id, |item| item.doc_id).ok()?;
    task.items.get(place)
}

/// What is wrong with the way a subject was visited, in words: the arms differ, its tasks were looked at for something
/// else, or it stopped without a reason.
pub(super) fn fault(
    rule: Option<&StopRule>,
    subject: &Subject,
    pairs: &Pairs<'_>,
) -> Option<(String, String)> {
    if pairs.tasks.iter().any(|pair| pair.baseline.visit != pair.candidate.visit) {
        return Some(("another order of visit on the candidate".into(), "the same on both arms".into()));
    }
    if pairs.not_needed() == 0 {
        return None;
    }
    let visits = pairs.tasks.iter().map(|pair| pair.baseline.visit.as_ref());
    let owner = subject.pooled.then_some(&subject.name);
    let looked_at = visits.clone().all(|visit| visit.is_some_and(|visit| visit.group.as_ref() == owner));
    if !looked_at {
        let observed = "left items out by looks at something else".to_owned();
        return Some((observed, format!("looks at {}, and at nothing else", subject.name)));
    }
    let visited: usize = visits.flatten().map(|visit| visit.order.len()).sum();
    let stopped = format!("stopped after {visited} of {} items", visited + pairs.not_needed());
    let looks = rule.zip(waves(pairs)).map(|(rule, waves)| (waves.len(), rule.replay(&waves)));
    let decided = looks.is_some_and(|(waves, looks)| {
        looks.len() == waves && looks.last().is_some_and(|look| look.decision.is_some())
    });
    (!decided).then(|| (stopped, "a task stops when a look decides it, and then".into()))
}

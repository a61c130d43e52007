//! What the paired items of one task or group show: estimates, interval, flips. Every policy reports the same evidence.

use serde::{Deserialize, Serialize};

use super::options::{Margin, Tier};
use super::pairs::Pairs;
use super::sample::{Interval, Sample, choices};
use super::sequential::{Decision, Look, StopRule, waves};
use crate::base::stats::{
    Alpha, Estimate, PairedCounts, Ratio, Test, WaveFlips, betting_bounds, mcnemar, minimal_detectable,
    needed_n, zero_flip_bound, zero_flip_n,
};
use crate::record::eval::{ItemRecord, MetricInfo, NoiseFloor};

/// Flipped items listed in a report; the counts are always complete.
const LISTED_FLIPS: usize = 200;

/// What a policy says of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskVerdict {
    /// Within the margin.
    Within,
    /// Worse than the margin allows.
    Regression,
    /// Better than quantization can explain.
    ImplausibleGain,
    /// The items do not suffice to say.
    Undecided,
}

/// How the bounds were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Tango's score interval for paired 0/1 items, its upper bound not below the exact binomial one.
    Tango,
    /// The wider of Tango's and the cluster-robust interval.
    TangoOrCluster,
    /// Paired t, on ratios where items have weights or the margin is relative.
    PairedT,
    /// The wider of the paired t and the cluster-robust interval.
    PairedTOrCluster,
    /// t interval of the mean over fixed strata, the tasks of a group.
    Stratified,
    /// The margins that betting does not reject, valid at every look: of a task that stopped early.
    Betting,
    /// There are too few items, or the baseline is zero.
    None,
}

/// One item whose 0/1 value changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flip {
    /// Index in the split.
    pub doc_id: usize,
    /// Whether the baseline was right and the candidate is not.
    pub lost: bool,
    /// Most likely choice of the baseline, by log-likelihood.
    pub baseline_choice: Option<usize>,
    /// Most likely choice of the candidate, by log-likelihood.
    pub candidate_choice: Option<usize>,
    /// Log-likelihoods of the baseline's choices.
    pub baseline_loglikelihoods: Vec<f64>,
    /// Log-likelihoods of the candidate's choices.
    pub candidate_loglikelihoods: Vec<f64>,
}

/// Everything a report says of one task. Drops are positive where the candidate is worse, whatever the metric's
/// direction; `*_fraction`, `lower`, `upper`, `stderr`, `mde` and `margin` share one unit: a fraction of the scale,
/// or of the baseline's value for relative margins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskEvidence {
    /// Name of the primary metric.
    pub metric: String,
    /// Its direction.
    pub higher_is_better: bool,
    /// Its full scale.
    pub scale: Option<f64>,
    /// Whether the task decides.
    pub tier: Tier,
    /// Of a group that is decided as one: its tasks; else empty.
    pub pooled: Vec<String>,
    /// The group that is decided instead of this part of it.
    pub part_of: Option<String>,
    /// Largest allowed drop.
    pub margin: Margin,
    /// Value on the baseline.
    pub baseline: f64,
    /// Value on the candidate.
    pub candidate: f64,
    /// Candidate − baseline, in the metric's unit.
    pub difference: f64,
    /// Drop in the metric's unit.
    pub drop: f64,
    /// Drop as a fraction; `None` where it cannot be formed.
    pub drop_fraction: Option<f64>,
    /// Standard error of the drop fraction.
    pub stderr: Option<f64>,
    /// One-sided level of each bound.
    pub level: Alpha,
    /// One-sided lower bound of the drop fraction; `None` where the data bound nothing.
    pub lower: Option<f64>,
    /// One-sided upper bound of the drop fraction.
    pub upper: Option<f64>,
    /// How the bounds were found.
    pub method: Method,
    /// Why the bounds may not decide although they exist; empty otherwise.
    pub unreliable: String,
    /// Paired items.
    pub n: usize,
    /// Items of the full split.
    pub full_split: usize,
    /// Why fewer were planned; empty for the full split.
    pub limited_by: String,
    /// Whether the items are all of the split or a random sample of it; a prefix of a data set shows nothing about the
    /// rest.
    #[serde(default)]
    pub is_sample: bool,
    /// Planned items that were not visited because the task was decided before.
    pub not_needed: usize,
    /// The path: one entry a look; empty for a fixed set of items.
    pub looks: Vec<Look>,
    /// Items right only on the baseline (0/1 metrics).
    pub flips_b: Option<u64>,
    /// Items right only on the candidate (0/1 metrics).
    pub flips_c: Option<u64>,
    /// Flip rate (b + c)/n.
    pub psi: Option<f64>,
    /// McNemar's mid-p against "the candidate is worse", with no margin.
    pub mcnemar_p: Option<f64>,
    /// Smallest true drop these items show with power 0.8, by the test that decides.
    pub mde: Option<f64>,
    /// Items that would decide with power 0.8 if the observed drop is the true one, by the test that decides a plan of
    /// that many: of a task that had looks the betting test, or the interval where all items of the split are needed.
    pub n_needed: Option<u64>,
    /// Items that would show "within the margin" with power 0.8 if there is no drop, by the same test.
    pub n_needed_no_drop: Option<u64>,
    /// Upper bound of the fixed-n interval without the exact test, below which a gain is implausible.
    pub gain_upper: Option<f64>,
    /// p-value of "the drop is at most the margin"; where a task had looks, of the betting test and the interval
    /// together.
    pub p_value: Option<f64>,
    /// The same after Holm's correction across the tasks of the tier.
    pub p_adjusted: Option<f64>,
    /// Mean KL divergence in nats of the candidate's choice distribution from the baseline's.
    pub choice_kl: Option<f64>,
    /// Mean change of the margin between the right choice and the best other, in nats; negative is worse.
    pub gold_margin_shift: Option<f64>,
    /// Standard error of that shift.
    pub gold_margin_stderr: Option<f64>,
    /// What rescoring the baseline on other kernels changed, where it was measured.
    pub noise: Option<NoiseFloor>,
    /// What the policy says.
    pub verdict: TaskVerdict,
    /// `verdict` as upstream's key: whether the task is within the margin.
    pub within_threshold: bool,
    /// The first flipped items, at most 200; those of a group are with its tasks.
    pub flips: Vec<Flip>,
}

/// How a task was judged while it was scored.
pub(super) struct Path {
    rule: StopRule,
    looks: Vec<Look>,
    waves: Vec<WaveFlips>,
}

impl Path {
    /// The path of a subject that had looks under `rule`.
    pub fn of(rule: Option<&StopRule>, pairs: &Pairs<'_>) -> Option<Self> {
        let (rule, waves) = (*rule?, waves(pairs)?);
        let flips = waves.iter().map(|w| WaveFlips { n: w.n, lost: w.lost, gained: w.gained });
        Some(Self { rule, looks: rule.replay(&waves), waves: flips.collect() })
    }
}

/// What a task is judged by.
pub(super) struct Terms {
    pub margin: Margin,
    pub tier: Tier,
    /// The tasks of a group.
    pub pooled: Vec<String>,
    pub part_of: Option<String>,
    /// One-sided level of the whole test.
    pub alpha: Alpha,
    /// How it was visited, if it had looks.
    pub path: Option<Path>,
}

impl Terms {
    /// Level of the fixed-n interval: a part where looks spend the other.
    fn level(&self) -> Alpha {
        self.path.as_ref().map_or(self.alpha, |path| path.rule.part())
    }

    /// The test that can show the drop to be within the margin after the planned items.
    fn test(&self) -> Test {
        self.path.as_ref().map_or(Test::Interval, |path| path.rule.last_test(true).0)
    }

    /// Items needed to show that the drop is `distance` below the margin, where one paired difference has this
    /// `variance`; `floor` is the least number that can show anything, by a test.
    fn needed_n(
        &self,
        variance: f64,
        distance: f64,
        full_split: u64,
        floor: impl Fn(Test) -> Option<u64>,
    ) -> Option<u64> {
        let by = |test| Some(needed_n(test, variance, distance, self.level())?.max(floor(test)?));
        let interval = by(Test::Interval);
        if self.path.is_none() {
            return interval;
        }
        // The interval decides at the last item of the split alone, the betting test before it.
        let at_the_end = interval.map(|n| n.max(full_split));
        at_the_end.into_iter().chain(by(Test::Betting)).min()
    }

    /// Bounds of the drop fraction.
    fn interval(&self, sample: &Sample, stopped: bool) -> Interval {
        match &self.path {
            Some(path) if stopped => Interval {
                bounds: betting_bounds(&path.waves, self.level().value()),
                method: Method::Betting,
                unreliable: String::new(),
            },
            _ => sample.interval(self.level()),
        }
    }

    /// p-value of "the drop is at most the margin".
    fn p_at_most(&self, sample: &Sample, stopped: bool) -> Option<f64> {
        let interval = sample.p_at_most(self.margin.value());
        let Some(path) = &self.path else { return interval };
        let betting = path.looks.last().map_or(1.0, |look| (-look.ln_e_worse).exp());
        // A task that stopped early has no last look to test with the interval.
        let best = interval.filter(|_| !stopped).map_or(betting, |p| p.min(betting));
        Some(path.rule.p_worse(best))
    }
}

impl TaskEvidence {
    /// The evidence of a subject whose items are the same on both arms; not yet judged.
    pub(super) fn new(pairs: &Pairs<'_>, sample: &Sample, terms: &Terms) -> Self {
        let metric = pairs.metric();
        let stopped = pairs.not_needed() > 0;
        let (margin, level) = (terms.margin, terms.level());
        let interval = terms.interval(sample, stopped);
        let finite = |value: f64| value.is_finite().then_some(value);
        let estimate = sample.estimate();
        let drop_fraction = estimate.and_then(|e| finite(e.value));
        let stderr = estimate.and_then(|e| finite(e.stderr));
        let counts = sample.counts;
        let shift = gold_margin_shift(pairs);
        let plan = |distance: f64| {
            let variance = stderr?.powi(2) * sample.n as f64;
            let floor =
                |test| if counts.is_some() { zero_flip_n(test, margin.value(), level) } else { Some(2) };
            terms.needed_n(variance, distance, pairs.full_split() as u64, floor)
        };
        Self {
            metric: metric.name.clone(),
            higher_is_better: metric.higher_is_better,
            scale: metric.scale,
            tier: terms.tier,
            pooled: terms.pooled.clone(),
            part_of: terms.part_of.clone(),
            margin,
            baseline: sample.baseline,
            candidate: sample.candidate,
            difference: sample.candidate - sample.baseline,
            drop: sample.drop(),
            drop_fraction,
            stderr,
            level,
            lower: finite(interval.bounds.lower),
            upper: finite(interval.bounds.upper),
            method: interval.method,
            unreliable: if pairs.is_sample() { interval.unreliable } else { no_sample(&interval.unreliable) },
            n: sample.n,
            full_split: pairs.full_split(),
            limited_by: pairs.limited_by(),
            is_sample: pairs.is_sample(),
            not_needed: pairs.not_needed(),
            looks: terms.path.as_ref().map_or_else(Vec::new, |path| path.looks.clone()),
            flips_b: counts.map(PairedCounts::b),
            flips_c: counts.map(PairedCounts::c),
            psi: counts.map(PairedCounts::flip_rate),
            mcnemar_p: counts.map(|c| mcnemar(c.b(), c.c()).mid_p_worse),
            mde: stderr.map(|stderr| {
                let test = terms.test();
                let floor = if counts.is_some() { zero_flip_bound(test, sample.n, level) } else { 0.0 };
                minimal_detectable(test, stderr, level).max(floor)
            }),
            n_needed: drop_fraction.and_then(|drop| plan(margin.value() - drop)),
            n_needed_no_drop: plan(margin.value()),
            gain_upper: finite(sample.gain_upper(level)),
            p_value: terms.p_at_most(sample, stopped),
            p_adjusted: None,
            choice_kl: choice_kl(pairs),
            gold_margin_shift: shift.map(|e| e.value),
            gold_margin_stderr: shift.map(|e| e.stderr),
            noise: None,
            verdict: TaskVerdict::Undecided,
            within_threshold: false,
            flips: if counts.is_some() && !pairs.pooled { flips(pairs) } else { Vec::new() },
        }
    }

    /// Whether a look shows the drop to be within the margin.
    pub(super) fn within_by_betting(&self) -> bool {
        let by_look = self.looks.last().is_some_and(|look| {
            look.decision == Some(Decision::Within)
                || (self.not_needed == 0 && look.ln_e_within >= -self.level.value().ln())
        });
        by_look && self.unreliable.is_empty()
    }

    /// Sets the verdict.
    pub(super) fn judge(&mut self, verdict: TaskVerdict) {
        self.verdict = verdict;
        self.within_threshold = verdict == TaskVerdict::Within;
    }
}

/// Bounds describe what the items are drawn from; a data set in its own order is often sorted by subject or source.
fn no_sample(also: &str) -> String {
    let why = "these items are no random sample of the split";
    if also.is_empty() { why.to_owned() } else { format!("{why}, {also}") }
}

fn flips(pairs: &Pairs<'_>) -> Vec<Flip> {
    let metric: &MetricInfo = pairs.metric();
    let value = |item: &ItemRecord| item.values.get(&metric.name).copied();
    let changed = pairs.items().filter(|(a, b)| value(a) != value(b));
    let flip = |(a, b): (&ItemRecord, &ItemRecord)| Flip {
        doc_id: a.doc_id,
        lost: (value(a) > value(b)) == metric.higher_is_better,
        baseline_choice: likeliest(choices(a)),
        candidate_choice: likeliest(choices(b)),
        baseline_loglikelihoods: choices(a).to_vec(),
        candidate_loglikelihoods: choices(b).to_vec(),
    };
    changed.take(LISTED_FLIPS).map(flip).collect()
}

/// Index of the largest log-likelihood, the lowest on ties as in lm-eval; `None` without a choice.
fn likeliest(loglikelihoods: &[f64]) -> Option<usize> {
    if loglikelihoods.len() < 2 {
        return None;
    }
    let largest = loglikelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    loglikelihoods.iter().position(|l| *l == largest)
}

/// Mean over items of KL(softmax(baseline) ‖ softmax(candidate)) over the choices; `None` without choices.
fn choice_kl(pairs: &Pairs<'_>) -> Option<f64> {
    let distributions = pairs.items().map(|(a, b)| (choices(a), choices(b)));
    let divergences: Vec<f64> = distributions
        .filter(|(a, b)| a.len() > 1 && a.len() == b.len())
        .map(|(a, b)| {
            let (p, q) = (log_softmax(a), log_softmax(b));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
        })
        .collect();
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    mean.is_finite().then_some(mean)
}

/// Mean over items of the change in ln p(right choice) − ln p(best other choice); `None` where fewer than two items
/// have one right choice among several.
fn gold_margin_shift(pairs: &Pairs<'_>) -> Option<Estimate> {
    let margin = |item: &ItemRecord| {
        let (gold, all) = (item.gold?, choices(item));
        let others = all.iter().enumerate().filter(|(i, _)| *i != gold).map(|(_, l)| *l);
        Some(all.get(gold)? - others.reduce(f64::max)?)
    };
    let shifts: Vec<f64> = pairs.items().filter_map(|(a, b)| Some(margin(b)? - margin(a)?)).collect();
    Ratio::mean(&shifts, None).map(|ratio| ratio.estimate())
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln() + largest;
    values.iter().map(|v| v - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_known_distributions() {
        // KL((1/2, 1/2) ‖ (1/4, 3/4)) = ln 2 − ln(3)/2, whatever constant each side's logits carry.
        let p = log_softmax(&[-700.0, -700.0]);
        let q = log_softmax(&[5.0, 5.0 + 3.0f64.ln()]);
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((kl - (2.0f64.ln() - 3.0f64.ln() / 2.0)).abs() < 1e-12);
    }

    #[test]
    fn ties_go_to_the_lowest_choice() {
        assert_eq!(likeliest(&[-3.0, -1.0, -1.0]), Some(1));
        assert_eq!(likeliest(&[-3.0]), None);
    }
}

//! The paired items of one subject as the statistics see them.
//!
//! The items of a group whose tasks count by size are one sample of 0/1 pairs: Tango's interval on their counts is
//! valid, and a little wider than one that knows the strata. Where tasks weigh otherwise, the interval is the t interval
//! of the stratified mean.

use std::collections::BTreeMap;

use super::evidence::Method;
use super::options::Margin;
use super::pairs::Pairs;
use crate::base::stats::{Alpha, Bounds, Estimate, PairedCounts, Ratio};
use crate::gate::decimal::Decimal;
use crate::gate::run::{Aggregation, aggregation};
use crate::record::eval::ItemRecord;

/// Documents that a metric without a scale needs: its items are few and long, and their differences skewed.
pub const MIN_DOCUMENTS: usize = 300;

/// Differing items that the t interval needs. With fewer, the variance of rare differences is underestimated (for
/// 0/1 items Tango's interval takes care of that): at 300 items and 2 % flips a nominal 5 % error is 8.6 % in truth.
/// See also S. Bowyer et al., arXiv 2503.01747.
const MIN_DIFFERING: usize = 30;

/// Paired items of a subject, oriented so that a positive drop is worse.
pub(super) struct Sample {
    /// Pairs.
    pub n: usize,
    /// Value on the baseline, from the items and their weights.
    pub baseline: f64,
    /// Value on the candidate.
    pub candidate: f64,
    /// Counts, where every value is 0 or 1, unweighted, and the margin is a share of the scale 1.
    pub counts: Option<PairedCounts>,
    /// Drop as a fraction, over independent items; `None` where it cannot be formed.
    independent: Option<Ratio>,
    /// The same over clusters, where the task declares at least two.
    clustered: Option<Ratio>,
    higher_is_better: bool,
    scale: Option<f64>,
    /// Whether the items are those of several tasks.
    pooled: bool,
    differing: usize,
    aggregation: Aggregation,
    values: [f64; 2],
    all_counts: bool,
}

/// Bounds of a drop fraction, and whether they may decide.
pub(super) struct Interval {
    pub bounds: Bounds,
    pub method: Method,
    pub unreliable: String,
}

impl Sample {
    /// Pairs the items of two arms, which have the same items; `None` without items or with a missing value, and for
    /// tasks that cannot be pooled: those whose items have weights of their own or whose metric is no mean.
    pub fn new(pairs: &Pairs<'_>, margin: Margin) -> Option<Self> {
        let metric = pairs.metric();
        let value = |item: &ItemRecord| item.values.get(&metric.name).copied();
        let (mut base, mut cand, mut weights, mut strata) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (stratum, (pair, factor)) in pairs.tasks.iter().zip(pairs.factors()).enumerate() {
            if pair.baseline.items.len() != pair.candidate.items.len() {
                return None;
            }
            for (a, b) in pair.baseline.items.iter().zip(&pair.candidate.items) {
                base.push(value(a)?);
                cand.push(value(b)?);
                weights.push(a.weight * factor);
                strata.push(stratum);
            }
        }
        // A group may stop before it comes to an item of each task.
        let first = pairs.tasks.iter().find(|pair| !pair.baseline.items.is_empty())?;
        let aggregation = aggregation(first.baseline)?;
        let poolable = || aggregation == Aggregation::Mean && pairs.items().all(|(a, _)| a.weight == 1.0);
        if base.is_empty() || (pairs.pooled && !poolable()) {
            return None;
        }
        let weighted = |values: &[f64]| values.iter().zip(&weights).map(|(v, w)| v * w).sum::<f64>();
        let total: f64 = weights.iter().sum();
        let worse = |(a, b): (&f64, &f64)| if metric.higher_is_better { a - b } else { b - a };
        let drops: Vec<f64> = base.iter().zip(&cand).map(worse).collect();
        let num: Vec<f64> = drops.iter().zip(&weights).map(|(d, w)| d * w).collect();
        let per = |baseline: f64| match (aggregation, margin) {
            // exp(mean) has a relative drop of exp(mean difference) − 1.
            (Aggregation::ExpMean, _) => 1.0,
            (Aggregation::Mean, Margin::Relative(_)) => baseline,
            (Aggregation::Mean, Margin::Absolute(_)) => metric.scale.unwrap_or(1.0),
        };
        let den: Vec<f64> = weights.iter().zip(&base).map(|(w, b)| w * per(*b)).collect();
        let value = |values: &[f64]| match aggregation {
            Aggregation::Mean => weighted(values) / total,
            Aggregation::ExpMean => (weighted(values) / total).exp(),
        };
        let independent = if pairs.tasks.len() > 1 {
            Ratio::stratified(&num, &den, &strata)
        } else {
            Ratio::new(&num, &den, None)
        };
        let all_counts = weights.iter().all(|w| *w == 1.0)
            && base.iter().chain(&cand).all(|v| *v == 0.0 || *v == 1.0)
            && metric.scale == Some(1.0);
        Some(Self {
            n: base.len(),
            baseline: value(&base),
            candidate: value(&cand),
            counts: counts(&drops).filter(|_| all_counts && matches!(margin, Margin::Absolute(_))),
            independent,
            clustered: clusters(pairs).and_then(|clusters| Ratio::new(&num, &den, Some(&clusters))),
            pooled: pairs.tasks.len() > 1,
            higher_is_better: metric.higher_is_better,
            scale: metric.scale,
            differing: differing(&num),
            aggregation,
            values: [base.iter().sum(), cand.iter().sum()],
            all_counts,
        })
    }

    /// The drop in the metric's unit.
    pub fn drop(&self) -> f64 {
        let drop = self.baseline - self.candidate;
        if self.higher_is_better { drop } else { -drop }
    }

    /// The drop as a fraction.
    pub fn estimate(&self) -> Option<Estimate> {
        let ratio = || {
            let Estimate { value, stderr, n } = self.independent?.estimate();
            let slope = match self.aggregation {
                Aggregation::Mean => 1.0,
                Aggregation::ExpMean => (value * self.log_sign()).exp(),
            };
            Some(Estimate { value: self.fraction(value), stderr: stderr * slope, n })
        };
        let by_counts = || self.counts.map(PairedCounts::drop);
        // Fixed strata add nothing to the error, which the counts alone do not know.
        if self.pooled { ratio().or_else(by_counts) } else { by_counts().or_else(ratio) }
    }

    /// Bounds of the drop fraction that decide: of each applicable method the wider one.
    pub fn interval(&self, alpha: Alpha) -> Interval {
        self.interval_by(alpha, PairedCounts::bounds)
    }

    /// The upper bound below which a gain shows: without the exact test of [`PairedCounts::bounds`], which knows no gains.
    pub fn gain_upper(&self, alpha: Alpha) -> f64 {
        self.interval_by(alpha, PairedCounts::tango_bounds).bounds.upper
    }

    fn interval_by(&self, alpha: Alpha, of_counts: fn(PairedCounts, Alpha) -> Bounds) -> Interval {
        let of = |ratio: Ratio| {
            let Bounds { lower, upper } = ratio.bounds(alpha);
            Bounds { lower: self.fraction(lower), upper: self.fraction(upper) }
        };
        let clustered = self.clustered.map(of);
        let (bounds, method) = match (self.counts, self.independent, clustered) {
            (Some(counts), _, None) => (of_counts(counts, alpha), Method::Tango),
            (Some(counts), _, Some(other)) => {
                (of_counts(counts, alpha).envelope(other), Method::TangoOrCluster)
            }
            (None, Some(ratio), None) if self.pooled => (of(ratio), Method::Stratified),
            (None, Some(ratio), None) => (of(ratio), Method::PairedT),
            (None, Some(ratio), Some(other)) => (of(ratio).envelope(other), Method::PairedTOrCluster),
            (None, None, _) => (Bounds::NONE, Method::None),
        };
        Interval { bounds, method, unreliable: self.unreliable() }
    }

    /// p-value of "the drop fraction is at most `m`": of each applicable method the larger one.
    pub fn p_at_most(&self, m: f64) -> Option<f64> {
        let independent = match self.counts {
            Some(counts) => Some(counts.p_at_most(m)),
            None => self.independent.map(|ratio| ratio.p_at_most(self.ratio_of(m))),
        };
        let clustered = self.clustered.map_or(0.0, |ratio| ratio.p_at_most(self.ratio_of(m)));
        independent.map(|p| p.max(clustered))
    }

    /// The drop fraction of a ratio of sums: itself, or, of a mean logarithm, how far exp moves by it.
    fn fraction(&self, ratio: f64) -> f64 {
        match self.aggregation {
            Aggregation::Mean => ratio,
            Aggregation::ExpMean => self.log_sign() * (self.log_sign() * ratio).exp_m1(),
        }
    }

    /// The inverse of [`Self::fraction`].
    fn ratio_of(&self, fraction: f64) -> f64 {
        match self.aggregation {
            Aggregation::Mean => fraction,
            Aggregation::ExpMean => self.log_sign() * (self.log_sign() * fraction).ln_1p(),
        }
    }

    /// −1 where exp falls when the candidate gets worse.
    fn log_sign(&self) -> f64 {
        if self.higher_is_better { -1.0 } else { 1.0 }
    }

    /// Whether the items are counts in no clusters: any order of visit is as good as any other.
    pub fn exchangeable(&self) -> bool {
        self.counts.is_some() && self.clustered.is_none()
    }

    fn unreliable(&self) -> String {
        match () {
            () if self.too_few_documents() => {
                format!("{} documents, fewer than {MIN_DOCUMENTS}", self.n)
            }
            () if self.counts.is_none() && self.differing < MIN_DIFFERING => {
                format!("{} differing items, fewer than {MIN_DIFFERING}", self.differing)
            }
            () => String::new(),
        }
    }

    /// Whether a metric without a scale has too few documents to say anything.
    pub fn too_few_documents(&self) -> bool {
        self.scale.is_none() && self.n < MIN_DOCUMENTS
    }

    /// The two arms as decimals: counts where values are 0/1, else the means. `None` where a relative drop has no
    /// positive baseline to be a fraction of.
    pub fn decimals(&self, margin: Margin) -> Option<Decimals> {
        let number = |index: usize| {
            if self.all_counts {
                Decimal::count(self.values[index] as usize)
            } else {
                Decimal::of([self.baseline, self.candidate][index])
            }
        };
        let scale = match self.scale {
            Some(_) if self.all_counts => Some(Decimal::count(self.n)),
            scale => scale.map(Decimal::of),
        };
        let unit = match margin {
            Margin::Relative(_) if self.baseline <= 0.0 => return None,
            Margin::Relative(_) => number(0),
            Margin::Absolute(_) => scale?,
        };
        let (better, worse) = if self.higher_is_better { (0, 1) } else { (1, 0) };
        Some(Decimals {
            better: number(better),
            worse: number(worse),
            unit,
            gain_unit: scale.unwrap_or(unit),
        })
    }
}

/// What the threshold policy subtracts and compares.
pub(super) struct Decimals {
    /// The drop is `better` − `worse`: the baseline's value, or the candidate's where lower is better.
    pub better: Decimal,
    /// The other arm's value.
    pub worse: Decimal,
    /// What the margin is a fraction of.
    pub unit: Decimal,
    /// What the implausible gain is a fraction of.
    pub gain_unit: Decimal,
}

fn counts(drops: &[f64]) -> Option<PairedCounts> {
    let count = |sign: f64| drops.iter().filter(|d| **d == sign).count() as u64;
    PairedCounts::new(drops.len() as u64, count(1.0), count(-1.0))
}

/// Number of differing items; where they weigh differently, of as many alike ones as carry the same information
/// (L. Kish, Survey Sampling, section 11.7: (Σw)²/Σw²).
fn differing(weighted_drops: &[f64]) -> usize {
    let sum: f64 = weighted_drops.iter().map(|d| d.abs()).sum();
    let squares: f64 = weighted_drops.iter().map(|d| d * d).sum();
    let count = weighted_drops.iter().filter(|d| **d != 0.0).count();
    if squares > 0.0 { count.min((sum * sum / squares).round() as usize) } else { 0 }
}

/// Number of each item's cluster; `None` unless every item has one and there are at least two. A task whose items all
/// belong to one cluster is one stratum, which says nothing about variation between clusters. In a group, clusters are
/// of their task, and an item without one stands alone.
fn clusters(pairs: &Pairs<'_>) -> Option<Vec<usize>> {
    if pairs.items().all(|(item, _)| item.cluster.is_none()) {
        return None;
    }
    let mut numbers: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut clusters = Vec::new();
    for (task, pair) in pairs.tasks.iter().enumerate() {
        for item in &pair.baseline.items {
            let own = item.cluster.clone().map(|name| format!("cluster {name}"));
            let alone = || pairs.pooled.then(|| format!("item {}", item.doc_id));
            let next = numbers.len();
            clusters.push(*numbers.entry((task, own.or_else(alone)?)).or_insert(next));
        }
    }
    (numbers.len() > 1).then_some(clusters)
}

/// Log-likelihoods of an item's choices given its context. Where `acc_mutual_info` is measured, lm-eval asks for each
/// choice once more without the context, after all others.
pub(super) fn choices(item: &ItemRecord) -> &[f64] {
    let all = &item.loglikelihoods;
    if item.values.contains_key("acc_mutual_info") { &all[..all.len() / 2] } else { all }
}

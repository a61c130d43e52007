//! Bounds on a ratio of paired means, independent, cluster-robust or stratified; the paired t test is its simplest case.
//!
//! For items i with numerator aᵢ and denominator dᵢ the ratio is R = Σa/Σd. With d = 1 it is the mean of the paired
//! differences and everything here is the paired t test. With d = weight it is a weighted mean (bits per byte:
//! weight = bytes), with d = weight · baseline value it is the relative change.
//!
//! H₀ "R ≤ m" is tested on aᵢ − m·dᵢ, whose mean is at most 0 under it: no delta method, and the bounds are the set
//! of m that the test does not reject (E. C. Fieller, Some problems in interval estimation, JRSS B 16 (1954),
//! 175–185). They are infinite when the mean denominator is not significantly positive.
//!
//! Standard errors: the sample variance over n for independent items; for clusters the sandwich
//! C/(C − 1) · Σ_c(Σ_{i∈c} eᵢ)²/n² with C − 1 degrees of freedom (E. Miller, Adding error bars to evals, arXiv
//! 2411.00640, section 2.2, with the small-sample factor of statsmodels' `cov_type="cluster"`).

use std::collections::BTreeMap;

use super::level::{Alpha, Bounds, Estimate, student_quantile, student_sf};

/// A ratio of two means over the same items, with the covariance of the means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    n: usize,
    df: usize,
    mean_num: f64,
    mean_den: f64,
    var_num: f64,
    var_den: f64,
    covariance: f64,
}

impl Ratio {
    /// From `[n]` numerators and denominators and, optionally, the cluster of each item. `None` for fewer than two
    /// items or clusters, for slices of unequal length, and where a sum is not finite.
    pub fn new(num: &[f64], den: &[f64], clusters: Option<&[usize]>) -> Option<Self> {
        let n = num.len();
        if n < 2 || den.len() != n || clusters.is_some_and(|c| c.len() != n) {
            return None;
        }
        let count = n as f64;
        let (mean_num, mean_den) = (mean(num), mean(den));
        let deviations = num.iter().zip(den).map(|(a, d)| (a - mean_num, d - mean_den));
        let groups: Vec<(f64, f64)> = match clusters {
            None => deviations.collect(),
            Some(clusters) => cluster_sums(deviations, clusters),
        };
        let df = groups.len().checked_sub(1).filter(|df| *df > 0)?;
        // C/(C − 1)/n²; with every item its own cluster this is 1/(n(n − 1)).
        let factor = groups.len() as f64 / (df as f64 * count * count);
        let sum = |f: fn(&(f64, f64)) -> f64| groups.iter().map(f).sum::<f64>() * factor;
        Self {
            n,
            df,
            mean_num,
            mean_den,
            var_num: sum(|(a, _)| a * a),
            var_den: sum(|(_, d)| d * d),
            covariance: sum(|(a, d)| a * d),
        }
        .if_finite()
    }

    /// The combined ratio over fixed strata, `strata` being the stratum of each item: deviations are from the stratum's
    /// own mean, so that the spread between strata adds nothing (W. G. Cochran, Sampling Techniques, 3rd ed., sections
    /// 5.3 and 6.11); n − H degrees of freedom for H strata. Weights belong into numerators and denominators. `None` for
    /// a stratum of a single item, slices of unequal length, and where a sum is not finite.
    pub fn stratified(num: &[f64], den: &[f64], strata: &[usize]) -> Option<Self> {
        let n = num.len();
        if den.len() != n || strata.len() != n {
            return None;
        }
        let mut of: BTreeMap<usize, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for ((a, d), stratum) in num.iter().zip(den).zip(strata) {
            let (nums, dens) = of.entry(*stratum).or_default();
            nums.push(*a);
            dens.push(*d);
        }
        let (mut var_num, mut var_den, mut covariance) = (0.0, 0.0, 0.0);
        for (nums, dens) in of.values() {
            let size = nums.len() as f64;
            if nums.len() < 2 {
                return None;
            }
            let (mean_num, mean_den) = (mean(nums), mean(dens));
            // Variance of the stratum's sum, as a part of the mean over all n.
            let factor = size / (size - 1.0) / (n as f64 * n as f64);
            for (a, d) in nums.iter().zip(dens).map(|(a, d)| (a - mean_num, d - mean_den)) {
                var_num += factor * a * a;
                var_den += factor * d * d;
                covariance += factor * a * d;
            }
        }
        let df = n.checked_sub(of.len()).filter(|df| *df > 0)?;
        let (mean_num, mean_den) = (mean(num), mean(den));
        Self { n, df, mean_num, mean_den, var_num, var_den, covariance }.if_finite()
    }

    fn if_finite(self) -> Option<Self> {
        let numbers = [self.mean_num, self.mean_den, self.var_num, self.var_den];
        numbers.iter().all(|x| x.is_finite()).then_some(self)
    }

    /// The mean of paired differences: the paired t test.
    pub fn mean(differences: &[f64], clusters: Option<&[usize]>) -> Option<Self> {
        Self::new(differences, &vec![1.0; differences.len()], clusters)
    }

    /// The ratio, with the standard error of its linearization.
    pub fn estimate(&self) -> Estimate {
        let value = self.mean_num / self.mean_den;
        Estimate { value, stderr: self.residual_variance(value).sqrt() / self.mean_den.abs(), n: self.n }
    }

    /// Bounds on the ratio.
    pub fn bounds(&self, alpha: Alpha) -> Bounds {
        let t = student_quantile(1.0 - alpha.value(), self.df);
        let t2 = t * t;
        let (a, d) = (self.mean_num, self.mean_den);
        let quadratic = d * d - t2 * self.var_den;
        if d <= 0.0 || quadratic <= 0.0 {
            return Bounds::NONE;
        }
        let middle = a * d - t2 * self.covariance;
        // The discriminant written so that no large terms cancel when the variances are small.
        let spread = d * d * self.var_num - 2.0 * a * d * self.covariance + a * a * self.var_den
            - t2 * (self.var_num * self.var_den - self.covariance * self.covariance);
        let half = t * spread.max(0.0).sqrt();
        Bounds { lower: (middle - half) / quadratic, upper: (middle + half) / quadratic }
    }

    /// p-value of H₀ "the ratio is at most `m`", for a positive mean denominator.
    pub fn p_at_most(&self, m: f64) -> f64 {
        let distance = self.mean_num - m * self.mean_den;
        let stderr = self.residual_variance(m).sqrt();
        match () {
            () if self.mean_den <= 0.0 => 1.0,
            () if stderr > 0.0 => student_sf(distance / stderr, self.df),
            () if distance > 0.0 => 0.0,
            () => 1.0,
        }
    }

    /// Variance of the mean of aᵢ − m·dᵢ.
    fn residual_variance(&self, m: f64) -> f64 {
        (self.var_num - 2.0 * m * self.covariance + m * m * self.var_den).max(0.0)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sums of the deviations within each cluster, in order of the cluster's number.
fn cluster_sums(deviations: impl Iterator<Item = (f64, f64)>, clusters: &[usize]) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for ((a, d), cluster) in deviations.zip(clusters) {
        let sum = sums.entry(*cluster).or_default();
        *sum = (sum.0 + a, sum.1 + d);
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn list(case: &Value, name: &str) -> Vec<f64> {
        case[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// `golden/golden.py`: scipy.stats.ttest_1samp; statsmodels OLS with `cov_type="cluster"`; weighted and relative
    /// ratios by scanning m with those tests.
    #[test]
    fn agrees_with_scipy_and_statsmodels() {
        for case in crate::base::stats::tests::golden("ratio") {
            let clusters: Option<Vec<usize>> = case["clusters"]
                .as_array()
                .map(|list| list.iter().map(|v| v.as_u64().unwrap() as usize).collect());
            let ratio = Ratio::new(&list(&case, "num"), &list(&case, "den"), clusters.as_deref()).unwrap();
            let bounds = ratio.bounds(Alpha::new(case["alpha"].as_f64().unwrap()).unwrap());
            let m = case["m"].as_f64().unwrap();
            for (name, value) in [
                ("estimate", ratio.estimate().value),
                ("lower", bounds.lower),
                ("upper", bounds.upper),
                ("p_at_most", ratio.p_at_most(m)),
            ] {
                let expected = case[name].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-8, "{}: {name} {value} {expected}", case["name"]);
            }
            if let Some(stderr) = case["stderr"].as_f64() {
                assert!((ratio.estimate().stderr - stderr).abs() < 1e-12, "{}", case["name"]);
            }
        }
    }

    /// `golden/golden.py`: value and error of a stratified sample in numpy, from its strata's means and errors, which
    /// items half above and half below the mean have, too.
    #[test]
    fn strata_agree_with_the_textbook() {
        for case in crate::base::stats::tests::golden("strata") {
            let (mut values, mut strata) = (Vec::new(), Vec::new());
            let sizes = list(&case, "sizes");
            for (stratum, ((mean, stderr), n)) in
                list(&case, "means").into_iter().zip(list(&case, "stderrs")).zip(sizes).enumerate()
            {
                let pairs = (n / 2.0).floor();
                let away = stderr * (n * (n - 1.0) / (2.0 * pairs)).sqrt();
                for i in 0..n as usize {
                    let side = [away, -away][i % 2];
                    values.push(mean + if i < 2 * pairs as usize { side } else { 0.0 });
                    strata.push(stratum);
                }
            }
            let ones = vec![1.0; values.len()];
            let found = Ratio::stratified(&values, &ones, &strata).unwrap();
            let estimate = found.estimate();
            assert!((estimate.value - case["value"].as_f64().unwrap()).abs() < 1e-12, "{case}");
            assert!((estimate.stderr - case["stderr"].as_f64().unwrap()).abs() < 1e-12, "{case}");
            // One stratum is the paired t test; a shift of a whole stratum changes the value, not the error.
            let one = Ratio::stratified(&values, &ones, &vec![0; values.len()]).unwrap();
            let paired = Ratio::mean(&values, None).unwrap();
            let bounds = [one, paired].map(|ratio| ratio.bounds(Alpha::FIVE_PERCENT));
            assert!((bounds[0].lower - bounds[1].lower).abs() < 1e-12);
            assert!((bounds[0].upper - bounds[1].upper).abs() < 1e-12);
            let shifted: Vec<f64> =
                values.iter().zip(&strata).map(|(v, s)| if *s == 0 { v + 5.0 } else { *v }).collect();
            let shifted = Ratio::stratified(&shifted, &ones, &strata).unwrap().estimate();
            assert!(shifted.value > estimate.value + 0.1 && (shifted.stderr - estimate.stderr).abs() < 1e-9);
        }
        assert_eq!(Ratio::stratified(&[0.1, 0.2, 0.3], &[1.0; 3], &[0, 0, 1]), None);
    }

    #[test]
    fn too_little_data_is_none() {
        assert_eq!(Ratio::mean(&[0.1], None), None);
        assert_eq!(Ratio::mean(&[0.1, 0.2, 0.3], Some(&[7, 7, 7])), None);
        assert_eq!(Ratio::mean(&[0.1, f64::NAN], None), None);
        assert_eq!(Ratio::new(&[0.1, 0.2], &[1.0], None), None);
    }

    #[test]
    fn a_denominator_that_may_be_zero_bounds_nothing() {
        let ratio = Ratio::new(&[0.1, 0.2, 0.1, 0.3], &[1.0, -1.0, 1.0, -0.9], None).unwrap();
        assert_eq!(ratio.bounds(Alpha::FIVE_PERCENT), Bounds::NONE);
    }

    proptest! {
        #[test]
        fn bounds_and_test_agree(values in prop::collection::vec(-1.0f64..1.0, 3..60), m in -0.5f64..0.5) {
            let ratio = Ratio::mean(&values, None).unwrap();
            let bounds = ratio.bounds(Alpha::FIVE_PERCENT);
            prop_assert!(bounds.lower <= ratio.estimate().value && ratio.estimate().value <= bounds.upper);
            if (bounds.lower - m).abs() > 1e-9 {
                prop_assert_eq!(bounds.lower > m, ratio.p_at_most(m) < 0.05);
            }
            let negated: Vec<f64> = values.iter().map(|v| -v).collect();
            let other = Ratio::mean(&negated, None).unwrap().bounds(Alpha::FIVE_PERCENT);
            prop_assert!((bounds.lower + other.upper).abs() < 1e-12);
        }
    }
}

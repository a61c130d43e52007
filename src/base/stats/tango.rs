//! Tango's score test and interval for the difference of two paired proportions.
//!
//! T(m) = (b − c − n·m) / √(n·(2q + m(1 − m))), where q is the maximum-likelihood estimate of P(right only on the
//! candidate) under P(b) − P(c) = m: q = (√(B² − 4AC) − B)/(2A) with A = 2n, B = −b − c + (2n − b + c)·m and
//! C = −c·m(1 − m). At m = 0 this is McNemar's statistic; it stays valid with no flips at all, where the interval of
//! the paired t test has width zero.
//!
//! The upper bound alone falsely shows a drop to be below a margin too often where flips are rare: at n 268, m 0.01 and a
//! flip rate of 0.01 in 6.8 % of cases at a nominal 5 %, by exact enumeration. What decides ([`PairedCounts::bounds`])
//! therefore also keeps the exact binomial test of m: if every lost item counted and no gained one made up for it, the
//! number of lost items would be Binomial(n, m), so m is rejected only if P(Binomial(n, m) ≤ max(b − c, 0)) is below the
//! level, too. With both, the error at the margin is at most 5.3 % over all n and flip rates that were enumerated.
//!
//! Sources: C. J. Clopper, E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the
//! binomial, Biometrika 26 (1934), 404–413; T. Tango, Equivalence test and confidence interval for the difference in proportions for the
//! paired-sample design, Statistics in Medicine 17 (1998), 891–908.

use statrs::distribution::{Binomial, DiscreteCDF};

use super::level::{Alpha, Bounds, Estimate, normal_cdf};

/// Counts of paired 0/1 items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairedCounts {
    n: u64,
    b: u64,
    c: u64,
}

impl PairedCounts {
    /// `n` pairs, `b` right only on the baseline, `c` right only on the candidate; `None` unless n ≥ 1 and b + c ≤ n.
    pub fn new(n: u64, b: u64, c: u64) -> Option<Self> {
        (n > 0 && b.checked_add(c)? <= n).then_some(Self { n, b, c })
    }

    /// Pairs.
    pub fn n(self) -> u64 {
        self.n
    }

    /// Pairs right only on the baseline.
    pub fn b(self) -> u64 {
        self.b
    }

    /// Pairs right only on the candidate.
    pub fn c(self) -> u64 {
        self.c
    }

    /// Share of pairs that changed either way.
    pub fn flip_rate(self) -> f64 {
        (self.b + self.c) as f64 / self.n as f64
    }

    /// The drop (b − c)/n, with the standard error of the mean of the differences in {−1, 0, 1}.
    pub fn drop(self) -> Estimate {
        let (n, b, c) = self.as_f64();
        let value = (b - c) / n;
        let variance = (b + c - (b - c) * value) / (n - 1.0).max(1.0);
        Estimate { value, stderr: (variance / n).sqrt(), n: self.n as usize }
    }

    /// T(m): standardized distance of the observed drop above the hypothetical drop `m` in [−1, 1].
    pub fn tango_statistic(self, m: f64) -> f64 {
        if m < 0.0 {
            return -self.swapped().tango_statistic(-m);
        }
        let (n, b, c) = self.as_f64();
        let spread = m * (1.0 - m);
        let linear = (2.0 * n - b + c) * m - b - c;
        let root = (linear * linear + 8.0 * n * c * spread).sqrt();
        // The two forms of the same root; each avoids subtracting nearly equal numbers.
        let q = if linear > 0.0 { 2.0 * c * spread / (linear + root) } else { (root - linear) / (4.0 * n) };
        let distance = b - c - n * m;
        let variance = n * (2.0 * q + spread);
        match distance {
            0.0 => 0.0,
            _ if variance > 0.0 => distance / variance.sqrt(),
            d => d.signum() * f64::INFINITY,
        }
    }

    /// Bounds of the drop: {m: |T(m)| ≤ z₁₋α}.
    pub fn tango_bounds(self, alpha: Alpha) -> Bounds {
        let z = alpha.z();
        Bounds { lower: -self.swapped().tango_upper(z), upper: self.tango_upper(z) }
    }

    /// Bounds that decide: Tango's, the upper one not below the exact binomial one.
    pub fn bounds(self, alpha: Alpha) -> Bounds {
        let Bounds { lower, upper } = self.tango_bounds(alpha);
        Bounds { lower, upper: self.exact_upper(alpha, upper) }
    }

    /// p-value of H₀ "the drop is at least `m`" by both tests: the larger one. It is below a level where the upper bound
    /// of [`Self::bounds`] is below `m`.
    pub fn p_within(self, m: f64) -> f64 {
        self.p_at_least(m).max(self.p_few_lost(m))
    }

    /// P(Binomial(n, `m`) ≤ max(b − c, 0)); 1 for an `m` that is no share.
    fn p_few_lost(self, m: f64) -> f64 {
        Binomial::new(m, self.n).map_or(1.0, |lost| lost.cdf(self.b.saturating_sub(self.c)))
    }

    /// The least m above `least` that the binomial test rejects; the test's p-value falls with m.
    fn exact_upper(self, alpha: Alpha, least: f64) -> f64 {
        let rejects = |m| self.p_few_lost(m) < alpha.value();
        if least >= 0.0 && rejects(least) { least } else { first_rejected(least.max(0.0), rejects) }
    }

    /// p-value of H₀ "the drop is at most `m`"; small means shown to be worse than `m`.
    pub fn p_at_most(self, m: f64) -> f64 {
        normal_cdf(-self.tango_statistic(m))
    }

    /// p-value of H₀ "the drop is at least `m`"; small means shown to be better than `m`.
    pub fn p_at_least(self, m: f64) -> f64 {
        normal_cdf(self.tango_statistic(m))
    }

    /// The m above the estimate with T(m) = −z; T falls monotonically.
    fn tango_upper(self, z: f64) -> f64 {
        if self.b == self.n {
            1.0
        } else {
            first_rejected(self.drop().value, |m| self.tango_statistic(m) <= -z)
        }
    }

    fn swapped(self) -> Self {
        Self { n: self.n, b: self.c, c: self.b }
    }

    fn as_f64(self) -> (f64, f64, f64) {
        (self.n as f64, self.b as f64, self.c as f64)
    }
}

/// The least m in (`low`, 1] that a test rejects which rejects all larger ones, too; 1 where it rejects none. Bisection
/// ends at two neighbouring floats, of which the larger is the one that is rejected.
fn first_rejected(mut low: f64, rejects: impl Fn(f64) -> bool) -> f64 {
    let mut high = 1.0;
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return high;
        }
        if rejects(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(n: u64, b: u64, c: u64, alpha: f64) -> Bounds {
        PairedCounts::new(n, b, c).unwrap().tango_bounds(Alpha::new(alpha).unwrap())
    }

    /// R 4.6.1, PropCIs 0.3-0, `scoreci.mp`: (right only on A, right only on B, n, two-sided level, lower, upper).
    /// As published with 17 digits in rNLKJA/Australia-Social-Media-Analytics-on-the-Cloud at fdfd12662,
    /// web/src/lib/__fixtures__/paired-diff-parity.json; that package searches in steps and stops within 3e-7.
    #[test]
    fn agrees_with_propcis() {
        let cases = [
            (7, 0, 14, 0.95, 0.177_033_782_0, 0.732_007_920_7),
            (0, 7, 14, 0.95, -0.732_007_980_3, -0.177_033_871_4),
            (0, 0, 14, 0.95, -0.215_310_812_0, 0.215_310_752_4),
            (3, 2, 14, 0.95, -0.261_077_727_6, 0.388_996_298_8),
            (1, 0, 14, 0.95, -0.159_261_584_3, 0.314_687_077_5),
            (5, 5, 16, 0.95, -0.367_506_980_9, 0.367_506_802_1),
            (13, 1, 14, 0.95, 0.370_626_177_1, 0.974_555_628_6),
            (14, 0, 14, 0.95, 0.569_378_376_0, 1.0),
            (0, 14, 14, 0.95, -1.0, -0.569_378_435_6),
            (2, 9, 20, 0.95, -0.601_631_569_9, -0.027_414_342_8),
            (10, 3, 50, 0.95, -0.001_497_747_9, 0.285_474_890_5),
            (4, 1, 28, 0.95, -0.064_475_076_5, 0.289_295_130_5),
            (6, 2, 42, 0.95, -0.043_753_317_4, 0.242_635_377_8),
            (1, 1, 2, 0.95, -0.810_937_643_1, 0.810_937_583_4),
            (25, 12, 200, 0.95, 0.005_635_504_7, 0.126_941_099_5),
            (7, 0, 14, 0.90, 0.257_067_680_4, 0.701_218_068_6),
            (0, 0, 14, 0.90, -0.161_954_879_8, 0.161_954_820_2),
            (13, 1, 14, 0.90, 0.468_848_364_7, 0.967_800_208_5),
            (2, 9, 20, 0.90, -0.566_550_540_9, -0.084_052_941_2),
            (25, 12, 200, 0.90, 0.015_476_455_4, 0.116_446_518_6),
        ];
        for (b, c, n, level, lower, upper) in cases {
            let found = bounds(n, b, c, (1.0 - level) / 2.0);
            assert!((found.lower - lower).abs() < 5e-7, "{b} {c} {n}: {found:?}");
            assert!((found.upper - upper).abs() < 5e-7, "{b} {c} {n}: {found:?}");
        }
    }

    /// Published as n 21, 1 against 7 pairs, 95 %: −0.517 to −0.026; the fourth decimals are those of the numerical
    /// maximum likelihood of `golden/golden.py`.
    #[test]
    fn agrees_with_a_published_example() {
        let found = bounds(21, 1, 7, 0.025);
        assert!((found.lower + 0.5172).abs() < 5e-5 && (found.upper + 0.0260).abs() < 5e-5, "{found:?}");
    }

    /// Fagerland, Lydersen, Laake, The Statistical Analysis of Contingency Tables, chapter 8; R contingencytables
    /// 3.0.0, test of chapter 8: complete response before and after consolidation therapy (Cavo et al. 2012), the
    /// table (59, 6, 16, 80): −0.0621 (95 % CI −0.1240 to −0.0054).
    #[test]
    fn agrees_with_contingencytables() {
        let counts = PairedCounts::new(161, 6, 16).unwrap();
        let found = counts.tango_bounds(Alpha::new(0.025).unwrap());
        assert!((counts.drop().value + 0.0621).abs() < 5e-5);
        assert!((found.lower + 0.1240).abs() < 5e-5 && (found.upper + 0.0054).abs() < 5e-5, "{found:?}");
        // McNemar's asymptotic test is the same statistic at m = 0: Z = −2.132, two-sided P = 0.033006.
        assert!((counts.tango_statistic(0.0) + 2.132).abs() < 5e-4);
        assert!((2.0 * counts.p_at_least(0.0) - 0.033_006).abs() < 5e-7);
    }

    /// `golden/golden.py`: the constrained maximum found numerically by scipy, not by the closed form.
    #[test]
    fn agrees_with_numerical_maximum_likelihood() {
        for case in crate::base::stats::tests::golden("tango") {
            let at = |name: &str| case[name].as_f64().unwrap();
            let int = |name: &str| case[name].as_u64().unwrap();
            let counts = PairedCounts::new(int("n"), int("b"), int("c")).unwrap();
            let found = counts.tango_bounds(Alpha::new(at("alpha")).unwrap());
            for (name, value) in [("lower", found.lower), ("upper", found.upper)] {
                assert!((value - at(name)).abs() < 1e-8, "{case}: {name} {value}");
            }
            for (name, value) in
                [("p_at_most", counts.p_at_most(at("m"))), ("p_at_least", counts.p_at_least(at("m")))]
            {
                assert!((value - at(name)).abs() < 1e-7, "{case}: {name} {value}");
            }
        }
    }

    #[test]
    fn no_flips_is_the_rule_of_z_squared() {
        // T(m) = −√(n·m/(1 − m)) without flips, so the bound is z²/(n + z²).
        let z = Alpha::FIVE_PERCENT.z();
        let found = bounds(4000, 0, 0, 0.05);
        assert!((found.upper - z * z / (4000.0 + z * z)).abs() < 1e-15);
        assert_eq!(found.lower, -found.upper);
    }

    /// ln k! for k = 0..=n.
    fn log_factorials(n: usize) -> Vec<f64> {
        let mut sum = 0.0;
        std::iter::once(0.0)
            .chain((1..=n).map(|k| {
                sum += (k as f64).ln();
                sum
            }))
            .collect()
    }

    /// P(`shown`) over all counts of `n` items that flip with probability `psi` and drop by `margin` in truth, by
    /// enumeration: lost, gained and unchanged items are multinomial. `shown` falls with the lost items.
    fn rate(n: u64, psi: f64, margin: f64, shown: impl Fn(PairedCounts) -> bool) -> f64 {
        let (lost, gained) = (f64::midpoint(psi, margin), (psi - margin) / 2.0);
        let log_factorial = log_factorials(n as usize);
        // 0 · ln 0 = 0: without a gain in truth none is observed.
        let power = |count: u64, p: f64| if count == 0 { 0.0 } else { count as f64 * p.ln() };
        let mut sum = 0.0;
        for c in 0..=n {
            let shown =
                (0..=n - c).map(|b| PairedCounts::new(n, b, c).unwrap()).take_while(|counts| shown(*counts));
            let mass: f64 = shown
                .map(|counts| {
                    let (b, same) = (counts.b(), n - counts.b() - c);
                    let log = log_factorial[n as usize]
                        - log_factorial[b as usize]
                        - log_factorial[c as usize]
                        - log_factorial[same as usize];
                    (log + power(b, lost) + power(c, gained) + power(same, 1.0 - psi)).exp()
                })
                .sum();
            sum += mass;
            // Gained items are Binomial(n, gained): past eight standard deviations there is no mass left.
            let mean = n as f64 * gained;
            if c as f64 > mean + 8.0 * mean.sqrt() + 8.0 {
                break;
            }
        }
        sum
    }

    /// At a true drop of exactly the margin, "shown to be below it" is the error that publishes a damaged model.
    #[test]
    fn false_acceptance_at_the_margin_is_near_the_level() {
        let alpha = Alpha::FIVE_PERCENT;
        let mut worst = 0.0f64;
        for psi in [0.01, 0.0105, 0.011, 0.012, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1] {
            for n in [268, 298, 299, 300, 356, 367, 457, 493, 628, 672, 1172, 1333] {
                let found = rate(n, psi, 0.01, |counts| counts.p_within(0.01) < alpha.value());
                assert!(found <= 0.053, "n {n}, flip rate {psi}: {found}");
                worst = worst.max(found);
            }
        }
        assert!(worst > 0.045, "the enumeration saw no false acceptance: {worst}");
        // What Tango's test alone does, as found by an independent enumeration with scipy.
        for (psi, expected) in [(0.01, 0.067_644), (0.011, 0.060_476), (0.012, 0.056_314), (0.02, 0.052_767)]
        {
            let alone = rate(268, psi, 0.01, |counts| counts.p_at_least(0.01) < alpha.value());
            assert!((alone - expected).abs() < 2e-6, "flip rate {psi}: {alone}");
        }
    }

    #[test]
    fn what_decides_is_not_below_the_exact_bound() {
        let alpha = Alpha::FIVE_PERCENT;
        let upper = |n, b, c| PairedCounts::new(n, b, c).unwrap().bounds(alpha).upper;
        // Without a lost item the exact bound is 1 − α^(1/n).
        assert!((upper(299, 0, 0) - (1.0 - 0.05f64.powf(1.0 / 299.0))).abs() < 1e-12);
        assert!(upper(299, 0, 0) < 0.01 && upper(298, 0, 0) >= 0.01);
        assert_eq!(upper(299, 0, 5), upper(299, 0, 0), "gains make up for no more than the losses");
        // Clopper and Pearson's upper limit of 3 in 1,000 at 95 % one-sided: scipy.stats.beta.ppf(0.95, 4, 997).
        assert!((upper(1000, 3, 0) - 0.007_735_244_7).abs() < 1e-6, "{}", upper(1000, 3, 0));
        // Where flips are many Tango's is the wider one.
        let counts = PairedCounts::new(1000, 40, 30).unwrap();
        assert_eq!(counts.bounds(alpha), counts.tango_bounds(alpha));
    }

    #[test]
    fn impossible_counts_are_refused() {
        assert_eq!(PairedCounts::new(0, 0, 0), None);
        assert_eq!(PairedCounts::new(3, 2, 2), None);
        assert_eq!(PairedCounts::new(3, u64::MAX, 1), None);
    }

    fn counts() -> impl Strategy<Value = PairedCounts> {
        (1u64..20_000)
            .prop_flat_map(|n| (Just(n), 0..=n))
            .prop_flat_map(|(n, flips)| (Just(n), Just(flips), 0..=flips))
            .prop_map(|(n, flips, b)| PairedCounts::new(n, b, flips - b).unwrap())
    }

    proptest! {
        #[test]
        fn bounds_enclose_the_estimate_and_the_tests(counts in counts(), m in -0.999f64..0.999) {
            let alpha = Alpha::FIVE_PERCENT;
            let found = counts.tango_bounds(alpha);
            let drop = counts.drop();
            prop_assert!(-1.0 <= found.lower && found.lower <= drop.value, "{:?}", found);
            prop_assert!(drop.value <= found.upper && found.upper <= 1.0, "{:?}", found);
            prop_assert!(drop.stderr.is_finite());
            let away = |bound: f64| (bound - m).abs() > 1e-9;
            if away(found.upper) {
                prop_assert_eq!(found.upper < m, counts.p_at_least(m) < alpha.value());
            }
            if away(found.lower) {
                prop_assert_eq!(found.lower > m, counts.p_at_most(m) < alpha.value());
            }
        }

        #[test]
        fn bounds_that_decide_agree_with_their_tests(counts in counts(), m in 0.001f64..0.999) {
            let alpha = Alpha::FIVE_PERCENT;
            let (found, tango) = (counts.bounds(alpha), counts.tango_bounds(alpha));
            prop_assert!(found.lower == tango.lower && found.upper >= tango.upper && found.upper <= 1.0);
            if (found.upper - m).abs() > 1e-9 {
                prop_assert_eq!(found.upper < m, counts.p_within(m) < alpha.value());
            }
        }

        #[test]
        fn a_stricter_level_is_wider(counts in counts(), a in 0.001f64..0.49, b in 0.001f64..0.49) {
            let (strict, loose) = (a.min(b), a.max(b));
            let wide = counts.tango_bounds(Alpha::new(strict).unwrap());
            let narrow = counts.tango_bounds(Alpha::new(loose).unwrap());
            prop_assert!(wide.lower <= narrow.lower && narrow.upper <= wide.upper);
        }

        #[test]
        fn swapping_the_arms_negates(counts in counts()) {
            let found = counts.tango_bounds(Alpha::FIVE_PERCENT);
            let other = counts.swapped().tango_bounds(Alpha::FIVE_PERCENT);
            prop_assert_eq!((found.lower, found.upper), (-other.upper, -other.lower));
        }

        #[test]
        fn one_more_loss_raises_the_bound(counts in counts()) {
            let Some(worse) = PairedCounts::new(counts.n(), counts.b() + 1, counts.c()) else { return Ok(()) };
            let alpha = Alpha::FIVE_PERCENT;
            prop_assert!(worse.tango_bounds(alpha).upper >= counts.tango_bounds(alpha).upper);
        }
    }
}

//! Tango's score test and interval for the difference of two paired proportions.
//!
//! T(m) = (b − c − n·m) / √(n·(2q + m(1 − m))), where q is the maximum-likelihood estimate of P(right only on the
//! candidate) under P(b) − P(c) = m: q = (√(B² − 4AC) − B)/(2A) with A = 2n, B = −b − c + (2n − b + c)·m and
//! C = −c·m(1 − m). At m = 0 this is McNemar's statistic; it stays valid with no flips at all, where the interval of
//! the paired t test has width zero.
//!
//! Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the
//! paired-sample design, Statistics in Medicine 17 (1998), 891–908.

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

    /// p-value of H₀ "the drop is at most `m`"; small means shown to be worse than `m`.
    pub fn p_at_most(self, m: f64) -> f64 {
        normal_cdf(-self.tango_statistic(m))
    }

    /// p-value of H₀ "the drop is at least `m`"; small means shown to be better than `m`.
    pub fn p_at_least(self, m: f64) -> f64 {
        normal_cdf(self.tango_statistic(m))
    }

    /// The m above the estimate with T(m) = −z. T falls monotonically, so bisection ends at two neighbouring floats,
    /// of which the larger is returned: it is the one that T rejects.
    fn tango_upper(self, z: f64) -> f64 {
        let (mut low, mut high) = (self.drop().value, 1.0);
        if self.b == self.n {
            return 1.0;
        }
        loop {
            let middle = f64::midpoint(low, high);
            if middle <= low || middle >= high {
                return high;
            }
            if self.tango_statistic(middle) > -z {
                low = middle;
            } else {
                high = middle;
            }
        }
    }

    fn swapped(self) -> Self {
        Self { n: self.n, b: self.c, c: self.b }
    }

    fn as_f64(self) -> (f64, f64, f64) {
        (self.n as f64, self.b as f64, self.c as f64)
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

    /// At a true drop of exactly the margin, "shown to be below it" is the error that publishes a damaged model. Its
    /// rate stays near the nominal 5 % where flips are rare, where the paired t interval has 8.6 %.
    #[test]
    fn false_acceptance_at_the_margin_is_near_the_level() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(20260);
        for (n, flip_rate) in [(300, 0.02), (1172, 0.02), (1172, 0.05)] {
            let lost = f64::midpoint(flip_rate, 0.01);
            let gained = flip_rate - lost;
            let trials = 2000;
            let accepted = (0..trials).filter(|_| {
                let (mut b, mut c) = (0, 0);
                for _ in 0..n {
                    let draw: f64 = rng.random();
                    b += u64::from(draw < lost);
                    c += u64::from((lost..lost + gained).contains(&draw));
                }
                bounds(n, b, c, 0.05).upper < 0.01
            });
            let rate = accepted.count() as f64 / f64::from(trials);
            assert!((0.025..0.06).contains(&rate), "n {n}, flip rate {flip_rate}: {rate}");
        }
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

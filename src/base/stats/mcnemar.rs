//! McNemar's test on the flips of paired 0/1 items, exact and mid-p.
//!
//! Given b + c flips, b is Binomial(b + c, 1/2) under "no change". The exact test keeps its level but is
//! conservative; mid-p counts half of the observed outcome's probability and is close to the level.
//!
//! Source: M. Fagerland, S. Lydersen, P. Laake, The McNemar test for binary matched-pairs data, BMC Medical Research
//! Methodology 13:91 (2013).

use statrs::distribution::{Binomial, Discrete, DiscreteCDF};

/// p-values of H₀ "the candidate is as often right as the baseline".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct McNemar {
    /// Exact, against "the candidate is worse": P(X ≥ b).
    pub exact_worse: f64,
    /// Exact, two-sided.
    pub exact_two_sided: f64,
    /// Mid-p, against "the candidate is worse": P(X ≥ b) − P(X = b)/2.
    pub mid_p_worse: f64,
    /// Mid-p, two-sided.
    pub mid_p_two_sided: f64,
    /// Number of flips, b + c.
    pub n: usize,
}

/// McNemar's test for `b` items right only on the baseline and `c` right only on the candidate.
pub fn mcnemar(b: u64, c: u64) -> McNemar {
    let flips = b.saturating_add(c);
    let Ok(binomial) = Binomial::new(0.5, flips) else {
        return McNemar {
            exact_worse: 1.0,
            exact_two_sided: 1.0,
            mid_p_worse: 1.0,
            mid_p_two_sided: 1.0,
            n: 0,
        };
    };
    // By symmetry P(X ≥ b) = P(X ≤ c).
    let worse = binomial.cdf(c);
    let tail = binomial.cdf(b.min(c));
    McNemar {
        exact_worse: worse.min(1.0),
        exact_two_sided: (2.0 * tail).min(1.0),
        mid_p_worse: worse - 0.5 * binomial.pmf(c),
        mid_p_two_sided: (2.0 * tail - binomial.pmf(b.min(c))).min(1.0),
        n: flips as usize,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// R contingencytables 3.0.0, test of chapter 8, the table (59, 6, 16, 80).
    #[test]
    fn agrees_with_contingencytables() {
        let found = mcnemar(6, 16);
        assert!((found.exact_two_sided - 0.052_479).abs() < 5e-7);
        assert!((found.mid_p_two_sided - 0.034_690).abs() < 5e-7);
    }

    /// `golden/golden.py`: scipy.stats.binomtest and statsmodels' mcnemar(exact=True).
    #[test]
    fn agrees_with_scipy_and_statsmodels() {
        for case in crate::base::stats::tests::golden("mcnemar") {
            let int = |name: &str| case[name].as_u64().unwrap();
            let found = mcnemar(int("b"), int("c"));
            for (name, value) in [
                ("exact_worse", found.exact_worse),
                ("exact_two_sided", found.exact_two_sided),
                ("mid_p_worse", found.mid_p_worse),
                ("mid_p_two_sided", found.mid_p_two_sided),
            ] {
                assert!((value - case[name].as_f64().unwrap()).abs() < 1e-10, "{case}: {name} {value}");
            }
        }
    }

    proptest! {
        #[test]
        fn p_values_are_probabilities(b in 0u64..5000, c in 0u64..5000) {
            let found = mcnemar(b, c);
            for p in [found.exact_worse, found.exact_two_sided, found.mid_p_worse, found.mid_p_two_sided] {
                prop_assert!((0.0..=1.0).contains(&p), "{:?}", found);
            }
            prop_assert!(found.mid_p_worse <= found.exact_worse);
        }
    }
}

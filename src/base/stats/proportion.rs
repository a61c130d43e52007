//! Wilson's score interval for one proportion.
//!
//! Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209–212.

use super::level::{Alpha, Bounds};

/// Bounds of a proportion of which `right` of `n` were seen: {p : |p̂ − p| ≤ z₁₋α·√(p(1 − p)/n)}. 0 to 1 without items.
pub fn wilson(right: f64, n: u64, alpha: Alpha) -> Bounds {
    if n == 0 {
        return Bounds { lower: 0.0, upper: 1.0 };
    }
    let (n, z2) = (n as f64, alpha.z().powi(2));
    let share = right / n;
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = (z2 * (share * (1.0 - share) / n + z2 / (4.0 * n * n))).sqrt() / (1.0 + z2 / n);
    Bounds { lower: (middle - half).max(0.0), upper: (middle + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/golden.py`: statsmodels' proportion_confint(method="wilson").
    #[test]
    fn agrees_with_statsmodels() {
        for case in crate::base::stats::tests::golden("wilson") {
            let at = |name: &str| case[name].as_f64().unwrap();
            let found = wilson(at("right"), case["n"].as_u64().unwrap(), Alpha::new(at("alpha")).unwrap());
            assert!((found.lower - at("lower")).abs() < 1e-12, "{case} {found:?}");
            assert!((found.upper - at("upper")).abs() < 1e-12, "{case} {found:?}");
        }
    }

    /// R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998),
    /// table I: 81/263, 15/148, 0/20 and 1/29 at 95 %.
    #[test]
    fn agrees_with_newcombe() {
        let alpha = Alpha::new(0.025).unwrap();
        for (right, n, lower, upper) in [
            (81.0, 263, 0.2553, 0.3662),
            (15.0, 148, 0.0624, 0.1605),
            (0.0, 20, 0.0, 0.1611),
            (1.0, 29, 0.0061, 0.1718),
        ] {
            let found = wilson(right, n, alpha);
            assert!((found.lower - lower).abs() < 5e-5 && (found.upper - upper).abs() < 5e-5, "{found:?}");
        }
        assert_eq!(wilson(0.0, 0, alpha), Bounds { lower: 0.0, upper: 1.0 });
    }
}

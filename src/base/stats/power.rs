//! What a comparison of n items can show, and how many items a margin needs.
//!
//! Normal approximation for a one-sided paired test at level α with power 1 − β: the detectable effect is
//! (z₁₋α + z₁₋β)·stderr and n = (z₁₋α + z₁₋β)²·σ²/distance², σ² being the variance of one paired difference (for 0/1
//! items ψ − δ², about the flip rate ψ). E. Miller, arXiv 2411.00640, section 5; for flips R. Kübler et al., arXiv
//! 2602.10144. With no flips the normal approximation knows nothing; Tango's bound z²/(n + z²) is then the floor.

use super::level::{Alpha, normal_quantile};

/// Power that plans aim at.
pub const POWER: f64 = 0.8;

/// Smallest true effect shown with probability [`POWER`], given the standard error of the difference.
pub fn minimal_detectable(stderr: f64, alpha: Alpha) -> f64 {
    quantiles(alpha) * stderr
}

/// Items needed to tell a true effect from a margin `distance` away with probability [`POWER`]; `variance` is that
/// of one paired difference. `None` when no number of items suffices.
pub fn needed_n(variance: f64, distance: f64, alpha: Alpha) -> Option<u64> {
    let n = quantiles(alpha).powi(2) * variance / (distance * distance);
    (n.is_finite() && n < u64::MAX as f64).then(|| n.ceil() as u64)
}

/// Tango's upper bound of the drop when none of `n` items flipped: z²/(n + z²).
pub fn zero_flip_bound(n: usize, alpha: Alpha) -> f64 {
    let z2 = alpha.z().powi(2);
    z2 / (n as f64 + z2)
}

/// Items needed to show a drop below `margin` when no item flips: the least n with z²/(n + z²) < margin.
pub fn zero_flip_n(margin: f64, alpha: Alpha) -> Option<u64> {
    let z2 = alpha.z().powi(2);
    (margin > 0.0 && margin < 1.0).then(|| (z2 * (1.0 - margin) / margin).floor() as u64 + 1)
}

/// z₁₋α + z₁₋β.
fn quantiles(alpha: Alpha) -> f64 {
    alpha.z() + normal_quantile(POWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/golden.py`: statsmodels' `NormalIndPower` with ratio = 0, which is the one-sample z test.
    #[test]
    fn agrees_with_statsmodels() {
        for case in crate::base::stats::tests::golden("power") {
            let at = |name: &str| case[name].as_f64().unwrap();
            let alpha = Alpha::new(at("alpha")).unwrap();
            let n = needed_n(at("variance"), at("distance"), alpha).unwrap();
            assert_eq!(n as f64, at("n").ceil(), "{case}");
            let detectable = minimal_detectable((at("variance") / at("n")).sqrt(), alpha);
            assert!((detectable - at("distance")).abs() < 1e-6, "{case}");
        }
    }

    #[test]
    fn no_distance_needs_infinitely_many() {
        assert_eq!(needed_n(0.02, 0.0, Alpha::FIVE_PERCENT), None);
        assert_eq!(zero_flip_n(0.0, Alpha::FIVE_PERCENT), None);
    }

    #[test]
    fn without_flips_the_bound_and_the_count_agree() {
        let alpha = Alpha::FIVE_PERCENT;
        let n = zero_flip_n(0.01, alpha).unwrap() as usize;
        assert!(zero_flip_bound(n, alpha) < 0.01 && zero_flip_bound(n - 1, alpha) >= 0.01);
    }
}

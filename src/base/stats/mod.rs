//! Statistics of paired comparisons: pure functions, each with its source, tested against references written by
//! others (`golden/`).
//!
//! Notation: n paired items; of 0/1 items, b are right only on the baseline and c right only on the candidate; the
//! drop is δ = (b − c)/n, the flip rate ψ = (b + c)/n. Bounds are one-sided at level 1 − α on either side.

mod betting;
mod holm;
mod level;
mod mcnemar;
mod power;
mod proportion;
mod ratio;
mod tango;

pub use betting::{Betting, Claim, WaveFlips, betting_bounds};
pub use holm::{benjamini_hochberg, holm};
pub use level::{
    Alpha, AlphaError, Bounds, Estimate, normal_cdf, normal_quantile, student_quantile, student_sf,
};
pub use mcnemar::{McNemar, mcnemar};
pub use power::{POWER, Test, minimal_detectable, needed_n, zero_flip_bound, zero_flip_n};
pub use proportion::wilson;
pub use ratio::Ratio;
pub use tango::PairedCounts;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The cases of one group of `golden/golden.json`, written by `golden/golden.py`.
    pub(super) fn golden(group: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("golden/golden.json")).unwrap();
        let cases = all[group].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        cases
    }

    /// scipy.stats.norm.ppf, t.ppf and t.sf.
    #[test]
    fn quantiles_agree_with_scipy() {
        for case in golden("quantiles") {
            let at = |name: &str| case[name].as_f64().unwrap();
            // statrs inverts the incomplete beta function to about 3e-9.
            let close =
                |found: f64, expected: f64| (found - expected).abs() <= 5e-9 * expected.abs().max(1.0);
            let df = case["df"].as_u64().unwrap() as usize;
            assert!(close(normal_quantile(at("p")), at("normal")), "{case}");
            assert!(close(student_quantile(at("p"), df), at("student")), "{case}");
            assert!(close(student_sf(at("normal"), df), at("student_sf")), "{case}");
            assert!(close(normal_cdf(at("normal")), at("p")), "{case}");
        }
    }

    #[test]
    fn a_level_is_between_zero_and_one_half() {
        for bad in [0.0, 0.5, -0.05, 1.0, f64::NAN] {
            assert!(Alpha::new(bad).is_err(), "{bad}");
        }
        assert!((Alpha::FIVE_PERCENT.z() - 1.644_853_626_951_472_2).abs() < 1e-12);
    }
}

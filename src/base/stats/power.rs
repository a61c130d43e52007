//! What a comparison of n items can show, and how many items a margin needs.
//!
//! Normal approximation for a one-sided paired test at level α with power 1 − β: the detectable effect is
//! (z₁₋α + z₁₋β)·stderr and n = (z₁₋α + z₁₋β)²·σ²/distance², σ² being the variance of one paired difference (for 0/1
//! items ψ − δ², about the flip rate ψ). E. Miller, arXiv 2411.00640, section 5; for flips R. Kübler et al., arXiv
//! 2602.10144. With no flips the normal approximation knows nothing; the larger of Tango's bound z²/(n + z²) and the exact
//! binomial one 1 − α^(1/n) is then the floor (`tango`).
//!
//! The betting test (`betting`) plans by the same formulas with z₁₋β + √(z₁₋β² + 2·ln(1/α)) in place of z₁₋α + z₁₋β: at
//! Kelly's bet the log wealth after n items is about normal with mean g = n·distance²/(2σ²) and variance 2g, and g
//! exceeds ln(1/α) by z₁₋β·√(2g) from √(2g) = that sum on. T. M. Cover, J. A. Thomas, Elements of Information Theory,
//! second edition, section 16.2 (the growth rate of log-optimal bets), and the delta method.

use super::betting::{Betting, Claim, WaveFlips, betting_bounds};
use super::level::{Alpha, normal_quantile};

/// Power that plans aim at.
pub const POWER: f64 = 0.8;

/// The test that decides what is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The interval of a fixed number of items.
    Interval,
    /// The betting test, which may be looked at at any time.
    Betting,
}

/// Smallest true effect that `test` shows with probability [`POWER`], given the standard error of the difference.
pub fn minimal_detectable(test: Test, stderr: f64, alpha: Alpha) -> f64 {
    quantiles(test, alpha) * stderr
}

/// Items that `test` needs to tell a true effect from a margin `distance` away with probability [`POWER`]; `variance` is
/// that of one paired difference. `None` when no number of items suffices.
pub fn needed_n(test: Test, variance: f64, distance: f64, alpha: Alpha) -> Option<u64> {
    let n = quantiles(test, alpha).powi(2) * variance / (distance * distance);
    (n.is_finite() && n < u64::MAX as f64).then(|| n.ceil() as u64)
}

/// Upper bound of the drop when none of `n` items flipped: of the interval the larger of z²/(n + z²) and 1 − α^(1/n).
pub fn zero_flip_bound(test: Test, n: usize, alpha: Alpha) -> f64 {
    let z2 = alpha.z().powi(2);
    match test {
        Test::Interval => (z2 / (n as f64 + z2)).max(-(alpha.value().ln() / n as f64).exp_m1()),
        Test::Betting => {
            let mut left = n as u64;
            let waves = quiet_waves().map_while(|wave| {
                let items = wave.n.min(left);
                left -= items;
                (items > 0).then_some(WaveFlips { n: items, ..wave })
            });
            betting_bounds(&waves.collect::<Vec<_>>(), alpha.value()).upper
        }
    }
}

/// Items that `test` needs to show a drop below `margin` when no item flips. Of the interval the least n whose
/// [`zero_flip_bound`] is below it, which is the larger of those with z²/(n + z²) < margin and with (1 − margin)ⁿ < α; of
/// the betting test that of the first look that shows it.
pub fn zero_flip_n(test: Test, margin: f64, alpha: Alpha) -> Option<u64> {
    if !(margin > 0.0 && margin < 1.0) {
        return None;
    }
    let above = |n: f64| n.floor() as u64 + 1;
    match test {
        Test::Interval => {
            let tango = alpha.z().powi(2) * (1.0 - margin) / margin;
            let exact = alpha.value().ln() / (-margin).ln_1p();
            Some(above(tango).max(above(exact)))
        }
        Test::Betting => {
            let mut betting = Betting::new(Claim::Within, margin);
            let mut visited = 0;
            quiet_waves().take(QUIET_WAVES).find_map(|wave| {
                betting.push(wave);
                visited += wave.n;
                (betting.log_max() >= -alpha.value().ln()).then_some(visited)
            })
        }
    }
}

/// Looks until which a plan waits: after them more than 10¹³ items were visited.
const QUIET_WAVES: usize = 500;

/// Waves without a flip, each a sixteenth of the items before it.
fn quiet_waves() -> impl Iterator<Item = WaveFlips> {
    let wave = |visited: u64| WaveFlips { n: (visited / 16).max(1), lost: 0, gained: 0 };
    std::iter::successors(Some((0, wave(0))), move |(visited, last)| {
        let visited = visited + last.n;
        Some((visited, wave(visited)))
    })
    .map(|(_, wave)| wave)
}

/// Standard errors between a margin and the effect that is shown with probability [`POWER`].
fn quantiles(test: Test, alpha: Alpha) -> f64 {
    let power = normal_quantile(POWER);
    match test {
        Test::Interval => alpha.z() + power,
        Test::Betting => power + (power * power - 2.0 * alpha.value().ln()).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::PairedCounts;
    use super::*;

    /// `golden/golden.py`: statsmodels' `NormalIndPower` with ratio = 0, which is the one-sample z test.
    #[test]
    fn agrees_with_statsmodels() {
        for case in crate::base::stats::tests::golden("power") {
            let at = |name: &str| case[name].as_f64().unwrap();
            let alpha = Alpha::new(at("alpha")).unwrap();
            let n = needed_n(Test::Interval, at("variance"), at("distance"), alpha).unwrap();
            assert_eq!(n as f64, at("n").ceil(), "{case}");
            let detectable = minimal_detectable(Test::Interval, (at("variance") / at("n")).sqrt(), alpha);
            assert!((detectable - at("distance")).abs() < 1e-6, "{case}");
        }
    }

    #[test]
    fn no_distance_needs_infinitely_many() {
        assert_eq!(needed_n(Test::Interval, 0.02, 0.0, Alpha::FIVE_PERCENT), None);
        assert_eq!(zero_flip_n(Test::Interval, 0.0, Alpha::FIVE_PERCENT), None);
    }

    #[test]
    fn without_flips_the_bound_and_the_count_agree() {
        // The exact bound is the larger one at 5 %, Tango's at 2.5 %.
        for (alpha, expected) in [(Alpha::FIVE_PERCENT, 299), (Alpha::FIVE_PERCENT.part_of(2), 381)] {
            let n = zero_flip_n(Test::Interval, 0.01, alpha).unwrap() as usize;
            assert_eq!(n, expected);
            let bound = |n| zero_flip_bound(Test::Interval, n, alpha);
            assert!(bound(n) < 0.01 && bound(n - 1) >= 0.01);
            let upper = PairedCounts::new(n as u64, 0, 0).unwrap().bounds(alpha).upper;
            assert!((bound(n) - upper).abs() < 1e-12);
        }
    }

    #[test]
    fn betting_without_flips_takes_a_little_longer_than_the_interval() {
        let alpha = Alpha::FIVE_PERCENT.part_of(2);
        let n = zero_flip_n(Test::Betting, 0.01, alpha).unwrap();
        // ln 40 / ln(1 + m/(1 − m)) = 367 items at the least.
        assert!((381..700).contains(&n), "{n}");
        let bound = zero_flip_bound(Test::Betting, n as usize, alpha);
        assert!((0.005..=0.01).contains(&bound), "{bound}");
        assert!(zero_flip_bound(Test::Betting, 300, alpha) > 0.01);
        assert!(zero_flip_n(Test::Betting, 1e-6, alpha).is_some());
        assert_eq!(zero_flip_n(Test::Betting, 0.0, alpha), None);
    }

    /// The planned number of items shows "no drop" in about the planned share of runs.
    #[test]
    fn betting_reaches_the_planned_power() {
        use rand::{Rng as _, SeedableRng as _};
        let (alpha, margin) = (Alpha::FIVE_PERCENT.part_of(2), 0.01);
        for psi in [0.02, 0.05] {
            let n = needed_n(Test::Betting, psi, margin, alpha).unwrap();
            assert!(n > needed_n(Test::Interval, psi, margin, alpha).unwrap());
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
            let shown = (0..400).filter(|_| {
                let mut betting = Betting::new(Claim::Within, margin);
                for _ in 0..n / 32 {
                    let mut wave = WaveFlips { n: 32, lost: 0, gained: 0 };
                    for _ in 0..wave.n {
                        let draw: f64 = rng.random();
                        wave.lost += u64::from(draw < psi / 2.0);
                        wave.gained += u64::from((psi / 2.0..psi).contains(&draw));
                    }
                    betting.push(wave);
                }
                betting.log_max() >= -alpha.value().ln()
            });
            let share = shown.count() as f64 / 400.0;
            assert!((0.7..0.92).contains(&share), "flip rate {psi}: {share} of {n} items");
        }
    }
}

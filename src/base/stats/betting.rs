//! The betting test of a margin: evidence that may be looked at after every wave.
//!
//! Items change by d ∈ {−1, 0, 1} (lost, unchanged, gained; E d = −drop). Against H₀ "the drop is at least m" the wealth
//! Π(1 + λ_w·(d + m)), 0 ≤ λ_w ≤ 1/(1 − m), is a nonnegative supermartingale whatever the bets λ_w, as long as each
//! is fixed before its wave is seen; against "the drop is at most m" it is Π(1 − λ_w·(d + m)), 0 ≤ λ_w ≤ 1/(1 + m). By
//! Ville's inequality the largest wealth over all looks exceeds 1/α with probability at most α under H₀, so the test
//! may stop at any look, and p = min(1, 1/max wealth).
//!
//! The bet is constant within a wave, so the wealth depends on the waves' counts alone, whatever the order inside.
//! Source: I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024), 1–27,
//! sections 2 and 4 (testing by betting, predictable plug-in bets); Kelly's bet is drift over second moment.

use super::level::Bounds;

/// What wealth is evidence for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The drop is below the margin.
    Within,
    /// The drop is above the margin.
    Worse,
}

/// Outcomes of the paired 0/1 items of one wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaveFlips {
    /// Items.
    pub n: u64,
    /// Items right only on the baseline; `lost + gained ≤ n`.
    pub lost: u64,
    /// Items right only on the candidate.
    pub gained: u64,
}

/// Share of the largest admissible bet that is never exceeded, so that no single item takes all wealth.
const LARGEST_BET: f64 = 0.9;
/// Share of Kelly's bet for "no drop at all", which pays less but still grows where there is a small drop.
const CAUTION: f64 = 0.9;

/// Imagined items before the first: bets have to start somewhere, and any start is valid.
struct Prior {
    items: f64,
    flip_rate: f64,
    /// Drop above the margin.
    excess: f64,
}

/// A candidate without damage flips a few percent of the items.
const NO_DROP: Prior = Prior { items: 100.0, flip_rate: 0.05, excess: 0.0 };
/// A damaged candidate loses five points of a 1-point margin's task and flips ten percent.
const DAMAGE: Prior = Prior { items: 200.0, flip_rate: 0.10, excess: 0.04 };

/// The wealth of one claim about one margin.
#[derive(Debug, Clone, PartialEq)]
pub struct Betting {
    claim: Claim,
    margin: f64,
    seen: WaveFlips,
    log_wealth: f64,
    log_max: f64,
}

impl Betting {
    /// Wealth 1 before the first wave; `margin` in (−1, 1).
    pub fn new(claim: Claim, margin: f64) -> Self {
        Self { claim, margin, seen: WaveFlips::default(), log_wealth: 0.0, log_max: 0.0 }
    }

    /// The wealth after all `waves`.
    pub fn over(claim: Claim, margin: f64, waves: &[WaveFlips]) -> Self {
        let mut betting = Self::new(claim, margin);
        for wave in waves {
            betting.push(*wave);
        }
        betting
    }

    /// Bets on one wave.
    pub fn push(&mut self, wave: WaveFlips) {
        let bet = match self.claim {
            Claim::Within => self.bet(),
            Claim::Worse => -self.bet(),
        };
        let same = wave.n.saturating_sub(wave.lost).saturating_sub(wave.gained);
        for (count, change) in [(wave.lost, -1.0), (wave.gained, 1.0), (same, 0.0)] {
            self.log_wealth += count as f64 * (bet * (change + self.margin)).ln_1p();
        }
        self.log_max = self.log_max.max(self.log_wealth);
        self.seen.n += wave.n;
        self.seen.lost += wave.lost;
        self.seen.gained += wave.gained;
    }

    /// ln of the largest wealth so far.
    pub fn log_max(&self) -> f64 {
        self.log_max
    }

    /// p-value of the claim's opposite: min(1, 1/max wealth).
    pub fn p_value(&self) -> f64 {
        (-self.log_max).exp().min(1.0)
    }

    /// |λ| of the next wave, from what was seen before it.
    fn bet(&self) -> f64 {
        let WaveFlips { n, lost, gained } = self.seen;
        let m = self.margin;
        let (lost, gained, n) = (lost as f64, gained as f64, n as f64);
        let (prior, largest) = match self.claim {
            Claim::Within => (&NO_DROP, 1.0 / (1.0 - m)),
            Claim::Worse => (&DAMAGE, 1.0 / (1.0 + m)),
        };
        let flip_rate = (lost + gained + prior.items * prior.flip_rate) / (n + prior.items);
        let kelly = match self.claim {
            Claim::Within => CAUTION * m / (flip_rate + m * m),
            Claim::Worse => {
                let drop = (lost - gained + prior.items * (m + prior.excess)) / (n + prior.items);
                // E(d + m)² = ψ − 2m·drop + m².
                (drop - m) / (flip_rate - 2.0 * m * drop + m * m).max(f64::MIN_POSITIVE)
            }
        };
        kelly.clamp(0.0, LARGEST_BET * largest)
    }
}

/// Bounds of the drop that hold at every look together, each at level 1 − α: the margins whose claims the wealth does
/// not prove. They are wider than a fixed-n interval and need not shrink to it.
pub fn betting_bounds(waves: &[WaveFlips], alpha: f64) -> Bounds {
    let threshold = -alpha.ln();
    let proves = |claim, m| Betting::over(claim, m, waves).log_max() >= threshold;
    // Bisection to far below what a report shows; of the two ends the one that is proven is returned.
    let search = |claim, (mut proven, mut open): (f64, f64)| {
        for _ in 0..40 {
            let middle = f64::midpoint(proven, open);
            if proves(claim, middle) {
                proven = middle;
            } else {
                open = middle;
            }
        }
        proven
    };
    Bounds {
        lower: search(Claim::Worse, (-1.0 + 1e-9, 1.0 - 1e-9)),
        upper: search(Claim::Within, (1.0 - 1e-9, 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// E wealth = 1 exactly at the boundary of H₀, over all 3⁶ sequences of one-item waves.
    #[test]
    fn wealth_is_a_martingale_at_the_margin() {
        for (claim, m, flip_rate) in [
            (Claim::Within, 0.01, 0.05),
            (Claim::Worse, 0.01, 0.2),
            (Claim::Worse, -0.02, 0.1),
            (Claim::Within, 0.3, 0.4),
        ] {
            let (lost, gained) = (f64::midpoint(flip_rate, m), (flip_rate - m) / 2.0);
            let mut expected = 0.0;
            for code in 0..3u32.pow(6) {
                let mut betting = Betting::new(claim, m);
                let mut probability = 1.0;
                for place in 0..6 {
                    let (p, wave) = match code / 3u32.pow(place) % 3 {
                        0 => (lost, WaveFlips { n: 1, lost: 1, gained: 0 }),
                        1 => (gained, WaveFlips { n: 1, lost: 0, gained: 1 }),
                        _ => (1.0 - lost - gained, WaveFlips { n: 1, lost: 0, gained: 0 }),
                    };
                    probability *= p;
                    betting.push(wave);
                }
                expected += probability * betting.log_wealth.exp();
            }
            assert!((expected - 1.0f64).abs() < 1e-12, "{claim:?} {m}: {expected}");
        }
    }

    /// Confidence bounds at 95 % hold at all 40 looks together in at least 95 % of runs.
    #[test]
    fn bounds_hold_at_every_look_together() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (lost, gained) = (0.05, 0.03);
        let runs = 200;
        let missed = (0..runs).filter(|_| {
            let mut waves = Vec::new();
            for _ in 0..40 {
                let mut wave = WaveFlips { n: 50, lost: 0, gained: 0 };
                for _ in 0..wave.n {
                    let draw: f64 = rng.random();
                    wave.lost += u64::from(draw < lost);
                    wave.gained += u64::from((lost..lost + gained).contains(&draw));
                }
                waves.push(wave);
            }
            // The largest wealth over the looks is what the bounds of the last look rest on.
            let bounds = betting_bounds(&waves, 0.05);
            !(bounds.lower <= 0.02 && 0.02 <= bounds.upper)
        });
        assert!(missed.count() <= runs * 2 / 20, "two sides of 5 % each at most");
    }

    proptest! {
        #[test]
        fn p_values_are_probabilities_and_bounds_are_drops(
            waves in prop::collection::vec((1u64..200, 0.0f64..1.0, 0.0f64..1.0), 1..20),
            m in 0.001f64..0.5,
        ) {
            let waves: Vec<WaveFlips> = waves
                .into_iter()
                .map(|(n, flips, share)| {
                    let flips = (n as f64 * flips) as u64;
                    let lost = (flips as f64 * share) as u64;
                    WaveFlips { n, lost, gained: flips - lost }
                })
                .collect();
            for claim in [Claim::Within, Claim::Worse] {
                let betting = Betting::over(claim, m, &waves);
                prop_assert!((0.0..=1.0).contains(&betting.p_value()), "{betting:?}");
            }
            let bounds = betting_bounds(&waves, 0.025);
            prop_assert!(-1.0 <= bounds.lower && bounds.upper <= 1.0, "{bounds:?}");
        }
    }
}

//! Decisions at a threshold, made on the decimal text of numbers.
//!
//! In binary floating point 0.90 − 0.89 > 0.01, so a drop of exactly the threshold would be judged by noise: of the
//! 991 three-decimal pairs one point apart, `b - c <= 0.01` refuses 803. A score is what it prints as: its shortest
//! decimal text, taken as an exact integer over a power of ten.

/// A number as it prints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decimal {
    value: f64,
    /// value = digits / 10^places; `None` where the text has more digits than an i128.
    exact: Option<(i128, u32)>,
}

impl Decimal {
    /// The shortest decimal text that reads back as `value`.
    pub fn of(value: f64) -> Self {
        let text = value.to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let digits = format!("{whole}{fraction}").parse().ok();
        Self { value, exact: digits.map(|digits| (digits, fraction.len() as u32)) }
    }

    /// A count.
    pub fn count(count: usize) -> Self {
        Self { value: count as f64, exact: Some((count as i128, 0)) }
    }

    /// digits · 10^(places − own places).
    fn scaled(self, places: u32) -> Option<i128> {
        let (digits, own) = self.exact?;
        digits.checked_mul(10i128.checked_pow(places.checked_sub(own)?)?)
    }
}

/// Whether `high` − `low` > `share` · `unit`, exactly. Only where an operand has so many digits that the exact
/// product overflows 128 bits is it decided in floating point; such numbers are nobody's written threshold.
pub(super) fn exceeds(high: Decimal, low: Decimal, share: Decimal, unit: Decimal) -> bool {
    let exact = || -> Option<bool> {
        let (share_digits, share_places) = share.exact?;
        let (unit_digits, unit_places) = unit.exact?;
        let product_places = share_places + unit_places;
        let places = product_places.max(high.exact?.1).max(low.exact?.1);
        let product = share_digits.checked_mul(unit_digits)?;
        let limit = product.checked_mul(10i128.checked_pow(places - product_places)?)?;
        Some(high.scaled(places)?.checked_sub(low.scaled(places)?)? > limit)
    };
    exact().unwrap_or(high.value - low.value > share.value * unit.value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drop_exceeds(high: f64, low: f64, share: f64, unit: f64) -> bool {
        exceeds(Decimal::of(high), Decimal::of(low), Decimal::of(share), Decimal::of(unit))
    }

    #[test]
    fn ties_are_ties() {
        let [high, low, share] = [0.90f64, 0.89, 0.01];
        assert!(high - low > share, "what floating point says");
        assert!(!drop_exceeds(0.90, 0.89, 0.01, 1.0));
        assert!(!drop_exceeds(50.0, 49.0, 0.01, 100.0));
        assert!(drop_exceeds(0.90, 0.889_999_999_999_999, 0.01, 1.0));
        assert!(!drop_exceeds(50.0, 49.5, 0.01, 50.0));
    }

    #[test]
    fn counts_decide_what_means_cannot() {
        // 3 of 300 items is one percent; the means .566… and .556… differ by more than 0.01 in floating point.
        let tie = |n| exceeds(Decimal::count(170), Decimal::count(167), Decimal::of(0.01), Decimal::count(n));
        assert!(!tie(300) && tie(299));
    }

    #[test]
    fn numbers_beyond_128_bits_fall_back() {
        assert!(drop_exceeds(0.5, 0.1, 1e-300, 1.0));
        assert!(!drop_exceeds(1e-300, 1e-300, 0.01, 1.0));
        assert!(!drop_exceeds(f64::NAN, 0.0, 0.01, 1.0));
    }

    proptest! {
        #[test]
        fn thousandths_are_exact(high in 0i64..=1000, low in 0i64..=1000, share in 0i64..=100) {
            let exact = high - low > share;
            let found = drop_exceeds(high as f64 / 1e3, low as f64 / 1e3, share as f64 / 1e3, 1.0);
            prop_assert_eq!(found, exact);
        }
    }
}

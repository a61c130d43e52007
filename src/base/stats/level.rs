//! Error levels, estimates and the quantiles of the two reference distributions.

use std::f64::consts::SQRT_2;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::erf::{erfc, erfc_inv};

/// A one-sided error level strictly between 0 and 0.5.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Alpha(f64);

/// A number that is no error level.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("alpha is {0}, not a number between 0 and 0.5")]
pub struct AlphaError(pub f64);

impl Alpha {
    /// The level at which verdicts are given.
    pub const FIVE_PERCENT: Self = Self(0.05);

    /// The level `value`.
    pub fn new(value: f64) -> Result<Self, AlphaError> {
        if value > 0.0 && value < 0.5 { Ok(Self(value)) } else { Err(AlphaError(value)) }
    }

    /// The level as a number.
    pub fn value(self) -> f64 {
        self.0
    }

    /// The level divided among `parts` (at least one), whose errors then add up to it at most.
    #[must_use]
    pub fn part_of(self, parts: u32) -> Self {
        Self(self.0 / f64::from(parts.max(1)))
    }

    /// Upper normal quantile z₁₋α.
    pub fn z(self) -> f64 {
        -normal_quantile(self.0)
    }
}

impl TryFrom<f64> for Alpha {
    type Error = AlphaError;

    fn try_from(value: f64) -> Result<Self, AlphaError> {
        Self::new(value)
    }
}

impl From<Alpha> for f64 {
    fn from(alpha: Alpha) -> f64 {
        alpha.0
    }
}

/// An estimate with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Point estimate.
    pub value: f64,
    /// Standard error of the estimate.
    pub stderr: f64,
    /// Number of paired items behind it.
    pub n: usize,
}

/// One-sided bounds on either side; infinite where the data bound nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Lower bound at level 1 − α.
    pub lower: f64,
    /// Upper bound at level 1 − α.
    pub upper: f64,
}

impl Bounds {
    /// Bounds of data that bound nothing.
    pub const NONE: Self = Self { lower: f64::NEG_INFINITY, upper: f64::INFINITY };

    /// The wider of two bounds on each side.
    #[must_use]
    pub fn envelope(self, other: Self) -> Self {
        Self { lower: self.lower.min(other.lower), upper: self.upper.max(other.upper) }
    }
}

/// Standard normal quantile at `p`, through the inverse complementary error function of statrs.
pub fn normal_quantile(p: f64) -> f64 {
    -SQRT_2 * erfc_inv(2.0 * p)
}

/// Standard normal distribution function.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / SQRT_2)
}

/// Quantile of Student's t with `df` degrees of freedom at `p`; infinite for `df` = 0.
pub fn student_quantile(p: f64, df: usize) -> f64 {
    StudentsT::new(0.0, 1.0, df as f64).map_or(f64::INFINITY, |t| t.inverse_cdf(p))
}

/// P(T > x) for Student's t with `df` degrees of freedom; 0.5 for `df` = 0, where nothing is known.
pub fn student_sf(x: f64, df: usize) -> f64 {
    StudentsT::new(0.0, 1.0, df as f64).map_or(0.5, |t| t.sf(x))
}

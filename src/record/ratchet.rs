//! `quality-ratchet.json`: the best-known thresholds of a repository, committed with it (founding document 004).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// Version of the file's layout.
pub const RATCHET_VERSION: u32 = 1;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Ratchet {
    /// [`RATCHET_VERSION`].
    pub version: u32,
    /// Last change, ISO 8601 UTC.
    pub updated_at: String,
    /// Who or what changed it: a ticket, a branch, a commit.
    pub updated_by: String,
    /// Thresholds by metric.
    pub thresholds: BTreeMap<String, Threshold>,
    /// Every loosening ever made, with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<Loosening>,
}

/// A limit that only tightens: exactly one of both is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Smallest value allowed.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "plain")]
    pub min: Option<f64>,
    /// Largest value allowed.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "plain")]
    pub max: Option<f64>,
}

/// A threshold that was made weaker on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loosening {
    /// When, ISO 8601 UTC.
    pub at: String,
    /// By whom.
    pub by: String,
    /// Metric.
    pub metric: String,
    /// The threshold before.
    pub from: Threshold,
    /// The threshold after; without a limit where it was removed.
    pub to: Threshold,
    /// Why.
    pub reason: String,
}

/// Whole numbers without a decimal point, as people write counts.
#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn plain<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(v) if v.fract() == 0.0 && v.abs() < 9e15 => serializer.serialize_i64(*v as i64),
        Some(v) => serializer.serialize_f64(*v),
        None => serializer.serialize_none(),
    }
}

//! The calls of NVIDIA Model-Optimizer's `day0-release` gate scripts, on their summary JSONs (`gate_ptq.py`,
//! `gate_run.py`, `gate_compare.py` at a2fbac7ba). A report has every key that the scripts print.
//!
//! Documented differences:
//! - sample counts that are missing, negative or no integers fail;
//! - a baseline of 0 with a relative threshold is ANOMALOUS, not a pass;
//! - exact ties at the threshold are decided on decimals, not on float noise;
//! - exit 1 becomes 1, 3 or 4 by verdict, and 75 for a run that is not finished;
//! - a REGRESSION carries ACCURACY_REGRESSION, an implausible gain IMPLAUSIBLE_GAIN;
//! - `auth` matches the word and its family (authentication, unauthorized …) or an HTTP status, not "author";
//! - precision counts must be counts, sizes positive, and thresholds finite and not negative;
//! - more recipes are known: ours, with their buckets (`recipes`).

mod compare;
mod ptq;
mod recipes;
mod run;
#[cfg(test)]
mod tests;
mod words;

pub use compare::compare_summaries;
pub use ptq::ptq_summary;
pub use recipes::precision_bucket;
pub use run::run_summary;

use serde_json::Value;

/// A finite number that is no boolean, as upstream's `isinstance(x, (int, float)) and not isinstance(x, bool)`.
fn number(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64).filter(|number| number.is_finite())
}

/// A value as it stands in the file, for messages.
fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing".to_owned(), ToString::to_string)
}

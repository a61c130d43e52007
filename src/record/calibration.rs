//! What a calibration saw: the largest magnitudes of the inputs of linear modules.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::base::digest::Digest;

/// What calibration runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationData {
    /// Where the text came from: `embedded`, or the file.
    pub text: String,
    /// Digest of the whole text.
    pub text_digest: Digest,
    /// Samples asked for.
    pub samples: usize,
    /// Most tokens of a sample.
    pub sequence_length: usize,
}

/// Largest magnitudes of inputs, by linear module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedInputs {
    /// Samples that were run.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// max |x| over all inputs of a module; a module that saw no token is missing.
    pub amax: BTreeMap<String, f32>,
    /// Modules that saw no token: experts that the router never chose.
    pub unseen: BTreeSet<String>,
    /// A module one of whose inputs was NaN or infinite, if there was one.
    pub not_finite: Option<String>,
}

impl ObservedInputs {
    /// Takes in what other samples showed.
    pub fn merge(&mut self, other: Self) {
        self.samples += other.samples;
        self.tokens += other.tokens;
        for (module, amax) in other.amax {
            let all = self.amax.entry(module).or_insert(0.0);
            *all = all.max(amax);
        }
        self.unseen.extend(other.unseen);
        self.unseen.retain(|module| !self.amax.contains_key(module));
        self.not_finite = self.not_finite.take().or(other.not_finite);
    }
}

/// The whole pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// What it ran on.
    pub data: CalibrationData,
    /// What was seen.
    pub inputs: ObservedInputs,
    /// Kernels that computed the inputs.
    pub kernel_path: String,
}

/// A calibration in the record of what was quantized with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationSummary {
    /// What it ran on.
    pub data: CalibrationData,
    /// Samples that were run: fewer than asked for where the text had no more.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Static scales that came from it.
    pub scales: usize,
    /// Modules that saw no token and took the largest magnitude of their siblings.
    pub filled: Vec<String>,
    /// Modules all of whose inputs were zero; their scales are placeholders.
    pub all_zero: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(module: &str, amax: Option<f32>) -> ObservedInputs {
        let mut inputs = ObservedInputs { samples: 1, tokens: 3, ..ObservedInputs::default() };
        match amax {
            Some(amax) => drop(inputs.amax.insert(module.to_owned(), amax)),
            None => drop(inputs.unseen.insert(module.to_owned())),
        }
        inputs
    }

    #[test]
    fn the_largest_counts_and_one_token_is_enough() {
        let mut all = seen("a", Some(1.0));
        all.merge(seen("a", Some(3.0)));
        all.merge(seen("a", None));
        all.merge(seen("b", None));
        assert_eq!((all.samples, all.tokens, all.amax["a"]), (4, 12, 3.0));
        assert_eq!(all.unseen, BTreeSet::from(["b".to_owned()]));
        let mut order = seen("a", None);
        order.merge(seen("a", Some(2.0)));
        assert!(order.unseen.is_empty());
    }
}

//! The YAML form of a recipe.
//!
//! ```yaml
//! name: w4a16            # required
//! version: 1             # required
//! description: one line  # required
//! groups:                # required; the first group that matches a module wins
//!   - targets: [Linear]  # the class Linear, exact module names, or re: patterns anchored at the start
//!     weights: {num_bits: 4, type: int, strategy: group, group_size: 128}
//!     # type: int or float; strategy: tensor, channel, group, tensor_group (group_size) or block (block_structure);
//!     # symmetric: true; observer: absmax, or mse to search for the range with the smallest error
//!     input_activations: {num_bits: 8, type: int, strategy: token, dynamic: true}   # optional
//!     # dynamic: true, false or local; amax: the largest magnitude that static scales cover
//! kv_cache: {num_bits: 8, type: float, strategy: tensor, amax: 448}                 # optional
//! calibration: {samples: 64, sequence_length: 512}        # optional: for static inputs without amax
//! exclude_modules: []    # names or re: patterns, besides the default list
//! include_modules: []    # names or re: patterns that the default list does not exclude
//! ```
//!
//! Everything else is refused, with the line and a suggestion. `args` says what goes together.

use std::path::Path;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::args::{self, InputArgs, WeightArgs};
use super::{CalibrationKeys, Recipe, RecipeError, exclusions};
use crate::base::closest::suggestion;
use crate::base::digest::Digest;
use crate::checkpoint::name_match::NameMatcher;
use crate::checkpoint::quant_args::{Dialect, QuantizationArgs, QuantizationScheme};
use crate::ops::weight_layout::WeightLayout;

/// Larger files are no recipes.
const MAX_BYTES: u64 = 1 << 20;

/// Reads and validates a recipe file.
pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
    let failed = |source| RecipeError::Read { path: path.to_path_buf(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_BYTES {
        let problem = format!("{size} bytes are too many for a recipe, at most {MAX_BYTES}");
        return Err(invalid(&path.display().to_string(), None, problem));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&path.display().to_string(), &text)
}

/// Validates the text of a recipe; `file` is named in errors.
pub fn parse(file: &str, text: &str) -> Result<Recipe, RecipeError> {
    let raw: RawRecipe = serde_yaml_ng::from_str(text).map_err(|error| from_yaml(file, &error))?;
    for entries in [&raw.exclude_modules, &raw.include_modules] {
        check_patterns(file, text, entries)?;
    }
    for group in &raw.groups {
        check_patterns(file, text, &group.targets)?;
    }
    let digest = Digest::of_json(&raw.identity())
        .map_err(|error| invalid(file, None, format!("cannot be hashed: {error}")))?;
    let default = exclusions::DEFAULT.iter().map(|e| e.pattern.to_owned());
    Ok(Recipe {
        name: raw.name,
        version: raw.version,
        description: raw.description,
        groups: raw.groups.into_iter().map(RawScheme::into_scheme).collect(),
        exclude_modules: raw.exclude_modules.into_iter().chain(default).collect(),
        include_modules: raw.include_modules,
        kv_cache: raw.kv_cache.map(|args| args.0),
        calibration: raw.calibration,
        dialect: Dialect::CompressedTensors,
        digest,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    name: String,
    version: u32,
    description: String,
    #[serde(deserialize_with = "some_groups")]
    groups: Vec<RawScheme>,
    #[serde(default)]
    exclude_modules: Vec<String>,
    #[serde(default)]
    include_modules: Vec<String>,
    #[serde(default)]
    kv_cache: Option<KvCacheArgs>,
    #[serde(default)]
    calibration: CalibrationKeys,
}

impl RawRecipe {
    /// What decides the output. The default list is part of it: a change there changes the digest.
    fn identity(&self) -> impl Serialize + use<> {
        let groups: Vec<QuantizationScheme> =
            self.groups.iter().cloned().map(RawScheme::into_scheme).collect();
        let default: Vec<&str> = exclusions::DEFAULT.iter().map(|e| e.pattern).collect();
        (
            self.name.clone(),
            self.version,
            groups,
            self.exclude_modules.clone(),
            self.include_modules.clone(),
            default,
            self.kv_cache.as_ref().map(|args| args.0.clone()),
            self.calibration,
        )
    }
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "RawSchemeFields")]
struct RawScheme {
    targets: Vec<String>,
    weights: QuantizationArgs,
    input_activations: Option<QuantizationArgs>,
}

impl RawScheme {
    fn into_scheme(self) -> QuantizationScheme {
        QuantizationScheme {
            targets: self.targets,
            weights: self.weights,
            input_activations: self.input_activations,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSchemeFields {
    #[serde(deserialize_with = "some_targets")]
    targets: Vec<String>,
    weights: WeightArgs,
    #[serde(default)]
    input_activations: Option<InputArgs>,
}

impl TryFrom<RawSchemeFields> for RawScheme {
    type Error = String;

    fn try_from(raw: RawSchemeFields) -> Result<Self, String> {
        let scheme = QuantizationScheme {
            targets: raw.targets,
            weights: raw.weights.0,
            input_activations: raw.input_activations.map(|args| args.0),
        };
        if let Some(inputs) = &scheme.input_activations {
            args::go_together(&scheme.weights, inputs)?;
        }
        let format =
            scheme.format().ok_or("no checkpoint format holds this combination of weights and inputs")?;
        WeightLayout::new(&scheme.weights, format).map_err(|error| error.to_string())?;
        Ok(Self {
            targets: scheme.targets,
            weights: scheme.weights,
            input_activations: scheme.input_activations,
        })
    }
}

/// The KV cache's arguments.
#[derive(Deserialize)]
#[serde(try_from = "InputArgs")]
struct KvCacheArgs(QuantizationArgs);

impl TryFrom<InputArgs> for KvCacheArgs {
    type Error = String;

    fn try_from(raw: InputArgs) -> Result<Self, String> {
        args::kv_cache(&raw.0)?;
        Ok(Self(raw.0))
    }
}

fn some_groups<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawScheme>, D::Error> {
    let groups = Vec::deserialize(deserializer)?;
    if groups.is_empty() {
        Err(D::Error::custom("groups is empty, expected at least one group"))
    } else {
        Ok(groups)
    }
}

fn some_targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let targets = Vec::deserialize(deserializer)?;
    if targets.is_empty() {
        Err(D::Error::custom("targets is empty, expected e.g. [Linear]"))
    } else {
        Ok(targets)
    }
}

/// Patterns must compile; the line is that of the entry.
fn check_patterns(file: &str, text: &str, entries: &[String]) -> Result<(), RecipeError> {
    let Err(error) = NameMatcher::new(entries) else { return Ok(()) };
    let line = text.lines().position(|line| line.contains(error.entry.as_str()));
    let problem = format!("{error}: {}", error.source);
    Err(invalid(file, line.map(|l| (l + 1, 1)), problem.replace('\n', " ")))
}

fn invalid(file: &str, at: Option<(usize, usize)>, problem: String) -> RecipeError {
    RecipeError::Invalid { file: file.to_owned(), at, problem, suggestion: None }
}

/// Turns serde's message into ours: the place in front, the candidates only as far as they help.
fn from_yaml(file: &str, error: &serde_yaml_ng::Error) -> RecipeError {
    let at = error.location().map(|l| (l.line(), l.column()));
    let message = error.to_string();
    let problem = match (message.rfind(" at line "), at) {
        (Some(end), Some(_)) => &message[..end],
        _ => message.as_str(),
    };
    // "unknown field `x`, expected one of `a`, `b`": quoted are the word and then the candidates.
    let quoted: Vec<&str> = problem.split('`').skip(1).step_by(2).collect();
    let is_unknown = problem.contains("unknown field") || problem.contains("unknown variant");
    if let (true, Some((word, candidates))) = (is_unknown, quoted.split_first()) {
        let head = problem.split(", expected").next().unwrap_or(problem);
        let suggestion = Some(suggestion(word, candidates));
        return RecipeError::Invalid { file: file.to_owned(), at, problem: head.to_owned(), suggestion };
    }
    invalid(file, at, problem.to_owned())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

//! The YAML form of a recipe.
//!
//! ```yaml
//! name: w4a16            # required
//! version: 1             # required
//! description: one line  # required
//! groups:                # required; the first group that matches a module wins
//!   - targets: [Linear]  # the class Linear, exact module names, or re: patterns anchored at the start
//!     weights: {num_bits: 4, type: int, strategy: group, group_size: 128}
//!     input_activations: {num_bits: 8, type: int, strategy: token, dynamic: true}   # optional
//! exclude_modules: []    # names or re: patterns, besides the default list
//! include_modules: []    # names or re: patterns that the default list does not exclude
//! ```
//!
//! Everything else is refused, with the line and a suggestion.

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::{Recipe, RecipeError, exclusions};
use crate::base::closest::suggestion;
use crate::base::digest::Digest;
use crate::checkpoint::name_match::NameMatcher;
use crate::checkpoint::quant_args::{QuantType, QuantizationArgs, QuantizationScheme, Strategy};
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
        if let Some(input) = &scheme.input_activations
            && (input.qtype, input.num_bits) != (scheme.weights.qtype, scheme.weights.num_bits)
        {
            return Err("input_activations must have the num_bits and type of the weights".to_owned());
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

/// Arguments as they are written; `scale_dtype` follows from the rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArgs {
    #[serde(deserialize_with = "bits")]
    num_bits: u8,
    #[serde(rename = "type")]
    qtype: QuantType,
    #[serde(default = "yes")]
    symmetric: bool,
    strategy: Strategy,
    #[serde(default, deserialize_with = "group_size")]
    group_size: Option<usize>,
    #[serde(default)]
    block_structure: Option<[usize; 2]>,
    #[serde(default)]
    dynamic: bool,
}

fn yes() -> bool {
    true
}

impl RawArgs {
    fn check(self) -> Result<QuantizationArgs, String> {
        let grouped = matches!(self.strategy, Strategy::Group | Strategy::TensorGroup);
        if grouped && self.group_size.is_none() {
            return Err("this strategy needs group_size".to_owned());
        }
        if !grouped && self.group_size.is_some() {
            return Err("group_size goes with strategy group or tensor_group only".to_owned());
        }
        if (self.strategy == Strategy::Block) != self.block_structure.is_some() {
            return Err("block_structure goes with strategy block, and only there".to_owned());
        }
        let scale_dtype = match (self.qtype, self.num_bits, self.strategy) {
            (QuantType::Float, 4, Strategy::TensorGroup) => Some("torch.float8_e4m3fn".to_owned()),
            (QuantType::Float, 4, Strategy::Group) => Some("torch.uint8".to_owned()),
            _ => None,
        };
        Ok(QuantizationArgs {
            num_bits: self.num_bits,
            qtype: self.qtype,
            symmetric: self.symmetric,
            strategy: self.strategy,
            group_size: self.group_size,
            block_structure: self.block_structure,
            dynamic: self.dynamic,
            scale_dtype,
        })
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RawArgs")]
struct WeightArgs(QuantizationArgs);

impl TryFrom<RawArgs> for WeightArgs {
    type Error = String;

    fn try_from(raw: RawArgs) -> Result<Self, String> {
        if raw.dynamic {
            return Err("weights are not dynamic: their scales are stored".to_owned());
        }
        raw.check().map(Self)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RawArgs")]
struct InputArgs(QuantizationArgs);

impl TryFrom<RawArgs> for InputArgs {
    type Error = String;

    fn try_from(raw: RawArgs) -> Result<Self, String> {
        if !raw.dynamic || raw.strategy != Strategy::Token || !raw.symmetric {
            return Err("inputs are quantized symmetrically by token with dynamic: true".to_owned());
        }
        raw.check().map(Self)
    }
}

/// A whole number within bounds. Judged by the visitor, so that the error gets the place of the number itself.
struct Number {
    what: &'static str,
    min: u64,
    max: u64,
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.what, self.min, self.max)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        if (self.min..=self.max).contains(&number) {
            return Ok(number);
        }
        Err(E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

fn bits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    deserializer.deserialize_u64(Number { what: "num_bits", min: 2, max: 8 }).map(|n| n as u8)
}

fn group_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    deserializer
        .deserialize_u64(Number { what: "group_size", min: 1, max: 1 << 20 })
        .map(|n| Some(n as usize))
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

//! Families as data: `suites/families/*.yaml`, or a file of the same layout.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::base::closest::suggestion;
use crate::record::Failure;
use crate::record::repro::{Criterion, Rule};

macro_rules! families {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../suites/families/", $name, ".yaml")))),*]
    };
}

/// The families that come with the program.
const BUILTIN: &[(&str, &str)] =
    families!["ptq", "roundtrip", "token", "dreamerv3", "tdmpc2", "jepa", "diffusion"];

/// What runs a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FamilyKind {
    /// The candidate's scores.
    Ptq,
    /// The candidate saved and loaded.
    Roundtrip,
    /// Training of the embedded model.
    Token,
    /// A command that prints metrics.
    Command,
}

/// A family.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Name.
    pub family: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What runs it.
    pub kind: FamilyKind,
    /// What one step is.
    pub step: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// The command template of kind `command`, if the file has one.
    #[serde(default)]
    pub command: Option<String>,
    /// What a run must meet.
    pub criteria: Vec<Criterion>,
}

/// Names of the built-in families.
pub fn builtin_names() -> Vec<&'static str> {
    BUILTIN.iter().map(|(name, _)| *name).collect()
}

/// Loads a family by name, by alias, or from a file.
pub fn load(name: &str) -> Result<Family, Failure> {
    if Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml") {
        let text = std::fs::read_to_string(name).map_err(|e| Failure::io(name, &e))?;
        return parse(&text, name);
    }
    for (known, text) in BUILTIN {
        let family = parse(text, known)?;
        if *known == name || family.aliases.iter().any(|alias| alias == name) {
            return Ok(family);
        }
    }
    Err(Failure::config(format!("{name}: no such family")).with_hint(suggestion(name, &builtin_names())))
}

fn parse(text: &str, name: &str) -> Result<Family, Failure> {
    let mistake = |detail: String| Failure::config(format!("{name}: {detail}"));
    // By way of JSON: a rule is an object with one key there, and not a YAML tag.
    let value: Value = serde_yaml_ng::from_str(text).map_err(|e| mistake(e.to_string()))?;
    let family: Family = serde_json::from_value(value).map_err(|e| mistake(e.to_string()))?;
    if family.criteria.is_empty() {
        return Err(mistake("criteria: none".to_owned()));
    }
    for criterion in &family.criteria {
        check(criterion).map_err(|problem| mistake(format!("criteria.{}: {problem}", criterion.name)))?;
    }
    Ok(family)
}

fn check(criterion: &Criterion) -> Result<(), String> {
    let positive = |name: &str, value: f64| {
        let fine = value.is_finite() && value >= 0.0;
        if fine { Ok(()) } else { Err(format!("{name} is {value}, expected a number of at least 0")) }
    };
    let share = |name: &str, value: f64| {
        let fine = value > 0.0 && value <= 1.0;
        if fine { Ok(()) } else { Err(format!("{name} is {value}, expected more than 0 and at most 1")) }
    };
    match criterion.rule {
        Rule::RelativeSpread { max } | Rule::RepeatWithin { max } | Rule::AtMost { max } => {
            positive("max", max)
        }
        Rule::AbsoluteSpread { below } => positive("below", below),
        Rule::Decrease { within: 0, .. } => Err("within is 0 steps".to_owned()),
        Rule::Decrease { min, .. } | Rule::SuccessRate { min } => share("min", min),
        Rule::SameBits | Rule::Finite => Ok(()),
    }
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;

//! Layer 3: recipes: versioned YAML, validated into typed schemes.
//!
//! A recipe says which modules are quantized and how. It is a built-in name (`recipes/*.yaml`) or a path to a YAML file;
//! see [`mod@file`] for its keys. [`assignment`] applies one to the tensors of a checkpoint.

mod args;
pub mod assignment;
pub mod error;
pub mod exclusions;
pub mod file;
pub mod fused_sets;
mod scalars;

use std::path::Path;

use crate::base::closest::suggestion;
use crate::base::digest::{Digest, DigestBuilder};
use crate::checkpoint::modelopt;
use crate::checkpoint::quant_args::{Dialect, QuantizationArgs, QuantizationScheme};

pub use error::RecipeError;

/// What a recipe says about calibration; what it leaves open has a default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationKeys {
    /// Samples.
    #[serde(default, deserialize_with = "args::samples")]
    pub samples: Option<usize>,
    /// Most tokens of a sample.
    #[serde(default, deserialize_with = "args::sequence_length")]
    pub sequence_length: Option<usize>,
}

/// A validated recipe.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Recipe {
    /// Name.
    pub name: String,
    /// Version; raised when the same model would be quantized differently.
    pub version: u32,
    /// One line for `day0 list recipes`.
    pub description: String,
    /// Which modules are quantized how; the first group that matches wins.
    pub groups: Vec<QuantizationScheme>,
    /// Modules left as they are: the recipe's own entries, then the default list unless `include_modules` overrides it.
    pub exclude_modules: Vec<String>,
    /// Modules quantized although the default list excludes them.
    pub include_modules: Vec<String>,
    /// How engines shall store keys and values, if the recipe says so.
    pub kv_cache: Option<QuantizationArgs>,
    /// How much text calibration takes, where the recipe says so.
    pub calibration: CalibrationKeys,
    /// In whose names and keys the checkpoint is written; see [`Recipe::in_dialect`].
    pub dialect: Dialect,
    /// Digest of everything above but the description.
    pub digest: Digest,
}

impl Recipe {
    /// The same recipe for another layout; refuses schemes that the layout cannot hold.
    pub fn in_dialect(mut self, dialect: Dialect) -> Result<Self, RecipeError> {
        if dialect == self.dialect {
            return Ok(self);
        }
        if dialect == Dialect::Modelopt {
            self.check_modelopt()?;
        }
        self.dialect = dialect;
        let mut digest = DigestBuilder::default();
        digest.field(self.digest.as_str().as_bytes()).field(format!("{dialect:?}").as_bytes());
        self.digest = digest.finish();
        Ok(self)
    }

    /// vLLM mixes three of ModelOpt's algorithms, and one checkpoint has no other mixture.
    fn check_modelopt(&self) -> Result<(), RecipeError> {
        const MIXABLE: [&str; 3] = ["FP8", "NVFP4", "W4A16_NVFP4"];
        let refuse = |scheme: &QuantizationScheme, expected: String| {
            let inputs = scheme.input_activations.as_ref().map(QuantizationArgs::describe);
            let found = format!(
                "{} weights with {} inputs",
                scheme.weights.describe(),
                inputs.unwrap_or_else(|| "unquantized".to_owned())
            );
            RecipeError::Dialect { name: self.name.clone(), found, expected }
        };
        for scheme in &self.groups {
            let all = || modelopt::names().collect::<Vec<_>>().join(", ");
            let algorithm = modelopt::algorithm(scheme).ok_or_else(|| refuse(scheme, all()))?;
            if self.groups.len() > 1 && !MIXABLE.contains(&algorithm) {
                return Err(refuse(scheme, format!("{} in mixed precision", MIXABLE.join(", "))));
            }
        }
        Ok(())
    }
}

/// The default recipe.
pub const DEFAULT: &str = "fp8_dynamic";

macro_rules! builtin {
    ($($name:literal),+ $(,)?) => {
        /// Built-in recipes: name and YAML text.
        const BUILTIN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../recipes/", $name, ".yaml")))),+
        ];
        /// Their names.
        const NAMES: &[&str] = &[$($name),+];
    };
}

builtin!(
    "fp8_dynamic",
    "w8a8",
    "w4a16",
    "w4a16_g64",
    "w4a16_g32",
    "nvfp4a16",
    "mxfp4a16",
    "fp8_block",
    "fp8_static",
    "fp8_weight_only",
    "w8a16",
    "w4a16_asym_g32",
    "w4a16_g64_mse",
    "w4afp8",
    "nvfp4",
    "nvfp4_experts_only",
    "nvfp4_mlp_fp8",
    "mxfp6a16",
    "mxfp8a16",
    "mxfp8",
    "w2a16",
);

/// Second names. An alias never changes the scheme.
const ALIASES: &[(&str, &str)] = &[("fp8", "fp8_dynamic")];

/// The names of the built-in recipes, the default first; aliases left out.
pub fn builtin_names() -> &'static [&'static str] {
    NAMES
}

/// Loads a built-in recipe by name or alias, or a YAML file by path.
pub fn load(name_or_path: &str) -> Result<Recipe, RecipeError> {
    let name =
        ALIASES.iter().find(|(alias, _)| *alias == name_or_path).map_or(name_or_path, |(_, name)| name);
    if let Some((name, text)) = BUILTIN.iter().find(|(builtin, _)| *builtin == name) {
        return file::parse(&format!("recipes/{name}.yaml"), text);
    }
    let path = Path::new(name_or_path);
    let is_yaml =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
    if is_yaml || path.components().count() > 1 || path.is_file() {
        return file::read(path);
    }
    let known: Vec<&str> = NAMES.iter().copied().chain(ALIASES.iter().map(|(alias, _)| *alias)).collect();
    Err(RecipeError::Unknown { name: name_or_path.to_owned(), suggestion: suggestion(name_or_path, &known) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_recipes_load_under_their_own_names() {
        for name in builtin_names() {
            let recipe = load(name).unwrap();
            assert_eq!(recipe.name, *name);
            assert!(recipe.version >= 1 && !recipe.description.is_empty());
        }
        assert_eq!(load("fp8").unwrap(), load("fp8_dynamic").unwrap());
        assert_eq!(builtin_names()[0], DEFAULT);
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        let error = load("fp8_dynamc").unwrap_err();
        assert!(error.to_string().contains("did you mean 'fp8_dynamic'?"), "{error}");
        assert!(load("no/such/recipe").unwrap_err().to_string().contains("no/such/recipe"));
    }

    #[test]
    fn every_yaml_file_is_built_in() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let mut names = builtin_names().to_vec();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}

//! `quantization_config` of `config.json` in the dialect of compressed-tensors, old and new spelling, or of ModelOpt.
//!
//! Serializers before 0.20 write unset arguments as null, later ones leave them out; both mean the default. Keys that
//! compressed-tensors does not know are refused inside schemes and arguments, as every loader does. Other methods
//! (fp8, gptq, awq, …) are recognised by name and reported as not supported.
//! Source: compressed-tensors 0.19/0.20, `quantization/{quant_config,quant_scheme,quant_args}.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::CheckpointError;
use super::modelopt;
use super::name_match::{MatchLevel, NameMatcher};
use super::quant_args::{
    Dialect, Dynamic, Format, Observer, QuantType, QuantizationArgs, QuantizationScheme, Strategy,
};
use crate::base::closest::suggestion;
use crate::record::{Classified, FailureClass};

/// `quant_method` of compressed-tensors.
pub const METHOD: &str = "compressed-tensors";

/// What a checkpoint declares about its quantization.
#[derive(Debug, Clone)]
pub struct QuantizationConfig {
    /// [`METHOD`] or [`modelopt::METHOD`].
    pub quant_method: String,
    /// Whose names the tensors have.
    pub dialect: Dialect,
    /// The config groups, in the order of the file.
    pub groups: Vec<ConfigGroup>,
    /// Modules that are not quantized: exact names or `re:` patterns.
    pub ignore: Vec<String>,
    /// Quantization of the KV cache, verbatim.
    pub kv_cache_scheme: Option<Value>,
    /// `compressed` for a finished checkpoint.
    pub quantization_status: Option<String>,
    ignored: NameMatcher,
}

/// One group: which modules, quantized how, stored how.
#[derive(Debug, Clone)]
pub struct ConfigGroup {
    /// Its key in `config_groups`.
    pub name: String,
    /// Targets and arguments.
    pub scheme: QuantizationScheme,
    /// The group's own layout, else the global one; `None` when neither is declared.
    pub format: Option<Format>,
    /// Whose names the tensors have.
    pub dialect: Dialect,
    targets: NameMatcher,
}

/// A declaration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QuantConfigError {
    /// The checkpoint is quantized by another method.
    #[error("quant_method: method {method} is not supported yet, expected {METHOD} or {}", modelopt::METHOD)]
    UnsupportedMethod {
        /// `quant_method`, e.g. `modelopt`, `gptq`.
        method: String,
    },
    /// The declaration is valid, but asks for something that is not implemented.
    #[error("{field}: {found} is not supported, expected {expected}")]
    Unsupported {
        /// Dotted path within `quantization_config`.
        field: String,
        /// What is supported.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The declaration is malformed.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// Dotted path within `quantization_config`.
        field: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
}

impl QuantConfigError {
    /// The error with the file it is about.
    pub(crate) fn in_file(self, path: PathBuf) -> CheckpointError {
        CheckpointError::Quantization { path, source: self }
    }
}

impl Classified for QuantConfigError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::UnsupportedMethod { .. } | Self::Unsupported { .. } => FailureClass::ModelUnsupported,
            Self::Field { .. } => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnsupportedMethod { method } => format!(
                "start from the unquantized model instead of its {method} export, and quantize it with a recipe"
            ),
            Self::Unsupported { .. } => "quantize the original model again with a built-in recipe".to_owned(),
            Self::Field { .. } => {
                "compare with the quantization_config that compressed-tensors 0.20 writes for this scheme"
                    .to_owned()
            }
        })
    }
}

type Parsed<T> = Result<T, QuantConfigError>;

const ARGS_KEYS: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
];
const SCHEME_KEYS: [&str; 5] = ["targets", "weights", "input_activations", "output_activations", "format"];

impl QuantizationConfig {
    /// Parses the object that `config.json` has under `quantization_config`.
    pub fn parse(value: &Value) -> Parsed<Self> {
        let object = value.as_object().ok_or_else(|| wrong("quantization_config", "an object", value))?;
        // A file of its own has no quant_method; its producer tells.
        let of_modelopt = object.get("quantization").is_some_and(Value::is_object);
        let method = text(object, "quant_method")?
            .or_else(|| of_modelopt.then(|| modelopt::METHOD.to_owned()))
            .ok_or_else(|| missing("quant_method", "the name of the method, e.g. compressed-tensors"))?;
        if method == modelopt::METHOD {
            return Self::of_modelopt(object);
        }
        if method != METHOD {
            return Err(QuantConfigError::UnsupportedMethod { method });
        }
        refuse_transforms(object)?;
        let global = text(object, "format")?;
        let groups = match set(object, "config_groups") {
            None => Vec::new(),
            Some(Value::Object(groups)) => groups
                .iter()
                .map(|(name, group)| ConfigGroup::parse(name, group, global.as_deref()))
                .collect::<Parsed<Vec<_>>>()?,
            Some(other) => return Err(wrong("config_groups", "an object of groups", other)),
        };
        let ignore: Vec<String> = set(object, "ignore")
            .map_or_else(|| Ok(Vec::new()), |v| typed("ignore", "a list of module names", v))?;
        Ok(Self {
            quant_method: method,
            dialect: Dialect::CompressedTensors,
            groups,
            ignored: matcher("ignore", &ignore)?,
            ignore,
            kv_cache_scheme: set(object, "kv_cache_scheme").cloned(),
            quantization_status: text(object, "quantization_status")?,
        })
    }

    /// ModelOpt's declaration as groups: one for the class of linear layers, or one for each algorithm of
    /// `quantized_layers`.
    fn of_modelopt(object: &Map<String, Value>) -> Parsed<Self> {
        let declared = modelopt::Declaration::parse(object)
            .map_err(|(field, expected)| malformed(&field, expected, "another kind of value"))?;
        let algorithm = declared.algorithm.as_deref().unwrap_or_default();
        let mut modules: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        if algorithm.eq_ignore_ascii_case(modelopt::MIXED) {
            for (module, algorithm) in &declared.layers {
                modules.entry(algorithm).or_default().push(module.clone());
            }
        } else if declared.algorithm.is_some() {
            modules.insert(algorithm, vec![super::name_match::LINEAR.to_owned()]);
        }
        let expected =
            || format!("{} or {}", modelopt::names().collect::<Vec<_>>().join(", "), modelopt::MIXED);
        let group = |(algorithm, targets): (&str, Vec<String>)| {
            let scheme = modelopt::scheme(algorithm, targets)
                .ok_or_else(|| unsupported("quant_algo", &expected(), algorithm))?;
            Ok(ConfigGroup {
                name: algorithm.to_owned(),
                targets: matcher("quantized_layers", &scheme.targets)?,
                format: None,
                dialect: Dialect::Modelopt,
                scheme,
            })
        };
        let groups = modules.into_iter().map(group).collect::<Parsed<Vec<_>>>()?;
        let ignore = declared.ignore();
        Ok(Self {
            quant_method: modelopt::METHOD.to_owned(),
            dialect: Dialect::Modelopt,
            groups,
            ignored: matcher("ignore", &ignore)?,
            ignore: declared.exclude,
            kv_cache_scheme: declared.kv_cache.map(Value::String),
            quantization_status: None,
        })
    }

    /// The group that quantizes the linear module of this name; `None` when it is ignored or no target matches.
    /// An exact name goes before a pattern and a pattern before the class; then the first group wins.
    pub fn scheme_for(&self, module: &str) -> Option<&ConfigGroup> {
        if self.ignored.matches(module) {
            return None;
        }
        let mut best: Option<(MatchLevel, &ConfigGroup)> = None;
        for group in &self.groups {
            if let Some(level) = group.targets.level(module)
                && best.is_none_or(|(found, _)| level > found)
            {
                best = Some((level, group));
            }
        }
        best.map(|(_, group)| group)
    }
}

impl ConfigGroup {
    fn parse(name: &str, value: &Value, global_format: Option<&str>) -> Parsed<Self> {
        let at = format!("config_groups.{name}");
        let object = value.as_object().ok_or_else(|| match value {
            Value::Array(_) => unsupported(&at, "a scheme object", "a preset name with a list of targets"),
            other => wrong(&at, "a scheme object", other),
        })?;
        known_keys(&at, object, &SCHEME_KEYS)?;
        let targets_at = format!("{at}.targets");
        let targets: Vec<String> = set(object, "targets")
            .ok_or_else(|| missing(&targets_at, "a list of module names, patterns or Linear"))
            .and_then(|v| typed(&targets_at, "a list of module names, patterns or Linear", v))?;
        if set(object, "output_activations").is_some() {
            return Err(unsupported(&format!("{at}.output_activations"), "null", "a scheme"));
        }
        let weights_at = format!("{at}.weights");
        let weights = set(object, "weights")
            .ok_or_else(|| unsupported(&weights_at, "quantized weights", "null (activations only)"))
            .and_then(|v| args(&weights_at, v))?;
        let inputs_at = format!("{at}.input_activations");
        let input_activations = set(object, "input_activations").map(|v| args(&inputs_at, v)).transpose()?;
        let own = text_at(object, "format", &at)?;
        let format = own.as_deref().or(global_format).filter(|f| *f != "mixed-precision");
        Ok(Self {
            name: name.to_owned(),
            targets: matcher(&targets_at, &targets)?,
            format: format.map(|f| parse_format(&at, f)).transpose()?,
            dialect: Dialect::CompressedTensors,
            scheme: QuantizationScheme { targets, weights, input_activations },
        })
    }
}

/// `sparsity_config` and `transform_config` change what the weights mean; empty ones are written by default.
fn refuse_transforms(object: &Map<String, Value>) -> Parsed<()> {
    let config_of = |key| set(object, key).filter(|v| v.as_object().is_none_or(|o| !o.is_empty()));
    if let Some(sparsity) = config_of("sparsity_config") {
        let format = sparsity.get("format").and_then(Value::as_str).unwrap_or("unknown");
        if format != "dense" {
            return Err(unsupported("sparsity_config.format", "dense", format));
        }
    }
    if let Some(transform) = config_of("transform_config")
        && transform.get("config_groups").is_none_or(|g| g.as_object().is_none_or(|o| !o.is_empty()))
    {
        return Err(unsupported("transform_config", "none", "online transforms"));
    }
    Ok(())
}

/// One `QuantizationArgs` object.
fn args(at: &str, value: &Value) -> Parsed<QuantizationArgs> {
    let object = value.as_object().ok_or_else(|| wrong(at, "an object of quantization arguments", value))?;
    known_keys(at, object, &ARGS_KEYS)?;
    let field = |key: &str| format!("{at}.{key}");
    let optional = |key| set(object, key);
    let num_bits: u8 = optional("num_bits").map_or(Ok(8), |v| typed(&field("num_bits"), "a bit width", v))?;
    if !(1..=16).contains(&num_bits) {
        return Err(malformed(&field("num_bits"), "1 to 16", num_bits));
    }
    let qtype = optional("type").map_or(Ok(QuantType::Int), |v| typed(&field("type"), "int or float", v))?;
    let symmetric = optional("symmetric").map_or(Ok(true), |v| typed(&field("symmetric"), "a boolean", v))?;
    let (group_size, mut strategy) = group_size(&field("group_size"), optional("group_size"))?;
    if let Some(value) = optional("strategy") {
        let expected = "tensor, channel, group, block, token or tensor_group";
        strategy = typed(&field("strategy"), expected, value)?;
    }
    let dynamic = optional("dynamic")
        .map_or(Ok(Dynamic::No), |v| typed(&field("dynamic"), "true, false or local", v))?;
    check_actorder(&field("actorder"), optional("actorder"))?;
    let block_structure =
        optional("block_structure").map(|v| block(&field("block_structure"), v)).transpose()?;
    let grouped = matches!(strategy, Strategy::Group | Strategy::TensorGroup);
    if grouped != group_size.is_some() {
        let expected = if grouped { "a positive number for this strategy" } else { "null for this strategy" };
        return Err(malformed(&field("group_size"), expected, format_args!("{group_size:?}")));
    }
    if (strategy == Strategy::Block) != block_structure.is_some() {
        let expected = "[rows, columns] with strategy block and only there";
        return Err(malformed(&field("block_structure"), expected, format_args!("{block_structure:?}")));
    }
    let scale_dtype = text_at(object, "scale_dtype", at)?;
    Ok(QuantizationArgs {
        num_bits,
        qtype,
        symmetric,
        strategy,
        group_size,
        block_structure,
        dynamic,
        scale_dtype,
        observer: Observer::default(),
        amax: None,
    })
}

/// The group size and the strategy it implies when none is given: null is `tensor`, −1 is `channel`.
fn group_size(at: &str, value: Option<&Value>) -> Parsed<(Option<usize>, Strategy)> {
    let Some(value) = value else { return Ok((None, Strategy::Tensor)) };
    match value.as_i64() {
        Some(-1) => Ok((None, Strategy::Channel)),
        Some(size @ 1..) => Ok((Some(size as usize), Strategy::Group)),
        _ => Err(wrong(at, "a positive number, -1 or null", value)),
    }
}

/// `weight`/`static` only changed the order in which codes were computed; the others reorder columns at run time.
fn check_actorder(at: &str, value: Option<&Value>) -> Parsed<()> {
    match value {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(Value::String(s)) if s == "weight" || s == "static" => Ok(()),
        Some(Value::String(s)) => Err(unsupported(at, "null, weight or static", s)),
        Some(Value::Bool(true)) => Err(unsupported(at, "null, weight or static", "true")),
        Some(other) => Err(wrong(at, "null, weight or static", other)),
    }
}

/// `[128, 128]`, or `"128x128"` as old serializers wrote it.
fn block(at: &str, value: &Value) -> Parsed<[usize; 2]> {
    let parsed = match value {
        Value::String(s) => s.split_once('x').and_then(|(r, c)| Some([r.parse().ok()?, c.parse().ok()?])),
        other => <[usize; 2]>::deserialize_value(other),
    };
    parsed
        .filter(|b| b.iter().all(|n| *n > 0))
        .ok_or_else(|| wrong(at, "[rows, columns], both positive", value))
}

/// `Value` to a type, dropping serde's message.
trait DeserializeValue: DeserializeOwned {
    fn deserialize_value(value: &Value) -> Option<Self> {
        Self::deserialize(value).ok()
    }
}

impl<T: DeserializeOwned> DeserializeValue for T {}

fn parse_format(at: &str, format: &str) -> Parsed<Format> {
    let value = Value::String(format.to_owned());
    Format::deserialize_value(&value).ok_or_else(|| {
        let expected = "float-quantized, int-quantized, naive-quantized, pack-quantized, nvfp4-pack-quantized, \
                        mxfp4-pack-quantized, mxfp6-pack-quantized or mxfp8-quantized";
        unsupported(&format!("{at}.format"), expected, format)
    })
}

fn matcher(at: &str, entries: &[String]) -> Parsed<NameMatcher> {
    NameMatcher::new(entries)
        .map_err(|error| unsupported(at, "a pattern without look-around or back-references", &error.entry))
}

/// The value of a key that is present and not null.
fn set<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !v.is_null())
}

fn text(object: &Map<String, Value>, key: &str) -> Parsed<Option<String>> {
    set(object, key).map(|v| typed(key, "a string", v)).transpose()
}

fn text_at(object: &Map<String, Value>, key: &str, at: &str) -> Parsed<Option<String>> {
    set(object, key).map(|v| typed(&format!("{at}.{key}"), "a string", v)).transpose()
}

fn typed<T: DeserializeOwned>(at: &str, expected: &str, value: &Value) -> Parsed<T> {
    T::deserialize_value(value).ok_or_else(|| wrong(at, expected, value))
}

fn known_keys(at: &str, object: &Map<String, Value>, known: &[&str]) -> Parsed<()> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(QuantConfigError::Field {
            field: at.to_owned(),
            expected: format!("only known keys ({})", suggestion(key, known)),
            found: super::header::shown(key),
        }),
    }
}

fn wrong(field: &str, expected: &str, found: &Value) -> QuantConfigError {
    let text = found.to_string();
    let found = if text.len() <= 60 { text } else { kind(found).to_owned() };
    malformed(field, expected, found)
}

fn malformed(field: &str, expected: &str, found: impl std::fmt::Display) -> QuantConfigError {
    QuantConfigError::Field {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

fn missing(field: &str, expected: &str) -> QuantConfigError {
    malformed(field, expected, "nothing")
}

fn unsupported(field: &str, expected: &str, found: &str) -> QuantConfigError {
    QuantConfigError::Unsupported {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}

/// What kind of JSON value it is, with its article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[path = "quantization_config_tests.rs"]
mod tests;

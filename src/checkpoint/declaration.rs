//! Which tool quantized a checkpoint and how: compressed-tensors or ModelOpt, whose declarations are groups of modules, or
//! FP8 as DeepSeek and transformers write it.

use serde_json::{Map, Value};

use super::quantization_config::{QuantConfigError, QuantizationConfig, kind};

/// Keys of `config.json` that declare a quantization, at the top or within `text_config`.
pub const DECLARING_KEYS: [&str; 2] = ["quantization_config", "compression_config"];
/// `quant_method` of DeepSeek-style checkpoints.
pub const FP8: &str = "fp8";

/// A declared quantization.
#[derive(Debug, Clone)]
pub enum Declaration {
    /// Groups of modules: compressed-tensors, ModelOpt.
    Groups(Box<QuantizationConfig>),
    /// FP8 codes with `weight_scale_inv`.
    Fp8(Fp8),
}

/// What `quant_method: fp8` declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fp8 {
    /// `weight_block_size`; without it there is one scale a tensor or a row.
    pub block: Option<[usize; 2]>,
    /// Whether inputs are quantized with scales computed from them.
    pub dynamic_inputs: bool,
}

impl Fp8 {
    fn parse(object: &Map<String, Value>) -> Result<Self, QuantConfigError> {
        if let Some(format) = text(object, "fmt")?.filter(|f| f != "e4m3") {
            let (field, expected) = ("fmt".to_owned(), "e4m3".to_owned());
            return Err(QuantConfigError::Unsupported { field, expected, found: format });
        }
        let block = match object.get("weight_block_size").filter(|v| !v.is_null()) {
            None => None,
            Some(value) => {
                let sizes: Option<Vec<usize>> = value
                    .as_array()
                    .and_then(|a| a.iter().map(|v| usize::try_from(v.as_u64()?).ok()).collect());
                match sizes.as_deref() {
                    Some(&[rows, columns]) if rows > 0 && columns > 0 => Some([rows, columns]),
                    _ => return Err(wrong("weight_block_size", "[rows, columns], both positive", value)),
                }
            }
        };
        let inputs = text(object, "activation_scheme")?;
        Ok(Self { block, dynamic_inputs: inputs.as_deref() != Some("static") })
    }
}

impl Declaration {
    /// Parses the object that declares a quantization.
    pub fn parse(value: &Value) -> Result<Self, QuantConfigError> {
        match value {
            Value::Object(object) if object.get("quant_method").and_then(Value::as_str) == Some(FP8) => {
                Fp8::parse(object).map(Self::Fp8)
            }
            _ => QuantizationConfig::parse(value).map(|config| Self::Groups(Box::new(config))),
        }
    }
}

/// The declared quantization in a `config.json`, wherever it stands.
pub fn declared(config: &Value) -> Option<&Value> {
    let inner = config.get("text_config");
    [Some(config), inner]
        .into_iter()
        .flatten()
        .flat_map(|object| DECLARING_KEYS.iter().filter_map(|key| object.get(*key)))
        .find(|value| !value.is_null())
}

/// A `config.json` without its declared quantization.
pub fn without_declaration(config: &Value) -> Value {
    let mut config = config.clone();
    let remove = |object: &mut Value| {
        if let Value::Object(keys) = object {
            for key in DECLARING_KEYS {
                // Not `remove`, which would reorder what follows.
                keys.shift_remove(key);
            }
        }
    };
    remove(&mut config);
    if let Some(inner) = config.get_mut("text_config") {
        remove(inner);
    }
    config
}

fn text(object: &Map<String, Value>, key: &str) -> Result<Option<String>, QuantConfigError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(key, "a string", other)),
    }
}

fn wrong(field: &str, expected: &str, found: &Value) -> QuantConfigError {
    let shown = match found {
        Value::Object(_) | Value::Array(_) => kind(found).to_owned(),
        other => other.to_string(),
    };
    QuantConfigError::Field { field: field.to_owned(), expected: expected.to_owned(), found: shown }
}

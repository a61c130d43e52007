//! What `config.json` says of the decoder, checked: every field this engine computes with, in both spellings.
//!
//! transformers 4 writes `rope_theta`, `rope_scaling` and `torch_dtype`; transformers 5 writes
//! `rope_parameters {rope_theta, rope_type, …}` and `dtype`. Defaults of absent fields are those of transformers 5.17
//! `configuration_llama.py`. An option that would change the computation and is not implemented is refused by name.

use serde_json::{Map, Value};

use crate::base::closest;
use crate::record::{Classified, FailureClass};

/// Architectures of the built-in engine, as `config.json` names them in `architectures`.
pub const ARCHITECTURES: &[&str] = &["LlamaForCausalLM"];

/// A llama-like decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Class name, one of [`ARCHITECTURES`].
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// D, even.
    pub head_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Longest input.
    pub max_position_embeddings: usize,
    /// ε of every normalization.
    pub rms_norm_eps: f32,
    /// Position embedding.
    pub rope: RopeParameters,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

/// Rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeParameters {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// `rope_type`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    Default,
    /// `llama3`: low frequencies divided by `factor`, a smooth transition between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are left alone.
        high_freq_factor: f32,
        /// Context length of pretraining.
        original_max_position_embeddings: f32,
    },
}

/// Why a model configuration cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No implementation for the architecture.
    #[error("config.json: architecture {found} is not implemented")]
    Architecture {
        /// What the file names.
        found: String,
    },
    /// An option that changes the computation.
    #[error("config.json: {field} = {found} is not implemented")]
    Option {
        /// Field, with a dot for nested ones.
        field: String,
        /// Its value.
        found: String,
    },
    /// A field the computation needs.
    #[error("config.json: {field} is missing")]
    Missing {
        /// Field, with a dot for nested ones.
        field: String,
    },
    /// A field of the wrong type or value.
    #[error("config.json: {field} must be {expected}, found {found}")]
    Wrong {
        /// Field, with a dot for nested ones.
        field: String,
        /// What would be right.
        expected: String,
        /// What the file says.
        found: String,
    },
}

impl Classified for ConfigError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Architecture { .. } | Self::Option { .. } => FailureClass::ModelUnsupported,
            Self::Missing { .. } | Self::Wrong { .. } => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Architecture { found } => {
                let like = closest::closest(found, ARCHITECTURES.iter().copied());
                let like = like.map_or(String::new(), |name| format!(" (the closest is {name})"));
                Some(format!(
                    "the built-in engine runs {}{like}; serve other models with an external engine and --endpoint",
                    ARCHITECTURES.join(", ")
                ))
            }
            Self::Option { .. } => Some("serve this model with an external engine and --endpoint".to_owned()),
            Self::Missing { .. } | Self::Wrong { .. } => None,
        }
    }
}

impl ModelConfig {
    /// Reads the parsed `config.json`.
    pub fn parse(config: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::of(config, "")?;
        let architecture = architecture(&fields)?;
        refuse_options(&fields)?;
        let hidden_size = fields.positive("hidden_size", None)?;
        let num_attention_heads = fields.positive("num_attention_heads", None)?;
        let num_key_value_heads = fields.positive("num_key_value_heads", Some(num_attention_heads))?;
        if num_attention_heads % num_key_value_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {num_attention_heads}");
            return Err(fields.wrong("num_key_value_heads", expected));
        }
        let derived = hidden_size / num_attention_heads;
        let head_dim = fields.positive("head_dim", (derived > 0).then_some(derived))?;
        if head_dim % 2 != 0 {
            return Err(ConfigError::Wrong {
                field: "head_dim".to_owned(),
                expected: "even".to_owned(),
                found: head_dim.to_string(),
            });
        }
        let max_position_embeddings = fields.positive("max_position_embeddings", Some(2048))?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: fields.positive("intermediate_size", None)?,
            num_hidden_layers: fields.positive("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: fields.positive("vocab_size", None)?,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", Some(1e-6))? as f32,
            rope: rope(&fields, max_position_embeddings)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        })
    }
}

impl RopeParameters {
    /// f_i = θ^(−2i/D) for i < D/2, scaled; rounded to f32 where transformers rounds.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = (0..head_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / self.theta.powf(f64::from(exponent)) as f32
        });
        match self.scaling {
            RopeScaling::Default => base.collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => base
                .map(|f| {
                    let wavelength = std::f32::consts::TAU / f;
                    if wavelength > original / low {
                        f / factor
                    } else if wavelength < original / high {
                        f
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .collect(),
        }
    }
}

fn architecture(fields: &Fields<'_>) -> Result<String, ConfigError> {
    let names: Vec<&str> = match fields.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(fields.wrong("architectures", "a list of class names")),
        None => Vec::new(),
    };
    let model_type = fields.get("model_type").and_then(Value::as_str);
    match (names.as_slice(), model_type) {
        ([name], _) if ARCHITECTURES.contains(name) => Ok((*name).to_owned()),
        ([], Some("llama")) => Ok("LlamaForCausalLM".to_owned()),
        ([], None) => Err(fields.missing("architectures")),
        ([], Some(model_type)) => Err(ConfigError::Architecture { found: model_type.to_owned() }),
        (names, _) => Err(ConfigError::Architecture { found: names.join(", ") }),
    }
}

/// Refuses what transformers would compute differently.
fn refuse_options(fields: &Fields<'_>) -> Result<(), ConfigError> {
    for field in ["attention_bias", "mlp_bias"] {
        if fields.flag(field)? {
            return Err(fields.unsupported(field));
        }
    }
    if !matches!(fields.get("hidden_act").map(Value::as_str), None | Some(Some("silu" | "swish"))) {
        return Err(fields.unsupported("hidden_act"));
    }
    for field in ["sliding_window", "partial_rotary_factor"] {
        if fields.get(field).is_some_and(|v| v.as_f64() != Some(1.0)) {
            return Err(fields.unsupported(field));
        }
    }
    Ok(())
}

fn rope(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<RopeParameters, ConfigError> {
    // transformers prefers rope_scaling over rope_parameters when both are there.
    let name = if fields.get("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    let nested = match fields.get(name) {
        Some(value) => Some(Fields::of(value, name)?),
        None => None,
    };
    let top_theta = fields.number("rope_theta", Some(10_000.0))?;
    let theta = nested.as_ref().map_or(Ok(top_theta), |n| n.number("rope_theta", Some(top_theta)))?;
    let Some(nested) = nested else {
        return Ok(RopeParameters { theta, scaling: RopeScaling::Default });
    };
    if nested.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0)) {
        return Err(nested.unsupported("partial_rotary_factor"));
    }
    let key = if nested.get("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match nested.get(key).map(Value::as_str) {
        None | Some(Some("default")) => RopeScaling::Default,
        Some(Some("llama3")) => RopeScaling::Llama3 {
            factor: nested.number("factor", None)? as f32,
            low_freq_factor: nested.number("low_freq_factor", None)? as f32,
            high_freq_factor: nested.number("high_freq_factor", None)? as f32,
            original_max_position_embeddings: nested
                .positive("original_max_position_embeddings", Some(max_position_embeddings))?
                as f32,
        },
        Some(_) => return Err(nested.unsupported(key)),
    };
    Ok(RopeParameters { theta, scaling })
}

/// A JSON object whose fields are asked for by name; `null` counts as absent.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, path: &'a str) -> Result<Self, ConfigError> {
        let object = value.as_object().ok_or_else(|| ConfigError::Wrong {
            field: if path.is_empty() { "the file" } else { path }.to_owned(),
            expected: "an object".to_owned(),
            found: shorten(value),
        })?;
        Ok(Self { object, path })
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn found(&self, field: &str) -> String {
        self.get(field).map_or_else(|| "nothing".to_owned(), shorten)
    }

    fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing { field: self.name(field) }
    }

    fn wrong(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Wrong { field: self.name(field), expected: expected.into(), found: self.found(field) }
    }

    fn unsupported(&self, field: &str) -> ConfigError {
        ConfigError::Option { field: self.name(field), found: self.found(field) }
    }

    /// An integer in 1..2^31: larger ones would overflow products of sizes.
    fn positive(&self, field: &str, default: Option<usize>) -> Result<usize, ConfigError> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => value
                .as_u64()
                .filter(|n| (1..1 << 31).contains(n))
                .map(|n| n as usize)
                .ok_or_else(|| self.wrong(field, "a positive integer below 2^31")),
        }
    }

    /// A finite number above 0.
    fn number(&self, field: &str, default: Option<f64>) -> Result<f64, ConfigError> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.wrong(field, "a positive number")),
        }
    }

    fn flag(&self, field: &str) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }
}

/// A value for messages, at most 60 characters of it.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
            "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
            "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "float32"
        })
    }

    fn with(field: &str, value: Value) -> Result<ModelConfig, ConfigError> {
        let mut config = base();
        config[field] = value;
        ModelConfig::parse(&config)
    }

    #[test]
    fn both_spellings_of_rope() {
        let old = ModelConfig::parse(&base()).unwrap();
        assert_eq!((old.head_dim, old.rope.theta), (8, 10_000.0));
        let mut new = base();
        new.as_object_mut().unwrap().remove("rope_theta");
        new["rope_parameters"] = json!({"rope_theta": 100000.0, "rope_type": "default"});
        assert_eq!(ModelConfig::parse(&new).unwrap().rope.theta, 100_000.0);
        assert_eq!(with("head_dim", json!(16)).unwrap().head_dim, 16);
    }

    /// Reference: transformers 5.17 `ROPE_INIT_FUNCTIONS["llama3"]` with head_dim 16, theta 500000, factor 32,
    /// low 1, high 4, original 8192 (Llama 3.2); computed by `tests/oracle/rope_llama3.py`.
    #[test]
    fn llama3_frequencies() {
        let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0});
        let rope = with("rope_scaling", scaling).unwrap().rope;
        let want = LLAMA3;
        for (got, want) in rope.inverse_frequencies(16).iter().zip(want) {
            assert!((got / want - 1.0).abs() < 1e-6, "{got}, not {want}");
        }
    }

    const LLAMA3: [f32; 8] = [
        1.0,
        1.939_227_6e-1,
        3.760_603e-2,
        7.292_665e-3,
        4.295_567e-4,
        8.570_256e-6,
        1.661_967_4e-6,
        3.222_933e-7,
    ];

    #[test]
    fn unsupported_options_are_named() {
        for (field, value, named) in [
            ("attention_bias", json!(true), "attention_bias"),
            ("mlp_bias", json!(true), "mlp_bias"),
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("sliding_window", json!(4096), "sliding_window"),
            ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "rope_scaling.type"),
            ("rope_parameters", json!({"rope_type": "linear"}), "rope_parameters.rope_type"),
            (
                "rope_parameters",
                json!({"partial_rotary_factor": 0.5}),
                "rope_parameters.partial_rotary_factor",
            ),
            ("architectures", json!(["GemmaForCausalLM"]), "GemmaForCausalLM"),
        ] {
            let error = with(field, value).unwrap_err();
            assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
            assert!(error.to_string().contains(named) && error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        for (field, value) in [
            ("hidden_size", json!(null)),
            ("hidden_size", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("num_key_value_heads", json!(-1)),
            ("head_dim", json!(7)),
            ("vocab_size", json!(1u64 << 40)),
            ("rms_norm_eps", json!("small")),
            ("tie_word_embeddings", json!(1)),
            ("rope_parameters", json!([1])),
            ("rope_theta", json!(-1)),
            ("architectures", json!("LlamaForCausalLM")),
        ] {
            let error = with(field, value).unwrap_err();
            assert_eq!(error.failure_class(), FailureClass::UserConfigError);
            assert!(error.to_string().contains(field), "{error}");
        }
        assert!(ModelConfig::parse(&json!([])).is_err());
    }
}

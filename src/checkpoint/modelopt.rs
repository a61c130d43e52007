//! Quantization as NVIDIA ModelOpt declares it: `quant_algo` names one of a few schemes.
//!
//! The declaration lies in `config.json` under `quantization_config`, in `hf_quant_config.json` under `quantization`,
//! or in both; keys differ (`ignore` and `exclude_modules`, `kv_cache_scheme` and `kv_cache_quant_algo`). Excluded
//! modules are shell patterns.
//! Source: ModelOpt a2fbac7, `export/{quant_utils,convert_hf_config}.py`; vLLM's `quantization/modelopt.py`.

use serde_json::{Map, Value};

use super::quant_args::{
    Dynamic, E4M3_SCALES, E8M0_SCALES, Observer, QuantType, QuantizationArgs, QuantizationScheme, Strategy,
};

/// `quant_method` in `config.json`, and the producer's name by which loaders recognise the layout.
pub const METHOD: &str = "modelopt";
/// `quant_algo` of a checkpoint whose `quantized_layers` name an algorithm each.
pub const MIXED: &str = "MIXED_PRECISION";
/// The file beside `config.json`.
pub const FILE: &str = "hf_quant_config.json";

/// A `quant_algo` and what it means.
struct Algorithm {
    name: &'static str,
    weights: Operand,
    inputs: Option<Operand>,
}

/// Floats of so many bits, symmetric.
#[derive(Clone, Copy)]
struct Operand {
    num_bits: u8,
    strategy: Strategy,
    /// Columns of a group, rows and columns of a block.
    size: Option<usize>,
    dynamic: Dynamic,
}

const fn operand(num_bits: u8, strategy: Strategy, size: Option<usize>, dynamic: Dynamic) -> Operand {
    Operand { num_bits, strategy, size, dynamic }
}

/// The algorithms whose checkpoints vLLM and TensorRT-LLM read without calibrated pre-scales.
const ALGORITHMS: &[Algorithm] = &[
    Algorithm {
        name: "FP8",
        weights: operand(8, Strategy::Tensor, None, Dynamic::No),
        inputs: Some(operand(8, Strategy::Tensor, None, Dynamic::No)),
    },
    Algorithm {
        name: "FP8_PER_CHANNEL_PER_TOKEN",
        weights: operand(8, Strategy::Channel, None, Dynamic::No),
        inputs: Some(operand(8, Strategy::Token, None, Dynamic::Yes)),
    },
    Algorithm {
        name: "FP8_PB_WO",
        weights: operand(8, Strategy::Block, Some(128), Dynamic::No),
        inputs: None,
    },
    Algorithm {
        name: "NVFP4",
        weights: operand(4, Strategy::TensorGroup, Some(16), Dynamic::No),
        inputs: Some(operand(4, Strategy::TensorGroup, Some(16), Dynamic::Local)),
    },
    Algorithm {
        name: "W4A16_NVFP4",
        weights: operand(4, Strategy::TensorGroup, Some(16), Dynamic::No),
        inputs: None,
    },
    Algorithm {
        name: "MXFP8",
        weights: operand(8, Strategy::Group, Some(32), Dynamic::No),
        inputs: Some(operand(8, Strategy::Group, Some(32), Dynamic::Yes)),
    },
];

impl Operand {
    fn args(self) -> QuantizationArgs {
        let is_block = self.strategy == Strategy::Block;
        let scale_dtype = match self.strategy {
            Strategy::TensorGroup => Some(E4M3_SCALES.to_owned()),
            Strategy::Group => Some(E8M0_SCALES.to_owned()),
            _ => None,
        };
        QuantizationArgs {
            num_bits: self.num_bits,
            qtype: QuantType::Float,
            symmetric: true,
            strategy: self.strategy,
            group_size: self.size.filter(|_| !is_block),
            block_structure: self.size.filter(|_| is_block).map(|size| [size, size]),
            dynamic: self.dynamic,
            scale_dtype,
            observer: Observer::default(),
            amax: None,
        }
    }
}

/// The names of all algorithms here.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALGORITHMS.iter().map(|a| a.name)
}

/// `quant_algo` of a scheme; `None` where ModelOpt's layout does not hold it.
pub fn algorithm(scheme: &QuantizationScheme) -> Option<&'static str> {
    let declared = QuantizationArgs::declared;
    let (weights, inputs) = (declared(&scheme.weights), scheme.input_activations.as_ref().map(declared));
    ALGORITHMS
        .iter()
        .find(|a| a.weights.args() == weights && a.inputs.map(Operand::args) == inputs)
        .map(|a| a.name)
}

/// The scheme of a `quant_algo`, in any case of its letters.
pub fn scheme(algorithm: &str, targets: Vec<String>) -> Option<QuantizationScheme> {
    let known = ALGORITHMS.iter().find(|a| a.name.eq_ignore_ascii_case(algorithm))?;
    Some(QuantizationScheme {
        targets,
        weights: known.weights.args(),
        input_activations: known.inputs.map(Operand::args),
    })
}

/// A declaration, whichever of the two files it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// `quant_algo`.
    pub algorithm: Option<String>,
    /// Algorithms by module, sorted, for [`MIXED`].
    pub layers: Vec<(String, String)>,
    /// Excluded modules, as shell patterns.
    pub exclude: Vec<String>,
    /// `FP8` or another type of keys and values.
    pub kv_cache: Option<String>,
}

impl Declaration {
    /// Reads the object of `config.json` or of `hf_quant_config.json`; an error is the place and what was expected.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, (String, &'static str)> {
        let nested = object.get("quantization").and_then(Value::as_object);
        let (keys, exclude_key) = match nested {
            Some(keys) => (keys, "exclude_modules"),
            None => (object, "ignore"),
        };
        let set = |key: &str| keys.get(key).filter(|v| !v.is_null());
        let text = |key: &str| match set(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(_) => Err((key.to_owned(), "a string")),
        };
        let exclude = match set(exclude_key) {
            None => Vec::new(),
            Some(Value::Array(names)) => names
                .iter()
                .map(|n| n.as_str().map(str::to_owned).ok_or((exclude_key.to_owned(), "a list of names")))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err((exclude_key.to_owned(), "a list of names")),
        };
        let mut layers: Vec<(String, String)> = match set("quantized_layers") {
            None => Vec::new(),
            Some(Value::Object(layers)) => layers
                .iter()
                .map(|(module, layer)| {
                    let algorithm = layer.get("quant_algo").and_then(Value::as_str);
                    let place = || (format!("quantized_layers.{module}.quant_algo"), "a string");
                    Ok((module.clone(), algorithm.ok_or_else(place)?.to_owned()))
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(("quantized_layers".to_owned(), "an object of modules")),
        };
        layers.sort();
        let kv_cache = match set("kv_cache_scheme") {
            None => text("kv_cache_quant_algo")?,
            Some(Value::String(s)) => Some(s.clone()),
            Some(Value::Object(args)) if args.get("num_bits") == Some(&Value::from(8)) => {
                Some("FP8".to_owned())
            }
            Some(_) => return Err(("kv_cache_scheme".to_owned(), "8-bit floats or a name")),
        };
        Ok(Self { algorithm: text("quant_algo")?, layers, exclude, kv_cache })
    }

    /// Excluded modules as entries of a [`super::name_match::NameMatcher`]. A name without wildcards covers everything
    /// below it.
    pub fn ignore(&self) -> Vec<String> {
        self.exclude.iter().map(|pattern| to_regex(pattern)).collect()
    }
}

/// A shell pattern as a `re:` entry. Character classes do not occur in what ModelOpt writes and stand for themselves.
fn to_regex(pattern: &str) -> String {
    let mut regex = String::from("re:");
    for c in pattern.chars() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push_str(if pattern.contains(['*', '?']) { "$" } else { r"(\..*)?$" });
    regex
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn algorithms_and_schemes_are_one_table() {
        for name in names() {
            let scheme = scheme(&name.to_lowercase(), vec!["Linear".to_owned()]).unwrap();
            assert_eq!(algorithm(&scheme), Some(name));
            assert!(scheme.format().is_some(), "{name}");
        }
        assert!(scheme("W4A16_AWQ", Vec::new()).is_none());
    }

    #[test]
    fn both_files_say_the_same() {
        let one = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
            "kv_cache_scheme": {"dynamic": false, "num_bits": 8, "type": "float"}});
        let other = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}});
        let parse = |v: &Value| Declaration::parse(v.as_object().unwrap()).unwrap();
        assert_eq!(parse(&one), parse(&other));
        assert_eq!(parse(&one).algorithm.as_deref(), Some("NVFP4"));
    }

    #[test]
    fn shell_patterns() {
        for (pattern, regex) in [
            ("lm_head", r"re:lm_head(\..*)?$"),
            ("model.layers.0.self_attn*", r"re:model\.layers\.0\.self_attn.*$"),
            ("*.gate", r"re:.*\.gate$"),
        ] {
            assert_eq!(to_regex(pattern), regex);
        }
    }

    #[test]
    fn malformed_declarations_are_located() {
        for (value, place) in [
            (json!({"quant_algo": 7}), "quant_algo"),
            (json!({"ignore": "lm_head"}), "ignore"),
            (json!({"ignore": [1]}), "ignore"),
            (json!({"quantized_layers": []}), "quantized_layers"),
            (json!({"quantized_layers": {"a": {}}}), "quantized_layers.a.quant_algo"),
            (json!({"kv_cache_scheme": 8}), "kv_cache_scheme"),
        ] {
            let error = Declaration::parse(value.as_object().unwrap()).unwrap_err();
            assert_eq!(error.0, place);
        }
    }
}

//! Quantization arguments as a recipe writes them, and which of them go together.
//!
//! | weights | inputs |
//! |---|---|
//! | FP8 by tensor or channel | none; FP8 by token, dynamic; FP8 by tensor with a constant `amax` |
//! | FP8 by block | none; FP8 by group of 128, dynamic |
//! | INT2 to INT8 by tensor (8 bits), channel or group | none; INT8 or FP8 by token, dynamic; INT8 by tensor with a constant `amax` |
//! | NVFP4: FP4 by tensor_group of 16 | none; FP4 by tensor_group of 16, dynamic: local, with a constant `amax` |
//! | MXFP4, MXFP6, MXFP8: floats of 4, 6, 8 bits by group of 32 | none; FP4 or FP8 by group of 32, dynamic |
//!
//! Static inputs without `amax` are calibrated, those of the KV cache cannot be.

use serde::Deserialize;
use serde::de::{Deserializer, Unexpected, Visitor};

use crate::checkpoint::quant_args::{
    Amax, Dynamic, E4M3_SCALES, E8M0_SCALES, Observer, QuantType, QuantizationArgs, Strategy,
};

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
    dynamic: Dynamic,
    #[serde(default)]
    observer: Option<RawObserver>,
    #[serde(default, deserialize_with = "amax")]
    amax: Option<Amax>,
}

/// Names of observers in recipes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawObserver {
    Absmax,
    Mse,
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
        let scale_dtype = match (self.qtype, self.strategy, self.group_size) {
            (QuantType::Float, Strategy::TensorGroup, _) => Some(E4M3_SCALES.to_owned()),
            (QuantType::Float, Strategy::Group, Some(32)) => Some(E8M0_SCALES.to_owned()),
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
            observer: match self.observer {
                None | Some(RawObserver::Absmax) => Observer::MinMax,
                Some(RawObserver::Mse) => Observer::Mse,
            },
            amax: self.amax,
        })
    }
}

/// Arguments of weights.
#[derive(Deserialize)]
#[serde(try_from = "RawArgs")]
pub(super) struct WeightArgs(pub(super) QuantizationArgs);

impl TryFrom<RawArgs> for WeightArgs {
    type Error = String;

    fn try_from(raw: RawArgs) -> Result<Self, String> {
        if raw.dynamic != Dynamic::No {
            return Err("weights are not dynamic: their scales are stored".to_owned());
        }
        if raw.amax.is_some() {
            return Err("amax is for inputs: the largest magnitude of weights is known".to_owned());
        }
        let by_group_of_floats = raw.qtype == QuantType::Float && raw.strategy == Strategy::Group;
        if by_group_of_floats && raw.group_size.is_some_and(|g| g != 32) {
            return Err("floats by group are MX formats, whose group_size is 32".to_owned());
        }
        if raw.observer == Some(RawObserver::Mse) && raw.strategy == Strategy::Tensor {
            return Err("observer mse searches rows, groups or blocks, not strategy tensor".to_owned());
        }
        raw.check().map(Self)
    }
}

/// Arguments of inputs, or of the KV cache.
#[derive(Deserialize)]
#[serde(try_from = "RawArgs")]
pub(super) struct InputArgs(pub(super) QuantizationArgs);

impl TryFrom<RawArgs> for InputArgs {
    type Error = String;

    fn try_from(raw: RawArgs) -> Result<Self, String> {
        if raw.observer.is_some() {
            return Err("observer is for weights".to_owned());
        }
        if !raw.symmetric {
            return Err("inputs are quantized symmetrically".to_owned());
        }
        let known = match raw.strategy {
            Strategy::Token | Strategy::Group => raw.dynamic == Dynamic::Yes,
            Strategy::Tensor => raw.dynamic == Dynamic::No,
            Strategy::TensorGroup => raw.dynamic == Dynamic::Local,
            Strategy::Channel | Strategy::Block => false,
        };
        if !known {
            return Err("inputs are quantized by token or group with dynamic: true, by tensor with \
                        dynamic: false, or by tensor_group with dynamic: local"
                .to_owned());
        }
        if raw.amax.is_some() && raw.dynamic == Dynamic::Yes {
            return Err("amax is for static scales; dynamic ones are found at run time".to_owned());
        }
        raw.check().map(Self)
    }
}

/// The KV cache's arguments: FP8 with one static scale for keys and one for values.
pub(super) fn kv_cache(args: &QuantizationArgs) -> Result<(), String> {
    let fp8 = (args.qtype, args.num_bits, args.strategy) == (QuantType::Float, 8, Strategy::Tensor);
    if fp8 { Ok(()) } else { Err("kv_cache must be {num_bits: 8, type: float, strategy: tensor}".to_owned()) }
}

/// Whether inputs may be quantized like this under these weights: the table of this module.
pub(super) fn go_together(weights: &QuantizationArgs, inputs: &QuantizationArgs) -> Result<(), String> {
    use QuantType::{Float, Int};
    let kind = (inputs.qtype, inputs.num_bits, inputs.strategy, inputs.group_size);
    let by_token = |qtype| kind == (qtype, 8, Strategy::Token, None);
    let by_tensor = |qtype| kind == (qtype, 8, Strategy::Tensor, None);
    let fits = match (weights.qtype, weights.strategy) {
        _ if weights.is_mx() => matches!(kind, (Float, 4 | 8, Strategy::Group, Some(32))),
        (Float, Strategy::TensorGroup) => kind == (Float, 4, Strategy::TensorGroup, Some(16)),
        (Float, Strategy::Block) => kind == (Float, 8, Strategy::Group, Some(128)),
        (Float, _) => by_token(Float) || by_tensor(Float),
        (Int, Strategy::Channel | Strategy::Tensor) => by_token(Int) || by_tensor(Int) || by_token(Float),
        (Int, _) => by_token(Int) || by_token(Float),
    };
    if fits {
        return Ok(());
    }
    Err(format!(
        "{} inputs do not go with {} weights: no engine multiplies them",
        inputs.describe(),
        weights.describe()
    ))
}

/// A whole number within bounds. Judged by the visitor, so that the error gets the place of the number itself.
struct Number {
    what: &'static str,
    min: u64,
    max: u64,
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// Samples of a calibration.
pub(super) fn samples<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    deserializer.deserialize_u64(Number { what: "samples", min: 1, max: 1 << 20 }).map(|n| Some(n as usize))
}

/// Tokens of a calibration's sample.
pub(super) fn sequence_length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    deserializer
        .deserialize_u64(Number { what: "sequence_length", min: 1, max: 1 << 24 })
        .map(|n| Some(n as usize))
}

fn amax<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Amax>, D::Error> {
    let value = f32::deserialize(deserializer)?;
    Amax::try_from(value).map(Some).map_err(serde::de::Error::custom)
}

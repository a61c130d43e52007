//! Quantization as checkpoints declare it: the argument table of compressed-tensors.
//!
//! Names and values are those of `config.json`'s `quantization_config` (compressed-tensors 0.20,
//! `quantization/quant_args.py`), so that recipe, export and loader speak of the same thing.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Element type of quantized values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// Two's-complement integers.
    Int,
    /// Floating point: 8 bits = E4M3, 6 = E2M3, 4 = E2M1.
    Float,
}

/// Which elements share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The whole tensor.
    Tensor,
    /// One output row of a weight.
    Channel,
    /// `group_size` consecutive elements along the input dimension.
    Group,
    /// A rectangle of `block_structure`.
    Block,
    /// One row of activations.
    Token,
    /// Groups with FP8 scales below one f32 scale a tensor (NVFP4).
    TensorGroup,
}

/// When scales are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dynamic {
    /// Before: they are stored. Written `false`.
    #[default]
    No,
    /// From the data at run time. Written `true`.
    Yes,
    /// Scales of groups at run time, below a stored global scale. Written `"local"`.
    Local,
}

impl Serialize for Dynamic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes => serializer.serialize_bool(true),
            Self::Local => serializer.serialize_str("local"),
        }
    }
}

impl<'de> Deserialize<'de> for Dynamic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DynamicVisitor)
    }
}

struct DynamicVisitor;

impl serde::de::Visitor<'_> for DynamicVisitor {
    type Value = Dynamic;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("true, false or local")
    }

    fn visit_bool<E: serde::de::Error>(self, dynamic: bool) -> Result<Dynamic, E> {
        Ok(if dynamic { Dynamic::Yes } else { Dynamic::No })
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Dynamic, E> {
        if word == "local" {
            return Ok(Dynamic::Local);
        }
        Err(E::invalid_value(serde::de::Unexpected::Str(word), &self))
    }
}

/// How the range of weights is found that the codes cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Observer {
    /// From the smallest to the largest value.
    #[default]
    #[serde(rename = "memoryless_minmax")]
    MinMax,
    /// The share of that range with the smallest error.
    #[serde(rename = "memoryless_mse")]
    Mse,
}

impl Observer {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A largest magnitude that is known beforehand: finite and above zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f32")]
pub struct Amax(f32);

impl Amax {
    /// The magnitude.
    pub fn get(self) -> f32 {
        self.0
    }
}

impl TryFrom<f32> for Amax {
    type Error = String;

    fn try_from(value: f32) -> Result<Self, String> {
        if value.is_finite() && value > 0.0 {
            return Ok(Self(value));
        }
        Err(format!("amax is {value}, expected a finite number above 0"))
    }
}

// No NaN: equality is an equivalence, and equal values have equal bits.
impl Eq for Amax {}

impl Hash for Amax {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// How one operand (weights or activations) is quantized.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationArgs {
    /// Bits per element.
    pub num_bits: u8,
    /// Element type.
    #[serde(rename = "type")]
    pub qtype: QuantType,
    /// Whether the zero point is fixed at 0.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// Which elements share a scale.
    pub strategy: Strategy,
    /// Elements per group for `group` and `tensor_group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// `[rows, columns]` for `block`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_structure: Option<[usize; 2]>,
    /// Whether scales are computed from the data at run time (activations).
    #[serde(default)]
    pub dynamic: Dynamic,
    /// Dtype of stored scales where it is not the weight's, e.g. `torch.float8_e4m3fn`, `torch.uint8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<String>,
    /// How ranges of weights are found; not part of what is declared to loaders.
    #[serde(default, skip_serializing_if = "Observer::is_default")]
    pub observer: Observer,
    /// The constant largest magnitude that a recipe gives for static activations; a config has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amax: Option<Amax>,
}

/// Dtype of E4M3 scales in `scale_dtype`.
pub const E4M3_SCALES: &str = "torch.float8_e4m3fn";
/// Dtype of E8M0 scales in `scale_dtype`: the exponents as bytes.
pub const E8M0_SCALES: &str = "torch.uint8";

impl QuantizationArgs {
    /// Whether these are weights of an MX format: a power-of-two scale for 32 floats of 4, 6 or 8 bits. Before
    /// compressed-tensors 0.20, FP4 configs do not name the type of their scales.
    pub fn is_mx(&self) -> bool {
        let by_group = self.strategy == Strategy::Group && self.group_size == Some(32);
        let scales = match self.num_bits {
            4 => self.scale_dtype.as_deref().is_none_or(|d| d == E8M0_SCALES),
            6 | 8 => self.scale_dtype.as_deref() == Some(E8M0_SCALES),
            _ => false,
        };
        self.qtype == QuantType::Float && by_group && scales
    }

    /// What a config declares of these arguments: all but how ranges are found.
    #[must_use]
    pub fn declared(&self) -> Self {
        Self { observer: Observer::default(), amax: None, ..self.clone() }
    }

    /// Whether a config that declares `other` declares these. Older configs do not name the dtype of scales.
    pub fn is_declared_as(&self, other: &Self) -> bool {
        let scale_dtype = self.scale_dtype.clone().and(other.scale_dtype.clone());
        let named = |args: &Self| match scale_dtype {
            Some(_) => args.declared(),
            None => Self { scale_dtype: None, ..args.declared() },
        };
        named(self) == named(other)
    }

    /// In words, e.g. `float8 group 128 dynamic symmetric`.
    pub fn describe(&self) -> String {
        let element = if self.qtype == QuantType::Float { "float" } else { "int" };
        let strategy = format!("{:?}", self.strategy).to_lowercase();
        let group = self.group_size.map_or(String::new(), |size| format!(" {size}"));
        let when = match self.dynamic {
            Dynamic::No => "static",
            Dynamic::Yes => "dynamic",
            Dynamic::Local => "dynamic (local)",
        };
        let symmetry = if self.symmetric { "symmetric" } else { "asymmetric" };
        format!("{element}{} {strategy}{group} {when} {symmetry}", self.num_bits)
    }
}

fn yes() -> bool {
    true
}

/// One config group: which modules, and how weights and inputs are quantized.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationScheme {
    /// Module class (`Linear`), exact names, or `re:` patterns.
    pub targets: Vec<String>,
    /// Weight quantization.
    pub weights: QuantizationArgs,
    /// Input quantization, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_activations: Option<QuantizationArgs>,
}

/// Layout of a quantized module's tensors (compressed-tensors `CompressionFormat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Format {
    /// FP8 with or without quantized inputs.
    #[serde(rename = "float-quantized")]
    FloatQuantized,
    /// INT8 with quantized inputs.
    #[serde(rename = "int-quantized")]
    IntQuantized,
    /// FP8 weights only.
    #[serde(rename = "naive-quantized")]
    NaiveQuantized,
    /// INT2..8 packed into int32 words.
    #[serde(rename = "pack-quantized")]
    PackQuantized,
    /// NVFP4.
    #[serde(rename = "nvfp4-pack-quantized")]
    Nvfp4PackQuantized,
    /// MXFP4.
    #[serde(rename = "mxfp4-pack-quantized")]
    Mxfp4PackQuantized,
    /// MXFP6 (E2M3).
    #[serde(rename = "mxfp6-pack-quantized")]
    Mxfp6PackQuantized,
    /// MXFP8.
    #[serde(rename = "mxfp8-quantized")]
    Mxfp8Quantized,
}

/// Whose names and config keys a quantized checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// compressed-tensors, as llm-compressor writes and vLLM, SGLang and transformers read it.
    #[default]
    CompressedTensors,
    /// NVIDIA ModelOpt's `export_hf_checkpoint`, as TensorRT-LLM, vLLM and SGLang read it.
    Modelopt,
}

impl QuantizationScheme {
    /// The layout that compressed-tensors infers for this scheme (compressors/format.py: mxfp4, mxfp6, mxfp8, nvfp4,
    /// int, pack, float, naive in this order); `None` for schemes without a layout here.
    ///
    /// One exception: packable integers with FP8 inputs (W4AFP8) stay packed, because vLLM's kernel for them reads
    /// nothing else (checkpoint-formats §1.2), while compressed-tensors would store one code a byte.
    pub fn format(&self) -> Option<Format> {
        let w = &self.weights;
        if w.is_mx() {
            return Some(match w.num_bits {
                4 => Format::Mxfp4PackQuantized,
                6 => Format::Mxfp6PackQuantized,
                _ => Format::Mxfp8Quantized,
            });
        }
        let inputs = self.input_activations.as_ref().map(|args| args.qtype);
        Some(match (w.qtype, w.num_bits, w.strategy, inputs) {
            (QuantType::Float, 4, Strategy::TensorGroup, _) if w.group_size == Some(16) => {
                Format::Nvfp4PackQuantized
            }
            (QuantType::Int, 2..=8, _, Some(QuantType::Int)) => Format::IntQuantized,
            (QuantType::Int, 2..=8, _, _) => Format::PackQuantized,
            (QuantType::Float, 8, _, Some(_)) => Format::FloatQuantized,
            (QuantType::Float, 8, _, None) => Format::NaiveQuantized,
            _ => return None,
        })
    }
}

//! Quantization as checkpoints declare it: the argument table of compressed-tensors.
//!
//! Names and values are those of `config.json`'s `quantization_config` (compressed-tensors 0.20,
//! `quantization/quant_args.py`), so that recipe, export and loader speak of the same thing.

use serde::{Deserialize, Serialize};

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
    pub dynamic: bool,
    /// Dtype of stored scales where it is not the weight's, e.g. `torch.float8_e4m3fn`, `torch.uint8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<String>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
}

impl QuantizationScheme {
    /// The layout that compressed-tensors infers for this scheme (compressors/format.py: mxfp4, nvfp4, int, pack,
    /// float, naive in this order); `None` for schemes without a layout here.
    pub fn format(&self) -> Option<Format> {
        let w = &self.weights;
        let activations = self.input_activations.is_some();
        Some(match (w.qtype, w.num_bits, w.strategy) {
            (QuantType::Float, 4, Strategy::Group) if w.group_size == Some(32) => Format::Mxfp4PackQuantized,
            (QuantType::Float, 4, Strategy::TensorGroup) if w.group_size == Some(16) => {
                Format::Nvfp4PackQuantized
            }
            (QuantType::Int, 8, _) if activations => Format::IntQuantized,
            (QuantType::Int, 2..=8, _) if !activations => Format::PackQuantized,
            (QuantType::Float, 8, _) if activations => Format::FloatQuantized,
            (QuantType::Float, 8, _) => Format::NaiveQuantized,
            _ => return None,
        })
    }
}

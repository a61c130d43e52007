//! What the checkpoint verifier saw in a checkpoint, and against its source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::engine::EngineSupport;
use super::finding::FailureClass;
use super::provenance::Provenance;
use crate::base::digest::Digest;

/// Result of `day0 scan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// What was scanned: directory or URL.
    pub checkpoint: String,
    /// Its digest, if all bytes were at hand.
    pub checkpoint_digest: Option<Digest>,
    /// Source it was compared with.
    pub source: Option<String>,
    /// Digest of the source.
    pub source_digest: Option<Digest>,
    /// Sizes.
    pub size: SizeScan,
    /// Declared quantization method, e.g. `compressed-tensors`; `None` when the config declares none.
    pub quant_method: Option<String>,
    /// Precision counts.
    pub coverage: CoverageScan,
    /// Differences of metadata against the source.
    pub metadata_diffs: Vec<MetadataDiff>,
    /// Defects found, each with the tensor's name.
    pub defects: Vec<Defect>,
    /// Checks that could not run, with the reason (a remote scan reads headers only). Never ACCEPT.
    pub not_checked: BTreeMap<String, String>,
    /// Number of tensors per dtype.
    pub dtype_counts: BTreeMap<String, usize>,
    /// Worth knowing, but no defect: nothing refuses the checkpoint because of it.
    #[serde(default)]
    pub notes: Vec<Defect>,
    /// Which engines load the checkpoint on one device, as far as their loaders were read.
    #[serde(default)]
    pub engines: Vec<EngineSupport>,
    /// Range of the values of scales by the tensors' last name, e.g. `weight_scale`.
    #[serde(default)]
    pub scale_ranges: BTreeMap<String, ValueRange>,
    /// Error of each quantized weight against the source, when asked for.
    #[serde(default)]
    pub errors: Vec<TensorError>,
    /// What was read of all values, when asked for.
    #[serde(default)]
    pub values: Option<ValuesScan>,
    /// What came over the network, for a scan by address.
    #[serde(default)]
    pub transfer: Option<Transfer>,
    /// Origin.
    pub provenance: Provenance,
}

/// Sizes in bytes of tensor data (headers and other files excluded).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SizeScan {
    /// Of the checkpoint.
    pub output_bytes: u64,
    /// Of the source on disk.
    pub source_bytes: Option<u64>,
    /// Of the source's tensors if all were BF16 (floating-point tensors counted at 2 bytes per element).
    pub source_bf16_bytes: Option<u64>,
    /// Whether the source is itself quantized.
    pub source_is_quantized: bool,
    /// Predicted from the source's headers and the recipe, when a recipe was given.
    pub predicted_bytes: Option<u64>,
    /// Number of parameters (elements of the dequantized weights).
    pub parameters: u64,
    /// 8 · output bytes / parameters.
    pub bits_per_weight: f64,
}

/// Modules by what they are, judged by dtype, shape and scales, against what the config declares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageScan {
    /// Modules per precision found, e.g. `fp8_e4m3: 196`, `bf16: 3`.
    pub modules_by_precision: BTreeMap<String, usize>,
    /// Quantized modules.
    pub quantized: usize,
    /// Linear-like modules unquantized and declared so (`ignore`).
    pub excluded: Vec<String>,
    /// Unquantized although the config (or the recipe) declares them quantized.
    pub unexpected_unquantized: Vec<String>,
    /// Quantized in another way than the config declares.
    pub declaration_mismatch: Vec<String>,
    /// Modules the recipe targets, when a recipe was given.
    pub recipe_targets: Option<usize>,
}

/// One difference of a metadata file against the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataDiff {
    /// File, e.g. `tokenizer.json`.
    pub file: String,
    /// Field inside it, or `content`.
    pub field: String,
    /// In the source.
    pub source: String,
    /// In the checkpoint.
    pub output: String,
    /// Whether quantizing explains it.
    #[serde(default)]
    pub kind: DiffKind,
}

/// What a difference of metadata means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiffKind {
    /// The model would compute something else, or see other tokens.
    #[default]
    Blocking,
    /// Quantizing itself, or what tools stamp into files.
    Expected,
}

/// One defect of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defect {
    /// Check that found it: `scales`, `fused_sets`, `shapes`, `dtypes`, `values`, `names`.
    pub check: String,
    /// Class of the failure.
    pub failure_class: FailureClass,
    /// Tensor or module.
    pub tensor: String,
    /// What was found.
    pub observed: String,
    /// What was expected.
    pub expected: String,
}

/// Smallest and largest of finite values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValueRange {
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

/// A look at every value of every tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ValuesScan {
    /// Tensors read.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Float tensors, or tensors of FP8 codes, in which every value is zero.
    pub zero_tensors: Vec<String>,
    /// Largest magnitude of any float value outside scales, with its tensor.
    pub largest: Option<(String, f32)>,
}

/// What quantizing did to one weight; ŵ is what the stored codes and scales stand for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Module, without `.weight`.
    pub module: String,
    /// Precision, e.g. `int4_g64`.
    pub precision: String,
    /// Elements of the weight.
    pub elements: u64,
    /// Σ(w − ŵ)² / elements.
    pub mse: f64,
    /// 10·log₁₀(Σw² / Σ(w − ŵ)²) in dB; `None` when lossless or all zero.
    pub sqnr_db: Option<f64>,
    /// Largest |w − ŵ|.
    pub max_error: f32,
    /// Groups of elements that share a scale.
    pub groups: usize,
    /// Groups in which an element was clipped: it lies beyond the largest code by more than half the step there.
    pub saturated_groups: usize,
    /// Groups that are not all zero in the source and all zero now.
    pub zeroed_groups: usize,
    /// Groups that are not all zero in the source and whose scale is zero or subnormal in its own type, or would be
    /// zero had the writer not replaced it.
    pub underflowed_scales: usize,
}

/// What a scan by address cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of the answers' bodies.
    pub bytes_read: u64,
    /// Size of the weight files on the server.
    pub weight_file_bytes: u64,
}

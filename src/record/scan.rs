//! What the checkpoint verifier saw in a checkpoint, and against its source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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

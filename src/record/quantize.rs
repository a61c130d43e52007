//! What the quantizer wrote.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::calibration::CalibrationSummary;
use super::provenance::Provenance;
use crate::base::digest::Digest;

/// Result of stage `quantize`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// Recipe name.
    pub recipe: String,
    /// Recipe version.
    pub recipe_version: u32,
    /// Digest of the source checkpoint.
    pub source_digest: Digest,
    /// Digest of the written checkpoint.
    pub output_digest: Digest,
    /// Sum of the source's tensor bytes.
    pub source_tensor_bytes: u64,
    /// Tensor bytes predicted from headers and recipe before anything was written.
    pub predicted_tensor_bytes: u64,
    /// Sum of the written tensor bytes.
    pub output_tensor_bytes: u64,
    /// Written shards.
    pub shards: Vec<ShardRecord>,
    /// Quantized modules.
    pub quantized_modules: usize,
    /// Modules left as they were, with the reason.
    pub excluded_modules: BTreeMap<String, String>,
    /// Where static scales came from, if any were calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationSummary>,
    /// Seconds spent waiting for storage before the checkpoint got its name; `None` when nothing was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_s: Option<f64>,
    /// Where the time went when GPUs quantized; of the last process where several shared the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_seconds: Option<DeviceSeconds>,
    /// Origin.
    pub provenance: Provenance,
}

/// Seconds that threads spent, summed over them: a GPU waits for the disk where reading and writing are most of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceSeconds {
    /// Reading the source.
    pub read_s: f64,
    /// Copying to the device, computing, and copying back.
    pub device_s: f64,
    /// Digests, and writing what became complete.
    pub deliver_s: f64,
    /// Most memory that was held on one device, in bytes.
    pub peak_device_bytes: u64,
}

/// One written shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// File name.
    pub file: String,
    /// Digest of its content.
    pub digest: Digest,
    /// File size in bytes.
    pub bytes: u64,
    /// Names of the tensors in it.
    pub tensors: Vec<String>,
    /// Sum of their bytes.
    pub tensor_bytes: u64,
    /// Quantized modules in it.
    pub modules: Vec<ModuleRecord>,
}

/// Error of one quantized module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Module name, without `.weight`.
    pub module: String,
    /// Precision, e.g. `fp8_e4m3`, `int4_g128`.
    pub precision: String,
    /// Signal-to-quantization-noise ratio 10·log10(Σw² / Σ(w − ŵ)²) in dB; `None` when lossless or all zero.
    pub sqnr_db: Option<f64>,
}

impl Eq for ModuleRecord {}

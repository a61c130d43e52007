//! What a quantization would do, said before anything is written.

use serde::{Deserialize, Serialize};

use super::calibration::CalibrationData;
use super::engine::EngineSupport;
use super::failure::Failure;

/// Result of `day0 quantize --dry-run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreflightRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// The source.
    pub source: String,
    /// Recipe name.
    pub recipe: String,
    /// Recipe version.
    pub recipe_version: u32,
    /// Why it is impossible; the hint names the nearest recipe that would work.
    pub impossible: Option<Failure>,
    /// What would be done, unless the recipe cannot be applied at all.
    pub plan: Option<PlannedWork>,
}

/// What a recipe would do to a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedWork {
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the tensors that would be written.
    pub predicted_bytes: u64,
    /// The same by file.
    pub files: Vec<PlannedFile>,
    /// The same by scheme.
    pub schemes: Vec<PlannedScheme>,
    /// Modules in groups of the same pattern, shape and treatment.
    pub modules: Vec<PlannedModules>,
    /// How long it would take here, if that was measured.
    pub time: Option<TimeEstimate>,
    /// The calibration that comes first, where static input scales have to be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<PlannedCalibration>,
    /// Upper bound of the process's resident memory.
    pub peak_memory_bytes: u64,
    /// Number of devices that layers were cut for.
    pub devices: usize,
    /// What keeps layers from being cut so: module, what is cut, what its parts must be.
    pub cutting_problems: Vec<CuttingProblem>,
    /// Quantized modules that were not checked for cutting, because their names say nothing about their role.
    pub unknown_roles: usize,
    /// Which engines would load the result on so many devices.
    pub engines: Vec<EngineSupport>,
}

/// A pass over text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCalibration {
    /// What it runs on.
    pub data: CalibrationData,
    /// Bytes of the model's weights while it runs.
    pub engine_bytes: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Name.
    pub file: String,
    /// Bytes of its tensors.
    pub tensor_bytes: u64,
}

/// One scheme.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedScheme {
    /// Precision, e.g. `int4_g64`, or `unquantized`.
    pub precision: String,
    /// Modules.
    pub modules: usize,
    /// Bytes of their tensors in the source.
    pub source_bytes: u64,
    /// Bytes of the tensors that would stand for them.
    pub predicted_bytes: u64,
}

/// Modules that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedModules {
    /// Names with ranges of numbers, e.g. `model.layers.{0-29}.self_attn.q_proj`.
    pub pattern: String,
    /// How many.
    pub count: usize,
    /// [N, K]; `None` for modules that are left.
    pub shape: Option<[usize; 2]>,
    /// Precision, when they would be quantized.
    pub precision: Option<String>,
    /// Why they are left, when they are.
    pub reason: Option<String>,
}

/// One layer that cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CuttingProblem {
    /// Module, or key of `config.json`.
    pub module: String,
    /// What is cut.
    pub observed: String,
    /// What its parts must be.
    pub expected: String,
}

/// Time, from rates that were measured on this machine just before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimeEstimate {
    /// Bytes of the sample: rows of this model's own weights.
    pub sample_bytes: u64,
    /// Source bytes read a second, from where the source lies now (page cache included).
    pub read_bytes_per_s: f64,
    /// Source bytes a second through the whole pipeline, written to the file system of the target and synced.
    pub pipeline_bytes_per_s: f64,
    /// Seconds if reading overlaps perfectly with the rest.
    pub seconds_low: f64,
    /// Seconds if it does not overlap at all.
    pub seconds_high: f64,
}

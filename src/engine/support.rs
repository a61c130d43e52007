//! What can be said of a checkpoint without loading it.

use serde_json::Value;

use super::error::EngineError;
use crate::checkpoint::Checkpoint;
use crate::model::{ModelConfig, ModelError};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};

/// Whether the engine knows this architecture with these options. Tensors are looked at when it is loaded.
pub fn check_supported(checkpoint: &Checkpoint) -> Result<(), EngineError> {
    ModelConfig::parse(checkpoint.config()).map_err(ModelError::from)?;
    Ok(())
}

/// Most input tokens of a request: `max_position_embeddings` of `config`, or 2048 as lm-eval assumes.
pub fn max_len(config: &Value) -> usize {
    const DEFAULT: usize = 2048;
    ModelConfig::parse(config).map_or(DEFAULT, |c| c.max_position_embeddings)
}

/// Memory of the loaded weights in bytes: every element as `dtype`.
pub fn memory_bytes(checkpoint: &Checkpoint, dtype: ComputeDtype) -> u64 {
    let size = match dtype {
        ComputeDtype::F32 => 4,
        ComputeDtype::Bf16 => 2,
    };
    let elements =
        checkpoint.names().filter_map(|name| checkpoint.info(name)).map(|t| t.num_elements() as u64);
    elements.sum::<u64>() * size
}

/// The kernels this machine runs for `dtype`: results of one kernel path have the same bits.
pub fn kernel_path(dtype: ComputeDtype) -> &'static str {
    KernelPath::best(dtype).name()
}

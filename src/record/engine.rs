//! Which serving engine loads a checkpoint, and why not.

use serde::{Deserialize, Serialize};

/// One engine and one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSupport {
    /// Name and the version whose loader was read.
    pub engine: String,
    /// Whether it loads the checkpoint.
    pub loads: bool,
    /// Lowest compute capability of a CUDA device, e.g. `7.5`; `None` where the loader asks for none or its source was
    /// not read that far.
    pub min_compute_capability: Option<String>,
    /// Why it does not load, or what to know if it does.
    pub remarks: Vec<String>,
    /// Where this is written.
    pub sources: Vec<String>,
}

//! Who made a record, from what, with what, how long it took.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::digest::Digest;
use crate::base::threads::Threads;

/// Version of this program.
pub const TOOL_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Git revision of this build.
pub const GIT_HASH: &str = env!("DAY0_GIT_HASH");

/// Origin of a record. `timing` is the only part that differs between two runs on the same inputs and machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `day0` version.
    pub tool_version: String,
    /// Git revision of the build.
    pub git_hash: String,
    /// Named digests of everything the record depends on.
    pub inputs: BTreeMap<String, Digest>,
    /// Named seeds used.
    pub seeds: BTreeMap<String, u64>,
    /// Device, e.g. `cpu`.
    pub device: String,
    /// Kernel path, e.g. `cpu-f32-avx512`; results on one path have the same bits.
    pub kernel_path: String,
    /// Worker threads and where the number came from.
    pub threads: Threads,
    /// When and how long.
    pub timing: Timing,
}

/// Times and memory of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Start, ISO 8601 UTC.
    pub started_at: String,
    /// Duration in seconds.
    pub elapsed_s: f64,
    /// Peak resident memory of the process in bytes (VmHWM), if known.
    pub peak_memory_bytes: Option<u64>,
}

impl Provenance {
    /// A provenance of this build with nothing else filled in.
    pub fn new(threads: Threads) -> Self {
        Self {
            tool_version: TOOL_VERSION.to_owned(),
            git_hash: GIT_HASH.to_owned(),
            inputs: BTreeMap::new(),
            seeds: BTreeMap::new(),
            device: "cpu".to_owned(),
            kernel_path: String::new(),
            threads,
            timing: Timing::default(),
        }
    }
}

/// Peak resident memory of this process in bytes: `VmHWM` of /proc/self/status.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

//! Every environment variable that day0 reads, as one constant each.

use std::ffi::OsString;
use std::path::PathBuf;

/// Directory of cached units, models and digests. Default `$XDG_CACHE_HOME/day0`, else `$HOME/.cache/day0`.
pub const DAY0_CACHE: &str = "DAY0_CACHE";
/// API keys that `day0 serve` accepts, one a line.
pub const DAY0_API_KEY: &str = "DAY0_API_KEY";
/// `1`: a test that needs a GPU fails instead of skipping when there is none.
pub const DAY0_REQUIRE_GPU: &str = "DAY0_REQUIRE_GPU";
/// File or folder of the run-time compiler of CUDA, `libnvrtc.so.13`; default: what the system's loader finds.
pub const DAY0_NVRTC: &str = "DAY0_NVRTC";
/// File or folder of CUDA's matrix products, `libcublasLt.so.13`; default: what the system's loader finds.
pub const DAY0_CUBLASLT: &str = "DAY0_CUBLASLT";
/// Devices that the CUDA driver shows.
pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// Root of a CUDA toolkit.
pub const CUDA_HOME: &str = "CUDA_HOME";
/// Root of a CUDA toolkit.
pub const CUDA_PATH: &str = "CUDA_PATH";
/// Directory of SmolLM2-135M as safetensors: tests that need a real model run where it is set.
pub const DAY0_SMOLLM2: &str = "DAY0_SMOLLM2";
/// Base of the cache directory by the XDG specification.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The user's home directory.
pub const HOME: &str = "HOME";
/// Hugging Face home directory; the hub cache is `$HF_HOME/hub`.
pub const HF_HOME: &str = "HF_HOME";
/// Access token for the hub.
pub const HF_TOKEN: &str = "HF_TOKEN";
/// Address of the hub; default `https://huggingface.co`.
pub const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// `1`, `true`, `yes` or `on`: never open a connection to the hub.
pub const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
/// CPUs given to each task of a Slurm job.
pub const SLURM_CPUS_PER_TASK: &str = "SLURM_CPUS_PER_TASK";
/// CPUs of this node given to a Slurm job.
pub const SLURM_CPUS_ON_NODE: &str = "SLURM_CPUS_ON_NODE";
/// Id of this Slurm job.
pub const SLURM_JOB_ID: &str = "SLURM_JOB_ID";
/// Id of the job array this Slurm job belongs to.
pub const SLURM_ARRAY_JOB_ID: &str = "SLURM_ARRAY_JOB_ID";
/// Index of this Slurm job in its array.
pub const SLURM_ARRAY_TASK_ID: &str = "SLURM_ARRAY_TASK_ID";
/// How often this Slurm job was requeued.
pub const SLURM_RESTART_COUNT: &str = "SLURM_RESTART_COUNT";
/// Where the configuration of Slurm lies.
pub const SLURM_CONF: &str = "SLURM_CONF";
/// Slurm's name of this node.
pub const SLURMD_NODENAME: &str = "SLURMD_NODENAME";
/// `1`: a test that needs a Slurm cluster fails instead of skipping when there is none.
pub const DAY0_REQUIRE_SLURM: &str = "DAY0_REQUIRE_SLURM";
/// `1`: a test that needs podman fails instead of skipping where podman can run nothing.
pub const DAY0_REQUIRE_PODMAN: &str = "DAY0_REQUIRE_PODMAN";
/// File to which a CI job appends its Markdown summary.
pub const GITHUB_STEP_SUMMARY: &str = "GITHUB_STEP_SUMMARY";

/// The value of a variable, if it is set and not empty.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn get_os(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

/// Names of all variables that are set and begin with `prefix`.
pub fn names_beginning(prefix: &str) -> Vec<OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|n| n.to_string_lossy().starts_with(prefix)).collect()
}

/// The value of a variable where an empty one means something too.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn raw(name: &str) -> Option<String> {
    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
}

/// The value of a variable as text, if it is set, not empty and valid Unicode.
pub fn get(name: &str) -> Option<String> {
    get_os(name)?.into_string().ok()
}

/// Whether a variable is set to one of the spellings of yes that huggingface_hub accepts.
pub fn is_true(name: &str) -> bool {
    get(name).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// The cache directory: `$DAY0_CACHE`, else `$XDG_CACHE_HOME/day0`, else `$HOME/.cache/day0`, else under the
/// system's temporary directory.
pub fn cache_dir() -> PathBuf {
    get_os(DAY0_CACHE)
        .map(PathBuf::from)
        .or_else(|| get_os(XDG_CACHE_HOME).map(|d| PathBuf::from(d).join("day0")))
        .or_else(|| get_os(HOME).map(|d| PathBuf::from(d).join(".cache/day0")))
        .unwrap_or_else(|| std::env::temp_dir().join("day0-cache"))
}

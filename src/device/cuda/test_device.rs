//! The device that GPU tests run on.

use std::path::PathBuf;
use std::sync::Arc;

use super::{CubinCache, CudaError, Device};
use crate::base::env_vars;

#[path = "../../../tests/cuda/emulator.rs"]
pub(crate) mod emulator;

/// The first device; `None` where there is none, which is printed, or fails the test if `DAY0_REQUIRE_GPU` is set.
pub(crate) fn device() -> Option<Arc<Device>> {
    match Device::open_with_cache(0, CubinCache::new(cubins())) {
        Ok(device) => Some(device),
        Err(error) => {
            refuse_skip(&error);
            None
        }
    }
}

/// Where kernels are kept: beside the compiler that made them where it is the emulated one, of which there may be others.
fn cubins() -> PathBuf {
    let compiler = env_vars::get_os(env_vars::DAY0_NVRTC).map(PathBuf::from);
    compiler.filter(|at| at.starts_with(dir())).unwrap_or_else(dir).join("cubins")
}

/// Prints that a test is skipped; fails it if skipping is not allowed.
pub(crate) fn refuse_skip(error: &CudaError) {
    assert!(!env_vars::is_true(env_vars::DAY0_REQUIRE_GPU), "a GPU is required: {error}");
    eprintln!("skipped: {error}");
}

/// Folder of this build for things that tests make and later runs use again.
pub(crate) fn dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().join("cuda-tests")
}

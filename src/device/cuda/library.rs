//! Finds shared libraries and asks for every symbol that will be used, so that cudarc, which panics on what is missing,
//! is called only when nothing is.

use std::path::Path;
use std::sync::OnceLock;

use libloading::Library;

use super::error::CudaError;

/// Functions of the driver that day0 calls.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Whether the driver is installed and has every function that is called. Asked once.
pub fn check_driver() -> Result<(), CudaError> {
    static CHECKED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    let check = || {
        let library = open(&["cuda", "nvcuda"]).ok_or(CudaError::NoDriver)?;
        match missing(&library, DRIVER_SYMBOLS) {
            Some(symbol) => Err(CudaError::DriverSymbol { symbol }),
            None => Ok(()),
        }
    };
    CHECKED.get_or_init(check).clone()
}

/// The first library of these that the system's loader finds, by the file names that cudarc tries. It stays loaded
/// while cudarc holds it.
pub(super) fn open(names: &[&str]) -> Option<Library> {
    let candidates = names.iter().flat_map(|name| cudarc::get_lib_name_candidates(name));
    // SAFETY: these are the vendor's libraries by their system names; their initializers are trusted as the driver is.
    candidates.into_iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// The first symbol that a library lacks.
pub(super) fn missing(library: &Library, symbols: &[&'static str]) -> Option<&'static str> {
    // SAFETY: the symbol is only looked for, never called through this type.
    symbols.iter().copied().find(|name| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err())
}

/// Loads a library by its path for the rest of the process: later requests for its name find it. `false` if it cannot
/// be loaded.
#[cfg(unix)]
pub(super) fn preload(path: &Path) -> bool {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: a library that the user named, or one in a toolkit's own folder, loaded as the system's loader would.
    match unsafe { UnixLibrary::open(Some(path.as_os_str()), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// As above.
#[cfg(not(unix))]
pub(super) fn preload(path: &Path) -> bool {
    // SAFETY: as above.
    unsafe { Library::new(path.as_os_str()) }.map(std::mem::forget).is_ok()
}

//! Finds shared libraries and asks for every symbol that will be used, so that cudarc, which panics on what is missing,
//! is called only when nothing is.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::error::CudaError;
use crate::base::env_vars;

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
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
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
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
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

/// The library `lib<name>.so` from the file or folder that the user named, else by the system's loader, else from a
/// toolkit's folder; with the library beside it that it will ask for by name.
pub(super) fn find(asked: Option<&Path>, name: &str, companion: Option<&str>) -> Option<Library> {
    let found = match asked {
        Some(path) => preload_from(path, name, companion),
        None => {
            open(&[name]).is_some() || toolkit_folders().iter().any(|dir| preload_from(dir, name, companion))
        }
    };
    found.then(|| open(&[name])).flatten()
}

/// Loads `lib<name>.so`, in its newest version, from a file or a folder.
fn preload_from(path: &Path, name: &str, companion: Option<&str>) -> bool {
    if !path.exists() {
        return false;
    }
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let named = |prefix: &str| {
        let matches = |file: &&PathBuf| {
            file.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix))
        };
        files.iter().rev().filter(matches).cloned().collect::<Vec<_>>()
    };
    if let Some(companion) = companion.and_then(|prefix| named(prefix).into_iter().next()) {
        preload(&companion);
    }
    if path.is_file() {
        return preload(path);
    }
    named(&format!("lib{name}.so")).iter().any(|file| preload(file))
}

/// Where toolkits put libraries when the loader does not know them.
fn toolkit_folders() -> Vec<PathBuf> {
    let homes = [env_vars::CUDA_HOME, env_vars::CUDA_PATH];
    let mut folders: Vec<PathBuf> = homes
        .iter()
        .filter_map(|name| env_vars::get_os(name))
        .map(|home| PathBuf::from(home).join("lib64"))
        .collect();
    folders.push(PathBuf::from("/usr/local/cuda/lib64"));
    folders
}

/// The first symbol that a library lacks.
pub(super) fn missing(library: &Library, symbols: &[&'static str]) -> Option<&'static str> {
    // SAFETY: the symbol is only looked for, never called through this type.
    symbols.iter().copied().find(|name| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err())
}

/// Loads a library by its path for the rest of the process: later requests for its name find it. `false` if it cannot
/// be loaded.
#[cfg(unix)]
fn preload(path: &Path) -> bool {
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
fn preload(path: &Path) -> bool {
    // SAFETY: as above.
    unsafe { Library::new(path.as_os_str()) }.map(std::mem::forget).is_ok()
}

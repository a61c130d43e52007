//! Finds shared libraries and asks for every symbol that will be used. The driver's functions are called through cudarc, which
//! panics on what is missing, only when nothing is; those of compiler and products by tables of our own, so that a library the
//! user named is the one that is called.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::error::CudaError;
use crate::base::env_vars;

/// The major version of CUDA whose functions cudarc declares (feature `cuda-13000`).
pub(super) const MAJOR: usize = 13;

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
fn open(names: &[&str]) -> Option<Library> {
    let candidates = names.iter().flat_map(|name| cudarc::get_lib_name_candidates(name));
    // SAFETY: these are the vendor's libraries by their system names; their initializers are trusted as the driver is.
    candidates.into_iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// The library `lib<name>.so` from the file or folder that the user named, and from nowhere else; without one by the system's
/// loader, in the version that day0 calls if it is there, else from a toolkit's folder. The library beside it that it will ask
/// for by name is loaded before it.
pub(super) fn find(asked: Option<&Path>, name: &str, companion: Option<&str>) -> Option<Library> {
    if let Some(path) = asked {
        return open_from(path, name, companion);
    }
    let versioned = format!("lib{name}.so.{MAJOR}");
    // SAFETY: as above.
    let by_version = unsafe { Library::new(versioned) }.ok();
    let by_loader = by_version.or_else(|| open(&[name]));
    by_loader.or_else(|| toolkit_folders().iter().find_map(|dir| open_from(dir, name, companion)))
}

/// Opens a file, or the newest `lib<name>.so` of a folder, by its path: a library of the same name that the loader knows is
/// another one.
fn open_from(path: &Path, name: &str, companion: Option<&str>) -> Option<Library> {
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
    let candidates = if path.is_file() { vec![path.to_owned()] } else { named(&format!("lib{name}.so")) };
    // A path without a folder would be a name for the loader.
    let absolute = candidates.iter().filter_map(|file| std::path::absolute(file).ok());
    // SAFETY: a library that the user named, or one in a toolkit's own folder, loaded as the system's loader would.
    absolute.into_iter().find_map(|file| unsafe { Library::new(file) }.ok())
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
fn missing(library: &Library, symbols: &[&'static str]) -> Option<&'static str> {
    // SAFETY: the symbol is only looked for, never called through this type.
    symbols.iter().copied().find(|name| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err())
}

/// The file that the function at `address` was loaded from, as far as the system says.
#[cfg(unix)]
pub(super) fn file_of(address: *const ()) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; the struct is valid for the call, and zeros are one.
    let name = unsafe {
        if libc::dladdr(address.cast(), info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init().dli_fname
    };
    if name.is_null() {
        return None;
    }
    // SAFETY: a terminated string that lives as long as the library.
    let bytes = unsafe { std::ffi::CStr::from_ptr(name) }.to_bytes();
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

/// As above.
#[cfg(not(unix))]
pub(super) fn file_of(_address: *const ()) -> Option<PathBuf> {
    None
}

/// The functions of a library by their names. They are its own, whatever else of that name the process may load, and stay for
/// good.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident: $($function:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(#[$doc])*
        #[expect(non_snake_case, reason = "the library's names")]
        pub(super) struct $table {
            $(pub $function: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// The file that they are in, as far as the system says.
            pub file: Option<std::path::PathBuf>,
        }

        impl $table {
            /// Looks all of them up; the name of the first that is missing.
            pub fn of(library: libloading::Library) -> Result<Self, &'static str> {
                let mut file = None;
                let table = Self {
                    $($function: {
                        // SAFETY: the type is that of the library's header.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> $result>(
                                concat!(stringify!($function), "\0").as_bytes(),
                            )
                        };
                        let function = *found.map_err(|_| stringify!($function))?;
                        file = file.or_else(|| $crate::device::cuda::library::file_of(function as *const ()));
                        function
                    },)*
                    file,
                };
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}
pub(super) use functions;

/// Loads a library by its path for the rest of the process: later requests for its name find it. One that cannot be loaded is
/// missed by the library that asks for it.
#[cfg(unix)]
fn preload(path: &Path) {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: a library that the user named, or one in a toolkit's own folder, loaded as the system's loader would.
    if let Ok(library) = unsafe { UnixLibrary::open(Some(path.as_os_str()), RTLD_NOW | RTLD_GLOBAL) } {
        std::mem::forget(library);
    }
}

/// As above.
#[cfg(not(unix))]
fn preload(path: &Path) {
    // SAFETY: as above.
    if let Ok(library) = unsafe { Library::new(path.as_os_str()) } {
        std::mem::forget(library);
    }
}

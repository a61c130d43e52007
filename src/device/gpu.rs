//! Which NVIDIA GPUs there are and what compiles for them, or one sentence why none. Never panics.

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{DriverError, result};
use serde::{Deserialize, Serialize};

use super::cuda::{
    CubinCache, CudaError, check_driver, compiler_file, compiler_version, products_file, products_version,
};
use crate::record::Classified;

/// The state of CUDA on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuda {
    /// The CUDA version that the driver supports, e.g. `12.8`.
    pub driver_version: Option<String>,
    /// The devices, by ordinal.
    pub devices: Vec<Gpu>,
    /// Why there is no device, when there is none, and what to do about it.
    pub unavailable: Option<String>,
    /// Version of the run-time compiler, e.g. `13.0`.
    pub compiler_version: Option<String>,
    /// The file that it is in, as far as the system says.
    pub compiler_file: Option<std::path::PathBuf>,
    /// Why there is no compiler, when there is none, and what to do about it.
    pub compiler_unavailable: Option<String>,
    /// Version of cuBLASLt, which computes matrix products, as it counts itself.
    pub products_version: Option<usize>,
    /// The file that it is in, as far as the system says.
    pub products_file: Option<std::path::PathBuf>,
    /// Why there is no cuBLASLt, when there is none, and what to do about it.
    pub products_unavailable: Option<String>,
    /// Compiled kernels on disk.
    pub kernels: KernelFiles,
}

/// The cache of compiled kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFiles {
    /// Where it is.
    pub dir: std::path::PathBuf,
    /// Number of files.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Number of the device among the visible ones.
    pub ordinal: usize,
    /// Name, e.g. `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Number of streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// Memory of the device in bytes.
    pub total_bytes: u64,
}

/// An error with its hint.
fn sentence(error: &CudaError) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))
}

/// Looks for devices and for what is needed to use them.
pub fn probe() -> Cuda {
    let cache = CubinCache::of_user();
    let (count, bytes) = cache.size();
    let (compiler, products) = (compiler_version(), products_version());
    let kernels = KernelFiles { dir: cache.dir().to_path_buf(), count, bytes };
    let mut cuda = Cuda {
        driver_version: None,
        devices: Vec::new(),
        unavailable: None,
        compiler_version: compiler.as_ref().ok().map(|(major, minor)| format!("{major}.{minor}")),
        compiler_file: compiler_file().map(std::path::Path::to_path_buf),
        compiler_unavailable: compiler.as_ref().err().map(sentence),
        products_version: products.as_ref().ok().copied(),
        products_file: products_file().map(std::path::Path::to_path_buf),
        products_unavailable: products.as_ref().err().map(sentence),
        kernels,
    };
    if let Err(error) = check_driver() {
        cuda.unavailable = Some(sentence(&error));
        return cuda;
    }
    cuda.driver_version = driver_version();
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            cuda.unavailable = Some(sentence(&CudaError::no_device()));
            return cuda;
        }
        Err(DriverError(other)) => {
            cuda.unavailable = Some(sentence(&CudaError::Start { code: name_of(other) }));
            return cuda;
        }
    }
    match devices() {
        Ok(devices) if devices.is_empty() => cuda.unavailable = Some(sentence(&CudaError::no_device())),
        Ok(devices) => cuda.devices = devices,
        Err(error) => {
            cuda.unavailable = Some(format!("a device cannot be queried: {}", name_of(error.0)));
        }
    }
    cuda
}

/// The documented name of a driver result, e.g. `CUDA_ERROR_NO_DEVICE`.
fn name_of(code: CUresult) -> String {
    format!("{code:?}")
}

fn driver_version() -> Option<String> {
    let mut version = 0;
    // SAFETY: the library is present, and the pointer is valid for the call.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    // Encoded as 1000 · major + 10 · minor (CUDA driver API, cuDriverGetVersion).
    (code == CUresult::CUDA_SUCCESS).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn devices() -> Result<Vec<Gpu>, DriverError> {
    (0..result::device::get_count()?).map(device).collect()
}

fn device(ordinal: i32) -> Result<Gpu, DriverError> {
    use CUdevice_attribute as A;
    let handle = result::device::get(ordinal)?;
    // SAFETY: the handle comes from the driver and stays valid while the library is loaded.
    let attribute = |which| unsafe { result::device::get_attribute(handle, which) };
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    Ok(Gpu {
        ordinal: ordinal as usize,
        name: result::device::get_name(handle)?,
        compute_capability: (
            number(attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?),
            number(attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?),
        ),
        num_multiprocessors: number(attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?),
        // SAFETY: as above.
        total_bytes: unsafe { result::device::total_mem(handle)? } as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::env_vars;

    #[test]
    fn devices_or_a_reason() {
        let cuda = probe();
        assert_eq!(cuda.devices.is_empty(), cuda.unavailable.is_some(), "{cuda:?}");
        assert!(!(cuda.devices.is_empty() && env_vars::is_true(env_vars::DAY0_REQUIRE_GPU)), "{cuda:?}");
        for gpu in &cuda.devices {
            assert!(gpu.compute_capability.0 >= 3 && gpu.total_bytes > 1 << 28, "{gpu:?}");
        }
    }
}

//! Which NVIDIA GPUs there are, or one sentence why none. Never panics.
//!
//! cudarc loads the driver library at run time and panics when it is missing, so its presence is asked first.

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{DriverError, result};
use serde::{Deserialize, Serialize};

/// The state of CUDA on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuda {
    /// The CUDA version that the driver supports, e.g. `12.8`.
    pub driver_version: Option<String>,
    /// The devices, by ordinal.
    pub devices: Vec<Gpu>,
    /// Why there is no device, when there is none.
    pub unavailable: Option<String>,
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

/// Looks for devices.
pub fn probe() -> Cuda {
    if !driver_present() {
        return none("no CUDA driver: libcuda.so could not be loaded");
    }
    if let Err(error) = result::init() {
        return none(&match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => "the CUDA driver sees no device".to_owned(),
            other => format!("the CUDA driver does not start: {}", name_of(other)),
        });
    }
    let mut cuda = Cuda { driver_version: driver_version(), devices: Vec::new(), unavailable: None };
    match devices() {
        Ok(devices) if devices.is_empty() => {
            cuda.unavailable = Some("the CUDA driver sees no device".to_owned());
        }
        Ok(devices) => cuda.devices = devices,
        Err(error) => {
            cuda.unavailable = Some(format!("a device cannot be queried: {}", name_of(error.0)));
        }
    }
    cuda
}

fn none(reason: &str) -> Cuda {
    Cuda { driver_version: None, devices: Vec::new(), unavailable: Some(reason.to_owned()) }
}

/// The documented name of a driver result, e.g. `CUDA_ERROR_NO_DEVICE`.
fn name_of(code: CUresult) -> String {
    format!("{code:?}")
}

fn driver_present() -> bool {
    // SAFETY: loads and unloads the driver library by its system name; its initializers are the vendor's.
    unsafe { sys::is_culib_present() }
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

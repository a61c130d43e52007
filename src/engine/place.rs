//! Where an engine computes, and what that is called: a part of its identity and of every key.

use std::sync::Arc;

use super::error::EngineError;
use crate::base::progress;
use crate::device::cpu;
use crate::device::cuda::{Device, DeviceChoice, products_version};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::Failure;

/// The CPU, or GPUs of one kind.
#[derive(Debug, Clone, Default)]
pub struct EnginePlace {
    devices: Vec<Arc<Device>>,
    /// Version of the GPUs' library of matrix products.
    products: usize,
}

impl EnginePlace {
    /// On these GPUs; on the CPU without any.
    pub fn on(devices: Vec<Arc<Device>>) -> Result<Self, EngineError> {
        let Some(first) = devices.first() else { return Ok(Self::default()) };
        let kind = |device: &Device| (device.name().to_owned(), device.architecture());
        if let Some(other) = devices.iter().find(|device| kind(device) != kind(first)) {
            return Err(EngineError::Devices { first: format!("{first:?}"), other: format!("{other:?}") });
        }
        let products = products_version()?;
        Ok(Self { devices, products })
    }

    /// Opens what was chosen. With `auto`, GPUs that cannot be used are said and it is the CPU.
    pub fn open(choice: &DeviceChoice) -> Result<Self, EngineError> {
        let opened = choice.open().map_err(EngineError::from);
        let (place, unusable) = match opened.and_then(|(devices, why)| Ok((Self::on(devices)?, why))) {
            Ok((place, unusable)) => (place, unusable.map(EngineError::from)),
            Err(error) if *choice == DeviceChoice::Auto => (Self::default(), Some(error)),
            Err(error) => return Err(error),
        };
        if let Some(error) = unusable {
            let failure = Failure::from(error);
            let hint = failure.hint.map_or(String::new(), |hint| format!("; {hint}"));
            progress::note(&format!("computing on the CPU: {}{hint}", failure.message));
        }
        Ok(place)
    }

    /// The GPUs; none on the CPU.
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.devices.is_empty()
    }

    /// The kind of device, which decides the numbers: `cpu`, or e.g. `cuda NVIDIA H200`.
    pub fn device(&self) -> String {
        self.devices.first().map_or_else(|| "cpu".to_owned(), |first| format!("cuda {}", first.name()))
    }

    /// The kernels, e.g. `cpu-f32-avx512` or `cuda-bf16-sm_90-cublaslt130002`: another library of products takes sums in
    /// another order.
    pub fn kernel_path(&self, dtype: ComputeDtype) -> String {
        let Some(first) = self.devices.first() else { return KernelPath::best(dtype).name().to_owned() };
        let dtype = if dtype == ComputeDtype::Bf16 { "bf16" } else { "f32" };
        format!("cuda-{dtype}-{}-cublaslt{}", first.architecture(), self.products)
    }

    /// What chooses it on the command line; nothing for the CPU.
    pub fn flag(&self) -> Option<String> {
        let ordinals: Vec<usize> = self.devices.iter().map(|device| device.ordinal()).collect();
        (!self.is_cpu()).then(|| format!("--device {}", DeviceChoice::Cuda(ordinals)))
    }

    /// Places for two models that are up at once: each half of the GPUs where there are several, an odd one left out, so
    /// that both are computed alike.
    pub fn halves(&self) -> [Self; 2] {
        let half = self.devices.len() / 2;
        if half == 0 {
            return [self.clone(), self.clone()];
        }
        let (first, second) = self.devices[..2 * half].split_at(half);
        [first, second].map(|devices| Self { devices: devices.to_vec(), products: self.products })
    }

    /// Whether none of its devices is one of the other's.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        let ordinal = |device: &Arc<Device>| device.ordinal();
        !self.is_cpu()
            && self
                .devices
                .iter()
                .all(|device| other.devices.iter().map(ordinal).all(|o| o != device.ordinal()))
    }

    /// Memory that is left for a model, on the fullest device.
    pub fn available_bytes(&self) -> Option<u64> {
        if self.is_cpu() {
            return cpu::memory().available_bytes;
        }
        self.devices.iter().filter_map(|device| Some(device.memory().ok()?.0)).min()
    }
}

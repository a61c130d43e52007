//! One GPU in use: its primary context, its memory account and its loaded modules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUresult};

use super::counts::{Asked, Counters, DeviceCounts};
use super::error::{CudaError, check};
use super::library::check_driver;
use super::module::{CubinCache, Kernel, Module, ModuleKey};
use super::nvrtc;
use super::source::Variant;

/// Oldest compute capability that kernels are written for.
const OLDEST: (u32, u32) = (8, 0);

/// A device that was opened. Any thread may use it.
pub struct Device {
    ordinal: usize,
    name: String,
    handle: CUdevice,
    context: CUcontext,
    capability: (u32, u32),
    multiprocessors: u32,
    l2_bytes: u64,
    allocated: AtomicU64,
    peak: AtomicU64,
    counters: Counters,
    cache: CubinCache,
    modules: Mutex<HashMap<Variant, Arc<Module>>>,
}

// SAFETY: driver handles may be used from any thread; what changes is behind atomics and a mutex.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.ordinal, self.name)
    }
}

impl Device {
    /// Number of visible devices; an error if there is none.
    pub fn count() -> Result<usize, CudaError> {
        check_driver()?;
        // SAFETY: the driver is present with all its symbols.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaError::no_device()),
            other => return Err(CudaError::Start { code: format!("{other:?}") }),
        }
        let mut count = 0;
        // SAFETY: the pointer is valid for the call.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
        if count <= 0 { Err(CudaError::no_device()) } else { Ok(count as usize) }
    }

    /// Opens a device, whose kernels are kept in the user's cache.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        Self::open_with_cache(ordinal, CubinCache::of_user())
    }

    /// As [`Self::open`], with kernels kept elsewhere.
    pub fn open_with_cache(ordinal: usize, cache: CubinCache) -> Result<Arc<Self>, CudaError> {
        use CUdevice_attribute as A;
        let count = Self::count()?;
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or(CudaError::NoSuchDevice { ordinal, count })?;
        let mut handle = 0;
        // SAFETY: the pointer is valid for the call.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut handle, number) })?;
        let capability = (
            attribute(handle, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(handle, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            return Err(CudaError::OldDevice { ordinal, capability });
        }
        nvrtc::check_against_driver()?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call; the context is released in `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut context, handle)
        })?;
        let device = Self {
            ordinal,
            name: name(handle)?,
            handle,
            context,
            capability,
            multiprocessors: attribute(handle, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: u64::from(attribute(handle, A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            counters: Counters::default(),
            cache,
            modules: Mutex::default(),
        };
        device.enter()?;
        Ok(Arc::new(device))
    }

    /// Its number among the visible devices.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its name, e.g. `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// What kernels are compiled for, e.g. `sm_90`.
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Size of the second-level cache in bytes.
    pub fn l2_bytes(&self) -> u64 {
        self.l2_bytes
    }

    /// Where its kernels are kept.
    pub fn kernel_cache(&self) -> &CubinCache {
        &self.cache
    }

    /// Bytes that day0 holds on the device now, and the most it held.
    pub fn allocated_bytes(&self) -> (u64, u64) {
        (self.allocated.load(Ordering::Acquire), self.peak.load(Ordering::Acquire))
    }

    /// What it was asked for so far.
    pub fn counts(&self) -> DeviceCounts {
        self.counters.get()
    }

    /// Free and total bytes as the driver counts them, other processes included.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid for the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// What a call for `bytes` (0: it does not say) failed for that found no memory.
    pub(super) fn out_of_memory(&self, call: &'static str, bytes: usize) -> CudaError {
        match self.memory() {
            Ok((free, total)) => {
                CudaError::OutOfMemory { ordinal: self.ordinal, call, bytes: bytes as u64, free, total }
            }
            Err(error) => error,
        }
    }

    /// `Ok` for success of a call that may find no memory.
    pub(super) fn check_room(
        &self,
        call: &'static str,
        bytes: usize,
        code: CUresult,
    ) -> Result<(), CudaError> {
        match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(self.out_of_memory(call, bytes)),
            code => check(call, code),
        }
    }

    /// Makes this device the one that the calling thread's driver calls are about.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// As above, for something that is counted.
    pub(super) fn enter_for(&self, asked: Asked) -> Result<(), CudaError> {
        self.counters.count(asked);
        self.enter()
    }

    pub(super) fn count_allocation(&self, bytes: usize) {
        self.counters.count(Asked::Allocation);
        let now = self.allocated.fetch_add(bytes as u64, Ordering::AcqRel) + bytes as u64;
        self.peak.fetch_max(now, Ordering::AcqRel);
    }

    pub(super) fn count_release(&self, bytes: usize) {
        self.counters.count(Asked::Allocation);
        self.allocated.fetch_sub(bytes as u64, Ordering::AcqRel);
    }

    /// A kernel by its source file, defines and name: loaded before, from the cache on disk, or compiled now.
    pub fn kernel(self: &Arc<Self>, variant: &Variant, name: &'static str) -> Result<Kernel, CudaError> {
        // One thread compiles while others that want the same module wait.
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = if let Some(module) = modules.get(variant) {
            Arc::clone(module)
        } else {
            let key = ModuleKey::new(variant, &self.architecture())?;
            self.enter()?;
            let module = Arc::new(self.cache.load(self, &key, variant)?);
            modules.insert(variant.clone(), Arc::clone(&module));
            module
        };
        drop(modules);
        Kernel::of(self, &module, name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Modules are unloaded in their context, which must still be there.
        if self.enter().is_ok() {
            self.modules.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        // SAFETY: retained once in `open_with_cache`; nothing of the context outlives the device.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

fn attribute(device: CUdevice, which: CUdevice_attribute) -> Result<u32, CudaError> {
    let mut value = 0;
    // SAFETY: the pointer is valid for the call, the device comes from the driver.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn name(device: CUdevice) -> Result<String, CudaError> {
    let mut text = [0u8; 256];
    // SAFETY: the driver writes at most 256 bytes, a terminating zero among them.
    let code = unsafe { sys::cuDeviceGetName(text.as_mut_ptr().cast(), 256, device) };
    check("cuDeviceGetName", code)?;
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

//! Memory of a device, and host memory that it can copy from and to while the CPU goes on.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr};

use super::Device;
use super::error::CudaError;

/// Bytes on a device. Freed when dropped, after all work on them.
pub struct DeviceBuffer {
    device: Arc<Device>,
    at: CUdeviceptr,
    len: usize,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes on {:?}", self.len, self.device)
    }
}

impl DeviceBuffer {
    /// `len` bytes of any content, at least one, at a multiple of 256 bytes.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self, CudaError> {
        let len = len.max(1);
        device.enter()?;
        let mut at = 0;
        // SAFETY: the pointer is valid for the call.
        device.check_room("cuMemAlloc", len, unsafe { sys::cuMemAlloc_v2(&raw mut at, len) })?;
        device.count_allocation(len);
        Ok(Self { device: Arc::clone(device), at, len })
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a buffer has at least one byte")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `len` bytes; the content is lost if it has to grow.
    pub fn ensure(&mut self, len: usize) -> Result<(), CudaError> {
        if len > self.len {
            // The old memory first, so that both need not fit.
            self.release();
            *self = Self::new(&self.device, len)?;
        }
        Ok(())
    }

    fn release(&mut self) {
        if self.at != 0 && self.device.enter().is_ok() {
            // SAFETY: allocated in `new` and freed once; the driver waits for work on it.
            unsafe { sys::cuMemFree_v2(self.at) };
            self.device.count_release(self.len);
        }
        (self.at, self.len) = (0, 0);
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.release();
    }
}

/// Bytes of a buffer.
#[derive(Clone, Copy)]
pub struct DeviceSlice<'a> {
    buffer: &'a DeviceBuffer,
    offset: usize,
    len: usize,
}

impl<'a> From<&'a DeviceBuffer> for DeviceSlice<'a> {
    fn from(buffer: &'a DeviceBuffer) -> Self {
        Self { buffer, offset: 0, len: buffer.len() }
    }
}

impl<'a> DeviceSlice<'a> {
    /// The bytes `range` of a buffer; none beyond its end.
    pub(super) fn of(buffer: &'a DeviceBuffer, range: &Range<usize>) -> Self {
        let offset = range.start.min(buffer.len());
        Self { buffer, offset, len: range.end.min(buffer.len()) - offset }
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.buffer.address() + self.offset as u64
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Page-locked host bytes.
pub struct PinnedBuffer {
    device: Arc<Device>,
    at: *mut u8,
    len: usize,
}

// SAFETY: plain memory that is owned.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `len` zeros, at least one.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self, CudaError> {
        let len = len.max(1);
        device.enter()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call; flags 0 is plain page-locked memory.
        device.check_room("cuMemHostAlloc", len, unsafe { sys::cuMemHostAlloc(&raw mut at, len, 0) })?;
        let at = at.cast::<u8>();
        // SAFETY: the driver gave `len` bytes.
        unsafe { at.write_bytes(0, len) };
        Ok(Self { device: Arc::clone(device), at, len })
    }

    /// Makes room for `len` bytes; the content is lost if it has to grow.
    pub fn ensure(&mut self, len: usize) -> Result<(), CudaError> {
        if len > self.len {
            *self = Self::new(&Arc::clone(&self.device), len)?;
        }
        Ok(())
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialized bytes that are owned.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated in `new` and freed once.
            unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}

//! Queues of work on a device, and marks in them.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUstream, CUstream_flags};

use super::counts::Asked;
use super::error::{CudaError, check};
use super::{Device, DeviceBuffer};

/// Work in order; streams run beside each other.
pub struct Stream {
    device: Arc<Device>,
    raw: CUstream,
}

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new, empty queue.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is valid for the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Self { device: Arc::clone(device), raw })
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for everything queued so far; errors of earlier work show here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.enter_for(Asked::Wait)?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Queues a copy of host bytes to `to` at byte `offset`.
    ///
    /// # Safety
    /// `from` stays valid and unchanged, and `to` alive, until the stream was synchronized.
    pub unsafe fn copy_in(&self, from: &[u8], to: &DeviceBuffer, offset: usize) -> Result<(), CudaError> {
        within("copy to the device", offset, from.len(), to)?;
        if from.is_empty() {
            return Ok(());
        }
        self.device.enter_for(Asked::Copy)?;
        let address = to.address() + offset as u64;
        // SAFETY: the range lies within `to`; the caller keeps `from`.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast(), from.len(), self.raw) };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Queues a copy of bytes of `from` at `offset` to the host.
    ///
    /// # Safety
    /// `to` stays valid and is not looked at, and `from` alive, until the stream was synchronized.
    pub unsafe fn copy_out(
        &self,
        from: &DeviceBuffer,
        offset: usize,
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        within("copy from the device", offset, to.len(), from)?;
        if to.is_empty() {
            return Ok(());
        }
        self.device.enter_for(Asked::Copy)?;
        let address = from.address() + offset as u64;
        // SAFETY: the range lies within `from`; the caller keeps `to`.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), address, to.len(), self.raw) };
        check("cuMemcpyDtoHAsync", code)
    }

    /// Copies host bytes to a new buffer and waits.
    pub fn upload(&self, from: &[u8]) -> Result<DeviceBuffer, CudaError> {
        let buffer = DeviceBuffer::new(&self.device, from.len())?;
        // SAFETY: both live until the stream is synchronized below.
        unsafe { self.copy_in(from, &buffer, 0)? };
        self.synchronize()?;
        Ok(buffer)
    }

    /// Waits and copies the first `len` bytes of a buffer to the host.
    pub fn download(&self, from: &DeviceBuffer, len: usize) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; len];
        // SAFETY: both live until the stream is synchronized below.
        unsafe { self.copy_out(from, 0, &mut bytes)? };
        self.synchronize()?;
        Ok(bytes)
    }

    /// Queues a copy within the device.
    ///
    /// # Safety
    /// Both stay alive until the stream was synchronized; the ranges do not overlap.
    pub unsafe fn copy(
        &self,
        from: (&DeviceBuffer, usize),
        to: (&DeviceBuffer, usize),
        len: usize,
    ) -> Result<(), CudaError> {
        within("copy on the device", from.1, len, from.0)?;
        within("copy on the device", to.1, len, to.0)?;
        if len == 0 {
            return Ok(());
        }
        self.device.enter_for(Asked::Copy)?;
        let (source, target) = (from.0.address() + from.1 as u64, to.0.address() + to.1 as u64);
        // SAFETY: both ranges lie within their buffers.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, len, self.raw) })
    }

    /// Queues setting `len` bytes of `to` from `offset` on.
    ///
    /// # Safety
    /// `to` stays alive until the stream was synchronized.
    pub unsafe fn fill(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        len: usize,
        byte: u8,
    ) -> Result<(), CudaError> {
        within("fill", offset, len, to)?;
        if len == 0 {
            return Ok(());
        }
        self.device.enter_for(Asked::Copy)?;
        // SAFETY: the range lies within `to`.
        let code = unsafe { sys::cuMemsetD8Async(to.address() + offset as u64, byte, len, self.raw) };
        check("cuMemsetD8Async", code)
    }

    /// Marks this place in the queue.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both handles are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw, self.raw) })
    }

    /// Lets later work of this stream wait for a mark in another.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both handles are alive.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: created in `new` and destroyed once; the driver finishes its work.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// Refuses ranges outside a buffer.
fn within(
    operation: &'static str,
    offset: usize,
    len: usize,
    buffer: &DeviceBuffer,
) -> Result<(), CudaError> {
    if offset.checked_add(len).is_some_and(|end| end <= buffer.len()) {
        return Ok(());
    }
    let what = format!("{len} bytes at {offset} of a buffer of {}", buffer.len());
    Err(CudaError::Argument { operation, what })
}

/// A mark in a stream, with the time it was passed.
pub struct Event {
    device: Arc<Device>,
    raw: CUevent,
}

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A mark that was not recorded yet.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: the pointer is valid for the call.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        Ok(Self { device: Arc::clone(device), raw })
    }

    /// Waits until the mark was passed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Milliseconds from `start` to this mark, both passed.
    pub fn ms_since(&self, start: &Self) -> Result<f32, CudaError> {
        self.device.enter()?;
        let mut ms = 0.0;
        // SAFETY: the pointer is valid for the call, both events are alive.
        let code = unsafe { sys::cuEventElapsedTime_v2(&raw mut ms, start.raw, self.raw) };
        check("cuEventElapsedTime", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: created in `new` and destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

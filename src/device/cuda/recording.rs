//! Work of a stream that is recorded once and queued again as a whole: a CUDA graph, captured from a stream.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::counts::Asked;
use super::error::{CudaError, check};
use super::{Device, Stream};

/// Launches and copies in order, with their arguments.
pub struct Recording {
    device: Arc<Device>,
    raw: CUgraphExec,
}

// SAFETY: driver handles may be used from any thread, by one at a time.
unsafe impl Send for Recording {}

/// A graph as it was captured.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the driver and destroyed once.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Recording {
    /// Records what `queue` queues on the stream, which does not run. It may neither wait, nor copy from or to the host, nor
    /// take or give back memory; the stream is as before where the driver refuses.
    pub fn of(stream: &Stream, queue: impl FnOnce() -> Result<(), CudaError>) -> Result<Self, CudaError> {
        let device = stream.device();
        device.enter()?;
        // What other threads do is no concern of this recording.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) })?;
        let queued = queue();
        let mut captured = Captured(std::ptr::null_mut());
        // SAFETY: the pointer is valid for the call; a capture that was begun is ended, whatever became of it.
        let ended = unsafe { sys::cuStreamEndCapture(stream.raw(), &raw mut captured.0) };
        let ended = check("cuStreamEndCapture", ended);
        if let Err(error) = queued {
            // A library may call the driver's refusal by another name.
            return Err(ended.err().filter(CudaError::refuses_recording).unwrap_or(error));
        }
        ended?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph was captured, the pointer is valid for the call.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, captured.0, 0) };
        check("cuGraphInstantiate", made)?;
        Ok(Self { device: Arc::clone(device), raw })
    }

    /// Queues what was recorded.
    ///
    /// # Safety
    /// All memory that was recorded is still there, and stays alive and untouched until the stream was synchronized, as does
    /// `self`.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.device.enter_for(Asked::Launch)?;
        // SAFETY: both handles are alive, the rest is the caller's promise.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, stream.raw()) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made in `of` and destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}

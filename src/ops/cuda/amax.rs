//! The largest magnitude of a tensor on a GPU: `kernels/amax.cu`. Reference: [`FloatDtype::amax`].

use super::{STEP, THREADS, dtype_name};
use crate::device::cuda::{Argument, CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
use crate::ops::float_dtype::FloatDtype;

fn variant(dtype: FloatDtype) -> Variant {
    Variant::plain(kernel_source!("amax.cu")).define("DTYPE", dtype_name(dtype))
}

pub(super) fn variants() -> Vec<Variant> {
    [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32].map(variant).to_vec()
}

/// The largest magnitude of the first `count` elements of `x`; infinite or NaN where an element is. Waits for the result.
pub fn tensor_amax(
    stream: &Stream,
    dtype: FloatDtype,
    x: &DeviceBuffer,
    count: usize,
) -> Result<f32, CudaError> {
    if count.checked_mul(dtype.size()).is_none_or(|bytes| bytes > x.len()) {
        let what = format!("{count} elements of {} bytes in a buffer of {}", dtype.size(), x.len());
        return Err(CudaError::Argument { operation: "amax", what });
    }
    let kernel = stream.device().kernel(&variant(dtype), "tensor_amax")?;
    let largest = DeviceBuffer::new(stream.device(), 4)?;
    // As many blocks as fill the device; each thread goes over many steps.
    let blocks = count.div_ceil(STEP * THREADS as usize).min(8 * stream.device().multiprocessors() as usize);
    let arguments = (x.address(), count as u64, largest.address());
    let mut bits = [0; 4];
    // SAFETY: the kernel reads `count` elements of `x`, as checked, and writes one word; all buffers live until the
    // stream is synchronized.
    unsafe {
        stream.fill(&largest, 0, 4, 0)?;
        kernel.launch(
            stream,
            LaunchShape::linear(blocks as u32, THREADS),
            &[Argument::new(&arguments.0), Argument::new(&arguments.1), Argument::new(&arguments.2)],
        )?;
        stream.copy_out(&largest, 0, &mut bits)?;
    }
    stream.synchronize()?;
    let mut value = [0.0];
    dtype.decode(&bits[..dtype.size()], &mut value);
    Ok(value[0])
}

//! The largest magnitude of a tensor on a GPU: `kernels/amax.cu`. Reference: [`FloatDtype::amax`].

use super::{STEP, THREADS, arguments, dtype_name, require};
use crate::device::cuda::{CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
use crate::ops::float_dtype::FloatDtype;

fn variant(dtype: FloatDtype) -> Variant {
    Variant::plain(kernel_source!("amax.cu")).define("DTYPE", dtype_name(dtype))
}

pub(super) fn variants() -> Vec<Variant> {
    [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32].map(variant).to_vec()
}

/// Queues the search for the largest magnitude of the first `count` elements of `x`, whose bits, of the type, go to `amax`:
/// one word.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn launch_amax(
    stream: &Stream,
    dtype: FloatDtype,
    x: &DeviceBuffer,
    count: usize,
    amax: &DeviceBuffer,
) -> Result<(), CudaError> {
    let bytes = count.saturating_mul(dtype.size());
    require("amax", &[("x", bytes, x), ("amax", 4, amax)])?;
    let kernel = stream.device().kernel(&variant(dtype), "tensor_amax")?;
    // As many blocks as fill the device; each thread goes over many steps.
    let blocks = count.div_ceil(STEP * THREADS as usize).min(8 * stream.device().multiprocessors() as usize);
    let shape = LaunchShape::linear(blocks as u32, THREADS);
    // SAFETY: the kernel reads `count` elements of `x`, as measured, and writes one word; the rest is the caller's promise.
    unsafe {
        stream.fill(amax, 0, 4, 0)?;
        kernel.launch(stream, shape, arguments![x.address(), count as u64, amax.address()])
    }
}

/// The number whose bits [`launch_amax`] found; infinite or NaN where an element is.
pub fn amax_of_bits(dtype: FloatDtype, bits: &[u8]) -> f32 {
    let mut value = [0.0];
    dtype.decode(&bits[..dtype.size()], &mut value);
    value[0]
}

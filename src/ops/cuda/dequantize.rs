//! Dequantization on a GPU: `kernels/dequantize.cu`. Reference: [`crate::ops::dequantize`].

use std::ops::Range;

use super::weight::Stored;
use super::{Act, DeviceWeight, STEP, arguments, index, one_thread_each, require};
use crate::device::cuda::{CudaError, Operand, Stream, Variant, kernel_source};

const OPERATION: &str = "dequantize";

/// Mirrors `Dequantize` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    weight: Stored,
    out: u64,
    first_row: u32,
    rows: u32,
    aligned: u32,
    unused: u32,
}

fn plain() -> Variant {
    Variant::plain(kernel_source!("dequantize.cu"))
}

pub(super) fn variants() -> Vec<Variant> {
    let of = |element: &'static str, bits: u8, scale: &'static str, asymmetric: bool, offset: bool| {
        plain()
            .define("DTYPE", "BF16")
            .define("ELEMENT", element)
            .define("BITS", bits)
            .define("SCALE", scale)
            .define("ASYMMETRIC", asymmetric)
            .define("OFFSET", offset)
            .define("OUT", "BF16")
    };
    vec![
        of("INT", 4, "SCALE_FLOAT", false, true),
        of("E2M1", 4, "SCALE_E4M3", false, false),
        of("E4M3", 8, "SCALE_FLOAT", false, false),
        of("E2M3", 6, "SCALE_E8M0", false, false),
        of("INT", 7, "SCALE_FLOAT", true, true),
    ]
}

/// Queues `rows` of the dense weight \[N, K\] of `output` into `out` \[rows, K\].
///
/// # Safety
/// All buffers stay alive, and `out` is not used, until the stream was synchronized.
pub unsafe fn dequantize(
    stream: &Stream,
    output: Act,
    weight: &DeviceWeight<'_>,
    rows: Range<usize>,
    out: Operand<'_>,
) -> Result<(), CudaError> {
    let (stored, k) = (weight.stored(OPERATION, &rows)?, weight.shape[1]);
    let end = out.offset + rows.len() * k * output.size();
    require(OPERATION, &[("the dense weight", end, out.buffer)])?;
    let variant = weight.coding.defines(plain()).define("OUT", output.name());
    let kernel = stream.device().kernel(&variant, OPERATION)?;
    let job = Job {
        weight: stored,
        out: out.address(),
        first_row: index(OPERATION, rows.start)?,
        rows: index(OPERATION, rows.len())?,
        aligned: (out.address().is_multiple_of(16) && (k * output.size()).is_multiple_of(16)).into(),
        unused: 0,
    };
    let shape = one_thread_each(OPERATION, rows.len() * k.div_ceil(STEP))?;
    // SAFETY: the struct mirrors the kernel's, buffers were measured above, the rest is the caller's promise.
    unsafe { kernel.launch(stream, shape, arguments![job]) }
}

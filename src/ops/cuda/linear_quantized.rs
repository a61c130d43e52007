//! Weight-only linear layers on tensor cores: `kernels/linear_quantized.cu`. Reference: [`crate::ops::linear`] over the
//! dequantized weight, rounded to bf16.

use super::weight::Stored;
use super::{Act, Columns, DeviceWeight, arguments, index, require};
use crate::device::cuda::{CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};

const OPERATION: &str = "linear_quantized";
/// Rows and columns of y that one block computes.
const TILE: usize = 64;
/// Threads of a block.
const THREADS: u32 = 128;

/// Mirrors `Linear` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    weight: Stored,
    x: u64,
    y: u64,
    rows: u32,
    first_n: u32,
    n: u32,
    stride: u32,
}

fn plain() -> Variant {
    Variant::plain(kernel_source!("linear_quantized.cu"))
}

pub(super) fn variants() -> Vec<Variant> {
    let of = |(element, bits, scale, asymmetric, offset): (&str, u8, &str, bool, bool), act: Act| {
        plain()
            .define("DTYPE", "BF16")
            .define("ELEMENT", element)
            .define("BITS", bits)
            .define("SCALE", scale)
            .define("ASYMMETRIC", asymmetric)
            .define("OFFSET", offset)
            .define("ACT", act.name())
    };
    let codings = [
        ("INT", 4, "SCALE_FLOAT", false, true),
        ("E2M1", 4, "SCALE_E4M3", false, false),
        ("INT", 4, "SCALE_FLOAT", true, true),
        ("INT", 8, "SCALE_FLOAT", false, true),
        ("INT", 3, "SCALE_FLOAT", false, true),
        ("E4M3", 8, "SCALE_FLOAT", false, false),
        ("E2M1", 4, "SCALE_E8M0", false, false),
        ("E2M3", 6, "SCALE_E8M0", false, false),
    ];
    let mut variants = codings.map(|coding| of(coding, Act::Bf16)).to_vec();
    // Of the head and of routers, whose results are f32.
    variants.push(of(codings[0], Act::F32));
    variants
}

/// y \[T, n\] from x \[T, K\] bf16 and the rows from `first_n` on of a quantized weight, one for each column of y.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn linear_quantized(
    stream: &Stream,
    x: &DeviceBuffer,
    (weight, first_n): (&DeviceWeight<'_>, usize),
    y: Columns<'_>,
) -> Result<(), CudaError> {
    let stored = weight.stored(OPERATION, &(first_n..first_n + y.n))?;
    require(OPERATION, &[("x", y.rows * weight.shape[1] * 2, x)])?;
    y.check()?;
    let variant = weight.coding.defines(plain()).define("ACT", y.act.name());
    let kernel = stream.device().kernel(&variant, OPERATION)?;
    let [rows, n, stride] = y.numbers()?;
    let job = Job {
        weight: stored,
        x: x.address(),
        y: y.at.address(),
        rows,
        first_n: index(OPERATION, first_n)?,
        n,
        stride,
    };
    let grid = [index(OPERATION, y.n.div_ceil(TILE))?, index(OPERATION, y.rows.div_ceil(TILE))?, 1];
    // SAFETY: `Job` mirrors the kernel's struct, sizes were checked, the rest is the caller's promise.
    unsafe { kernel.launch(stream, LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, arguments![job]) }
}

//! Weight-only linear layers on tensor cores: `kernels/linear_quantized.cu`. Reference: [`crate::ops::linear`] over the
//! dequantized weight.

use super::{Act, DeviceWeight, STEP, arguments, index, layout_defines, require};
use crate::device::cuda::{CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{ScaleKind, WeightLayout};

const OPERATION: &str = "linear_quantized";
/// Rows and columns of y that one block computes.
const TILE: usize = 64;
/// Threads of a block.
const THREADS: u32 = 128;

/// Mirrors `Linear` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    x: u64,
    y: u64,
    codes: u64,
    scales: u64,
    zero_points: u64,
    row_code_bytes: u64,
    rows: u32,
    n: u32,
    k: u32,
    columns: u32,
    global: f32,
}

pub(super) fn variants() -> Vec<Variant> {
    let of = |element: &str, bits: u8, scale: &str, asymmetric: bool, offset: bool| {
        Variant::plain(kernel_source!("linear_quantized.cu"))
            .define("DTYPE", "BF16")
            .define("ELEMENT", element)
            .define("BITS", bits)
            .define("SCALE", scale)
            .define("ASYMMETRIC", asymmetric)
            .define("OFFSET", offset)
            .define("ACT", "BF16")
    };
    vec![
        of("INT", 4, "SCALE_FLOAT", false, true),
        of("INT", 4, "SCALE_FLOAT", true, true),
        of("INT", 8, "SCALE_FLOAT", false, true),
        of("E4M3", 8, "SCALE_FLOAT", false, false),
        of("E2M1", 4, "SCALE_E4M3", false, false),
        of("E2M1", 4, "SCALE_E8M0", false, false),
    ]
}

/// y \[T, N\] of `act` from x \[T, K\] bf16 and a quantized weight with scales by row or by group of a row.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn linear_quantized(
    stream: &Stream,
    act: Act,
    x: &DeviceBuffer,
    rows: usize,
    (weight, layout, scale_dtype): (&DeviceWeight<'_>, &WeightLayout, FloatDtype),
    y: &DeviceBuffer,
) -> Result<(), CudaError> {
    let [n, k] = weight.shape;
    let [band, columns] = layout.block(weight.shape);
    if band != 1 || !(columns >= k || columns.is_multiple_of(STEP)) {
        let what =
            format!("scales of {band} rows and {columns} columns, expected one row and a multiple of {STEP}");
        return Err(CudaError::Argument { operation: OPERATION, what });
    }
    let row_code_bytes = layout.codes([1, k]).num_bytes() as usize;
    let groups = k.div_ceil(columns);
    let scale_bytes = if layout.scale == ScaleKind::Float { scale_dtype.size() } else { 1 };
    require(
        OPERATION,
        &[
            ("x", rows * k * 2, x),
            ("y", rows * n * act.size(), y),
            ("codes", n * row_code_bytes, weight.codes),
            ("scales", n * groups * scale_bytes, weight.scales),
        ],
    )?;
    match (layout.symmetric, weight.zero_points) {
        (true, _) => {}
        (false, Some(zero_points)) => require(OPERATION, &[("zero points", n * groups, zero_points)])?,
        (false, None) => {
            let what = "an asymmetric weight without zero points".to_owned();
            return Err(CudaError::Argument { operation: OPERATION, what });
        }
    }
    let variant = layout_defines(Variant::plain(kernel_source!("linear_quantized.cu")), layout, scale_dtype)
        .define("ACT", act.name());
    let kernel = stream.device().kernel(&variant, OPERATION)?;
    let job = Job {
        x: x.address(),
        y: y.address(),
        codes: weight.codes.address(),
        scales: weight.scales.address(),
        zero_points: weight.zero_points.map_or(0, DeviceBuffer::address),
        row_code_bytes: row_code_bytes as u64,
        rows: index(OPERATION, rows)?,
        n: index(OPERATION, n)?,
        k: index(OPERATION, k)?,
        columns: index(OPERATION, columns.min(k))?,
        global: weight.global,
    };
    let grid = [index(OPERATION, n.div_ceil(TILE))?, index(OPERATION, rows.div_ceil(TILE))?, 1];
    // SAFETY: `Job` mirrors the kernel's struct, sizes were checked, the rest is the caller's promise.
    unsafe { kernel.launch(stream, LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, arguments![job]) }
}

//! Operations of one thread an element: `kernels/{embed,rope,gated}.cu`. References: the decoder's embedding,
//! [`crate::ops::rope`], [`crate::ops::gated`].

use super::{Act, arguments, dtype_name, index, one_thread_each, require};
use crate::device::cuda::{CudaError, DeviceBuffer, DeviceSlice, Stream, Variant, kernel_source};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::gated::Activation;

fn embed_variant(dtype: FloatDtype) -> Variant {
    Variant::plain(kernel_source!("embed.cu")).define("DTYPE", dtype_name(dtype))
}

fn rope_variant(act: Act) -> Variant {
    Variant::plain(kernel_source!("rope.cu")).define("ACT", act.name())
}

fn gated_variant(act: Act, activation: Activation) -> Variant {
    Variant::plain(kernel_source!("gated.cu"))
        .define("ACT", act.name())
        .define("GELU", activation == Activation::GeluTanh)
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = vec![embed_variant(FloatDtype::Bf16), embed_variant(FloatDtype::F32)];
    for act in [Act::Bf16, Act::F32] {
        all.push(rope_variant(act));
        all.extend([Activation::Silu, Activation::GeluTanh].map(|a| gated_variant(act, a)));
    }
    all
}

/// x_t ← scale · table\[token_t\]: tokens \[T\] u32, table \[V, K\], x \[T, K\] f32.
///
/// # Safety
/// Every token is below V; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn embed(
    stream: &Stream,
    tokens: DeviceSlice<'_>,
    (table, dtype): (&DeviceBuffer, FloatDtype),
    scale: f32,
    x: &DeviceBuffer,
    [rows, k]: [usize; 2],
) -> Result<(), CudaError> {
    require(
        "embed",
        &[("tokens", rows * 4, &tokens), ("x", rows * k * 4, x), ("a row", k * dtype.size(), table)],
    )?;
    let kernel = stream.device().kernel(&embed_variant(dtype), "embed")?;
    let (shape, numbers) = (one_thread_each("embed", rows * k)?, [index("embed", rows)?, index("embed", k)?]);
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(
            stream,
            shape,
            arguments![tokens.address(), table.address(), scale, x.address(), numbers[0], numbers[1]],
        )
    }
}

/// out_i ← x_{rows_i}: rows \[n\] u32, x \[·, K\], out \[n, K\], elements of `size` bytes, 2 or 4.
///
/// # Safety
/// Every row exists; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn gather_rows(
    stream: &Stream,
    x: &DeviceBuffer,
    rows: DeviceSlice<'_>,
    out: &DeviceBuffer,
    [count, k]: [usize; 2],
    size: usize,
) -> Result<(), CudaError> {
    require("gather_rows", &[("rows", count * 4, &rows), ("out", count * k * size, out)])?;
    let kernel = stream.device().kernel(&embed_variant(FloatDtype::Bf16), "gather_rows")?;
    let shape = one_thread_each("gather_rows", count * k)?;
    let numbers = [index("gather_rows", count)?, index("gather_rows", k)?, size as u32];
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            shape,
            arguments![x.address(), rows.address(), out.address(), numbers[0], numbers[1], numbers[2]],
        )
    }
}

/// Where the heads to rotate stand in a row, and how much of them.
#[derive(Debug, Clone, Copy)]
pub struct RotatedColumns {
    /// T.
    pub rows: usize,
    /// How many heads, from column 0 on.
    pub heads: usize,
    /// D.
    pub head_dim: usize,
    /// R, the part of a head that is rotated.
    pub rotary_dim: usize,
    /// Row length.
    pub stride: usize,
    /// Position of the table's first row.
    pub first_position: usize,
}

/// Rotates heads of x \[T, stride\] in place: positions \[T\] u32, table \[P, R\] f32 of cosines, then sines.
///
/// # Safety
/// The table has every position; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn rope(
    stream: &Stream,
    act: Act,
    x: &DeviceBuffer,
    columns: RotatedColumns,
    positions: DeviceSlice<'_>,
    table: &DeviceBuffer,
) -> Result<(), CudaError> {
    let RotatedColumns { rows, heads, head_dim, rotary_dim, stride, first_position } = columns;
    if heads * head_dim > stride || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let what = format!("{columns:?}");
        return Err(CudaError::Argument { operation: "rope", what });
    }
    require("rope", &[("x", rows * stride * act.size(), x), ("positions", rows * 4, &positions)])?;
    let kernel = stream.device().kernel(&rope_variant(act), "rope")?;
    let shape = one_thread_each("rope", rows * heads * rotary_dim / 2)?;
    let mut numbers = [0; 6];
    for (to, n) in numbers.iter_mut().zip([first_position, rows, heads, head_dim, rotary_dim, stride]) {
        *to = index("rope", n)?;
    }
    let [first, rows, heads, head_dim, rotary_dim, stride] = numbers;
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            shape,
            arguments![
                x.address(),
                positions.address(),
                table.address(),
                first,
                rows,
                heads,
                head_dim,
                rotary_dim,
                stride
            ],
        )
    }
}

/// out \[T, I\] from gate_up \[T, 2·I\].
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn gated(
    stream: &Stream,
    act: Act,
    activation: Activation,
    gate_up: &DeviceBuffer,
    out: &DeviceBuffer,
    [rows, inner]: [usize; 2],
) -> Result<(), CudaError> {
    let size = rows * inner * act.size();
    require("gated", &[("gate_up", 2 * size, gate_up), ("out", size, out)])?;
    let kernel = stream.device().kernel(&gated_variant(act, activation), "gated")?;
    let shape = one_thread_each("gated", rows * inner)?;
    let numbers = [index("gated", rows)?, index("gated", inner)?];
    // SAFETY: as above.
    unsafe {
        kernel.launch(stream, shape, arguments![gate_up.address(), out.address(), numbers[0], numbers[1]])
    }
}

//! What follows a matrix product: `kernels/product.cu`. References: [`crate::ops::linear::linear_codes`], the biases of
//! [`crate::model::linear`].

use super::{Act, arguments, index, one_thread_each, require};
use crate::device::cuda::{CudaError, DeviceBuffer, Operand, Stream, Variant, kernel_source};

const OPERATION: &str = "product";

fn variant(act: Act, integers: bool) -> Variant {
    Variant::plain(kernel_source!("product.cu")).define("ACT", act.name()).define("INTEGERS", integers)
}

pub(super) fn variants() -> Vec<Variant> {
    [Act::Bf16, Act::F32].iter().flat_map(|act| [true, false].map(|i| variant(*act, i))).collect()
}

/// Columns of a matrix \[T, N\] of activations in rows of `stride`.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// Type of its elements.
    pub act: Act,
    /// The first element.
    pub at: Operand<'a>,
    /// T.
    pub rows: usize,
    /// N.
    pub n: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

impl Columns<'_> {
    pub(super) fn check(&self) -> Result<(), CudaError> {
        let end = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.n };
        require(OPERATION, &[("y", self.at.offset + end * self.act.size(), self.at.buffer)])
    }

    pub(super) fn numbers(&self) -> Result<[u32; 3], CudaError> {
        Ok([index(OPERATION, self.rows)?, index(OPERATION, self.n)?, index(OPERATION, self.stride)?])
    }
}

/// y = sums · row_scales · column_scales: sums \[T, N\] int32 where `integers`, else f32; scales \[T\] and \[N\] f32.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn scale_product(
    stream: &Stream,
    (sums, integers): (&DeviceBuffer, bool),
    [row_scales, column_scales]: [Operand<'_>; 2],
    y: Columns<'_>,
) -> Result<(), CudaError> {
    let (count, [rows, n, stride]) = (y.rows * y.n, y.numbers()?);
    require(
        OPERATION,
        &[
            ("sums", count * 4, sums),
            ("row scales", row_scales.offset + y.rows * 4, row_scales.buffer),
            ("column scales", column_scales.offset + y.n * 4, column_scales.buffer),
        ],
    )?;
    y.check()?;
    let kernel = stream.device().kernel(&variant(y.act, integers), "scale_product")?;
    let scales = (row_scales.address(), column_scales.address());
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(
            stream,
            one_thread_each(OPERATION, count)?,
            arguments![sums.address(), scales.0, scales.1, y.at.address(), rows, n, stride],
        )
    }
}

/// y ← y + bias, \[N\] f32.
///
/// # Safety
/// As above.
pub unsafe fn add_bias(stream: &Stream, bias: &DeviceBuffer, y: Columns<'_>) -> Result<(), CudaError> {
    require(OPERATION, &[("bias", y.n * 4, bias)])?;
    y.check()?;
    let kernel = stream.device().kernel(&variant(y.act, false), "add_bias")?;
    let [rows, n, stride] = y.numbers()?;
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            one_thread_each(OPERATION, y.rows * y.n)?,
            arguments![y.at.address(), bias.address(), rows, n, stride],
        )
    }
}

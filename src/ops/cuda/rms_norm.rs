//! RMS normalization on a GPU: `kernels/rms_norm.cu`. Reference: [`crate::ops::rms_norm`].

use super::{Act, arguments, index, one_block_each, require};
use crate::device::cuda::{CudaError, DeviceBuffer, Stream, Variant, kernel_source};

const OPERATION: &str = "rms_norm";

fn variant(act: Act) -> Variant {
    Variant::plain(kernel_source!("rms_norm.cu")).define("ACT", act.name())
}

pub(super) fn variants() -> Vec<Variant> {
    [Act::Bf16, Act::F32].map(variant).to_vec()
}

/// What is normalized, with what.
#[derive(Clone, Copy)]
pub struct Normalized<'a> {
    /// Type of added and normalized rows.
    pub act: Act,
    /// T.
    pub rows: usize,
    /// K.
    pub k: usize,
    /// w \[K\], f32; without it rows are left as they are.
    pub weight: Option<&'a DeviceBuffer>,
    /// ε.
    pub eps: f32,
}

/// x ← x + y · factor where `y` is given, then h ← norm(x) where `h` is: x f32, y and h of the activations' type, \[T, K\].
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn rms_norm(
    stream: &Stream,
    of: Normalized<'_>,
    x: &DeviceBuffer,
    y: Option<(&DeviceBuffer, f32)>,
    h: Option<&DeviceBuffer>,
) -> Result<(), CudaError> {
    let (size, k) = (of.rows * of.k, index(OPERATION, of.k)?);
    require(OPERATION, &[("x", size * 4, x), ("w", of.k * 4, of.weight.unwrap_or(x))])?;
    for buffer in y.map(|(y, _)| y).into_iter().chain(h) {
        require(OPERATION, &[("y or h", size * of.act.size(), buffer)])?;
    }
    let kernel = stream.device().kernel(&variant(of.act), "rms_norm")?;
    let (added, factor) = y.map_or((0, 0.0), |(y, factor)| (y.address(), factor));
    let normalized = h.map_or(0, DeviceBuffer::address);
    let weight = of.weight.map_or(0, DeviceBuffer::address);
    let shape = one_block_each(OPERATION, of.rows, of.k)?;
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(stream, shape, arguments![x.address(), added, factor, weight, of.eps, normalized, k])
    }
}

/// Normalizes `columns` of each row of x \[T, stride\] in place, in adjacent parts of K columns.
///
/// # Safety
/// As for [`rms_norm`].
pub unsafe fn rms_norm_parts(
    stream: &Stream,
    of: Normalized<'_>,
    x: &DeviceBuffer,
    stride: usize,
    columns: std::ops::Range<usize>,
) -> Result<(), CudaError> {
    let whole = of.k > 0 && columns.end <= stride && columns.len().is_multiple_of(of.k);
    if !whole {
        let what = format!("columns {columns:?} of {stride} are not whole parts of {}", of.k);
        return Err(CudaError::Argument { operation: OPERATION, what });
    }
    let Some(weight) = of.weight else {
        let what = "parts of rows without a weight".to_owned();
        return Err(CudaError::Argument { operation: OPERATION, what });
    };
    require(OPERATION, &[("x", of.rows * stride * of.act.size(), x), ("w", of.k * 4, weight)])?;
    let kernel = stream.device().kernel(&variant(of.act), "rms_norm_parts")?;
    let parts = columns.len() / of.k;
    let shape = one_block_each(OPERATION, of.rows * parts, of.k)?;
    let numbers = [index(OPERATION, stride)?, columns.start as u32, parts as u32, index(OPERATION, of.k)?];
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            shape,
            arguments![x.address(), numbers[0], numbers[1], numbers[2], weight.address(), of.eps, numbers[3]],
        )
    }
}

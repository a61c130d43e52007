//! Rows of a mixture of experts sorted by expert, and back: `kernels/moe.cu`. Reference: [`crate::model`]'s experts.

use super::{Act, THREADS, arguments, index, one_thread_each, require};
use crate::device::cuda::{
    CudaError, DeviceBuffer, DeviceSlice, LaunchShape, Stream, Variant, kernel_source,
};

const OPERATION: &str = "moe";
/// Copies whose number f32 holds exactly.
const MAX_COPIES: usize = 1 << 24;

fn variant(act: Act) -> Variant {
    Variant::plain(kernel_source!("moe.cu")).define("ACT", act.name())
}

pub(super) fn variants() -> Vec<Variant> {
    [Act::Bf16, Act::F32].map(variant).to_vec()
}

/// Which experts rows go to.
#[derive(Clone, Copy)]
pub struct ExpertChoice<'a> {
    /// Type of activations.
    pub act: Act,
    /// \[T, top\] u32.
    pub experts: DeviceSlice<'a>,
    /// T.
    pub rows: usize,
    /// Experts of a row.
    pub top: usize,
    /// E.
    pub count: usize,
    /// K.
    pub k: usize,
}

/// Writes counts \[E\] u32, places \[T, top\] u32, and the rows of x \[T, K\] by expert: sorted \[T·top, K\].
///
/// # Safety
/// Every expert is below E; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn moe_scatter(
    stream: &Stream,
    choice: ExpertChoice<'_>,
    x: &DeviceBuffer,
    (counts, places, sorted): (&DeviceBuffer, &DeviceBuffer, &DeviceBuffer),
) -> Result<(), CudaError> {
    let ExpertChoice { act, experts, rows, top, count, k } = choice;
    let copies = rows * top;
    if copies >= MAX_COPIES {
        return Err(CudaError::Argument { operation: OPERATION, what: format!("{copies} copies of rows") });
    }
    require(
        OPERATION,
        &[
            ("experts", copies * 4, &experts),
            ("x", rows * k * act.size(), x),
            ("counts", count * 4, counts),
            ("places", copies * 4, places),
            ("sorted", copies * k * act.size(), sorted),
        ],
    )?;
    let kernel = |name| stream.device().kernel(&variant(act), name);
    let by_expert = LaunchShape::linear(index(OPERATION, count)?, THREADS);
    let (copies_word, top_word, k_word) = (copies as u32, index(OPERATION, top)?, index(OPERATION, k)?);
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel("moe_count")?.launch(
            stream,
            by_expert,
            arguments![experts.address(), copies_word, counts.address()],
        )?;
        kernel("moe_place")?.launch(
            stream,
            by_expert,
            arguments![experts.address(), copies_word, counts.address(), places.address()],
        )?;
        kernel("moe_scatter")?.launch(
            stream,
            one_thread_each(OPERATION, copies * k)?,
            arguments![x.address(), places.address(), sorted.address(), copies_word, top_word, k_word],
        )
    }
}

/// y_t \[T, K\] = Σ_j weights_tj · sorted\[places_tj\], weights \[T, top\] f32.
///
/// # Safety
/// Places are those of [`moe_scatter`]; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn moe_combine(
    stream: &Stream,
    choice: ExpertChoice<'_>,
    (sorted, places, weights): (&DeviceBuffer, &DeviceBuffer, DeviceSlice<'_>),
    y: &DeviceBuffer,
) -> Result<(), CudaError> {
    let ExpertChoice { act, rows, top, k, .. } = choice;
    require(
        OPERATION,
        &[
            ("sorted", rows * top * k * act.size(), sorted),
            ("places", rows * top * 4, places),
            ("weights", rows * top * 4, &weights),
            ("y", rows * k * act.size(), y),
        ],
    )?;
    let kernel = stream.device().kernel(&variant(act), "moe_combine")?;
    let numbers = [index(OPERATION, rows)?, index(OPERATION, top)?, index(OPERATION, k)?];
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            one_thread_each(OPERATION, rows * k)?,
            arguments![
                sorted.address(),
                places.address(),
                weights.address(),
                y.address(),
                numbers[0],
                numbers[1],
                numbers[2]
            ],
        )
    }
}

/// y \[T, K\] ← y + shared · σ(gates), gates \[T\] f32.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn moe_add_shared(
    stream: &Stream,
    act: Act,
    (shared, gates): (&DeviceBuffer, &DeviceBuffer),
    y: &DeviceBuffer,
    [rows, k]: [usize; 2],
) -> Result<(), CudaError> {
    let bytes = rows * k * act.size();
    require(OPERATION, &[("shared", bytes, shared), ("gates", rows * 4, gates), ("y", bytes, y)])?;
    let kernel = stream.device().kernel(&variant(act), "moe_add_shared")?;
    let numbers = [index(OPERATION, rows)?, index(OPERATION, k)?];
    // SAFETY: as above.
    unsafe {
        kernel.launch(
            stream,
            one_thread_each(OPERATION, rows * k)?,
            arguments![shared.address(), gates.address(), y.address(), numbers[0], numbers[1]],
        )
    }
}

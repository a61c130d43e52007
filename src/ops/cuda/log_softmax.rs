//! The output head tile by tile: `kernels/log_softmax.cu`. Reference: [`crate::ops::log_softmax`].

use super::{THREADS, arguments, index, require};
use crate::device::cuda::{
    CudaError, DeviceBuffer, DeviceSlice, LaunchShape, Stream, Variant, kernel_source,
};
use crate::ops::log_softmax::LogitMap;

const OPERATION: &str = "log_softmax";

fn variant() -> Variant {
    Variant::plain(kernel_source!("log_softmax.cu"))
}

pub(super) fn variants() -> Vec<Variant> {
    vec![variant()]
}

/// Mirrors `State` of the kernel: what is known of a row after some tiles.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowState {
    /// Largest logit.
    pub largest: f32,
    /// Σ e^(logit − largest).
    pub sum: f32,
    /// The most likely token; the lowest of equals.
    pub token: u32,
    unused: u32,
}

impl RowState {
    /// Reads states as the kernel writes them.
    pub fn read(bytes: &[u8]) -> Vec<Self> {
        let word = |four: [u8; 4]| u32::from_le_bytes(four);
        let of = |b: &[u8; 16]| {
            let [largest, sum, token, unused] =
                [0, 4, 8, 12].map(|i| word([b[i], b[i + 1], b[i + 2], b[i + 3]]));
            Self { largest: f32::from_bits(largest), sum: f32::from_bits(sum), token, unused }
        };
        bytes.as_chunks::<16>().0.iter().map(of).collect()
    }

    /// ln p of a token with this logit.
    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.largest) - f64::from(self.sum).ln()) as f32
    }
}

/// Logits of consecutive tokens for R rows.
#[derive(Clone, Copy)]
pub struct LogitTile<'a> {
    /// \[R, stride\] f32.
    pub logits: &'a DeviceBuffer,
    /// R.
    pub rows: usize,
    /// Distance of rows.
    pub stride: usize,
    /// Tokens in the tile.
    pub columns: usize,
    /// The first of them; 0 begins the states anew.
    pub first_token: usize,
}

/// Adds a tile to the states \[R\]. `targets` \[n\] u32 ascend within a row, those of row r at `offsets`\[r\]..; their logits go
/// to `target_logits` \[n\].
///
/// # Safety
/// Offsets \[R + 1\] ascend and end at most at n; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn log_softmax_tile(
    stream: &Stream,
    tile: LogitTile<'_>,
    map: LogitMap,
    states: &DeviceBuffer,
    [targets, offsets]: [DeviceSlice<'_>; 2],
    target_logits: &DeviceBuffer,
) -> Result<(), CudaError> {
    if tile.columns == 0 || tile.columns > tile.stride {
        let what = format!("{} columns in rows of {}", tile.columns, tile.stride);
        return Err(CudaError::Argument { operation: OPERATION, what });
    }
    require(
        OPERATION,
        &[
            ("logits", ((tile.rows.max(1) - 1) * tile.stride + tile.columns) * 4, tile.logits),
            ("states", tile.rows * size_of::<RowState>(), states),
            ("offsets", (tile.rows + 1) * 4, &offsets),
            ("target_logits", targets.len() / 4 * 4, target_logits),
        ],
    )?;
    let kernel = stream.device().kernel(&variant(), "log_softmax_tile")?;
    let shape = LaunchShape::linear(index(OPERATION, tile.rows)?, THREADS);
    let numbers = [
        index(OPERATION, tile.stride)?,
        index(OPERATION, tile.columns)?,
        index(OPERATION, tile.first_token)?,
    ];
    let cap = map.softcap.unwrap_or(0.0);
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(
            stream,
            shape,
            arguments![
                tile.logits.address(),
                numbers[0],
                numbers[1],
                numbers[2],
                map.divisor,
                cap,
                states.address(),
                targets.address(),
                offsets.address(),
                target_logits.address()
            ],
        )
    }
}

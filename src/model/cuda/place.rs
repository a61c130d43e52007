//! Tensors of a checkpoint to devices, decoded in memory a piece at a time, and once for all of them.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::super::error::ModelError;
use super::super::module_rows::ModuleRows;
use super::super::placement::Placement;
use super::super::weights::Weights;
use super::linear::DeviceLinear;
use crate::checkpoint::CheckpointError;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Stream};
use crate::ops::cuda::Act;
use crate::ops::fp8;
use crate::ops::packed::{CodeKind, CodeRows, WeightRows};

/// Bytes decoded at a time.
const PIECE_BYTES: usize = 64 << 20;
/// Rows of one task.
const ROWS: usize = 16;

/// On devices of one kind, for activations of a type.
pub(in crate::model) struct OnDevices {
    streams: Vec<Stream>,
    act: Act,
}

/// The same bytes on each device, those of replica r on device r.
pub(in crate::model) struct Replicated(Vec<DeviceBuffer>);

impl Replicated {
    /// Those of a replica.
    pub fn of(&self, replica: usize) -> &DeviceBuffer {
        &self.0[replica]
    }

    /// Size on each device.
    pub fn len(&self) -> usize {
        self.0[0].len()
    }
}

impl OnDevices {
    /// On these devices, at least one.
    pub fn new(devices: &[Arc<Device>], act: Act) -> Result<Self, ModelError> {
        Ok(Self { streams: devices.iter().map(Stream::new).collect::<Result<_, _>>()?, act })
    }

    /// Type of activations.
    pub fn act(&self) -> Act {
        self.act
    }

    /// Compute capability of all of them.
    pub fn capability(&self) -> (u32, u32) {
        self.streams[0].device().capability()
    }

    /// Room on each device.
    fn room(&self, bytes: usize) -> Result<Replicated, CudaError> {
        let rooms = self.streams.iter().map(|stream| DeviceBuffer::new(stream.device(), bytes));
        Ok(Replicated(rooms.collect::<Result<_, _>>()?))
    }

    /// Copies bytes to each device and waits.
    fn upload(&self, bytes: &[u8], to: &Replicated, offset: usize) -> Result<(), CudaError> {
        let queue = |(stream, to): (&Stream, &DeviceBuffer)| {
            // SAFETY: both live until the stream is synchronized below.
            unsafe { stream.copy_in(bytes, to, offset) }
        };
        let queued: Vec<_> = self.streams.iter().zip(&to.0).map(queue).collect();
        // All are waited for before an error is returned: copies read `bytes`.
        let waited: Vec<_> = self.streams.iter().map(Stream::synchronize).collect();
        queued.into_iter().chain(waited).collect()
    }

    /// Matrices \[N_i, K\], one below the other, in the type of activations.
    pub fn dense(&self, parts: &[&dyn WeightRows], k: usize) -> Result<Replicated, ModelError> {
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let write: WriteRow = match self.act {
            Act::Bf16 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *to = bf16::from_f32(*x).to_le_bytes();
                }
            },
            Act::F32 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *to = x.to_le_bytes();
                }
            },
        };
        let read = |part: usize, rows: std::ops::Range<usize>, out: &mut [f32]| parts[part].read(rows, out);
        self.rows(&counts, k, self.act.size(), &read, write)
    }

    /// Codes of matrices \[N_i, K\], one below the other, a byte each, and their scales \[N\].
    pub fn codes(
        &self,
        kind: CodeKind,
        parts: &[&dyn CodeRows],
        k: usize,
    ) -> Result<[Replicated; 2], ModelError> {
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let write: WriteRow = match kind {
            CodeKind::Int8 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.iter_mut().zip(x) {
                    *to = *x as i8 as u8;
                }
            },
            CodeKind::Fp8 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.iter_mut().zip(x) {
                    *to = fp8::e4m3_code_and_value(*x).0;
                }
            },
        };
        let read = |part: usize, rows: std::ops::Range<usize>, out: &mut [f32]| parts[part].codes(rows, out);
        let codes = self.rows(&counts, k, 1, &read, write)?;
        let mut scales = Vec::new();
        for part in parts {
            scales.extend(part.scales()?);
        }
        Ok([codes, self.vector(scales)?])
    }

    /// Bytes of a file one behind the other.
    pub fn bytes(&self, parts: &[&[u8]]) -> Result<Replicated, CudaError> {
        let buffer = self.room(parts.iter().map(|part| part.len()).sum())?;
        let mut offset = 0;
        for part in parts {
            self.upload(part, &buffer, offset)?;
            offset += part.len();
        }
        Ok(buffer)
    }

    /// Reads rows of parts as numbers and writes them as elements of `size` bytes.
    fn rows(
        &self,
        counts: &[usize],
        k: usize,
        size: usize,
        read: &ReadRows<'_>,
        write: WriteRow,
    ) -> Result<Replicated, ModelError> {
        let buffer = self.room(counts.iter().sum::<usize>() * k * size)?;
        let (mut offset, step) = (0, (PIECE_BYTES / (k * size).max(1)).max(ROWS));
        for (part, count) in counts.iter().enumerate() {
            for first in (0..*count).step_by(step) {
                let piece = first..(first + step).min(*count);
                let mut bytes = vec![0; piece.len() * k * size];
                bytes.par_chunks_mut(ROWS * k * size).enumerate().try_for_each(|(i, out)| {
                    let first = piece.start + i * ROWS;
                    let count = out.len() / (k * size);
                    let mut numbers = vec![0.0; count * k];
                    read(part, first..first + count, &mut numbers)?;
                    write(&numbers, out);
                    Ok::<_, CheckpointError>(())
                })?;
                self.upload(&bytes, &buffer, offset)?;
                offset += bytes.len();
            }
        }
        Ok(buffer)
    }
}

/// Decodes rows of one part.
type ReadRows<'a> =
    dyn Fn(usize, std::ops::Range<usize>, &mut [f32]) -> Result<(), CheckpointError> + Sync + 'a;
/// Writes numbers as elements.
type WriteRow = fn(&[f32], &mut [u8]);

impl Placement for OnDevices {
    type Linear = DeviceLinear;
    type Vector = Replicated;
    type Table = Replicated;

    fn linear(
        &self,
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<DeviceLinear, ModelError> {
        DeviceLinear::load(self, weights, modules, k, bias)
    }

    fn module(
        &self,
        _: &Weights<'_>,
        _: &str,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<DeviceLinear, ModelError> {
        Ok(DeviceLinear::dense(self.dense(&[rows], k)?, [WeightRows::count(rows), k]))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Replicated, ModelError> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(self.bytes(&[&bytes])?)
    }

    fn table(&self, _: &Weights<'_>, rows: &ModuleRows<'_>, k: usize) -> Result<Replicated, ModelError> {
        self.dense(&[rows], k)
    }
}

#[cfg(test)]
mod gpu_tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::device::cuda::CubinCache;
    use crate::device::cuda::test_device::device;

    /// Rows that count how often they are decoded.
    struct Counted {
        rows: usize,
        k: usize,
        decoded: AtomicUsize,
    }

    impl WeightRows for Counted {
        fn count(&self) -> usize {
            self.rows
        }

        fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
            self.decoded.fetch_add(rows.len(), Ordering::Relaxed);
            for (out, row) in out.chunks_exact_mut(self.k).zip(rows) {
                out.fill(row as f32);
            }
            Ok(())
        }
    }

    /// Two devices; `None` where there are fewer, which is printed.
    fn two_devices() -> Option<[Arc<Device>; 2]> {
        let first = device()?;
        let cache = CubinCache::new(first.kernel_cache().dir().to_path_buf());
        let Ok(second) = Device::open_with_cache(1, cache) else {
            println!("skipped: one device");
            return None;
        };
        Some([first, second])
    }

    /// A copy that is refused on one device waits for those that were queued on others.
    #[test]
    fn nothing_is_being_copied_when_an_upload_fails() {
        let Some(devices) = two_devices() else { return };
        let place = OnDevices::new(&devices, Act::Bf16).unwrap();
        for sizes in [[8, 4], [4, 8]] {
            let rooms = devices.iter().zip(sizes).map(|(device, size)| DeviceBuffer::new(device, size));
            let rooms = Replicated(rooms.collect::<Result<_, _>>().unwrap());
            let before = devices.each_ref().map(|device| device.counts().waits);
            let error = place.upload(&[1; 8], &rooms, 0).unwrap_err();
            assert!(matches!(error, CudaError::Argument { .. }), "{error}");
            assert_eq!(devices.each_ref().map(|device| device.counts().waits), before.map(|waits| waits + 1));
        }
    }

    #[test]
    fn rows_are_decoded_once_for_all_devices() {
        let Some(devices) = two_devices() else { return };
        let place = OnDevices::new(&devices, Act::Bf16).unwrap();
        let parts = [40, 3].map(|rows| Counted { rows, k: 5, decoded: AtomicUsize::new(0) });
        let dense = place.dense(&[&parts[0], &parts[1]], 5).unwrap();
        assert_eq!(parts.map(|part| part.decoded.into_inner()), [40, 3]);
        let expected: Vec<u8> = (0..40)
            .chain(0..3)
            .flat_map(|row| [bf16::from_f32(row as f32).to_le_bytes(); 5].concat())
            .collect();
        for (replica, stream) in place.streams.iter().enumerate() {
            assert!(Arc::ptr_eq(dense.of(replica).device(), stream.device()));
            assert_eq!(stream.download(dense.of(replica), dense.len()).unwrap(), expected);
        }
    }
}

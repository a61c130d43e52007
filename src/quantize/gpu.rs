//! The quantizer's tiles on GPUs. Each thread owns a [`Lane`] to one of the devices and reads into its page-locked memory,
//! so that reading, copying, computing and writing of different tiles overlap. The bytes are those of the CPU: the first
//! tile of each scheme on each device is compared with them before anything is written.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::QuantizeError;
use super::work::{Files, Input};
use crate::device::cuda::{CudaError, Device};
use crate::ops::cuda::{CudaQuantizeError, CudaQuantizer, Lane};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::quantize_weight::{QuantizeWeightError, TILE_BYTES, Tile, WeightQuantizer};
use crate::record::quantize::DeviceSeconds;

/// Source bytes of one tile on a device: large enough that launching and waiting do not count.
const DEVICE_TILE_BYTES: usize = 8 << 20;
/// Threads with a lane: more do not make a device faster, and each holds four tiles of memory.
const MAX_LANES: usize = 16;

/// Devices that quantize, and where their time goes.
#[derive(Debug)]
pub struct Gpus {
    devices: Vec<Arc<Device>>,
    read_ns: AtomicU64,
    device_ns: AtomicU64,
    deliver_ns: AtomicU64,
    /// Device, and kernel with its rectangle and defines, of what was compared with the CPU.
    checked: Mutex<BTreeSet<(usize, String)>>,
}

impl Gpus {
    /// `None` without devices.
    pub fn new(devices: Vec<Arc<Device>>) -> Option<Self> {
        let zero = || AtomicU64::new(0);
        let (read_ns, device_ns, deliver_ns) = (zero(), zero(), zero());
        let checked = Mutex::default();
        (!devices.is_empty()).then_some(Self { devices, read_ns, device_ns, deliver_ns, checked })
    }

    /// The devices.
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Where the threads' time went so far, summed over threads.
    pub fn seconds(&self) -> DeviceSeconds {
        let seconds = |ns: &AtomicU64| ns.load(Ordering::Relaxed) as f64 * 1e-9;
        DeviceSeconds {
            read_s: seconds(&self.read_ns),
            device_s: seconds(&self.device_ns),
            deliver_s: seconds(&self.deliver_ns),
            peak_device_bytes: self.devices.iter().map(|d| d.allocated_bytes().1).max().unwrap_or(0),
        }
    }
}

/// Source bytes of a tile, and threads that work on tiles.
pub(super) fn tile_bytes(gpus: Option<&Gpus>) -> usize {
    if gpus.is_some() { DEVICE_TILE_BYTES } else { TILE_BYTES }
}

/// As above.
pub(super) fn threads(gpus: Option<&Gpus>) -> usize {
    let threads = rayon::current_num_threads().max(1);
    // At least two, so that one can read while the device works for the other.
    gpus.map_or(threads, |gpus| threads.clamp(2, MAX_LANES * gpus.devices.len()))
}

/// Where one thread reads tiles to and quantizes them.
pub(super) struct Room<'a> {
    gpus: Option<(&'a Gpus, Lane)>,
    buffer: Vec<u8>,
    len: usize,
}

impl<'a> Room<'a> {
    /// The room of thread `worker`.
    pub(super) fn new(gpus: Option<&'a Gpus>, worker: usize, tile_bytes: usize) -> Result<Self, CudaError> {
        let with_lane = |gpus: &'a Gpus| {
            let lane = Lane::new(&gpus.devices[worker % gpus.devices.len()], tile_bytes)?;
            Ok::<_, CudaError>((gpus, lane))
        };
        Ok(Self { gpus: gpus.map(with_lane).transpose()?, buffer: Vec::new(), len: 0 })
    }

    /// Reads bytes of a tensor.
    pub(super) fn read(
        &mut self,
        input: &Input,
        files: &Files,
        range: &Range<u64>,
    ) -> Result<(), QuantizeError> {
        let start = Instant::now();
        self.len = (range.end - range.start) as usize;
        match &mut self.gpus {
            Some((gpus, lane)) => {
                lane.input.ensure(self.len)?;
                input.read_into(files, range, &mut lane.input[..self.len], &mut self.buffer)?;
                add(&gpus.read_ns, start.elapsed());
            }
            None => input.read(files, range, &mut self.buffer)?,
        }
        Ok(())
    }

    /// What was read last.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.gpus {
            Some((_, lane)) => &lane.input[..self.len],
            None => &self.buffer,
        }
    }

    /// The largest magnitude of what was read, found on the device if there is one; infinite or NaN where an element is.
    pub(super) fn amax(&mut self, dtype: FloatDtype) -> Result<f32, CudaError> {
        let Some((gpus, lane)) = &mut self.gpus else { return Ok(dtype.amax(self.bytes())) };
        let start = Instant::now();
        let amax = lane.amax(dtype, self.len)?;
        add(&gpus.device_ns, start.elapsed());
        Ok(amax)
    }

    /// Quantizes the rows that were read, on the device if its kernels hold the layout.
    pub(super) fn quantize(
        &mut self,
        quantizer: &WeightQuantizer,
        first_row: usize,
        tile: &mut Tile,
    ) -> Result<(), CudaQuantizeError> {
        if let Some((gpus, lane)) = &mut self.gpus {
            let start = Instant::now();
            let on_device = CudaQuantizer::new(lane.device(), *quantizer)?;
            if let Some(on_device) =
                on_device.filter(|q| self.len / quantizer.row_bytes().max(1) <= q.max_rows())
            {
                on_device.quantize(lane, first_row, self.len, tile)?;
                let first = (lane.device().ordinal(), on_device.scheme());
                if gpus.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(first) {
                    on_device.check(lane.device(), first_row, &lane.input[..self.len], tile)?;
                }
                add(&gpus.device_ns, start.elapsed());
                return Ok(());
            }
        }
        let done: Result<(), QuantizeWeightError> = quantizer.quantize(first_row, self.bytes(), tile);
        Ok(done?)
    }

    /// Times handing a tile to its output.
    pub(super) fn delivering<T>(&self, deliver: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = deliver();
        if let Some((gpus, _)) = &self.gpus {
            add(&gpus.deliver_ns, start.elapsed());
        }
        done
    }
}

fn add(total: &AtomicU64, time: Duration) {
    total.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::device::cuda::test_device::device;

    /// The device finds the amax of what was read; nothing of it is left for a smaller tile.
    #[test]
    fn amax_is_found_on_the_device() {
        let Some(device) = device() else { return };
        let gpus = Gpus::new(vec![Arc::clone(&device)]).unwrap();
        let (mut with, mut without) =
            (Room::new(Some(&gpus), 0, 64).unwrap(), Room::new(None, 0, 64).unwrap());
        for (len, largest) in [(1000, 9.0f32), (10, 0.5), (1000, f32::NAN)] {
            let numbers = (0..len).map(|i| if i == len / 2 { largest } else { -0.25 });
            without.buffer = numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect();
            (with.len, without.len) = (without.buffer.len(), without.buffer.len());
            let (_, lane) = with.gpus.as_mut().unwrap();
            lane.input.ensure(without.len).unwrap();
            lane.input[..without.len].copy_from_slice(&without.buffer);
            let before = device.counts();
            let found = with.amax(FloatDtype::Bf16).unwrap();
            assert_eq!((device.counts() - before).launches, 1);
            let expected = without.amax(FloatDtype::Bf16).unwrap();
            assert!(found == expected || !found.is_finite() && !expected.is_finite(), "{found} {expected}");
        }
        assert!(gpus.seconds().device_s > 0.0);
    }
}

//! How kernels are timed: by events between flushes of the second-level cache, after a warm-up; the best of several runs
//! counts.

#![allow(dead_code, reason = "each bench uses its part")]

use std::sync::Arc;

use day0::device::cuda::{CudaError, Device, DeviceBuffer, Event, Stream};
use half::bf16;

const RUNS: usize = 20;
const WARM_UP: usize = 3;

/// Work that is queued on a stream.
pub type Launch<'a> = &'a dyn Fn(&Stream) -> Result<(), CudaError>;

/// Where times are taken, and what they are compared with.
pub struct Bench {
    pub stream: Stream,
    flush: DeviceBuffer,
    events: [Event; 2],
    /// Bytes a second of a copy, read and written.
    pub copying: f64,
    /// FLOP a second of bf16 products.
    pub products: f64,
    /// Whether small shapes are run once, to see that everything runs.
    pub is_test: bool,
}

impl Bench {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(device)?,
            flush: DeviceBuffer::new(device, 2 * device.l2_bytes() as usize)?,
            events: [Event::new(device)?, Event::new(device)?],
            copying: f64::NAN,
            products: f64::NAN,
            is_test: std::env::args().any(|argument| argument == "--test"),
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        self.stream.device()
    }

    /// A size, or the one for a test.
    pub fn size(&self, large: usize, small: usize) -> usize {
        if self.is_test { small } else { large }
    }

    pub fn room(&self, bytes: usize) -> Result<DeviceBuffer, CudaError> {
        DeviceBuffer::new(self.device(), bytes)
    }

    /// Best seconds of a launch.
    pub fn seconds(&self, launch: Launch<'_>) -> Result<f64, CudaError> {
        let mut best = f64::INFINITY;
        let (warm_up, runs) = if self.is_test { (0, 1) } else { (WARM_UP, RUNS) };
        for run in 0..warm_up + runs {
            // SAFETY: the buffer lives as long as the bench.
            unsafe { self.stream.fill(&self.flush, 0, self.flush.len(), run as u8)? };
            self.stream.record(&self.events[0])?;
            launch(&self.stream)?;
            self.stream.record(&self.events[1])?;
            self.stream.synchronize()?;
            if run >= warm_up {
                best = best.min(f64::from(self.events[1].ms_since(&self.events[0])?) * 1e-3);
            }
        }
        Ok(best)
    }

    /// Times what reads and writes so many bytes.
    pub fn bytes(&self, name: &str, bytes: usize, launch: Launch<'_>) -> Result<(), CudaError> {
        let rate = bytes as f64 / self.seconds(launch)?;
        println!("{name:<28} {:>8.1} GB/s     {:>5.1} % of copying", rate / 1e9, 100.0 * rate / self.copying);
        Ok(())
    }

    /// Times what takes so many FLOP; their rate.
    pub fn flop(&self, name: &str, flop: f64, launch: Launch<'_>) -> Result<f64, CudaError> {
        let rate = flop / self.seconds(launch)?;
        let of_products = 100.0 * rate / if self.products.is_nan() { rate } else { self.products };
        println!("{name:<28} {:>8.1} TFLOP/s  {of_products:>5.1} % of bf16 products", rate / 1e12);
        Ok(rate)
    }

    /// Bytes that repeat a random block: of bf16 in (−1, 1), or any.
    fn repeated(&self, len: usize, block: &[u8]) -> Result<DeviceBuffer, CudaError> {
        let buffer = self.room(len)?;
        for start in (0..len).step_by(block.len()) {
            // SAFETY: both live until the stream is synchronized below.
            unsafe { self.stream.copy_in(&block[..block.len().min(len - start)], &buffer, start)? };
        }
        self.stream.synchronize()?;
        Ok(buffer)
    }

    pub fn bf16(&self, count: usize) -> Result<DeviceBuffer, CudaError> {
        let block: Vec<u8> = random().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        self.repeated(2 * count, &block)
    }

    pub fn f32(&self, count: usize) -> Result<DeviceBuffer, CudaError> {
        let block: Vec<u8> = random().flat_map(f32::to_le_bytes).collect();
        self.repeated(4 * count, &block)
    }

    /// Codes without the NaN of FP8.
    pub fn codes(&self, count: usize) -> Result<DeviceBuffer, CudaError> {
        let block: Vec<u8> = random().map(|x| (x * 119.0) as i8 as u8).collect();
        self.repeated(count, &block.iter().map(|b| if b & 0x7f == 0x7f { 0 } else { *b }).collect::<Vec<_>>())
    }

    pub fn words(&self, words: impl Iterator<Item = usize>) -> Result<DeviceBuffer, CudaError> {
        self.stream.upload(&words.flat_map(|word| (word as u32).to_le_bytes()).collect::<Vec<u8>>())
    }
}

/// Numbers in (−1, 1); the length of the block is no power of two, so that rows differ.
fn random() -> impl Iterator<Item = f32> {
    (0..1_000_003u32).map(|i| {
        let x = i.wrapping_mul(2_654_435_761);
        let x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

//! Kernels on the first GPU, in true bytes a second beside the device's own copy bandwidth. Each is timed by events
//! between flushes of the second-level cache, after a warm-up; the best of several runs counts. Without a GPU it says why.

#![expect(clippy::print_stdout, reason = "a benchmark's results are its output")]

use std::sync::Arc;

use day0::checkpoint::quant_args::{Dynamic, Format, Observer, QuantType, QuantizationArgs, Strategy};
use day0::device::cuda::{CudaError, Device, DeviceBuffer, Event, Stream};
use day0::ops::cuda::{CudaQuantizer, tensor_amax};
use day0::ops::float_dtype::FloatDtype;
use day0::ops::quantize_weight::{Arithmetic, WeightQuantizer};
use day0::ops::weight_layout::WeightLayout;

/// [N, K] of the weight: 1 GiB of bf16.
const SHAPE: [usize; 2] = [1 << 15, 1 << 14];
const RUNS: usize = 20;

/// Where times are taken.
struct Bench {
    stream: Stream,
    flush: DeviceBuffer,
    events: [Event; 2],
    copy_gb_s: f64,
}

impl Bench {
    fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(device)?,
            flush: DeviceBuffer::new(device, 2 * device.l2_bytes() as usize)?,
            events: [Event::new(device)?, Event::new(device)?],
            copy_gb_s: 0.0,
        })
    }

    /// Best seconds of a launch.
    fn seconds(&self, launch: &dyn Fn(&Stream) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let mut best = f64::INFINITY;
        for run in 0..RUNS + 3 {
            // SAFETY: the buffer lives as long as the bench.
            unsafe { self.stream.fill(&self.flush, 0, self.flush.len(), run as u8)? };
            self.stream.record(&self.events[0])?;
            launch(&self.stream)?;
            self.stream.record(&self.events[1])?;
            self.stream.synchronize()?;
            if run >= 3 {
                best = best.min(f64::from(self.events[1].ms_since(&self.events[0])?) * 1e-3);
            }
        }
        Ok(best)
    }

    fn line(&self, name: &str, bytes: usize, seconds: f64) {
        let gb_s = bytes as f64 / seconds / 1e9;
        println!("{name:<16} {gb_s:>8.1} GB/s  {:>5.1} % of copying", 100.0 * gb_s / self.copy_gb_s);
    }
}

fn layouts() -> Vec<(&'static str, WeightLayout)> {
    use QuantType::{Float, Int};
    use Strategy::{Block, Channel, Group, Tensor, TensorGroup};
    [
        ("fp8_tensor", Float, 8, Tensor, None, Format::FloatQuantized),
        ("fp8_channel", Float, 8, Channel, None, Format::FloatQuantized),
        ("fp8_block", Float, 8, Block, None, Format::FloatQuantized),
        ("int8_channel", Int, 8, Channel, None, Format::IntQuantized),
        ("int4_g128", Int, 4, Group, Some(128), Format::PackQuantized),
        ("int3_g128", Int, 3, Group, Some(128), Format::PackQuantized),
        ("nvfp4", Float, 4, TensorGroup, Some(16), Format::Nvfp4PackQuantized),
        ("mxfp4", Float, 4, Group, Some(32), Format::Mxfp4PackQuantized),
        ("mxfp6", Float, 6, Group, Some(32), Format::Mxfp6PackQuantized),
        ("mxfp8", Float, 8, Group, Some(32), Format::Mxfp8Quantized),
    ]
    .into_iter()
    .map(|(name, qtype, num_bits, strategy, group_size, format)| {
        let args = QuantizationArgs {
            num_bits,
            qtype,
            symmetric: true,
            strategy,
            group_size,
            block_structure: (strategy == Block).then_some([128, 128]),
            dynamic: Dynamic::No,
            scale_dtype: None,
            observer: Observer::MinMax,
            amax: None,
        };
        (name, WeightLayout::new(&args, format).expect("a layout that exists"))
    })
    .collect()
}

fn run() -> Result<(), CudaError> {
    let device = Device::open(0)?;
    println!("{device:?} {}", device.architecture());
    let mut bench = Bench::new(&device)?;
    let size = SHAPE[0] * SHAPE[1] * 2;
    let row: Vec<u8> = (0..SHAPE[1] as u32)
        .flat_map(|i| half::bf16::from_f32(0.05 * (i as f32 * 0.37).sin()).to_le_bytes())
        .collect();
    let (x, results) = (bench.stream.upload(&row.repeat(SHAPE[0]))?, DeviceBuffer::new(&device, size)?);
    // SAFETY: all buffers live until the end, and each run waits for the stream.
    let copy = bench.seconds(&|stream| unsafe { stream.copy((&x, 0), (&results, 0), size) })?;
    bench.copy_gb_s = 2.0 * size as f64 / copy / 1e9;
    bench.line("copy", 2 * size, copy);
    let amax = bench.seconds(&|stream| tensor_amax(stream, FloatDtype::Bf16, &x, size / 2).map(|_| ()))?;
    bench.line("amax", size, amax);
    for (name, layout) in layouts() {
        let quantizer = WeightQuantizer::new(SHAPE, FloatDtype::Bf16, &layout, Arithmetic::F32, 0.05);
        let Some(kernel) = CudaQuantizer::new(&device, quantizer)? else { continue };
        let seconds = bench.seconds(&|stream| {
            // SAFETY: as above.
            unsafe { kernel.launch(stream, SHAPE[0], &x, &results) }
        })?;
        bench.line(name, size + kernel.result_bytes(SHAPE[0]), seconds);
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        println!("skipped: {error}");
    }
}

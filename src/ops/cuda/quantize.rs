//! Quantization of weights on a GPU: `kernels/quantize.cu`. Reference: [`WeightQuantizer::quantize`], whose codes, scales
//! and zero points these are to the bit.
//!
//! A [`Lane`] takes a tile from page-locked memory through the device and back on a stream of its own. Threads with a lane
//! each overlap reading, copying, computing and writing.

use super::{
    STEP, THREADS, alignment, amax_of_bits, code_bits, dtype_name, element_name, launch_amax, scale_name,
};
use crate::device::cuda::{
    Argument, CudaError, Device, DeviceBuffer, Kernel, LaunchShape, PinnedBuffer, Stream, Variant,
    kernel_source,
};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::quantize_weight::{Arithmetic, Preset, QuantizeWeightError, RowJob, Tile, WeightQuantizer};
use crate::ops::weight_layout::{Element, Packing, ScaleKind};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of an amax on the device: one word.
const AMAX_BYTES: usize = 4;
/// Columns of a group whose lanes are one warp.
const WIDEST_GROUP: usize = 512;

/// A tile that could not be quantized.
#[derive(Debug, thiserror::Error)]
pub enum CudaQuantizeError {
    /// The weight is at fault.
    #[error(transparent)]
    Weight(#[from] QuantizeWeightError),
    /// The device is at fault.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// The device does not compute what the CPU does.
    #[error("{device} gives other {what} than the CPU for {scheme}")]
    Differs {
        /// The device.
        device: String,
        /// Codes, scales or zero points.
        what: &'static str,
        /// The kernel and its defines.
        scheme: String,
    },
}

/// Mirrors `Job` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    x: u64,
    codes: u64,
    scales: u64,
    zero_points: u64,
    sums: u64,
    non_finite: u64,
    row_code_bytes: u64,
    rows: u32,
    k: u32,
    band: u32,
    columns: u32,
    given: f32,
    x_alignment: i32,
    code_alignment: i32,
}

/// Everything that decides the code of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheme {
    dtype: FloatDtype,
    element: Element,
    code_bits: u8,
    scale: ScaleKind,
    asymmetric: bool,
    offset: bool,
    rounded: bool,
    preset: bool,
}

impl Scheme {
    fn of(job: &RowJob, arithmetic: Arithmetic) -> Self {
        let layout = &job.layout;
        Self {
            dtype: job.dtype,
            element: layout.element,
            code_bits: code_bits(layout.packing, layout.element),
            scale: layout.scale,
            asymmetric: !layout.symmetric,
            offset: layout.packing == Packing::Words,
            // As on the CPU: with f32 weights and with NVFP4 and MX scales the quotient is never rounded.
            rounded: arithmetic == Arithmetic::WeightDtype
                && job.dtype != FloatDtype::F32
                && layout.scale == ScaleKind::Float,
            preset: matches!(job.preset, Preset::Tensor(_)),
        }
    }

    /// Integers of fewer bits than their code are coded as they are: the range is that of the element.
    fn variant(self) -> Variant {
        let bits = if let Element::Int(bits) = self.element { bits } else { self.code_bits };
        Variant::plain(kernel_source!("quantize.cu"))
            .define("DTYPE", dtype_name(self.dtype))
            .define("ELEMENT", element_name(self.element))
            .define("BITS", self.code_bits)
            .define("RANGE_BITS", bits)
            .define("SCALE", scale_name(self.scale))
            .define("ASYMMETRIC", self.asymmetric)
            .define("OFFSET", self.offset)
            .define("ROUNDED", self.rounded)
            .define("PRESET", self.preset)
    }
}

/// Schemes whose code differs: every element and scale in bf16, odd and even widths of integers, each other property once.
pub(super) fn variants() -> Vec<Variant> {
    let of = |element, code_bits, scale| Scheme {
        dtype: FloatDtype::Bf16,
        element,
        code_bits,
        scale,
        asymmetric: false,
        offset: false,
        rounded: false,
        preset: false,
    };
    let int = |bits| Scheme { offset: true, ..of(Element::Int(bits), bits, ScaleKind::Float) };
    let fp8 = of(Element::E4m3, 8, ScaleKind::Float);
    let nvfp4 = of(Element::E2m1, 4, ScaleKind::E4m3UnderGlobal);
    let schemes = [
        fp8,
        nvfp4,
        int(4),
        int(3),
        Scheme { preset: true, ..fp8 },
        Scheme { rounded: true, ..fp8 },
        of(Element::Int(8), 8, ScaleKind::Float),
        of(Element::E2m1, 4, ScaleKind::E8m0),
        of(Element::E2m3, 6, ScaleKind::E8m0),
        of(Element::E4m3, 8, ScaleKind::E8m0),
        Scheme { asymmetric: true, ..int(4) },
        Scheme { asymmetric: true, rounded: true, dtype: FloatDtype::F16, ..int(7) },
        Scheme { asymmetric: true, dtype: FloatDtype::F32, ..int(8) },
        Scheme { dtype: FloatDtype::F32, ..nvfp4 },
    ];
    schemes.map(Scheme::variant).to_vec()
}

/// The kernel for groups within rows, and that for any rectangle.
fn name(by_groups: bool) -> &'static str {
    if by_groups { "quantize_groups" } else { "quantize_rectangles" }
}

/// One weight's quantizer with its kernel on one device.
pub struct CudaQuantizer {
    quantizer: WeightQuantizer,
    kernel: Kernel,
    by_groups: bool,
}

impl CudaQuantizer {
    /// The quantizer on a device; `None` for a layout whose groups do not end where a thread's sixteen codes do, and for
    /// sizes beyond 32 bits, which stay on the CPU.
    pub fn new(device: &Arc<Device>, quantizer: WeightQuantizer) -> Result<Option<Self>, CudaError> {
        let job = quantizer.job();
        let one_group = job.columns >= job.k;
        let fits = |n: usize| u32::try_from(n).is_ok();
        if job.k == 0 || !(one_group || job.columns.is_multiple_of(STEP)) || !fits(job.k) || !fits(job.band) {
            return Ok(None);
        }
        let by_groups = job.band == 1
            && job.columns.is_multiple_of(STEP)
            && (job.columns / STEP).is_power_of_two()
            && job.columns <= WIDEST_GROUP
            && job.k.is_multiple_of(job.columns)
            && !matches!(job.preset, Preset::Tensor(_));
        let kernel = device.kernel(&Scheme::of(job, quantizer.arithmetic()).variant(), name(by_groups))?;
        Ok(Some(Self { quantizer, kernel, by_groups }))
    }

    /// Most rows of one tile: thread indices are 32-bit numbers.
    pub fn max_rows(&self) -> usize {
        let job = self.quantizer.job();
        ((1 << 30) / job.k.div_ceil(STEP) / job.band).max(1) * job.band
    }

    /// What decides the code that runs: kernel, rectangle that shares a scale, and defines.
    pub fn scheme(&self) -> String {
        let job = self.quantizer.job();
        let (name, variant) = (name(self.by_groups), Scheme::of(job, self.quantizer.arithmetic()).variant());
        format!("{name} of {} × {} by {variant}", job.band, job.columns.min(job.k))
    }

    /// Compares what a device made of a tile with the CPU's.
    pub fn check(
        &self,
        device: &Device,
        first_row: usize,
        bytes: &[u8],
        found: &Tile,
    ) -> Result<(), CudaQuantizeError> {
        let mut expected = Tile::default();
        self.quantizer.quantize(first_row, bytes, &mut expected)?;
        let parts = [
            ("codes", found.codes == expected.codes),
            ("scales", found.scales == expected.scales),
            ("zero points", found.zero_points == expected.zero_points),
        ];
        match parts.iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((what, _)) => {
                let device = format!("{device:?}");
                Err(CudaQuantizeError::Differs { device, what, scheme: self.scheme() })
            }
        }
    }

    /// As [`WeightQuantizer::quantize`], for the tile that was put into `lane.input`.
    pub fn quantize(
        &self,
        lane: &mut Lane,
        first_row: usize,
        bytes: usize,
        out: &mut Tile,
    ) -> Result<(), CudaQuantizeError> {
        let rows = bytes / self.quantizer.row_bytes().max(1);
        if bytes > lane.input.len() || rows * self.quantizer.row_bytes() != bytes || rows > self.max_rows() {
            let what = format!("{bytes} bytes are not whole rows of {}", self.quantizer.row_bytes());
            return Err(CudaError::Argument { operation: "quantize", what }.into());
        }
        if rows == 0 {
            out.clear();
            return Ok(());
        }
        let parts = Parts::new(self.quantizer.job(), rows, self.by_groups);
        self.run(lane, rows, bytes, &parts)?;
        if lane.output[parts.non_finite.clone()] != [0; 4] {
            // The CPU names the element.
            self.quantizer.quantize(first_row, &lane.input[..bytes], out)?;
            let what = "an element was NaN or infinite on the device alone".to_owned();
            return Err(CudaError::Argument { operation: "quantize", what }.into());
        }
        parts.take(&lane.output, out);
        Ok(())
    }

    fn run(&self, lane: &mut Lane, rows: usize, bytes: usize, parts: &Parts) -> Result<(), CudaError> {
        lane.on_device.0.ensure(bytes)?;
        lane.on_device.1.ensure(parts.total)?;
        lane.output.ensure(parts.total)?;
        let (x, results) = (&lane.on_device.0, &lane.on_device.1);
        // SAFETY: input and output belong to the lane, which is borrowed until the stream is synchronized.
        unsafe {
            lane.stream.copy_in(&lane.input[..bytes], x, 0)?;
            self.launch(&lane.stream, rows, x, results)?;
            lane.stream.copy_out(results, 0, &mut lane.output[..parts.total])?;
        }
        lane.stream.synchronize()
    }

    /// Bytes of what [`Self::launch`] writes for so many rows.
    pub fn result_bytes(&self, rows: usize) -> usize {
        Parts::new(self.quantizer.job(), rows, self.by_groups).total
    }

    /// Queues the kernel on `rows` rows that are on the device.
    ///
    /// # Safety
    /// The buffers stay alive and untouched until the stream was synchronized.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        rows: usize,
        x: &DeviceBuffer,
        results: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let job = self.quantizer.job();
        let parts = Parts::new(job, rows, self.by_groups);
        super::require(
            "quantize",
            &[("x", rows * self.quantizer.row_bytes(), x), ("results", parts.total, results)],
        )?;
        let at = |part: &Range<usize>| results.address() + part.start as u64;
        let arguments = Job {
            x: x.address(),
            codes: at(&parts.codes),
            scales: at(&parts.scales),
            zero_points: at(&parts.zero_points),
            sums: at(&parts.sums),
            non_finite: at(&parts.non_finite),
            row_code_bytes: job.row_code_bytes as u64,
            rows: rows as u32,
            k: job.k as u32,
            band: job.band as u32,
            columns: job.columns.min(job.k) as u32,
            given: match job.preset {
                Preset::None => 0.0,
                Preset::Tensor(given) | Preset::Global(given) => given,
            },
            x_alignment: alignment(job.k * job.dtype.size()),
            code_alignment: alignment(job.row_code_bytes),
        };
        // SAFETY: `Job` mirrors the kernel's struct, sizes were checked, the rest is the caller's promise.
        unsafe {
            stream.fill(results, parts.non_finite.start, 4, 0)?;
            let shape = LaunchShape::linear(parts.blocks, parts.threads);
            self.kernel.launch(stream, shape, &[Argument::new(&arguments)])
        }
    }
}

/// Where each result lies in the buffer of results, and the launch that fills it.
struct Parts {
    codes: Range<usize>,
    scales: Range<usize>,
    zero_points: Range<usize>,
    sums: Range<usize>,
    non_finite: Range<usize>,
    total: usize,
    blocks: u32,
    threads: u32,
}

impl Parts {
    fn new(job: &RowJob, rows: usize, by_groups: bool) -> Self {
        let columns = job.columns.min(job.k);
        let groups = job.k.div_ceil(columns) * rows.div_ceil(job.band);
        let scale_bytes = match (job.layout.scale, job.preset) {
            (_, Preset::Tensor(_)) => 0,
            (ScaleKind::Float, _) => job.dtype.size(),
            _ => 1,
        };
        let steps_of_group = columns.div_ceil(STEP) * job.band.min(rows);
        let (blocks, threads) = if by_groups {
            ((rows * job.k / STEP).div_ceil(THREADS as usize), THREADS)
        } else {
            (groups, steps_of_group.next_multiple_of(32).min(THREADS as usize) as u32)
        };
        let mut end = 0;
        let mut next = |len: usize| {
            let start = end;
            end = (start + len).next_multiple_of(16);
            start..start + len
        };
        Self {
            codes: next(rows * job.row_code_bytes),
            scales: next(groups * scale_bytes),
            zero_points: next(if job.layout.symmetric { 0 } else { groups }),
            sums: next(blocks * 2 * size_of::<f64>()),
            non_finite: next(4),
            total: end,
            blocks: blocks as u32,
            threads,
        }
    }

    /// Moves the results to a tile.
    fn take(&self, results: &[u8], out: &mut Tile) {
        out.clear();
        out.codes.extend_from_slice(&results[self.codes.clone()]);
        out.scales.extend_from_slice(&results[self.scales.clone()]);
        out.zero_points.extend(results[self.zero_points.clone()].iter().map(|z| *z as i8));
        for pair in results[self.sums.clone()].as_chunks::<8>().0.as_chunks::<2>().0 {
            out.signal += f64::from_le_bytes(pair[0]);
            out.noise += f64::from_le_bytes(pair[1]);
        }
    }
}

/// What a thread needs to send tiles through a device.
pub struct Lane {
    /// Where a tile is read to.
    pub input: PinnedBuffer,
    output: PinnedBuffer,
    on_device: (DeviceBuffer, DeviceBuffer),
    /// The bits of an amax.
    amax: DeviceBuffer,
    stream: Stream,
}

impl Lane {
    /// A lane for tiles of up to `tile_bytes`.
    pub fn new(device: &Arc<Device>, tile_bytes: usize) -> Result<Self, CudaError> {
        Ok(Self {
            input: PinnedBuffer::new(device, tile_bytes)?,
            output: PinnedBuffer::new(device, tile_bytes)?,
            on_device: (DeviceBuffer::new(device, tile_bytes)?, DeviceBuffer::new(device, tile_bytes)?),
            amax: DeviceBuffer::new(device, AMAX_BYTES)?,
            stream: Stream::new(device)?,
        })
    }

    /// The largest magnitude of the first `bytes` of the input; infinite or NaN where an element is.
    pub fn amax(&mut self, dtype: FloatDtype, bytes: usize) -> Result<f32, CudaError> {
        let count = bytes / dtype.size();
        self.on_device.0.ensure(bytes)?;
        self.output.ensure(AMAX_BYTES)?;
        // SAFETY: input, output and buffers belong to the lane, which is borrowed until the stream is synchronized.
        unsafe {
            self.stream.copy_in(&self.input[..bytes], &self.on_device.0, 0)?;
            launch_amax(&self.stream, dtype, &self.on_device.0, count, &self.amax)?;
            self.stream.copy_out(&self.amax, 0, &mut self.output[..AMAX_BYTES])?;
        }
        self.stream.synchronize()?;
        Ok(amax_of_bits(dtype, &self.output[..AMAX_BYTES]))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        self.stream.device()
    }
}

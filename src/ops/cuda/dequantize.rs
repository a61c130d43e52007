//! Dequantization on a GPU: `kernels/dequantize.cu`. Reference: [`crate::ops::dequantize`].

use std::sync::Arc;

use super::{Act, STEP, THREADS, layout_defines};
use crate::device::cuda::{
    Argument, CudaError, Device, DeviceBuffer, Kernel, LaunchShape, Stream, Variant, kernel_source,
};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{ScaleKind, WeightLayout};

/// Mirrors `Stored` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stored {
    codes: u64,
    scales: u64,
    zero_points: u64,
    out: u64,
    row_code_bytes: u64,
    rows: u32,
    k: u32,
    band: u32,
    columns: u32,
    global: f32,
}

/// The kernel for weights of one layout.
pub struct Dequantizer {
    layout: WeightLayout,
    scale_dtype: FloatDtype,
    output: Act,
    kernel: Kernel,
}

fn variant(layout: &WeightLayout, scale_dtype: FloatDtype, output: Act) -> Variant {
    layout_defines(Variant::plain(kernel_source!("dequantize.cu")), layout, scale_dtype)
        .define("OUT", output.name())
}

pub(super) fn variants() -> Vec<Variant> {
    let of = |element: &'static str, bits: u8, scale: &'static str, asymmetric: bool, offset: bool| {
        Variant::plain(kernel_source!("dequantize.cu"))
            .define("DTYPE", "BF16")
            .define("ELEMENT", element)
            .define("BITS", bits)
            .define("SCALE", scale)
            .define("ASYMMETRIC", asymmetric)
            .define("OFFSET", offset)
            .define("OUT", "BF16")
    };
    vec![
        of("INT", 4, "SCALE_FLOAT", false, true),
        of("E2M1", 4, "SCALE_E4M3", false, false),
        of("E4M3", 8, "SCALE_FLOAT", false, false),
        of("E2M3", 6, "SCALE_E8M0", false, false),
        of("INT", 7, "SCALE_FLOAT", true, true),
    ]
}

/// The tensors of one weight on a device.
pub struct DeviceWeight<'a> {
    /// Packed codes.
    pub codes: &'a DeviceBuffer,
    /// Scales as they are stored.
    pub scales: &'a DeviceBuffer,
    /// Zero points, one byte each, in the order of the scales.
    pub zero_points: Option<&'a DeviceBuffer>,
    /// What local scales are divided by; 1 without a global scale.
    pub global: f32,
    /// [N, K].
    pub shape: [usize; 2],
}

impl Dequantizer {
    /// The kernel for a layout whose float scales have `scale_dtype`; `None` where groups do not end where a thread's
    /// sixteen codes do.
    pub fn new(
        device: &Arc<Device>,
        layout: &WeightLayout,
        scale_dtype: FloatDtype,
        output: Act,
    ) -> Result<Option<Self>, CudaError> {
        if layout.group_size().is_some_and(|group| !group.is_multiple_of(STEP)) {
            return Ok(None);
        }
        let kernel = device.kernel(&variant(layout, scale_dtype, output), "dequantize")?;
        Ok(Some(Self { layout: *layout, scale_dtype, output, kernel }))
    }

    /// Queues the dense weight [N, K] into `out`.
    ///
    /// # Safety
    /// All buffers stay alive, and `out` is not used, until the stream was synchronized.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        weight: &DeviceWeight<'_>,
        out: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let [n, k] = weight.shape;
        let [band, columns] = self.layout.block(weight.shape);
        let row_code_bytes = self.layout.codes([1, k]).num_bytes() as usize;
        let groups = n.div_ceil(band) * k.div_ceil(columns);
        let scale_bytes = if self.layout.scale == ScaleKind::Float { self.scale_dtype.size() } else { 1 };
        let zero_points = weight.zero_points.map_or(0, DeviceBuffer::len);
        let argument = |what: String| Err(CudaError::Argument { operation: "dequantize", what });
        if !self.layout.symmetric && zero_points < groups {
            return argument(format!("{zero_points} zero points for {groups} groups"));
        }
        let needed = [
            ("codes", n * row_code_bytes, weight.codes.len()),
            ("scales", groups * scale_bytes, weight.scales.len()),
            ("the dense weight", n * k * self.output.size(), out.len()),
        ];
        if let Some((what, needed, there)) = needed.iter().find(|(_, needed, there)| needed > there) {
            return argument(format!("{what} of [{n}, {k}] take {needed} bytes, the buffer has {there}"));
        }
        let steps = n * k.div_ceil(STEP);
        if [steps, k, band, columns].iter().any(|x| u32::try_from(*x).is_err()) {
            return argument(format!("[{n}, {k}] is beyond 32-bit indices"));
        }
        let arguments = Stored {
            codes: weight.codes.address(),
            scales: weight.scales.address(),
            zero_points: weight.zero_points.map_or(0, DeviceBuffer::address),
            out: out.address(),
            row_code_bytes: row_code_bytes as u64,
            rows: n as u32,
            k: k as u32,
            band: band as u32,
            columns: columns as u32,
            global: weight.global,
        };
        let blocks = steps.div_ceil(THREADS as usize) as u32;
        // SAFETY: the struct mirrors the kernel's, buffers were measured above, the rest is the caller's promise.
        unsafe {
            self.kernel.launch(stream, LaunchShape::linear(blocks, THREADS), &[Argument::new(&arguments)])
        }
    }
}

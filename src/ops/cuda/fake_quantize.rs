//! Quantization of activations and back: `kernels/fake_quantize.cu`. Reference:
//! [`crate::ops::activation_quant::fake_quantize`].

use super::{Act, THREADS, arguments, index, require};
use crate::checkpoint::quant_args::Amax;
use crate::device::cuda::{CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
use crate::ops::activation_quant::{ActivationElement, ActivationQuant};

const OPERATION: &str = "fake_quantize";
/// Groups of a block, one a warp.
const GROUPS: usize = THREADS as usize / 32;

fn variant(act: Act, element: &str, scaling: &str) -> Variant {
    Variant::plain(kernel_source!("fake_quantize.cu"))
        .define("ACT", act.name())
        .define("ELEMENT", element)
        .define("SCALING", scaling)
}

pub(super) fn variants() -> Vec<Variant> {
    let kinds = [("E2M1", "NVFP4"), ("E4M3", "DYNAMIC"), ("INT", "STORED"), ("E2M1", "MX"), ("E4M3", "MX")];
    kinds.iter().flat_map(|(e, s)| [Act::Bf16, Act::F32].map(|act| variant(act, e, s))).collect()
}

/// out \[T, K\] = dequantized quantization of x \[T, K\], both of `act`.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn fake_quantize(
    stream: &Stream,
    (act, quant): (Act, ActivationQuant),
    x: &DeviceBuffer,
    out: &DeviceBuffer,
    [rows, k]: [usize; 2],
) -> Result<(), CudaError> {
    let group = quant.group_size.unwrap_or(k);
    if group == 0 || !k.is_multiple_of(group) {
        let what = format!("rows of {k} in groups of {group}");
        return Err(CudaError::Argument { operation: OPERATION, what });
    }
    let (element, scaling) = match (quant.element, quant.stored) {
        (ActivationElement::Fp4, Some(_)) => ("E2M1", "NVFP4"),
        (ActivationElement::Fp4, None) => ("E2M1", if quant.mx { "MX" } else { "DYNAMIC" }),
        (ActivationElement::Fp8, Some(_)) => ("E4M3", "STORED"),
        (ActivationElement::Fp8, None) => ("E4M3", if quant.mx { "MX" } else { "DYNAMIC" }),
        (ActivationElement::Int8, stored) => ("INT", if stored.is_some() { "STORED" } else { "DYNAMIC" }),
    };
    let bytes = rows * k * act.size();
    require(OPERATION, &[("x", bytes, x), ("out", bytes, out)])?;
    let kernel = stream.device().kernel(&variant(act, element, scaling), OPERATION)?;
    let groups = rows * k / group;
    let shape = LaunchShape::linear(index(OPERATION, groups.div_ceil(GROUPS))?, THREADS);
    let (group, stored) = (index(OPERATION, group)?, quant.stored.map_or(0.0, Amax::get));
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(stream, shape, arguments![x.address(), out.address(), groups as u64, group, stored])
    }
}

//! Quantization of activations by token: `kernels/quantize_tokens.cu`. Reference:
//! [`crate::ops::activation_quant::codes`].

use super::{Act, arguments, index, one_block_each, require};
use crate::checkpoint::quant_args::Amax;
use crate::device::cuda::{CudaError, DeviceBuffer, Stream, Variant, kernel_source};
use crate::ops::activation_quant::ActivationElement;

const OPERATION: &str = "quantize_tokens";

fn variant(act: Act, element: &str) -> Variant {
    Variant::plain(kernel_source!("quantize_tokens.cu")).define("ACT", act.name()).define("ELEMENT", element)
}

pub(super) fn variants() -> Vec<Variant> {
    [Act::Bf16, Act::F32].iter().flat_map(|act| ["E4M3", "INT"].map(|e| variant(*act, e))).collect()
}

/// Codes \[T, K\] of one byte and scales \[T\] f32 of x \[T, K\]; every scale is `stored` where there is one.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn quantize_tokens(
    stream: &Stream,
    (act, element, stored): (Act, ActivationElement, Option<Amax>),
    x: &DeviceBuffer,
    codes: &DeviceBuffer,
    scales: &DeviceBuffer,
    [rows, k]: [usize; 2],
) -> Result<(), CudaError> {
    let name = match element {
        ActivationElement::Fp8 => "E4M3",
        ActivationElement::Int8 => "INT",
        ActivationElement::Fp4 => {
            let what = "FP4 activations have scales by group, not by token".to_owned();
            return Err(CudaError::Argument { operation: OPERATION, what });
        }
    };
    let size = rows * k;
    require(OPERATION, &[("x", size * act.size(), x), ("codes", size, codes), ("scales", rows * 4, scales)])?;
    let kernel = stream.device().kernel(&variant(act, name), OPERATION)?;
    let (shape, k) = (one_block_each(OPERATION, rows, k)?, index(OPERATION, k)?);
    let stored = stored.map_or(0.0, Amax::get);
    // SAFETY: types as in the source, sizes checked above, the rest is the caller's promise.
    unsafe {
        kernel.launch(stream, shape, arguments![x.address(), codes.address(), scales.address(), k, stored])
    }
}

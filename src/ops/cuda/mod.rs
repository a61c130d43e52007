//! Launchers of the kernels in `kernels/`: arguments checked, buffers measured, the reference named. A launcher's test runs
//! on the GPU where there is one, and on the host through an emulated driver where there is a C++ compiler.
//!
//! Launches are `unsafe`: they are queued, so buffers must stay alive and untouched until the stream was synchronized.

mod amax;
mod attention;
mod dequantize;
mod elementwise;
mod fake_quantize;
mod linear_quantized;
mod log_softmax;
mod moe;
mod product;
mod quantize;
mod quantize_tokens;
mod rms_norm;
mod weight;

pub use amax::{amax_of_bits, launch_amax};
pub use attention::{AttentionInputs, AttentionLists, DeviceSequence, NO_SLOT, attention, store_cache};
pub use dequantize::dequantize;
pub use elementwise::{RotatedColumns, embed, gated, gather_rows, rope};
pub use fake_quantize::fake_quantize;
pub use linear_quantized::linear_quantized;
pub use log_softmax::{LogitTile, RowState, log_softmax_tile};
pub use moe::{ExpertChoice, moe_add_shared, moe_combine, moe_scatter};
pub use product::{Columns, add_bias, scale_product};
pub use quantize::{CudaQuantizeError, CudaQuantizer, Lane};
pub use quantize_tokens::quantize_tokens;
pub use rms_norm::{Normalized, rms_norm, rms_norm_parts};
pub use weight::DeviceWeight;

#[cfg(test)]
mod compile_tests;
#[cfg(test)]
mod engine_gpu_tests;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod numeric_tests;
#[cfg(test)]
mod product_gpu_tests;

use crate::device::cuda::{CudaError, DeviceBuffer, DeviceSlice, LaunchShape, Variant};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{Element, Packing, ScaleKind};

/// Elements that one thread codes: groups and rows are cut into steps of so many (`kernels/pack.cuh`).
const STEP: usize = 16;
/// Most threads of a block of most kernels.
const THREADS: u32 = 256;

/// Type of activations and of dense results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// bfloat16, ties to even.
    Bf16,
    /// Single precision.
    F32,
}

impl Act {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        if self == Self::Bf16 { 2 } else { 4 }
    }

    /// The kernels' name.
    fn name(self) -> &'static str {
        if self == Self::Bf16 { "BF16" } else { "F32" }
    }
}

/// The kernels' name of a float type.
fn dtype_name(dtype: FloatDtype) -> &'static str {
    match dtype {
        FloatDtype::Bf16 => "BF16",
        FloatDtype::F16 => "F16",
        FloatDtype::F32 => "F32",
    }
}

/// The kernels' name of an element type.
fn element_name(element: Element) -> &'static str {
    match element {
        Element::Int(_) => "INT",
        Element::E4m3 => "E4M3",
        Element::E2m3 => "E2M3",
        Element::E2m1 => "E2M1",
    }
}

/// The kernels' name of a kind of scales.
fn scale_name(scale: ScaleKind) -> &'static str {
    match scale {
        ScaleKind::Float => "SCALE_FLOAT",
        ScaleKind::E4m3UnderGlobal => "SCALE_E4M3",
        ScaleKind::E8m0 => "SCALE_E8M0",
    }
}

/// Bits that a code takes.
fn code_bits(packing: Packing, element: Element) -> u8 {
    match (packing, element) {
        (Packing::Words, Element::Int(bits)) => bits,
        (Packing::Nibbles, _) => 4,
        (Packing::Sextets, _) => 6,
        _ => 8,
    }
}

/// Every kernel in the combinations of defines that differ in code, the two most used of each source first: for the test
/// that compiles them.
pub fn all_variants() -> Vec<Variant> {
    [
        amax::variants(),
        attention::variants(),
        dequantize::variants(),
        elementwise::variants(),
        fake_quantize::variants(),
        linear_quantized::variants(),
        log_softmax::variants(),
        moe::variants(),
        product::variants(),
        quantize::variants(),
        quantize_tokens::variants(),
        rms_norm::variants(),
    ]
    .concat()
}

/// The largest power of two that divides `n`, at most 16; 16 for 0.
fn alignment(n: usize) -> i32 {
    if n == 0 { 16 } else { 1 << n.trailing_zeros().min(4) }
}

/// Memory of a device.
trait Memory {
    /// Its size.
    fn bytes(&self) -> usize;
}

impl Memory for DeviceBuffer {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Memory for DeviceSlice<'_> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// Refuses memory that is smaller than what a kernel reads or writes: what it is, bytes needed, the memory.
fn require(operation: &'static str, memory: &[(&str, usize, &dyn Memory)]) -> Result<(), CudaError> {
    match memory.iter().find(|(_, needed, there)| *needed > there.bytes()) {
        None => Ok(()),
        Some((what, needed, there)) => {
            let what = format!("{what} takes {needed} bytes, its buffer has {}", there.bytes());
            Err(CudaError::Argument { operation, what })
        }
    }
}

/// A number as the kernels' 32-bit indices.
fn index(operation: &'static str, n: usize) -> Result<u32, CudaError> {
    let too_large = |_| CudaError::Argument { operation, what: format!("{n} is beyond 32-bit indices") };
    u32::try_from(n).map_err(too_large)
}

/// A launch of one thread for each of `count` elements.
fn one_thread_each(operation: &'static str, count: usize) -> Result<LaunchShape, CudaError> {
    Ok(LaunchShape::linear(index(operation, count.div_ceil(THREADS as usize))?, THREADS))
}

/// A launch of one block for each of `rows` rows of `k` elements.
fn one_block_each(operation: &'static str, rows: usize, k: usize) -> Result<LaunchShape, CudaError> {
    let threads = k.next_multiple_of(32).clamp(32, THREADS as usize) as u32;
    Ok(LaunchShape::linear(index(operation, rows)?, threads))
}

/// Arguments of a launch, in the order of the kernel's parameters.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &[$($crate::device::cuda::Argument::new(&$value)),*] };
}
use arguments;

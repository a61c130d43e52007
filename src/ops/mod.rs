//! Layer 3: one operation a file, with its reference and the test that compares them.

// The forward pass on the CPU in f32, with f32, bf16 or int8 products, row by row independent of what else is in the batch.
pub mod activation_quant;
pub mod amx;
pub mod attention;
pub mod buffer;
pub mod coded;
pub mod elementary;
pub mod gated;
pub mod gated_product;
pub mod kernel_path;
pub mod linear;
pub mod log_softmax;
pub mod microkernel;
pub mod packed;
pub mod rms_norm;
pub mod rope;
mod unit_kernels;
mod unit_product;
pub mod unit_rows;
// Codecs and weight quantization.
pub mod cuda;
pub mod dequantize;
pub mod e8m0;
pub mod float_dtype;
pub mod fp4;
pub mod fp6;
pub mod fp8;
#[cfg(test)]
pub(crate) mod golden;
pub mod int_pack;
mod minifloat;
pub mod observer_mse;
pub mod qparams;
mod quantize_rows;
pub mod quantize_weight;
mod row_codecs;
#[cfg(target_arch = "x86_64")]
mod row_extremes;
mod row_kernels;
pub mod scalar_scale;
pub mod weight_layout;

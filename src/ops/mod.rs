//! Layer 3: one operation a file, with its reference and the test that compares them.

// The forward pass: f32 on the CPU, row by row independent of what else is in the batch.
pub mod activation_quant;
pub mod attention;
pub mod buffer;
pub mod elementary;
pub mod gated;
pub mod kernel_path;
pub mod linear;
pub mod log_softmax;
pub mod microkernel;
pub mod rms_norm;
pub mod rope;
// Codecs and weight quantization.
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
mod row_kernels;
pub mod scalar_scale;
pub mod weight_layout;

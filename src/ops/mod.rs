//! Layer 3: one operation a file, with its reference and the test that compares them.

// Codecs and weight quantization.
pub mod dequantize;
pub mod e8m0;
pub mod float_dtype;
pub mod fp4;
pub mod fp8;
#[cfg(test)]
pub(crate) mod golden;
pub mod int_pack;
pub mod qparams;
mod quantize_rows;
pub mod quantize_weight;
pub mod weight_layout;

//! The decoder on a GPU: the graph of `super::graph` on device buffers, the operations of [`crate::ops::cuda`] and
//! cuBLASLt's products.
//!
//! The residual stream, norms, softmax and log-sum-exp are f32. In bf16 mode what passes between operations is bf16; in
//! f32 mode everything is f32. Weight-only schemes compute with dequantized weights; in bf16 mode these are rounded to bf16,
//! as the CPU's products round them, and stay packed in memory (`packed`). Quantized inputs are really quantized, and where
//! codes have a scale for each row, the product is taken of the codes.

mod batch;
mod decoder;
mod experts;
mod head;
mod linear;
mod packed;
mod pass;
mod place;
mod session;
mod steps;

pub use decoder::CudaDecoder;

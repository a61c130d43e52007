//! Round-to-nearest quantization of one weight, in bytes of bf16 input a second.

use std::hint::black_box;

use day0::ops::fp8;
use half::bf16;

mod timing;

/// One row of a large linear layer.
const ELEMENTS: usize = 1 << 20;

fn weights() -> Vec<f32> {
    // A fixed wave with the spread of real weights.
    (0..ELEMENTS).map(|i| bf16::from_f32(0.05 * (i as f32 * 0.37).sin()).to_f32()).collect()
}

fn main() {
    let values = weights();
    timing::throughput("fp8/e4m3_from_f32", 2 * ELEMENTS as u64, || {
        black_box(&values).iter().map(|v| u64::from(fp8::e4m3_from_f32(v * 4096.0))).sum::<u64>()
    });
}

// w = (code - zero_point) * scale, the inverse of quantize.cu.
//
// The weight is that of weight.cuh; out [rows, K] of OUT (BF16 or F32, ties to even) gets its rows from `first_row` on.
// Reference: src/ops/dequantize/stored.rs.
#include "weight.cuh"

struct Dequantize {
    Weight weight;
    u8* out;
    u32 first_row;
    u32 rows;
    // Whether steps of `out` lie at multiples of 16 bytes.
    u32 aligned;
    u32 unused;
};

KERNEL(256) dequantize(Dequantize job) {
    u32 k = job.weight.k, steps_of_row = (k + STEP - 1) / STEP;
    u32 step = blockIdx.x * blockDim.x + threadIdx.x;
    if (step >= job.rows * steps_of_row) return;
    u32 row = step / steps_of_row, column = step % steps_of_row * STEP;
    float x[STEP];
    int count = dequantize_step(job.weight, job.first_row + row, column, x);
    u8* to = job.out + ((u64)row * k + column) * ELEMENT_BYTES(OUT);
    write_numbers<OUT>(to, x, count, job.aligned);
}

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
};

KERNEL(256) dequantize(Dequantize job) {
    u32 k = job.weight.k, steps_of_row = (k + STEP - 1) / STEP;
    u32 step = blockIdx.x * blockDim.x + threadIdx.x;
    if (step >= job.rows * steps_of_row) return;
    u32 row = step / steps_of_row, column = step % steps_of_row * STEP;
    float x[STEP];
    int count = dequantize_step(job.weight, job.first_row + row, column, x);
    u8* to = job.out + ((u64)row * k + column) * ELEMENT_BYTES(OUT);
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        if (i >= count) continue;
        if (OUT == F32) {
            ((float*)to)[i] = x[i];
        } else {
            ((u16*)to)[i] = (u16)f32_to_bf16(x[i]);
        }
    }
}

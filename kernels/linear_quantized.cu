// Weight-only linear layer on tensor cores: y = x * W'^T, W' = bf16((code - zero_point) * scale).
//
// x [T, K] bf16; y [T, n] of ACT in rows of `stride`: column j is row first_n + j of the weight, which is that of
// weight.cuh and is rounded to bf16 as dequantize.cu rounds it; sums are f32. So the result is that of the dense product
// with the dequantized weight, summed in another order. Block tiles of 64 x 64, four warps of 32 x 32. Reference:
// src/ops/linear.rs over src/ops/dequantize.
#include "act.cuh"
#include "block.cuh"
#include "mma.cuh"
#include "weight.cuh"

#define TILE 64
#define DEPTH 32
#define PADDED (DEPTH + 8)

struct Linear {
    Weight weight;
    const u16* x;
    act* y;
    u32 rows;
    u32 first_n;
    u32 n;
    u32 stride;
};

// Sixteen columns of x to shared memory, zeros beyond the matrix.
DEVICE void load_x(const Linear& job, u32 row, u32 column, u16* to) {
    u32 k = job.weight.k, raw[RAW_WORDS(BF16)];
    int count = row >= job.rows || column >= k ? 0 : k - column < STEP ? (int)(k - column) : STEP;
    // Rows of multiples of eight numbers begin at multiples of 16 bytes, as x does.
    read_step<BF16>((const u8*)(job.x + (count ? (u64)row * k + column : 0)), count, k % 8 == 0, raw);
    ((uint4*)to)[0] = make_uint4(raw[0], raw[1], raw[2], raw[3]);
    ((uint4*)to)[1] = make_uint4(raw[4], raw[5], raw[6], raw[7]);
}

// Sixteen columns of the weight to shared memory, zeros beyond the matrix.
DEVICE void load_w(const Linear& job, u32 output, u32 column, u16* to) {
    float w[STEP];
#pragma unroll
    for (int i = 0; i < STEP; i++) w[i] = 0.0f;
    if (output < job.n && column < job.weight.k) dequantize_step(job.weight, job.first_n + output, column, w);
    write_numbers<BF16>((u8*)to, w, STEP, true);
}

KERNEL(128) linear_quantized(Linear job) {
    __shared__ __align__(16) u16 xs[TILE * PADDED];
    __shared__ __align__(16) u16 ws[TILE * PADDED];
    u32 first_row = blockIdx.y * TILE, first_n = blockIdx.x * TILE;
    int lane = lane_of_thread(), column = 2 * (lane % 4);
    int warp_row = warp_of_thread() / 2 * 32, warp_n = warp_of_thread() % 2 * 32;
    float sums[2][4][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[m][n][e] = 0.0f;
    for (u32 base = 0; base < job.weight.k; base += DEPTH) {
        __syncthreads();
        // 128 threads: a row of 32 columns is two steps.
        u32 row = threadIdx.x / 2, step_column = threadIdx.x % 2 * STEP;
        load_x(job, first_row + row, base + step_column, xs + row * PADDED + step_column);
        load_w(job, first_n + row, base + step_column, ws + row * PADDED + step_column);
        __syncthreads();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; step++) {
            u32 b[4][2];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const u16* w = ws + (warp_n + n * 8 + lane / 4) * PADDED + step * 16 + column;
                b[n][0] = *(const u32*)w;
                b[n][1] = *(const u32*)(w + 8);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const u16* x = xs + (warp_row + m * 16 + lane / 4) * PADDED + step * 16 + column;
                u32 a[4] = {*(const u32*)x, *(const u32*)(x + 8 * PADDED), *(const u32*)(x + 8), *(const u32*)(x + 8 * PADDED + 8)};
#pragma unroll
                for (int n = 0; n < 4; n++) mma_bf16(sums[m][n], a, b[n]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 row = first_row + warp_row + m * 16 + lane / 4 + e / 2 * 8, output = first_n + warp_n + n * 8 + column + e % 2;
                if (row < job.rows && output < job.n) store_act(job.y, (u64)row * job.stride + output, sums[m][n][e]);
            }
        }
    }
}

// Weight-only linear layer on tensor cores: y = x * W'^T, W' = (code - zero_point) * scale.
//
// x [T, K] bf16, y [T, N] of ACT; weights as quantize.cu writes them: codes [N, row_code_bytes], one scale for each row and
// group of `columns` columns (of DTYPE, or bytes for SCALE_E4M3 and SCALE_E8M0), zero points i8. Codes without their scale
// are exact in bf16, sums of a group are taken in f32 and multiplied by its scale then: the result is that of dequantized
// weights in f32, summed in another order. `columns` is a multiple of 16 or at least K. Block tiles of 64 x 64, four warps
// of 32 x 32. Reference: src/ops/linear.rs over src/ops/dequantize.
#include "act.cuh"
#include "block.cuh"
#include "mma.cuh"
#include "qparams.cuh"
#include "step.cuh"

#define TILE 64
#define DEPTH 32
#define PADDED (DEPTH + 8)

struct Linear {
    const u16* x;
    act* y;
    const u8* codes;
    const u8* scales;
    const signed char* zero_points;
    u64 row_code_bytes;
    u32 rows;
    u32 n;
    u32 k;
    u32 columns;
    float global;
};

DEVICE float weight_scale(const Linear& job, u64 at) {
    if (SCALE == SCALE_E4M3) return e4m3_to_f32(job.scales[at]) / job.global;
    if (SCALE == SCALE_E8M0) return e8m0_to_f32(job.scales[at]);
    return value_of<DTYPE>(DTYPE == F32 ? ((const u32*)job.scales)[at] : ((const u16*)job.scales)[at]);
}

// Sixteen columns of x to shared memory, zeros beyond the matrix.
DEVICE void load_x(const Linear& job, u32 row, u32 column, u16* to) {
    for (int i = 0; i < 16; i++) {
        bool inside = row < job.rows && column + i < job.k;
        to[i] = inside ? job.x[(u64)row * job.k + column + i] : (u16)0;
    }
}

// Sixteen codes of a weight row to shared memory as exact bf16 numbers.
DEVICE void load_codes(const Linear& job, u32 row, u32 column, u32 groups, u16* to) {
    int count = row < job.n && column < job.k ? (job.k - column < STEP ? (int)(job.k - column) : STEP) : 0;
    int bytes = (count * BITS + 7) / 8;
    const u8* from = job.codes + (u64)row * job.row_code_bytes + column / STEP * (2 * BITS);
    float zero_point = ASYMMETRIC && count ? (float)job.zero_points[(u64)row * groups + column / job.columns] : 0.0f;
    u32 words[STEP_WORDS(BITS)];
#pragma unroll
    for (int i = 0; i < STEP_WORDS(BITS); i++) words[i] = 0u;
#pragma unroll
    for (int i = 0; i < 2 * BITS; i++) {
        if (i < bytes) words[i / 4] |= (u32)from[i] << (8 * (i % 4));
    }
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        float code = i < count ? decode<ELEMENT, BITS, OFFSET>(get_code<BITS>(words, i)) - zero_point : 0.0f;
        to[i] = (u16)f32_to_bf16(code);
    }
}

KERNEL(128) linear_quantized(Linear job) {
    __shared__ __align__(16) u16 xs[TILE * PADDED];
    __shared__ __align__(16) u16 ws[TILE * PADDED];
    u32 groups = (job.k + job.columns - 1) / job.columns;
    u32 first_row = blockIdx.y * TILE, first_n = blockIdx.x * TILE;
    int lane = lane_of_thread(), column = 2 * (lane % 4);
    int warp_row = warp_of_thread() / 2 * 32, warp_n = warp_of_thread() % 2 * 32;
    float total[2][4][4], group_sum[2][4][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[m][n][e] = group_sum[m][n][e] = 0.0f;
    for (u32 base = 0; base < job.k; base += DEPTH) {
        __syncthreads();
        // 128 threads: a row of 32 columns is two steps.
        u32 row = threadIdx.x / 2, step_column = threadIdx.x % 2 * STEP;
        load_x(job, first_row + row, base + step_column, xs + row * PADDED + step_column);
        load_codes(job, first_n + row, base + step_column, groups, ws + row * PADDED + step_column);
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
                for (int n = 0; n < 4; n++) mma_bf16(group_sum[m][n], a, b[n]);
            }
            u32 end = base + step * 16 + 16;
            // A group ends here, or the row does.
            if (end % job.columns == 0 || (end >= job.k && end - 16 < job.k)) {
                u32 group = (end - 16) / job.columns;
#pragma unroll
                for (int n = 0; n < 4; n++) {
#pragma unroll
                    for (int odd = 0; odd < 2; odd++) {
                        u32 output = first_n + warp_n + n * 8 + column + odd;
                        float scale = output < job.n && group < groups ? weight_scale(job, (u64)output * groups + group) : 0.0f;
#pragma unroll
                        for (int m = 0; m < 2; m++) {
#pragma unroll
                            for (int half = 0; half < 2; half++) {
                                int e = 2 * half + odd;
                                total[m][n][e] = fmaf(group_sum[m][n][e], scale, total[m][n][e]);
                                group_sum[m][n][e] = 0.0f;
                            }
                        }
                    }
                }
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
                if (row < job.rows && output < job.n) store_act(job.y, (u64)row * job.n + output, total[m][n][e]);
            }
        }
    }
}

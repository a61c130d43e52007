// x = (code - zero_point) * scale, the inverse of quantize.cu.
//
// codes [rows, row_code_bytes], a bit stream of BITS bits a code in each row; out [rows, k] of OUT (BF16 or F32, ties to
// even). Scales one for each rectangle of `band` rows and `columns` columns: of DTYPE for SCALE_FLOAT, else a byte; for
// SCALE_E4M3 divided by `global`. Zero points as i8 [bands, groups] where ASYMMETRIC. `columns` is a multiple of 16 unless
// a row has one group. Reference: src/ops/dequantize/stored.rs.
#include "qparams.cuh"
#include "step.cuh"

struct Stored {
    const u8* codes;
    const u8* scales;
    const signed char* zero_points;
    u8* out;
    u64 row_code_bytes;
    u32 rows;
    u32 k;
    u32 band;
    u32 columns;
    float global;
};

DEVICE float stored_scale(const Stored& stored, u64 at) {
    if (SCALE == SCALE_E4M3) return e4m3_to_f32(stored.scales[at]) / stored.global;
    if (SCALE == SCALE_E8M0) return e8m0_to_f32(stored.scales[at]);
    return value_of<DTYPE>(DTYPE == F32 ? ((const u32*)stored.scales)[at] : ((const u16*)stored.scales)[at]);
}

KERNEL(256) dequantize(Stored stored) {
    u32 steps_of_row = (stored.k + STEP - 1) / STEP;
    u32 step = blockIdx.x * blockDim.x + threadIdx.x;
    if (step >= stored.rows * steps_of_row) return;
    u32 row = step / steps_of_row, column = step % steps_of_row * STEP;
    u32 groups = (stored.k + stored.columns - 1) / stored.columns;
    u64 group = (u64)(row / stored.band) * groups + column / stored.columns;
    float scale = stored_scale(stored, group);
    float zero_point = ASYMMETRIC ? (float)stored.zero_points[group] : 0.0f;
    const u8* from = stored.codes + (u64)row * stored.row_code_bytes + column / STEP * (2 * BITS);
    int count = stored.k - column < STEP ? (int)(stored.k - column) : STEP;
    int bytes = (count * BITS + 7) / 8;
    u32 words[STEP_WORDS(BITS)];
#pragma unroll
    for (int i = 0; i < STEP_WORDS(BITS); i++) words[i] = 0u;
#pragma unroll
    for (int i = 0; i < 2 * BITS; i++) {
        if (i < bytes) words[i / 4] |= (u32)from[i] << (8 * (i % 4));
    }
    u8* to = stored.out + ((u64)row * stored.k + column) * ELEMENT_BYTES(OUT);
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        float x = (decode<ELEMENT, BITS, OFFSET>(get_code<BITS>(words, i)) - zero_point) * scale;
        if (i >= count) continue;
        if (OUT == F32) {
            ((float*)to)[i] = x;
        } else {
            ((u16*)to)[i] = (u16)f32_to_bf16(x);
        }
    }
}

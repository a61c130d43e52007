// A quantized weight as quantize.cu writes it, sixteen codes at a time: w = (code - zero_point) * scale.
//
// Codes [N, row_code_bytes], a bit stream of BITS bits a code in each row; one scale for each rectangle of `band` rows and
// `columns` columns: of DTYPE for SCALE_FLOAT, else a byte; zero points i8 in the order of the scales where ASYMMETRIC.
// `columns` is a multiple of 16 or at least K. Reference: src/ops/dequantize/stored.rs.
#pragma once
#include "qparams.cuh"
#include "step.cuh"

struct Weight {
    const u8* codes;
    const u8* scales;
    const signed char* zero_points;
    u64 row_code_bytes;
    u32 k;
    u32 band;
    u32 columns;
    // Whether `global` multiplies E4M3 scales, or divides them.
    u32 multiplies;
    float global;
    // A power of two that divides the addresses of steps.
    int code_alignment;
};

DEVICE float scale_at(const Weight& weight, u64 at) {
    if (SCALE == SCALE_E4M3) {
        float local = e4m3_to_f32(weight.scales[at]);
        return weight.multiplies ? local * weight.global : local / weight.global;
    }
    if (SCALE == SCALE_E8M0) return e8m0_to_f32(weight.scales[at]);
    return value_of<DTYPE>(DTYPE == F32 ? ((const u32*)weight.scales)[at] : ((const u16*)weight.scales)[at]);
}

// The numbers of a row from `column` on, a multiple of 16; zeros behind the row's end. Returns how many there are.
DEVICE int dequantize_step(const Weight& weight, u32 row, u32 column, float* to) {
    int count = column >= weight.k ? 0 : weight.k - column < STEP ? (int)(weight.k - column) : STEP;
    int bytes = (count * BITS + 7) / 8;
    float scale = 0.0f, zero_point = 0.0f;
    if (count) {
        u32 groups = (weight.k + weight.columns - 1) / weight.columns;
        u64 group = (u64)(row / weight.band) * groups + column / weight.columns;
        scale = scale_at(weight, group);
        zero_point = ASYMMETRIC ? (float)weight.zero_points[group] : 0.0f;
    }
    const u8* from = weight.codes + (u64)row * weight.row_code_bytes + column / STEP * (2 * BITS);
    u32 words[STEP_WORDS(BITS)];
    read_codes<BITS>(from, bytes, weight.code_alignment, words);
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        to[i] = i < count ? (decode<ELEMENT, BITS, OFFSET>(get_code<BITS>(words, i)) - zero_point) * scale : 0.0f;
    }
    return count;
}

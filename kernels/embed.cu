// Rows of the embedding table: x_t = scale * table[token_t].
//
// tokens [T], table [V, K] of DTYPE (BF16, F16, F32), x [T, K] f32. One thread an element. Reference: `embed` of
// src/model/decoder.rs.
#include "numeric.cuh"

KERNEL(256) embed(const u32* tokens, const u8* table, float scale, float* x, u32 rows, u32 k) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * k) return;
    u64 from = (u64)tokens[at / k] * k + at % k;
    u32 bits = DTYPE == F32 ? ((const u32*)table)[from] : ((const u16*)table)[from];
    x[at] = value_of<DTYPE>(bits) * scale;
}

// Rows `rows` of x [., K], ascending, to the front of out: out_i = x_{rows_i}; elements of WORD bytes (2 or 4).
KERNEL(256) gather_rows(const u8* x, const u32* rows, u8* out, u32 count, u32 k, u32 word) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)count * k) return;
    u64 from = (u64)rows[at / k] * k + at % k;
    if (word == 4) {
        ((u32*)out)[at] = ((const u32*)x)[from];
    } else {
        ((u16*)out)[at] = ((const u16*)x)[from];
    }
}

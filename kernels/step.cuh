// Sixteen neighbouring elements of a row, as one thread reads, codes and writes them.
#pragma once
#include "numeric.cuh"
#include "pack.cuh"

// 32-bit words of sixteen elements.
#define RAW_WORDS(dtype) ((dtype) == F32 ? 16 : 8)
// Bytes of an element.
#define ELEMENT_BYTES(dtype) ((dtype) == F32 ? 4 : 2)

// Reads `count` elements, zeros behind them. `aligned`: the first lies at a multiple of 16 bytes.
template <int D>
DEVICE void read_step(const u8* from, int count, bool aligned, u32* raw) {
    if (aligned && count == STEP) {
        const uint4* vectors = (const uint4*)from;
#pragma unroll
        for (int i = 0; i < RAW_WORDS(D) / 4; i++) {
            uint4 v = vectors[i];
            raw[4 * i] = v.x;
            raw[4 * i + 1] = v.y;
            raw[4 * i + 2] = v.z;
            raw[4 * i + 3] = v.w;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < RAW_WORDS(D); i++) {
        if (D == F32) {
            raw[i] = i < count ? ((const u32*)from)[i] : 0u;
        } else {
            u32 low = 2 * i < count ? ((const u16*)from)[2 * i] : 0u;
            u32 high = 2 * i + 1 < count ? ((const u16*)from)[2 * i + 1] : 0u;
            raw[i] = low | (high << 16);
        }
    }
}

// The bits of element `i`.
template <int D>
DEVICE u32 raw_element(const u32* raw, int i) {
    if (D == F32) return raw[i];
    return (i % 2 == 0) ? (raw[i / 2] & 0xffffu) : (raw[i / 2] >> 16);
}

// The largest magnitude among the elements, as bits of their type, which are ordered as magnitudes are.
template <int D>
DEVICE u32 step_magnitude(const u32* raw) {
    u32 largest = 0u;
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        u32 sign = D == F32 ? 0x7fffffffu : 0x7fffu;
        largest = greatest_u32(largest, raw_element<D>(raw, i) & sign);
    }
    return largest;
}

// Whether a magnitude is NaN or infinite.
template <int D>
DEVICE bool is_special(u32 magnitude) {
    return magnitude >= (D == BF16 ? 0x7f80u : D == F16 ? 0x7c00u : 0x7f800000u);
}

// Reads the first `bytes` of the stream of B bits a code, zeros behind them. `alignment` is a power of two that divides the
// address.
template <int B>
DEVICE void read_codes(const u8* from, int bytes, int alignment, u32* words) {
    if (B % 8 == 0 && alignment >= 16 && bytes == 2 * B) {
        uint4 v = *(const uint4*)from;
        words[0] = v.x;
        words[1] = v.y;
        words[2] = v.z;
        words[3] = v.w;
        return;
    }
    if (B == 4 && alignment >= 8 && bytes == 8) {
        uint2 v = *(const uint2*)from;
        words[0] = v.x;
        words[1] = v.y;
        return;
    }
    if (B % 2 == 0 && alignment >= 4 && bytes == 2 * B) {
#pragma unroll
        for (int i = 0; i < B / 2; i++) words[i] = ((const u32*)from)[i];
        return;
    }
#pragma unroll
    for (int i = 0; i < STEP_WORDS(B); i++) words[i] = 0u;
#pragma unroll
    for (int i = 0; i < 2 * B; i++) {
        if (i < bytes) words[i / 4] |= (u32)from[i] << (8 * (i % 4));
    }
}

// Writes the first `count` of sixteen numbers in type D. `aligned`: the first goes to a multiple of 16 bytes.
template <int D>
DEVICE void write_numbers(u8* to, const float* x, int count, bool aligned) {
    u32 raw[RAW_WORDS(D)];
#pragma unroll
    for (int i = 0; i < RAW_WORDS(D); i++) {
        raw[i] = D == F32 ? bits_of(x[i]) : element_of<D>(x[2 * i % STEP]) | (element_of<D>(x[(2 * i + 1) % STEP]) << 16);
    }
    if (aligned && count == STEP) {
#pragma unroll
        for (int i = 0; i < RAW_WORDS(D) / 4; i++) {
            ((uint4*)to)[i] = make_uint4(raw[4 * i], raw[4 * i + 1], raw[4 * i + 2], raw[4 * i + 3]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        if (i >= count) continue;
        if (D == F32) {
            ((u32*)to)[i] = raw_element<D>(raw, i);
        } else {
            ((u16*)to)[i] = (u16)raw_element<D>(raw, i);
        }
    }
}

// Writes the first `bytes` of the stream in `words`. `alignment` is a power of two that divides the address.
template <int B>
DEVICE void write_step(u8* to, const u32* words, int bytes, int alignment) {
    if (B % 8 == 0 && alignment >= 16 && bytes == 2 * B) {
        *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
    } else if (B == 4 && alignment >= 8 && bytes == 8) {
        *(uint2*)to = make_uint2(words[0], words[1]);
    } else if (B % 2 == 0 && alignment >= 4 && bytes == 2 * B) {
#pragma unroll
        for (int i = 0; i < B / 2; i++) ((u32*)to)[i] = words[i];
    } else if (alignment >= 2 && bytes == 2 * B) {
#pragma unroll
        for (int i = 0; i < B; i++) ((u16*)to)[i] = (u16)(words[i / 2] >> (16 * (i % 2)));
    } else {
#pragma unroll
        for (int i = 0; i < 2 * B; i++) {
            if (i < bytes) to[i] = (u8)(words[i / 4] >> (8 * (i % 4)));
        }
    }
}

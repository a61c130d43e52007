// Rounding to and from bf16, f16, FP8 E4M3 and E5M2, FP6 E2M3, FP4 E2M1 and E8M0. The twin of src/ops/{minifloat,fp8,fp6,fp4,
// e8m0,float_dtype}.rs: same operations, same bits.
//
// With M mantissa bits and a smallest normal exponent e0, the values within [2^e, 2^(e+1)) are multiples of 2^(e-M),
// and those below 2^e0 of 2^(e0-M). f32 has that very spacing within [2^(e+23-M), 2^(e+24-M)): adding the lower end of
// that range rounds to a multiple, ties to even, and leaves the multiple in the low bits of the sum.
#pragma once
#include "core.cuh"

// Float types that tensors are stored in.
#define BF16 0
#define F16 1
#define F32 2

// Element types of codes.
#define INT 0
#define E4M3 1
#define E2M3 2
#define E2M1 3

// A code and the value it stands for.
struct Coded {
    u32 code;
    float value;
};

// The code of a magnitude (no sign bit) and its value; `magnitude` is the bits of an f32 of at most the type's largest
// value. `MIN_NORMAL` is the biased f32 exponent of the smallest normal value.
template <int MANTISSA_BITS, int MIN_NORMAL>
HOST_DEVICE Coded round_magnitude(u32 magnitude) {
    u32 exponent = (u32)greatest((int)(magnitude & 0x7f800000u), MIN_NORMAL << 23);
    u32 shift = exponent + ((23u - MANTISSA_BITS) << 23);
    float sum = float_of(magnitude) + float_of(shift);
    // A multiple of 2^M and more is the next exponent's: the carry adds up to the right code.
    u32 code = bits_of(sum) - shift + ((exponent >> (23 - MANTISSA_BITS)) - ((u32)MIN_NORMAL << MANTISSA_BITS));
    return {code, sum - float_of(shift)};
}

HOST_DEVICE bool is_nan(float x) { return (int)(bits_of(x) & 0x7fffffffu) > 0x7f800000; }

// The bits of a bf16 as f32.
HOST_DEVICE float bf16_to_f32(u32 bits) { return float_of(bits << 16); }

// Ties to even; NaN becomes a quiet one of its sign.
HOST_DEVICE u32 f32_to_bf16(float x) {
    u32 bits = bits_of(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return is_nan(x) ? ((bits >> 16) | 0x40u) : rounded;
}

// `x` rounded to bf16, ties to even; not for NaN.
HOST_DEVICE float round_bf16(float x) {
    u32 bits = bits_of(x);
    return float_of((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// Exponent and mantissa moved into place make 2^-112 of the value, subnormals included; the product is exact.
HOST_DEVICE float f16_to_f32(u32 bits) {
    float magnitude = float_of((bits & 0x7fffu) << 13) * float_of((127u + 112u) << 23);
    u32 special = 0x7f800000u | ((bits & 0x3ffu) << 13);
    u32 out = (bits & 0x7c00u) == 0x7c00u ? special : bits_of(magnitude);
    return float_of(out | ((bits & 0x8000u) << 16));
}

// Ties to even; from 65520 on infinity, whose code is that of 65536.
HOST_DEVICE u32 f32_to_f16(float x) {
    u32 bits = bits_of(x);
    u32 sign = bits & 0x80000000u;
    u32 clamped = (u32)least((int)(bits ^ sign), (127 + 16) << 23);
    u32 code = round_magnitude<10, 127 - 14>(clamped).code;
    u32 quiet = 0x7e00u | ((bits >> 13) & 0x1ffu);
    return (is_nan(x) ? quiet : code) | (sign >> 16);
}

// FP8 E4M3 of a number (not NaN): ties to even, magnitudes beyond 448 saturate.
HOST_DEVICE Coded e4m3_of_number(float x) {
    u32 bits = bits_of(x);
    u32 sign = bits & 0x80000000u;
    u32 clamped = (u32)least((int)(bits ^ sign), 0x43e00000);
    Coded coded = round_magnitude<3, 127 - 6>(clamped);
    return {coded.code | (sign >> 24), float_of(bits_of(coded.value) | sign)};
}

// FP8 E4M3, NaN included.
HOST_DEVICE Coded e4m3(float x) {
    Coded coded = e4m3_of_number(x);
    if (is_nan(x)) return {coded.code | 0x7fu, float_of((bits_of(x) & 0x80000000u) | 0x7fc00000u)};
    return coded;
}

// Exponent and mantissa moved into place make 2^-120 of the value, subnormals included; the product is exact.
HOST_DEVICE float e4m3_to_f32(u32 code) {
    float magnitude = float_of((code & 0x7fu) << 20) * float_of((127u + 120u) << 23);
    u32 bits = (code & 0x7fu) == 0x7fu ? 0x7fc00000u : bits_of(magnitude);
    return float_of(bits | ((code & 0x80u) << 24));
}

// FP8 E5M2 is the upper half of an f16.
HOST_DEVICE float e5m2_to_f32(u32 code) { return f16_to_f32(code << 8); }

// FP6 E2M3: saturating at 7.5, ties to even. Negative values that round to zero keep their sign, negative zero does not.
HOST_DEVICE Coded e2m3(float x) {
    u32 clamped = (u32)least((int)(bits_of(x) & 0x7fffffffu), 0x40f00000);
    Coded coded = round_magnitude<3, 127>(clamped);
    u32 negative = x < 0.0f ? 1u : 0u;
    return {coded.code | (negative << 5), float_of(bits_of(coded.value) | (negative << 31))};
}

HOST_DEVICE float e2m3_to_f32(u32 code) {
    float magnitude = float_of((code & 0x1fu) << 20) * float_of((127u + 126u) << 23);
    return float_of(bits_of(magnitude) | ((code & 0x20u) << 26));
}

// FP4 E2M1: saturating at 6, ties to even; signs of zeros as for E2M3.
HOST_DEVICE Coded e2m1(float x) {
    u32 clamped = (u32)least((int)(bits_of(x) & 0x7fffffffu), 0x40c00000);
    Coded coded = round_magnitude<1, 127>(clamped);
    u32 negative = x < 0.0f ? 1u : 0u;
    return {coded.code | (negative << 3), float_of(bits_of(coded.value) | (negative << 31))};
}

HOST_DEVICE float e2m1_to_f32(u32 code) {
    float magnitude = float_of((code & 7u) << 22) * float_of((127u + 126u) << 23);
    return float_of(bits_of(magnitude) | ((code & 8u) << 28));
}

// The value of an E8M0 byte, 2^(byte-127); 255 is NaN.
HOST_DEVICE float e8m0_to_f32(u32 byte) {
    if (byte == 0u) return float_of(0x00400000u);
    return float_of(byte == 255u ? 0x7fc00000u : byte << 23);
}

// From 1.5 * 2^23 on, f32 has spacing 1: adding this rounds to integers, ties to even, and leaves the integer in the low
// bits.
#define ROUNDING_MAGIC 12582912.0f

// Two's-complement integers within [min, max]; the value is of `quotient`, without any zero point.
HOST_DEVICE Coded integer(float quotient, float min, float max) {
    float x = quotient < min ? min : quotient;
    x = x > max ? max : x;
    float shifted = x + ROUNDING_MAGIC;
    return {bits_of(shifted) & 0xffu, shifted - ROUNDING_MAGIC};
}

// `x` rounded to a float type; not for NaN.
template <int D>
HOST_DEVICE float round_to(float x) {
    if (D == BF16) return round_bf16(x);
    if (D == F16) return f16_to_f32(f32_to_f16(x));
    return x;
}

// The value of an element's bits.
template <int D>
HOST_DEVICE float value_of(u32 bits) {
    if (D == BF16) return bf16_to_f32(bits);
    if (D == F16) return f16_to_f32(bits);
    return float_of(bits);
}

// The bits of a value of a float type.
template <int D>
HOST_DEVICE u32 element_of(float x) {
    if (D == BF16) return f32_to_bf16(x);
    if (D == F16) return f32_to_f16(x);
    return bits_of(x);
}

// The spacing at 1: what torch.finfo(dtype).eps gives.
template <int D>
HOST_DEVICE float epsilon_of() {
    return D == BF16 ? 0.0078125f : D == F16 ? 0.0009765625f : 1.1920928955078125e-7f;
}

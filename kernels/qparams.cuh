// Scales and zero points of round-to-nearest quantization: the twin of src/ops/qparams.rs and e8m0.rs. All arithmetic is in
// the weight's own float type, as compressed-tensors has it; x ~ (q - zero_point) * scale.
#pragma once
#include "numeric.cuh"

// How scales are stored: in the weight's float type; E4M3 below a global divisor; a power of two.
#define SCALE_FLOAT 0
#define SCALE_E4M3 1
#define SCALE_E8M0 2

// Scale and zero point of one group.
struct QParams {
    float scale;
    float zero_point;
};

// A stored scale byte and what elements are divided by.
struct StoredScale {
    u32 byte;
    float scale;
};

// The smallest and largest value of an element type.
template <int E, int B>
HOST_DEVICE float element_min() {
    return E == E4M3 ? -448.0f : E == E2M3 ? -7.5f : E == E2M1 ? -6.0f : -(float)(1 << (B - 1));
}

template <int E, int B>
HOST_DEVICE float element_max() {
    return E == E4M3 ? 448.0f : E == E2M3 ? 7.5f : E == E2M1 ? 6.0f : (float)((1 << (B - 1)) - 1);
}

// What the largest magnitude is mapped to by a symmetric scale: 127.5 for INT8.
template <int E, int B>
HOST_DEVICE float half_range() {
    return (element_max<E, B>() - element_min<E, B>()) / 2.0f;
}

// scale = amax / half_range, rounded to the type; zero becomes the type's epsilon.
template <int E, int B, int D>
HOST_DEVICE float symmetric_scale(float amax) {
    float scale = round_to<D>(amax / half_range<E, B>());
    return scale == 0.0f ? epsilon_of<D>() : scale;
}

// scale = (max - min) / (2^b - 1), zero_point = q_min - min / scale, each step rounded to the type; min <= 0 <= max.
template <int B, int D>
HOST_DEVICE QParams asymmetric_qparams(float min, float max) {
    float q_min = element_min<INT, B>(), q_max = element_max<INT, B>();
    float scale = round_to<D>(round_to<D>(max - min) / (q_max - q_min));
    if (scale == 0.0f) return {epsilon_of<D>(), 0.0f};
    float zero_point = round_to<D>(q_min - round_to<D>(min / scale));
    return {scale, integer(zero_point, q_min, q_max).value};
}

// NVFP4's local scale of 16 values as an E4M3 code, and what the elements are divided by: local / global.
template <int D>
HOST_DEVICE StoredScale nvfp4_local_scale(float amax, float global_scale) {
    Coded coded = e4m3_of_number(global_scale * round_to<D>(amax / 6.0f));
    if (coded.code == 0u) coded = {0x20u, 0.125f};
    return {coded.code, coded.value / global_scale};
}

// The E8M0 byte of a group: floor(log2 amax) - exponent of the element's largest value, where a mantissa from 1.75 on
// (1.9375 for E2M3) counts as the next power of two.
template <int E>
HOST_DEVICE u32 mx_scale(float amax) {
    u32 round_up_from = E == E2M3 ? 1u << 19 : 1u << 21;
    int exponent = (int)((bits_of(amax) & 0x7fffffffu) + round_up_from) >> 23;
    int shared = exponent - (E == E4M3 ? 8 : 2);
    return exponent == 0 ? 0u : (u32)least(greatest(shared, 0), 254);
}

// What elements are divided by.
struct Divisor {
    float scale;
    float reciprocal;
    // Neither the reciprocal nor a product with it overflows or loses bits.
    bool ordinary;
};

HOST_DEVICE Divisor divisor_of(float scale) {
    return {scale, 1.0f / scale, scale > 8.67361738e-19f && scale < 1.15292150e18f};
}

// x / scale as far as codes can tell: the product with the correctly rounded reciprocal, corrected by its exact remainder.
//
// After two corrections it is the correctly rounded quotient (Markstein, "Computation of elementary functions on the IBM
// RISC System/6000 processor", 1990; the first makes it right within one unit of the last place), but for
// quotients below 2^-40, whose remainders may underflow and whose codes are zero anyway.
// One is enough where x and scale have at most 11 significant bits: then a quotient is either exactly on a boundary
// between codes, which have at most 9 bits, or at least 2^-20 of its size away from it; the corrected product is exact in
// the first case and wrong by less than 2^-22 in the second.
template <int CORRECTIONS>
HOST_DEVICE float quotient(float x, const Divisor& by) {
    if (!by.ordinary) return x / by.scale;
    float q = x * by.reciprocal;
    for (int i = 0; i < CORRECTIONS; i++) q = fmaf(fmaf(-q, by.scale, x), by.reciprocal, q);
    // The remainder of a negative zero is a positive one, and would make the sum positive.
    return float_of((bits_of(q) & 0x7fffffffu) | (bits_of(x) & 0x80000000u));
}

// The code of an element whose quotient by the scale is known; for integers after the zero point was added.
template <int E, int B>
HOST_DEVICE Coded encode(float quotient) {
    if (E == E4M3) return e4m3_of_number(quotient);
    if (E == E2M3) return e2m3(quotient);
    if (E == E2M1) return e2m1(quotient);
    return integer(quotient, element_min<INT, B>(), element_max<INT, B>());
}

// The value of a code; integers as they are stored, two's complement in bytes or offset by 2^(b-1) in words.
template <int E, int B, bool O>
HOST_DEVICE float decode(u32 code) {
    if (E == E4M3) return e4m3_to_f32(code);
    if (E == E2M3) return e2m3_to_f32(code);
    if (E == E2M1) return e2m1_to_f32(code);
    if (O) return (float)((int)code - (1 << (B - 1)));
    return (float)(int)(signed char)code;
}

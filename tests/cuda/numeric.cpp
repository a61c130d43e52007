// The functions of the kernels' headers as the host compiles them, for a test that compares them with the Rust reference.
#include <cmath>
#include "qparams.cuh"
#include "pack.cuh"

#define API extern "C" __attribute__((visibility("default")))



// Applies one function to the bits of each input; two words come out of each: a code and the bits of a value.
API void numeric(int op, const u32* in, u32* out, u64 n) {
    for (u64 i = 0; i < n; i++) {
        u32 bits = in[i];
        float x = float_of(bits);
        Coded coded = {0u, 0.0f};
        switch (op) {
            case 0: coded = e4m3(x); break;
            case 1: coded = e4m3_of_number(x); break;
            case 2: coded = e2m3(x); break;
            case 3: coded = e2m1(x); break;
            case 4: coded = {f32_to_bf16(x), bf16_to_f32(f32_to_bf16(x))}; break;
            case 5: coded = {f32_to_f16(x), f16_to_f32(f32_to_f16(x))}; break;
            case 6: coded = {0u, round_bf16(x)}; break;
            case 7: coded = {0u, e4m3_to_f32(bits)}; break;
            case 8: coded = {0u, e2m3_to_f32(bits)}; break;
            case 9: coded = {0u, e2m1_to_f32(bits)}; break;
            case 10: coded = {0u, e8m0_to_f32(bits)}; break;
            case 11: coded = {0u, e5m2_to_f32(bits)}; break;
            case 12: coded = integer(x, -128.0f, 127.0f); break;
            case 13: coded = {0u, f16_to_f32(bits)}; break;
        }
        out[2 * i] = coded.code;
        out[2 * i + 1] = bits_of(coded.value);
    }
}

template <int E, int B, int D>
static void scales_of(int kind, const float* min, const float* amax, float global, u32* out, u64 n) {
    for (u64 i = 0; i < n; i++) {
        QParams qparams = {0.0f, 0.0f};
        switch (kind) {
            case 0: qparams.scale = symmetric_scale<E, B, D>(amax[i]); break;
            case 1: qparams = asymmetric_qparams<B, D>(fminf(min[i], 0.0f), fmaxf(amax[i], 0.0f)); break;
            case 2: {
                StoredScale stored = nvfp4_local_scale<D>(amax[i], global);
                qparams = {stored.scale, (float)stored.byte};
                break;
            }
            case 3: qparams = {e8m0_to_f32(mx_scale<E>(amax[i])), (float)mx_scale<E>(amax[i])}; break;
        }
        out[2 * i] = bits_of(qparams.scale);
        out[2 * i + 1] = bits_of(qparams.zero_point);
    }
}

template <int E, int B>
static void scales_of_dtype(int dtype, int kind, const float* min, const float* amax, float global, u32* out, u64 n) {
    if (dtype == BF16) scales_of<E, B, BF16>(kind, min, amax, global, out, n);
    if (dtype == F16) scales_of<E, B, F16>(kind, min, amax, global, out, n);
    if (dtype == F32) scales_of<E, B, F32>(kind, min, amax, global, out, n);
}

// Two words of each group: the bits of the scale and of its zero point or stored byte.
API void scales(int element, int bits, int dtype, int kind, const float* min, const float* amax, float global, u32* out, u64 n) {
    if (element == E4M3) return scales_of_dtype<E4M3, 8>(dtype, kind, min, amax, global, out, n);
    if (element == E2M3) return scales_of_dtype<E2M3, 6>(dtype, kind, min, amax, global, out, n);
    if (element == E2M1) return scales_of_dtype<E2M1, 4>(dtype, kind, min, amax, global, out, n);
    switch (bits) {
        case 2: return scales_of_dtype<INT, 2>(dtype, kind, min, amax, global, out, n);
        case 3: return scales_of_dtype<INT, 3>(dtype, kind, min, amax, global, out, n);
        case 4: return scales_of_dtype<INT, 4>(dtype, kind, min, amax, global, out, n);
        case 5: return scales_of_dtype<INT, 5>(dtype, kind, min, amax, global, out, n);
        case 6: return scales_of_dtype<INT, 6>(dtype, kind, min, amax, global, out, n);
        case 7: return scales_of_dtype<INT, 7>(dtype, kind, min, amax, global, out, n);
        case 8: return scales_of_dtype<INT, 8>(dtype, kind, min, amax, global, out, n);
    }
}

// Quotients with one or two corrections.
API void quotients(int corrections, const float* x, const float* scale, float* out, u64 n) {
    for (u64 i = 0; i < n; i++) {
        Divisor by = divisor_of(scale[i]);
        out[i] = corrections == 1 ? quotient<1>(x[i], by) : quotient<2>(x[i], by);
    }
}

template <int B>
static void pack_and_back(const u8* codes, u8* packed, u8* back) {
    u32 words[STEP_WORDS(B)] = {};
    for (int i = 0; i < STEP; i++) put_code<B>(words, i, codes[i]);
    for (int i = 0; i < 2 * B; i++) packed[i] = (u8)(words[i / 4] >> (8 * (i % 4)));
    for (int i = 0; i < STEP; i++) back[i] = (u8)get_code<B>(words, i);
}

// Sixteen codes to 2 * bits bytes, and the codes read back from them.
API void pack(int bits, const u8* codes, u8* packed, u8* back) {
    switch (bits) {
        case 2: return pack_and_back<2>(codes, packed, back);
        case 3: return pack_and_back<3>(codes, packed, back);
        case 4: return pack_and_back<4>(codes, packed, back);
        case 5: return pack_and_back<5>(codes, packed, back);
        case 6: return pack_and_back<6>(codes, packed, back);
        case 7: return pack_and_back<7>(codes, packed, back);
        case 8: return pack_and_back<8>(codes, packed, back);
    }
}

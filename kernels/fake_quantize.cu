// Quantization of activations and back, in one pass: for each group of `group` consecutive elements of a row,
// out = round(clamp(x / scale)) * scale.
//
// x, out [T, K] of ACT, K a multiple of `group`. ELEMENT is E4M3, INT (8 bits) or E2M1; SCALING says where scales come from:
// DYNAMIC max|x| / R, R as in quantize_tokens.cu; STORED `stored` itself; NVFP4 the E4M3 number nearest to
// stored * max|x| / 6, divided by `stored`; MX a power of two. One warp a group. Reference: src/ops/activation_quant.rs.
#include "act.cuh"
#include "block.cuh"
#include "qparams.cuh"

#define DYNAMIC 0
#define STORED 1
#define NVFP4 2
#define MX 3

DEVICE float scale_of(float amax, float stored) {
    if (SCALING == STORED) return stored;
    if (SCALING == NVFP4) return nvfp4_local_scale<F32>(amax, stored).scale;
    // Beside an infinity nothing stays a number.
    if (SCALING == MX) return amax == INFINITY ? amax : e8m0_to_f32(mx_scale<ELEMENT>(amax));
    return symmetric_scale<ELEMENT, 8, F32>(amax);
}

DEVICE float rounded(float x, float scale) {
    float q = x / scale;
    if (ELEMENT == E4M3) return e4m3(q).value * scale;
    if (ELEMENT == INT) return integer(q, -128.0f, 127.0f).value * scale;
    // The code has no NaN.
    return is_nan(x) ? x : e2m1(q).value * scale;
}

KERNEL(256) fake_quantize(const act* x, act* out, u64 groups, u32 group, float stored) {
    u64 index = (u64)blockIdx.x * (blockDim.x / WARP) + warp_of_thread();
    if (index >= groups) return;
    u64 start = index * group;
    float amax = 0.0f;
    for (u32 i = lane_of_thread(); i < group; i += WARP) amax = fmaxf(amax, absolute(load_act(x, start + i)));
    float scale = scale_of(lanes_max(amax, WARP), stored);
    for (u32 i = lane_of_thread(); i < group; i += WARP) store_act(out, start + i, rounded(load_act(x, start + i), scale));
}

// Dynamic quantization of activations, amax and codes in one kernel: for each row of x, scale = max|x| / R, code =
// round(clamp(x / scale)), ties to even; R is 448 for E4M3 and 127.5 for INT8. Where `stored` is not 0, that is the scale.
//
// x [T, K] of ACT; codes [T, K] bytes; scales [T] f32, 2^-23 where a row is zero. A row of INT8 with a NaN gets a NaN
// scale, because its codes have none. One block a row. Reference: src/ops/activation_quant.rs.
#include "act.cuh"
#include "block.cuh"
#include "qparams.cuh"

KERNEL(256) quantize_tokens(const act* x, u8* codes, float* scales, u32 k, float stored) {
    __shared__ float room[32];
    __shared__ u32 flags[32];
    u64 start = (u64)blockIdx.x * k;
    float amax = 0.0f;
    u32 broken = 0u;
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        float value = load_act(x, start + i);
        broken |= is_nan(value) ? 1u : 0u;
        amax = fmaxf(amax, absolute(value));
    }
    amax = block_max(amax, room);
    broken = block_max(broken, flags);
    float scale = stored != 0.0f ? stored : symmetric_scale<ELEMENT, 8, F32>(amax);
    if (threadIdx.x == 0) scales[blockIdx.x] = ELEMENT == INT && broken ? float_of(0x7fc00000u) : scale;
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        float q = load_act(x, start + i) / scale;
        codes[start + i] = (u8)(ELEMENT == E4M3 ? e4m3(q).code : integer(q, -128.0f, 127.0f).code);
    }
}

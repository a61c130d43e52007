// Activations: numbers that pass between kernels, of ACT (BF16 or F32).
#pragma once
#include "numeric.cuh"

#if ACT == BF16
typedef u16 act;
#else
typedef float act;
#endif

DEVICE float load_act(const act* from, u64 i) {
#if ACT == BF16
    return bf16_to_f32(from[i]);
#else
    return from[i];
#endif
}

DEVICE void store_act(act* to, u64 i, float x) {
#if ACT == BF16
    to[i] = (u16)f32_to_bf16(x);
#else
    to[i] = x;
#endif
}

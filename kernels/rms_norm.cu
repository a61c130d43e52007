// RMS normalization with the residual addition before it: x <- x + y * factor; h = w * (x / sqrt(mean(x^2) + eps)).
//
// x [T, K] f32, y [T, K] of ACT or none, w [K] f32 or none: then h is x; h [T, K] of ACT or none: then only the addition is
// done. One block a row. Reference: src/ops/rms_norm.rs; sums in another order.
#include "act.cuh"
#include "block.cuh"

KERNEL(256) rms_norm(float* x, const act* y, float factor, const float* w, float eps, act* h, u32 k) {
    __shared__ float room[32];
    float* row = x + (u64)blockIdx.x * k;
    u64 start = (u64)blockIdx.x * k;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        float value = row[i];
        if (y) {
            value = value + load_act(y, start + i) * factor;
            row[i] = value;
        }
        if (!w && h) store_act(h, start + i, value);
        squares = fmaf(value, value, squares);
    }
    if (!h || !w) return;
    float inverse = 1.0f / sqrtf(block_sum(squares, room) / (float)k + eps);
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) store_act(h, start + i, w[i] * (row[i] * inverse));
}

// The same for parts of rows in place, without addition: columns first.. of each row of x [T, stride] in `parts` adjacent
// parts of k columns. One block a part.
KERNEL(256) rms_norm_parts(act* x, u32 stride, u32 first, u32 parts, const float* w, float eps, u32 k) {
    __shared__ float room[32];
    u64 start = (u64)(blockIdx.x / parts) * stride + first + (u64)(blockIdx.x % parts) * k;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        float value = load_act(x, start + i);
        squares = fmaf(value, value, squares);
    }
    float inverse = 1.0f / sqrtf(block_sum(squares, room) / (float)k + eps);
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        store_act(x, start + i, w[i] * (load_act(x, start + i) * inverse));
    }
}

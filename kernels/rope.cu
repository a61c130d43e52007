// Rotary position embedding, rotate-half form, in place: for the first R of a head's D elements at position p,
// x_i <- x_i * cos - x_{i+R/2} * sin, x_{i+R/2} <- x_{i+R/2} * cos + x_i * sin.
//
// x [T, stride] of ACT, whose first `heads` heads of D columns are rotated; positions [T]; table [P, R] f32, cos then sin of
// position first + p, made by the host. One thread a pair. Reference: src/ops/rope.rs.
#include "act.cuh"

KERNEL(256) rope(act* x, const u32* positions, const float* table, u32 first, u32 rows, u32 heads, u32 head_dim, u32 rotary_dim, u32 stride) {
    u32 half = rotary_dim / 2, pairs = heads * half;
    u64 pair = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= (u64)rows * pairs) return;
    u32 row = pair / pairs, head = pair % pairs / half, i = pair % half;
    const float* cos_sin = table + (u64)(positions[row] - first) * rotary_dim;
    u64 at = (u64)row * stride + head * head_dim + i;
    float a = load_act(x, at), b = load_act(x, at + half), cosine = cos_sin[i], sine = cos_sin[half + i];
    store_act(x, at, a * cosine - b * sine);
    store_act(x, at + half, b * cosine + a * sine);
}

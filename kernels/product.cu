// What follows a matrix product: y_tn = sums_tn * row_scale_t * column_scale_n where it was taken of codes, and
// y_tn <- y_tn + bias_n.
//
// sums [T, N] f32, or int32 where INTEGERS; row_scales [T], column_scales [N], bias [N] f32; y [T, N] in rows of `stride`, of
// ACT. One thread an element. References: src/ops/unit_product.rs, src/model/linear.rs.
#include "act.cuh"

KERNEL(256) scale_product(const u32* sums, const float* row_scales, const float* column_scales, act* y, u32 rows, u32 n, u32 stride) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * n) return;
    u64 row = at / n, column = at % n;
    float sum = INTEGERS ? (float)(int)sums[at] : float_of(sums[at]);
    store_act(y, row * stride + column, sum * row_scales[row] * column_scales[column]);
}

KERNEL(256) add_bias(act* y, const float* bias, u32 rows, u32 n, u32 stride) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * n) return;
    u64 row = at / n, column = at % n;
    store_act(y, row * stride + column, load_act(y, row * stride + column) + bias[column]);
}

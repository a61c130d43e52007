// The largest magnitude of a tensor: amax = max |x_i|.
//
// x [count], elements of DTYPE (BF16, F16, F32); amax [1], the bits of that type without the sign, which are ordered as
// magnitudes are, so that an infinite or NaN element shows. amax begins as 0. Reference: src/ops/float_dtype.rs.
#include "block.cuh"
#include "step.cuh"

KERNEL(256) tensor_amax(const u8* x, u64 count, u32* amax) {
    __shared__ u32 room[32];
    u64 steps = (count + STEP - 1) / STEP;
    u64 stride = (u64)gridDim.x * blockDim.x;
    u32 largest = 0u;
    for (u64 step = (u64)blockIdx.x * blockDim.x + threadIdx.x; step < steps; step += stride) {
        u32 raw[RAW_WORDS(DTYPE)];
        u64 first = step * STEP;
        int here = count - first < STEP ? (int)(count - first) : STEP;
        read_step<DTYPE>(x + first * ELEMENT_BYTES(DTYPE), here, true, raw);
        largest = greatest_u32(largest, step_magnitude<DTYPE>(raw));
    }
    largest = block_max(largest, room);
    if (threadIdx.x == 0) atomicMax(amax, largest);
}

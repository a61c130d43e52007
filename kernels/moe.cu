// Rows of a mixture of experts, sorted by expert and back: a stable counting sort, so that results do not depend on the
// order in which blocks run.
//
// experts [T, top] names each row's experts; counts [E]; places [T, top] is where a row's copy for its j-th expert goes
// among all copies, those of expert 0 first. Reference: src/model/experts.rs.
#include "act.cuh"
#include "block.cuh"

// counts_e = number of copies for expert e. One block an expert.
KERNEL(256) moe_count(const u32* experts, u32 copies, u32* counts) {
    __shared__ float room[32];
    u32 mine = 0u;
    for (u32 i = threadIdx.x; i < copies; i += blockDim.x) mine += experts[i] == blockIdx.x ? 1u : 0u;
    // Fewer than 2^24 copies: exact in f32.
    float all = block_sum((float)mine, room);
    if (threadIdx.x == 0) counts[blockIdx.x] = (u32)all;
}

// Places of the copies for one expert a block, in the order of rows.
KERNEL(256) moe_place(const u32* experts, u32 copies, const u32* counts, u32* places) {
    __shared__ u32 before[32];
    __shared__ u32 total;
    u32 start = 0u;
    for (u32 expert = 0; expert < blockIdx.x; expert++) start += counts[expert];
    for (u32 base = 0; base < copies; base += blockDim.x) {
        u32 i = base + threadIdx.x;
        bool here = i < copies && experts[i] == blockIdx.x;
        u32 lanes = 0u;
        for (int lane = 0; lane < WARP; lane++) lanes |= (__shfl_sync(ALL_LANES, here ? 1u : 0u, lane)) << lane;
        u32 below = lanes & ((1u << lane_of_thread()) - 1u), earlier = 0u, in_warp = 0u;
        for (u32 bits = below; bits; bits &= bits - 1u) earlier++;
        for (u32 bits = lanes; bits; bits &= bits - 1u) in_warp++;
        if (lane_of_thread() == 0) before[warp_of_thread()] = in_warp;
        __syncthreads();
        u32 of_block = 0u;
        for (int warp = 0; warp < warps_of_block(); warp++) {
            if (warp < warp_of_thread()) earlier += before[warp];
            of_block += before[warp];
        }
        if (here) places[i] = start + earlier;
        if (threadIdx.x == 0) total = of_block;
        __syncthreads();
        start += total;
        __syncthreads();
    }
}

// sorted [copies, K]: row t for each of its experts. One thread an element.
KERNEL(256) moe_scatter(const act* x, const u32* places, act* sorted, u32 copies, u32 top, u32 k) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)copies * k) return;
    u64 copy = at / k, column = at % k;
    sorted[(u64)places[copy] * k + column] = x[copy / top * k + column];
}

// y_t = sum_j weights_tj * sorted[places_tj], j ascending. One thread an element.
KERNEL(256) moe_combine(const act* sorted, const u32* places, const float* weights, act* y, u32 rows, u32 top, u32 k) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * k) return;
    u64 row = at / k, column = at % k;
    float sum = 0.0f;
    for (u32 j = 0; j < top; j++) sum = fmaf(weights[row * top + j], load_act(sorted, (u64)places[row * top + j] * k + column), sum);
    store_act(y, at, sum);
}

// y_t <- y_t + shared_t / (1 + e^-gates_t): gates [T] f32. One thread an element.
KERNEL(256) moe_add_shared(const act* shared, const float* gates, act* y, u32 rows, u32 k) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * k) return;
    float weight = 1.0f / (1.0f + expf(-gates[at / k]));
    store_act(y, at, fmaf(load_act(shared, at), weight, load_act(y, at)));
}

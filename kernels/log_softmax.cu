// The output head tile by tile: for each row the largest logit, sum of e^(logit - largest), the most likely token, and
// the logits of target tokens, without ever holding all logits (Milakov and Gimelshein, arXiv 1805.02867).
//
// logits [R, columns] f32 of tokens first.. of the vocabulary; they are divided by `divisor` and capped, c * tanh(z / c),
// where cap > 0. state [R] is carried from tile to tile, first = 0 begins it. targets [n] are ascending within a row, with
// rows of targets at offsets [R + 1]. One block a row. Ties go to the lower token. Reference: src/ops/log_softmax.rs.
#include "block.cuh"

struct State {
    float largest;
    // sum of e^(logit - largest).
    float sum;
    u32 token;
    u32 unused;
};

struct Best {
    float logit;
    u32 token;
};

DEVICE Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

KERNEL(256) log_softmax_tile(const float* logits, u32 stride, u32 columns, u32 first, float divisor, float cap, State* states,
                             const u32* targets, const u32* offsets, float* target_logits) {
    __shared__ float sums[32];
    __shared__ float logit_of[32];
    __shared__ u32 token_of[32];
    const float* row = logits + (u64)blockIdx.x * stride;
    Best best = {-INFINITY, 0xffffffffu};
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        float z = row[i] / divisor;
        if (cap > 0.0f) z = cap * tanhf(z / cap);
        best = better(best, {z, first + i});
    }
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) best = better(best, {lane_xor(best.logit, lanes), lane_xor(best.token, lanes)});
    if (lane_of_thread() == 0) {
        logit_of[warp_of_thread()] = best.logit;
        token_of[warp_of_thread()] = best.token;
    }
    __syncthreads();
    for (int warp = 0; warp < warps_of_block(); warp++) best = better(best, {logit_of[warp], token_of[warp]});
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        float z = row[i] / divisor;
        if (cap > 0.0f) z = cap * tanhf(z / cap);
        sum += expf(z - best.logit);
    }
    sum = block_sum(sum, sums);
    for (u32 i = offsets[blockIdx.x] + threadIdx.x; i < offsets[blockIdx.x + 1]; i += blockDim.x) {
        if (targets[i] < first || targets[i] >= first + columns) continue;
        float z = row[targets[i] - first] / divisor;
        target_logits[i] = cap > 0.0f ? cap * tanhf(z / cap) : z;
    }
    if (threadIdx.x != 0) return;
    State state = states[blockIdx.x];
    if (first == 0) state = {-INFINITY, 0.0f, 0u, 0u};
    float largest = fmaxf(state.largest, best.logit);
    float kept = state.sum == 0.0f ? 0.0f : state.sum * expf(state.largest - largest);
    u32 token = best.logit > state.largest ? best.token : state.token;
    states[blockIdx.x] = {largest, kept + sum * expf(best.logit - largest), token, 0u};
}

// Reductions over the lanes of a warp and the threads of a block. All threads of the block take part; every sum has a
// fixed order.
#pragma once
#include "core.cuh"

#define WARP 32
#define ALL_LANES 0xffffffffu

DEVICE float lane_xor(float x, int lanes) { return __shfl_xor_sync(ALL_LANES, x, lanes); }
DEVICE u32 lane_xor(u32 x, int lanes) { return __shfl_xor_sync(ALL_LANES, x, lanes); }

// Over groups of `width` neighbouring lanes, a power of two; every lane gets the result.
DEVICE u32 lanes_max(u32 x, int width) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x = greatest_u32(x, lane_xor(x, lanes));
    return x;
}

DEVICE float lanes_max(float x, int width) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x = fmaxf(x, lane_xor(x, lanes));
    return x;
}

DEVICE float lanes_min(float x, int width) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x = fminf(x, lane_xor(x, lanes));
    return x;
}

DEVICE float lanes_sum(float x, int width) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x += lane_xor(x, lanes);
    return x;
}

DEVICE int warps_of_block() { return (int)(blockDim.x + WARP - 1) / WARP; }
DEVICE int warp_of_thread() { return (int)threadIdx.x / WARP; }
DEVICE int lane_of_thread() { return (int)threadIdx.x % WARP; }

// Over a block of at most 1024 threads in whole warps; every thread gets the result. `room` is shared.
DEVICE u32 block_max(u32 x, u32* room) {
    x = lanes_max(x, WARP);
    if (lane_of_thread() == 0) room[warp_of_thread()] = x;
    __syncthreads();
    u32 all = room[0];
    for (int warp = 1; warp < warps_of_block(); warp++) all = greatest_u32(all, room[warp]);
    __syncthreads();
    return all;
}

DEVICE float block_max(float x, float* room) {
    x = lanes_max(x, WARP);
    if (lane_of_thread() == 0) room[warp_of_thread()] = x;
    __syncthreads();
    float all = room[0];
    for (int warp = 1; warp < warps_of_block(); warp++) all = fmaxf(all, room[warp]);
    __syncthreads();
    return all;
}

DEVICE float block_min(float x, float* room) {
    x = lanes_min(x, WARP);
    if (lane_of_thread() == 0) room[warp_of_thread()] = x;
    __syncthreads();
    float all = room[0];
    for (int warp = 1; warp < warps_of_block(); warp++) all = fminf(all, room[warp]);
    __syncthreads();
    return all;
}

DEVICE float block_sum(float x, float* room) {
    x = lanes_sum(x, WARP);
    if (lane_of_thread() == 0) room[warp_of_thread()] = x;
    __syncthreads();
    float all = room[0];
    for (int warp = 1; warp < warps_of_block(); warp++) all += room[warp];
    __syncthreads();
    return all;
}

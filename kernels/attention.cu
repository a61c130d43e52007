// Causal attention with grouped key-value heads over ragged sequences that branch off shared prefixes:
// out_t = sum_j softmax_j(cap(scale * q_t . k_j)) * v_j over the keys j at positions 0..p_t of the row's path, or the last
// `window` of them.
//
// qkv [T, stride] holds queries, keys and values of the new rows side by side; cache [S, 2 * kv_heads * D] keys and values
// kept from before. A sequence's rows are consecutive in the batch; key_rows lists for each position of its path where key
// and value lie: row r of the batch as r, row s of the cache as -1 - s. So prefixes are shared by being listed, and nothing
// is padded. One block 64 rows of one sequence and one head; scores and weights are taken tile by tile of 64 keys with a
// running maximum (Dao, FlashAttention-2, arXiv 2307.08691). HEAD_DIM is D; CAPPED tells whether cap(z) = c * tanh(z / c) or z;
// TENSOR_CORES whether the matrix instructions are used, which take bf16 and multiples of 16 up to 128. Reference:
// src/ops/attention.rs.
#include "act.cuh"
#include "block.cuh"
#include "mma.cuh"

struct Sequence {
    u32 first_row;
    u32 rows;
    u32 first_position;
    // Where the sequence begins in key_rows.
    u32 keys;
};

struct Task {
    u32 sequence;
    // First of its rows, counted within the sequence.
    u32 row;
};

struct Attention {
    const act* qkv;
    const act* cache;
    act* out;
    const Sequence* sequences;
    const Task* tasks;
    const int* key_rows;
    u32 heads;
    u32 kv_heads;
    u32 stride;
    // 0: none.
    u32 window;
    float scale;
    // Used where CAPPED.
    float cap;
};

// The key (part 0) or value (part 1) of a head at a listed row.
DEVICE const act* key_or_value(const Attention& job, int row, u32 kv_head, u32 part) {
    if (row >= 0) return job.qkv + (u64)row * job.stride + (u64)(job.heads + part * job.kv_heads + kv_head) * HEAD_DIM;
    return job.cache + (u64)(-1 - row) * 2 * job.kv_heads * HEAD_DIM + (u64)(part * job.kv_heads + kv_head) * HEAD_DIM;
}

DEVICE float capped(const Attention& job, float score) {
    score = score * job.scale;
    return CAPPED ? job.cap * tanhf(score / job.cap) : score;
}

#if TENSOR_CORES
#define ROWS 64
#define KEYS 64
// Rows of shared tiles are 16 bytes longer, so that the eight rows of a matrix lie in different banks.
#define PADDED (HEAD_DIM + 8)
#define STEPS (HEAD_DIM / 16)
#define TILES (HEAD_DIM / 8)

// Copies 64 keys or values to shared memory; zeros beyond the last.
DEVICE void load_tile(const Attention& job, const int* key_rows, u32 count, u32 kv_head, u32 part, u16* tile) {
    for (u32 i = threadIdx.x; i < KEYS * (HEAD_DIM / 8); i += blockDim.x) {
        u32 key = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8;
        uint4 eight = make_uint4(0u, 0u, 0u, 0u);
        if (key < count) eight = *(const uint4*)(key_or_value(job, key_rows[key], kv_head, part) + column);
        *(uint4*)(tile + key * PADDED + column) = eight;
    }
}

DEVICE u32 pair_of(float low, float high) { return f32_to_bf16(low) | (f32_to_bf16(high) << 16); }

// Largest and sum over the four lanes that hold a row.
DEVICE float quad_max(float x) { return fmaxf(fmaxf(x, lane_xor(x, 1)), lane_xor(fmaxf(x, lane_xor(x, 1)), 2)); }
DEVICE float quad_sum(float x) {
    x += lane_xor(x, 1);
    return x + lane_xor(x, 2);
}

// Four warps of 16 rows each.
KERNEL_OF_MANY_REGISTERS(128) attention(Attention job) {
    __shared__ __align__(16) u16 keys[KEYS * PADDED];
    __shared__ __align__(16) u16 values[KEYS * PADDED];
    Task task = job.tasks[blockIdx.x];
    Sequence sequence = job.sequences[task.sequence];
    u32 head = blockIdx.y, kv_head = head / (job.heads / job.kv_heads);
    int lane = lane_of_thread(), column = 2 * (lane % 4);
    // The two rows of this lane, within the sequence.
    u32 rows[2] = {task.row + warp_of_thread() * 16 + lane / 4, task.row + warp_of_thread() * 16 + lane / 4 + 8};
    u32 queries[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            u32 row = rows[part % 2];
            u64 at = (u64)(sequence.first_row + row) * job.stride + (u64)head * HEAD_DIM + step * 16 + column + part / 2 * 8;
            queries[step][part] = row < sequence.rows ? *(const u32*)(job.qkv + at) : 0u;
        }
    }
    float result[TILES][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) result[tile][0] = result[tile][1] = result[tile][2] = result[tile][3] = 0.0f;
    float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};
    u32 last_row = task.row + ROWS < sequence.rows ? task.row + ROWS - 1 : sequence.rows - 1;
    u32 end = sequence.first_position + last_row + 1;
    u32 first_seen = sequence.first_position + task.row + 1;
    u32 begin = job.window && first_seen > job.window ? (first_seen - job.window) / KEYS * KEYS : 0;
    const int* key_rows = job.key_rows + sequence.keys;
    for (u32 base = begin; base < end; base += KEYS) {
        u32 count = end - base < KEYS ? end - base : KEYS;
        __syncthreads();
        load_tile(job, key_rows + base, count, kv_head, 0, keys);
        load_tile(job, key_rows + base, count, kv_head, 1, values);
        __syncthreads();
        float scores[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const u16* key = keys + (n * 8 + lane / 4) * PADDED + step * 16 + column;
                u32 b[2] = {*(const u32*)key, *(const u32*)(key + 8)};
                mma_bf16(scores[n], queries[step], b);
            }
        }
        float highest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 position = base + n * 8 + column + e % 2, own = sequence.first_position + rows[e / 2];
                bool seen = position <= own && (!job.window || position + job.window > own);
                scores[n][e] = seen ? capped(job, scores[n][e]) : -INFINITY;
                highest[e / 2] = fmaxf(highest[e / 2], scores[n][e]);
            }
        }
        float factor[2], shift[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            highest[r] = quad_max(highest[r]);
            // Nothing seen yet: with any finite number the weights are zero, and the next tile's largest counts alone.
            shift[r] = highest[r] == -INFINITY ? 0.0f : highest[r];
            factor[r] = expf(largest[r] - shift[r]);
            largest[r] = highest[r];
            sums[r] *= factor[r];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[n][e] = expf(scores[n][e] - shift[e / 2]);
                sums[e / 2] += scores[n][e];
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int e = 0; e < 4; e++) result[tile][e] *= factor[e / 2];
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
                u32 a[4] = {pair_of(scores[2 * step][0], scores[2 * step][1]), pair_of(scores[2 * step][2], scores[2 * step][3]),
                            pair_of(scores[2 * step + 1][0], scores[2 * step + 1][1]), pair_of(scores[2 * step + 1][2], scores[2 * step + 1][3])};
                u32 b[2];
                load_transposed(b, values + (step * 16 + lane % 16) * PADDED + tile * 8);
                mma_bf16(result[tile], a, b);
            }
        }
    }
    float inverse[2] = {1.0f / quad_sum(sums[0]), 1.0f / quad_sum(sums[1])};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (rows[r] >= sequence.rows) continue;
            u64 at = ((u64)(sequence.first_row + rows[r]) * job.heads + head) * HEAD_DIM + tile * 8 + column;
            *(u32*)(job.out + at) = pair_of(result[tile][2 * r] * inverse[r], result[tile][2 * r + 1] * inverse[r]);
        }
    }
}
#else
#define ROWS 4

// On plain cores, one warp a row and head: each lane holds every 32nd column.
KERNEL(128) attention(Attention job) {
    Task task = job.tasks[blockIdx.x];
    Sequence sequence = job.sequences[task.sequence];
    u32 row = task.row + warp_of_thread(), head = blockIdx.y, kv_head = head / (job.heads / job.kv_heads);
    if (row >= sequence.rows) return;
    const act* query = job.qkv + (u64)(sequence.first_row + row) * job.stride + (u64)head * HEAD_DIM;
    u32 position = sequence.first_position + row;
    u32 begin = job.window && position + 1 > job.window ? position + 1 - job.window : 0;
    float result[(HEAD_DIM + WARP - 1) / WARP];
#pragma unroll
    for (int i = 0; i < (HEAD_DIM + WARP - 1) / WARP; i++) result[i] = 0.0f;
    float largest = -INFINITY, sum = 0.0f;
    for (u32 j = begin; j <= position; j++) {
        int listed = job.key_rows[sequence.keys + j];
        const act *key = key_or_value(job, listed, kv_head, 0), *value = key_or_value(job, listed, kv_head, 1);
        float dot = 0.0f;
        for (int i = lane_of_thread(); i < HEAD_DIM; i += WARP) dot = fmaf(load_act(query, i), load_act(key, i), dot);
        float score = capped(job, lanes_sum(dot, WARP));
        float highest = fmaxf(largest, score), factor = expf(largest - highest), weight = expf(score - highest);
        largest = highest;
        sum = sum * factor + weight;
#pragma unroll
        for (int i = 0; i < (HEAD_DIM + WARP - 1) / WARP; i++) {
            int column = lane_of_thread() + i * WARP;
            if (column < HEAD_DIM) result[i] = fmaf(weight, load_act(value, column), result[i] * factor);
        }
    }
#pragma unroll
    for (int i = 0; i < (HEAD_DIM + WARP - 1) / WARP; i++) {
        int column = lane_of_thread() + i * WARP;
        u64 at = ((u64)(sequence.first_row + row) * job.heads + head) * HEAD_DIM + column;
        if (column < HEAD_DIM) store_act(job.out, at, result[i] / sum);
    }
}
#endif

// A slot for rows that are not kept.
#define NO_SLOT 0xffffffffu

// Appends keys and values of batch rows to the cache: row rows_i goes to slot slots_i. One thread an element.
KERNEL(256) store_cache(const act* qkv, act* cache, const u32* rows, const u32* slots, u32 count, u32 first_column, u32 width, u32 stride) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)count * width) return;
    u64 i = at / width, column = at % width;
    if (slots[i] == NO_SLOT) return;
    cache[(u64)slots[i] * width + column] = qkv[(u64)rows[i] * stride + first_column + column];
}

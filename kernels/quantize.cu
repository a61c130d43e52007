// Round-to-nearest quantization and packing of a weight: code = round(clamp(x / scale + zero_point)), ties to even.
//
// x [rows, k] of DTYPE; codes [rows, row_code_bytes], a bit stream of BITS bits a code in each row, padded with zeros.
// Scales stand one for each rectangle of `band` rows and `columns` columns, row by row; SCALE says how they are stored.
// Compiled once for each combination of
//   DTYPE (BF16, F16, F32), ELEMENT (INT, E4M3, E2M3, E2M1), BITS (of a code), RANGE_BITS (of an integer's range), SCALE,
//   ASYMMETRIC (integers have zero points), OFFSET (integers are stored as q + 2^(b-1)),
//   ROUNDED (the quotient is rounded to DTYPE, --arithmetic bf16), PRESET (one scale is given for all).
// Reference: src/ops/quantize_rows.rs; codes, scales and zero points have the same bits. The sums of squares of elements
// and errors are added in another order than there, always the same one.
#include "block.cuh"
#include "qparams.cuh"
#include "step.cuh"

// What all blocks have in common.
struct Job {
    const u8* x;
    u8* codes;
    u8* scales;
    signed char* zero_points;
    // sum of x^2 and of (x - x')^2 of each block.
    double* sums;
    // Set where an element is NaN or infinite.
    u32* non_finite;
    u64 row_code_bytes;
    u32 rows;
    u32 k;
    // Rows and columns of a rectangle.
    u32 band;
    u32 columns;
    // The given scale, or NVFP4's global divisor.
    float given;
    // Powers of two that divide the addresses of steps in x and in the codes.
    int x_alignment;
    int code_alignment;
};

// What is known of a group before its scale.
struct Extent {
    u32 magnitude;
    float min;
    float max;
};

DEVICE void widen(Extent& extent, const u32* raw) {
    extent.magnitude = greatest_u32(extent.magnitude, step_magnitude<DTYPE>(raw));
    if (ASYMMETRIC) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            float x = value_of<DTYPE>(raw_element<DTYPE>(raw, i));
            extent.min = fminf(extent.min, x);
            extent.max = fmaxf(extent.max, x);
        }
    }
}

// The scale of a group; the thread that `stores` writes it at index `at`.
DEVICE QParams group_qparams(const Job& job, const Extent& extent, u64 at, bool stores) {
    float amax = value_of<DTYPE>(extent.magnitude);
    if (PRESET) return {job.given, 0.0f};
    if (SCALE == SCALE_E4M3) {
        StoredScale stored = nvfp4_local_scale<DTYPE>(amax, job.given);
        if (stores) job.scales[at] = (u8)stored.byte;
        return {stored.scale, 0.0f};
    }
    if (SCALE == SCALE_E8M0) {
        u32 byte = mx_scale<ELEMENT>(amax);
        if (stores) job.scales[at] = (u8)byte;
        return {e8m0_to_f32(byte), 0.0f};
    }
    QParams qparams = {0.0f, 0.0f};
    if (ASYMMETRIC) {
        qparams = asymmetric_qparams<RANGE_BITS, DTYPE>(extent.min, extent.max);
    } else {
        qparams.scale = symmetric_scale<ELEMENT, RANGE_BITS, DTYPE>(amax);
    }
    if (stores) {
        u32 bits = element_of<DTYPE>(qparams.scale);
        if (DTYPE == F32) {
            ((u32*)job.scales)[at] = bits;
        } else {
            ((u16*)job.scales)[at] = (u16)bits;
        }
        if (ASYMMETRIC) job.zero_points[at] = (signed char)(int)qparams.zero_point;
    }
    return qparams;
}

// Sixteen-bit weights by a scale of their own type need one correction, all other quotients two (qparams.cuh).
#define CORRECTIONS (DTYPE != F32 && SCALE == SCALE_FLOAT && !ROUNDED ? 1 : 2)

DEVICE float quotient_of(float x, const Divisor& by) {
    if (SCALE == SCALE_E8M0) return x * by.reciprocal;
    float q = quotient<CORRECTIONS>(x, by);
    return ROUNDED ? round_to<DTYPE>(q) : q;
}

// Codes sixteen elements; adds to the sums of squares.
DEVICE void code_step(const u32* raw, int count, const QParams& qparams, const Divisor& by, u32* words, float* sums) {
#pragma unroll
    for (int i = 0; i < STEP_WORDS(BITS); i++) words[i] = 0u;
#pragma unroll
    for (int i = 0; i < STEP; i++) {
        float x = value_of<DTYPE>(raw_element<DTYPE>(raw, i));
        float quotient = quotient_of(x, by);
        if (ASYMMETRIC) {
            quotient = quotient + qparams.zero_point;
            if (ROUNDED) quotient = round_to<DTYPE>(quotient);
        }
        Coded coded = encode<ELEMENT, RANGE_BITS>(quotient);
        u32 code = coded.code & ((1u << BITS) - 1u);
        if (OFFSET) code ^= 1u << (BITS - 1);
        put_code<BITS>(words, i, i < count ? code : 0u);
        float error = x - (ASYMMETRIC ? coded.value - qparams.zero_point : coded.value) * qparams.scale;
        sums[0] = fmaf(x, x, sums[0]);
        sums[1] = i < count ? fmaf(error, error, sums[1]) : sums[1];
    }
}

// Writes the codes of the step that begins at `column`; the last of a row also writes the row's padding.
DEVICE void write_codes(const Job& job, u64 row, u32 column, int count, const u32* words) {
    u64 at = (u64)(column / STEP) * (2 * BITS);
    u8* to = job.codes + row * job.row_code_bytes + at;
    if (column + STEP < job.k) {
        write_step<BITS>(to, words, 2 * BITS, job.code_alignment);
        return;
    }
    int rest = (int)(job.row_code_bytes - at);
    write_step<BITS>(to, words, rest < 2 * BITS ? rest : 2 * BITS, job.code_alignment);
    for (int i = 2 * BITS; i < rest; i++) to[i] = 0;
}

// Adds the sums of the block's threads and stores them.
DEVICE void store_sums(const Job& job, const float* sums) {
    __shared__ float room[64];
    float signal = lanes_sum(sums[0], WARP), noise = lanes_sum(sums[1], WARP);
    if (lane_of_thread() == 0) {
        room[2 * warp_of_thread()] = signal;
        room[2 * warp_of_thread() + 1] = noise;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        double total = 0.0;
        for (int warp = 0; warp < warps_of_block(); warp++) total += (double)room[2 * warp + (int)threadIdx.x];
        job.sums[2 * (u64)blockIdx.x + threadIdx.x] = total;
    }
}

// Groups of 16, 32, 64, 128, 256 or 512 columns that divide k: one step a thread, a group in neighbouring lanes.
KERNEL(256) quantize_groups(Job job) {
    int lanes = job.columns / STEP;
    u32 steps_of_row = job.k / STEP, steps = job.rows * steps_of_row;
    u32 step = blockIdx.x * blockDim.x + threadIdx.x;
    bool present = step < steps;
    u64 row = present ? step / steps_of_row : 0;
    u32 column = present ? step % steps_of_row * STEP : 0;
    u32 raw[RAW_WORDS(DTYPE)];
    read_step<DTYPE>(job.x + (row * job.k + column) * ELEMENT_BYTES(DTYPE), present ? STEP : 0, job.x_alignment >= 16, raw);
    Extent extent = {0u, 0.0f, 0.0f};
    widen(extent, raw);
    extent.magnitude = lanes_max(extent.magnitude, lanes);
    if (ASYMMETRIC) {
        extent.min = lanes_min(extent.min, lanes);
        extent.max = lanes_max(extent.max, lanes);
    }
    if (is_special<DTYPE>(extent.magnitude)) *job.non_finite = 1u;
    float sums[2] = {0.0f, 0.0f};
    if (present) {
        bool stores = column % job.columns == 0;
        QParams qparams = group_qparams(job, extent, (u64)step * STEP / job.columns, stores);
        u32 words[STEP_WORDS(BITS)];
        code_step(raw, STEP, qparams, divisor_of(qparams.scale), words, sums);
        write_codes(job, row, column, STEP, words);
    }
    store_sums(job, sums);
}

// Any other rectangle, one a block: whole rows, blocks of rows and columns (the last ones ragged). Where a row has more
// than one rectangle, `columns` is a multiple of 16.
KERNEL(256) quantize_rectangles(Job job) {
    __shared__ u32 magnitudes[32];
    __shared__ float extremes[32];
    u32 groups = (job.k + job.columns - 1) / job.columns;
    u32 first_row = blockIdx.x / groups * job.band, first_column = blockIdx.x % groups * job.columns;
    u32 rows = job.rows - first_row < job.band ? job.rows - first_row : job.band;
    u32 columns = job.k - first_column < job.columns ? job.k - first_column : job.columns;
    u32 end = first_column + columns, steps_of_row = (columns + STEP - 1) / STEP, steps = rows * steps_of_row;
    u32 raw[RAW_WORDS(DTYPE)];
    Extent extent = {0u, 0.0f, 0.0f};
    for (u32 step = threadIdx.x; step < steps; step += blockDim.x) {
        u64 row = first_row + step / steps_of_row;
        u32 column = first_column + step % steps_of_row * STEP;
        int count = end - column < STEP ? (int)(end - column) : STEP;
        read_step<DTYPE>(job.x + (row * job.k + column) * ELEMENT_BYTES(DTYPE), count, job.x_alignment >= 16, raw);
        widen(extent, raw);
    }
    extent.magnitude = block_max(extent.magnitude, magnitudes);
    if (ASYMMETRIC) {
        extent.min = block_min(extent.min, extremes);
        extent.max = block_max(extent.max, extremes);
    }
    if (is_special<DTYPE>(extent.magnitude)) *job.non_finite = 1u;
    QParams qparams = group_qparams(job, extent, blockIdx.x, threadIdx.x == 0);
    Divisor by = divisor_of(qparams.scale);
    float sums[2] = {0.0f, 0.0f};
    for (u32 step = threadIdx.x; step < steps; step += blockDim.x) {
        u64 row = first_row + step / steps_of_row;
        u32 column = first_column + step % steps_of_row * STEP;
        int count = end - column < STEP ? (int)(end - column) : STEP;
        read_step<DTYPE>(job.x + (row * job.k + column) * ELEMENT_BYTES(DTYPE), count, job.x_alignment >= 16, raw);
        u32 words[STEP_WORDS(BITS)];
        code_step(raw, count, qparams, by, words, sums);
        write_codes(job, row, column, count, words);
    }
    store_sums(job, sums);
}

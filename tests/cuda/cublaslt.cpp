// A libcublasLt.so of plain loops, for what src/device/cuda/cublaslt.rs asks of the real one: D = A^T * B, by columns, in
// the types of its table. Products are queued on the emulated driver's streams, which checks their ranges.
//
// Contracts are checked where the real library would fail or be slow: an algorithm is one that the heuristic gave, for at
// least as many columns, with no stricter alignment than the operands have; FP8 and int8 take multiples of 16 and
// compute capability 8.9 in the case of FP8, 9.0 where it is scaled by row and column. DAY0_EMULATOR may contain
// exact-products: algorithms then take exactly the columns that they were asked for; cublaslt=VERSION, as the library counts
// versions, unless it was built with one (VERSION); and full=cublasLtMatmul, which then finds no memory.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <vector>

namespace {

enum { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_8I = 3, R_32I = 10, R_16BF = 14, R_8F_E4M3 = 28 };
enum { COMPUTE_32F = 68, COMPUTE_32I = 72 };
enum { DESC_TRANSA = 3, DESC_A_SCALE_POINTER = 17, DESC_B_SCALE_POINTER = 18, DESC_FAST_ACCUM = 25, DESC_A_SCALE_MODE = 31,
       DESC_B_SCALE_MODE = 32 };
enum { SCALE_OUTER_VECTOR = 3 };
enum { PREF_MAX_WORKSPACE = 1, PREF_ALIGNMENT_A = 5, PREF_ALIGNMENT_B = 6, PREF_ALIGNMENT_D = 8 };
const uint64_t MAGIC = 0x6461793061616c74;

struct Description {
    int compute, scale, transposed;
    int8_t fast;
    int modes[2];
    const float* scales[2];
    bool has_scales() const { return scales[0] || scales[1] || modes[0] || modes[1]; }
};
struct Layout { int type; uint64_t rows, columns; int64_t leading; };
struct Preference { uint64_t workspace; uint32_t alignments[9]; };
struct Algorithm { uint64_t magic, columns, alignments[3], unused[3]; };
struct Heuristic { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

struct Work {
    int type, out_type;
    const char *a, *b;
    char* d;
    uint64_t n, m, k;
    int64_t lda, ldb, ldd;
    // Of columns of a and b, or none.
    const float *a_scales, *b_scales;
};

uint64_t size_of(int type) { return type == R_32F || type == R_32I ? 4 : type == R_16BF ? 2 : 1; }

bool has_setting(const char* name) {
    const char* all = std::getenv("DAY0_EMULATOR");
    return all && strstr(all, name);
}

float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

float e4m3(uint8_t code) {
    if ((code & 0x7f) == 0x7f) return of_bits(0x7fc00000u);
    float magnitude = of_bits((code & 0x7fu) << 20) * of_bits((127u + 120u) << 23);
    return code & 0x80 ? -magnitude : magnitude;
}

float load(const char* from, int type, uint64_t i) {
    switch (type) {
        case R_32F: return ((const float*)from)[i];
        case R_16BF: return of_bits((uint32_t)((const uint16_t*)from)[i] << 16);
        case R_8F_E4M3: return e4m3(((const uint8_t*)from)[i]);
        default: return (float)((const int8_t*)from)[i];
    }
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Eight partial sums, so that the order is not the CPU's.
__attribute__((optimize("O3"))) float dot(const float* a, const float* b, uint64_t k) {
    float sums[8] = {};
    uint64_t i = 0;
    for (; i + 8 <= k; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; i < k; i++, j++) sums[j] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Columns of a matrix as numbers.
std::vector<float> numbers(const char* from, int type, uint64_t columns, uint64_t k, int64_t leading) {
    std::vector<float> all(columns * k);
    for (uint64_t column = 0; column < columns; column++) {
        for (uint64_t i = 0; i < k; i++) all[column * k + i] = load(from, type, column * leading + i);
    }
    return all;
}

int32_t integer_dot(const int8_t* a, const int8_t* b, uint64_t k) {
    int32_t sum = 0;
    for (uint64_t i = 0; i < k; i++) sum += (int32_t)a[i] * b[i];
    return sum;
}

void run(void* state) {
    Work* work = (Work*)state;
    bool integers = work->out_type == R_32I;
    std::vector<float> a, b;
    if (!integers) {
        a = numbers(work->a, work->type, work->n, work->k, work->lda);
        b = numbers(work->b, work->type, work->m, work->k, work->ldb);
    }
    for (uint64_t row = 0; row < work->m; row++) {
        for (uint64_t column = 0; column < work->n; column++) {
            uint64_t at = row * work->ldd + column;
            if (integers) {
                const int8_t *of_a = (const int8_t*)work->a + column * work->lda, *of_b = (const int8_t*)work->b + row * work->ldb;
                ((int32_t*)work->d)[at] = integer_dot(of_a, of_b, work->k);
                continue;
            }
            float sum = dot(&a[column * work->k], &b[row * work->k], work->k);
            if (work->a_scales) sum = sum * work->b_scales[row] * work->a_scales[column];
            if (work->out_type == R_16BF) {
                ((uint16_t*)work->d)[at] = to_bf16(sum);
            } else {
                ((float*)work->d)[at] = sum;
            }
        }
    }
}

void destroy(void* state) { delete (Work*)state; }

bool is_known(const Description& description, int type, int out_type) {
    bool floats = description.compute == COMPUTE_32F && description.scale == R_32F;
    if (type == R_8I) return out_type == R_32I && description.compute == COMPUTE_32I && description.scale == R_32I;
    if (type == R_8F_E4M3) return floats && !description.fast && (out_type == R_32F || (description.has_scales() && out_type == R_16BF));
    if (type == R_16BF) return floats && (out_type == R_16BF || out_type == R_32F);
    return floats && type == R_32F && out_type == R_32F;
}

// Whether the library has a kernel.
bool fits(const Description& description, const Layout& a, const Layout& b, const Layout& d) {
    if (!description.transposed || a.type != b.type || !is_known(description, a.type, d.type)) return false;
    if (a.rows != b.rows || a.columns != d.rows || b.columns != d.columns) return false;
    if (a.leading < (int64_t)a.rows || b.leading < (int64_t)b.rows || d.leading < (int64_t)d.rows) return false;
    if (size_of(a.type) == 1 && (a.rows % 16 || d.rows % 16)) return false;
    if (description.has_scales()) {
        for (int i = 0; i < 2; i++) {
            if (description.modes[i] != SCALE_OUTER_VECTOR || !description.scales[i] || (uint64_t)description.scales[i] % 16) return false;
        }
        if (a.type != R_8F_E4M3 || (has_setting("sm=") && !has_setting("sm=9.0"))) return false;
    }
    bool old = has_setting("sm=8.0") || has_setting("sm=8.6");
    return a.type != R_8F_E4M3 || !old;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() {
#ifdef VERSION
    return VERSION;
#else
    const char* all = std::getenv("DAY0_EMULATOR");
    const char* version = all ? strstr(all, "cublaslt=") : nullptr;
    return version ? strtoull(version + 9, nullptr, 10) : 130002;
#endif
}

API cublasLtCreate(void** handle) {
    *handle = new int(0);
    return SUCCESS;
}

API cublasLtDestroy(void* handle) {
    delete (int*)handle;
    return SUCCESS;
}

API cublasLtMatmulDescCreate(void** made, int compute, int scale) {
    *made = new Description{compute, scale, 0, 0, {}, {}};
    return SUCCESS;
}

API cublasLtMatmulDescDestroy(void* description) {
    delete (Description*)description;
    return SUCCESS;
}

API cublasLtMatmulDescSetAttribute(void* description, int which, const void* value, size_t bytes) {
    Description& of = *(Description*)description;
    if (which == DESC_TRANSA && bytes == 4) {
        memcpy(&of.transposed, value, 4);
    } else if (which == DESC_FAST_ACCUM && bytes == 1) {
        memcpy(&of.fast, value, 1);
    } else if ((which == DESC_A_SCALE_MODE || which == DESC_B_SCALE_MODE) && bytes == 4) {
        memcpy(&of.modes[which - DESC_A_SCALE_MODE], value, 4);
    } else if ((which == DESC_A_SCALE_POINTER || which == DESC_B_SCALE_POINTER) && bytes == 8) {
        memcpy(&of.scales[which - DESC_A_SCALE_POINTER], value, 8);
    } else {
        return INVALID_VALUE;
    }
    return SUCCESS;
}

API cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *made = new Layout{type, rows, columns, leading};
    return SUCCESS;
}

API cublasLtMatrixLayoutDestroy(void* layout) {
    delete (Layout*)layout;
    return SUCCESS;
}

API cublasLtMatmulPreferenceCreate(void** made) {
    *made = new Preference{0, {256, 256, 256, 256, 256, 256, 256, 256, 256}};
    return SUCCESS;
}

API cublasLtMatmulPreferenceDestroy(void* preference) {
    delete (Preference*)preference;
    return SUCCESS;
}

API cublasLtMatmulPreferenceSetAttribute(void* handle, int which, const void* value, size_t bytes) {
    Preference* preference = (Preference*)handle;
    if (which == PREF_MAX_WORKSPACE && bytes == 8) {
        memcpy(&preference->workspace, value, 8);
    } else if (which >= PREF_ALIGNMENT_A && which <= PREF_ALIGNMENT_D && bytes == 4) {
        memcpy(&preference->alignments[which], value, 4);
    } else {
        return INVALID_VALUE;
    }
    return SUCCESS;
}

API cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void*, void* d, void* limits, int wanted,
                                   Heuristic* results, int* count) {
    if (!handle) return NOT_INITIALIZED;
    *count = 0;
    if (wanted < 1 || !fits(*(Description*)description, *(Layout*)a, *(Layout*)b, *(Layout*)d)) return NOT_SUPPORTED;
    const Preference& preference = *(Preference*)limits;
    const uint32_t* alignments = preference.alignments;
    Algorithm algorithm = {MAGIC, ((Layout*)b)->columns,
                           {alignments[PREF_ALIGNMENT_A], alignments[PREF_ALIGNMENT_B], alignments[PREF_ALIGNMENT_D]}, {}};
    results[0] = {algorithm, preference.workspace, SUCCESS, 1.0f, {}};
    *count = 1;
    return SUCCESS;
}

API cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                   const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, void* workspace,
                   size_t workspace_bytes, void* stream) {
    const Layout &of_a = *(Layout*)a_layout, &of_b = *(Layout*)b_layout, &of_d = *(Layout*)d_layout;
    if (!handle) return NOT_INITIALIZED;
    if (has_setting("full=cublasLtMatmul")) return ALLOC_FAILED;
    const Description& of = *(Description*)description;
    if (!fits(*(Description*)description, of_a, of_b, of_d)) return NOT_SUPPORTED;
    if (algorithm->magic != MAGIC || algorithm->columns < of_b.columns) return INVALID_VALUE;
    if (has_setting("exact-products") && algorithm->columns != of_b.columns) return NOT_SUPPORTED;
    const void* operands[] = {a, b, d};
    for (int i = 0; i < 3; i++) {
        if ((uint64_t)operands[i] % algorithm->alignments[i]) return INVALID_VALUE;
    }
    uint32_t one, zero;
    memcpy(&one, alpha, 4);
    memcpy(&zero, beta, 4);
    if (one != (of_d.type == R_32I ? 1u : 0x3f800000u) || zero != 0u || c != d || c_layout != d_layout) return INVALID_VALUE;
    using Submit = int (*)(void*, const uint64_t*, int, void (*)(void*), void (*)(void*), void*);
    static Submit submit = (Submit)dlsym(dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD), "emulator_submit");
    uint64_t in = size_of(of_a.type), out = size_of(of_d.type);
    const uint64_t ranges[] = {(uint64_t)a, (of_a.leading * (of_a.columns - 1) + of_a.rows) * in,
                               (uint64_t)b, (of_b.leading * (of_b.columns - 1) + of_b.rows) * in,
                               (uint64_t)d, (of_d.leading * (of_d.columns - 1) + of_d.rows) * out,
                               (uint64_t)workspace, workspace_bytes,
                               (uint64_t)of.scales[0], of_a.columns * 4, (uint64_t)of.scales[1], of_b.columns * 4};
    Work* work = new Work{of_a.type, of_d.type, (const char*)a, (const char*)b, (char*)d, of_a.columns, of_b.columns, of_a.rows,
                          of_a.leading, of_b.leading, of_d.leading, of.scales[0], of.scales[1]};
    if (!submit || submit(stream, ranges, of.has_scales() ? 6 : 4, run, destroy, work) != 0) {
        delete work;
        return INVALID_VALUE;
    }
    return SUCCESS;
}

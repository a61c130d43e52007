// Runs a kernel's source on the host: every thread of a block is a fiber, and barriers, shuffles, asynchronous copies and
// matrix instructions are done together as the hardware does them. Included before the source, which the system's C++
// compiler turns into a shared library; nothing here is used on a GPU.
//
// Blocks run one after the other; the order in which threads run between barriers is DAY0_EMULATOR_ORDER (forward,
// backward, or a number that seeds a shuffle), so that a missing barrier shows as a result that depends on it. A barrier
// that not all threads reach ends the launch with an error. Shared memory begins with garbage. The driver runs one launch at
// a time, so nothing here is of a thread of the host.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

struct Dim3 { unsigned x, y, z; };

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 128 << 10;

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch,.-emulator_switch
)");
#endif

// What a lane lays out for the others of its warp.
union Slot {
    uint64_t bits;
    unsigned words[16];
    float floats[16];
    const void* pointer;
};

struct Warp {
    // In turns, so that one barrier is enough: who writes again to the first has passed the barrier of the second, which all
    // reach only when they have read the first.
    Slot slots[2][LANES];
    int lanes = 0, arrived = 0, alive = 0;
    unsigned generation = 0;
};

struct Copy { void* to; const void* from; unsigned bytes; };

struct Fiber {
    Dim3 thread;
    int lane;
    Warp* warp;
    bool finished = false;
    enum { READY, AT_WARP, AT_BLOCK } state = READY;
    unsigned waits_for = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

struct Block {
    Dim3 grid, dims, index;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<char> dynamic_shared;
    int arrived = 0, alive = 0;
    unsigned generation = 0;
    std::function<void()> body;
    void* main_stack_pointer = nullptr;
#if !defined(__x86_64__)
    ucontext_t main_context;
#endif
};

static Block* block = nullptr;
static Fiber* current = nullptr;

static inline void to_main() {
#if defined(__x86_64__)
    emulator_switch(&current->stack_pointer, block->main_stack_pointer);
#else
    swapcontext(&current->context, &block->main_context);
#endif
}

static void fiber_main() {
    block->body();
    current->finished = true;
    to_main();
    std::abort();
}

static inline void release_block() {
    if (block->alive > 0 && block->arrived == block->alive) {
        block->arrived = 0;
        block->generation++;
    }
}

static inline void release_warp(Warp& warp) {
    if (warp.alive > 0 && warp.arrived == warp.alive) {
        warp.arrived = 0;
        warp.generation++;
    }
}

static inline void sync_block() {
    Fiber* self = current;
    self->state = Fiber::AT_BLOCK;
    self->waits_for = block->generation + 1;
    block->arrived++;
    release_block();
    if (block->generation != self->waits_for) to_main();
    self->state = Fiber::READY;
}

static inline void sync_warp() {
    Fiber* self = current;
    self->state = Fiber::AT_WARP;
    self->waits_for = self->warp->generation + 1;
    self->warp->arrived++;
    release_warp(*self->warp);
    if (self->warp->generation != self->waits_for) to_main();
    self->state = Fiber::READY;
}

static inline bool can_run(const Fiber& fiber) {
    if (fiber.finished) return false;
    if (fiber.state == Fiber::AT_BLOCK) return block->generation == fiber.waits_for;
    if (fiber.state == Fiber::AT_WARP) return fiber.warp->generation == fiber.waits_for;
    return true;
}

// The stacks of fibers, kept from launch to launch.
static char* stacks(size_t fibers) {
    static char* memory = nullptr;
    static size_t held = 0;
    if (held < fibers) {
        if (memory) munmap(memory, held * STACK_BYTES);
        void* mapped = mmap(nullptr, fibers * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) std::abort();
        memory = (char*)mapped;
        held = fibers;
    }
    return memory;
}

static void prepare(Fiber& fiber, char* stack) {
#if defined(__x86_64__)
    void** top = (void**)(stack + STACK_BYTES);
    // The stack is aligned to 16 before the return address of a call.
    *--top = nullptr;
    *--top = (void*)fiber_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

static inline void run(Fiber& fiber) {
    current = &fiber;
#if defined(__x86_64__)
    emulator_switch(&block->main_stack_pointer, fiber.stack_pointer);
#else
    swapcontext(&block->main_context, &fiber.context);
#endif
    current = nullptr;
}

static std::vector<int> order_of(int count) {
    std::vector<int> order(count);
    const char* setting = std::getenv("DAY0_EMULATOR_ORDER");
    bool backward = setting && !strcmp(setting, "backward");
    for (int i = 0; i < count; i++) order[i] = backward ? count - 1 - i : i;
    unsigned long seed = setting ? std::strtoul(setting, nullptr, 10) : 0;
    for (int i = count - 1; seed && i > 0; i--) {
        seed = seed * 6364136223846793005ul + 1442695040888963407ul;
        std::swap(order[i], order[(seed >> 33) % (i + 1)]);
    }
    return order;
}

// Runs one block; false when its threads wait for each other for ever.
static bool run_block(Block& of) {
    block = &of;
    int count = (int)of.fibers.size();
    char* memory = stacks(count);
    for (auto& warp : of.warps) warp = Warp{};
    of.arrived = 0;
    of.alive = count;
    for (int i = 0; i < count; i++) {
        Fiber& fiber = of.fibers[i];
        fiber.thread = {i % of.dims.x, i / of.dims.x % of.dims.y, i / (of.dims.x * of.dims.y)};
        fiber.lane = i % LANES;
        fiber.warp = &of.warps[i / LANES];
        fiber.warp->lanes++;
        fiber.warp->alive++;
        fiber.finished = false;
        fiber.state = Fiber::READY;
        fiber.open.clear();
        fiber.groups.clear();
        prepare(fiber, memory + i * STACK_BYTES);
    }
    memset(of.dynamic_shared.data(), 0xa5, of.dynamic_shared.size());
    static std::vector<int> order;
    if ((int)order.size() != count) order = order_of(count);
    while (of.alive > 0) {
        bool progress = false;
        for (int i : order) {
            Fiber& fiber = of.fibers[i];
            if (!can_run(fiber)) continue;
            progress = true;
            run(fiber);
            if (fiber.finished) {
                of.alive--;
                fiber.warp->alive--;
                release_block();
                release_warp(*fiber.warp);
            }
        }
        if (!progress) {
            block = nullptr;
            return false;
        }
    }
    block = nullptr;
    return true;
}

static bool launch(Dim3 grid, Dim3 dims, unsigned shared_bytes, std::function<void()> body) {
    Block of;
    of.grid = grid;
    of.dims = dims;
    of.body = std::move(body);
    unsigned count = dims.x * dims.y * dims.z;
    of.fibers.resize(count);
    of.warps.resize((count + LANES - 1) / LANES);
    of.dynamic_shared.resize(shared_bytes + 16);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                of.index = {x, y, z};
                if (!run_block(of)) return false;
            }
    return true;
}

static inline unsigned char* dynamic_shared() {
    return (unsigned char*)(((uintptr_t)block->dynamic_shared.data() + 15) & ~(uintptr_t)15);
}

// The value of lane `from`; the own one where there is no such lane.
template <class T>
static T shuffle(T value, int from) {
    static_assert(sizeof(T) <= 8, "one register or two");
    Warp& warp = *current->warp;
    Slot* slots = warp.slots[warp.generation % 2];
    memcpy(&slots[current->lane].bits, &value, sizeof(T));
    sync_warp();
    T result = value;
    if (from >= 0 && from < warp.lanes) memcpy(&result, &slots[from].bits, sizeof(T));
    return result;
}

// Registers of every lane, seen by all: `use` reads them behind a barrier.
template <class Use>
static void together(const unsigned* words, int count, Use use) {
    Warp& warp = *current->warp;
    Slot* slots = warp.slots[warp.generation % 2];
    memcpy(slots[current->lane].words, words, count * sizeof(unsigned));
    sync_warp();
    use(slots);
}

template <auto KERNEL> struct Trampoline;
template <class... Args, void (*KERNEL)(Args...)>
struct Trampoline<KERNEL> {
    template <size_t... I>
    static bool call(Dim3 grid, Dim3 dims, unsigned shared, void** params, std::index_sequence<I...>) {
        return launch(grid, dims, shared, [params] { KERNEL(*(std::remove_reference_t<Args>*)params[I]...); });
    }
    static bool run(Dim3 grid, Dim3 dims, unsigned shared, void** params) {
        return call(grid, dims, shared, params, std::index_sequence_for<Args...>{});
    }
    // The sizes of the arguments, zero behind the last.
    static bool sizes(unsigned* out, unsigned room) {
        const unsigned all[] = {sizeof(Args)..., 0u};
        if (sizeof...(Args) >= room) return false;
        memcpy(out, all, sizeof(all));
        return true;
    }
};

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->dims)
#define gridDim (emulator::block->grid)

static inline void __syncthreads() { emulator::sync_block(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulator::sync_warp(); }
template <class T> static inline T __shfl_xor_sync(unsigned, T x, int lanes) { return emulator::shuffle(x, emulator::current->lane ^ lanes); }
template <class T> static inline T __shfl_sync(unsigned, T x, int lane) { return emulator::shuffle(x, lane & 31); }
template <class T> static inline T __shfl_down_sync(unsigned, T x, int by) { return emulator::shuffle(x, emulator::current->lane + by); }
static inline unsigned atomicMax(unsigned* at, unsigned x) { unsigned old = *at; *at = old > x ? old : x; return old; }
static inline unsigned atomicAdd(unsigned* at, unsigned x) { unsigned old = *at; *at = old + x; return old; }
static inline int atomicAdd(int* at, int x) { int old = *at; *at = old + x; return old; }

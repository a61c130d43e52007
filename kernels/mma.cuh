// The matrix instructions of tensor cores from compute capability 8.0 on, as inline PTX. On the host the lanes of a warp
// exchange their registers and do the same sums.
#pragma once
#include "core.cuh"

// d = a * b + c for a [16, 16] and b [16, 8] of bf16, c and d [16, 8] of f32 (PTX ISA, mma.m16n8k16). Lane l holds of
// a: rows l/4 and l/4 + 8, columns 2 * (l%4) and 8 beyond, in pairs: a[0] (row, columns), a[1] (row + 8), a[2] (columns +
// 8), a[3] (both); of b: rows 2 * (l%4) and 8 beyond in pairs, column l/4; of c and d: rows l/4 (0, 1) and l/4 + 8 (2, 3),
// columns 2 * (l%4) and the next.
DEVICE void mma_bf16(float* d, const u32* a, const u32* b) {
#ifdef __CUDA_ARCH__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    u32 pairs[6] = {a[0], a[1], a[2], a[3], b[0], b[1]}, numbers[12];
    for (int i = 0; i < 12; i++) numbers[i] = i % 2 ? pairs[i / 2] & 0xffff0000u : pairs[i / 2] << 16;
    int lane = emulator::current->lane;
    emulator::together(numbers, 12, [&](emulator::Slot* slots) {
        for (int e = 0; e < 4; e++) {
            const emulator::Slot *of_a = slots + lane / 4 * 4, *of_b = slots + (2 * (lane % 4) + e % 2) * 4;
            float sum = d[e];
#pragma GCC unroll 16
            for (int k = 0; k < 16; k++) {
                sum += of_a[k % 8 / 2].floats[(k / 8 * 2 + e / 2) * 2 + k % 2] * of_b[k % 8 / 2].floats[(4 + k / 8) * 2 + k % 2];
            }
            d[e] = sum;
        }
    });
#endif
}

// Two 8x8 matrices of 16-bit numbers from shared memory, transposed (PTX ISA, ldmatrix.x2.trans): lanes 0 to 15 point at
// the rows; lane l gets of each matrix the pair at rows 2 * (l%4) and the next of column l/4. Stores to shared memory before
// and after it stay where they are.
DEVICE void load_transposed(u32* to, const u16* row) {
#ifdef __CUDA_ARCH__
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
#else
    u32 words[2];
    __builtin_memcpy(words, &row, 8);
    int lane = emulator::current->lane;
    emulator::together(words, 2, [&](emulator::Slot* slots) {
        for (int m = 0; m < 2; m++) {
            const u16 *low = (const u16*)slots[8 * m + 2 * (lane % 4)].pointer, *high = (const u16*)slots[8 * m + 2 * (lane % 4) + 1].pointer;
            to[m] = (u32)low[lane / 4] | ((u32)high[lane / 4] << 16);
        }
    });
    // Nobody writes to the rows before all have read them.
    emulator::sync_warp();
#endif
}

// Sixteen codes of B bits as a little-endian bit stream of 2 * B bytes, least significant bit first: bytes, nibbles,
// sextets and the dense 32-bit words of compressed-tensors are all this one layout (src/ops/int_pack.rs, fp4.rs, fp6.rs).
#pragma once
#include "core.cuh"

// Codes of one step; every group and row is cut into steps from its first column on.
#define STEP 16

// 32-bit words that hold the stream; the last is half empty for odd B.
#define STEP_WORDS(bits) (((bits) + 1) / 2)

// Adds code `i` to the words, which start as zeros.
template <int B>
HOST_DEVICE void put_code(u32* words, int i, u32 code) {
    int at = i * B;
    words[at / 32] |= code << (at % 32);
    if (at % 32 + B > 32) words[at / 32 + 1] |= code >> (32 - at % 32);
}

// The code `i` of the words.
template <int B>
HOST_DEVICE u32 get_code(const u32* words, int i) {
    int at = i * B;
    u32 code = words[at / 32] >> (at % 32);
    if (at % 32 + B > 32) code |= words[at / 32 + 1] << (32 - at % 32);
    return code & ((1u << B) - 1u);
}

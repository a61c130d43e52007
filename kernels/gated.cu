// The gated activation of the MLP: out = act(gate) * up, with silu(z) = z / (1 + e^-z) or the tanh form of gelu,
// z / (1 + e^(-2 sqrt(2/pi) (z + 0.044715 z^3))).
//
// gate_up [T, 2 * I] of ACT, gate in the first I columns; out [T, I] of ACT; GELU chooses the function. Reference:
// src/ops/gated.rs.
#include "act.cuh"

KERNEL(256) gated(const act* gate_up, act* out, u32 rows, u32 inner) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * inner) return;
    u64 row = at / inner, column = at % inner;
    float z = load_act(gate_up, row * 2 * inner + column), up = load_act(gate_up, row * 2 * inner + inner + column);
    float exponent = GELU ? -1.595769f * fmaf(z * z * z, 0.044715f, z) : -z;
    store_act(out, at, z / (1.0f + expf(exponent)) * up);
}

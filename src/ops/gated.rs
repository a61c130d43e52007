//! The gated activation of the MLP: out = act(gate) · up, with silu(z) = z / (1 + e^−z) or the tanh form of gelu,
//! z/2 · (1 + tanh(√(2/π)·(z + 0.044715·z³))) = z / (1 + e^−2√(2/π)·(z + 0.044715·z³)).
//!
//! Input \[T, 2·I\]: gate in the first I columns, up in the others (one matrix product gives both). Output \[T, I\].

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::elementary::{exp, fma};
use super::kernel_path::{KernelPath, per_path};

/// Rows per parallel task.
const ROWS: usize = 64;

/// Which function the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z / (1 + e^−z); `silu` or `swish` in configurations.
    Silu,
    /// `gelu_pytorch_tanh`.
    GeluTanh,
}

/// out \[T, I\] from gate_up \[T, 2·I\].
pub fn gated(path: KernelPath, activation: Activation, gate_up: &[f32], inner: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(inner), "two inputs to an output");
    out.par_chunks_mut(ROWS * inner).zip(gate_up.par_chunks(2 * ROWS * inner)).for_each(|(out, gate_up)| {
        for (out, gate_up) in out.chunks_exact_mut(inner).zip(gate_up.chunks_exact(2 * inner)) {
            let (gate, up) = gate_up.split_at(inner);
            gated_row(path, activation, gate, up, out);
        }
    });
}

/// out \[I\] = act(gate) · up for one row.
pub(super) fn gated_row(path: KernelPath, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => silu_row(path, gate, up, out),
        Activation::GeluTanh => gelu_row(path, gate, up, out),
    }
}

#[inline(always)]
fn silu_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = *gate / (1.0 + exp::<FMA>(-*gate)) * *up;
    }
}

per_path! {
    fn silu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_body
}

#[inline(always)]
fn gelu_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    /// −2·√(2/π).
    const FACTOR: f32 = -1.595_769;
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let z = *gate;
        let inner = fma::<FMA>(z * z * z, 0.044_715, z);
        *out = z / (1.0 + exp::<FMA>(FACTOR * inner)) * *up;
    }
}

per_path! {
    fn gelu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = gelu_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: torch 2.10 `torch.nn.functional.silu` and `gelu(approximate="tanh")` of
    /// `torch.tensor([-20., -1., 0., 0.5, 30.], dtype=torch.float64)`.
    #[test]
    fn golden() {
        let gate_up = [-20.0, -1.0, 0.0, 0.5, 30.0, 1.0, 1.0, 1.0, 2.0, -1.0];
        let silu = [-4.122_307_3e-8, -0.268_941_43, 0.0, 2.0 * 0.311_229_68, -30.0];
        let gelu = [0.0, -0.158_808_01, 0.0, 2.0 * 0.345_714, -30.0];
        for path in KernelPath::available() {
            for (activation, want) in [(Activation::Silu, silu), (Activation::GeluTanh, gelu)] {
                let mut out = [0.0; 5];
                gated(path, activation, &gate_up, 5, &mut out);
                for (got, want) in out.iter().zip(want) {
                    assert!((got - want).abs() <= 4e-7 * want.abs() + 1e-30, "{path:?}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn extremes() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut out = [0.0; 2];
            gated(KernelPath::detect(), activation, &[-1e4, f32::NAN, 1.0, 1.0], 2, &mut out);
            assert!(out[0].abs() < 1e-30 && out[1].is_nan());
        }
    }
}

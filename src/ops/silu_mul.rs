//! The gated activation of the MLP: out = silu(gate) · up, silu(z) = z / (1 + e^−z).
//!
//! Input \[T, 2·I\]: gate in the first I columns, up in the others (one matrix product gives both). Output \[T, I\].

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::elementary::exp;
use super::kernel_path::{KernelPath, per_path};

/// Rows per parallel task.
const ROWS: usize = 64;

/// out \[T, I\] from gate_up \[T, 2·I\].
pub fn silu_mul(path: KernelPath, gate_up: &[f32], inner: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(inner), "two inputs to an output");
    out.par_chunks_mut(ROWS * inner).zip(gate_up.par_chunks(2 * ROWS * inner)).for_each(|(out, gate_up)| {
        for (out, gate_up) in out.chunks_exact_mut(inner).zip(gate_up.chunks_exact(2 * inner)) {
            let (gate, up) = gate_up.split_at(inner);
            row(path, gate, up, out);
        }
    });
}

#[inline(always)]
fn row_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = *gate / (1.0 + exp::<FMA>(-*gate)) * *up;
    }
}

per_path! {
    fn row(gate: &[f32], up: &[f32], out: &mut [f32]) = row_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: torch 2.10 `torch.nn.functional.silu(torch.tensor([-20., -1., 0., 0.5, 30.]))`.
    #[test]
    fn golden() {
        let gate_up = [-20.0, -1.0, 0.0, 0.5, 30.0, 1.0, 1.0, 1.0, 2.0, -1.0];
        let want = [-4.122_307_3e-8, -0.268_941_43, 0.0, 2.0 * 0.311_229_68, -30.0];
        for path in KernelPath::available() {
            let mut out = [0.0; 5];
            silu_mul(path, &gate_up, 5, &mut out);
            for (got, want) in out.iter().zip(want) {
                assert!((got - want).abs() <= 3e-7 * want.abs(), "{path:?}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn extremes() {
        let mut out = [0.0; 2];
        silu_mul(KernelPath::detect(), &[-1e4, f32::NAN, 1.0, 1.0], 2, &mut out);
        assert!(out[0].abs() < 1e-30 && out[1].is_nan());
    }
}

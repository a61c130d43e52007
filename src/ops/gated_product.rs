//! act(x · Gᵀ) · (x · Uᵀ) in one pass, for bf16 products: a block of gate and up is multiplied into a scratch of the
//! second-level cache and leaves it activated and rounded, so that the widest rows of the model are never stored in f32.
//!
//! x \[T, K\], W = G above U \[2·I, K\], result \[T, I\]. The bits are those of [`super::linear`], [`super::gated`] and rounding
//! one after the other.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::gated::{Activation, gated_row};
use super::kernel_path::KernelPath;
use super::linear::{Input, multiply_block};
use super::microkernel::NR;
use super::packed::PackedMatrix;
use super::unit_rows::{PART, RoundedRows};

/// Panels of gate, and of up, in one task: 256 rows of them are 256 KiB of f32.
const PANELS: usize = 4;
const _: () = assert!(PART == NR, "a panel's columns are a part of a row");

thread_local! {
    /// Gate and up of one task, and one row of results.
    static SCRATCH: RefCell<[Buffer; 2]> = RefCell::default();
}

/// Whether gate and up of this weight begin at whole panels.
pub fn is_gated_product(w: &PackedMatrix) -> bool {
    w.takes_rounded() && w.n().is_multiple_of(2 * NR)
}

/// The activated rows for the next product.
///
/// # Panics
/// Unless [`is_gated_product`].
pub fn gated_product(
    path: KernelPath,
    activation: Activation,
    x: &RoundedRows,
    rows: usize,
    w: &PackedMatrix,
) -> RoundedRows {
    assert!(is_gated_product(w), "gate and up begin at whole panels");
    let inner = w.n() / 2;
    let half = inner / NR;
    let input = Input::rounded(x, rows, w);
    let (made, parts) = RoundedRows::in_parts(path, rows, inner);
    let row_block = input.row_block(rows, w);
    let (blocks, chunks) = (rows.div_ceil(row_block), half.div_ceil(PANELS));
    (0..blocks * chunks).into_par_iter().for_each(|task| {
        let of_block = task / chunks * row_block..((task / chunks + 1) * row_block).min(rows);
        let panels = task % chunks * PANELS..((task % chunks + 1) * PANELS).min(half);
        let columns = panels.len() * NR;
        SCRATCH.with_borrow_mut(|[scratch, row]| {
            scratch.ensure(of_block.len() * 2 * columns);
            row.ensure(columns);
            // Panels write at their own columns of W; shift back so that gate begins at column 0 and up behind it.
            let gate = scratch.as_mut_ptr().wrapping_sub(panels.start * NR);
            let up = scratch.as_mut_ptr().wrapping_add(columns).wrapping_sub((half + panels.start) * NR);
            let above = half + panels.start..half + panels.end;
            // SAFETY: both halves of the scratch's rows, which this thread alone holds.
            unsafe {
                multiply_block(path, &input, of_block.clone(), w, panels.clone(), gate, 2 * columns);
                multiply_block(path, &input, of_block.clone(), w, above, up, 2 * columns);
            }
            for (i, both) in of_block.clone().zip(scratch.chunks_exact(2 * columns)) {
                let (gate, up) = both.split_at(columns);
                gated_row(path, activation, gate, up, &mut row[..columns]);
                // SAFETY: tasks cover disjoint rows or columns of what was made.
                unsafe { parts.write(i, panels.start * NR, &row[..columns]) };
            }
        });
    });
    made
}

#[cfg(test)]
mod tests {
    use super::super::gated::gated;
    use super::super::kernel_path::ComputeDtype;
    use super::super::linear::tests::noise;
    use super::super::linear::{Columns, linear, linear_rounded};
    use super::*;

    /// Each step alone gives the same bits.
    #[test]
    fn equals_its_steps() {
        let (rows, k, inner, n) = (301, 70, 160, 40);
        let (x, w, down) = (noise(rows * k, 31), noise(2 * inner * k, 32), noise(n * inner, 33));
        let w = PackedMatrix::dense(ComputeDtype::Bf16, &[&w], k);
        let down = PackedMatrix::dense(ComputeDtype::Bf16, &[&down], inner);
        for path in KernelPath::available_bf16() {
            let mut gate_up = vec![0.0; rows * 2 * inner];
            linear(path, &x, rows, &w, &mut Columns { data: &mut gate_up, stride: 2 * inner, first: 0 });
            let mut activated = vec![0.0; rows * inner];
            gated(path, Activation::Silu, &gate_up, inner, &mut activated);
            let mut want = vec![0.0; rows * n];
            linear(path, &activated, rows, &down, &mut Columns { data: &mut want, stride: n, first: 0 });

            let rounded = RoundedRows::new(path, rows, k, &|i, out| out.copy_from_slice(&x[i * k..][..k]));
            let activated = gated_product(path, Activation::Silu, &rounded, rows, &w);
            let mut got = vec![0.0; rows * n];
            let mut out = Columns { data: &mut got, stride: n, first: 0 };
            linear_rounded(path, &activated, rows, &down, &mut out);
            assert!(got == want, "{path:?}");
        }
    }
}

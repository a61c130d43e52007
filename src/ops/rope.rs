//! Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864; transformers 5.17 `modeling_llama.py`).
//!
//! For a head x \[D\] at position p, with θ_i = p · f_i for i < D/2:
//! x_i ← x_i·cos θ_i − x_{i+D/2}·sin θ_i, x_{i+D/2} ← x_{i+D/2}·cos θ_i + x_i·sin θ_i.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::kernel_path::{KernelPath, per_path};

/// Rows per parallel task.
const ROWS: usize = 64;

/// cos and sin for positions 0..P: \[P, D\], cos in the first half of a row, sin in the second.
pub struct RopeTable {
    data: Vec<f32>,
    head_dim: usize,
}

impl RopeTable {
    /// Angles are products in f32, as transformers computes them; their cosine and sine are correctly rounded.
    pub fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let head_dim = 2 * inverse_frequencies.len();
        let mut data = vec![0.0; positions * head_dim];
        data.par_chunks_exact_mut(head_dim).enumerate().for_each(|(p, row)| {
            let (cos, sin) = row.split_at_mut(head_dim / 2);
            for (i, frequency) in inverse_frequencies.iter().enumerate() {
                let angle = f64::from(p as f32 * frequency);
                (cos[i], sin[i]) = (angle.cos() as f32, angle.sin() as f32);
            }
        });
        Self { data, head_dim }
    }

    fn at(&self, position: u32) -> &[f32] {
        &self.data[position as usize * self.head_dim..][..self.head_dim]
    }
}

/// Rotates the first `heads` heads of each row of x \[T, stride\] in place; `positions` \[T\].
pub fn rope(
    path: KernelPath,
    x: &mut [f32],
    stride: usize,
    heads: usize,
    positions: &[u32],
    table: &RopeTable,
) {
    let d = table.head_dim;
    assert!(x.len() == positions.len() * stride && heads * d <= stride, "a position for each row");
    x.par_chunks_mut(ROWS * stride).zip(positions.par_chunks(ROWS)).for_each(|(x, positions)| {
        for (row, position) in x.chunks_exact_mut(stride).zip(positions) {
            rotate(path, &mut row[..heads * d], table.at(*position));
        }
    });
}

#[inline(always)]
fn rotate_body<const FMA: bool>(row: &mut [f32], cos_sin: &[f32]) {
    let half = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(half);
    for head in row.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

per_path! {
    fn rotate(row: &mut [f32], cos_sin: &[f32]) = rotate_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: transformers 5.17 `apply_rotary_pos_emb` on q = [1, 2, 3, 4], theta 10000, positions 0 and 7
    /// (angles 7 and 0.07).
    #[test]
    fn golden() {
        let table = RopeTable::new(&[1.0, 0.01], 8);
        let mut x = vec![1.0, 2.0, 3.0, 4.0, 9.0, 1.0, 2.0, 3.0, 4.0, 9.0];
        rope(KernelPath::detect(), &mut x, 5, 1, &[0, 7], &table);
        assert_eq!(&x[..5], &[1.0, 2.0, 3.0, 4.0, 9.0]);
        let want = [-1.217_057_5, 1.715_330_8, 2.918_693_3, 4.130_089_8, 9.0];
        for (got, want) in x[5..].iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got}, not {want}");
        }
    }
}

//! Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864; transformers 5.17 `modeling_llama.py`).
//!
//! For the first R of a head's D elements at position p, with θ_i = p · f_i for i < R/2 and an attention factor a:
//! x_i ← a·(x_i·cos θ_i − x_{i+R/2}·sin θ_i), x_{i+R/2} ← a·(x_{i+R/2}·cos θ_i + x_i·sin θ_i). R is D in most models.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::kernel_path::{KernelPath, per_path};

/// Rows per parallel task.
const ROWS: usize = 64;

/// a·cos and a·sin for P consecutive positions: \[P, R\], cos in the first half of a row, sin in the second.
pub struct RopeTable {
    data: Vec<f32>,
    first: usize,
    rotary_dim: usize,
}

impl RopeTable {
    /// Angles are products in f32, as transformers computes them; their cosine and sine are correctly rounded before
    /// they are multiplied by the attention factor.
    pub fn new(
        inverse_frequencies: &[f32],
        attention_factor: f32,
        positions: std::ops::Range<usize>,
    ) -> Self {
        let first = positions.start;
        let rotary_dim = 2 * inverse_frequencies.len();
        let mut data = vec![0.0; positions.len() * rotary_dim];
        data.par_chunks_exact_mut(rotary_dim).enumerate().for_each(|(p, row)| {
            let (cos, sin) = row.split_at_mut(rotary_dim / 2);
            for (i, frequency) in inverse_frequencies.iter().enumerate() {
                let angle = f64::from((first + p) as f32 * frequency);
                cos[i] = angle.cos() as f32 * attention_factor;
                sin[i] = angle.sin() as f32 * attention_factor;
            }
        });
        Self { data, first, rotary_dim }
    }

    /// \[P, R\].
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    fn at(&self, position: u32) -> &[f32] {
        &self.data[(position as usize - self.first) * self.rotary_dim..][..self.rotary_dim]
    }
}

/// Where the heads to rotate stand in a row.
#[derive(Debug, Clone, Copy)]
pub struct RotatedHeads {
    /// How many, from column 0 on.
    pub heads: usize,
    /// D.
    pub head_dim: usize,
    /// Row length.
    pub stride: usize,
}

/// Rotates heads of each row of x \[T, stride\] in place; `positions` \[T\].
pub fn rope(path: KernelPath, x: &mut [f32], shape: RotatedHeads, positions: &[u32], table: &RopeTable) {
    let RotatedHeads { heads, head_dim, stride } = shape;
    assert!(
        x.len() == positions.len() * stride && heads * head_dim <= stride && table.rotary_dim <= head_dim,
        "a position for each row"
    );
    x.par_chunks_mut(ROWS * stride).zip(positions.par_chunks(ROWS)).for_each(|(x, positions)| {
        for (row, position) in x.chunks_exact_mut(stride).zip(positions) {
            rotate(path, &mut row[..heads * head_dim], head_dim, table.at(*position));
        }
    });
}

#[inline(always)]
fn rotate_body<const FMA: bool>(row: &mut [f32], head_dim: usize, cos_sin: &[f32]) {
    let half = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(half);
    for head in row.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

per_path! {
    fn rotate(row: &mut [f32], head_dim: usize, cos_sin: &[f32]) = rotate_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: transformers 5.17 `apply_rotary_pos_emb` on q = [1, 2, 3, 4], theta 10000, positions 0 and 7
    /// (angles 7 and 0.07).
    #[test]
    fn golden() {
        let want = [-1.217_057_5, 1.715_330_8, 2.918_693_3, 4.130_089_8, 9.0];
        for (head_dim, factor) in [(4, 1.0), (5, 0.5)] {
            let table = RopeTable::new(&[1.0, 0.01], factor, 0..8);
            let mut x = vec![1.0, 2.0, 3.0, 4.0, 9.0, 1.0, 2.0, 3.0, 4.0, 9.0];
            let shape = RotatedHeads { heads: 1, head_dim, stride: 5 };
            rope(KernelPath::detect(), &mut x, shape, &[0, 7], &table);
            assert_eq!(&x[..5], &[factor, 2.0 * factor, 3.0 * factor, 4.0 * factor, 9.0]);
            for (i, (got, want)) in x[5..].iter().zip(want).enumerate() {
                let want = if i < 4 { want * factor } else { want };
                assert!((got - want).abs() < 1e-6, "{got}, not {want}");
            }
        }
    }
}

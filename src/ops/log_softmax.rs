//! The output head at chosen rows: ln softmax(x · Wᵀ) of target tokens, and the most likely tokens.
//!
//! x \[R, K\], W \[V, K\]; logits may be divided and capped: cap(z) = c · tanh(z / c). Logits \[R, V\] are never held: the vocabulary is taken in chunks of 1024, each giving maximum,
//! Σ e^(logit − maximum) and the largest logits, and chunks are merged in order (Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", arXiv 1805.02867). Chunks stand at fixed tokens, so the bits of a row do not
//! depend on batch or threads.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::activation_quant::{self, ActivationQuant};
use super::buffer::Buffer;
use super::elementary;
use super::kernel_path::KernelPath;
use super::linear::{Input, SharedOut, multiply_block};
use super::microkernel::NR;
use super::packed::PackedMatrix;

/// Panels of W per chunk.
const CHUNK_PANELS: usize = 32;
/// Rows per task: their logits of one chunk are 384 KiB.
const ROWS: usize = 96;
/// Logits that are passed over together where none of them ranks.
const RANKED_AT_ONCE: usize = 32;

/// Which log-probabilities are asked of the rows.
pub struct HeadQuery<'a> {
    /// Tokens asked for, those of row 0 first, ascending within a row.
    pub targets: &'a [u32],
    /// Where each row's targets begin, and the end: \[R + 1\].
    pub offsets: &'a [usize],
    /// How many of the most likely tokens to return for each row.
    pub top_n: usize,
}

/// What becomes of the head's products before they are logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitMap {
    /// They are divided by it.
    pub divisor: f32,
    /// c of c · tanh(z / c), after the division.
    pub softcap: Option<f32>,
}

impl LogitMap {
    /// Products are logits.
    pub const IDENTITY: Self = Self { divisor: 1.0, softcap: None };

    /// From products to logits.
    pub fn apply(self, path: KernelPath, logits: &mut [f32]) {
        if self.divisor != 1.0 {
            for z in logits.iter_mut() {
                *z /= self.divisor;
            }
        }
        if let Some(cap) = self.softcap {
            elementary::softcap(path, logits, cap);
        }
    }
}

/// What the head says of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadRow {
    /// Largest logit.
    pub max: f32,
    /// ln Σ e^(logit − max).
    log_sum: f64,
    /// The most likely tokens with their logits, by logit, then by token.
    pub top: Vec<(u32, f32)>,
}

impl HeadRow {
    /// A row whose logits have this maximum and this Σ e^(logit − max).
    pub fn new(max: f32, sum: f64, top: Vec<(u32, f32)>) -> Self {
        Self { max, log_sum: sum.ln(), top }
    }

    /// ln p of a token with this logit.
    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }
}

/// One chunk of one row.
#[derive(Clone, Default)]
struct Part {
    max: f32,
    sum: f32,
    top: Vec<(u32, f32)>,
}

/// Rows of the head, and the logit of each target. x is quantized first where `quant` says so.
pub fn log_softmax(
    path: KernelPath,
    x: &[f32],
    w: &PackedMatrix,
    quant: Option<ActivationQuant>,
    map: LogitMap,
    query: &HeadQuery<'_>,
) -> (Vec<HeadRow>, Vec<f32>) {
    let rows = query.offsets.len() - 1;
    assert!(
        x.len() == rows * w.k() && query.targets.iter().all(|t| (*t as usize) < w.n()),
        "targets are tokens"
    );
    let mut target_logits = vec![0.0; query.targets.len()];
    let out = SharedOut(target_logits.as_mut_ptr());
    let mut quantized = Vec::new();
    let input = match quant {
        None => Input::new(path, x, w),
        Some(quant) if w.holds_codes() => Input::quantized(path, quant, x, w),
        Some(quant) => {
            quantized.resize(x.len(), 0.0);
            activation_quant::fake_quantize(path, quant, x, w.k(), &mut quantized);
            Input::new(path, &quantized, w)
        }
    };
    let (blocks, chunks) = (rows.div_ceil(ROWS), w.panels().div_ceil(CHUNK_PANELS));
    // Block by block, each with all its chunks.
    let parts: Vec<Vec<Part>> = (0..blocks * chunks)
        .into_par_iter()
        .map(|task| {
            let first = task / chunks * ROWS;
            let chunk = task % chunks;
            let count = ROWS.min(rows - first);
            let columns = chunk * CHUNK_PANELS * NR..((chunk + 1) * CHUNK_PANELS * NR).min(w.n());
            with_logits(path, &input, first..first + count, w, chunk, |row, logits| {
                map.apply(path, logits);
                let row = first + row;
                let (first, last) = (query.offsets[row], query.offsets[row + 1]);
                let below =
                    |token: usize| query.targets[first..last].partition_point(|t| (*t as usize) < token);
                for i in first + below(columns.start)..first + below(columns.end) {
                    // SAFETY: target i belongs to one row and its token to one chunk: one task writes it.
                    unsafe { out.at(i).write(logits[query.targets[i] as usize - columns.start]) };
                }
                let top = largest(logits, columns.start, query.top_n);
                let max = elementary::max(path, logits);
                Part { max, sum: elementary::exp_sub_sum(path, logits, max), top }
            })
        })
        .collect();
    let merged = (0..rows)
        .map(|row| merge((0..chunks).map(|c| &parts[row / ROWS * chunks + c][row % ROWS]), query.top_n));
    (merged.collect(), target_logits)
}

thread_local! {
    static LOGITS: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// Computes the logits of `rows` for one chunk and maps each row's.
fn with_logits(
    path: KernelPath,
    input: &Input<'_>,
    rows: Range<usize>,
    w: &PackedMatrix,
    chunk: usize,
    mut each: impl FnMut(usize, &mut [f32]) -> Part,
) -> Vec<Part> {
    const STRIDE: usize = CHUNK_PANELS * NR;
    let panels = chunk * CHUNK_PANELS..((chunk + 1) * CHUNK_PANELS).min(w.panels());
    let columns = STRIDE.min(w.n() - chunk * STRIDE);
    LOGITS.with_borrow_mut(|logits| {
        logits.ensure(ROWS * STRIDE);
        // Panels write at their own columns of W; shift back so that the chunk begins at column 0.
        let c = logits.as_mut_ptr().wrapping_sub(panels.start * NR);
        // SAFETY: columns panels·32.. of `c` are columns 0..STRIDE of `logits`, which this thread alone holds.
        unsafe { multiply_block(path, input, rows.clone(), w, panels, c, STRIDE) };
        (0..rows.len()).map(|row| each(row, &mut logits[row * STRIDE..][..columns])).collect()
    })
}

/// The `n` largest logits, ties by token.
pub(crate) fn largest(logits: &[f32], first_token: usize, n: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    if n == 0 {
        return top;
    }
    for (block, logits) in logits.chunks(RANKED_AT_ONCE).enumerate() {
        // A later token enters only if it is larger, which also keeps NaN out. Most blocks hold none.
        if top.len() == n
            && let Some((_, last)) = top.last()
            && logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) <= *last
        {
            continue;
        }
        for (i, logit) in logits.iter().enumerate() {
            if top.len() < n && !logit.is_nan() || top.last().is_some_and(|(_, last)| logit > last) {
                let place = top.partition_point(|(_, other)| other >= logit);
                top.insert(place, ((first_token + block * RANKED_AT_ONCE + i) as u32, *logit));
                top.truncate(n);
            }
        }
    }
    top
}

fn merge<'a>(parts: impl Iterator<Item = &'a Part> + Clone, top_n: usize) -> HeadRow {
    let max = parts.clone().map(|p| p.max).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = parts.clone().map(|p| f64::from(p.sum) * (f64::from(p.max) - f64::from(max)).exp()).sum();
    let mut top: Vec<(u32, f32)> = parts.flat_map(|p| p.top.iter().copied()).collect();
    // Stable, and parts come in token order: ties stay ordered by token.
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top.truncate(top_n);
    HeadRow::new(max, sum, top)
}

#[cfg(test)]
mod tests {
    use super::super::kernel_path::ComputeDtype;
    use super::super::linear::tests::noise;
    use super::*;

    #[test]
    fn equals_the_formula_in_f64() {
        let (rows, k, v) = (50, 24, 2100);
        let (x, w) = (noise(rows * k, 5), noise(v * k, 6));
        let packed = PackedMatrix::dense(ComputeDtype::F32, &[&w], k);
        let targets: Vec<u32> = (0..rows as u32).flat_map(|r| [r, 2099 - r]).collect();
        let offsets: Vec<usize> = (0..=rows).map(|r| 2 * r).collect();
        let query = HeadQuery { targets: &targets, offsets: &offsets, top_n: 3 };
        let maps = [LogitMap::IDENTITY, LogitMap { divisor: 3.0, softcap: Some(0.8) }];
        for (path, map) in KernelPath::available().into_iter().flat_map(|path| maps.map(|map| (path, map))) {
            let (heads, logits) = log_softmax(path, &x, &packed, None, map, &query);
            let mapped = |z: f64| {
                let z = z / f64::from(map.divisor);
                map.softcap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh())
            };
            for r in 0..rows {
                let all: Vec<f64> = (0..v)
                    .map(|t| mapped((0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[t * k + i])).sum()))
                    .collect();
                let lse = all.iter().map(|l| l.exp()).sum::<f64>().ln();
                for i in [2 * r, 2 * r + 1] {
                    let want = all[targets[i] as usize] - lse;
                    assert!((f64::from(heads[r].logprob(logits[i])) - want).abs() < 2e-6);
                }
                let mut order: Vec<u32> = (0..v as u32).collect();
                order.sort_by(|a, b| all[*b as usize].total_cmp(&all[*a as usize]));
                let top: Vec<u32> = heads[r].top.iter().map(|t| t.0).collect();
                assert_eq!(top, &order[..3]);
                assert_eq!(heads[r].max, heads[r].top[0].1);
            }
        }
    }

    #[test]
    fn one_row_has_the_bits_it_has_among_many() {
        let (rows, k, v) = (97, 40, 1500);
        let (x, w) = (noise(rows * k, 7), noise(v * k, 8));
        let packed = PackedMatrix::dense(ComputeDtype::F32, &[&w], k);
        let path = KernelPath::detect();
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 15).collect();
        let offsets: Vec<usize> = (0..=rows).collect();
        let map = LogitMap { divisor: 2.0, softcap: Some(5.0) };
        let query = HeadQuery { targets: &targets, offsets: &offsets, top_n: 2 };
        let all = log_softmax(path, &x, &packed, None, map, &query);
        for r in [0, 50, 96] {
            let query = HeadQuery { targets: &targets[r..=r], offsets: &[0, 1], top_n: 2 };
            let one = log_softmax(path, &x[r * k..][..k], &packed, None, map, &query);
            assert_eq!((&one.0[0], one.1[0]), (&all.0[r], all.1[r]));
        }
    }

    proptest::proptest! {
        /// Few values, so that there are ties; over several blocks.
        #[test]
        fn the_largest_are_those_of_a_stable_sort(
            logits in proptest::collection::vec(proptest::sample::select(vec![-2.0f32, 0.5, 1.0, 7.0, 9.0, f32::NAN]), 0..200),
            n in 0usize..40,
        ) {
            let mut order: Vec<(u32, f32)> = (100..).zip(logits.iter().copied()).filter(|(_, z)| !z.is_nan()).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1));
            order.truncate(n);
            proptest::prop_assert_eq!(largest(&logits, 100, n), order);
        }
    }

    #[test]
    fn ties_go_to_the_first_token() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, f32::NAN, 2.0], 10, 2), [(11, 3.0), (12, 3.0)]);
        assert!(largest(&[1.0], 0, 0).is_empty());
    }
}

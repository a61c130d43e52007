use super::super::kernel_path::ComputeDtype;
use super::super::linear::tests::noise;
use super::super::linear::{Columns, linear_rounded};
use super::super::packed::PackedMatrix;
use super::*;

fn buffer(values: &[f32]) -> Buffer {
    let mut b = Buffer::zeros(values.len());
    b.copy_from_slice(values);
    b
}

fn run(
    shape: HeadShape,
    qkv: &Buffer,
    cache: KeysValues<'_>,
    sequences: &[Sequence],
    segments: &[Segment],
    scores: Scores,
    path: KernelPath,
) -> Vec<f32> {
    let mut keys = Buffer::default();
    pack_keys(shape, qkv, sequences, &mut keys);
    let rows = sequences.iter().map(|s| s.rows.end).max().unwrap();
    let mut out = vec![f32::NAN; rows * shape.heads * shape.head_dim];
    attention(path, &Batch { shape, scores, qkv, keys: &keys, cache, sequences, segments }, &mut out);
    out
}

fn own(first_tile: usize, first_row: usize, len: usize) -> Segment {
    Segment { source: Source::Batch, first_tile, first_row, len }
}

const CAUSAL: Scores = Scores { scale: 0.3, softcap: None, window: None };
const CAPPED_WINDOW: Scores = Scores { scale: 0.3, softcap: Some(0.7), window: Some(20) };

#[test]
fn equals_the_formula_in_f64() {
    let rules =
        [CAUSAL, CAPPED_WINDOW, Scores { window: Some(1), ..CAUSAL }, Scores { window: Some(64), ..CAUSAL }];
    let shapes = [(4, 2, 8), (6, 2, 64), (1, 1, 48)];
    for ((heads, kv_heads, head_dim), rules) in shapes.into_iter().flat_map(|s| rules.map(|r| (s, r))) {
        let shape = HeadShape { heads, kv_heads, head_dim };
        let (rows, columns) = (75, shape.qkv_columns());
        let qkv = buffer(&noise(rows * columns, 9));
        let empty = Buffer::default();
        let cache = KeysValues { keys: &empty, values: &empty, value_stride: 1, value_column: 0 };
        let sequence = Sequence { rows: 0..rows, first_position: 0, first_tile: 0, segments: 0..1 };
        for path in KernelPath::available() {
            let out =
                run(shape, &qkv, cache, std::slice::from_ref(&sequence), &[own(0, 0, rows)], rules, path);
            for (t, h) in [(0, 0), (31, heads - 1), (74, 0), (74, heads - 1)] {
                let at = |row: usize, column: usize| {
                    qkv[row * columns + column..][..head_dim]
                        .iter()
                        .map(|x| f64::from(*x))
                        .collect::<Vec<_>>()
                };
                let kv = h / shape.group() * head_dim;
                let q = at(t, h * head_dim);
                let first = rules.window.map_or(0, |w| (t + 1).saturating_sub(w));
                let weights: Vec<f64> = (first..=t)
                    .map(|j| {
                        let k = at(j, shape.key_column() + kv);
                        let dot: f64 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
                        let score = dot * f64::from(rules.scale);
                        rules.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
                    })
                    .collect();
                for i in 0..head_dim {
                    let sum: f64 =
                        (first..=t).map(|j| weights[j - first] * at(j, shape.value_column() + kv)[i]).sum();
                    let want = sum / weights.iter().sum::<f64>();
                    let got = f64::from(out[(t * heads + h) * head_dim + i]);
                    assert!((got - want).abs() < 2e-6, "{path:?} row {t} head {h}: {got}, not {want}");
                }
            }
        }
    }
}

/// One path as one sequence, as prefix and branch of one batch, and as cache and branch: same bits.
#[test]
fn cutting_a_path_does_not_change_bits() {
    let shape = HeadShape { heads: 6, kv_heads: 2, head_dim: 40 };
    let (rows, columns) = (83, shape.qkv_columns());
    let qkv = buffer(&noise(rows * columns, 10));
    let empty = Buffer::default();
    let none = KeysValues { keys: &empty, values: &empty, value_stride: 1, value_column: 0 };
    let whole = Sequence { rows: 0..rows, first_position: 0, first_tile: 0, segments: 0..1 };
    let width = shape.heads * shape.head_dim;
    for (path, rules) in KernelPath::available().into_iter().flat_map(|p| [(p, CAUSAL), (p, CAPPED_WINDOW)]) {
        let expected = run(shape, &qkv, none, std::slice::from_ref(&whole), &[own(0, 0, rows)], rules, path);
        for cut in [1, 5, 32, 33, 64, 82] {
            let prefix = Sequence { rows: 0..cut, first_position: 0, first_tile: 0, segments: 0..1 };
            let branch =
                Sequence { rows: cut..rows, first_position: cut, first_tile: tiles_for(cut), segments: 1..3 };
            let segments = [own(0, 0, cut), own(0, 0, cut), own(tiles_for(cut), cut, rows - cut)];
            assert!(
                run(shape, &qkv, none, &[prefix, branch], &segments, rules, path) == expected,
                "cut at {cut}"
            );

            let mut keys = Buffer::zeros(tiles_for(cut) * shape.tile_len());
            let kv = shape.kv_heads * shape.head_dim;
            let mut values = Buffer::zeros(cut * kv);
            for row in 0..cut {
                write_key(shape, &mut keys, row, &qkv[row * columns + shape.key_column()..][..kv]);
                values[row * kv..][..kv].copy_from_slice(&qkv[row * columns + shape.value_column()..][..kv]);
            }
            let cache = KeysValues { keys: &keys, values: &values, value_stride: kv, value_column: 0 };
            let rest = buffer(&qkv[cut * columns..]);
            let branch = Sequence { rows: 0..rows - cut, first_position: cut, first_tile: 0, segments: 0..2 };
            let kept = Segment { source: Source::Cache, first_tile: 0, first_row: 0, len: cut };
            let out = run(shape, &rest, cache, &[branch], &[kept, own(0, 0, rows - cut)], rules, path);
            assert!(out == expected[cut * width..], "cache of {cut}");
        }
    }
}

/// Rounding at once gives the bits of rounding later, of a path and a branch of it.
#[test]
fn rounded_results_equal_results_that_are_rounded() {
    let (rows, cut, n) = (83, 37, 40);
    for head_dim in [32, 64, 96] {
        let shape = HeadShape { heads: 6, kv_heads: 2, head_dim };
        let (columns, width) = (shape.qkv_columns(), shape.heads * head_dim);
        let qkv = buffer(&noise(rows * columns, 11));
        let empty = Buffer::default();
        let cache = KeysValues { keys: &empty, values: &empty, value_stride: 1, value_column: 0 };
        let of_branch = tiles_for(cut);
        let sequences = [
            Sequence { rows: 0..cut, first_position: 0, first_tile: 0, segments: 0..1 },
            Sequence { rows: cut..rows, first_position: 20, first_tile: of_branch, segments: 1..3 },
        ];
        let segments = [own(0, 0, cut), own(0, 0, 20), own(of_branch, cut, rows - cut)];
        let mut keys = Buffer::default();
        pack_keys(shape, &qkv, &sequences, &mut keys);
        let inputs = Batch {
            shape,
            scores: CAPPED_WINDOW,
            qkv: &qkv,
            keys: &keys,
            cache,
            sequences: &sequences,
            segments: &segments,
        };
        let w = PackedMatrix::dense(ComputeDtype::Bf16, &[&noise(n * width, 12)], width);
        for path in KernelPath::available_bf16() {
            let product = |x: &RoundedRows| {
                let mut out = vec![f32::NAN; rows * n];
                let mut all = Columns { data: &mut out, stride: n, first: 0 };
                linear_rounded(path, x, rows, &w, &mut all);
                out
            };
            let mut attended = vec![0.0; rows * width];
            attention(path, &inputs, &mut attended);
            let row = |i: usize, out: &mut [f32]| out.copy_from_slice(&attended[i * width..][..width]);
            let later = product(&RoundedRows::new(path, rows, width, &row));
            assert!(later.iter().all(|y| y.is_finite()));
            assert!(product(&attention_rounded(path, &inputs)) == later, "{path:?} {head_dim}");
        }
    }
}

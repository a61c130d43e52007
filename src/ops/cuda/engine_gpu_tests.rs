//! The engine's kernels against the CPU's operations, or their formulas in f64.

use super::*;
use crate::device::cuda::test_device::device;
use crate::device::cuda::{CudaError, DeviceBuffer, DeviceSlice, Operand, Stream, WordLists};
use crate::ops::activation_quant::{self, ActivationElement, ActivationQuant};
use crate::ops::attention::{HeadShape, Scores};
use crate::ops::dequantize::Global;
use crate::ops::gated::Activation;
use crate::ops::kernel_path::KernelPath;
use crate::ops::log_softmax::LogitMap;
use crate::ops::quantize_weight::{Arithmetic, Collected, Tile, WeightQuantizer};
use crate::ops::weight_layout::WeightLayout;

/// Numbers in (−1, 1), those of bf16 where activations are.
pub(super) fn noise(len: usize, seed: u32, act: Act) -> Vec<f32> {
    let number = |i: u32| {
        let x = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761);
        let x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len as u32).map(|i| dtype(act).round(number(i))).collect()
}

fn dtype(act: Act) -> FloatDtype {
    if act == Act::Bf16 { FloatDtype::Bf16 } else { FloatDtype::F32 }
}

/// Numbers on the device.
pub(super) fn put(stream: &Stream, act: Act, x: &[f32]) -> DeviceBuffer {
    let mut bytes = Vec::new();
    for x in x {
        dtype(act).write(*x, &mut bytes);
    }
    stream.upload(&bytes).unwrap()
}

pub(super) fn put_words(stream: &Stream, x: &[u32]) -> DeviceBuffer {
    stream.upload(&x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap()
}

pub(super) fn get(stream: &Stream, act: Act, from: &DeviceBuffer, len: usize) -> Vec<f32> {
    let bytes = stream.download(from, len * act.size()).unwrap();
    let mut x = vec![0.0; len];
    dtype(act).decode(&bytes, &mut x);
    x
}

fn get_words(stream: &Stream, from: &DeviceBuffer, len: usize) -> Vec<u32> {
    let bytes = stream.download(from, len * 4).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

pub(super) fn room(stream: &Stream, bytes: usize) -> DeviceBuffer {
    DeviceBuffer::new(stream.device(), bytes).unwrap()
}

/// Fails unless all numbers agree within `tolerance` of their size, and one bf16 step where activations are bf16.
pub(super) fn close(what: &str, act: Act, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = if act == Act::Bf16 { tolerance + 0.0079 } else { tolerance };
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = tolerance * expected.abs().max(0.05);
        assert!((found - expected).abs() <= allowed, "{what} {i}: {found}, expected {expected}");
    }
}

pub(super) const ACTS: [Act; 2] = [Act::F32, Act::Bf16];

#[test]
fn rms_norm_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    for act in ACTS {
        let (rows, k) = (5, 300);
        let (mut x, y) = (noise(rows * k, 1, Act::F32), noise(rows * k, 2, act));
        let w = noise(k, 3, Act::F32);
        let (on_x, on_y, on_w) =
            (put(&stream, Act::F32, &x), put(&stream, act, &y), put(&stream, Act::F32, &w));
        let h = room(&stream, rows * k * act.size());
        let of = Normalized { act, rows, k, weight: Some(&on_w), eps: 1e-5 };
        // SAFETY: buffers live until the downloads below have synchronized the stream.
        unsafe { rms_norm(&stream, of, &on_x, Some((&on_y, 1.0)), Some(&h)).unwrap() };
        let mut expected = vec![0.0; rows * k];
        crate::ops::rms_norm::rms_norm(KernelPath::detect(), &mut x, Some(&y), &w, 1e-5, &mut expected);
        assert_eq!(get(&stream, Act::F32, &on_x, rows * k), x);
        close("norm", act, &get(&stream, act, &h, rows * k), &expected, 2e-6);

        let parts = noise(rows * 70, 4, act);
        let on_parts = put(&stream, act, &parts);
        let of = Normalized { k: 20, ..of };
        // SAFETY: as above.
        unsafe { rms_norm_parts(&stream, of, &on_parts, 70, 10..50).unwrap() };
        // SAFETY: refused.
        assert!(unsafe { rms_norm_parts(&stream, of, &on_parts, 70, 10..55) }.is_err());
        let mut expected = parts;
        let path = KernelPath::detect();
        crate::ops::rms_norm::rms_norm_parts(path, &mut expected, 70, 10..50, &w[..20], 1e-5);
        close("parts", act, &get(&stream, act, &on_parts, rows * 70), &expected, 2e-6);
    }
}

#[test]
fn rope_and_gates_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let frequencies = [1.0, 0.1, 0.01, 0.001];
    for act in ACTS {
        let (rows, heads, head_dim, stride) = (6, 3, 10, 40);
        let positions: Vec<u32> = (0..rows as u32).map(|r| 5 + r * 3).collect();
        let x = noise(rows * stride, 5, act);
        let table: Vec<f32> = (0..30u32)
            .flat_map(|p| {
                let angles = frequencies.map(|f| f64::from((5 + p) as f32 * f));
                angles.map(|a| a.cos() as f32).into_iter().chain(angles.map(|a| a.sin() as f32))
            })
            .collect();
        let (on_x, on_table) = (put(&stream, act, &x), put(&stream, Act::F32, &table));
        let on_positions = put_words(&stream, &positions);
        let columns = RotatedColumns { rows, heads, head_dim, rotary_dim: 8, stride, first_position: 5 };
        // SAFETY: buffers live until the downloads below have synchronized the stream.
        unsafe { rope(&stream, act, &on_x, columns, (&on_positions).into(), &on_table).unwrap() };
        let wide = RotatedColumns { rotary_dim: 12, ..columns };
        // SAFETY: refused.
        assert!(unsafe { rope(&stream, act, &on_x, wide, (&on_positions).into(), &on_table) }.is_err());
        let mut expected = x;
        let shape = crate::ops::rope::RotatedHeads { heads, head_dim, stride };
        let cpu_table = crate::ops::rope::RopeTable::new(&frequencies, 1.0, 5..35);
        crate::ops::rope::rope(KernelPath::detect(), &mut expected, shape, &positions, &cpu_table);
        close("rope", act, &get(&stream, act, &on_x, rows * stride), &expected, 1e-6);

        for activation in [Activation::Silu, Activation::GeluTanh] {
            let (rows, inner) = (3, 70);
            let gate_up: Vec<f32> = noise(rows * 2 * inner, 6, act).iter().map(|x| x * 4.0).collect();
            let (from, to) = (put(&stream, act, &gate_up), room(&stream, rows * inner * act.size()));
            // SAFETY: as above.
            unsafe { gated(&stream, act, activation, &from, &to, [rows, inner]).unwrap() };
            let mut expected = vec![0.0; rows * inner];
            crate::ops::gated::gated(KernelPath::detect(), activation, &gate_up, inner, &mut expected);
            close("gate", act, &get(&stream, act, &to, rows * inner), &expected, 1e-5);
        }
    }
}

#[test]
fn rows_are_embedded_and_gathered() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let table = noise(9 * 33, 7, Act::Bf16);
    let on_table = put(&stream, Act::Bf16, &table);
    let tokens = put_words(&stream, &[8, 0, 3, 3]);
    let (x, out, rows) = (room(&stream, 4 * 33 * 4), room(&stream, 2 * 33 * 4), put_words(&stream, &[1, 3]));
    // SAFETY: buffers live until the downloads below have synchronized the stream; tokens and rows exist.
    unsafe {
        embed(&stream, (&tokens).into(), (&on_table, FloatDtype::Bf16), 2.0, &x, [4, 33]).unwrap();
        gather_rows(&stream, &x, (&rows).into(), &out, [2, 33], 4).unwrap();
        assert!(embed(&stream, (&tokens).into(), (&on_table, FloatDtype::Bf16), 2.0, &x, [5, 33]).is_err());
    }
    let found = get(&stream, Act::F32, &x, 4 * 33);
    for (row, token) in [8usize, 0, 3, 3].into_iter().enumerate() {
        let expected: Vec<f32> = table[token * 33..][..33].iter().map(|x| x * 2.0).collect();
        assert_eq!(&found[row * 33..][..33], expected);
    }
    assert_eq!(get(&stream, Act::F32, &out, 66), [&found[33..66], &found[99..132]].concat());
}

#[test]
fn activations_have_the_codes_and_scales_of_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    for act in ACTS {
        let (rows, k) = (4, 130);
        let mut x = noise(rows * k, 8, act);
        x[k..2 * k].fill(0.0);
        let on_x = put(&stream, act, &x);
        let (codes, scales) = (room(&stream, rows * k), room(&stream, rows * 4));
        for element in [ActivationElement::Fp8, ActivationElement::Int8] {
            // SAFETY: buffers live until the downloads below have synchronized the stream.
            unsafe {
                quantize_tokens(&stream, (act, element, None), &on_x, &codes, &scales, [rows, k]).unwrap();
            };
            let found_codes = stream.download(&codes, rows * k).unwrap();
            let found_scales = get(&stream, Act::F32, &scales, rows);
            for row in 0..rows {
                let quant = ActivationQuant { element, group_size: None, mx: false, stored: None };
                let of_row = &x[row * k..][..k];
                let (values, scale) = activation_quant::codes(KernelPath::detect(), quant, of_row);
                assert_eq!(found_scales[row].to_bits(), scale[0].to_bits());
                for (code, value) in found_codes[row * k..][..k].iter().zip(values) {
                    let found = match element {
                        ActivationElement::Int8 => f32::from(*code as i8),
                        _ => crate::ops::fp8::e4m3_to_f32(*code),
                    };
                    assert_eq!(found, value);
                }
            }
            // SAFETY: refused.
            let refused = unsafe {
                quantize_tokens(&stream, (act, element, None), &on_x, &codes, &scales, [rows, k + 1])
            };
            assert!(refused.is_err());
        }
        x[5] = f32::NAN;
        let on_x = put(&stream, act, &x);
        // SAFETY: as above.
        unsafe {
            quantize_tokens(&stream, (act, ActivationElement::Int8, None), &on_x, &codes, &scales, [rows, k])
                .unwrap();
        }
        let scales = get(&stream, Act::F32, &scales, rows);
        assert!(scales[0].is_nan() && scales[1..].iter().all(|s| s.is_finite()), "{scales:?}");
    }
}

#[test]
fn log_softmax_over_tiles_is_that_over_all_logits() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let (rows, vocab, width) = (3, 700, 256);
    for map in [LogitMap::IDENTITY, LogitMap { divisor: 2.0, softcap: Some(3.0) }] {
        let mut logits: Vec<f32> = noise(rows * vocab, 9, Act::F32).iter().map(|x| x * 8.0).collect();
        // Equal largest logits: the lower token counts.
        (logits[vocab + 300], logits[vocab + 650]) = (20.0, 20.0);
        let targets = [0u32, 699, 300, 255, 256, 650];
        let offsets = [0u32, 2, 3, 6];
        let (on_targets, on_offsets) = (put_words(&stream, &targets), put_words(&stream, &offsets));
        let (states, target_logits) = (room(&stream, rows * 16), room(&stream, targets.len() * 4));
        for first in (0..vocab).step_by(width) {
            let columns = width.min(vocab - first);
            let mut tile = vec![f32::NAN; rows * width];
            for row in 0..rows {
                tile[row * width..][..columns].copy_from_slice(&logits[row * vocab + first..][..columns]);
            }
            let buffer = put(&stream, Act::F32, &tile);
            let tile = LogitTile { logits: &buffer, rows, stride: width, columns, first_token: first };
            // SAFETY: the stream is synchronized before the tile's buffer is dropped.
            unsafe {
                let lists = [&on_targets, &on_offsets].map(DeviceSlice::from);
                log_softmax_tile(&stream, tile, map, &states, lists, &target_logits).unwrap();
                let none = LogitTile { columns: 0, ..tile };
                let wide = LogitTile { columns: width + 1, ..tile };
                for wrong in [none, wide] {
                    assert!(log_softmax_tile(&stream, wrong, map, &states, lists, &target_logits).is_err());
                }
            }
            stream.synchronize().unwrap();
        }
        let states = RowState::read(&stream.download(&states, rows * 16).unwrap());
        let found = get(&stream, Act::F32, &target_logits, targets.len());
        for row in 0..rows {
            let z = |token: usize| {
                let z = f64::from(logits[row * vocab + token]) / f64::from(map.divisor);
                map.softcap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh())
            };
            let log_sum = (0..vocab).map(|t| z(t).exp()).sum::<f64>().ln();
            for i in offsets[row] as usize..offsets[row + 1] as usize {
                let expected = z(targets[i] as usize) - log_sum;
                let logprob = states[row].logprob(found[i]);
                assert!((f64::from(logprob) - expected).abs() < 1e-5, "{logprob} {expected}");
            }
        }
        assert_eq!(states[1].token, 300);
    }
}

/// Queries and keys whose scores are all lower by this where asked for.
const SHIFT: f32 = -150.0;

/// Sequences that continue rows of the cache and of each other, ragged, with and without window and cap, for the head
/// dimensions of models; also where scores are so low that weights beside any that were not seen would vanish.
#[test]
fn attention_is_its_formula() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let sequences = [
        DeviceSequence { first_row: 0, rows: 70, first_position: 30, keys: 0 },
        DeviceSequence { first_row: 70, rows: 5, first_position: 50, keys: 100 },
    ];
    let mut key_rows: Vec<i32> = (0..30).map(|s| -1 - s).chain(0..70).collect();
    key_rows.extend((0..30).map(|s| -1 - s).chain(0..20).chain(70..75));
    let plain = Scores { scale: 0.125, softcap: None, window: None };
    let windowed = Scores { window: Some(17), ..plain };
    let mut cases = vec![
        (64, Act::Bf16, plain, 0.0),
        (64, Act::Bf16, Scores { softcap: Some(0.9), ..windowed }, 0.0),
        (64, Act::F32, Scores { window: Some(33), ..plain }, SHIFT),
        (128, Act::Bf16, plain, SHIFT),
        (128, Act::F32, plain, 0.0),
    ];
    cases.extend([16, 64, 80, 96, 128, 256].map(|head_dim| (head_dim, Act::Bf16, windowed, SHIFT)));
    for (head_dim, act, scores, shift) in cases {
        let shape = HeadShape { heads: 4, kv_heads: 2, head_dim };
        let (rows, kept, stride) = (75, 40, shape.qkv_columns());
        let (mut qkv, mut cache) = (noise(rows * stride, 10, act), noise(kept * 4 * head_dim, 11, act));
        if shift != 0.0 {
            let key = shift / (20.0 * scores.scale);
            for row in qkv.chunks_mut(stride) {
                (0..4).for_each(|head| row[head * head_dim] = 20.0);
                (4..6).for_each(|head| row[head * head_dim] = key);
            }
            for row in cache.chunks_mut(4 * head_dim) {
                (0..2).for_each(|head| row[head * head_dim] = key);
            }
        }
        let (on_qkv, on_cache) = (put(&stream, act, &qkv), put(&stream, act, &cache));
        let out = room(&stream, rows * 4 * head_dim * act.size());
        let lists = AttentionLists::new((act, head_dim), &sequences, &key_rows).unwrap();
        let mut words = WordLists::new(&device).unwrap();
        words.replace(&stream, &lists.words()).unwrap();
        let words = [0, 1, 2].map(|list| words.list(list));
        let inputs =
            AttentionInputs { act, shape, scores, qkv: &on_qkv, cache: &on_cache, lists: &lists, words };
        // SAFETY: buffers live until the download has synchronized the stream.
        unsafe { attention(&stream, &inputs, &out).unwrap() };
        let found = get(&stream, act, &out, rows * 4 * head_dim);
        let expected = expected_attention(&qkv, &cache, &inputs, (&sequences, &key_rows));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Weights are rounded to bf16 before they are summed; low scores have a coarser spacing.
            let allowed = if act == Act::Bf16 { 6e-3 } else { 2e-6 - 2e-7 * shift };
            assert!(
                (found - expected).abs() < allowed,
                "{head_dim} {act:?} {scores:?} {i}: {found}, expected {expected}"
            );
        }
        refuses_bad_lists(&stream, &inputs, (&sequences, &key_rows), &out);
    }
}

fn expected_attention(
    qkv: &[f32],
    cache: &[f32],
    inputs: &AttentionInputs<'_>,
    (sequences, key_rows): (&[DeviceSequence], &[i32]),
) -> Vec<f32> {
    let HeadShape { heads, kv_heads, head_dim } = inputs.shape;
    let stride = inputs.shape.qkv_columns();
    let rows = sequences.iter().map(|s| s.first_row + s.rows).max().unwrap() as usize;
    let mut out = vec![0.0; rows * heads * head_dim];
    for sequence in sequences {
        for (r, head) in (0..sequence.rows as usize).flat_map(|r| (0..heads).map(move |h| (r, h))) {
            let kv = head / (heads / kv_heads);
            let row = sequence.first_row as usize + r;
            let position = sequence.first_position as usize + r;
            let first = inputs.scores.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let part = |listed: i32, part: usize| {
                if let Ok(row) = usize::try_from(listed) {
                    return &qkv[row * stride + (heads + part * kv_heads + kv) * head_dim..][..head_dim];
                }
                let slot = (-1 - listed) as usize;
                &cache[(slot * 2 * kv_heads + part * kv_heads + kv) * head_dim..][..head_dim]
            };
            let query = &qkv[row * stride + head * head_dim..][..head_dim];
            let mut sum = 0.0;
            let mut result = vec![0.0; head_dim];
            for j in first..=position {
                let listed = key_rows[sequence.keys as usize + j];
                let dot: f64 =
                    query.iter().zip(part(listed, 0)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let score = dot * f64::from(inputs.scores.scale);
                let score =
                    inputs.scores.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh());
                sum += score.exp();
                for (to, value) in result.iter_mut().zip(part(listed, 1)) {
                    *to += score.exp() * f64::from(*value);
                }
            }
            for (to, x) in out[(row * heads + head) * head_dim..].iter_mut().zip(&result) {
                *to = (x / sum) as f32;
            }
        }
    }
    out
}

/// Rows, slots, positions and heads that do not exist are refused before anything is launched.
fn refuses_bad_lists(
    stream: &Stream,
    good: &AttentionInputs<'_>,
    (sequences, key_rows): (&[DeviceSequence], &[i32]),
    out: &DeviceBuffer,
) {
    let of = (good.act, good.shape.head_dim);
    let refused = |shape: HeadShape, sequences: &[DeviceSequence], key_rows: &[i32]| {
        let result = AttentionLists::new(of, sequences, key_rows).and_then(|lists| {
            // SAFETY: refused.
            unsafe { attention(stream, &AttentionInputs { shape, lists: &lists, ..*good }, out) }
        });
        assert!(matches!(result, Err(CudaError::Argument { .. })));
    };
    for wrong in [75, -41, i32::MAX, i32::MIN] {
        let mut key_rows = key_rows.to_vec();
        key_rows[104] = wrong;
        refused(good.shape, sequences, &key_rows);
    }
    refused(good.shape, sequences, &key_rows[1..]);
    let beyond = [DeviceSequence { rows: 76, ..sequences[0] }];
    refused(good.shape, &beyond, key_rows);
    refused(HeadShape { kv_heads: 3, ..good.shape }, sequences, key_rows);
    if good.act == Act::Bf16 && good.shape.head_dim <= 128 {
        // Not for tensor cores, for which the lists were cut.
        refused(HeadShape { head_dim: 40, ..good.shape }, sequences, key_rows);
    }
}

#[test]
fn cache_rows_are_keys_and_values() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let shape = HeadShape { heads: 2, kv_heads: 1, head_dim: 16 };
    let qkv = noise(5 * 64, 12, Act::Bf16);
    let (from, cache) = (put(&stream, Act::Bf16, &qkv), put(&stream, Act::Bf16, &[0.0; 6 * 32]));
    let (rows, slots) = (put_words(&stream, &[4, 3, 1]), put_words(&stream, &[0, NO_SLOT, 5]));
    let lists = [&rows, &slots].map(DeviceSlice::from);
    // SAFETY: buffers live until the download has synchronized the stream; rows and slots exist.
    unsafe {
        store_cache(&stream, (Act::Bf16, shape), &from, &cache, lists, 3).unwrap();
        assert!(store_cache(&stream, (Act::Bf16, shape), &from, &cache, lists, 4).is_err());
    }
    let found = get(&stream, Act::Bf16, &cache, 6 * 32);
    assert_eq!((&found[..32], &found[160..]), (&qkv[4 * 64 + 32..][..32], &qkv[64 + 32..][..32]));
    assert!(found[32..160].iter().all(|x| *x == 0.0));
}

/// Sums over dequantized weights, rounded to bf16, in f64, for every kind of code and scale; the columns of a wider result
/// from a later row of the weight on.
#[test]
fn quantized_linear_layers_compute_with_dequantized_weights() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    for (name, act) in [
        ("int4_g32", Act::F32),
        ("int4_g32_asym", Act::F32),
        ("int3_g32", Act::F32),
        ("fp8_channel", Act::F32),
        ("fp8_tensor", Act::F32),
        ("fp8_block", Act::F32),
        ("nvfp4", Act::F32),
        ("mxfp4", Act::Bf16),
        ("mxfp6", Act::F32),
        ("mxfp8", Act::F32),
        ("int8_channel", Act::F32),
    ] {
        let layout = crate::ops::quantize_weight::tests::layout(name);
        let (rows, n, first, stride) = (70, 90, 50, 100);
        let k = if layout.group_size().is_some() { 160 } else { 165 };
        let weight = noise((first + n) * k, 13, Act::Bf16);
        let x = noise(rows * k, 14, Act::Bf16);
        let stored = Stored::new(&stream, &layout, [first + n, k], &weight);
        let dense = stored.dense(&stream);
        let on_x = put(&stream, Act::Bf16, &x);
        let y = put(&stream, act, &vec![7.0; rows * stride]);
        let at = Operand { buffer: &y, offset: 3 * act.size() };
        let columns = Columns { act, at, rows, n, stride };
        let of = stored.weight();
        // SAFETY: buffers live until the download has synchronized the stream.
        unsafe {
            linear_quantized(&stream, &on_x, (&of, first), columns).unwrap();
            let large = DeviceWeight { shape: [of.shape[0] * 2, k], ..of };
            for refused in [(&large, first), (&of, first + 1)] {
                let refused = linear_quantized(&stream, &on_x, refused, columns);
                assert!(matches!(refused, Err(CudaError::Argument { .. })), "{name}");
            }
            assert!(linear_quantized(&stream, &on_x, (&of, first), Columns { rows: 80, ..columns }).is_err());
        }
        let found = get(&stream, act, &y, rows * stride);
        let expected: Vec<f32> = (0..rows * stride)
            .map(|i| {
                let (row, Some(column)) = (i / stride, (i % stride).checked_sub(3).filter(|c| *c < n)) else {
                    return 7.0;
                };
                let (x, w) = (&x[row * k..][..k], &dense[(first + column) * k..]);
                let products =
                    x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(FloatDtype::Bf16.round(*b)));
                products.sum::<f64>() as f32
            })
            .collect();
        let scale = expected.iter().fold(0f32, |a, x| a.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let allowed = if act == Act::Bf16 { 0.004 * scale } else { 2e-6 * scale };
            assert!((found - expected).abs() <= allowed, "{name} {i}: {found}, expected {expected}");
        }
    }
    let groups = crate::ops::quantize_weight::tests::layout("int4_g32");
    let stored = Stored::new(&stream, &groups, [40, 96], &noise(40 * 96, 15, Act::Bf16));
    let (x, y) = (room(&stream, 96 * 2), room(&stream, 40 * 4));
    let columns = Columns { act: Act::F32, at: (&y).into(), rows: 1, n: 40, stride: 40 };
    let of = stored.weight();
    for block in [[1, 24], [0, 32], [1, 0]] {
        // SAFETY: refused.
        let refused = unsafe { linear_quantized(&stream, &x, (&DeviceWeight { block, ..of }, 0), columns) };
        assert!(matches!(refused, Err(CudaError::Argument { .. })), "{block:?}");
    }
}

/// A weight quantized by the CPU, on the device.
struct Stored {
    layout: WeightLayout,
    codes: DeviceBuffer,
    scales: DeviceBuffer,
    zero_points: DeviceBuffer,
    global: Option<Global>,
    shape: [usize; 2],
}

impl Stored {
    fn new(stream: &Stream, layout: &WeightLayout, shape: [usize; 2], weight: &[f32]) -> Self {
        let mut data = Vec::new();
        for x in weight {
            FloatDtype::Bf16.write(*x, &mut data);
        }
        let amax = FloatDtype::Bf16.amax(&data);
        let quantizer = WeightQuantizer::new(shape, FloatDtype::Bf16, layout, Arithmetic::F32, amax);
        let (mut tile, mut collected) = (Tile::default(), Collected::default());
        quantizer.quantize(0, &data, &mut tile).unwrap();
        collected.add(&tile);
        let zero_points: Vec<u8> = tile.zero_points.iter().map(|z| *z as u8).collect();
        let tensors = quantizer.finish(collected).tensors;
        let of = |suffix: &str| tensors.iter().find(|(s, _)| *s == suffix).map(|(_, bytes)| bytes.clone());
        Self {
            layout: *layout,
            codes: stream.upload(&tile.codes).unwrap(),
            scales: stream.upload(&of("weight_scale").unwrap()).unwrap(),
            zero_points: stream.upload(&zero_points).unwrap(),
            global: of("weight_global_scale")
                .map(|b| Global::Divisor(f32::from_le_bytes(b.try_into().unwrap()))),
            shape,
        }
    }

    fn weight(&self) -> DeviceWeight<'_> {
        DeviceWeight {
            coding: self.layout.coding(FloatDtype::Bf16),
            shape: self.shape,
            block: self.layout.block(self.shape),
            global: self.global,
            codes: &self.codes,
            scales: &self.scales,
            zero_points: Some(&self.zero_points),
        }
    }

    /// The dense weight by the dequantizing kernel, which has a test of its own.
    fn dense(&self, stream: &Stream) -> Vec<f32> {
        let len = self.shape[0] * self.shape[1];
        let out = room(stream, len * 4);
        let rows = 0..self.shape[0];
        // SAFETY: buffers live until the download has synchronized the stream.
        unsafe { dequantize(stream, Act::F32, &self.weight(), rows, (&out).into()).unwrap() };
        get(stream, Act::F32, &out, len)
    }
}

#[test]
fn experts_get_their_rows_and_give_them_back() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let (rows, top, count, k) = (300, 2, 5, 7);
    let experts: Vec<u32> = (0..rows as u32).flat_map(|t| [t * 7 % 5, (t * 7 + 1 + t % 3) % 5]).collect();
    let x = noise(rows * k, 16, Act::Bf16);
    let weights = noise(rows * top, 17, Act::F32);
    let (on_x, on_weights) = (put(&stream, Act::Bf16, &x), put(&stream, Act::F32, &weights));
    let on_experts = put_words(&stream, &experts);
    let (counts, places) = (room(&stream, count * 4), room(&stream, rows * top * 4));
    let (sorted, y) = (room(&stream, rows * top * k * 2), room(&stream, rows * k * 2));
    let choice = ExpertChoice { act: Act::Bf16, experts: (&on_experts).into(), rows, top, count, k };
    // SAFETY: buffers live until the downloads below have synchronized the stream; experts exist.
    unsafe {
        moe_scatter(&stream, choice, &on_x, (&counts, &places, &sorted)).unwrap();
        moe_combine(&stream, choice, (&sorted, &places, (&on_weights).into()), &y).unwrap();
        let many = ExpertChoice { rows: 1 << 24, ..choice };
        assert!(moe_scatter(&stream, many, &on_x, (&counts, &places, &sorted)).is_err());
    }
    let found = get_words(&stream, &places, rows * top);
    let mut order: Vec<usize> = (0..rows * top).collect();
    order.sort_by_key(|copy| experts[*copy]);
    let mut expected = vec![0; rows * top];
    for (place, copy) in order.iter().enumerate() {
        expected[*copy] = place as u32;
    }
    assert_eq!(found, expected);
    let found = get_words(&stream, &counts, count);
    for (expert, found) in found.iter().enumerate() {
        assert_eq!(*found as usize, experts.iter().filter(|e| **e == expert as u32).count());
    }
    let combined: Vec<f32> =
        (0..rows * k).map(|i| x[i] * (weights[i / k * 2] + weights[i / k * 2 + 1])).collect();
    close("combined", Act::Bf16, &get(&stream, Act::Bf16, &y, rows * k), &combined, 1e-3);
}

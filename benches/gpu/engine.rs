//! The engine's kernels beside products: activations of many rows in bf16.

use day0::device::cuda::{CudaError, DeviceSlice, WordLists};
use day0::ops::activation_quant::{ActivationElement, ActivationQuant};
use day0::ops::attention::{HeadShape, Scores};
use day0::ops::cuda::{
    Act, AttentionInputs, AttentionLists, DeviceSequence, ExpertChoice, LogitTile, Normalized,
    RotatedColumns, attention, embed, fake_quantize, gated, log_softmax_tile, moe_combine, moe_scatter,
    quantize_tokens, rms_norm, rope,
};
use day0::ops::float_dtype::FloatDtype;
use day0::ops::gated::Activation;
use day0::ops::log_softmax::LogitMap;

use super::measure::Bench;

const ACT: Act = Act::Bf16;

pub fn run(bench: &Bench) -> Result<(), CudaError> {
    let (rows, k) = (bench.size(16_384, 32), bench.size(4096, 64));
    quantization(bench, rows, k)?;
    elementwise(bench, rows, k)?;
    head(bench, bench.size(1024, 8), bench.size(32_768, 256))?;
    experts(bench, rows, k)?;
    for head_dim in [64, 128] {
        causal(bench, head_dim)?;
    }
    Ok(())
}

/// Activations to codes, and to codes and back.
fn quantization(bench: &Bench, rows: usize, k: usize) -> Result<(), CudaError> {
    let (x, out, scales) = (bench.bf16(rows * k)?, bench.room(2 * rows * k)?, bench.room(4 * rows)?);
    for (name, element) in [("fp8", ActivationElement::Fp8), ("int8", ActivationElement::Int8)] {
        bench.bytes(&format!("quantize_tokens {name}"), 3 * rows * k + 4 * rows, &|stream| {
            // SAFETY: all buffers live until the end, and each run waits for the stream.
            unsafe { quantize_tokens(stream, (ACT, element, None), &x, &out, &scales, [rows, k]) }
        })?;
    }
    let of = |element, group_size, mx| ActivationQuant { element, group_size, mx, stored: None };
    for (name, quant) in [
        ("fp8", of(ActivationElement::Fp8, None, false)),
        ("fp8_g128", of(ActivationElement::Fp8, Some(if bench.is_test { 32 } else { 128 }), false)),
        ("mxfp4", of(ActivationElement::Fp4, Some(32), true)),
    ] {
        bench.bytes(&format!("fake_quantize {name}"), 4 * rows * k, &|stream| {
            // SAFETY: as above.
            unsafe { fake_quantize(stream, (ACT, quant), &x, &out, [rows, k]) }
        })?;
    }
    Ok(())
}

fn elementwise(bench: &Bench, rows: usize, k: usize) -> Result<(), CudaError> {
    let (x, y, h) = (bench.f32(rows * k)?, bench.bf16(rows * k)?, bench.room(2 * rows * k)?);
    let weight = bench.f32(k)?;
    let of = Normalized { act: ACT, rows, k, weight: Some(&weight), eps: 1e-5 };
    // x is read and written, y read, h written.
    bench.bytes("rms_norm with residual", (4 + 4 + 2 + 2) * rows * k, &|stream| {
        // SAFETY: all buffers live until the end, and each run waits for the stream.
        unsafe { rms_norm(stream, of, &x, Some((&y, 0.0)), Some(&h)) }
    })?;
    let (head_dim, positions) = (64, bench.words((0..rows).map(|row| row % 512))?);
    let table = bench.f32(512 * head_dim)?;
    let columns = RotatedColumns {
        rows,
        heads: k / head_dim,
        head_dim,
        rotary_dim: head_dim,
        stride: k,
        first_position: 0,
    };
    bench.bytes("rope", 4 * rows * k, &|stream| {
        // SAFETY: as above.
        unsafe { rope(stream, ACT, &y, columns, (&positions).into(), &table) }
    })?;
    bench.bytes("gated", 3 * rows * k, &|stream| {
        // SAFETY: as above; half of the columns gate the other half.
        unsafe { gated(stream, ACT, Activation::Silu, &y, &h, [rows, k / 2]) }
    })?;
    let vocab = bench.size(128_000, 100);
    let (table, tokens) = (bench.bf16(vocab * k)?, bench.words((0..rows).map(|row| row * 7919 % vocab))?);
    bench.bytes("embed", (2 + 4) * rows * k, &|stream| {
        // SAFETY: as above; tokens are below `vocab`.
        unsafe { embed(stream, (&tokens).into(), (&table, FloatDtype::Bf16), 1.0, &x, [rows, k]) }
    })
}

/// A tile of logits, with one target a row.
fn head(bench: &Bench, rows: usize, columns: usize) -> Result<(), CudaError> {
    let (logits, states, found) = (bench.f32(rows * columns)?, bench.room(16 * rows)?, bench.room(4 * rows)?);
    let (targets, offsets) = (bench.words((0..rows).map(|row| row * 31 % columns))?, bench.words(0..=rows)?);
    let tile = LogitTile { logits: &logits, rows, stride: columns, columns, first_token: 0 };
    bench.bytes("log_softmax", 4 * rows * columns, &|stream| {
        let lists = [&targets, &offsets].map(DeviceSlice::from);
        // SAFETY: all buffers live until the end, and each run waits for the stream.
        unsafe { log_softmax_tile(stream, tile, LogitMap::IDENTITY, &states, lists, &found) }
    })
}

/// Rows to two of 64 experts each, and back.
fn experts(bench: &Bench, rows: usize, k: usize) -> Result<(), CudaError> {
    let (top, count, copies) = (2, 64, 2 * rows);
    let (x, sorted, y) = (bench.bf16(rows * k)?, bench.room(2 * copies * k)?, bench.room(2 * rows * k)?);
    let experts = bench.words((0..copies).map(|copy| copy * 37 % count))?;
    let (counts, places, weights) = (bench.room(4 * count)?, bench.room(4 * copies)?, bench.f32(copies)?);
    let choice = ExpertChoice { act: ACT, experts: (&experts).into(), rows, top, count, k };
    bench.bytes("moe_scatter", 4 * copies * k, &|stream| {
        // SAFETY: all buffers live until the end, and each run waits for the stream.
        unsafe { moe_scatter(stream, choice, &x, (&counts, &places, &sorted)) }
    })?;
    bench.bytes("moe_combine", 2 * (copies + rows) * k, &|stream| {
        // SAFETY: as above; places are those of the scattering before.
        unsafe { moe_combine(stream, choice, (&sorted, &places, (&weights).into()), &y) }
    })
}

/// Attention over sequences of equal length that share nothing.
fn causal(bench: &Bench, head_dim: usize) -> Result<(), CudaError> {
    let shape = HeadShape { heads: bench.size(32, 4), kv_heads: bench.size(8, 2), head_dim };
    let (sequences, len) = (bench.size(16, 2), bench.size(1024, 70));
    let rows = sequences * len;
    let (qkv, cache) = (bench.bf16(rows * shape.qkv_columns())?, bench.room(16)?);
    let out = bench.room(2 * rows * shape.heads * head_dim)?;
    let of = |i: usize| {
        let first = (i * len) as u32;
        DeviceSequence { first_row: first, rows: len as u32, first_position: 0, keys: first }
    };
    let key_rows: Vec<i32> = (0..rows as i32).collect();
    let lists = AttentionLists::new((ACT, head_dim), &(0..sequences).map(of).collect::<Vec<_>>(), &key_rows)?;
    let mut words = WordLists::new(bench.device())?;
    words.replace(&bench.stream, &lists.words())?;
    let words = [0, 1, 2].map(|list| words.list(list));
    let scores = Scores { scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None };
    let inputs = AttentionInputs { act: ACT, shape, scores, qkv: &qkv, cache: &cache, lists: &lists, words };
    let pairs = (sequences * len * (len + 1) / 2) as f64;
    bench.flop(
        &format!("attention of {head_dim}"),
        4.0 * (shape.heads * head_dim) as f64 * pairs,
        &|stream| {
            // SAFETY: all buffers live until the end, and each run waits for the stream.
            unsafe { attention(stream, &inputs, &out) }
        },
    )?;
    Ok(())
}

//! Prefill on the first GPU: a random llama of 1.1 B parameters over ragged batches, in bf16 and quantized to FP8, in true FLOP
//! a second beside the device's own rate of bf16 products. Without a GPU it says why.

#![expect(clippy::print_stdout, reason = "a benchmark's results are its output")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use day0::base::{atomic, threads};
use day0::checkpoint::Checkpoint;
use day0::device::cuda::{CudaError, DeviceChoice, Product, ProductKind, Products};
use day0::engine::{Engine, EngineOptions, EnginePlace};
use day0::ops::kernel_path::ComputeDtype;
use day0::quantize::{Arithmetic, QuantizePlan};
use day0::record::Provenance;
use day0::record::score::ScoreRequest;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

#[path = "gpu/measure.rs"]
mod measure;

const HIDDEN: usize = 2048;
const INNER: usize = 8192;
const LAYERS: usize = 16;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 32_000;
/// Requests of a run and their lengths: two batches of about 16 k rows.
const REQUESTS: usize = 64;
const LENGTHS: [usize; 4] = [384, 512, 640, 512];
/// M = N = K of the products whose rate is measured.
const SIDE: usize = 8192;
const RUNS: usize = 5;

/// Names and shapes of the linear modules of a layer.
fn linears(layer: usize) -> Vec<(String, [usize; 2])> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    [
        ("self_attn.q_proj", [q, HIDDEN]),
        ("self_attn.k_proj", [kv, HIDDEN]),
        ("self_attn.v_proj", [kv, HIDDEN]),
        ("self_attn.o_proj", [HIDDEN, q]),
        ("mlp.gate_proj", [INNER, HIDDEN]),
        ("mlp.up_proj", [INNER, HIDDEN]),
        ("mlp.down_proj", [HIDDEN, INNER]),
    ]
    .map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape))
    .to_vec()
}

/// Writes a checkpoint whose weights repeat one random block.
fn write(dir: &Path) -> anyhow::Result<()> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "dtype": "bfloat16"
    });
    atomic::write(&dir.join("config.json"), config.to_string().as_bytes())?;
    let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let bytes = |size: f32, around: f32, len: u32| -> Vec<u8> {
        (0..len).flat_map(|i| half::bf16::from_f32(around + size * number(i)).to_le_bytes()).collect()
    };
    let (block, ones) = (bytes(0.03, 0.0, (INNER * HIDDEN) as u32), bytes(0.1, 1.0, HIDDEN as u32));
    let table = block.repeat((VOCAB * HIDDEN).div_ceil(INNER * HIDDEN));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN], &table[..VOCAB * HIDDEN * 2]),
        ("model.norm.weight".to_owned(), vec![HIDDEN], &ones[..]),
    ];
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![HIDDEN], &ones[..]));
        }
        for (name, shape) in linears(layer) {
            tensors.push((name, shape.to_vec(), &block[..shape[0] * shape[1] * 2]));
        }
    }
    let views = tensors
        .into_iter()
        .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::BF16, shape, data)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(serialize_to_file(views, None, &dir.join("model.safetensors"))?)
}

/// FLOP a second of bf16 products of random matrices of [`SIDE`].
fn product_rate(place: &EnginePlace) -> Result<f64, CudaError> {
    let bench = measure::Bench::new(&place.devices()[0])?;
    let products = Products::new(bench.device())?;
    let [x, w] = [bench.bf16(SIDE * SIDE)?, bench.bf16(SIDE * SIDE)?];
    let y = bench.room(2 * SIDE * SIDE)?;
    let (kind, shape) = (ProductKind::Bf16, [SIDE; 3]);
    let product =
        Product { kind, x: (&x).into(), w: (&w).into(), y: (&y).into(), shape, stride: SIDE, scales: None };
    // SAFETY: the buffers live until the end, and each run waits for the stream.
    bench.flop("bf16 products", 2.0 * (SIDE as f64).powi(3), &|stream| unsafe {
        products.run(stream, &product)
    })
}

/// Quantizes a checkpoint to FP8 with dynamic inputs, on the CPU.
fn quantize(source: Checkpoint, out: &Path) -> anyhow::Result<Checkpoint> {
    let plan = QuantizePlan::new(Arc::new(source), day0::recipe::load("fp8_dynamic")?, Arithmetic::F32)?;
    let shards = (0..plan.num_shards()).map(|shard| plan.write_shard(shard, out, &|_| ()));
    plan.finish(out, shards.collect::<Result<_, _>>()?, Provenance::new(threads::detect(None)))?;
    Ok(Checkpoint::open(out)?)
}

/// FLOP of linear modules and attention over all rows of the requests. Behind the last attention only scored rows go on.
fn flop(requests: &[ScoreRequest]) -> f64 {
    let of =
        |modules: &[(String, [usize; 2])]| modules.iter().map(|(_, [n, k])| (2 * n * k) as f64).sum::<f64>();
    let modules = linears(0);
    let (linear, behind_attention) = (of(&modules) * LAYERS as f64, of(&modules[3..]));
    let attention = |len: f64| 4.0 * (HEADS * HEAD_DIM * LAYERS) as f64 * len * (len + 1.0) / 2.0;
    let of_request = |r: &ScoreRequest| {
        let (len, scored) = ((r.tokens.len() - 1) as f64, (r.tokens.len() - r.context_len) as f64);
        linear * len + attention(len) - behind_attention * (len - scored)
    };
    requests.iter().map(of_request).sum()
}

/// Tokens a second through a model, and FLOP a second.
fn prefill(
    name: &str,
    checkpoint: &Checkpoint,
    place: &EnginePlace,
    requests: &[ScoreRequest],
    rate: f64,
) -> anyhow::Result<f64> {
    let options = EngineOptions {
        dtype: ComputeDtype::Bf16,
        prefix_cache_bytes: 0,
        ..EngineOptions::at(threads::detect(None), place)
    };
    let engine = Engine::load_at(checkpoint, &options, place)?;
    let device = place.devices().first().context("a GPU that was opened")?;
    let (mut best, mut asked) = (f64::INFINITY, device.counts());
    for _ in 0..=RUNS {
        let (start, before) = (Instant::now(), device.counts());
        engine.score(requests, &|_| ())?;
        asked = device.counts() - before;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let rows: usize = requests.iter().map(|r| r.tokens.len() - 1).sum();
    let (tokens_s, flop_s) = (rows as f64 / best, flop(requests) / best);
    println!(
        "{name}: prefill of {rows} tokens: {tokens_s:.0} tokens/s, {:.1} TFLOP/s, {:.1} % of the bf16 products' rate",
        flop_s / 1e12,
        100.0 * flop_s / rate
    );
    println!("{} launches, {} copies and {} waits for them", asked.launches, asked.copies, asked.waits);
    Ok(tokens_s)
}

fn main() -> anyhow::Result<()> {
    let place = match EnginePlace::open(&DeviceChoice::Cuda(vec![0])) {
        Ok(place) => place,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    println!("{}", place.device());
    let rate = product_rate(&place)?;
    let dir = tempfile::tempdir()?;
    let [dense, fp8] = ["dense", "fp8"].map(|name| dir.path().join(name));
    for dir in [&dense, &fp8] {
        std::fs::create_dir(dir)?;
    }
    write(&dense).context("a checkpoint of 2 GB in the temporary directory")?;
    // Every request begins with another token, so that nothing is shared.
    let request = |i: usize| {
        let tokens =
            (0..=LENGTHS[i % LENGTHS.len()]).map(|t| ((i * 131 + t * 7) % VOCAB) as u32).collect::<Vec<_>>();
        ScoreRequest { context_len: tokens.len() - 1, tokens }
    };
    let requests: Vec<ScoreRequest> = (0..REQUESTS).map(request).collect();
    let in_bf16 = prefill("bf16", &Checkpoint::open(&dense)?, &place, &requests, rate)?;
    let quantized = quantize(Checkpoint::open(&dense)?, &fp8)?;
    let in_fp8 = prefill("fp8_dynamic", &quantized, &place, &requests, rate)?;
    println!("FP8 is {:.2} times as fast as bf16", in_fp8 / in_bf16);
    Ok(())
}

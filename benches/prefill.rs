//! Prefill on the first GPU: a random llama of 1.1 B parameters in bf16 over ragged batches, in true FLOP a second beside the
//! device's own rate of bf16 products. Without a GPU it says why.

#![expect(clippy::print_stdout, reason = "a benchmark's results are its output")]

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use day0::base::{atomic, threads};
use day0::checkpoint::Checkpoint;
use day0::device::cuda::{
    CudaError, DeviceBuffer, DeviceChoice, Event, Product, ProductKind, Products, Stream,
};
use day0::engine::{Engine, EngineOptions, EnginePlace};
use day0::ops::kernel_path::ComputeDtype;
use day0::record::score::ScoreRequest;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

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

/// FLOP a second of bf16 products of [`SIDE`]: the best of several.
fn product_rate(place: &EnginePlace) -> Result<f64, CudaError> {
    let device = &place.devices()[0];
    let (stream, products) = (Stream::new(device)?, Products::new(device)?);
    let matrix = || DeviceBuffer::new(device, SIDE * SIDE * 2);
    let [x, w, y] = [matrix()?, matrix()?, matrix()?];
    let events = [Event::new(device)?, Event::new(device)?];
    let shape = [SIDE; 3];
    let product = Product {
        kind: ProductKind::Bf16,
        x: (&x).into(),
        w: (&w).into(),
        y: (&y).into(),
        shape,
        stride: SIDE,
    };
    let mut best = f64::INFINITY;
    for _ in 0..RUNS + 3 {
        // SAFETY: the buffers live until the stream was synchronized.
        unsafe {
            stream.fill(&x, 0, x.len(), 0x3c)?;
            stream.fill(&w, 0, w.len(), 0x3c)?;
            stream.record(&events[0])?;
            products.run(&stream, &product)?;
            stream.record(&events[1])?;
        }
        stream.synchronize()?;
        best = best.min(f64::from(events[1].ms_since(&events[0])?) * 1e-3);
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best)
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

fn main() -> anyhow::Result<()> {
    let place = match EnginePlace::open(&DeviceChoice::Cuda(vec![0])) {
        Ok(place) => place,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let rate = product_rate(&place)?;
    println!("{} {:.1} TFLOP/s in bf16 products of {SIDE}", place.device(), rate / 1e12);
    let dir = tempfile::tempdir()?;
    write(dir.path()).context("a checkpoint of 2 GB in the temporary directory")?;
    let checkpoint = Checkpoint::open(dir.path())?;
    // Every request begins with another token, so that nothing is shared.
    let request = |i: usize| {
        let tokens =
            (0..=LENGTHS[i % LENGTHS.len()]).map(|t| ((i * 131 + t * 7) % VOCAB) as u32).collect::<Vec<_>>();
        ScoreRequest { context_len: tokens.len() - 1, tokens }
    };
    let requests: Vec<ScoreRequest> = (0..REQUESTS).map(request).collect();
    let rows: usize = requests.iter().map(|r| r.tokens.len() - 1).sum();
    let options = EngineOptions {
        dtype: ComputeDtype::Bf16,
        prefix_cache_bytes: 0,
        ..EngineOptions::at(threads::detect(None), &place)
    };
    let engine = Engine::load_at(&checkpoint, &options, &place)?;
    let mut best = f64::INFINITY;
    let device = place.devices().first().context("a GPU that was opened")?;
    let mut asked = device.counts();
    for _ in 0..=RUNS {
        let (start, before) = (Instant::now(), device.counts());
        engine.score(&requests, &|_| ())?;
        asked = device.counts() - before;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let flop_s = flop(&requests) / best;
    println!(
        "prefill of {rows} tokens: {:.0} tokens/s, {:.1} TFLOP/s, {:.1} % of the products' rate",
        rows as f64 / best,
        flop_s / 1e12,
        100.0 * flop_s / rate
    );
    println!("{} launches, {} copies and {} waits for them", asked.launches, asked.copies, asked.waits);
    Ok(())
}

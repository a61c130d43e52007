//! `day0 quantize` on a whole synthetic checkpoint, side by side with `cp` of the same files and, if asked for, with
//! llm-compressor's `model_free_ptq`; and the header scan of a checkpoint of very many tensors.
//!
//! ```text
//! cargo bench --bench checkpoint -- [--gb 2] [--memory-gb 8] [--runs 3] [--dir DIR] [--peer PYTHON] [--machine NAME]
//!     [--device cuda] [--recipe NAME]… [--program DAY0] [--out FILE]
//! ```
//!
//! Writes what it measured to `benches/runs/<date>-<machine>/checkpoint.json` and a table to standard output. Files are
//! in the page cache before anything is timed; day0 is timed as a process from start to end, with waiting for storage
//! (`sync`) taken out and shown apart, and a second time with `--no-sync`. `cp` does not wait for storage either. What
//! a run wrote is deleted and the system synced before the next. With `--device` that quantizes, and the record's account of
//! where threads spent their time is kept; the rest of the list, which says nothing of it, is left out.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "the table")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use day0::base::{atomic, clock, json};
use day0::checkpoint::writer::{ShardWriter, TensorSpec};
use half::bf16;
use safetensors::Dtype;
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// Size of the checkpoint that is timed.
    #[arg(long, default_value_t = 2.0)]
    gb: f64,
    /// Size of a second one, for the peak memory alone; 0 for none.
    #[arg(long, default_value_t = 8.0)]
    memory_gb: f64,
    /// How often each thing is timed; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where checkpoints are made.
    #[arg(long, default_value = "target/bench-checkpoints")]
    dir: PathBuf,
    /// A python with llm-compressor, to time it too.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Name of the machine in the directory of the results.
    #[arg(long, default_value = "unnamed")]
    machine: String,
    /// Where day0 quantizes.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Only these recipes.
    #[arg(long)]
    recipe: Vec<String>,
    /// A day0 built elsewhere.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_day0"))]
    program: PathBuf,
    /// The file of the results.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Every built-in recipe of 8 to 4 bits that needs no calibration, search or experts; where two differ in what they declare
/// of inputs alone, one of them.
const RECIPES: [&str; 12] = [
    "fp8_dynamic",
    "fp8_block",
    "w8a8",
    "w8a16",
    "w4a16",
    "w4a16_g64",
    "w4a16_g32",
    "w4a16_asym_g32",
    "nvfp4a16",
    "mxfp4a16",
    "mxfp6a16",
    "mxfp8a16",
];
/// The same in llm-compressor's names.
const PEERS: [(&str, &str); 3] =
    [("fp8_dynamic", "FP8_DYNAMIC"), ("w4a16", "W4A16"), ("nvfp4a16", "NVFP4A16")];

fn main() {
    let arguments = Arguments::parse();
    let source = arguments.dir.join("source");
    let mut results = BTreeMap::new();
    results.insert("machine".to_owned(), machine(&arguments));
    let bytes = llama(&source, arguments.gb);
    results.insert("source".to_owned(), json!({ "bytes": bytes }));
    let out = arguments.dir.join("out");
    // Warms the page cache and stores the digests of the source once.
    quantize(&arguments, &source, &out, &["fp8_dynamic"], true);
    let cp = median(arguments.runs, || copy(&source, &out));
    println!(
        "| what | GB/s | times cp | synced after, s | with --no-sync, GB/s | peak MiB |\n|---|---|---|---|---|---|"
    );
    println!("| cp | {:.2} | 1.00 | | | |", bytes / cp / 1e9);
    results.insert("cp".to_owned(), json!({ "seconds": cp, "gb_s": bytes / cp / 1e9 }));
    let chosen: Vec<&str> = arguments.recipe.iter().map(String::as_str).collect();
    let recipes = if chosen.is_empty() { &RECIPES[..] } else { &chosen[..] };
    for recipe in recipes {
        results.insert(format!("day0 {recipe}"), throughput(&arguments, recipe, &source, &out, (bytes, cp)));
    }
    if arguments.device == "cpu" {
        rest(&arguments, &source, &out, (bytes, cp), &mut results);
    } else {
        std::fs::remove_dir_all(&source).unwrap();
    }
    let date = &clock::now_iso8601()[..10];
    let kept = PathBuf::from(format!("benches/runs/{date}-{}/checkpoint.json", arguments.machine));
    let path = arguments.out.unwrap_or(kept);
    json::write(&path, &results).unwrap();
    println!("{}", path.display());
}

/// What is measured on the CPU alone: several recipes at once, the peer, peak memory of more, headers.
fn rest(
    arguments: &Arguments,
    source: &Path,
    out: &Path,
    (bytes, cp): (f64, f64),
    results: &mut BTreeMap<String, Value>,
) {
    let several = median(arguments.runs, || {
        quantize(arguments, source, out, &["fp8_dynamic", "w4a16", "nvfp4a16"], true)["work_s"]
            .as_f64()
            .unwrap()
    });
    println!("| three recipes, one read | {:.2} | {:.2} | | | |", bytes / several / 1e9, several / cp);
    results.insert("day0 fp8_dynamic+w4a16+nvfp4a16".to_owned(), json!({ "no_sync_seconds": several }));
    compare_with_peer(arguments, source, out, bytes, results);
    std::fs::remove_dir_all(source).unwrap();
    if arguments.memory_gb > 0.0 {
        let bytes = llama(source, arguments.memory_gb);
        for recipe in ["fp8_dynamic", "nvfp4a16"] {
            let run = quantize(arguments, source, out, &[recipe], false);
            println!(
                "| {recipe}, {:.1} GB | | | | | {:.0} |",
                bytes / 1e9,
                run["peak_memory_bytes"].as_f64().unwrap() / 1048576.0
            );
            results.insert(format!("memory {recipe}"), json!({ "bytes": bytes, "run": run }));
        }
        std::fs::remove_dir_all(source).unwrap();
    }
    let scan = header_scan(arguments);
    println!("header scan of 100,000 tensors in 200 shards: {:.3} s", scan["seconds"].as_f64().unwrap());
    results.insert("header scan".to_owned(), scan);
}

/// Quantizes by one recipe, synced and not, and prints the row; `cp` is the seconds that copying `bytes` takes.
fn throughput(
    arguments: &Arguments,
    recipe: &str,
    source: &Path,
    out: &Path,
    (bytes, cp): (f64, f64),
) -> Value {
    let mut last = Value::Null;
    let synced = median(arguments.runs, || {
        last = quantize(arguments, source, out, &[recipe], false);
        last["work_s"].as_f64().unwrap()
    });
    let unsynced = median(arguments.runs, || {
        quantize(arguments, source, out, &[recipe], true)["work_s"].as_f64().unwrap()
    });
    println!(
        "| {recipe} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
        bytes / synced / 1e9,
        unsynced / cp,
        last["sync_s"].as_f64().unwrap(),
        bytes / unsynced / 1e9,
        last["peak_memory_bytes"].as_f64().unwrap() / 1048576.0
    );
    json!({
        "seconds": synced, "gb_s": bytes / synced / 1e9, "times_cp": synced / cp, "sync_s": last["sync_s"],
        "no_sync_seconds": unsynced, "no_sync_gb_s": bytes / unsynced / 1e9, "no_sync_times_cp": unsynced / cp,
        "peak_memory_bytes": last["peak_memory_bytes"], "device": arguments.device,
        "device_seconds": last["device_seconds"],
    })
}

/// llm-compressor's tool on the same checkpoint, where its Python is given.
fn compare_with_peer(
    arguments: &Arguments,
    source: &Path,
    out: &Path,
    bytes: f64,
    results: &mut BTreeMap<String, Value>,
) {
    for (recipe, scheme) in PEERS {
        let Some(python) = &arguments.peer else { return };
        let peer = peer(python, source, out, scheme);
        let seconds = peer["seconds"].as_f64().unwrap();
        let ours = results[&format!("day0 {recipe}")]["seconds"].as_f64().unwrap();
        println!(
            "| model_free_ptq {scheme} | {:.3} | day0 is {:.1} times as fast | | | {:.0} |",
            bytes / seconds / 1e9,
            seconds / ours,
            peer["peak_memory_bytes"].as_f64().unwrap() / 1048576.0
        );
        results.insert(format!("model_free_ptq {scheme}"), peer);
    }
}

fn median(runs: usize, mut time: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..runs.max(1)).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Removes what the last run wrote and waits until nothing is on its way to storage.
fn clean(out: &Path) {
    let _ = std::fs::remove_dir_all(out);
    assert!(Command::new("sync").status().unwrap().success());
}

/// Seconds of `cp` of the weight files.
fn copy(source: &Path, out: &Path) -> f64 {
    clean(out);
    std::fs::create_dir_all(out).unwrap();
    let files = std::fs::read_dir(source).unwrap().map(|e| e.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    let start = Instant::now();
    assert!(Command::new("cp").args(&files).arg(out).status().unwrap().success());
    let seconds = start.elapsed().as_secs_f64();
    clean(out);
    seconds
}

/// One run of `day0 quantize`: `work_s` without waiting for storage, `sync_s`, `peak_memory_bytes`, `device_seconds`.
fn quantize(arguments: &Arguments, source: &Path, out: &Path, recipes: &[&str], no_sync: bool) -> Value {
    clean(out);
    let mut command = Command::new(&arguments.program);
    command.arg("quantize").arg(source).arg("--out").arg(out).args(["--json", "--quiet"]);
    command.args(["--device", &arguments.device]);
    for recipe in recipes {
        command.args(["--recipe", recipe]);
    }
    if no_sync {
        command.arg("--no-sync");
    }
    let start = Instant::now();
    let output = command.output().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let records = printed.as_array().cloned().unwrap_or_else(|| vec![printed]);
    let sync_s: f64 = records.iter().filter_map(|r| r["sync_s"].as_f64()).sum();
    let peak = records.iter().filter_map(|r| r["provenance"]["timing"]["peak_memory_bytes"].as_u64()).max();
    clean(out);
    // Of the recipes together: they share devices and threads.
    let device_seconds = records.first().map_or(Value::Null, |r| r["device_seconds"].clone());
    json!({
        "work_s": seconds - sync_s, "sync_s": sync_s, "peak_memory_bytes": peak, "device_seconds": device_seconds,
    })
}

fn peer(python: &Path, source: &Path, out: &Path, scheme: &str) -> Value {
    clean(out);
    let script = "benches/peers/model_free_ptq.py";
    let output = Command::new(python).arg(script).arg(source).arg(out).arg(scheme).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    clean(out);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// A llama of realistic layer shapes and about so many GB in files of half a GB; returns the bytes of its tensors.
fn llama(dir: &Path, gb: f64) -> f64 {
    const HIDDEN: usize = 2048;
    const FEED_FORWARD: usize = 8192;
    const KV: usize = 512;
    const VOCABULARY: usize = 16_000;
    let layer = [
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![KV, HIDDEN]),
        ("self_attn.v_proj", vec![KV, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![FEED_FORWARD, HIDDEN]),
        ("mlp.up_proj", vec![FEED_FORWARD, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, FEED_FORWARD]),
    ];
    let of_layer: usize = layer.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum();
    let layers = ((gb * 1e9 - (2 * VOCABULARY * HIDDEN) as f64) / of_layer as f64).ceil().max(1.0) as usize;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for l in 0..layers {
        tensors.extend(layer.iter().map(|(n, s)| (format!("model.layers.{l}.{n}.weight"), s.clone())));
    }
    let noise = noise(FEED_FORWARD * HIDDEN);
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers,
        "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": VOCABULARY, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5});
    write_checkpoint(dir, &tensors, 4 * layers.div_ceil(16), &config, &|at, bytes| {
        // Another part of the noise for each tensor, of which a larger one takes several turns.
        let start = at * 7919 * 2 % noise.len();
        let whole: Vec<u8> =
            noise[start..].iter().chain(&noise).chain(&noise).chain(&noise).take(bytes).copied().collect();
        whole
    })
}

/// Bell-shaped bf16 values, as bytes.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count)
        .flat_map(|_| bf16::from_f32((0..4).map(|_| uniform()).sum::<f32>() * 0.035).to_le_bytes())
        .collect()
}

/// Writes bf16 tensors in so many shards; returns the bytes of the tensors.
fn write_checkpoint(
    dir: &Path,
    tensors: &[(String, Vec<usize>)],
    shards: usize,
    config: &Value,
    data: &dyn Fn(usize, usize) -> Vec<u8>,
) -> f64 {
    let _ = std::fs::remove_dir_all(dir);
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for (shard, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let specs: Vec<TensorSpec> = part
            .iter()
            .map(|(name, shape)| TensorSpec { name: name.clone(), dtype: Dtype::BF16, shape: shape.clone() })
            .collect();
        let out = atomic::AtomicFile::create(&dir.join(&file)).unwrap();
        let mut writer = ShardWriter::new(out, &specs, &BTreeMap::new()).unwrap();
        for (i, (name, shape)) in part.iter().enumerate() {
            let bytes = data(i + shard, 2 * shape.iter().product::<usize>());
            total += bytes.len();
            writer.write_tensor(name, &bytes).unwrap();
            weight_map.insert(name.clone(), file.clone());
        }
        writer.finish().unwrap().0.commit().unwrap();
    }
    json::write(
        &dir.join("model.safetensors.index.json"),
        &json!({"metadata": {}, "weight_map": weight_map}),
    )
    .unwrap();
    json::write(&dir.join("config.json"), config).unwrap();
    total as f64
}

/// `day0 scan` of a checkpoint with 100,000 small tensors in 200 shards: what costs is the headers.
fn header_scan(arguments: &Arguments) -> Value {
    let dir = arguments.dir.join("headers");
    // As a mixture of experts: 130 layers of 256 experts with 3 tensors each.
    let tensors: Vec<(String, Vec<usize>)> = (0..100_000)
        .map(|i| {
            let name = ["gate_proj", "up_proj", "down_proj"][i % 3];
            (format!("model.layers.{}.mlp.experts.{}.{name}.weight", i / 768, i / 3 % 256), vec![8, 16])
        })
        .collect();
    let config = json!({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "torch_dtype": "bfloat16"});
    write_checkpoint(&dir, &tensors, 200, &config, &|_, bytes| vec![0x3c; bytes]);
    let seconds = median(arguments.runs, || {
        let start = Instant::now();
        let output = Command::new(&arguments.program)
            .arg("scan")
            .arg(&dir)
            .args(["--json", "--quiet"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        start.elapsed().as_secs_f64()
    });
    std::fs::remove_dir_all(&dir).unwrap();
    json!({ "tensors": tensors.len(), "shards": 200, "seconds": seconds })
}

/// The last part of a path; anything else as it is.
fn file_name(argument: &str) -> String {
    argument.rsplit('/').next().unwrap_or(argument).to_owned()
}

fn machine(arguments: &Arguments) -> Value {
    let run = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    json!({
        "name": arguments.machine, "date": clock::now_iso8601(), "uname": run("uname", &["-srm"]),
        "cpu": run("sh", &["-c", "grep -m1 'model name' /proc/cpuinfo; nproc"]), "load": run("cat", &["/proc/loadavg"]),
        "commit": run("git", &["rev-parse", "HEAD"]), "command": std::env::args().map(|a| file_name(&a)).collect::<Vec<_>>(),
    })
}

//! The built-in engine on a real model: whole evaluations, loading, prefill; side by side with lm-eval, transformers and
//! llama.cpp where they are given.
//!
//! ```text
//! cargo bench --bench scoring -- --model DIR --data DIR [--quantized NAME=DIR,…] [--limit 200] [--runs 3]
//!     [--peer PYTHON] [--peer-eval COMMAND] [--gguf FILE] [--machine NAME]
//! ```
//!
//! `COMMAND` is run by the shell with `DTYPE` set to float32 or bfloat16, and timed as a process, as `day0 eval` is. Writes
//! `benches/runs/<date>-<machine>/scoring.json` and prints what it measures.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "the results")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use day0::base::threads;
use day0::checkpoint::Checkpoint;
use day0::engine::{Engine, EngineOptions};
use day0::ops::kernel_path::{ComputeDtype, KernelPath};
use day0::record::score::ScoreRequest;
use serde_json::{Value, json};

mod report;

#[derive(Parser)]
struct Arguments {
    /// Checkpoint in bf16.
    #[arg(long)]
    model: PathBuf,
    /// The same model quantized: NAME=DIR.
    #[arg(long, value_delimiter = ',')]
    quantized: Vec<String>,
    /// Directory of evaluation data, for whole evaluations.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Tasks.
    #[arg(long, default_value = "hellaswag,arc_easy")]
    suite: String,
    /// Items of each task.
    #[arg(long, default_value_t = 200)]
    limit: usize,
    /// Whole evaluations of each kind; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Length of the prompt.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// A python with transformers.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Command of the other evaluation.
    #[arg(long)]
    peer_eval: Option<String>,
    /// The model for llama.cpp, where the python has its bindings.
    #[arg(long, value_delimiter = ',')]
    gguf: Vec<String>,
    /// Name of the machine in the directory of the results.
    #[arg(long, default_value = "unnamed")]
    machine: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let mut results = BTreeMap::from([("machine".to_owned(), report::machine(&arguments.machine))]);
    let mut add = |name: String, value: Value| {
        println!("{name}: {value}");
        results.insert(name, value);
    };
    // What plain vectors emulate is no competitor.
    let slow = ["portable", "avx2", "bf16-avx512"];
    for path in KernelPath::all().into_iter().filter(|p| !slow.iter().any(|end| p.name().ends_with(end))) {
        add(format!("prefill {}", path.name()), prefill(&arguments.model, path, arguments.tokens));
    }
    for (name, dir) in arguments.quantized.iter().filter_map(|q| q.split_once('=')) {
        let path = KernelPath::best(ComputeDtype::Bf16);
        add(format!("prefill {name} {}", path.name()), prefill(Path::new(dir), path, arguments.tokens));
    }
    let call = |first: &str| {
        [first.to_owned(), arguments.tokens.to_string(), threads::detect(None).count.to_string()]
    };
    if let Some(python) = &arguments.peer {
        for isa in [None, Some("AVX512_CORE_BF16")] {
            let environment: Vec<(&str, &str)> =
                isa.map(|isa| ("ONEDNN_MAX_CPU_ISA", isa)).into_iter().collect();
            let call = call(arguments.model.to_str().unwrap());
            if let Some(rates) = report::peer(python, "prefill.py", &call, &environment) {
                add(format!("prefill transformers {}", isa.unwrap_or("default")), rates);
            }
        }
        for file in &arguments.gguf {
            if let Some(rates) = report::peer(python, "llama_prefill.py", &call(file), &[]) {
                add(format!("prefill llama.cpp {file}"), rates);
            }
        }
    }
    for (dtype, theirs) in [("bf16", "bfloat16"), ("f32", "float32")] {
        if let Some(data) = &arguments.data {
            add(format!("eval {dtype}"), evaluation(&arguments, &arguments.model, data, dtype));
        }
        if let Some(command) = &arguments.peer_eval {
            let start = Instant::now();
            let status = Command::new("sh").arg("-c").arg(command).env("DTYPE", theirs).status().unwrap();
            assert!(status.success(), "{command}");
            add(format!("eval peer {theirs}"), json!({ "seconds": start.elapsed().as_secs_f64() }));
        }
    }
    for (name, dir) in arguments.quantized.iter().filter_map(|q| q.split_once('=')) {
        if let Some(data) = &arguments.data {
            add(format!("eval {name} bf16"), evaluation(&arguments, Path::new(dir), data, "bf16"));
        }
    }
    report::write(&arguments.machine, "scoring.json", &results);
}

/// Seconds to load from the page cache, and tokens a second of one prompt whose last token alone is scored.
fn prefill(dir: &Path, path: KernelPath, tokens: usize) -> Value {
    let checkpoint = Checkpoint::open(dir).unwrap();
    // No prompt finds another's keys and values.
    let options = EngineOptions { prefix_cache_bytes: 0, ..EngineOptions::new(threads::detect(None)) };
    let load = || {
        let start = Instant::now();
        let engine = Engine::load_with(&checkpoint, &options, path).unwrap();
        (engine, start.elapsed().as_secs_f64())
    };
    drop(load());
    let (engine, load_s) = load();
    let vocab = engine.vocab_size() as u32;
    let mut seconds: Vec<f64> = (0..11)
        .map(|i| {
            // The last token is a target only.
            let ids: Vec<u32> = (0..=tokens as u32).map(|t| (100 + t + i) % vocab).collect();
            let request = ScoreRequest { context_len: tokens, tokens: ids };
            let start = Instant::now();
            engine.score(std::slice::from_ref(&request), &|_| ()).unwrap();
            start.elapsed().as_secs_f64()
        })
        .skip(2)
        .collect();
    seconds.sort_by(f64::total_cmp);
    json!({ "tokens_s": tokens as f64 / seconds[4], "best": tokens as f64 / seconds[0], "load_s": load_s })
}

/// `day0 eval` as a process: seconds, and its peak memory.
fn evaluation(arguments: &Arguments, model: &Path, data: &Path, dtype: &str) -> Value {
    let out = std::env::temp_dir().join(format!("day0-bench-scoring-{}", std::process::id()));
    let mut seconds = Vec::new();
    let mut record = Value::Null;
    for _ in 0..arguments.runs.max(1) {
        let _ = std::fs::remove_dir_all(&out);
        let start = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_day0"))
            .args(["eval", "--quiet", "--dtype", dtype, "--suite", &arguments.suite])
            .args(["--limit", &arguments.limit.to_string()])
            .arg("--model")
            .arg(model)
            .arg("--data")
            .arg(data)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        seconds.push(start.elapsed().as_secs_f64());
        record = serde_json::from_slice(&std::fs::read(out.join("record.json")).unwrap()).unwrap();
    }
    let _ = std::fs::remove_dir_all(&out);
    seconds.sort_by(f64::total_cmp);
    json!({
        "seconds": seconds[seconds.len() / 2], "all": seconds,
        "peak_memory_bytes": record["provenance"]["timing"]["peak_memory_bytes"],
        "kernel_path": record["identity"]["kernel_path"],
    })
}

//! Linear layers of every kernel path, side by side with candle's f32 product (the `gemm` crate) and, where its Python is
//! given, with torch (oneDNN), with and without matrix tiles.
//!
//! ```text
//! cargo bench --bench gemm -- [--threads 1,2] [--shapes 512x576x1536,…] [--peer PYTHON] [--machine NAME]
//! ```
//!
//! Rates are GFLOP/s of x \[M, K\] · Wᵀ \[N, K\], inputs in f32 (rounding or quantizing them is part of the time), medians.
//! Writes `benches/runs/<date>-<machine>/gemm.json` and prints a table.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(clippy::print_stdout, reason = "the table")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use clap::Parser;
use day0::checkpoint::CheckpointError;
use day0::ops::activation_quant::{ActivationElement, ActivationQuant};
use day0::ops::coded::{CodeGrid, GroupedRows};
use day0::ops::kernel_path::{ComputeDtype, KernelPath};
use day0::ops::linear::{Columns, linear, linear_codes};
use day0::ops::packed::{CodeKind, CodeRows, PackedMatrix};
use serde_json::{Value, json};

mod report;

#[derive(Parser)]
struct Arguments {
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// M x K x N of each product.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "512x576x1536,1024x1024x1024,512x576x49152,512x1536x576,256x576x1536,32x576x1536,8x576x1536,1x576x1536,1x576x49152"
    )]
    shapes: Vec<String>,
    /// A python with torch, to time it too.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Name of the machine in the directory of the results.
    #[arg(long, default_value = "unnamed")]
    machine: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Numbers of mixed sign below 1.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A weight as codes.
struct Codes {
    numbers: Vec<f32>,
    k: usize,
    grid: CodeGrid,
    group: usize,
}

impl CodeRows for Codes {
    fn count(&self) -> usize {
        self.numbers.len() / self.k
    }

    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        out.copy_from_slice(&self.numbers[rows.start * self.k..rows.end * self.k]);
        Ok(())
    }

    fn scales(&self) -> Result<Vec<f32>, CheckpointError> {
        Ok(vec![0.01; CodeRows::count(self)])
    }
}

impl GroupedRows for Codes {
    fn count(&self) -> usize {
        CodeRows::count(self)
    }

    fn grid(&self) -> CodeGrid {
        self.grid
    }

    fn group(&self) -> usize {
        self.group
    }

    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        CodeRows::codes(self, rows, out)
    }

    fn scales(&self, _row: usize, out: &mut [(f32, f32)]) -> Result<(), CheckpointError> {
        out.fill((0.01, 0.0));
        Ok(())
    }
}

fn shape(text: &str) -> [usize; 3] {
    let sizes: Vec<usize> = text.split('x').map(|n| n.parse().unwrap()).collect();
    sizes.try_into().unwrap()
}

fn main() {
    let arguments = Arguments::parse();
    let mut results = BTreeMap::from([("machine".to_owned(), report::machine(&arguments.machine))]);
    for threads in &arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(*threads).build().unwrap();
        let mut rates: BTreeMap<String, f64> = BTreeMap::new();
        for shape in &arguments.shapes {
            pool.install(|| measure(shape, &mut rates));
        }
        let mut peers = Vec::new();
        if let Some(python) = &arguments.peer {
            for isa in ["default", "AVX512_CORE_BF16"] {
                let call: Vec<String> =
                    std::iter::once(threads.to_string()).chain(arguments.shapes.iter().cloned()).collect();
                // oneDNN knows no ISA called default and warns, so it is not set then.
                let environment: &[(&str, &str)] =
                    if isa == "default" { &[] } else { &[("ONEDNN_MAX_CPU_ISA", isa)] };
                peers.extend(report::peer(python, "gemm.py", &call, environment));
            }
        }
        print(*threads, &arguments.shapes, &rates, &peers);
        results.insert(format!("{threads} threads"), json!({ "day0": rates, "peers": peers }));
    }
    report::write(&arguments.machine, "gemm.json", &results);
}

/// Rates of one shape on the current pool.
fn measure(text: &str, rates: &mut BTreeMap<String, f64>) {
    let [m, k, n] = shape(text);
    let (x, w) = (noise(m * k), noise(n * k));
    let mut out = vec![0.0; m * n];
    let giga = 2.0 * m as f64 * k as f64 * n as f64 / 1e9;
    let mut time = |name: &str, f: &mut dyn FnMut(&mut Columns<'_>)| {
        let seconds = report::median_seconds(|| {
            f(&mut Columns { data: &mut out, stride: n, first: 0 });
        });
        rates.insert(format!("{text} {name}"), giga / seconds);
    };
    for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let packed = PackedMatrix::dense(dtype, &[&w], k);
        let paths = match dtype {
            ComputeDtype::F32 => KernelPath::available(),
            ComputeDtype::Bf16 => KernelPath::available_bf16(),
        };
        // The plainest kernels are no competitors.
        for path in paths.into_iter().filter(|p| !p.name().ends_with("portable")) {
            time(path.name(), &mut |out| linear(path, &x, m, &packed, out));
        }
    }
    let codes: Vec<f32> = w.iter().map(|w| (w * 127.0).round()).collect();
    let int8 = Codes { numbers: codes, k, grid: CodeGrid::Int8, group: k };
    let packed = PackedMatrix::pack_codes(CodeKind::Int8, &[&int8], k).unwrap();
    let quant =
        ActivationQuant { element: ActivationElement::Int8, group_size: None, mx: false, stored: None };
    let best = KernelPath::best(ComputeDtype::Bf16);
    time("w8a8", &mut |out| linear_codes(best, quant, &x, m, &packed, out));
    for (name, grid, group) in [
        ("int4 g32", CodeGrid::Int4, 32),
        ("int8 g32", CodeGrid::Int8, 32),
        ("nvfp4", CodeGrid::E2m1, 16),
        ("fp8", CodeGrid::E4m3, k),
    ] {
        // Numbers that every grid has.
        let codes = w.iter().map(|w| (w * 2.0).round()).collect();
        let rows = Codes { numbers: codes, k, grid, group };
        let packed = PackedMatrix::pack_grouped(&[&rows], k).unwrap().unwrap();
        time(name, &mut |out| linear(best, &x, m, &packed, out));
    }
    let of = |data: &[f32], shape: (usize, usize)| {
        candle_core::Tensor::from_slice(data, shape, &candle_core::Device::Cpu).unwrap()
    };
    let (a, b) = (of(&x, (m, k)), of(&w, (n, k)).t().unwrap());
    time("candle f32", &mut |_| drop(std::hint::black_box(a.matmul(&b).unwrap())));
}

fn print(threads: usize, shapes: &[String], rates: &BTreeMap<String, f64>, peers: &[Value]) {
    println!("{threads} threads, GFLOP/s (GOP/s)");
    for shape in shapes {
        println!("  {shape}");
        for (name, rate) in rates.iter().filter_map(|(n, r)| Some((n.strip_prefix(&format!("{shape} "))?, r)))
        {
            println!("    {name:<24} {rate:>9.1}");
        }
        for peer in peers {
            for dtype in ["f32", "bf16", "int8"] {
                if let Some(rate) = peer["rates"][format!("{shape} {dtype}")].as_f64() {
                    println!(
                        "    torch {dtype:<5} {:<12} {rate:>9.1}",
                        peer["isa"].as_str().unwrap_or_default()
                    );
                }
            }
        }
    }
}

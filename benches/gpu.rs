//! Every kernel on the first GPU, in true bytes a second beside the device's own copy bandwidth, or in FLOP a second beside
//! its rate of bf16 products. Without a GPU it says why. `--test` runs each once on small shapes.

#![expect(clippy::print_stdout, reason = "a benchmark's results are its output")]

use std::process::ExitCode;

use day0::device::cuda::{CudaError, Device};

#[path = "gpu/engine.rs"]
mod engine;
#[path = "gpu/measure.rs"]
mod measure;
#[path = "gpu/products.rs"]
mod products;
#[path = "gpu/weights.rs"]
mod weights;

fn run() -> Result<(), CudaError> {
    let device = Device::open(0)?;
    println!("{device:?} {}", device.architecture());
    let mut bench = measure::Bench::new(&device)?;
    let size = bench.size(1 << 30, 1 << 16);
    let (from, to) = (bench.room(size)?, bench.room(size)?);
    // SAFETY: both buffers live until the end, and each run waits for the stream.
    let seconds = bench.seconds(&|stream| unsafe { stream.copy((&from, 0), (&to, 0), size) })?;
    bench.copying = 2.0 * size as f64 / seconds;
    println!("{:<28} {:>8.1} GB/s", "copy", bench.copying / 1e9);
    drop((from, to));
    weights::run(&bench)?;
    products::run(&mut bench)?;
    engine::run(&bench)
}

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    if matches!(error, CudaError::NoDriver | CudaError::NoDevice { .. } | CudaError::NoCompiler { .. }) {
        println!("skipped: {error}");
        return ExitCode::SUCCESS;
    }
    println!("failed: {error}");
    ExitCode::FAILURE
}

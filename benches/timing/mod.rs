//! Timing of small functions: warm-up, then samples of many calls; median, fastest and spread.
//!
//! `cargo bench NAME` runs the benchmarks whose name holds NAME; under `cargo test` each function is called once.

#![expect(clippy::print_stdout, reason = "a benchmark's results are its output")]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Time to fill caches and let the clock settle.
const WARM_UP: Duration = Duration::from_millis(300);
/// Length of one sample; far above the clock's resolution.
const SAMPLE: Duration = Duration::from_millis(20);
/// Samples of each benchmark.
const SAMPLES: usize = 50;

/// Calls `f` repeatedly and prints the time of a call and the rate at which it takes in `bytes`.
pub fn throughput<T>(name: &str, bytes: u64, mut f: impl FnMut() -> T) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--test") {
        black_box(f());
        return;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
        return;
    }
    let start = Instant::now();
    let mut warm_up_calls = 0u32;
    while start.elapsed() < WARM_UP {
        black_box(f());
        warm_up_calls += 1;
    }
    let one_call = start.elapsed().as_secs_f64() / f64::from(warm_up_calls);
    let calls = (SAMPLE.as_secs_f64() / one_call).ceil().max(1.0) as u32;
    let mut seconds: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                black_box(f());
            }
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[(share * (SAMPLES - 1) as f64) as usize];
    let rate = bytes as f64 / at(0.5) / 1e9;
    println!(
        "{name:<32} median {:>10.3} us   fastest {:>10.3} us   quartiles {:.3}–{:.3} us   {rate:.3} GB/s",
        at(0.5) * 1e6,
        at(0.0) * 1e6,
        at(0.25) * 1e6,
        at(0.75) * 1e6,
    );
}

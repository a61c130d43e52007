//! Feeds mutated inputs to every parser for so many seconds, on any compiler: the long run of `fuzz/`.
//!
//! `cargo run --release --example fuzz -- SECONDS [SEED]`; inputs that make a parser panic are printed in hexadecimal.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "../../fuzz/mutate.rs"]
mod mutate;
#[path = "../../fuzz/parsers.rs"]
mod parsers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map_while(|a| a.parse::<u64>().ok());
    let seconds = arguments.next().unwrap_or(60);
    let seed = arguments.next().unwrap_or(0);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let seeds = mutate::seeds();
    let begun = Instant::now();
    let (mut runs, mut findings, mut slowest) = ([0u64; parsers::PARSERS.len()], 0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let input = mutate::mutate(&mut rng, &seeds);
        let Some(first) = input.first() else { continue };
        runs[usize::from(*first) % parsers::PARSERS.len()] += 1;
        let one = Instant::now();
        if std::panic::catch_unwind(|| parsers::parse(&input)).is_err() {
            findings += 1;
            println!("panics on {input:02x?}");
        }
        slowest = slowest.max(one.elapsed());
    }
    let total: u64 = runs.iter().sum();
    println!(
        "{total} inputs in {seconds} s from seed {seed} (header, index, config, recipe, GGUF: {runs:?}): {findings} \
         panics, the slowest input took {slowest:?}"
    );
    if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! Makes `models/day0-tiny` and `suites/day0-tiny`: corpus, tokenizer, weights and task data from one seed.
//!
//! ```text
//! cargo run --release --example train_tiny
//! ```
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool reports its progress")]

mod card;
mod check;
mod files;
mod pipeline;
mod schemes;
mod tasks;
mod tokenizer;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use day0::ready::train::{corpus, fused, generator, model, tokens, trainer, words};
use pipeline::Options;
use trainer::Schedule;

/// Trains the embedded default model and writes its evaluation tasks.
#[derive(Parser)]
struct Args {
    /// Optimizer steps
    #[arg(long, default_value_t = Options::default().schedule.steps)]
    steps: usize,
    /// Rows a step
    #[arg(long, default_value_t = Options::default().schedule.batch)]
    batch: usize,
    /// Predicted tokens a row
    #[arg(long, default_value_t = Options::default().schedule.seq_len)]
    seq_len: usize,
    /// Largest vocabulary
    #[arg(long, default_value_t = Options::default().vocab)]
    vocab: usize,
    /// Seed of world, corpus, tasks and weights
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
    /// Peak learning rate
    #[arg(long, default_value_t = Options::default().schedule.lr)]
    lr: f64,
    /// Worker threads
    #[arg(long, default_value_t = Options::default().schedule.threads)]
    threads: usize,
    /// Directory that gets models/ and suites/
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Measure the model in place instead of training
    #[arg(long)]
    check_only: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Args { steps, batch, seq_len, lr, threads, .. } = args;
    let options = Options {
        schedule: Schedule { steps, batch, seq_len, lr, threads },
        vocab: args.vocab,
        seed: args.seed,
        out: args.out,
        ..Options::default()
    };
    if args.check_only {
        println!("{}", pipeline::check_only(&options)?);
    } else {
        pipeline::run(&options, &mut |line| eprintln!("{line}"))?;
    }
    Ok(())
}

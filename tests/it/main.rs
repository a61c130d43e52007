//! The integration tests, one binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests write damaged files and say what they skip"
)]

mod bad_input;
mod calibration;
mod chain;
mod common;
mod compare;
mod cuda;
mod endpoints;
mod eval_resume;
mod fake_engine;
mod fake_vllm;
mod fuzz;
mod groups;
mod hub;
mod launched;
mod quantize_target;
mod ready;
mod ready_container;
mod ready_runtime;
mod resume;
mod scan;
mod serving;
mod single_stage;
mod slurm;
mod streaming;
mod tidy;
mod train_tiny;

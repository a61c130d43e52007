//! Layer 9: the conductor. It registers the units of all stages and sequences them; every decision is a gate's.

mod arm;
pub mod calibrate_units;
mod closeout;
mod conductor;
mod decided;
mod eval_units;
mod execution;
mod graph;
mod jobs;
mod last_looks;
mod launch;
mod noise_units;
mod preflight;
mod readiness;
mod ready_units;
mod stage_lines;
mod waves;

pub mod config;
pub mod keys;
pub mod power;
pub mod quantize_units;
pub mod run_dir;
pub mod score_units;
pub mod slurm;
pub mod status;

pub use arm::ArmEngine;
pub use closeout::remove_volatile;
pub use conductor::{Ending, Request, plan, prefetch, run};
pub use decided::Decided;
pub use preflight::{prepare, program_digest};
pub use run_dir::{JUNIT_FILE, SUMMARY_FILE};

//! Layer 5: stage 1: a recipe applied to a checkpoint.
//!
//! [`QuantizePlan::new`] checks everything that headers can tell, before anything is written. Shards of the output
//! mirror those of the source and are independent units of work; [`QuantizePlan::finish`] writes what is left.

pub mod calibration;
mod config;
mod error;
mod finish;
mod gpu;
mod modelopt;
mod output;
mod plan;
pub mod preflight;
mod sample;
mod shard;
mod work;

pub use crate::ops::quantize_weight::Arithmetic;
pub use error::QuantizeError;
pub use gpu::Gpus;
pub use plan::QuantizePlan;
pub use shard::{Durability, ShardTarget, write_shards};

#[cfg(test)]
mod modelopt_tests;
#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;

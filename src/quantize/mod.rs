//! Layer 5: stage 1: a recipe applied to a checkpoint.
//!
//! [`QuantizePlan::new`] checks everything that headers can tell, before anything is written. Shards of the output
//! mirror those of the source and are independent units of work; [`QuantizePlan::finish`] writes what is left.

mod config;
mod error;
mod finish;
mod modelopt;
mod plan;
pub mod preflight;
mod sample;
mod shard;

pub use crate::ops::quantize_weight::Arithmetic;
pub use error::QuantizeError;
pub use plan::QuantizePlan;

#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod tests;

//! Layer 0: what every part needs and nobody owns: digests, atomic writes, environment, progress, statistics.

pub mod atomic;
pub mod clock;
pub mod closest;
pub mod digest;
pub mod disk;
pub mod env_vars;
pub mod interrupt;
pub mod json;
pub mod progress;
pub mod python;
pub mod stats;
pub mod threads;
pub mod units;

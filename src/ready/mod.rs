//! Layer 8, beside the gates: what readiness gates decide on is measured here. Commands of a repository are run and
//! counted (diff, ratchet), its checks are run in containers or without (qa), and a candidate is run again under other
//! seeds (repro). Decisions are [`crate::gate`]'s.

pub mod config;
pub mod integrity;
pub mod lineage;
pub mod parse;
pub mod process;
pub mod qa;
pub mod ratchet;
pub mod release_metrics;
pub mod repro;
pub mod snapshot;
pub mod train;

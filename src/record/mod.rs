//! Layer 1: the contract of the whole program: what stages write, gates read and reports show.
//!
//! Plain structs. Every artifact carries `schema_version`; digests are BLAKE3 ([`crate::base::digest`]).

pub mod calibration;
pub mod engine;
pub mod eval;
pub mod failure;
pub mod finding;
pub mod fold;
pub mod gate;
pub mod preflight;
pub mod provenance;
pub mod qa;
pub mod quality;
pub mod quantize;
pub mod ratchet;
pub mod release;
pub mod repro;
pub mod scan;
pub mod score;
pub mod serve;
pub mod snapshot;
pub mod verdict;

pub use failure::{Classified, Failure};
pub use finding::{FailureClass, Finding, Severity};
pub use fold::{Folded, fold};
pub use gate::{GateName, GateReport};
pub use provenance::Provenance;
pub use verdict::{Outcome, Verdict};

/// Version of every record's schema; raised when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

//! Layer 5: the one execution model: a graph of units, an append-only ledger with leases, and executors.
//!
//! A unit has a content-addressed key: equal keys mean equal outputs. Resuming a run is nothing but running the units
//! whose keys the ledger does not hold as done. This module knows nothing of what units do.

mod entry;
mod graph;
mod history;
mod ledger;
mod lease;
mod local;
mod unit;
pub mod slurm;
pub mod triage;

pub use graph::{Graph, Node};
pub use history::{Attempt, UnitHistory};
pub use lease::Owner;
pub use ledger::{Claim, Done, Ledger, LedgerError, Snapshot};
pub use local::{Executor, LocalExecutor, RunSummary, Share};
pub use unit::{Context, Flow, FnUnit, KeyBuilder, Output, Unit, UnitKey};

//! Layer 5: the one execution model: a graph of units, an append-only ledger with leases, and executors.
//!
//! A unit has a content-addressed key: equal keys mean equal outputs. Resuming a run is nothing but running the units
//! whose keys the ledger does not hold as done. This module knows nothing of what units do.

mod graph;
mod ledger;
mod lease;
mod local;
mod unit;

pub use graph::{Graph, Node};
pub use lease::Owner;
pub use ledger::{Claim, Done, Ledger, LedgerError};
pub use local::{Executor, LocalExecutor, RunSummary};
pub use unit::{Context, Flow, FnUnit, KeyBuilder, Output, Unit, UnitKey};

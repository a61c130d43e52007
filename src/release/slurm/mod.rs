//! A release as Slurm jobs: submitted, run, closed.
//!
//! `slurm/` in the run directory holds what this needs beside the ledger: the profile, what was submitted, the scripts,
//! the logs and the exit code of every task.

mod cause;
mod closing;
mod front;
mod part;
mod plan;
mod standing;
mod state;
mod submit;
mod wait;

pub(super) use closing::tail;
pub use front::{describe, no_gpus, release};
pub use part::{Part, run_part};
pub use state::{Cause, JobRecord, SlurmDir, SubmissionRecord};
pub(super) use submit::living;
pub use wait::wait;

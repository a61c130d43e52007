//! Slurm: the cluster profile, batch scripts, the commands that submit and ask, and what a job's end means.
//!
//! Nothing here knows what a job does: it is a program with arguments, run once or as the tasks of an array.

mod control;
mod profile;
mod script;
mod states;

pub use control::{JobId, Slurm, Submission};
pub use profile::{Container, Profile, ProfileFile, Resources, Runtime};
pub use script::Script;
pub(crate) use script::quote;
pub use states::{JobReport, recorded, reports};

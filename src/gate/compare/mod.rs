//! Gate `compare`: is the candidate within the margin of the baseline, task by task?
//!
//! First both runs must be complete (the checks of gate `run`) and comparable (`proof`); otherwise nothing is
//! judged. Then the baseline is checked alone (`baseline`), and the policy judges each task, or group that is decided
//! as one (`subject`), by its evidence (`evidence`, `policy`). Required ones decide, advisory ones leave notes.

mod baseline;
mod evidence;
mod identical;
mod judge;
mod options;
mod pairs;
mod policy;
mod proof;
#[cfg(test)]
mod proof_tests;
mod sample;
mod sequential;
#[cfg(test)]
mod sequential_tests;
mod subject;
#[cfg(test)]
mod subject_tests;
#[cfg(test)]
mod tests;
mod wording;

pub use evidence::{Flip, Method, TaskEvidence, TaskVerdict};
pub use judge::compare;
pub use options::{CompareOptions, Margin, Policy, Published, TaskOptions, Tier};
pub use sample::MIN_DOCUMENTS;
pub use sequential::{Decision, Follower, Look, StopRule, WaveCounts};
pub use subject::{Facts, Subject, TaskFacts};

//! Layer 8: pure decisions on records. A gate collects all its findings, then folds them; it does no I/O and knows
//! no stage. What each gate decides stands at the top of its file.

mod compare;
mod decimal;
pub mod diff;
mod findings;
#[cfg(test)]
mod fixtures;
mod ptq;
pub mod qa;
pub mod quality;
pub mod ratchet;
pub mod repro;
mod run;
mod serve;
pub mod upstream;

pub use compare::{
    CompareOptions, Decision, Facts, Flip, Follower, Look, MIN_DOCUMENTS, Margin, Method, Policy, Published,
    StopRule, Subject, TaskEvidence, TaskFacts, TaskOptions, TaskVerdict, Tier, WaveCounts, compare,
};
pub use ptq::ptq;
pub use run::run;
pub use serve::serve;

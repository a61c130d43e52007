//! Reproducibility: a candidate, or a training, run again under several seeds (founding document 000).

pub mod estimate;
mod family;
mod job;
mod measure;
mod ptq;
mod roundtrip;
mod token;

pub use family::{Family, FamilyKind, builtin_names, load};
pub use job::JobRunner;
pub use measure::{Measure, NamedRunner, Runner, node_name};
pub use ptq::PtqRunner;
pub use roundtrip::RoundtripRunner;
pub use token::TokenRunner;

//! The project's own checks, in containers first and without them where there are none (founding document 002).

mod artifacts;
mod config;
mod container;
mod run;

pub use artifacts::{Artifacts, DEFAULT_OUT};
pub use config::{Check, ContainerPolicy, QaConfig, RuntimeName, quoted};
pub use run::{QaOptions, QaOutcome, absolute, run};

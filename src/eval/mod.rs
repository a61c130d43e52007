//! Layer 7: requests to log-likelihoods to metrics to sample files.

pub mod endpoint;
mod prepared;
pub mod probe;
mod scorer;

pub use prepared::{PreparedItem, PreparedRequest};
pub use scorer::{OnDone, Scorer};

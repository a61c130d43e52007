//! Layer 7: requests to log-likelihoods to metrics to sample files.

mod prepared;
mod scorer;

pub use prepared::{PreparedItem, PreparedRequest};
pub use scorer::{OnDone, Scorer};

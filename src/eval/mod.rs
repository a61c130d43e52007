//! Layer 7: requests to log-likelihoods to metrics to sample files.

pub mod bench;
pub mod endpoint;
pub mod local;
pub mod probe;

mod encode;
mod error;
mod import;
mod journal;
mod metrics;
mod outputs;
mod prepare;
mod prepared;
mod rolling;
mod score;
mod scorer;

#[cfg(test)]
mod tests;

pub use error::{EvalError, RequestProblem};
pub use import::{ImportError, ItemText, Run, Side, blank_what_others_lack, item_texts, read_run};
pub use journal::{JOURNAL, Journal};
pub use metrics::{aggregate, aggregate_group, argmax, item_values};
pub use outputs::{OutputInfo, results, sample, write_outputs};
pub use prepare::{EvalOptions, prepare};
pub use prepared::{PreparedItem, PreparedRequest, PreparedTask};
pub use score::{
    ItemRef, ScoreError, Scored, group_records, primary_metric, score_items, score_items_once, task_record,
};
pub use scorer::{OnDone, Scorer};

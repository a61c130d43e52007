//! Layer 6: suites: tasks, prompts, data sets.
//!
//! A suite is written in lm-eval's task YAML; what it means is what lm-eval 0.4.13 makes of it.

mod config;
mod data;
mod definition;
mod embedded;
mod error;
mod function;
mod group;
mod hub_data;
mod load;
mod metric;
mod parquet_rows;
mod prompt;
pub mod python_random;
mod task;
mod template;

#[cfg(test)]
mod tests;

pub use config::{FewshotConfig, FieldSource, Sampler, TaskConfig};
pub use error::{Place, SuiteError};
pub use function::{ResultsFunction, RowFunction, ValueFunction, mc2_labels};
pub use group::{Group, GroupMetric};
pub use load::{EMBEDDED_DATA, Suite, builtin_names, load, load_from};
pub use metric::{Aggregation, MetricKind, OutputType};
pub use prompt::{DEFAULT_FEWSHOT_SEED, PromptError, PromptOptions, Prompts, RequestText};
pub use task::{Doc, Task};

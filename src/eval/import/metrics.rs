//! What lm-eval's results say of their metrics: scores, which way is better, and on what scale.
//!
//! Direction and scale are declared or known by name, never assumed: a perplexity taken for an accuracy would turn a
//! worse model into a better one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::ImportError;
use crate::record::eval::{ItemRecord, Metric, MetricInfo};

/// A results file.
#[derive(Clone, Copy)]
pub(super) struct Results<'a> {
    pub path: &'a Path,
    pub value: &'a Value,
}

/// What is known of a metric by its name.
struct Known {
    name: &'static str,
    higher_is_better: bool,
    /// Whether an item's value lies in 0..=1.
    bounded: bool,
}

/// Metrics of lm-eval 0.4.13, `api/metrics.py` (`register_metric`, `higher_is_better`). Every other metric needs a
/// declared direction.
const KNOWN: [Known; 10] = {
    const fn of(name: &'static str, higher_is_better: bool, bounded: bool) -> Known {
        Known { name, higher_is_better, bounded }
    }
    [
        of("acc", true, true),
        of("acc_norm", true, true),
        of("acc_bytes", true, true),
        of("acc_mutual_info", true, true),
        of("exact_match", true, true),
        of("perplexity", false, false),
        of("word_perplexity", false, false),
        of("byte_perplexity", false, false),
        of("bits_per_byte", false, false),
        of("brier_score", false, false),
    ]
};

fn known(metric: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == metric)
}

/// Whether more of a metric is better, and whether that is inferred from its name; else what is wrong.
fn direction(metric: &str, declared: &Value) -> Result<(bool, bool), String> {
    let known = known(metric).map(|known| known.higher_is_better);
    match (declared.as_bool(), known) {
        (Some(declared), Some(known)) if declared != known => {
            Err(format!("said to be {declared}, which is not so"))
        }
        (Some(declared), _) => Ok((declared, false)),
        (None, Some(known)) => Ok((known, true)),
        (None, None) => Err("not said".to_owned()),
    }
}

/// What was not declared, by what was inferred instead: the tasks.
pub(super) type Inferred = BTreeMap<String, Vec<String>>;

/// Direction and scale of the metric that decides. Both are declared or known by name; a metric that is only declared
/// has scale 1 if more is better and every item lies in 0..=1.
pub(super) fn metric_info(
    task: &str,
    name: String,
    file: Results<'_>,
    items: &[ItemRecord],
    inferred: &mut Inferred,
) -> Result<MetricInfo, ImportError> {
    let mut note = |what: String| inferred.entry(what).or_default().push(task.to_owned());
    let declared = &file.value["higher_is_better"][task][&name];
    let (higher_is_better, by_name) = direction(&name, declared).map_err(|found| ImportError::Direction {
        path: file.path.to_path_buf(),
        field: format!("higher_is_better.{task}.{name}"),
        metric: name.clone(),
        found,
    })?;
    if by_name {
        let better = if higher_is_better { "more" } else { "less" };
        note(format!("{better} {name} is better"));
    }
    let in_unit = || items.iter().all(|i| i.values.get(&name).is_some_and(|v| (0.0..=1.0).contains(v)));
    let bounded = match known(&name) {
        Some(known) => known.bounded,
        None => higher_is_better && in_unit(),
    };
    if bounded && known(&name).is_none() {
        note(format!("the scale of {name} is 1, because every item lies in 0 to 1"));
    }
    Ok(MetricInfo { name, higher_is_better, scale: bounded.then_some(1.0) })
}

/// A score and its standard error.
pub(super) type Score = (f64, Option<f64>);

/// `{"acc,none": value, "acc_stderr,none": value or "N/A"}`.
pub(super) fn scores(results: &Value) -> BTreeMap<String, Score> {
    let entries = results.as_object().into_iter().flatten();
    let score = |(key, value): (&String, &Value)| {
        let (name, filter) = key.split_once(',')?;
        let value = value.as_f64().filter(|_| !name.ends_with("_stderr"))?;
        let stderr = results[format!("{name}_stderr,{filter}")].as_f64();
        Some((name.to_owned(), (value, stderr)))
    };
    entries.filter_map(score).collect()
}

/// The scores whose direction is declared or known.
pub(super) fn directed(scores: BTreeMap<String, Score>, declared: &Value) -> BTreeMap<String, Metric> {
    let metric = |(name, (value, stderr)): (String, Score)| {
        let (higher_is_better, _) = direction(&name, &declared[&name]).ok()?;
        Some((name, Metric { value, stderr, higher_is_better }))
    };
    scores.into_iter().filter_map(metric).collect()
}

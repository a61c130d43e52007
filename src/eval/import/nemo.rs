//! NeMo Evaluator's items: `results.jsonl` with `{problem_idx, reward, repeat, expected_answer, …}`, and the benchmark's
//! name and limit from `eval-*.json`. Repeats of a problem are averaged. The format has no prompts: that both arms were
//! asked the same is not proven, only that the same answers were expected. Nor has it the size of the split: a run that
//! was cut without saying so looks whole.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{ImportError, Imported, lines, newest};
use crate::base::digest::Digest;
use crate::base::json;
use crate::record::eval::{ItemRecord, Metric, MetricInfo, TaskRecord, TaskStatus, unknown_digest};

/// The only metric of the format.
const METRIC: &str = "mean_reward";

pub(super) fn read(dir: &Path) -> Result<Imported, ImportError> {
    let path = dir.join("results.jsonl");
    let mut rewards: BTreeMap<usize, (Vec<f64>, Digest)> = BTreeMap::new();
    for (line, value) in lines(&path)? {
        let wrong = |what: &str| ImportError::Line { path: path.clone(), line, what: what.to_owned() };
        let id = value["problem_idx"].as_u64().ok_or_else(|| wrong("problem_idx is not a number"))?;
        let reward = value["reward"].as_f64().ok_or_else(|| wrong("reward is not a number"))?;
        let target = Digest::of_json(&[&value["expected_answer"], &value["metadata"]["category"]])
            .map_err(|e| wrong(&e.to_string()))?;
        rewards.entry(id as usize).or_insert_with(|| (Vec::new(), target)).0.push(reward);
    }
    let run: Value = match newest(dir, "eval-", ".json")? {
        Some(file) => json::read(&file)?,
        None => Value::Null,
    };
    let name = run["benchmark"]["name"].as_str().unwrap_or("benchmark").to_owned();
    let items: Vec<ItemRecord> =
        rewards.into_iter().map(|(id, (values, target))| item(id, &values, target)).collect();
    let mean = items.iter().map(|i| i.values[METRIC]).sum::<f64>() / items.len().max(1) as f64;
    let bounded = items.iter().all(|i| (0.0..=1.0).contains(&i.values[METRIC]));
    let (full_split, limited_by) = split(&items, &run["config"]);
    let task = TaskRecord {
        task: name.clone(),
        version: "unknown".to_owned(),
        task_digest: Digest::of(name.as_bytes()),
        status: TaskStatus::Success,
        expected: items.len(),
        full_split,
        limited_by,
        order: None,
        truncated: 0,
        primary_metric: MetricInfo {
            name: METRIC.to_owned(),
            higher_is_better: true,
            scale: bounded.then_some(1.0),
        },
        items,
        metrics: BTreeMap::from([(
            METRIC.to_owned(),
            Metric { value: mean, stderr: None, higher_is_better: true },
        )]),
        visit: None,
    };
    let notes = vec![format!("inferred for {name}: the scale of {METRIC}, from its items")];
    let tasks = BTreeMap::from([(name, task)]);
    Ok((super::record("nemo-evaluator".to_owned(), "unknown", &run["config"], tasks), notes))
}

/// Problems of the split as far as the indices tell, and why there are fewer items; empty where nothing says so.
fn split(items: &[ItemRecord], config: &Value) -> (usize, String) {
    let limit =
        [&config["limit_samples"], &config["params"]["limit_samples"]].into_iter().find(|l| !l.is_null());
    let ends = items.first().zip(items.last());
    let span = ends.map_or(0, |(first, last)| last.doc_id - first.doc_id + 1);
    let why = match limit {
        Some(limit) => format!("limit_samples {limit}"),
        None if items.len() < span => "gaps in problem_idx".to_owned(),
        None => String::new(),
    };
    (span, why)
}

fn item(doc_id: usize, rewards: &[f64], target_digest: Digest) -> ItemRecord {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    ItemRecord {
        doc_id,
        prompt_digest: unknown_digest(),
        token_digest: unknown_digest(),
        loglikelihoods: Vec::new(),
        is_greedy: Vec::new(),
        values: BTreeMap::from([(METRIC.to_owned(), mean)]),
        weight: 1.0,
        gold: None,
        target_digest: Some(target_digest),
        cluster: None,
        error: None,
    }
}

//! NeMo Evaluator's items: `results.jsonl` with `{problem_idx, reward, repeat, expected_answer, …}`, and the benchmark's
//! name from `eval-*.json`. Repeats of a problem are averaged.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{ImportError, lines, newest};
use crate::base::digest::Digest;
use crate::base::json;
use crate::record::eval::{EvalRecord, ItemRecord, Metric, MetricInfo, TaskRecord, TaskStatus};

/// The only metric of the format.
const METRIC: &str = "mean_reward";

pub(super) fn read(dir: &Path) -> Result<EvalRecord, ImportError> {
    let path = dir.join("results.jsonl");
    let mut rewards: BTreeMap<usize, (Vec<f64>, Digest)> = BTreeMap::new();
    for (line, value) in lines(&path)? {
        let wrong = |what: &str| ImportError::Line { path: path.clone(), line, what: what.to_owned() };
        let id = value["problem_idx"].as_u64().ok_or_else(|| wrong("problem_idx is not a number"))?;
        let reward = value["reward"].as_f64().ok_or_else(|| wrong("reward is not a number"))?;
        // The format has no prompt; the expected answer is what tells that two items are the same.
        let prompt = Digest::of_json(&[&value["expected_answer"], &value["metadata"]["category"]])
            .map_err(|e| wrong(&e.to_string()))?;
        rewards.entry(id as usize).or_insert_with(|| (Vec::new(), prompt)).0.push(reward);
    }
    let run: Value = match newest(dir, "eval-", ".json")? {
        Some(file) => json::read(&file)?,
        None => Value::Null,
    };
    let name = run["benchmark"]["name"].as_str().unwrap_or("benchmark").to_owned();
    let items: Vec<ItemRecord> =
        rewards.into_iter().map(|(id, (values, prompt))| item(id, &values, prompt)).collect();
    let mean = items.iter().map(|i| i.values[METRIC]).sum::<f64>() / items.len().max(1) as f64;
    let task = TaskRecord {
        task: name.clone(),
        version: "unknown".to_owned(),
        task_digest: Digest::of(name.as_bytes()),
        status: TaskStatus::Success,
        expected: items.len(),
        full_split: items.len(),
        limited_by: String::new(),
        items,
        primary_metric: MetricInfo { name: METRIC.to_owned(), higher_is_better: true, scale: Some(1.0) },
        metrics: BTreeMap::from([(
            METRIC.to_owned(),
            Metric { value: mean, stderr: None, higher_is_better: true },
        )]),
        visit: None,
    };
    Ok(super::record("nemo-evaluator".to_owned(), "unknown", &run["config"], BTreeMap::from([(name, task)])))
}

fn item(doc_id: usize, rewards: &[f64], prompt_digest: Digest) -> ItemRecord {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    ItemRecord {
        doc_id,
        prompt_digest,
        token_digest: Digest::of(b"unknown"),
        loglikelihoods: Vec::new(),
        is_greedy: Vec::new(),
        values: BTreeMap::from([(METRIC.to_owned(), mean)]),
        weight: 1.0,
        gold: None,
        cluster: None,
        error: None,
    }
}

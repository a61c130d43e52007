//! Results and samples in lm-eval's file formats.
//!
//! Source: lm-eval 0.4.13, `evaluator.py` (`evaluate`), `loggers/evaluation_tracker.py` (`save_results_samples`),
//! `result_schema.py`. Differences: files have no date in their names; items that failed are not in the samples.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::EvalError;
use super::metrics;
use super::prepare::EvalOptions;
use super::prepared::{PreparedItem, PreparedTask};
use crate::base::atomic::AtomicFile;
use crate::base::digest::sha256_hex;
use crate::base::{json as json_file, python};
use crate::record::eval::{EvalRecord, ItemOrder, ItemRecord, Metric, TaskRecord};
use crate::suite::{Doc, Group, MetricKind, OutputType};

/// What a results file says beside the records.
#[derive(Debug, Clone)]
pub struct OutputInfo<'a> {
    /// Name or path of the model.
    pub model_name: &'a str,
    /// Options of the run.
    pub options: &'a EvalOptions,
    /// Groups of the suite.
    pub groups: &'a [Group],
}

/// Writes `results.json` and one `samples_<task>.jsonl` for each task into `dir`.
pub fn write_outputs(
    dir: &Path,
    record: &EvalRecord,
    tasks: &[PreparedTask],
    info: &OutputInfo<'_>,
) -> Result<(), EvalError> {
    let mut task_hashes = Map::new();
    for prepared in tasks {
        if let Some(task) = record.tasks.get(prepared.name()) {
            let path = dir.join(format!("samples_{}.jsonl", prepared.name()));
            let hash = write_samples(&path, prepared, task)
                .map_err(|source| EvalError::Write { path: path.clone(), source })?;
            task_hashes.insert(prepared.name().to_owned(), hash.into());
        }
    }
    let mut results = results(record, tasks, info);
    results["task_hashes"] = Value::Object(task_hashes);
    json_file::write(&dir.join("results.json"), &results)?;
    Ok(())
}

/// Writes the samples and returns lm-eval's task hash: over all documents' hashes.
fn write_samples(path: &Path, prepared: &PreparedTask, task: &TaskRecord) -> std::io::Result<String> {
    let by_doc: std::collections::HashMap<usize, &PreparedItem> =
        prepared.items.iter().map(|i| (i.doc_id, i)).collect();
    let mut file = AtomicFile::create(path)?;
    let mut hashes = String::new();
    for record in task.items.iter().filter(|r| r.error.is_none()) {
        let Some(item) = by_doc.get(&record.doc_id) else { continue };
        let sample = sample(prepared, item, record);
        for hash in ["doc_hash", "prompt_hash", "target_hash"] {
            hashes.push_str(sample[hash].as_str().unwrap_or_default());
        }
        writeln!(file, "{}", python::json_dumps(&sample, None))?;
    }
    file.commit()?;
    Ok(sha256_hex(hashes.as_bytes()))
}

/// One line of a samples file, keys in lm-eval's order.
pub fn sample(prepared: &PreparedTask, item: &PreparedItem, record: &ItemRecord) -> Value {
    let doc = prepared.doc(item);
    let config = &prepared.task.config;
    let rolling = config.output_type == OutputType::LoglikelihoodRolling;
    let mut arguments = Map::new();
    for (i, request) in item.requests.iter().enumerate() {
        let texts = if rolling {
            json!({"arg_0": request.continuation})
        } else {
            json!({"arg_0": request.context, "arg_1": request.continuation})
        };
        arguments.insert(format!("gen_args_{i}"), texts);
    }
    let answers: Vec<Value> = record
        .loglikelihoods
        .iter()
        .zip(&record.is_greedy)
        .map(|(ll, greedy)| {
            let ll = python::float_repr(*ll);
            if rolling { ll.into() } else { json!([ll, if *greedy { "True" } else { "False" }]) }
        })
        .collect();
    let target = python::str(&doc.target);
    let first = item.requests.first();
    let prompt = first.map_or("", |r| if rolling { &r.continuation } else { &r.context });
    let mut sample = Map::new();
    let mut put = |key: &str, value: Value| sample.insert(key.to_owned(), value);
    put("doc_id", item.doc_id.into());
    put("doc", Value::Object(doc.fields.clone()));
    put("target", target.clone().into());
    put("arguments", Value::Object(arguments));
    put("resps", answers.iter().map(|a| json!([a])).collect());
    put("filtered_resps", answers.into());
    put("filter", "none".into());
    put("metrics", config.metrics.iter().map(|m| m.name()).collect());
    put(
        "doc_hash",
        sha256_hex(python::json_dumps(&Value::Object(doc.fields.clone()), Some(2)).as_bytes()).into(),
    );
    put("prompt_hash", sha256_hex(prompt.as_bytes()).into());
    put("target_hash", sha256_hex(target.as_bytes()).into());
    for metric in &config.metrics {
        put(metric.name(), sample_value(*metric, doc, record));
    }
    Value::Object(sample)
}

/// A metric on one document as lm-eval logs it: accuracies as they are, the others as the log-likelihood and, where
/// they are per unit, the number of units.
fn sample_value(metric: MetricKind, doc: &Doc, record: &ItemRecord) -> Value {
    match metric {
        MetricKind::Perplexity => record.loglikelihoods[0].into(),
        MetricKind::WordPerplexity | MetricKind::BytePerplexity | MetricKind::BitsPerByte => {
            json!([record.loglikelihoods[0], metrics::weight(metric, doc) as u64])
        }
        MetricKind::ExactMatch => (record.values[metric.name()] as u64).into(),
        MetricKind::Acc if doc.choices.is_empty() => (record.values[metric.name()] as u64).into(),
        _ => record.values[metric.name()].into(),
    }
}

fn put_metrics(entry: &mut Map<String, Value>, metrics: &std::collections::BTreeMap<String, Metric>) {
    for (name, metric) in metrics {
        entry.insert(format!("{name},none"), metric.value.into());
        let stderr = metric.stderr.map_or_else(|| Value::from("N/A"), Value::from);
        entry.insert(format!("{name}_stderr,none"), stderr);
    }
}

/// The content of `results.json`, without the task hashes.
pub fn results(record: &EvalRecord, tasks: &[PreparedTask], info: &OutputInfo<'_>) -> Value {
    let mut sections: Vec<Map<String, Value>> = vec![Map::new(); 6];
    for prepared in tasks {
        let Some(task) = record.tasks.get(prepared.name()) else { continue };
        let config = &prepared.task.config;
        let name = prepared.name();
        let alias = config.alias.as_deref().unwrap_or(name);
        let mut entry = Map::from_iter([
            ("name".to_owned(), json!(name)),
            ("alias".to_owned(), json!(alias)),
            ("sample_len".to_owned(), json!(task.scored())),
        ]);
        put_metrics(&mut entry, &task.metrics);
        let better: Map<String, Value> =
            config.metrics.iter().map(|m| (m.name().to_owned(), m.higher_is_better().into())).collect();
        let samples = json!({"original": prepared.full_split, "effective": task.scored()});
        let values = [
            Value::Object(entry),
            Value::Object(config.definition.clone()),
            config.version.clone(),
            prepared.num_fewshot.into(),
            Value::Object(better),
            samples,
        ];
        for (section, value) in sections.iter_mut().zip(values) {
            section.insert(name.to_owned(), value);
        }
    }
    let names = ["results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"];
    let mut out: Map<String, Value> =
        names.iter().map(|n| (*n).to_owned()).zip(sections.into_iter().map(Value::Object)).collect();
    put_groups(&mut out, record, info.groups);
    out.insert("dataset_revisions".to_owned(), dataset_revisions(tasks));
    out.extend(run_facts(record, info));
    Value::Object(out)
}

/// Which commits of the hub's repositories the rows came from.
fn dataset_revisions(tasks: &[PreparedTask]) -> Value {
    let entry = |prepared: &PreparedTask| {
        let revision = prepared.task.data_revision()?;
        let dataset = &prepared.task.config.dataset_path;
        Some((prepared.name().to_owned(), json!({"dataset": dataset, "revision": revision})))
    };
    Value::Object(tasks.iter().filter_map(entry).collect())
}

fn put_groups(out: &mut Map<String, Value>, record: &EvalRecord, groups: &[Group]) {
    let mut combined = Map::new();
    let mut subtasks = Map::new();
    for group in groups {
        let (metrics, scored) = metrics::aggregate_group(group, &record.tasks);
        let mut entry = Map::from_iter([
            ("name".to_owned(), json!(group.name)),
            ("alias".to_owned(), json!(group.alias)),
        ]);
        if !group.aggregates.is_empty() {
            entry.insert("sample_len".to_owned(), scored.into());
            put_metrics(&mut entry, &metrics);
            combined.insert(group.name.clone(), Value::Object(entry.clone()));
        }
        out["results"][&group.name] = Value::Object(entry);
        out["versions"][&group.name] = group.version.clone().into();
        subtasks.insert(group.name.clone(), json!(group.members));
    }
    if !combined.is_empty() {
        out.insert("groups".to_owned(), Value::Object(combined));
    }
    out.insert("group_subtasks".to_owned(), Value::Object(subtasks));
}

fn run_facts(record: &EvalRecord, info: &OutputInfo<'_>) -> Map<String, Value> {
    let options = info.options;
    let order = match options.order {
        ItemOrder::Dataset => "dataset".to_owned(),
        ItemOrder::Permuted { seed } => format!("permuted with seed {seed}"),
    };
    let instruction_sha = options.system_instruction.as_deref().map(|text| sha256_hex(text.as_bytes()));
    let facts = json!({
        "config": {
            "model": "day0",
            "model_args": {"pretrained": info.model_name},
            "model_sha": record.identity.checkpoint_digest,
            "device": record.identity.device,
            "kernel_path": record.identity.kernel_path,
            "limit": options.limit,
            "item_order": order,
            "fewshot_seed": options.fewshot_seed,
            "apply_chat_template": options.apply_chat_template,
            "bootstrap_iters": metrics::BOOTSTRAP_ITERS,
        },
        "git_hash": record.provenance.git_hash,
        "day0_version": record.provenance.tool_version,
        "date": record.provenance.timing.started_at,
        "max_length": options.max_len,
        "model_source": record.identity.engine,
        "model_name": info.model_name,
        "system_instruction": options.system_instruction,
        "system_instruction_sha": instruction_sha,
        "total_evaluation_time_seconds": record.provenance.timing.elapsed_s.to_string(),
    });
    match facts {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
